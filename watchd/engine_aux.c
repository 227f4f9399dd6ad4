/* SPDX-License-Identifier: PostgreSQL */
/*
 * What nobody's answer waits for long: removing what compaction made needless, the log's size, the
 * member table, claims on dead nodes, vacuum.
 *
 * Two connections to the server that the writer has reached: `ask` for short questions, which also
 * holds claimed locks, and `remove` for DELETE steps and VACUUM, which may take their time.
 *
 * Removal: rows by (seq, sub), as the store names them, in steps of REMOVE_ROWS; as long a rest
 * after each as it took. Rows younger than a minute stay, so that a node which is late reads them
 * rather than the whole log, and with the first of them all behind it in the store's order: the
 * order of `at` is not that of the log (clocks are set back, the turn is waited for), and a
 * tombstone must not go before its put. The tip's entry stays, because the next batch names it. A
 * step that is lost is taken back, and tried again: removing twice is harmless.
 *
 * Context: event thread.
 */
#include "config.h"

#include <arpa/inet.h>
#include <endian.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/log.h"
#include "common/base/mem.h"
#include "common/pg/pg_array.h"
#include "watchd/engine_int.h"

#define MAGIC 0x65617578 /* eaux */
#define TICK_MS 1000
#define SLOW_TICKS 5 /* size, members */
/* A list or snapshot may go on for 10 minutes after its history was compacted. */
#define PIN_TICKS 600
#define REMOVE_ROWS 1000
#define REMOVE_REST_MIN_MS 20
#define REMOVE_YOUNG_REST_MS 5000
#define ASK_TIMEOUT_MS 60000
#define ASKS_MAX 1000 /* questions that wait: more are refused */

MEM_TYPE(mem_aux, "engine aux");
MEM_TYPE(mem_ask, "engine question");
MEM_TYPE(mem_claim, "engine claim");

enum ask_kind { ASK_MEMBERS, ASK_CLAIM, ASK_REV_BEFORE, ASK_DEFRAGMENT };

/* Somebody's question. */
struct ask {
	struct list link;
	struct engine_aux *aux;
	enum ask_kind kind;
	bool sent;
	bool refused; /* there are too many */
	bool rides;   /* the vacuum that another has sent is also its */
	uint64_t since_ms;
	void *arg;
	struct pgconn *conn;
	const char *sql;
	char *values[2]; /* owned; the first of a claim is the node */
	pgconn_result_fn on_result;
	union {
		void (*members)(
			const struct engine_member *m, size_t n, enum etcd_error err, void *arg);
		void (*claim)(const char *node, bool alive, enum etcd_error err, void *arg);
		void (*rev_before)(int64_t rev, enum etcd_error err, const char *why, void *arg);
		void (*defragment)(enum etcd_error err, void *arg);
	} cb;
};

/* A lock of another node that our session holds. */
struct claim {
	struct list link;
	char *node;
};

/* Rows to remove. */
struct step {
	int64_t seqs[REMOVE_ROWS];
	int32_t subs[REMOVE_ROWS];
	size_t n;
};

struct engine_aux {
	uint32_t magic;
	struct engine *e;
	struct pgconn *ask, *remove;
	struct list asks, claims;
	size_t n_asks;
	struct ev_timer tick, rest;
	unsigned n_ticks;
	bool registered;
	struct ev_deferred fail, destroy;
	bool up; /* the writer's session is there */
	bool freed;
	/* Removal. */
	struct step step; /* under way */
	size_t n_old;     /* of it, before the first that is too young */
	uint64_t loads;   /* of the engine, when step was taken */
	uint64_t n_deleted, begun_ms;
	bool remove_ready, removing, deleted;
};

/* ---- questions ---- */

static void free_ask(struct ask *q)
{
	list_remove(&q->link);
	q->aux->n_asks--;
	free(q->values[0]);
	free(q->values[1]);
	mem_free(&mem_ask, q);
}

