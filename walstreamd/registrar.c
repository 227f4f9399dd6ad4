/* SPDX-License-Identifier: PostgreSQL */
/*
 * The SQL side of walstreamd: see registrar.h.
 *
 * Context: event thread, one connection (common/pg/pgconn).
 *
 * A check is one pass over the server, one query at a time:
 *
 *   SERVER -> NODE -> PUBLICATIONS (-> CREATE PUBLICATION) -> SLOT -> ready
 *                                                              |-> leftover: DROP, then
 *                                                              '-> CREATE: on_create_slot, then
 *                                                                  snapshot transaction -> SLOT
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
 * server is LOST, and stays so until somebody removes the node's row.
 *   3. on_ready names a position only while no walsender uses the slot, and we hold the node's
 * lock: nobody but us can move it.
 *
 * On crash: before the slot exists: nothing happened. Between slot and COMMIT: slot_lsn is NULL,
 * the slot is dropped by the next start. After COMMIT: a later start.
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
	bool first_start; /* slot_lsn is NULL */
	bool looking;
	bool freed;
	uint32_t sender_timeout_ms;
	uint64_t slot_busy_since_ms;
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
	NULL,
};

static void step_server(struct registrar *r);
static void step_node(struct registrar *r);
static void step_publications(struct registrar *r);
static void step_slot(struct registrar *r);

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

static void on_server(PGresult *res, void *arg)
{
	struct registrar *r;
	OBJ_CAST(r, arg, REGISTRAR_MAGIC);
	if (!usable(r, res, "look at the server"))
		return;
	const char *wal_level = field(res, 2);
	r->sender_timeout_ms = (uint32_t)strtoul(field(res, 3), NULL, 10);
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
		"(SELECT setting FROM pg_settings WHERE name = 'wal_sender_timeout')",
		0, NULL, on_server);
}

/* ---- The node's row -------------------------------------------------------------------------- */

static void lost(struct registrar *r, const char *why)
{
	trouble(r, WAIT_LOST_MS,
		"slot %s is lost: %s. Changes since then are missing; pgctl node remove %s gives "
		"them up and begins anew",
		r->slot, why, r->d->node);
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
	if (!r->first_start && (system == NULL || server == NULL || strcmp(system, server) != 0))
		lost(r, "the database was moved to another server");
	else
		step_publications(r);
}

