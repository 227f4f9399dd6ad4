/* SPDX-License-Identifier: PostgreSQL */
/*
 * The assembler on what a real server sends: traffic of every kind, random transactions of several
 * sessions among it, peeked with every set of pgoutput's options that the version has, in memory
 * and through files. What comes out must be what protocol 1 sends for the same WAL, byte for byte,
 * Relation and Type messages aside. Then a prepared transaction over a crash of the server and a
 * new life of ours. Runs inside tests/helpers/with-postgres; PGWS_TEST_SEED repeats a run.
 */
#include "config.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <time.h>
#include <unistd.h>

#include <libpq-fe.h>

#include <cmocka.h>

#include "tests/unit/assemble_testing.h"
#include "tests/unit/helper_capture.h"

#define BETWEEN "INSERT INTO t (note) VALUES ('between')"

#define SESSIONS 4

static PGconn *sessions[SESSIONS];
static int version; /* 14, 15, … */
static char dir[64];

/* ---- traffic ---- */

static const char *const schema[] = {
	"CREATE TYPE mood AS ENUM ('sad', 'ok')",
	"CREATE TABLE t (id bigserial PRIMARY KEY, note text)",
	"CREATE TABLE f (id bigserial, note text, m mood)",
	"ALTER TABLE f REPLICA IDENTITY FULL",
	"CREATE TABLE changing (id serial PRIMARY KEY)",
	"CREATE TABLE emptied (id serial PRIMARY KEY)",
	"CREATE TABLE vector (n int)",
	"CREATE TABLE hidden (note text)",
	"CREATE SCHEMA before",
	"CREATE TABLE before.r (moved text)",
	"CREATE PUBLICATION p FOR TABLE t, f, changing, emptied, vector, before.r",
	"SELECT pg_replication_origin_create('elsewhere')",
	NULL,
};

/* The vector: 4,102 rows are committed, beside a transaction of 5,000 that gives up. */
static void vector(void)
{
	run_on(sessions[1], "BEGIN");
	run_on(sessions[1], "INSERT INTO t (note) SELECT 'given up' FROM generate_series(1, 5000)");
	run("BEGIN");
	run("INSERT INTO vector SELECT generate_series(1, 4000)");
	run("SAVEPOINT a");
	run("INSERT INTO vector SELECT generate_series(10001, 15000)");
	run("SAVEPOINT b");
	run("INSERT INTO vector SELECT generate_series(20001, 25000)");
	run_on(sessions[1], "ROLLBACK");
	run("ROLLBACK TO a");
	run("INSERT INTO vector SELECT generate_series(4001, 4102)");
	run("COMMIT");
}

/* A schema renamed under an open transaction, which has been told the old name: the server says the
 * new one to another, and neither to the last. */
static void moved(void)
{
	run_on(sessions[1], "BEGIN");
	run_on(sessions[1],
		"INSERT INTO before.r SELECT repeat('m', 100) FROM generate_series(1, 2000)");
	run("ALTER SCHEMA before RENAME TO after");
	run("INSERT INTO after.r VALUES ('between')");
	run_on(sessions[1], "COMMIT");
	run("INSERT INTO after.r VALUES ('last')");
}

