/* SPDX-License-Identifier: PostgreSQL */
/*
 * The stream's commands: their text for the server's version, and what is taken from their results.
 *
 * Context: one thread per stream; see stream_internal.h.
 */
#include "config.h"

#include <stdlib.h>
#include <string.h>

#include "libpgwalstream/stream_internal.h"

/* Command text under construction; sticky overflow. */
struct text {
	char bytes[2048];
	size_t len;
	bool failed;
};

static void put_char(struct text *t, char c)
{
	if (t->len + 1 >= sizeof(t->bytes)) {
		t->failed = true;
		return;
	}
	t->bytes[t->len++] = c;
	t->bytes[t->len] = 0;
}

static void put(struct text *t, const char *s)
{
	while (*s != 0)
		put_char(t, *s++);
}

static void put_quoted_identifier(struct text *t, const char *name, size_t len)
{
	put_char(t, '"');
	for (size_t i = 0; i < len; i++) {
		if (name[i] == '"')
			put_char(t, '"');
		put_char(t, name[i]);
	}
	put_char(t, '"');
}

static void put_literal(struct text *t, const char *s)
{
	put_char(t, '\'');
	for (; *s != 0; s++) {
		if (*s == '\'')
			put_char(t, '\'');
		put_char(t, *s);
	}
	put_char(t, '\'');
}

/* "a,b" -> '"a","b"': a list of identifiers inside a literal. */
static void put_publications(struct text *t, const char *list)
{
	struct text names = {.len = 0};
	while (true) {
		size_t len = strcspn(list, ",");
		put_quoted_identifier(&names, list, len);
		list += len;
		if (*list == 0)
			break;
		put_char(&names, *list++);
	}
	put_literal(t, names.bytes);
	t->failed = t->failed || names.failed;
}

static int send_command(struct pgws_stream *s, enum pgwsi_command command, const struct text *t)
{
	if (s->phase != PGWS_PHASE_READY || t->failed)
		return PGWS_ESTATE;
	if (command != PGWSI_CMD_START)
		pgwsi_forget_results(s);
	s->error[0] = s->sqlstate[0] = 0;
	if (PQsendQuery(s->conn, t->bytes) != 1)
		return pgwsi_fail_conn(s);
	s->command = command;
	s->phase = PGWS_PHASE_COMMAND;
	return 0;
}

int pgws_stream_identify(struct pgws_stream *s)
{
	struct text t = {.len = 0};
	put(&t, "IDENTIFY_SYSTEM");
	return send_command(s, PGWSI_CMD_IDENTIFY, &t);
}

int pgws_stream_create_slot(struct pgws_stream *s, const struct pgws_slot_options *options)
{
	bool export_snapshot = options->snapshot == PGWS_SNAPSHOT_EXPORT;
	struct text t = {.len = 0};
	put(&t, "CREATE_REPLICATION_SLOT ");
	put_quoted_identifier(&t, s->options.slot, strlen(s->options.slot));
	put(&t, " LOGICAL pgoutput ");
	if (PQserverVersion(s->conn) >= 150000)
		put(&t, export_snapshot ? "(SNAPSHOT 'export')" : "(SNAPSHOT 'nothing')");
	else
		put(&t, export_snapshot ? "EXPORT_SNAPSHOT" : "NOEXPORT_SNAPSHOT");
	return send_command(s, PGWSI_CMD_CREATE_SLOT, &t);
}

int pgws_stream_drop_slot(struct pgws_stream *s, const char *slot, bool wait)
{
	(void)slot;
	(void)wait;
	struct text t = {.len = 0};
	put(&t, "DROP_REPLICATION_SLOT ");
	put_quoted_identifier(&t, s->options.slot, strlen(s->options.slot));
	return send_command(s, PGWSI_CMD_DROP_SLOT, &t);
}

