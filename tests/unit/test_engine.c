/* SPDX-License-Identifier: PostgreSQL */
/*
 * The engine against a real server, one node and several in one process. What each test looks at in
 * the end: the log is dense and exact, and what was answered is what the log and every node's
 * memory say.
 */
#include "config.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/base/mem.h"
#include "tests/unit/engine_testing.h"
#include "watchd/log_sql.h"

static void test_genesis(void **state)
{
	struct fixture *f = *state;
	struct node *a = start_node(f, "alpha");
	uint64_t id = store_cluster_id(engine_store(a->e));

	assert_int_equal(a->n_loaded, 1);
	assert_true(id != 0);
	assert_int_equal(store_visible_rev(engine_store(a->e)), 1);
	assert_int_equal(log_count(f, "SELECT count(*) FROM howdah_watch.log WHERE kind = 9"), 1);
	/* The next one finds it. */
	close_node(f, a);
	a = start_node(f, "alpha");
	assert_true(store_cluster_id(engine_store(a->e)) == id);
	assert_log_exact(f);
}

static void test_genesis_race(void **state)
{
	struct fixture *f = *state;
	struct node *n[NODES_MAX];

	for (int round = 0; round < 5; round++) {
		pg_testing_on(f->pg, "TRUNCATE howdah_watch.log");
		n[0] = open_node(f, "alpha", "", NULL);
		n[1] = open_node(f, "beta", "", NULL);
		n[2] = open_node(f, "gamma", "", NULL);
		for (int i = 0; i < NODES_MAX; i++)
			wait_until(f->loop, engine_is_up(n[i]->e));
		assert_int_equal(log_count(f, "SELECT count(*) FROM howdah_watch.log"), 1);
		assert_true(store_cluster_id(engine_store(n[0]->e)) ==
			    store_cluster_id(engine_store(n[1]->e)));
		assert_true(store_cluster_id(engine_store(n[0]->e)) ==
			    store_cluster_id(engine_store(n[2]->e)));
		for (int i = 0; i < NODES_MAX; i++)
			close_node(f, n[i]);
	}
}

static void test_put_and_read(void **state)
{
	struct fixture *f = *state;
	struct node *a = start_node(f, "alpha");

	assert_int_equal(run_put(a, PUT, "k", "v1"), ETCD_OK);
	assert_string_equal(value_in(a, "k"), "v1");
	assert_int_equal(store_visible_rev(engine_store(a->e)), 2);
	assert_int_equal(run_put(a, PUT, "k", ""), ETCD_OK);
	assert_int_equal(run_read(a), ETCD_OK);
	assert_int_equal(run_put(a, GRANT, "", "7"), ETCD_OK);
	assert_int_equal(run_put(a, GRANT, "", "7"), ETCD_LEASE_EXISTS);
	assert_int_equal(run_put(a, NOTHING, "", ""), ETCD_OK);
	assert_int_equal(run_put(a, PUT_IF_NEW, "k", "v2"), ETCD_OK);
	assert_int_equal(run_put(a, DELETE_IT, "k", ""), ETCD_OK);
	assert_int_equal(run_put(a, PUT_IF_NEW, "k", "v3"), ETCD_OK);
	assert_string_equal(value_in(a, "k"), "v3");
	assert_string_equal(
		pg_testing_on(f->pg, "SELECT convert_from(value, 'UTF8') || ' ' || "
				     "create_revision || ' ' || version || ' ' || lease "
				     "FROM howdah_watch.kv"),
		"v3 5 1 0");
	assert_string_equal(pg_testing_on(f->pg, "SELECT string_agg(type || ' ' || revision, ', ') "
						 "FROM howdah_watch.history"),
		"PUT 2, PUT 3, DELETE 4, PUT 5");
	assert_log_exact(f);
	close_node(f, a);
	a = start_node(f, "alpha");
	assert_string_equal(value_in(a, "k"), "v3");
	assert_int_equal(store_visible_rev(engine_store(a->e)), 5);
}

