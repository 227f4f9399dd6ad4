/* SPDX-License-Identifier: PostgreSQL */
/*
 * The consumer while everything breaks: rows are inserted by two sessions, with savepoints, aborts
 * and large transactions, while the connection is cut, the walsender killed and the server crashed
 * at random. What the consumer was given must be the table, each row once, in commit order. Runs
 * inside tests/helpers/with-postgres. HOWDAH_STORM_S: seconds of each storm; HOWDAH_SEED repeats
 * one.
 */
#include "config.h"

#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include <libpq-fe.h>
#include <poll.h>
#include <pthread.h>

#include <cmocka.h>

#include "libpgwalstream/pgwalstream.h"
#include "tests/unit/helper_consumer.h"
#include "tests/unit/helper_server.h"
#include "tests/unit/helper_sql.h"

#define WRITERS 2
#define ROWS_MAX 4000000

static unsigned seed;
static int storm_s;
static atomic_bool quiet; /* the storm is over */
static atomic_int next_id, kills;

/* ---- A proxy that cuts ------------------------------------------------------------------------
 */

static char proxy_dir[40];
static int proxy_listener;
static atomic_int proxy_generation; /* a connection of an older one is closed */

static void copy_once(int from, int to, bool *ret_open)
{
	char bytes[65536];
	ssize_t n = recv(from, bytes, sizeof(bytes), MSG_DONTWAIT);
	if (n == 0)
		*ret_open = false;
	for (ssize_t at = 0; at < n;) {
		ssize_t w = send(to, bytes + at, (size_t)(n - at), MSG_NOSIGNAL);
		if (w <= 0) {
			*ret_open = false;
			return;
		}
		at += w;
	}
}

static void *proxy_connection(void *arg)
{
	int client = (int)(intptr_t)arg, generation = atomic_load(&proxy_generation);
	struct sockaddr_un to = {.sun_family = AF_UNIX};
	snprintf(to.sun_path, sizeof(to.sun_path), "%s/.s.PGSQL.%s", getenv("PGHOST"),
		getenv("PGPORT"));
	int server = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	bool open = connect(server, (struct sockaddr *)&to, sizeof(to)) == 0;
	/* A send that blocks would hide a cut. */
	struct timeval tv = {.tv_sec = 1};
	(void)setsockopt(client, SOL_SOCKET, SO_SNDTIMEO, &tv, sizeof(tv));
	while (open && atomic_load(&proxy_generation) == generation) {
		struct pollfd p[2] = {
			{.fd = client, .events = POLLIN}, {.fd = server, .events = POLLIN}};
		if (poll(p, 2, 5) <= 0)
			continue;
		if (p[0].revents != 0)
			copy_once(client, server, &open);
		if (p[1].revents != 0)
			copy_once(server, client, &open);
	}
	close(client);
	close(server);
	return NULL;
}

static void *proxy_accept(void *arg)
{
	(void)arg;
	int fd;
	while ((fd = accept4(proxy_listener, NULL, NULL, SOCK_CLOEXEC)) >= 0) {
		pthread_t thread;
		if (pthread_create(&thread, NULL, proxy_connection, (void *)(intptr_t)fd) == 0)
			pthread_detach(thread);
	}
	return NULL;
}

static void proxy_start(pthread_t *ret_thread)
{
	struct sockaddr_un at = {.sun_family = AF_UNIX};
	strcpy(proxy_dir, "/tmp/howdah-storm.XXXXXX");
	assert_non_null(mkdtemp(proxy_dir));
	snprintf(at.sun_path, sizeof(at.sun_path), "%s/.s.PGSQL.%s", proxy_dir, getenv("PGPORT"));
	proxy_listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	assert_int_equal(bind(proxy_listener, (struct sockaddr *)&at, sizeof(at)), 0);
	assert_int_equal(listen(proxy_listener, 20), 0);
	assert_int_equal(pthread_create(ret_thread, NULL, proxy_accept, NULL), 0);
}

static void proxy_stop(pthread_t thread)
{
	char path[80];
	atomic_fetch_add(&proxy_generation, 1);
	shutdown(proxy_listener, SHUT_RDWR);
	pthread_join(thread, NULL);
	close(proxy_listener);
	snprintf(path, sizeof(path), "%s/.s.PGSQL.%s", proxy_dir, getenv("PGPORT"));
	unlink(path);
	rmdir(proxy_dir);
}

/* ---- Who writes, who kills --------------------------------------------------------------------
 */

static PGconn *reconnect(PGconn *pg)
{
	PQfinish(pg);
	pg = NULL;
	for (int i = 0; i < 600; i++) {
		pg = PQconnectdb("options='-c client_min_messages=error'");
		if (PQstatus(pg) == CONNECTION_OK)
			return pg;
		PQfinish(pg);
		pg = NULL;
		usleep(50000);
	}
	return pg;
}

