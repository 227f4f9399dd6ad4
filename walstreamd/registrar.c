/* SPDX-License-Identifier: PostgreSQL */
/*
 * The SQL side of walstreamd: see registrar.h.
 *
 * Context: event thread, one connection (common/pg/pgconn).
 *
 * A check is one pass over the server, one query at a time:
 *
 *   SERVER -> NODE -> PUBLICATIONS (-> CREATE PUBLICATION) -> LOGS -> SLOT -> GAPS -> ready
 *                                                                      |-> leftover: DROP, then
 *                                                                      |-> CREATE: on_create_slot,
 *                                                                      |   then snapshot
 *                                                                      |   transaction -> SLOT
 *                                                                      '-> lost: wait for a person,
 *                                                                          or note the gap, then
 *                                                                          SERVER
 *   any step --not yet--> WAITING --timer--> SERVER
 *
 * Order of creation: schema, publications, slot. A slot needs its publications at every LSN that it
 * decodes, and what it exports must see the schema.
 *
 * Invariants:
 *   1. howdah.node.slot_lsn is set in the same transaction that stores what every part knows at the
 *      slot's consistent point, in the slot's own snapshot. NULL means: what there is of a slot is
 *      half-made and may be dropped.
 *   2. With slot_lsn set no slot is ever made: one that is missing, invalidated, or of another
 * server is LOST, and stays so until somebody removes the node's row; or, if the configuration says
 * "recreate" (but not for another server), until slot_lsn is set to NULL in the transaction that
 * writes the open gap down (howdah.gap). The transaction that sets slot_lsn again closes it.
 *   3. A gap is given to on_ready's reader (registrar_gaps) until registrar_gaps_told is stored.
 *   4. on_ready names a position only while no walsender uses the slot, and we hold the node's
 * lock: nobody but us can move it.
 *
 * On crash: before the slot exists: nothing happened. Between slot and COMMIT: slot_lsn is NULL,
 * the slot is dropped by the next start. After COMMIT: a later start. The same holds for a slot
 * that was lost: before the gap is noted it is found lost again, after it the next start goes on as
 * a first start does, with the gap still open.
 */
#include "config.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/buf.h"
#include "common/base/log.h"
#include "common/base/mem.h"
#include "common/pg/pgconf.h"
#include "common/pg/pgconn.h"
#include "libpgwalstream/pgwalstream.h"

#include "walstreamd/registrar.h"
#include "walstreamd/walstreamd.h"

#define REGISTRAR_MAGIC 0x72656773u
#define STATEMENT_TIMEOUT_MS 30000
#define WAIT_SHORT_MS 100  /* the slot's old walsender is about to go */
#define WAIT_MS 2000       /* schema, lock, standby: somebody is at work on it */
#define WAIT_LOST_MS 10000 /* a person has to decide */
#define MONITOR_MS 10000
#define SEEN_EVERY 6      /* monitor rounds between two updates of seen_at */
#define SLOT_BUSY_MS 3000 /* a walsender that holds our slot for longer is ended */

MEM_TYPE(mem_registrar, "wal registrar");

struct registrar {
	uint32_t magic;
	struct daemon *d;
	struct registrar_ops ops;
	void *arg;
	struct pgconn *conn;
	char *slot;
	bool have_lock;
	bool checking; /* a pass is under way, or its timer runs */
	bool creating; /* waiting for the follower's slot */
	bool ready;
	bool first_start;        /* slot_lsn is NULL */
	uint32_t timeline;       /* the server's */
	uint64_t system;         /* its identifier */
	uint64_t server_lsn;     /* where it stood when the last pass began */
	uint32_t known_timeline; /* the node's, when it was last seen */
	struct registrar_gap gaps[REGISTRAR_GAPS_MAX];
	size_t n_gaps;
	bool looking;
	bool freed;
	uint32_t sender_timeout_ms;
	uint64_t slot_busy_since_ms;
	uint64_t heartbeat_ms; /* of the last one */
	unsigned rounds;
	struct ev_timer again;
	struct ev_timer monitor;
	struct registrar_slot last;
	char status[512];
};

static const char *const setup[] = {
	"SET client_min_messages = error",
	"SET search_path = pg_catalog",
	/* The lock goes with the connection: the server must notice a dead machine. */
	"SET tcp_keepalives_idle = 30",
	"SET tcp_keepalives_interval = 5",
	"SET tcp_keepalives_count = 3",
	"SET lock_timeout = '10s'",
	"SET idle_in_transaction_session_timeout = '60s'",
	/* While a slot is made nothing is asked for as long as the oldest transaction lasts. */
	"SET idle_session_timeout = 0",
	NULL,
};

static void step_server(struct registrar *r);
static void step_node(struct registrar *r);
static void step_publications(struct registrar *r);
static void step_logs(struct registrar *r);
static void step_slot(struct registrar *r);
static void step_gaps(struct registrar *r);

/* ---- Passes --------------------------------------------------------------------------------- */

