-- SPDX-License-Identifier: PostgreSQL
-- brokerd's schema: which tables' changes become messages.
--
-- publish_mapping is the truth; brokerd follows it in the WAL, so that a mapping takes effect exactly
-- at its place there, and keeps the set that is valid from an LSN on in node_state.
--
-- Who is asking: a SECURITY DEFINER function cannot see its caller (current_user is the definer;
-- session_user and the setting "role" are those of the session, which is the superuser when an ANALYZE
-- or REFRESH runs somebody else's function). So the functions are SECURITY INVOKER and hand
-- the work over by a row of the table request: its column caller has the default current_user, which
-- is evaluated as the caller, and nobody may write that column. The trigger on it is the SECURITY
-- DEFINER function that checks and acts; it keeps no row.

CREATE SCHEMA IF NOT EXISTS howdah_mqtt;

-- relid is what the WAL carries and what survives a rename; relation is the same table for pg_dump,
-- which writes its name and so finds the table again in another database (slot_created then
-- corrects relid). A dropped table leaves its row behind: it matches nothing, and the next
-- publish_table removes it.
CREATE TABLE howdah_mqtt.publish_mapping (
	relid    oid      NOT NULL,
	relation regclass NOT NULL,
	name     text     NOT NULL DEFAULT 'default' CHECK (octet_length(name) BETWEEN 1 AND 64),
	topic    text     NOT NULL CHECK (octet_length(topic) BETWEEN 1 AND 65535),
	qos      smallint NOT NULL DEFAULT 1 CHECK (qos BETWEEN 0 AND 1),
	payload  text     CHECK (octet_length(payload) <= 65536),
	PRIMARY KEY (relid, name)
);
-- FULL: an update that leaves a large payload template alone brings it along in the old row.
ALTER TABLE howdah_mqtt.publish_mapping REPLICA IDENTITY FULL;
COMMENT ON TABLE howdah_mqtt.publish_mapping IS
	'tables whose changes are published as MQTT messages; written by publish_table and unpublish_table';

-- The set of mappings of a node that is valid for transactions that end after lsn.
-- mappings: [{"relid": 16385, "name": "default", "topic": "...", "qos": 1, "payload": null}, ...]
CREATE TABLE howdah_mqtt.node_state (
	node     text   NOT NULL,
	lsn      pg_lsn NOT NULL,
	mappings jsonb  NOT NULL,
	batch    bigint NOT NULL DEFAULT 0, -- token of the batch that wrote it
	sub      int    NOT NULL DEFAULT 0,
	PRIMARY KEY (node, lsn)
);
COMMENT ON TABLE howdah_mqtt.node_state IS
	'per node, the set of mappings that is valid from an LSN on; written by brokerd';

CREATE VIEW howdah_mqtt.mapping AS
	SELECT n.nspname AS schema, c.relname AS "table", m.name, m.topic, m.qos, m.payload,
		m.relid,
		EXISTS (SELECT FROM pg_catalog.pg_publication_rel pr
			JOIN pg_catalog.pg_publication p ON p.oid = pr.prpubid
			WHERE p.pubname = 'howdah' AND pr.prrelid = m.relid) AS published
	FROM howdah_mqtt.publish_mapping m
	LEFT JOIN pg_catalog.pg_class c ON c.oid = m.relid
	LEFT JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace;
COMMENT ON VIEW howdah_mqtt.mapping IS
	'mappings with the present names of their tables; schema and table are NULL once the table is dropped';

CREATE TABLE howdah_mqtt.request (
	action   text NOT NULL,
	relation regclass NOT NULL,
	topic    text,
	qos      int,
	payload  text,
	name     text NOT NULL,
	caller   name NOT NULL DEFAULT current_user
);
COMMENT ON TABLE howdah_mqtt.request IS 'always empty; see publish_table';

CREATE FUNCTION howdah_mqtt.present_set() RETURNS jsonb
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$
	SELECT coalesce(jsonb_agg(jsonb_build_object('relid', relid::bigint, 'name', name,
		'topic', topic, 'qos', qos, 'payload', payload) ORDER BY relid, name), '[]')
	FROM howdah_mqtt.publish_mapping
$$;

-- Called by walstreamd in the snapshot in which the node's slot begins: a new slot means a new
-- history, what was stored for an older one is void.
CREATE FUNCTION howdah_mqtt.slot_created(node text, lsn pg_lsn) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
	UPDATE howdah_mqtt.publish_mapping m SET relid = m.relation::oid
		WHERE m.relid <> m.relation::oid;
	DELETE FROM howdah_mqtt.node_state s WHERE s.node = slot_created.node;
	INSERT INTO howdah_mqtt.node_state (node, lsn, mappings)
		VALUES (slot_created.node, slot_created.lsn, howdah_mqtt.present_set());
END
$$;

-- NULL, or why the template cannot be used. Text, {{, }} and {name}; a topic has no wildcard.
CREATE FUNCTION howdah_mqtt.template_error(template text, is_topic boolean) RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp
AS $$
	SELECT CASE
		WHEN template !~ '^([^{}]|\{\{|\}\}|\{[^{}]+\})*$' THEN
			'a brace is not closed or stands alone'
		WHEN NOT is_topic THEN NULL
		WHEN template = '' THEN 'it is empty'
		WHEN octet_length(template) > 65535 THEN 'it is longer than 65535 bytes'
		WHEN regexp_replace(template, '\{\{|\}\}|\{[^{}]+\}', '', 'g') ~ '[+#]' THEN
			'a topic has no wildcards + and #'
		WHEN template ~ '[[:cntrl:]]' THEN 'a topic has no control characters'
		WHEN template ~ '^\$' THEN 'topics that begin with $ belong to the broker'
	END
$$;

-- Names in braces that are neither a word of the templates nor a column of the table: they stand for
-- nothing. lsn and the words after it are for payloads; in a topic they are columns.
CREATE FUNCTION howdah_mqtt.template_unknown(relation regclass, template text, is_topic boolean)
	RETURNS text[]
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$
	SELECT array_agg(DISTINCT x.word[1])
	FROM regexp_matches(regexp_replace(template, '\{\{|\}\}', '', 'g'), '\{([^{}]+)\}', 'g') x(word)
	WHERE x.word[1] NOT IN ('schema', 'table', 'op')
		AND (is_topic OR x.word[1] NOT IN ('lsn', 'xid', 'ts', 'new', 'old', 'json'))
		AND NOT EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = relation
			AND a.attname = x.word[1] AND a.attnum > 0 AND NOT a.attisdropped)