static bool try_sql(PGconn *pg, const char *text)
{
	PGresult *res = PQexec(pg, text);
	ExecStatusType status = PQresultStatus(res);
	PQclear(res);
	return status == PGRES_COMMAND_OK || status == PGRES_TUPLES_OK;
}

static bool insert_rows(PGconn *pg, int n)
{
	char text[160];
	int from = atomic_fetch_add(&next_id, n);
	if (from + n > ROWS_MAX)
		return true;
	snprintf(text, sizeof(text),
		"INSERT INTO t SELECT i, repeat('x', 20) FROM generate_series(%d, %d) i", from,
		from + n - 1);
	return try_sql(pg, text);
}

/* A random transaction: parts, some of them undone, some of them large. */
static bool transact(PGconn *pg, unsigned *r)
{
	bool ok = try_sql(pg, "BEGIN");
	int parts = 1 + rand_r(r) % 3;
	for (int i = 0; ok && i < parts; i++) {
		bool undone = rand_r(r) % 4 == 0;
		ok = try_sql(pg, "SAVEPOINT s") &&
		     insert_rows(pg, rand_r(r) % 20 == 0 ? 3000 : 1 + rand_r(r) % 5);
		if (ok && undone)
			ok = try_sql(pg, "ROLLBACK TO s");
	}
	return ok && try_sql(pg, rand_r(r) % 5 == 0 ? "ROLLBACK" : "COMMIT");
}

static void *writer(void *arg)
{
	unsigned r = seed + (unsigned)(intptr_t)arg;
	PGconn *pg = reconnect(NULL);
	while (!atomic_load(&quiet) && pg != NULL) {
		if (!transact(pg, &r))
			pg = reconnect(pg);
		usleep(500);
	}
	PQfinish(pg);
	return NULL;
}

static void *killer(void *arg)
{
	(void)arg;
	unsigned r = seed ^ 0x5a5a;
	PGconn *pg = reconnect(NULL);
	while (!atomic_load(&quiet) && pg != NULL) {
		usleep(200000 + (unsigned)rand_r(&r) % 700000);
		switch (rand_r(&r) % 6) {
		case 0:
			if (!server_crash())
				fprintf(stderr, "the server did not come back\n");
			break;
		case 1: { /* one backend dies badly: the postmaster ends them all */
			PGresult *res = PQexec(pg, "SELECT active_pid FROM pg_replication_slots");
			int pid = PQntuples(res) == 1 ? atoi(PQgetvalue(res, 0, 0)) : 0;
			PQclear(res);
			/* Until we were ended, too: nobody connects to a server about to go. */
			if (pid > 1 && kill(pid, SIGKILL) == 0)
				for (int i = 0; i < 5000 && try_sql(pg, "SELECT 1"); i++)
					usleep(1000);
			break;
		}
		case 2:
			(void)try_sql(pg, "SELECT pg_terminate_backend(active_pid) FROM "
					  "pg_replication_slots WHERE active");
			break;
		default:
			atomic_fetch_add(&proxy_generation, 1);
		}
		atomic_fetch_add(&kills, 1);
		if (!try_sql(pg, "SELECT 1"))
			pg = reconnect(pg);
	}
	PQfinish(pg);
	return NULL;
}

/* ---- Who is given rows ------------------------------------------------------------------------
 */

struct got {
	uint8_t *rows; /* by id */
	int *half;     /* ids of the transaction that has not ended */
	size_t n_half, n_transactions, n_restarts;
	uint64_t commit_lsn; /* of the last one */
	bool end;            /* id 0 came: it is inserted last */
};

static int id_of(const struct pgws_change *ch)
{
	struct pgws_column col;
	char text[12] = "";
	size_t at = 0;
	assert_true(pgws_tuple_next(&ch->msg.u.change.new_row, &at, &col));
	assert_true(col.len < sizeof(text));
	memcpy(text, col.data, col.len);
	return atoi(text);
}

static void take(struct got *g, const struct pgws_change *ch)
{
	switch (ch->msg.type) {
	case PGWS_BEGIN:
		assert_int_equal(g->n_half, 0);
		assert_true(ch->commit_lsn > g->commit_lsn);
		break;
	case PGWS_INSERT:
		assert_true(g->n_half < ROWS_MAX);
		g->half[g->n_half++] = id_of(ch);
		assert_int_equal(ch->ordinal, g->n_half);
		break;
	case PGWS_COMMIT:
		for (size_t i = 0; i < g->n_half; i++) {
			assert_int_equal(g->rows[g->half[i]], 0);
			g->rows[g->half[i]] = 1;
			g->end = g->end || g->half[i] == 0;
		}
		g->n_half = 0;
		g->n_transactions++;
		g->commit_lsn = ch->commit_lsn;
		break;
	default:
		break;
	}
}

