/* SPDX-License-Identifier: PostgreSQL */
/*
 * The stream: one replication connection over libpq, nonblocking, with slot commands,
 * START_REPLICATION and feedback.
 *
 * Context: one thread per stream; walstreamd's follower drives it from its event loop.
 *
 *   IDLE --connect--> CONNECTING -> READY --command--> COMMAND -> READY
 *                                     |                              ^
 *                                     '--start--> COMMAND -> STREAMING --end--> COMMAND
 *   any --error--> FAILED;  any --close--> IDLE
 */
#include "config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <poll.h>

#include "libpgwalstream/stream_internal.h"

/* What makes every text column come in one form. */
#define SESSION_OPTIONS                                                                            \
	"-c datestyle=ISO -c timezone=UTC -c intervalstyle=postgres -c bytea_output=hex "          \
	"-c extra_float_digits=1 -c client_min_messages=warning" /* pgwsi_skips */

/* ---- Errors ---------------------------------------------------------------------------------- */

/* Joins the lines of a message into one; a verbose message's LOCATION line is left out. */
void pgwsi_keep_error(struct pgws_stream *s, const char *text)
{
	size_t n = 0;
	while (*text != 0 && n + 3 < sizeof(s->error)) {
		size_t line = strcspn(text, "\n");
		const char *start = text;
		text += line + (text[line] != 0);
		while (line > 0 && (*start == ' ' || *start == '\t')) {
			start++;
			line--;
		}
		if (line == 0 || strncmp(start, "LOCATION:", 9) == 0)
			continue;
		if (n > 0) {
			s->error[n++] = ';';
			s->error[n++] = ' ';
		}
		if (line > sizeof(s->error) - 1 - n)
			line = sizeof(s->error) - 1 - n;
		memcpy(s->error + n, start, line);
		n += line;
	}
	s->error[n] = 0;
}

int pgwsi_fail(struct pgws_stream *s, int err)
{
	s->broke = s->phase == PGWS_PHASE_STREAMING;
	s->phase = PGWS_PHASE_FAILED;
	s->command = PGWSI_CMD_NONE;
	return err;
}

int pgwsi_fail_text(struct pgws_stream *s, int err, const char *text)
{
	pgwsi_keep_error(s, text);
	return pgwsi_fail(s, err);
}

/*
 * libpq has no result for a refused connection, but a verbose message carries the SQLSTATE:
 * "…: FATAL:  53300: sorry, too many clients already". Takes it out of the text.
 */
static void take_sqlstate(struct pgws_stream *s)
{
	for (char *p = s->error; (p = strstr(p, ":  ")) != NULL; p++) {
		size_t n = strspn(p + 3, "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ");
		if (n != 5 || p[8] != ':' || p[9] != ' ')
			continue;
		memcpy(s->sqlstate, p + 3, 5);
		s->sqlstate[5] = 0;
		memmove(p + 3, p + 10, strlen(p + 10) + 1);
		return;
	}
}

int pgwsi_fail_result(struct pgws_stream *s, const PGresult *res)
{
	const char *state = PQresultErrorField(res, PG_DIAG_SQLSTATE);
	if (state != NULL && strlen(state) == 5)
		memcpy(s->sqlstate, state, 6);
	pgwsi_keep_error(s, PQresultErrorMessage(res));
	return pgwsi_fail(s, state != NULL ? PGWS_ESERVER : PGWS_ECONN);
}

int pgwsi_fail_conn(struct pgws_stream *s)
{
	if (s->error[0] == 0)
		pgwsi_keep_error(s, PQerrorMessage(s->conn));
	if (s->error[0] == 0)
		pgwsi_keep_error(s, "the server closed the connection");
	return pgwsi_fail(s, PGWS_ECONN);
}

/* ---- Life ------------------------------------------------------------------------------------ */

static const char *text_or_empty(const char *text)
{
	return text != NULL ? text : "";
}

struct pgws_stream *pgws_stream_new(const struct pgws_stream_options *options)
{
	struct pgws_stream *s = calloc(1, sizeof(*s));
	if (s == NULL)
		return NULL;
	memcpy(&s->options, options,
		options->size < sizeof(s->options) ? options->size : sizeof(s->options));
	s->options.conninfo = strdup(text_or_empty(options->conninfo));
	s->options.slot = strdup(text_or_empty(options->slot));
	s->options.publications = strdup(text_or_empty(options->publications));
	if (s->options.conninfo == NULL || s->options.slot == NULL ||
		s->options.publications == NULL)
		pgws_stream_free(&s);
	return s;
}

