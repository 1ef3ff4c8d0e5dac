// Command generate moves traffic in one exactly known way and prints, as one line of JSON, what it counted
// itself from the return values of its system calls. Every scenario is a subcommand. The processes that move
// the bytes are copies of this program under other file names and with other contents, so that a monitor's
// attribution by path and by hash can be checked. It opens sockets by raw system calls only, because the way of
// sending is what is tested, and it knows nothing of picosnitch.
//
// Exit codes: 0 claims are on standard output, 1 the scenario failed, 3 this kernel lacks what it needs (the
// reason is on standard error).
package main

import (
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"
)

// deadline bounds a whole scenario.
func deadline() time.Duration { return 8 * patience() }

// scenario is one way of moving bytes.
type scenario struct {
	name string
	run  func(*stage)
}

// scenarios lists all of them, in the order in which they run.
func scenarios() []scenario {
	return slices.Concat(peerScenarios(), tcpScenarios(), connectionScenarios(), reuseScenarios(), resetScenarios(), fullScenarios(), udpScenarios(), udpOptionScenarios(),
		rawScenarios(), packetScenarios(), processScenarios(), forkScenarios(), shortScenarios(),
		namespaceScenarios(), beforeScenarios(), limitScenarios(), sctpScenarios(), kernelScenarios(), stressScenarios())
}

func main() {
	// Children die with the thread that made them (PR_SET_PDEATHSIG), and namespaces belong to threads.
	runtime.LockOSThread()
	if len(os.Args) < 2 {
		fail("usage", fmt.Errorf("generate list | generate SCENARIO FOLDER"))
	}
	if os.Args[1] == "role" {
		runRole(os.Args[2:])
		return
	}
	if os.Args[1] == "list" {
		for _, s := range scenarios() {
			if !strings.HasPrefix(s.name, "stress-") {
				fmt.Println(s.name)
			}
		}
		return
	}
	if os.Args[1] == "lay" && len(os.Args) == 3 {
		lay(os.Args[2])
		return
	}
	if len(os.Args) != 3 {
		fail("usage", fmt.Errorf("generate SCENARIO FOLDER"))
	}
	i := slices.IndexFunc(scenarios(), func(s scenario) bool { return s.name == os.Args[1] })
	if i < 0 {
		fail("find scenario", fmt.Errorf("%q is none of those that `generate list` prints", os.Args[1]))
	}
	time.AfterFunc(deadline(), func() { fail(os.Args[1], fmt.Errorf("not done after %v", deadline())) })
	st := newStage(os.Args[1], os.Args[2])
	scenarios()[i].run(st)
	st.finish()
}

// fail ends the program. Children end with it and namespaces with them, so there is nothing to undo.
func fail(what string, err error) {
	fmt.Fprintf(os.Stderr, "%s: %v\n", what, err)
	os.Exit(1)
}

// check ends the program on an error.
func check(what string, err error) {
	if err != nil {
		fail(what, err)
	}
}

// lack ends the program because the kernel does not offer something.
func lack(reason ...string) {
	fmt.Fprintln(os.Stderr, strings.Join(reason, ": "))
	os.Exit(3)
}