/* One call of next. */
static void follow(struct pgws_consumer *c, struct got *g, unsigned *r)
{
	struct pgws_change ch;
	int rc = pgws_consumer_next(c, 100, &ch);
	if (rc == PGWS_EAGAIN)
		return;
	if (rc == PGWS_RESTARTED) {
		g->n_half = 0;
		g->n_restarts++;
		return;
	}
	if (rc != 0)
		fail_msg("%d: %s", rc, pgws_consumer_error(c));
	take(g, &ch);
	/* Now and then, so that much comes again after a loss. */
	if (ch.msg.type == PGWS_COMMIT && rand_r(r) % 10 == 0)
		pgws_consumer_confirm(c, ch.end_lsn, ch.end_lsn, ch.end_lsn);
}

static void compare(const struct got *g)
{
	PGresult *res = PQexec(sql_conn, "SELECT id FROM t");
	int n = PQntuples(res), wrong = 0, given = 0;
	assert_int_equal(PQresultStatus(res), PGRES_TUPLES_OK);
	for (int i = 0; i < n; i++)
		wrong += g->rows[atoi(PQgetvalue(res, i, 0))] != 1;
	PQclear(res);
	for (int i = 0; i < ROWS_MAX; i++)
		given += g->rows[i];
	if (wrong != 0 || given != n)
		fail_msg("%d rows in the table, %d given, %d missing", n, given, wrong);
}

static void storm(enum pgws_streaming streaming)
{
	pthread_t proxy, threads[WRITERS + 1];
	char conninfo[200];
	struct got g = {.rows = calloc(ROWS_MAX, 1), .half = calloc(ROWS_MAX, sizeof(int))};
	assert_true(g.rows != NULL && g.half != NULL);
	atomic_store(&quiet, false);
	atomic_store(&next_id, 1);
	atomic_store(&kills, 0);
	run("CREATE TABLE t (id int PRIMARY KEY, v text); CREATE PUBLICATION p FOR TABLE t");
	run("SELECT pg_create_logical_replication_slot('c_slot', 'pgoutput')");
	proxy_start(&proxy);
	struct pgws_consumer_options o = consumer_options();
	snprintf(conninfo, sizeof(conninfo), "host=%s options='-c logical_decoding_work_mem=64kB'",
		proxy_dir);
	o.stream.conninfo = conninfo;
	o.stream.streaming = streaming;
	o.background_feedback = true;
	o.retry_max = 1000;
	struct pgws_consumer *c = consumer_with(&o);
	for (int i = 0; i <= WRITERS; i++)
		assert_int_equal(pthread_create(&threads[i], NULL, i == WRITERS ? killer : writer,
					 (void *)(intptr_t)i),
			0);
	/* The storm's end is a row of its own; until then it is followed. */
	int64_t until = test_now_ms() + storm_s * 1000;
	unsigned r = seed ^ 0x1234;
	while (test_now_ms() < until)
		follow(c, &g, &r);
	atomic_store(&quiet, true);
	for (int i = 0; i <= WRITERS; i++)
		pthread_join(threads[i], NULL);
	sql_conn = reconnect(sql_conn);
	assert_non_null(sql_conn);
	run("INSERT INTO t VALUES (0, 'the end')");
	until = test_now_ms() + 180000;
	while (!g.end && test_now_ms() < until)
		follow(c, &g, &r);
	assert_true(g.end);
	struct pgws_position pos;
	pgws_consumer_get_position(c, &pos);
	compare(&g);
	print_message("seed %u: %d kills, %llu reconnects, %zu transactions, %zu cut short\n", seed,
		atomic_load(&kills), (unsigned long long)pos.reconnects, g.n_transactions,
		g.n_restarts);
	assert_true(pos.reconnects > 0);
	pgws_consumer_free(&c);
	proxy_stop(proxy);
	for (int i = 0; i < 500 && !sql_is("SELECT active FROM pg_replication_slots", "f"); i++)
		usleep(20000);
	run("SELECT pg_drop_replication_slot('c_slot'); DROP PUBLICATION p; DROP TABLE t");
	free(g.rows);
	free(g.half);
}

static void test_storm(void **state)
{
	(void)state;
	storm(PGWS_STREAMING_OFF);
}

static void test_storm_streamed(void **state)
{
	(void)state;
	storm(PGWS_STREAMING_ON);
}

int main(void)
{
	const char *s = getenv("HOWDAH_STORM_S"), *given = getenv("HOWDAH_SEED");
	storm_s = s != NULL ? atoi(s) : 6;
	seed = given != NULL ? (unsigned)atoi(given) : (unsigned)time(NULL) ^ (unsigned)getpid();
	sql_conn = reconnect(NULL);
	if (sql_conn == NULL)
		return 1;
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_storm),
		cmocka_unit_test(test_storm_streamed),
	};
	int failed = cmocka_run_group_tests(tests, NULL, NULL);
	PQfinish(sql_conn);
	return failed;
}
