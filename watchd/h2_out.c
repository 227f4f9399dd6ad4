/* SPDX-License-Identifier: PostgreSQL */
/*
 * Messages on their way out. A stream's queue holds whole messages, each with its prefix; nghttp2
 * asks how much may go (h2_out_read), then the bytes go from the pieces, or from the generator,
 * straight into the buffer that is sent (h2_out_write). Small messages share a DATA frame.
 *
 * The last DATA frame carries no END_STREAM: trailers do (gRPC over HTTP/2).
 */
#include "config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/err.h"
#include "common/base/mem.h"
#include "watchd/grpc_proto.h"
#include "watchd/h2_int.h"

MEM_TYPE(mem_shared, "h2 shared bytes");
MEM_TYPE(mem_out, "h2 message");

/* --- shared bytes --- */

struct h2_shared *h2_shared_new(uint32_t len)
{
	struct h2_shared *sh = mem_new_raw(&mem_shared, sizeof(*sh) + len);
	sh->refs = 1;
	sh->len = len;
	return sh;
}

struct h2_shared *h2_shared_ref(struct h2_shared *sh)
{
	ASSERT(sh->refs > 0 && sh->refs < UINT32_MAX);
	sh->refs++;
	return sh;
}

void h2_shared_unref(struct h2_shared **sh)
{
	struct h2_shared *one = *sh;
	*sh = NULL;
	if (one == NULL)
		return;
	ASSERT(one->refs > 0);
	if (--one->refs == 0)
		mem_free(&mem_shared, one);
}

/* --- the queue --- */

static void count_queued(struct h2_stream *s, size_t n)
{
	s->queued_bytes += n;
	s->c->queued_bytes += n;
	s->c->srv->queued_bytes += n;
	if (s->ops != NULL && s->ops->on_drained != NULL && s->queued_bytes >= s->ops->low_bytes)
		s->was_high = true;
}

static void uncount_queued(struct h2_stream *s, size_t n)
{
	ASSERT(s->queued_bytes >= n);
	s->queued_bytes -= n;
	s->c->queued_bytes -= n;
	s->c->srv->queued_bytes -= n;
	if (s->was_high && s->queued_bytes < s->ops->low_bytes) {
		s->was_high = false;
		if (list_empty(&s->in_drained))
			list_push_back(&s->c->drained, &s->in_drained);
	}
}

static void msg_free(struct out_msg *m)
{
	for (uint32_t i = 0; i < m->n_pieces; i++)
		h2_shared_unref(&m->pieces[i].shared);
	if (m->source != NULL)
		m->source->done(m->arg);
	mem_free(&mem_out, m);
}

/* The first message leaves the queue. */
static void unlink_first(struct h2_stream *s)
{
	struct out_msg *m = s->first;
	s->first = m->next;
	if (s->first == NULL)
		s->last = &s->first;
	msg_free(m);
}

void h2_out_drop(struct h2_stream *s)
{
	s->was_high = false;
	uncount_queued(s, s->queued_bytes);
	s->left = 0;
	while (s->first != NULL)
		unlink_first(s);
}

/* --- to nghttp2 --- */

/* clang-format off */
#define NV(n, v, l) {(uint8_t *)(uintptr_t)(n), (uint8_t *)(uintptr_t)(v), sizeof(n) - 1, (l), \
	NGHTTP2_NV_FLAG_NO_COPY_NAME}
#define NV_FIXED(n, v) {(uint8_t *)(uintptr_t)(n), (uint8_t *)(uintptr_t)(v), sizeof(n) - 1, \
	sizeof(v) - 1, NGHTTP2_NV_FLAG_NO_COPY_NAME | NGHTTP2_NV_FLAG_NO_COPY_VALUE}
/* clang-format on */