static void wait_ms(struct registrar *r, uint32_t ms)
{
	r->checking = true;
	ev_timer_start(&r->again, ms);
}

static void trouble(struct registrar *r, uint32_t ms, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));

static void trouble(struct registrar *r, uint32_t ms, const char *fmt, ...)
{
	char text[sizeof(r->status)];
	va_list ap;
	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	r->ready = false;
	if (strcmp(text, r->status) != 0)
		log_warning("wal.register", "slot %s: %s", r->slot, text);
	memcpy(r->status, text, sizeof(text));
	wait_ms(r, ms);
	r->ops.on_trouble(text, false, r->arg);
}

static void on_again(void *arg)
{
	struct registrar *r;
	OBJ_CAST(r, arg, REGISTRAR_MAGIC);
	if (pgconn_get_state(r->conn) != PGCONN_UP)
		return; /* on_up begins anew */
	step_server(r);
}

/* The remedy for errors that have one. */
static const char *remedy(const char *sqlstate)
{
	static const struct {
		const char *sqlstate;
		const char *text;
	} remedies[] = {
		{"42501", "; grant it, or let another role do it: see pgctl doctor"},
		{"42883", "; the schema is older than this build: run pgctl db upgrade"},
		{"42P01", "; the schema is older than this build: run pgctl db upgrade"},
		{"42703", "; the schema is older than this build: run pgctl db upgrade"},
	};
	for (size_t i = 0; sqlstate != NULL && i < ARRAY_LEN(remedies); i++) {
		if (strcmp(remedies[i].sqlstate, sqlstate) == 0)
			return remedies[i].text;
	}
	return "";
}

/* An answer that a step can go on with. A lost connection begins anew by on_up. */
static bool usable(struct registrar *r, const PGresult *res, const char *what)
{
	if (res == NULL)
		return false;
	ExecStatusType status = PQresultStatus(res);
	if (status == PGRES_TUPLES_OK || status == PGRES_COMMAND_OK)
		return true;
	char error[400];
	trouble(r, WAIT_MS, "cannot %s: %s%s", what, pg_result_error(res, error, sizeof(error)),
		remedy(PQresultErrorField(res, PG_DIAG_SQLSTATE)));
	return false;
}

static void ask(
	struct registrar *r, const char *sql, int n, const char *const *values, pgconn_result_fn cb)
{
	int err = pgconn_simple(r->conn, sql, n, values, cb, r);
	if (err != 0)
		log_debug("wal.register", "connection lost before a query, waiting for it");
}

static const char *field(const PGresult *res, int column)
{
	return PQgetisnull(res, 0, column) ? NULL : PQgetvalue(res, 0, column);
}

static bool is_true(const char *value)
{
	return value != NULL && value[0] == 't';
}

static uint64_t lsn_of(const char *value)
{
	uint64_t lsn;
	return value != NULL && pgws_lsn_parse(value, &lsn) == 0 ? lsn : 0;
}

static uint32_t number_of(const char *value)
{
	return value != NULL ? (uint32_t)strtoul(value, NULL, 10) : 0;
}

static void on_server(PGresult *res, void *arg)
{
	struct registrar *r;
	OBJ_CAST(r, arg, REGISTRAR_MAGIC);
	if (!usable(r, res, "look at the server"))
		return;
	const char *wal_level = field(res, 2);
	r->sender_timeout_ms = number_of(field(res, 3));
	/* The first eight digits of a segment's name; NULL on a standby. */
	char timeline[9] = "0";
	if (field(res, 4) != NULL)
		snprintf(timeline, sizeof(timeline), "%s", field(res, 4));
	r->timeline = (uint32_t)strtoul(timeline, NULL, 16);
	r->server_lsn = lsn_of(field(res, 5));
	if (is_true(field(res, 1)))
		trouble(r, WAIT_MS,
			"the server is a standby, waiting for its promotion; a conninfo "
			"of several hosts with target_session_attrs=read-write finds "
			"the primary");
	else if (strcmp(wal_level, "logical") != 0 && pgconn_server_version(r->conn) < 190000)
		trouble(r, WAIT_LOST_MS,
			"the server's wal_level is %s; run ALTER SYSTEM SET wal_level = logical "
			"and restart it",
			wal_level);
	else if (!is_true(field(res, 0)))
		trouble(r, WAIT_MS, "the database has no schema yet; run pgctl db init");
	else
		step_node(r);
}

static void step_server(struct registrar *r)
{
	r->checking = true;
	ask(r,
		"SELECT to_regclass('howdah.node') IS NOT NULL, pg_is_in_recovery(), "
		"current_setting('wal_level'), "
		"(SELECT setting FROM pg_settings WHERE name = 'wal_sender_timeout'), "
		"CASE WHEN NOT pg_is_in_recovery() THEN pg_walfile_name(pg_current_wal_lsn()) END, "
		"CASE WHEN NOT pg_is_in_recovery() THEN pg_current_wal_lsn() END",
		0, NULL, on_server);
}

