/* SPDX-License-Identifier: PostgreSQL */
/*
 * pgctl bench watch: watchd beside etcd, one client for both.
 *
 * One PostgreSQL with its default durability and one etcd with its, on the same disk. Per operation
 * and round each server gets the same load, one after the other, the other one idle; figures are
 * medians over the rounds. Then what only watchd has: an event's way to another node, WAL per put.
 * At last the put rate while somebody holds a snapshot, beside etcd's.
 *
 * Context: the bench process.
 */
#include "config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/mem.h"
#include "pgctl/bench.h"
#include "pgctl/bench_kv.h"
#include "pgctl/bench_suite.h"

#define SECONDS_DEFAULT 3
#define SECONDS_MAX 600
#define ROUNDS_DEFAULT 5
#define ROUNDS_MAX 101
#define KEYS_DEFAULT 100000
#define KEYS_MAX 20000000
#define HOLD_CLIENTS 100
#define HOLD_DEFAULT_S 60
#define HOLD_MAX_S 3600
#define HOLD_WATCHD_S 4
#define HOLD_ETCD_S 2
#define HOLD_TURN_S (HOLD_WATCHD_S + HOLD_ETCD_S)
#define HOLD_TURNS 10 /* that count, the last ones */
/* Rows are kept for a minute; from then on the removal of compacted ones goes on beside the puts.
 */
#define HOLD_BEFORE_S (60 + HOLD_TURNS * HOLD_TURN_S)
#define HOLD_KEEP 1000 /* revisions: history is compacted all the time, or memory fills up */
#define WATCHERS 1000
#define WATCH_PUTS 300
#define MEMORY_WATCHERS 10000
#define EVENT_PUTS 300
#define LARGE_KEYS 1000000
#define LARGE_OLD 900000 /* revisions to compact */
#define LARGE_CLIENTS 10
#define LARGE_AFTER_MS 30000 /* puts while what was compacted is removed */
#define READY_TARGET_S 10
#define LIST_STALL_MS 100 /* a client notices */
#define DISK_BYTES_FIXED (4000ULL << 20)
#define DISK_BYTES_PER_KEY 4000

#define TARGET_WAL_BYTES 650
#define TARGET_HELD 0.9
#define TARGET_BESIDE 2.0
#define TARGET_EVENT_MS 1.0
#define TARGET_EVENT_NODES_MS 5.0

/* Durable, and cleaned up, as a server in production is. */
static const char server_settings[] = "fsync = on\n"
				      "full_page_writes = on\n"
				      "autovacuum = on\n"
				      "autovacuum_naptime = '10s'\n"
				      "checkpoint_timeout = '5min'\n"
				      "max_wal_size = '4GB'\n"
				      "shared_buffers = '256MB'\n";

enum server { WATCHD, ETCD, SERVERS };

/* What --only names. */
enum part { PART_MEMORY, PART_PUT, PART_RANGE, PART_WATCH, PART_EVENT, PART_WAL, PART_HELD, PARTS };

static const char *const part_names[PARTS] = {
	"memory", "put", "range", "watch", "event", "wal", "held"};

struct operation {
	enum part part;
	const char *name;
	enum bench_kv_op op;
	size_t clients;
	double target; /* calls per second, of etcd's */
};

static const struct operation operations[] = {
	{PART_PUT, "put", BENCH_KV_PUT, 1, 1.4},
	{PART_PUT, "put", BENCH_KV_PUT, 100, 1.5},
	{PART_PUT, "put", BENCH_KV_PUT, 1000, 1.5},
	{PART_RANGE, "range-l", BENCH_KV_RANGE_L, 1, 0},
	{PART_RANGE, "range-l", BENCH_KV_RANGE_L, 100, 2.0},
	{PART_RANGE, "range-s", BENCH_KV_RANGE_S, 100, 2.0},
};

struct watch_bench {
	struct bench *b;
	size_t rounds;
	unsigned seconds, hold_s;
	uint64_t keys;
	bool all, parts[PARTS];
	struct bench_suite suite, other;
	struct bench_kv_server servers[SERVERS];
	PGconn *sql;
	json_t *verdicts; /* rows for people */
};

/* The figures of all rounds of one operation. */
struct figures {
	double per_s[SERVERS][ROUNDS_MAX], p50_ms[SERVERS][ROUNDS_MAX], p99_ms[SERVERS][ROUNDS_MAX];
};

