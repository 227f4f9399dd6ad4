/* SPDX-License-Identifier: PostgreSQL */
/*
 * The consumer across lives, its own and the server's: prepared transactions that end after a
 * restart of the consumer; a server that comes back on another timeline, or from a copy of its
 * past. Runs inside tests/helpers/with-postgres.
 */
#include "config.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <libpq-fe.h>
#include <pthread.h>

#include <cmocka.h>

#include "libpgwalstream/pgwalstream.h"
#include "tests/unit/helper_consumer.h"
#include "tests/unit/helper_server.h"
#include "tests/unit/helper_slots.h"

static void reconnect_sql(void)
{
	PQfinish(sql_conn);
	for (int i = 0; i < 600; i++) {
		sql_conn = PQconnectdb("options='-c client_min_messages=error'");
		if (PQstatus(sql_conn) == CONNECTION_OK)
			return;
		PQfinish(sql_conn);
		sql_conn = NULL;
		usleep(50000);
	}
	fail_msg("the server is not back");
}

/* Until the slot is at lsn; no row comes meanwhile. Everything that comes is confirmed. */
static void confirm_up_to(struct pgws_consumer *c, uint64_t lsn)
{
	int64_t until = test_now_ms() + TEST_PATIENCE_MS;
	struct pgws_change ch;
	while (sql_lsn("SELECT confirmed_flush_lsn FROM pg_replication_slots") < lsn) {
		int rc = pgws_consumer_next(c, 50, &ch);
		assert_true(rc == 0 || rc == PGWS_EAGAIN);
		assert_true(rc != 0 || ch.msg.type != PGWS_INSERT);
		struct pgws_position pos;
		pgws_consumer_get_position(c, &pos);
		pgws_consumer_confirm(c, pos.received_lsn, pos.received_lsn, pos.received_lsn);
		assert_true(test_now_ms() < until);
	}
}

/* ---- Prepared transactions --------------------------------------------------------------------
 */

static void prepared_across_lives(enum pgws_streaming streaming)
{
	char dir[] = "/tmp/howdah-prepared.XXXXXX", command[80];
	assert_non_null(mkdtemp(dir));
	run("SELECT pg_create_logical_replication_slot('c_slot', 'pgoutput', false, true)");
	struct pgws_consumer_options o = consumer_options();
	o.stream.conninfo = "options='-c logical_decoding_work_mem=64kB'";
	o.stream.streaming = streaming;
	o.stream.two_phase = true;
	o.assembler.keep_prepared = true;
	o.assembler.dir = dir;
	o.assembler.file_limit = 100 << 20;
	struct pgws_consumer *c = consumer_with(&o);
	struct pgws_change ch;
	run("BEGIN; INSERT INTO t SELECT i, 'kept' FROM generate_series(1, 5000) i;"
	    "PREPARE TRANSACTION 'first'");
	run("BEGIN; INSERT INTO t VALUES (9001, 'undone'); PREPARE TRANSACTION 'second'");
	uint64_t prepared = sql_lsn("SELECT pg_current_wal_flush_lsn()");
	confirm_up_to(c, prepared);
	pgws_consumer_free(&c);
	wait_no_slot_in_use();

	/* Another life; the server will not send what was prepared once more. */
	run("ROLLBACK PREPARED 'second'");
	run("COMMIT PREPARED 'first'");
	run("INSERT INTO t VALUES (9002, 'after')");
	c = consumer_with(&o);
	expect_change(c, PGWS_BEGIN, &ch);
	assert_string_equal(ch.gid, "first");
	for (uint32_t i = 1; i <= 5000; i++) {
		expect_change(c, PGWS_INSERT, &ch);
		assert_int_equal(ch.ordinal, i);
		assert_string_equal(ch.relation->relname, "t");
	}
	expect_change(c, PGWS_COMMIT, &ch);
	expect_change(c, PGWS_INSERT, &ch);
	assert_memory_equal(first_column(&ch), "9002", 4);
	expect_change(c, PGWS_COMMIT, &ch);
	pgws_consumer_confirm(c, ch.end_lsn, ch.end_lsn, ch.end_lsn);
	confirm_up_to(c, ch.end_lsn);
	pgws_consumer_free(&c);
	snprintf(command, sizeof(command), "rm -r %s", dir);
	assert_int_equal(system(command), 0);
}

static void test_prepared_across_lives(void **state)
{
	(void)state;
	if (PQserverVersion(sql_conn) < 150000)
		skip();
	prepared_across_lives(PGWS_STREAMING_OFF);
}

