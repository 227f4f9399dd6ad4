/* SPDX-License-Identifier: PostgreSQL */
/*
 * The consumer against a real server of any version: iterator, callback, descriptor, positions,
 * stop, and every way in which the server is not what it was. Runs inside
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
#include <pthread.h>

#include <cmocka.h>

#include "libpgwalstream/consumer_internal.h"
#include "tests/unit/helper_consumer.h"
#include "tests/unit/helper_slots.h"

static int major;

static void make_slot(void)
{
	run("SELECT pg_create_logical_replication_slot('c_slot', 'pgoutput')");
}

static int setup(void **state)
{
	(void)slots_setup(state);
	make_slot();
	return 0;
}

/* ---- Giving out -------------------------------------------------------------------------------
 */

static void test_iterator(void **state)
{
	(void)state;
	struct pgws_consumer *c = consumer();
	struct pgws_change ch;
	assert_int_equal(pgws_consumer_next(c, 0, &ch), PGWS_EAGAIN);
	run("INSERT INTO t VALUES (1, 'a'); INSERT INTO t VALUES (2, 'b')");
	expect_change(c, PGWS_BEGIN, &ch);
	uint64_t commit_lsn = ch.commit_lsn;
	uint32_t xid = ch.xid;
	assert_true(commit_lsn != 0 && xid != 0);
	expect_change(c, PGWS_RELATION, &ch);
	expect_change(c, PGWS_INSERT, &ch);
	assert_int_equal(ch.ordinal, 1);
	assert_int_equal(ch.commit_lsn, commit_lsn);
	assert_int_equal(ch.xid, xid);
	assert_string_equal(ch.relation->relname, "t");
	expect_change(c, PGWS_INSERT, &ch);
	assert_int_equal(ch.ordinal, 2);
	expect_change(c, PGWS_COMMIT, &ch);
	assert_true(ch.end_lsn > commit_lsn);
	struct pgws_position pos;
	pgws_consumer_get_position(c, &pos);
	assert_int_equal(pos.received_lsn, ch.end_lsn);
	assert_int_equal(pos.timeline, 1);
	assert_int_equal(pos.reconnects, 0);
	char *id = sql("SELECT system_identifier FROM pg_control_system()");
	assert_string_equal(pos.systemid, id);
	free(id);
	assert_int_equal(pgws_consumer_next(c, 20, &ch), PGWS_EAGAIN);
	pgws_consumer_free(&c);
	assert_null(c);
	pgws_consumer_free(&c);
}

static int count_inserts(const struct pgws_change *ch, void *arg)
{
	int *n = arg;
	if (ch != NULL && ch->msg.type == PGWS_INSERT && ++*n == 1000)
		return 42;
	return 0;
}

static void test_callback(void **state)
{
	(void)state;
	struct pgws_consumer *c = consumer();
	run("INSERT INTO t SELECT i, 'x' FROM generate_series(1, 2000) i");
	int n = 0;
	assert_int_equal(pgws_consumer_run(c, count_inserts, &n), 42);
	assert_int_equal(n, 1000);
	struct pgws_change ch;
	expect_change(c, PGWS_INSERT, &ch);
	assert_int_equal(ch.ordinal, 1001);
	pgws_consumer_free(&c);
}

static void test_descriptor_in_an_event_loop(void **state)
{
	(void)state;
	struct pgws_consumer *c = consumer();
	struct pgws_change ch;
	struct pollfd p = {.fd = pgws_consumer_fd(c), .events = POLLIN};
	assert_int_equal(poll(&p, 1, 0), 1);
	int rows = 0, wakes = 0;
	bool inserted = false;
	int64_t end = test_now_ms() + TEST_PATIENCE_MS;
	while (rows < 500 && test_now_ms() < end) {
		int rc = pgws_consumer_next(c, 0, &ch);
		if (rc == 0) {
			rows += ch.msg.type == PGWS_INSERT;
			continue;
		}
		assert_int_equal(rc, PGWS_EAGAIN);
		if (!inserted && sql_is("SELECT active FROM pg_replication_slots", "t")) {
			run("INSERT INTO t SELECT i, 'x' FROM generate_series(1, 500) i");
			inserted = true;
		}
		assert_int_equal(pgws_consumer_fd(c), p.fd);
		(void)poll(&p, 1, inserted ? -1 : 20);
		wakes++;
	}
	assert_int_equal(rows, 500);
	assert_true(wakes < 400);
	/* Quiet: the descriptor is, too, but for a timer now and then. */
	while (pgws_consumer_next(c, 200, &ch) == 0)
		;
	wakes = 0;
	end = test_now_ms() + 500;
	while (test_now_ms() < end) {
		wakes += poll(&p, 1, 100);
		expect_nothing(c, 0);
	}
	assert_true(wakes < 10);
	/* A confirmation from elsewhere wakes it. */
	struct pgws_position pos;
	pgws_consumer_get_position(c, &pos);
	assert_int_equal(poll(&p, 1, 0), 0);
	pgws_consumer_confirm(c, pos.received_lsn, pos.received_lsn, pos.received_lsn);
	assert_int_equal(poll(&p, 1, 0), 1);
	pgws_consumer_free(&c);
}

