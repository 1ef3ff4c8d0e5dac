package known

import (
	"maps"
	"slices"
	"strings"

	"github.com/picosnitch/picosnitch/internal/recorder/notify"
)

// await takes the hash of a file in, or waits for it. It reports whether nothing is to be waited for.
func (k *Known) await(a awaited, w *waiting, at int64) bool {
	if a.digest.SHA256 != "" || a.digest.Reason != "" {
		k.hashed(a, w, at)
		return true
	}
	if old := k.waiting[a]; old != nil {
		if w.notice != nil && old.notice == nil {
			old.notice, old.seq, old.since = w.notice, w.seq, w.since
		} else if w.notice != nil {
			k.tell(w)
		}
		return false
	}
	if len(k.waiting) >= maxWaiting {
		if w.notice != nil {
			k.tell(w)
		}
		k.crowded++
		return false // it is looked at again with the next flow
	}
	k.waiting[a] = w
	return false
}

// hashed takes in that a file has a hash, or will have none.
func (k *Known) hashed(a awaited, w *waiting, at int64) {
	sum := a.digest.SHA256
	if sum == "" {
		if w.notice != nil {
			w.notice.Detail = join(w.notice.Detail, "it could not be hashed: "+a.digest.Reason)
			k.tell(w)
		}
		return
	}
	before := k.current[a.path]
	if len(k.current) < maxCurrent || before != "" {
		k.current[a.path] = sum
	}
	var n news
	if _, known := k.r.SHA256[a.path][sum]; !known {
		others := 0
		for other := range k.r.SHA256[a.path] {
			if isSum(other) {
				others++
			}
		}
		e := entry{In: hashes, Key: a.path, Value: sum, Also: Pending}
		if !k.o.Key {
			e.Also = NoKey
		}
		if k.isFull(e) {
			if !k.overflows(e) {
				if w.notice != nil {
					w.notice.SHA256 = sum
					k.tell(w)
				}
				return
			}
		} else {
			k.apply(e)
			n.Entries = append(n.Entries, e)
		}
		n.Log = append(n.Log, k.log.line(at, sum, a.path, "(new hash)"))
		if w.notice == nil && others > 0 {
			w.notice = &notify.Notice{Kind: notify.Changed, At: at, Count: 1, Name: w.name, Path: a.path, Before: before, Place: w.place}
			if w.exe != "" {
				w.notice.Kind, w.notice.Path, w.notice.Script = notify.ChangedScript, w.exe, a.path
			}
			k.seq++
			w.seq = k.seq
		}
	}
	if w.notice != nil {
		w.notice.SHA256 = sum
		n.Seq, n.Notice = w.seq, w.notice
	}
	if n.Notice != nil || len(n.Entries) > 0 || len(n.Log) > 0 {
		k.commit(&n)
	}
	if w.notice != nil {
		k.tell(w)
	}
}

// isSum tells a hash from what picosnitch 0.11 wrote in its place: "!!! FD Read Error" and the like.
func isSum(s string) bool {
	return len(s) == 64 && strings.Trim(s, "0123456789abcdef") == ""
}

func join(a, b string) string {
	if a == "" {
		return b
	}
	return a + "; " + b
}

// tell gives a notice away, once.
func (k *Known) tell(w *waiting) {
	n := *w.notice
	w.notice = nil
	k.o.Tell(w.seq, n)
}

// Digested looks for the hashes that came: call it when the digest of any program was completed.
func (k *Known) Digested(at int64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for a, w := range k.waiting {
		if a.digest.SHA256 != "" || a.digest.Reason != "" {
			delete(k.waiting, a)
			k.hashed(a, w, at)
		}
	}
}

// Unasked gives the hashes that VirusTotal has not been asked about, as path and hash.
func (k *Known) Unasked() [][2]string {
	k.mu.Lock()
	defer k.mu.Unlock()
	var all [][2]string
	for _, path := range slices.Sorted(maps.Keys(k.r.SHA256)) {
		for sum, result := range k.r.SHA256[path] {
			if isSum(sum) && (result == Pending || result == NoKey || result == "") {
				all = append(all, [2]string{path, sum})
			}
		}
	}
	return all
}

// Result takes in what VirusTotal says of a hash of a path: in record.json, in exe.log as (suspicious) or (clean), and as a
// notice when it is suspicious. With verdict "" nothing was said: the result is only kept.
func (k *Known) Result(path, sum, result, verdict string, at int64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if old, known := k.r.SHA256[path][sum]; known && old == result {
		return // said before
	}
	e := entry{In: hashes, Key: path, Value: sum, Also: result}
	n := news{Entries: []entry{e}}
	if verdict != "" {
		n.Log = append(n.Log, k.log.line(at, sum, path, "("+verdict+")"))
	}
	if verdict == Suspicious {
		name := ""
		for _, list := range [][]string{k.r.Executables[path], k.r.ParentExecutables[path]} {
			if name == "" && len(list) > 0 {
				name = list[0]
			}
		}
		k.seq++
		n.Seq, n.Notice = k.seq, &notify.Notice{Kind: notify.Suspicious, At: at, Count: 1, Name: name, Path: path, SHA256: sum, Detail: result}
	}
	k.apply(e)
	k.commit(&n)
	if n.Notice != nil {
		k.o.Tell(n.Seq, *n.Notice)
	}
}

// Differs takes in that a file, as it was seen at an instant, is not what its package ships: exe.log says so, once.
func (k *Known) Differs(path, sum, pkg string, at int64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	w := written{path + " " + sum, at}
	if slices.Contains(k.journal.done, w) {
		return
	}
	k.commit(&news{Written: &w, Log: []string{k.log.line(at, sum, path, "(differs from package "+pkg+")")}})
}

// Modified takes in that a file was written to in place, by the program at a path ("": not known). Only what is known is worth a word. at
// is the instant of the line of the stream that says so.
func (k *Known) Modified(path, by string, at int64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	w := written{path, at}
	list, known := k.r.Executables[path]
	if !known {
		list, known = k.r.ParentExecutables[path]
	}
	if !known || slices.Contains(k.journal.done, w) {
		return
	}
	name := ""
	if len(list) > 0 {
		name = list[0]
	}
	k.seq++
	n := news{Seq: k.seq, Written: &w, Log: []string{k.log.line(at, name, path, "(modified)")}}
	n.Notice = &notify.Notice{Kind: notify.Modified, At: at, Count: 1, Name: name, Path: path}
	if by != "" {
		n.Notice.Detail = "written to by " + by
	}
	k.commit(&n)
	k.o.Tell(n.Seq, *n.Notice)
}

// Verdicts of Result.
const (
	Suspicious = "suspicious"
	Clean      = "clean"
)
