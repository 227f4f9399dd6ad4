/* SPDX-License-Identifier: PostgreSQL */
/*
 * What an SQLSTATE means to us: the suite's only table of them (libpgwalstream, which stands on
 * nothing of ours, has its own small one).
 *
 * Context: any. A prefix shorter than five characters stands for its class; the longest match wins,
 * so the table may be in any order. What is not here is PG_RETRY: an error that we do not know must
 * neither end a process nor refuse a row that may be good.
 */
#include "config.h"

#include <stdio.h>
#include <string.h>

#include "common/base/mem.h"
#include "common/pg/pgconn.h"

static const struct {
	const char *prefix;
	enum pg_class class;
} states[] = {
	{"00", PG_OK}, {"01", PG_OK}, {"02", PG_OK}, {"08", PG_RETRY}, /* connection */
	{"0A000", PG_CONFIG}, /* not supported by this server */
	{"21", PG_DATA},      /* cardinality */
	{"22", PG_DATA},      /* value */
	{"23", PG_DATA},      /* constraint */
	{"25006", PG_RETRY},  /* read-only: this server is a standby now */
	{"28", PG_CONFIG},    /* authentication */
	{"3D000", PG_CONFIG}, /* no such database */
	{"40001", PG_RETRY},  /* serialization */
	{"40P01", PG_RETRY},  /* deadlock */
	{"42501", PG_CONFIG}, /* privilege */
	{"42704", PG_RESYNC}, /* no such slot */
	{"44000", PG_DATA},   /* view's check option */
	{"53", PG_RETRY},     /* resources */
	{"54000", PG_DATA},   /* row or index entry too large */
	{"55000", PG_RESYNC}, /* slot cannot be used */
	{"55006", PG_RETRY},  /* slot still active */
	{"57P", PG_RETRY},    /* shutdown, crash, starting up */
	{"58P01", PG_RESYNC}, /* WAL segment is gone */
	{"P0", PG_DATA},      /* raised by a trigger of the user's */
};

enum pg_class pg_classify(const char *sqlstate)
{
	enum pg_class best = PG_RETRY;
	size_t best_len = 0;

	if (sqlstate == NULL)
		return PG_RETRY;
	for (size_t i = 0; i < ARRAY_LEN(states); i++) {
		size_t len = strlen(states[i].prefix);

		if (len > best_len && strncmp(sqlstate, states[i].prefix, len) == 0) {
			best = states[i].class;
			best_len = len;
		}
	}
	return best;
}

const char *pg_class_str(enum pg_class c)
{
	static const char *const names[] = {
		[PG_OK] = "ok",
		[PG_RETRY] = "retry",
		[PG_RESYNC] = "resync",
		[PG_CONFIG] = "config",
		[PG_DATA] = "data",
	};

	return (size_t)c < ARRAY_LEN(names) ? names[c] : "?";
}

const char *pg_result_error(const PGresult *res, char *buf, size_t size)
{
	const char *message, *sqlstate, *detail;

	if (res == NULL) {
		snprintf(buf, size, "connection lost");
		return buf;
	}
	message = PQresultErrorField(res, PG_DIAG_MESSAGE_PRIMARY);
	detail = PQresultErrorField(res, PG_DIAG_MESSAGE_DETAIL);
	sqlstate = PQresultErrorField(res, PG_DIAG_SQLSTATE);
	if (message == NULL) /* made by libpq itself */
		message = PQresultErrorMessage(res);
	snprintf(buf, size, "%s%s%s%s%s%s", message, detail != NULL ? ": " : "",
		detail != NULL ? detail : "", sqlstate != NULL ? " (SQLSTATE " : "",
		sqlstate != NULL ? sqlstate : "", sqlstate != NULL ? ")" : "");
	for (char *p = buf; *p != '\0'; p++)
		if ((unsigned char)*p < ' ')
			*p = ' ';
	for (size_t n = strlen(buf); n > 0 && buf[n - 1] == ' '; n--)
		buf[n - 1] = '\0';
	return buf;
}
