/* SPDX-License-Identifier: PostgreSQL */
/*
 * pgconn against a real server, a proxy, and listeners that are not a server at all. The last tests
 * go through every state with every event that can be brought about from outside.
 */
#include "config.h"

#include <arpa/inet.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/base/err.h"
#include "common/base/mem.h"
#include "common/pg/pgconn.h"
#include "tests/unit/pg_testing.h"

struct probe {
	struct ev_loop *loop;
	struct pgconn *c;
	int n_up, n_down;
	enum pg_class class;
	char why[512];
	int n_lost, n_results;
	char log[256]; /* one letter per answer */
	bool free_on_answer;
};

static void on_up(struct pgconn *c, void *arg)
{
	struct probe *p = arg;

	assert_ptr_equal(c, p->c);
	p->n_up++;
}

static void on_down(struct pgconn *c, enum pg_class class, const char *why, void *arg)
{
	struct probe *p = arg;

	assert_ptr_equal(c, p->c);
	p->n_down++;
	p->class = class;
	snprintf(p->why, sizeof p->why, "%s", why);
}

static const struct pgconn_ops ops = {.on_up = on_up, .on_down = on_down};

static void open_probe(
	struct probe *p, const char *conninfo, const char *const *setup, uint32_t timeout_ms)
{
	struct pgconn_options options = {.conninfo = conninfo,
		.application_name = "test_pgconn",
		.setup = setup,
		.timeout_ms = timeout_ms};

	memset(p, 0, sizeof *p);
	p->loop = ev_loop_new();
	p->c = pgconn_new(p->loop, &options, &ops, p);
	assert_int_equal(pgconn_get_state(p->c), PGCONN_IDLE);
	pgconn_start(p->c);
}

static void close_probe(struct probe *p)
{
	pgconn_free(&p->c);
	assert_null(p->c);
	ev_loop_once(p->loop, false);
	ev_loop_free(&p->loop);
}

/* R: tuples or command; E: error; A: aborted; S: sync; L: lost. */
static void on_result(PGresult *res, void *arg)
{
	struct probe *p = arg;
	char letter = 'L';

	if (res != NULL)
		switch (PQresultStatus(res)) {
		case PGRES_TUPLES_OK:
		case PGRES_COMMAND_OK:
			letter = 'R';
			break;
		case PGRES_PIPELINE_SYNC:
			letter = 'S';
			break;
		case PGRES_PIPELINE_ABORTED:
			letter = 'A';
			break;
		default:
			letter = 'E';
		}
	if (strlen(p->log) + 1 < sizeof p->log)
		p->log[strlen(p->log)] = letter;
	p->n_lost += res == NULL;
	p->n_results++;
	if (p->free_on_answer && p->c != NULL)
		pgconn_free(&p->c);
}

static void send_text(struct probe *p, const char *sql)
{
	struct pgconn_query q = {.sql = sql};

	assert_int_equal(pgconn_query(p->c, &q, on_result, p), 0);
}

static void send_sync(struct probe *p)
{
	assert_int_equal(pgconn_sync(p->c, on_result, p), 0);
}

static void test_classes(void **state)
{
	static const struct {
		const char *sqlstate;
		enum pg_class class;
	} rows[] = {
		{NULL, PG_RETRY},
		{"", PG_RETRY},
		{"00000", PG_OK},
		{"08006", PG_RETRY},
		{"53300", PG_RETRY},
		{"57P01", PG_RETRY},
		{"57P03", PG_RETRY},
		{"57014", PG_RETRY},
		{"40001", PG_RETRY},
		{"40P01", PG_RETRY},
		{"55006", PG_RETRY},
		{"25006", PG_RETRY},
		{"XX000", PG_RETRY},
		{"42P01", PG_RETRY},
		{"42704", PG_RESYNC},
		{"55000", PG_RESYNC},
		{"58P01", PG_RESYNC},
		{"28000", PG_CONFIG},
		{"28P01", PG_CONFIG},
		{"3D000", PG_CONFIG},
		{"42501", PG_CONFIG},
		{"0A000", PG_CONFIG},
		{"22001", PG_DATA},
		{"22P02", PG_DATA},
		{"23505", PG_DATA},
		{"54000", PG_DATA},
		{"P0001", PG_DATA},
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(rows); i++)
		assert_int_equal(pg_classify(rows[i].sqlstate), rows[i].class);
	assert_string_equal(pg_class_str(PG_RESYNC), "resync");
	assert_string_equal(pg_class_str((enum pg_class)99), "?");
	assert_string_equal(pgconn_state_str(PGCONN_UP), "UP");
	assert_string_equal(pgconn_state_str(PGCONN_STATE_COUNT), "?");
}

