-- 100 to 101: raw rows without what is the same from window to window, roll-ups, totals of losses.
ALTER TABLE programs ADD COLUMN preload TEXT NOT NULL DEFAULT '';
CREATE TABLE places_101 (id INTEGER PRIMARY KEY, boot TEXT NOT NULL, cgroup INTEGER NOT NULL, path TEXT NOT NULL, kind TEXT NOT NULL, unit TEXT NOT NULL, owner TEXT NOT NULL, user_unit TEXT NOT NULL, session TEXT NOT NULL, runtime TEXT NOT NULL, container TEXT NOT NULL, name TEXT NOT NULL, pod TEXT NOT NULL, app TEXT NOT NULL) STRICT;
INSERT INTO places_101 SELECT id, boot, cgroup, '', '', '', '', '', '', '', '', name, '', '' FROM places;
DROP TABLE places;
ALTER TABLE places_101 RENAME TO places;
CREATE INDEX places_cgroup ON places (cgroup, boot);
ALTER TABLE records RENAME TO records_100;
ALTER TABLE windows RENAME TO windows_100;
ALTER TABLE losses RENAME TO losses_100;
DROP INDEX windows_end;
CREATE TABLE actors (id INTEGER PRIMARY KEY, program INTEGER NOT NULL REFERENCES programs, place INTEGER REFERENCES places, uid INTEGER NOT NULL, kind INTEGER NOT NULL REFERENCES kinds, net_ns INTEGER NOT NULL) STRICT;
CREATE INDEX actors_program ON actors (program, place, uid, kind);
INSERT INTO actors (program, place, uid, kind, net_ns) SELECT DISTINCT program, place, uid, kind, net_ns FROM records_100;
CREATE TABLE totals (stream INTEGER NOT NULL REFERENCES streams, reason TEXT NOT NULL, count INTEGER NOT NULL, PRIMARY KEY (stream, reason)) STRICT, WITHOUT ROWID;
INSERT INTO totals SELECT stream, reason, sum(count) FROM losses_100 JOIN windows_100 ON id = window GROUP BY stream, reason;
INSERT INTO totals SELECT stream, 'unattributed sent', sum(unattributed_sent) FROM windows_100 GROUP BY stream HAVING sum(unattributed_sent) > 0;
INSERT INTO totals SELECT stream, 'unattributed received', sum(unattributed_received) FROM windows_100 GROUP BY stream HAVING sum(unattributed_received) > 0;
CREATE TABLE windows (id INTEGER PRIMARY KEY, stream INTEGER NOT NULL REFERENCES streams, start INTEGER NOT NULL, "end" INTEGER NOT NULL, unattributed_sent INTEGER NOT NULL, unattributed_received INTEGER NOT NULL) STRICT;
CREATE TABLE hours (hour INTEGER PRIMARY KEY, first INTEGER NOT NULL, last INTEGER NOT NULL) STRICT;
CREATE TABLE losses (window INTEGER NOT NULL REFERENCES windows, reason TEXT NOT NULL, count INTEGER NOT NULL, PRIMARY KEY (window, reason)) STRICT, WITHOUT ROWID;
CREATE TABLE raw (id INTEGER PRIMARY KEY, actor INTEGER NOT NULL REFERENCES actors, local INTEGER REFERENCES addresses, local_port INTEGER NOT NULL, remote INTEGER REFERENCES addresses, remote_port INTEGER NOT NULL, domain INTEGER REFERENCES domains, conns INTEGER NOT NULL, sent INTEGER NOT NULL, received INTEGER NOT NULL) STRICT;
CREATE TABLE segments (id INTEGER PRIMARY KEY, seconds INTEGER NOT NULL, bucket INTEGER NOT NULL, merged INTEGER NOT NULL, conns INTEGER NOT NULL, sent INTEGER NOT NULL, received INTEGER NOT NULL) STRICT;
CREATE INDEX segments_bucket ON segments (seconds, merged, bucket);
CREATE TABLE segment_actors (segment INTEGER PRIMARY KEY REFERENCES segments, data BLOB NOT NULL) STRICT;
CREATE TABLE segment_peers (segment INTEGER PRIMARY KEY REFERENCES segments, data BLOB NOT NULL) STRICT;
CREATE TABLE progress (name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE virustotal (sha256 TEXT PRIMARY KEY, verdict TEXT NOT NULL, text TEXT NOT NULL, malicious INTEGER NOT NULL, suspicious INTEGER NOT NULL, undetected INTEGER NOT NULL, harmless INTEGER NOT NULL, uploaded INTEGER NOT NULL, at INTEGER NOT NULL) STRICT, WITHOUT ROWID;
-- repeat: SELECT EXISTS (SELECT 1 FROM windows_100)
-- The next 200 windows; a window of 100 has up to 16384 records, 16 parts of today.
CREATE TEMP TABLE part AS SELECT DISTINCT w.id AS old, coalesce((n - 1) >> 10, 0) AS part FROM (SELECT id FROM windows_100 ORDER BY id LIMIT 200) w LEFT JOIN records_100 r ON r.window = w.id;
INSERT INTO windows SELECT id * 16 + part, stream, start, "end", iif(part = 0, unattributed_sent, 0), iif(part = 0, unattributed_received, 0) FROM temp.part JOIN windows_100 ON id = old;
INSERT INTO hours SELECT ("end" - 1) / 3600 AS h, min(id), max(id) FROM windows WHERE id >= (SELECT min(old) * 16 FROM temp.part) GROUP BY h
  ON CONFLICT DO UPDATE SET first = min(first, excluded.first), last = max(last, excluded.last);
INSERT INTO losses SELECT window * 16, reason, count FROM losses_100 WHERE window IN (SELECT old FROM temp.part);
INSERT INTO raw SELECT (window * 16 + ((n - 1) >> 10)) * 1024 + ((n - 1) & 1023), a.id, local, local_port, remote, remote_port, domain, conns, sent, received
  FROM records_100 r JOIN actors a ON a.program = r.program AND a.place IS r.place AND a.uid = r.uid AND a.kind = r.kind AND a.net_ns = r.net_ns WHERE window IN (SELECT old FROM temp.part);
DELETE FROM losses_100 WHERE window IN (SELECT old FROM temp.part);
DELETE FROM records_100 WHERE window IN (SELECT old FROM temp.part);
DELETE FROM windows_100 WHERE id IN (SELECT old FROM temp.part);
DROP TABLE temp.part;
-- end
DROP TABLE records_100;
DROP TABLE losses_100;
DROP TABLE windows_100;
