/* SPDX-License-Identifier: PostgreSQL */
/*
 * The engine when something goes wrong: connections cut in the worst moment, backends ended, lost
 * races, a database that went back. In the end each operation that was acknowledged is in the log
 * once, each that timed out at most once, and every node's memory is what the log says.
 */
#include "config.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/base/mem.h"
#include "tests/unit/engine_testing.h"

static struct engine_counts counts_of(struct node *n)
{
	struct engine_counts counts;

	engine_get_counts(n->e, &counts);
	return counts;
}

static struct node *start_through_proxy(struct fixture *f, const char *name)
{
	struct node *n;

	if (f->proxy == NULL)
		f->proxy = proxy_new(f->loop);
	n = open_node(f, name, proxy_conninfo(f->proxy), NULL);
	wait_until(f->loop, engine_is_up(n->e));
	return n;
}

/* ---- in doubt ---- */

/* The server did the work, and its answer is lost: found by its token, not done again. */
static void test_answer_lost(void **state)
{
	struct fixture *f = *state;
	struct node *a = start_through_proxy(f, "alpha");

	for (int i = 0; i < 10; i++) {
		char key[16];
		struct put *p, *q;

		snprintf(key, sizeof key, "k%d", i);
		p = submit(a, PUT, key, "v");
		ev_loop_once(f->loop, false);
		q = submit(a, PUT, "other", key);
		proxy_cut_answer(f->proxy, 1, 100);
		wait_until(f->loop, p->done && q->done);
		assert_int_equal(p->err, ETCD_OK);
		assert_int_equal(q->err, ETCD_OK);
		free(p);
		free(q);
		wait_until(f->loop, engine_is_up(a->e));
	}
	assert_true(counts_of(a).in_doubt_found > 0);
	assert_int_equal(log_count(f, "SELECT count(*) FROM howdah_watch.log WHERE kind = 1"), 20);
	assert_log_exact(f);
}

/* Puts that are sent again and again from their own completions. */
struct hammer {
	struct put put;
	struct node *node;
	size_t n_done, n_timeout;
	uint64_t deadline_ms;
	uint64_t sent_ms, longest_ms;
	bool stop, idle;
};

static void strike(struct hammer *h)
{
	snprintf(h->put.key, sizeof h->put.key, "%s-%p-%zu", h->node->name, (void *)h,
		h->n_done + h->n_timeout);
	h->put.op.deadline_ms = h->deadline_ms != 0 ? ev_now_ms() + h->deadline_ms : 0;
	h->sent_ms = ev_now_ms();
	engine_submit(h->node->e, &h->put.op);
}

static void on_struck(struct engine_op *op, enum etcd_error err)
{
	struct hammer *h = list_entry(list_entry(op, struct put, op), struct hammer, put);
	uint64_t took = ev_now_ms() - h->sent_ms;

	assert_true(err == ETCD_OK || (err == ETCD_TIMEOUT && h->deadline_ms != 0));
	if (err == ETCD_OK)
		h->n_done++;
	else
		h->n_timeout++;
	if (took > h->longest_ms)
		h->longest_ms = took;
	h->idle = h->stop;
	if (!h->idle)
		strike(h);
}

static struct hammer *hammer_new(struct node *n)
{
	struct hammer *h = xcalloc(1, sizeof *h);
	struct put *p = new_put(n->f, PUT, "", "hammered");

	h->put = *p;
	free(p);
	h->put.op.done = on_struck;
	h->node = n;
	return h;
}

static long puts_of(struct fixture *f, const struct hammer *h)
{
	char sql[256];

	snprintf(sql, sizeof sql,
		"SELECT count(*) FROM howdah_watch.log WHERE kind = 1 AND key LIKE '%s-%p-%%'",
		h->node->name, (const void *)h);
	return log_count(f, sql);
}