/* ---- The node's row -------------------------------------------------------------------------- */

static void lost_for_good(struct registrar *r, const char *why)
{
	trouble(r, WAIT_LOST_MS,
		"slot %s is lost: %s. Changes since then are missing; pgctl node remove %s gives "
		"them up and begins anew",
		r->slot, why, r->d->node);
}

static void on_lost_noted(PGresult *res, void *arg)
{
	struct registrar *r;
	OBJ_CAST(r, arg, REGISTRAR_MAGIC);
	if (!usable(r, res, "write down what is missing"))
		return;
	stats_add(r->d->stats, WAL_STAT_SLOTS_LOST, 1);
	step_server(r);
}

/* The slot is gone, or what there is of it cannot be used. slot_lsn: its own confirmed position, or
 * 0. */
static void lost(struct registrar *r, const char *why, uint64_t slot_lsn)
{
	if (strcmp(conf_str(r->d->conf, "walstreamd.lost_slot"), "recreate") != 0) {
		trouble(r, WAIT_LOST_MS,
			"slot %s is lost: %s. Changes since then are missing; pgctl node remove %s "
			"gives them up and begins anew, walstreamd.lost_slot = \"recreate\" makes "
			"a new slot and reports the gap",
			r->slot, why, r->d->node);
		return;
	}
	char acked_text[18], slot_text[18];
	uint64_t acked = r->ops.get_acked(r->timeline, r->arg);
	if (acked > r->server_lsn)
		acked = 0; /* of before the server was restored to an earlier state */
	pgws_lsn_str(acked, acked_text);
	pgws_lsn_str(slot_lsn, slot_text);
	log_error("wal.slot_lost", "slot %s is lost: %s; making a new one, changes are missing",
		r->slot, why);
	const char *const values[] = {r->d->node, acked_text, slot_text, why};
	ask(r, "SELECT howdah.slot_lost($1::text, ARRAY[$2::pg_lsn, $3::pg_lsn], $4::text)", 4,
		values, on_lost_noted);
}

static void on_node(PGresult *res, void *arg)
{
	struct registrar *r;
	OBJ_CAST(r, arg, REGISTRAR_MAGIC);
	if (!usable(r, res, "register the node"))
		return;
	const char *instance = field(res, 0), *system = field(res, 1), *server = field(res, 2);
	const char *slot_lsn = field(res, 3);
	if (instance == NULL || strcmp(instance, r->d->instance) != 0) {
		char text[400];
		snprintf(text, sizeof(text),
			"node %s is registered by another instance (%s, ours is %s); set another "
			"\"node\" in the configuration, or run pgctl node remove %s if the other "
			"one is gone for good",
			r->d->node, instance != NULL ? instance : "?", r->d->instance, r->d->node);
		char *with_remedy = xasprintf("%s; mend postgres.conninfo or what it names", text);
		r->ops.on_config_error(with_remedy, r->arg);
		free(with_remedy);
		return;
	}
	if (!is_true(field(res, 4))) {
		trouble(r, WAIT_MS,
			"another session holds the lock of node %s; a second howdahd "
			"with a copy of this state_dir, or a connection about to end",
			r->d->node);
		return;
	}
	r->have_lock = true;
	r->first_start = slot_lsn == NULL;
	r->known_timeline = number_of(field(res, 5));
	r->system = server != NULL ? strtoull(server, NULL, 10) : 0;
	if (!r->first_start && (system == NULL || server == NULL || strcmp(system, server) != 0))
		lost_for_good(r, "the database was moved to another server");
	else
		step_publications(r);
}

static void step_node(struct registrar *r)
{
	const char *const values[] = {
		r->d->node, r->d->instance, r->slot, r->have_lock ? "t" : "f"};
	ask(r,
		"SELECT r.*, n.confirmed_timeline "
		"FROM howdah.node_register($1::text, $2::text, $3::text, $4::boolean) r "
		"LEFT JOIN howdah.node n ON n.name = $1::text",
		4, values, on_node);
}

/* ---- Publications ---------------------------------------------------------------------------- */

static void on_publication_made(PGresult *res, void *arg)
{
	struct registrar *r;
	OBJ_CAST(r, arg, REGISTRAR_MAGIC);
	const char *state = PQresultErrorField(res, PG_DIAG_SQLSTATE);
	/* 42710, 23505: another node was faster. */
	if (state != NULL && (strcmp(state, "42710") == 0 || strcmp(state, "23505") == 0))
		step_publications(r);
	else if (usable(r, res, "create the publication"))
		step_publications(r);
}

/* Somebody dropped the publication, or a restore went without it. To make it anew, empty, would
 * hide that: what is mapped, and what is mapped from now on, would be in no stream. */
