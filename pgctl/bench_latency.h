/* SPDX-License-Identifier: PostgreSQL */
/*
 * From a commit to who waits for it, on an idle machine: one insert at a time. For walstreamd the
 * one who waits is an MQTT subscriber of the suite's broker, so that the figure holds walsender,
 * walstreamd, ring, brokerd and the subscriber's socket; for the libpq loop it is that loop.
 *
 * Context: the bench process.
 */
#ifndef PGCTL_BENCH_LATENCY_H
#define PGCTL_BENCH_LATENCY_H

#include "pgctl/bench_reader.h"

#define BENCH_LATENCY_TOPIC "bench/latency"
#define BENCH_LATENCY_MAX 1000

struct bench_latency {
	double p50_us, p99_us;
};

/* Its table, in this database. */
int bench_latency_create_table(struct bench *b, PGconn *pg);
/* n inserts, at most BENCH_LATENCY_MAX. Not for BENCH_RECVLOGICAL, which does not say when it has
 * something. */
int bench_latency_measure(struct bench_reader *r, size_t n, struct bench_latency *ret_latency);

#endif
