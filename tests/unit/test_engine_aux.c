/* SPDX-License-Identifier: PostgreSQL */
/*
 * The engine's limits and its side work: removal, quota, claims, members, revisions by time,
 * vacuum, draining.
 */
#include "config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/mem.h"
#include "tests/unit/engine_testing.h"

static struct engine_counts counts_of(struct node *n)
{
	struct engine_counts counts;

	engine_get_counts(n->e, &counts);
	return counts;
}

/* What the store says of itself when it is loaded from the log as it is now. */
static uint32_t hash_of(struct node *n)
{
	struct store *s = engine_store(n->e);
	struct store_hash h = {.rev = store_visible_rev(s)};

	while (store_hash_step(s, &h, 1000))
		;
	store_hash_end(&h);
	return h.crc;
}

static void age_log(struct fixture *f)
{
	pg_testing_on(f->pg, "UPDATE howdah_watch.log SET at = at - interval '2 minutes'");
}

static void test_removal(void **state)
{
	struct fixture *f = *state;
	struct node *a = start_node(f, "alpha");
	uint32_t hash;

	for (int i = 0; i < 50; i++) {
		char key[16];

		snprintf(key, sizeof key, "k%d", i % 5);
		assert_int_equal(run_put(a, PUT, key, "v"), ETCD_OK);
	}
	assert_int_equal(run_put(a, DELETE_IT, "k0", ""), ETCD_OK);
	assert_int_equal(run_put(a, PUT, "k1", "v"), ETCD_OK);
	assert_int_equal(run_put(a, COMPACT, "", "53"), ETCD_OK);
	/* Too young: they stay. */
	pg_testing_run(f->loop, 1500);
	assert_int_equal(log_count(f, "SELECT count(*) FROM howdah_watch.log"), 54);
	age_log(f);
	/* ERA, 4 keys; the compaction is the tip. */
	wait_until(f->loop, log_count(f, "SELECT count(*) FROM howdah_watch.log") == 6);
	wait_until(f->loop, counts_of(a).removed_rows == 48);
	hash = hash_of(a);
	close_node(f, a);
	a = start_node(f, "alpha");
	assert_int_equal(hash_of(a), hash);
	assert_int_equal(store_visible_rev(engine_store(a->e)), 53);
	assert_int_equal(store_compact_rev(engine_store(a->e)), 53);
	assert_string_equal(value_in(a, "k0"), "");
	assert_string_equal(value_in(a, "k1"), "v");
	assert_int_equal(run_put(a, PUT_IF_NEW, "k0", "v"), ETCD_OK);
	assert_string_equal(value_in(a, "k0"), "v");
}

/* Compacted at the last revision: its tombstone stays, for a watch that begins there. */
static void test_compacted_at_the_end(void **state)
{
	struct fixture *f = *state;
	struct node *a = start_node(f, "alpha");

	assert_int_equal(run_put(a, PUT, "k", "v"), ETCD_OK);
	assert_int_equal(run_put(a, COMPACT, "", "2"), ETCD_OK);
	assert_int_equal(run_put(a, PUT, "k", "v"), ETCD_OK);
	assert_int_equal(run_put(a, COMPACT, "", "3"), ETCD_OK);
	assert_int_equal(run_put(a, DELETE_IT, "k", ""), ETCD_OK);
	assert_int_equal(run_put(a, COMPACT, "", "4"), ETCD_OK);
	age_log(f);
	wait_until(f->loop, log_count(f, "SELECT count(*) FROM howdah_watch.log") == 3);
	pg_testing_run(f->loop, 1500);
	assert_string_equal(pg_testing_on(f->pg, "SELECT string_agg(kind::text, ' ' ORDER BY seq) "
						 "FROM howdah_watch.log"),
		"9 2 6");
	assert_int_equal(run_put(a, PUT, "k", "new"), ETCD_OK);
	close_node(f, a);
	a = start_node(f, "alpha");
	assert_string_equal(value_in(a, "k"), "new");
	assert_int_equal(store_visible_rev(engine_store(a->e)), 5);
}

/* The order of `at` is not that of the log: a tombstone stays as long as its put does. */
static void test_removal_keeps_order(void **state)
{
	static const char rows[] = "SELECT count(*) FROM howdah_watch.log WHERE kind IN (1, 2)";
	struct fixture *f = *state;
	struct node *a = start_node(f, "alpha");

	for (int i = 0; i < 3; i++) {
		assert_int_equal(run_put(a, PUT, "k", "v"), ETCD_OK);
		assert_int_equal(run_put(a, DELETE_IT, "k", ""), ETCD_OK);
	}
	assert_int_equal(run_put(a, PUT, "k2", "v"), ETCD_OK);
	assert_int_equal(run_put(a, COMPACT, "", "8"), ETCD_OK);
	pg_testing_on(f->pg, "UPDATE howdah_watch.log SET at = at - interval '2 minutes' "
			     "WHERE rev <> 4");
	wait_until(f->loop, counts_of(a).removed_rows == 2);
	pg_testing_run(f->loop, 1500);
	assert_int_equal(log_count(f, rows), 5);
	close_node(f, a);
	a = start_node(f, "alpha");
	assert_string_equal(value_in(a, "k"), "");
	age_log(f);
	wait_until(f->loop, log_count(f, rows) == 1);
	assert_string_equal(value_in(a, "k2"), "v");
}