/* There is something to send: begins the answer, or wakes nghttp2. */
static void wake(struct h2_stream *s)
{
	static const nghttp2_nv nva[] = {
		NV_FIXED(":status", "200"), NV_FIXED("content-type", "application/grpc")};
	nghttp2_session *session = s->c->session;
	if (!s->begun) {
		const nghttp2_data_provider from = {.source.ptr = s, .read_callback = h2_out_read};
		s->begun = true;
		(void)nghttp2_submit_response(session, s->id, nva, ARRAY_LEN(nva), &from);
	} else if (s->deferred) {
		s->deferred = false;
		(void)nghttp2_session_resume_data(session, s->id);
	}
	h2_flush_soon(s->c);
}

/* grpc-status and grpc-message, appended to nva[n]; text is for the message's memory. Returns how
 * many there are then. */
static size_t put_status(
	nghttp2_nv *nva, size_t n, enum grpc_status status, const char *message, struct buf *text)
{
	static const char *const digits[] = {"0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "10",
		"11", "12", "13", "14", "15", "16"};
	ASSERT((size_t)status < ARRAY_LEN(digits));
	nva[n++] = (nghttp2_nv)NV("grpc-status", digits[status], strlen(digits[status]));
	if (status != GRPC_OK && message != NULL) {
		grpc_put_status_message(text, message);
		nva[n++] = (nghttp2_nv)NV("grpc-message", text->data, text->len_bytes);
	}
	return n;
}

void h2_out_status(
	struct h2_stream *s, const char *http_status, enum grpc_status status, const char *message)
{
	struct buf text;
	nghttp2_nv nva[4] = {NV(":status", http_status, strlen(http_status)),
		NV_FIXED("content-type", "application/grpc")};
	buf_init(&text, 0);
	s->begun = s->over = true;
	size_t n = put_status(nva, 2, status, message, &text);
	(void)nghttp2_submit_response(s->c->session, s->id, nva, n, NULL);
	buf_free(&text);
	h2_flush_soon(s->c);
}

static void submit_trailers(struct h2_stream *s)
{
	struct buf text;
	nghttp2_nv nva[2];
	buf_init(&text, 0);
	s->trailers = false;
	size_t n = put_status(nva, 0, (enum grpc_status)s->status, s->message, &text);
	(void)nghttp2_submit_trailer(s->c->session, s->id, nva, n);
	buf_free(&text);
}

ssize_t h2_out_read(nghttp2_session *session, int32_t stream_id, uint8_t *buf, size_t length,
	uint32_t *data_flags, nghttp2_data_source *source, void *user_data)
{
	struct h2_stream *s;
	OBJ_CAST(s, source->ptr, H2_STREAM_MAGIC);
	(void)session;
	(void)stream_id;
	(void)buf;
	(void)user_data;
	if (s->left == 0 && !s->trailers) {
		s->deferred = true;
		return NGHTTP2_ERR_DEFERRED;
	}
	size_t n = s->left < length ? (size_t)s->left : length;
	*data_flags |= NGHTTP2_DATA_FLAG_NO_COPY;
	if (n == s->left && s->trailers) {
		*data_flags |= NGHTTP2_DATA_FLAG_EOF | NGHTTP2_DATA_FLAG_NO_END_STREAM;
		submit_trailers(s);
	}
	return (ssize_t)n;
}

/* Up to max bytes of the message's pieces. */
static size_t take_pieces(struct out_msg *m, uint8_t *out, size_t max)
{
	size_t n = 0;
	while (n < max && m->piece < m->n_pieces) {
		const struct h2_slice *p = &m->pieces[m->piece];
		size_t part = p->len - m->piece_at;
		if (part > max - n)
			part = max - n;
		memcpy(out + n, p->bytes + m->piece_at, part);
		n += part;
		m->piece_at += (uint32_t)part;
		if (m->piece_at == p->len) {
			m->piece++;
			m->piece_at = 0;
		}
	}
	return n;
}