void pgwsi_forget_results(struct pgws_stream *s)
{
	free(s->systemid);
	free(s->dbname);
	free(s->snapshot_name);
	s->systemid = s->dbname = s->snapshot_name = NULL;
	s->system = (struct pgws_system){.systemid = NULL};
	s->consistent_point = 0;
	PQclear(s->rows);
	s->rows = NULL;
	s->has_slot_info = false;
}

void pgws_stream_close(struct pgws_stream *s)
{
	pgwsi_copy_close(s);
	PQfinish(s->conn);
	s->conn = NULL;
	pgwsi_forget_results(s);
	s->phase = PGWS_PHASE_IDLE;
	s->command = PGWSI_CMD_NONE;
}

void pgws_stream_free(struct pgws_stream **s)
{
	if (*s == NULL)
		return;
	pgws_stream_close(*s);
	free((char *)(*s)->options.conninfo);
	free((char *)(*s)->options.slot);
	free((char *)(*s)->options.publications);
	free(*s);
	*s = NULL;
}

bool pgwsi_skips(const struct pgws_stream *s, const char *sqlstate, const char *routine)
{
	return s->phase == PGWS_PHASE_STREAMING && sqlstate != NULL && routine != NULL &&
	       strcmp(sqlstate, "55000") == 0 && strcmp(routine, "LoadPublications") == 0;
}

/* Other NOTICEs and WARNINGs change nothing for us; libpq would print them. */
static void on_notice(void *arg, const PGresult *res)
{
	struct pgws_stream *s = arg;
	if (!pgwsi_skips(s, PQresultErrorField(res, PG_DIAG_SQLSTATE),
		    PQresultErrorField(res, PG_DIAG_SOURCE_FUNCTION)))
		return;
	memcpy(s->sqlstate, PGWSI_UNDEFINED_OBJECT, sizeof(s->sqlstate));
	pgwsi_keep_error(s, PQresultErrorMessage(res));
	s->skips = true;
}

/* The user's own "options" come first, so that the pinned ones win. NULL: no memory. */
static char *session_options(const char *conninfo)
{
	const char *own = "";
	PQconninfoOption *all = PQconninfoParse(conninfo, NULL);
	for (PQconninfoOption *o = all; o != NULL && o->keyword != NULL; o++) {
		if (strcmp(o->keyword, "options") == 0 && o->val != NULL)
			own = o->val;
	}
	size_t size = strlen(own) + sizeof(SESSION_OPTIONS) + 1;
	char *text = malloc(size);
	if (text != NULL)
		snprintf(text, size, "%s%s%s", own, *own != 0 ? " " : "", SESSION_OPTIONS);
	PQconninfoFree(all);
	return text;
}

int pgws_stream_connect(struct pgws_stream *s)
{
	if (s->phase != PGWS_PHASE_IDLE)
		return PGWS_ESTATE;
	s->error[0] = s->sqlstate[0] = 0;
	const char *bad = pgwsi_bad_options(&s->options);
	if (bad != NULL)
		return pgwsi_refuse(s, PGWS_EINVAL, bad);
	char *options = session_options(s->options.conninfo);
	if (options == NULL)
		return pgwsi_fail_text(s, PGWS_ENOMEM, "out of memory");
	const char *const keywords[] = {
		"dbname", "replication", "client_encoding", "options", NULL};
	const char *const values[] = {s->options.conninfo, "database", "UTF8", options, NULL};
	s->conn = PQconnectStartParams(keywords, values, 1);
	free(options);
	if (s->conn == NULL)
		return pgwsi_fail_text(s, PGWS_ENOMEM, "out of memory");
	if (PQstatus(s->conn) == CONNECTION_BAD)
		return pgwsi_fail_conn(s);
	PQsetNoticeReceiver(s->conn, on_notice, s);
	PQsetErrorVerbosity(s->conn, PQERRORS_VERBOSE);
	s->poll = PGRES_POLLING_WRITING;
	s->phase = PGWS_PHASE_CONNECTING;
	return 0;
}