static void test_connect(void **state)
{
	static const char *const setup[] = {
		"SET application_name = 'set up'", "SELECT 1; SELECT 2", "", NULL};
	struct probe p;

	(void)state;
	open_probe(&p, "", setup, 0);
	assert_int_equal(pgconn_server_version(p.c), 0);
	assert_int_equal(pgconn_backend_pid(p.c), 0);
	wait_until(p.loop, p.n_up == 1);
	assert_int_equal(pgconn_get_state(p.c), PGCONN_UP);
	assert_true(pgconn_server_version(p.c) >= 140000);
	assert_true(pgconn_backend_pid(p.c) > 1);
	assert_string_equal(pgconn_error(p.c), "");
	assert_string_equal(
		pg_testing_sql(
			"SELECT count(*) FROM pg_stat_activity WHERE application_name = 'set up'"),
		"1");
	assert_int_equal(p.n_down, 0);
	close_probe(&p);
}

/* A TCP socket that listens and never accepts or answers; the port comes back. */
static int silent_listener(int *ret_port)
{
	struct sockaddr_in in = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t len = sizeof in;
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	assert_int_equal(bind(fd, (struct sockaddr *)&in, sizeof in), 0);
	assert_int_equal(listen(fd, 16), 0);
	assert_int_equal(getsockname(fd, (struct sockaddr *)&in, &len), 0);
	*ret_port = ntohs(in.sin_port);
	return fd;
}

static void test_several_hosts(void **state)
{
	struct probe p;
	char conninfo[512];
	int port, fd;

	(void)state;
	/* Refused at once. */
	snprintf(conninfo, sizeof conninfo, "host=127.0.0.1,%s port=1,%s", getenv("PGHOST"),
		getenv("PGPORT"));
	open_probe(&p, conninfo, NULL, 0);
	wait_until(p.loop, p.n_up == 1);
	assert_int_equal(p.n_down, 0);
	close_probe(&p);

	/* By name, over TCP; another name that does not resolve is passed over. */
	snprintf(conninfo, sizeof conninfo, "host=%s,localhost port=%s",
		"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa.invalid",
		getenv("HOWDAH_TEST_PGTCP"));
	open_probe(&p, conninfo, NULL, 0);
	wait_until(p.loop, p.n_up == 1);
	close_probe(&p);

	/* Takes the connection and says nothing: given up after connect_timeout, then the other
	 * one. */
	fd = silent_listener(&port);
	snprintf(conninfo, sizeof conninfo, "host=127.0.0.1,%s port=%d,%s connect_timeout=1",
		getenv("PGHOST"), port, getenv("PGPORT"));
	open_probe(&p, conninfo, NULL, 0);
	wait_until(p.loop, p.n_up == 1);
	assert_int_equal(p.n_down, 1);
	assert_int_equal(p.class, PG_RETRY);
	assert_non_null(strstr(p.why, "within 1000 ms"));
	close_probe(&p);
	close(fd);
}

