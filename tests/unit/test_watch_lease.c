/* SPDX-License-Identifier: PostgreSQL */
/* Leases in time, with engines on a real server: one node, and several on one database. */
#include "config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/mem.h"
#include "tests/unit/engine_testing.h"
#include "watchd/lease.h"

struct holder {
	struct engine *e;
	struct lessor *l;
	char name[16];
	bool loaded;
};

static void on_loaded(void *arg)
{
	struct holder *h = arg;
	h->loaded = true;
	lessor_loaded(h->l);
}

static void on_row(const struct store_row *row, void *arg)
{
	lessor_row(((struct holder *)arg)->l, row);
}

static void on_reloaded(bool went_back, void *arg)
{
	(void)went_back;
	lessor_loaded(((struct holder *)arg)->l);
}

static void on_database(bool up, const char *why, void *arg)
{
	(void)why;
	lessor_database(((struct holder *)arg)->l, up);
}

static void open_holder(struct fixture *f, struct holder *h, const char *name, const char *conninfo)
{
	static const struct engine_ops ops = {.on_loaded = on_loaded,
		.on_row = on_row,
		.on_reloaded = on_reloaded,
		.on_database = on_database};
	memset(h, 0, sizeof(*h));
	snprintf(h->name, sizeof(h->name), "%s", name);
	const struct engine_options o = {
		.conninfo = conninfo, .node = h->name, .advertise_url = "http://127.0.0.1:2379"};
	h->e = engine_new(f->loop, &o, &ops, h);
	h->l = lessor_new(f->loop, h->e, h->name);
	wait_until(f->loop, h->loaded && engine_is_up(h->e));
}

static void close_holder(struct fixture *f, struct holder *h)
{
	lessor_free(&h->l);
	engine_free(&h->e);
	ev_loop_once(f->loop, false);
}

/* Those that a failed test left open, too. */
static struct holder one, two;

static int tear_down(void **state)
{
	struct holder *const all[] = {&one, &two};
	for (size_t i = 0; i < ARRAY_LEN(all); i++)
		if (all[i]->e != NULL)
			close_holder(*state, all[i]);
	return engine_testing_tear_down(state);
}

static struct lessor_counts counts(const struct holder *h)
{
	struct lessor_counts c;
	lessor_get_counts(h->l, &c);
	return c;
}

static int64_t rev(const struct holder *h)
{
	return store_visible_rev(engine_store(h->e));
}

/* ---- operations ---- */

enum what { GRANT_IT, GRANT_SHORT, REVOKE_IT, ATTACH };
struct action {
	struct engine_op op;
	enum what what;
	int64_t id, ttl_s, n;
	bool done;
	enum etcd_error err;
};

static enum etcd_error eval(struct engine_op *op, struct store *s)
{
	struct action *a = list_entry(op, struct action, op);
	struct store_kv prev;
	char key[32];
	switch (a->what) {
	case GRANT_IT:
		return lease_grant(s, &a->id, &a->ttl_s);
	case GRANT_SHORT: /* many, shorter than clients may have them */
		for (int64_t i = 0; i < a->n; i++)
			store_grant(s, a->id + i, a->ttl_s);
		return ETCD_OK;
	case REVOKE_IT:
		return lease_revoke(s, a->id);
	case ATTACH:
		for (int64_t i = 0; i < a->n; i++) {
			int len = snprintf(
				key, sizeof(key), "%lld/%lld", (long long)a->id, (long long)i);
			(void)store_put(s, (struct store_bytes){key, (size_t)len},
				(struct store_bytes){"v", 1}, a->id, &prev);
		}
		return ETCD_OK;
	}
	return ETCD_OK;
}

static void on_done(struct engine_op *op, enum etcd_error err)
{
	struct action *a = list_entry(op, struct action, op);
	a->done = true;
	a->err = err;
}