/* No answer can be had. */
static void fail_ask(struct ask *q)
{
	enum etcd_error err = q->refused ? ETCD_TOO_MANY_REQUESTS : ETCD_TIMEOUT;

	list_remove(&q->link); /* whoever is called may ask again */
	switch (q->kind) {
	case ASK_MEMBERS:
		q->cb.members(NULL, 0, err, q->arg);
		break;
	case ASK_CLAIM:
		q->cb.claim(q->values[0], true, err, q->arg);
		break;
	case ASK_REV_BEFORE:
		q->cb.rev_before(0, err, "the database is away", q->arg);
		break;
	case ASK_DEFRAGMENT:
		q->cb.defragment(err, q->arg);
		break;
	}
	free_ask(q);
}

static bool is_hopeless(const struct engine_aux *a, const struct ask *q)
{
	if (q->sent)
		return false;
	/* A vacuum before it may take long. */
	return !a->up || q->refused ||
	       (q->kind != ASK_DEFRAGMENT && ev_now_ms() - q->since_ms > ENGINE_TIMEOUT_MS);
}

/* Those to which no answer will come in time. */
static void on_fail(void *arg)
{
	struct engine_aux *a;
	struct ask *hopeless;

	OBJ_CAST(a, arg, MAGIC);
	do {
		hopeless = NULL;
		list_for_each (it, &a->asks)
			if (is_hopeless(a, list_entry(it, struct ask, link)))
				hopeless = list_entry(it, struct ask, link);
		if (hopeless != NULL)
			fail_ask(hopeless);
	} while (hopeless != NULL && !a->freed);
}

/* One vacuum at a time: what is asked for meanwhile shares the next. */
static bool must_wait(const struct ask *q)
{
	if (q->kind != ASK_DEFRAGMENT)
		return false;
	list_for_each (it, &q->aux->asks) {
		const struct ask *other = list_entry(it, struct ask, link);

		if (other->kind == ASK_DEFRAGMENT && other->sent)
			return true;
	}
	return false;
}

/* Sends it, or leaves it until its connection is up; fails it at the end of this pass if the
 * database is away. */
static void send_ask(struct ask *q)
{
	struct engine_aux *a = q->aux;
	int n = q->values[0] == NULL ? 0 : q->values[1] == NULL ? 1 : 2;

	if (!q->refused && !must_wait(q))
		q->sent = pgconn_simple(q->conn, q->sql, n, (const char *const *)q->values,
				  q->on_result, q) == 0;
	if (!a->up || q->refused)
		ev_defer(a->e->loop, &a->fail, on_fail, a);
}

static void send_asks(struct engine_aux *a, struct pgconn *c)
{
	list_for_each (it, &a->asks) {
		struct ask *q = list_entry(it, struct ask, link);

		if (!q->sent && q->conn == c)
			send_ask(q);
	}
}

static struct ask *new_ask(struct engine_aux *a, enum ask_kind kind, const char *sql,
	const char *value_1, const char *value_2, pgconn_result_fn on_result, void *arg)
{
	struct ask *q = mem_new(&mem_ask, sizeof *q);

	q->aux = a;
	q->kind = kind;
	q->conn = kind == ASK_DEFRAGMENT ? a->remove : a->ask;
	q->sql = sql;
	q->values[0] = value_1 != NULL ? xstrdup(value_1) : NULL;
	q->values[1] = value_2 != NULL ? xstrdup(value_2) : NULL;
	q->on_result = on_result;
	q->arg = arg;
	q->since_ms = ev_now_ms();
	q->refused = a->n_asks++ >= ASKS_MAX;
	list_push_back(&a->asks, &q->link);
	return q;
}

/* True if res is an answer; else q has failed and is gone. */
static bool answered(struct ask *q, const PGresult *res)
{
	ExecStatusType status = PQresultStatus(res);
	char why[256];

	if (q->aux->freed)
		return false;
	if (status == PGRES_TUPLES_OK || status == PGRES_COMMAND_OK)
		return true;
	if (res != NULL)
		log_warning("engine.ask", "%s", pg_result_error(res, why, sizeof why));
	fail_ask(q);
	return false;
}

