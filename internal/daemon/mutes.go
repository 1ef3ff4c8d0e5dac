package daemon

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/picosnitch/picosnitch/internal/recorder"
)

// Mutes reads what the users muted on their desktops. It needs no root, only the group of the folder.
func Mutes(getenv func(string) string) ([]recorder.Mute, error) {
	place, err := FindPlace(getenv)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrConfig, err)
	}
	f, err := os.OpenFile(place.Dir+"/"+recorder.MutesName, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	all, err := recorder.ReadMutes(f)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", f.Name(), err)
	}
	return all, nil
}

// Unmute takes out of the file what keep does not keep, and reports what that was. A running recorder sees it at once. It needs root.
func Unmute(getenv func(string) string, keep func(n int, m recorder.Mute) bool) (gone []recorder.Mute, err error) {
	all, err := Mutes(getenv)
	if err != nil {
		return nil, err
	}
	var rest []recorder.Mute
	for i, m := range all {
		if keep(i+1, m) {
			rest = append(rest, m)
		} else {
			gone = append(gone, m)
		}
	}
	if len(gone) == 0 {
		return nil, nil
	}
	place, err := FindPlace(getenv)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrConfig, err)
	}
	folder, err := OpenFolder(place)
	if err != nil {
		return nil, err
	}
	defer folder.Close()
	return gone, folder.create(recorder.MutesName, int(place.Recorder.UID), func(to *os.File) error { return recorder.WriteMutes(to, rest) })
}
