/* SPDX-License-Identifier: PostgreSQL */
/*
 * The engine without a network: puts and linearizable reads with a fixed number outstanding.
 *
 *     tests/helpers/with-postgres tests/bench/bench_engine [SECONDS [KEY_BYTES [VALUE_BYTES]]]
 *
 * Prints per number of clients: puts per second, batches, WAL bytes per put, CPU time; reads per
 * second; then puts per second with one client and 100 while another session holds a snapshot,
 * HELD_SECONDS (environment, default 20) long. FSYNC=on in the environment switches fsync on, which
 * with-postgres has off. LOAD_ROWS=n: first a log of n puts on n / 10 keys is loaded, and puts go
 * on while it is compacted.
 */
#include "config.h"

#include <libpq-fe.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/mem.h"
#include "common/pg/schema.h"
#include "watchd/engine.h"

#define CLIENTS_MAX 1000

struct client {
	struct engine_op op;
	struct engine_read read;
	uint64_t begun_us;
};

static struct ev_loop *loop;
static struct engine *engine;
static struct client clients[CLIENTS_MAX];
static size_t n_clients, n_running, key_bytes = 32, value_bytes = 256;
static uint64_t n_done, n_keys, took_us[1 << 20];
static bool over, loaded;
static char value[65536];
static PGconn *pg;

static const char *sql(const char *text)
{
	static char answer[256];
	PGresult *res = PQexec(pg, text);

	if (PQresultStatus(res) != PGRES_TUPLES_OK && PQresultStatus(res) != PGRES_COMMAND_OK) {
		fprintf(stderr, "%s: %s", text, PQerrorMessage(pg));
		exit(1);
	}
	answer[0] = '\0';
	if (PQntuples(res) > 0)
		snprintf(answer, sizeof answer, "%s", PQgetvalue(res, 0, 0));
	PQclear(res);
	return answer;
}

static void note(struct client *c)
{
	took_us[n_done++ % (sizeof took_us / sizeof took_us[0])] = ev_now_us() - c->begun_us;
}

static enum etcd_error eval(struct engine_op *op, struct store *s)
{
	char key[256];
	struct store_kv prev;

	(void)op;
	memset(key, 'k', sizeof key);
	snprintf(
		key, sizeof key, "%016llx", (unsigned long long)(++n_keys * 0x9e3779b97f4a7c15ULL));
	key[16] = 'k';
	(void)store_put(s, (struct store_bytes){key, key_bytes},
		(struct store_bytes){value, value_bytes}, 0, &prev);
	return ETCD_OK;
}

static void stopped(void)
{
	if (--n_running == 0)
		ev_loop_stop(loop);
}

static void on_put(struct engine_op *op, enum etcd_error err)
{
	struct client *c = list_entry(op, struct client, op);

	if (err != ETCD_OK)
		fprintf(stderr, "error %d\n", err);
	note(c);
	if (over) {
		stopped();
		return;
	}
	c->begun_us = ev_now_us();
	engine_submit(engine, op);
}

static void on_read(struct engine_read *r, enum etcd_error err)
{
	struct client *c = list_entry(r, struct client, read);

	if (err != ETCD_OK)
		fprintf(stderr, "error %d\n", err);
	note(c);
	if (over) {
		stopped();
		return;
	}
	c->begun_us = ev_now_us();
	engine_read(engine, r);
}

static void on_end(void *arg)
{
	(void)arg;
	over = true;
}

static int by_size(const void *a, const void *b)
{
	const uint64_t *x = a, *y = b;

	return *x < *y ? -1 : *x > *y;
}

static double percentile_ms(double p)
{
	size_t n = n_done < sizeof took_us / sizeof took_us[0] ? n_done
							       : sizeof took_us / sizeof took_us[0];

	if (n == 0)
		return 0;
	qsort(took_us, n, sizeof took_us[0], by_size);
	return (double)took_us[(size_t)((double)(n - 1) * p)] / 1000;
}

