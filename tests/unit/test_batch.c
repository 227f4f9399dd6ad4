/* SPDX-License-Identifier: PostgreSQL */
/*
 * batch against a real server. What every test looks at in the end: each row that was reported as
 * done is in the table exactly once, each row that was refused is not, and every row was reported.
 */
#include "config.h"

#include <arpa/inet.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/base/err.h"
#include "common/base/mem.h"
#include "common/pg/batch.h"
#include "tests/unit/pg_testing.h"

static const struct batch_kind kinds[] = {
	{
		.name = "test_log",
		.sql = "INSERT INTO test_log (token, node, sub, id, body, extra) "
		       "SELECT $1, $2, s, i, b, e FROM unnest($3::int[], $4::bigint[], $5::text[], "
		       "$6::jsonb[]) AS u (s, i, b, e)",
		.n_columns = 3,
		.types = {20, 25, 3802},
		.probe_sql = "SELECT 1 FROM test_log WHERE token = $1 AND node = $2 LIMIT 1",
	},
	{
		.name = "test_other",
		.sql = "INSERT INTO test_other SELECT $1, $2, s, i, b FROM unnest($3::int[], "
		       "$4::bigint[], "
		       "$5::bytea[]) AS u (s, i, b)",
		.n_columns = 2,
		.types = {20, 17},
		.probe_sql = "SELECT 1 FROM test_other WHERE token = $1 AND node = $2 LIMIT 1",
	},
};

#define ROWS_MAX 100001

struct fixture {
	struct ev_loop *loop;
	struct batch *b;
	struct proxy *proxy;
	PGconn *pg;
	size_t n_added, n_done, n_failed;
	size_t next_expected; /* completions in order */
	bool in_order;
	size_t n_room, n_trouble, n_good;
	int trouble_err;
	char trouble[512];
	size_t n_barriers;
	size_t done_at_barrier;
	bool adding;
	signed char result[ROWS_MAX]; /* 0: none yet, 1: done, -1: refused */
};

static struct fixture *current;

static void on_room(void *arg)
{
	struct fixture *f = arg;

	f->n_room++;
}

static void on_trouble(int err, const char *why, void *arg)
{
	struct fixture *f = arg;

	if (err == 0) {
		f->n_good++;
		return;
	}
	f->n_trouble++;
	f->trouble_err = err;
	snprintf(f->trouble, sizeof f->trouble, "%s", why);
}

static const struct batch_ops ops = {.on_room = on_room, .on_trouble = on_trouble};

static int set_up(void **state)
{
	struct fixture *f = xcalloc(1, sizeof *f);

	f->loop = ev_loop_new();
	f->in_order = true;
	f->pg = PQconnectdb("options='-c client_min_messages=error'");
	pg_testing_on(f->pg, "DROP TABLE IF EXISTS test_log, test_other");
	pg_testing_on(f->pg, "CREATE TABLE test_log (token bigint, node text, sub int, id bigint "
			     "CHECK (id >= 0), "
			     "body text, extra jsonb, PRIMARY KEY (token, sub))");
	pg_testing_on(f->pg, "CREATE TABLE test_other (token bigint, node text, sub int, id bigint "
			     "UNIQUE DEFERRABLE INITIALLY DEFERRED, body bytea)");
	current = f;
	*state = f;
	return 0;
}

static int tear_down(void **state)
{
	struct fixture *f = *state;

	batch_free(&f->b);
	ev_loop_once(f->loop, false);
	if (f->proxy != NULL)
		proxy_free(&f->proxy);
	ev_loop_once(f->loop, false);
	ev_loop_free(&f->loop);
	PQfinish(f->pg);
	free(f);
	return pg_testing_no_leaks(state);
}

static void open_batch(struct fixture *f, const char *conninfo, struct batch_options o)
{
	o.conninfo = conninfo;
	o.application_name = "test_batch";
	o.node = "alpha";
	o.role = "test";
	o.kinds = kinds;
	o.n_kinds = ARRAY_LEN(kinds);
	f->b = batch_new(f->loop, &o, &ops, f);
}

static void on_done(int err, const char *why, void *arg)
{
	struct fixture *f = current;
	size_t id = (size_t)(uintptr_t)arg;

	assert_false(f->adding);
	assert_int_equal(f->result[id], 0);
	f->result[id] = err == 0 ? 1 : -1;
	f->n_done += err == 0;
	f->n_failed += err != 0;
	if (err != 0)
		assert_non_null(why);
	f->in_order &= id == f->next_expected;
	f->next_expected = id + 1;
}

