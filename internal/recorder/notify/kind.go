package notify

import "time"

// Kind is what a notice is about: one word, stable, for programs that read notices.
type Kind string

// Kinds of notices.
const (
	NewProgram Kind = "new-program"  // a program that was never seen on the network
	Executed   Kind = "new-executed" // a program or script that was never executed ("Every exe (not just conns)")
	NewParent  Kind = "new-parent"   // a program that was never seen starting one that uses the network
	NewScript  Kind = "new-script"   // a script that was never seen on the network
	Upgraded   Kind = "upgraded"     // a known file changed, and is what its package ships
	Changed    Kind = "changed"      // a known file changed, and no package did it, or nobody can say
	// ChangedScript is Changed for a script.
	ChangedScript Kind = "changed-script"

	Tampered   Kind = "tampered"   // a known file changed, and is not what its package ships
	Modified   Kind = "modified"   // the file of a known program was written to in place
	Suspicious Kind = "suspicious" // VirusTotal knows the file as suspicious or malicious
	DataLimit  Kind = "data-limit" // 80 % or all of a "Data limits" entry is used
	Loss       Kind = "loss"       // something could not be seen, kept or resolved
	Failure    Kind = "failure"    // something else of picosnitch itself went wrong
)

// Urgency is how loud a notice is; the levels are those of org.freedesktop.Notifications.
type Urgency string

// Urgencies.
const (
	Low      Urgency = "low"
	Normal   Urgency = "normal"
	Critical Urgency = "critical"
)

// Form is how a kind is told. All forms are in the one table Kinds.
type Form struct {
	Kind    Kind
	One     string // title of a notice about one thing; a colon and its name follow
	Many    string // title of a notice about several, with %d for how many
	Where   string // where the ones are that a notice about many does not name
	Plain   bool   // One is the whole title
	Urgency Urgency
	Mutable bool // the user may ask to hear no more of one program
	Loud    bool // "Notify ignore" silences it only by hash: whoever is behind it chooses names and paths
	Always  bool // "Notify ignore" does not silence it
	First   bool // part of the first minutes' digest
	// Rest is for how long the same thing is not told again. What happens meanwhile is counted and told then.
	Rest time.Duration
	// Calm is for how long after a notice another one of the kind may be part of the same event; Quiet is
	// how long such a thing waits for more of them.
	Calm, Quiet time.Duration
}

// Kinds is the table of everything that is told, the most urgent last. A new kind is one entry here.
func Kinds() []Form {
	const day = 24 * time.Hour
	return []Form{
		{Kind: NewProgram, One: "New program on the network", Many: "%d new programs on the network", Where: "exe.log has them all", Urgency: Normal, Mutable: true, First: true, Rest: day, Calm: 10 * time.Second, Quiet: 1200 * time.Millisecond},
		{Kind: Executed, One: "New program executed", Many: "%d new programs executed", Where: "exe.log has them all", Urgency: Low, Mutable: true, First: true, Rest: day, Calm: time.Minute, Quiet: 5 * time.Second},
		{Kind: NewParent, One: "New program behind a connection", Many: "%d new programs behind connections", Where: "exe.log has them all", Urgency: Low, Mutable: true, First: true, Rest: day, Calm: 10 * time.Second, Quiet: 3 * time.Second},
		{Kind: NewScript, One: "New script on the network", Many: "%d new scripts on the network", Where: "exe.log has them all", Urgency: Normal, Mutable: true, First: true, Rest: day, Calm: 10 * time.Second, Quiet: 1200 * time.Millisecond},
		{Kind: Upgraded, One: "Changed by an upgrade", Many: "%d programs changed by upgrades", Where: "exe.log has them all", Urgency: Low, Mutable: true, Rest: day, Calm: time.Minute, Quiet: 5 * time.Second},
		{Kind: Changed, One: "Program changed", Many: "%d programs changed", Where: "exe.log has them all", Urgency: Normal, Mutable: true, Rest: day, Calm: time.Minute, Quiet: 5 * time.Second},
		{Kind: ChangedScript, One: "Script changed", Many: "%d scripts changed", Where: "exe.log has them all", Urgency: Normal, Mutable: true, Rest: day, Calm: time.Minute, Quiet: 5 * time.Second},
		{Kind: Tampered, One: "Program is not what its package ships", Many: "%d programs are not what their packages ship", Where: "exe.log has them all", Urgency: Critical, Loud: true, Rest: day, Calm: time.Minute, Quiet: 5 * time.Second},
		{Kind: Modified, One: "Program modified in place", Many: "%d programs modified in place", Where: "exe.log has them all", Urgency: Normal, Mutable: true, Rest: day, Calm: time.Minute, Quiet: 5 * time.Second},
		// Each comes once in its period: only what comes at the same moment is told together.
		{Kind: DataLimit, One: "Data limit", Many: "%d data limits", Where: "see `picosnitch status`", Urgency: Normal, Always: true, Rest: time.Second, Calm: time.Millisecond, Quiet: time.Second},
		{Kind: Failure, One: "picosnitch needs attention", Many: "picosnitch needs attention: %d messages", Where: "see error.log", Plain: true, Urgency: Normal, Always: true, Rest: time.Hour, Calm: time.Minute, Quiet: 5 * time.Second},
		{Kind: Loss, One: "picosnitch lost something", Many: "picosnitch lost something, for %d reasons", Where: "see error.log", Plain: true, Urgency: Normal, Always: true, Rest: time.Hour, Calm: time.Minute, Quiet: 5 * time.Second},
		{Kind: Suspicious, One: "VirusTotal: suspicious", Many: "VirusTotal: %d suspicious files", Where: "exe.log has them all", Urgency: Critical, Loud: true, Rest: day, Calm: time.Minute, Quiet: 5 * time.Second},
	}
}

// form finds the entry of a kind; an unknown kind is told as a failure, not dropped.
func form(forms []Form, k Kind) Form {
	var rest Form
	for _, f := range forms {
		if f.Kind == k {
			return f
		}
		if f.Kind == Failure {
			rest = f
		}
	}
	rest.Kind = k
	return rest
}
