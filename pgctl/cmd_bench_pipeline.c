/* SPDX-License-Identifier: PostgreSQL */
/*
 * pgctl bench pipeline: what one transaction costs when the server is far away. A transfer between
 * two accounts, two UPDATEs, over a proxy that delays each direction:
 *
 *   transaction   BEGIN, UPDATE, UPDATE, COMMIT, each waiting for the last: eight one-way trips
 *   pipeline      the same four in one libpq pipeline: two
 *   batch         the suite's batching writer (common/pg/batch), one client: two
 *   batch         the same with many clients: they share the trips
 *
 * Every balance is known beforehand and is checked afterwards, account by account.
 *
 * Context: the bench process.
 */
#include "config.h"

#include <arpa/inet.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/mem.h"
#include "common/pg/batch.h"
#include "pgctl/bench.h"
#include "pgctl/bench_proxy.h"

#define DELAY_DEFAULT_MS 25
#define DELAY_MAX_MS 1000
#define ROUNDS_DEFAULT 40
#define ROUNDS_MAX 10000
#define CLIENTS_DEFAULT 1000
#define CLIENTS_MAX 50000
#define ACCOUNTS 1000
#define BALANCE 1000000
#define AMOUNT_MAX 100
#define DISK_BYTES (500ULL << 20)
#define UP_MS 60000

struct transfer {
	int from, to, amount;
};

struct pipeline_bench {
	struct bench *b;
	unsigned delay_ms;
	size_t rounds, clients;
	PGconn *near; /* straight to the server */
	char *far;    /* conninfo over the proxy */
	int64_t expected[ACCOUNTS + 1];
	uint64_t seed;
};

/* The next one; what it does to the balances is noted. A plain generator: the same in every run. */
static struct transfer draw(struct pipeline_bench *x)
{
	struct transfer t;
	x->seed = x->seed * 6364136223846793005u + 1442695040888963407u;
	uint32_t bits = (uint32_t)(x->seed >> 33);
	t.from = (int)(bits % ACCOUNTS) + 1;
	t.to = t.from % ACCOUNTS + 1 + (int)(bits >> 16) % (ACCOUNTS - 1);
	t.to = (t.to - 1) % ACCOUNTS + 1;
	if (t.to == t.from)
		t.to = t.from % ACCOUNTS + 1;
	t.amount = (int)(bits >> 8) % AMOUNT_MAX + 1;
	x->expected[t.from] -= t.amount;
	x->expected[t.to] += t.amount;
	return t;
}

/* ---- One client, statement by statement or as a pipeline --------------------------------------
 */

#define STATEMENTS 4

/* The four statements of a transfer; the caller frees the two in the middle. */
static void statements_of(const struct transfer *t, char *sql[STATEMENTS])
{
	sql[1] = xasprintf(
		"UPDATE accounts SET balance = balance - %d WHERE id = %d", t->amount, t->from);
	sql[2] = xasprintf(
		"UPDATE accounts SET balance = balance + %d WHERE id = %d", t->amount, t->to);
}

static bool do_transaction(PGconn *pg, char *const sql[STATEMENTS])
{
	const char *const all[STATEMENTS] = {"BEGIN", sql[1], sql[2], "COMMIT"};
	bool ok = true;
	for (int i = 0; i < STATEMENTS && ok; i++) {
		PGresult *res = PQexec(pg, all[i]);
		ok = PQresultStatus(res) == PGRES_COMMAND_OK;
		PQclear(res);
	}
	return ok;
}