static const char *const fixed[] = {
	"INSERT INTO t (note) VALUES ('one'), (NULL)",
	"UPDATE t SET note = 'two' WHERE id = 1",
	"UPDATE t SET id = -2 WHERE id = 2",
	"INSERT INTO f (note, m) VALUES ('a', 'ok')",
	"DELETE FROM f",
	"TRUNCATE emptied, changing RESTART IDENTITY",
	"SELECT pg_logical_emit_message(false, 'alone', 'text')",
	"SELECT pg_logical_emit_message(true, 'inside', 'text')",
	/* streamed, nothing of it published */
	"INSERT INTO hidden " MANY,
	/* DDL, TOAST and messages in a large one, with savepoints given up */
	"BEGIN",
	"INSERT INTO t (note) " MANY,
	"SELECT pg_logical_emit_message(false, 'beside', 'text')",
	"SAVEPOINT a",
	"ALTER TABLE changing ADD COLUMN note text",
	"INSERT INTO changing (note) " MANY,
	"ROLLBACK TO a",
	"INSERT INTO changing SELECT generate_series(1, 900)",
	"SAVEPOINT b",
	"ALTER TABLE changing ADD COLUMN other int DEFAULT 1",
	"INSERT INTO changing SELECT generate_series(1001, 1900)",
	"RELEASE b",
	"UPDATE t SET note = note || '!'",
	"SELECT pg_logical_emit_message(true, 'large', 'text')",
	"TRUNCATE emptied",
	"INSERT INTO t (note) SELECT repeat(md5(g::text), 3000) FROM generate_series(1, 3) g",
	"COMMIT",
	"INSERT INTO changing VALUES (5000, 2)",
	/* an origin, small and large */
	"SELECT pg_replication_origin_session_setup('elsewhere')",
	"BEGIN",
	"SELECT pg_replication_origin_xact_setup('0/12345678', '2026-01-02 03:04:05+00')",
	"INSERT INTO t (note) VALUES ('elsewhere')",
	"COMMIT",
	"BEGIN",
	"SAVEPOINT o",
	"INSERT INTO t (note) " MANY,
	"ROLLBACK TO o",
	"INSERT INTO t (note) " MANY,
	"COMMIT",
	"SELECT pg_replication_origin_session_reset()",
	NULL,
};

/* Sessions that write, nest savepoints, give up and commit, in an order of their own. */
static void random_traffic(unsigned *seed)
{
	int depth[SESSIONS];
	for (int i = 1; i < SESSIONS; i++)
		depth[i] = -1;
	for (int step = 0; step < 250; step++) {
		int i = 1 + (int)(rand_r(seed) % (SESSIONS - 1));
		char text[256];
		unsigned what = rand_r(seed) % 20, n = rand_r(seed) % 400;
		if (depth[i] < 0) {
			run_on(sessions[i], "BEGIN");
			depth[i] = 0;
		} else if (what < 8) {
			snprintf(text, sizeof(text),
				"INSERT INTO %s (note) SELECT repeat('r', 60) || g FROM "
				"generate_series(1, %u) g",
				what % 2 ? "t" : "f", n);
			run_on(sessions[i], text);
		} else if (what < 10) {
			/* rows of its own only: sessions do not wait for each other */
			snprintf(text, sizeof(text),
				"UPDATE f SET note = 'u' || note WHERE xmin = "
				"pg_current_xact_id()::xid");
			run_on(sessions[i], text);
		} else if (what < 14) {
			snprintf(text, sizeof(text), "SAVEPOINT s%d", ++depth[i]);
			run_on(sessions[i], text);
		} else if (what < 18) {
			if (depth[i] > 0) {
				int to = 1 + (int)(rand_r(seed) % (unsigned)depth[i]);
				bool keep = what == 17;
				snprintf(text, sizeof(text), "%s s%d",
					keep ? "RELEASE" : "ROLLBACK TO", to);
				run_on(sessions[i], text);
				depth[i] = keep ? to - 1 : to;
			}
		} else {
			run_on(sessions[i], what == 18 && n % 2 == 0 ? "ROLLBACK" : "COMMIT");
			depth[i] = -1;
		}
	}
	for (int i = 1; i < SESSIONS; i++)
		run_on(sessions[i], depth[i] < 0 ? "SELECT 1" : "COMMIT");
}

static void connect_all(void)
{
	for (int i = 0; i < SESSIONS; i++) {
		sessions[i] = PQconnectdb("");
		if (PQstatus(sessions[i]) != CONNECTION_OK)
			fail_msg("%s", PQerrorMessage(sessions[i]));
	}
	sql_conn = sessions[0];
	run("SET logical_decoding_work_mem = '64kB'");
}

static void disconnect_all(void)
{
	for (int i = 0; i < SESSIONS; i++)
		PQfinish(sessions[i]);
}

