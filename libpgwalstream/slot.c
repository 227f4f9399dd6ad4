/* SPDX-License-Identifier: PostgreSQL */
/*
 * The stream's commands on slots: create, alter, drop, read.
 *
 * Context: one thread per stream; see stream_internal.h and command.c.
 *
 * Syntax: PostgreSQL 14 takes bare keywords, 15 and later a list of options in parentheses.
 */
#include "config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "libpgwalstream/stream_internal.h"

static const char *slot_or_default(const struct pgws_stream *s, const char *slot)
{
	return slot != NULL ? slot : s->options.slot;
}

/* READY, and a slot is named. The replication grammar cannot say a name with a double quote. */
static int check_slot(struct pgws_stream *s, const char *slot)
{
	if (s->phase != PGWS_PHASE_READY)
		return PGWS_ESTATE;
	if (*slot == 0)
		return pgwsi_refuse(s, PGWS_EINVAL, "no slot is given");
	if (strchr(slot, '"') != NULL)
		return pgwsi_refuse(s, PGWS_EINVAL, "a slot's name has no double quote");
	return 0;
}

/* ---- Create ---------------------------------------------------------------------------------- */

static const char *bad_create(const struct pgws_slot_options *o)
{
	if (o->plugin != NULL && strchr(o->plugin, '"') != NULL)
		return "a plugin's name has no double quote";
	if ((unsigned)o->snapshot > PGWS_SNAPSHOT_USE)
		return "snapshot is none of nothing, export and use";
	if (o->physical) {
		if (o->two_phase || o->failover)
			return "two_phase and failover are for logical slots";
		if (o->snapshot != PGWS_SNAPSHOT_NOTHING)
			return "a physical slot has no snapshot";
		return o->plugin != NULL ? "a physical slot has no plugin" : NULL;
	}
	if (o->reserve_wal)
		return "reserve_wal is for physical slots";
	if (o->failover && o->temporary)
		return "a temporary slot cannot be a failover slot";
	return NULL;
}

/* One option in the form that the version wants. */
struct option_list {
	struct pgwsi_text *text;
	bool legacy;
	bool some;
};

static void put_option(struct option_list *l, const char *legacy, const char *modern)
{
	if (l->legacy) {
		pgwsi_put(l->text, " ");
		pgwsi_put(l->text, legacy);
	} else {
		pgwsi_put(l->text, l->some ? ", " : " (");
		pgwsi_put(l->text, modern);
	}
	l->some = true;
}

static void put_create(
	struct pgwsi_text *t, const char *slot, const struct pgws_slot_options *o, bool legacy)
{
	static const char *const keyword[] = {
		"NOEXPORT_SNAPSHOT", "EXPORT_SNAPSHOT", "USE_SNAPSHOT"};
	static const char *const option[] = {
		"SNAPSHOT 'nothing'", "SNAPSHOT 'export'", "SNAPSHOT 'use'"};
	struct option_list list = {.text = t, .legacy = legacy};
	const char *plugin = o->plugin != NULL ? o->plugin : "pgoutput";

	pgwsi_put(t, "CREATE_REPLICATION_SLOT ");
	pgwsi_put_identifier(t, slot, strlen(slot));
	if (o->temporary)
		pgwsi_put(t, " TEMPORARY");
	if (o->physical) {
		pgwsi_put(t, " PHYSICAL");
		if (o->reserve_wal)
			put_option(&list, "RESERVE_WAL", "RESERVE_WAL");
	} else {
		pgwsi_put(t, " LOGICAL ");
		pgwsi_put_identifier(t, plugin, strlen(plugin));
		put_option(&list, keyword[o->snapshot], option[o->snapshot]);
	}
	if (o->two_phase)
		put_option(&list, "TWO_PHASE", "TWO_PHASE");
	if (o->failover)
		put_option(&list, "FAILOVER", "FAILOVER");
	if (list.some && !legacy)
		pgwsi_put(t, ")");
}

