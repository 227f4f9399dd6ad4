/* SPDX-License-Identifier: PostgreSQL */
/*
 * The stream's commands but for those on slots (slot.c): what they say to the server's version, and
 * what is taken from their results.
 *
 * Context: one thread per stream; see stream_internal.h.
 *
 * Invariant: what the options or the server's version rule out is refused before a byte is sent;
 * the phase then stays READY and the error's text says why.
 */
#include "config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "libpgwalstream/stream_internal.h"

/* ---- Sending --------------------------------------------------------------------------------- */

int pgwsi_refuse(struct pgws_stream *s, int err, const char *text)
{
	s->sqlstate[0] = 0;
	pgwsi_keep_error(s, text);
	return err;
}

int pgwsi_need_version(struct pgws_stream *s, const char *what, int major)
{
	int version = PQserverVersion(s->conn);
	if (version >= major * 10000)
		return 0;
	char text[160];
	snprintf(text, sizeof(text), "%s needs PostgreSQL %d or later, this server is version %d",
		what, major, version / 10000);
	return pgwsi_refuse(s, PGWS_EUNSUPPORTED, text);
}

int pgwsi_send_command(struct pgws_stream *s, enum pgwsi_command command, struct pgwsi_text *t)
{
	int err = 0;
	if (s->phase != PGWS_PHASE_READY) {
		err = PGWS_ESTATE;
		goto out;
	}
	if (t->failed) {
		err = pgwsi_refuse(s, PGWS_ENOMEM, "out of memory");
		goto out;
	}
	if (command != PGWSI_CMD_START)
		pgwsi_forget_results(s);
	s->error[0] = s->sqlstate[0] = 0;
	if (PQsendQuery(s->conn, t->bytes) != 1) {
		err = pgwsi_fail_conn(s);
		goto out;
	}
	s->command = command;
	s->phase = PGWS_PHASE_COMMAND;
out:
	pgwsi_text_free(t);
	return err;
}

/* ---- Commands ---------------------------------------------------------------------------------
 */

int pgws_stream_identify(struct pgws_stream *s)
{
	struct pgwsi_text t = {.bytes = NULL};
	pgwsi_put(&t, "IDENTIFY_SYSTEM");
	return pgwsi_send_command(s, PGWSI_CMD_IDENTIFY, &t);
}

int pgws_stream_timeline_history(struct pgws_stream *s, uint32_t timeline)
{
	if (s->phase != PGWS_PHASE_READY)
		return PGWS_ESTATE;
	if (timeline <= 1)
		return pgwsi_refuse(s, PGWS_EINVAL, "the first timeline has no history");
	char command[40];
	snprintf(command, sizeof(command), "TIMELINE_HISTORY %u", timeline);
	struct pgwsi_text t = {.bytes = NULL};
	pgwsi_put(&t, command);
	return pgwsi_send_command(s, PGWSI_CMD_HISTORY, &t);
}

int pgws_stream_query(struct pgws_stream *s, const char *sql)
{
	struct pgwsi_text t = {.bytes = NULL};
	pgwsi_put(&t, sql);
	return pgwsi_send_command(s, PGWSI_CMD_QUERY, &t);
}

/* ---- START_REPLICATION ----------------------------------------------------------------------- */

/* The lowest protocol version that has what the other options ask for. */
static int needed_protocol(const struct pgws_stream_options *o)
{
	if (o->streaming == PGWS_STREAMING_PARALLEL)
		return 4;
	if (o->two_phase)
		return 3;
	return o->streaming == PGWS_STREAMING_ON ? 2 : 1;
}

static bool publications_sane(const char *list)
{
	for (; true; list++) {
		size_t len = strcspn(list, ",");
		if (len == 0)
			return false;
		list += len;
		if (*list == 0)
			return true;
	}
}

const char *pgwsi_bad_options(const struct pgws_stream_options *o)
{
	if (o->proto_version < 0 || o->proto_version > 4)
		return "proto_version is 1 to 4, or 0";
	if ((unsigned)o->streaming > PGWS_STREAMING_PARALLEL)
		return "streaming is none of off, on and parallel";
	if ((unsigned)o->origin > PGWS_ORIGIN_NONE)
		return "origin is neither any nor none";
	if ((unsigned)o->receive > PGWS_RECEIVE_SOCKET)
		return "receive is none of auto, libpq and socket";
	if (*o->publications != 0 && !publications_sane(o->publications))
		return "a publication's name is empty";
	if (o->proto_version == 0 || o->proto_version >= needed_protocol(o))
		return NULL;
	if (o->streaming == PGWS_STREAMING_PARALLEL)
		return "streaming 'parallel' needs proto_version 4";
	return o->two_phase ? "two_phase needs proto_version 3 or later"
			    : "streaming needs proto_version 2 or later";
}