static void publication_is_lost(struct registrar *r, bool exists)
{
	trouble(r, WAIT_MS,
		"publication howdah %s: changes of mapped tables are in no stream; run %s; then "
		"pgctl doctor says which tables have to be published again",
		exists ? "lacks howdah_mqtt.publish_mapping"
		       : "is not there (dropped, or not restored)",
		exists ? "ALTER PUBLICATION howdah ADD TABLE howdah_mqtt.publish_mapping"
		       : "CREATE PUBLICATION howdah FOR TABLE howdah_mqtt.publish_mapping WITH "
			 "(publish_via_partition_root = true)");
}

static void on_publications(PGresult *res, void *arg)
{
	struct registrar *r;
	OBJ_CAST(r, arg, REGISTRAR_MAGIC);
	if (!usable(r, res, "look at the publications"))
		return;
	char sql[200];
	if (is_true(field(res, 2))) {
		publication_is_lost(r, is_true(field(res, 0)));
		return;
	}
	if (!is_true(field(res, 0))) {
		snprintf(sql, sizeof(sql),
			"CREATE PUBLICATION howdah WITH (publish_via_partition_root = true)");
	} else if (!is_true(field(res, 1))) {
		/* The node's name is [a-z0-9_]: nothing in it needs quoting. */
		snprintf(sql, sizeof(sql), "CREATE PUBLICATION howdah_%s WITH (publish = 'insert')",
			r->d->node);
	} else {
		step_logs(r);
		return;
	}
	ask(r, sql, 0, NULL, on_publication_made);
}

static void step_publications(struct registrar *r)
{
	char *mine = xasprintf("howdah_%s", r->d->node);
	const char *const values[] = {mine};
	ask(r,
		"SELECT bool_or(pubname = 'howdah'), bool_or(pubname = $1::text), "
		"to_regclass('howdah_mqtt.publish_mapping') IS NOT NULL AND NOT EXISTS "
		"(SELECT FROM pg_publication_tables WHERE pubname = 'howdah' "
		"AND schemaname = 'howdah_mqtt' AND tablename = 'publish_mapping') "
		"FROM pg_publication",
		1, values, on_publications);
	free(mine);
}

static void on_logs(PGresult *res, void *arg)
{
	struct registrar *r;
	OBJ_CAST(r, arg, REGISTRAR_MAGIC);
	if (usable(r, res, "add the logs of the suite to the publication"))
		step_slot(r);
}

/* What the parts of the suite write for the other nodes. */
static void step_logs(struct registrar *r)
{
	const char *const values[] = {r->d->node};
	ask(r, "SELECT howdah.node_publish_logs($1::text)", 1, values, on_logs);
}

/* ---- The slot -------------------------------------------------------------------------------- */

/* conflicting (16 only; later the reason says it) is set for removed WAL, too. */
#define SLOT_QUERY                                                                                 \
	"SELECT s.active_pid, s.plugin = 'pgoutput' AND s.database = current_database(), "         \
	"s.wal_status, coalesce(to_jsonb(s) ->> 'invalidation_reason', "                           \
	"CASE WHEN to_jsonb(s) ->> 'conflicting' = 'true' AND s.wal_status <> 'lost' "             \
	"THEN 'conflicting' END, ''), "                                                            \
	"s.confirmed_flush_lsn, s.restart_lsn, pg_current_wal_lsn(), "                             \
	"pg_wal_lsn_diff(pg_current_wal_lsn(), s.restart_lsn)::bigint, s.safe_wal_size, "          \
	"coalesce(to_jsonb(s) ->> 'failover', 'false'), "                                          \
	"(SELECT setting::bigint * 1048576 FROM pg_settings "                                      \
	"WHERE name = 'max_slot_wal_keep_size' AND setting <> '-1'), "                             \
	"(SELECT who FROM (SELECT xact_start, 'process ' || pid FROM pg_stat_activity "            \
	"WHERE backend_xid IS NOT NULL UNION ALL SELECT prepared, 'prepared transaction ' || gid " \
	"FROM pg_prepared_xacts) x(began, who) WHERE began < now() - interval '10s' "              \
	"ORDER BY began LIMIT 1) "                                                                 \
	"FROM pg_replication_slots s WHERE s.slot_name = $1::text"

static void remember_slot(struct registrar *r, const PGresult *res)
{
	const char *status = field(res, 2), *retained = field(res, 7), *safe = field(res, 8);
	const char *limit = field(res, 10), *oldest = field(res, 11);
	r->last = (struct registrar_slot){
		.known = true,
		.failover = is_true(field(res, 9)),
		.safe_wal_bytes = safe != NULL ? strtoll(safe, NULL, 10) : -1,
		.keep_limit_bytes = limit != NULL ? strtoll(limit, NULL, 10) : -1,
		.confirmed_lsn = lsn_of(field(res, 4)),
		.restart_lsn = lsn_of(field(res, 5)),
		.server_lsn = lsn_of(field(res, 6)),
		.retained_bytes = retained != NULL ? strtoull(retained, NULL, 10) : 0,
	};
	snprintf(
		r->last.wal_status, sizeof(r->last.wal_status), "%s", status != NULL ? status : "");
	snprintf(r->last.oldest, sizeof(r->last.oldest), "%s", oldest != NULL ? oldest : "");
}