static void test_quota(void **state)
{
	struct fixture *f = *state;
	struct engine_options o = {.quota_bytes = 20000};
	struct node *a = open_node(f, "alpha", "", &o);
	struct put *p;
	enum etcd_error err = ETCD_OK;

	wait_until(f->loop, engine_is_up(a->e));
	for (int i = 0; i < 1000 && err == ETCD_OK; i++) {
		char key[16];

		snprintf(key, sizeof key, "k%d", i);
		p = new_put(f, PUT, key, "0123456789");
		p->op.grows = true;
		f->n_outstanding++;
		engine_submit(a->e, &p->op);
		wait_until(f->loop, p->done);
		err = p->err;
		free(p);
	}
	assert_int_equal(err, ETCD_NO_SPACE);
	wait_until(f->loop, store_has_alarm(engine_store(a->e), 1));
	assert_true(a->n_rows > 0);
	assert_int_equal(log_count(f, "SELECT count(*) FROM howdah_watch.log WHERE kind = 7"), 1);
	/* What does not grow goes on. */
	assert_int_equal(run_put(a, DELETE_IT, "k0", ""), ETCD_OK);
	assert_log_exact(f);
}

static void test_overload(void **state)
{
	struct fixture *f = *state;
	struct engine_options o = {.max_waiting_ops = 3};
	struct node *a = open_node(f, "alpha", "", &o);
	struct put *p[5];

	wait_until(f->loop, engine_is_up(a->e));
	for (int i = 0; i < 5; i++)
		p[i] = submit(a, PUT, "k", "v");
	wait_until(f->loop, f->n_outstanding == 0);
	for (int i = 0; i < 5; i++) {
		assert_int_equal(p[i]->err, i < 3 ? ETCD_OK : ETCD_TOO_MANY_REQUESTS);
		free(p[i]);
	}
	assert_int_equal(counts_of(a).refused, 2);
	assert_int_equal(run_put(a, PUT, "k", "v"), ETCD_OK);
}

static void test_cancel(void **state)
{
	struct fixture *f = *state;
	struct node *a = start_node(f, "alpha");
	struct put *p = submit(a, PUT, "k", "v"), *q = submit(a, PUT, "k2", "v");

	engine_cancel(a->e, &p->op); /* waiting */
	ev_loop_once(f->loop, false);
	engine_cancel(a->e, &q->op); /* in flight, or done */
	free(p);
	free(q);
	f->n_outstanding = 0;
	assert_int_equal(run_put(a, PUT, "k3", "v"), ETCD_OK);
	assert_int_equal(counts_of(a).ops_waiting, 0);
	assert_int_equal(counts_of(a).bytes_waiting, 0);
	assert_string_equal(value_in(a, "k"), "");
}

/* ---- questions ---- */

struct answer {
	bool done, alive;
	enum etcd_error err;
	int64_t rev;
	char text[256];
	size_t n;
};

static void on_claim(const char *node, bool alive, enum etcd_error err, void *arg)
{
	struct answer *a = arg;

	a->done = true;
	a->alive = alive;
	a->err = err;
	snprintf(a->text, sizeof a->text, "%s", node);
}

static bool is_alive(struct node *asker, const char *node)
{
	struct answer a = {.done = false};

	engine_claim(asker->e, node, on_claim, &a);
	assert_false(a.done);
	wait_until(asker->f->loop, a.done);
	assert_int_equal(a.err, ETCD_OK);
	assert_string_equal(a.text, node);
	return a.alive;
}

static void test_claim(void **state)
{
	struct fixture *f = *state;
	struct node *a = start_node(f, "alpha"), *b = start_node(f, "beta"), *c;

	pg_testing_run(f->loop, 200); /* for the connections of the questions */
	assert_true(is_alive(a, "beta"));
	assert_true(is_alive(a, "alpha"));
	close_node(f, b);
	wait_until(f->loop, !is_alive(a, "beta"));
	/* Claimed: beta is kept away. */
	b = open_node(f, "beta", "", NULL);
	pg_testing_run(f->loop, 300);
	assert_false(engine_is_up(b->e));
	c = start_node(f, "gamma");
	pg_testing_run(f->loop, 200);
	assert_true(is_alive(c, "beta"));
	engine_claim_end(a->e, "beta");
	wait_until(f->loop, engine_is_up(b->e));
	assert_true(is_alive(a, "beta"));
}

