// Package known remembers which programs, parents, scripts and hashes were seen on this machine, and says what is new: it keeps
// record.json and exe.log in the shape of picosnitch 0.11. It belongs to the recorder's wing, reads no clock (instants are passed
// in) and gives what is worth a word to a function. It does not decide what the user is told (recorder/notify does),
// and asks nobody about a hash (virustotal does).
package known

import (
	"encoding/json"
	"errors"
	"fmt"
	"hash/maphash"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/picosnitch/picosnitch/internal/recorder/flow"
	"github.com/picosnitch/picosnitch/internal/recorder/logfile"
	"github.com/picosnitch/picosnitch/internal/recorder/notify"
)

const (
	saveEvery = int64(30 * time.Second) // the least between two writes of record.json
	hashWait  = int64(30 * time.Second) // for how long a new program waits for its hash to be told with it

	maxWaiting  = 1 << 12 // files whose hash is awaited
	maxSettled  = 1 << 10 // programs of which nothing is new
	maxOverflow = 1 << 17 // things that found the record full
	maxCurrent  = 1 << 14 // executables whose last hash is remembered
)

// Options of Open.
type Options struct {
	Dir  string         // for record.json, exe.log and .record.journal
	Zone *time.Location // of the times in exe.log
	Key  bool           // a hash will be looked up at VirusTotal
	// Tell gets what is worth a word, in order. It must not block and must not call back. The notice stays in the
	// journal under its number until Took says that it is safe elsewhere.
	Tell func(seq uint64, n notify.Notice)
}

// Known is what is known. Seen, Digested and Forget belong to one goroutine; the others are safe for concurrent use.
type Known struct {
	o Options

	done    map[*flow.Program]struct{}
	waiting map[awaited]*waiting

	mu       sync.Mutex
	r        *record           // guarded by mu, like all below
	current  map[string]string // path → the hash it had last
	bytes    int               // of r
	full     bool              // told that it is
	overflow map[uint64]struct{}
	seed     maphash.Seed
	log      exeLog
	journal  journal
	seq      uint64
	dirty    bool  // r differs from record.json
	tried    int64 // when r was last written, or tried to be
	first    bool
	problems map[string]Problem
	crowded  int // times that a hash was not awaited because too many were; not told yet
}

// awaited is a file whose hash is awaited: under two paths it is two files.
type awaited struct {
	digest *flow.Digest
	path   string
}

type waiting struct {
	since  int64
	seq    uint64         // of notice
	notice *notify.Notice // nil: it was told already, or there is nothing to tell but a change
	name   string         // what to tell of a change
	exe    string         // of a script: its interpreter
	place  string
}

// Open reads record.json, takes over one of picosnitch 0.11, and brings it up to date from the journal. A damaged one is set aside
// and told; whatever fails is a Problem, not an end.
func Open(o Options, at int64) *Known {
	k := &Known{
		o:        o,
		done:     make(map[*flow.Program]struct{}),
		waiting:  make(map[awaited]*waiting),
		current:  make(map[string]string),
		overflow: make(map[uint64]struct{}),
		seed:     maphash.MakeSeed(),
		log:      exeLog{File: logfile.File{Path: filepath.Join(o.Dir, "exe.log"), Limit: maxExeLog}, zone: o.Zone},
		journal:  journal{path: filepath.Join(o.Dir, ".record.journal"), open: make(map[uint64]*notify.Notice)},
		tried:    at,
		problems: make(map[string]Problem),
	}
	path := filepath.Join(o.Dir, "record.json")
	r, err := readRecord(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		r, k.first = newRecord(), true
	case errors.Is(err, errDamaged):
		aside, err2 := setAside(path, at)
		if err2 != nil {
			aside = "under no other name: " + err2.Error()
		}
		k.problem("record", fmt.Sprintf("record.json is damaged: %v; it is set aside as %s", err, aside), "all programs count as new until they were seen again; find out what wrote to the file, or restore it from a backup")
		r, k.first = newRecord(), true
	case err != nil:
		k.problem("record", "read record.json: "+err.Error(), "all programs count as new")
		r, k.first = newRecord(), true
	}
	k.r, k.bytes = r, r.size()
	k.replay(at)
	for path, hashes := range r.SHA256 {
		if len(hashes) == 1 && len(k.current) < maxCurrent {
			for sum := range hashes {
				if isSum(sum) {
					k.current[path] = sum
				}
			}
		}
	}
	return k
}

// replay takes in the journal that a Known before this one left.
func (k *Known) replay(at int64) {
	all, err := k.journal.read()
	if err != nil {
		aside, err2 := setAside(k.journal.path, at)
		k.problem("journal", fmt.Sprintf("the journal of record.json is damaged: %v; it is set aside as %s", err, aside), "some programs may be told a second time")
		if err2 != nil {
			k.problem("journal", "set the journal of record.json aside: "+err2.Error(), "")
		}
	}
	for i := range all {
		n := &all[i]
		for _, e := range n.Entries {
			k.apply(e)
		}
		k.seq = max(k.seq, n.Seq)
		// A kill between the journal and the log: only the last one can be missing.
		if i == len(all)-1 && len(n.Log) > 0 && !k.log.EndsWith(n.Log) {
			k.write(n.Log)
		}
	}
	if k.journal.state != nil {
		k.first = false
	}
	if len(all) > 0 || err != nil {
		k.dirty = true
		k.save(at)
	}
}