static void test_random_faults(void **state)
{
	struct fixture *f = *state;
	struct node *a = start_through_proxy(f, "alpha"), *b = start_node(f, "beta");
	struct hammer *h[8];
	unsigned seed = (unsigned)getpid();

	print_message("seed %u\n", seed);
	srand(seed);
	for (size_t i = 0; i < ARRAY_LEN(h); i++) {
		h[i] = hammer_new(i % 2 == 0 ? a : b);
		strike(h[i]);
	}
	for (int i = 0; i < 40; i++) {
		pg_testing_run(f->loop, (uint64_t)(rand() % 100));
		switch (rand() % 4) {
		case 0:
			proxy_cut(f->proxy);
			break;
		case 1:
			proxy_cut_answer(f->proxy, (size_t)(rand() % 2000), 30);
			break;
		case 2:
			pg_testing_on(f->pg,
				"SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
				"WHERE application_name LIKE 'howdah watchd %' ORDER BY random() "
				"LIMIT 1");
			break;
		default:
			pg_testing_on(f->pg, "SELECT pg_cancel_backend(pid) FROM pg_stat_activity "
					     "WHERE application_name = 'howdah watchd writer'");
		}
	}
	for (size_t i = 0; i < ARRAY_LEN(h); i++)
		h[i]->stop = true;
	for (size_t i = 0; i < ARRAY_LEN(h); i++) {
		wait_until(f->loop, h[i]->idle);
		assert_int_equal(puts_of(f, h[i]), h[i]->n_done);
		free(h[i]);
	}
	wait_until(f->loop, engine_is_up(a->e) && engine_is_up(b->e));
	assert_int_equal(run_read(a), ETCD_OK);
	assert_int_equal(run_read(b), ETCD_OK);
	assert_true(store_visible_seq(engine_store(a->e)) == store_visible_seq(engine_store(b->e)));
	assert_int_equal(store_visible_seq(engine_store(a->e)),
		log_count(f, "SELECT max(seq) FROM howdah_watch.log"));
	assert_int_equal(a->n_reloaded + b->n_reloaded, 0);
	assert_log_exact(f);
	print_message("found %llu, again %llu, lost %llu, turns %llu\n",
		(unsigned long long)(counts_of(a).in_doubt_found + counts_of(b).in_doubt_found),
		(unsigned long long)(counts_of(a).in_doubt_again + counts_of(b).in_doubt_again),
		(unsigned long long)(counts_of(a).lost_batches + counts_of(b).lost_batches),
		(unsigned long long)(counts_of(a).turns + counts_of(b).turns));
}

static void test_server_crash(void **state)
{
	struct fixture *f = *state;
	struct node *a = start_node(f, "alpha"), *b = start_node(f, "beta");
	struct hammer *h[4];

	for (size_t i = 0; i < ARRAY_LEN(h); i++) {
		h[i] = hammer_new(i % 2 == 0 ? a : b);
		strike(h[i]);
	}
	for (int i = 0; i < 3; i++) {
		long pid;
		size_t ups = a->n_up + b->n_up;

		pg_testing_run(f->loop, 100);
		pid = strtol(
			pg_testing_sql("SELECT pid FROM pg_stat_activity "
				       "WHERE application_name = 'howdah watchd writer' LIMIT 1"),
			NULL, 10);
		assert_int_equal(kill((pid_t)pid, SIGKILL), 0);
		wait_until(f->loop, a->n_up + b->n_up >= ups + 2);
	}
	for (size_t i = 0; i < ARRAY_LEN(h); i++)
		h[i]->stop = true;
	PQreset(f->pg);
	for (size_t i = 0; i < ARRAY_LEN(h); i++) {
		wait_until(f->loop, h[i]->idle);
		assert_int_equal(puts_of(f, h[i]), h[i]->n_done);
		free(h[i]);
	}
	assert_log_exact(f);
}

/* ---- lost races ---- */

/* Another node's entry at the next seq, in a transaction that is not over. */
static void foreign_entry(PGconn *pg)
{
	pg_testing_on(pg, "BEGIN");
	pg_testing_on(pg,
		"INSERT INTO howdah_watch.log (seq, rev, batch, create_rev, version, sub, kind, "
		"last, node, key, value) SELECT seq + 1, rev + 1, 4711, rev + 1, 1, 0, 1, true, "
		"'zeta', 'foreign', 'f' FROM howdah_watch.log ORDER BY seq DESC LIMIT 1");
}