static uint64_t be64(int64_t v)
{
	uint64_t u = (uint64_t)v;

	return ((uint64_t)htonl((uint32_t)u) << 32) | htonl((uint32_t)(u >> 32));
}

/* Row number id with the given id column and text. */
static int add_row(struct fixture *f, int64_t id_column, const char *text, int32_t len)
{
	uint64_t id_be = be64(id_column);
	struct batch_value values[] = {
		{&id_be, sizeof id_be}, {text, len}, {"{\"a\": 1}", f->n_added % 2 != 0 ? 8 : -1}};
	int err;

	f->adding = true;
	err = batch_add(f->b, 0, values, on_done, (void *)(uintptr_t)f->n_added);
	f->adding = false;
	if (err == 0)
		f->n_added++;
	return err;
}

static void add_good(struct fixture *f)
{
	assert_int_equal(add_row(f, (int64_t)f->n_added, "good", 4), 0);
}

/* Ways for a row to be bad: a value the type refuses, a constraint. */
static void add_bad(struct fixture *f)
{
	if (f->n_added % 2 == 0)
		assert_int_equal(add_row(f, -1, "bad", 3), 0);
	else
		assert_int_equal(add_row(f, (int64_t)f->n_added, "\xff\xfe", 2), 0);
}

static void wait_all(struct fixture *f)
{
	wait_until(f->loop, f->n_done + f->n_failed == f->n_added);
}

static long count(struct fixture *f, const char *sql)
{
	return strtol(pg_testing_on(f->pg, sql), NULL, 10);
}

static void assert_exact(struct fixture *f)
{
	PGresult *res = PQexec(f->pg, "SELECT id, count(*) FROM test_log GROUP BY id");
	size_t n = (size_t)PQntuples(res);

	assert_int_equal(n, f->n_done);
	for (size_t i = 0; i < n; i++) {
		long id = strtol(PQgetvalue(res, (int)i, 0), NULL, 10);

		assert_string_equal(PQgetvalue(res, (int)i, 1), "1");
		assert_true(id >= 0 && (size_t)id < f->n_added);
		assert_int_equal(f->result[id], 1);
	}
	PQclear(res);
	/* The log's order is the order in which rows were added. */
	assert_int_equal(
		count(f, "SELECT count(*) FROM (SELECT id, lag(id) OVER (ORDER BY token, sub) "
			 "AS before FROM test_log) x WHERE before > id"),
		0);
}

static void test_order(void **state)
{
	struct fixture *f = *state;
	struct batch_counts counts;

	open_batch(f, "", (struct batch_options){.max_waiting_rows = 200000});
	for (int i = 0; i < 100000; i++)
		add_good(f);
	wait_all(f);
	assert_true(f->in_order);
	assert_int_equal(f->n_done, 100000);
	assert_exact(f);
	batch_get_counts(f->b, &counts);
	assert_int_equal(counts.rows_committed, 100000);
	assert_int_equal(counts.rows_refused, 0);
	assert_int_equal(counts.batches_retried, 0);
	assert_int_equal(counts.rows_waiting, 0);
	assert_int_equal(counts.bytes_waiting, 0);
	assert_true(counts.batches_committed >= 10);
	assert_true(batch_is_up(f->b));
	assert_int_equal(f->n_trouble, 0);
	assert_int_equal(
		count(f, "SELECT count(*) FROM test_log WHERE body = 'good' AND "
			 "(extra IS NULL) = (id % 2 = 0) AND coalesce(extra->>'a', '1') = '1'"),
		100000);
}

/* One row at a time, as a lone client does it. */
static void test_one_by_one(void **state)
{
	struct fixture *f = *state;
	struct batch_counts counts;

	open_batch(f, "", (struct batch_options){0});
	for (int i = 0; i < 100; i++) {
		add_good(f);
		wait_all(f);
	}
	batch_get_counts(f->b, &counts);
	assert_int_equal(counts.batches_committed, 100);
	assert_exact(f);
}