/* ---- members ---- */

static const char members_sql[] =
	"SELECT m.node, m.advertise_url FROM howdah_watch.member m WHERE m.node <> $1::text "
	"UNION ALL SELECT $1::text, $2::text ORDER BY 1";

static void on_members(PGresult *res, void *arg)
{
	struct ask *q = arg;
	struct engine_member *m;
	size_t n;

	if (!answered(q, res))
		return;
	n = (size_t)PQntuples(res);
	m = xcalloc(n, sizeof *m);
	for (size_t i = 0; i < n; i++) {
		m[i].node = PQgetvalue(res, (int)i, 0);
		m[i].advertise_url = PQgetvalue(res, (int)i, 1);
		m[i].id = engine_member_id(m[i].node);
	}
	q->cb.members(m, n, ETCD_OK, q->arg);
	free(m);
	free_ask(q);
}

void engine_members(struct engine *e,
	void (*cb)(const struct engine_member *m, size_t n, enum etcd_error err, void *arg),
	void *arg)
{
	struct ask *q = new_ask(
		e->aux, ASK_MEMBERS, members_sql, e->node, e->advertise_url, on_members, arg);

	q->cb.members = cb;
	send_ask(q);
}

static void on_registered(PGresult *res, void *arg)
{
	struct engine_aux *a;

	OBJ_CAST(a, arg, MAGIC);
	if (!a->freed && PQresultStatus(res) == PGRES_TUPLES_OK)
		a->registered = strcmp(PQgetvalue(res, 0, 0), "t") == 0;
}

/* Our row in the member table; walstreamd registers the node, perhaps later than now. */
static void register_member(struct engine_aux *a)
{
	static const char sql[] =
		"WITH new AS (INSERT INTO howdah_watch.member (node, advertise_url) "
		"SELECT $1, $2 WHERE EXISTS (SELECT FROM howdah.node n WHERE n.name = $1) "
		"ON CONFLICT (node) DO UPDATE SET advertise_url = excluded.advertise_url "
		"WHERE member.advertise_url <> excluded.advertise_url) "
		"SELECT EXISTS (SELECT FROM howdah.node n WHERE n.name = $1)";
	const char *values[] = {a->e->node, a->e->advertise_url};

	if (pgconn_simple(a->ask, sql, 2, values, on_registered, a) != 0)
		log_debug("engine.ask", "cannot register yet");
}

/* ---- claims ---- */

static const char lock_sql[] = "SELECT pg_try_advisory_lock(hashtext($1), hashtext($2))";
static const char unlock_sql[] = "SELECT pg_advisory_unlock(hashtext($1), hashtext($2))";

static void free_claim(struct claim *c)
{
	list_remove(&c->link);
	free(c->node);
	mem_free(&mem_claim, c);
}

static void on_claim(PGresult *res, void *arg)
{
	struct ask *q = arg;
	bool taken;

	if (!answered(q, res))
		return;
	taken = strcmp(PQgetvalue(res, 0, 0), "t") == 0;
	if (taken) {
		struct claim *c = mem_new(&mem_claim, sizeof *c);

		c->node = xstrdup(q->values[0]);
		list_push_back(&q->aux->claims, &c->link);
	}
	q->cb.claim(q->values[0], !taken, ETCD_OK, q->arg);
	free_ask(q);
}

void engine_claim(struct engine *e, const char *node,
	void (*cb)(const char *node, bool alive, enum etcd_error err, void *arg), void *arg)
{
	struct ask *q = new_ask(e->aux, ASK_CLAIM, lock_sql, node, ENGINE_ROLE, on_claim, arg);

	q->cb.claim = cb;
	send_ask(q);
}

void engine_claim_end(struct engine *e, const char *node)
{
	const char *values[] = {node, ENGINE_ROLE};

	list_for_each_safe (it, &e->aux->claims) {
		struct claim *c = list_entry(it, struct claim, link);

		if (strcmp(c->node, node) != 0)
			continue;
		if (pgconn_simple(e->aux->ask, unlock_sql, 2, values, NULL, NULL) != 0)
			log_debug("engine.ask", "connection lost, the claim too");
		free_claim(c);
		return;
	}
}