/* An event loop may go away with changes left, of which the socket shows nothing any more. */
static void test_descriptor_while_changes_are_left(void **state)
{
	(void)state;
	struct pgws_consumer *c = consumer();
	struct pgws_change ch;
	struct pollfd p = {.fd = pgws_consumer_fd(c), .events = POLLIN};
	run("INSERT INTO t SELECT i, 'x' FROM generate_series(1, 500) i");
	int rows = 0;
	while (rows < 500) {
		assert_int_equal(poll(&p, 1, TEST_PATIENCE_MS), 1);
		int rc = pgws_consumer_next(c, 0, &ch);
		assert_true(rc == 0 || rc == PGWS_EAGAIN);
		rows += rc == 0 && ch.msg.type == PGWS_INSERT;
		if (rc == 0)
			assert_int_equal(poll(&p, 1, 0), 1);
	}
	while (pgws_consumer_next(c, 200, &ch) == 0)
		;
	assert_int_equal(poll(&p, 1, 0), 0);
	/* The loss of a connection is news, and so is the end, for as long as nobody has looked. */
	run("INSERT INTO t SELECT i, repeat('x', 500) FROM generate_series(501, 20000) i");
	expect_change(c, PGWS_INSERT, &ch);
	run("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE active");
	int rc;
	while ((rc = pgws_consumer_next(c, TEST_PATIENCE_MS, &ch)) == 0)
		;
	assert_int_equal(rc, PGWS_RESTARTED);
	assert_int_equal(poll(&p, 1, 0), 1);
	pgws_consumer_stop(c);
	while ((rc = pgws_consumer_next(c, 0, &ch)) == PGWS_EAGAIN)
		assert_int_equal(poll(&p, 1, TEST_PATIENCE_MS), 1);
	assert_int_equal(rc, PGWS_EEND);
	assert_int_equal(poll(&p, 1, 0), 1);
	pgws_consumer_free(&c);
}

/* ---- Positions --------------------------------------------------------------------------------
 */

static void test_confirm_moves_the_slot(void **state)
{
	(void)state;
	struct pgws_consumer *c = consumer();
	struct pgws_change ch;
	run("INSERT INTO t VALUES (1, 'a')");
	expect_change(c, PGWS_COMMIT, &ch);
	uint64_t end = ch.end_lsn;
	run("INSERT INTO t VALUES (2, 'b')");
	expect_change(c, PGWS_COMMIT, &ch);
	assert_true(sql_lsn("SELECT confirmed_flush_lsn FROM pg_replication_slots") < end);
	pgws_consumer_confirm(c, ch.end_lsn, end, end);
	pgws_consumer_confirm(c, 1, 1, 1); /* never back */
	for (int i = 0; i < 500; i++) {
		expect_nothing(c, 20);
		if (sql_lsn("SELECT flush_lsn FROM pg_stat_replication") >= end)
			break;
	}
	/* An idle position between the two is possible. */
	uint64_t at = sql_lsn("SELECT confirmed_flush_lsn FROM pg_replication_slots");
	assert_true(at >= end && at < ch.commit_lsn);
	assert_true(sql_lsn("SELECT write_lsn FROM pg_stat_replication") > ch.commit_lsn);
	at = sql_lsn("SELECT replay_lsn FROM pg_stat_replication");
	assert_true(at >= end && at < ch.commit_lsn);
	pgws_consumer_free(&c);

	/* The next life begins behind it. */
	wait_no_slot_in_use();
	c = consumer();
	expect_change(c, PGWS_INSERT, &ch);
	assert_memory_equal(first_column(&ch), "2", 1);
	pgws_consumer_free(&c);
}

/* Some time without a row; 14 gives transactions out that have none. */
static void pass_empty(struct pgws_consumer *c)
{
	struct pgws_change ch;
	int rc = pgws_consumer_next(c, 50, &ch);
	if (rc == 0 && (ch.msg.type == PGWS_BEGIN || ch.msg.type == PGWS_COMMIT))
		return;
	if (rc != PGWS_EAGAIN)
		fail_msg("%d: type %d: %s", rc, ch.msg.type, pgws_consumer_error(c));
}

/* pg_walstream kept WAL for ever when nothing was published. */
static void test_an_idle_database_pins_no_wal(void **state)
{
	(void)state;
	run("CREATE TABLE other (x int)");
	struct pgws_consumer *c = consumer();
	struct pgws_change ch;
	run("INSERT INTO t VALUES (1, 'a')");
	expect_change(c, PGWS_INSERT, &ch);
	expect_change(c, PGWS_COMMIT, &ch);
	uint64_t end = ch.end_lsn;
	run("INSERT INTO other SELECT generate_series(1, 1000)");
	uint64_t head = sql_lsn("SELECT pg_current_wal_flush_lsn()");
	assert_true(head > end);
	/* Something given out is not flushed: nothing moves. */
	int64_t until = test_now_ms() + 2500;
	while (test_now_ms() < until)
		pass_empty(c);
	assert_true(sql_lsn("SELECT confirmed_flush_lsn FROM pg_replication_slots") < end);
	struct pgws_position pos;
	pgws_consumer_get_position(c, &pos);
	assert_true(pos.server_lsn >= head);
	/* Now it is, and the slot goes as far as the server is. */
	until = test_now_ms() + TEST_PATIENCE_MS;
	do {
		pgws_consumer_get_position(c, &pos);
		pgws_consumer_confirm(c, pos.received_lsn, pos.received_lsn, pos.received_lsn);
		pass_empty(c);
	} while (test_now_ms() < until &&
		 sql_lsn("SELECT confirmed_flush_lsn FROM pg_replication_slots") < head);
	assert_true(sql_lsn("SELECT confirmed_flush_lsn FROM pg_replication_slots") >= head);
	run("INSERT INTO t VALUES (2, 'b')");
	expect_change(c, PGWS_INSERT, &ch);
	assert_memory_equal(first_column(&ch), "2", 1);
	pgws_consumer_free(&c);
	run("DROP TABLE other");
}

/* While changes come no keepalive tells where the server is. */
static void test_the_server_is_never_behind_what_came(void **state)
{
	(void)state;
	struct pgws_consumer *c = consumer();
	struct pgws_change ch;
	struct pgws_position pos;
	while (c->state != PGWSI_STREAMING)
		expect_nothing(c, 20);
	pgws_consumer_get_position(c, &pos);
	assert_true(pos.received_lsn != 0 && pos.server_lsn >= pos.received_lsn);
	run("INSERT INTO t SELECT i, 'x' FROM generate_series(1, 100) i");
	for (int i = 0; i < 100; i++) {
		expect_change(c, PGWS_INSERT, &ch);
		pgws_consumer_get_position(c, &pos);
		assert_true(ch.lsn != 0 && pos.server_lsn >= ch.lsn);
	}
	expect_change(c, PGWS_COMMIT, &ch);
	pgws_consumer_get_position(c, &pos);
	assert_int_equal(pos.received_lsn, ch.end_lsn);
	assert_true(pos.server_lsn >= ch.end_lsn);
	pgws_consumer_free(&c);
}

