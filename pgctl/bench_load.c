/* SPDX-License-Identifier: PostgreSQL */
/*
 * The loads: see bench_load.h.
 *
 * Context: the bench process.
 */
#include "config.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/mem.h"
#include "pgctl/bench_load.h"

#define COMMITS_IN_FLIGHT 64 /* of one pipeline: their answers fit the socket's buffer */

const struct bench_scenario bench_scenarios[] = {
	{"baseline", 1, 8000, 1, 100, false, 1},
	{"batch-100", 1, 100, 1, 100, false, 2},
	{"batch-5000", 1, 5000, 1, 100, false, 1},
	{"4-writers", 4, 8000, 1, 100, false, 1},
	{"wide-20", 1, 500, 20, 50, false, 4},
	{"payload-2k", 1, 500, 1, 2000, false, 4},
	{"mixed", 1, 500, 1, 100, true, 1},
	{"stress-16", 16, 10000, 1, 100, false, 1},
	{NULL, 0, 0, 0, 0, false, 0},
};

static const char *table(const struct bench_scenario *s)
{
	return s->columns > 1 ? "wide_events" : "narrow_events";
}

int bench_load_create_tables(struct bench *b, PGconn *pg)
{
	/* PLAIN: neither compressed nor moved out of the row. */
	int status = bench_sql(b, pg,
		"CREATE TABLE narrow_events (id serial PRIMARY KEY, payload text,"
		" created_at timestamp);"
		"ALTER TABLE narrow_events ALTER payload SET STORAGE PLAIN, REPLICA IDENTITY FULL");
	char columns[20 * 12] = "";
	for (int i = 1; i <= 20; i++) {
		size_t len = strlen(columns);
		snprintf(columns + len, sizeof(columns) - len, ", c%d text", i);
	}
	if (status == PGCTL_OK)
		status = bench_sql(b, pg,
			"CREATE TABLE wide_events (id serial PRIMARY KEY%s);"
			"ALTER TABLE wide_events REPLICA IDENTITY FULL",
			columns);
	return status;
}

int bench_load_open(struct bench *b, const char *dbname, const struct bench_scenario *scenario,
	uint64_t events, struct bench_load *load)
{
	*load = (struct bench_load){.b = b, .scenario = scenario};
	uint64_t n = (events / scenario->share + scenario->batch - 1) / scenario->batch;
	n = n < scenario->writers ? scenario->writers : n;
	load->transactions = n < BENCH_TRANSACTIONS_MAX ? (unsigned)n : BENCH_TRANSACTIONS_MAX;
	load->events = (uint64_t)load->transactions * scenario->batch;
	int status = bench_connect(b, dbname, &load->control);
	for (unsigned i = 0; status == PGCTL_OK && i < scenario->writers; i++)
		status = bench_connect(b, dbname, &load->writers[i]);
	return status;
}

void bench_load_close(struct bench_load *load)
{
	PQfinish(load->control);
	for (unsigned i = 0; i < BENCH_WRITERS_MAX; i++)
		PQfinish(load->writers[i]);
	*load = (struct bench_load){0};
}

/* INSERT of n rows; the caller frees it. */
static char *insert_sql(const struct bench_scenario *s, uint64_t n)
{
	if (s->columns == 1)
		return xasprintf("INSERT INTO narrow_events (payload, created_at)"
				 " SELECT left(repeat(md5(i::text), %u), %u), now()"
				 " FROM generate_series(1, %llu) i",
			s->bytes / 32 + 1, s->bytes, (unsigned long long)n);
	char *values = xstrdup("");
	for (unsigned i = 1; i <= s->columns; i++) {
		char *more = xasprintf("%s, left(repeat(md5((i + %u)::text), %u), %u)", values, i,
			s->bytes / 32 + 1, s->bytes);
		free(values);
		values = more;
	}
	char *sql = xasprintf("INSERT INTO wide_events SELECT"
			      " nextval('wide_events_id_seq')%s FROM generate_series(1, %llu) i",
		values, (unsigned long long)n);
	free(values);
	return sql;
}

int bench_load_fill(struct bench_load *load)
{
	if (!load->scenario->mixed)
		return PGCTL_OK;
	char *sql = insert_sql(load->scenario, load->events / 2);
	int status = bench_sql(load->b, load->control, "%s", sql);
	free(sql);
	return status;
}

/* The k-th transaction, until it is prepared. The rows that were filled in have the numbers from 1
 * on; each transaction has its own of them. */
