package links

import (
	"net"
	"net/netip"
	"testing"
	"time"
)

func addr(s string) netip.Addr {
	if s == "" {
		return netip.Addr{}
	}
	return netip.MustParseAddr(s)
}

// TestOf is a laptop: wired, a modem, docker, and the networks of programs.
func TestOf(t *testing.T) {
	l := newLinks(1)
	at := time.Now()
	l.now = func() time.Time { return at }
	late := false
	l.list = func() (map[netip.Addr]string, []netip.Prefix, error) {
		m := map[netip.Addr]string{
			addr("127.0.0.1"): "lo", addr("::1"): "lo", addr("192.168.1.5"): "eth0", addr("2a00:1::5"): "eth0", addr("10.170.3.4"): "wwan0", addr("172.17.0.1"): "docker0",
		}
		if late {
			m[addr("10.8.0.2")] = "tun0"
		}
		return m, []netip.Prefix{netip.MustParsePrefix("2a00:1::/64")}, nil
	}
	asked := 0
	l.ask = func(a netip.Addr) (route, error) {
		asked++
		switch {
		case a == addr("192.168.1.5"):
			return route{link: "lo", here: true, plain: true}, nil
		case netip.MustParsePrefix("172.17.0.0/16").Contains(a):
			return route{link: "docker0", plain: true}, nil
		case a == addr("7.7.7.7"):
			return route{}, errNoRoute
		}
		return route{link: "eth0"}, nil
	}
	l.refresh()
	for _, c := range []struct {
		name          string
		netns         uint32
		local, remote string
		want          Place
	}{
		{"loopback", 1, "127.0.0.1", "127.0.0.1", Place{Machine: true}},
		{"own address", 1, "192.168.1.5", "192.168.1.5", Place{Machine: true}},
		{"another own address", 1, "192.168.1.5", "10.170.3.4", Place{Machine: true}},
		{"wired", 1, "192.168.1.5", "8.8.8.8", Place{Interface: "eth0"}},
		{"not known which namespace", 0, "10.170.3.4", "8.8.8.8", Place{Interface: "wwan0"}},
		{"modem", 1, "10.170.3.4", "8.8.8.8", Place{Interface: "wwan0"}},
		{"modem, mapped", 1, "::ffff:10.170.3.4", "::ffff:8.8.8.8", Place{Interface: "wwan0"}},
		{"neighbour", 1, "192.168.1.5", "192.168.1.9", Place{Interface: "eth0", Local: true}},
		{"neighbour by its global address", 1, "2a00:1::5", "2a00:1::9", Place{Interface: "eth0", Local: true}},
		{"multicast", 1, "192.168.1.5", "224.0.0.251", Place{Interface: "eth0", Local: true}},
		{"overlay", 1, "", "100.100.1.1", Place{Interface: "eth0", Local: true}},
		{"unconnected socket", 1, "0.0.0.0", "8.8.8.8", Place{Interface: "eth0"}},
		{"remote not known", 1, "10.170.3.4", "", Place{Interface: "wwan0"}},
		{"nothing known", 1, "", "", Place{}},
		{"no route", 1, "", "7.7.7.7", Place{}},
		{"container", 2, "172.17.0.2", "8.8.8.8", Place{Interface: "eth0"}},
		{"container to this machine", 2, "172.17.0.2", "172.17.0.1", Place{Machine: true}},
		{"container's loopback", 2, "127.0.0.1", "127.0.0.1", Place{Machine: true}},
		{"container, unconnected", 2, "", "8.8.8.8", Place{Interface: "eth0"}},
		{"slirp4netns, unconnected, before anything is known", 3, "0.0.0.0", "8.8.8.8", Place{Interface: "eth0"}},
		{"slirp4netns", 3, "10.0.2.100", "8.8.8.8", Place{Interface: "eth0", Carried: true}},
		{"slirp4netns, unconnected", 3, "0.0.0.0", "8.8.8.8", Place{Interface: "eth0", Carried: true}},
		{"pasta, with the address of this machine", 2, "192.168.1.5", "8.8.8.8", Place{Interface: "eth0", Carried: true}},
	} {
		if got := l.Of(c.netns, addr(c.local), addr(c.remote)); got != c.want {
			t.Errorf("%s: %+v, want %+v", c.name, got, c.want)
		}
	}
	// Known routes are not asked for again.
	before := asked
	for range 100 {
		l.Of(1, addr(""), addr("8.8.8.8"))
	}
	if asked != before {
		t.Errorf("asked %d times more", asked-before)
	}
	// An interface that is new is found within a second, and one that went is remembered for a while.
	late = true
	at = at.Add(missEvery)
	if got := l.Of(1, addr("10.8.0.2"), addr("8.8.8.8")); got.Interface != "tun0" {
		t.Errorf("%+v", got)
	}
	late = false
	at = at.Add(2 * refreshEvery)
	if got := l.Of(1, addr("10.8.0.2"), addr("8.8.8.8")); got.Interface != "tun0" {
		t.Errorf("%+v", got)
	}
}

// TestGone: an address that a provider took back, and gave to somebody else, is not this machine for ever.
func TestGone(t *testing.T) {
	l := newLinks(1)
	at := time.Now()
	l.now = func() time.Time { return at }
	have := "203.0.113.7"
	l.list = func() (map[netip.Addr]string, []netip.Prefix, error) {
		return map[netip.Addr]string{addr(have): "ppp0"}, nil, nil
	}
	l.ask = func(netip.Addr) (route, error) { return route{link: "ppp0"}, nil }
	l.refresh()
	have = "198.51.100.1"
	at = at.Add(time.Minute)
	if p := l.Of(1, addr("203.0.113.7"), addr("198.51.100.1")); !p.Machine {
		t.Errorf("a minute later, the way between the two is %+v", p)
	}
	if l.link(addr("203.0.113.7")) != "ppp0" {
		t.Error("a minute later, the interface is not known")
	}
	at = at.Add(keepFor)
	if p := l.Of(1, addr("198.51.100.1"), addr("203.0.113.7")); p.Machine || p.Interface != "ppp0" {
		t.Errorf("minutes later, what goes to the one that went: %+v", p)
	}
}

// TestKernel asks this machine's kernel.
func TestKernel(t *testing.T) {
	l, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range []string{"127.0.0.1", "::1", "127.9.9.9"} {
		if addr(a).Is6() && l.addresses[addr("::1")].link == "" {
			continue
		}
		r, err := ask(addr(a))
		if err != nil || !r.here || r.link != "lo" {
			t.Errorf("%s: %+v %v", a, r, err)
		}
	}
	all, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range all {
		some, _ := i.Addrs()
		for _, x := range some {
			a, _ := netip.AddrFromSlice(x.(*net.IPNet).IP)
			if got := l.link(a.Unmap()); got != i.Name {
				t.Errorf("%s: %q, want %q", a, got, i.Name)
			}
		}
	}
	if p := l.Of(l.netns, addr("127.0.0.1"), addr("127.0.0.1")); !p.Machine {
		t.Errorf("%+v", p)
	}
	if err := l.Err(); err != nil {
		t.Error(err)
	}
}

// FuzzRead: whatever the kernel answers.
func FuzzRead(f *testing.F) {
	f.Add([]byte{})
	f.Add(request(addr("8.8.8.8")))
	f.Add(request(addr("2a00::1")))
	f.Fuzz(func(_ *testing.T, b []byte) { read(b) })
}
