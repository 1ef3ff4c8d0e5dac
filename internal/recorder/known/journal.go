package known

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"os"
	"slices"

	"github.com/picosnitch/picosnitch/internal/recorder/notify"
)

// journal is .record.journal: what happened since record.json was written, and what was not told yet. Each line is appended at once, so
// that a recorder that is killed repeats nothing and forgets nothing. It is not safe for concurrent use.
type journal struct {
	path  string
	f     *os.File
	size  int64
	state json.RawMessage           // the last one
	open  map[uint64]*notify.Notice // that no state has taken in
	done  []written                 // the last ones
}

func (j *journal) finish(w written) {
	if len(j.done) >= maxDone {
		j.done = slices.Delete(j.done, 0, 1)
	}
	j.done = append(j.done, w)
}

// maxJournal is the size at which the record is written early, in bytes.
const maxJournal = 4 << 20

// line is one line of the journal: News, State or Done.
type line struct {
	News  *news           `json:"news,omitempty"`
	State json.RawMessage `json:"state,omitempty"` // what Took was given
	Done  []written       `json:"done,omitempty"`  // for a journal that starts anew
	Took  []uint64        `json:"took,omitempty"`  // the notices that State has
}

// news is one thing that became known.
type news struct {
	Seq     uint64         `json:"seq"`
	Entries []entry        `json:"entries,omitempty"`
	Log     []string       `json:"log,omitempty"` // its lines in exe.log
	Notice  *notify.Notice `json:"notice,omitempty"`
	Written *written       `json:"written,omitempty"`
}

// written is a line of exe.log that the record does not remember, about a file at an instant (ns since 1970) of the stream: what comes a
// second time after a restart is no news.
type written struct {
	Path string `json:"path"`
	At   int64  `json:"at"`
}

// maxDone bounds what is remembered of them: more than a batch has.
const maxDone = 1 << 7

// entry is one addition to the record.
type entry struct {
	In    string `json:"in"` // the key of record.json
	Key   string `json:"key"`
	Value string `json:"value"`
	Also  string `json:"also,omitempty"` // in SHA256: the result
}

// readJournal gives the news since the last record, in order, and fills in state and open. A line that a kill cut short was
// never acted upon; any other bad line ends the reading and is an error, with what was before it.
func (j *journal) read() ([]news, error) {
	f, err := os.Open(j.path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var all []news
	in := bufio.NewReader(io.LimitReader(f, maxFile))
	for {
		text, err := in.ReadBytes('\n')
		if err == io.EOF {
			return all, nil
		}
		if err != nil {
			return all, err
		}
		var l line
		if err := json.Unmarshal(text, &l); err != nil {
			return all, err
		}
		switch {
		case l.News != nil:
			all = append(all, *l.News)
			if l.News.Notice != nil {
				j.open[l.News.Seq] = l.News.Notice
			}
			if l.News.Written != nil {
				j.finish(*l.News.Written)
			}
		case l.State != nil:
			j.state = l.State
			for _, seq := range l.Took {
				delete(j.open, seq)
			}
		}
		for _, w := range l.Done {
			j.finish(w)
		}
	}
}

// add appends news.
func (j *journal) add(n *news) error {
	if n.Notice != nil {
		j.open[n.Seq] = n.Notice
	}
	if n.Written != nil {
		j.finish(*n.Written)
	}
	return j.append(line{News: n})
}

// took appends the state, which has these notices now.
func (j *journal) took(state any, seqs []uint64) error {
	b, err := json.Marshal(state)
	if err != nil {
		return err
	}
	j.state = b
	for _, seq := range seqs {
		delete(j.open, seq)
	}
	return j.append(line{State: b, Took: seqs})
}

func (j *journal) append(l line) error {
	b, err := json.Marshal(l)
	if err != nil {
		return err
	}
	if j.f == nil {
		f, err := os.OpenFile(j.path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o640)
		if err != nil {
			return err
		}
		j.f = f
		if st, err := f.Stat(); err == nil {
			j.size = st.Size()
		}
	}
	// One write: a kill leaves a whole line or a cut one at the end.
	n, err := j.f.Write(append(b, '\n'))
	if err != nil && n > 0 {
		// A full disk: what follows must not be glued to half a line.
		err = errors.Join(err, j.f.Truncate(j.size))
		n = 0
	}
	j.size += int64(n)
	return err
}

// restart makes a new journal of what is still open, for when the record holds all the rest.
func (j *journal) restart() error {
	var b bytes.Buffer
	put := func(l line) error {
		text, err := json.Marshal(l)
		b.Write(append(text, '\n'))
		return err
	}
	var err error
	if j.state != nil {
		err = put(line{State: j.state})
	}
	if len(j.done) > 0 {
		err = errors.Join(err, put(line{Done: j.done}))
	}
	for _, seq := range slices.Sorted(maps.Keys(j.open)) {
		err = errors.Join(err, put(line{News: &news{Seq: seq, Notice: j.open[seq]}}))
	}
	if err != nil {
		return err
	}
	if err := writeAtomic(j.path, b.Bytes()); err != nil {
		return err
	}
	j.close()
	return nil
}

// sync brings what was appended to the disk.
func (j *journal) sync() error {
	if j.f == nil { // it could not be opened: that was told
		return nil
	}
	return j.f.Sync()
}

func (j *journal) close() {
	if j.f != nil {
		j.f.Close()
		j.f = nil
	}
}
