/* SPDX-License-Identifier: PostgreSQL */
/*
 * The session that holds a node's writer lock.
 *
 * Context: event thread. States and what leads on:
 *
 *   DOWN      connection up                      -> LOCKING
 *   LOCKING   lock taken, nothing in doubt       -> HELD
 *             lock taken, commits in doubt       -> FLUSHING
 *             lock refused                       -> LOCKING after a while
 *   FLUSHING  empty commit returned              -> HELD
 *   any       connection lost, a step refused    -> DOWN
 *
 * Invariants:
 *   1. In FLUSHING and HELD the lock of (node, role) is held by the backend of conn, and by no
 *      other.
 *   2. old_pid is the backend that held the lock for us last; it is ended before the lock is tried.
 *
 * On crash: the server ends the backend when it notices; the next process waits for that.
 * See: tests/unit/test_batch.c, tests/unit/test_engine.c.
 */
#include "config.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/log.h"
#include "common/base/mem.h"
#include "common/pg/writer_session.h"

#define MAGIC 0x77736573 /* wses */
#define LOCK_QUICK_TRIES 10
#define LOCK_QUICK_MS 20
#define LOCK_SLOW_MS 500
#define LOCK_COMPLAIN 20 /* tries after which somebody should know: about 5 s */
#define SETUP_MAX 16

MEM_TYPE(mem_session, "writer session");

enum state { DOWN, LOCKING, FLUSHING, HELD };

struct writer_session {
	uint32_t magic;
	struct ev_loop *loop;
	struct writer_session_ops ops;
	void *arg;
	char *node, *role;
	const char *setup[SETUP_MAX + 1];
	struct pgconn *conn;
	enum state state;
	int old_pid; /* 0: none known */
	unsigned n_lock_tries;
	struct ev_backoff backoff;
	struct ev_timer timer; /* restart (DOWN) or the next try (LOCKING) */
	struct ev_deferred destroy;
	bool freed;
};

static const char *const session_setup[] = {
	"SET default_transaction_isolation = 'read committed'",
	"SELECT set_config('synchronous_commit', 'on', false) "
	"WHERE current_setting('synchronous_commit') IN ('off', 'local', 'remote_write')",
	/* An idle writer holds the lock: that is no reason to end it. */
	"SELECT set_config(name, '0', false) FROM pg_settings "
	"WHERE name IN ('idle_session_timeout', 'idle_in_transaction_session_timeout')",
	/* The lock goes with the connection: the server must notice a dead machine. */
	"SET tcp_keepalives_idle = 30",
	"SET tcp_keepalives_interval = 5",
	"SET tcp_keepalives_count = 3",
};

bool pg_result_is_fatal(const PGresult *res)
{
	const char *severity = PQresultErrorField(res, PG_DIAG_SEVERITY_NONLOCALIZED);

	return severity != NULL && strcmp(severity, "ERROR") != 0;
}

bool pg_sync_leaves_doubt(const PGresult *res)
{
	return res == NULL ||
	       (PQresultStatus(res) != PGRES_PIPELINE_SYNC && pg_result_is_fatal(res));
}

static void set_state(struct writer_session *s, enum state state)
{
	static const char *const names[] = {"DOWN", "LOCKING", "FLUSHING", "HELD"};

	if (s->state != state)
		log_debug(
			"pg.writer", "writer %s: %s -> %s", s->role, names[s->state], names[state]);
	s->state = state;
}

static void go_down(struct writer_session *s, enum pg_class class, const char *why)
{
	set_state(s, DOWN);
	if (!s->freed && s->ops.on_down != NULL)
		s->ops.on_down(class, why, s->arg);
}

/* A step was refused: start over with a new connection after a while. */
static void refused(struct writer_session *s, enum pg_class class, const char *why)
{
	ev_timer_start(&s->timer, ev_backoff_next_ms(&s->backoff));
	pgconn_stop(s->conn);
	go_down(s, class, why);
}

bool writer_session_step_ok(struct writer_session *s, const PGresult *res)
{
	ExecStatusType status = PQresultStatus(res);
	char why[512];

	OBJ_CHECK(s, MAGIC);
	if (s->freed || res == NULL || s->state == DOWN)
		return false;
	if (status == PGRES_TUPLES_OK || status == PGRES_COMMAND_OK ||
		status == PGRES_PIPELINE_SYNC)
		return true;
	/* A FATAL one is followed by the end of the connection, and on_down. */
	if (status != PGRES_PIPELINE_ABORTED && !pg_result_is_fatal(res))
		refused(s, pg_classify(PQresultErrorField(res, PG_DIAG_SQLSTATE)),
			pg_result_error(res, why, sizeof why));
	return false;
}

static void on_step(PGresult *res, void *arg)
{
	struct writer_session *s;

	OBJ_CAST(s, arg, MAGIC);
	(void)writer_session_step_ok(s, res); /* what follows in the pipeline is aborted if not */
}

static void held(struct writer_session *s)
{
	set_state(s, HELD);
	s->ops.on_held(s->arg);
}

static void on_flushed(PGresult *res, void *arg)
{
	struct writer_session *s;

	OBJ_CAST(s, arg, MAGIC);
	if (writer_session_step_ok(s, res) && s->state == FLUSHING)
		held(s);
}

static void flush(struct writer_session *s)
{
	struct pgconn_query q = {
		.sql = "SELECT pg_logical_emit_message(true, 'howdah', '') IS NOT NULL"};
	int err;

	set_state(s, FLUSHING);
	err = pgconn_query(s->conn, &q, on_step, s);
	if (err == 0)
		err = pgconn_sync(s->conn, on_flushed, s);
	(void)err; /* the connection breaks: on_down starts over */
}

