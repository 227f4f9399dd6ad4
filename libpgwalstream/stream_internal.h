/* SPDX-License-Identifier: PostgreSQL */
/*
 * What the files of the stream share: its structure, and how an error is kept. stream.c owns
 * connecting and the life of it all, command.c the commands and their results, copy.c what happens
 * between START_REPLICATION and its end, receive.c how bytes come in then.
 */
#ifndef LIBPGWALSTREAM_STREAM_INTERNAL_H
#define LIBPGWALSTREAM_STREAM_INTERNAL_H

#include <libpq-fe.h>

#include "libpgwalstream/pgwalstream.h"

#define PGWSI_FEEDBACK_BYTES 34

enum pgwsi_command {
	PGWSI_CMD_NONE,
	PGWSI_CMD_IDENTIFY,
	PGWSI_CMD_CREATE_SLOT,
	PGWSI_CMD_DROP_SLOT,
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
	char *copy; /* the message given out last */
	char *systemid;
	char *dbname;
	char *snapshot_name;
	struct pgws_system system;
	uint64_t consistent_point;
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

/* libpq's buffers: what the socket takes; what it has. */
int pgwsi_send_out(struct pgws_stream *s);
void pgwsi_consume(struct pgws_stream *s);

/* command.c */
int pgwsi_work_command(struct pgws_stream *s);
void pgwsi_forget_results(struct pgws_stream *s);
/* copy.c: the stream begins (COPY_BOTH was answered); what still comes after its end is read away
 * (0: the end is there); everything of it is let go. */
int pgwsi_copy_begin(struct pgws_stream *s);
int pgwsi_copy_drain(struct pgws_stream *s);
void pgwsi_copy_close(struct pgws_stream *s);

#endif
