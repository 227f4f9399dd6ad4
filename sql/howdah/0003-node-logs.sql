-- SPDX-License-Identifier: PostgreSQL
-- What a node's own publication carries: the logs that other nodes write, without the node's own rows
-- where the server can leave them out (PostgreSQL 15 on; before, the reader passes over them).

-- Adds to howdah_<node> what is missing of the logs of those parts that are installed.
CREATE FUNCTION howdah.node_publish_logs(node text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	log text;
	only_others text := CASE WHEN current_setting('server_version_num')::int >= 150000
		THEN format(' WHERE (node IS DISTINCT FROM %L)', node) ELSE '' END;
BEGIN
	FOREACH log IN ARRAY ARRAY['howdah_watch.log'] LOOP
		CONTINUE WHEN to_regclass(log) IS NULL OR EXISTS (
			SELECT FROM pg_publication_rel pr JOIN pg_publication p ON p.oid = pr.prpubid
			WHERE p.pubname = 'howdah_' || node AND pr.prrelid = to_regclass(log));
		EXECUTE format('ALTER PUBLICATION %I ADD TABLE %s%s', 'howdah_' || node, log, only_others);
	END LOOP;
END
$$;
REVOKE ALL ON FUNCTION howdah.node_publish_logs(text) FROM PUBLIC;