static void test_connect_failures(void **state)
{
	static const char *const denied[] = {"SET ROLE nobody_at_all", NULL};
	static const char *const bad[] = {"SELECT 1/0", NULL};
	static const char *const superuser[] = {
		"SET ROLE test_plain", "CREATE DATABASE test_pgconn_never", NULL};
	static const char *const readonly[] = {
		"SET default_transaction_read_only = on", "CREATE TABLE never ()", NULL};
	static const char *const slot[] = {
		"SELECT pg_replication_slot_advance('no_such_slot', '0/1')", NULL};
	static const struct {
		const char *conninfo;
		const char *const *setup;
		enum pg_class class;
		const char *why;
	} rows[] = {
		{"dbname=no_such_database", NULL, PG_CONFIG, "3D000"},
		{"user=no_such_user", NULL, PG_CONFIG, "28000"},
		{"host=127.0.0.1 port=1", NULL, PG_RETRY, "refused"},
		{"host=/nowhere", NULL, PG_RETRY, "No such file"},
		{"nonsense", NULL, PG_CONFIG, "missing \"=\""},
		{"sslmode=wrong", NULL, PG_CONFIG, "sslmode"},
		{"host=aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa."
		 "invalid",
			NULL, PG_RETRY, ".invalid"},
		{"target_session_attrs=standby", NULL, PG_RETRY, "not in hot standby"},
		{"", denied, PG_CONFIG, "nobody_at_all"},
		{"", bad, PG_CONFIG, "22012"},
		{"", superuser, PG_CONFIG, "42501"},
		{"", readonly, PG_RETRY, "25006"},
		{"", slot, PG_RESYNC, "42704"},
	};
	struct probe p;

	(void)state;
	pg_testing_sql("DROP ROLE IF EXISTS test_plain; CREATE ROLE test_plain");
	for (size_t i = 0; i < ARRAY_LEN(rows); i++) {
		open_probe(&p, rows[i].conninfo, rows[i].setup, 0);
		wait_until(p.loop, p.n_down == 1);
		if (p.class != rows[i].class || strstr(p.why, rows[i].why) == NULL)
			fail_msg("row %zu: class %s: %s", i, pg_class_str(p.class), p.why);
		assert_null(strchr(p.why, '\n'));
		assert_null(strstr(p.why, "LOCATION"));
		assert_int_equal(pgconn_get_state(p.c), PGCONN_WAITING);
		assert_string_equal(pgconn_error(p.c), p.why);
		assert_int_equal(p.n_up, 0);
		close_probe(&p);
	}
	pg_testing_sql("DROP ROLE test_plain");
}

static void test_pipeline_order(void **state)
{
	struct probe p;

	(void)state;
	pg_testing_sql("DROP TABLE IF EXISTS test_order; CREATE TABLE test_order (i int UNIQUE "
		       "DEFERRABLE INITIALLY DEFERRED)");
	open_probe(&p, "", NULL, 5000);
	wait_until(p.loop, p.n_up == 1);
	send_text(&p, "INSERT INTO test_order VALUES (1)");
	send_text(&p, "SELECT 1");
	send_sync(&p);
	send_text(&p, "INSERT INTO test_order VALUES (2)");
	send_text(&p, "SELECT 1/0");
	send_text(&p, "SELECT 2");
	send_text(&p, "SELECT 3");
	send_sync(&p);
	send_text(&p, "SELECT 4");
	send_sync(&p);
	send_sync(&p);
	wait_until(p.loop, p.n_results == 11);
	assert_string_equal(p.log, "RRSREAASRSS");
	/* What the commit itself finds wrong comes with the sync, once; the next one is good again.
	 */
	memset(p.log, 0, sizeof p.log);
	send_text(&p, "INSERT INTO test_order VALUES (1)");
	send_sync(&p);
	send_text(&p, "INSERT INTO test_order VALUES (3)");
	send_sync(&p);
	wait_until(p.loop, p.n_results == 15);
	assert_string_equal(p.log, "RERS");
	assert_string_equal(
		pg_testing_sql("SELECT string_agg(i::text, ',' ORDER BY i) FROM test_order"),
		"1,3");
	assert_int_equal(pgconn_get_state(p.c), PGCONN_UP);
	close_probe(&p);
}

static void test_prepared(void **state)
{
	struct probe p;
	const char *values[] = {"41"};
	struct pgconn_query q = {
		.sql = "plus_one", .prepared = true, .n_params = 1, .values = values};
	Oid type = 23;

	(void)state;
	open_probe(&p, "", NULL, 5000);
	assert_int_equal(pgconn_prepare(p.c, "x", "SELECT 1", 0, NULL, NULL, NULL), -ERR_STATE);
	wait_until(p.loop, p.n_up == 1);
	assert_int_equal(
		pgconn_prepare(p.c, "plus_one", "SELECT $1 + 1", 1, &type, on_result, &p), 0);
	assert_int_equal(pgconn_query(p.c, &q, on_result, &p), 0);
	assert_int_equal(pgconn_query(p.c, &q, NULL, NULL), 0);
	send_sync(&p);
	assert_int_equal(pgconn_simple(p.c, "SELECT $1::int", 1, values, on_result, &p), 0);
	wait_until(p.loop, p.n_results == 4);
	assert_string_equal(p.log, "RRSR");
	close_probe(&p);
}