static int setup(void **state)
{
	(void)state;
	snprintf(dir, sizeof(dir), "/tmp/test-assemble.XXXXXX");
	if (mkdtemp(dir) == NULL)
		return 1;
	connect_all();
	version = server_major();
	const char *given = getenv("PGWS_TEST_SEED");
	unsigned seed =
		given != NULL ? (unsigned)atoi(given) : (unsigned)time(NULL) ^ (unsigned)getpid();
	print_message("PostgreSQL %d, PGWS_TEST_SEED=%u\n", version, seed);
	run_all(schema);
	run("SELECT pg_create_logical_replication_slot('one', 'pgoutput')");
	run("SELECT pg_create_logical_replication_slot('two', 'pgoutput', false, true)");
	run_all(fixed);
	vector();
	moved();
	random_traffic(&seed);
	prepare_transaction("INSERT INTO t (note) VALUES ('p')", "gid", BETWEEN, "COMMIT");
	prepare_transaction("INSERT INTO t (note) VALUES ('p')", "gid", BETWEEN, "ROLLBACK");
	prepare_transaction("INSERT INTO f (note) " MANY, "gid", BETWEEN, "COMMIT");
	prepare_transaction("INSERT INTO t (note) " MANY, "given up", BETWEEN, "ROLLBACK");
	prepare_transaction("INSERT INTO t (note) " MANY, "open", NULL, NULL);
	run("INSERT INTO t (note) VALUES ('last')");
	return 0;
}

static void empty_folder(void)
{
	DIR *d = opendir(dir);
	assert_non_null(d);
	for (struct dirent *e; (e = readdir(d)) != NULL;) {
		if (e->d_name[0] != '.')
			assert_int_equal(unlinkat(dirfd(d), e->d_name, 0), 0);
	}
	closedir(d);
}

static int teardown(void **state)
{
	(void)state;
	run("ROLLBACK PREPARED 'open'");
	disconnect_all();
	empty_folder();
	return rmdir(dir);
}

/* ---- captures ---- */

static const struct capture plain = {.publications = "p", .beside = "lsn"};

static struct pgws_assembler *new_assembler(size_t memory_limit, bool keep)
{
	struct pgws_assembler_options o = PGWS_ASSEMBLER_OPTIONS_INIT;
	o.memory_limit = memory_limit;
	o.file_limit = UINT64_C(1) << 32;
	o.dir = dir;
	o.keep_prepared = keep;
	struct pgws_assembler *a = NULL;
	int err = pgws_assembler_new(&o, &a);
	if (err != 0)
		fail_msg("%d %s", err, pgws_assembler_error(NULL));
	return a;
}

static void feed_all(struct pgws_assembler *a, struct asm_out *out, const PGresult *res)
{
	for (int row = 0; row < PQntuples(res); row++) {
		const uint8_t *x = (const uint8_t *)PQgetvalue(res, row, 0);
		uint64_t lsn = 0;
		for (int i = 0; i < 8; i++)
			lsn = lsn << 8 | x[i];
		int err = asm_feed_bytes(
			a, out, PQgetvalue(res, row, 1), (size_t)PQgetlength(res, row, 1), lsn);
		if (err != 0)
			fail_msg("message %d of %d: %d %s", row, PQntuples(res), err,
				pgws_assembler_error(a));
	}
}

static bool is(const struct asm_out *o, size_t i, char type)
{
	return i < o->n && o->list[i].bytes[0] == type;
}

/* Drops Relation and Type, and the transactions that are empty then: whether the server sends those
 * depends on its version and on streaming. */
static void strip(struct asm_out *o)
{
	size_t n = 0;
	for (size_t i = 0; i < o->n; i++) {
		if (is(o, i, 'R') || is(o, i, 'Y'))
			free(o->list[i].bytes);
		else
			o->list[n++] = o->list[i];
	}
	o->n = n;
	n = 0;
	for (size_t i = 0; i < o->n;) {
		size_t end = is(o, i, 'B') ? i + 1 : 0;
		end += end != 0 && is(o, end, 'O');
		if (end != 0 && is(o, end, 'C')) {
			for (; i <= end; i++)
				free(o->list[i].bytes);
		} else {
			o->list[n++] = o->list[i++];
		}
	}
	o->n = n;
}

static size_t rows_of(const struct asm_out *o, const char *column)
{
	size_t n = 0;
	for (size_t i = 0; i < o->n; i++)
		n += is(o, i, 'I') && strcmp(o->list[i].column, column) == 0;
	return n;
}

/* The relation that the last row of it belongs to. */
static const char *last_name_of(const struct asm_out *o, const char *column)
{
	const char *name = "";
	for (size_t i = 0; i < o->n; i++) {
		if (strcmp(o->list[i].column, column) == 0)
			name = o->list[i].relname;
	}
	return name;
}