$$;

-- NULL if an update or delete can be identified, else the statement that mends it.
CREATE FUNCTION howdah_mqtt.replica_identity_remedy(relation regclass) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$
	SELECT CASE
		WHEN c.relreplident = 'f' THEN NULL
		WHEN EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisvalid
			AND i.indimmediate AND CASE c.relreplident
				WHEN 'd' THEN i.indisprimary
				WHEN 'i' THEN i.indisreplident
				ELSE false END) THEN NULL
		ELSE format('ALTER TABLE %s REPLICA IDENTITY %s;', c.oid::regclass, coalesce(
			(SELECT CASE WHEN i.indisprimary THEN 'DEFAULT'
				ELSE format('USING INDEX %I', x.relname) END
			FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid
			WHERE i.indrelid = c.oid AND i.indisunique AND i.indisvalid AND i.indimmediate
				AND i.indpred IS NULL AND i.indexprs IS NULL
				AND NOT EXISTS (SELECT FROM pg_attribute a
					WHERE a.attrelid = c.oid AND NOT a.attnotnull
					AND a.attnum = ANY (i.indkey[0:i.indnkeyatts - 1]))
			ORDER BY i.indisprimary DESC, i.indexrelid LIMIT 1), 'FULL'))
	END
	FROM pg_class c WHERE c.oid = relation
