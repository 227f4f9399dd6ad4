/* SPDX-License-Identifier: PostgreSQL */
/*
 * Both ways in which a stream's bytes come in, libpq's loop and the socket taken over, against a
 * real server over a Unix socket, TCP and TLS: the same events, the same errors, large rows, slow
 * readers, a full socket, a server that dies. Runs inside tests/helpers/with-postgres.
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
#include <sys/socket.h>

#include <cmocka.h>

#include "libpgwalstream/pgwalstream.h"
#include "libpgwalstream/receive.h"
#include "libpgwalstream/stream_internal.h"
#include "tests/unit/helper_sql.h"
#include "tests/unit/helper_tls.h"

#define PATIENCE_MS 60000
#define SLOT "receive"
#define LARGE_BYTES 60000000

enum transport { UNIX, TCP, TLS, TRANSPORTS };

static const enum pgws_receive ways[] = {PGWS_RECEIVE_LIBPQ, PGWS_RECEIVE_SOCKET};
static bool have_tls;

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

static struct pgws_stream *make(enum transport transport, enum pgws_receive how)
{
	static const char *const formats[] = {"sslmode=disable",
		"host=127.0.0.1 port=%s sslmode=disable", "host=127.0.0.1 port=%s sslmode=require"};
	char conninfo[200];
	snprintf(conninfo, sizeof(conninfo), formats[transport], getenv("HOWDAH_TEST_PGTCP"));
	struct pgws_stream_options o = PGWS_STREAM_OPTIONS_INIT;
	o.conninfo = conninfo;
	o.slot = SLOT;
	o.publications = "p";
	o.receive = how;
	struct pgws_stream *s = pgws_stream_new(&o);
	assert_non_null(s);
	return s;
}

/* Until STREAMING, or the error. */
static int start(struct pgws_stream *s)
{
	assert_int_equal(pgws_stream_connect(s), 0);
	assert_int_equal(pgws_stream_wait(s, PATIENCE_MS), 0);
	assert_int_equal(pgws_stream_start(s, 0), 0);
	return pgws_stream_wait(s, PATIENCE_MS);
}

static void wait_sql(const char *text, const char *expect)
{
	int64_t deadline = now_ms() + PATIENCE_MS;
	while (!sql_is(text, expect)) {
		if (now_ms() > deadline)
			fail_msg("not %s: %s", expect, text);
		usleep(10000);
	}
}

static void slot_is_free(void)
{
	wait_sql("SELECT count(*) FROM pg_replication_slots WHERE active", "0");
}

static struct pgws_stream *streaming(enum transport transport, enum pgws_receive how)
{
	slot_is_free();
	struct pgws_stream *s = make(transport, how);
	if (start(s) != 0)
		fail_msg("%s", pgws_stream_error(s));
	assert_int_equal(pgws_stream_phase(s), PGWS_PHASE_STREAMING);
	assert_int_equal(pgws_stream_receive(s), how);
	return s;
}

/* The next data event, waiting; keepalives are answered with flush_lsn. */
static int next_data(struct pgws_stream *s, uint64_t flush_lsn, struct pgws_event *ret_event)
{
	int64_t deadline = now_ms() + PATIENCE_MS;
	while (now_ms() < deadline) {
		int err = pgws_stream_next(s, ret_event);
		if (err == PGWS_EAGAIN) {
			unsigned rest = pgws_stream_rest_us(s);
			if (rest > 0)
				usleep(rest);
			else
				(void)wait_io(s, 1000);
		} else if (err != 0 || ret_event->kind == PGWS_EVENT_DATA) {
			return err;
		} else if (ret_event->reply_requested) {
			(void)pgws_stream_feedback(s, flush_lsn, flush_lsn, flush_lsn, false);
		}
	}
	fail_msg("nothing came");
	return PGWS_EAGAIN;
}

/* What came until the commit of a transaction: FNV over everything, and how much. */
struct digest {
	uint64_t hash, bytes, end_lsn;
	size_t n;
};

static void add(struct digest *d, const void *bytes, size_t len)
{
	const uint8_t *p = bytes;
	for (size_t i = 0; i < len; i++)
		d->hash = (d->hash ^ p[i]) * UINT64_C(1099511628211);
}

static struct digest take_transactions(struct pgws_stream *s, int n)
{
	struct digest d = {.hash = UINT64_C(14695981039346656037)};
	struct pgws_event ev;
	while (n > 0) {
		int err = next_data(s, 0, &ev);
		if (err != 0)
			fail_msg("%d: %s", err, pgws_stream_error(s));
		add(&d, &ev.start_lsn, sizeof(ev.start_lsn));
		add(&d, ev.data, ev.len);
		d.bytes += ev.len;
		d.n++;
		if (ev.data[0] == 'C') {
			struct pgws_msg m;
			assert_int_equal(pgws_decode(ev.data, ev.len, false, &m), 0);
			d.end_lsn = m.u.commit.end_lsn;
			n--;
		}
	}
	return d;
}