/* In a stream pgoutput names the top transaction as a Message's, so one of a savepoint that is
 * rolled back is known only behind the savepoint's first row. The limit is the server's, up to 18;
 * without streaming there is none. */
static void test_messages_of_a_savepoint_rolled_back(void **state)
{
	(void)state;
	struct pgws_consumer_options o = consumer_options();
	o.stream.conninfo = "options='-c logical_decoding_work_mem=64kB'";
	o.stream.messages = true;
	for (int streaming = 0; streaming <= 1; streaming++) {
		struct pgws_change ch;
		int before = 0, behind = 0;
		o.stream.streaming = streaming ? PGWS_STREAMING_ON : PGWS_STREAMING_OFF;
		struct pgws_consumer *c = consumer_with(&o);
		run("TRUNCATE t");
		expect_change(c, PGWS_COMMIT, &ch);
		run("BEGIN; INSERT INTO t SELECT i, 'a' FROM generate_series(1, 2000) i");
		run("SAVEPOINT s");
		run("SELECT pg_logical_emit_message(true, 'before', 'undone')");
		run("INSERT INTO t SELECT i, 'b' FROM generate_series(2001, 4000) i");
		run("SELECT pg_logical_emit_message(true, 'behind', 'undone')");
		run("INSERT INTO t SELECT i, 'b' FROM generate_series(4001, 6000) i");
		run("ROLLBACK TO s; COMMIT");
		do {
			assert_int_equal(pgws_consumer_next(c, TEST_PATIENCE_MS, &ch), 0);
			if (ch.msg.type != PGWS_MESSAGE)
				continue;
			before += strcmp(ch.msg.u.message.prefix, "before") == 0;
			behind += strcmp(ch.msg.u.message.prefix, "behind") == 0;
			assert_int_equal(ch.subxid, ch.xid);
		} while (ch.msg.type != PGWS_COMMIT);
		if (major <= 18)
			assert_int_equal(before, streaming);
		assert_int_equal(behind, 0);
		pgws_consumer_confirm(c, ch.end_lsn, ch.end_lsn, ch.end_lsn);
		pgws_consumer_free(&c);
		wait_no_slot_in_use();
	}
}

static void test_start_lsn(void **state)
{
	(void)state;
	run("INSERT INTO t VALUES (1, 'a')");
	uint64_t start = sql_lsn("SELECT pg_current_wal_insert_lsn()");
	run("INSERT INTO t VALUES (2, 'b')");
	struct pgws_consumer_options o = consumer_options();
	o.start_lsn = start;
	struct pgws_consumer *c = consumer_with(&o);
	struct pgws_change ch;
	expect_change(c, PGWS_INSERT, &ch);
	assert_memory_equal(first_column(&ch), "2", 1);
	pgws_consumer_free(&c);
	wait_no_slot_in_use();
	assert_true(sql_lsn("SELECT confirmed_flush_lsn FROM pg_replication_slots") >= start);
}

static void test_stop_lsn_is_exact(void **state)
{
	(void)state;
	run("INSERT INTO t VALUES (1, 'a')");
	run("BEGIN; INSERT INTO t VALUES (2, 'b'); COMMIT");
	uint64_t stop = sql_lsn("SELECT pg_current_wal_insert_lsn()");
	run("INSERT INTO t VALUES (3, 'c')");
	struct pgws_consumer_options o = consumer_options();
	o.stop_lsn = stop;
	struct pgws_consumer *c = consumer_with(&o);
	struct pgws_change ch;
	int rows = 0, rc;
	while ((rc = pgws_consumer_next(c, TEST_PATIENCE_MS, &ch)) == 0) {
		rows += ch.msg.type == PGWS_INSERT;
		if (ch.msg.type == PGWS_COMMIT)
			pgws_consumer_confirm(c, ch.end_lsn, ch.end_lsn, ch.end_lsn);
	}
	assert_int_equal(rc, PGWS_EEND);
	assert_int_equal(rows, 2);
	assert_int_equal(pgws_consumer_next(c, 0, &ch), PGWS_EEND);
	pgws_consumer_free(&c);
	wait_no_slot_in_use();
	/* Again: nothing is left before it. */
	c = consumer_with(&o);
	assert_int_equal(pgws_consumer_next(c, TEST_PATIENCE_MS, &ch), PGWS_EEND);
	pgws_consumer_free(&c);
}

static void test_stop_lsn_on_an_idle_server(void **state)
{
	(void)state;
	run("CREATE TABLE other (x int)");
	struct pgws_consumer_options o = consumer_options();
	o.stop_lsn = sql_lsn("SELECT pg_current_wal_insert_lsn()");
	struct pgws_consumer *c = consumer_with(&o);
	struct pgws_change ch;
	int rc;
	while ((rc = pgws_consumer_next(c, TEST_PATIENCE_MS, &ch)) == 0)
		assert_int_not_equal(ch.msg.type, PGWS_INSERT);
	assert_int_equal(rc, PGWS_EEND);
	pgws_consumer_free(&c);
	run("DROP TABLE other");
}

static void *stop_later(void *arg)
{
	usleep(200000);
	pgws_consumer_stop(arg);
	return NULL;
}

static void test_stop_from_another_thread(void **state)
{
	(void)state;
	struct pgws_consumer *c = consumer();
	struct pgws_change ch;
	run("INSERT INTO t VALUES (1, 'a')");
	expect_change(c, PGWS_COMMIT, &ch);
	pthread_t thread;
	assert_int_equal(pthread_create(&thread, NULL, stop_later, c), 0);
	pgws_consumer_confirm(c, ch.end_lsn, ch.end_lsn, ch.end_lsn);
	uint64_t end = ch.end_lsn;
	int rc;
	while ((rc = pgws_consumer_next(c, -1, &ch)) == 0)
		;
	assert_int_equal(rc, PGWS_EEND);
	assert_int_equal(pgws_consumer_run(c, count_inserts, NULL), PGWS_EEND);
	pthread_join(thread, NULL);
	pgws_consumer_free(&c);
	assert_true(sql_lsn("SELECT confirmed_flush_lsn FROM pg_replication_slots") >= end);
	/* Before it ever connected. */
	c = consumer();
	pgws_consumer_stop(c);
	assert_int_equal(pgws_consumer_next(c, -1, &ch), PGWS_EEND);
	pgws_consumer_free(&c);
}