/* What this server's pgoutput does not have. */
static int check_server(struct pgws_stream *s)
{
	const struct pgws_stream_options *o = &s->options;
	int err = 0;
	if (o->streaming == PGWS_STREAMING_PARALLEL)
		err = pgwsi_need_version(s, "streaming 'parallel'", 16);
	if (err == 0 && o->origin == PGWS_ORIGIN_NONE)
		err = pgwsi_need_version(s, "origin 'none'", 16);
	if (err == 0 && o->proto_version == 4)
		err = pgwsi_need_version(s, "proto_version 4", 16);
	if (err == 0 && o->two_phase)
		err = pgwsi_need_version(s, "two_phase", 15);
	if (err == 0 && o->proto_version == 3)
		err = pgwsi_need_version(s, "proto_version 3", 15);
	return err;
}

static void put_start(struct pgwsi_text *t, const struct pgws_stream_options *o, uint64_t lsn)
{
	char text[40], number[24];
	int version = o->proto_version != 0 ? o->proto_version : needed_protocol(o);
	pgwsi_put(t, "START_REPLICATION SLOT ");
	pgwsi_put_identifier(t, o->slot, strlen(o->slot));
	pgwsi_put(t, " LOGICAL ");
	pgwsi_put(t, pgws_lsn_str(lsn, number));
	snprintf(text, sizeof(text), " (proto_version '%d'", version);
	pgwsi_put(t, text);
	pgwsi_put(t, ", publication_names ");
	pgwsi_put_publications(t, o->publications);
	if (o->binary)
		pgwsi_put(t, ", binary 'true'");
	if (o->messages)
		pgwsi_put(t, ", messages 'true'");
	if (o->streaming != PGWS_STREAMING_OFF)
		pgwsi_put(t, o->streaming == PGWS_STREAMING_ON ? ", streaming 'on'"
							       : ", streaming 'parallel'");
	if (o->two_phase)
		pgwsi_put(t, ", two_phase 'true'");
	if (o->origin == PGWS_ORIGIN_NONE)
		pgwsi_put(t, ", origin 'none'");
	pgwsi_put(t, ")");
}

/* The command goes out the way in which its stream will come in. Frees the text. */
static int send_start(struct pgws_stream *s, struct pgwsi_text *t)
{
	int taken = t->failed ? 0 : pgwsi_copy_start(s, t->bytes);
	if (taken == 0)
		return pgwsi_send_command(s, PGWSI_CMD_START, t);
	pgwsi_text_free(t);
	return taken == 1 ? 0 : taken;
}

int pgws_stream_start(struct pgws_stream *s, uint64_t start_lsn)
{
	if (s->phase != PGWS_PHASE_READY)
		return PGWS_ESTATE;
	if (*s->options.slot == 0)
		return pgwsi_refuse(s, PGWS_EINVAL, "no slot is given");
	if (strchr(s->options.slot, '"') != NULL)
		return pgwsi_refuse(s, PGWS_EINVAL, "a slot's name has no double quote");
	if (*s->options.publications == 0)
		return pgwsi_refuse(s, PGWS_EINVAL, "no publication is given");
	int err = check_server(s);
	if (err != 0)
		return err;
	struct pgwsi_text t = {.bytes = NULL};
	put_start(&t, &s->options, start_lsn);
	return send_start(s, &t);
}

/* ---- Results --------------------------------------------------------------------------------- */

const char *pgwsi_value(const PGresult *res, const char *column)
{
	int n = PQfnumber(res, column);
	if (n < 0 || PQntuples(res) != 1 || PQgetisnull(res, 0, n))
		return NULL;
	return PQgetvalue(res, 0, n);
}

int pgwsi_copy_text(char **ret_copy, const char *text)
{
	*ret_copy = text != NULL ? strdup(text) : NULL;
	return text != NULL && *ret_copy == NULL ? PGWS_ENOMEM : 0;
}

static int take_system(struct pgws_stream *s, const PGresult *res)
{
	const char *systemid = pgwsi_value(res, "systemid");
	const char *timeline = pgwsi_value(res, "timeline");
	const char *pos = pgwsi_value(res, "xlogpos");
	if (systemid == NULL || timeline == NULL || pos == NULL ||
		pgws_lsn_parse(pos, &s->system.xlogpos) != 0)
		return PGWS_EPROTO;
	s->system.timeline = (uint32_t)strtoul(timeline, NULL, 10);
	if (pgwsi_copy_text(&s->systemid, systemid) != 0 ||
		pgwsi_copy_text(&s->dbname, pgwsi_value(res, "dbname")) != 0)
		return PGWS_ENOMEM;
	s->system.systemid = s->systemid;
	s->system.dbname = s->dbname;
	return 0;
}

/* Rows are kept as they are; of several statements those of the last one with rows. */
static int keep_rows(struct pgws_stream *s, PGresult **res)
{
	PQclear(s->rows);
	s->rows = *res;
	*res = NULL;
	return 0;
}

