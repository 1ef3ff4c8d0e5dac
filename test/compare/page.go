package main

import (
	"fmt"
	"io"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// state of one tool in one scenario.
func (f found) state() (seen, bytes string) {
	switch {
	case f.lack != "":
		return "n/a", "n/a"
	case f.seen == 0:
		return "no", "none"
	case f.seen < f.programs:
		seen = fmt.Sprintf("%d of %d", f.seen, f.programs)
	default:
		seen = "yes"
	}
	// The greater direction is the one that the scenario is about.
	want, got := f.moved.Sent, f.told.Sent
	if f.moved.Received > want {
		want, got = f.moved.Received, f.told.Received
	}
	if f.moved == f.told {
		return seen, "equal"
	}
	return seen, fmt.Sprintf("%.4f", float64(got)/float64(want))
}

// close reports whether all directions are within 10 %.
func (f found) close() bool {
	near := func(want, got uint64) bool {
		d := float64(got) - float64(want)
		return d <= 0.1*float64(want)+2048 && d >= -0.1*float64(want)-2048 // a few packets' headers are no error of a scenario that moves nothing that way
	}
	return f.lack == "" && f.seen > 0 && near(f.moved.Sent, f.told.Sent) && near(f.moved.Received, f.told.Received)
}

// counts of a tool: detected, equal, within 10 %, runnable.
func (v verdict) counts4() (seen, equal, near, all int) {
	for _, f := range v.all {
		if f.lack != "" || !isPeer(f.scenario) {
			continue
		}
		all++
		if f.seen == f.programs && f.programs > 0 {
			seen++
		}
		if f.moved == f.told {
			equal++
		}
		if f.close() {
			near++
		}
	}
	return seen, equal, near, all
}

func (v verdict) summary() string {
	if v.failed != "" {
		return fmt.Sprintf("%s: %s", v.name, v.failed)
	}
	seen, equal, near, all := v.counts4()
	return fmt.Sprintf("%s %s: seen %d of %d, bytes equal %d, within 10 %% %d; CPU %.2f s in %.0f s, PSS %.1f MiB", v.name, v.told, seen, all, equal, near, v.cost.CPU.Seconds(), v.seconds, float64(v.cost.PSS)/(1<<20))
}

func write(w io.Writer, all []verdict) {
	var u unix.Utsname
	_ = unix.Uname(&u) // an empty release is no reason to write nothing
	fmt.Fprintf(w, `# Comparison

Written by `+"`make compare`"+` on %s, kernel %s; do not edit.

The 24 comparable scenarios of [coverage.md](coverage.md), once for each tool, one tool at a time. Every tool runs in the network namespace of the clients, whose devices
it sees; the peers are in another one, behind a veth pair. What counts is what the tool tells about the client program. **Seen**: every process that moved bytes
is named. **Bytes**: equal, or the ratio of the greater direction. Tools count at different layers, so "within 10 %%" is the fair measure where headers are counted too;
"equal" can only be reached by those that count payload.

| tool | version | counts | seen | bytes equal | bytes within 10 %% | CPU | memory (PSS) |
|---|---|---|---|---|---|---|---|
`, time.Now().UTC().Format(time.DateOnly), unix.ByteSliceToString(u.Release[:]))
	for _, v := range all {
		if v.failed != "" {
			fmt.Fprintf(w, "| %s | %s | %s | does not run here: %s | | | | |\n", v.name, v.told, v.tool.counts, strings.ReplaceAll(v.failed, "|", `\|`))
			continue
		}
		seen, equal, near, n := v.counts4()
		fmt.Fprintf(w, "| %s | %s | %s | %d of %d | %d | %d | %.2f s in %.0f s | %.1f MiB |\n", v.name, v.told, v.tool.counts, seen, n, equal, near, v.cost.CPU.Seconds(), v.seconds, float64(v.cost.PSS)/(1<<20))
	}
	fmt.Fprint(w, "\nEvery client keeps its sockets open for 1.5 s after the traffic (s11 does not: it is about short lives), so that tools which look into /proc get their time. CPU is that of the tool's own processes; what hooks cost inside of other programs' calls is not in it. Of picosnitch, CPU and memory are those of sensor and recorder together, with the hashing of every program and the writing of the database; the others write text.\n\n| scenario |")
	for _, v := range all {
		fmt.Fprintf(w, " %s: seen | bytes |", v.name)
	}
	fmt.Fprint(w, "\n|---|"+strings.Repeat("---|---|", len(all))+"\n")
	if len(all) == 0 {
		return
	}
	for i := range all[0].all {
		fmt.Fprintf(w, "| %s |", all[0].all[i].scenario)
		for _, v := range all {
			if v.failed != "" {
				fmt.Fprint(w, " | |")
				continue
			}
			seen, bytes := v.all[i].state()
			fmt.Fprintf(w, " %s | %s |", seen, bytes)
		}
		fmt.Fprintln(w)
	}
	fmt.Fprintf(w, `
n/a: this kernel does not offer the protocol. The bpftrace script, complete:

`+"```"+`
%s`+"```"+`

tcp-paced is not one of the 24 and not in the sums: one connection that sends 1 MB in five seconds. nethogs finds the program of a connection by looking into /proc when it meets its
packets, and takes packets from a buffer that overruns when 8 MB come within a hundredth of a second, as they do here: such flows stay "unknown" to it. This one it can follow.

Not measured here: the Python tools of BCC, which need kernel headers, a compiler and kprobes (this kernel has none); tools that are not in Debian.
`, script)
}