static void on_members(const struct engine_member *m, size_t n, enum etcd_error err, void *arg)
{
	struct answer *a = arg;

	a->done = true;
	a->err = err;
	a->n = n;
	a->text[0] = '\0';
	for (size_t i = 0; i < n; i++) {
		size_t len = strlen(a->text);

		assert_true(m[i].id == engine_member_id(m[i].node));
		snprintf(a->text + len, sizeof a->text - len, "%s=%s ", m[i].node,
			m[i].advertise_url);
	}
}

static const char *members(struct node *n)
{
	static struct answer a;

	a.done = false;
	engine_members(n->e, on_members, &a);
	wait_until(n->f->loop, a.done);
	assert_int_equal(a.err, ETCD_OK);
	return a.text;
}

static void test_members(void **state)
{
	struct fixture *f = *state;
	struct node *a = start_node(f, "alpha"), *b;

	pg_testing_run(f->loop, 200);
	/* Not registered by walstreamd yet: it knows itself at least. */
	assert_string_equal(members(a), "alpha=http://127.0.0.1:2379 ");
	pg_testing_on(f->pg, "INSERT INTO howdah.node (name, instance, system_identifier, slot) "
			     "VALUES ('alpha', 'i', '1', 's'), ('beta', 'i', '1', 's')");
	b = start_node(f, "beta");
	wait_until(f->loop, log_count(f, "SELECT count(*) FROM howdah_watch.member") == 2);
	assert_string_equal(members(a), "alpha=http://127.0.0.1:2379 beta=http://127.0.0.1:2379 ");
	assert_string_equal(members(a), members(b));
	close_node(f, b);
	pg_testing_on(f->pg, "DELETE FROM howdah.node WHERE name = 'beta'");
	assert_string_equal(members(a), "alpha=http://127.0.0.1:2379 ");
}

static void on_rev(int64_t rev, enum etcd_error err, const char *why, void *arg)
{
	struct answer *a = arg;

	a->done = true;
	a->rev = rev;
	a->err = err;
	snprintf(a->text, sizeof a->text, "%s", why != NULL ? why : "");
}

static int64_t rev_before(struct node *n, const char *interval)
{
	struct answer a = {.done = false};

	engine_rev_before(n->e, interval, on_rev, &a);
	wait_until(n->f->loop, a.done);
	assert_int_equal(a.err, ETCD_OK);
	assert_true((a.rev == -1) == (a.text[0] != '\0'));
	return a.rev;
}

static void test_rev_before(void **state)
{
	struct fixture *f = *state;
	struct node *a = start_node(f, "alpha");

	for (int i = 0; i < 5; i++)
		assert_int_equal(run_put(a, PUT, "k", "v"), ETCD_OK);
	pg_testing_on(
		f->pg, "UPDATE howdah_watch.log SET at = at - interval '7 days' WHERE rev <= 4");
	pg_testing_run(f->loop, 100);
	assert_int_equal(rev_before(a, "6 days"), 4);
	assert_int_equal(rev_before(a, "8 days"), 0);
	assert_int_equal(rev_before(a, "0"), 6);
	assert_int_equal(rev_before(a, "a while"), -1);
}

static void on_defragmented(enum etcd_error err, void *arg)
{
	struct answer *a = arg;

	a->done = true;
	a->err = err;
}

static void test_defragment(void **state)
{
	struct fixture *f = *state;
	struct node *a = start_node(f, "alpha");
	struct answer d = {.done = false};

	pg_testing_on(f->pg,
		"INSERT INTO howdah_watch.log (seq, rev, batch, sub, kind, last, node) SELECT "
		"s, 1, 5, 0, 5, true, 'x' FROM generate_series(2, 20000) s");
	close_node(f, a);
	pg_testing_on(f->pg, "DELETE FROM howdah_watch.log WHERE seq > 1");
	a = start_node(f, "alpha");
	wait_until(f->loop, counts_of(a).db_bytes > 1000000);
	engine_defragment(a->e, on_defragmented, &d);
	wait_until(f->loop, d.done);
	assert_int_equal(d.err, ETCD_OK);
	wait_until(f->loop, counts_of(a).db_bytes < 1000000);
}

static void on_counted(enum etcd_error err, void *arg)
{
	unsigned *n = arg;

	assert_int_equal(err, ETCD_OK);
	++*n;
}

static void on_refusable(const struct engine_member *m, size_t n, enum etcd_error err, void *arg)
{
	unsigned *counts = arg;

	(void)m, (void)n;
	assert_true(err == ETCD_OK || err == ETCD_TOO_MANY_REQUESTS);
	counts[err == ETCD_OK ? 0 : 1]++;
}