/* More than any socket buffer in both directions at once, without a deadlock. */
static void test_large(void **state)
{
	struct probe p;
	char *big = xmalloc(8 * 1024 * 1024 + 1);
	const char *values[] = {big};
	struct pgconn_query q = {.sql = "SELECT $1::text", .n_params = 1, .values = values};

	(void)state;
	memset(big, 'x', 8 * 1024 * 1024);
	big[8 * 1024 * 1024] = '\0';
	open_probe(&p, "", NULL, 20000);
	wait_until(p.loop, p.n_up == 1);
	for (int i = 0; i < 4; i++)
		assert_int_equal(pgconn_query(p.c, &q, on_result, &p), 0);
	send_sync(&p);
	for (int i = 0; i < 3000; i++)
		assert_int_equal(
			pgconn_query(p.c, &(struct pgconn_query){.sql = "SELECT 1"}, on_result, &p),
			0);
	send_sync(&p);
	wait_until(p.loop, p.n_results == 3006);
	assert_int_equal(p.n_lost, 0);
	close_probe(&p);
	free(big);
}

static void test_backend_killed(void **state)
{
	struct probe p;
	char sql[128];

	(void)state;
	open_probe(&p, "", NULL, 5000);
	wait_until(p.loop, p.n_up == 1);
	send_text(&p, "SELECT pg_sleep(20)");
	send_text(&p, "SELECT 2");
	send_sync(&p);
	snprintf(sql, sizeof sql, "SELECT pg_terminate_backend(%d)", pgconn_backend_pid(p.c));
	pg_testing_sql(sql);
	wait_until(p.loop, p.n_up == 2);
	assert_int_equal(p.n_down, 1);
	assert_int_equal(p.class, PG_RETRY);
	assert_int_equal(p.n_results, 3);
	assert_true(strcmp(p.log, "EAL") == 0 || strcmp(p.log, "LLL") == 0);
	/* While nothing is outstanding, too. */
	snprintf(sql, sizeof sql, "SELECT pg_terminate_backend(%d)", pgconn_backend_pid(p.c));
	pg_testing_sql(sql);
	wait_until(p.loop, p.n_up == 3);
	assert_int_equal(p.n_down, 2);
	assert_non_null(strstr(p.why, "terminat"));
	/* A backend that dies takes the whole server through recovery. */
	assert_int_equal(kill(pgconn_backend_pid(p.c), SIGKILL), 0);
	wait_until(p.loop, p.n_up == 4);
	assert_true(p.n_down >= 3);
	assert_int_equal(p.class, PG_RETRY);
	close_probe(&p);
}

static void test_read_only_server_is_left(void **state)
{
	struct probe p;

	(void)state;
	open_probe(&p, "", NULL, 5000);
	wait_until(p.loop, p.n_up == 1);
	send_text(&p, "SET default_transaction_read_only = on");
	send_sync(&p);
	send_text(&p, "CREATE TABLE never ()");
	send_sync(&p);
	wait_until(p.loop, p.n_down == 1);
	assert_memory_equal(p.log, "RSE", 3);
	assert_int_equal(p.n_results, 4);
	assert_int_equal(p.class, PG_RETRY);
	assert_non_null(strstr(p.why, "read-only"));
	wait_until(p.loop, p.n_up == 2);
	close_probe(&p);
}

static void test_frozen(void **state)
{
	struct probe p;
	struct ev_loop *loop;
	struct proxy *proxy;

	(void)state;
	loop = ev_loop_new();
	proxy = proxy_new(loop);
	memset(&p, 0, sizeof p);
	p.loop = loop;
	p.c = pgconn_new(loop,
		&(struct pgconn_options){.conninfo = proxy_conninfo(proxy), .timeout_ms = 300},
		&ops, &p);
	pgconn_start(p.c);
	wait_until(loop, p.n_up == 1);
	/* Without a question nothing is missed. */
	proxy_freeze(proxy, true);
	pg_testing_run(loop, 500);
	assert_int_equal(p.n_down, 0);
	send_text(&p, "SELECT 1");
	send_sync(&p);
	wait_until(loop, p.n_down == 1);
	assert_string_equal(p.log, "LL");
	assert_non_null(strstr(p.why, "no answer from the server within 300 ms"));
	proxy_freeze(proxy, false);
	wait_until(loop, p.n_up == 2);
	/* A slow statement after a quick one: the clock is set back by each answer. */
	send_text(&p, "SELECT pg_sleep(0.2)");
	send_sync(&p);
	send_text(&p, "SELECT pg_sleep(0.2)");
	send_sync(&p);
	wait_until(loop, p.n_results == 6);
	assert_string_equal(p.log, "LLRSRS");
	pgconn_free(&p.c);
	proxy_free(&proxy);
	ev_loop_once(loop, false);
	ev_loop_free(&loop);
}

