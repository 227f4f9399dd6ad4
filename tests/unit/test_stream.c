/* SPDX-License-Identifier: PostgreSQL */
/*
 * The stream against a real server: connecting, slot commands, a stream with its events and
 * feedback, the pinned session, quoting, and every way in which the server says no. Runs inside
 * tests/helpers/with-postgres.
 */
#include "config.h"

#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <libpq-fe.h>
#include <poll.h>

#include <cmocka.h>

#include "libpgwalstream/stream_internal.h"
#include "tests/unit/helper_slots.h"

#define PATIENCE_MS 20000

static int64_t now_ms(void)
{
	struct timespec ts;
	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (int64_t)ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

static bool wait_io(struct pgws_stream *s, int timeout_ms)
{
	struct pollfd p = {.fd = pgws_stream_fd(s)};
	p.events = (short)((pgws_stream_wants_read(s) ? POLLIN : 0) |
			   (pgws_stream_wants_write(s) ? POLLOUT : 0));
	return poll(&p, 1, timeout_ms) > 0;
}

/* Until the phase ends. */
static int work(struct pgws_stream *s)
{
	int err;
	while ((err = pgws_stream_work(s)) == PGWS_EAGAIN) {
		if (!wait_io(s, PATIENCE_MS))
			fail_msg("no progress in phase %d", (int)pgws_stream_phase(s));
	}
	return err;
}

static struct pgws_stream *make(const char *conninfo, const char *publications)
{
	struct pgws_stream_options o = {.size = sizeof(struct pgws_stream_options),
		.conninfo = conninfo,
		.slot = "test_slot",
		.publications = publications,
		.messages = true};
	struct pgws_stream *s = pgws_stream_new(&o);
	assert_non_null(s);
	return s;
}

static struct pgws_stream *connected(const char *publications)
{
	struct pgws_stream *s = make("", publications);
	assert_int_equal(pgws_stream_phase(s), PGWS_PHASE_IDLE);
	assert_int_equal(pgws_stream_connect(s), 0);
	assert_int_equal(work(s), 0);
	assert_int_equal(pgws_stream_phase(s), PGWS_PHASE_READY);
	return s;
}

static struct pgws_stream *streaming(const char *publications)
{
	struct pgws_stream *s = connected(publications);
	assert_int_equal(
		pgws_stream_create_slot(
			s, &(struct pgws_slot_options){.size = sizeof(struct pgws_slot_options),
				   .snapshot = PGWS_SNAPSHOT_NOTHING}),
		0);
	assert_int_equal(work(s), 0);
	assert_int_equal(pgws_stream_start(s, 0), 0);
	assert_int_equal(work(s), 0);
	assert_int_equal(pgws_stream_phase(s), PGWS_PHASE_STREAMING);
	return s;
}

/* Next event of this kind, others passed over; keepalives are answered when they ask. */
static int next_of(struct pgws_stream *s, int kind, struct pgws_event *ret_event)
{
	int64_t deadline = now_ms() + PATIENCE_MS;
	while (now_ms() < deadline) {
		int err = pgws_stream_next(s, ret_event);
		if (err == PGWS_EAGAIN)
			(void)wait_io(s, 100);
		else if (err != 0 || (int)ret_event->kind == kind)
			return err;
	}
	fail_msg("no event of kind %d", kind);
	return PGWS_EAGAIN;
}

static struct pgws_msg next_msg(struct pgws_stream *s, struct pgws_event *ret_event)
{
	struct pgws_msg m;
	assert_int_equal(next_of(s, PGWS_EVENT_DATA, ret_event), 0);
	assert_int_equal(pgws_decode(ret_event->data, ret_event->len, false, &m), 0);
	return m;
}

/* Until a message of this type, which is returned. */
static struct pgws_msg next_type(
	struct pgws_stream *s, enum pgws_type type, struct pgws_event *ret_event)
{
	struct pgws_msg m;
	do {
		m = next_msg(s, ret_event);
	} while (m.type != type);
	return m;
}

static void test_identify(void **state)
{
	(void)state;
	struct pgws_stream *s = connected("p");
	assert_null(pgws_stream_system(s));
	assert_int_equal(pgws_stream_identify(s), 0);
	assert_int_equal(pgws_stream_identify(s), PGWS_ESTATE);
	assert_int_equal(work(s), 0);
	const struct pgws_system *sys = pgws_stream_system(s);
	assert_non_null(sys);
	char *id = sql("SELECT system_identifier FROM pg_control_system()");
	assert_string_equal(sys->systemid, id);
	free(id);
	assert_string_equal(sys->dbname, "postgres");
	assert_int_equal(sys->timeline, 1);
	assert_true(sys->xlogpos > 0);
	assert_true(pgws_stream_server_version(s) >= 140000);
	pgws_stream_free(&s);
	assert_null(s);
}

static void test_slot_and_snapshot(void **state)
{
	(void)state;
	struct pgws_stream *s = connected("p");
	run("INSERT INTO t VALUES (1, 'before')");
	assert_int_equal(
		pgws_stream_create_slot(
			s, &(struct pgws_slot_options){.size = sizeof(struct pgws_slot_options),
				   .snapshot = PGWS_SNAPSHOT_EXPORT}),
		0);
	assert_int_equal(work(s), 0);
	assert_true(pgws_stream_consistent_point(s) > 0);
	assert_non_null(pgws_stream_snapshot_name(s));
	run("INSERT INTO t VALUES (2, 'after')");
	char text[200];
	snprintf(text, sizeof(text),
		"BEGIN ISOLATION LEVEL REPEATABLE READ; SET TRANSACTION SNAPSHOT '%s'",
		pgws_stream_snapshot_name(s));
	run(text);
	assert_true(sql_is("SELECT count(*) FROM t", "1"));
	run("COMMIT");
	assert_true(
		sql_is("SELECT plugin || two_phase FROM pg_replication_slots", "pgoutputfalse"));

	/* The same again is refused, and says so. */
	assert_int_equal(
		pgws_stream_create_slot(
			s, &(struct pgws_slot_options){.size = sizeof(struct pgws_slot_options),
				   .snapshot = PGWS_SNAPSHOT_NOTHING}),
		0);
	assert_int_equal(work(s), PGWS_ESERVER);
	assert_string_equal(pgws_stream_sqlstate(s), "42710");
	assert_non_null(strstr(pgws_stream_error(s), "test_slot"));
	assert_null(strchr(pgws_stream_error(s), '\n'));
	assert_int_equal(pgws_stream_phase(s), PGWS_PHASE_FAILED);
	pgws_stream_close(s);
	assert_int_equal(pgws_stream_connect(s), 0);
	assert_int_equal(work(s), 0);
	assert_string_equal(pgws_stream_error(s), "");
	assert_int_equal(pgws_stream_drop_slot(s, NULL, false), 0);
	assert_int_equal(work(s), 0);
	assert_true(sql_is("SELECT count(*) FROM pg_replication_slots", "0"));
	pgws_stream_free(&s);
}

static void test_transaction(void **state)
{
	(void)state;
	struct pgws_stream *s = streaming("p");
	run("INSERT INTO t VALUES (1, 'x')");
	struct pgws_event ev;
	struct pgws_msg m = next_msg(s, &ev);
	assert_int_equal(m.type, PGWS_BEGIN);
	uint64_t final_lsn = m.u.begin.final_lsn;
	m = next_msg(s, &ev);
	assert_int_equal(m.type, PGWS_RELATION);
	assert_int_equal(ev.start_lsn, 0);
	assert_string_equal(m.u.relation.relname, "t");
	m = next_msg(s, &ev);
	assert_int_equal(m.type, PGWS_INSERT);
	assert_true(ev.start_lsn != 0 && ev.start_lsn < final_lsn);
	m = next_msg(s, &ev);
	assert_int_equal(m.type, PGWS_COMMIT);
	assert_int_equal(m.u.commit.commit_lsn, final_lsn);
	uint64_t end = m.u.commit.end_lsn;

	/* Feedback moves the slot, to exactly there. */
	assert_int_equal(pgws_stream_feedback(s, end, end, end, true), 0);
	assert_int_equal(next_of(s, PGWS_EVENT_KEEPALIVE, &ev), 0);
	assert_true(ev.end_lsn >= end);
	char text[120], lsn[18];
	snprintf(text, sizeof(text), "SELECT confirmed_flush_lsn = '%s' FROM pg_replication_slots",
		pgws_lsn_str(end, lsn));
	/* The keepalive may have been one that was under way before. */
	int64_t deadline = now_ms() + PATIENCE_MS;
	while (!sql_is(text, "t") && now_ms() < deadline)
		usleep(10000);
	assert_true(sql_is(text, "t"));

	/* A logical message, outside and inside a transaction. */
	run("SELECT pg_logical_emit_message(false, 'pre', 'fix')");
	m = next_type(s, PGWS_MESSAGE, &ev);
	assert_false(m.u.message.transactional);
	assert_string_equal(m.u.message.prefix, "pre");
	assert_int_equal(m.u.message.len, 3);
	run("SELECT pg_logical_emit_message(true, 'tx', '')");
	m = next_type(s, PGWS_MESSAGE, &ev);
	assert_true(m.u.message.transactional);

	/* An orderly end leaves a connection that can go on. */
	assert_int_equal(pgws_stream_end(s), 0);
	assert_int_equal(work(s), 0);
	assert_int_equal(pgws_stream_phase(s), PGWS_PHASE_READY);
	assert_int_equal(pgws_stream_next(s, &ev), PGWS_ESTATE);
	assert_int_equal(pgws_stream_identify(s), 0);
	assert_int_equal(work(s), 0);
	pgws_stream_free(&s);
}

static void test_many_and_large(void **state)
{
	(void)state;
	struct pgws_stream *s = streaming("p");
	run("INSERT INTO t SELECT i, 'row ' || i FROM generate_series(1, 20000) i");
	run("INSERT INTO t VALUES (0, repeat('x', 3000000))");
	struct pgws_event ev;
	struct pgws_msg m;
	for (int i = 1; i <= 20000; i++) {
		m = next_type(s, PGWS_INSERT, &ev);
		struct pgws_column col;
		size_t offset = 0;
		char id[12];
		assert_true(pgws_tuple_next(&m.u.change.new_row, &offset, &col));
		snprintf(id, sizeof(id), "%d", i);
		assert_int_equal(col.len, strlen(id));
		assert_memory_equal(col.data, id, col.len);
	}
	m = next_type(s, PGWS_INSERT, &ev);
	assert_true(ev.len > 3000000);
	m = next_type(s, PGWS_COMMIT, &ev);
	pgws_stream_free(&s);
}

static void test_pinned_session(void **state)
{
	(void)state;
	run("ALTER ROLE howdah SET datestyle = 'German'; ALTER ROLE howdah SET timezone = "
	    "'Asia/Tokyo';"
	    "ALTER ROLE howdah SET intervalstyle = 'iso_8601'; ALTER ROLE howdah SET bytea_output ="
	    "'escape'; ALTER ROLE howdah SET extra_float_digits = -5");
	run("CREATE TABLE f (a timestamptz, b interval, c bytea, d float8, e date);"
	    "ALTER PUBLICATION p ADD TABLE f");
	struct pgws_stream *s = make("options='-c timezone=Europe/Paris -c work_mem=1MB'", "p");
	assert_int_equal(pgws_stream_connect(s), 0);
	assert_int_equal(work(s), 0);
	assert_int_equal(
		pgws_stream_create_slot(
			s, &(struct pgws_slot_options){.size = sizeof(struct pgws_slot_options),
				   .snapshot = PGWS_SNAPSHOT_NOTHING}),
		0);
	assert_int_equal(work(s), 0);
	assert_int_equal(pgws_stream_start(s, 0), 0);
	assert_int_equal(work(s), 0);
	run("INSERT INTO f VALUES ('2024-02-03 04:05:06+00', '1 day 2 hours', '\\x00ff', "
	    "0.1::float8 "
	    "+ 0.2, '2024-02-03')");
	struct pgws_event ev;
	struct pgws_msg m = next_type(s, PGWS_INSERT, &ev);
	static const char *const expect[] = {"2024-02-03 04:05:06+00", "1 day 02:00:00", "\\x00ff",
		"0.30000000000000004", "2024-02-03"};
	struct pgws_column col;
	size_t offset = 0;
	for (int i = 0; i < 5; i++) {
		assert_true(pgws_tuple_next(&m.u.change.new_row, &offset, &col));
		assert_int_equal(col.len, strlen(expect[i]));
		assert_memory_equal(col.data, expect[i], col.len);
	}
	pgws_stream_free(&s);
	run("ALTER ROLE howdah RESET ALL; DROP TABLE f");
}

static void test_quoting(void **state)
{
	(void)state;
	run("CREATE PUBLICATION \"we\"\"ird 'Pub\" FOR TABLE t");
	struct pgws_stream *s = streaming("p,we\"ird 'Pub");
	run("INSERT INTO t VALUES (1, 'x')");
	struct pgws_event ev;
	next_type(s, PGWS_INSERT, &ev);
	pgws_stream_free(&s);
	drop_slots();
	run("DROP PUBLICATION \"we\"\"ird 'Pub\"");
}

static void test_parameter_status(void **state)
{
	(void)state;
	struct pgws_stream *s = streaming("p");
	run("INSERT INTO t VALUES (1, 'x')");
	struct pgws_event ev;
	next_type(s, PGWS_COMMIT, &ev);
	/* default_transaction_read_only is reported to the client when it changes. */
	run("ALTER SYSTEM SET default_transaction_read_only = on");
	run("SELECT pg_reload_conf()");
	run("INSERT INTO t VALUES (2, 'x')");
	next_type(s, PGWS_COMMIT, &ev);
	run("ALTER SYSTEM RESET default_transaction_read_only");
	run("SELECT pg_reload_conf()");
	run("INSERT INTO t VALUES (3, 'x')");
	next_type(s, PGWS_COMMIT, &ev);
	pgws_stream_free(&s);
}

static void refused_connect(const char *conninfo, const char *sqlstate)
{
	struct pgws_stream *s = make(conninfo, "p");
	int err = pgws_stream_connect(s);
	if (err == 0)
		err = work(s);
	assert_int_equal(err, PGWS_ECONN);
	assert_int_equal(pgws_stream_phase(s), PGWS_PHASE_FAILED);
	assert_string_equal(pgws_stream_sqlstate(s), sqlstate);
	assert_string_not_equal(pgws_stream_error(s), "");
	assert_null(strstr(pgws_stream_error(s), "LOCATION"));
	assert_null(strchr(pgws_stream_error(s), '\n'));
	assert_int_equal(pgws_stream_work(s), PGWS_ESTATE);
	pgws_stream_free(&s);
}

static void test_refused(void **state)
{
	(void)state;
	refused_connect("dbname=no_such_database", "3D000");
	refused_connect("user=no_such_role", "28000");
	refused_connect("host=/nonexistent", "");
	refused_connect("nonsense=1", "");
	run("CREATE ROLE plain LOGIN");
	refused_connect("user=plain", "42501");
	run("DROP ROLE plain");
}

static void start_refused(const char *publications, const char *sqlstate)
{
	struct pgws_stream *s = connected(publications);
	assert_int_equal(pgws_stream_start(s, 0), 0);
	assert_int_equal(work(s), PGWS_ESERVER);
	assert_string_equal(pgws_stream_sqlstate(s), sqlstate);
	pgws_stream_free(&s);
}

static void test_start_refused(void **state)
{
	(void)state;
	start_refused("p", "42704"); /* no such slot */
	struct pgws_stream *s = streaming("p");
	start_refused("p", "55006"); /* the slot is in use */
	pgws_stream_free(&s);
}

static void test_error_in_mid_stream(void **state)
{
	(void)state;
	struct pgws_stream *s = streaming("p");
	run("INSERT INTO t VALUES (1, 'x')");
	struct pgws_event ev;
	next_type(s, PGWS_COMMIT, &ev);
	run("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots");
	assert_int_equal(next_of(s, PGWS_EVENT_DATA, &ev), PGWS_ESERVER);
	assert_string_equal(pgws_stream_sqlstate(s), "57P01");
	assert_int_equal(pgws_stream_phase(s), PGWS_PHASE_FAILED);
	assert_int_equal(pgws_stream_next(s, &ev), PGWS_ESTATE);
	pgws_stream_free(&s);
	drop_slots();
	if (PQserverVersion(sql_conn) >= 180000)
		return; /* a missing publication is only a warning there */
	s = streaming("p,gone");
	run("INSERT INTO t VALUES (2, 'x')");
	int err;
	do { /* 14 sends the BEGIN first */
		err = next_of(s, PGWS_EVENT_DATA, &ev);
	} while (err == 0);
	assert_int_equal(err, PGWS_ESERVER);
	assert_string_equal(pgws_stream_sqlstate(s), "42704");
	assert_non_null(strstr(pgws_stream_error(s), "\"gone\""));
	pgws_stream_free(&s);
}

/* Messages that are there are given out although the connection was cut behind them. */
static void test_last_words(void **state)
{
	(void)state;
	struct pgws_stream *s = streaming("p");
	run("INSERT INTO t SELECT i, 'x' FROM generate_series(1, 10) i");
	for (int i = 0; i < 400; i++) {
		if (sql_is("SELECT sent_lsn = pg_current_wal_lsn() FROM pg_stat_replication", "t"))
			break;
		usleep(10000);
	}
	run("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots");
	for (int i = 0; i < 400; i++) {
		if (sql_is("SELECT count(*) FROM pg_stat_replication", "0"))
			break;
		usleep(10000);
	}
	struct pgws_event ev;
	for (int i = 0; i < 10; i++)
		next_type(s, PGWS_INSERT, &ev);
	next_type(s, PGWS_COMMIT, &ev);
	assert_int_equal(next_of(s, PGWS_EVENT_DATA, &ev), PGWS_ESERVER);
	assert_string_equal(pgws_stream_sqlstate(s), "57P01");
	pgws_stream_free(&s);
}

/* The last position goes out in front of the end, though the server does not read just then. */
static void end_behind_feedback_that_waits(enum pgws_receive how)
{
	struct pgws_stream *s = connected("p");
	struct pgws_event ev;
	char text[120], lsn[18];
	s->options.receive = how;
	run("TRUNCATE t");
	run("SELECT pg_create_logical_replication_slot('test_slot', 'pgoutput')");
	assert_int_equal(pgws_stream_start(s, 0), 0);
	assert_int_equal(work(s), 0);
	assert_int_equal(pgws_stream_receive(s), how);
	run("INSERT INTO t VALUES (1, 'x')");
	uint64_t end = next_type(s, PGWS_COMMIT, &ev).u.commit.end_lsn;
	char *pid = sql("SELECT active_pid FROM pg_replication_slots");
	assert_int_equal(kill(atoi(pid), SIGSTOP), 0);
	int n = 0;
	while (pgws_stream_feedback(s, 1, 1, 1, false) == 0 && n < 1000000)
		n++;
	int waits = pgws_stream_feedback(s, end, end, end, false), err = pgws_stream_end(s);
	assert_int_equal(kill(atoi(pid), SIGCONT), 0); /* before anything can fail */
	free(pid);
	assert_int_equal(waits, PGWS_EAGAIN);
	assert_int_equal(err, 0);
	assert_int_equal(work(s), 0);
	snprintf(text, sizeof(text), "SELECT confirmed_flush_lsn = '%s' FROM pg_replication_slots",
		pgws_lsn_str(end, lsn));
	assert_true(sql_is(text, "t"));
	pgws_stream_free(&s);
	drop_slots();
}

static void test_end_behind_feedback_that_waits(void **state)
{
	(void)state;
	end_behind_feedback_that_waits(PGWS_RECEIVE_SOCKET);
	end_behind_feedback_that_waits(PGWS_RECEIVE_LIBPQ);
}

static void test_wrong_state(void **state)
{
	(void)state;
	struct pgws_stream *s = make("", "p");
	struct pgws_event ev;
	assert_int_equal(pgws_stream_next(s, &ev), PGWS_ESTATE);
	assert_int_equal(pgws_stream_feedback(s, 1, 1, 1, false), PGWS_ESTATE);
	assert_int_equal(pgws_stream_flush(s), PGWS_ESTATE);
	assert_int_equal(pgws_stream_identify(s), PGWS_ESTATE);
	assert_int_equal(pgws_stream_end(s), PGWS_ESTATE);
	assert_int_equal(pgws_stream_work(s), PGWS_ESTATE);
	assert_int_equal(pgws_stream_fd(s), -1);
	assert_int_equal(pgws_stream_connect(s), 0);
	assert_int_equal(pgws_stream_connect(s), PGWS_ESTATE);
	pgws_stream_close(s);
	pgws_stream_free(&s);
	pgws_stream_free(&s);
}

int main(void)
{
	if (slots_connect("-c default_transaction_read_only=off") == 0)
		return 1;
#define TEST(fn) cmocka_unit_test_setup_teardown(fn, slots_setup, slots_teardown)
	const struct CMUnitTest tests[] = {
		TEST(test_identify),
		TEST(test_slot_and_snapshot),
		TEST(test_transaction),
		TEST(test_many_and_large),
		TEST(test_pinned_session),
		TEST(test_quoting),
		TEST(test_parameter_status),
		TEST(test_refused),
		TEST(test_start_refused),
		TEST(test_error_in_mid_stream),
		TEST(test_last_words),
		TEST(test_end_behind_feedback_that_waits),
		TEST(test_wrong_state),
	};
	int failed = cmocka_run_group_tests(tests, NULL, NULL);
	PQfinish(sql_conn);
	return failed;
}
