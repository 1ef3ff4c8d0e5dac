package store

import (
	"context"
	"database/sql"
	"errors"
	"hash/fnv"
	"net/netip"
	"strconv"
	"strings"

	"github.com/picosnitch/picosnitch/internal/event"
	"github.com/picosnitch/picosnitch/internal/recorder/flow"
)

// Bounds of the memory of what has which number. A cache that is full is emptied: what is needed comes back.
const (
	maxPrograms = 1 << 12
	maxIDs      = 1 << 13
	maxPlaces   = 1 << 10
	maxKeys     = 4 << 20 // bytes of the texts in the keys of programs, and of executables
)

// ids remembers numbers of rows that exist. It is emptied when a transaction fails, because then they may not.
type ids struct {
	seen        map[*flow.Program]int64 // within one window
	programs    map[programKey]int64
	executables map[executableKey]executableRow
	inPrograms  int // bytes of texts in programs
	inFiles     int // … in executables
	places      map[placeKey]int64
	addresses   map[netip.Addr]int64
	domains     map[flow.Domain]int64
	kinds       map[flow.Kind]int64
	actors      map[actorKey]int64
	stream      string
	streamID    int64
	swept       int64 // the progress of that name when the numbers were read
}

type programKey struct {
	executable, parent, script int64
	name, cmdline, scriptKind  string
	preload                    string
}

type actorKey struct {
	program, place, kind int64 // place 0: not known
	uid, netNS           uint32
}

type placeKey struct {
	boot   string
	cgroup uint64
	place  event.Place
}

type executableKey struct {
	path   string
	file   event.FileID
	digest *flow.Digest
}

type executableRow struct {
	id     int64
	digest flow.Digest // as it is on disk
}

func (s *SQLite) forget() {
	s.ids = ids{
		seen:        make(map[*flow.Program]int64),
		programs:    make(map[programKey]int64),
		executables: make(map[executableKey]executableRow),
		places:      make(map[placeKey]int64),
		addresses:   make(map[netip.Addr]int64),
		domains:     make(map[flow.Domain]int64),
		kinds:       make(map[flow.Kind]int64),
		actors:      make(map[actorKey]int64),
	}
}

// keep remembers a number in a bounded map.
func keep[K comparable, V any](m map[K]V, limit int, k K, v V) {
	if len(m) >= limit {
		clear(m)
	}
	m[k] = v
}

// intern finds a row or adds it.
func intern(ctx context.Context, find, add *sql.Stmt, args ...any) (int64, error) {
	var id int64
	err := find.QueryRowContext(ctx, args...).Scan(&id)
	if errors.Is(err, sql.ErrNoRows) {
		return insert(ctx, add, args...)
	}
	return id, err
}

func (s *SQLite) stream(ctx context.Context, h *event.Hello) (int64, error) {
	if s.ids.streamID != 0 && s.ids.stream == h.Stream {
		return s.ids.streamID, nil
	}
	var id int64
	err := s.st.findStream.QueryRowContext(ctx, h.Stream).Scan(&id)
	if errors.Is(err, sql.ErrNoRows) {
		id, err = insert(ctx, s.st.addStream, h.Stream, h.Program, h.Host, h.Boot, h.HookSet, h.Started)
	}
	if err == nil {
		s.ids.stream, s.ids.streamID = h.Stream, id
	}
	return id, err
}