static void test_session(void **state)
{
	struct fixture *f = *state;

	pg_testing_on(f->pg, "ALTER ROLE howdah SET synchronous_commit = off");
	pg_testing_on(f->pg, "ALTER ROLE howdah SET default_transaction_isolation = serializable");
	pg_testing_on(f->pg,
		"CREATE FUNCTION test_settings() RETURNS trigger LANGUAGE plpgsql AS "
		"'BEGIN NEW.body = current_setting(''synchronous_commit'') || '' '' || "
		"current_setting(''transaction_isolation''); RETURN NEW; END'");
	pg_testing_on(f->pg, "CREATE TRIGGER t BEFORE INSERT ON test_log FOR EACH ROW EXECUTE "
			     "FUNCTION test_settings()");
	open_batch(f, "", (struct batch_options){0});
	add_good(f);
	wait_all(f);
	assert_string_equal(pg_testing_on(f->pg, "SELECT body FROM test_log"), "on read committed");
	assert_int_equal(
		count(f, "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted"),
		1);
	/* Higher than on stays. */
	batch_free(&f->b);
	ev_loop_once(f->loop, false);
	pg_testing_on(f->pg, "ALTER ROLE howdah SET synchronous_commit = remote_apply");
	open_batch(f, "", (struct batch_options){0});
	add_good(f);
	wait_all(f);
	assert_string_equal(pg_testing_on(f->pg, "SELECT body FROM test_log WHERE id = 1"),
		"remote_apply read committed");
	pg_testing_on(f->pg, "ALTER ROLE howdah RESET ALL");
	pg_testing_on(f->pg, "DROP FUNCTION test_settings CASCADE");
}

/* Bad rows at many places of batches of many sizes: all others are written, once. */
static void test_bad_rows(void **state)
{
	static const struct {
		size_t n, first, every;
	} rows[] = {{1, 0, 1}, {2, 0, 2}, {2, 1, 2}, {3, 1, 3}, {3, 0, 1}, {10, 0, 3},
		{100, 99, 100}, {1000, 500, 1000}, {1000, 0, 97}, {1000, 7, 8}, {64, 0, 1},
		{5000, 4999, 5000}};
	struct fixture *f = *state;
	size_t n_bad = 0;

	open_batch(f, "", (struct batch_options){0});
	for (size_t r = 0; r < ARRAY_LEN(rows); r++) {
		for (size_t i = 0; i < rows[r].n; i++) {
			if (i % rows[r].every == rows[r].first % rows[r].every) {
				add_bad(f);
				n_bad++;
			} else {
				add_good(f);
			}
		}
		/* Sometimes one set alone, sometimes with the next on its heels. */
		if (r % 2 == 0)
			wait_all(f);
	}
	wait_all(f);
	assert_int_equal(f->n_failed, n_bad);
	assert_exact(f);
	assert_int_equal(f->n_trouble, 0);
}

static int add_other(struct fixture *f, int64_t id)
{
	uint64_t id_be = be64(id);
	struct batch_value values[] = {{&id_be, sizeof id_be}, {"\0\1\2", 3}};
	int err = batch_add(f->b, 1, values, on_done, (void *)(uintptr_t)f->n_added);

	if (err == 0)
		f->n_added++;
	return err;
}

/* What is wrong only at the commit is found and blamed on its row too; both kinds stay together. */
static void test_deferred_constraint_and_kinds(void **state)
{
	struct fixture *f = *state;

	open_batch(f, "", (struct batch_options){0});
	for (int i = 0; i < 50; i++) {
		add_good(f);
		assert_int_equal(add_other(f, i == 30 ? 7 : i), 0);
	}
	wait_all(f);
	assert_int_equal(f->n_done, 99);
	assert_int_equal(f->n_failed, 1);
	assert_int_equal(f->result[61], -1);
	assert_int_equal(count(f, "SELECT count(*) FROM test_other WHERE body = '\\x000102'"), 49);
	assert_int_equal(
		count(f, "SELECT count(DISTINCT (token, sub)) FROM (SELECT token, sub FROM "
			 "test_other UNION ALL SELECT token, sub FROM test_log) x"),
		99);
	/* Alone, found at the commit. */
	assert_int_equal(add_other(f, 7), 0);
	wait_all(f);
	assert_int_equal(f->n_failed, 2);
}

/* Not the rows' fault: kept, tried again, written when it is mended. */
static void test_refused_for_now(void **state)
{
	struct fixture *f = *state;

	open_batch(f, "", (struct batch_options){0});
	add_good(f);
	wait_all(f);
	pg_testing_on(f->pg, "ALTER TABLE test_log RENAME TO test_away");
	add_good(f);
	wait_until(f->loop, f->n_trouble == 1);
	assert_non_null(strstr(f->trouble, "42P01"));
	add_good(f);
	assert_int_equal(f->n_done, 1);
	pg_testing_on(f->pg, "ALTER TABLE test_away RENAME TO test_log");
	wait_all(f);
	assert_int_equal(f->n_done, 3);
	assert_true(f->in_order);
	wait_until(f->loop, f->n_good == 1);
	assert_exact(f);
}

