/* SPDX-License-Identifier: PostgreSQL */
/*
 * From a commit to who waits for it, on an idle machine: one insert at a time. For the libpq loop
 * that is the loop itself, for walstreamd the consumer of its ring: brokerd, which notes it
 * (ring_reader.h). Behind brokerd there is an MQTT subscriber, whose figures hold brokerd's work
 * and a socket, too. All are of the same inserts.
 *
 * Context: the bench process.
 */
#ifndef PGCTL_BENCH_LATENCY_H
#define PGCTL_BENCH_LATENCY_H

#include "pgctl/bench_reader.h"

#define BENCH_LATENCY_TOPIC "bench/latency"

struct bench_latency {
	double p50_us, p99_us;                       /* to the consumer */
	double subscriber_p50_us, subscriber_p99_us; /* -1: there was none */
};

/* Its table, in this database. */
int bench_latency_create_table(struct bench *b, PGconn *pg);
/* Not for BENCH_RECVLOGICAL, which does not say when it has something. */
int bench_latency_measure(struct bench_reader *r, struct bench_latency *ret_latency);

#endif