// program returns the row of a program, and makes those of its ancestors.
func (s *SQLite) program(ctx context.Context, p *flow.Program) (int64, error) {
	if id, ok := s.ids.seen[p]; ok {
		return id, nil
	}
	executable, err := s.executable(ctx, p.Executable)
	if err != nil {
		return 0, err
	}
	var parent, script any
	k := programKey{executable: executable, name: p.Name, cmdline: p.Cmdline, scriptKind: p.ScriptKind, preload: p.Preload}
	if p.Script != nil {
		if k.script, err = s.executable(ctx, p.Script); err != nil {
			return 0, err
		}
		script = k.script
	}
	if p.Parent != nil {
		if k.parent, err = s.program(ctx, p.Parent); err != nil {
			return 0, err
		}
		parent = k.parent
	}
	id, ok := s.ids.programs[k]
	if !ok {
		id, err = intern(ctx, s.st.findProgram, s.st.addProgram, k.hash(), executable, p.Name, p.Cmdline, script, p.ScriptKind, p.Preload, parent)
		if err != nil {
			return 0, err
		}
		if s.ids.inPrograms += len(k.name) + len(k.cmdline) + len(k.preload); s.ids.inPrograms > maxKeys || len(s.ids.programs) >= maxPrograms {
			clear(s.ids.programs)
			s.ids.inPrograms = len(k.name) + len(k.cmdline) + len(k.preload)
		}
		keep(s.ids.programs, maxPrograms, k, id)
	}
	s.ids.seen[p] = id
	return id, nil
}

// hash is programs.key. It needs no protection against collisions: the row is compared whole.
func (k *programKey) hash() int64 {
	h := fnv.New64a()
	b := make([]byte, 0, 128)
	b = strconv.AppendInt(b, k.executable, 10)
	b = append(b, 0)
	b = strconv.AppendInt(b, k.parent, 10)
	b = append(b, 0)
	b = strconv.AppendInt(b, k.script, 10)
	b = append(b, 0)
	b = append(b, k.name...)
	b = append(b, 0)
	b = append(b, k.scriptKind...)
	b = append(b, 0)
	b = append(b, k.cmdline...)
	if k.preload != "" { // without it, the hash is that of a database of version 100
		b = append(b, 0)
		b = append(b, k.preload...)
	}
	h.Write(b)
	return int64(h.Sum64())
}

func (s *SQLite) executable(ctx context.Context, e *flow.Executable) (int64, error) {
	k := executableKey{e.Path, e.File, e.Digest}
	row, ok := s.ids.executables[k]
	if ok && row.digest == *e.Digest {
		return row.id, nil
	}
	var err error
	if ok && row.digest.SHA256 == "" {
		_, err = s.st.setExecutable.ExecContext(ctx, e.Digest.SHA256, e.Digest.Reason, row.id)
	} else {
		// A file whose identity is not known may be another one since the last run: its row is not shared with it. A
		// script that could not be found has its name and no hash.
		var after int64
		if e.File.IsZero() && e.Path != "" && e.Path != flow.KernelPath && !strings.HasPrefix(e.Digest.Reason, flow.ReasonScript) {
			after = s.before
		}
		args := append(fileArgs(e.File, e.Path), e.Digest.SHA256, e.Digest.Reason)
		err = s.st.findExecutable.QueryRowContext(ctx, append(args, after)...).Scan(&row.id)
		if errors.Is(err, sql.ErrNoRows) {
			row.id, err = insert(ctx, s.st.addExecutable, args...)
		}
	}
	if err != nil {
		return 0, err
	}
	row.digest = *e.Digest
	if s.ids.inFiles += len(k.path); s.ids.inFiles > maxKeys || len(s.ids.executables) >= maxPrograms {
		clear(s.ids.executables)
		s.ids.inFiles = len(k.path)
	}
	keep(s.ids.executables, maxPrograms, k, row)
	return row.id, nil
}

// fileArgs are inode, path, device, generation, ctime, size.
func fileArgs(f event.FileID, path string) []any {
	return []any{int64(f.Inode), path, int64(f.Device), int64(f.Generation), f.Ctime, f.Size}
}