static void test_statement_cannot_be_prepared(void **state)
{
	struct fixture *f = *state;

	pg_testing_on(f->pg, "ALTER TABLE test_log RENAME TO test_away");
	open_batch(f, "", (struct batch_options){0});
	add_good(f);
	wait_until(f->loop, f->n_trouble == 1);
	assert_false(batch_is_up(f->b));
	pg_testing_on(f->pg, "ALTER TABLE test_away RENAME TO test_log");
	wait_all(f);
	assert_true(batch_is_up(f->b));
	assert_int_equal(f->n_good, 1);
	assert_exact(f);
}

static void test_lock_held_by_another(void **state)
{
	struct fixture *f = *state;

	pg_testing_on(f->pg, "SELECT pg_advisory_lock(hashtext('alpha'), hashtext('test'))");
	open_batch(f, "", (struct batch_options){0});
	add_good(f);
	wait_until(f->loop, f->n_trouble == 1);
	assert_non_null(strstr(f->trouble, "held by another session"));
	assert_int_equal(f->n_done, 0);
	pg_testing_on(f->pg, "SELECT pg_advisory_unlock_all()");
	wait_all(f);
	assert_int_equal(f->n_good, 1);
}

static void on_barrier(void *arg)
{
	struct fixture *f = arg;

	f->n_barriers++;
	f->done_at_barrier = f->n_done;
}

static void test_limits_and_barrier(void **state)
{
	struct fixture *f = *state;
	struct batch_counts counts;

	open_batch(f, "", (struct batch_options){.max_waiting_rows = 1000, .max_batch_rows = 100});
	batch_barrier(f->b, on_barrier, f);
	assert_int_equal(f->n_barriers, 0);
	wait_until(f->loop, f->n_barriers == 1);
	assert_int_equal(f->done_at_barrier, 0);
	for (int i = 0; i < 1000; i++)
		add_good(f);
	batch_barrier(f->b, on_barrier, f);
	assert_int_equal(add_row(f, 5000, "x", 1), -ERR_LIMIT);
	assert_int_equal(add_row(f, 5000, "x", 1), -ERR_LIMIT);
	batch_get_counts(f->b, &counts);
	assert_int_equal(counts.rows_waiting, 1000);
	assert_int_equal(f->n_room, 0);
	wait_until(f->loop, f->n_room == 1);
	batch_get_counts(f->b, &counts);
	assert_true(counts.rows_waiting <= 500);
	add_good(f);
	wait_all(f);
	assert_int_equal(f->n_barriers, 2);
	assert_true(f->done_at_barrier >= 1000);
	assert_int_equal(f->n_room, 1);
	assert_int_equal(f->n_done, 1001);
	assert_exact(f);
}

static void test_byte_limits(void **state)
{
	struct fixture *f = *state;
	struct batch_counts counts;
	char *big = xmalloc(100000);

	memset(big, 'x', 100000);
	open_batch(f, "",
		(struct batch_options){.max_waiting_bytes = 50000, .max_batch_bytes = 10000});
	/* Larger than every limit: alone. */
	assert_int_equal(add_row(f, 0, big, 100000), 0);
	assert_int_equal(add_row(f, 1, "x", 1), -ERR_LIMIT);
	wait_all(f);
	wait_until(f->loop, f->n_room == 1);
	for (int i = 0; i < 10; i++)
		assert_int_equal(add_row(f, 1 + i, big, 4000), 0);
	assert_int_equal(add_row(f, 11, big, 11000), -ERR_LIMIT);
	wait_all(f);
	batch_get_counts(f->b, &counts);
	assert_true(counts.batches_committed >= 1 + 5);
	assert_exact(f);
	free(big);
}

static int backend_pid(struct fixture *f)
{
	return (int)count(f,
		"SELECT pid FROM pg_stat_activity WHERE application_name = 'test_batch' AND "
		"pid IN (SELECT pid FROM pg_locks WHERE locktype = 'advisory')");
}

