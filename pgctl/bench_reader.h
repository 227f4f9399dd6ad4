/* SPDX-License-Identifier: PostgreSQL */
/*
 * The three readers of the WAL that are compared, each with a slot and a database of its own as far
 * as the others are concerned: the running walstreamd, pg_recvlogical, a plain loop over libpq.
 *
 * Context: the bench process; the plain loop is a child of it.
 */
#ifndef PGCTL_BENCH_READER_H
#define PGCTL_BENCH_READER_H

#include "pgctl/bench.h"
#include "pgctl/bench_suite.h"

enum bench_reader_kind { BENCH_WALSTREAMD, BENCH_RECVLOGICAL, BENCH_LIBPQ, BENCH_READERS };
extern const char *const bench_reader_names[BENCH_READERS];

#define BENCH_PEER_DB "peers" /* that of the two others */
#define BENCH_PUBLICATION "bench"

struct bench_reader {
	struct bench *b; /* borrowed */
	enum bench_reader_kind kind;
	struct bench_suite *suite; /* borrowed; of walstreamd */
	PGconn *sql;               /* to its database */
	pid_t pid;
	pid_t walsender;
	bool has_slot; /* of ours, to be dropped */
};

/* The reader is there and its stream is open. */
int bench_reader_start(struct bench *b, enum bench_reader_kind kind, enum bench_transport transport,
	struct bench_suite *suite, struct bench_reader *r);
/* Ends a reader of ours and drops its slot; walstreamd stays. */
int bench_reader_stop(struct bench_reader *r);
/* Waits until the reader and its walsender have nothing to do with what was written so far. */
int bench_reader_settle(struct bench_reader *r);

/* What one load cost. */
struct bench_cost {
	double events_per_s;
	double cpu_us_per_event;
	double walsender_cpu_us_per_event;
	double rss_mb;
	double sleeps_per_1000; /* of the reader, by 1000 events */
};

struct bench_watch {
	struct bench_reader *r; /* borrowed */
	uint64_t walsender_ns, reader_ns, sleeps;
	uint64_t events_before, began_us;
};

/* Before the load is written: from here on the walsender's CPU counts. */
void bench_watch_open(struct bench_watch *w, struct bench_reader *r);
/* Before it is committed: from here on the time, and the reader's CPU and memory. */
void bench_watch_begin(struct bench_watch *w);
/* Waits until the reader is done with everything up to lsn. */
int bench_watch_end(
	struct bench_watch *w, uint64_t lsn, uint64_t events, struct bench_cost *ret_cost);

#endif