static void on_next(PGresult *res, void *arg)
{
	struct probe *p = arg;

	p->n_lost += res == NULL;
	if (++p->n_results < 6 && res != NULL)
		assert_int_equal(
			pgconn_simple(p->c, "SELECT pg_sleep(0.1)", 0, NULL, on_next, p), 0);
}

/* Each answer asks the next question: together they take longer than one may. */
static void test_chain_outlasts_timeout(void **state)
{
	struct probe p;

	(void)state;
	open_probe(&p, "", NULL, 300);
	wait_until(p.loop, p.n_up == 1);
	assert_int_equal(pgconn_simple(p.c, "SELECT pg_sleep(0.1)", 0, NULL, on_next, &p), 0);
	wait_until(p.loop, p.n_results == 6 || p.n_down > 0);
	assert_int_equal(p.n_down, 0);
	assert_int_equal(p.n_lost, 0);
	close_probe(&p);
}

/* ---- every state with every event that can be had from outside ---- */

enum test_event { E_START, E_STOP, E_QUERY, E_FREE, E_CUT, E_SILENCE, E_COUNT };

static const char *const slow_setup[] = {"SELECT pg_sleep(60)", NULL};

/* Brings a connection through the proxy into a state. */
static void reach(struct probe *p, struct proxy *proxy, struct ev_loop *loop, enum pgconn_state s)
{
	struct pgconn_options options = {.conninfo = proxy_conninfo(proxy), .timeout_ms = 400};
	char conninfo[256];

	snprintf(conninfo, sizeof conninfo, "%s connect_timeout=1", proxy_conninfo(proxy));
	options.conninfo = conninfo;
	options.setup = s == PGCONN_SETUP ? slow_setup : NULL;
	memset(p, 0, sizeof *p);
	p->loop = loop;
	p->c = pgconn_new(loop, &options, &ops, p);
	if (s == PGCONN_IDLE)
		return;
	proxy_freeze(proxy, s == PGCONN_CONNECTING);
	pgconn_start(p->c);
	assert_int_equal(pgconn_get_state(p->c), PGCONN_RESOLVING);
	if (s == PGCONN_RESOLVING)
		return;
	if (s == PGCONN_WAITING) {
		wait_until(loop, p->n_up == 1);
		proxy_cut(proxy);
		wait_until(loop, p->n_down == 1);
		p->n_down = 0;
		p->n_up = 0;
	}
	wait_until(loop, pgconn_get_state(p->c) == s);
}