/* ---- What came out --------------------------------------------------------------------------- */

static void add_verdict(struct watch_bench *w, const char *op, size_t clients, const char *figure,
	double value, const char *sign, double target)
{
	char wanted[32];
	snprintf(wanted, sizeof(wanted), "%s %.2f", sign, target);
	bool met = sign[0] == '<' ? value <= target : value >= target;
	json_t *row = json_pack("{s:s,s:I,s:s,s:o,s:s,s:s}", "op", op, "clients",
		(json_int_t)clients, "figure", figure, "value", bench_number(value, 3), "target",
		wanted, "verdict", met ? "met" : "missed");
	ASSERT(row != NULL && json_array_append_new(w->verdicts, row) == 0);
}

/* Negative: not measured. */
static void put_row(struct watch_bench *w, const char *op, size_t clients, const char *server,
	const struct bench_kv_result *r)
{
	json_t *row = json_pack("{s:s,s:I,s:s,s:o,s:o,s:o}", "op", op, "clients",
		(json_int_t)clients, "server", server, "per_s", bench_number(r->per_s, 1), "p50_ms",
		bench_number(r->p50_ms, 3), "p99_ms", bench_number(r->p99_ms, 3));
	ASSERT(row != NULL);
	output_row(&w->b->p->out, row);
	json_decref(row);
}

static void keep_figures(
	struct figures *f, enum server i, size_t round, const struct bench_kv_result *r)
{
	f->per_s[i][round] = r->per_s;
	f->p50_ms[i][round] = r->p50_ms;
	f->p99_ms[i][round] = r->p99_ms;
}

static void take_medians(struct figures *f, size_t rounds, struct bench_kv_result median[SERVERS])
{
	for (int i = 0; i < SERVERS; i++)
		median[i] = (struct bench_kv_result){
			.per_s = bench_median(f->per_s[i], rounds),
			.p50_ms = bench_median(f->p50_ms[i], rounds),
			.p99_ms = bench_median(f->p99_ms[i], rounds),
		};
}

static void put_figures(
	struct watch_bench *w, const char *op, size_t clients, double target, struct figures *f)
{
	struct bench_kv_result median[SERVERS];
	take_medians(f, w->rounds, median);
	for (int i = 0; i < SERVERS; i++)
		put_row(w, op, clients, w->servers[i].name, &median[i]);
	if (target == 0)
		return;
	add_verdict(w, op, clients, "per second, of etcd's",
		median[WATCHD].per_s / median[ETCD].per_s, ">=", target);
	if (strcmp(op, "put") == 0)
		add_verdict(w, op, clients, "p99, of etcd's",
			median[WATCHD].p99_ms / median[ETCD].p99_ms, "<=", 1);
}

/* A second table: never with -j, where each row is a server's. */
static int put_verdicts(struct watch_bench *w)
{
	struct output *out = &w->b->p->out, table = *out;
	json_t *row;
	size_t i;
	if (w->b->p->json)
		return PGCTL_OK;
	int err = output_end(&table);
	fputc('\n', table.f);
	output_init(out, table.f, false);
	json_array_foreach(w->verdicts, i, row) output_row(out, row);
	return err == 0 ? PGCTL_OK : PGCTL_FAILED;
}

/* ---- Side by side ---------------------------------------------------------------------------- */

/* One round of one server. op NULL: watchers. */
static int measure(struct watch_bench *w, const struct operation *op, enum server i,
	struct bench_kv_result *ret)
{
	if (op == NULL)
		return bench_kv_watch(w->b, &w->servers[i], WATCHERS, WATCH_PUTS, ret);
	return bench_kv_run(
		w->b, &w->servers[i], op->op, op->clients, w->keys, w->seconds * 1000, ret);
}

static int run_side_by_side(struct watch_bench *w, const struct operation *op, const char *name,
	size_t clients, double target)
{
	struct figures *f = xcalloc(1, sizeof(*f));
	int status = PGCTL_OK;
	for (size_t n = 0; n < w->rounds * SERVERS && status == PGCTL_OK; n++) {
		size_t round = n / SERVERS;
		enum server i = (enum server)((n + round) % SERVERS); /* each is first at times */
		struct bench_kv_result r;
		status = measure(w, op, i, &r);
		if (status != PGCTL_OK)
			break;
		keep_figures(f, i, round, &r);
		bench_progress(w->b,
			"%s, %zu clients, round %zu of %zu, %s: %.0f/s, p50 %.3f ms, p99 %.3f ms",
			name, clients, round + 1, w->rounds, w->servers[i].name, r.per_s, r.p50_ms,
			r.p99_ms);
	}
	if (status == PGCTL_OK)
		put_figures(w, name, clients, target, f);
	free(f);
	return status;
}