/* ---- revisions by time ---- */

static void on_rev_before(PGresult *res, void *arg)
{
	struct ask *q = arg;
	char why[256];

	if (!q->aux->freed && res != NULL && PQresultStatus(res) == PGRES_FATAL_ERROR) {
		q->cb.rev_before(-1, ETCD_OK, pg_result_error(res, why, sizeof why), q->arg);
		free_ask(q);
		return;
	}
	if (!answered(q, res))
		return;
	q->cb.rev_before(strtoll(PQgetvalue(res, 0, 0), NULL, 10), ETCD_OK, NULL, q->arg);
	free_ask(q);
}

void engine_rev_before(struct engine *e, const char *interval,
	void (*cb)(int64_t rev, enum etcd_error err, const char *why, void *arg), void *arg)
{
	static const char sql[] =
		"SELECT coalesce((SELECT l.rev FROM howdah_watch.log l "
		"WHERE l.at < now() - $1::text::interval ORDER BY l.seq DESC LIMIT 1), 0)";
	struct ask *q = new_ask(e->aux, ASK_REV_BEFORE, sql, interval, NULL, on_rev_before, arg);

	q->cb.rev_before = cb;
	send_ask(q);
}

/* ---- removal ---- */

static const char young_name[] = "log_young", delete_name[] = "log_delete";
#define FIRST_YOUNG                                                                                \
	"SELECT min(y.n) FROM unnest($1::bigint[], $2::int[]) WITH ORDINALITY AS y (seq, sub, n) " \
	"JOIN howdah_watch.log l ON l.seq = y.seq AND l.sub = y.sub "                              \
	"WHERE l.at >= now() - interval '1 minute'"
static const char young_sql[] = FIRST_YOUNG;
static const char delete_sql[] = "DELETE FROM howdah_watch.log l USING unnest($1::bigint[], "
				 "$2::int[]) WITH ORDINALITY AS g (seq, sub, n) "
				 "WHERE l.seq = g.seq AND l.sub = g.sub "
				 "AND g.n < coalesce((" FIRST_YOUNG "), 1000000000)";

/* Takes a step's rows from the given one on back; not after the log was loaded anew: that found
 * them again. */
static void take_back(struct engine_aux *a, const struct step *st, size_t from)
{
	if (a->loads == a->e->counts.loads)
		store_return_garbage(a->e->store, &st->seqs[from], &st->subs[from], st->n - from);
}

/* Both statements are of one transaction, so now() is the same moment. */
static void on_young(PGresult *res, void *arg)
{
	struct engine_aux *a;

	OBJ_CAST(a, arg, MAGIC);
	if (PQresultStatus(res) != PGRES_TUPLES_OK)
		return;
	if (PQgetisnull(res, 0, 0))
		return;
	a->n_old = strtoull(PQgetvalue(res, 0, 0), NULL, 10) - 1;
	ASSERT(a->n_old < a->step.n);
}

static void on_deleted(PGresult *res, void *arg)
{
	struct engine_aux *a;
	char why[256];

	OBJ_CAST(a, arg, MAGIC);
	a->deleted = PQresultStatus(res) == PGRES_COMMAND_OK;
	if (a->deleted)
		a->n_deleted = strtoull(PQcmdTuples(res), NULL, 10);
	else if (res != NULL)
		log_limited(LOG_LEVEL_WARNING, "engine.remove", "cannot remove old rows: %s",
			pg_result_error(res, why, sizeof why));
}

static void on_removed(PGresult *res, void *arg)
{
	struct engine_aux *a;
	uint64_t rest;

	OBJ_CAST(a, arg, MAGIC);
	if (a->freed)
		return;
	a->removing = false;
	if (PQresultStatus(res) != PGRES_PIPELINE_SYNC || !a->deleted) {
		take_back(a, &a->step, 0);
		ev_timer_start(&a->rest, REMOVE_YOUNG_REST_MS);
		return;
	}
	take_back(a, &a->step, a->n_old);
	a->e->counts.removed_rows += a->n_deleted;
	rest = ev_now_ms() - a->begun_ms;
	if (rest < REMOVE_REST_MIN_MS)
		rest = REMOVE_REST_MIN_MS;
	ev_timer_start(&a->rest, a->n_deleted > 0 ? rest : REMOVE_YOUNG_REST_MS);
}