static void test_prepared_and_streamed_across_lives(void **state)
{
	(void)state;
	if (PQserverVersion(sql_conn) < 150000)
		skip();
	prepared_across_lives(PGWS_STREAMING_ON);
}

static void test_a_two_phase_slot_wants_two_phase(void **state)
{
	(void)state;
	if (PQserverVersion(sql_conn) < 150000)
		skip();
	run("SELECT pg_create_logical_replication_slot('c_slot', 'pgoutput', false, true)");
	struct pgws_consumer *c = consumer();
	struct pgws_change ch;
	assert_int_equal(pgws_consumer_next(c, TEST_PATIENCE_MS, &ch), PGWS_EINVAL);
	assert_non_null(strstr(pgws_consumer_error(c), "two_phase"));
	pgws_consumer_free(&c);
}

/* ---- Timelines --------------------------------------------------------------------------------
 */

static int first_error(struct pgws_consumer *c)
{
	struct pgws_change ch;
	int rc;
	do {
		rc = pgws_consumer_next(c, TEST_PATIENCE_MS, &ch);
	} while (rc >= 0);
	return rc;
}

static void test_another_timeline(void **state)
{
	(void)state;
	run("SELECT pg_create_logical_replication_slot('c_slot', 'pgoutput')");
	struct pgws_consumer_options o = consumer_options();
	o.retry_max = 100;
	struct pgws_consumer *strict = consumer_with(&o);
	struct pgws_change ch;
	run("INSERT INTO t VALUES (1, 'a')");
	expect_change(strict, PGWS_COMMIT, &ch);
	pgws_consumer_confirm(strict, ch.end_lsn, ch.end_lsn, ch.end_lsn);
	confirm_up_to(strict, ch.end_lsn);
	uint64_t end = ch.end_lsn;
	struct pgws_position pos;
	pgws_consumer_get_position(strict, &pos);
	uint32_t before = pos.timeline;
	assert_true(server_kill());
	assert_true(server_start_promoted());
	reconnect_sql();
	run("INSERT INTO t VALUES (2, 'b')");
	assert_int_equal(first_error(strict), PGWS_ETIMELINE);
	pgws_consumer_free(&strict);

	/* A new life that knows of the old one, and goes on. Before 17 a slot's position need not
	 * outlive the server: the caller's own says where. */
	o.start_lsn = end;
	o.known_systemid = pos.systemid;
	o.known_timeline = before;
	o.accept_timeline = true;
	struct pgws_consumer *c = consumer_with(&o);
	expect_change(c, PGWS_INSERT, &ch);
	assert_memory_equal(first_column(&ch), "2", 1);
	struct pgws_position now;
	pgws_consumer_get_position(c, &now);
	assert_int_equal(now.timeline, before + 1);
	pgws_consumer_free(&c);
}

static void count_notice(const char *text, void *arg)
{
	(void)text;
	++*(int *)arg;
}

/* A failover's first seconds: the server is a standby still, which has no slot, or one that it
 * cannot decode from before 16. Promoted it is what it should be. */
static void test_a_standby_that_is_promoted(void **state)
{
	(void)state;
	struct pgws_change ch;
	int notices[2] = {0, 0};
	run("SELECT pg_create_logical_replication_slot('kept', 'pgoutput')");
	assert_true(server_stop());
	assert_true(as_owner("touch $D/standby.signal") && server_start());
	reconnect_sql();
	struct pgws_consumer_options o = consumer_options();
	o.retry_max = 2;
	o.on_notice = count_notice;
	o.notice_arg = &notices[0];
	struct pgws_consumer *c = consumer_with(&o);
	assert_int_equal(first_error(c), PGWS_ESLOT);
	assert_int_equal(notices[0], 2);
	pgws_consumer_free(&c);
	if (PQserverVersion(sql_conn) < 160000) {
		o.stream.slot = "kept";
		c = consumer_with(&o);
		assert_int_equal(first_error(c), PGWS_ESERVER);
		assert_int_equal(notices[0], 4);
		pgws_consumer_free(&c);
	}

	o.stream.slot = "c_slot";
	o.retry_max = 1000;
	o.accept_timeline = true;
	o.notice_arg = &notices[1];
	c = consumer_with(&o);
	while (notices[1] == 0)
		expect_nothing(c, 20);
	assert_true(as_owner(SERVER_CTL "promote"));
	run("SELECT pg_create_logical_replication_slot('c_slot', 'pgoutput')");
	run("INSERT INTO t VALUES (1, 'a')");
	expect_change(c, PGWS_INSERT, &ch);
	pgws_consumer_free(&c);
}

