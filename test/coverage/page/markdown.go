package page

import (
	"fmt"
	"io"
	"slices"
	"strings"
)

// what says what each of the 24 comparable scenarios is; the names of the others say it themselves.
func what() map[string]string {
	return map[string]string{
		"s01": "TCP, bulk download", "s02": "TCP, bulk upload", "s03": "TCP, both ways at once", "s04": "UDP, both ways",
		"s05": "ICMP echo with payload, raw socket", "s06": "UDP to port 443", "s07": "TCP over IPv6", "s08": "SCTP, both ways",
		"s09": "small UDP datagrams to port 53", "s10": "raw IP, protocol 253", "s11": "20 processes that live for one connection",
		"s12": "AF_PACKET frames (counted as frames, headers included)", "s13": "TCP upload by io_uring", "s14": "TCP upload by sendfile",
		"s15": "UDP by sendmmsg", "s16": "loopback only", "s17": "upload out of a container (overlay, own root and pid namespace)",
		"s18": "TCP in drips of 97 bytes", "s19": "60 small TCP connections", "s20": "30 TCP connections at once",
		"s21": "TCP download by io_uring", "s22": "TCP download by splice", "s23": "UDP by recvmmsg", "s24": "UDP over IPv6",
	}
}

// Peers tells whether a row is one of the 24, and which.
func peer(id string) (string, bool) {
	number, _, _ := strings.Cut(id, "-")
	_, ok := what()[number]
	return number, ok
}

// Write writes the page.
func (r *Report) Write(w io.Writer) {
	rows := r.Best()
	var peers, others []Row
	for _, x := range rows {
		if _, ok := peer(x.ID); ok {
			peers = append(peers, x)
		} else {
			others = append(others, x)
		}
	}
	fmt.Fprint(w, `# Coverage

Written by `+"`make coverage`"+`; do not edit. Traffic generators of our own (test/coverage/generate) count their bytes from the return values of their system
calls; picosnitch runs beside them; then every record in snitch.db, in its view and in conn.log is compared with the truth: program, sha256,
parent, user, peer, protocol, direction, own port, connections, and bytes. **Equal** means that all of this is equal in every trial, to the byte. Nothing is
rounded.

`)
	fmt.Fprintf(w, "| machine | kernel | hook set | trials | memory of sensor and recorder (PSS) |\n|---|---|---|---|---|\n")
	for _, m := range r.Machines {
		fmt.Fprintf(w, "| %s | %s | %s | %d | %.1f MiB |\n", m.Name, m.Kernel, m.HookSet, m.Trials, float64(m.PSS)/(1<<20))
	}
	fmt.Fprintf(w, "\n%s. A scenario runs on the first of these machines whose kernel offers it.\n", r.Date)
	for _, part := range []struct {
		title, text string
		rows        []Row
	}{
		{"The 24 comparable scenarios", "These are the scenarios that the upstream project compares monitors with. The traffic crosses a veth pair to a peer in a network namespace of its own.", peers},
		{"The harder ones", "", others},
	} {
		fmt.Fprintf(w, "\n## %s\n\n", part.title)
		if part.text != "" {
			fmt.Fprintf(w, "%s\n\n", part.text)
		}
		fmt.Fprintf(w, "%s\n\n", Summary(part.rows))
		fmt.Fprintf(w, "| scenario | sent: recorded / moved | ratio | received: recorded / moved | ratio | peer | program | trials equal | kernel |\n|---|---|---|---|---|---|---|---|---|\n")
		for _, x := range part.rows {
			name := x.ID
			if n, ok := peer(x.ID); ok {
				name = "**" + n + "** " + what()[n]
			}
			if x.Result == Lacks || x.Result == Failed {
				fmt.Fprintf(w, "| %s | | | | | | | %s | %s |\n", name, x.Result, short(x.Kernel))
				continue
			}
			trials := fmt.Sprintf("%d of %d", x.Equal, x.Trials)
			switch x.Result {
			case Limited:
				trials += ", limit"
			case Skipped:
				trials += ", skipped by the kernel, counted and told"
			case Differs:
				trials = "**" + trials + "**"
			}
			fmt.Fprintf(w, "| %s | %d / %d | %s | %d / %d | %s | %s | %s | %s | %s |\n", name, x.Recorded.Sent, x.Moved.Sent, ratio(x.Recorded.Sent, x.Moved.Sent),
				x.Recorded.Received, x.Moved.Received, ratio(x.Recorded.Received, x.Moved.Received), x.Peer, yes(x.Identity), trials, short(x.Kernel))
		}
		notes(w, part.rows)
	}
	fmt.Fprint(w, `
"Partly none": the program did not ask for the sender's address (recv, read), so the address comes from the packets, which picosnitch looks at only from the moment on
at which it has met such a reader. The bytes are exact; those before that moment have no address. A wrong address would be a "no".
`)
}

// notes explains everything that is not equal.
func notes(w io.Writer, rows []Row) {
	var told []string
	for _, x := range rows {
		if x.Result != Equal {
			told = append(told, fmt.Sprintf("- `%s`, %s: %s", x.ID, x.Result, x.Reason))
		}
		if x.Result == Equal && (x.Nameless > 0 || x.Reason != "") {
			told = append(told, fmt.Sprintf("- `%s`: %d bytes without an address. %s", x.ID, x.Nameless, x.Reason))
		}
	}
	if len(told) > 0 {
		fmt.Fprintf(w, "\nNot equal, or not all of it, and why:\n\n%s\n", strings.Join(told, "\n"))
	}
}

// Summary counts the results.
func Summary(rows []Row) string {
	count := map[string]int{}
	right, named := 0, 0
	for _, x := range rows {
		count[x.Result]++
		if x.Result == Equal || x.Result == Limited || x.Result == Skipped || x.Result == Differs {
			if x.Peer != "n/a" {
				named++
			}
			if x.Peer == "yes" {
				right++
			}
		}
	}
	var parts []string
	for _, k := range []string{Equal, Limited, Skipped, Differs, Failed, Lacks} {
		if count[k] > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", count[k], map[string]string{
				Equal: "equal", Limited: "a known limit", Skipped: "skipped by the kernel, counted and told", Differs: "**different**", Failed: "**failed to run**", Lacks: "not offered by any of these kernels",
			}[k]))
		}
	}
	return fmt.Sprintf("**%d of %d equal** (%s); every address right in %d of the %d that have one.", count[Equal], len(rows), strings.Join(parts, ", "), right, named)
}

func ratio(got, want uint64) string {
	switch {
	case want == got && want > 0:
		return "1"
	case want == got:
		return ""
	case want == 0:
		return "+"
	}
	return fmt.Sprintf("%.6f", float64(got)/float64(want))
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

// short is a release without the distribution's words.
func short(kernel string) string {
	i := strings.IndexFunc(kernel, func(c rune) bool { return c != '.' && (c < '0' || c > '9') })
	if i < 0 {
		return kernel
	}
	f := strings.Split(kernel[:i], ".")
	return strings.Join(f[:min(len(f), 2)], ".")
}

// Sort puts the 24 first, in their order, and keeps the order of the rest.
func Sort(rows []Row) {
	slices.SortStableFunc(rows, func(a, b Row) int {
		pa, oka := peer(a.ID)
		pb, okb := peer(b.ID)
		switch {
		case oka && okb:
			return strings.Compare(pa, pb)
		case oka:
			return -1
		case okb:
			return 1
		}
		return 0
	})
}
