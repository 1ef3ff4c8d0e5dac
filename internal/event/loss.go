package event

// Loss is a reason for which something could not be seen, kept or resolved: a key of Ledger.Lost. Every reason
// has one entry in Losses, which says what it costs and what to do.
type Loss struct {
	Key  string // in Ledger.Lost
	Text string // what was lost, to be followed by a colon and the number
	Hint string // what the user can do
	// Detail is true when no byte and no program is missing: only an address, a hash or an argument.
	Detail bool
	// Quiet is true for what a healthy machine has all the time: it is shown by status and kept with the windows, and is
	// no line of error.log.
	Quiet bool
}

// Keys of Ledger.Lost.
const (
	LostTwice        = "twice"         // bytes that came out as flows and were not seen: counted twice
	LostSkipped      = "skipped"       // runs of a hook that the kernel skipped
	LostSkippedOther = "skipped_other" // runs of a hook for vsock and Bluetooth that the kernel skipped while nobody was seen to use these
	LostExec         = "exec"          // exec events that found the ring buffer full
	LostFork         = "fork"          // fork events, likewise
	LostExit         = "exit"          // exit events, likewise
	LostFlowDetail   = "flow_detail"   // flows whose address was folded into the process's total: a map was full
	LostFlow         = "flow"          // updates that found every map full: their bytes are unattributed
	LostPeer         = "peer"          // updates of unconnected sockets whose remote address was not known
	LostState        = "state"         // sockets for whose state the kernel table had no room
	LostBaseline     = "baseline"      // TCP sockets met late, whose starting point was computed
	LostProcess      = "process"       // flows whose program was not known any more
	LostDigest       = "digest"        // executables that could not be hashed
	LostHashing      = "hashing"       // seconds for which executables waited and none was read
	LostOpened       = "opened"        // executed files of which no descriptor could be had
	LostScript       = "script"        // scripts whose file was not found
	LostArgv         = "argv"          // programs whose arguments could not be read
	LostTable        = "table"         // running programs that the full process table forgot
	LostQueue        = "queue"         // lines that a bounded queue dropped while no recorder was there
	LostRecorder     = "recorder"      // times that the recorder ended unexpectedly
)

// Losses is the table of all reasons, in the order in which they are shown.
func Losses() []Loss {
	ring := "raise \"Perf ring buffer (pages)\""
	return []Loss{
		{Key: LostFlow, Text: "counts that found every kernel map full (their bytes are shown as unattributed)", Hint: ring + "; report it with `picosnitch record`"},
		{Key: LostSkipped, Text: "runs of a hook that the kernel skipped (what they would have counted is in no figure)", Hint: "please report this with the output of `uname -r`"},
		{Key: LostSkippedOther, Text: "runs of the hooks for vsock and Bluetooth that the kernel skipped before any use of these was seen (most likely they were for IP, which other hooks count)", Hint: "nothing to do", Detail: true, Quiet: true},
		{Key: LostTwice, Text: "bytes that came out as flows and are not in the kernel's totals (a figure is too large)", Hint: "please report this with `picosnitch record`"},
		{Key: LostProcess, Text: "flows of a program that could not be identified any more", Hint: "an exec event was lost: " + ring},
		{Key: LostExec, Text: "program starts that the kernel did not report because the ring buffer was full", Hint: ring},
		{Key: LostFork, Text: "process forks that the kernel did not report because the ring buffer was full", Hint: ring},
		{Key: LostQueue, Text: "lines dropped while the recorder was away", Hint: "see error.log for why the recorder ended"},
		{Key: LostRecorder, Text: "unexpected ends of the recorder", Hint: "see error.log; the sensor starts it again and sends again what was not on disk", Detail: true},
		{Key: LostTable, Text: "running programs forgotten because there were more than the process table holds", Hint: "is a fork bomb running?"},
		{Key: LostArgv, Text: "program starts whose arguments could not be read (path, name and digest are right)", Hint: "nothing to do", Detail: true},
		{Key: LostExit, Text: "process exits that the kernel did not report (memory is kept longer)", Hint: ring, Detail: true},
		{Key: LostFlowDetail, Text: "flows kept without their addresses because there were too many at once (bytes and program are right)", Hint: ring, Detail: true},
		{Key: LostPeer, Text: "datagrams without a known remote address (bytes and program are right)", Hint: "nothing to do: the program did not ask for the address", Detail: true, Quiet: true},
		{Key: LostState, Text: "uses of sockets for whose state there was no room (who began the connection is not known)", Hint: "are more than 32768 sockets open?", Detail: true},
		{Key: LostBaseline, Text: "TCP sockets older than picosnitch that were met late (what they received before may be included)", Hint: "nothing to do: they close in time", Detail: true},
		{Key: LostOpened, Text: "executed files that could not be kept open until it was known whether their hash is wanted", Hint: "raise \"Set RLIMIT_NOFILE\"", Detail: true},
		{Key: LostScript, Text: "scripts without a hash, because their file was not found as it was at the start (the interpreter's is right)", Hint: "nothing to do: `reason` in the table executables says why", Detail: true, Quiet: true},
		{Key: LostHashing, Text: "seconds for which executables waited to be hashed and none was read", Hint: "look for a file system that does not answer, or for programs that take all processors", Detail: true},
		{Key: LostDigest, Text: "executables that could not be hashed", Hint: "see error.log for which and why", Detail: true},
	}
}