static int run_operations(struct watch_bench *w)
{
	int status = PGCTL_OK;
	for (size_t i = 0; i < ARRAY_LEN(operations) && status == PGCTL_OK; i++)
		if (w->parts[operations[i].part])
			status = run_side_by_side(w, &operations[i], operations[i].name,
				operations[i].clients, operations[i].target);
	return status;
}

static int run_watchers(struct watch_bench *w)
{
	return run_side_by_side(w, NULL, "watch", WATCHERS, 1.0);
}

/* ---- Memory ---------------------------------------------------------------------------------- */

static void put_bytes(struct watch_bench *w, const char *op, const double bytes[SERVERS])
{
	for (int i = 0; i < SERVERS; i++) {
		json_t *row = json_pack("{s:s,s:n,s:s,s:n,s:n,s:n,s:o}", "op", op, "clients",
			"server", w->servers[i].name, "per_s", "p50_ms", "p99_ms", "bytes",
			bench_number(bytes[i], 1));
		ASSERT(row != NULL);
		output_row(&w->b->p->out, row);
		json_decref(row);
	}
	add_verdict(w, op, 0, "bytes each, of etcd's", bytes[WATCHD] / bytes[ETCD], "<=", 1);
}

static int run_fill(struct watch_bench *w)
{
	double bytes[SERVERS];
	for (int i = 0; i < SERVERS; i++) {
		double before = bench_kv_rss(&w->servers[i]);
		bench_progress(w->b, "%s: putting %llu keys", w->servers[i].name,
			(unsigned long long)w->keys);
		int status = bench_kv_fill(w->b, &w->servers[i], w->keys);
		if (status != PGCTL_OK)
			return status;
		bytes[i] = (bench_kv_rss(&w->servers[i]) - before) / (double)w->keys;
	}
	if (w->parts[PART_MEMORY])
		put_bytes(w, "memory-per-key", bytes);
	return PGCTL_OK;
}

static int run_watcher_memory(struct watch_bench *w)
{
	double bytes[SERVERS];
	for (int i = 0; i < SERVERS; i++) {
		int status =
			bench_kv_watcher_bytes(w->b, &w->servers[i], MEMORY_WATCHERS, &bytes[i]);
		if (status != PGCTL_OK)
			return status;
	}
	put_bytes(w, "memory-per-watcher", bytes);
	return PGCTL_OK;
}

/* ---- From put to event ----------------------------------------------------------------------- */

static int run_event(struct watch_bench *w, const char *op, const struct bench_kv_server *from,
	const struct bench_kv_server *at, double target_ms)
{
	struct bench_kv_result r;
	int status = bench_kv_put_to_event(w->b, from, at, EVENT_PUTS, &r);
	if (status != PGCTL_OK)
		return status;
	bench_progress(
		w->b, "%s, %s: p50 %.3f ms, p99 %.3f ms", op, from->name, r.p50_ms, r.p99_ms);
	put_row(w, op, 1, from->name, &r);
	if (target_ms > 0)
		add_verdict(w, op, 1, "ms, p50", r.p50_ms, "<=", target_ms);
	return PGCTL_OK;
}

static int run_events(struct watch_bench *w)
{
	int status = run_event(
		w, "put-to-event", &w->servers[WATCHD], &w->servers[WATCHD], TARGET_EVENT_MS);
	if (status == PGCTL_OK)
		status = run_event(w, "put-to-event", &w->servers[ETCD], &w->servers[ETCD], 0);
	if (status == PGCTL_OK) {
		bench_progress(w->b, "starting a second node on the same database");
		status = bench_suite_start_watch(w->b, "second", &w->other);
	}
	const struct bench_kv_server other = {
		.name = "watchd", .port = w->other.watch_port, .pid = w->other.watchd};
	if (status == PGCTL_OK)
		status = run_event(w, "put-to-event-nodes", &w->servers[WATCHD], &other,
			TARGET_EVENT_NODES_MS);
	bench_suite_stop(&w->other);
	return status;
}