/* What is confirmed behind the last call of next reaches the server all the same. */
static void confirmed_before_free(enum pgws_receive how, bool to_the_end)
{
	struct pgws_consumer_options o = consumer_options();
	struct pgws_change ch;
	run("INSERT INTO t VALUES (1, 'a'); INSERT INTO t VALUES (2, 'b')");
	o.stream.receive = how;
	if (to_the_end)
		o.stop_lsn = sql_lsn("SELECT pg_current_wal_insert_lsn()");
	struct pgws_consumer *c = consumer_with(&o);
	expect_change(c, PGWS_COMMIT, &ch);
	uint64_t end = ch.end_lsn;
	if (to_the_end) {
		assert_int_equal(pgws_consumer_next(c, TEST_PATIENCE_MS, &ch), PGWS_EEND);
		/* It was sent that nothing is flushed, and the slot is nobody's. */
		assert_true(sql_lsn("SELECT confirmed_flush_lsn FROM pg_replication_slots") < end);
		assert_sql("SELECT active FROM pg_replication_slots", "f");
	} else {
		/* Much is under way that nobody reads any more. */
		run("INSERT INTO t SELECT i, repeat('x', 500) FROM generate_series(3, 20000) i");
	}
	pgws_consumer_confirm(c, end, end, end);
	pgws_consumer_free(&c);
	assert_true(sql_lsn("SELECT confirmed_flush_lsn FROM pg_replication_slots") >= end);
	wait_no_slot_in_use();
	run("TRUNCATE t");
	run("SELECT pg_replication_slot_advance('c_slot', pg_current_wal_lsn())");
}

static void test_confirmed_before_free(void **state)
{
	(void)state;
	confirmed_before_free(PGWS_RECEIVE_SOCKET, true);
	confirmed_before_free(PGWS_RECEIVE_LIBPQ, true);
	confirmed_before_free(PGWS_RECEIVE_SOCKET, false);
	confirmed_before_free(PGWS_RECEIVE_LIBPQ, false);
}

/* ---- The server is not what it was -------------------------------------------------------------
 */

static int first_error(struct pgws_consumer *c)
{
	struct pgws_change ch;
	int rc;
	do {
		rc = pgws_consumer_next(c, TEST_PATIENCE_MS, &ch);
	} while (rc >= 0);
	struct pgws_change again;
	assert_int_equal(pgws_consumer_next(c, 0, &again), rc);
	return rc;
}

static void fails_with(const struct pgws_consumer_options *o, int err, const char *text)
{
	struct pgws_consumer *c = consumer_with(o);
	int rc = first_error(c);
	if (rc != err || strstr(pgws_consumer_error(c), text) == NULL)
		fail_msg("%d (expected %d): %s", rc, err, pgws_consumer_error(c));
	pgws_consumer_free(&c);
}

static void test_options_that_make_no_sense(void **state)
{
	(void)state;
	struct pgws_consumer *c = NULL;
	struct pgws_consumer_options o = consumer_options();
	o.stream.slot = "";
	assert_int_equal(pgws_consumer_new(&o, &c), PGWS_EINVAL);
	o = consumer_options();
	o.stream.publications = NULL;
	assert_int_equal(pgws_consumer_new(&o, &c), PGWS_EINVAL);
	o = consumer_options();
	o.stream.conninfo = "nonsense=1";
	assert_int_equal(pgws_consumer_new(&o, &c), PGWS_EINVAL);
	o = consumer_options();
	o.stream.proto_version = 9;
	assert_int_equal(pgws_consumer_new(&o, &c), PGWS_EINVAL);
	o = consumer_options();
	o.stream.two_phase = true;
	assert_int_equal(pgws_consumer_new(&o, &c), PGWS_EINVAL);
	assert_null(c);
}

/* o as a header lays it out whose structures are shorter or longer by so much; new fields are
 * garbage to us. */
static int new_with_sizes(
	const struct pgws_consumer_options *o, int stream, int assembler, int rest)
{
	union {
		char bytes[600];
		struct pgws_consumer_options o;
	} u;
	const size_t parts = offsetof(struct pgws_consumer_options, start_lsn);
	size_t n_stream = sizeof(o->stream) + (size_t)stream;
	size_t n_assembler = sizeof(o->assembler) + (size_t)assembler;
	size_t at = offsetof(struct pgws_consumer_options, stream);
	struct pgws_consumer *c = NULL;
	memset(u.bytes, 0x55, sizeof(u.bytes));
	memcpy(u.bytes + at, &o->stream, stream < 0 ? n_stream : sizeof(o->stream));
	memcpy(u.bytes + at, &n_stream, sizeof(n_stream));
	at += n_stream;
	memcpy(u.bytes + at, &o->assembler, assembler < 0 ? n_assembler : sizeof(o->assembler));
	memcpy(u.bytes + at, &n_assembler, sizeof(n_assembler));
	at += n_assembler;
	memcpy(u.bytes + at, &o->start_lsn, sizeof(*o) - parts);
	u.o.size = at + sizeof(*o) - parts + (size_t)rest;
	int err = pgws_consumer_new(&u.o, &c);
	pgws_consumer_free(&c);
	return err;
}

