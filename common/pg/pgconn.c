/* SPDX-License-Identifier: PostgreSQL */
/*
 * The connection's state machine; the one file that knows libpq's consume, isBusy, getResult,
 * flush.
 *
 * Context: event thread. What each event means in each state (rows of `table` below):
 *
 *              START      STOP   RESOLVED  UNRESOLVED  IO            TIMER
 *   IDLE       resolve    -      bug       bug         bug           bug
 *   RESOLVING  -          close  connect   fail        bug           bug
 *   CONNECTING -          close  bug       bug         poll          fail, next host first
 *   SETUP      -          close  bug       bug         setup results fail
 *   UP         -          close  bug       bug         results       fail
 *   WAITING    resolve    close  bug       bug         bug           resolve
 *
 * Invariants:
 *   1. pg != NULL exactly in CONNECTING, SETUP and UP; resolve != NULL exactly in RESOLVING.
 *   2. expected is empty except in UP; its order is the order of answers on the wire.
 *   3. The statement timer runs while n_syncs > 0: without a sync behind them the server owes no
 *      answer to the queries sent.
 *   4. Every callback may close, restart or free the connection: epoch changes when pg does, and
 *      whoever called back looks at it before going on.
 *
 * A server that answers "read-only" (25006) is a primary no longer: its answer is delivered, then
 * it is left, and target_session_attrs finds the new one. A host that takes the connection and says
 * nothing would be tried first for ever, since libpq goes to the next host only on an error: after
 * such a timeout the next attempt begins one host further.
 *
 * On crash: the server notices the closed socket and rolls back; what was committed stays.
 * See: tests/unit/test_pgconn.c.
 */
#include "config.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/buf.h"
#include "common/base/err.h"
#include "common/base/list.h"
#include "common/base/log.h"
#include "common/base/mem.h"
#include "common/pg/pgconn.h"
#include "common/pg/pgresolve.h"

#define MAGIC 0x7067636e         /* pgcn */
#define CONNECT_TIMEOUT_MS 10000 /* per host, unless connect_timeout says otherwise */
#define BACKOFF_BASE_MS 100
#define BACKOFF_CAP_MS 5000
#define RESULTS_PER_PASS 1000 /* then others get their turn */

MEM_TYPE(mem_conn, "pgconn");
MEM_TYPE(mem_expect, "pgconn expectation");

struct expect {
	struct list link;
	bool is_sync;
	bool answered;
	pgconn_result_fn cb;
	void *arg;
};

enum conn_event { EV_START, EV_STOP, EV_RESOLVED, EV_UNRESOLVED, EV_IO, EV_TIMER, EVENT_COUNT };

struct pgconn {
	uint32_t magic;
	struct ev_loop *loop;
	struct pgconn_ops ops;
	void *arg;
	char *conninfo, *application_name;
	const char *const *setup;
	uint32_t timeout_ms;
	uint32_t connect_timeout_ms;
	enum pgconn_state state;
	PGconn *pg;
	struct pgresolve *resolve;
	struct ev_io io;
	struct ev_timer timer; /* connect, statement or backoff: the state says which */
	struct ev_backoff backoff;
	struct list expected;
	size_t n_syncs;
	uint64_t n_syncs_over; /* answered: the server goes on */
	size_t n_setup;        /* statements of setup sent so far */
	unsigned rotate;       /* hosts to begin further down the list */
	char *peer[3];         /* host, hostaddr, port instead of the conninfo's; owned, or NULL */
	char tried[256];       /* host that the connect timer runs for */
	uint64_t epoch;
	bool freed;
	bool leave; /* the server turned read-only, or sending failed */
	char error[512];
	const char *resolved; /* borrowed during EV_RESOLVED and EV_UNRESOLVED */
	int resolve_err;
	struct ev_deferred kick, destroy;
};

static void handle(struct pgconn *c, enum conn_event e);