static void on_dropped(PGresult *res, void *arg)
{
	struct registrar *r;
	OBJ_CAST(r, arg, REGISTRAR_MAGIC);
	if (usable(r, res, "drop what was left of a slot"))
		step_slot(r);
}

static void on_terminated(PGresult *res, void *arg)
{
	struct registrar *r;
	OBJ_CAST(r, arg, REGISTRAR_MAGIC);
	if (!usable(r, res, "end the walsender that holds our slot"))
		return;
	if (PQntuples(res) > 0)
		log_info("wal.slot_busy", "slot %s: ended the walsender %s that still held it",
			r->slot, field(res, 0));
	wait_ms(r, WAIT_SHORT_MS);
}

/* Our last connection's walsender is still there. It sees the end soon; one that does not (a
 * network that swallowed it) is ended: we hold the node's lock, so it can only be ours. A session
 * that holds it (somebody moves the slot by hand) is waited for. */
static void slot_is_busy(struct registrar *r, const char *pid)
{
	uint64_t now = ev_now_ms();
	if (r->slot_busy_since_ms == 0)
		r->slot_busy_since_ms = now;
	if (now - r->slot_busy_since_ms < SLOT_BUSY_MS) {
		wait_ms(r, WAIT_SHORT_MS);
		return;
	}
	r->slot_busy_since_ms = now;
	const char *const values[] = {pid};
	ask(r,
		"SELECT pid::text, pg_terminate_backend(pid) FROM pg_stat_replication"
		" WHERE pid = $1::int",
		1, values, on_terminated);
}

static void first_start(struct registrar *r, bool exists)
{
	if (exists) {
		const char *const values[] = {r->slot};
		log_info("wal.slot_leftover",
			"slot %s: dropping what a start that ended too early "
			"left of it",
			r->slot);
		ask(r, "SELECT pg_drop_replication_slot($1::text)", 1, values, on_dropped);
		return;
	}
	r->creating = true;
	r->ops.on_create_slot(r->arg);
}

static void slot_is_ready(struct registrar *r)
{
	r->checking = false;
	r->ready = true;
	r->status[0] = '\0';
	r->ops.on_look(&r->last, r->arg);
	if (!r->monitor.active)
		ev_timer_start(&r->monitor, MONITOR_MS);
	r->ops.on_ready(r->last.confirmed_lsn, r->arg);
}

static void slot_is_foreign(struct registrar *r)
{
	if (r->first_start)
		trouble(r, WAIT_LOST_MS,
			"a slot named %s is there already and belongs to another database or "
			"plugin; set another \"node\" in the configuration, or drop it if nobody "
			"uses it",
			r->slot);
	else
		lost_for_good(r, "a slot of this name belongs to another database or plugin");
}

/* What the server's word for it means, and the setting behind it. */
static const char *invalidation_text(const char *reason)
{
	static const struct {
		const char *reason;
		const char *text;
	} texts[] = {
		{"wal_removed", "the server removed WAL that it still needed "
				"(max_slot_wal_keep_size)"},
		{"rows_removed", "the server removed rows of the catalogue that it still needed "
				 "(hot_standby_feedback was off while the server was a standby)"},
		{"wal_level_insufficient", "the server ran with a wal_level below logical"},
		{"idle_timeout", "nobody used it for too long (idle_replication_slot_timeout)"},
		{"conflicting", "it was in conflict with the server's recovery "
				"(hot_standby_feedback was off while the server was a standby)"},
	};
	for (size_t i = 0; i < ARRAY_LEN(texts); i++) {
		if (strcmp(texts[i].reason, reason) == 0)
			return texts[i].text;
	}
	return reason;
}

static void on_slot(PGresult *res, void *arg)
{
	struct registrar *r;
	OBJ_CAST(r, arg, REGISTRAR_MAGIC);
	if (!usable(r, res, "look at the slot"))
		return;
	bool exists = PQntuples(res) == 1;
	if (!exists && !r->first_start) {
		lost(r,
			"this server does not have it (it was dropped, or a failover went without "
			"it)",
			0);
		return;
	}
	/* Slots belong to the whole server: this one may be another suite's, of the same node name.
	 * Nothing of it is ended or dropped. */
	if (exists && !is_true(field(res, 1))) {
		slot_is_foreign(r);
		return;
	}
	if (exists && field(res, 0) != NULL) {
		slot_is_busy(r, field(res, 0));
		return;
	}
	r->slot_busy_since_ms = 0;
	if (r->first_start) {
		first_start(r, exists);
		return;
	}
	const char *invalid = field(res, 3);
	remember_slot(r, res);
	if (invalid[0] != '\0')
		lost(r, invalidation_text(invalid), r->last.confirmed_lsn);
	else if (strcmp(r->last.wal_status, "lost") == 0)
		lost(r, invalidation_text("wal_removed"), r->last.confirmed_lsn);
	else
		step_gaps(r);
}

