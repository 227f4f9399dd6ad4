-- SPDX-License-Identifier: PostgreSQL
-- What is missing: a slot that was lost and made anew leaves a gap, which is written down before
-- the new slot is made, closed in its snapshot, and told to every reader.

ALTER TABLE howdah.node ADD COLUMN confirmed_lsn pg_lsn, ADD COLUMN confirmed_timeline int;
COMMENT ON COLUMN howdah.node.confirmed_lsn IS
	'acknowledged up to here when the node was last seen: where a gap begins if its slot is lost';
COMMENT ON COLUMN howdah.node.confirmed_timeline IS 'the timeline of confirmed_lsn';

CREATE TABLE howdah.gap (
	node     text        NOT NULL REFERENCES howdah.node (name) ON DELETE CASCADE,
	id       bigint      NOT NULL GENERATED ALWAYS AS IDENTITY,
	from_lsn pg_lsn      NOT NULL,
	to_lsn   pg_lsn,
	timeline int,
	reason   text        NOT NULL,
	at       timestamptz NOT NULL DEFAULT now(),
	told_at  timestamptz,
	PRIMARY KEY (node, id)
);
-- The one that is not closed yet.
CREATE UNIQUE INDEX gap_open ON howdah.gap (node) WHERE to_lsn IS NULL;
COMMENT ON TABLE howdah.gap IS
	'changes that a node never got: its slot was lost and made anew (walstreamd.lost_slot = "recreate")';
COMMENT ON COLUMN howdah.gap.from_lsn IS 'all transactions that end at or before it were handled';
COMMENT ON COLUMN howdah.gap.to_lsn IS
	'all transactions that end after it come; NULL while the new slot is not made';
COMMENT ON COLUMN howdah.gap.timeline IS 'of to_lsn';
COMMENT ON COLUMN howdah.gap.told_at IS 'when the node''s workers had acknowledged that they know';

-- Gives the slot up: from here on what there is of it is half-made, as on a first start, and may be
-- dropped. known: further positions up to which everything was acknowledged.
CREATE FUNCTION howdah.slot_lost(node text, known pg_lsn[], reason text) RETURNS pg_lsn
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	n howdah.node;
	begins pg_lsn;
BEGIN
	SELECT * INTO n FROM howdah.node WHERE name = slot_lost.node FOR UPDATE;
	IF n.slot_lsn IS NULL THEN
		RETURN NULL;
	END IF;
	SELECT max(k) INTO begins FROM unnest(known || n.slot_lsn || n.confirmed_lsn) k;
	INSERT INTO howdah.gap (node, from_lsn, reason) VALUES (n.name, begins, slot_lost.reason);
	UPDATE howdah.node SET slot_lsn = NULL WHERE name = n.name;
	RETURN begins;
END
$$;

-- As before, and: an open gap ends where the slot begins.
CREATE OR REPLACE FUNCTION howdah.slot_created(node text, lsn pg_lsn, timeline int) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	part text;
BEGIN
	FOREACH part IN ARRAY ARRAY['howdah_mqtt', 'howdah_watch', 'howdah_tun'] LOOP
		IF to_regprocedure(part || '.slot_created(text, pg_lsn)') IS NOT NULL THEN
			EXECUTE format('SELECT %I.slot_created($1, $2)', part) USING node, lsn;
		END IF;
	END LOOP;
	UPDATE howdah.gap g SET to_lsn = slot_created.lsn, timeline = slot_created.timeline,
		from_lsn = least(g.from_lsn, slot_created.lsn), at = clock_timestamp()
		WHERE g.node = slot_created.node AND g.to_lsn IS NULL;
	UPDATE howdah.node n SET slot_lsn = slot_created.lsn, timeline = slot_created.timeline,
		confirmed_lsn = slot_created.lsn, confirmed_timeline = slot_created.timeline
		WHERE n.name = slot_created.node;
	IF NOT FOUND THEN
		RAISE EXCEPTION 'node % is not registered', node;
	END IF;
END
$$;