/* Two batches in flight behind another's INSERT: both are lost, or both are not. */
static void two_behind(struct fixture *f, const char *end, size_t lost)
{
	struct node *a = start_node(f, "alpha");
	struct put *p, *q, *r;

	foreign_entry(f->pg);
	p = submit(a, PUT_IF_NEW, "foreign", "p");
	pg_testing_run(f->loop, 50);
	q = submit(a, PUT, "q", "q");
	pg_testing_run(f->loop, 50);
	assert_int_equal(counts_of(a).batches_in_flight, 2);
	r = submit(a, PUT_IF_NEW, "foreign", "r");
	pg_testing_run(f->loop, 50);
	assert_false(p->done || q->done || r->done);
	assert_int_equal(p->n_evals, 1);
	assert_int_equal(r->n_evals, 0);
	pg_testing_on(f->pg, end);
	wait_until(f->loop, p->done && q->done && r->done);
	assert_int_equal(counts_of(a).lost_batches, lost);
	assert_int_equal(p->n_evals, 1 + lost);
	assert_int_equal(q->n_evals, 1 + lost);
	assert_true(p->err == ETCD_OK && q->err == ETCD_OK && r->err == ETCD_OK);
	assert_true(p->found == (lost > 0) && r->found);
	assert_string_equal(value_in(a, "foreign"), lost > 0 ? "f" : "p");
	assert_string_equal(value_in(a, "q"), "q");
	assert_log_exact(f);
	free(p);
	free(q);
	free(r);
	close_node(f, a);
}

static void test_second_after_lost_first(void **state)
{
	two_behind(*state, "COMMIT", 1);
}

static void test_second_after_first(void **state)
{
	two_behind(*state, "ROLLBACK", 0);
}

/* A tip read shows another's entry before the INSERT has an answer. */
static void test_lost_by_tip_read(void **state)
{
	struct fixture *f = *state;
	struct node *a = start_node(f, "alpha");
	struct put *p;

	assert_int_equal(run_put(a, PUT, "first", "1"), ETCD_OK);
	foreign_entry(f->pg);
	p = submit(a, PUT, "k", "v");
	pg_testing_run(f->loop, 50);
	pg_testing_on(f->pg, "COMMIT");
	assert_int_equal(run_read(a), ETCD_OK);
	wait_until(f->loop, p->done);
	assert_string_equal(value_in(a, "foreign"), "f");
	assert_string_equal(value_in(a, "k"), "v");
	assert_int_equal(p->rev, 4);
	assert_log_exact(f);
	free(p);
}

static bool each_did(struct hammer *const *h, size_t n, uint64_t n_puts)
{
	for (size_t i = 0; i < n; i++)
		if (h[i]->n_done < n_puts)
			return false;
	return true;
}

/* One node hammers with many clients, the other with one: neither keeps the other from putting. */
static void test_progress(void **state)
{
	struct fixture *f = *state;
	struct node *a = start_node(f, "alpha"), *b = start_node(f, "beta");
	struct hammer *busy[16], *h = hammer_new(b);

	for (size_t i = 0; i < ARRAY_LEN(busy); i++) {
		busy[i] = hammer_new(a);
		strike(busy[i]);
	}
	strike(h);
	wait_until(f->loop, h->n_done >= 200 && each_did(busy, ARRAY_LEN(busy), 50));
	print_message("%llu puts beside a busy node, longest %llu ms; lost %llu and %llu, "
		      "turns %llu and %llu\n",
		(unsigned long long)h->n_done, (unsigned long long)h->longest_ms,
		(unsigned long long)counts_of(b).lost_batches,
		(unsigned long long)counts_of(a).lost_batches,
		(unsigned long long)counts_of(b).turns, (unsigned long long)counts_of(a).turns);
	assert_true(h->longest_ms < 5000);
	h->stop = true;
	for (size_t i = 0; i < ARRAY_LEN(busy); i++)
		busy[i]->stop = true;
	wait_until(f->loop, h->idle);
	free(h);
	for (size_t i = 0; i < ARRAY_LEN(busy); i++) {
		wait_until(f->loop, busy[i]->idle);
		free(busy[i]);
	}
	assert_log_exact(f);
}