static bool do_pipeline(PGconn *pg, char *const sql[STATEMENTS])
{
	const char *const all[STATEMENTS] = {"BEGIN", sql[1], sql[2], "COMMIT"};
	bool ok = PQenterPipelineMode(pg) == 1;
	for (int i = 0; i < STATEMENTS && ok; i++)
		ok = PQsendQueryParams(pg, all[i], 0, NULL, NULL, NULL, NULL, 0) == 1;
	ok = ok && PQpipelineSync(pg) == 1;
	for (int synced = 0; ok && synced == 0;) {
		PGresult *res = PQgetResult(pg);
		synced = PQresultStatus(res) == PGRES_PIPELINE_SYNC;
		ok = res == NULL ? PQstatus(pg) == CONNECTION_OK
				 : synced != 0 || PQresultStatus(res) == PGRES_COMMAND_OK;
		PQclear(res);
	}
	return PQexitPipelineMode(pg) == 1 && ok;
}

static void put_row(
	struct pipeline_bench *x, const char *method, size_t clients, double ms, double per_s)
{
	json_t *row = json_pack("{s:s,s:I,s:o,s:o,s:o}", "method", method, "clients",
		(json_int_t)clients, "ms_per_transfer", bench_number(ms, 2), "one_way_trips",
		bench_number(ms / x->delay_ms, 1), "transfers_per_s", bench_number(per_s, 1));
	ASSERT(row != NULL);
	output_row(&x->b->p->out, row);
	json_decref(row);
}

static int run_client(struct pipeline_bench *x, const char *method,
	bool (*fn)(PGconn *pg, char *const sql[STATEMENTS]))
{
	double *ms = xcalloc(x->rounds, sizeof(*ms));
	PGconn *pg = NULL;
	int status = bench_connect_to(x->b, x->far, &pg);
	bench_progress(x->b, "%s: %zu transfers, one after the other", method, x->rounds);
	uint64_t began = bench_now_us();
	for (size_t i = 0; i < x->rounds && status == PGCTL_OK; i++) {
		struct transfer t = draw(x);
		char *sql[STATEMENTS];
		statements_of(&t, sql);
		uint64_t before = bench_now_us();
		if (!fn(pg, sql))
			status = bench_sql_failed(x->b, pg, method);
		ms[i] = (double)(bench_now_us() - before) / 1e3;
		free(sql[1]);
		free(sql[2]);
	}
	double seconds = (double)(bench_now_us() - began) / 1e6;
	if (status == PGCTL_OK)
		put_row(x, method, 1, bench_median(ms, x->rounds), (double)x->rounds / seconds);
	PQfinish(pg);
	free(ms);
	return status;
}

/* ---- The batching writer ----------------------------------------------------------------------
 */

/* One statement for all transfers of a batch: each account is touched once, whatever their number;
 * the token is kept beside them, so that a commit in doubt can be looked up. */
static const struct batch_kind transfer_kind = {
	.name = "transfer",
	.sql = "WITH t AS (SELECT * FROM unnest($3::int[], $4::int[], $5::int[], $6::int[])"
	       " AS u (sub, source, target, amount)),"
	       " kept AS (INSERT INTO transfers SELECT $1::bigint, $2::text, * FROM t)"
	       " UPDATE accounts a SET balance = balance + d.amount FROM"
	       " (SELECT id, sum(amount) AS amount FROM (SELECT source AS id, -amount AS amount "
	       "FROM t"
	       " UNION ALL SELECT target, amount FROM t) x GROUP BY id) d WHERE a.id = d.id",
	.n_columns = 3,
	.types = {23, 23, 23},
	.probe_sql = "SELECT 1 FROM transfers WHERE token = $1 AND node = $2 LIMIT 1",
};

struct batch_run;

struct batch_client {
	struct batch_run *run;
	uint64_t since_us;
	size_t left;
};

struct batch_run {
	struct pipeline_bench *x;
	struct ev_loop *loop;
	struct batch *batch;
	struct ev_timer late;
	size_t n_done, n_all;
	double *ms;
	bool failed;
	char why[300];
};

static void client_next(struct batch_client *c);

static void run_failed(struct batch_run *r, const char *why)
{
	if (!r->failed)
		snprintf(r->why, sizeof(r->why), "%s", why);
	r->failed = true;
	ev_loop_stop(r->loop);
}

