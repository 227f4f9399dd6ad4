-- SPDX-License-Identifier: PostgreSQL
-- watchd's log: everything that changes the store's shared state, one entry per seq.

CREATE SCHEMA IF NOT EXISTS howdah_watch;

-- seq is dense over all nodes; an entry is the rows 0 to n of one seq, the last of them marked. rev is the
-- store's revision after the entry. A batch of entries is one INSERT, made only if the tip is the one that
-- it was evaluated on; batch names it, so that a commit in doubt can be looked up.
--
-- What is 0 is NULL: a put without a lease is 8 bytes shorter. Wide columns first: no padding. No index but
-- the primary key, into which only the right-most page ever gets entries. Values are not compressed (the
-- writer's time is what counts) and stay in the row as long as two rows fit a page.
CREATE TABLE howdah_watch.log (
	seq        bigint      NOT NULL,
	rev        bigint      NOT NULL,
	batch      bigint      NOT NULL,
	at         timestamptz NOT NULL DEFAULT now(),
	create_rev bigint,
	version    bigint,
	lease      bigint,
	arg        bigint,
	sub        int         NOT NULL,
	kind       smallint    NOT NULL,
	last       boolean     NOT NULL,
	node       text        NOT NULL,
	key        bytea,
	value      bytea,
	PRIMARY KEY (seq, sub) WITH (fillfactor = 100)
) WITH (
	toast_tuple_target = 4064,
	-- Rows leave in small steps after a compaction: their space is to be had again soon. The file's
	-- end is not cut off meanwhile, which would lock writers out: Defragment does that.
	autovacuum_vacuum_threshold = 5000,
	autovacuum_vacuum_scale_factor = 0.05,
	autovacuum_vacuum_cost_delay = 1,
	vacuum_truncate = false
);
ALTER TABLE howdah_watch.log
	ALTER COLUMN key SET STORAGE MAIN,
	ALTER COLUMN value SET STORAGE EXTERNAL,
	ALTER COLUMN key SET STATISTICS 0,
	ALTER COLUMN value SET STATISTICS 0;

COMMENT ON TABLE howdah_watch.log IS
	'everything that changed watchd''s keys and leases since the last compaction; written by watchd only';
COMMENT ON COLUMN howdah_watch.log.seq IS 'place of the entry in the one order that all nodes share, dense';
COMMENT ON COLUMN howdah_watch.log.rev IS 'etcd''s revision after the entry';
COMMENT ON COLUMN howdah_watch.log.batch IS 'token of the INSERT that wrote the row';
COMMENT ON COLUMN howdah_watch.log.kind IS
	'1 put, 2 delete, 3 lease granted, 4 revoked, 5 moved, 6 compaction, 7 alarm, 8 disarmed, 9 new history';

-- Who serves etcd clients, and where. A node that is removed leaves.
CREATE TABLE howdah_watch.member (
	node          text PRIMARY KEY REFERENCES howdah.node (name) ON DELETE CASCADE,
	advertise_url text NOT NULL
);
COMMENT ON TABLE howdah_watch.member IS 'the nodes that run watchd and the URLs they give to clients';

CREATE VIEW howdah_watch.kv AS
	SELECT k.key, k.value, k.create_rev AS create_revision, k.rev AS mod_revision, k.version,
		coalesce(k.lease, 0) AS lease
	FROM (SELECT DISTINCT ON (l.key) l.* FROM howdah_watch.log l WHERE l.kind IN (1, 2)
		ORDER BY l.key, l.seq DESC, l.sub DESC) k
	WHERE k.kind = 1;
COMMENT ON VIEW howdah_watch.kv IS 'the keys there are at the newest revision; read only';

CREATE VIEW howdah_watch.history AS
	SELECT l.rev AS revision, l.at, l.node, CASE l.kind WHEN 1 THEN 'PUT' ELSE 'DELETE' END AS type,
		l.key, l.value, l.create_rev AS create_revision, l.version, coalesce(l.lease, 0) AS lease
	FROM howdah_watch.log l WHERE l.kind IN (1, 2) ORDER BY l.seq, l.sub OFFSET 0; -- not updatable
COMMENT ON VIEW howdah_watch.history IS
	'every put and delete that compaction has left, in order; read only';

-- No grants: who may read the keys is for the database's owner to say (GRANT USAGE on the schema, SELECT on
-- the views). The views cannot be written through.
REVOKE ALL ON howdah_watch.log, howdah_watch.member, howdah_watch.kv, howdah_watch.history FROM PUBLIC;
