/* SPDX-License-Identifier: PostgreSQL */
/*
 * Loading the log: all of it as of one snapshot, in order, by a cursor in chunks of about
 * LOG_LOAD_CHUNK_BYTES, the next chunk asked for before the last is worked through.
 *
 * Context: event thread. One load at a time on a connection that does nothing else meanwhile.
 */
#ifndef WATCHD_LOG_LOAD_H
#define WATCHD_LOG_LOAD_H

#include "common/pg/pgconn.h"
#include "watchd/log_sql.h"

#define LOG_LOAD_CHUNK_BYTES (1024 * 1024)

struct log_load_ops {
	/* A row, in order. Not 0: the load ends with that error. */
	int (*on_row)(const struct store_row *row, int64_t batch, void *arg);
	/* The end of a chunk. */
	void (*on_chunk)(void *arg);
	/* Over, the transaction too; log_load_free may be called. err: 0, on_row's, -ERR_MALFORMED
	 * (a row that is none), -EIO (refused; why has the server's words). Not called if the
	 * connection is lost: its on_down says so. Never from inside log_load_start. */
	void (*on_done)(int err, const char *why, void *arg);
};

struct log_load;

/* The connection is up. */
struct log_load *log_load_start(struct pgconn *c, const struct log_load_ops *ops, void *arg);
/* After on_done, or after the connection has gone (no callback of it is outstanding). Nulls *l. */
void log_load_free(struct log_load **l);

/* Rows that about max_bytes hold, by the size of those of a result: between 16 and 10000. */
int log_rows_for_bytes(const PGresult *res, size_t max_bytes);

#endif
