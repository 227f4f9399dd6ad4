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
 *
 * Wire format inside CopyBoth (integers big-endian):
 *     server  'w' start8 end8 time8 bytes      'k' end8 time8 reply1
 *     client  'r' write8 flush8 apply8 time8 reply1
 *
 * Invariants:
 *   1. At most one PQconsumeInput between two PGWS_EAGAIN of pgws_stream_next: one read per
 * readiness gives many messages, which is where the time goes (libpq's buffer grows with the load).
 *   2. Everything the server sent before it closed is given out before the loss is reported, an
 *      ErrorResponse included: its SQLSTATE is what tells a lost slot from a lost network.
 *   3. At most one standby status update waits for the socket; a newer one replaces it.
 */
#include "config.h"

#include <libpq-fe.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "libpgwalstream/pgwalstream.h"

#define FEEDBACK_BYTES 34
#define DATA_HEADER_BYTES 25
#define KEEPALIVE_BYTES 18
#define POSTGRES_EPOCH_S INT64_C(946684800) /* 2000-01-01 in Unix time */

/* What makes every text column come in one form. */
#define SESSION_OPTIONS                                                                            \
	"-c datestyle=ISO -c timezone=UTC -c intervalstyle=postgres -c bytea_output=hex "          \
	"-c extra_float_digits=1"

enum command { CMD_NONE, CMD_IDENTIFY, CMD_CREATE_SLOT, CMD_DROP_SLOT, CMD_START, CMD_END };

struct pgws_stream {
	PGconn *conn;
	enum pgws_phase phase;
	enum command command;
	PostgresPollingStatusType poll;
	char *conninfo;
	char *slot;
	char *publications;
	bool messages;
	bool unflushed; /* libpq holds bytes that the socket did not take */
	bool consumed;  /* invariant 1 */
	bool eof;       /* the socket is done; libpq may still hold messages */
	bool feedback_waits;
	char feedback[FEEDBACK_BYTES];
	char *copy; /* the message given out last */
	char *systemid;
	char *dbname;
	char *snapshot_name;
	struct pgws_system system;
	uint64_t consistent_point;
	char sqlstate[6];
	char error[1024];
};

/* ---- Errors ---------------------------------------------------------------------------------- */

/* Joins the lines of a message into one; a verbose message's LOCATION line is left out. */
static void keep_error(struct pgws_stream *s, const char *text)
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

static int fail(struct pgws_stream *s, int err)
{
	s->phase = PGWS_PHASE_FAILED;
	s->command = CMD_NONE;
	return err;
}

static int fail_text(struct pgws_stream *s, int err, const char *text)
{
	keep_error(s, text);
	return fail(s, err);
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

static int fail_result(struct pgws_stream *s, const PGresult *res)
{
	const char *state = PQresultErrorField(res, PG_DIAG_SQLSTATE);
	if (state != NULL && strlen(state) == 5)
		memcpy(s->sqlstate, state, 6);
	keep_error(s, PQresultErrorMessage(res));
	return fail(s, state != NULL ? PGWS_ESERVER : PGWS_ECONN);
}

static int fail_conn(struct pgws_stream *s)
{
	if (s->error[0] == 0)
		keep_error(s, PQerrorMessage(s->conn));
	if (s->error[0] == 0)
		keep_error(s, "the server closed the connection");
	return fail(s, PGWS_ECONN);
}

/* ---- Life ------------------------------------------------------------------------------------ */

struct pgws_stream *pgws_stream_new(const struct pgws_stream_options *options)
{
	struct pgws_stream *s = calloc(1, sizeof(*s));
	if (s == NULL)
		return NULL;
	s->conninfo = strdup(options->conninfo);
	s->slot = strdup(options->slot);
	s->publications = strdup(options->publications);
	s->messages = options->messages;
	if (s->conninfo == NULL || s->slot == NULL || s->publications == NULL)
		pgws_stream_free(&s);
	return s;
}

static void forget_results(struct pgws_stream *s)
{
	free(s->systemid);
	free(s->dbname);
	free(s->snapshot_name);
	s->systemid = s->dbname = s->snapshot_name = NULL;
	s->system = (struct pgws_system){.systemid = NULL};
	s->consistent_point = 0;
}

void pgws_stream_close(struct pgws_stream *s)
{
	PQfreemem(s->copy);
	s->copy = NULL;
	PQfinish(s->conn);
	s->conn = NULL;
	forget_results(s);
	s->phase = PGWS_PHASE_IDLE;
	s->command = CMD_NONE;
	s->unflushed = s->consumed = s->eof = s->feedback_waits = false;
}

void pgws_stream_free(struct pgws_stream **s)
{
	if (*s == NULL)
		return;
	pgws_stream_close(*s);
	free((*s)->conninfo);
	free((*s)->slot);
	free((*s)->publications);
	free(*s);
	*s = NULL;
}

/* NOTICE and WARNING change nothing for us; libpq would print them. */
static void ignore_notice(void *arg, const PGresult *res)
{
	(void)arg;
	(void)res;
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
	char *options = session_options(s->conninfo);
	if (options == NULL)
		return fail_text(s, PGWS_ENOMEM, "out of memory");
	const char *const keywords[] = {
		"dbname", "replication", "client_encoding", "options", NULL};
	const char *const values[] = {s->conninfo, "database", "UTF8", options, NULL};
	s->conn = PQconnectStartParams(keywords, values, 1);
	free(options);
	if (s->conn == NULL)
		return fail_text(s, PGWS_ENOMEM, "out of memory");
	if (PQstatus(s->conn) == CONNECTION_BAD)
		return fail_conn(s);
	PQsetNoticeReceiver(s->conn, ignore_notice, NULL);
	PQsetErrorVerbosity(s->conn, PQERRORS_VERBOSE);
	s->poll = PGRES_POLLING_WRITING;
	s->phase = PGWS_PHASE_CONNECTING;
	return 0;
}

static int work_connecting(struct pgws_stream *s)
{
	s->poll = PQconnectPoll(s->conn);
	if (s->poll == PGRES_POLLING_FAILED) {
		keep_error(s, PQerrorMessage(s->conn));
		take_sqlstate(s);
		return fail_conn(s);
	}
	if (s->poll != PGRES_POLLING_OK)
		return PGWS_EAGAIN;
	PQsetErrorVerbosity(s->conn, PQERRORS_DEFAULT);
	if (PQsetnonblocking(s->conn, 1) != 0)
		return fail_conn(s);
	if (PQserverVersion(s->conn) < 140000)
		return fail_text(s, PGWS_ESERVER, "PostgreSQL 14 or later is needed");
	s->phase = PGWS_PHASE_READY;
	return 0;
}

/* ---- Commands -------------------------------------------------------------------------------- */

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

static int send_command(struct pgws_stream *s, enum command command, const struct text *t)
{
	if (s->phase != PGWS_PHASE_READY || t->failed)
		return PGWS_ESTATE;
	if (command != CMD_START)
		forget_results(s);
	s->error[0] = s->sqlstate[0] = 0;
	if (PQsendQuery(s->conn, t->bytes) != 1)
		return fail_conn(s);
	s->command = command;
	s->phase = PGWS_PHASE_COMMAND;
	return 0;
}

int pgws_stream_identify(struct pgws_stream *s)
{
	struct text t = {.len = 0};
	put(&t, "IDENTIFY_SYSTEM");
	return send_command(s, CMD_IDENTIFY, &t);
}

int pgws_stream_create_slot(struct pgws_stream *s, bool export_snapshot)
{
	struct text t = {.len = 0};
	put(&t, "CREATE_REPLICATION_SLOT ");
	put_quoted_identifier(&t, s->slot, strlen(s->slot));
	put(&t, " LOGICAL pgoutput ");
	if (PQserverVersion(s->conn) >= 150000)
		put(&t, export_snapshot ? "(SNAPSHOT 'export')" : "(SNAPSHOT 'nothing')");
	else
		put(&t, export_snapshot ? "EXPORT_SNAPSHOT" : "NOEXPORT_SNAPSHOT");
	return send_command(s, CMD_CREATE_SLOT, &t);
}

int pgws_stream_drop_slot(struct pgws_stream *s)
{
	struct text t = {.len = 0};
	put(&t, "DROP_REPLICATION_SLOT ");
	put_quoted_identifier(&t, s->slot, strlen(s->slot));
	return send_command(s, CMD_DROP_SLOT, &t);
}

int pgws_stream_start(struct pgws_stream *s, uint64_t start_lsn)
{
	char lsn[18];
	struct text t = {.len = 0};
	put(&t, "START_REPLICATION SLOT ");
	put_quoted_identifier(&t, s->slot, strlen(s->slot));
	put(&t, " LOGICAL ");
	put(&t, pgws_lsn_str(start_lsn, lsn));
	put(&t, " (proto_version '1', publication_names ");
	put_publications(&t, s->publications);
	if (s->messages)
		put(&t, ", messages 'true'");
	put(&t, ")");
	return send_command(s, CMD_START, &t);
}

int pgws_stream_end(struct pgws_stream *s)
{
	if (s->phase != PGWS_PHASE_STREAMING)
		return PGWS_ESTATE;
	if (PQputCopyEnd(s->conn, NULL) == -1)
		return fail_conn(s);
	s->command = CMD_END;
	s->phase = PGWS_PHASE_COMMAND;
	return 0;
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
		if (s->command == CMD_IDENTIFY)
			return take_system(s, res);
		if (s->command == CMD_CREATE_SLOT)
			return take_slot(s, res);
		return 0; /* the end of a stream may name the next timeline */
	case PGRES_COMMAND_OK:
		return 0;
	default:
		return PGWS_EPROTO;
	}
}

/* Reads away what still comes of a stream that we ended. 0: its end is there. */
static int drain_copy(struct pgws_stream *s)
{
	int n;
	do {
		PQfreemem(s->copy);
		s->copy = NULL;
		n = PQgetCopyData(s->conn, &s->copy, 1);
	} while (n > 0);
	if (n == 0)
		return s->eof ? fail_conn(s) : PGWS_EAGAIN;
	return 0;
}

/* One round over the results of a command that are there. */
static int work_results(struct pgws_stream *s)
{
	while (!PQisBusy(s->conn)) {
		PGresult *res = PQgetResult(s->conn);
		if (res == NULL) {
			s->command = CMD_NONE;
			s->phase = PGWS_PHASE_READY;
			return 0;
		}
		ExecStatusType status = PQresultStatus(res);
		if (status == PGRES_COPY_BOTH && s->command == CMD_START) {
			PQclear(res);
			s->command = CMD_NONE;
			s->consumed = false;
			s->phase = PGWS_PHASE_STREAMING;
			return 0;
		}
		int err;
		if (status == PGRES_FATAL_ERROR)
			err = fail_result(s, res);
		else if ((err = take_result(s, res)) != 0)
			fail_text(s, err, pgws_strerror(err));
		PQclear(res);
		if (err != 0)
			return err;
	}
	return s->eof ? fail_conn(s) : PGWS_EAGAIN;
}

static int send_out(struct pgws_stream *s)
{
	int rc = PQflush(s->conn);
	s->unflushed = rc == 1;
	/* A failed write is not the end yet: the server's last words may wait to be read. */
	return rc == 1 ? PGWS_EAGAIN : 0;
}

static void consume(struct pgws_stream *s)
{
	if (s->eof || PQconsumeInput(s->conn) == 1)
		return;
	s->eof = true;
	keep_error(s, PQerrorMessage(s->conn));
}

static int work_command(struct pgws_stream *s)
{
	(void)send_out(s); /* what is left shows in unflushed */
	consume(s);
	if (s->command == CMD_END) {
		int err = drain_copy(s);
		if (err != 0)
			return err;
	}
	int err = work_results(s);
	if (err == PGWS_EAGAIN && s->eof)
		return fail_conn(s);
	return err;
}

int pgws_stream_work(struct pgws_stream *s)
{
	switch (s->phase) {
	case PGWS_PHASE_CONNECTING:
		return work_connecting(s);
	case PGWS_PHASE_COMMAND:
		return work_command(s);
	case PGWS_PHASE_STREAMING:
		return pgws_stream_flush(s);
	case PGWS_PHASE_READY:
		return 0;
	default:
		return PGWS_ESTATE;
	}
}

/* ---- Streaming --------------------------------------------------------------------------------
 */

static uint64_t be64(const char *p)
{
	uint64_t v = 0;
	for (int i = 0; i < 8; i++)
		v = v << 8 | (uint8_t)p[i];
	return v;
}

static void put_be64(char *p, uint64_t v)
{
	for (int i = 7; i >= 0; i--, v >>= 8)
		p[i] = (char)(uint8_t)v;
}

static int parse_event(struct pgws_stream *s, size_t len, struct pgws_event *ret_event)
{
	const char *p = s->copy;
	if (p[0] == 'w' && len >= DATA_HEADER_BYTES) {
		*ret_event = (struct pgws_event){
			.kind = PGWS_EVENT_DATA,
			.start_lsn = be64(p + 1),
			.end_lsn = be64(p + 9),
			.send_time = (int64_t)be64(p + 17),
			.data = (const uint8_t *)p + DATA_HEADER_BYTES,
			.len = len - DATA_HEADER_BYTES,
		};
		return 0;
	}
	if (p[0] == 'k' && len >= KEEPALIVE_BYTES) {
		*ret_event = (struct pgws_event){
			.kind = PGWS_EVENT_KEEPALIVE,
			.end_lsn = be64(p + 1),
			.send_time = (int64_t)be64(p + 9),
			.reply_requested = p[17] != 0,
		};
		return 0;
	}
	return fail_text(s, PGWS_EPROTO, "the server sent an unknown kind of replication message");
}

/* The copy ended: an error, or the server's own end. */
static int copy_ended(struct pgws_stream *s)
{
	PGresult *res = PQgetResult(s->conn);
	int err;
	if (res == NULL)
		err = fail_conn(s);
	else if (PQresultStatus(res) == PGRES_FATAL_ERROR)
		err = fail_result(s, res);
	else
		err = fail_text(s, PGWS_EEND, "the server ended the stream");
	PQclear(res);
	return err;
}

int pgws_stream_next(struct pgws_stream *s, struct pgws_event *ret_event)
{
	if (s->phase != PGWS_PHASE_STREAMING)
		return PGWS_ESTATE;
	if (s->unflushed || s->feedback_waits)
		(void)pgws_stream_flush(
			s); /* EAGAIN shows in wants_write, a loss in what follows */
	PQfreemem(s->copy);
	s->copy = NULL;
	while (true) {
		int n = PQgetCopyData(s->conn, &s->copy, 1);
		if (n > 0)
			return parse_event(s, (size_t)n, ret_event);
		if (n == -1)
			return copy_ended(s);
		if (n == -2 || s->eof)
			return fail_conn(s);
		if (s->consumed) {
			s->consumed = false;
			return PGWS_EAGAIN;
		}
		consume(s);
		s->consumed = true;
	}
}

static int64_t now_us(void)
{
	struct timespec ts;
	clock_gettime(CLOCK_REALTIME, &ts);
	return ((int64_t)ts.tv_sec - POSTGRES_EPOCH_S) * 1000000 + ts.tv_nsec / 1000;
}

int pgws_stream_feedback(struct pgws_stream *s, uint64_t write_lsn, uint64_t flush_lsn,
	uint64_t apply_lsn, bool request_reply)
{
	if (s->phase != PGWS_PHASE_STREAMING)
		return PGWS_ESTATE;
	s->feedback[0] = 'r';
	put_be64(s->feedback + 1, write_lsn);
	put_be64(s->feedback + 9, flush_lsn);
	put_be64(s->feedback + 17, apply_lsn);
	put_be64(s->feedback + 25, (uint64_t)now_us());
	s->feedback[33] = request_reply;
	s->feedback_waits = true;
	return pgws_stream_flush(s);
}

int pgws_stream_flush(struct pgws_stream *s)
{
	if (s->phase != PGWS_PHASE_STREAMING)
		return PGWS_ESTATE;
	if (s->unflushed && send_out(s) != 0)
		return PGWS_EAGAIN;
	if (!s->feedback_waits)
		return 0;
	int rc = PQputCopyData(s->conn, s->feedback, FEEDBACK_BYTES);
	if (rc == 0) {
		s->unflushed = true;
		return PGWS_EAGAIN;
	}
	s->feedback_waits = false;
	/* A lost connection is reported by pgws_stream_next, after what the server said last. */
	return rc == 1 ? send_out(s) : 0;
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
	return s->phase == PGWS_PHASE_COMMAND || s->phase == PGWS_PHASE_STREAMING;
}

bool pgws_stream_wants_write(const struct pgws_stream *s)
{
	if (s->phase == PGWS_PHASE_CONNECTING)
		return s->poll == PGRES_POLLING_WRITING;
	if (s->phase == PGWS_PHASE_COMMAND || s->phase == PGWS_PHASE_STREAMING)
		return s->unflushed || s->feedback_waits;
	return false;
}

const struct pgws_system *pgws_stream_system(const struct pgws_stream *s)
{
	return s->systemid != NULL ? &s->system : NULL;
}

const char *pgws_stream_snapshot_name(const struct pgws_stream *s)
{
	return s->snapshot_name;
}

uint64_t pgws_stream_consistent_point(const struct pgws_stream *s)
{
	return s->consistent_point;
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