static const char *const state_names[PGCONN_STATE_COUNT] = {
	[PGCONN_IDLE] = "IDLE",
	[PGCONN_RESOLVING] = "RESOLVING",
	[PGCONN_CONNECTING] = "CONNECTING",
	[PGCONN_SETUP] = "SETUP",
	[PGCONN_UP] = "UP",
	[PGCONN_WAITING] = "WAITING",
};

const char *pgconn_state_str(enum pgconn_state s)
{
	return (size_t)s < PGCONN_STATE_COUNT ? state_names[s] : "?";
}

static void set_state(struct pgconn *c, enum pgconn_state s, const char *cause)
{
	if (c->state == s)
		return;
	log_debug("pg.state", "%s: %s -> %s: %s", c->application_name, state_names[c->state],
		state_names[s], cause);
	c->state = s;
}

/* One line: control characters and the source locations that verbose errors end with are left out.
 */
static void set_error(struct pgconn *c, const char *text)
{
	size_t n = 0;
	bool gap = false;

	while (*text != '\0' && n + 2 < sizeof c->error) {
		if (strncmp(text, "LOCATION:", 9) == 0) {
			text += strcspn(text, "\n");
			continue;
		}
		if ((unsigned char)*text <= ' ') {
			gap = n > 0;
		} else {
			if (gap)
				c->error[n++] = ' ';
			gap = false;
			c->error[n++] = *text;
		}
		text++;
	}
	c->error[n] = '\0';
}

static void drop_expectation(struct pgconn *c, struct expect *e)
{
	list_remove(&e->link);
	if (e->is_sync) {
		c->n_syncs--;
		c->n_syncs_over++;
	}
	mem_free(&mem_expect, e);
}

/* Everything outstanding is answered with NULL. New queries are refused meanwhile: not UP. */
static void answer_lost(struct pgconn *c)
{
	while (!list_empty(&c->expected)) {
		struct expect *e = list_first(&c->expected, struct expect, link);
		pgconn_result_fn cb = e->answered ? NULL : e->cb;
		void *arg = e->arg;

		drop_expectation(c, e);
		if (cb != NULL)
			cb(NULL, arg);
	}
}

static void close_pg(struct pgconn *c)
{
	ev_io_stop(&c->io);
	ev_timer_stop(&c->timer);
	ev_defer_cancel(c->loop, &c->kick);
	pgresolve_free(&c->resolve);
	if (c->pg != NULL)
		PQfinish(c->pg);
	c->pg = NULL;
	c->leave = false;
	c->epoch++;
}

/* To WAITING; error says why. */
static void fail(struct pgconn *c, enum pg_class class)
{
	uint64_t epoch;
	char why[sizeof c->error];

	close_pg(c);
	set_state(c, PGCONN_WAITING, c->error);
	if (class == PG_CONFIG)
		c->backoff.attempt = 16;
	ev_timer_start(&c->timer, ev_backoff_next_ms(&c->backoff));
	epoch = c->epoch;
	answer_lost(c);
	if (c->epoch != epoch || c->state != PGCONN_WAITING || c->freed)
		return;
	memcpy(why, c->error, sizeof why);
	if (c->ops.on_down != NULL)
		c->ops.on_down(c, class, why, c->arg);
}

static void fail_text(struct pgconn *c, enum pg_class class, const char *text)
{
	set_error(c, text);
	fail(c, class);
}

/*
 * Class of a failed attempt. libpq has no SQLSTATE for it but in the text, where verbose errors say
 * "FATAL:  28P01: …". With several hosts there is one part per host: it is a matter of
 * configuration only if every host says so.
 */
static enum pg_class connect_class(PGconn *pg)
{
	const char *p = PQerrorMessage(pg);
	enum pg_class class = PG_RETRY;