/* CPU time in ns that a process has had; 0 if the server is another machine's or user's. */
static uint64_t cpu_ns(const char *pid)
{
	char path[64];
	unsigned long long ns = 0;
	FILE *in;

	snprintf(path, sizeof path, "/proc/%s/schedstat", pid);
	in = fopen(path, "r");
	if (in != NULL && fscanf(in, "%llu", &ns) != 1)
		ns = 0;
	if (in != NULL)
		fclose(in);
	return ns;
}

struct cpu {
	uint64_t ours, writer, reader;
};

static struct cpu cpu_now(void)
{
	static const char backend[] =
		"SELECT pid FROM pg_stat_activity WHERE application_name = 'howdah watchd %s'";
	char text[160];
	struct cpu c = {.ours = cpu_ns("self")};

	snprintf(text, sizeof text, backend, "writer");
	c.writer = cpu_ns(sql(text));
	snprintf(text, sizeof text, backend, "reader");
	c.reader = cpu_ns(sql(text));
	return c;
}

static void run(const char *what, size_t n, bool reads, unsigned seconds)
{
	struct engine_counts before, after;
	struct ev_timer end;
	char lsn[64], diff[160];
	struct cpu cpu = cpu_now(), cpu_after;
	uint64_t begin = ev_now_us();

	n_clients = n_running = n;
	n_done = 0;
	over = false;
	engine_get_counts(engine, &before);
	snprintf(lsn, sizeof lsn, "%s", sql("SELECT pg_current_wal_insert_lsn()"));
	ev_timer_init(&end, loop, "end", on_end, NULL);
	ev_timer_start(&end, seconds * 1000);
	for (size_t i = 0; i < n; i++) {
		clients[i] = (struct client){
			.op = {.eval = eval, .done = on_put, .cost_bytes = key_bytes + value_bytes},
			.read = {.done = on_read},
			.begun_us = ev_now_us()};
		if (reads)
			engine_read(engine, &clients[i].read);
		else
			engine_submit(engine, &clients[i].op);
	}
	ev_loop_run(loop);
	engine_get_counts(engine, &after);
	snprintf(diff, sizeof diff, "SELECT pg_current_wal_insert_lsn() - '%s'", lsn);
	cpu_after = cpu_now();
	printf("%s %4zu clients: %8.0f/s  p50 %.2f ms  p99 %.2f ms  batches %llu  tip reads %llu"
	       "  WAL bytes each %.0f  CPU us each: ours %.1f, writer's %.1f, reader's %.1f\n",
		what, n, (double)n_done * 1e6 / (double)(ev_now_us() - begin), percentile_ms(0.5),
		percentile_ms(0.99), (unsigned long long)(after.batches - before.batches),
		(unsigned long long)(after.tip_reads - before.tip_reads),
		reads ? 0 : strtod(sql(diff), NULL) / (double)n_done,
		(double)(cpu_after.ours - cpu.ours) / 1e3 / (double)n_done,
		(double)(cpu_after.writer - cpu.writer) / 1e3 / (double)n_done,
		(double)(cpu_after.reader - cpu.reader) / 1e3 / (double)n_done);
	fflush(stdout);
}

static void fill(unsigned long rows)
{
	char text[1024];

	snprintf(text, sizeof text,
		"INSERT INTO howdah_watch.log (seq, rev, batch, at, create_rev, version, arg, sub, "
		"kind, "
		"last, node, key, value) SELECT s, s, 1 + s / 100, now() - interval '1 hour', "
		"CASE WHEN s > 1 THEN 2 + (s - 2) %% (%lu / 10) END, CASE WHEN s > 1 THEN 1 + (s - "
		"2) / "
		"(%lu / 10) END, CASE WHEN s = 1 THEN 4711 END, 0, CASE WHEN s = 1 THEN 9 ELSE 1 "
		"END, "
		"true, 'bench', CASE WHEN s > 1 THEN convert_to(lpad(((s - 2) %% (%lu / "
		"10))::text, %zu, "
		"'k'), 'UTF8') END, CASE WHEN s > 1 THEN convert_to(repeat('v', %zu), 'UTF8') END "
		"FROM generate_series(1, %lu) s",
		rows, rows, rows, key_bytes, value_bytes, rows + 1);
	sql(text);
	sql("VACUUM ANALYZE howdah_watch.log");
}