/* Somebody has the turn and sits on it: nobody writes, and then all do. */
static void test_turn_is_waited_for(void **state)
{
	struct fixture *f = *state;
	struct node *a = start_node(f, "alpha"), *b = start_node(f, "beta");
	struct put *p, *q;

	pg_testing_on(f->pg, "BEGIN");
	pg_testing_on(
		f->pg, "SELECT pg_advisory_xact_lock(hashtextextended('howdah_watch turn', 0))");
	p = submit(a, PUT, "p", "p");
	q = submit(b, PUT, "q", "q");
	pg_testing_run(f->loop, 300);
	assert_false(p->done || q->done);
	assert_int_equal(run_read(a), ETCD_OK);
	assert_int_equal(counts_of(a).turns, 1);
	assert_int_equal(counts_of(b).turns, 1);
	pg_testing_on(f->pg, "COMMIT");
	wait_until(f->loop, p->done && q->done);
	assert_int_equal(p->err, ETCD_OK);
	assert_int_equal(q->err, ETCD_OK);
	free(p);
	free(q);
	assert_int_equal(run_put(a, PUT, "p", "again"), ETCD_OK);
	assert_log_exact(f);
}

/* A node that is stopped in its turn: the server takes it back. */
static void test_stopped_in_its_turn(void **state)
{
	struct fixture *f = *state;
	struct node *a = start_node(f, "alpha"), *b = start_through_proxy(f, "beta");
	struct put *p, *q;

	pg_testing_on(f->pg, "BEGIN");
	pg_testing_on(
		f->pg, "SELECT pg_advisory_xact_lock(hashtextextended('howdah_watch turn', 0))");
	p = submit(b, PUT, "p", "p");
	wait_until(f->loop, counts_of(b).turns == 1);
	pg_testing_run(f->loop, 50);
	proxy_freeze(f->proxy, true);
	pg_testing_on(f->pg, "COMMIT"); /* beta has the turn now and does not know it */
	q = submit(a, PUT, "q", "q");
	wait_until(f->loop, q->done);
	assert_int_equal(q->err, ETCD_OK);
	assert_false(p->done);
	proxy_freeze(f->proxy, false);
	wait_until(f->loop, p->done);
	assert_int_equal(p->err, ETCD_OK);
	free(p);
	free(q);
	assert_log_exact(f);
}

/* ---- deadlines ---- */

static void test_timeouts(void **state)
{
	struct fixture *f = *state;
	struct node *a = start_through_proxy(f, "alpha");
	struct put *p = new_put(f, PUT, "k", "v"), *q = new_put(f, PUT, "k2", "v");
	uint64_t begin = ev_now_ms();

	f->n_outstanding += 2;
	proxy_freeze(f->proxy, true);
	p->op.deadline_ms = begin + 200; /* sent */
	engine_submit(a->e, &p->op);
	wait_until(f->loop, p->done);
	assert_int_equal(p->err, ETCD_TIMEOUT);
	assert_true(ev_now_ms() - begin >= 200 && ev_now_ms() - begin < 2000);
	proxy_cut(f->proxy);
	q->op.deadline_ms = ev_now_ms() + 200; /* waiting for the database */
	engine_submit(a->e, &q->op);
	wait_until(f->loop, q->done);
	assert_int_equal(q->err, ETCD_TIMEOUT);
	assert_false(engine_is_up(a->e));
	assert_true(engine_is_loaded(a->e));
	proxy_freeze(f->proxy, false);
	assert_int_equal(run_put(a, PUT, "k3", "v"), ETCD_OK);
	assert_string_equal(value_in(a, "k2"), ""); /* it was never evaluated */
	assert_int_equal(counts_of(a).timeouts, 2);
	assert_log_exact(f);
	free(p);
	free(q);
}

static void on_read_done(struct engine_read *r, enum etcd_error err)
{
	struct get *g = list_entry(r, struct get, read);

	g->done = true;
	g->err = err;
}

static void test_reads_while_away(void **state)
{
	struct fixture *f = *state;
	struct node *a = start_through_proxy(f, "alpha");
	struct get g[2] = {{.read.done = on_read_done}, {.read.done = on_read_done}};

	proxy_freeze(f->proxy, true);
	g[0].read.deadline_ms = ev_now_ms() + 200;
	engine_read(a->e, &g[0].read);
	engine_read(a->e, &g[1].read);
	wait_until(f->loop, g[0].done);
	assert_int_equal(g[0].err, ETCD_TIMEOUT);
	assert_false(g[1].done);
	proxy_cut(f->proxy);
	proxy_freeze(f->proxy, false);
	wait_until(f->loop, g[1].done);
	assert_int_equal(g[1].err, ETCD_OK);
}

/* ---- another history ---- */