	if (PQconnectionNeedsPassword(pg))
		return PG_CONFIG;
	while (p != NULL && *p != '\0') {
		const char *next = strstr(p + 1, "connection to server ");
		size_t len = next != NULL ? (size_t)(next - p) : strlen(p);
		bool config = false;

		for (const char *s = p; s + 9 <= p + len; s++) {
			char state[6];

			if (memcmp(s, ":  ", 3) != 0 || s[8] != ':')
				continue;
			memcpy(state, s + 3, 5);
			state[5] = '\0';
			if (strspn(state, "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ") != 5)
				continue;
			config = pg_classify(state) == PG_CONFIG;
		}
		if (!config)
			return PG_RETRY;
		class = PG_CONFIG;
		p = next;
	}
	return class;
}

static void fail_connect(struct pgconn *c)
{
	enum pg_class class = connect_class(c->pg);

	fail_text(c, class, PQerrorMessage(c->pg));
}

/* Refused before a server was spoken to: what is left then is the conninfo (a wrong value, a
 * service that does not exist), unless the text says that a connection or an address was the
 * matter. */
static void fail_start(struct pgconn *c)
{
	static const char *const others[] = {
		"connection to server", "could not translate", "out of memory"};
	const char *text = PQerrorMessage(c->pg);

	for (size_t i = 0; i < ARRAY_LEN(others); i++)
		if (strstr(text, others[i]) != NULL) {
			fail_connect(c);
			return;
		}
	fail_text(c, PG_CONFIG, text);
}

static void on_io(int fd, short what, void *arg)
{
	struct pgconn *c;

	(void)fd;
	(void)what;
	OBJ_CAST(c, arg, MAGIC);
	handle(c, EV_IO);
}

static void on_timer(void *arg)
{
	struct pgconn *c;

	OBJ_CAST(c, arg, MAGIC);
	handle(c, EV_TIMER);
}

static void on_kick(void *arg)
{
	struct pgconn *c;

	OBJ_CAST(c, arg, MAGIC);
	if (c->state == PGCONN_UP)
		handle(c, EV_IO);
}

static void on_resolved(int err, const char *conninfo, const char *why, void *arg)
{
	struct pgconn *c;

	OBJ_CAST(c, arg, MAGIC);
	pgresolve_free(&c->resolve);
	c->resolve_err = err;
	c->resolved = err == 0 ? conninfo : why;
	handle(c, err == 0 ? EV_RESOLVED : EV_UNRESOLVED);
	c->resolved = NULL;
}

static bool given(const PQconninfoOption *options, const char *keyword)
{
	for (; options->keyword != NULL; options++)
		if (strcmp(options->keyword, keyword) == 0)
			return options->val != NULL && *options->val != '\0';
	return false;
}

/* What we want but the user may have said otherwise; a service file is taken to have said it all.
 */
static const char *const our_defaults[][2] = {
	{"tcp_user_timeout", "15000"},
	{"keepalives_idle", "15"},
	{"keepalives_interval", "5"},
	{"keepalives_count", "3"},
};

static void act_resolve(struct pgconn *c)
{
	const char *extra[2 * (ARRAY_LEN(our_defaults) + 3)];
	PQconninfoOption *options = PQconninfoParse(c->conninfo, NULL);
	size_t n = 0;

	extra[n++] = "client_encoding";
	extra[n++] = "UTF8";
	if (c->application_name != NULL) {
		extra[n++] = "application_name";
		extra[n++] = c->application_name;
	}
	if (options != NULL && !given(options, "service"))
		for (size_t i = 0; i < ARRAY_LEN(our_defaults); i++)
			if (!given(options, our_defaults[i][0])) {
				extra[n++] = our_defaults[i][0];
				extra[n++] = our_defaults[i][1];
			}
	extra[n] = NULL;
	PQconninfoFree(options);
	ev_timer_stop(&c->timer);
	set_state(c, PGCONN_RESOLVING, "start");
	c->resolve = pgresolve_start(c->loop, c->conninfo, extra, on_resolved, c);
}

static void on_notice(void *arg, const char *message)
{
	struct pgconn *c = arg;

	log_debug(
		"pg.notice", "%s: %.*s", c->application_name, (int)strcspn(message, "\n"), message);
}

