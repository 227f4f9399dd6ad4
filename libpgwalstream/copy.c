/* SPDX-License-Identifier: PostgreSQL */
/*
 * The stream between START_REPLICATION and its end: messages in, standby status updates out.
 *
 * Context: one thread per stream; see stream_internal.h.
 *
 * Wire format inside CopyBoth (integers big-endian):
 *     server  'w' start8 end8 time8 bytes      'k' end8 time8 reply1
 *     client  'r' write8 flush8 apply8 time8 reply1
 *
 * Invariants:
 *   1. At most one read of the socket between two PGWS_EAGAIN of pgws_stream_next, unless it
 *      brought much: one read per readiness gives many messages, which is where the time goes.
 *   2. Everything the server sent before it closed is given out before the loss is reported, an
 *      ErrorResponse included: its SQLSTATE is what tells a lost slot from a lost network.
 *   3. With s->rx the connection is not libpq's until the stream's end (receive.h): no PQ call.
 *   4. At most one standby status update waits for the socket; a newer one replaces it.
 */
#include "config.h"

#include <time.h>

#include "libpgwalstream/stream_internal.h"
#include "libpgwalstream/wire.h"

#define DATA_HEADER_BYTES 25
#define KEEPALIVE_BYTES 18
#define POSTGRES_EPOCH_S INT64_C(946684800) /* 2000-01-01 in Unix time */

int pgwsi_copy_start(struct pgws_stream *s, const char *command)
{
	enum pgws_receive how = s->options.receive;
	if (how == PGWS_RECEIVE_LIBPQ || (how == PGWS_RECEIVE_AUTO && s->rx_refused))
		return 0;
	const char *refusal = pgwsi_rx_refusal_of(s->conn);
	if (refusal != NULL && how == PGWS_RECEIVE_SOCKET) {
		pgwsi_keep_error(s, refusal);
		return PGWS_EUNSUPPORTED;
	}
	if (refusal != NULL)
		return 0;
	s->error[0] = s->sqlstate[0] = 0;
	int err = pgwsi_rx_start(s, command);
	if (err != 0)
		return err;
	s->command = PGWSI_CMD_START;
	s->phase = PGWS_PHASE_COMMAND;
	return 1;
}

int pgwsi_copy_begin(struct pgws_stream *s)
{
	s->consumed = false;
	s->phase = PGWS_PHASE_STREAMING;
	return 0;
}

void pgwsi_copy_close(struct pgws_stream *s)
{
	pgwsi_rx_free(&s->rx);
	PQfreemem(s->copy);
	s->copy = NULL;
	s->unflushed = s->consumed = s->eof = s->feedback_waits = s->skips = false;
}

bool pgwsi_copy_wants_write(const struct pgws_stream *s)
{
	if (s->phase != PGWS_PHASE_COMMAND && s->phase != PGWS_PHASE_STREAMING)
		return false;
	const struct pgwsi_rx *rx = s->rx;
	return rx->read_wants_write ||
	       ((rx->out_len > 0 || s->feedback_waits) && !rx->write_wants_read);
}

enum pgws_receive pgws_stream_receive(const struct pgws_stream *s)
{
	return s->rx != NULL ? PGWS_RECEIVE_SOCKET : PGWS_RECEIVE_LIBPQ;
}

unsigned pgws_stream_rest_us(const struct pgws_stream *s)
{
	return s->rx != NULL ? s->rx->rest_us : 0;
}

/* Reads away what still comes of a stream that we ended. 0: its end is there. */
int pgwsi_copy_drain(struct pgws_stream *s)
{
	int n;
	do {
		PQfreemem(s->copy);
		s->copy = NULL;
		n = PQgetCopyData(s->conn, &s->copy, 1);
	} while (n > 0);
	if (n == 0)
		return s->eof ? pgwsi_fail_conn(s) : PGWS_EAGAIN;
	return 0;
}

/* CopyDone behind the last status update. */
static int put_end(struct pgws_stream *s)
{
	if (s->feedback_waits && pgwsi_rx_put(s->rx, 'd', s->feedback, PGWSI_FEEDBACK_BYTES) != 0)
		return PGWS_ENOMEM;
	s->feedback_waits = false;
	return pgwsi_rx_put(s->rx, 'c', NULL, 0);
}

/* The same by libpq, which takes as much as there is memory for: 1, 0: no memory, -1: lost. */
static int put_end_libpq(struct pgws_stream *s)
{
	int rc = s->feedback_waits ? PQputCopyData(s->conn, s->feedback, PGWSI_FEEDBACK_BYTES) : 1;
	s->feedback_waits = false;
	return rc == 1 ? PQputCopyEnd(s->conn, NULL) : rc;
}

int pgws_stream_end(struct pgws_stream *s)
{
	if (s->phase != PGWS_PHASE_STREAMING)
		return PGWS_ESTATE;
	int rc = s->rx == NULL ? put_end_libpq(s) : put_end(s) == 0;
	if (rc == 0)
		return pgwsi_fail_text(s, PGWS_ENOMEM, "out of memory");
	if (rc < 0)
		return pgwsi_fail_conn(s);
	s->command = PGWSI_CMD_END;
	s->phase = PGWS_PHASE_COMMAND;
	return 0;
}

static void put_be64(char *p, uint64_t v)
{
	for (int i = 7; i >= 0; i--, v >>= 8)
		p[i] = (char)(uint8_t)v;
}