static void step_slot(struct registrar *r)
{
	const char *const values[] = {r->slot};
	ask(r, SLOT_QUERY, 1, values, on_slot);
}

/* ---- Gaps ------------------------------------------------------------------------------------ */

static void on_gaps(PGresult *res, void *arg)
{
	struct registrar *r;
	OBJ_CAST(r, arg, REGISTRAR_MAGIC);
	if (!usable(r, res, "look for gaps"))
		return;
	r->n_gaps = 0;
	ASSERT(PQntuples(res) <= REGISTRAR_GAPS_MAX);
	for (int i = 0; i < PQntuples(res); i++) {
		struct registrar_gap *g = &r->gaps[r->n_gaps++];
		*g = (struct registrar_gap){
			.id = strtoll(PQgetvalue(res, i, 0), NULL, 10),
			.from_lsn = lsn_of(PQgetvalue(res, i, 1)),
			.to_lsn = lsn_of(PQgetvalue(res, i, 2)),
			.timeline = number_of(PQgetvalue(res, i, 3)),
			.at = strtoll(PQgetvalue(res, i, 4), NULL, 10),
		};
		snprintf(g->reason, sizeof(g->reason), "%s", PQgetvalue(res, i, 5));
	}
	slot_is_ready(r);
}

/*
 * All of them, oldest first, since registrar_gaps_told is about all; those beyond the last place
 * share it, as one gap from the beginning of the first to the end of the last. They cannot wait for
 * another round: what a reader acknowledges after this one lies behind their ends, too, and would
 * not say that it knows of them.
 */
static void step_gaps(struct registrar *r)
{
	const char *const values[] = {r->d->node};
	_Static_assert(REGISTRAR_GAPS_MAX == 16, "the query's limit");
	ask(r,
		"SELECT max(id), (array_agg(from_lsn ORDER BY id))[1], "
		"(array_agg(to_lsn ORDER BY id DESC))[1], "
		"(array_agg(timeline ORDER BY id DESC))[1], "
		"((extract(epoch FROM max(at)) - 946684800) * 1000000)::bigint, "
		"CASE WHEN count(*) > 1 THEN format('%s gaps in one, the last: ', count(*)) "
		"ELSE '' END || (array_agg(reason ORDER BY id DESC))[1] "
		"FROM (SELECT *, least(row_number() OVER (ORDER BY id), 16) AS place "
		"FROM howdah.gap WHERE node = $1::text AND to_lsn IS NOT NULL AND told_at IS NULL) "
		"g GROUP BY place ORDER BY place",
		1, values, on_gaps);
}

const struct registrar_gap *registrar_gaps(const struct registrar *r, size_t *ret_n)
{
	*ret_n = r->n_gaps;
	return r->gaps;
}

static void on_told(PGresult *res, void *arg)
{
	char error[400];
	(void)arg;
	if (res != NULL && PQresultStatus(res) != PGRES_COMMAND_OK)
		log_warning("wal.gap_told",
			"cannot write down that a gap is known: %s; it will be told again",
			pg_result_error(res, error, sizeof(error)));
}

void registrar_gaps_told(struct registrar *r)
{
	OBJ_CHECK(r, REGISTRAR_MAGIC);
	if (r->n_gaps == 0)
		return;
	char id[24];
	snprintf(id, sizeof(id), "%lld", (long long)r->gaps[r->n_gaps - 1].id);
	const char *const values[] = {r->d->node, id};
	r->n_gaps = 0;
	ask(r,
		"UPDATE howdah.gap SET told_at = now() WHERE node = $1::text AND id <= $2::bigint "
		"AND to_lsn IS NOT NULL AND told_at IS NULL",
		2, values, on_told);
}

/* ---- First start: the snapshot transaction --------------------------------------------------- */

static void on_stored(PGresult *res, void *arg)
{
	struct registrar *r;
	OBJ_CAST(r, arg, REGISTRAR_MAGIC);
	/* Aborted: the answer before it said why. on_snapshot_end goes on. */
	if (PQresultStatus(res) != PGRES_PIPELINE_ABORTED)
		(void)usable(r, res, "store where the slot begins");
}

static void on_snapshot_end(PGresult *res, void *arg)
{
	struct registrar *r;
	OBJ_CAST(r, arg, REGISTRAR_MAGIC);
	r->creating = false;
	if (r->freed)
		return;
	r->ops.on_snapshot_used(r->arg);
	if (res == NULL)
		return;
	/* Whether it was committed, the next pass sees: slot_lsn says. */
	if (!r->again.active)
		wait_ms(r, 0);
}

