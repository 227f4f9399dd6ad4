/* SPDX-License-Identifier: PostgreSQL */
/*
 * pgctl bench wal: what following the WAL costs, the running walstreamd with its ring and a
 * consumer beside pg_recvlogical and a plain libpq loop.
 *
 * One server with two databases: the suite's, and that of the two others, so that a load for one
 * means nothing to the other's walsender. Per transport and round each reader gets the same load,
 * one after the other: prepared transactions are written (their decoding counts for the walsender
 * only), the reader settles, all are committed at once, and the time runs until it has the last
 * change.
 *
 * Context: the bench process.
 */
#include "config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/mem.h"
#include "pgctl/bench.h"
#include "pgctl/bench_latency.h"
#include "pgctl/bench_load.h"
#include "pgctl/bench_reader.h"
#include "pgctl/bench_suite.h"

#define EVENTS_DEFAULT 320000
#define EVENTS_MAX 20000000
#define ROUNDS_DEFAULT 5
#define ROUNDS_MAX 101
/* WAL and table of one event of the widest load, all in all, and a server's own. */
#define DISK_BYTES_PER_EVENT 1000
#define DISK_BYTES_FIXED (3000ULL << 20)
#define SERVER_SETTINGS                                                                            \
	"max_prepared_transactions = 4100\nlogical_decoding_work_mem = '1GB'\n"                    \
	"shared_buffers = '128MB'\n"

/* The targets of the project, as parts of what pg_recvlogical needs, by transport. */
static const double cpu_targets[BENCH_TRANSPORTS] = {1.0 / 6, 1.0 / 3, 2.0 / 3};
#define SPEED_TARGET 0.97
#define LATENCY_TARGET_MS 0.5
#define MEMORY_MARGIN_MB 10
/* The large transaction: rows of 2 KB, half as many as a load has events. */
#define LARGE_ROW_BYTES 2000

struct wal_bench {
	struct bench *b;
	uint64_t events;
	size_t rounds;
	bool all;
	bool large_done;
	bool transports[BENCH_TRANSPORTS];
	struct bench_suite suite;
	json_t *verdicts; /* rows for people */
};

/* The figures of all rounds of one scenario over one transport. */
struct figures {
	double events_per_s[BENCH_READERS][ROUNDS_MAX];
	double cpu_us[BENCH_READERS][ROUNDS_MAX];
	double walsender_us[BENCH_READERS][ROUNDS_MAX];
	double rss_mb[BENCH_READERS][ROUNDS_MAX];
};

/* ---- One load -------------------------------------------------------------------------------- */

static int measure_load(
	struct bench_reader *r, struct bench_load *load, struct bench_cost *ret_cost)
{
	struct bench_watch w;
	uint64_t lsn = 0;
	int status = bench_load_fill(load);
	if (status == PGCTL_OK)
		status = bench_reader_settle(r);
	if (status != PGCTL_OK)
		return status;
	bench_watch_open(&w, r);
	status = bench_load_prepare(load);
	if (status == PGCTL_OK)
		status = bench_reader_settle(r);
	if (status != PGCTL_OK)
		return status;
	bench_watch_begin(&w);
	status = bench_load_commit(load, &lsn);
	return status == PGCTL_OK ? bench_watch_end(&w, lsn, load->events, ret_cost) : status;
}

static int measure_reader(struct wal_bench *wb, const struct bench_scenario *scenario,
	enum bench_transport transport, enum bench_reader_kind kind, struct bench_cost *ret_cost)
{
	struct bench_reader r;
	struct bench_load load;
	int status =
		bench_load_open(wb->b, kind == BENCH_WALSTREAMD ? BENCH_SUITE_DB : BENCH_PEER_DB,
			scenario, wb->events, &load);
	if (status == PGCTL_OK)
		status = bench_reader_start(wb->b, kind, transport, &wb->suite, &r);
	if (status == PGCTL_OK)
		status = measure_load(&r, &load, ret_cost);
	if (status == PGCTL_OK)
		status = bench_reader_stop(&r);
	if (status == PGCTL_OK)
		status = bench_load_clear(&load);
	bench_load_close(&load);
	return status;
}