static void confirm(struct pgws_stream *s, uint64_t lsn)
{
	char text[160], hex[18];
	snprintf(text, sizeof(text), "SELECT confirmed_flush_lsn >= '%s' FROM pg_replication_slots",
		pgws_lsn_str(lsn, hex));
	int err = pgws_stream_feedback(s, lsn, lsn, lsn, false);
	assert_true(err == 0 || err == PGWS_EAGAIN);
	wait_sql(text, "t");
}

static int setup(void **state)
{
	(void)state;
	run("CREATE TABLE t (id int, v text); ALTER TABLE t REPLICA IDENTITY FULL;"
	    "CREATE PUBLICATION p FOR TABLE t");
	run("SELECT pg_create_logical_replication_slot('" SLOT "', 'pgoutput')");
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	slot_is_free();
	run("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots");
	run("DROP PUBLICATION p; DROP TABLE t");
	return 0;
}

/* The same bytes over every transport and in both ways; then an orderly end. */
static void test_same(void **state)
{
	(void)state;
	run("INSERT INTO t SELECT i, repeat('v', i % 300) FROM generate_series(1, 20000) i");
	run("INSERT INTO t SELECT i, repeat(md5(i::text), 32000 + i) FROM generate_series(1, 5) i");
	run("UPDATE t SET v = v || 'x' WHERE id <= 1000");
	struct digest first = {.n = 0};
	for (int t = 0; t < TRANSPORTS; t++) {
		for (int w = 0; w < 2; w++) {
			if (t == TLS && !have_tls)
				continue;
			struct pgws_stream *s = streaming((enum transport)t, ways[w]);
			struct digest d = take_transactions(s, 3);
			if (first.n == 0)
				first = d;
			assert_int_equal(d.n, first.n);
			assert_int_equal(d.bytes, first.bytes);
			assert_true(d.hash == first.hash);
			assert_int_equal(pgws_stream_end(s), 0);
			assert_int_equal(pgws_stream_wait(s, PATIENCE_MS), 0);
			assert_int_equal(pgws_stream_phase(s), PGWS_PHASE_READY);
			/* The connection is libpq's again. */
			assert_int_equal(pgws_stream_identify(s), 0);
			assert_int_equal(pgws_stream_wait(s, PATIENCE_MS), 0);
			assert_non_null(pgws_stream_system(s));
			assert_int_equal(pgws_stream_start(s, 0), 0);
			assert_int_equal(pgws_stream_wait(s, PATIENCE_MS), 0);
			assert_int_equal(pgws_stream_receive(s), ways[w]);
			pgws_stream_free(&s);
		}
	}
	assert_true(first.n > 21000);
}

/* AUTO is the socket wherever this machine can. */
static void test_auto(void **state)
{
	(void)state;
	for (int t = 0; t < TRANSPORTS; t++) {
		if (t == TLS && !have_tls)
			continue;
		slot_is_free();
		struct pgws_stream *s = make((enum transport)t, PGWS_RECEIVE_AUTO);
		assert_int_equal(start(s), 0);
		assert_int_equal(pgws_stream_receive(s), PGWS_RECEIVE_SOCKET);
		assert_int_equal(pgws_stream_rest_us(s), 0);
		pgws_stream_free(&s);
	}
}

/* One row that is much larger than any buffer, then small ones again. */
static void test_large(void **state)
{
	(void)state;
	char text[120];
	snprintf(text, sizeof(text), "INSERT INTO t VALUES (1, repeat('0123456789', %d))",
		LARGE_BYTES / 10);
	run(text);
	run("INSERT INTO t SELECT i, 'small' FROM generate_series(1, 1000) i");
	for (int t = 0; t < TRANSPORTS; t++) {
		if (t == TLS && !have_tls)
			continue;
		struct pgws_stream *s = streaming((enum transport)t, PGWS_RECEIVE_SOCKET);
		struct digest d = take_transactions(s, 2);
		assert_true(d.bytes > LARGE_BYTES && d.bytes < LARGE_BYTES + 100000);
		assert_int_equal(d.n, 2 * 2 + 1 + 1 + 1000);
		pgws_stream_free(&s);
	}
}

