/* SPDX-License-Identifier: PostgreSQL */
/*
 * What the readers of the WAL are given to read: the eight loads of a well-known load test of this
 * kind, each as transactions that are prepared first and then committed in one go, so that nobody
 * generates rows while a reader is measured.
 *
 * Context: the bench process.
 */
#ifndef PGCTL_BENCH_LOAD_H
#define PGCTL_BENCH_LOAD_H

#include "pgctl/bench.h"

struct bench_scenario {
	const char *name;
	unsigned writers; /* sessions that write at once */
	unsigned batch;   /* rows of one transaction */
	unsigned columns; /* of text: 1, or that many in another table */
	unsigned bytes;   /* of each */
	bool mixed;       /* half inserts, a quarter updates, a quarter deletes */
	unsigned share;   /* of the events asked for, it makes one in so many */
};

#define BENCH_WRITERS_MAX 16
#define BENCH_TRANSACTIONS_MAX 4000

/* Ends with name == NULL; the first is the default. */
extern const struct bench_scenario bench_scenarios[];

struct bench_load {
	struct bench *b; /* borrowed */
	const struct bench_scenario *scenario;
	unsigned transactions;
	uint64_t events; /* rows inserted, updated and deleted */
	PGconn *control;
	PGconn *writers[BENCH_WRITERS_MAX];
};

/* Tables of all loads, in this database. */
int bench_load_create_tables(struct bench *b, PGconn *pg);
/* Connects to the database; about so many events, and at least one transaction. */
int bench_load_open(struct bench *b, const char *dbname, const struct bench_scenario *scenario,
	uint64_t events, struct bench_load *load);
void bench_load_close(struct bench_load *load);
/* Rows that the load will change or remove: before a reader looks. */
int bench_load_fill(struct bench_load *load);
int bench_load_prepare(struct bench_load *load);
/* *ret_lsn: a position before the end of the last commit and behind everything else. */
int bench_load_commit(struct bench_load *load, uint64_t *ret_lsn);
/* Empty tables again. */
int bench_load_clear(struct bench_load *load);

#endif