/* A caller that was built with another version of the header. */
static void test_options_of_another_size(void **state)
{
	(void)state;
	static const int sizes[][3] = {
		{0, 0, 0}, {-8, 0, 0}, {8, 0, 0}, {0, -8, 0}, {-8, -8, 8}, {24, 0, 16}};
	for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
		const int *n = sizes[i];
		/* Each part is where we look for it: what makes no sense in it is found. */
		struct pgws_consumer_options o = consumer_options();
		assert_int_equal(new_with_sizes(&o, n[0], n[1], n[2]), 0);
		o.stream.proto_version = 9;
		assert_int_equal(new_with_sizes(&o, n[0], n[1], n[2]), PGWS_EINVAL);
		o = consumer_options();
		o.assembler.dir = "/nonexistent";
		o.assembler.file_limit = 1;
		assert_int_equal(new_with_sizes(&o, n[0], n[1], n[2]), PGWS_EIO);
		o = consumer_options();
		o.retry_cap_ms = 1;
		assert_int_equal(new_with_sizes(&o, n[0], n[1], n[2]), PGWS_EINVAL);
	}
	struct pgws_consumer_options o = consumer_options();
	struct pgws_consumer *c = NULL;
	/* An assembler refuses what it does not know. */
	assert_int_equal(new_with_sizes(&o, 0, 8, 0), PGWS_EINVAL);
	static const size_t bad[] = {0, 7, sizeof(o.stream) + 1, sizeof(o), SIZE_MAX, SIZE_MAX - 7};
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		o = consumer_options();
		o.stream.size = bad[i];
		assert_int_equal(pgws_consumer_new(&o, &c), PGWS_EINVAL);
		o = consumer_options();
		o.assembler.size = bad[i];
		assert_int_equal(pgws_consumer_new(&o, &c), PGWS_EINVAL);
		if (bad[i] >= sizeof(o))
			continue;
		o = consumer_options();
		o.size = bad[i];
		assert_int_equal(pgws_consumer_new(&o, &c), PGWS_EINVAL);
	}
	assert_null(c);
}

static void test_refusals_that_no_retry_mends(void **state)
{
	(void)state;
	struct pgws_consumer_options o = consumer_options();
	o.stream.slot = "no_such_slot";
	fails_with(&o, PGWS_ESLOT, "does not exist");
	o = consumer_options();
	o.stream.publications = "p,no_such,nor_this";
	fails_with(&o, PGWS_ESERVER, "no_such, nor_this");
	o = consumer_options();
	o.stream.conninfo = "dbname=no_such_db";
	fails_with(&o, PGWS_ESERVER, "no_such_db");
	o = consumer_options();
	o.known_systemid = "1234567890";
	fails_with(&o, PGWS_ESYSTEM, "1234567890");
	o = consumer_options();
	o.known_timeline = 7;
	o.accept_timeline = true;
	fails_with(&o, PGWS_EBACK, "timeline");
	o = consumer_options();
	o.start_lsn = UINT64_C(0xffff00000000);
	fails_with(&o, PGWS_EBACK, "FFFF/0");
	o = consumer_options();
	o.stream.conninfo = "host=/nonexistent";
	o.retry_max = 2;
	fails_with(&o, PGWS_ECONN, "nonexistent");
	if (major < 16) {
		o = consumer_options();
		o.stream.streaming = PGWS_STREAMING_PARALLEL;
		fails_with(&o, PGWS_EUNSUPPORTED, "PostgreSQL 16");
	}
	run("SELECT pg_create_physical_replication_slot('phys')");
	o = consumer_options();
	o.stream.slot = "phys";
	fails_with(&o, PGWS_EINVAL, "phys");
}

static void terminate_walsender(void)
{
	run("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE active");
}

/* pg_walstream made a lost temporary slot again without a word. */
static void test_a_slot_that_goes_is_never_made_again(void **state)
{
	(void)state;
	struct pgws_consumer *c = consumer();
	struct pgws_change ch;
	run("INSERT INTO t VALUES (1, 'a')");
	expect_change(c, PGWS_COMMIT, &ch);
	terminate_walsender();
	wait_no_slot_in_use();
	run("SELECT pg_drop_replication_slot('c_slot')");
	assert_int_equal(first_error(c), PGWS_ESLOT);
	assert_non_null(strstr(pgws_consumer_error(c), "any more"));
	assert_sql("SELECT count(*) FROM pg_replication_slots", "0");
	pgws_consumer_free(&c);
}

static void test_a_slot_moved_by_somebody_else(void **state)
{
	(void)state;
	struct pgws_consumer *c = consumer();
	struct pgws_change ch;
	run("INSERT INTO t VALUES (1, 'a')");
	expect_change(c, PGWS_COMMIT, &ch);
	uint64_t end = ch.end_lsn;
	pgws_consumer_confirm(c, end, end, end);
	terminate_walsender();
	wait_no_slot_in_use();
	run("INSERT INTO t VALUES (2, 'lost')");
	run("SELECT pg_replication_slot_advance('c_slot', pg_current_wal_lsn())");
	assert_int_equal(first_error(c), PGWS_ESLOT);
	assert_non_null(strstr(pgws_consumer_error(c), "somebody else"));
	pgws_consumer_free(&c);
	struct pgws_consumer_options o = consumer_options();
	o.start_lsn = end;
	o.exact_start = true;
	fails_with(&o, PGWS_ESLOT, "somebody else");
}

/* Idle positions are confirmed by the library: what counts is where the life ended. */
static void test_exact_start(void **state)
{
	(void)state;
	struct pgws_consumer_options o = consumer_options();
	struct pgws_consumer *c = consumer();
	struct pgws_change ch;
	struct pgws_position pos;
	int64_t until = test_now_ms() + TEST_PATIENCE_MS;
	int rc;
	run("INSERT INTO t VALUES (1, 'a')");
	expect_change(c, PGWS_COMMIT, &ch);
	uint64_t stored = ch.end_lsn;
	pgws_consumer_confirm(c, stored, stored, stored);
	run("SELECT pg_logical_emit_message(false, 'not', 'wanted'), pg_switch_wal()");
	while (sql_lsn("SELECT confirmed_flush_lsn FROM pg_replication_slots") <= stored) {
		expect_nothing(c, 50);
		assert_true(test_now_ms() < until);
	}
	pgws_consumer_stop(c);
	while ((rc = pgws_consumer_next(c, TEST_PATIENCE_MS, &ch)) == 0)
		;
	assert_int_equal(rc, PGWS_EEND);
	pgws_consumer_get_position(c, &pos);
	pgws_consumer_free(&c);
	wait_no_slot_in_use();
	o.exact_start = true;
	o.start_lsn = stored;
	fails_with(&o, PGWS_ESLOT, "exact_start");
	o.start_lsn = pos.confirmed_lsn;
	c = consumer_with(&o);
	run("INSERT INTO t VALUES (2, 'b')");
	expect_change(c, PGWS_INSERT, &ch);
	assert_memory_equal(first_column(&ch), "2", 1);
	pgws_consumer_free(&c);
}

