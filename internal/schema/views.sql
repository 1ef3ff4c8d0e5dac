-- The base table with all its columns.
CREATE VIEW records AS
SELECT r.id >> 10 AS window, (r.id & 1023) + 1 AS n, a.program, a.place, a.uid, a.kind,
  r.local, r.local_port, r.remote, r.remote_port, r.domain, a.net_ns, r.conns, r.sent, r.received
FROM raw r JOIN actors a ON a.id = r.actor;

-- The mission's flat table. port is the remote one; contime is the end of the window in the reader's local time. What is a query of its own is
-- looked up only when it is asked for: SQLite leaves no join out of a query that sums up.
CREATE VIEW connections AS
SELECT
  e.path    AS exe,
  p.name    AS name,
  p.cmdline AS cmdline,
  e.sha256  AS sha256,
  (SELECT strftime('%Y-%m-%d %H:%M:%S', w."end", 'unixepoch', 'localtime') FROM windows w WHERE w.id = r.id >> 10) AS contime,
  coalesce((SELECT d.name FROM domains d WHERE d.id = r.domain), '')   AS domain,
  coalesce((SELECT a.ip FROM addresses a WHERE a.id = r.remote), '')   AS ip,
  r.remote_port AS port,
  c.uid         AS uid,
  coalesce((SELECT pe.path FROM programs pp JOIN executables pe ON pe.id = pp.executable WHERE pp.id = p.parent), '')   AS pexe,
  coalesce((SELECT pp.name FROM programs pp WHERE pp.id = p.parent), '')     AS pname,
  coalesce((SELECT pp.cmdline FROM programs pp WHERE pp.id = p.parent), '')  AS pcmdline,
  coalesce((SELECT pe.sha256 FROM programs pp JOIN executables pe ON pe.id = pp.executable WHERE pp.id = p.parent), '') AS psha256,
  r.conns    AS conns,
  r.sent     AS send,
  r.received AS recv
FROM raw r
JOIN actors c ON c.id = r.actor
JOIN programs p ON p.id = c.program
JOIN executables e ON e.id = p.executable;
