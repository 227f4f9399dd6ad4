/* SPDX-License-Identifier: PostgreSQL */
/*
 * Rows per second through the batching writer with a fixed number of rows outstanding: each
 * completion adds the next row.
 *
 *     tests/helpers/with-postgres tests/bench/bench_batch [SECONDS [BYTES]]
 *
 * Prints one line per number of rows outstanding. The server's fsync setting decides the meaning of
 * the first one.
 */
#include "config.h"

#include <libpq-fe.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/mem.h"
#include "common/pg/batch.h"

static const struct batch_kind kinds[] = {
	{
		.name = "bench_log",
		.sql = "INSERT INTO bench_log SELECT $1, $2, s, t, p FROM unnest($3::int[], "
		       "$4::text[], "
		       "$5::bytea[]) AS u (s, t, p)",
		.n_columns = 2,
		.types = {25, 17},
		.probe_sql = "SELECT 1 FROM bench_log WHERE token = $1 AND node = $2 LIMIT 1",
	},
};

struct bench {
	struct ev_loop *loop;
	struct batch *b;
	struct ev_timer end;
	char payload[65536];
	int32_t n_payload;
	bool over;
	uint64_t n_done;
	size_t n_left;
};

static void add(struct bench *s);

static void on_done(int err, const char *why, void *arg)
{
	struct bench *s = arg;

	if (err != 0)
		fprintf(stderr, "refused: %s\n", why);
	s->n_done++;
	if (!s->over)
		add(s);
	else if (--s->n_left == 0)
		ev_loop_stop(s->loop);
}

static void add(struct bench *s)
{
	struct batch_value values[] = {{"bench/topic", 11}, {s->payload, s->n_payload}};

	if (batch_add(s->b, 0, values, on_done, s) != 0)
		abort();
}

static void on_end(void *arg)
{
	struct bench *s = arg;

	s->over = true;
}

static void on_trouble(int err, const char *why, void *arg)
{
	(void)arg;
	fprintf(stderr, "%d: %s\n", err, why);
}

static void run(struct bench *s, size_t n_outstanding, uint64_t ms)
{
	static const struct batch_ops ops = {.on_trouble = on_trouble};
	struct batch_options options = {.conninfo = "",
		.application_name = "bench_batch",
		.node = "bench",
		.role = "bench",
		.kinds = kinds,
		.n_kinds = ARRAY_LEN(kinds)};
	struct batch_counts counts;
	uint64_t start_us;
	double seconds;

	s->loop = ev_loop_new();
	s->b = batch_new(s->loop, &options, &ops, s);
	ev_timer_init(&s->end, s->loop, "end", on_end, s);
	while (!batch_is_up(s->b))
		ev_loop_once(s->loop, true);
	s->over = false;
	s->n_done = 0;
	s->n_left = n_outstanding;
	start_us = ev_now_us();
	ev_timer_start(&s->end, ms);
	for (size_t i = 0; i < n_outstanding; i++)
		add(s);
	ev_loop_run(s->loop);
	seconds = (double)(ev_now_us() - start_us) / 1e6;
	batch_get_counts(s->b, &counts);
	printf("%6zu outstanding: %9.0f rows/s %8.0f commits/s %7.1f rows/commit\n", n_outstanding,
		(double)s->n_done / seconds, (double)counts.batches_committed / seconds,
		(double)s->n_done / (double)counts.batches_committed);
	fflush(stdout);
	batch_free(&s->b);
	ev_loop_free(&s->loop);
}

static void create_table(void)
{
	PGconn *pg = PQconnectdb("options='-c client_min_messages=error'");
	PGresult *res =
		PQexec(pg, "DROP TABLE IF EXISTS bench_log; CREATE TABLE bench_log (token bigint, "
			   "node text, sub "
			   "int, topic text, payload bytea, PRIMARY KEY (token, sub)); CHECKPOINT");

	if (PQresultStatus(res) != PGRES_COMMAND_OK) {
		fprintf(stderr, "%s", PQerrorMessage(pg));
		exit(1);
	}
	PQclear(res);
	PQfinish(pg);
}

int main(int argc, char **argv)
{
	static const size_t outstanding[] = {1, 10, 100, 1000, 10000};
	struct bench *s = xcalloc(1, sizeof *s);
	uint64_t seconds = argc > 1 ? strtoull(argv[1], NULL, 10) : 5;

	s->n_payload = argc > 2 ? atoi(argv[2]) : 100;
	if (s->n_payload < 0 || (size_t)s->n_payload > sizeof s->payload)
		s->n_payload = sizeof s->payload;
	memset(s->payload, 'x', sizeof s->payload);
	for (size_t i = 0; i < ARRAY_LEN(outstanding); i++) {
		create_table();
		run(s, outstanding[i], seconds * 1000);
	}
	free(s);
	return 0;
}