static void test_an_invalidated_slot(void **state)
{
	(void)state;
	struct pgws_consumer_options o = consumer_options();
	run("ALTER SYSTEM SET max_slot_wal_keep_size = '1MB'");
	run("SELECT pg_reload_conf()");
	for (int i = 0; i < 4; i++)
		run("SELECT pg_logical_emit_message(false, 'fill', 'x'), pg_switch_wal()");
	run("CHECKPOINT");
	wait_sql("SELECT wal_status FROM pg_replication_slots", "lost");
	fails_with(&o, PGWS_ESLOT, "invalidated");
	run("ALTER SYSTEM RESET max_slot_wal_keep_size");
	run("SELECT pg_reload_conf()");
}

static void test_a_slot_in_use_is_waited_for(void **state)
{
	(void)state;
	struct pgws_consumer_options o = consumer_options();
	o.retry_max = 0;
	struct pgws_consumer *first = consumer(), *second = consumer_with(&o);
	struct pgws_change ch;
	run("INSERT INTO t VALUES (1, 'a')");
	expect_change(first, PGWS_COMMIT, &ch);
	assert_int_equal(pgws_consumer_next(second, 500, &ch), PGWS_EAGAIN);
	pgws_consumer_free(&first);
	expect_change(second, PGWS_INSERT, &ch);
	pgws_consumer_free(&second);
}

struct notices {
	int n;
	char last[1200];
};

static void take_notice(const char *text, void *arg)
{
	struct notices *n = arg;
	n->n++;
	snprintf(n->last, sizeof(n->last), "%s", text);
}

/* pg_walstream gave a cut transaction out again from its middle, with no sign. */
static void test_a_transaction_cut_short_begins_anew(void **state)
{
	(void)state;
	struct notices notices = {.n = 0};
	struct pgws_consumer_options o = consumer_options();
	o.on_notice = take_notice;
	o.notice_arg = &notices;
	struct pgws_consumer *c = consumer_with(&o);
	struct pgws_change ch;
	run("INSERT INTO t SELECT i, 'x' FROM generate_series(1, 5) i");
	expect_change(c, PGWS_COMMIT, &ch);
	run("INSERT INTO t SELECT i, repeat('x', 1000) FROM generate_series(101, 20000) i");
	for (int i = 0; i < 50; i++)
		expect_change(c, PGWS_INSERT, &ch);
	uint64_t commit_lsn = ch.commit_lsn;
	terminate_walsender();
	int rc;
	while ((rc = pgws_consumer_next(c, TEST_PATIENCE_MS, &ch)) == 0)
		assert_int_not_equal(ch.msg.type, PGWS_COMMIT);
	assert_int_equal(rc, PGWS_RESTARTED);
	assert_true(notices.n > 0);
	assert_non_null(strstr(notices.last, "trying again"));
	/* The first transaction was given out whole and does not come again. */
	rc = pgws_consumer_next(c, TEST_PATIENCE_MS, &ch);
	assert_int_equal(rc, 0);
	assert_int_equal(ch.msg.type, PGWS_BEGIN);
	assert_int_equal(ch.commit_lsn, commit_lsn);
	for (uint32_t i = 1; i <= 19900; i++) {
		expect_change(c, PGWS_INSERT, &ch);
		assert_int_equal(ch.ordinal, i);
	}
	expect_change(c, PGWS_COMMIT, &ch);
	struct pgws_position pos;
	pgws_consumer_get_position(c, &pos);
	assert_true(pos.reconnects >= 1);
	pgws_consumer_free(&c);
}

struct losses {
	struct pgws_consumer *c;
	int n;
	int64_t pause_us; /* after the last one, less what has passed of it */
};

static void note_pause(const char *text, void *arg)
{
	struct losses *l = arg;
	(void)text;
	l->n++;
	l->pause_us = l->c->retry_at - pgwsi_now_us();
}

/* A session that begins, hears the server's answer, and is lost; nothing comes in it. */
static void lose_a_session(struct pgws_consumer *c, const struct losses *l)
{
	int64_t until = test_now_ms() + TEST_PATIENCE_MS;
	int n = l->n;
	while (c->state != PGWSI_STREAMING || c->attempts != 0) {
		expect_nothing(c, 20);
		assert_true(test_now_ms() < until);
	}
	terminate_walsender();
	while (l->n == n) {
		expect_nothing(c, 20);
		assert_true(test_now_ms() < until);
	}
}

/* What breaks again and again, though the server answers each time, is not asked for ever faster
 * than the pause grows; the limit of attempts is for a server that says nothing. */
static void test_the_pause_grows_until_something_new_comes(void **state)
{
	(void)state;
	struct losses losses = {.n = 0};
	struct pgws_consumer_options o = consumer_options();
	struct pgws_change ch;
	o.retry_max = 2;
	o.on_notice = note_pause;
	o.notice_arg = &losses;
	struct pgws_consumer *c = losses.c = consumer_with(&o);
	for (int i = 0; i < 7; i++)
		lose_a_session(c, &losses);
	/* Half of 1 s and all of 20 ms: minus the time that a busy machine takes. */
	assert_true(losses.pause_us > 100000);
	assert_true(c->failures >= 7);
	run("INSERT INTO t VALUES (1, 'a')");
	expect_change(c, PGWS_COMMIT, &ch);
	lose_a_session(c, &losses);
	assert_int_equal(c->failures, 1);
	assert_true(losses.pause_us <= 20000);
	/* So does a session that has lasted; here its beginning is moved. */
	lose_a_session(c, &losses);
	assert_int_equal(c->failures, 2);
	c->suspicions = 1;
	while (c->state != PGWSI_STREAMING)
		expect_nothing(c, 20);
	c->streams_since -= 60000000;
	lose_a_session(c, &losses);
	assert_int_equal(c->failures, 1);
	assert_int_equal(c->suspicions, 0);
	pgws_consumer_free(&c);
}