void registrar_slot_created(struct registrar *r, uint64_t lsn, uint32_t timeline,
	const char *snapshot, uint64_t acked_lsn)
{
	OBJ_CHECK(r, REGISTRAR_MAGIC);
	if (!r->creating) { /* the connection broke meanwhile; the next pass cleans up */
		r->ops.on_snapshot_used(r->arg);
		return;
	}
	char text[18], acked[18], tli[12];
	char *set = xasprintf("SET TRANSACTION SNAPSHOT '%s'", snapshot);
	snprintf(tli, sizeof(tli), "%u", (unsigned)timeline);
	const char *const values[] = {r->d->node, pgws_lsn_str(lsn, text), tli};
	const char *const known[] = {r->d->node, pgws_lsn_str(acked_lsn, acked)};
	const struct pgconn_query queries[] = {
		{.sql = "BEGIN ISOLATION LEVEL REPEATABLE READ"},
		{.sql = set},
		{.sql = "UPDATE howdah.gap SET from_lsn = $2::pg_lsn WHERE node = $1::text "
			"AND to_lsn IS NULL AND from_lsn < $2::pg_lsn",
			.n_params = 2,
			.values = known},
		{.sql = "SELECT howdah.slot_created($1::text, $2::pg_lsn, $3::int)",
			.n_params = 3,
			.values = values},
		{.sql = "COMMIT"},
	};
	int err = 0;
	for (size_t i = 0; i < ARRAY_LEN(queries) && err == 0; i++)
		err = pgconn_query(r->conn, &queries[i], i >= 1 && i <= 3 ? on_stored : NULL, r);
	if (err == 0)
		err = pgconn_sync(r->conn, on_snapshot_end, r);
	/* If a step of it failed, COMMIT was passed over: the session must not stay in there. */
	if (err == 0)
		err = pgconn_simple(r->conn, "ROLLBACK", 0, NULL, NULL, NULL);
	free(set);
	if (err != 0) {
		r->creating = false;
		r->ops.on_snapshot_used(r->arg);
	}
}

void registrar_slot_failed(struct registrar *r, const char *why)
{
	OBJ_CHECK(r, REGISTRAR_MAGIC);
	if (!r->creating)
		return;
	r->creating = false;
	trouble(r, WAIT_MS, "cannot create the slot: %s", why);
}

/* ---- Monitor --------------------------------------------------------------------------------- */

static void on_looked(PGresult *res, void *arg)
{
	struct registrar *r;
	OBJ_CAST(r, arg, REGISTRAR_MAGIC);
	r->looking = false;
	if (r->freed)
		return;
	if (res == NULL || PQresultStatus(res) != PGRES_TUPLES_OK || PQntuples(res) != 1) {
		/* A slot that went away under us: the stream's end leads to a check. */
		r->ops.on_look(NULL, r->arg);
		return;
	}
	remember_slot(r, res);
	r->ops.on_look(&r->last, r->arg);
}

void registrar_look(struct registrar *r)
{
	OBJ_CHECK(r, REGISTRAR_MAGIC);
	if (r->looking)
		return;
	const char *const values[] = {r->slot};
	if (pgconn_get_state(r->conn) != PGCONN_UP ||
		pgconn_simple(r->conn, SLOT_QUERY, 1, values, on_looked, r) != 0) {
		r->ops.on_look(NULL, r->arg);
		return;
	}
	r->looking = true;
}

static void on_seen(PGresult *res, void *arg)
{
	struct registrar *r;
	OBJ_CAST(r, arg, REGISTRAR_MAGIC);
	/* The row is gone: the node was removed under us. */
	if (res != NULL && PQresultStatus(res) == PGRES_COMMAND_OK &&
		strcmp(PQcmdTuples(res), "0") == 0)
		registrar_check(r);
}

static void on_heartbeat(PGresult *res, void *arg)
{
	char error[400];
	(void)arg;
	if (res != NULL && PQresultStatus(res) != PGRES_TUPLES_OK)
		log_limited(LOG_LEVEL_WARNING, "wal.heartbeat",
			"cannot write a heartbeat: %s; walstreamd.heartbeat = \"0s\" does without",
			pg_result_error(res, error, sizeof(error)));
}

bool registrar_heartbeat(struct registrar *r)
{
	OBJ_CHECK(r, REGISTRAR_MAGIC);
	uint64_t every = (uint64_t)conf_int(r->d->conf, "walstreamd.heartbeat");
	uint64_t now = ev_now_ms();
	if (every == 0 || !r->ready || pgconn_get_state(r->conn) != PGCONN_UP ||
		(r->heartbeat_ms != 0 && now - r->heartbeat_ms < every))
		return false;
	r->heartbeat_ms = now;
	return pgconn_simple(r->conn, "SELECT pg_logical_emit_message(false, 'howdah', '')", 0,
		       NULL, on_heartbeat, r) == 0;
}