static enum etcd_error act(struct fixture *f, struct holder *h, struct action *a)
{
	a->op = (struct engine_op){.eval = eval, .done = on_done};
	engine_submit(h->e, &a->op);
	wait_until(f->loop, a->done);
	return a->err;
}

static void grant(struct fixture *f, struct holder *h, int64_t id, int64_t ttl_s, int64_t n)
{
	struct action a = {.what = GRANT_SHORT, .id = id, .ttl_s = ttl_s, .n = n};
	assert_int_equal(act(f, h, &a), ETCD_OK);
}

struct beat {
	struct lease_keepalive k;
	bool done;
	int64_t ttl_s;
	enum etcd_error err;
};

static void on_beat(struct lease_keepalive *k, int64_t ttl_s, enum etcd_error err)
{
	struct beat *b = list_entry(k, struct beat, k);
	b->done = true;
	b->ttl_s = ttl_s;
	b->err = err;
}

static int64_t keepalive(struct fixture *f, struct holder *h, int64_t id)
{
	struct beat b = {.k = {.id = id, .done = on_beat}};
	lessor_keepalive(h->l, &b.k);
	assert_false(b.done);
	wait_until(f->loop, b.done);
	assert_int_equal(b.err, ETCD_OK);
	return b.ttl_s;
}

/* ---- tests ---- */

static void test_grant_rules(void **state)
{
	struct fixture *f = *state;
	open_holder(f, &one, "one", "");
	struct action a = {.what = GRANT_IT, .ttl_s = 1};
	assert_int_equal(act(f, &one, &a), ETCD_OK);
	assert_true(a.id > 0);
	assert_int_equal(a.ttl_s, 2);
	struct action again = {.what = GRANT_IT, .id = a.id, .ttl_s = 10};
	assert_int_equal(act(f, &one, &again), ETCD_LEASE_EXISTS);
	struct action long_one = {.what = GRANT_IT, .id = -5, .ttl_s = LEASE_TTL_MAX_S};
	assert_int_equal(act(f, &one, &long_one), ETCD_OK);
	struct action longer = {.what = GRANT_IT, .ttl_s = LEASE_TTL_MAX_S + 1};
	assert_int_equal(act(f, &one, &longer), ETCD_LEASE_TTL_TOO_LARGE);
	assert_in_range(lessor_remaining_s(one.l, -5), LEASE_TTL_MAX_S - 2, LEASE_TTL_MAX_S);
	assert_int_equal(counts(&one).leases, 2);
	struct action gone = {.what = REVOKE_IT, .id = -5};
	assert_int_equal(act(f, &one, &gone), ETCD_OK);
	gone.done = false;
	assert_int_equal(act(f, &one, &gone), ETCD_LEASE_NOT_FOUND);
	assert_int_equal(lessor_remaining_s(one.l, -5), -1);
	assert_int_equal(keepalive(f, &one, -5), 0);
	assert_int_equal(counts(&one).expired, 0);
	close_holder(f, &one);
}

static void test_expiry(void **state)
{
	struct fixture *f = *state;
	open_holder(f, &one, "one", "");
	grant(f, &one, 7, 1, 1);
	grant(f, &one, 8, 60, 1);
	struct action keys = {.what = ATTACH, .id = 7, .n = 5};
	assert_int_equal(act(f, &one, &keys), ETCD_OK);
	int64_t before = rev(&one);
	uint64_t begun_ms = ev_now_ms();
	/* It lives as long as somebody says so. */
	while (ev_now_ms() < begun_ms + 2500) {
		assert_int_equal(keepalive(f, &one, 7), 1);
		pg_testing_run(f->loop, 100);
	}
	assert_int_equal(rev(&one), before);
	begun_ms = ev_now_ms();
	wait_until(f->loop, counts(&one).expired == 1);
	assert_in_range(ev_now_ms() - begun_ms, 700, 3000);
	/* All its keys in one revision. */
	assert_int_equal(rev(&one), before + 1);
	assert_int_equal(keepalive(f, &one, 7), 0);
	assert_int_equal(lessor_remaining_s(one.l, 7), -1);
	assert_int_equal(counts(&one).ours, 1);
	assert_log_exact(f);
	close_holder(f, &one);
}

