/* SPDX-License-Identifier: PostgreSQL */
/*
 * pgctl doctor: what would keep the suite from working with this database, each finding with the
 * statement that mends it. A check is one SELECT of (result, finding, remedy); adding one is adding
 * a row. It only reads.
 *
 * Exit status: 0 if nothing is an error (warnings are), 1 else.
 */
#include "config.h"

#include <stdlib.h>
#include <string.h>

#include "common/base/err.h"
#include "common/base/mem.h"
#include "common/pg/schema.h"
#include "pgctl/pgctl.h"
#include "pgctl/place.h"

struct check {
	const char *name;
	bool with_schema; /* reads the suite's own tables */
	const char *fine; /* finding when there is no row */
	const char *sql;  /* $1: the node's name */
};

#define RESTART "; -- then restart the server"
#define RELOAD "; SELECT pg_reload_conf();"

static const struct check checks[] = {
	{"server_version", false, NULL,
		"SELECT CASE WHEN v < 140000 THEN 'error' WHEN v >= 190000 THEN 'warning' ELSE "
		"'ok' END,"
		" 'PostgreSQL ' || current_setting('server_version'),"
		" CASE WHEN v NOT BETWEEN 140000 AND 189999 THEN"
		" 'use a server of version 14, 15, 16, 17 or 18' END"
		" FROM (SELECT current_setting('server_version_num')::int AS v, $1::text) x"},
	{"primary", false, NULL,
		"SELECT CASE WHEN r THEN 'error' ELSE 'ok' END,"
		" CASE WHEN r THEN 'this server is a standby' ELSE 'this server takes writes' END,"
		" CASE WHEN r THEN 'add target_session_attrs=read-write to postgres.conninfo' END"
		" FROM (SELECT pg_is_in_recovery() AS r, $1::text) x"},
	{"wal_level", false, NULL,
		"SELECT CASE s WHEN 'logical' THEN 'ok' ELSE 'error' END, 'wal_level = ' || s,"
		" CASE WHEN s <> 'logical' THEN 'ALTER SYSTEM SET wal_level = ''logical''" RESTART
		"' END"
		" FROM (SELECT current_setting('wal_level') AS s, $1::text) x"},
	{"encoding", false, NULL,
		"SELECT CASE e WHEN 'SQL_ASCII' THEN 'warning' ELSE 'ok' END,"
		" CASE e WHEN 'SQL_ASCII' THEN"
		" 'the database is in SQL_ASCII: the first published value that is not UTF-8 stops"
		" the stream' ELSE 'the database is in ' || e END,"
		" CASE e WHEN 'SQL_ASCII' THEN 'move it to one in UTF8: CREATE DATABASE ..."
		" ENCODING ''UTF8'' TEMPLATE template0, pg_dump with the values mended, "
		"pg_restore' END"
		" FROM (SELECT getdatabaseencoding()::text AS e, $1::text) x"},
	{"fsync", false, NULL,
		"SELECT CASE s WHEN 'on' THEN 'ok' ELSE 'warning' END, 'fsync = ' || s,"
		" CASE WHEN s <> 'on' THEN 'ALTER SYSTEM SET fsync = on" RELOAD "' END"
		" FROM (SELECT current_setting('fsync') AS s, $1::text) x"},
	{"replication_slots", false, NULL,
		"SELECT CASE WHEN ours OR used < most THEN 'ok' ELSE 'error' END,"
		" format('%s of %s replication slots are used', used, most),"
		" CASE WHEN NOT ours AND used >= most THEN"
		" format('ALTER SYSTEM SET max_replication_slots = %s" RESTART "', most + 4) END"
		" FROM (SELECT count(*) AS used, coalesce(bool_or(slot_name = 'howdah_' || $1), "
		"false) AS ours,"
		" current_setting('max_replication_slots')::int AS most FROM pg_replication_slots) "
		"x"},
	{"wal_senders", false, NULL,
		"SELECT CASE WHEN ours OR used < most THEN 'ok' ELSE 'error' END,"
		" format('%s of %s WAL senders are used', used, most),"
		" CASE WHEN NOT ours AND used >= most THEN"
		" format('ALTER SYSTEM SET max_wal_senders = %s" RESTART "', most + 4) END"
		" FROM (SELECT (SELECT count(*) FROM pg_stat_replication) AS used,"
		" EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = 'howdah_' || $1 AND "
		"active) AS ours,"
		" current_setting('max_wal_senders')::int AS most) x"},
	{"role", false, NULL,
		"SELECT CASE WHEN rolsuper OR rolreplication THEN 'ok' ELSE 'error' END,"
		" format('role %I %s', rolname, CASE WHEN rolsuper OR rolreplication THEN 'may "
		"replicate'"
		" ELSE 'may not replicate' END),"
		" CASE WHEN NOT rolsuper AND NOT rolreplication THEN"
		" format('ALTER ROLE %I REPLICATION;', rolname) END"
		" FROM pg_roles, (SELECT $1::text) x WHERE rolname = current_user"},
	{"database", false, NULL,
		"SELECT CASE WHEN may THEN 'ok' ELSE 'error' END,"
		" format('role %I may %screate schemas and publications in database %I', "
		"current_user,"
		" CASE WHEN may THEN '' ELSE 'not ' END, current_database()),"
		" CASE WHEN NOT may THEN format('GRANT CREATE ON DATABASE %I TO %I;', "
		"current_database(),"
		" current_user) END"
		" FROM (SELECT has_database_privilege(current_database(), 'CREATE') AS may, "
		"$1::text) x"},
	{"synchronous_standby_names", false, "no commit waits for the suite",
		"SELECT 'error', format('synchronous_standby_names has %s: commits wait for "
		"walstreamd,"
		" which waits for them', n),"
		" 'ALTER SYSTEM SET synchronous_standby_names = ''the standbys by name''" RELOAD "'"
		" FROM (SELECT trim(both ' \"' from unnest(string_to_array(regexp_replace("
		"current_setting('synchronous_standby_names'), "
		"'^\\s*((FIRST|ANY)\\s+)?\\d+\\s*\\((.*)\\)\\s*$',"
		" '\\3', 'i'), ','))) AS n, $1::text) x"
		" WHERE n = '*' OR lower(n) LIKE 'howdah%' OR lower(n) IN (SELECT "
		"lower(application_name)"
		" FROM pg_stat_replication r JOIN pg_replication_slots s ON s.active_pid = r.pid"
		" WHERE s.slot_name = 'howdah_' || $1) LIMIT 1"},
	{"max_slot_wal_keep_size", false, NULL,
		"SELECT CASE WHEN mb BETWEEN 0 AND 1023 THEN 'warning' ELSE 'ok' END,"
		" CASE WHEN mb < 0 THEN 'unlimited: nothing is lost, and a node that stays away "
		"fills the disk'"
		" ELSE format('a slot that is more than %s MB behind is lost', mb) END,"
		" CASE WHEN mb BETWEEN 0 AND 1023 THEN"
		" 'ALTER SYSTEM SET max_slot_wal_keep_size = ''10GB''" RELOAD "' END"
		" FROM (SELECT setting::bigint AS mb, $1::text FROM pg_settings"
		" WHERE name = 'max_slot_wal_keep_size') x"},
	{"slot", true, NULL,
		"SELECT CASE WHEN gone OR lost OR foreign_slot THEN 'error'"
		" WHEN slot_name IS NULL OR wal_status IN ('extended', 'unreserved') THEN "
		"'warning' ELSE 'ok' END,"
		" CASE WHEN gone THEN format('slot howdah_%s is gone: changes since were not "
		"seen', $1)"
		" WHEN slot_name IS NULL THEN format('slot howdah_%s is not there yet', $1)"
		" WHEN foreign_slot THEN format('slot howdah_%s belongs to something else', $1)"
		" WHEN lost THEN format('slot %s is lost: it was too far behind', slot_name)"
		" ELSE format('slot %s keeps %s of WAL (%s), %s', slot_name, pg_size_pretty(kept), "
		"wal_status,"
		" CASE WHEN active THEN 'in use' ELSE 'not in use' END) END,"
		" CASE WHEN foreign_slot THEN 'give this node another name, see node in the "
		"configuration'"
		" WHEN gone OR lost THEN format('pgctl node remove %s --yes # then: pgctl worker "
		"restart"
		" walstreamd', $1)"
		" WHEN slot_name IS NULL THEN 'start the suite: walstreamd makes it'"
		" WHEN wal_status IN ('extended', 'unreserved') THEN"
		" 'pgctl wal lag # shows who holds it; raise max_slot_wal_keep_size' END"
		" FROM (SELECT s.*, s.slot_name IS NULL AND n.slot_lsn IS NOT NULL AS gone,"
		" coalesce(s.wal_status = 'lost', false) AS lost,"
		" s.slot_name IS NOT NULL AND (s.plugin IS DISTINCT FROM 'pgoutput'"
		" OR s.database IS DISTINCT FROM current_database()) AS foreign_slot,"
		" CASE WHEN NOT pg_is_in_recovery() THEN"
		" pg_wal_lsn_diff(pg_current_wal_lsn(), s.restart_lsn) END AS kept"
		" FROM (SELECT $1::text AS node) one LEFT JOIN howdah.node n ON n.name = one.node"
		" LEFT JOIN pg_replication_slots s ON s.slot_name = 'howdah_' || one.node) x"},
	{"gap", true, "no change was lost",
		"SELECT 'warning', format('changes from %s to %s were lost: %s', g.from_lsn,"
		" coalesce(g.to_lsn::text, 'where the new slot will begin'), g.reason),"
		" 'what was changed then reached no subscriber: read those tables anew'"
		" FROM howdah.gap g WHERE g.node = $1 AND g.at > now() - interval '7 days'"
		" ORDER BY g.id DESC LIMIT 3"},
	{"failover", true, "no standby, or the slot would survive a failover",
		"SELECT 'warning', CASE"
		" WHEN v < 170000 THEN 'a failover loses the slot: this server has no failover "
		"slots'"
		" WHEN NOT kept THEN format('a failover loses slot %s', slot)"
		" ELSE 'after a failover subscribers may have seen what is lost' END,"
		" CASE WHEN v < 170000 THEN 'walstreamd.lost_slot = \"recreate\" reports the gap;"
		" PostgreSQL 17 avoids it'"
		" WHEN NOT kept THEN 'walstreamd.failover_slot = true # and on the standby"
		" sync_replication_slots = on'"
		" ELSE format('ALTER SYSTEM SET synchronized_standby_slots = %L" RELOAD
		"', standby) END"
		" FROM (SELECT current_setting('server_version_num')::int AS v, s.slot_name AS "
		"slot,"
		" coalesce(to_jsonb(s) ->> 'failover' = 'true', false) AS kept,"
		" p.slot_name AS standby FROM pg_replication_slots s"
		" JOIN pg_replication_slots p ON p.slot_type = 'physical' AND p.active AND NOT "
		"p.temporary"
		" WHERE s.slot_name = 'howdah_' || $1) x"
		" WHERE v < 170000 OR NOT kept"
		" OR current_setting('synchronized_standby_slots', true) = '' LIMIT 1"},
	{"other_slots", true, "no slot of another node lies idle",
		"SELECT 'warning', format('slot %s is not in use and keeps %s of WAL', s.slot_name,"
		" coalesce(pg_size_pretty(CASE WHEN NOT pg_is_in_recovery() THEN"
		" pg_wal_lsn_diff(pg_current_wal_lsn(), s.restart_lsn) END), 'some')),"
		" format('start that node, or give it up: pgctl node remove %s --yes', n.name)"
		" FROM howdah.node n JOIN pg_replication_slots s ON s.slot_name = n.slot"
		" AND s.database = current_database() WHERE NOT s.active AND n.name <> $1"},
	{"publication", true, "the publication has the table of mappings",
		"SELECT 'error', CASE WHEN there"
		" THEN 'publication howdah lacks howdah_mqtt.publish_mapping'"
		" ELSE 'publication howdah is not there' END"
		" || ': changes of mapped tables are in no stream',"
		" CASE WHEN there"
		" THEN 'ALTER PUBLICATION howdah ADD TABLE howdah_mqtt.publish_mapping;'"
		" ELSE 'CREATE PUBLICATION howdah FOR TABLE howdah_mqtt.publish_mapping"
		" WITH (publish_via_partition_root = true);' END"
		" FROM (SELECT EXISTS (SELECT FROM pg_publication WHERE pubname = 'howdah') AS "
		"there,"
		" $1::text) x WHERE NOT EXISTS (SELECT FROM pg_publication_tables"
		" WHERE pubname = 'howdah' AND schemaname = 'howdah_mqtt'"
		" AND tablename = 'publish_mapping')"},
	{"replica_identity", true, "every mapped table has a replica identity",
		"SELECT 'error', format('%s has no replica identity: its updates and deletes fail',"
		" leaf::regclass), howdah_mqtt.replica_identity_remedy(leaf::regclass)"
		" FROM (SELECT DISTINCT coalesce(t.relid, c.oid) AS leaf FROM "
		"howdah_mqtt.publish_mapping m"
		" JOIN pg_class c ON c.oid = m.relid"
		" LEFT JOIN LATERAL pg_partition_tree(c.oid) t ON c.relkind = 'p' AND t.isleaf) x,"
		" (SELECT $1::text) y"
		" WHERE howdah_mqtt.replica_identity_remedy(leaf::regclass) IS NOT NULL"},
	{"mappings", true, "every mapping's table is published",
		"SELECT CASE WHEN \"table\" IS NULL THEN 'warning' ELSE 'error' END,"
		" CASE WHEN \"table\" IS NULL THEN format('mapping %s is of a table that was "
		"dropped', name)"
		" ELSE format('%I.%I is mapped, but not in the publication', schema, \"table\") "
		"END,"
		" CASE WHEN \"table\" IS NULL THEN"
		" format('SELECT howdah_mqtt.unpublish_table(%s::regclass, %L);', relid, name)"
		" ELSE format('SELECT howdah_mqtt.publish_table(%L, %L, %s, %L, %L);',"
		" format('%I.%I', schema, \"table\"), topic, qos, payload, name) END"
		" FROM howdah_mqtt.mapping, (SELECT $1::text) x WHERE NOT published"},
	{"templates", true, "every mapping names columns that are there",
		"SELECT 'warning', format('mapping %s of %I.%I names {%s}, which is no column of "
		"it: nothing stands in its place', name, schema, \"table\", word),"
		" format('SELECT howdah_mqtt.publish_table(%L, %L, %s, %L, %L); -- with that name "
		"mended',"
		" format('%I.%I', schema, \"table\"), topic, qos, payload, name)"
		" FROM (SELECT $1::text) x, howdah_mqtt.mapping m CROSS JOIN LATERAL (SELECT "
		"DISTINCT unnest("
		"howdah_mqtt.template_unknown(m.relid::regclass, m.topic, true) ||"
		" howdah_mqtt.template_unknown(m.relid::regclass, m.payload, false)) AS word) u"
		" WHERE \"table\" IS NOT NULL"},
};

