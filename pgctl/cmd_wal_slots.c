/* SPDX-License-Identifier: PostgreSQL */
/*
 * pgctl wal slots: the server's replication slots, with what they hold back and how far they are
 * from being invalidated; making, changing and dropping one.
 *
 * Reading and dropping is SQL; making and changing goes by the replication protocol, which can do
 * more (ALTER_REPLICATION_SLOT has no function) and whose options libpgwalstream knows by version.
 */
#include "config.h"

#include <stdlib.h>
#include <string.h>

#include "common/base/mem.h"
#include "pgctl/pgctl.h"
#include "pgctl/place.h"
#include "pgctl/walconn.h"

/* What a version does not have is null: every column beyond 14's comes through to_jsonb. */
static const char list_sql[] =
	"SELECT s.slot_name AS name, s.slot_type AS type, s.plugin, s.database, s.active, "
	"s.active_pid,"
	" s.temporary, s.two_phase, (j ->> 'failover')::boolean AS failover,"
	" (j ->> 'synced')::boolean AS synced, s.wal_status,"
	" pg_wal_lsn_diff(head, s.restart_lsn)::bigint AS retained_bytes, s.safe_wal_size,"
	" coalesce(j ->> 'invalidation_reason',"
	" CASE WHEN (j ->> 'conflicting')::boolean THEN 'conflicting'"
	" WHEN s.wal_status = 'lost' THEN 'wal_removed' END) AS invalidation,"
	" s.restart_lsn::text, s.confirmed_flush_lsn::text,"
	" pg_wal_lsn_diff(head, s.confirmed_flush_lsn)::bigint AS lag_bytes,"
	" j ->> 'inactive_since' AS inactive_since"
	" FROM pg_replication_slots s, to_jsonb(s) j, (SELECT CASE WHEN pg_is_in_recovery()"
	" THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END AS head) h"
	" ORDER BY s.slot_name";

int cmd_wal_slots(struct pgctl *p, json_t *args)
{
	struct db db;
	(void)args; /* none */
	int status = db_open(p, &db);
	if (status != PGCTL_OK)
		return status;
	status = db_print(&db, list_sql, 0, NULL);
	db_close(&db);
	return status;
}

/* ---- Making and changing --------------------------------------------------------------------- */

static bool flag(json_t *args, const char *name)
{
	return json_is_true(json_object_get(args, name));
}

/* "on" 1, "off" 0, not given -1. */
static int tristate(json_t *args, const char *name)
{
	const char *text = json_string_value(json_object_get(args, name));
	return text == NULL ? -1 : strcmp(text, "on") == 0;
}

static int name_of(struct pgctl *p, json_t *args, const char **ret_name)
{
	const char *name = json_string_value(json_object_get(args, "name"));
	if (*name == '\0' || strlen(name) > 63 ||
		strspn(name, "abcdefghijklmnopqrstuvwxyz0123456789_") != strlen(name))
		return pgctl_fail(p, PGCTL_USAGE, "names are [a-z0-9_], up to 63 of them",
			"\"%s\" cannot be the name of a slot", name);
	*ret_name = name;
	return PGCTL_OK;
}

/* A replication connection for one command; db stays open for as long. */
static int open_both(struct pgctl *p, struct db *db, struct walconn *w)
{
	struct pgws_stream_options options = PGWS_STREAM_OPTIONS_INIT;
	*w = (struct walconn){.p = p};
	int status = db_open(p, db);
	if (status != PGCTL_OK)
		return status;
	status = walconn_open(w, db, options);
	if (status != PGCTL_OK) {
		walconn_close(w);
		db_close(db);
	}
	return status;
}

static void close_both(struct db *db, struct walconn *w)
{
	walconn_close(w);
	db_close(db);
}

static void print_done(struct pgctl *p, const char *verb, const char *name, uint64_t lsn)
{
	char text[18];
	json_t *row = json_pack("{s:s}", verb, name);
	if (row != NULL && lsn != 0)
		json_object_set_new(row, "consistent_point", json_string(pgws_lsn_str(lsn, text)));
	if (row != NULL)
		output_row(&p->out, row);
	json_decref(row);
}

int cmd_wal_slots_create(struct pgctl *p, json_t *args)
{
	struct pgws_slot_options options = PGWS_SLOT_OPTIONS_INIT;
	struct db db;
	struct walconn w;
	int status = name_of(p, args, &options.slot);
	if (status != PGCTL_OK)
		return status;
	options.physical = flag(args, "physical");
	options.two_phase = flag(args, "two-phase");
	options.failover = flag(args, "failover");
	options.reserve_wal = flag(args, "reserve-wal");
	if (options.physical && (options.two_phase || options.failover))
		return pgctl_fail(p, PGCTL_USAGE, "leave --physical out",
			"--two-phase and --failover are for logical slots");
	if (options.reserve_wal && !options.physical)
		return pgctl_fail(p, PGCTL_USAGE, "add --physical",
			"--reserve-wal is for physical slots; a logical one always reserves its "
			"WAL");
	status = open_both(p, &db, &w);
	if (status != PGCTL_OK)
		return status;
	status = walconn_finish(&w, pgws_stream_create_slot(w.s, &options), "make the slot",
		"waiting for the transactions that are open now to end: a logical slot begins "
		"after them");
	if (status == PGCTL_OK)
		print_done(p, "created", options.slot,
			options.physical ? 0 : pgws_stream_consistent_point(w.s));
	close_both(&db, &w);
	return status;
}