/* ---- What it costs PostgreSQL ---------------------------------------------------------------- */

/* The fill's keys again: as many puts as that was. The checkpoint is not the puts', but its page
 * images are what follows one. */
static int run_wal(struct watch_bench *w)
{
	uint64_t before = 0, after = 0;
	int status = bench_sql(w->b, w->sql, "CHECKPOINT");
	if (status == PGCTL_OK)
		status = bench_sql_lsn(w->b, w->sql, "insert", &before);
	if (status == PGCTL_OK)
		status = bench_kv_fill(w->b, &w->servers[WATCHD], w->keys);
	if (status == PGCTL_OK)
		status = bench_sql_lsn(w->b, w->sql, "insert", &after);
	if (status != PGCTL_OK)
		return status;
	double bytes = (double)(after - before) / (double)w->keys;
	json_t *row = json_pack("{s:s,s:i,s:s,s:n,s:n,s:n,s:o}", "op", "wal-per-put", "clients",
		100, "server", "watchd", "per_s", "p50_ms", "p99_ms", "bytes",
		bench_number(bytes, 1));
	ASSERT(row != NULL);
	output_row(&w->b->p->out, row);
	json_decref(row);
	add_verdict(w, "wal-per-put", 100, "bytes", bytes, "<=", TARGET_WAL_BYTES);
	return PGCTL_OK;
}

/* ---- Beside a held snapshot ------------------------------------------------------------------ */

/* The medians of the last turns, of the servers and of their ratios. */
struct held_figures {
	struct bench_kv_result server[SERVERS];
	double of_etcds;
};

_Static_assert(HOLD_TURNS <= ROUNDS_MAX, "struct figures holds the turns");

/* Compacts what is there, then puts for so long. */
static int compact_and_put(
	struct watch_bench *w, enum server i, unsigned seconds, struct bench_kv_result *ret)
{
	const struct bench_kv_server *s = &w->servers[i];
	int status = bench_kv_compact(w->b, s, HOLD_KEEP);
	if (status == PGCTL_OK)
		status = bench_kv_run(
			w->b, s, BENCH_KV_PUT, HOLD_CLIENTS, w->keys, seconds * 1000, ret);
	return status;
}

static int run_turn(struct watch_bench *w, struct bench_kv_result ret[SERVERS])
{
	int status = compact_and_put(w, WATCHD, HOLD_WATCHD_S, &ret[WATCHD]);
	if (status == PGCTL_OK)
		status = compact_and_put(w, ETCD, HOLD_ETCD_S, &ret[ETCD]);
	return status;
}

/* Puts of both servers by turns, the ratio taken in each turn: a machine that gets slower for a
 * minute does so for both. Medians, for a turn by itself may have a vacuum beside it or not. */
static int put_by_turns(struct watch_bench *w, unsigned seconds, struct held_figures *ret)
{
	struct figures *f = xcalloc(1, sizeof(*f));
	double of_etcds[HOLD_TURNS];
	size_t n = 0;
	int status = PGCTL_OK;
	for (; n * HOLD_TURN_S < seconds; n++) {
		struct bench_kv_result r[SERVERS];
		status = run_turn(w, r);
		if (status != PGCTL_OK)
			break;
		for (int i = 0; i < SERVERS; i++)
			keep_figures(f, (enum server)i, n % HOLD_TURNS, &r[i]);
		of_etcds[n % HOLD_TURNS] = r[WATCHD].per_s / r[ETCD].per_s;
		bench_progress(w->b, "put, %d clients, turn %zu: watchd %.0f/s, etcd %.0f/s",
			HOLD_CLIENTS, n + 1, r[WATCHD].per_s, r[ETCD].per_s);
	}
	if (n > HOLD_TURNS)
		n = HOLD_TURNS;
	if (status == PGCTL_OK) {
		take_medians(f, n, ret->server);
		ret->of_etcds = bench_median(of_etcds, n);
	}
	free(f);
	return status;
}