// First reports whether nothing was known: everything will be new.
func (k *Known) First() bool { return k.first }

// Restore fills in state with what Took was given last, and gives the notices that were not taken, by their number.
func (k *Known) Restore(state any) map[uint64]notify.Notice {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.journal.state != nil {
		if err := json.Unmarshal(k.journal.state, state); err != nil {
			k.problem("journal", "the journal of record.json holds no state: "+err.Error(), "some notices may be repeated")
		}
	}
	open := make(map[uint64]notify.Notice, len(k.journal.open))
	for seq, n := range k.journal.open {
		open[seq] = *n
	}
	return open
}

// Took says that the notices with these numbers are part of a state now, which is kept for the next Restore.
func (k *Known) Took(state any, seqs []uint64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.journal.took(state, seqs); err != nil {
		k.problem("journal", "write the journal of record.json: "+err.Error(), "some notices may be repeated after a restart; free disk space")
	}
}

// Say takes in something that is to be told and is no finding of Known's: from then on it is in the journal until Took says that it is
// safe elsewhere. The same id is not told twice, also not after a kill in between: whoever calls can write down that it was told
// afterwards.
func (k *Known) Say(id string, n notify.Notice) {
	k.mu.Lock()
	defer k.mu.Unlock()
	w := written{id, 0}
	if slices.Contains(k.journal.done, w) {
		return
	}
	k.seq++
	k.commit(&news{Seq: k.seq, Notice: &n, Written: &w})
	if err := k.journal.sync(); err != nil { // a power cut must not leave what the caller writes down without this
		k.problem("journal", "bring the journal of record.json to the disk: "+err.Error(), "a notice may be lost if the power fails now; free disk space")
	}
	k.o.Tell(k.seq, n)
}

// Tick does what is due: call it about once per second, from the goroutine of Seen.
func (k *Known) Tick(at int64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for a, w := range k.waiting {
		switch age := at - w.since; {
		case w.notice != nil && age >= hashWait:
			w.notice.Detail = join(w.notice.Detail, "its hash is not known yet")
			k.tell(w)
		case age >= 10*hashWait || age < -hashWait:
			if w.notice != nil {
				k.tell(w)
			}
			delete(k.waiting, a) // a flow that comes later waits anew
		}
	}
	k.logged(k.log.Retry())
	if k.crowded > 0 {
		k.problem("crowded", fmt.Sprintf("more than %d files wait for their hash: the hashes of others, %d times, are in record.json and exe.log only if their programs use the network again", maxWaiting, k.crowded), "snitch.db has them; find out what starts so many new programs")
		k.crowded = 0
	}
	if k.dirty && (at-k.tried >= saveEvery || at < k.tried || k.journal.size > maxJournal) || k.journal.size > 4*maxJournal {
		k.save(at)
	}
}

// commit writes news down: in the journal, then in exe.log.
func (k *Known) commit(n *news) {
	if err := k.journal.add(n); err != nil {
		k.dirty = true
		k.problem("journal", "write the journal of record.json: "+err.Error(), "what is new may be told again after a restart; free disk space")
	}
	if len(n.Log) > 0 {
		k.write(n.Log)
	}
}

// write writes to exe.log; what cannot be written comes later.
func (k *Known) write(lines []string) { k.logged(k.log.Write(lines...)) }

// logged tells that exe.log could not be written.
func (k *Known) logged(err error) {
	if err != nil {
		k.problem("exe.log", fmt.Sprintf("write exe.log: %v (%d lines wait, %d were lost)", err, k.log.Waiting(), k.log.Lost()), "free disk space")
	}
}

// save writes record.json and starts the journal anew.
func (k *Known) save(at int64) {
	k.tried = at
	data, err := k.r.bytes()
	if err == nil && k.dirty {
		err = writeAtomic(filepath.Join(k.o.Dir, "record.json"), data)
	}
	if err != nil {
		k.problem("record", "write record.json: "+err.Error(), "free disk space; what is new is kept in the journal until then")
		return
	}
	k.dirty = false
	if err := k.journal.restart(); err != nil {
		k.problem("journal", "write the journal of record.json: "+err.Error(), "free disk space")
	}
}

// Problem is something that the user must know of the files themselves.
type Problem struct {
	Word       string // of which there are few: what to restrain repetitions by
	Text, Hint string
}

// Problems gives what went wrong since it was last asked, the last of each word.
func (k *Known) Problems() []Problem {
	k.mu.Lock()
	defer k.mu.Unlock()
	var all []Problem
	for _, word := range slices.Sorted(maps.Keys(k.problems)) {
		all = append(all, k.problems[word])
	}
	clear(k.problems)
	return all
}

func (k *Known) problem(word, text, hint string) { k.problems[word] = Problem{word, text, hint} }

// Close writes what is to be written.
func (k *Known) Close(at int64) {
	k.Tick(at)
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.dirty || k.journal.f != nil {
		k.save(at)
	}
	k.journal.close()
	k.log.Close()
}