int pgwsi_parse_event(
	struct pgws_stream *s, const uint8_t *p, size_t len, struct pgws_event *ret_event)
{
	if (len >= DATA_HEADER_BYTES && p[0] == 'w') {
		*ret_event = (struct pgws_event){
			.kind = PGWS_EVENT_DATA,
			.start_lsn = pgwsi_get64(p + 1),
			.end_lsn = pgwsi_get64(p + 9),
			.send_time = (int64_t)pgwsi_get64(p + 17),
			.data = p + DATA_HEADER_BYTES,
			.len = len - DATA_HEADER_BYTES,
		};
		return 0;
	}
	if (len >= KEEPALIVE_BYTES && p[0] == 'k') {
		*ret_event = (struct pgws_event){
			.kind = PGWS_EVENT_KEEPALIVE,
			.end_lsn = pgwsi_get64(p + 1),
			.send_time = (int64_t)pgwsi_get64(p + 9),
			.reply_requested = p[17] != 0,
		};
		return 0;
	}
	return pgwsi_fail_text(
		s, PGWS_EPROTO, "the server sent an unknown kind of replication message");
}

/* The copy ended: an error, or the server's own end. */
static int copy_ended(struct pgws_stream *s)
{
	PGresult *res = PQgetResult(s->conn);
	int err;
	if (res == NULL)
		err = pgwsi_fail_conn(s);
	else if (PQresultStatus(res) == PGRES_FATAL_ERROR)
		err = pgwsi_fail_result(s, res);
	else
		err = pgwsi_fail_text(s, PGWS_EEND, "the server ended the stream");
	PQclear(res);
	return err;
}

/* libpq's own loop. */
static int next_from_libpq(struct pgws_stream *s, struct pgws_event *ret_event)
{
	if (s->unflushed || s->feedback_waits)
		(void)pgws_stream_flush(
			s); /* EAGAIN shows in wants_write, a loss in what follows */
	PQfreemem(s->copy);
	s->copy = NULL;
	while (true) {
		int n = PQgetCopyData(s->conn, &s->copy, 1);
		if (s->skips)
			return pgwsi_fail(s, PGWS_ESERVER);
		if (n > 0)
			return pgwsi_parse_event(s, (const uint8_t *)s->copy, (size_t)n, ret_event);
		if (n == -1)
			return copy_ended(s);
		if (n == -2 || s->eof)
			return pgwsi_fail_conn(s);
		if (s->consumed) {
			s->consumed = false;
			return PGWS_EAGAIN;
		}
		pgwsi_consume(s);
		s->consumed = true;
	}
}

/*
 * The hot path: a whole data message in the buffer costs a few comparisons, and nothing is copied.
 * Everything else is pgwsi_rx_next's.
 */
int pgws_stream_next(struct pgws_stream *s, struct pgws_event *ret_event)
{
	if (s->phase != PGWS_PHASE_STREAMING)
		return PGWS_ESTATE;
	struct pgwsi_rx *rx = s->rx;
	if (rx == NULL)
		return next_from_libpq(s, ret_event);
	const uint8_t *p = rx->pos;
	size_t held = (size_t)(rx->end - p);
	if (held < PGWSI_FRAME_HEADER_BYTES + DATA_HEADER_BYTES || p[0] != 'd' ||
		p[PGWSI_FRAME_HEADER_BYTES] != 'w')
		return pgwsi_rx_next(s, ret_event);
	size_t len = pgwsi_get32(p + 1);
	if (len < 4 + DATA_HEADER_BYTES || len > held - 1)
		return pgwsi_rx_next(s, ret_event);
	rx->pos += 1 + len;
	rx->events++;
	ret_event->kind = PGWS_EVENT_DATA;
	ret_event->start_lsn = pgwsi_get64(p + 6);
	ret_event->end_lsn = pgwsi_get64(p + 14);
	ret_event->send_time = (int64_t)pgwsi_get64(p + 22);
	ret_event->reply_requested = false;
	ret_event->data = p + PGWSI_FRAME_HEADER_BYTES + DATA_HEADER_BYTES;
	ret_event->len = len - 4 - DATA_HEADER_BYTES;
	return 0;
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

static int flush_socket(struct pgws_stream *s)
{
	struct pgwsi_rx *rx = s->rx;
	if (pgwsi_rx_flush(rx) != 0)
		return PGWS_EAGAIN;
	if (!s->feedback_waits)
		return 0;
	s->feedback_waits = false;
	/* The room is there since the buffer was made: nothing else waits. */
	(void)pgwsi_rx_put(rx, 'd', s->feedback, PGWSI_FEEDBACK_BYTES);
	return pgwsi_rx_flush(rx);
}

int pgws_stream_flush(struct pgws_stream *s)
{
	if (s->phase != PGWS_PHASE_STREAMING)
		return PGWS_ESTATE;
	if (s->rx != NULL)
		return flush_socket(s);
	if (s->unflushed && pgwsi_send_out(s) != 0)
		return PGWS_EAGAIN;
	if (!s->feedback_waits)
		return 0;
	int rc = PQputCopyData(s->conn, s->feedback, PGWSI_FEEDBACK_BYTES);
	if (rc == 0) {
		s->unflushed = true;
		return PGWS_EAGAIN;
	}
	s->feedback_waits = false;
	/* A lost connection is reported by pgws_stream_next, after what the server said last. */
	return rc == 1 ? pgwsi_send_out(s) : 0;
}