static void step_node(struct registrar *r)
{
	const char *const values[] = {
		r->d->node, r->d->instance, r->slot, r->have_lock ? "t" : "f"};
	ask(r, "SELECT * FROM howdah.node_register($1::text, $2::text, $3::text, $4::boolean)", 4,
		values, on_node);
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

static void on_publications(PGresult *res, void *arg)
{
	struct registrar *r;
	OBJ_CAST(r, arg, REGISTRAR_MAGIC);
	if (!usable(r, res, "look at the publications"))
		return;
	char sql[200];
	if (!is_true(field(res, 0))) {
		snprintf(sql, sizeof(sql),
			"CREATE PUBLICATION howdah WITH (publish_via_partition_root = true)");
	} else if (!is_true(field(res, 1))) {
		/* The node's name is [a-z0-9_]: nothing in it needs quoting. */
		snprintf(sql, sizeof(sql), "CREATE PUBLICATION howdah_%s WITH (publish = 'insert')",
			r->d->node);
	} else {
		step_slot(r);
		return;
	}
	ask(r, sql, 0, NULL, on_publication_made);
}

static void step_publications(struct registrar *r)
{
	char *mine = xasprintf("howdah_%s", r->d->node);
	const char *const values[] = {mine};
	ask(r,
		"SELECT bool_or(pubname = 'howdah'), bool_or(pubname = $1::text) FROM "
		"pg_publication",
		1, values, on_publications);
	free(mine);
}

/* ---- The slot -------------------------------------------------------------------------------- */

#define SLOT_QUERY                                                                                 \
	"SELECT s.active_pid, s.plugin = 'pgoutput' AND s.database = current_database(), "         \
	"s.wal_status, coalesce(to_jsonb(s) ->> 'invalidation_reason', ''), "                      \
	"s.confirmed_flush_lsn, s.restart_lsn, pg_current_wal_lsn(), "                             \
	"pg_wal_lsn_diff(pg_current_wal_lsn(), s.restart_lsn)::bigint "                            \
	"FROM pg_replication_slots s WHERE s.slot_name = $1::text"

static void remember_slot(struct registrar *r, const PGresult *res)
{
	const char *status = field(res, 2), *retained = field(res, 7);
	r->last = (struct registrar_slot){
		.known = true,
		.confirmed_lsn = lsn_of(field(res, 4)),
		.restart_lsn = lsn_of(field(res, 5)),
		.server_lsn = lsn_of(field(res, 6)),
		.retained_bytes = retained != NULL ? strtoull(retained, NULL, 10) : 0,
	};
	snprintf(
		r->last.wal_status, sizeof(r->last.wal_status), "%s", status != NULL ? status : "");
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
	if (usable(r, res, "end the walsender that holds our slot"))
		wait_ms(r, WAIT_SHORT_MS);
}

/* Our last connection's walsender is still there. It sees the end soon; one that does not (a
 * network that swallowed it) is ended: we hold the node's lock, so it can only be ours. */
static void slot_is_busy(struct registrar *r, const char *pid)
{
	uint64_t now = ev_now_ms();
	if (r->slot_busy_since_ms == 0)
		r->slot_busy_since_ms = now;
	if (now - r->slot_busy_since_ms < SLOT_BUSY_MS) {
		wait_ms(r, WAIT_SHORT_MS);
		return;
	}
	log_info("wal.slot_busy", "slot %s: ending the walsender %s that still holds it", r->slot,
		pid);
	r->slot_busy_since_ms = now;
	const char *const values[] = {pid};
	ask(r, "SELECT pg_terminate_backend($1::int)", 1, values, on_terminated);
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
		lost(r, "a slot of this name belongs to another database or plugin");
}

static void on_slot(PGresult *res, void *arg)
{
	struct registrar *r;
	OBJ_CAST(r, arg, REGISTRAR_MAGIC);
	if (!usable(r, res, "look at the slot"))
		return;
	bool exists = PQntuples(res) == 1;
	if (!exists && !r->first_start) {
		lost(r, "this server does not have it (it was dropped, or a failover went without "
			"it)");
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
		lost(r, invalid);
	else if (strcmp(r->last.wal_status, "lost") == 0)
		lost(r, "the server removed WAL that it still needed (max_slot_wal_keep_size)");
	else
		slot_is_ready(r);
}

static void step_slot(struct registrar *r)
{
	const char *const values[] = {r->slot};
	ask(r, SLOT_QUERY, 1, values, on_slot);
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

void registrar_slot_created(
	struct registrar *r, uint64_t lsn, uint32_t timeline, const char *snapshot)
{
	OBJ_CHECK(r, REGISTRAR_MAGIC);
	if (!r->creating)
		return; /* the connection broke meanwhile; the next pass cleans up */
	char text[18], tli[12];
	char *set = xasprintf("SET TRANSACTION SNAPSHOT '%s'", snapshot);
	snprintf(tli, sizeof(tli), "%u", (unsigned)timeline);
	const char *const values[] = {r->d->node, pgws_lsn_str(lsn, text), tli};
	const struct pgconn_query queries[] = {
		{.sql = "BEGIN ISOLATION LEVEL REPEATABLE READ"},
		{.sql = set},
		{.sql = "SELECT howdah.slot_created($1::text, $2::pg_lsn, $3::int)",
			.n_params = 3,
			.values = values},
		{.sql = "COMMIT"},
	};
	int err = 0;
	for (size_t i = 0; i < ARRAY_LEN(queries) && err == 0; i++)
		err = pgconn_query(r->conn, &queries[i], i == 2 || i == 1 ? on_stored : NULL, r);
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

static void on_monitor(void *arg)
{
	struct registrar *r;
	OBJ_CAST(r, arg, REGISTRAR_MAGIC);
	if (!r->ready || pgconn_get_state(r->conn) != PGCONN_UP)
		return;
	ev_timer_start(&r->monitor, MONITOR_MS);
	registrar_look(r);
	if (++r->rounds % SEEN_EVERY == 0) {
		const char *const values[] = {r->d->node, r->d->instance};
		ask(r,
			"UPDATE howdah.node SET seen_at = now() WHERE name = $1::text AND instance "
			"= "
			"$2::text",
			2, values, on_seen);
	}
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

uint32_t registrar_sender_timeout_ms(const struct registrar *r)
{
	return r->sender_timeout_ms;
}