static int run_held(struct watch_bench *w)
{
	struct held_figures before, held;
	PGconn *holder = NULL;
	/* No more than a turn: that is a look at the command, not a measurement. */
	int status = put_by_turns(w, w->hold_s <= HOLD_TURN_S ? w->hold_s : HOLD_BEFORE_S, &before);
	if (status == PGCTL_OK)
		status = bench_connect(w->b, BENCH_SUITE_DB, &holder);
	if (status == PGCTL_OK)
		status = bench_sql(w->b, holder,
			"BEGIN ISOLATION LEVEL REPEATABLE READ;"
			" SELECT pg_current_xact_id(), count(*) FROM howdah_watch.log WHERE seq < "
			"10");
	bench_progress(w->b, "a session holds a snapshot for %u s", w->hold_s);
	if (status == PGCTL_OK)
		status = put_by_turns(w, w->hold_s, &held);
	PQfinish(holder);
	if (status != PGCTL_OK)
		return status;
	for (int i = 0; i < SERVERS; i++)
		put_row(w, "put-before-snapshot", HOLD_CLIENTS, w->servers[i].name,
			&before.server[i]);
	for (int i = 0; i < SERVERS; i++)
		put_row(w, "put-held-snapshot", HOLD_CLIENTS, w->servers[i].name, &held.server[i]);
	add_verdict(w, "put-held-snapshot", HOLD_CLIENTS, "per second of etcd's, of that before",
		held.of_etcds / before.of_etcds, ">=", TARGET_HELD);
	return PGCTL_OK;
}

/* ---- A million keys -------------------------------------------------------------------------- */

static void put_single(struct watch_bench *w, const char *op, const char *key, double value)
{
	json_t *row = json_pack("{s:s,s:n,s:s,s:n,s:n,s:n,s:o}", "op", op, "clients", "server",
		"watchd", "per_s", "p50_ms", "p99_ms", key, bench_number(value, 3));
	ASSERT(row != NULL);
	output_row(&w->b->p->out, row);
	json_decref(row);
}

/* From its end to READY, all keys loaded. */
static int run_ready(struct watch_bench *w)
{
	uint64_t began = bench_now_us();
	int status = bench_suite_restart_watch(&w->suite);
	double seconds = (double)(bench_now_us() - began) / 1e6;
	if (status != PGCTL_OK)
		return status;
	w->servers[WATCHD].pid = w->suite.watchd;
	bench_progress(w->b, "watchd restarted: ready after %.1f s", seconds);
	put_single(w, "ready-million", "seconds", seconds);
	add_verdict(w, "ready-million", 0, "s", seconds, "<=", READY_TARGET_S);
	return PGCTL_OK;
}

/* The same clients before and beside a large call. */
static int run_beside(struct watch_bench *w, const char *name, enum bench_kv_op op, bool compact,
	unsigned ms, struct bench_kv_result *ret_during)
{
	const struct bench_kv_server *s = &w->servers[WATCHD];
	struct bench_kv_beside call = {.compact = compact};
	struct bench_kv_result before, during;
	int status =
		bench_kv_run(w->b, s, op, LARGE_CLIENTS, LARGE_KEYS, w->seconds * 1000, &before);
	if (status == PGCTL_OK)
		status = bench_kv_run_beside(
			w->b, s, op, LARGE_CLIENTS, LARGE_KEYS, ms, &call, &during);
	if (status != PGCTL_OK)
		return status;
	bench_progress(w->b,
		"%s: %.3f s, %llu bytes; beside it p50 %.3f ms, p99 %.3f ms, longest %.3f ms, "
		"before %.3f, %.3f and %.3f",
		name, (double)call.us / 1e6, (unsigned long long)call.bytes, during.p50_ms,
		during.p99_ms, during.max_ms, before.p50_ms, before.p99_ms, before.max_ms);
	put_row(w, name, LARGE_CLIENTS, "watchd", &during);
	put_single(w, name, "seconds", (double)call.us / 1e6);
	add_verdict(w, name, LARGE_CLIENTS, "p99 beside it, of that before",
		during.p99_ms / before.p99_ms, "<=", TARGET_BESIDE);
	*ret_during = during;
	return PGCTL_OK;
}

