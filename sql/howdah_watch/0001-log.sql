-- SPDX-License-Identifier: PostgreSQL
-- watchd's log: everything that changes the store's shared state, one entry per seq.

CREATE SCHEMA IF NOT EXISTS howdah_watch;

-- seq is dense over all nodes; an entry is the rows 0 … n of one seq, the last of them marked. rev is the
-- store's revision after the entry. A batch of entries is one INSERT, made only if the tip is the one that
-- it was evaluated on; batch names it, so that a commit in doubt can be looked up.
CREATE TABLE howdah_watch.log (
	seq        bigint      NOT NULL,
	rev        bigint      NOT NULL,
	batch      bigint      NOT NULL,
	at         timestamptz NOT NULL DEFAULT clock_timestamp(),
	create_rev bigint      NOT NULL DEFAULT 0,
	version    bigint      NOT NULL DEFAULT 0,
	lease      bigint      NOT NULL DEFAULT 0,
	sub        int         NOT NULL,
	kind       smallint    NOT NULL,
	last       boolean     NOT NULL,
	node       text        NOT NULL,
	key        bytea,
	value      bytea,
	arg        bigint,
	PRIMARY KEY (seq, sub)
);
