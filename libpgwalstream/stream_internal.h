/* SPDX-License-Identifier: PostgreSQL */
/*
 * What the files of the stream share: its structure, and how an error is kept. stream.c owns
 * connecting and the life of it all, command.c the commands and their results, copy.c what happens
 * between START_REPLICATION and its end, frames.c and receive*.c the same on a socket of our own.
 */
#ifndef LIBPGWALSTREAM_STREAM_INTERNAL_H
#define LIBPGWALSTREAM_STREAM_INTERNAL_H

#include <libpq-fe.h>

#include "libpgwalstream/pgwalstream.h"
#include "libpgwalstream/receive.h"

#define PGWSI_FEEDBACK_BYTES 34

enum pgwsi_command {
	PGWSI_CMD_NONE,
	PGWSI_CMD_IDENTIFY,
	PGWSI_CMD_HISTORY,
	PGWSI_CMD_QUERY,
	PGWSI_CMD_CREATE_SLOT,
	PGWSI_CMD_ALTER_SLOT,
	PGWSI_CMD_DROP_SLOT,
	PGWSI_CMD_READ_SLOT,
	PGWSI_CMD_START,
	PGWSI_CMD_END
};

struct pgws_stream {
	PGconn *conn;
	enum pgws_phase phase;
	enum pgwsi_command command;
	PostgresPollingStatusType poll;
	struct pgws_stream_options options; /* strings owned */
	bool unflushed;                     /* libpq holds bytes that the socket did not take */
	bool consumed;                      /* copy.c, invariant 1 */
	bool eof;                           /* the socket is done; libpq may still hold messages */
	bool feedback_waits;
	char feedback[PGWSI_FEEDBACK_BYTES];
	char *copy;          /* the message given out last, libpq's */
	struct pgwsi_rx *rx; /* the socket was taken over: receive.h */
	bool rx_refused;     /* it came out badly: libpq's loop from the next connection on */
	bool broke;          /* FAILED, and STREAMING before that */
	bool skips; /* libpq's loop heard a notice of pgwsi_skips; error and sqlstate say it */
	char *systemid;
	char *dbname;
	char *snapshot_name;
	struct pgws_system system;
	uint64_t consistent_point;
	PGresult *rows; /* of a query, or a timeline's history */
	struct pgws_slot_info slot_info;
	bool has_slot_info;
	char sqlstate[6];
	char error[1024];
};

/* Each keeps the text, makes the phase FAILED and returns err (or what fits the result). */
int pgwsi_fail(struct pgws_stream *s, int err);
int pgwsi_fail_text(struct pgws_stream *s, int err, const char *text);
int pgwsi_fail_result(struct pgws_stream *s, const PGresult *res);
int pgwsi_fail_conn(struct pgws_stream *s);
/* Text as one line. */
void pgwsi_keep_error(struct pgws_stream *s, const char *text);

/*
 * A notice while streaming that changes would be left out from here on: PostgreSQL 18 warns of a
 * publication that is not there, and skips it, where 14 to 17 end the stream (pgoutput.c,
 * LoadPublications). It ends the stream here, too, with the SQLSTATE that those have. Others have
 * its SQLSTATE as well (slot.c warns of a standby that is waited for); routine names it in every
 * language.
 */
bool pgwsi_skips(const struct pgws_stream *s, const char *sqlstate, const char *routine);
#define PGWSI_UNDEFINED_OBJECT "42704"

/* libpq's buffers: what the socket takes; what it has. */
int pgwsi_send_out(struct pgws_stream *s);
void pgwsi_consume(struct pgws_stream *s);

/* command_text.c: all zero is the empty text; a failure (no memory) stays in it. */
struct pgwsi_text {
	char *bytes;
	size_t len, size;
	bool failed;
};
void pgwsi_put(struct pgwsi_text *t, const char *text);
void pgwsi_put_identifier(struct pgwsi_text *t, const char *name, size_t len);
void pgwsi_put_literal(struct pgwsi_text *t, const char *text);
/* "a,b" as the option publication_names wants it. */
void pgwsi_put_publications(struct pgwsi_text *t, const char *list);
void pgwsi_text_free(struct pgwsi_text *t);

/* command.c */
int pgwsi_work_command(struct pgws_stream *s);
void pgwsi_forget_results(struct pgws_stream *s);
/* Keeps the text and returns err; the phase stays as it is. */
int pgwsi_refuse(struct pgws_stream *s, int err, const char *text);
/* 0, or refused with PGWS_EUNSUPPORTED and a text: "WHAT needs PostgreSQL MAJOR or later, …". */
int pgwsi_need_version(struct pgws_stream *s, const char *what, int major);
/* Sends the text and frees it. */
int pgwsi_send_command(struct pgws_stream *s, enum pgwsi_command command, struct pgwsi_text *t);
/* Why these options make no sense on any server, or NULL. Strings must not be NULL. */
const char *pgwsi_bad_options(const struct pgws_stream_options *o);
/* A value by its column's name (forks of PostgreSQL add columns); NULL if there is none, or not
 * exactly one row. */
const char *pgwsi_value(const PGresult *res, const char *column);
int pgwsi_copy_text(char **ret_copy, const char *text);
/* Where a timeline was left for the next one, from the history file of a later one: 0, or
 * PGWS_EPROTO if it did not lead there. */
int pgwsi_timeline_end(const char *history, size_t len, uint32_t timeline, uint64_t *ret_lsn);

/* slot.c */
int pgwsi_take_created_slot(struct pgws_stream *s, const PGresult *res);
int pgwsi_take_slot_info(struct pgws_stream *s, const PGresult *res);
/* copy.c: how the stream is to be received, before START_REPLICATION is sent: 1: the command goes
 * out through the socket that was taken over, 0: send it through libpq; or an error. */
int pgwsi_copy_start(struct pgws_stream *s, const char *command);
/* The stream begins (COPY_BOTH was answered); what still comes after its end is read away
 * (0: the end is there); everything of it is let go. */
int pgwsi_copy_begin(struct pgws_stream *s);
int pgwsi_copy_drain(struct pgws_stream *s);
void pgwsi_copy_close(struct pgws_stream *s);
bool pgwsi_copy_wants_write(const struct pgws_stream *s);
int pgwsi_parse_event(
	struct pgws_stream *s, const uint8_t *p, size_t len, struct pgws_event *ret_event);
/* frames.c, with rx only: the command goes out; the phase COMMAND; pgws_stream_next. */
int pgwsi_rx_start(struct pgws_stream *s, const char *command);
int pgwsi_rx_work(struct pgws_stream *s);
int pgwsi_rx_next(struct pgws_stream *s, struct pgws_event *ret_event);

#endif