/* list moved left by n items; caller frees. */
static char *rotated(const char *list, unsigned n)
{
	const char *cut = list;

	for (; n > 0; n--) {
		cut = strchr(cut, ',');
		if (cut == NULL)
			return xstrdup(list);
		cut++;
	}
	if (cut == list)
		return xstrdup(list);
	return xasprintf("%s,%.*s", cut, (int)(cut - list - 1), list);
}

static unsigned items(const char *list)
{
	unsigned n = 1;

	for (; *list != '\0'; list++)
		n += *list == ',';
	return n;
}

#define PARAMS_MAX 64

static const char *const host_options[] = {"host", "hostaddr", "port"};

static bool is_host_option(const char *keyword)
{
	for (size_t i = 0; i < ARRAY_LEN(host_options); i++)
		if (strcmp(keyword, host_options[i]) == 0)
			return true;
	return false;
}

/* PQconnectStart with the host lists turned by c->rotate, all three alike; or with the peer. */
static PGconn *connect_start(struct pgconn *c, const PQconninfoOption *options)
{
	const char *keywords[PARAMS_MAX + 1], *values[PARAMS_MAX + 1];
	char *turned[3];
	size_t n = 0, n_turned = 0;
	PGconn *pg;

	for (const PQconninfoOption *o = options;
		o->keyword != NULL && n + ARRAY_LEN(c->peer) < PARAMS_MAX; o++) {
		if (o->val == NULL || *o->val == '\0' ||
			(c->peer[0] != NULL && is_host_option(o->keyword)))
			continue;
		keywords[n] = o->keyword;
		values[n] = o->val;
		if (is_host_option(o->keyword)) {
			ASSERT(n_turned < ARRAY_LEN(turned));
			turned[n_turned] = rotated(o->val, c->rotate % items(o->val));
			values[n] = turned[n_turned++];
		}
		if (strcmp(o->keyword, "connect_timeout") == 0 && atoi(o->val) > 0)
			c->connect_timeout_ms = (uint32_t)atoi(o->val) * 1000;
		n++;
	}
	for (size_t i = 0; i < ARRAY_LEN(c->peer) && c->peer[0] != NULL; i++) {
		keywords[n] = host_options[i];
		values[n++] = c->peer[i];
	}
	ASSERT(n < PARAMS_MAX);
	keywords[n] = NULL;
	values[n] = NULL;
	pg = PQconnectStartParams(keywords, values, 0);
	while (n_turned > 0)
		free(turned[--n_turned]);
	return pg;
}

/* The connect timeout is per host, as in libpq. */
static void watch_host(struct pgconn *c)
{
	char now[sizeof c->tried];
	const char *host = PQhost(c->pg), *addr = PQhostaddr(c->pg), *port = PQport(c->pg);

	snprintf(now, sizeof now, "%s %s %s", host != NULL ? host : "", addr != NULL ? addr : "",
		port != NULL ? port : "");
	if (strcmp(now, c->tried) == 0)
		return;
	memcpy(c->tried, now, sizeof now);
	ev_timer_start(&c->timer, c->connect_timeout_ms);
}

static void act_connect(struct pgconn *c)
{
	PQconninfoOption *options = PQconninfoParse(c->resolved, NULL);

	ASSERT(options != NULL); /* pgresolve made it */
	c->connect_timeout_ms = CONNECT_TIMEOUT_MS;
	c->tried[0] = '\0';
	c->pg = connect_start(c, options);
	PQconninfoFree(options);
	set_state(c, PGCONN_CONNECTING, "resolved");
	ASSERT(c->pg != NULL);
	if (PQstatus(c->pg) == CONNECTION_BAD) {
		fail_start(c);
		return;
	}
	PQsetErrorVerbosity(c->pg, PQERRORS_VERBOSE); /* for connect_class */
	PQsetNoticeProcessor(c->pg, on_notice, c);
	watch_host(c);
	ev_io_set(&c->io, PQsocket(c->pg), EV_WRITE);
}