/* ---- What came out --------------------------------------------------------------------------- */

static void add_verdict(struct wal_bench *wb, const char *scenario, enum bench_transport transport,
	const char *figure, double value, const char *sign, double target)
{
	char wanted[32];
	snprintf(wanted, sizeof(wanted), "%s %.3f", sign, target);
	bool met = sign[0] == '<' ? value <= target : value >= target;
	json_t *row = json_pack("{s:s,s:s,s:s,s:o,s:s,s:s}", "scenario", scenario, "transport",
		bench_transport_names[transport], "figure", figure, "value", bench_number(value, 3),
		"target", wanted, "verdict", met ? "met" : "missed");
	ASSERT(row != NULL && json_array_append_new(wb->verdicts, row) == 0);
}

/* latency may be NULL. Negative figures were not measured. */
static void put_row(struct wal_bench *wb, const char *scenario, enum bench_transport transport,
	enum bench_reader_kind kind, const struct bench_cost *c,
	const struct bench_latency *latency)
{
	json_t *row = json_pack("{s:s,s:s,s:s,s:o,s:o,s:o,s:o}", "scenario", scenario, "transport",
		bench_transport_names[transport], "reader", bench_reader_names[kind],
		"events_per_s", bench_number(c->events_per_s, 0), "cpu_us_per_event",
		bench_number(c->cpu_us_per_event, 4), "walsender_cpu_us_per_event",
		bench_number(c->walsender_cpu_us_per_event, 4), "rss_mb",
		bench_number(c->rss_mb, 1));
	ASSERT(row != NULL);
	if (latency != NULL) {
		json_object_set_new(row, "latency_p50_us", bench_number(latency->p50_us, 0));
		json_object_set_new(row, "latency_p99_us", bench_number(latency->p99_us, 0));
		json_object_set_new(
			row, "subscriber_p50_us", bench_number(latency->subscriber_p50_us, 0));
		json_object_set_new(
			row, "subscriber_p99_us", bench_number(latency->subscriber_p99_us, 0));
	}
	output_row(&wb->b->p->out, row);
	json_decref(row);
}

static void put_figures(struct wal_bench *wb, const struct bench_scenario *scenario,
	enum bench_transport transport, struct figures *f)
{
	struct bench_cost median[BENCH_READERS];
	for (int k = 0; k < BENCH_READERS; k++) {
		median[k] = (struct bench_cost){
			.events_per_s = bench_median(f->events_per_s[k], wb->rounds),
			.cpu_us_per_event = bench_median(f->cpu_us[k], wb->rounds),
			.walsender_cpu_us_per_event = bench_median(f->walsender_us[k], wb->rounds),
			.rss_mb = bench_median(f->rss_mb[k], wb->rounds),
		};
		put_row(wb, scenario->name, transport, k, &median[k], NULL);
	}
	double fastest = median[BENCH_RECVLOGICAL].events_per_s;
	if (median[BENCH_LIBPQ].events_per_s > fastest)
		fastest = median[BENCH_LIBPQ].events_per_s;
	add_verdict(wb, scenario->name, transport, "CPU per event, of pg_recvlogical's",
		median[BENCH_WALSTREAMD].cpu_us_per_event /
			median[BENCH_RECVLOGICAL].cpu_us_per_event,
		"<=", cpu_targets[transport]);
	add_verdict(wb, scenario->name, transport, "events per second, of the faster other's",
		median[BENCH_WALSTREAMD].events_per_s / fastest, ">=", SPEED_TARGET);
}

/* A second table: never with -j, where each row is a reader's. */
static int put_verdicts(struct wal_bench *wb)
{
	struct output *out = &wb->b->p->out, table = *out;
	json_t *row;
	size_t i;
	if (wb->b->p->json || json_array_size(wb->verdicts) == 0)
		return PGCTL_OK;
	int err = output_end(&table);
	fputc('\n', table.f);
	output_init(out, table.f, false);
	json_array_foreach(wb->verdicts, i, row) output_row(out, row);
	return err == 0 ? PGCTL_OK : PGCTL_FAILED;
}