/* Feedback moves the slot while much is still to come, and is not lost on a busy stream. */
static void test_feedback(void **state)
{
	(void)state;
	for (int t = 0; t < TRANSPORTS; t++) {
		if (t == TLS && !have_tls)
			continue;
		for (int w = 0; w < 2; w++) {
			struct pgws_stream *s = streaming((enum transport)t, ways[w]);
			run("INSERT INTO t SELECT i, 'x' FROM generate_series(1, 100) i");
			confirm(s, take_transactions(s, 1).end_lsn);
			run("INSERT INTO t SELECT i, repeat('x', 1000) FROM generate_series(1, "
			    "5000) i");
			confirm(s, take_transactions(s, 1).end_lsn);
			pgws_stream_free(&s);
		}
	}
}

/* Nobody reads, feedback goes on for longer than wal_sender_timeout: still there afterwards. */
static void test_slow_reader(void **state)
{
	(void)state;
	run("ALTER SYSTEM SET wal_sender_timeout = '1s'");
	run("SELECT pg_reload_conf()");
	run("INSERT INTO t SELECT i, repeat('x', 1000) FROM generate_series(1, 10000) i");
	for (int t = 0; t < TRANSPORTS; t++) {
		if (t == TLS && !have_tls)
			continue;
		struct pgws_stream *s = streaming((enum transport)t, PGWS_RECEIVE_SOCKET);
		struct pgws_event ev;
		assert_int_equal(next_data(s, 0, &ev), 0);
		for (int64_t until = now_ms() + 3000; now_ms() < until; usleep(100000)) {
			int err = pgws_stream_feedback(s, 1, 1, 1, false);
			assert_true(err == 0 || err == PGWS_EAGAIN);
		}
		struct digest d = take_transactions(s, 1);
		assert_int_equal(d.n, 10000 + 2);
		pgws_stream_free(&s);
	}
	run("ALTER SYSTEM RESET wal_sender_timeout");
	run("SELECT pg_reload_conf()");
}

static void keep_words(struct pgws_stream *s, int err, char *text, size_t size)
{
	snprintf(text, size, "%d %s %s", err, pgws_stream_sqlstate(s), pgws_stream_error(s));
}

/* The server says no, at the start and in the middle: the same words in both ways. */
static void test_same_errors(void **state)
{
	(void)state;
	for (int t = 0; t < TRANSPORTS; t++) {
		if (t == TLS && !have_tls)
			continue;
		char busy[2][1200], gone[2][1200], killed[2][1200];
		for (int w = 0; w < 2; w++) {
			struct pgws_event ev;
			struct pgws_stream *s = streaming((enum transport)t, ways[w]);
			struct pgws_stream *other = make((enum transport)t, ways[w]);
			int err = start(other);
			keep_words(other, err, busy[w], sizeof(busy[w]));
			char *pid = strstr(busy[w], "PID ");
			if (pid != NULL)
				memset(pid + 4, '#', strspn(pid + 4, "0123456789"));
			assert_int_equal(err, PGWS_ESERVER);
			assert_string_equal(pgws_stream_sqlstate(other), "55006");
			assert_int_equal(pgws_stream_phase(other), PGWS_PHASE_FAILED);
			pgws_stream_free(&other);

			run("INSERT INTO t SELECT i, 'x' FROM generate_series(1, 10) i");
			uint64_t end = take_transactions(s, 1).end_lsn;
			confirm(s, end);
			run("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots");
			err = next_data(s, 0, &ev);
			assert_int_equal(err, PGWS_ESERVER);
			keep_words(s, err, killed[w], sizeof(killed[w]));
			pgws_stream_free(&s);

			gone[w][0] = 0;
			if (PQserverVersion(sql_conn) >= 180000)
				continue; /* a missing publication is only a warning there */
			slot_is_free();
			run("SELECT pg_create_logical_replication_slot('other', 'pgoutput')");
			run("DROP PUBLICATION p");
			s = streaming((enum transport)t, ways[w]);
			run("INSERT INTO t VALUES (1, 'x')");
			while ((err = next_data(s, 0, &ev)) == 0 && ev.data[0] != 'C')
				;
			keep_words(s, err, gone[w], sizeof(gone[w]));
			pgws_stream_free(&s);
			slot_is_free();
			run("SELECT pg_drop_replication_slot('" SLOT "')");
			run("SELECT pg_drop_replication_slot('other')");
			run("CREATE PUBLICATION p FOR TABLE t");
			run("SELECT pg_create_logical_replication_slot('" SLOT "', 'pgoutput')");
		}
		assert_string_equal(busy[0], busy[1]);
		assert_string_equal(killed[0], killed[1]);
		assert_non_null(strstr(killed[1], "57P01"));
		char *lsn[2] = {
			strstr(gone[0], "associated LSN"), strstr(gone[1], "associated LSN")};
		for (int w = 0; w < 2; w++) {
			if (lsn[w] != NULL)
				*lsn[w] = 0;
		}
		assert_string_equal(gone[0], gone[1]);
	}
}

