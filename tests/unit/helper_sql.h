/* SPDX-License-Identifier: PostgreSQL */
/*
 * SQL for tests with a real server: one connection, statements that must succeed. Include after
 * cmocka.h and libpq-fe.h.
 */
#ifndef TESTS_UNIT_HELPER_SQL_H
#define TESTS_UNIT_HELPER_SQL_H

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

static PGconn *sql_conn;

/* Runs SQL; the first value, or "". Owned by the caller. */
static inline char *sql(const char *text)
{
	PGresult *res = PQexec(sql_conn, text);
	ExecStatusType status = PQresultStatus(res);
	if (status != PGRES_TUPLES_OK && status != PGRES_COMMAND_OK)
		fail_msg("%s: %s", text, PQresultErrorMessage(res));
	char *value = strdup(PQntuples(res) > 0 ? PQgetvalue(res, 0, 0) : "");
	PQclear(res);
	return value;
}

static inline void run(const char *text)
{
	free(sql(text));
}

static inline bool sql_is(const char *text, const char *expect)
{
	char *value = sql(text);
	bool is = strcmp(value, expect) == 0;
	free(value);
	return is;
}

#endif
