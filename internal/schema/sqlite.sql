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
  reason     TEXT    NOT NULL  -- why sha256 is ''
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
  script      INTEGER REFERENCES executables, -- what the executable ran as its interpreter; NULL: nothing
  script_kind TEXT    NOT NULL, -- how script is known: 'file' for a #! file that the kernel told; '' without a script
  parent      INTEGER REFERENCES programs -- NULL: not known, or the ninth ancestor
) STRICT;
CREATE INDEX programs_key ON programs (key);
CREATE INDEX programs_executable ON programs (executable);

-- Where something ran: a container, a service, a login. Kept with the records and not with the programs, so that a
-- container that starts again does not bring new rows for all the ancestors of what it runs.
CREATE TABLE places (
  id     INTEGER PRIMARY KEY,
  boot   TEXT    NOT NULL, -- cgroup ids are given again after it
  cgroup INTEGER NOT NULL, -- cgroup v2 id
  name   TEXT    NOT NULL, -- '' if not known
  UNIQUE (boot, cgroup, name)
) STRICT;

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

-- One row per write. A window is written in parts, with the same start, when it has very many records or the sensor ends: "end"
-- is never later than the write.
CREATE TABLE windows (
  id                    INTEGER PRIMARY KEY,
  stream                INTEGER NOT NULL REFERENCES streams,
  start                 INTEGER NOT NULL,
  "end"                 INTEGER NOT NULL,
  unattributed_sent     INTEGER NOT NULL, -- bytes that the kernel saw and that no record holds
  unattributed_received INTEGER NOT NULL
) STRICT;
CREATE INDEX windows_end ON windows ("end");

-- What could not be seen, kept or resolved, by reason (event.Losses; 'sink': records that could not be written).
CREATE TABLE losses (
  window INTEGER NOT NULL REFERENCES windows,
  reason TEXT    NOT NULL,
  count  INTEGER NOT NULL,
  PRIMARY KEY (window, reason)
) STRICT, WITHOUT ROWID;

-- The base table: what one program moved over one pair of endpoints in one window.
CREATE TABLE records (
  window      INTEGER NOT NULL REFERENCES windows,
  n           INTEGER NOT NULL, -- 1, 2, … within the window
  program     INTEGER NOT NULL REFERENCES programs,
  place       INTEGER REFERENCES places, -- of the process at the time of its exec; NULL: not known
  uid         INTEGER NOT NULL, -- at the time of the traffic
  kind        INTEGER NOT NULL REFERENCES kinds,
  local       INTEGER REFERENCES addresses, -- NULL: not known, or "Log addresses": false
  local_port  INTEGER NOT NULL,
  remote      INTEGER REFERENCES addresses,
  remote_port INTEGER NOT NULL,
  domain      INTEGER REFERENCES domains,
  net_ns      INTEGER NOT NULL, -- inode number of the network namespace, 0 if not known
  conns       INTEGER NOT NULL, -- opened in the window
  sent        INTEGER NOT NULL, -- bytes
  received    INTEGER NOT NULL,
  PRIMARY KEY (window, n)
) STRICT, WITHOUT ROWID;

-- The mission's flat table. port is the remote one; contime is the end of the window in the reader's local time.
CREATE VIEW connections AS
SELECT
  e.path    AS exe,
  p.name    AS name,
  p.cmdline AS cmdline,
  e.sha256  AS sha256,
  strftime('%Y-%m-%d %H:%M:%S', w."end", 'unixepoch', 'localtime') AS contime,
  coalesce(d.name, '')      AS domain,
  coalesce(a.ip, '')        AS ip,
  r.remote_port             AS port,
  r.uid                     AS uid,
  coalesce(pe.path, '')     AS pexe,
  coalesce(pp.name, '')     AS pname,
  coalesce(pp.cmdline, '')  AS pcmdline,
  coalesce(pe.sha256, '')   AS psha256,
  r.conns    AS conns,
  r.sent     AS send,
  r.received AS recv
FROM records r
JOIN windows w ON w.id = r.window
JOIN programs p ON p.id = r.program
JOIN executables e ON e.id = p.executable
LEFT JOIN programs pp ON pp.id = p.parent
LEFT JOIN executables pe ON pe.id = pp.executable
LEFT JOIN addresses a ON a.id = r.remote
LEFT JOIN domains d ON d.id = r.domain;