static uint32_t inserts_of_next_transaction(struct pgws_consumer *c)
{
	struct pgws_change ch;
	uint32_t n = 0;
	do {
		assert_int_equal(pgws_consumer_next(c, TEST_PATIENCE_MS, &ch), 0);
		n += ch.msg.type == PGWS_INSERT;
	} while (ch.msg.type != PGWS_COMMIT);
	return n;
}

/* PostgreSQL up to 18 cannot decode, before its end, a transaction that changes a table after a
 * savepoint that had changed it was rolled back. It comes all the same, without an attempt more
 * than retry_max allows. */
static void test_a_server_that_cannot_stream(void **state)
{
	(void)state;
	struct notices notices = {.n = 0};
	struct pgws_consumer_options o = consumer_options();
	o.stream.conninfo = "options='-c logical_decoding_work_mem=64kB'";
	o.stream.streaming = PGWS_STREAMING_ON;
	o.retry_max = 0;
	o.on_notice = take_notice;
	o.notice_arg = &notices;
	struct pgws_consumer *c = consumer_with(&o);
	run("INSERT INTO t VALUES (0, 'before')");
	assert_int_equal(inserts_of_next_transaction(c), 1);
	run("BEGIN");
	run("INSERT INTO t SELECT i, 'a' FROM generate_series(1, 2000) i");
	run("SAVEPOINT s");
	run("ALTER TABLE t ADD COLUMN aborted text");
	run("INSERT INTO t SELECT i, 'b', repeat('z', 50) FROM generate_series(3000, 5000) i");
	run("ROLLBACK TO s");
	run("INSERT INTO t SELECT i, 'c' FROM generate_series(3000, 5000) i");
	run("ALTER TABLE t ADD COLUMN kept text");
	run("INSERT INTO t SELECT i, 'd', repeat('k', 50) FROM generate_series(6000, 8000) i");
	run("COMMIT");
	run("INSERT INTO t VALUES (-1, 'after')");
	assert_int_equal(inserts_of_next_transaction(c), 6002);
	assert_int_equal(inserts_of_next_transaction(c), 1);
	struct pgws_position pos;
	pgws_consumer_get_position(c, &pos);
	assert_int_equal(pos.reconnects, notices.n); /* 0: a server that is mended */
	print_message("%d: %s\n", notices.n, notices.last);
	if (notices.n > 0) {
		assert_int_equal(notices.n, 1);
		assert_non_null(strstr(notices.last, "large transactions are left to the server"));
		assert_memory_equal(pgws_consumer_sqlstate(c), "XX", 2);
	}
	/* From now on it is not asked for any more: no such transaction breaks it again. */
	run("INSERT INTO t SELECT i, 'e' FROM generate_series(10000, 14999) i");
	assert_int_equal(inserts_of_next_transaction(c), 5000);
	pgws_consumer_free(&c);
}

/* ---- Time -------------------------------------------------------------------------------------
 */

/* pg_walstream answered from inside next_event only: a slow consumer lost its connection. */
static void test_a_slow_caller_keeps_its_connection(void **state)
{
	(void)state;
	struct pgws_consumer_options o = consumer_options();
	o.stream.conninfo = "options='-c wal_sender_timeout=1s'";
	o.background_feedback = true;
	struct pgws_consumer *c = consumer_with(&o);
	struct pgws_change ch;
	run("INSERT INTO t SELECT i, repeat('x', 2000) FROM generate_series(1, 20000) i");
	expect_change(c, PGWS_INSERT, &ch);
	sleep(5); /* the handling of a change that takes its time */
	for (uint32_t i = 2; i <= 20000; i++) {
		int rc;
		do {
			rc = pgws_consumer_next(c, TEST_PATIENCE_MS, &ch);
			assert_int_equal(rc, 0);
		} while (ch.msg.type != PGWS_INSERT);
		assert_int_equal(ch.ordinal, i);
	}
	struct pgws_position pos;
	pgws_consumer_get_position(c, &pos);
	assert_int_equal(pos.reconnects, 0);
	pgws_consumer_free(&c);
}

/* A streamed transaction comes out of the assembler, not from the socket: the caller is slow with
 * each of its rows, and has no background_feedback. */
static void test_a_slow_caller_within_a_streamed_transaction(void **state)
{
	(void)state;
	struct pgws_consumer_options o = consumer_options();
	o.stream.conninfo = "options='-c wal_sender_timeout=2s -c logical_decoding_work_mem=64kB'";
	o.stream.streaming = PGWS_STREAMING_ON;
	struct pgws_consumer *c = consumer_with(&o);
	struct pgws_change ch;
	run("INSERT INTO t SELECT i, 'x' FROM generate_series(1, 3000) i");
	for (uint32_t i = 1; i <= 3000; i++) {
		expect_change(c, PGWS_INSERT, &ch);
		assert_int_equal(ch.ordinal, i);
		usleep(2000);
	}
	expect_change(c, PGWS_COMMIT, &ch);
	run("INSERT INTO t VALUES (0, 'after')");
	expect_change(c, PGWS_INSERT, &ch);
	assert_memory_equal(first_column(&ch), "0", 1);
	struct pgws_position pos;
	pgws_consumer_get_position(c, &pos);
	assert_int_equal(pos.reconnects, 0);
	pgws_consumer_free(&c);
}

/* One that the caller has had already is read through piece by piece: next may not take as long as
 * all of it takes, and stop is seen meanwhile. */