static void say(struct db *db, bool *bad, const char *check, const char *result,
	const char *finding, const char *remedy)
{
	json_t *row = json_pack("{s:s,s:s,s:s,s:s?}", "check", check, "result", result, "finding",
		finding, "remedy", remedy);
	if (strcmp(result, "error") == 0)
		*bad = true;
	if (row != NULL)
		output_row(&db->p->out, row);
	json_decref(row);
}

static const char *field(const PGresult *res, int row, int column)
{
	return PQgetisnull(res, row, column) ? NULL : PQgetvalue(res, row, column);
}

static void run_check(struct db *db, const struct check *c, bool *bad)
{
	const char *const values[] = {db->place.node};
	PGresult *res = PQexecParams(db->pg, c->sql, 1, NULL, values, NULL, NULL, 0);
	if (PQresultStatus(res) != PGRES_TUPLES_OK) {
		const char *why = PQresultErrorField(res, PG_DIAG_MESSAGE_PRIMARY);
		char *text = xasprintf(
			"cannot be looked at: %s", why != NULL ? why : "the connection is lost");
		say(db, bad, c->name, "error", text, "connect as the owner of the schema howdah");
		free(text);
	} else if (PQntuples(res) == 0 && c->fine != NULL) {
		say(db, bad, c->name, "ok", c->fine, NULL);
	}
	for (int i = 0; i < PQntuples(res); i++)
		say(db, bad, c->name, PQgetvalue(res, i, 0), PQgetvalue(res, i, 1),
			field(res, i, 2));
	PQclear(res);
}