static void on_transferred(int err, const char *why, void *arg)
{
	struct batch_client *c = arg;
	struct batch_run *r = c->run;
	if (err != 0) {
		run_failed(r, why);
		return;
	}
	r->ms[r->n_done++] = (double)(bench_now_us() - c->since_us) / 1e3;
	if (r->n_done == r->n_all)
		ev_loop_stop(r->loop);
	else if (c->left > 0)
		client_next(c);
}

static void client_next(struct batch_client *c)
{
	struct transfer t = draw(c->run->x);
	uint32_t from = htonl((uint32_t)t.from), to = htonl((uint32_t)t.to),
		 amount = htonl((uint32_t)t.amount);
	const struct batch_value values[] = {{&from, 4}, {&to, 4}, {&amount, 4}};
	c->left--;
	c->since_us = bench_now_us();
	if (batch_add(c->run->batch, 0, values, on_transferred, c) != 0)
		run_failed(c->run, "the batching writer has no room");
}

static void on_trouble(int err, const char *why, void *arg)
{
	struct batch_run *r = arg;
	if (err != 0)
		snprintf(r->why, sizeof(r->why), "%s", why);
}

static void on_late(void *arg)
{
	struct batch_run *r = arg;
	run_failed(r, r->why[0] != '\0' ? r->why : "the batching writer did not come up");
}

/* Connected first, so that connecting is in nobody's time. */
static uint64_t run_transfers(struct batch_run *r, struct batch_client *clients, size_t n)
{
	ev_timer_start(&r->late, UP_MS);
	while (!r->failed && !batch_is_up(r->batch))
		ev_loop_once(r->loop, true);
	uint64_t began = bench_now_us();
	for (size_t i = 0; i < n && !r->failed; i++)
		client_next(&clients[i]);
	/* Each transfer is at most behind all others. */
	ev_timer_start(&r->late, UP_MS + r->n_all * 10);
	if (!r->failed)
		ev_loop_run(r->loop);
	ev_timer_stop(&r->late);
	return bench_now_us() - began;
}

static int run_batch(struct pipeline_bench *x, size_t n_clients)
{
	static const struct batch_ops ops = {.on_trouble = on_trouble};
	const struct batch_options options = {.conninfo = x->far,
		.application_name = "bench",
		.node = "bench",
		.role = "bench",
		.kinds = &transfer_kind,
		.n_kinds = 1};
	struct batch_run r = {.x = x, .loop = ev_loop_new(), .n_all = n_clients * x->rounds};
	struct batch_client *clients = xcalloc(n_clients, sizeof(*clients));
	r.ms = xcalloc(r.n_all, sizeof(*r.ms));
	for (size_t i = 0; i < n_clients; i++)
		clients[i] = (struct batch_client){.run = &r, .left = x->rounds};
	bench_progress(x->b, "batch: %zu transfers of %zu clients", r.n_all, n_clients);
	ev_timer_init(&r.late, r.loop, "bench late", on_late, &r);
	r.batch = batch_new(r.loop, &options, &ops, &r);
	double seconds = (double)run_transfers(&r, clients, n_clients) / 1e6;
	batch_free(&r.batch);
	ev_loop_free(&r.loop);
	int status = PGCTL_OK;
	if (r.failed)
		status =
			pgctl_fail(x->b->p, PGCTL_FAILED, "look whether this machine is overloaded",
				"the batching writer: %s", r.why);
	else
		put_row(x, "batch", n_clients, bench_median(r.ms, r.n_all),
			(double)r.n_all / seconds);
	free(clients);
	free(r.ms);
	return status;
}

/* ---- All of it --------------------------------------------------------------------------------
 */

