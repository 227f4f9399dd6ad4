/* SPDX-License-Identifier: PostgreSQL */
/*
 * The suite under measurement: howdahd with walstreamd and brokerd, or walstreamd and watchd, as
 * they are installed beside this pgctl, on the throw-away server, with ports of their own.
 *
 * Context: the bench process.
 */
#ifndef PGCTL_BENCH_SUITE_H
#define PGCTL_BENCH_SUITE_H

#include "pgctl/bench.h"

#define BENCH_NODE "bench"
#define BENCH_SUITE_DB "suite" /* the database that it serves */

struct bench_suite {
	struct bench *b; /* borrowed */
	pid_t pid;       /* howdahd; 0: not running */
	const char *node;
	char *dir; /* owned, until stopped; of its configuration, state and log */
	pid_t walstreamd, brokerd, watchd; /* 0: not of this suite */
	int mqtt_port, watch_port;         /* 0: without */
	uint64_t bound_bytes; /* ring_size and transaction_memory, which are not walstreamd's own */
};

/* Starts it with this connection to its database and waits until it streams; installs the schema if
 * it is not there. s: zeroed, or what was stopped. */
int bench_suite_start(struct bench *b, enum bench_transport transport, struct bench_suite *s);
/* The same with watchd instead of brokerd, over the Unix socket; several nodes may share the
 * database. */
int bench_suite_start_watch(struct bench *b, const char *node, struct bench_suite *s);
/* Ends its watchd and waits until a new one is up. */
int bench_suite_restart_watch(struct bench_suite *s);
void bench_suite_stop(struct bench_suite *s);
/* pgctl of the suite, with these words (NULL at the end). */
int bench_suite_pgctl(struct bench_suite *s, const char *const *words);
/* The ring has shown all up to lsn to its readers, and brokerd has acknowledged what there was. */
bool bench_suite_is_at(struct bench_suite *s, uint64_t lsn);
/* What brokerd notes of the time from a commit until it has the change (ring_reader.h), once it has
 * had a transaction that ends behind lsn. */
int bench_suite_delay(struct bench_suite *s, uint64_t lsn, double *ret_p50_us, double *ret_p99_us);

#endif
