-- SPDX-License-Identifier: PostgreSQL
-- The registry of nodes: who uses this database under which name, and where its WAL begins.

CREATE SCHEMA IF NOT EXISTS howdah;

CREATE TABLE howdah.node (
	name              text        PRIMARY KEY CHECK (name ~ '^[a-z0-9_]{1,32}$'),
	instance          text        NOT NULL,
	system_identifier text        NOT NULL,
	slot              text        NOT NULL,
	slot_lsn          pg_lsn,
	timeline          int,
	registered_at     timestamptz NOT NULL DEFAULT now(),
	seen_at           timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE howdah.node IS 'the nodes that use this database; written by walstreamd, rows removed by pgctl node remove';
COMMENT ON COLUMN howdah.node.instance IS 'kept in the node''s state_dir: a second instance under the same name is refused';
COMMENT ON COLUMN howdah.node.system_identifier IS 'of the server that the slot was made on: tells a database that was moved';
COMMENT ON COLUMN howdah.node.slot_lsn IS 'where the slot began; NULL until it is complete. Set and no slot there: the slot was lost';

-- Registers a node or says what is known of it. The lock (held by the session) keeps a second
-- process of the same instance away; have_lock: the session has it already.
CREATE FUNCTION howdah.node_register(node text, instance text, slot text, have_lock boolean,
	OUT registered_instance text, OUT registered_system text, OUT server_system text,
	OUT slot_lsn pg_lsn, OUT locked boolean)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
	SELECT c.system_identifier::text INTO server_system FROM pg_control_system() c;
	INSERT INTO howdah.node (name, instance, system_identifier, slot)
		VALUES (node_register.node, node_register.instance, server_system, node_register.slot)
		ON CONFLICT (name) DO NOTHING;
	SELECT n.instance, n.system_identifier, n.slot_lsn
		INTO registered_instance, registered_system, slot_lsn
		FROM howdah.node n WHERE n.name = node_register.node;
	locked := registered_instance = node_register.instance AND (have_lock OR
		pg_try_advisory_lock(hashtextextended('howdah walstreamd ' || node_register.node, 0)));
	IF locked THEN
		UPDATE howdah.node n SET seen_at = now() WHERE n.name = node_register.node;
	END IF;
END
$$;

-- Called in the snapshot that a new slot exported: what a part of the suite has to know about the place
-- where the node's history begins, its slot_created(node, lsn) writes down; all of it, with slot_lsn,
-- in one transaction.
CREATE FUNCTION howdah.slot_created(node text, lsn pg_lsn, timeline int) RETURNS void
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
	UPDATE howdah.node n SET slot_lsn = slot_created.lsn, timeline = slot_created.timeline
		WHERE n.name = slot_created.node;
	IF NOT FOUND THEN
		RAISE EXCEPTION 'node % is not registered', node;
	END IF;
END
$$;