static int make_accounts(struct pipeline_bench *x)
{
	int status = bench_connect(x->b, "postgres", &x->near);
	if (status == PGCTL_OK)
		status = bench_sql(x->b, x->near,
			"CREATE TABLE accounts (id int PRIMARY KEY, balance bigint NOT NULL);"
			"INSERT INTO accounts SELECT i, %d FROM generate_series(1, %d) i;"
			"CREATE TABLE transfers (token bigint, node text, sub int, source int,"
			" target int, amount int, PRIMARY KEY (token, sub))",
			BALANCE, ACCOUNTS);
	for (int i = 1; i <= ACCOUNTS; i++)
		x->expected[i] = BALANCE;
	return status;
}

/* Not one transfer missing, doubled or halved. */
static int check_accounts(struct pipeline_bench *x)
{
	PGresult *res = PQexec(x->near, "SELECT id, balance FROM accounts ORDER BY id");
	int status = PGCTL_OK;
	if (PQresultStatus(res) != PGRES_TUPLES_OK || PQntuples(res) != ACCOUNTS)
		status = bench_sql_failed(x->b, x->near, "SELECT FROM accounts");
	for (int i = 0; i < ACCOUNTS && status == PGCTL_OK; i++) {
		long long balance = strtoll(PQgetvalue(res, i, 1), NULL, 10);
		if (balance != x->expected[i + 1])
			status = pgctl_fail(x->b->p, PGCTL_FAILED,
				"this is a mistake in Howdah: please report it",
				"account %d holds %lld, which should be %lld", i + 1, balance,
				(long long)x->expected[i + 1]);
	}
	PQclear(res);
	return status;
}

static int run_all(struct pipeline_bench *x)
{
	int status = run_client(x, "transaction", do_transaction);
	if (status == PGCTL_OK)
		status = run_client(x, "pipeline", do_pipeline);
	if (status == PGCTL_OK)
		status = run_batch(x, 1);
	if (status == PGCTL_OK)
		status = run_batch(x, x->clients);
	return status == PGCTL_OK ? check_accounts(x) : status;
}

static int bench_pipeline(struct bench *b, void *arg)
{
	struct pipeline_bench *x = arg;
	int port = 0;
	pid_t proxy = 0;
	x->b = b;
	bench_progress(b, "a server of %s, without fsync, %u ms away in each direction", b->bindir,
		x->delay_ms);
	int status = bench_server_start(b, "");
	if (status == PGCTL_OK)
		status = make_accounts(x);
	if (status == PGCTL_OK)
		status = bench_proxy_start(b, x->delay_ms, &port, &proxy);
	if (status == PGCTL_OK) {
		int server_port = b->port;
		b->port = port;
		x->far = bench_conninfo(b, BENCH_TCP, "postgres");
		b->port = server_port;
		status = run_all(x);
		bench_end(proxy, SIGKILL, 1000, NULL);
	}
	PQfinish(x->near);
	free(x->far);
	return status;
}

int cmd_bench_pipeline(struct pgctl *p, json_t *args)
{
	json_int_t delay = DELAY_DEFAULT_MS, rounds = ROUNDS_DEFAULT, clients = CLIENTS_DEFAULT;
	int status = bench_take_number(p, args, "delay", DELAY_MAX_MS, &delay);
	if (status == PGCTL_OK)
		status = bench_take_number(p, args, "rounds", ROUNDS_MAX, &rounds);
	if (status == PGCTL_OK)
		status = bench_take_number(p, args, "clients", CLIENTS_MAX, &clients);
	if (status != PGCTL_OK)
		return status;
	struct pipeline_bench x = {
		.delay_ms = (unsigned)delay, .rounds = (size_t)rounds, .clients = (size_t)clients};
	const struct bench_job job = {
		.command = "bench pipeline",
		.bindir = json_string_value(json_object_get(args, "bindir")),
		.disk_bytes = DISK_BYTES,
		.fn = bench_pipeline,
		.arg = &x,
	};
	return bench_run(p, &job);
}
