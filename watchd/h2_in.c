/* SPDX-License-Identifier: PostgreSQL */
/*
 * From DATA frames to messages. A message that lies whole in what was read is handed over in place;
 * the rest of one is kept in s->in, which grows with what has arrived, never with what a prefix
 * claims.
 *
 * Flow control: the connection's window is given back at once, so that no call waits for another
 * one; a stream's too, unless it is paused. What limits memory is max_unfinished_bytes.
 */
#include "config.h"

#include <stdio.h>
#include <string.h>

#include "common/base/err.h"
#include "common/base/mem.h"
#include "watchd/grpc_proto.h"
#include "watchd/h2_int.h"

#define IN_KEEP_BYTES 1024 /* an empty buffer of up to this size is kept */

static void keep(struct h2_stream *s, const uint8_t *data, size_t len)
{
	buf_put(&s->in, data, len);
	s->c->unfinished_bytes += len;
	s->c->srv->unfinished_bytes += len;
}

static void unkeep(struct h2_stream *s, size_t len)
{
	buf_consume(&s->in, len);
	s->c->unfinished_bytes -= len;
	s->c->srv->unfinished_bytes -= len;
	if (s->in.len_bytes == 0 && s->in.cap_bytes > IN_KEEP_BYTES)
		buf_free(&s->in);
}

void h2_in_drop(struct h2_stream *s)
{
	unkeep(s, s->in.len_bytes);
	buf_free(&s->in);
}

/* grpc-go's errors, to the letter. */
static void refuse_message(struct h2_stream *s, int err, const struct grpc_message *m)
{
	struct h2_server *srv = s->c->srv;
	char why[128];
	if (err == -ERR_LIMIT) {
		h2_count(srv, H2_STAT_MESSAGE_LARGE, 1);
		snprintf(why, sizeof(why), "grpc: received message larger than max (%u vs. %u)",
			m->len, srv->limits.max_message_bytes);
		h2_stream_end(s, GRPC_RESOURCE_EXHAUSTED, why);
		return;
	}
	h2_count(srv, H2_STAT_BAD_REQUEST, 1);
	if (m->flag == 1)
		snprintf(why, sizeof(why),
			"grpc: compressed flag set with identity or empty encoding");
	else
		snprintf(why, sizeof(why), "grpc: received unexpected payload format %u", m->flag);
	h2_stream_end(s, GRPC_INTERNAL, why);
}

/* Whole messages to the user; returns how many bytes are used up. */
static size_t hand_over(struct h2_stream *s, const uint8_t *data, size_t len)
{
	size_t used = 0;
	while (!s->over && !s->paused) {
		struct grpc_message m;
		/* What follows the message of a unary call is ignored, as grpc-go does. */
		if (s->ops->unary && s->got_message)
			return len;
		int err = grpc_message_next(
			data + used, len - used, s->c->srv->limits.max_message_bytes, &m);
		if (err == -ERR_TRUNCATED)
			return used;
		if (err != 0) {
			refuse_message(s, err, &m);
			break;
		}
		used += GRPC_PREFIX_BYTES + m.len;
		s->got_message = true;
		s->ops->on_message(s, m.data, m.len, s->user);
	}
	return s->over ? len : used;
}

static void hand_over_kept(struct h2_stream *s)
{
	if (s->in.len_bytes > 0)
		unkeep(s, hand_over(s, s->in.data, s->in.len_bytes));
}

/* True: the connection, or all of them together, hold too much already. */
static bool is_too_much(const struct h2_stream *s, size_t len)
{
	const struct h2_server *srv = s->c->srv;
	size_t max = srv->limits.max_unfinished_bytes, mine = s->c->unfinished_bytes + len;
	return mine > max ||
	       (mine > H2_FAIR_BYTES && (srv->unfinished_bytes + len) / H2_TOTAL_FACTOR > max);
}

void h2_stream_data(struct h2_stream *s, const uint8_t *data, size_t len)
{
	struct h2_conn *c = s->c;
	(void)nghttp2_session_consume_connection(c->session, len);
	if (s->paused)
		s->unconsumed += len;
	else
		(void)nghttp2_session_consume_stream(c->session, s->id, len);
	if (s->over)
		return;
	if (s->in.len_bytes == 0) {
		size_t used = hand_over(s, data, len);
		data += used;
		len -= used;
	}
	if (len == 0)
		return;
	if (is_too_much(s, len)) {
		h2_count(c->srv, H2_STAT_UNFINISHED, 1);
		h2_stream_end(s, GRPC_RESOURCE_EXHAUSTED,
			"the connection holds too many unfinished messages");
		h2_in_drop(s);
		return;
	}
	keep(s, data, len);
	hand_over_kept(s);
}

static void tell_half_closed(struct h2_stream *s)
{
	if (!s->half_closed || s->over || s->paused || s->half_closed_told)
		return;
	s->half_closed_told = true;
	if (s->in.len_bytes > 0 || (s->ops->unary && !s->got_message)) {
		h2_count(s->c->srv, H2_STAT_BAD_REQUEST, 1);
		h2_stream_end(s, s->ops->unary ? GRPC_UNKNOWN : GRPC_INTERNAL, "unexpected EOF");
	} else if (s->ops->on_half_closed != NULL) {
		s->ops->on_half_closed(s, s->user);
	}
}

void h2_stream_half_closed(struct h2_stream *s)
{
	s->half_closed = true;
	tell_half_closed(s);
}

static void run_again(void *arg)
{
	struct h2_stream *s;
	OBJ_CAST(s, arg, H2_STREAM_MAGIC);
	if (!s->over)
		hand_over_kept(s);
	tell_half_closed(s);
}

void h2_stream_pause(struct h2_stream *s, bool pause)
{
	OBJ_CHECK(s, H2_STREAM_MAGIC);
	if (s->over || s->paused == pause)
		return;
	s->paused = pause;
	if (pause) {
		s->c->n_paused++;
		return;
	}
	s->c->n_paused--;
	(void)nghttp2_session_consume_stream(s->c->session, s->id, s->unconsumed);
	s->unconsumed = 0;
	ev_defer(s->c->srv->loop, &s->again, run_again, s);
	h2_flush_soon(s->c);
}