static enum etcd_error eval_compact(struct engine_op *op, struct store *s)
{
	(void)op;
	store_compact(s, store_head_rev(s));
	return ETCD_OK;
}

static void on_compacted(struct engine_op *op, enum etcd_error err)
{
	(void)op;
	printf("compacted: %d\n", err);
}

/* Puts while all history is trimmed and removed. */
static void run_compaction(unsigned seconds)
{
	static struct engine_op op = {.eval = eval_compact, .done = on_compacted};
	struct engine_counts counts;

	run("before", 100, false, seconds);
	engine_submit(engine, &op);
	for (int i = 0; i < 20; i++) {
		run("compacting", 100, false, seconds);
		engine_get_counts(engine, &counts);
		printf("removed %llu\n", (unsigned long long)counts.removed_rows);
	}
}

static void on_loaded(void *arg)
{
	(void)arg;
	loaded = true;
	ev_loop_stop(loop);
}

static void on_nothing(void *arg)
{
	(void)arg;
}

static void install(void)
{
	char *dir = xasprintf(
		"%s/sql", getenv("HOWDAH_SRCDIR") != NULL ? getenv("HOWDAH_SRCDIR") : ".");
	size_t applied;
	struct buf why;

	buf_init(&why, 0);
	if (schema_upgrade(pg, dir, &applied, &why) != 0) {
		fprintf(stderr, "%s; run it in the source folder or set HOWDAH_SRCDIR\n",
			buf_cstr(&why));
		exit(1);
	}
	buf_free(&why);
	free(dir);
}

int main(int argc, char **argv)
{
	static const struct engine_ops ops = {.on_loaded = on_loaded, .on_visible = on_nothing};
	static const size_t sizes[] = {1, 10, 100, 1000};
	struct engine_options options = {.conninfo = "", .node = "bench"};
	unsigned long rows =
		getenv("LOAD_ROWS") != NULL ? strtoul(getenv("LOAD_ROWS"), NULL, 10) : 0;
	uint64_t begin, ours;
	unsigned seconds = argc > 1 ? (unsigned)atoi(argv[1]) : 3;
	unsigned held =
		getenv("HELD_SECONDS") != NULL ? (unsigned)atoi(getenv("HELD_SECONDS")) : 20;

	key_bytes = argc > 2 ? (size_t)atoi(argv[2]) : key_bytes;
	value_bytes = argc > 3 ? (size_t)atoi(argv[3]) : value_bytes;
	if (key_bytes < 16 || key_bytes > 250 || value_bytes > sizeof value)
		return 2;
	for (size_t i = 0; i < sizeof value; i++)
		value[i] = (char)(random() % 256);
	pg = PQconnectdb("options='-c client_min_messages=error'");
	if (getenv("FSYNC") != NULL) {
		sql("ALTER SYSTEM SET fsync = on");
		sql("ALTER SYSTEM SET max_wal_size = '8GB'");
		sql("SELECT pg_reload_conf()");
	}
	install();
	if (rows > 0)
		fill(rows);
	loop = ev_loop_new();
	begin = ev_now_us();
	ours = cpu_now().ours;
	engine = engine_new(loop, &options, &ops, NULL);
	ev_loop_run(loop);
	printf("loaded in %.0f ms, CPU ms: ours %.0f, reader's %.0f\n",
		(double)(ev_now_us() - begin) / 1e3, (double)(cpu_now().ours - ours) / 1e6,
		(double)cpu_now().reader / 1e6);
	fflush(stdout);
	printf("fsync %s, key %zu, value %zu\n", sql("SHOW fsync"), key_bytes, value_bytes);
	if (rows > 0)
		run_compaction(seconds);
	for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++)
		run("put ", sizes[i], false, seconds);
	for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++)
		run("read", sizes[i], true, seconds);
	sql("BEGIN ISOLATION LEVEL REPEATABLE READ");
	sql("SELECT txid_current()");
	for (unsigned i = 0; i < held; i += 10) {
		run("held", 1, false, 5);
		run("held", 100, false, 5);
	}
	sql("COMMIT");
	engine_free(&engine);
	ev_loop_once(loop, false);
	ev_loop_free(&loop);
	PQfinish(pg);
	return loaded ? 0 : 1;
}