static void test_went_back(void **state)
{
	struct fixture *f = *state;
	struct node *a = start_node(f, "alpha"), *b = start_node(f, "beta");
	uint64_t id = store_cluster_id(engine_store(a->e));

	for (int i = 0; i < 10; i++)
		assert_int_equal(run_put(a, PUT, "k", i == 4 ? "kept" : "lost"), ETCD_OK);
	assert_int_equal(run_read(b), ETCD_OK);
	pg_testing_on(f->pg, "DELETE FROM howdah_watch.log WHERE seq > 6");
	assert_int_equal(run_read(a), ETCD_OK);
	wait_until(f->loop, a->n_reloaded == 1);
	assert_true(a->went_back);
	assert_string_equal(value_in(a, "k"), "kept");
	assert_true(store_cluster_id(engine_store(a->e)) != id);
	/* beta finds that it was said already. */
	assert_int_equal(run_read(b), ETCD_OK);
	wait_until(f->loop, b->n_reloaded == 1);
	assert_true(b->went_back);
	assert_true(store_cluster_id(engine_store(a->e)) == store_cluster_id(engine_store(b->e)));
	assert_int_equal(log_count(f, "SELECT count(*) FROM howdah_watch.log WHERE kind = 9"), 2);
	assert_int_equal(run_put(b, PUT, "k", "new"), ETCD_OK);
	assert_int_equal(run_put(a, PUT_IF_NEW, "k", "no"), ETCD_OK);
	assert_string_equal(value_in(a, "k"), "new");
	assert_log_exact(f);
}

/* Back, and on by another's hand to where we were: the number is the same, the batch is not. */
static void test_went_back_and_on(void **state)
{
	struct fixture *f = *state;
	struct node *a = start_node(f, "alpha");
	struct put *p;

	for (int i = 0; i < 5; i++)
		assert_int_equal(run_put(a, PUT, "k", "v"), ETCD_OK);
	pg_testing_on(
		f->pg, "UPDATE howdah_watch.log SET batch = batch + 1, value = 'w' WHERE seq = 6");
	p = submit(a, PUT, "k2", "v");
	wait_until(f->loop, a->n_reloaded == 1 && p->done);
	assert_true(a->went_back);
	assert_int_equal(p->err, ETCD_OK);
	assert_string_equal(value_in(a, "k"), "w");
	assert_string_equal(value_in(a, "k2"), "v");
	free(p);
	assert_log_exact(f);
}

static void test_emptied(void **state)
{
	struct fixture *f = *state;
	struct node *a = start_node(f, "alpha");

	assert_int_equal(run_put(a, PUT, "k", "v"), ETCD_OK);
	pg_testing_on(f->pg, "TRUNCATE howdah_watch.log");
	assert_int_equal(run_read(a), ETCD_OK);
	/* Nobody is answered from the new history before it is told. */
	assert_true(a->n_reloaded == 1 && engine_is_up(a->e));
	assert_true(a->went_back);
	assert_string_equal(value_in(a, "k"), "");
	assert_int_equal(store_visible_rev(engine_store(a->e)), 1);
	assert_int_equal(run_put(a, PUT, "k", "v"), ETCD_OK);
	assert_log_exact(f);
}

/* What a late node has not seen was compacted and removed: loaded anew, the same history. */
static void test_gap(void **state)
{
	struct fixture *f = *state;
	struct node *a = start_node(f, "alpha"), *b = start_node(f, "beta");
	uint64_t id = store_cluster_id(engine_store(a->e));

	assert_int_equal(run_put(a, PUT, "k", "old"), ETCD_OK);
	assert_int_equal(run_read(b), ETCD_OK);
	for (int i = 0; i < 20; i++)
		assert_int_equal(run_put(a, PUT, "k", "new"), ETCD_OK);
	assert_int_equal(run_put(a, COMPACT, "", "20"), ETCD_OK);
	assert_int_equal(run_put(a, PUT, "k2", "v2"), ETCD_OK);
	pg_testing_on(f->pg, "DELETE FROM howdah_watch.log WHERE kind = 1 AND rev < 20");
	assert_int_equal(run_read(b), ETCD_OK);
	wait_until(f->loop, b->n_reloaded == 1);
	assert_false(b->went_back);
	assert_true(store_cluster_id(engine_store(b->e)) == id);
	assert_string_equal(value_in(b, "k"), "new");
	assert_string_equal(value_in(b, "k2"), "v2");
	assert_int_equal(store_compact_rev(engine_store(b->e)), 20);
	assert_int_equal(run_put(b, PUT, "k", "newer"), ETCD_OK);
	assert_int_equal(run_read(a), ETCD_OK);
	assert_string_equal(value_in(a, "k"), "newer");
	assert_int_equal(a->n_reloaded, 0);
}