/* Ended from outside at random times, with bad rows among the good. */
static void test_terminated_at_random(void **state)
{
	struct fixture *f = *state;
	unsigned seed = (unsigned)getpid();
	int n_kills = 0;

	print_message("seed %u\n", seed);
	srand(seed);
	open_batch(f, "", (struct batch_options){.max_batch_rows = 200});
	while (f->n_added < 60000) {
		int burst = rand() % 2000;

		for (int i = 0; i < burst && f->n_added < 60000; i++) {
			if (rand() % 1000 == 0)
				add_bad(f);
			else
				add_good(f);
		}
		for (int turns = rand() % 12; turns > 0; turns--)
			ev_loop_once(f->loop, false);
		if (rand() % 3 == 0) {
			char sql[80];

			snprintf(
				sql, sizeof sql, "SELECT pg_terminate_backend(%d)", backend_pid(f));
			pg_testing_on(f->pg, sql);
			n_kills++;
		}
		if (f->n_added > f->n_done + f->n_failed + 20000)
			wait_until(f->loop, f->n_added <= f->n_done + f->n_failed + 5000);
	}
	wait_all(f);
	assert_true(n_kills > 5);
	assert_exact(f);
	assert_true(f->n_trouble > 0 && f->n_good > 0);
}

/* The connection goes while a batch is tried by halves and a single row is left of it. */
static void test_lost_with_one_row_left(void **state)
{
	struct fixture *f = *state;

	pg_testing_on(f->pg, "DROP SEQUENCE IF EXISTS test_once");
	pg_testing_on(f->pg, "CREATE SEQUENCE test_once");
	pg_testing_on(f->pg,
		"CREATE OR REPLACE FUNCTION test_kill() RETURNS trigger LANGUAGE plpgsql AS "
		"'BEGIN IF NEW.body = $x$kill$x$ AND nextval($x$test_once$x$) = 1 THEN PERFORM "
		"pg_terminate_backend(pg_backend_pid()); END IF; RETURN NEW; END'");
	pg_testing_on(f->pg, "CREATE TRIGGER test_kill BEFORE INSERT ON test_log FOR EACH ROW "
			     "EXECUTE FUNCTION test_kill()");
	open_batch(f, "", (struct batch_options){0});
	wait_until(f->loop, batch_is_up(f->b));
	add_bad(f);
	assert_int_equal(add_row(f, 1, "kill", 4), 0);
	wait_all(f);
	assert_int_equal(f->n_failed, 1);
	assert_true(count(f, "SELECT last_value FROM test_once") == 2);
	assert_exact(f);
	pg_testing_on(f->pg, "DROP FUNCTION test_kill CASCADE");
	pg_testing_on(f->pg, "DROP SEQUENCE test_once");
}

/* The commit is done, its answer never arrives. */
static void test_answer_lost(void **state)
{
	struct fixture *f = *state;
	struct batch_counts counts;

	f->proxy = proxy_new(f->loop);
	open_batch(f, proxy_conninfo(f->proxy), (struct batch_options){.max_batch_rows = 50});
	add_good(f);
	wait_all(f);
	for (int round = 0; round < 20; round++) {
		size_t cuts = proxy_cuts(f->proxy);

		wait_until(f->loop, batch_is_up(f->b));
		/* In the first batch, the second, or between them. */
		proxy_cut_answer(f->proxy, 1 + (size_t)round * 400, 50);
		for (int i = 0; i < 300; i++) {
			if (round % 4 == 3 && i % 70 == 5)
				add_bad(f);
			else
				add_good(f);
		}
		wait_until(f->loop, proxy_cuts(f->proxy) > cuts);
		wait_all(f);
	}
	batch_get_counts(f->b, &counts);
	assert_true(counts.in_doubt_resolved >= 20);
	assert_exact(f);
}

/* Cut in both directions at any byte. */
static void test_cut_at_random(void **state)
{
	struct fixture *f = *state;
	unsigned seed = (unsigned)getpid() + 1;

	print_message("seed %u\n", seed);
	srand(seed);
	f->proxy = proxy_new(f->loop);
	open_batch(f, proxy_conninfo(f->proxy), (struct batch_options){.max_batch_rows = 100});
	for (int round = 0; round < 60; round++) {
		for (int i = 0; i < 500; i++) {
			if (rand() % 400 == 0)
				add_bad(f);
			else
				add_good(f);
		}
		for (int turns = rand() % 20; turns > 0; turns--)
			ev_loop_once(f->loop, false);
		proxy_cut(f->proxy);
	}
	wait_all(f);
	assert_exact(f);
}