/* ---- All of it ------------------------------------------------------------------------------- */

static int run_round(struct wal_bench *wb, const struct bench_scenario *scenario,
	enum bench_transport transport, size_t round, struct figures *f)
{
	int status = PGCTL_OK;
	for (int i = 0; i < BENCH_READERS && status == PGCTL_OK; i++) {
		/* Each is the first one now and then. */
		int k = (int)((size_t)i + round) % BENCH_READERS;
		struct bench_cost c;
		status = measure_reader(wb, scenario, transport, k, &c);
		if (status != PGCTL_OK)
			return status;
		f->events_per_s[k][round] = c.events_per_s;
		f->cpu_us[k][round] = c.cpu_us_per_event;
		f->walsender_us[k][round] = c.walsender_cpu_us_per_event;
		f->rss_mb[k][round] = c.rss_mb;
		bench_progress(wb->b,
			"%s, %s, round %zu of %zu, %s: %.0f events/s, %.3f us of CPU per event,"
			" %.1f sleeps per 1000",
			scenario->name, bench_transport_names[transport], round + 1, wb->rounds,
			bench_reader_names[k], c.events_per_s, c.cpu_us_per_event,
			c.sleeps_per_1000);
	}
	return status;
}

static int run_scenario(
	struct wal_bench *wb, const struct bench_scenario *scenario, enum bench_transport transport)
{
	struct figures *f = xcalloc(1, sizeof(*f));
	int status = PGCTL_OK;
	for (size_t round = 0; round < wb->rounds && status == PGCTL_OK; round++)
		status = run_round(wb, scenario, transport, round, f);
	if (status == PGCTL_OK)
		put_figures(wb, scenario, transport, f);
	free(f);
	return status;
}

/* ---- Latency, and one large transaction -------------------------------------------------------
 */

static int run_latency_of(
	struct wal_bench *wb, enum bench_transport transport, enum bench_reader_kind kind)
{
	const struct bench_cost none = {-1, -1, -1, -1, -1};
	struct bench_latency latency;
	struct bench_reader r;
	int status = bench_reader_start(wb->b, kind, transport, &wb->suite, &r);
	if (status == PGCTL_OK)
		status = bench_latency_measure(&r, &latency);
	if (status == PGCTL_OK)
		status = bench_reader_stop(&r);
	if (status != PGCTL_OK)
		return status;
	bench_progress(wb->b, "idle-latency, %s, %s: p50 %.0f us, p99 %.0f us",
		bench_transport_names[transport], bench_reader_names[kind], latency.p50_us,
		latency.p99_us);
	put_row(wb, "idle-latency", transport, kind, &none, &latency);
	if (kind != BENCH_WALSTREAMD)
		return PGCTL_OK;
	bench_progress(wb->b, "idle-latency, %s, MQTT subscriber: p50 %.0f us, p99 %.0f us",
		bench_transport_names[transport], latency.subscriber_p50_us,
		latency.subscriber_p99_us);
	add_verdict(wb, "idle-latency", transport, "ms from commit to the ring's consumer, p50",
		latency.p50_us / 1000, "<=", LATENCY_TARGET_MS);
	add_verdict(wb, "idle-latency", transport, "ms from commit to MQTT subscriber, p50",
		latency.subscriber_p50_us / 1000, "<=", LATENCY_TARGET_MS);
	return PGCTL_OK;
}

static int run_latency(struct wal_bench *wb, enum bench_transport transport)
{
	int status = run_latency_of(wb, transport, BENCH_WALSTREAMD);
	return status == PGCTL_OK ? run_latency_of(wb, transport, BENCH_LIBPQ) : status;
}