static void compare(const struct asm_out *expected, const struct asm_out *got)
{
	for (size_t i = 0; i < expected->n && i < got->n; i++) {
		const struct asm_given *x = &expected->list[i], *y = &got->list[i];
		/* The origin's LSN is not known yet when a transaction is streamed or prepared. */
		size_t skip = x->bytes[0] == 'O' ? 9 : 0;
		if (x->len != y->len || x->bytes[0] != y->bytes[0] ||
			memcmp(x->bytes + skip, y->bytes + skip, x->len - skip) != 0)
			fail_msg("change %zu: '%c' of %zu bytes, expected '%c' of %zu bytes", i,
				y->bytes[0], y->len, x->bytes[0], x->len);
		assert_int_equal(x->change.commit_lsn, y->change.commit_lsn);
		assert_int_equal(x->change.commit_time, y->change.commit_time);
		assert_int_equal(x->change.xid, y->change.xid);
		assert_int_equal(x->change.ordinal, y->change.ordinal);
		assert_string_equal(x->column, y->column);
		if (strchr("BCO", x->bytes[0]) == NULL)
			assert_int_equal(x->change.lsn, y->change.lsn);
		if (x->bytes[0] == 'C')
			assert_int_equal(x->change.end_lsn, y->change.end_lsn);
	}
	assert_int_equal(expected->n, got->n);
}

static uint64_t n_captures, n_messages, n_streamed, n_aborted;

/* What protocol 1 sends with the same options. */
static void expect_of(const struct capture *like, struct asm_out *ret_expected)
{
	struct capture o = *like;
	o.proto = 1;
	o.streaming = "off";
	o.two_phase = o.immediate = false;
	PGresult *res = capture(&o, "peek");
	struct pgws_assembler *a = new_assembler(1 << 20, false);
	*ret_expected = (struct asm_out){0};
	feed_all(a, ret_expected, res);
	struct pgws_assembler_counts c;
	pgws_assembler_get_counts(a, &c);
	assert_int_equal(c.streamed, 0);
	assert_int_equal(c.memory_bytes, 0);
	pgws_assembler_free(&a);
	PQclear(res);
	if (o.origin == NULL)
		assert_int_equal(rows_of(ret_expected, "n"), 4102);
	strip(ret_expected);
}

static void check(const struct capture *o, void *arg)
{
	const struct asm_out *expected = arg;
	static const size_t limits[] = {64 << 20, 100000, 0};
	PGresult *res = capture(o, "peek");
	for (size_t i = 0; i < sizeof(limits) / sizeof(limits[0]); i++) {
		struct asm_out got = {0};
		struct pgws_assembler *a = new_assembler(limits[i], o->two_phase);
		feed_all(a, &got, res);
		assert_int_equal(rows_of(&got, "n"), 4102);
		assert_string_equal(last_name_of(&got, "moved"), "after.r");
		strip(&got);
		compare(expected, &got);
		struct pgws_assembler_counts c;
		pgws_assembler_get_counts(a, &c);
		assert_int_equal(c.prepared, o->two_phase);
		assert_int_equal(
			c.spilled > 0, limits[i] < 1 << 20 && (c.streamed > 0 || o->two_phase));
		n_streamed += c.streamed;
		n_aborted += c.aborted;
		pgws_assembler_free(&a);
		asm_out_clear(&got);
		empty_folder();
	}
	n_captures++;
	n_messages += (uint64_t)PQntuples(res);
	PQclear(res);
}

static void test_as_protocol_1(void **state)
{
	(void)state;
	for (int bits = 0; bits < 4; bits++) {
		struct capture o = plain;
		o.binary = (bits & 1) != 0;
		o.messages = (bits & 2) != 0;
		struct asm_out expected;
		expect_of(&o, &expected);
		for (o.proto = 1; o.proto <= server_protos(); o.proto++) {
			o.two_phase = false;
			each_streaming(o, check, &expected);
			o.two_phase = true;
			if (o.proto >= 3)
				each_streaming(o, check, &expected);
		}
		asm_out_clear(&expected);
	}
	print_message("%llu messages in %llu captures; %llu transactions streamed, %llu aborts\n",
		(unsigned long long)n_messages, (unsigned long long)n_captures,
		(unsigned long long)n_streamed, (unsigned long long)n_aborted);
	assert_true(n_streamed > 0);
	assert_true(n_aborted > 0);
}

