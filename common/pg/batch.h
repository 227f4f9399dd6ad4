/* SPDX-License-Identifier: PostgreSQL */
/*
 * The batching writer: rows that arrive while a commit is in flight form the next batch; a batch is
 * one pipeline transaction (one statement per kind of row, array parameters, one flush). There is
 * no timer. At most two batches are in flight. A row's completion runs after its commit returned.
 *
 * Every batch carries a token (strictly rising, microseconds since the epoch or one more than the
 * last). After a lost connection the new session first ends the old backend and takes the writer's
 * advisory lock, then looks the tokens in doubt up: what was committed is completed, what was not
 * is sent again under its old token, in order. So a row is in the table once, and completed once.
 *
 *   an error of class PG_DATA: the batch is halved until the guilty rows stand alone and are failed
 *   (under savepoints of one transaction, so that a token commits once; the rows keep token and
 * sub); PG_RETRY: the batch is sent again after a backoff; PG_CONFIG: on_trouble, then as PG_RETRY.
 *
 * Context: event thread. Bounded: rows and bytes waiting have limits; batch_add says -ERR_LIMIT and
 * on_room tells when to go on.
 */
#ifndef COMMON_PG_BATCH_H
#define COMMON_PG_BATCH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/ev.h"
#include "common/pg/pgconn.h"

#define BATCH_COLUMNS_MAX 12
#define BATCH_KINDS_MAX 8

/* One kind of row. The statement's parameters: $1 bigint token, $2 text node, $3 int[] position of
 * the row in its batch (sub), then one array per column, in order. */
struct batch_kind {
	const char *name; /* of the prepared statement */
	const char *sql;
	size_t n_columns;
	Oid types[BATCH_COLUMNS_MAX]; /* element types: INT2 INT4 INT8 TEXT BYTEA BOOL TIMESTAMPTZ
					 JSONB */
	/* Answers whether a batch with token $1 of node $2 is there, with one row or none. All
	 * kinds of a batch commit together, so the first kind present in the batch decides. */
	const char *probe_sql;
};

/* One value; len_bytes -1: NULL. Numbers are given in network byte order, PostgreSQL's binary form.
 */
struct batch_value {
	const void *data;
	int32_t len_bytes;
};

/* 0: committed. Negative: refused for good (class PG_DATA; why is the server's message). Never
 * called from inside batch_add. */
typedef void (*batch_done_fn)(int err, const char *why, void *arg);

struct batch;

struct batch_ops {
	void (*on_room)(void *arg);
	/* Something the operator should read: connection lost, refused, writing again (err 0). */
	void (*on_trouble)(int err, const char *why, void *arg);
};

struct batch_options {
	const char *conninfo;
	const char *application_name;
	const char *node;
	const char *role; /* with node: the advisory lock's key */
	const struct batch_kind *kinds;
	size_t n_kinds;
	size_t max_waiting_rows;  /* 0: 100000 */
	size_t max_waiting_bytes; /* 0: 64 MB */
	size_t max_batch_rows;    /* 0: 10000 */
	size_t max_batch_bytes;   /* 0: 8 MB */
};

struct batch *batch_new(struct ev_loop *loop, const struct batch_options *options,
	const struct batch_ops *ops, void *arg);
/* Rows not yet done are dropped without their completions: drain first. Nulls *b. */
void batch_free(struct batch **b);
/* Copies the values. 0; -ERR_LIMIT: nothing was taken, wait for on_room. */
int batch_add(struct batch *b, size_t kind, const struct batch_value *values, batch_done_fn done,
	void *arg) __attribute__((warn_unused_result));
/* Calls cb once everything added so far is done (at once, deferred, if nothing is waiting). */
void batch_barrier(struct batch *b, void (*cb)(void *arg), void *arg);
bool batch_is_up(const struct batch *b);

struct batch_counts {
	uint64_t rows_committed, batches_committed, rows_refused, batches_retried,
		in_doubt_resolved;
	size_t rows_waiting, bytes_waiting, batches_in_flight;
};
void batch_get_counts(const struct batch *b, struct batch_counts *ret_counts);

#endif