static void act_unresolved(struct pgconn *c)
{
	fail_text(c, c->resolve_err == -ERR_CONFIG ? PG_CONFIG : PG_RETRY, c->resolved);
}

/* More to send: also wait for room to write. False if the connection broke. */
static bool flush(struct pgconn *c)
{
	int rc = PQflush(c->pg);

	if (rc >= 0)
		ev_io_set(&c->io, PQsocket(c->pg), rc > 0 ? EV_READ | EV_WRITE : EV_READ);
	return rc >= 0;
}

static uint32_t setup_timeout_ms(const struct pgconn *c)
{
	return c->timeout_ms > c->connect_timeout_ms ? c->timeout_ms : c->connect_timeout_ms;
}

static void enter_up(struct pgconn *c)
{
	ASSERT(list_empty(&c->expected));
	ev_timer_stop(&c->timer);
	if (!PQenterPipelineMode(c->pg)) {
		fail_text(c, PG_RETRY, PQerrorMessage(c->pg));
		return;
	}
	ev_backoff_reset(&c->backoff);
	c->rotate = 0;
	c->error[0] = '\0';
	set_state(c, PGCONN_UP, "session is set up");
	ev_io_set(&c->io, PQsocket(c->pg), EV_READ);
	if (c->ops.on_up != NULL)
		c->ops.on_up(c, c->arg);
}

/* Sends the next statement of setup, or ends SETUP. */
static void next_setup(struct pgconn *c)
{
	const char *sql = c->setup != NULL ? c->setup[c->n_setup] : NULL;

	if (sql == NULL) {
		enter_up(c);
		return;
	}
	c->n_setup++;
	ev_timer_start(&c->timer, setup_timeout_ms(c));
	if (!PQsendQuery(c->pg, sql) || !flush(c))
		fail_text(c, PG_RETRY, PQerrorMessage(c->pg));
}

static void act_poll(struct pgconn *c)
{
	PostgresPollingStatusType status;

	/* libpq may close this socket and open another under the same number. */
	ev_io_stop(&c->io);
	status = PQconnectPoll(c->pg);
	switch (status) {
	case PGRES_POLLING_READING:
	case PGRES_POLLING_WRITING:
		watch_host(c);
		ev_io_set(&c->io, PQsocket(c->pg),
			status == PGRES_POLLING_READING ? EV_READ : EV_WRITE);
		break;
	case PGRES_POLLING_OK:
		PQsetErrorVerbosity(c->pg, PQERRORS_DEFAULT);
		if (PQsetnonblocking(c->pg, 1) != 0) {
			fail_text(c, PG_RETRY, PQerrorMessage(c->pg));
			break;
		}
		c->n_setup = 0;
		set_state(c, PGCONN_SETUP, "connected");
		next_setup(c);
		break;
	default:
		fail_connect(c);
		break;
	}
}

static void act_connect_timeout(struct pgconn *c)
{
	char text[sizeof c->tried + 64];

	c->rotate++;
	snprintf(text, sizeof text, "no connection to %s within %u ms", c->tried,
		(unsigned)c->connect_timeout_ms);
	fail_text(c, PG_RETRY, text);
}

static void fail_setup(struct pgconn *c, const PGresult *res)
{
	char text[sizeof c->error];
	const char *state = PQresultErrorField(res, PG_DIAG_SQLSTATE);
	enum pg_class class = pg_classify(state);

	/* No row is to blame for what a session is set up with: its text is the configuration's. */
	if (class == PG_DATA)
		class = PG_CONFIG;
	fail_text(c, class, pg_result_error(res, text, sizeof text));
}

static void act_setup_io(struct pgconn *c)
{
	bool alive = PQconsumeInput(c->pg) == 1;
	PGresult *res;

	while (!PQisBusy(c->pg)) {
		ExecStatusType status;

		res = PQgetResult(c->pg);
		if (res == NULL) {
			if (!alive)
				break;
			next_setup(c);
			return;
		}
		status = PQresultStatus(res);
		if (status != PGRES_COMMAND_OK && status != PGRES_TUPLES_OK &&
			status != PGRES_EMPTY_QUERY) {
			fail_setup(c, res);
			PQclear(res);
			return;
		}
		PQclear(res);
	}
	if (!alive || !flush(c))
		fail_text(c, PG_RETRY, PQerrorMessage(c->pg));
}