/* That we live, and up to where everything is acknowledged: where a gap would begin. */
static void note_seen(struct registrar *r)
{
	char lsn[18], tli[12];
	snprintf(tli, sizeof(tli), "%u", (unsigned)r->timeline);
	const char *const values[] = {r->d->node, r->d->instance, tli,
		pgws_lsn_str(r->ops.get_acked(r->timeline, r->arg), lsn)};
	ask(r,
		"UPDATE howdah.node SET seen_at = now(), "
		"confirmed_lsn = CASE WHEN $4::pg_lsn > '0/0' THEN $4::pg_lsn ELSE confirmed_lsn "
		"END, "
		"confirmed_timeline = CASE WHEN $4::pg_lsn > '0/0' THEN $3::int "
		"ELSE confirmed_timeline END "
		"WHERE name = $1::text AND instance = $2::text",
		4, values, on_seen);
}

static void on_monitor(void *arg)
{
	struct registrar *r;
	OBJ_CAST(r, arg, REGISTRAR_MAGIC);
	if (!r->ready || pgconn_get_state(r->conn) != PGCONN_UP)
		return;
	ev_timer_start(&r->monitor, MONITOR_MS);
	registrar_look(r);
	if (++r->rounds % SEEN_EVERY == 0)
		note_seen(r);
}

/* ---- Connection ------------------------------------------------------------------------------ */

static void on_up(struct pgconn *c, void *arg)
{
	struct registrar *r;
	OBJ_CAST(r, arg, REGISTRAR_MAGIC);
	(void)c;
	r->have_lock = false;
	r->creating = false;
	ev_timer_stop(&r->again);
	step_server(r);
}

static void on_down(struct pgconn *c, enum pg_class class, const char *why, void *arg)
{
	struct registrar *r;
	OBJ_CAST(r, arg, REGISTRAR_MAGIC);
	(void)c;
	r->ready = r->have_lock = r->creating = r->checking = false;
	ev_timer_stop(&r->again);
	ev_timer_stop(&r->monitor);
	char text[sizeof(r->status)];
	snprintf(text, sizeof(text), "cannot connect: %s", why);
	/* Our own database comes up by itself; somebody else's refuses for a reason. */
	if (class == PG_CONFIG && !pgconf_is_embedded(r->d->conf)) {
		r->ops.on_config_error(text, r->arg);
		return;
	}
	if (strcmp(text, r->status) != 0)
		log_warning("wal.connect", "slot %s: %s, retrying", r->slot, text);
	memcpy(r->status, text, sizeof(text));
	r->ops.on_trouble(text, true, r->arg);
}

struct registrar *registrar_new(struct daemon *d, const char *conninfo, const char *slot,
	const struct registrar_ops *ops, void *arg)
{
	static const struct pgconn_ops conn_ops = {.on_up = on_up, .on_down = on_down};
	struct registrar *r = mem_new(&mem_registrar, sizeof(*r));
	r->magic = REGISTRAR_MAGIC;
	r->d = d;
	r->ops = *ops;
	r->arg = arg;
	r->slot = xstrdup(slot);
	ev_timer_init(&r->again, d->loop, "registrar", on_again, r);
	ev_timer_init(&r->monitor, d->loop, "wal monitor", on_monitor, r);
	const struct pgconn_options options = {
		.conninfo = conninfo,
		.application_name = "howdah walstreamd",
		.setup = setup,
		.timeout_ms = STATEMENT_TIMEOUT_MS,
	};
	r->conn = pgconn_new(d->loop, &options, &conn_ops, r);
	return r;
}

void registrar_free(struct registrar **rp)
{
	struct registrar *r = *rp;
	*rp = NULL;
	if (r == NULL)
		return;
	OBJ_CHECK(r, REGISTRAR_MAGIC);
	/* Answers to what is outstanding must not lead anywhere any more. */
	r->freed = true;
	ev_timer_stop(&r->again);
	ev_timer_stop(&r->monitor);
	pgconn_free(&r->conn);
	free(r->slot);
	r->magic = 0;
	mem_free(&mem_registrar, r);
}

void registrar_start(struct registrar *r)
{
	pgconn_start(r->conn);
}

void registrar_check(struct registrar *r)
{
	OBJ_CHECK(r, REGISTRAR_MAGIC);
	if (r->checking || r->creating || pgconn_get_state(r->conn) != PGCONN_UP)
		return;
	step_server(r);
}

bool registrar_is_ready(const struct registrar *r)
{
	return r->ready;
}

int registrar_server_version(const struct registrar *r)
{
	return pgconn_server_version(r->conn);
}

struct pgconn_peer registrar_peer(const struct registrar *r)
{
	return pgconn_peer(r->conn);
}

uint32_t registrar_sender_timeout_ms(const struct registrar *r)
{
	return r->sender_timeout_ms;
}

uint32_t registrar_known_timeline(const struct registrar *r)
{
	return r->known_timeline;
}

uint32_t registrar_timeline(const struct registrar *r)
{
	return r->timeline;
}

uint64_t registrar_system(const struct registrar *r)
{
	OBJ_CHECK(r, REGISTRAR_MAGIC);
	return r->system;
}

const struct registrar_slot *registrar_slot(const struct registrar *r)
{
	return &r->last;
}