/* A server process died: all the others go too, and come again. */
static void wait_restart(void)
{
	int64_t deadline = now_ms() + PATIENCE_MS;
	while (now_ms() < deadline) {
		PGresult *res =
			PQexec(sql_conn, "SELECT count(*) FROM pg_replication_slots WHERE active");
		bool free_again = PQresultStatus(res) == PGRES_TUPLES_OK &&
				  strcmp(PQgetvalue(res, 0, 0), "0") == 0;
		PQclear(res);
		if (free_again)
			return;
		usleep(50000);
		if (PQstatus(sql_conn) != CONNECTION_OK)
			PQreset(sql_conn);
	}
	fail_msg("the server does not come again");
}

/* The walsender is gone without a word, messages of it on the way: those first, then the loss. */
static void test_died(void **state)
{
	(void)state;
	run("INSERT INTO t SELECT i, repeat('x', 100) FROM generate_series(1, 50000) i");
	for (int t = 0; t < TRANSPORTS; t++) {
		if (t == TLS && !have_tls)
			continue;
		struct pgws_stream *s = streaming((enum transport)t, PGWS_RECEIVE_SOCKET);
		struct pgws_event ev;
		assert_int_equal(next_data(s, 0, &ev), 0);
		/* Stopped first: its socket is full of messages, the last one cut anywhere. */
		char *pid = sql("SELECT active_pid FROM pg_replication_slots");
		usleep(50000);
		assert_int_equal(kill(atoi(pid), SIGSTOP), 0);
		assert_int_equal(kill(atoi(pid), SIGKILL), 0);
		free(pid);
		size_t n = 1;
		int err;
		while ((err = next_data(s, 0, &ev)) == 0)
			n++;
		assert_int_equal(err, PGWS_ECONN);
		assert_true(n > 1 && n < 50002);
		assert_string_not_equal(pgws_stream_error(s), "");
		assert_string_equal(pgws_stream_sqlstate(s), "");
		pgws_stream_free(&s);
		wait_restart();
	}
}

/* Reads a burst to its end; whether a rest was asked for in it. */
static bool rests_in_a_burst(struct pgws_stream *s, unsigned max_us)
{
	struct pgws_event ev;
	unsigned n_rests = 0;
	int64_t deadline = now_ms() + PATIENCE_MS;
	run("INSERT INTO t SELECT i, 'x' FROM generate_series(1, 50000) i");
	while (now_ms() < deadline) {
		int err = pgws_stream_next(s, &ev);
		if (err == 0) {
			if (ev.kind == PGWS_EVENT_DATA && ev.data[0] == 'C')
				return n_rests > 0;
			continue;
		}
		assert_int_equal(err, PGWS_EAGAIN);
		unsigned rest = pgws_stream_rest_us(s);
		assert_true(rest <= max_us);
		n_rests += rest > 0;
		if (rest > 0)
			usleep(rest);
		else
			(void)wait_io(s, 1000);
	}
	fail_msg("the burst does not end");
	return false;
}

/* Many messages a second: a rest is asked for; silence: at once none. */
static void test_rest(void **state)
{
	(void)state;
	for (int t = 0; t < TRANSPORTS; t++) {
		if (t == TLS && !have_tls)
			continue;
		struct pgws_stream *s = streaming((enum transport)t, PGWS_RECEIVE_SOCKET);
		struct pgws_event ev;
		/* On a busy machine everything may have come in before we look. */
		for (int i = 0; i < 20 && !rests_in_a_burst(s, t == TLS ? 3000 : 2000); i++)
			assert_true(i < 19);
		/* All is given out: the first round without an event ends it. */
		int rounds = 0;
		while (pgws_stream_next(s, &ev) != PGWS_EAGAIN || pgws_stream_rest_us(s) != 0)
			assert_true(++rounds < 50);
		/* A single message after silence is waited for without a rest. */
		uint64_t end_lsn = 0;
		for (int i = 0; i < 5; i++) {
			usleep(20000);
			run("INSERT INTO t VALUES (0, 'x')");
			end_lsn = take_transactions(s, 1).end_lsn;
			while (pgws_stream_next(s, &ev) != PGWS_EAGAIN)
				;
			assert_int_equal(pgws_stream_rest_us(s), 0);
		}
		confirm(s, end_lsn);
		pgws_stream_free(&s);
	}
}