static bool is_read_only_error(const PGresult *res)
{
	const char *state = PQresultErrorField(res, PG_DIAG_SQLSTATE);

	return state != NULL && strcmp(state, "25006") == 0;
}

/* Hands res to the expectation it belongs to, once; a sync is over only with its own result. */
static void deliver(struct pgconn *c, PGresult *res)
{
	struct expect *e = list_first(&c->expected, struct expect, link);
	bool first = !e->answered;
	pgconn_result_fn cb = e->cb;
	void *arg = e->arg;

	if (is_read_only_error(res))
		c->leave = true;
	e->answered = true;
	if (e->is_sync && PQresultStatus(res) == PGRES_PIPELINE_SYNC)
		drop_expectation(c, e);
	if (first && cb != NULL)
		cb(res, arg);
}

/* A broken connection makes libpq invent an error result: it is not an answer of the server's. */
static bool is_invented(const struct pgconn *c, const PGresult *res)
{
	return PQresultStatus(res) == PGRES_FATAL_ERROR && PQstatus(c->pg) != CONNECTION_OK &&
	       PQresultErrorField(res, PG_DIAG_SQLSTATE) == NULL;
}

/* Results that are complete in libpq's buffer, to their callbacks. False: a callback closed us. */
static bool pump(struct pgconn *c)
{
	uint64_t epoch = c->epoch;
	size_t n = 0, n_nulls = 0;

	while (!list_empty(&c->expected) && !PQisBusy(c->pg) && n_nulls < 2) {
		struct expect *e = list_first(&c->expected, struct expect, link);
		PGresult *res;

		if (n++ == RESULTS_PER_PASS) {
			ev_defer(c->loop, &c->kick, on_kick, c);
			break;
		}
		res = PQgetResult(c->pg);
		if (res == NULL) { /* between two queries, and after an error of the commit */
			n_nulls++;
			if (!e->is_sync && e->answered)
				drop_expectation(c, e);
			continue;
		}
		n_nulls = 0;
		if (is_invented(c, res)) {
			set_error(c, PQresultErrorMessage(res));
			PQclear(res);
			c->leave = true;
			break;
		}
		deliver(c, res);
		PQclear(res);
		if (c->epoch != epoch)
			return false;
	}
	return true;
}

static void act_results(struct pgconn *c)
{
	bool alive = PQconsumeInput(c->pg) == 1;
	uint64_t n_syncs_over = c->n_syncs_over;
	PGnotify *notify;

	if (!pump(c))
		return;
	while ((notify = PQnotifies(c->pg)) != NULL) /* nobody listens on these connections */
		PQfreemem(notify);
	if (alive && !c->leave && flush(c) && PQstatus(c->pg) == CONNECTION_OK) {
		if (c->timeout_ms > 0 && c->n_syncs == 0)
			ev_timer_stop(&c->timer);
		else if (c->timeout_ms > 0 && c->n_syncs_over != n_syncs_over)
			ev_timer_start(&c->timer, c->timeout_ms);
		return;
	}
	if (c->leave && c->error[0] == '\0')
		set_error(c, "the server is read-only now");
	else if (!c->leave)
		set_error(c, PQerrorMessage(c->pg));
	if (c->error[0] == '\0')
		set_error(c, "connection closed by the server");
	fail(c, PG_RETRY);
}

static void act_statement_timeout(struct pgconn *c)
{
	char text[96];

	snprintf(text, sizeof text, "no answer from the server within %u ms",
		(unsigned)(c->state == PGCONN_UP ? c->timeout_ms : setup_timeout_ms(c)));
	fail_text(c, PG_RETRY, text);
}