static void test_every_state_and_event(void **state)
{
	/* The state that follows, at the latest after a while; '-' for the same. */
	static const struct {
		enum pgconn_state from;
		enum pgconn_state after[E_COUNT];
	} rows[] = {
		/*                      START              STOP         QUERY              FREE CUT
		   SILENCE */
		{PGCONN_IDLE, {PGCONN_RESOLVING, PGCONN_IDLE, PGCONN_IDLE, PGCONN_IDLE, PGCONN_IDLE,
				      PGCONN_IDLE}},
		{PGCONN_RESOLVING, {PGCONN_RESOLVING, PGCONN_IDLE, PGCONN_RESOLVING, PGCONN_IDLE,
					   PGCONN_UP, PGCONN_UP}},
		{PGCONN_CONNECTING, {PGCONN_CONNECTING, PGCONN_IDLE, PGCONN_CONNECTING, PGCONN_IDLE,
					    PGCONN_WAITING, PGCONN_WAITING}},
		{PGCONN_SETUP, {PGCONN_SETUP, PGCONN_IDLE, PGCONN_SETUP, PGCONN_IDLE,
				       PGCONN_WAITING, PGCONN_WAITING}},
		{PGCONN_UP, {PGCONN_UP, PGCONN_IDLE, PGCONN_UP, PGCONN_IDLE, PGCONN_WAITING,
				    PGCONN_WAITING}},
		{PGCONN_WAITING, {PGCONN_RESOLVING, PGCONN_IDLE, PGCONN_WAITING, PGCONN_IDLE,
					 PGCONN_UP, PGCONN_UP}},
	};
	struct ev_loop *loop = ev_loop_new();
	struct proxy *proxy = proxy_new(loop);

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(rows); i++)
		for (enum test_event e = 0; e < E_COUNT; e++) {
			enum pgconn_state from = rows[i].from, after = rows[i].after[e];
			struct pgconn_query q = {.sql = "SELECT pg_sleep(60)"};
			struct probe p;

			reach(&p, proxy, loop, from);
			assert_int_equal(pgconn_get_state(p.c), from);
			switch (e) {
			case E_START:
				pgconn_start(p.c);
				break;
			case E_STOP:
				pgconn_stop(p.c);
				break;
			case E_QUERY:
				assert_int_equal(pgconn_query(p.c, &q, on_result, &p),
					from == PGCONN_UP ? 0 : -ERR_STATE);
				assert_int_equal(pgconn_sync(p.c, on_result, &p),
					from == PGCONN_UP ? 0 : -ERR_STATE);
				break;
			case E_FREE:
				pgconn_free(&p.c);
				break;
			case E_CUT:
				proxy_cut(proxy);
				break;
			case E_SILENCE:
				if (from == PGCONN_UP)
					assert_int_equal(
						pgconn_simple(p.c, q.sql, 0, NULL, on_result, &p),
						0);
				break;
			default:
				break;
			}
			if (p.c != NULL && (e == E_CUT || e == E_SILENCE))
				wait_until(loop, pgconn_get_state(p.c) == after);
			if (p.c != NULL)
				assert_int_equal(pgconn_get_state(p.c), after);
			assert_int_equal(
				p.n_down, after == PGCONN_WAITING && from != PGCONN_WAITING);
			/* Stopping and freeing answer what is outstanding and are not reported. */
			p.n_down = 0;
			if (p.c != NULL) {
				pgconn_stop(p.c);
				assert_int_equal(pgconn_get_state(p.c), PGCONN_IDLE);
			}
			assert_int_equal(p.n_down, 0);
			assert_int_equal(p.n_lost, p.n_results);
			assert_int_equal(p.n_lost, from == PGCONN_UP ? (e == E_QUERY            ? 2
									       : e == E_SILENCE ? 1
												: 0)
								     : 0);
			pgconn_free(&p.c);
			ev_loop_once(loop, false);
		}
	proxy_free(&proxy);
	ev_loop_once(loop, false);
	ev_loop_free(&loop);
}

/* Freed by its own callbacks: answered, lost, down. */
static void test_free_in_callback(void **state)
{
	struct probe p;

	(void)state;
	for (int i = 0; i < 2; i++) {
		char sql[128];

		open_probe(&p, "", NULL, 5000);
		wait_until(p.loop, p.n_up == 1);
		send_text(&p, i == 0 ? "SELECT 1" : "SELECT pg_sleep(20)");
		send_text(&p, "SELECT 2");
		send_sync(&p);
		p.free_on_answer = true;
		snprintf(sql, sizeof sql, "SELECT pg_terminate_backend(%d)",
			pgconn_backend_pid(p.c));
		if (i == 1)
			pg_testing_sql(sql);
		wait_until(p.loop, p.n_results == 3);
		assert_null(p.c);
		assert_int_equal(p.n_down, 0);
		ev_loop_once(p.loop, false);
		ev_loop_free(&p.loop);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_teardown(test_classes, pg_testing_no_leaks),
		cmocka_unit_test_teardown(test_connect, pg_testing_no_leaks),
		cmocka_unit_test_teardown(test_several_hosts, pg_testing_no_leaks),
		cmocka_unit_test_teardown(test_connect_failures, pg_testing_no_leaks),
		cmocka_unit_test_teardown(test_pipeline_order, pg_testing_no_leaks),
		cmocka_unit_test_teardown(test_prepared, pg_testing_no_leaks),
		cmocka_unit_test_teardown(test_large, pg_testing_no_leaks),
		cmocka_unit_test_teardown(test_backend_killed, pg_testing_no_leaks),
		cmocka_unit_test_teardown(test_read_only_server_is_left, pg_testing_no_leaks),
		cmocka_unit_test_teardown(test_frozen, pg_testing_no_leaks),
		cmocka_unit_test_teardown(test_chain_outlasts_timeout, pg_testing_no_leaks),
		cmocka_unit_test_teardown(test_every_state_and_event, pg_testing_no_leaks),
		cmocka_unit_test_teardown(test_free_in_callback, pg_testing_no_leaks),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