int cmd_wal_slots_alter(struct pgctl *p, json_t *args)
{
	const char *name;
	struct db db;
	struct walconn w;
	int failover = tristate(args, "failover"), two_phase = tristate(args, "two-phase");
	int status = name_of(p, args, &name);
	if (status != PGCTL_OK)
		return status;
	if (failover < 0 && two_phase < 0)
		return pgctl_fail(p, PGCTL_USAGE,
			"give --failover on|off, --two-phase on|off or both",
			"nothing is to be changed");
	status = open_both(p, &db, &w);
	if (status != PGCTL_OK)
		return status;
	status = walconn_finish(&w, pgws_stream_alter_slot(w.s, name, failover, two_phase),
		"change the slot", NULL);
	if (status == PGCTL_OK)
		print_done(p, "altered", name, 0);
	close_both(&db, &w);
	return status;
}

/* ---- Dropping -------------------------------------------------------------------------------- */

/* What there is of the slot, and whether a node owns it: 1 row, or none without the slot. */
static const char look_sql[] =
	"SELECT s.slot_type, coalesce(s.database, ''), coalesce(s.active_pid::text, ''),"
	" coalesce(pg_size_pretty(pg_wal_lsn_diff(CASE WHEN pg_is_in_recovery()"
	" THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END,"
	" coalesce(s.confirmed_flush_lsn, s.restart_lsn))), 'nothing'),"
	" to_regclass('howdah.node') IS NOT NULL"
	" FROM pg_replication_slots s WHERE s.slot_name = $1";

static int refuse_if_owned(struct db *db, const char *name)
{
	const char *const values[] = {name};
	int status = PGCTL_OK;
	PGresult *res =
		db_query(db, "SELECT name FROM howdah.node WHERE slot = $1", 1, values, &status);
	if (res == NULL)
		return status;
	if (PQntuples(res) > 0) {
		const char *node = PQgetvalue(res, 0, 0);
		char *hint = xasprintf("to give that node up for good: pgctl node remove %s", node);
		status = pgctl_fail(db->p, PGCTL_FAILED, hint,
			"the slot %s belongs to the node %s, which would miss every change since",
			name, node);
		free(hint);
	}
	PQclear(res);
	return status;
}

static int drop_slot(struct db *db, const char *name, bool sure)
{
	const char *const values[] = {name};
	int status = PGCTL_OK;
	PGresult *res = db_query(db, look_sql, 1, values, &status);
	if (res == NULL)
		return status;
	const char *pid = PQntuples(res) > 0 ? PQgetvalue(res, 0, 2) : "";
	if (PQntuples(res) == 0)
		status = pgctl_fail(db->p, PGCTL_FAILED, "pgctl wal slots shows the slots",
			"there is no slot %s", name);
	else if (strcmp(PQgetvalue(res, 0, 4), "t") == 0)
		status = refuse_if_owned(db, name);
	if (status == PGCTL_OK && !sure)
		status = pgctl_fail(db->p, PGCTL_FAILED,
			"if that is wanted, say it again with --yes",
			"dropping the %s slot %s%s%s lets go of %s that its reader has not "
			"confirmed%s%s%s; a reader that comes back has to begin anew",
			PQgetvalue(res, 0, 0), name,
			*PQgetvalue(res, 0, 1) != '\0' ? " of database " : "",
			PQgetvalue(res, 0, 1), PQgetvalue(res, 0, 3),
			*pid != '\0' ? ", and process " : "", pid,
			*pid != '\0' ? " uses it now" : "");
	PQclear(res);
	if (status != PGCTL_OK)
		return status;
	res = db_query(db, "SELECT pg_drop_replication_slot($1)", 1, values, &status);
	PQclear(res);
	if (status == PGCTL_OK)
		print_done(db->p, "dropped", name, 0);
	return status;
}

int cmd_wal_slots_drop(struct pgctl *p, json_t *args)
{
	const char *name;
	struct db db;
	int status = name_of(p, args, &name);
	if (status == PGCTL_OK)
		status = db_open(p, &db);
	if (status != PGCTL_OK)
		return status;
	status = drop_slot(&db, name, p->json || flag(args, "yes"));
	db_close(&db);
	return status;
}