static void act_close(struct pgconn *c)
{
	close_pg(c);
	set_state(c, PGCONN_IDLE, "stopped");
	answer_lost(c);
}

static void act_ignore(struct pgconn *c)
{
	(void)c;
}

static void act_bug(struct pgconn *c)
{
	(void)c;
	ASSERT(!"an event that cannot be in this state");
}

static void (*const table[PGCONN_STATE_COUNT][EVENT_COUNT])(struct pgconn *) = {
	[PGCONN_IDLE] = {act_resolve, act_ignore, act_bug, act_bug, act_bug, act_bug},
	[PGCONN_RESOLVING] = {act_ignore, act_close, act_connect, act_unresolved, act_bug, act_bug},
	[PGCONN_CONNECTING] = {act_ignore, act_close, act_bug, act_bug, act_poll,
		act_connect_timeout},
	[PGCONN_SETUP] = {act_ignore, act_close, act_bug, act_bug, act_setup_io,
		act_statement_timeout},
	[PGCONN_UP] = {act_ignore, act_close, act_bug, act_bug, act_results, act_statement_timeout},
	[PGCONN_WAITING] = {act_resolve, act_close, act_bug, act_bug, act_bug, act_resolve},
};

static void handle(struct pgconn *c, enum conn_event e)
{
	bool has_pg;

	table[c->state][e](c);
	has_pg = c->state == PGCONN_CONNECTING || c->state == PGCONN_SETUP || c->state == PGCONN_UP;
	ASSERT(has_pg == (c->pg != NULL));
	ASSERT((c->state == PGCONN_RESOLVING) == (c->resolve != NULL));
}

struct pgconn *pgconn_new(struct ev_loop *loop, const struct pgconn_options *options,
	const struct pgconn_ops *ops, void *arg)
{
	struct pgconn *c = mem_new(&mem_conn, sizeof *c);

	c->magic = MAGIC;
	c->loop = loop;
	c->ops = *ops;
	c->arg = arg;
	c->conninfo = xstrdup(options->conninfo);
	c->application_name =
		xstrdup(options->application_name != NULL ? options->application_name : "howdah");
	c->setup = options->setup;
	c->timeout_ms = options->timeout_ms;
	c->connect_timeout_ms = CONNECT_TIMEOUT_MS;
	c->backoff.base_ms = BACKOFF_BASE_MS;
	c->backoff.cap_ms = BACKOFF_CAP_MS;
	list_init(&c->expected);
	ev_io_init(&c->io, loop, "pgconn", on_io, c);
	ev_timer_init(&c->timer, loop, "pgconn", on_timer, c);
	return c;
}

static void free_peer(struct pgconn *c)
{
	for (size_t i = 0; i < ARRAY_LEN(c->peer); i++) {
		free(c->peer[i]);
		c->peer[i] = NULL;
	}
}

static void destroy(void *arg)
{
	struct pgconn *c;

	OBJ_CAST(c, arg, MAGIC);
	ASSERT(list_empty(&c->expected) && c->pg == NULL && c->resolve == NULL);
	free(c->conninfo);
	free(c->application_name);
	free_peer(c);
	c->magic = 0;
	mem_free(&mem_conn, c);
}

void pgconn_free(struct pgconn **cp)
{
	struct pgconn *c = *cp;

	if (c == NULL)
		return;
	OBJ_CHECK(c, MAGIC);
	*cp = NULL;
	ASSERT(!c->freed);
	c->freed = true;
	act_close(c);
	ev_defer(c->loop, &c->destroy, destroy, c);
}

void pgconn_start(struct pgconn *c)
{
	OBJ_CHECK(c, MAGIC);
	if (!c->freed)
		handle(c, EV_START);
}

void pgconn_stop(struct pgconn *c)
{
	OBJ_CHECK(c, MAGIC);
	handle(c, EV_STOP);
}

enum pgconn_state pgconn_get_state(const struct pgconn *c)
{
	return c->state;
}

int pgconn_server_version(const struct pgconn *c)
{
	return c->state == PGCONN_UP ? PQserverVersion(c->pg) : 0;
}

