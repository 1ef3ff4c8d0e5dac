-- The base table with all its columns.
CREATE VIEW records AS
SELECT r.id >> 10 AS window, (r.id & 1023) + 1 AS n, a.program, a.place, a.uid, a.kind,
  r.local, r.local_port, r.remote, r.remote_port, r.domain, a.net_ns, r.conns, r.sent, r.received
FROM raw r JOIN actors a ON a.id = r.actor;

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
  c.uid                     AS uid,
  coalesce(pe.path, '')     AS pexe,
  coalesce(pp.name, '')     AS pname,
  coalesce(pp.cmdline, '')  AS pcmdline,
  coalesce(pe.sha256, '')   AS psha256,
  r.conns    AS conns,
  r.sent     AS send,
  r.received AS recv
FROM raw r
JOIN windows w ON w.id = r.id >> 10
JOIN actors c ON c.id = r.actor
JOIN programs p ON p.id = c.program
JOIN executables e ON e.id = p.executable
LEFT JOIN programs pp ON pp.id = p.parent
LEFT JOIN executables pe ON pe.id = pp.executable
LEFT JOIN addresses a ON a.id = r.remote
LEFT JOIN domains d ON d.id = r.domain;