static int send_step_statement(struct engine_aux *a, const char *name, pgconn_result_fn cb,
	const struct buf *seqs, const struct buf *subs)
{
	const char *values[] = {(char *)seqs->data, (char *)subs->data};
	const int lengths[] = {(int)seqs->len_bytes, (int)subs->len_bytes};
	static const int formats[] = {1, 1};
	struct pgconn_query q = {.sql = name,
		.prepared = true,
		.n_params = 2,
		.values = values,
		.lengths = lengths,
		.formats = formats};

	return pgconn_query(a->remove, &q, cb, a);
}

static void send_step(struct engine_aux *a)
{
	struct buf seqs, subs;
	int err;

	buf_init(&seqs, 0);
	buf_init(&subs, 0);
	pg_array_begin(&seqs, 20);
	pg_array_begin(&subs, 23);
	for (size_t i = 0; i < a->step.n; i++) {
		buf_put_be32(&seqs, 8);
		buf_put_be64(&seqs, (uint64_t)a->step.seqs[i]);
		buf_put_be32(&subs, 4);
		buf_put_be32(&subs, (uint32_t)a->step.subs[i]);
	}
	pg_array_end(&seqs, a->step.n, false);
	pg_array_end(&subs, a->step.n, false);
	a->removing = true;
	a->deleted = false;
	a->n_old = a->step.n;
	a->begun_ms = ev_now_ms();
	err = send_step_statement(a, young_name, on_young, &seqs, &subs);
	if (err == 0)
		err = send_step_statement(a, delete_name, on_deleted, &seqs, &subs);
	if (err == 0)
		err = pgconn_sync(a->remove, on_removed, a);
	buf_free(&seqs);
	buf_free(&subs);
	if (err != 0) { /* the connection breaks */
		a->removing = false;
		take_back(a, &a->step, 0);
	}
}

/* Without the entry of our tip: it may be the log's. */
static void keep_tip(struct engine_aux *a)
{
	struct step kept = {.n = 0};
	size_t n = 0;

	for (size_t i = 0; i < a->step.n; i++) {
		struct step *to = a->step.seqs[i] >= a->e->tip.seq ? &kept : &a->step;
		size_t at = to == &kept ? kept.n++ : n++;

		to->seqs[at] = a->step.seqs[i];
		to->subs[at] = a->step.subs[i];
	}
	a->step.n = n;
	if (kept.n > 0)
		take_back(a, &kept, 0);
}

static void remove_some(struct engine_aux *a)
{
	if (a->removing || a->rest.active || !a->remove_ready || !engine_is_up(a->e) ||
		pgconn_get_state(a->remove) != PGCONN_UP)
		return;
	a->loads = a->e->counts.loads;
	a->step.n = store_take_garbage(a->e->store, a->step.seqs, a->step.subs, REMOVE_ROWS);
	keep_tip(a);
	if (a->step.n > 0)
		send_step(a);
}

static void on_rest(void *arg)
{
	struct engine_aux *a;

	OBJ_CAST(a, arg, MAGIC);
	remove_some(a);
}

/* ---- vacuum ---- */

/* The first that waits is sent, the others ride with it. */
static void vacuum_again(struct engine_aux *a)
{
	struct ask *first = NULL;

	list_for_each (it, &a->asks) {
		struct ask *q = list_entry(it, struct ask, link);

		if (q->kind != ASK_DEFRAGMENT || q->sent)
			continue;
		if (first == NULL) {
			first = q;
			send_ask(q);
		} else if (first->sent) {
			q->sent = q->rides = true;
		}
	}
}