/* A keepalive on another node takes the lease there, and the first one lets it be. */
static void test_move(void **state)
{
	struct fixture *f = *state;
	open_holder(f, &one, "one", "");
	open_holder(f, &two, "two", "");
	grant(f, &one, 7, 1, 1);
	struct beat b = {.k = {.id = 7, .done = on_beat}};
	assert_int_equal(keepalive(f, &two, 7), 1); /* two has not heard of it */
	assert_int_equal(counts(&two).moved, 1);
	assert_int_equal(counts(&two).ours, 1);
	assert_in_range(lessor_remaining_s(two.l, 7), 0, 1);
	/* one is told by its tip read, at the latest. */
	uint64_t begun_ms = ev_now_ms();
	while (ev_now_ms() < begun_ms + 1500) {
		assert_int_equal(keepalive(f, &two, 7), 1);
		pg_testing_run(f->loop, 50);
	}
	assert_int_equal(counts(&one).expired, 0);
	assert_int_equal(keepalive(f, &one, 7), 1);
	assert_int_equal(counts(&one).ours, 1);
	assert_int_equal(counts(&one).moved, 1);
	/* two believes that it owns it still, and it is not revoked by it. */
	begun_ms = ev_now_ms();
	while (ev_now_ms() < begun_ms + 1500) {
		assert_int_equal(keepalive(f, &one, 7), 1);
		pg_testing_run(f->loop, 50);
	}
	wait_until(f->loop, counts(&one).leases == 0);
	assert_int_equal(counts(&one).expired + counts(&two).expired, 1);
	/* A cancelled one is not answered. */
	lessor_keepalive(one.l, &b.k);
	lessor_keepalive_cancel(one.l, &b.k);
	pg_testing_run(f->loop, 50);
	assert_false(b.done);
	close_holder(f, &one);
	close_holder(f, &two);
}

/* The leases of a node that is gone live on, with their full time, and then run out. */
static void test_adoption(void **state)
{
	struct fixture *f = *state;
	open_holder(f, &one, "one", "");
	open_holder(f, &two, "two", "");
	grant(f, &one, 100, 6, 1200);
	grant(f, &one, 7, 6, 1);
	engine_bell(two.e, 0);
	wait_until(f->loop, counts(&two).leases == 1201);
	/* It is alive: nothing is taken from it. */
	uint64_t begun_ms = ev_now_ms();
	while (ev_now_ms() < begun_ms + LEASE_CHECK_MS * 3 / 2) {
		assert_int_equal(keepalive(f, &one, 7), 6);
		pg_testing_run(f->loop, 100);
	}
	assert_int_equal(counts(&two).adopted, 0);
	close_holder(f, &one);
	begun_ms = ev_now_ms();
	size_t left = counts(&two).leases;
	wait_until(f->loop, counts(&two).ours == left);
	assert_in_range(ev_now_ms() - begun_ms, 0, LEASE_CHECK_MS * 2);
	assert_int_equal(counts(&two).adopted, left);
	assert_in_range(lessor_remaining_s(two.l, 7), 4, 6);
	/* The dead one comes back and owns nothing. */
	open_holder(f, &one, "one", "");
	assert_int_equal(counts(&one).ours, 0);
	assert_int_equal(counts(&one).leases, left);
	wait_until(f->loop, counts(&two).leases == 0);
	assert_int_equal(counts(&two).expired, left);
	assert_log_exact(f);
	close_holder(f, &one);
	close_holder(f, &two);
}

