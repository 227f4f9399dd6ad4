/* SPDX-License-Identifier: PostgreSQL */
/*
 * The protocol from START_REPLICATION to the stream's end on a socket that was taken over:
 *
 *     client  'Q' START_REPLICATION …            'd' status update     'c' CopyDone
 *     server  'W' CopyBothResponse, then 'd' CopyData; 'c' CopyDone; 'C' CommandComplete;
 *             'Z' ReadyForQuery; at any time 'E' ErrorResponse, 'N' NoticeResponse,
 *             'S' ParameterStatus, 'A' NotificationResponse
 *
 * Context: one thread per stream; see receive.h for the bytes, copy.c for the stream's calls.
 *
 * Invariants:
 *   1. An event's data stays where it was received; the buffer changes only in read_more, which the
 *      next call may reach.
 *   2. PGWS_EAGAIN is only given out when no whole frame is buffered and the last read found the
 *      socket empty, brought too little for another to be worth it, or reached the round's quota.
 *   3. What was received is given out before a loss is reported.
 */
#include "config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "libpgwalstream/receive.h"
#include "libpgwalstream/stream_internal.h"
#include "libpgwalstream/wire.h"

/* What may come in front of CopyBothResponse is short, but for an error's text. */
#define FIRST_MAX 100000
#define OUT_OF_MEMORY "out of memory"

struct frame {
	char type;
	const uint8_t *body;
	size_t len;
};

/* Judged by its header, before the rest of it is waited for. */
static bool is_sane(const struct pgwsi_rx *rx, char type, uint32_t len)
{
	if (type == 0 || len < 4 || len > PGWSI_FRAME_MAX)
		return false;
	if (rx->started)
		return strchr("dcENSACTDZ", type) != NULL;
	return strchr("WENSACT", type) != NULL && len <= FIRST_MAX;
}

/* 1: a whole frame, taken; 0: not there yet; -1: this is no message. */
static int take_frame(struct pgwsi_rx *rx, struct frame *ret)
{
	size_t held = (size_t)(rx->end - rx->pos);
	if (held < PGWSI_FRAME_HEADER_BYTES)
		return 0;
	uint32_t len = pgwsi_get32(rx->pos + 1);
	if (!is_sane(rx, (char)rx->pos[0], len))
		return -1;
	if (held - 1 < len)
		return 0;
	ret->type = (char)rx->pos[0];
	ret->body = rx->pos + PGWSI_FRAME_HEADER_BYTES;
	ret->len = len - 4;
	rx->pos += (size_t)1 + len;
	return 1;
}

/* ---- What the server says -------------------------------------------------------------------- */

/* A field of an ErrorResponse: type byte, text, NUL; the list ends with a NUL. NULL: none. */
static const char *error_field(const struct frame *f, char type)
{
	size_t i = 0;
	while (i < f->len && f->body[i] != 0) {
		const char *text = (const char *)f->body + i + 1;
		const char *nul = memchr(text, 0, f->len - i - 1);
		if (nul == NULL)
			return NULL;
		if (f->body[i] == (uint8_t)type)
			return text;
		i = (size_t)(nul + 1 - (const char *)f->body);
	}
	return NULL;
}

/* The same text that libpq makes of it. */
static int server_error(struct pgws_stream *s, const struct frame *f)
{
	static const struct {
		char type;
		const char *before, *after;
	} parts[] = {
		{'S', "", ":  "},
		{'M', "", "\n"},
		{'D', "DETAIL:  ", "\n"},
		{'H', "HINT:  ", "\n"},
		{'q', "QUERY:  ", "\n"},
		{'W', "CONTEXT:  ", "\n"},
	};
	char text[sizeof(s->error)];
	size_t n = 0;
	text[0] = 0;
	for (size_t i = 0; i < sizeof(parts) / sizeof(parts[0]) && n < sizeof(text) - 1; i++) {
		const char *value = error_field(f, parts[i].type);
		if (value == NULL)
			continue;
		int len = snprintf(text + n, sizeof(text) - n, "%s%s%s", parts[i].before, value,
			parts[i].after);
		n += len > 0 ? (size_t)len : 0;
	}
	const char *state = error_field(f, 'C');
	bool known = state != NULL && strlen(state) == 5;
	if (known)
		memcpy(s->sqlstate, state, 6);
	pgwsi_keep_error(s, text);
	return pgwsi_fail(s, known ? PGWS_ESERVER : PGWS_ECONN);
}

/* The bytes behind the takeover are no protocol: libpq's own loop the next time. */
static int not_sane(struct pgws_stream *s)
{
	if (s->rx->started)
		return pgwsi_fail_text(s, PGWS_EPROTO, "the server sent bytes that are no message");
	s->rx_refused = true;
	return pgwsi_fail_text(s, PGWS_ECONN,
		"the first bytes after START_REPLICATION are no message; the next connection "
		"receives through libpq");
}

static int lost(struct pgws_stream *s)
{
	if (s->error[0] == 0)
		pgwsi_keep_error(s,
			s->rx->error[0] != 0 ? s->rx->error : "the server closed the connection");
	return pgwsi_fail(s, PGWS_ECONN);
}