/* Vacuums that are asked for together are two at most; questions are limited. */
static void test_many_questions(void **state)
{
	struct fixture *f = *state;
	struct node *a = start_node(f, "alpha");
	unsigned n_vacuumed = 0, counts[2] = {0, 0};

	for (int i = 0; i < 20; i++)
		engine_defragment(a->e, on_counted, &n_vacuumed);
	wait_until(f->loop, n_vacuumed == 20);
	pg_testing_on(
		f->pg, "SELECT pg_sleep(0.6), pg_stat_clear_snapshot()"); /* statistics come late */
	assert_in_range(atoi(pg_testing_on(f->pg, "SELECT vacuum_count FROM pg_stat_user_tables "
						  "WHERE relid = 'howdah_watch.log'::regclass")),
		1, 2);
	for (int i = 0; i < 1500; i++)
		engine_members(a->e, on_refusable, counts);
	wait_until(f->loop, counts[0] + counts[1] == 1500);
	assert_int_equal(counts[0], 1000);
	assert_int_equal(counts[1], 500);
}

static void on_confirmed(struct engine_read *r, enum etcd_error err)
{
	struct get *g = list_entry(r, struct get, read);

	g->done = true;
	g->err = err;
}

static void test_confirm(void **state)
{
	struct fixture *f = *state;
	struct node *a = start_node(f, "alpha");
	struct get g[3] = {{.read.done = on_confirmed}, {.read.done = on_confirmed},
		{.read.done = on_confirmed}};

	engine_confirm(a->e, &g[0].read);
	engine_confirm(a->e, &g[1].read);
	wait_until(f->loop, g[0].done && g[1].done);
	assert_int_equal(g[0].err, ETCD_OK);
	/* Without the session there is no proof. */
	pg_testing_on(f->pg, "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
			     "WHERE application_name = 'howdah watchd writer'");
	pg_testing_on(f->pg, "SELECT pg_advisory_lock(hashtext('alpha'), hashtext('watchd'))");
	g[2].read.deadline_ms = ev_now_ms() + 300;
	engine_confirm(a->e, &g[2].read);
	wait_until(f->loop, g[2].done);
	assert_int_equal(g[2].err, ETCD_TIMEOUT);
	pg_testing_on(f->pg, "SELECT pg_advisory_unlock_all()");
	wait_until(f->loop, engine_is_up(a->e));
}

static void on_drained(void *arg)
{
	*(bool *)arg = true;
}

static void test_drain(void **state)
{
	struct fixture *f = *state;
	struct node *a = start_node(f, "alpha");
	struct put *p = submit(a, PUT, "k", "v"), *q;
	bool drained = false;

	engine_drain(a->e, on_drained, &drained);
	q = submit(a, PUT, "k2", "v");
	wait_until(f->loop, drained);
	assert_true(p->done && q->done);
	assert_int_equal(p->err, ETCD_OK);
	assert_int_equal(q->err, ETCD_STOPPED);
	free(p);
	free(q);
	/* The place is free at once. */
	close_node(f, a);
	a = start_node(f, "alpha");
	assert_string_equal(value_in(a, "k"), "v");
}

/* Without a database nothing is waited for. */
static void test_drain_while_away(void **state)
{
	struct fixture *f = *state;
	struct node *a;
	struct put *p, *q;
	bool drained = false;

	f->proxy = proxy_new(f->loop);
	a = open_node(f, "alpha", proxy_conninfo(f->proxy), NULL);
	wait_until(f->loop, engine_is_up(a->e));
	proxy_freeze(f->proxy, true);
	p = submit(a, PUT, "k", "v");
	pg_testing_run(f->loop, 50);
	q = submit(a, PUT, "k2", "v");
	proxy_cut(f->proxy);
	engine_drain(a->e, on_drained, &drained);
	wait_until(f->loop, drained);
	assert_true(p->done && q->done);
	assert_int_equal(q->err, ETCD_STOPPED);
	free(p);
	free(q);
}

int main(void)
{
#define TEST(fn)                                                                                   \
	cmocka_unit_test_setup_teardown(fn, engine_testing_set_up, engine_testing_tear_down)
	const struct CMUnitTest tests[] = {
		TEST(test_removal),
		TEST(test_removal_keeps_order),
		TEST(test_compacted_at_the_end),
		TEST(test_quota),
		TEST(test_overload),
		TEST(test_cancel),
		TEST(test_claim),
		TEST(test_members),
		TEST(test_rev_before),
		TEST(test_defragment),
		TEST(test_many_questions),
		TEST(test_confirm),
		TEST(test_drain),
		TEST(test_drain_while_away),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