struct pgconn_peer pgconn_peer(const struct pgconn *c)
{
	if (c->state != PGCONN_UP)
		return (struct pgconn_peer){.host = NULL};
	const char *hostaddr = PQhostaddr(c->pg);
	return (struct pgconn_peer){.host = PQhost(c->pg),
		.hostaddr = hostaddr != NULL ? hostaddr : "",
		.port = PQport(c->pg)};
}

void pgconn_set_peer(struct pgconn *c, const struct pgconn_peer *peer)
{
	OBJ_CHECK(c, MAGIC);
	free_peer(c);
	if (peer->host == NULL)
		return;
	c->peer[0] = xstrdup(peer->host);
	c->peer[1] = xstrdup(peer->hostaddr);
	c->peer[2] = xstrdup(peer->port);
}

int pgconn_backend_pid(const struct pgconn *c)
{
	return c->state == PGCONN_UP ? PQbackendPID(c->pg) : 0;
}

const char *pgconn_error(const struct pgconn *c)
{
	return c->error;
}

/* ok: what libpq said to a send. A failed one breaks the connection, from the loop, not from here.
 */
static int sent(struct pgconn *c, bool ok, bool is_sync, pgconn_result_fn cb, void *arg)
{
	struct expect *e;

	if (!ok) {
		set_error(c, PQerrorMessage(c->pg));
		c->leave = true;
		ev_defer(c->loop, &c->kick, on_kick, c);
		return -ERR_CLOSED;
	}
	e = mem_new(&mem_expect, sizeof *e);
	e->is_sync = is_sync;
	e->cb = cb;
	e->arg = arg;
	list_push_back(&c->expected, &e->link);
	return 0;
}

int pgconn_query(struct pgconn *c, const struct pgconn_query *q, pgconn_result_fn cb, void *arg)
{
	bool ok;

	OBJ_CHECK(c, MAGIC);
	if (c->state != PGCONN_UP || c->leave)
		return -ERR_STATE;
	if (q->prepared)
		ok = PQsendQueryPrepared(c->pg, q->sql, q->n_params, q->values, q->lengths,
			     q->formats, q->result_format) == 1;
	else
		ok = PQsendQueryParams(c->pg, q->sql, q->n_params, q->types, q->values, q->lengths,
			     q->formats, q->result_format) == 1;
	return sent(c, ok, false, cb, arg);
}

int pgconn_prepare(struct pgconn *c, const char *name, const char *sql, int n_params,
	const Oid *types, pgconn_result_fn cb, void *arg)
{
	OBJ_CHECK(c, MAGIC);
	if (c->state != PGCONN_UP || c->leave)
		return -ERR_STATE;
	return sent(c, PQsendPrepare(c->pg, name, sql, n_params, types) == 1, false, cb, arg);
}

int pgconn_sync(struct pgconn *c, pgconn_result_fn cb, void *arg)
{
	int err;

	OBJ_CHECK(c, MAGIC);
	if (c->state != PGCONN_UP || c->leave)
		return -ERR_STATE;
	err = sent(c, PQpipelineSync(c->pg) == 1, true, cb, arg);
	if (err != 0)
		return err;
	if (c->n_syncs++ == 0 && c->timeout_ms > 0)
		ev_timer_start(&c->timer, c->timeout_ms);
	if (!flush(c)) { /* the answers that have arrived may still be good: the loop looks */
		c->leave = true;
		set_error(c, PQerrorMessage(c->pg));
		ev_defer(c->loop, &c->kick, on_kick, c);
	}
	return 0;
}

int pgconn_simple(struct pgconn *c, const char *sql, int n_params, const char *const *values,
	pgconn_result_fn cb, void *arg)
{
	struct pgconn_query q = {.sql = sql, .n_params = n_params, .values = values};
	int err = pgconn_query(c, &q, cb, arg);

	return err != 0 ? err : pgconn_sync(c, NULL, NULL);
}