/* The server streams what is larger than this, or keeps it in files. */
static int set_work_mem(struct wal_bench *wb, struct bench_reader *r, const char *value)
{
	int status = bench_sql(
		wb->b, r->sql, "ALTER SYSTEM SET logical_decoding_work_mem = '%s'", value);
	if (status == PGCTL_OK)
		status = bench_sql(wb->b, r->sql, "SELECT pg_reload_conf()");
	return status == PGCTL_OK ? bench_reader_settle(r) : status;
}

static int measure_large(struct wal_bench *wb, struct bench_reader *r, struct bench_cost *ret_cost)
{
	struct bench_watch w;
	uint64_t rows = wb->events / 2 + 1, lsn = 0;
	bench_watch_open(&w, r);
	bench_watch_begin(&w);
	int status = bench_sql(wb->b, r->sql,
		"BEGIN; INSERT INTO narrow_events (payload, created_at)"
		" SELECT left(repeat(md5(i::text), %d), %d), now() FROM generate_series(1, %llu) i",
		LARGE_ROW_BYTES / 32 + 1, LARGE_ROW_BYTES, (unsigned long long)rows);
	/* Before the commit, behind all else. */
	if (status == PGCTL_OK)
		status = bench_sql_lsn(wb->b, r->sql, "insert", &lsn);
	if (status == PGCTL_OK)
		status = bench_sql(wb->b, r->sql, "COMMIT");
	if (status != PGCTL_OK)
		return status;
	status = bench_watch_end(&w, lsn, rows, ret_cost);
	ret_cost->events_per_s = -1; /* it is read while it is written */
	return status;
}

static int run_large(struct wal_bench *wb, enum bench_transport transport)
{
	struct bench_reader r;
	struct bench_cost c;
	double bound_mb = (double)wb->suite.bound_bytes / (1 << 20) + MEMORY_MARGIN_MB;
	int status = bench_reader_start(wb->b, BENCH_WALSTREAMD, transport, &wb->suite, &r);
	if (status == PGCTL_OK)
		status = set_work_mem(wb, &r, "64MB");
	if (status == PGCTL_OK)
		status = measure_large(wb, &r, &c);
	if (status == PGCTL_OK)
		status = set_work_mem(wb, &r, "1GB");
	if (status == PGCTL_OK)
		status = bench_sql(wb->b, r.sql, "TRUNCATE narrow_events; CHECKPOINT");
	if (status == PGCTL_OK)
		status = bench_reader_stop(&r);
	if (status != PGCTL_OK)
		return status;
	bench_progress(wb->b, "large-transaction, %s, %llu MB, walstreamd: %.1f MB of memory",
		bench_transport_names[transport],
		(unsigned long long)(wb->events / 2 * LARGE_ROW_BYTES >> 20), c.rss_mb);
	put_row(wb, "large-transaction", transport, BENCH_WALSTREAMD, &c, NULL);
	add_verdict(wb, "large-transaction", transport,
		"MB of memory, ring and transaction_memory included", c.rss_mb, "<=", bound_mb);
	return PGCTL_OK;
}

/* ---- Everything over one transport ------------------------------------------------------------
 */

static int run_transport(struct wal_bench *wb, enum bench_transport transport)
{
	struct bench_cost warm;
	bench_progress(wb->b, "%s: starting the suite, and one load to warm it up",
		bench_transport_names[transport]);
	int status = bench_suite_start(wb->b, transport, &wb->suite);
	/* A daemon that runs has touched all of its ring. */
	if (status == PGCTL_OK)
		status =
			measure_reader(wb, &bench_scenarios[0], transport, BENCH_WALSTREAMD, &warm);
	for (const struct bench_scenario *s = bench_scenarios; s->name != NULL; s++) {
		if (status == PGCTL_OK && (wb->all || s == bench_scenarios))
			status = run_scenario(wb, s, transport);
	}
	if (status == PGCTL_OK)
		status = run_latency(wb, transport);
	if (status == PGCTL_OK && !wb->large_done)
		status = run_large(wb, transport);
	wb->large_done = true; /* over one transport: memory does not depend on it */
	if (status == PGCTL_OK)
		bench_suite_stop(&wb->suite);
	return status;
}