static void test_two_nodes(void **state)
{
	struct fixture *f = *state;
	struct node *a = start_node(f, "alpha"), *b = start_node(f, "beta");

	/* Each sees the other's by a linearizable read, without a bell. */
	assert_int_equal(run_put(a, PUT, "k", "a1"), ETCD_OK);
	assert_string_equal(value_in(b, "k"), "");
	assert_int_equal(run_read(b), ETCD_OK);
	assert_string_equal(value_in(b, "k"), "a1");
	/* A write on a stale state is evaluated again. */
	assert_int_equal(run_put(b, PUT, "k", "b1"), ETCD_OK);
	assert_int_equal(run_put(a, PUT_IF_NEW, "k2", "a2"), ETCD_OK);
	assert_string_equal(value_in(a, "k"), "b1");
	assert_int_equal(run_put(b, PUT_IF_NEW, "k2", "b2"), ETCD_OK);
	assert_string_equal(value_in(b, "k2"), "a2");
	/* What changes nothing is as new as a read. */
	assert_int_equal(run_put(a, PUT, "k3", "a3"), ETCD_OK);
	assert_int_equal(run_put(b, PUT_IF_NEW, "k3", "b3"), ETCD_OK);
	assert_string_equal(value_in(b, "k3"), "a3");
	assert_int_equal(run_put(a, PUT, "k4", "a4"), ETCD_OK);
	assert_int_equal(run_put(b, NOTHING, "", ""), ETCD_OK);
	assert_string_equal(value_in(b, "k4"), "a4");
	/* The bell. */
	assert_int_equal(run_put(a, PUT, "k5", "a5"), ETCD_OK);
	engine_bell(b->e, 0);
	wait_until(f->loop, strcmp(value_in(b, "k5"), "a5") == 0);
	assert_log_exact(f);
}

/* ---- many at once ---- */

struct storm {
	struct put **puts;
	size_t n;
};

static struct storm storm_new(size_t n)
{
	return (struct storm){.puts = xcalloc(n, sizeof(struct put *)), .n = 0};
}

/* Each acknowledged put is in the log once, with its revision; each timeout at most once. */
static void storm_check(struct fixture *f, struct storm *s)
{
	char sql[256];

	for (size_t i = 0; i < s->n; i++) {
		struct put *p = s->puts[i];
		long n;

		assert_true(p->done);
		snprintf(sql, sizeof sql,
			"SELECT count(*) FROM howdah_watch.log WHERE key = '%s' AND kind = 1 AND "
			"(%d <> 0 OR rev = %lld)",
			p->key, (int)p->err, (long long)p->rev);
		n = log_count(f, sql);
		if (p->err == ETCD_OK)
			assert_int_equal(n, 1);
		else
			assert_true(n <= 1);
		free(p);
	}
	free(s->puts);
}

static void storm_add(struct storm *s, struct node *n, uint64_t deadline_ms)
{
	char key[32];
	struct put *p;

	snprintf(key, sizeof key, "%s-%zu", n->name, s->n);
	p = new_put(n->f, PUT, key, "some value");
	p->op.deadline_ms = deadline_ms;
	n->f->n_outstanding++;
	engine_submit(n->e, &p->op);
	s->puts[s->n++] = p;
}

static void test_many(void **state)
{
	struct fixture *f = *state;
	struct engine_options o = {.max_batch_ops = 50};
	struct node *a = open_node(f, "alpha", "", &o);
	struct storm s = storm_new(1000);
	struct engine_counts counts;

	wait_until(f->loop, engine_is_up(a->e));
	while (s.n < 1000)
		storm_add(&s, a, 0);
	wait_until(f->loop, f->n_outstanding == 0);
	engine_get_counts(a->e, &counts);
	assert_int_equal(counts.batches, 1 + 1000 / 50);
	assert_int_equal(counts.lost_batches, 0);
	assert_int_equal(counts.ops_waiting, 0);
	assert_int_equal(counts.bytes_waiting, 0);
	assert_int_equal(f->n_done[ETCD_OK], 1000);
	storm_check(f, &s);
	assert_log_exact(f);
}