/* Next frame that is not of those which may come at any time. 1; 0: not there yet; or an error. */
static int next_frame(struct pgws_stream *s, struct frame *ret)
{
	while (true) {
		int got = take_frame(s->rx, ret);
		if (got < 0)
			return not_sane(s);
		if (got == 0)
			return 0;
		switch (ret->type) {
		case 'E':
			return server_error(s, ret);
		case 'N':
			if (!pgwsi_skips(s, error_field(ret, 'C'), error_field(ret, 'R')))
				continue;
			(void)server_error(s, ret);
			memcpy(s->sqlstate, PGWSI_UNDEFINED_OBJECT, sizeof(s->sqlstate));
			return PGWS_ESERVER;
		case 'S':
		case 'A':
			continue;
		default:
			return 1;
		}
	}
}

/* One read, with the output that waits in front of it. PGWS_EAGAIN: not now. */
static int read_more(struct pgws_stream *s)
{
	struct pgwsi_rx *rx = s->rx;
	if (rx->eof)
		return lost(s);
	if (rx->read_done && !rx->more) {
		rx->read_done = false;
		return PGWS_EAGAIN;
	}
	int err = pgwsi_rx_read(rx);
	if (err != 0)
		return pgwsi_fail_text(s, err, err == PGWS_ENOMEM ? OUT_OF_MEMORY : rx->error);
	return 0;
}

/* ---- Beginning and end ----------------------------------------------------------------------- */

int pgwsi_rx_start(struct pgws_stream *s, const char *command)
{
	s->rx = pgwsi_rx_new(s->conn);
	if (s->rx == NULL || pgwsi_rx_put(s->rx, 'Q', command, strlen(command) + 1) != 0)
		return pgwsi_fail_text(s, PGWS_ENOMEM, OUT_OF_MEMORY);
	return 0;
}

/* START_REPLICATION is under way. 1: it was answered. */
static int starting(struct pgws_stream *s, const struct frame *f)
{
	if (f->type == 'W') {
		s->rx->started = true;
		s->command = PGWSI_CMD_NONE;
		return pgwsi_copy_begin(s) == 0 ? 1 : PGWS_ESTATE;
	}
	/* The end of a timeline is answered without a copy. */
	if (f->type == 'C' || f->type == 'T')
		return pgwsi_fail_text(s, PGWS_EEND, "the server ended the stream");
	return not_sane(s);
}

/* The stream is being ended: everything is read away. 1: it is over, and nothing is left here. */
static int ending(struct pgws_stream *s, const struct frame *f)
{
	struct pgwsi_rx *rx = s->rx;
	if (f->type == 'Z')
		rx->done = true;
	else if (strchr("dcCTD", f->type) == NULL)
		return not_sane(s);
	return 0;
}

/* Nothing is buffered in any layer: libpq may go on with the connection. */
static bool empty(const struct pgwsi_rx *rx)
{
	return rx->pos == rx->end && (rx->tls == NULL || pgwsi_tls_dry(rx->tls));
}

int pgwsi_rx_work(struct pgws_stream *s)
{
	struct frame f;
	(void)pgwsi_rx_flush(s->rx); /* what is left shows in wants_write */
	while (true) {
		int got = next_frame(s, &f);
		if (got == 1)
			got = s->command == PGWSI_CMD_START ? starting(s, &f) : ending(s, &f);
		else if (got == 0 && s->rx->done && empty(s->rx))
			break;
		else if (got == 0 && (got = read_more(s)) == 0)
			continue;
		if (got == PGWS_EAGAIN)
			pgwsi_rx_round(s->rx, pgwsi_rx_now_ns());
		if (got != 0)
			return got == 1 ? 0 : got;
	}
	pgwsi_rx_free(&s->rx);
	s->command = PGWSI_CMD_NONE;
	s->phase = PGWS_PHASE_READY;
	return 0;
}

/* ---- Streaming ------------------------------------------------------------------------------- */

/* One message of the copy, or its end. */
static int take_message(struct pgws_stream *s, const struct frame *f, struct pgws_event *ret_event)
{
	switch (f->type) {
	case 'd':
		s->rx->events++;
		return pgwsi_parse_event(s, f->body, f->len, ret_event);
	case 'c':
	case 'C':
	case 'Z':
		return pgwsi_fail_text(s, PGWS_EEND, "the server ended the stream");
	default:
		return pgwsi_fail_text(
			s, PGWS_EPROTO, "the server sent a message that is none of a stream");
	}
}

int pgwsi_rx_next(struct pgws_stream *s, struct pgws_event *ret_event)
{
	struct frame f;
	while (true) {
		int got = next_frame(s, &f);
		if (got == 1 && f.type == 'd' && f.len == 0)
			continue;
		if (got == 1)
			return take_message(s, &f, ret_event);
		if (got < 0)
			return got;
		if (pgws_stream_wants_write(s))
			(void)pgws_stream_flush(s); /* PGWS_EAGAIN shows in wants_write */
		got = read_more(s);
		if (got == PGWS_EAGAIN)
			pgwsi_rx_round(s->rx, pgwsi_rx_now_ns());
		if (got != 0)
			return got;
	}
}