static int take_tuples(struct pgws_stream *s, PGresult **res)
{
	switch (s->command) {
	case PGWSI_CMD_IDENTIFY:
		return take_system(s, *res);
	case PGWSI_CMD_CREATE_SLOT:
		return pgwsi_take_created_slot(s, *res);
	case PGWSI_CMD_READ_SLOT:
		return pgwsi_take_slot_info(s, *res);
	case PGWSI_CMD_HISTORY:
		if (pgwsi_value(*res, "content") == NULL)
			return PGWS_EPROTO;
		return keep_rows(s, res);
	case PGWSI_CMD_QUERY:
		return keep_rows(s, res);
	default:
		return 0; /* the end of a stream may name the next timeline */
	}
}

static int take_result(struct pgws_stream *s, PGresult **res)
{
	int err;
	switch (PQresultStatus(*res)) {
	case PGRES_FATAL_ERROR:
		return pgwsi_fail_result(s, *res);
	case PGRES_TUPLES_OK:
		err = take_tuples(s, res);
		break;
	case PGRES_COMMAND_OK:
	case PGRES_EMPTY_QUERY:
		return 0;
	default:
		err = PGWS_EPROTO;
	}
	return err == 0 ? 0 : pgwsi_fail_text(s, err, pgws_strerror(err));
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
		if (PQresultStatus(res) == PGRES_COPY_BOTH && s->command == PGWSI_CMD_START) {
			PQclear(res);
			s->command = PGWSI_CMD_NONE;
			return pgwsi_copy_begin(s);
		}
		int err = take_result(s, &res);
		PQclear(res);
		if (err != 0)
			return err;
	}
	return s->eof ? pgwsi_fail_conn(s) : PGWS_EAGAIN;
}

int pgwsi_work_command(struct pgws_stream *s)
{
	if (s->rx != NULL)
		return pgwsi_rx_work(s);
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

const struct pgws_system *pgws_stream_system(const struct pgws_stream *s)
{
	return s->systemid != NULL ? &s->system : NULL;
}

const char *pgws_stream_text(const struct pgws_stream *s, size_t *ret_len)
{
	int column = s->rows != NULL ? PQfnumber(s->rows, "content") : -1;
	if (column < 0 || PQntuples(s->rows) != 1 || PQgetisnull(s->rows, 0, column))
		return NULL;
	*ret_len = (size_t)PQgetlength(s->rows, 0, column);
	return PQgetvalue(s->rows, 0, column);
}

const char *pgws_stream_value(const struct pgws_stream *s, int row, int column)
{
	if (s->rows == NULL || row < 0 || row >= PQntuples(s->rows) || column < 0 ||
		column >= PQnfields(s->rows) || PQgetisnull(s->rows, row, column))
		return NULL;
	return PQgetvalue(s->rows, row, column);
}

/* ---- Timeline history ------------------------------------------------------------------------ */

/*
 * A history file names, line by line, each timeline before its own and where that one was left:
 *     1 <tab> 0/16B3740 <tab> no recovery target specified
 * Lines that are empty or begin with # say nothing. 1: a line; 0: the end; PGWS_EPROTO.
 */
static int history_line(const char **text, const char *end, uint32_t *ret_tli, uint64_t *ret_lsn)
{
	while (*text < end) {
		const char *eol = memchr(*text, '\n', (size_t)(end - *text));
		size_t len = (size_t)((eol != NULL ? eol : end) - *text);
		char line[80], lsn[20];
		unsigned tli;
		snprintf(line, sizeof(line), "%.*s", (int)(len < 79 ? len : 79), *text);
		*text += len + (eol != NULL);
		size_t blank = strspn(line, " \t\r");
		if (line[blank] == 0 || line[blank] == '#')
			continue;
		if (sscanf(line, "%u %19[0-9A-Fa-f/]", &tli, lsn) != 2 || tli == 0 ||
			pgws_lsn_parse(lsn, ret_lsn) != 0)
			return PGWS_EPROTO;
		*ret_tli = tli;
		return 1;
	}
	return 0;
}

int pgws_timeline_begin(const char *history, size_t len, uint32_t timeline, uint64_t *ret_lsn)
{
	const char *end = history + len;
	uint32_t last = 0, tli;
	uint64_t begin = 0, lsn;
	int rc;
	while ((rc = history_line(&history, end, &tli, &lsn)) == 1) {
		if (tli <= last || lsn < begin)
			return PGWS_EPROTO;
		if (tli == timeline)
			break;
		if (tli > timeline)
			return PGWS_EPROTO; /* not one that led here */
		last = tli;
		begin = lsn;
	}
	/* In the file of its own a timeline has no line: it began where the last one was left. */
	if (rc < 0 || (rc == 0 && (last == 0 || timeline <= last)))
		return PGWS_EPROTO;
	*ret_lsn = begin;
	return 0;
}

int pgwsi_timeline_end(const char *history, size_t len, uint32_t timeline, uint64_t *ret_lsn)
{
	const char *end = history + len;
	uint32_t tli;
	uint64_t lsn;
	int rc;
	while ((rc = history_line(&history, end, &tli, &lsn)) == 1) {
		if (tli == timeline) {
			*ret_lsn = lsn;
			return 0;
		}
	}
	return PGWS_EPROTO;
}