$$;

-- Nobody writes to the table, its partitions included, from here to the end of the transaction.
-- The wait is limited by the setting howdah_mqtt.lock_timeout, 10s unless set.
CREATE FUNCTION howdah_mqtt.lock_relation(relation regclass) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET lock_timeout = '10s'
AS $$
DECLARE
	wanted text := nullif(current_setting('howdah_mqtt.lock_timeout', true), '');
BEGIN
	IF wanted IS NOT NULL THEN
		PERFORM set_config('lock_timeout', wanted, true);
	END IF;
	EXECUTE format('LOCK TABLE %s IN SHARE ROW EXCLUSIVE MODE', relation);
EXCEPTION WHEN lock_not_available THEN
	RAISE EXCEPTION 'cannot lock % within %: other transactions are writing to it', relation,
		coalesce(wanted, current_setting('lock_timeout'))
		USING ERRCODE = 'lock_not_available',
		HINT = 'Try again when they have ended, or wait longer: SET howdah_mqtt.lock_timeout = ''1min'';';
END
$$;

CREATE FUNCTION howdah_mqtt.check_relation(relation regclass, caller name) RETURNS void
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	c pg_class;
	leaf regclass;
	remedy text;
BEGIN
	SELECT * INTO c FROM pg_class WHERE oid = relation;
	IF NOT FOUND THEN
		RAISE EXCEPTION 'there is no table with OID %', relation::oid
			USING ERRCODE = 'undefined_table';
	END IF;
	IF NOT pg_has_role(caller, c.relowner, 'USAGE') THEN
		RAISE EXCEPTION 'must be owner of table %', relation
			USING ERRCODE = 'insufficient_privilege',
			HINT = format('Its owner is %I.', pg_get_userbyid(c.relowner));
	END IF;
	IF c.relkind NOT IN ('r', 'p') THEN
		RAISE EXCEPTION '% is not a table', relation
			USING ERRCODE = 'wrong_object_type',
			HINT = 'Only tables and partitioned tables have changes in the WAL.';
	END IF;
	IF c.relispartition THEN
		RAISE EXCEPTION '% is a partition', relation
			USING ERRCODE = 'wrong_object_type',
			HINT = format('Changes of partitions are published as changes of their root: map %s.',
				pg_partition_root(relation));
	END IF;
	IF c.relpersistence = 't' THEN
		RAISE EXCEPTION '% is temporary: its changes are not in the WAL', relation
			USING ERRCODE = 'wrong_object_type', HINT = 'Use an ordinary table.';
	END IF;
	IF c.relpersistence <> 'p' THEN
		RAISE EXCEPTION '% is unlogged: its changes are not in the WAL', relation
			USING ERRCODE = 'wrong_object_type',
			HINT = format('ALTER TABLE %s SET LOGGED;', relation);
	END IF;
	IF c.oid < 16384 OR c.relnamespace = 'howdah_mqtt'::regnamespace THEN
		RAISE EXCEPTION '% is a system table', relation USING ERRCODE = 'wrong_object_type';
	END IF;
	FOR leaf IN SELECT relation WHERE c.relkind = 'r' UNION ALL
		SELECT t.relid FROM pg_partition_tree(relation) t WHERE c.relkind = 'p' AND t.isleaf
	LOOP
		remedy := howdah_mqtt.replica_identity_remedy(leaf);
		IF remedy IS NOT NULL THEN
			RAISE EXCEPTION '% has no replica identity: its updates and deletes could not be told apart',
				leaf USING ERRCODE = 'object_not_in_prerequisite_state', HINT = remedy;
		END IF;
	END LOOP;
END
$$;

CREATE FUNCTION howdah_mqtt.is_published(relation regclass) RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$
	SELECT EXISTS (SELECT FROM pg_publication_rel pr JOIN pg_publication p ON p.oid = pr.prpubid
		WHERE p.pubname = 'howdah' AND pr.prrelid = relation)
$$;

