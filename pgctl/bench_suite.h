/* SPDX-License-Identifier: PostgreSQL */
/*
 * The suite under measurement: howdahd with walstreamd and brokerd as they are installed beside
 * this pgctl, on the throw-away server, with a broker port of its own.
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
	pid_t walstreamd, brokerd;
	int mqtt_port;
	uint64_t bound_bytes; /* ring_size and transaction_memory, which are not walstreamd's own */
};

/* Starts it with this connection to its database and waits until it streams; installs the schema if
 * it is not there. */
int bench_suite_start(struct bench *b, enum bench_transport transport, struct bench_suite *s);
void bench_suite_stop(struct bench_suite *s);
/* pgctl of the suite, with these words (NULL at the end). */
int bench_suite_pgctl(struct bench_suite *s, const char *const *words);
/* The ring has shown all up to lsn to its readers, and brokerd has acknowledged what there was. */
bool bench_suite_is_at(struct bench_suite *s, uint64_t lsn);

#endif