/* A late node writes: its tip is there, and what stood above it was removed. */
static void test_gap_above_the_tip(void **state)
{
	struct fixture *f = *state;
	struct node *a = start_node(f, "alpha"), *b = start_node(f, "beta");

	assert_int_equal(run_put(a, PUT, "kept", "v"), ETCD_OK);
	assert_int_equal(run_read(b), ETCD_OK);
	for (int i = 0; i < 20; i++)
		assert_int_equal(run_put(a, PUT, "k", "new"), ETCD_OK);
	assert_int_equal(run_put(a, COMPACT, "", "20"), ETCD_OK);
	pg_testing_on(
		f->pg, "DELETE FROM howdah_watch.log WHERE kind = 1 AND rev BETWEEN 3 AND 19");
	assert_int_equal(run_put(b, PUT, "k", "newest"), ETCD_OK);
	assert_int_equal(b->n_reloaded, 1);
	assert_false(b->went_back);
	assert_int_equal(store_visible_rev(engine_store(b->e)), 23);
	assert_int_equal(run_read(a), ETCD_OK);
	assert_string_equal(value_in(a, "k"), "newest");
	assert_int_equal(store_visible_rev(engine_store(a->e)), 23);
}

/* A late node reads on in steps; entries are larger than a step. */
static void test_long_tip_read(void **state)
{
	struct fixture *f = *state;
	struct node *a = start_node(f, "alpha"), *b = start_node(f, "beta");

	pg_testing_on(f->pg,
		"INSERT INTO howdah_watch.log (seq, rev, batch, create_rev, version, sub, kind, "
		"last, "
		"node, key, value) SELECT 2 + e, 2 + e, 77, 2 + e, 1, s, 1, s = 4999, 'zeta', "
		"convert_to(e || '-' || s, 'UTF8'), 'v' FROM generate_series(0, 3) e, "
		"generate_series(0, 4999) s");
	assert_int_equal(run_read(b), ETCD_OK);
	assert_int_equal(store_visible_rev(engine_store(b->e)), 5);
	assert_string_equal(value_in(b, "3-4999"), "v");
	assert_int_equal(run_put(a, PUT, "k", "v"), ETCD_OK);
	assert_int_equal(store_visible_rev(engine_store(a->e)), 6);
	assert_log_exact(f);
}

static void test_free_at_any_time(void **state)
{
	struct fixture *f = *state;

	/* One turn of the loop more each time; once all is answered it only idles. */
	for (int turns = 0, n_idle = 0; n_idle < 5; turns++) {
		assert_true(turns < 1000);
		struct node *a = open_node(f, "alpha", "", NULL);
		struct put *p = new_put(f, PUT, "k", "v");
		struct get g = {.read.done = on_read_done};

		p->op.deadline_ms = ev_now_ms() + 10000;
		f->n_outstanding++;
		engine_submit(a->e, &p->op);
		engine_read(a->e, &g.read);
		for (int i = 0; i < turns; i++)
			ev_loop_once(f->loop, true);
		n_idle += p->done && g.done;
		engine_cancel(a->e, &p->op);
		engine_read_cancel(a->e, &g.read);
		close_node(f, a);
		free(p);
	}
}

int main(void)
{
#define TEST(fn)                                                                                   \
	cmocka_unit_test_setup_teardown(fn, engine_testing_set_up, engine_testing_tear_down)
	const struct CMUnitTest tests[] = {
		TEST(test_answer_lost),
		TEST(test_random_faults),
		TEST(test_server_crash),
		TEST(test_second_after_lost_first),
		TEST(test_second_after_first),
		TEST(test_lost_by_tip_read),
		TEST(test_progress),
		TEST(test_turn_is_waited_for),
		TEST(test_stopped_in_its_turn),
		TEST(test_timeouts),
		TEST(test_reads_while_away),
		TEST(test_went_back),
		TEST(test_went_back_and_on),
		TEST(test_emptied),
		TEST(test_gap),
		TEST(test_gap_above_the_tip),
		TEST(test_long_tip_read),
		TEST(test_free_at_any_time),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