/* A copy of the server's past is started in its place: what was received is not there. */
static void test_a_server_that_went_back(void **state)
{
	(void)state;
	run("SELECT pg_create_logical_replication_slot('c_slot', 'pgoutput')");
	assert_true(server_stop());
	assert_true(as_owner("cp -a $D $D.old"));
	assert_true(server_start());
	reconnect_sql();
	struct pgws_consumer_options o = consumer_options();
	o.retry_max = 100;
	o.accept_timeline = true;
	struct pgws_consumer *c = consumer_with(&o), *d = NULL;
	struct pgws_change ch;
	run("INSERT INTO t SELECT i, repeat('x', 100) FROM generate_series(1, 1000) i");
	expect_change(c, PGWS_INSERT, &ch);
	expect_change(c, PGWS_COMMIT, &ch);
	uint64_t end = ch.end_lsn;
	struct pgws_position pos;
	pgws_consumer_get_position(c, &pos);
	assert_true(server_kill());
	assert_true(as_owner("rm -rf $D/* && cp -a $D.old/. $D/"));
	assert_true(server_start());
	reconnect_sql();
	assert_int_equal(first_error(c), PGWS_EBACK);
	pgws_consumer_free(&c);

	/* It goes its own way from there, beyond where the other one was. */
	assert_true(server_stop());
	assert_true(server_start_promoted());
	reconnect_sql();
	run("INSERT INTO t SELECT i, repeat('y', 200) FROM generate_series(1, 2000) i");
	run("SELECT pg_logical_emit_message(false, 'far', repeat('x', 1000000))");
	assert_true(sql_lsn("SELECT pg_current_wal_flush_lsn()") > end);
	o.known_systemid = pos.systemid;
	o.known_timeline = pos.timeline;
	o.start_lsn = end;
	d = consumer_with(&o);
	assert_int_equal(first_error(d), PGWS_EBACK);
	assert_non_null(strstr(pgws_consumer_error(d), "timeline"));
	pgws_consumer_free(&d);
	assert_true(as_owner("rm -rf $D.old"));
}

/* ---- Shutting down ----------------------------------------------------------------------------
 */

static int note_row(const struct pgws_change *ch, void *arg)
{
	if (ch != NULL && ch->msg.type == PGWS_COMMIT)
		atomic_store((atomic_bool *)arg, true);
	return 0;
}

static atomic_bool has_row;

static void *run_consumer(void *arg)
{
	return (void *)(intptr_t)pgws_consumer_run(arg, note_row, &has_row);
}

/* A caller that confirms nothing: the server would wait for wal_sender_timeout, a minute. */
static void test_a_fast_shutdown_is_not_held_up(void **state)
{
	(void)state;
	run("SELECT pg_create_logical_replication_slot('c_slot', 'pgoutput')");
	struct pgws_consumer_options o = consumer_options();
	o.retry_max = 0;
	struct pgws_consumer *c = consumer_with(&o);
	pthread_t thread;
	void *rc;
	run("INSERT INTO t VALUES (1, 'a')");
	assert_int_equal(pthread_create(&thread, NULL, run_consumer, c), 0);
	for (int i = 0; i < 1500 && !atomic_load(&has_row); i++)
		usleep(20000);
	assert_true(atomic_load(&has_row));
	int64_t begin = test_now_ms();
	assert_true(server_stop());
	int64_t took = test_now_ms() - begin;
	print_message("%lld ms\n", (long long)took);
	assert_true(took < 40000);
	pthread_join(thread, &rc);
	assert_true((intptr_t)rc < 0);
	pgws_consumer_free(&c);
	assert_true(server_start());
	reconnect_sql();
}

int main(void)
{
	reconnect_sql();
#define TEST(fn) cmocka_unit_test_setup_teardown(fn, slots_setup, slots_teardown)
	const struct CMUnitTest tests[] = {
		TEST(test_prepared_across_lives),
		TEST(test_prepared_and_streamed_across_lives),
		TEST(test_a_two_phase_slot_wants_two_phase),
		TEST(test_another_timeline),
		TEST(test_a_standby_that_is_promoted),
		TEST(test_a_server_that_went_back),
		TEST(test_a_fast_shutdown_is_not_held_up),
	};
	int failed = cmocka_run_group_tests(tests, NULL, NULL);
	PQfinish(sql_conn);
	return failed;
}
