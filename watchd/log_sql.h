/* SPDX-License-Identifier: PostgreSQL */
/*
 * howdah_watch.log in SQL: the statements, rows to binary arrays, results to rows. Everything that
 * knows the table's columns stands here.
 *
 * Context: event thread.
 */
#ifndef WATCHD_LOG_SQL_H
#define WATCHD_LOG_SQL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/buf.h"
#include "common/pg/pgconn.h"
#include "watchd/store.h"

/* More statements for the setup of a session that writes to or reads the log. NULL-terminated. */
extern const char *const log_session_setup[];

/* The place at which a batch may be put: the newest entry, seq 0 for an empty log. */
struct log_tip {
	int64_t seq, batch;
};

/* ---- writing ---- */

enum log_array {
	LOG_SEQ,
	LOG_SUB,
	LOG_LAST,
	LOG_KIND,
	LOG_REV,
	LOG_CREATE_REV,
	LOG_VERSION,
	LOG_LEASE,
	LOG_ARG,
	LOG_KEY,
	LOG_VALUE,
	LOG_ARRAY_COUNT
};

/* Rows of a batch as arrays. Zero it before the first use. */
struct log_rows {
	struct buf arrays[LOG_ARRAY_COUNT];
	size_t n_nulls[LOG_ARRAY_COUNT];
	size_t n, n_bytes;
	int64_t first_seq, last_seq;
};

void log_rows_add(struct log_rows *r, const struct store_row *row);
/* Empty again; memory of an ordinary batch is kept. */
void log_rows_reset(struct log_rows *r);
void log_rows_free(struct log_rows *r);

/* Prepares the INSERTs on a writer's connection. 0 or pgconn's error; cb with the result. */
int log_prepare_insert(struct pgconn *c, pgconn_result_fn cb, void *arg)
	__attribute__((warn_unused_result));
/*
 * Sends the rows (no sync): they are inserted if tip is the log's tip, and if no other node has
 * taken the turn or waits for it. cb's result: PGRES_COMMAND_OK with the number of rows in
 * PQcmdTuples (0: not inserted), or an error (23505: lost to another node). turn_held: the turn is
 * ours.
 */
int log_send_insert(struct pgconn *c, struct log_rows *r, struct log_tip tip, int64_t batch,
	const char *node, bool turn_held, pgconn_result_fn cb, void *arg)
	__attribute__((warn_unused_result));

/* The transaction of the turn: opens it and waits for the turn (no sync). */
extern const char log_turn_begin[], log_turn_limit[], log_turn_take[];

/* ---- reading ---- */

/* Prepares the tip read. */
int log_prepare_tip(struct pgconn *c, pgconn_result_fn cb, void *arg)
	__attribute__((warn_unused_result));
/* Sends it (no sync): one row of the entry from.seq, without key and value, then at most limit rows
 * above it, in order. */
int log_send_tip(struct pgconn *c, int64_t from_seq, int limit, pgconn_result_fn cb, void *arg)
	__attribute__((warn_unused_result));

/* The cursor of a load, and how it is read in binary form. */
extern const char log_load_begin[], log_load_cursor[], log_load_end[];

/* Row i of a tip read's or a cursor's result; bytes are borrowed from it. False: not a row of the
 * log as we know it. */
bool log_decode(const PGresult *res, int i, struct store_row *ret_row, int64_t *ret_batch);

#endif