static int run_large(struct watch_bench *w)
{
	const struct bench_kv_server *s = &w->servers[WATCHD];
	struct bench_kv_result during;
	bench_progress(w->b, "watchd: putting a million keys");
	int status = bench_kv_fill(w->b, s, LARGE_KEYS);
	if (status == PGCTL_OK)
		status = bench_kv_compact(w->b, s, 0);
	if (status == PGCTL_OK)
		status = run_ready(w);
	if (status == PGCTL_OK)
		status = run_beside(w, "list-million", BENCH_KV_RANGE_L, false, 1, &during);
	if (status == PGCTL_OK)
		add_verdict(w, "list-million", LARGE_CLIENTS, "ms, the longest call beside it",
			during.max_ms, "<=", LIST_STALL_MS);
	bench_progress(w->b, "watchd: putting %d of them again", LARGE_OLD);
	if (status == PGCTL_OK)
		status = bench_kv_fill(w->b, s, LARGE_OLD);
	if (status == PGCTL_OK)
		status = run_beside(
			w, "compact-900000", BENCH_KV_PUT, true, LARGE_AFTER_MS, &during);
	return status;
}

/* ---- All of it ------------------------------------------------------------------------------- */

static int start_servers(struct watch_bench *w)
{
	PGconn *pg = NULL;
	bench_progress(
		w->b, "a server of %s and an etcd, both durable, in %s", w->b->bindir, w->b->dir);
	int status = bench_server_start(w->b, server_settings);
	if (status == PGCTL_OK)
		status = bench_connect(w->b, "postgres", &pg);
	if (status == PGCTL_OK)
		status = bench_sql(w->b, pg, "CREATE DATABASE " BENCH_SUITE_DB);
	PQfinish(pg);
	if (status == PGCTL_OK)
		status = bench_suite_start_watch(w->b, BENCH_NODE, &w->suite);
	if (status == PGCTL_OK)
		status = bench_connect(w->b, BENCH_SUITE_DB, &w->sql);
	w->servers[WATCHD] = (struct bench_kv_server){
		.name = "watchd", .port = w->suite.watch_port, .pid = w->suite.watchd};
	return status == PGCTL_OK ? bench_etcd_start(w->b, &w->servers[ETCD]) : status;
}

static int bench_watch(struct bench *b, void *arg)
{
	struct watch_bench *w = arg;
	w->b = b;
	int status = start_servers(w);
	/* First of all: later it would take memory that is free again. */
	if (status == PGCTL_OK && w->parts[PART_MEMORY])
		status = run_watcher_memory(w);
	if (status == PGCTL_OK)
		status = run_fill(w);
	if (status == PGCTL_OK)
		status = run_operations(w);
	if (status == PGCTL_OK && w->parts[PART_WATCH])
		status = run_watchers(w);
	if (status == PGCTL_OK && w->parts[PART_EVENT])
		status = run_events(w);
	if (status == PGCTL_OK && w->parts[PART_WAL])
		status = run_wal(w);
	if (status == PGCTL_OK && w->parts[PART_HELD])
		status = run_held(w);
	if (status == PGCTL_OK && w->all)
		status = run_large(w);
	PQfinish(w->sql);
	if (status == PGCTL_OK)
		bench_suite_stop(&w->suite);
	return status == PGCTL_OK ? put_verdicts(w) : status;
}

int cmd_bench_watch(struct pgctl *p, json_t *args)
{
	json_int_t seconds = SECONDS_DEFAULT, rounds = ROUNDS_DEFAULT, keys = KEYS_DEFAULT,
		   hold = HOLD_DEFAULT_S;
	int status = bench_take_number(p, args, "seconds", SECONDS_MAX, &seconds);
	if (status == PGCTL_OK)
		status = bench_take_number(p, args, "rounds", ROUNDS_MAX, &rounds);
	if (status == PGCTL_OK)
		status = bench_take_number(p, args, "keys", KEYS_MAX, &keys);
	if (status == PGCTL_OK)
		status = bench_take_number(p, args, "hold", HOLD_MAX_S, &hold);
	struct watch_bench w = {.all = json_is_true(json_object_get(args, "all"))};
	if (status == PGCTL_OK)
		status = bench_take_words(p, args, "only", part_names, PARTS, w.parts);
	if (status != PGCTL_OK)
		return status;
	w.rounds = (size_t)rounds;
	w.seconds = (unsigned)seconds;
	w.hold_s = (unsigned)hold;
	w.keys = (uint64_t)keys;
	w.verdicts = json_array();
	const struct bench_job job = {
		.command = "bench watch",
		.bindir = json_string_value(json_object_get(args, "bindir")),
		.disk_bytes = DISK_BYTES_FIXED + w.keys * DISK_BYTES_PER_KEY,
		.fn = bench_watch,
		.arg = &w,
	};
	status = bench_run(p, &job);
	json_decref(w.verdicts);
	return status;
}