/* Up to max bytes of the first message; 0: its generator failed. */
static size_t take_some(struct out_msg *m, uint8_t *out, size_t max)
{
	if (m->prefix_at < sizeof(m->prefix)) {
		size_t n = sizeof(m->prefix) - m->prefix_at;
		n = n < max ? n : max;
		memcpy(out, m->prefix + m->prefix_at, n);
		m->prefix_at += (uint8_t)n;
		return n;
	}
	max = max < m->len - m->at ? max : m->len - m->at;
	size_t n;
	if (m->source != NULL) {
		int made = m->source->fill(out, max, m->arg);
		if (made <= 0)
			return 0;
		n = (size_t)made;
		ASSERT(n <= max);
	} else {
		n = take_pieces(m, out, max);
	}
	m->at += (uint32_t)n;
	return n;
}

int h2_out_write(nghttp2_session *session, nghttp2_frame *frame, const uint8_t *framehd,
	size_t length, nghttp2_data_source *source, void *user_data)
{
	struct h2_stream *s;
	OBJ_CAST(s, source->ptr, H2_STREAM_MAGIC);
	(void)session;
	(void)frame;
	(void)user_data;
	struct h2_server *srv = s->c->srv;
	uint8_t *out = srv->fill_buf + srv->fill_len;
	if (srv->fill_len + 9 + length + H2_FRAME_ROOM > sizeof(srv->fill_buf)) {
		srv->fill_full = true;
		return NGHTTP2_ERR_WOULDBLOCK; /* the same frame again in the next pass */
	}
	if (length > s->left)
		return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE; /* it was reset in between */
	memcpy(out, framehd, 9);
	for (size_t done = 0; done < length;) {
		struct out_msg *m = s->first;
		size_t n = take_some(m, out + 9 + done, length - done);
		if (n == 0)
			return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE; /* resets the stream */
		done += n;
		if (m->source == NULL)
			uncount_queued(s, n);
		if (m->prefix_at == sizeof(m->prefix) && m->at == m->len)
			unlink_first(s);
	}
	s->left -= length;
	s->moved_ms = srv->now_ms;
	srv->fill_len += length + 9;
	if (s->left == 0 && !s->over)
		list_remove(&s->in_closing);
	return 0;
}

/* --- what the user calls --- */

/* From now on the client has to take something now and then. */
static void expect_progress(struct h2_stream *s)
{
	s->moved_ms = ev_now_ms();
	if (list_empty(&s->in_closing))
		list_push_back(&s->c->closing, &s->in_closing);
}

static void enqueue(struct h2_stream *s, struct out_msg *m)
{
	grpc_put_prefix(m->prefix, m->len);
	*s->last = m;
	s->last = &m->next;
	s->left += sizeof(m->prefix) + (uint64_t)m->len;
	if (m->source == NULL)
		count_queued(s, sizeof(m->prefix) + m->len);
	wake(s);
}

static struct out_msg *msg_new(size_t n_pieces, size_t copied)
{
	size_t size = sizeof(struct out_msg) + n_pieces * sizeof(struct h2_slice);
	struct out_msg *m = mem_new_raw(&mem_out, size + copied);
	memset(m, 0, size);
	m->n_pieces = (uint32_t)n_pieces;
	return m;
}

void h2_stream_send_slices(struct h2_stream *s, const struct h2_slice *slices, size_t n)
{
	OBJ_CHECK(s, H2_STREAM_MAGIC);
	if (s->over)
		return;
	uint64_t len = 0, copied = 0;
	for (size_t i = 0; i < n; i++) {
		len += slices[i].len;
		copied += slices[i].shared == NULL ? slices[i].len : 0;
	}
	ASSERT(s->ops != NULL && len <= UINT32_MAX);
	struct out_msg *m = msg_new(n, copied);
	uint8_t *to = (uint8_t *)&m->pieces[n];
	m->len = (uint32_t)len;
	for (size_t i = 0; i < n; i++) {
		m->pieces[i] = slices[i];
		if (slices[i].shared != NULL) {
			h2_shared_ref(slices[i].shared);
		} else {
			if (slices[i].len > 0)
				memcpy(to, slices[i].bytes, slices[i].len);
			m->pieces[i].bytes = to;
			to += slices[i].len;
		}
	}
	enqueue(s, m);
}