/* The arrays of one batch are the next one's: nothing of it may stay but the memory, and of that
 * not what an extraordinary batch took. */
static void test_rows_again(void **state)
{
	enum { LARGE = 3 << 20 };
	struct log_rows r = {.n = 0}, fresh = {.n = 0};
	char *large = xcalloc(1, LARGE);
	const struct store_row with_all = {.seq = 7,
		.rev = 3,
		.kind = STORE_PUT,
		.lease = 9,
		.version = 1,
		.key = {.data = "k", .len = 1},
		.value = {.data = large, .len = LARGE}};
	const struct store_row with_little = {.seq = 8, .rev = 4, .kind = STORE_DELETE};

	(void)state;
	log_rows_add(&r, &with_all);
	log_rows_reset(&r);
	assert_int_equal(r.arrays[LOG_VALUE].cap_bytes, 0);
	assert_true(r.arrays[LOG_KEY].cap_bytes > 0);
	for (int i = 0; i < 2; i++) {
		log_rows_add(&r, &with_little);
		log_rows_add(&fresh, &with_little);
		assert_int_equal(r.n, fresh.n);
		assert_int_equal(r.n_bytes, fresh.n_bytes);
		assert_int_equal(r.first_seq, 8);
		assert_memory_equal(r.n_nulls, fresh.n_nulls, sizeof r.n_nulls);
		for (size_t a = 0; a < LOG_ARRAY_COUNT; a++) {
			assert_int_equal(r.arrays[a].len_bytes, fresh.arrays[a].len_bytes);
			assert_memory_equal(
				r.arrays[a].data, fresh.arrays[a].data, fresh.arrays[a].len_bytes);
		}
	}
	log_rows_free(&r);
	log_rows_free(&fresh);
	free(large);
}

static void test_contention(void **state)
{
	struct fixture *f = *state;
	struct node *n[NODES_MAX] = {
		start_node(f, "alpha"), start_node(f, "beta"), start_node(f, "gamma")};
	struct storm s[NODES_MAX];
	struct engine_counts counts;
	uint64_t lost = 0, turns = 0;

	for (int i = 0; i < NODES_MAX; i++)
		s[i] = storm_new(600);
	for (int round = 0; round < 300; round++) {
		for (int i = 0; i < NODES_MAX; i++) {
			storm_add(&s[i], n[i], 0);
			storm_add(&s[i], n[i], 0);
		}
		for (int turn = 0; turn < 3; turn++)
			ev_loop_once(f->loop, false);
	}
	wait_until(f->loop, f->n_outstanding == 0);
	for (int i = 0; i < NODES_MAX; i++) {
		engine_get_counts(n[i]->e, &counts);
		lost += counts.lost_batches;
		turns += counts.turns;
	}
	print_message("%llu batches lost, %llu turns\n", (unsigned long long)lost,
		(unsigned long long)turns);
	assert_int_equal(f->n_done[ETCD_OK], 1800);
	assert_log_exact(f);
	for (int i = 0; i < NODES_MAX; i++) {
		assert_int_equal(run_read(n[i]), ETCD_OK);
		assert_int_equal(store_visible_rev(engine_store(n[i]->e)), 1801);
		storm_check(f, &s[i]);
	}
}

int main(void)
{
#define TEST(fn)                                                                                   \
	cmocka_unit_test_setup_teardown(fn, engine_testing_set_up, engine_testing_tear_down)
	const struct CMUnitTest tests[] = {
		TEST(test_genesis),
		TEST(test_genesis_race),
		TEST(test_put_and_read),
		TEST(test_two_nodes),
		TEST(test_many),
		cmocka_unit_test(test_rows_again),
		TEST(test_contention),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