static int work_connecting(struct pgws_stream *s)
{
	s->poll = PQconnectPoll(s->conn);
	if (s->poll == PGRES_POLLING_FAILED) {
		pgwsi_keep_error(s, PQerrorMessage(s->conn));
		take_sqlstate(s);
		return pgwsi_fail_conn(s);
	}
	if (s->poll != PGRES_POLLING_OK)
		return PGWS_EAGAIN;
	PQsetErrorVerbosity(s->conn, PQERRORS_DEFAULT);
	if (PQsetnonblocking(s->conn, 1) != 0)
		return pgwsi_fail_conn(s);
	if (PQserverVersion(s->conn) < 140000)
		return pgwsi_fail_text(s, PGWS_EUNSUPPORTED, "PostgreSQL 14 or later is needed");
	s->phase = PGWS_PHASE_READY;
	return 0;
}

/* ---- Work ------------------------------------------------------------------------------------ */

int pgwsi_send_out(struct pgws_stream *s)
{
	int rc = PQflush(s->conn);
	s->unflushed = rc == 1;
	/* A failed write is not the end yet: the server's last words may wait to be read. */
	return rc == 1 ? PGWS_EAGAIN : 0;
}

void pgwsi_consume(struct pgws_stream *s)
{
	if (s->eof || PQconsumeInput(s->conn) == 1)
		return;
	s->eof = true;
	pgwsi_keep_error(s, PQerrorMessage(s->conn));
}

int pgws_stream_work(struct pgws_stream *s)
{
	switch (s->phase) {
	case PGWS_PHASE_CONNECTING:
		return work_connecting(s);
	case PGWS_PHASE_COMMAND:
		return pgwsi_work_command(s);
	case PGWS_PHASE_STREAMING:
		return pgws_stream_flush(s);
	case PGWS_PHASE_READY:
		return 0;
	default:
		return PGWS_ESTATE;
	}
}

static int64_t now_ms(void)
{
	struct timespec ts;
	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (int64_t)ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

int pgws_stream_wait(struct pgws_stream *s, int timeout_ms)
{
	int64_t end = now_ms() + timeout_ms;
	int err;
	while ((err = pgws_stream_work(s)) == PGWS_EAGAIN) {
		int64_t left = timeout_ms < 0 ? -1 : end - now_ms();
		if (timeout_ms >= 0 && left <= 0)
			return PGWS_EAGAIN;
		struct pollfd p = {.fd = pgws_stream_fd(s)};
		p.events = (short)((pgws_stream_wants_read(s) ? POLLIN : 0) |
				   (pgws_stream_wants_write(s) ? POLLOUT : 0));
		(void)poll(&p, 1, (int)left); /* interrupted: work finds nothing to do */
	}
	return err;
}

/* ---- Looking ----------------------------------------------------------------------------------
 */

enum pgws_phase pgws_stream_phase(const struct pgws_stream *s)
{
	return s->phase;
}

int pgws_stream_fd(const struct pgws_stream *s)
{
	return s->conn != NULL ? PQsocket(s->conn) : -1;
}

bool pgws_stream_wants_read(const struct pgws_stream *s)
{
	if (s->phase == PGWS_PHASE_CONNECTING)
		return s->poll == PGRES_POLLING_READING;
	if (s->rx != NULL && s->rx->read_wants_write)
		return false;
	return s->phase == PGWS_PHASE_COMMAND || s->phase == PGWS_PHASE_STREAMING;
}

bool pgws_stream_wants_write(const struct pgws_stream *s)
{
	if (s->phase == PGWS_PHASE_CONNECTING)
		return s->poll == PGRES_POLLING_WRITING;
	if (s->rx != NULL)
		return pgwsi_copy_wants_write(s);
	if (s->phase == PGWS_PHASE_COMMAND || s->phase == PGWS_PHASE_STREAMING)
		return s->unflushed || s->feedback_waits;
	return false;
}

int pgws_stream_server_version(const struct pgws_stream *s)
{
	return s->conn != NULL ? PQserverVersion(s->conn) : 0;
}

const char *pgws_stream_error(const struct pgws_stream *s)
{
	return s->error;
}

const char *pgws_stream_sqlstate(const struct pgws_stream *s)
{
	return s->sqlstate;
}

bool pgws_stream_streaming_failed(const struct pgws_stream *s)
{
	return s->phase == PGWS_PHASE_FAILED && s->broke &&
	       s->options.streaming != PGWS_STREAMING_OFF && strncmp(s->sqlstate, "XX", 2) == 0;
}