int pgws_stream_create_slot(struct pgws_stream *s, const struct pgws_slot_options *options)
{
	struct pgws_slot_options o = PGWS_SLOT_OPTIONS_INIT;
	memcpy(&o, options, options->size < sizeof(o) ? options->size : sizeof(o));
	const char *slot = slot_or_default(s, o.slot);
	int err = check_slot(s, slot);
	if (err != 0)
		return err;
	const char *bad = bad_create(&o);
	if (bad != NULL)
		return pgwsi_refuse(s, PGWS_EINVAL, bad);
	if (o.failover)
		err = pgwsi_need_version(s, "a failover slot", 17);
	if (err == 0 && o.two_phase)
		err = pgwsi_need_version(s, "a slot with two_phase", 15);
	if (err != 0)
		return err;
	struct pgwsi_text t = {.bytes = NULL};
	put_create(&t, slot, &o, PQserverVersion(s->conn) < 150000);
	return pgwsi_send_command(s, PGWSI_CMD_CREATE_SLOT, &t);
}

int pgwsi_take_created_slot(struct pgws_stream *s, const PGresult *res)
{
	const char *point = pgwsi_value(res, "consistent_point");
	if (point == NULL || pgws_lsn_parse(point, &s->consistent_point) != 0)
		return PGWS_EPROTO;
	return pgwsi_copy_text(&s->snapshot_name, pgwsi_value(res, "snapshot_name"));
}

const char *pgws_stream_snapshot_name(const struct pgws_stream *s)
{
	return s->snapshot_name;
}

uint64_t pgws_stream_consistent_point(const struct pgws_stream *s)
{
	return s->consistent_point;
}

/* ---- Alter, drop ----------------------------------------------------------------------------- */

int pgws_stream_alter_slot(struct pgws_stream *s, const char *slot, int failover, int two_phase)
{
	slot = slot_or_default(s, slot);
	int err = check_slot(s, slot);
	if (err != 0)
		return err;
	if (failover < 0 && two_phase < 0)
		return pgwsi_refuse(s, PGWS_EINVAL, "nothing is to be altered");
	if (two_phase >= 0)
		err = pgwsi_need_version(s, "altering a slot's two_phase", 18);
	if (err == 0 && failover >= 0)
		err = pgwsi_need_version(s, "altering a slot's failover", 17);
	if (err != 0)
		return err;
	struct pgwsi_text t = {.bytes = NULL};
	struct option_list list = {.text = &t};
	pgwsi_put(&t, "ALTER_REPLICATION_SLOT ");
	pgwsi_put_identifier(&t, slot, strlen(slot));
	if (failover >= 0)
		put_option(&list, NULL, failover > 0 ? "FAILOVER true" : "FAILOVER false");
	if (two_phase >= 0)
		put_option(&list, NULL, two_phase > 0 ? "TWO_PHASE true" : "TWO_PHASE false");
	pgwsi_put(&t, ")");
	return pgwsi_send_command(s, PGWSI_CMD_ALTER_SLOT, &t);
}

int pgws_stream_drop_slot(struct pgws_stream *s, const char *slot, bool wait)
{
	slot = slot_or_default(s, slot);
	int err = check_slot(s, slot);
	if (err != 0)
		return err;
	struct pgwsi_text t = {.bytes = NULL};
	pgwsi_put(&t, "DROP_REPLICATION_SLOT ");
	pgwsi_put_identifier(&t, slot, strlen(slot));
	if (wait)
		pgwsi_put(&t, " WAIT");
	return pgwsi_send_command(s, PGWSI_CMD_DROP_SLOT, &t);
}

/* ---- Read ------------------------------------------------------------------------------------ */

/*
 * Columns that not every version has are taken out of the row's JSON form, so that one statement
 * suits them all. Before 17 only "conflicting" (16) says why a slot was invalidated.
 */
