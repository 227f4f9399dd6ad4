/* SPDX-License-Identifier: PostgreSQL */
/*
 * The follower against servers that misbehave: one that hangs, one that shuts down while
 * acknowledgements are missing, one that refuses. Starts its own server by
 * tests/helpers/with-postgres; the last test stops it.
 */
#include "config.h"

#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <libpq-fe.h>

#include <cmocka.h>

#include "common/base/ev.h"
#include "common/base/log.h"
#include "common/base/mem.h"
#include "tests/unit/helper_slots.h"
#include "walstreamd/follower.h"
#include "walstreamd/timeline.h"

#define SLOT "howdah_follower"
#define SILENCE_MS 1500

static struct ev_loop *loop;

static struct {
	bool streaming, stopped, created, keep;
	enum pg_class class;
	char text[600];
	size_t n_data;
	uint64_t flush_lsn, keepalive_lsn;
} seen;

static void on_slot_created(uint64_t lsn, uint32_t timeline, const char *snapshot, void *arg)
{
	(void)arg;
	assert_true(lsn > 0 && timeline == 1);
	assert_non_null(snapshot);
	seen.created = true;
}

static void on_stream(uint64_t from_lsn, uint32_t timeline, void *arg)
{
	(void)arg;
	assert_true(from_lsn > 0 && timeline == 1);
	seen.streaming = true;
}

static int on_data(const struct pgws_event *ev, const char **ret_why, void *arg)
{
	(void)arg;
	(void)ret_why;
	assert_non_null(ev->data);
	seen.n_data++;
	return seen.keep ? -EAGAIN : 0;
}

static void on_keepalive(uint64_t wal_end, void *arg)
{
	(void)arg;
	seen.keepalive_lsn = wal_end;
}

static void on_batch(void *arg)
{
	(void)arg;
}

static uint64_t get_flush_lsn(void *arg)
{
	(void)arg;
	return seen.flush_lsn;
}

static void on_stopped(enum pg_class class, const char *text, void *arg)
{
	(void)arg;
	seen.stopped = true;
	seen.class = class;
	snprintf(seen.text, sizeof(seen.text), "%s", text);
}

static void on_wake(void *arg)
{
	(void)arg;
}

static bool wait_flag(const bool *flag, uint32_t ms)
{
	struct ev_timer wake;
	ev_timer_init(&wake, loop, "test", on_wake, NULL);
	uint64_t deadline = ev_now_ms() + ms;
	while (!*flag && ev_now_ms() < deadline) {
		ev_timer_start(&wake, 20);
		ev_loop_once(loop, true);
	}
	ev_timer_stop(&wake);
	return *flag;
}

static struct follower *make(const char *publications)
{
	static const struct follower_ops ops = {
		.on_slot_created = on_slot_created,
		.on_stream = on_stream,
		.on_data = on_data,
		.on_keepalive = on_keepalive,
		.on_batch = on_batch,
		.get_flush_lsn = get_flush_lsn,
		.on_stopped = on_stopped,
	};
	const struct follower_options options = {.conninfo = "",
		.slot = SLOT,
		.publications = publications,
		.silence_ms = SILENCE_MS};
	memset(&seen, 0, sizeof(seen));
	return follower_new(loop, &options, &ops, NULL);
}

static uint64_t confirmed(void)
{
	char *text = sql("SELECT confirmed_flush_lsn FROM pg_replication_slots");
	uint64_t lsn = 0;
	assert_int_equal(pgws_lsn_parse(text, &lsn), 0);
	free(text);
	return lsn;
}

static struct follower *streaming(void)
{
	struct follower *f = make("p");
	follower_start(f, confirmed(), 60000, PGWS_STREAMING_OFF);
	if (!wait_flag(&seen.streaming, 10000))
		fail_msg("not streaming: %s", seen.text);
	return f;
}

static int setup(void **state)
{
	(void)slots_setup(state);
	run("SELECT pg_create_logical_replication_slot('" SLOT "', 'pgoutput')");
	return 0;
}

static void test_create(void **state)
{
	(void)state;
	run("SELECT pg_drop_replication_slot('" SLOT "')");
	struct follower *f = make("p");
	follower_create_slot(f);
	assert_true(wait_flag(&seen.created, 10000));
	assert_int_equal(follower_get_state(f), FOLLOWER_SNAPSHOT);
	follower_stop(f);
	assert_true(wait_flag(&seen.stopped, 1000));
	assert_int_equal(seen.class, PG_OK);
	assert_string_equal(seen.text, "");
	seen.stopped = false;
	follower_create_slot(f); /* it is there already */
	assert_true(wait_flag(&seen.stopped, 10000));
	assert_non_null(strstr(seen.text, SLOT));
	follower_free(&f);
}