static char *transaction_sql(const struct bench_scenario *s, unsigned k)
{
	unsigned quarter = s->batch / 4;
	uint64_t first = (uint64_t)k * 2 * quarter + 1;
	char *insert = insert_sql(s, s->mixed ? s->batch - 2 * quarter : s->batch), *change;
	if (s->mixed)
		change = xasprintf("UPDATE narrow_events SET payload = reverse(payload)"
				   " WHERE id BETWEEN %llu AND %llu;"
				   "DELETE FROM narrow_events WHERE id BETWEEN %llu AND %llu;",
			(unsigned long long)first, (unsigned long long)(first + quarter - 1),
			(unsigned long long)(first + quarter),
			(unsigned long long)(first + 2 * quarter - 1));
	else
		change = xstrdup("");
	char *sql = xasprintf("BEGIN;%s;%sPREPARE TRANSACTION 'bench%u'", insert, change, k);
	free(insert);
	free(change);
	return sql;
}

static int send_next(struct bench_load *load, unsigned writer, unsigned k)
{
	char *sql = transaction_sql(load->scenario, k);
	int sent = PQsendQuery(load->writers[writer], sql);
	free(sql);
	return sent == 1 ? PGCTL_OK
			 : bench_sql_failed(load->b, load->writers[writer], "PREPARE TRANSACTION");
}

/* A writer's answers, all of them. */
static int take_answers(struct bench_load *load, unsigned writer)
{
	PGconn *pg = load->writers[writer];
	int status = PGCTL_OK;
	for (PGresult *res; (res = PQgetResult(pg)) != NULL; PQclear(res)) {
		if (status == PGCTL_OK && PQresultStatus(res) != PGRES_COMMAND_OK)
			status = bench_sql_failed(load->b, pg, "PREPARE TRANSACTION");
	}
	return status;
}

int bench_load_prepare(struct bench_load *load)
{
	unsigned writers = load->scenario->writers, next = 0, busy = 0;
	int status = PGCTL_OK;
	struct pollfd fds[BENCH_WRITERS_MAX];
	for (unsigned i = 0; i < writers && status == PGCTL_OK; i++) {
		fds[i] = (struct pollfd){.fd = PQsocket(load->writers[i]), .events = POLLIN};
		status = send_next(load, i, next++);
		busy++;
	}
	while (status == PGCTL_OK && busy > 0) {
		if (poll(fds, writers, -1) < 0 && errno != EINTR)
			return bench_sql_failed(load->b, load->control, "poll");
		for (unsigned i = 0; i < writers && status == PGCTL_OK; i++) {
			if (fds[i].revents == 0)
				continue;
			status = take_answers(load, i);
			if (status == PGCTL_OK && next < load->transactions) {
				status = send_next(load, i, next++);
			} else {
				fds[i].fd = -1;
				busy--;
			}
		}
	}
	return status;
}

/* Results of n statements, each with its sync. */
static bool commits_done(PGconn *pg, unsigned n)
{
	bool ok = true;
	for (unsigned syncs = 0; syncs < n;) {
		PGresult *res = PQgetResult(pg);
		ExecStatusType type = PQresultStatus(res);
		if (res == NULL && PQstatus(pg) == CONNECTION_BAD)
			return false;
		if (type == PGRES_PIPELINE_SYNC)
			syncs++;
		else if (res != NULL && type != PGRES_COMMAND_OK)
			ok = false;
		PQclear(res);
	}
	return ok;
}

/* from .. to - 1, in one pipeline. */
static bool commit_some(PGconn *pg, unsigned from, unsigned to)
{
	if (PQenterPipelineMode(pg) != 1)
		return false;
	bool ok = true;
	for (unsigned k = from; k < to && ok; k++) {
		char sql[64];
		snprintf(sql, sizeof(sql), "COMMIT PREPARED 'bench%u'", k);
		ok = PQsendQueryParams(pg, sql, 0, NULL, NULL, NULL, NULL, 0) == 1 &&
		     PQpipelineSync(pg) == 1;
	}
	ok = ok && commits_done(pg, to - from);
	return PQexitPipelineMode(pg) == 1 && ok;
}

int bench_load_commit(struct bench_load *load, uint64_t *ret_lsn)
{
	unsigned last = load->transactions - 1;
	for (unsigned k = 0; k < last;) {
		unsigned to = last - k < COMMITS_IN_FLIGHT ? last : k + COMMITS_IN_FLIGHT;
		if (!commit_some(load->control, k, to))
			return bench_sql_failed(load->b, load->control, "COMMIT PREPARED");
		k = to;
	}
	int status = bench_sql_lsn(load->b, load->control, "insert", ret_lsn);
	if (status != PGCTL_OK)
		return status;
	return commit_some(load->control, last, last + 1)
		       ? PGCTL_OK
		       : bench_sql_failed(load->b, load->control, "COMMIT PREPARED");
}

int bench_load_clear(struct bench_load *load)
{
	/* The checkpoint makes room for the next load's WAL, and none falls into its measuring. */
	int status = bench_sql(
		load->b, load->control, "TRUNCATE %s RESTART IDENTITY", table(load->scenario));
	return status == PGCTL_OK ? bench_sql(load->b, load->control, "CHECKPOINT") : status;
}
