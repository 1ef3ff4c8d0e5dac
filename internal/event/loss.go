package event

// Loss is a reason for which something could not be seen, kept or resolved: a key of Ledger.Lost. Every reason
// has one entry in Losses, which says what it costs and what to do.
type Loss struct {
	Key  string // in Ledger.Lost
	Text string // what was lost
	Hint string // what the user can do
	// Detail is true when no byte and no program is missing: only an address, a hash or an argument.
	Detail bool
}

// Keys of Ledger.Lost.
const (
	LostExec       = "exec"        // exec events that found the ring buffer full
	LostFork       = "fork"        // fork events, likewise
	LostExit       = "exit"        // exit events, likewise
	LostFlowDetail = "flow_detail" // flows whose address was folded into the process's total: a map was full
	LostFlow       = "flow"        // updates that found every map full: their bytes are unattributed
	LostPeer       = "peer"        // updates of unconnected sockets whose remote address was not known
	LostBaseline   = "baseline"    // TCP sockets met late, whose starting point was computed
	LostProcess    = "process"     // flows whose program was not known any more
	LostDigest     = "digest"      // executables that could not be hashed
	LostArgv       = "argv"        // programs whose arguments could not be read
	LostTable      = "table"       // running programs that the full process table forgot
	LostQueue      = "queue"       // lines that a bounded queue dropped while no recorder was there
	LostRecorder   = "recorder"    // times that the recorder ended unexpectedly
)

// Losses is the table of all reasons, in the order in which they are shown.
func Losses() []Loss {
	return []Loss{
		{LostFlow, "counts found every kernel map full: their bytes are shown as unattributed", "raise \"Perf ring buffer (pages)\"; report it with `picosnitch record`", false},
		{LostProcess, "flows belong to a program that could not be identified any more", "an exec event was lost: raise \"Perf ring buffer (pages)\"", false},
		{LostExec, "program starts were not reported by the kernel: the ring buffer was full", "raise \"Perf ring buffer (pages)\"", false},
		{LostFork, "process forks were not reported by the kernel: the ring buffer was full", "raise \"Perf ring buffer (pages)\"", false},
		{LostQueue, "lines were dropped while the recorder was away", "see error.log for why the recorder ended", false},
		{LostRecorder, "unexpected ends of the recorder", "see error.log; the sensor starts it again and sends again what was not on disk", true},
		{LostTable, "running programs were forgotten: more processes than the table holds", "is a fork bomb running?", false},
		{LostArgv, "programs started whose arguments could not be read", "nothing: path, name and digest are right", true},
		{LostExit, "process exits were not reported by the kernel: memory is kept longer", "raise \"Perf ring buffer (pages)\"", true},
		{LostFlowDetail, "flows lost their addresses (not their bytes or program): too many at once", "raise \"Perf ring buffer (pages)\"", true},
		{LostPeer, "datagrams had no known remote address; their bytes and program are right", "nothing: the program did not ask for the address", true},
		{LostBaseline, "TCP sockets that were open before the start were met late; what they had received before may be included", "nothing: they close in time", true},
		{LostDigest, "executables could not be hashed", "see error.log for which and why", true},
	}
}
