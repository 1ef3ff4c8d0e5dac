-- The database of picosnitch, SQLite dialect. Texts are printable UTF-8 (event.Text). Times are unix seconds,
-- UTC, unless a column says otherwise. Bytes and counts are 63 bits wide.

-- One row per file content as far as the kernel tells it, and path. sha256 may come later than the rows that
-- refer to it; reason says why there is none. The same content may have several rows: it is found by path and
-- sha256.
CREATE TABLE executables (
  id         INTEGER PRIMARY KEY,
  path       TEXT    NOT NULL, -- as the process saw it; '[kernel]' for kernel threads; '' if not known
  device     INTEGER NOT NULL, -- with the next four: event.FileID; all 0 if not known
  inode      INTEGER NOT NULL,
  generation INTEGER NOT NULL,
  ctime      INTEGER NOT NULL, -- nanoseconds since 1970
  size       INTEGER NOT NULL, -- bytes
  sha256     TEXT    NOT NULL, -- lower-case hex; '' if not known (yet)
  reason     TEXT    NOT NULL  -- why sha256 is ''; beside a sha256, whose word it is
) STRICT;
CREATE INDEX executables_file ON executables (inode, path);

-- What ran, and by whom it was started: equal programs with equal ancestors share one row, wherever they ran. The ancestors of program 7,
-- nearest first:
--   WITH RECURSIVE up (id, depth) AS (
--     SELECT 7, 0 UNION ALL SELECT parent, depth + 1 FROM up JOIN programs USING (id) WHERE parent IS NOT NULL)
--   SELECT depth, path, name, cmdline FROM up JOIN programs USING (id) JOIN executables e ON e.id = executable
--   ORDER BY depth;
CREATE TABLE programs (
  id          INTEGER PRIMARY KEY,
  key         INTEGER NOT NULL, -- hash of the columns below: finds a row without an index on long texts
  executable  INTEGER NOT NULL REFERENCES executables,
  name        TEXT    NOT NULL, -- task_struct.comm at exec
  cmdline     TEXT    NOT NULL, -- '' with "Log commands": false
  script      INTEGER REFERENCES executables, -- what the executable ran as an interpreter: a file, or with 'module' a name; NULL: nothing that has a name
  script_kind TEXT    NOT NULL, -- 'file': the kernel ran the interpreter for it (#!); 'argument': its path was given; 'module': a name was;
                                -- 'command': the text itself was; 'stdin'; 'unknown': the arguments could not be read; '': no interpreter
  parent      INTEGER REFERENCES programs, -- NULL: not known, or the ninth ancestor
  preload     TEXT    NOT NULL DEFAULT '' -- LD_PRELOAD and LD_AUDIT at exec: code that no hash covers; ends with '…' if more may have been set
) STRICT;
CREATE INDEX programs_key ON programs (key);
CREATE INDEX programs_executable ON programs (executable);

-- Where something ran: a container, a service, a login. Kept with the records and not with the programs, so that a
-- container that starts again does not bring new rows for all the ancestors of what it runs.
CREATE TABLE places (
  id        INTEGER PRIMARY KEY,
  boot      TEXT    NOT NULL, -- ids of control groups are given again after it
  cgroup    INTEGER NOT NULL, -- id of the control group in the hierarchy that told the place; 0 if not known
  path      TEXT    NOT NULL, -- of the control group, from its hierarchy's root; '' if not known
  kind      TEXT    NOT NULL, -- 'container', 'app', 'user', 'session', 'service': the most telling of the below; ''
  unit      TEXT    NOT NULL, -- of the system's systemd or OpenRC
  owner     TEXT    NOT NULL, -- uid of the user whose own systemd ran it: what follows is that user's word
  user_unit TEXT    NOT NULL, -- unit of that systemd
  session   TEXT    NOT NULL, -- of logind
  runtime   TEXT    NOT NULL, -- 'docker', 'podman', 'containerd', 'cri-o', 'kubernetes', 'lxc', 'nspawn', …, 'flatpak', 'snap'
  container TEXT    NOT NULL, -- id, or the name where the runtime has no ids
  name      TEXT    NOT NULL, -- what the container is called; '' if not known
  pod       TEXT    NOT NULL, -- uid of the Kubernetes pod
  app       TEXT    NOT NULL  -- of flatpak, snap or the desktop
) STRICT;
CREATE INDEX places_cgroup ON places (cgroup, boot);

CREATE TABLE addresses (
  id INTEGER PRIMARY KEY,
  ip TEXT NOT NULL UNIQUE
) STRICT;

CREATE TABLE domains (
  id     INTEGER PRIMARY KEY,
  name   TEXT NOT NULL, -- in reverse notation: com.example.www
  source TEXT NOT NULL, -- how it is known: 'dns', 'hosts', …
  UNIQUE (name, source)
) STRICT;

-- The few combinations of words that describe a flow.
CREATE TABLE kinds (
  id        INTEGER PRIMARY KEY,
  family    TEXT NOT NULL, -- 'inet', 'inet6', 'packet', …
  protocol  TEXT NOT NULL, -- 'tcp', 'udp', …; '' where the family has none
  direction TEXT NOT NULL, -- 'out', 'in', '' (open before the sensor, or has none)
  layer     TEXT NOT NULL, -- what is counted: 'payload', 'ip', 'frame'
  peer      TEXT NOT NULL, -- how the remote endpoint is known: 'socket', 'message', 'packet', ''
  UNIQUE (family, protocol, direction, layer, peer)
) STRICT;

-- One row per run of the sensor.
CREATE TABLE streams (
  id       INTEGER PRIMARY KEY,
  stream   TEXT    NOT NULL UNIQUE, -- random
  program  TEXT    NOT NULL,        -- version of picosnitch
  host     TEXT    NOT NULL,
  boot     TEXT    NOT NULL,
  hook_set TEXT    NOT NULL,
  started  INTEGER NOT NULL         -- nanoseconds since 1970
) STRICT;

-- How far a sink has a stream, changed in the same transaction as the sink's rows: what a sensor sends again after a
-- crash is recognised and dropped. The database is a sink itself (sink is 'sqlite').
CREATE TABLE positions (
  stream INTEGER NOT NULL REFERENCES streams,
  sink   TEXT    NOT NULL,
  batch  INTEGER NOT NULL, -- last batch of which everything is there
  flows  INTEGER NOT NULL, -- flow lines of the batch after it that are there, too
  PRIMARY KEY (stream, sink)
) STRICT, WITHOUT ROWID;

-- What a stream lost, in all: the sum of losses and of unattributed bytes of its windows, also of those that are deleted.
CREATE TABLE totals (
  stream INTEGER NOT NULL REFERENCES streams,
  reason TEXT    NOT NULL, -- as in losses; 'unattributed sent' and 'unattributed received' are bytes
  count  INTEGER NOT NULL,
  PRIMARY KEY (stream, reason)
) STRICT, WITHOUT ROWID;

-- One row per write. A window is written in parts, with the same start, when it has more records than fit into one (1024) or the
-- sensor ends: "end" is never later than the write. A window belongs to the hour (end - 1) / 3600.
CREATE TABLE windows (
  id                    INTEGER PRIMARY KEY,
  stream                INTEGER NOT NULL REFERENCES streams,
  start                 INTEGER NOT NULL,
  "end"                 INTEGER NOT NULL,
  unattributed_sent     INTEGER NOT NULL, -- bytes that the kernel saw and that no record holds
  unattributed_received INTEGER NOT NULL
) STRICT;

-- Where the windows of an hour are: between first and last, with others among them when the clock was set.
CREATE TABLE hours (
  hour  INTEGER PRIMARY KEY, -- unix seconds / 3600
  first INTEGER NOT NULL,
  last  INTEGER NOT NULL
) STRICT;

-- What could not be seen, kept or resolved, by reason (event.Losses; 'sink': records that could not be written).
CREATE TABLE losses (
  window INTEGER NOT NULL REFERENCES windows,
  reason TEXT    NOT NULL,
  count  INTEGER NOT NULL,
  PRIMARY KEY (window, reason)
) STRICT, WITHOUT ROWID;

-- Who moved something, and how: the part of a record that is the same from window to window.
CREATE TABLE actors (
  id      INTEGER PRIMARY KEY,
  program INTEGER NOT NULL REFERENCES programs,
  place   INTEGER REFERENCES places, -- of the process at the time of its exec; NULL: not known
  uid     INTEGER NOT NULL, -- at the time of the traffic
  kind    INTEGER NOT NULL REFERENCES kinds,
  net_ns  INTEGER NOT NULL  -- inode number of the network namespace, 0 if not known
) STRICT;
CREATE INDEX actors_program ON actors (program, place, uid, kind);

-- The base table: what one program moved over one pair of endpoints in one window. Read it through the view records.
CREATE TABLE raw (
  id          INTEGER PRIMARY KEY, -- window * 1024 + number within the window, from 0
  actor       INTEGER NOT NULL REFERENCES actors,
  local       INTEGER REFERENCES addresses, -- NULL: not known, or "Log addresses": false
  local_port  INTEGER NOT NULL,
  remote      INTEGER REFERENCES addresses,
  remote_port INTEGER NOT NULL,
  domain      INTEGER REFERENCES domains,
  conns       INTEGER NOT NULL, -- opened in the window
  sent        INTEGER NOT NULL, -- bytes
  received    INTEGER NOT NULL
) STRICT;

-- Sums of raw rows, kept longer than they are: of an hour, and of a day (UTC). The rows of an hour or a day may have several
-- segments; their sum is what it moved. Every window up to progress 'rolled' is in exactly one segment of its hour.
CREATE TABLE segments (
  id       INTEGER PRIMARY KEY,
  seconds  INTEGER NOT NULL, -- 3600 or 86400
  bucket   INTEGER NOT NULL, -- unix seconds / seconds
  merged   INTEGER NOT NULL, -- 1: an hour that is contained in its day's segment, too
  conns    INTEGER NOT NULL, -- the sums of the segment
  sent     INTEGER NOT NULL,
  received INTEGER NOT NULL
) STRICT;
CREATE INDEX segments_bucket ON segments (seconds, merged, bucket);

-- The sums by actor and port of the service, and for hours by remote address and domain, too; see package rollup for
-- the format.
CREATE TABLE segment_actors (
  segment INTEGER PRIMARY KEY REFERENCES segments,
  data    BLOB NOT NULL
) STRICT;
CREATE TABLE segment_peers (
  segment INTEGER PRIMARY KEY REFERENCES segments,
  data    BLOB NOT NULL
) STRICT;

-- How far the work is that is done in small steps besides the recording:
--   rolled    the last window that is contained in segments
--   raw       the raw rows of this hour and later ones are all there
--   pruned    the hour at which the deletion of raw rows goes on
--   rollups   the segments of this hour and later ones are all there
--   texts     as rollups, when texts (addresses, domains, programs, …) that nothing names were last deleted
--   swept     how often texts were deleted: who remembers the numbers of rows must forget them then
CREATE TABLE progress (
  name  TEXT PRIMARY KEY,
  value INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- What VirusTotal says of a file, by the sha256 of an executable or a script.
CREATE TABLE virustotal (
  sha256     TEXT    PRIMARY KEY, -- lower-case hex
  verdict    TEXT    NOT NULL, -- 'analysed'; 'unknown': VirusTotal does not have the file; 'refused': it has, or was sent it, and does not say
  text       TEXT    NOT NULL, -- the same in words
  malicious  INTEGER NOT NULL, -- scanners that say so
  suspicious INTEGER NOT NULL,
  undetected INTEGER NOT NULL,
  harmless   INTEGER NOT NULL,
  uploaded   INTEGER NOT NULL, -- 1: picosnitch sent the file
  at         INTEGER NOT NULL  -- nanoseconds since 1970
) STRICT, WITHOUT ROWID;