CREATE FUNCTION howdah_mqtt.do_publish(r howdah_mqtt.request) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	why text;
	unknown text;
BEGIN
	PERFORM howdah_mqtt.check_relation(r.relation, r.caller);
	IF r.qos IS NULL OR r.qos NOT BETWEEN 0 AND 1 THEN
		RAISE EXCEPTION 'qos is 0 or 1, not %', coalesce(r.qos::text, 'NULL')
			USING ERRCODE = 'invalid_parameter_value';
	END IF;
	IF octet_length(r.name) NOT BETWEEN 1 AND 64 THEN
		RAISE EXCEPTION 'the name of a mapping has 1 to 64 bytes'
			USING ERRCODE = 'invalid_parameter_value';
	END IF;
	why := coalesce(howdah_mqtt.template_error(coalesce(r.topic, ''), true),
		howdah_mqtt.template_error(r.payload, false));
	IF why IS NULL AND octet_length(r.payload) > 65536 THEN
		why := 'the payload template is longer than 65536 bytes';
	END IF;
	IF why IS NOT NULL THEN
		RAISE EXCEPTION 'the template cannot be used: %', why
			USING ERRCODE = 'invalid_parameter_value',
			HINT = 'Placeholders are {schema}, {table}, {op} and {column}, in a payload also {lsn}, {xid}, {ts}, {new}, {old} and {json}; a brace itself is written {{ or }}.';
	END IF;

	PERFORM howdah_mqtt.lock_relation(r.relation);
	-- Again under the lock: it may have changed hands or its identity while we waited.
	PERFORM howdah_mqtt.check_relation(r.relation, r.caller);
	FOR unknown IN SELECT DISTINCT unnest(howdah_mqtt.template_unknown(r.relation, r.topic, true)
		|| howdah_mqtt.template_unknown(r.relation, r.payload, false)) LOOP
		RAISE WARNING '% has no column %: nothing stands in its place in the messages', r.relation,
			quote_ident(unknown)
			USING HINT = 'Map the table again when the name was not meant, or add the column.';
	END LOOP;
	DELETE FROM howdah_mqtt.publish_mapping m
		WHERE NOT EXISTS (SELECT FROM pg_class c WHERE c.oid = m.relid);
	IF NOT howdah_mqtt.is_published(r.relation) THEN
		-- What is left over from an older table with this OID, or from before somebody took
		-- the table out of the publication by hand.
		DELETE FROM howdah_mqtt.publish_mapping m WHERE m.relid = r.relation;
		BEGIN
			EXECUTE format('ALTER PUBLICATION howdah ADD TABLE %s', r.relation);
		EXCEPTION WHEN insufficient_privilege THEN
			RAISE EXCEPTION 'cannot add % to the publication: %', r.relation, SQLERRM
				USING ERRCODE = 'insufficient_privilege',
				HINT = format('GRANT %I TO %I;', (SELECT pg_get_userbyid(relowner)
					FROM pg_class WHERE oid = r.relation), current_user);
		END;
	END IF;
	INSERT INTO howdah_mqtt.publish_mapping AS m (relid, relation, name, topic, qos, payload)
		VALUES (r.relation, r.relation, r.name, r.topic, r.qos, r.payload)
		ON CONFLICT (relid, name) DO UPDATE SET relation = excluded.relation,
			topic = excluded.topic, qos = excluded.qos, payload = excluded.payload;
END
$$;