static void test_stop(void **state)
{
	(void)state;
	struct follower *f = streaming();
	run("INSERT INTO t VALUES (1, 'x')");
	while (seen.n_data < 4)
		ev_loop_once(loop, true);
	seen.flush_lsn = follower_server_lsn(f);
	follower_stop(f);
	assert_true(wait_flag(&seen.stopped, 2000));
	assert_int_equal(seen.class, PG_OK);
	assert_string_equal(seen.text, "");
	assert_true(confirmed() == seen.flush_lsn);
	/* Feedback lower than what was told before is never sent: the slot stays. */
	seen.flush_lsn = 1;
	seen.streaming = seen.stopped = false;
	follower_start(f, confirmed(), 60000, PGWS_STREAMING_OFF);
	assert_true(wait_flag(&seen.streaming, 10000));
	follower_stop(f);
	assert_true(wait_flag(&seen.stopped, 2000));
	assert_true(confirmed() > 1);
	follower_free(&f);
}

/* The walsender is stopped in its tracks: the connection stays, nobody speaks. */
static void test_silence(void **state)
{
	(void)state;
	struct follower *f = streaming();
	bool never = false;
	/* An idle server is no silent one. */
	assert_false(wait_flag(&never, SILENCE_MS * 2));
	assert_false(seen.stopped);
	char *pid = sql("SELECT pid FROM pg_stat_replication");
	assert_int_equal(kill(atoi(pid), SIGSTOP), 0);
	bool stopped = wait_flag(&seen.stopped, SILENCE_MS * 3);
	kill(atoi(pid), SIGCONT);
	free(pid);
	assert_true(stopped);
	assert_int_equal(seen.class, PG_RETRY);
	assert_non_null(strstr(seen.text, "silent"));
	follower_free(&f);
}

/* While nothing is read, feedback goes on: the server does not give us up. */
static void test_feedback_while_full(void **state)
{
	(void)state;
	run("ALTER SYSTEM SET wal_sender_timeout = '1s'");
	run("SELECT pg_reload_conf()");
	struct follower *f = make("p");
	seen.keep = true;
	follower_start(f, confirmed(), 1000, PGWS_STREAMING_OFF);
	assert_true(wait_flag(&seen.streaming, 10000));
	run("INSERT INTO t SELECT i, repeat('x', 1000) FROM generate_series(1, 5000) i");
	bool never = false;
	assert_false(wait_flag(&never, 4000));
	assert_false(seen.stopped);
	assert_int_equal(seen.n_data, 1);
	seen.keep = false;
	follower_resume(f);
	while (seen.n_data < 5003 && !seen.stopped)
		ev_loop_once(loop, true);
	assert_false(seen.stopped);
	follower_free(&f);
	run("ALTER SYSTEM RESET wal_sender_timeout");
	run("SELECT pg_reload_conf()");
}

/* While nothing is read, the end of the connection is noticed all the same. */
static void test_ended_while_full(void **state)
{
	(void)state;
	struct follower *f = make("p");
	seen.keep = true;
	follower_start(f, confirmed(), 60000, PGWS_STREAMING_OFF);
	assert_true(wait_flag(&seen.streaming, 10000));
	/* More than the sockets hold: behind it the end cannot be read. */
	run("INSERT INTO t SELECT i, repeat('x', 1000) FROM generate_series(1, 20000) i");
	while (seen.n_data < 1)
		ev_loop_once(loop, true);
	bool never = false;
	assert_false(wait_flag(&never, 1500));
	assert_false(seen.stopped);
	/* A walsender that cannot write does not end by itself; the server starts anew. */
	char *pid = sql("SELECT pid FROM pg_stat_replication");
	assert_int_equal(kill(atoi(pid), SIGKILL), 0);
	free(pid);
	assert_true(wait_flag(&seen.stopped, 10000));
	assert_int_equal(seen.class, PG_RETRY);
	assert_non_null(strstr(seen.text, "ended while the ring was full"));
	follower_free(&f);
	uint64_t began = ev_now_ms();
	do {
		usleep(20000);
		PQreset(sql_conn);
	} while (PQstatus(sql_conn) != CONNECTION_OK && ev_now_ms() - began < 30000);
}

/* The slot's position was read on another timeline than this server's: of a primary that was left,
 * while this one is what became of its standby. There it may name other transactions. */