void h2_stream_send(struct h2_stream *s, const void *data, size_t len)
{
	ASSERT(len <= UINT32_MAX);
	const struct h2_slice all = {.bytes = data, .len = (uint32_t)len};
	h2_stream_send_slices(s, &all, 1);
}

void h2_stream_send_generated(
	struct h2_stream *s, uint32_t len, const struct h2_source *src, void *arg)
{
	OBJ_CHECK(s, H2_STREAM_MAGIC);
	if (s->over) {
		src->done(arg);
		return;
	}
	struct out_msg *m = msg_new(0, 0);
	m->source = src;
	m->arg = arg;
	m->len = len;
	expect_progress(s);
	enqueue(s, m);
}

size_t h2_stream_queued_bytes(const struct h2_stream *s)
{
	OBJ_CHECK(s, H2_STREAM_MAGIC);
	return s->queued_bytes;
}

void h2_stream_end(struct h2_stream *s, enum grpc_status status, const char *message)
{
	OBJ_CHECK(s, H2_STREAM_MAGIC);
	if (s->over)
		return;
	if (status != GRPC_OK && message != NULL)
		s->message = xstrndup(message, H2_STATUS_MESSAGE_MAX);
	if (!s->begun) {
		h2_out_status(s, "200", status, s->message);
		return;
	}
	s->over = s->trailers = true;
	s->status = (uint8_t)status;
	expect_progress(s);
	wake(s);
}

void h2_stream_reply(struct h2_stream *s, const void *data, size_t len)
{
	h2_stream_send(s, data, len);
	h2_stream_end(s, GRPC_OK, NULL);
}

void h2_stream_reset(struct h2_stream *s, uint32_t h2_error)
{
	OBJ_CHECK(s, H2_STREAM_MAGIC);
	struct h2_conn *c = s->c;
	if (c->session == NULL || c->state != CONN_H2)
		return;
	s->over = true;
	h2_out_drop(s);
	list_remove(&s->in_closing);
	(void)nghttp2_submit_rst_stream(c->session, NGHTTP2_FLAG_NONE, s->id, h2_error);
	h2_flush_soon(c);
}

void h2_out_deadline(void *stream)
{
	struct h2_stream *s;
	OBJ_CAST(s, stream, H2_STREAM_MAGIC);
	bool cut = s->first != NULL && s->first->prefix_at > 0;
	h2_count(s->c->srv, H2_STAT_DEADLINE, 1);
	if (s->over || cut) {
		h2_stream_reset(s, NGHTTP2_CANCEL);
		return;
	}
	h2_out_drop(s);
	h2_stream_end(s, GRPC_DEADLINE_EXCEEDED, "context deadline exceeded");
}

/* --- the call as its user knows it --- */

void h2_stream_accept(struct h2_stream *s, const struct h2_call_ops *ops, void *user)
{
	OBJ_CHECK(s, H2_STREAM_MAGIC);
	ASSERT(s->ops == NULL && !s->over && ops->on_message != NULL);
	s->ops = ops;
	s->user = user;
}

void h2_stream_set_user(struct h2_stream *s, void *user)
{
	OBJ_CHECK(s, H2_STREAM_MAGIC);
	s->user = user;
}

void *h2_stream_user(const struct h2_stream *s)
{
	OBJ_CHECK(s, H2_STREAM_MAGIC);
	return s->user;
}

bool h2_stream_is_over(const struct h2_stream *s)
{
	OBJ_CHECK(s, H2_STREAM_MAGIC);
	return s->over;
}

const char *h2_stream_peer(const struct h2_stream *s, char *out, size_t size)
{
	OBJ_CHECK(s, H2_STREAM_MAGIC);
	return h2_conn_peer(s->c, out, size);
}