/* While the database is away no time passes for leases, and no keepalive is answered. */
static void test_database_away(void **state)
{
	struct fixture *f = *state;
	f->proxy = proxy_new(f->loop);
	open_holder(f, &one, "one", proxy_conninfo(f->proxy));
	grant(f, &one, 7, 2, 1);
	proxy_freeze(f->proxy, true);
	proxy_cut(f->proxy);
	wait_until(f->loop, !engine_is_up(one.e));
	struct beat b = {.k = {.id = 7, .done = on_beat, .deadline_ms = ev_now_ms() + 1000}};
	lessor_keepalive(one.l, &b.k);
	pg_testing_run(f->loop, 4000);
	assert_true(b.done);
	assert_int_equal(b.err, ETCD_TIMEOUT);
	assert_true(lessor_remaining_s(one.l, 7) >= 1);
	proxy_freeze(f->proxy, false);
	wait_until(f->loop, engine_is_up(one.e));
	assert_int_equal(counts(&one).leases, 1);
	assert_int_equal(keepalive(f, &one, 7), 2);
	wait_until(f->loop, counts(&one).leases == 0);
	close_holder(f, &one);
}

/* The database stalls: what was asked for in time counts, though it is answered late. */
static void test_database_stalls(void **state)
{
	struct fixture *f = *state;
	f->proxy = proxy_new(f->loop);
	open_holder(f, &one, "one", proxy_conninfo(f->proxy));
	grant(f, &one, 7, 3, 1);
	proxy_freeze(f->proxy, true);
	pg_testing_run(f->loop, 1500);
	struct beat b = {.k = {.id = 7, .done = on_beat, .deadline_ms = ev_now_ms() + 5000}};
	lessor_keepalive(one.l, &b.k);
	pg_testing_run(f->loop, 2000);
	assert_false(b.done);
	proxy_freeze(f->proxy, false);
	wait_until(f->loop, b.done);
	assert_int_equal(b.err, ETCD_OK);
	assert_int_equal(b.ttl_s, 3);
	assert_int_equal(counts(&one).leases, 1);
	wait_until(f->loop, counts(&one).leases == 0);
	close_holder(f, &one);
}

/* A restart gives the full time; very many run out at the allowed pace, and others are served. */
static void test_many(void **state)
{
	struct fixture *f = *state;
	open_holder(f, &one, "one", "");
	for (int64_t i = 0; i < 100; i++)
		grant(f, &one, 1000000 + i * 1000, 3600, 1000);
	grant(f, &one, 1, 2, 2500);
	assert_int_equal(counts(&one).leases, 102500);
	close_holder(f, &one);
	uint64_t begun_ms = ev_now_ms();
	open_holder(f, &one, "one", "");
	assert_int_equal(counts(&one).ours, 102500);
	assert_in_range(lessor_remaining_s(one.l, 1), 1, 2);
	while (counts(&one).expired < 2500) {
		assert_int_equal(keepalive(f, &one, 1000000), 3600);
		pg_testing_run(f->loop, 20);
		assert_true(ev_now_ms() - begun_ms < TEST_TIMEOUT_MS);
		/* 500 at once, then 1000 a second. */
		uint64_t since_ms = ev_now_ms() - begun_ms; /* the load was a little later */
		assert_true(
			counts(&one).expired <=
			(since_ms < 2000 ? 0
					 : 500 + (since_ms - 2000) * LEASE_REVOKES_PER_S / 1000));
	}
	assert_int_equal(counts(&one).leases, 100000);
	close_holder(f, &one);
}

int main(void)
{
#define LEASE_TEST(fn) cmocka_unit_test_setup_teardown(fn, engine_testing_set_up, tear_down)
	const struct CMUnitTest tests[] = {
		LEASE_TEST(test_grant_rules),
		LEASE_TEST(test_expiry),
		LEASE_TEST(test_move),
		LEASE_TEST(test_adoption),
		LEASE_TEST(test_database_away),
		LEASE_TEST(test_database_stalls),
		LEASE_TEST(test_many),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
