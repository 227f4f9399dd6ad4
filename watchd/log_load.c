/* SPDX-License-Identifier: PostgreSQL */
/*
 * The load of the log.
 *
 * Context: event thread. On the wire, each [ ] one sync:
 *
 *   [BEGIN, DECLARE, FETCH] [FETCH] -> [FETCH] per answer … -> an answer with no row: [COMMIT]
 *
 * At most FETCHES_AHEAD answers are outstanding, so the server works while we do.
 */
#include "config.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "common/base/err.h"
#include "common/base/mem.h"
#include "watchd/log_load.h"

#define MAGIC 0x6c6f6c6f /* lolo */
#define FETCHES_AHEAD 2
#define FIRST_ROWS 256
#define ROWS_MIN 16
#define ROWS_MAX 10000

MEM_TYPE(mem_load, "log load");

struct log_load {
	uint32_t magic;
	struct pgconn *conn;
	struct log_load_ops ops;
	void *arg;
	int n_rows; /* of the next FETCH */
	int err;
	char why[256];
	unsigned n_syncs; /* outstanding */
	bool ending, lost;
};

int log_rows_for_bytes(const PGresult *res, size_t max_bytes)
{
	size_t n = (size_t)PQntuples(res), rows;

	if (n == 0)
		return ROWS_MAX;
	rows = max_bytes / (PQresultMemorySize(res) / n + 1);
	return rows < ROWS_MIN ? ROWS_MIN : rows > ROWS_MAX ? ROWS_MAX : (int)rows;
}

static void fail(struct log_load *l, int err, const char *why)
{
	if (l->err != 0)
		return;
	l->err = err;
	snprintf(l->why, sizeof l->why, "%s", why);
}

static bool good(struct log_load *l, const PGresult *res)
{
	ExecStatusType status = PQresultStatus(res);
	char why[256];

	if (res == NULL) {
		l->lost = true;
		return false;
	}
	if (status != PGRES_TUPLES_OK && status != PGRES_COMMAND_OK &&
		status != PGRES_PIPELINE_SYNC) {
		if (status != PGRES_PIPELINE_ABORTED)
			fail(l, -EIO, pg_result_error(res, why, sizeof why));
		return false;
	}
	return l->err == 0;
}

static void on_step(PGresult *res, void *arg)
{
	struct log_load *l;

	OBJ_CAST(l, arg, MAGIC);
	(void)good(l, res);
}

static void on_rows(PGresult *res, void *arg)
{
	struct log_load *l;
	struct store_row row;
	int64_t batch;
	int n;

	OBJ_CAST(l, arg, MAGIC);
	if (!good(l, res))
		return;
	n = PQntuples(res);
	for (int i = 0; i < n && l->err == 0; i++) {
		int err = log_decode(res, i, &row, &batch) ? l->ops.on_row(&row, batch, l->arg)
							   : -ERR_MALFORMED;

		if (err != 0)
			fail(l, err, "the log has a row that this version does not understand");
	}
	if (n == 0)
		l->ending = true;
	else if (l->err == 0)
		l->n_rows = log_rows_for_bytes(res, LOG_LOAD_CHUNK_BYTES);
	if (l->err == 0)
		l->ops.on_chunk(l->arg);
}

static void go_on(struct log_load *l);

static void on_sync(PGresult *res, void *arg)
{
	struct log_load *l;

	OBJ_CAST(l, arg, MAGIC);
	l->n_syncs--;
	(void)good(l, res);
	go_on(l);
}

static int send_sync(struct log_load *l)
{
	int err = pgconn_sync(l->conn, on_sync, l);

	if (err == 0)
		l->n_syncs++;
	return err;
}

static int send_fetch(struct log_load *l)
{
	char sql[64];
	struct pgconn_query q = {.sql = sql, .result_format = 1};
	int err;

	snprintf(sql, sizeof sql, "FETCH %d FROM log_load", l->n_rows);
	err = pgconn_query(l->conn, &q, on_rows, l);
	return err == 0 ? send_sync(l) : err;
}

static void finish(struct log_load *l)
{
	struct pgconn_query end = {.sql = l->err == 0 ? log_load_end : "ROLLBACK"};
	int err = pgconn_query(l->conn, &end, NULL, NULL);

	if (err == 0)
		err = pgconn_sync(l->conn, NULL, NULL);
	(void)err; /* a connection that breaks now has shown us all there is */
	l->ops.on_done(l->err, l->why, l->arg);
}

static void go_on(struct log_load *l)
{
	int err = 0;

	if (l->lost)
		return;
	if (l->err != 0 || l->ending) {
		if (l->n_syncs == 0)
			finish(l);
		return;
	}
	while (l->n_syncs < FETCHES_AHEAD && err == 0)
		err = send_fetch(l);
	(void)err; /* the connection breaks: its on_down follows */
}

struct log_load *log_load_start(struct pgconn *c, const struct log_load_ops *ops, void *arg)
{
	struct log_load *l = mem_new(&mem_load, sizeof *l);
	struct pgconn_query q = {.sql = log_load_begin};
	int err;

	l->magic = MAGIC;
	l->conn = c;
	l->ops = *ops;
	l->arg = arg;
	l->n_rows = FIRST_ROWS;
	err = pgconn_query(c, &q, on_step, l);
	q.sql = log_load_cursor;
	if (err == 0)
		err = pgconn_query(c, &q, on_step, l);
	if (err == 0)
		err = send_fetch(l);
	(void)err; /* the connection breaks: its on_down follows */
	return l;
}

void log_load_free(struct log_load **lp)
{
	struct log_load *l = *lp;

	*lp = NULL;
	if (l == NULL)
		return;
	OBJ_CHECK(l, MAGIC);
	l->magic = 0;
	mem_free(&mem_load, l);
}