/* true: there is something that the other checks can read. */
static bool check_schema(struct db *db, bool *bad)
{
	struct schema_status parts[SCHEMA_PARTS_MAX];
	size_t n = 0, old = 0, there = 0;
	struct buf why;
	buf_init(&why, 0);
	char *dir = xasprintf("%s/sql", db->place.datadir);
	int err = schema_status(db->pg, dir, parts, &n, &why);
	for (size_t i = 0; err == 0 && i < n; i++) {
		there += parts[i].installed > 0;
		old += parts[i].installed < parts[i].available;
	}
	if (err == -ERR_VERSION)
		say(db, bad, "schema", "error", buf_cstr(&why),
			"install a newer version of howdah");
	else if (err != 0)
		say(db, bad, "schema", "error", why.len_bytes > 0 ? buf_cstr(&why) : err_str(err),
			"pgctl db status");
	else if (there == 0)
		say(db, bad, "schema", "error", "the schema is not installed", "pgctl db init");
	else if (old > 0)
		say(db, bad, "schema", "error", "the schema is older than this version",
			"pgctl db upgrade");
	else
		say(db, bad, "schema", "ok", "the schema is installed and up to date", NULL);
	free(dir);
	buf_free(&why);
	return err == 0 && there > 0;
}

int cmd_doctor(struct pgctl *p, json_t *args)
{
	struct db db;
	bool bad = false;
	(void)args; /* none */
	int status = db_open(p, &db);
	if (status != PGCTL_OK)
		return status;
	bool schema = check_schema(&db, &bad);
	for (size_t i = 0; i < ARRAY_LEN(checks); i++) {
		if (schema || !checks[i].with_schema)
			run_check(&db, &checks[i], &bad);
	}
	db_close(&db);
	return bad ? PGCTL_FAILED : PGCTL_OK;
}