/* With origin 'none' the transactions from elsewhere are left out, streamed or not. */
static void test_origin(void **state)
{
	(void)state;
	if (version < 16)
		skip();
	struct capture o = plain;
	o.messages = true;
	o.origin = "none";
	struct asm_out expected, all;
	expect_of(&o, &expected);
	o.origin = NULL;
	expect_of(&o, &all);
	assert_true(all.n > expected.n + 900);
	o.origin = "none";
	for (o.proto = 2; o.proto <= 4; o.proto++)
		each_streaming(o, check, &expected);
	asm_out_clear(&expected);
	asm_out_clear(&all);
}

/* ---- prepared, over a crash of the server and a new life of ours ---- */

static void crash_server(void)
{
	disconnect_all();
	PGconn *c = PQconnectdb("");
	int pid = PQbackendPID(c);
	assert_int_equal(kill(pid, SIGKILL), 0);
	PQfinish(c);
	/* All others go with it; the server recovers and lets us in again. */
	for (int i = 0;; i++) {
		c = PQconnectdb("");
		PGresult *res = PQexec(c, "SELECT pg_postmaster_start_time(), pg_is_in_recovery()");
		bool ok = PQresultStatus(res) == PGRES_TUPLES_OK;
		PQclear(res);
		PQfinish(c);
		/* Some in a row, so that it is not the old one that is still going down. */
		if (!ok)
			i = 0;
		if (ok && i > 20)
			break;
		struct timespec ts = {.tv_nsec = 20000000};
		nanosleep(&ts, NULL);
	}
	connect_all();
}

static void take(struct pgws_assembler *a, struct asm_out *out, const struct capture *o)
{
	PGresult *res = capture(o, "get");
	feed_all(a, out, res);
	PQclear(res);
}

static void prepared_over_a_crash(const char *insert, size_t rows, const char *streaming)
{
	struct capture o = plain;
	o.proto = 3;
	o.streaming = streaming;
	o.two_phase = true;
	struct pgws_assembler *a = new_assembler(100000, true);
	struct asm_out out = {0};
	run("INSERT INTO t (note) VALUES ('before')"); /* the relation is known then */
	take(a, &out, &o);
	prepare_transaction(insert, "crash", NULL, NULL);
	take(a, &out, &o); /* consumed: the slot stands behind PREPARE */
	struct pgws_assembler_counts c;
	pgws_assembler_get_counts(a, &c);
	assert_int_equal(c.prepared, 2); /* "open" is the other */
	pgws_assembler_free(&a);
	asm_out_clear(&out);

	run("CHECKPOINT");
	crash_server();
	a = new_assembler(100000, true);
	run("INSERT INTO t (note) VALUES ('between')");
	take(a, &out, &o);
	run("COMMIT PREPARED 'crash'");
	take(a, &out, &o);
	size_t given = 0;
	for (size_t i = 0; i < out.n; i++)
		given += is(&out, i, 'I') && strcmp(out.list[i].gid, "crash") == 0;
	assert_int_equal(given, rows);
	assert_false(pgws_assembler_in_transaction(a));
	uint64_t end_lsn = out.list[out.n - 1].change.end_lsn;
	assert_int_equal(pgws_assembler_confirmed(a, end_lsn), 0);
	pgws_assembler_get_counts(a, &c);
	assert_int_equal(c.prepared, 1);
	pgws_assembler_free(&a);
	asm_out_clear(&out);
}

static void test_prepared_over_a_crash(void **state)
{
	(void)state;
	if (version < 15)
		skip();
	prepared_over_a_crash("INSERT INTO t (note) VALUES ('p')", 2, "off");
	prepared_over_a_crash("INSERT INTO t (note) " MANY, 1800, "off");
	prepared_over_a_crash("INSERT INTO t (note) " MANY, 1800, "on");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_as_protocol_1),
		cmocka_unit_test(test_origin),
		cmocka_unit_test(test_prepared_over_a_crash),
	};
	return cmocka_run_group_tests(tests, setup, teardown);
}