static int receive_buffer(enum transport transport, enum pgws_receive how)
{
	struct pgws_stream *s = streaming(transport, how);
	int bytes = 0;
	socklen_t len = sizeof(bytes);
	assert_int_equal(getsockopt(pgws_stream_fd(s), SOL_SOCKET, SO_RCVBUF, &bytes, &len), 0);
	if (transport != UNIX && how == PGWS_RECEIVE_SOCKET)
		assert_true(s->rx->path->has_quota);
	pgws_stream_free(&s);
	return bytes;
}

/* What a socket may ask for. */
static int rmem_max(void)
{
	int bytes = 0;
	FILE *f = fopen("/proc/sys/net/core/rmem_max", "re");
	assert_non_null(f);
	assert_int_equal(fscanf(f, "%d", &bytes), 1);
	fclose(f);
	return bytes;
}

/* A small one where TCP stays inside the machine and we read; the kernel's own otherwise. */
static void test_receive_buffer(void **state)
{
	(void)state;
	int most = rmem_max();
	int tcp = 2 * (most < 212992 ? most : 212992), tls = 2 * (most < 131072 ? most : 131072);
	assert_int_equal(receive_buffer(TCP, PGWS_RECEIVE_SOCKET), tcp);
	assert_int_not_equal(receive_buffer(TCP, PGWS_RECEIVE_LIBPQ), tcp);
	assert_int_not_equal(receive_buffer(UNIX, PGWS_RECEIVE_SOCKET), tcp);
	if (!have_tls)
		return;
	assert_int_equal(receive_buffer(TLS, PGWS_RECEIVE_SOCKET), tls);
	assert_int_not_equal(receive_buffer(TLS, PGWS_RECEIVE_LIBPQ), tls);
}

enum { MIXED_ROUNDS = 200, STALL_MS = 150 };

/* Small messages, then one of up to a segment's size, many times: how often that took long. */
static int stalls_of_mixed_sizes(enum transport transport)
{
	struct pgws_stream *s = streaming(transport, PGWS_RECEIVE_SOCKET);
	uint64_t end_lsn = 0;
	int n = 0;
	for (int i = 0; i < MIXED_ROUNDS; i++) {
		char sql[200];
		int last = i * 3 + 10;
		snprintf(sql, sizeof(sql),
			"INSERT INTO t SELECT i, repeat('x', CASE WHEN i = %d THEN %d ELSE 60 END)"
			" FROM generate_series(1, %d) i",
			last, 40000 + i * 150, last);
		run(sql);
		int64_t begun_ms = now_ms();
		end_lsn = take_transactions(s, 1).end_lsn;
		n += now_ms() - begun_ms >= STALL_MS;
	}
	confirm(s, end_lsn);
	pgws_stream_free(&s);
	return n;
}

/* Whatever the window has left, no message waits for a window probe (200 ms; with a buffer of 16 kB
 * every 17th transaction does). A busy machine stalls the Unix socket as often. */
static void test_mixed_sizes(void **state)
{
	(void)state;
	int plain = stalls_of_mixed_sizes(UNIX), tcp = stalls_of_mixed_sizes(TCP);
	int tls = have_tls ? stalls_of_mixed_sizes(TLS) : 0;
	if (tcp > plain + 3 || tls > plain + 3)
		fail_msg("TCP: %d stalls, TLS: %d, a Unix socket: %d", tcp, tls, plain);
}

static void enable_tls(void)
{
	have_tls = make_certificate(getenv("HOWDAH_TEST_PGDATA"));
	if (!have_tls) {
		fprintf(stderr, "no openssl program: TLS is left out\n");
		return;
	}
	run("ALTER SYSTEM SET ssl = on");
	run("SELECT pg_reload_conf()");
	wait_sql("SHOW ssl", "on");
}

int main(void)
{
	sql_conn = PQconnectdb("options='-c client_min_messages=error'");
	if (PQstatus(sql_conn) != CONNECTION_OK) {
		fprintf(stderr, "%s\n", PQerrorMessage(sql_conn));
		return 1;
	}
	enable_tls();
#define TEST(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)
	const struct CMUnitTest tests[] = {
		TEST(test_same),
		TEST(test_auto),
		TEST(test_large),
		TEST(test_feedback),
		TEST(test_slow_reader),
		TEST(test_same_errors),
		TEST(test_died),
		TEST(test_rest),
		TEST(test_receive_buffer),
		TEST(test_mixed_sizes),
	};
	int failed = cmocka_run_group_tests(tests, NULL, NULL);
	PQfinish(sql_conn);
	return failed;
}
