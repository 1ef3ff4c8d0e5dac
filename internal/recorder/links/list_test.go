package links

import (
	"maps"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestManyInterfaces: on a machine with hundreds of interfaces (containers), what is found is what the standard library finds one interface
// after the other, in a small part of its time: the stream waits for it. It runs itself in a network namespace of its own.
func TestManyInterfaces(t *testing.T) {
	const inside = "PICOSNITCH_TEST_LINKS"
	if os.Getenv(inside) == "" {
		self := exec.Command("/proc/self/exe", "-test.run=^TestManyInterfaces$", "-test.v")
		self.Env = append(os.Environ(), inside+"=1")
		id := []syscall.SysProcIDMap{{Size: 1}}
		self.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
		if os.Geteuid() != 0 {
			id[0].HostID = os.Geteuid()
			self.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
			self.SysProcAttr.UidMappings = id
		}
		out, err := self.CombinedOutput()
		if err != nil && len(out) == 0 && os.Geteuid() != 0 {
			t.Skip("needs root, or user namespaces: ", err)
		}
		t.Logf("%s", out)
		if err != nil {
			t.Fatal(err)
		}
		return
	}
	const count = 200
	var script strings.Builder
	for i := range count {
		name, n := "d"+strconv.Itoa(i), strconv.Itoa(i)
		script.WriteString("link add " + name + " type bridge\naddr add 10.0." + n + ".1/24 dev " + name + "\naddr add 2a00:" + n + "::1/64 dev " + name + " nodad\n")
	}
	script.WriteString("addr add 10.1.0.1 peer 10.1.0.2 dev d0\nlink set d0 up\n")
	ip := exec.Command("ip", "-batch", "-")
	ip.Stdin = strings.NewReader(script.String())
	if out, err := ip.CombinedOutput(); err != nil {
		t.Fatalf("ip: %v\n%s", err, out)
	}
	begin := time.Now()
	want := make(map[netip.Addr]string)
	all, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range all {
		some, err := i.Addrs()
		if err != nil {
			t.Fatal(err)
		}
		for _, x := range some {
			a, _ := netip.AddrFromSlice(x.(*net.IPNet).IP)
			want[a.Unmap()] = i.Name
		}
	}
	library := time.Since(begin)
	begin = time.Now()
	got, networks, err := list()
	took := time.Since(begin)
	if err != nil || !maps.Equal(got, want) || len(got) < 2*count+1 || len(networks) != count {
		t.Fatalf("%d addresses, %d networks, %v; want %d and %d", len(got), len(networks), err, len(want), count)
	}
	begin = time.Now()
	const asked = 20
	for i := range asked {
		r, err := ask(netip.AddrFrom4([4]byte{10, 0, 0, byte(10 + i)}))
		if err != nil || r.link != "d0" {
			t.Fatalf("%+v %v", r, err)
		}
	}
	route := time.Since(begin) / asked
	t.Logf("%d interfaces: %v, %v by the library; a route %v", count, took, library, route)
	if took > library/4 || route > library/100 {
		t.Errorf("%v for a list and %v for a route, where asking one interface after the other takes %v", took, route, library)
	}
}

// TestRest: a refresh that takes long is not repeated soon.
func TestRest(t *testing.T) {
	l := newLinks(1)
	at, listed := time.Now(), 0
	l.now = func() time.Time { return at }
	l.list = func() (map[netip.Addr]string, []netip.Prefix, error) {
		listed++
		at = at.Add(2 * time.Second)
		return nil, nil, nil
	}
	l.ask = func(netip.Addr) (route, error) { return route{}, nil }
	l.refresh()
	for range 200 {
		l.Of(1, addr("10.0.0.1"), addr("8.8.8.8"))
		at = at.Add(time.Second)
	}
	if listed < 2 || listed > 4 {
		t.Errorf("listed %d times, 2 s each, in 200 s", listed)
	}
}