/* The suite's publication is made by its first start. */
static int make_databases(struct wal_bench *wb)
{
	PGconn *pg = NULL;
	int status = bench_connect(wb->b, "postgres", &pg);
	if (status == PGCTL_OK)
		status = bench_sql(wb->b, pg, "CREATE DATABASE " BENCH_SUITE_DB);
	if (status == PGCTL_OK)
		status = bench_sql(wb->b, pg, "CREATE DATABASE " BENCH_PEER_DB);
	PQfinish(pg);
	pg = NULL;
	if (status == PGCTL_OK)
		status = bench_connect(wb->b, BENCH_PEER_DB, &pg);
	if (status == PGCTL_OK)
		status = bench_load_create_tables(wb->b, pg);
	if (status == PGCTL_OK)
		status = bench_latency_create_table(wb->b, pg);
	if (status == PGCTL_OK)
		status = bench_sql(wb->b, pg,
			"CREATE PUBLICATION " BENCH_PUBLICATION
			" FOR TABLE narrow_events, wide_events,"
			" latency_events");
	PQfinish(pg);
	return status;
}

static int publish_tables(struct wal_bench *wb)
{
	static const char *const map[] = {"mqtt", "map", "add", "latency_events",
		BENCH_LATENCY_TOPIC, "--qos", "0", "--payload", "{id}", NULL};
	PGconn *pg = NULL;
	int status = bench_suite_start(wb->b, BENCH_UNIX, &wb->suite);
	if (status == PGCTL_OK)
		status = bench_connect(wb->b, BENCH_SUITE_DB, &pg);
	if (status == PGCTL_OK)
		status = bench_load_create_tables(wb->b, pg);
	if (status == PGCTL_OK)
		status = bench_latency_create_table(wb->b, pg);
	if (status == PGCTL_OK)
		status = bench_sql(
			wb->b, pg, "ALTER PUBLICATION howdah ADD TABLE narrow_events, wide_events");
	PQfinish(pg);
	if (status == PGCTL_OK)
		status = bench_suite_pgctl(&wb->suite, map);
	if (status == PGCTL_OK)
		bench_suite_stop(&wb->suite);
	return status;
}

static int bench_wal(struct bench *b, void *arg)
{
	struct wal_bench *wb = arg;
	wb->b = b;
	bench_progress(b, "a server of %s, without fsync, in %s", b->bindir, b->dir);
	int status = bench_server_start(b, SERVER_SETTINGS);
	if (status == PGCTL_OK)
		status = make_databases(wb);
	if (status == PGCTL_OK)
		status = publish_tables(wb);
	for (int t = 0; t < BENCH_TRANSPORTS && status == PGCTL_OK; t++) {
		if (wb->transports[t])
			status = run_transport(wb, t);
	}
	return status == PGCTL_OK ? put_verdicts(wb) : status;
}

/* ---- The command ----------------------------------------------------------------------------- */

int cmd_bench_wal(struct pgctl *p, json_t *args)
{
	struct wal_bench wb = {.all = json_is_true(json_object_get(args, "all"))};
	json_int_t events = EVENTS_DEFAULT, rounds = ROUNDS_DEFAULT;
	int status = bench_take_number(p, args, "events", EVENTS_MAX, &events);
	if (status == PGCTL_OK)
		status = bench_take_number(p, args, "rounds", ROUNDS_MAX, &rounds);
	if (status == PGCTL_OK)
		status = bench_take_words(p, args, "transport", bench_transport_names,
			BENCH_TRANSPORTS, wb.transports);
	if (status != PGCTL_OK)
		return status;
	wb.events = (uint64_t)events;
	wb.rounds = (size_t)rounds;
	wb.verdicts = json_array();
	const struct bench_job job = {
		.command = "bench wal",
		.bindir = json_string_value(json_object_get(args, "bindir")),
		.disk_bytes = DISK_BYTES_FIXED + wb.events * DISK_BYTES_PER_EVENT,
		.fn = bench_wal,
		.arg = &wb,
	};
	status = bench_run(p, &job);
	json_decref(wb.verdicts);
	return status;
}