int pgws_stream_start(struct pgws_stream *s, uint64_t start_lsn)
{
	char lsn[18];
	struct text t = {.len = 0};
	put(&t, "START_REPLICATION SLOT ");
	put_quoted_identifier(&t, s->options.slot, strlen(s->options.slot));
	put(&t, " LOGICAL ");
	put(&t, pgws_lsn_str(start_lsn, lsn));
	put(&t, " (proto_version '1', publication_names ");
	put_publications(&t, s->options.publications);
	if (s->options.messages)
		put(&t, ", messages 'true'");
	put(&t, ")");
	return send_command(s, PGWSI_CMD_START, &t);
}

/* A value by its column's name (forks of PostgreSQL add columns); NULL if there is none. */
static const char *value(const PGresult *res, const char *column)
{
	int n = PQfnumber(res, column);
	if (n < 0 || PQntuples(res) != 1 || PQgetisnull(res, 0, n))
		return NULL;
	return PQgetvalue(res, 0, n);
}

static int copy_text(char **ret_copy, const char *text)
{
	*ret_copy = text != NULL ? strdup(text) : NULL;
	return text != NULL && *ret_copy == NULL ? PGWS_ENOMEM : 0;
}

static int take_system(struct pgws_stream *s, const PGresult *res)
{
	const char *systemid = value(res, "systemid"), *timeline = value(res, "timeline");
	const char *pos = value(res, "xlogpos");
	if (systemid == NULL || timeline == NULL || pos == NULL ||
		pgws_lsn_parse(pos, &s->system.xlogpos) != 0)
		return PGWS_EPROTO;
	s->system.timeline = (uint32_t)strtoul(timeline, NULL, 10);
	if (copy_text(&s->systemid, systemid) != 0 ||
		copy_text(&s->dbname, value(res, "dbname")) != 0)
		return PGWS_ENOMEM;
	s->system.systemid = s->systemid;
	s->system.dbname = s->dbname;
	return 0;
}

static int take_slot(struct pgws_stream *s, const PGresult *res)
{
	const char *point = value(res, "consistent_point");
	if (point == NULL || pgws_lsn_parse(point, &s->consistent_point) != 0)
		return PGWS_EPROTO;
	return copy_text(&s->snapshot_name, value(res, "snapshot_name"));
}

static int take_result(struct pgws_stream *s, const PGresult *res)
{
	switch (PQresultStatus(res)) {
	case PGRES_TUPLES_OK:
		if (s->command == PGWSI_CMD_IDENTIFY)
			return take_system(s, res);
		if (s->command == PGWSI_CMD_CREATE_SLOT)
			return take_slot(s, res);
		return 0; /* the end of a stream may name the next timeline */
	case PGRES_COMMAND_OK:
		return 0;
	default:
		return PGWS_EPROTO;
	}
}

/* One round over the results of a command that are there. */
static int work_results(struct pgws_stream *s)
{
	while (!PQisBusy(s->conn)) {
		PGresult *res = PQgetResult(s->conn);
		if (res == NULL) {
			s->command = PGWSI_CMD_NONE;
			s->phase = PGWS_PHASE_READY;
			return 0;
		}
		ExecStatusType status = PQresultStatus(res);
		if (status == PGRES_COPY_BOTH && s->command == PGWSI_CMD_START) {
			PQclear(res);
			s->command = PGWSI_CMD_NONE;
			return pgwsi_copy_begin(s);
		}
		int err;
		if (status == PGRES_FATAL_ERROR)
			err = pgwsi_fail_result(s, res);
		else if ((err = take_result(s, res)) != 0)
			pgwsi_fail_text(s, err, pgws_strerror(err));
		PQclear(res);
		if (err != 0)
			return err;
	}
	return s->eof ? pgwsi_fail_conn(s) : PGWS_EAGAIN;
}

int pgwsi_work_command(struct pgws_stream *s)
{
	(void)pgwsi_send_out(s); /* what is left shows in unflushed */
	pgwsi_consume(s);
	if (s->command == PGWSI_CMD_END) {
		int err = pgwsi_copy_drain(s);
		if (err != 0)
			return err;
	}
	int err = work_results(s);
	if (err == PGWS_EAGAIN && s->eof)
		return pgwsi_fail_conn(s);
	return err;
}
