/* SPDX-License-Identifier: PostgreSQL */
/*
 * pgctl node: the nodes that use this database, and giving one up for good.
 *
 * Removing goes slot, publication, rows, in this order: a publication that a slot still reads is
 * never dropped. Each step is harmless when it was done before, so that a removal that was broken
 * off is finished by running it again.
 */
#include "config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/base/mem.h"
#include "pgctl/pgctl.h"
#include "pgctl/place.h"

#define DROP_TRIES 100
#define DROP_PAUSE_MS 100

int cmd_node_list(struct pgctl *p, json_t *args)
{
	struct db db;
	(void)args; /* none */
	int status = db_open(p, &db);
	if (status != PGCTL_OK)
		return status;
	status = db_print(&db,
		"SELECT n.name, n.slot, coalesce(s.active, false) AS active,"
		" coalesce(s.wal_status, 'no slot') AS wal_status, s.confirmed_flush_lsn::text,"
		" CASE WHEN pg_is_in_recovery() THEN NULL ELSE"
		" pg_wal_lsn_diff(pg_current_wal_lsn(), s.restart_lsn)::bigint END AS "
		"retained_bytes,"
		" n.registered_at::text, n.seen_at::text, n.instance,"
		" g.from_lsn::text AS gap_from, g.to_lsn::text AS gap_to, g.at::text AS gap_at,"
		" g.reason AS gap_reason"
		" FROM howdah.node n LEFT JOIN pg_replication_slots s ON s.slot_name = n.slot"
		" AND s.database = current_database()"
		" LEFT JOIN LATERAL (SELECT * FROM howdah.gap WHERE node = n.name"
		" ORDER BY id DESC LIMIT 1) g ON true ORDER BY n.name",
		0, NULL);
	db_close(&db);
	return status;
}

/* What there is of the node: 1 row. */
static const char look_sql[] =
	"SELECT s.slot_name IS NOT NULL, coalesce(s.active, false),"
	" coalesce(pg_size_pretty(pg_wal_lsn_diff(pg_current_wal_lsn(), s.confirmed_flush_lsn)), "
	"''),"
	" EXISTS (SELECT FROM pg_publication WHERE pubname = 'howdah_' || $1),"
	" EXISTS (SELECT FROM howdah.node WHERE name = $1)"
	" FROM (SELECT) one LEFT JOIN pg_replication_slots s ON s.slot_name = 'howdah_' || $1"
	" AND s.database = current_database()";

static bool is_true(const PGresult *res, int column)
{
	return strcmp(PQgetvalue(res, 0, column), "t") == 0;
}

static void pause_ms(long ms)
{
	const struct timespec t = {.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000};
	nanosleep(&t, NULL);
}

/* A walstreamd that is still there takes the slot again and again: end it each time, for a while.
 */
static int drop_slot(struct db *db, const char *name)
{
	const char *const values[] = {name};
	for (int i = 0; i < DROP_TRIES; i++) {
		int status = PGCTL_OK;
		PGresult *res = db_query(db,
			"SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots"
			" WHERE slot_name = 'howdah_' || $1 AND active_pid IS NOT NULL",
			1, values, &status);
		if (res == NULL)
			return status;
		PQclear(res);
		res = PQexecParams(db->pg,
			"SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots"
			" WHERE slot_name = 'howdah_' || $1 AND database = current_database()",
			1, NULL, values, NULL, NULL, 0);
		const char *state = PQresultErrorField(res, PG_DIAG_SQLSTATE);
		bool done = PQresultStatus(res) == PGRES_TUPLES_OK;
		bool active = state != NULL && strcmp(state, "55006") == 0;
		if (!done && !active)
			status = db_failed(db, res);
		PQclear(res);
		if (done || status != PGCTL_OK)
			return status;
		pause_ms(DROP_PAUSE_MS);
	}
	return pgctl_fail(db->p, PGCTL_FAILED, "stop the suite on that node, then run this again",
		"the slot howdah_%s is still in use", name);
}

static int exec_each(struct db *db, const char *const *statements)
{
	int status = PGCTL_OK;
	for (; *statements != NULL && status == PGCTL_OK; statements++)
		PQclear(db_query(db, *statements, 0, NULL, &status));
	if (status != PGCTL_OK)
		PQclear(PQexec(db->pg, "ROLLBACK")); /* the connection ends anyway */
	return status;
}

/* name was checked: it needs no quoting, and gets it all the same. */
static int drop_rest(struct db *db, const char *name)
{
	char *literal = PQescapeLiteral(db->pg, name, strlen(name));
	char *drop = xasprintf("DROP PUBLICATION IF EXISTS \"howdah_%s\"", name);
	char *state =
		xasprintf("DO $$BEGIN IF to_regclass('howdah_mqtt.node_state') IS NOT NULL THEN"
			  " DELETE FROM howdah_mqtt.node_state WHERE node = %s; END IF; END$$",
			literal);
	char *node = xasprintf("DELETE FROM howdah.node WHERE name = %s", literal);
	const char *const statements[] = {"BEGIN", drop, state, node, "COMMIT", NULL};
	int status = exec_each(db, statements);
	free(drop);
	free(state);
	free(node);
	PQfreemem(literal);
	return status;
}

static int remove_node(struct db *db, const char *name, bool sure)
{
	const char *const values[] = {name};
	int status = PGCTL_OK;
	PGresult *res = db_query(db, look_sql, 1, values, &status);
	if (res == NULL)
		return status;
	bool slot = is_true(res, 0), publication = is_true(res, 3), row = is_true(res, 4);
	char *behind = xstrdup(PQgetvalue(res, 0, 2));
	bool active = is_true(res, 1);
	PQclear(res);
	if (!slot && !publication && !row)
		status = pgctl_fail(db->p, PGCTL_FAILED, "pgctl node list shows the nodes",
			"there is no node %s in this database", name);
	else if (!sure)
		status = pgctl_fail(db->p, PGCTL_FAILED,
			"if that is wanted, say it again with --yes",
			"removing node %s drops its slot howdah_%s%s%s%s, its publication and its "
			"stored "
			"state: every change that this node has not handled yet is lost for it%s",
			name, name, slot ? " (behind by " : "", behind, slot ? ")" : "",
			active ? ", and it is running now" : "");
	free(behind);
	if (status == PGCTL_OK && slot)
		status = drop_slot(db, name);
	if (status == PGCTL_OK)
		status = drop_rest(db, name);
	if (status != PGCTL_OK)
		return status;
	json_t *out = json_pack("{s:s,s:b,s:b,s:b}", "removed", name, "slot", slot, "publication",
		publication, "registration", row);
	if (out != NULL)
		output_row(&db->p->out, out);
	json_decref(out);
	return PGCTL_OK;
}

int cmd_node_remove(struct pgctl *p, json_t *args)
{
	const char *name = json_string_value(json_object_get(args, "name"));
	bool sure = p->json || json_is_true(json_object_get(args, "yes"));
	struct db db;
	if (*name == '\0' || strlen(name) > 32 ||
		strspn(name, "abcdefghijklmnopqrstuvwxyz0123456789_") != strlen(name))
		return pgctl_fail(p, PGCTL_USAGE, "names are [a-z0-9_], up to 32 of them",
			"\"%s\" cannot be the name of a node", name);
	int status = db_open(p, &db);
	if (status != PGCTL_OK)
		return status;
	status = remove_node(&db, name, sure);
	db_close(&db);
	return status;
}