CREATE FUNCTION howdah_mqtt.do_unpublish(r howdah_mqtt.request) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	owner oid := (SELECT relowner FROM pg_class WHERE oid = r.relation);
BEGIN
	-- A dropped table has no owner any more: then the owner of this schema decides.
	IF NOT pg_has_role(r.caller, coalesce(owner, current_user::regrole::oid), 'USAGE') THEN
		RAISE EXCEPTION 'must be owner of table %', r.relation
			USING ERRCODE = 'insufficient_privilege';
	END IF;
	IF owner IS NOT NULL THEN
		PERFORM howdah_mqtt.lock_relation(r.relation);
	END IF;
	DELETE FROM howdah_mqtt.publish_mapping m WHERE m.relid = r.relation AND m.name = r.name;
	IF NOT FOUND THEN
		RAISE EXCEPTION 'there is no mapping % of %', quote_ident(r.name), r.relation
			USING ERRCODE = 'undefined_object',
			HINT = 'SELECT * FROM howdah_mqtt.mapping;';
	END IF;
	IF howdah_mqtt.is_published(r.relation) AND NOT EXISTS (
		SELECT FROM howdah_mqtt.publish_mapping m WHERE m.relid = r.relation) THEN
		EXECUTE format('ALTER PUBLICATION howdah DROP TABLE %s', r.relation);
	END IF;
END
$$;

CREATE FUNCTION howdah_mqtt.on_request() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
	IF NEW.action = 'publish' THEN
		PERFORM howdah_mqtt.do_publish(NEW);
	ELSIF NEW.action = 'unpublish' THEN
		PERFORM howdah_mqtt.do_unpublish(NEW);
	ELSE
		RAISE EXCEPTION 'no such action' USING ERRCODE = 'invalid_parameter_value';
	END IF;
	RETURN NULL;
END
$$;
CREATE TRIGGER act BEFORE INSERT ON howdah_mqtt.request
	FOR EACH ROW EXECUTE FUNCTION howdah_mqtt.on_request();

-- Adds or replaces a mapping of a table that the caller owns; takes effect with the transaction's
-- commit, for every row that is committed after it.
CREATE FUNCTION howdah_mqtt.publish_table(relation regclass, topic text, qos int DEFAULT 1,
	payload text DEFAULT NULL, name text DEFAULT 'default') RETURNS void
LANGUAGE sql SET search_path = pg_catalog, pg_temp
AS $$
	INSERT INTO howdah_mqtt.request (action, relation, topic, qos, payload, name)
		VALUES ('publish', relation, topic, qos, payload, name)
$$;
CREATE FUNCTION howdah_mqtt.unpublish_table(relation regclass, name text DEFAULT 'default')
	RETURNS void
LANGUAGE sql SET search_path = pg_catalog, pg_temp
AS $$
	INSERT INTO howdah_mqtt.request (action, relation, name)
		VALUES ('unpublish', relation, name)
$$;
COMMENT ON FUNCTION howdah_mqtt.publish_table(regclass, text, int, text, text) IS
	'publish the changes of a table as MQTT messages';
COMMENT ON FUNCTION howdah_mqtt.unpublish_table(regclass, text) IS
	'end a mapping made by publish_table';

REVOKE ALL ON ALL FUNCTIONS IN SCHEMA howdah_mqtt FROM PUBLIC;
GRANT USAGE ON SCHEMA howdah_mqtt TO PUBLIC;
GRANT SELECT ON howdah_mqtt.mapping TO PUBLIC;
GRANT INSERT (action, relation, topic, qos, payload, name) ON howdah_mqtt.request TO PUBLIC;
GRANT EXECUTE ON FUNCTION howdah_mqtt.publish_table(regclass, text, int, text, text),
	howdah_mqtt.unpublish_table(regclass, text) TO PUBLIC;

-- The publication that every node's slot reads. It is never dropped while a slot uses it.
DO $$
BEGIN
	IF NOT EXISTS (SELECT FROM pg_publication WHERE pubname = 'howdah') THEN
		CREATE PUBLICATION howdah FOR TABLE howdah_mqtt.publish_mapping
			WITH (publish_via_partition_root = true);
	ELSE
		ALTER PUBLICATION howdah SET (publish_via_partition_root = true);
		IF NOT howdah_mqtt.is_published('howdah_mqtt.publish_mapping') THEN
			ALTER PUBLICATION howdah ADD TABLE howdah_mqtt.publish_mapping;
		END IF;
	END IF;
END
$$;