static void test_a_streamed_transaction_that_is_left_out(void **state)
{
	(void)state;
	struct pgws_consumer_options o = consumer_options();
	struct pgws_change ch;
	o.stream.conninfo = "options='-c logical_decoding_work_mem=64kB'";
	o.stream.streaming = PGWS_STREAMING_ON;
	struct pgws_consumer *c = consumer_with(&o);
	struct pollfd p = {.fd = pgws_consumer_fd(c), .events = POLLIN};
	run("INSERT INTO t SELECT i, 'x' FROM generate_series(1, 50000) i");
	for (int stops = 0; stops <= 1; stops++) {
		/* Not confirmed, so it comes again. */
		expect_change(c, PGWS_COMMIT, &ch);
		terminate_walsender();
		run("INSERT INTO t VALUES (-1, 'after'); DELETE FROM t WHERE id = -1");
		int pieces = 0, rc;
		while ((rc = pgws_consumer_next(c, 0, &ch)) == PGWS_EAGAIN) {
			pieces += c->skipping && c->state == PGWSI_STREAMING;
			if (pieces == 1 && stops && c->state == PGWSI_STREAMING)
				pgws_consumer_stop(c);
			assert_int_equal(poll(&p, 1, TEST_PATIENCE_MS), 1);
		}
		assert_int_equal(rc, stops ? PGWS_EEND : 0);
		assert_true(pieces >= 1 && pieces <= (stops ? 1 : 10));
	}
	pgws_consumer_free(&c);
}

/* When idle it sent no status of its own. */
static void test_an_idle_consumer_keeps_its_connection(void **state)
{
	(void)state;
	struct pgws_consumer_options o = consumer_options();
	o.stream.conninfo = "options='-c wal_sender_timeout=1s'";
	struct pgws_consumer *c = consumer_with(&o);
	struct pgws_change ch;
	run("INSERT INTO t VALUES (1, 'a')");
	expect_change(c, PGWS_COMMIT, &ch);
	int64_t until = test_now_ms() + 4000;
	while (test_now_ms() < until)
		assert_int_equal(pgws_consumer_next(c, 4000, &ch), PGWS_EAGAIN);
	run("INSERT INTO t VALUES (2, 'a')");
	expect_change(c, PGWS_COMMIT, &ch);
	struct pgws_position pos;
	pgws_consumer_get_position(c, &pos);
	assert_int_equal(pos.reconnects, 0);
	pgws_consumer_free(&c);
}

/* A timer that fires is followed by a status, not by itself until a coarse clock has caught up. */
static void test_a_status_is_one_wake_up(void **state)
{
	(void)state;
	struct pgws_consumer_options o = consumer_options();
	o.status_interval_ms = 10;
	struct pgws_consumer *c = consumer_with(&o);
	struct pollfd p = {.fd = pgws_consumer_fd(c), .events = POLLIN};
	int wakes = 0;
	while (c->state != PGWSI_STREAMING)
		expect_nothing(c, 20);
	int64_t until = test_now_ms() + 1000;
	while (test_now_ms() < until) {
		expect_nothing(c, 0);
		wakes += poll(&p, 1, 1000);
	}
	/* A hundred statuses, as many answers. */
	assert_true(wakes < 400);
	pgws_consumer_free(&c);
}

/* A walsender that has no time to answer while confirmations follow each other: not a lost one. */
static void test_questions_take_their_time(void **state)
{
	(void)state;
	struct pgws_consumer *c = consumer();
	struct pgws_change ch;
	uint64_t ends[50];
	for (int i = 0; i < 50; i++) {
		run("INSERT INTO t VALUES ((random() * 1e9)::int, 'a')");
		expect_change(c, PGWS_COMMIT, &ch);
		ends[i] = ch.end_lsn;
	}
	char *pid = sql("SELECT active_pid FROM pg_replication_slots");
	assert_int_equal(kill(atoi(pid), SIGSTOP), 0);
	for (int i = 0; i < 50; i++) {
		pgws_consumer_confirm(c, ends[i], ends[i], ends[i]);
		expect_nothing(c, 15);
	}
	assert_int_equal(kill(atoi(pid), SIGCONT), 0);
	free(pid);
	run("INSERT INTO t VALUES (-1, 'after')");
	expect_change(c, PGWS_INSERT, &ch);
	assert_memory_equal(first_column(&ch), "-1", 2);
	struct pgws_position pos;
	pgws_consumer_get_position(c, &pos);
	assert_int_equal(pos.reconnects, 0);
	pgws_consumer_free(&c);
}

int main(void)
{
	major = slots_connect("");
	if (major == 0)
		return 1;
#define TEST(fn) cmocka_unit_test_setup_teardown(fn, setup, slots_teardown)
	const struct CMUnitTest tests[] = {
		TEST(test_iterator),
		TEST(test_callback),
		TEST(test_descriptor_in_an_event_loop),
		TEST(test_descriptor_while_changes_are_left),
		TEST(test_confirm_moves_the_slot),
		TEST(test_an_idle_database_pins_no_wal),
		TEST(test_the_server_is_never_behind_what_came),
		TEST(test_messages_of_a_savepoint_rolled_back),
		TEST(test_start_lsn),
		TEST(test_stop_lsn_is_exact),
		TEST(test_stop_lsn_on_an_idle_server),
		TEST(test_stop_from_another_thread),
		TEST(test_confirmed_before_free),
		TEST(test_options_that_make_no_sense),
		TEST(test_options_of_another_size),
		TEST(test_refusals_that_no_retry_mends),
		TEST(test_a_slot_that_goes_is_never_made_again),
		TEST(test_a_slot_moved_by_somebody_else),
		TEST(test_exact_start),
		TEST(test_an_invalidated_slot),
		TEST(test_a_slot_in_use_is_waited_for),
		TEST(test_a_transaction_cut_short_begins_anew),
		TEST(test_the_pause_grows_until_something_new_comes),
		TEST(test_a_server_that_cannot_stream),
		TEST(test_a_slow_caller_keeps_its_connection),
		TEST(test_a_slow_caller_within_a_streamed_transaction),
		TEST(test_a_streamed_transaction_that_is_left_out),
		TEST(test_an_idle_consumer_keeps_its_connection),
		TEST(test_a_status_is_one_wake_up),
		TEST(test_questions_take_their_time),
	};
	int failed = cmocka_run_group_tests(tests, NULL, NULL);
	PQfinish(sql_conn);
	return failed;
}