static struct ask *next_rider(struct engine_aux *a)
{
	list_for_each (it, &a->asks)
		if (list_entry(it, struct ask, link)->rides)
			return list_entry(it, struct ask, link);
	return NULL;
}

static void on_vacuumed(PGresult *res, void *arg)
{
	struct ask *q = arg, *rider;
	struct engine_aux *a = q->aux;
	bool ok = answered(q, res);

	if (ok) {
		q->cb.defragment(ETCD_OK, q->arg);
		free_ask(q);
	}
	while (!a->freed && (rider = next_rider(a)) != NULL) {
		rider->rides = false;
		if (ok) {
			rider->cb.defragment(ETCD_OK, rider->arg);
			free_ask(rider);
		} else {
			fail_ask(rider);
		}
	}
	if (!a->freed)
		vacuum_again(a);
}

/* Behind a removal step, if one is under way; the next steps wait behind it. */
void engine_defragment(struct engine *e, void (*cb)(enum etcd_error err, void *arg), void *arg)
{
	struct ask *q = new_ask(e->aux, ASK_DEFRAGMENT, "VACUUM (TRUNCATE) howdah_watch.log", NULL,
		NULL, on_vacuumed, arg);

	q->cb.defragment = cb;
	send_ask(q);
}

/* ---- connections ---- */

static void on_size(PGresult *res, void *arg)
{
	struct engine_aux *a;

	OBJ_CAST(a, arg, MAGIC);
	if (!a->freed && PQresultStatus(res) == PGRES_TUPLES_OK)
		a->e->counts.db_bytes = strtoull(PQgetvalue(res, 0, 0), NULL, 10);
}

static void look_at_size(struct engine_aux *a)
{
	static const char sql[] = "SELECT pg_total_relation_size('howdah_watch.log')";

	if (pgconn_simple(a->ask, sql, 0, NULL, on_size, a) != 0)
		log_debug("engine.ask", "cannot look at the size yet");
}

static void on_tick(void *arg)
{
	struct engine_aux *a;

	OBJ_CAST(a, arg, MAGIC);
	ev_timer_start(&a->tick, TICK_MS);
	a->e->counts.reads_ended += store_age_pins(a->e->store, PIN_TICKS);
	engine_trim_later(a->e); /* pins may be gone */
	remove_some(a);
	if (!list_empty(&a->asks))
		ev_defer(a->e->loop, &a->fail, on_fail, a);
	if (a->n_ticks++ % SLOW_TICKS != 0 || pgconn_get_state(a->ask) != PGCONN_UP)
		return;
	look_at_size(a);
	if (!a->registered)
		register_member(a);
}

static void on_ask_up(struct pgconn *c, void *arg)
{
	struct engine_aux *a;

	(void)c;
	OBJ_CAST(a, arg, MAGIC);
	register_member(a);
	look_at_size(a);
	send_asks(a, a->ask);
}

/* Locks go with the session. */
static void drop_claims(struct engine_aux *a)
{
	list_for_each_safe (it, &a->claims)
		free_claim(list_entry(it, struct claim, link));
}

static void on_ask_down(struct pgconn *c, enum pg_class class, const char *why, void *arg)
{
	struct engine_aux *a;

	(void)c, (void)class, (void)why;
	OBJ_CAST(a, arg, MAGIC);
	drop_claims(a);
}

static void on_remove_prepared(PGresult *res, void *arg)
{
	struct engine_aux *a;

	OBJ_CAST(a, arg, MAGIC);
	if (a->freed || PQresultStatus(res) != PGRES_COMMAND_OK)
		return;
	a->remove_ready = true;
	send_asks(a, a->remove);
	remove_some(a);
}

static void on_remove_up(struct pgconn *c, void *arg)
{
	struct engine_aux *a;
	static const Oid types[] = {1016, 1007};
	int err = pgconn_prepare(c, young_name, young_sql, 2, types, NULL, NULL);

	OBJ_CAST(a, arg, MAGIC);
	if (err == 0)
		err = pgconn_prepare(c, delete_name, delete_sql, 2, types, on_remove_prepared, a);
	if (err == 0)
		err = pgconn_sync(c, NULL, NULL);
	(void)err; /* the connection breaks */
}