#define READ_SLOT                                                                                  \
	"SELECT slot_type, temporary, active, active_pid, restart_lsn, confirmed_flush_lsn,"       \
	" plugin, database, wal_status, safe_wal_size, j->>'two_phase' AS two_phase,"              \
	" j->>'two_phase_at' AS two_phase_at, j->>'failover' AS failover, j->>'synced' AS synced," \
	" j->>'conflicting' AS conflicting, coalesce(j->>'invalidation_reason',"                   \
	" CASE WHEN j->>'conflicting' = 'true' THEN 'conflicting' END) AS invalidation"            \
	" FROM (SELECT s.*, pg_catalog.to_jsonb(s) AS j FROM pg_catalog.pg_replication_slots s)"   \
	" q WHERE slot_name OPERATOR(pg_catalog.=) "

int pgws_stream_read_slot(struct pgws_stream *s, const char *slot)
{
	slot = slot_or_default(s, slot);
	int err = check_slot(s, slot);
	if (err != 0)
		return err;
	/* No slot's name has a character that a literal would need to escape. */
	char *literal = PQescapeLiteral(s->conn, slot, strlen(slot));
	if (literal == NULL)
		return pgwsi_refuse(s, PGWS_EINVAL, PQerrorMessage(s->conn));
	struct pgwsi_text t = {.bytes = NULL};
	pgwsi_put(&t, READ_SLOT);
	pgwsi_put(&t, literal);
	PQfreemem(literal);
	return pgwsi_send_command(s, PGWSI_CMD_READ_SLOT, &t);
}

/* Both forms of a boolean: the row's own and JSON's. */
static bool is_true(const PGresult *res, const char *column)
{
	const char *v = pgwsi_value(res, column);
	return v != NULL && *v == 't';
}

static void take_chars(const PGresult *res, const char *column, char *to, size_t size)
{
	const char *v = pgwsi_value(res, column);
	snprintf(to, size, "%s", v != NULL ? v : "");
}

static int take_lsn(const PGresult *res, const char *column, uint64_t *ret_lsn)
{
	const char *v = pgwsi_value(res, column);
	return v != NULL ? pgws_lsn_parse(v, ret_lsn) : 0;
}

int pgwsi_take_slot_info(struct pgws_stream *s, const PGresult *res)
{
	struct pgws_slot_info i = {.exists = PQntuples(res) == 1, .safe_wal_size = -1};
	if (i.exists) {
		const char *type = pgwsi_value(res, "slot_type");
		const char *safe = pgwsi_value(res, "safe_wal_size");
		const char *pid = pgwsi_value(res, "active_pid");
		i.physical = type != NULL && strcmp(type, "physical") == 0;
		i.temporary = is_true(res, "temporary");
		i.active = is_true(res, "active");
		i.two_phase = is_true(res, "two_phase");
		i.failover = is_true(res, "failover");
		i.synced = is_true(res, "synced");
		i.conflicting = is_true(res, "conflicting");
		i.safe_wal_size = safe != NULL ? strtoll(safe, NULL, 10) : -1;
		i.active_pid = pid != NULL ? atoi(pid) : 0;
		take_chars(res, "plugin", i.plugin, sizeof(i.plugin));
		take_chars(res, "database", i.database, sizeof(i.database));
		take_chars(res, "wal_status", i.wal_status, sizeof(i.wal_status));
		take_chars(res, "invalidation", i.invalidation, sizeof(i.invalidation));
		if (take_lsn(res, "restart_lsn", &i.restart_lsn) != 0 ||
			take_lsn(res, "confirmed_flush_lsn", &i.confirmed_lsn) != 0 ||
			take_lsn(res, "two_phase_at", &i.two_phase_at) != 0)
			return PGWS_EPROTO;
	}
	s->slot_info = i;
	s->has_slot_info = true;
	return 0;
}

const struct pgws_slot_info *pgws_stream_slot_info(const struct pgws_stream *s)
{
	return s->has_slot_info ? &s->slot_info : NULL;
}