static bool holder_other_than(int pid)
{
	char sql[160];

	snprintf(sql, sizeof sql,
		"SELECT count(*) = 1 AND min(pid) <> %d FROM pg_locks WHERE locktype = 'advisory' "
		"AND granted",
		pid);
	return strcmp(pg_testing_sql(sql), "t") == 0;
}

/* The server hangs with our transaction open: the old backend is ended before anything is asked. */
static void test_old_backend_is_ended(void **state)
{
	struct fixture *f = *state;
	struct batch_counts counts;
	int pid;

	f->proxy = proxy_new(f->loop);
	open_batch(f, proxy_conninfo(f->proxy), (struct batch_options){0});
	add_good(f);
	wait_all(f);
	pid = backend_pid(f);
	/* Its insert waits for this lock; the client goes away meanwhile. */
	pg_testing_on(f->pg, "BEGIN; LOCK TABLE test_log IN SHARE MODE");
	for (int i = 0; i < 10; i++)
		add_good(f);
	pg_testing_run(f->loop, 200);
	assert_int_equal(f->n_done, 1);
	proxy_cut(f->proxy);
	/* While the table is still locked, the one that waits for it goes, and the lock with it. */
	wait_until(f->loop, holder_other_than(pid));
	assert_int_equal(f->n_done, 1);
	pg_testing_on(f->pg, "COMMIT");
	wait_all(f);
	batch_get_counts(f->b, &counts);
	assert_true(counts.in_doubt_resolved >= 1);
	assert_exact(f);
}

/* The whole server killed, several times. */
static void test_server_crash(void **state)
{
	struct fixture *f = *state;

	open_batch(f, "", (struct batch_options){.max_batch_rows = 500});
	add_good(f);
	wait_all(f);
	for (int round = 0; round < 3; round++) {
		int pid = backend_pid(f);

		for (int i = 0; i < 3000; i++)
			add_good(f);
		for (int turns = 0; turns < 4; turns++)
			ev_loop_once(f->loop, false);
		assert_true(pid > 0);
		assert_int_equal(kill(pid, SIGKILL), 0);
		wait_until(f->loop, f->n_trouble > 0);
		f->n_trouble = 0;
		wait_all(f);
		PQreset(f->pg);
		assert_int_equal(PQstatus(f->pg), CONNECTION_OK);
	}
	assert_exact(f);
}

static void free_in_done(int err, const char *why, void *arg)
{
	struct fixture *f = arg;

	(void)err, (void)why;
	f->n_done++;
	batch_free(&f->b);
}

/* Freed with work in every stage, and from its own completion. */
static void test_free_at_any_time(void **state)
{
	struct fixture *f = *state;

	for (int turns = 0; turns < 40; turns++) {
		open_batch(f, "", (struct batch_options){.max_batch_rows = 3});
		for (int i = 0; i < 20; i++) {
			uint64_t id = be64(i == 4 ? -1 : i);
			struct batch_value values[] = {{&id, sizeof id}, {NULL, -1}, {NULL, -1}};

			assert_int_equal(batch_add(f->b, 0, values, NULL, NULL), 0);
		}
		batch_barrier(f->b, on_barrier, f);
		for (int i = 0; i < turns; i++)
			pg_testing_turn(f->loop);
		batch_free(&f->b);
		assert_null(f->b);
		ev_loop_once(f->loop, false);
	}
}

static void test_free_in_completion(void **state)
{
	struct fixture *f = *state;
	uint64_t id = be64(1);
	struct batch_value values[] = {{&id, sizeof id}, {"x", 1}, {NULL, -1}};

	open_batch(f, "", (struct batch_options){0});
	for (int i = 0; i < 10; i++)
		assert_int_equal(batch_add(f->b, 0, values, free_in_done, f), 0);
	batch_barrier(f->b, on_barrier, f);
	wait_until(f->loop, f->b == NULL);
	assert_int_equal(f->n_done, 1);
	assert_int_equal(f->n_barriers, 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_order, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_one_by_one, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_session, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_bad_rows, set_up, tear_down),
		cmocka_unit_test_setup_teardown(
			test_deferred_constraint_and_kinds, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_refused_for_now, set_up, tear_down),
		cmocka_unit_test_setup_teardown(
			test_statement_cannot_be_prepared, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_lock_held_by_another, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_limits_and_barrier, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_byte_limits, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_terminated_at_random, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_lost_with_one_row_left, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_answer_lost, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_cut_at_random, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_old_backend_is_ended, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_server_crash, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_free_at_any_time, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_free_in_completion, set_up, tear_down),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