static void on_remove_down(struct pgconn *c, enum pg_class class, const char *why, void *arg)
{
	struct engine_aux *a;

	(void)c, (void)class, (void)why;
	OBJ_CAST(a, arg, MAGIC);
	a->remove_ready = false;
}

void engine_aux_up(struct engine_aux *a, const struct pgconn_peer *peer)
{
	OBJ_CHECK(a, MAGIC);
	a->up = true;
	pgconn_set_peer(a->ask, peer);
	pgconn_set_peer(a->remove, peer);
	pgconn_start(a->ask);
	pgconn_start(a->remove);
}

void engine_aux_down(struct engine_aux *a)
{
	OBJ_CHECK(a, MAGIC);
	a->up = a->remove_ready = false;
	pgconn_stop(a->ask);
	pgconn_stop(a->remove);
	drop_claims(a);
	ev_defer(a->e->loop, &a->fail, on_fail, a);
}

/* ---- life ---- */

static const char *const ask_setup[] = {
	"SELECT set_config(name, '0', false) FROM pg_settings "
	"WHERE name IN ('idle_session_timeout', 'idle_in_transaction_session_timeout')",
	NULL,
};

static const char *const remove_setup[] = {
	"SELECT set_config(name, '0', false) FROM pg_settings "
	"WHERE name IN ('idle_session_timeout', 'idle_in_transaction_session_timeout')",
	/* What a crash forgets is garbage again after the next load. */
	"SET synchronous_commit = off",
	/* Planned for a step's few rows in a large table, whatever the table was at the time. */
	"SET plan_cache_mode = force_generic_plan",
	"SET enable_seqscan = off",
	"SET enable_hashjoin = off",
	"SET enable_mergejoin = off",
	"SET jit = off",
	NULL,
};

struct engine_aux *engine_aux_new(struct engine *e)
{
	static const struct pgconn_ops ask_ops = {.on_up = on_ask_up, .on_down = on_ask_down};
	static const struct pgconn_ops remove_ops = {
		.on_up = on_remove_up, .on_down = on_remove_down};
	const struct pgconn_options ask_options = {
		.conninfo = e->conninfo,
		.application_name = "howdah watchd aux",
		.setup = ask_setup,
		.timeout_ms = ASK_TIMEOUT_MS,
	};
	const struct pgconn_options remove_options = {
		.conninfo = e->conninfo,
		.application_name = "howdah watchd remover",
		.setup = remove_setup,
	};
	struct engine_aux *a = mem_new(&mem_aux, sizeof *a);

	a->magic = MAGIC;
	a->e = e;
	list_init(&a->asks);
	list_init(&a->claims);
	a->ask = pgconn_new(e->loop, &ask_options, &ask_ops, a);
	a->remove = pgconn_new(e->loop, &remove_options, &remove_ops, a);
	ev_timer_init(&a->tick, e->loop, "engine aux", on_tick, a);
	ev_timer_init(&a->rest, e->loop, "engine removal", on_rest, a);
	ev_timer_start(&a->tick, TICK_MS);
	return a;
}

static void destroy(void *arg)
{
	struct engine_aux *a;

	OBJ_CAST(a, arg, MAGIC);
	list_for_each_safe (it, &a->asks)
		free_ask(list_entry(it, struct ask, link));
	drop_claims(a);
	a->magic = 0;
	mem_free(&mem_aux, a);
}

void engine_aux_free(struct engine_aux **ap)
{
	struct engine_aux *a = *ap;

	OBJ_CHECK(a, MAGIC);
	*ap = NULL;
	a->freed = true;
	pgconn_free(&a->ask);
	pgconn_free(&a->remove);
	ev_timer_stop(&a->tick);
	ev_timer_stop(&a->rest);
	ev_defer_cancel(a->e->loop, &a->fail);
	ev_defer(a->e->loop, &a->destroy, destroy, a);
}