// complete brings a late hash to the rows that wait for it: those of the file under any path; for a file whose
// identity is not known, those of the path that this writer made.
func (s *SQLite) complete(ctx context.Context, d *flow.Digested) error {
	rows, err := s.st.pending.QueryContext(ctx, int64(d.File.Inode), int64(d.File.Device), int64(d.File.Generation), d.File.Ctime, d.File.Size)
	if err != nil {
		return err
	}
	var todo []int64
	for rows.Next() {
		var id int64
		var path, reason string
		if err := rows.Scan(&id, &path, &reason); err != nil {
			rows.Close()
			return err
		}
		if !d.File.IsZero() || (path == d.Path && id > s.before && !strings.HasPrefix(reason, flow.ReasonScript)) {
			todo = append(todo, id)
		}
	}
	if err := errors.Join(rows.Err(), rows.Close()); err != nil {
		return err
	}
	for _, id := range todo {
		if _, err := s.st.setExecutable.ExecContext(ctx, d.SHA256, d.Reason, id); err != nil {
			return err
		}
	}
	return nil
}

// actor returns the row of who moved the bytes of a record.
func (s *SQLite) actor(ctx context.Context, boot string, r *flow.Record) (int64, error) {
	program, err := s.program(ctx, r.Program)
	if err != nil {
		return 0, err
	}
	place, err := s.place(ctx, boot, r.Program)
	if err != nil {
		return 0, err
	}
	kind, err := s.kind(ctx, r.Kind)
	if err != nil {
		return 0, err
	}
	k := actorKey{program: program, kind: kind, uid: r.UID, netNS: r.NetNS}
	if place != nil {
		k.place = place.(int64)
	}
	if id, ok := s.ids.actors[k]; ok {
		return id, nil
	}
	id, err := intern(ctx, s.st.findActor, s.st.addActor, program, place, int64(r.UID), kind, int64(r.NetNS))
	if err != nil {
		return 0, err
	}
	keep(s.ids.actors, maxIDs, k, id)
	return id, nil
}

// place returns the row of where a program ran in a boot.
func (s *SQLite) place(ctx context.Context, boot string, g *flow.Program) (any, error) {
	if g.Cgroup == 0 && g.Place == nil {
		return nil, nil
	}
	k := placeKey{boot: boot, cgroup: g.Cgroup}
	if g.Place != nil {
		k.place = *g.Place
	}
	if id, ok := s.ids.places[k]; ok {
		return id, nil
	}
	p := &k.place
	id, err := intern(ctx, s.st.findPlace, s.st.addPlace, boot, int64(g.Cgroup), p.Path, p.Name, p.Kind, p.Unit, p.Owner, p.UserUnit, p.Session, p.Runtime, p.Container, p.Pod, p.App)
	if err != nil {
		return nil, err
	}
	keep(s.ids.places, maxPlaces, k, id)
	return id, nil
}

func (s *SQLite) address(ctx context.Context, a netip.Addr) (any, error) {
	if !a.IsValid() {
		return nil, nil
	}
	if id, ok := s.ids.addresses[a]; ok {
		return id, nil
	}
	id, err := intern(ctx, s.st.findAddress, s.st.addAddress, flow.Printable(a.String()))
	if err != nil {
		return nil, err
	}
	keep(s.ids.addresses, maxIDs, a, id)
	return id, nil
}

func (s *SQLite) domain(ctx context.Context, d *flow.Domain) (any, error) {
	if d.Name == "" {
		return nil, nil
	}
	if id, ok := s.ids.domains[*d]; ok {
		return id, nil
	}
	id, err := intern(ctx, s.st.findDomain, s.st.addDomain, d.Name, d.Source)
	if err != nil {
		return nil, err
	}
	keep(s.ids.domains, maxPrograms, *d, id)
	return id, nil
}

func (s *SQLite) kind(ctx context.Context, k *flow.Kind) (int64, error) {
	if id, ok := s.ids.kinds[*k]; ok {
		return id, nil
	}
	id, err := intern(ctx, s.st.findKind, s.st.addKind, k.Family, k.Protocol, k.Direction, k.Layer, k.Peer)
	if err != nil {
		return 0, err
	}
	keep(s.ids.kinds, maxPrograms, *k, id)
	return id, nil
}
