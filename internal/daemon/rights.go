package daemon

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/picosnitch/picosnitch/internal/event"
)

// rightsHint follows what root was not allowed to do.
const rightsHint = "root lacks a right here: `picosnitch systemd --print` lists the capabilities that picosnitch needs"

// lacking tells what is lost without the capabilities that picosnitch can do without. Of the others the hooks, fanotify, the
// limit of open files and the recorder's trial tell themselves. capabilities(7).
func lacking() []event.Notice {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var have [2]unix.CapUserData
	if err := unix.Capget(&header, &have[0]); err != nil {
		return []event.Notice{{Level: "warning", Text: fmt.Sprintf("which capabilities picosnitch has is not known: %v", err)}}
	}
	var notices []event.Notice
	for _, c := range []struct {
		number int
		name   string
		lost   string
	}{
		{unix.CAP_SYS_PTRACE, "CAP_SYS_PTRACE", "arguments and hashes of programs that others than root run may be missing"},
		{unix.CAP_DAC_READ_SEARCH, "CAP_DAC_READ_SEARCH", "programs and scripts that only their owner may read are not hashed"},
		{unix.CAP_FSETID, "CAP_FSETID", "the user's group may not be able to read new files in the folder"},
		{unix.CAP_KILL, "CAP_KILL", "a recorder that hangs is not ended"},
	} {
		if have[c.number/32].Effective&(1<<(c.number%32)) == 0 {
			notices = append(notices, event.Notice{Level: "warning", Text: fmt.Sprintf("picosnitch runs without %s: %s", c.name, c.lost), Hint: "`picosnitch systemd --print` lists the capabilities that it needs"})
		}
	}
	return notices
}