static void on_lock(PGresult *res, void *arg)
{
	struct writer_session *s;
	char why[256];

	OBJ_CAST(s, arg, MAGIC);
	if (!writer_session_step_ok(s, res))
		return;
	if (PQntuples(res) == 1 && strcmp(PQgetvalue(res, 0, 0), "t") == 0) {
		s->old_pid = pgconn_backend_pid(s->conn);
		if (s->ops.in_doubt != NULL && s->ops.in_doubt(s->arg))
			flush(s);
		else
			held(s);
		return;
	}
	s->n_lock_tries++;
	ev_timer_start(
		&s->timer, s->n_lock_tries < LOCK_QUICK_TRIES ? LOCK_QUICK_MS : LOCK_SLOW_MS);
	if (s->n_lock_tries < LOCK_COMPLAIN || s->ops.on_locked_out == NULL)
		return;
	snprintf(why, sizeof why,
		"the writer lock of node %s, role %s is held by another session; stop the other "
		"instance that runs under this node's name",
		s->node, s->role);
	s->ops.on_locked_out(why, s->arg);
}

/* Ends the backend that we had, if it still is the lock's holder, then tries for the lock. */
static void try_lock(struct writer_session *s)
{
	static const char end_old[] =
		"SELECT pg_terminate_backend(l.pid) FROM pg_locks l "
		"WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 2 "
		"AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database()) "
		"AND l.classid::bigint = (hashtext($1)::bigint & 4294967295) "
		"AND l.objid::bigint = (hashtext($2)::bigint & 4294967295) "
		"AND l.pid = $3::int AND l.pid <> pg_backend_pid()";
	char pid[16];
	const char *values[] = {s->node, s->role, pid};
	struct pgconn_query q = {.sql = end_old, .n_params = 3, .values = values};
	int err = 0;

	set_state(s, LOCKING);
	snprintf(pid, sizeof pid, "%d", s->old_pid);
	if (s->old_pid != 0)
		err = pgconn_query(s->conn, &q, on_step, s);
	q.sql = "SELECT pg_try_advisory_lock(hashtext($1), hashtext($2))";
	q.n_params = 2;
	if (err == 0)
		err = pgconn_query(s->conn, &q, on_lock, s);
	if (err == 0)
		err = pgconn_sync(s->conn, NULL, NULL);
	(void)err; /* the connection breaks: on_down starts over */
}

static void on_timer(void *arg)
{
	struct writer_session *s;

	OBJ_CAST(s, arg, MAGIC);
	if (s->state == DOWN)
		pgconn_start(s->conn);
	else if (s->state == LOCKING)
		try_lock(s);
}

static void on_conn_up(struct pgconn *c, void *arg)
{
	struct writer_session *s;

	(void)c;
	OBJ_CAST(s, arg, MAGIC);
	s->n_lock_tries = 0;
	try_lock(s);
}

static void on_conn_down(struct pgconn *c, enum pg_class class, const char *why, void *arg)
{
	struct writer_session *s;

	(void)c;
	OBJ_CAST(s, arg, MAGIC);
	ev_timer_stop(&s->timer);
	go_down(s, class, why);
}

/* ---- life ---- */

struct writer_session *writer_session_new(struct ev_loop *loop,
	const struct writer_session_options *options, const struct writer_session_ops *ops,
	void *arg)
{
	static const struct pgconn_ops conn_ops = {.on_up = on_conn_up, .on_down = on_conn_down};
	struct writer_session *s = mem_new(&mem_session, sizeof *s);
	struct pgconn_options conn_options = {
		.conninfo = options->conninfo,
		.application_name = options->application_name,
		.setup = s->setup,
		.timeout_ms = options->timeout_ms,
	};
	size_t n = ARRAY_LEN(session_setup);

	s->magic = MAGIC;
	s->loop = loop;
	s->ops = *ops;
	s->arg = arg;
	s->node = xstrdup(options->node);
	s->role = xstrdup(options->role);
	memcpy(s->setup, session_setup, sizeof session_setup);
	for (const char *const *more = options->setup; more != NULL && *more != NULL; more++) {
		ASSERT(n < SETUP_MAX);
		s->setup[n++] = *more;
	}
	s->backoff = (struct ev_backoff){.base_ms = 100, .cap_ms = 5000};
	ev_timer_init(&s->timer, loop, "writer session", on_timer, s);
	s->conn = pgconn_new(loop, &conn_options, &conn_ops, s);
	return s;
}

static void destroy(void *arg)
{
	struct writer_session *s;

	OBJ_CAST(s, arg, MAGIC);
	free(s->node);
	free(s->role);
	s->magic = 0;
	mem_free(&mem_session, s);
}

void writer_session_free(struct writer_session **sp)
{
	struct writer_session *s = *sp;

	if (s == NULL)
		return;
	OBJ_CHECK(s, MAGIC);
	*sp = NULL;
	ASSERT(!s->freed);
	s->freed = true;
	pgconn_free(&s->conn);
	ev_timer_stop(&s->timer);
	/* A result callback of ours may be on the stack. */
	ev_defer(s->loop, &s->destroy, destroy, s);
}

void writer_session_start(struct writer_session *s)
{
	OBJ_CHECK(s, MAGIC);
	pgconn_start(s->conn);
}

void writer_session_stop(struct writer_session *s)
{
	OBJ_CHECK(s, MAGIC);
	ev_timer_stop(&s->timer);
	set_state(s, DOWN);
	pgconn_stop(s->conn);
}

struct pgconn *writer_session_conn(struct writer_session *s)
{
	return s->conn;
}

bool writer_session_is_held(const struct writer_session *s)
{
	return s->state == HELD && pgconn_get_state(s->conn) == PGCONN_UP;
}

void writer_session_works(struct writer_session *s)
{
	ev_backoff_reset(&s->backoff);
}