static void test_other_timeline(void **state)
{
	(void)state;
	struct follower *f = make("p");
	follower_set_timeline(f, 0, 2);
	follower_start(f, confirmed(), 60000, PGWS_STREAMING_OFF);
	assert_true(wait_flag(&seen.stopped, 10000));
	assert_false(seen.streaming);
	assert_int_equal(seen.class, PG_RETRY);
	assert_non_null(strstr(seen.text, "timeline 2"));
	seen.stopped = false;
	follower_set_timeline(f, 0, 1);
	follower_start(f, confirmed(), 60000, PGWS_STREAMING_OFF);
	assert_true(wait_flag(&seen.streaming, 10000));
	assert_false(seen.stopped);
	follower_free(&f);
}

/* 18 only warns of it, and would leave its changes out. */
static void test_no_publication(void **state)
{
	(void)state;
	struct follower *f = make("p,gone");
	follower_start(f, confirmed(), 60000, PGWS_STREAMING_OFF);
	assert_true(wait_flag(&seen.streaming, 10000));
	run("INSERT INTO t VALUES (1, 'x')");
	assert_true(wait_flag(&seen.stopped, 10000));
	assert_int_equal(seen.class, PG_RESYNC);
	assert_non_null(strstr(seen.text, "pgctl node remove"));
	assert_non_null(strstr(seen.text, "gone"));
	follower_free(&f);
}

/* Not acknowledged, and the server wants to stop: it can, soon. */
static void test_shutdown(void **state)
{
	(void)state;
	struct follower *f = streaming();
	run("INSERT INTO t VALUES (1, 'x')");
	while (seen.n_data < 4)
		ev_loop_once(loop, true);
	PQfinish(sql_conn);
	sql_conn = NULL;
	uint64_t began = ev_now_ms();
	uint64_t feedbacks = follower_feedbacks(f);
	assert_int_equal(kill(atoi(getenv("HOWDAH_TEST_PGPID")), SIGINT), 0);
	assert_true(wait_flag(&seen.stopped, 15000));
	/* Our part, then the server's: under 5 s together. */
	assert_true(ev_now_ms() - began < 4000);
	char pid_file[4096];
	snprintf(pid_file, sizeof(pid_file), "%s/postmaster.pid", getenv("HOWDAH_TEST_PGDATA"));
	while (access(pid_file, F_OK) == 0 && ev_now_ms() - began < 5000)
		usleep(10000);
	assert_int_not_equal(access(pid_file, F_OK), 0);
	assert_int_equal(seen.class, PG_RETRY);
	assert_non_null(strstr(seen.text, "shutting down"));
	/* No running in circles meanwhile. */
	assert_true(follower_feedbacks(f) - feedbacks <= 2 + 4000 / 100);
	follower_free(&f);
}

/* A history file's lines, good and bad. */
static void test_timeline_left(void **state)
{
	(void)state;
	static const char history[] = "# comment\n1\t0/3000000\tno recovery target specified\n"
				      "\nx\t0/1\n2\t16/B374D848\n4 nonsense\n5\t0/7";
	const size_t len = sizeof(history) - 1;
	assert_true(timeline_left(history, len, 1) == 0x3000000);
	assert_true(timeline_left(history, len, 2) == UINT64_C(0x16B374D848));
	assert_true(timeline_left(history, len, 3) == 0);
	assert_true(timeline_left(history, len, 4) == 0);
	assert_true(timeline_left(history, len, 5) == 7);
	assert_true(timeline_left(history, 0, 1) == 0);
	/* Not a byte beyond the end is looked at. */
	assert_true(timeline_left(history, strlen("# comment\n1\t0/3"), 1) == 3);
	char line[300];
	memset(line, ' ', sizeof(line));
	memcpy(line, "1", 1);
	memcpy(line + 290, "0/9", 3);
	assert_true(timeline_left(line, sizeof(line), 1) == 0);
}

int main(void)
{
	log_init("test_follower", LOG_LEVEL_ERROR);
	loop = ev_loop_new();
	if (slots_connect("") == 0)
		return 1;
#define TEST(fn) cmocka_unit_test_setup_teardown(fn, setup, slots_teardown)
	const struct CMUnitTest tests[] = {
		TEST(test_create),
		TEST(test_stop),
		TEST(test_silence),
		TEST(test_feedback_while_full),
		TEST(test_ended_while_full),
		TEST(test_other_timeline),
		TEST(test_no_publication),
		cmocka_unit_test(test_timeline_left),
		cmocka_unit_test_setup(test_shutdown, setup),
	};
	int failed = cmocka_run_group_tests(tests, NULL, NULL);
	PQfinish(sql_conn);
	ev_loop_free(&loop);
	return failed;
}
