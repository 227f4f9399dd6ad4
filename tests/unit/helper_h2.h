/* SPDX-License-Identifier: PostgreSQL */
/*
 * The other end of the transport: a client's nghttp2 session over a socketpair, in the loop of the
 * test. Include after cmocka's headers.
 */
#ifndef TESTS_UNIT_HELPER_H2_H
#define TESTS_UNIT_HELPER_H2_H

#include <errno.h>
#include <nghttp2/nghttp2.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/base/buf.h"
#include "common/base/mem.h"
#include "common/base/proc.h"
#include "watchd/grpc_proto.h"
#include "watchd/h2.h"

#define PEER_CALLS_MAX 8192

struct call {
	int32_t id;
	struct buf out; /* bytes of DATA that are not sent yet */
	bool out_end;   /* END_STREAM behind them */
	bool waiting;   /* nghttp2 waits for more of out */
	char http_status[8], status[8], message[512];
	struct buf in; /* DATA received */
	bool headers, end_stream, closed;
	uint32_t error;
};

struct peer {
	int fd;
	bool eof, no_read;
	struct buf left; /* what the socket did not take yet */
	nghttp2_session *session;
	struct call *calls[PEER_CALLS_MAX];
	size_t n_calls;
	bool goaway;
	uint32_t goaway_error;
	uint32_t max_streams;
	size_t n_pongs;
};

static inline int peer_on_header(nghttp2_session *session, const nghttp2_frame *frame,
	const uint8_t *name, size_t name_len, const uint8_t *value, size_t value_len, uint8_t flags,
	void *user_data)
{
	struct call *c = nghttp2_session_get_stream_user_data(session, frame->hd.stream_id);
	(void)name_len;
	(void)flags;
	(void)user_data;
	if (c == NULL)
		return 0;
	c->headers = true;
	const struct {
		const char *name;
		char *out;
		size_t size;
	} rows[] = {{":status", c->http_status, sizeof(c->http_status)},
		{"grpc-status", c->status, sizeof(c->status)},
		{"grpc-message", c->message, sizeof(c->message)}};
	for (size_t i = 0; i < 3; i++) {
		if (strcmp((const char *)name, rows[i].name) == 0 && value_len < rows[i].size) {
			memcpy(rows[i].out, value, value_len);
			rows[i].out[value_len] = '\0';
		}
	}
	return 0;
}

static inline int peer_on_data(nghttp2_session *session, uint8_t flags, int32_t id,
	const uint8_t *data, size_t len, void *user_data)
{
	struct call *c = nghttp2_session_get_stream_user_data(session, id);
	(void)flags;
	(void)user_data;
	if (c != NULL)
		buf_put(&c->in, data, len);
	return 0;
}

static inline int peer_on_frame(nghttp2_session *session, const nghttp2_frame *f, void *user_data)
{
	struct peer *p = user_data;
	struct call *c = nghttp2_session_get_stream_user_data(session, f->hd.stream_id);
	if (f->hd.type == NGHTTP2_GOAWAY) {
		p->goaway = true;
		p->goaway_error = f->goaway.error_code;
	}
	if (f->hd.type == NGHTTP2_PING && (f->hd.flags & NGHTTP2_FLAG_ACK) != 0)
		p->n_pongs++;
	for (size_t i = 0; f->hd.type == NGHTTP2_SETTINGS && i < f->settings.niv; i++) {
		if (f->settings.iv[i].settings_id == NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS)
			p->max_streams = f->settings.iv[i].value;
	}
	if (c != NULL && (f->hd.type == NGHTTP2_DATA || f->hd.type == NGHTTP2_HEADERS) &&
		(f->hd.flags & NGHTTP2_FLAG_END_STREAM) != 0)
		c->end_stream = true;
	return 0;
}

static inline int peer_on_close(
	nghttp2_session *session, int32_t id, uint32_t error, void *user_data)
{
	struct call *c = nghttp2_session_get_stream_user_data(session, id);
	(void)user_data;
	if (c != NULL) {
		c->closed = true;
		c->error = error;
	}
	return 0;
}

static inline ssize_t peer_read_out(nghttp2_session *session, int32_t id, uint8_t *out, size_t max,
	uint32_t *flags, nghttp2_data_source *source, void *user_data)
{
	struct call *c = source->ptr;
	(void)session;
	(void)id;
	(void)user_data;
	size_t n = c->out.len_bytes < max ? c->out.len_bytes : max;
	if (n == 0 && !c->out_end) {
		c->waiting = true;
		return NGHTTP2_ERR_DEFERRED;
	}
	if (n > 0) {
		memcpy(out, c->out.data, n);
		buf_consume(&c->out, n);
	}
	if (c->out.len_bytes == 0 && c->out_end)
		*flags |= NGHTTP2_DATA_FLAG_EOF;
	return (ssize_t)n;
}

/* window: what the server may send ahead on a stream and on the connection; 0: 65535. */
static inline struct peer *peer_new(struct h2_server *srv, uint32_t window)
{
	struct peer *p = xcalloc(1, sizeof(*p));
	nghttp2_session_callbacks *cb;
	int fds[2];
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
	assert_int_equal(proc_set_nonblock(fds[0]), 0);
	assert_int_equal(proc_set_nonblock(fds[1]), 0);
	p->fd = fds[1];
	buf_init(&p->left, 0);
	h2_server_add(srv, fds[0]);
	assert_int_equal(nghttp2_session_callbacks_new(&cb), 0);
	nghttp2_session_callbacks_set_on_header_callback(cb, peer_on_header);
	nghttp2_session_callbacks_set_on_data_chunk_recv_callback(cb, peer_on_data);
	nghttp2_session_callbacks_set_on_frame_recv_callback(cb, peer_on_frame);
	nghttp2_session_callbacks_set_on_stream_close_callback(cb, peer_on_close);
	nghttp2_option *o;
	assert_int_equal(nghttp2_option_new(&o), 0);
	nghttp2_option_set_max_send_header_block_length(o, 1 << 20);
	assert_int_equal(nghttp2_session_client_new2(&p->session, cb, p, o), 0);
	nghttp2_option_del(o);
	nghttp2_session_callbacks_del(cb);
	const nghttp2_settings_entry iv[] = {{NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, window}};
	nghttp2_submit_settings(p->session, 0, iv, window > 0 ? 1 : 0);
	if (window > 65535)
		nghttp2_session_set_local_window_size(p->session, 0, 0, (int32_t)window);
	return p;
}

static inline void peer_free(struct peer **pp)
{
	struct peer *p = *pp;
	*pp = NULL;
	for (size_t i = 0; i < p->n_calls; i++) {
		buf_free(&p->calls[i]->out);
		buf_free(&p->calls[i]->in);
		free(p->calls[i]);
	}
	buf_free(&p->left);
	nghttp2_session_del(p->session);
	close(p->fd);
	free(p);
}

/* Reads and writes what is possible now. */
static inline void peer_pump(struct peer *p)
{
	uint8_t data[65536];
	const uint8_t *out;
	while (!p->eof) {
		ssize_t n = 0;
		if (p->left.len_bytes < sizeof(data))
			n = nghttp2_session_mem_send(p->session, &out);
		if (n > 0)
			buf_put(&p->left, out, (size_t)n);
		else if (p->left.len_bytes == 0)
			break;
		if (n > 0 && p->left.len_bytes < sizeof(data))
			continue;
		n = send(p->fd, p->left.data, p->left.len_bytes, MSG_NOSIGNAL | MSG_DONTWAIT);
		if (n > 0)
			buf_consume(&p->left, (size_t)n);
		else
			break; /* full, or gone: reading tells */
	}
	while (!p->eof && !p->no_read) {
		ssize_t n = recv(p->fd, data, sizeof(data), MSG_DONTWAIT);
		if (n < 0 && errno == EAGAIN)
			return;
		if (n <= 0)
			p->eof = true;
		else
			(void)nghttp2_session_mem_recv(p->session, data, (size_t)n);
	}
}

static inline void peer_turn(struct ev_loop *loop, struct peer *p)
{
	for (int i = 0; i < 8; i++) {
		peer_pump(p);
		ev_loop_once(loop, false);
	}
	peer_pump(p);
}

/* Turns until cond holds, for at most 10 s. */
#define peer_until(loop, p, cond)                                                                  \
	do {                                                                                       \
		uint64_t end_ = ev_now_ms() + 10000;                                               \
		bool ok_;                                                                          \
		while (!(ok_ = (cond)) && ev_now_ms() < end_)                                      \
			peer_turn(loop, p);                                                        \
		if (!ok_)                                                                          \
			fail_msg("never: %s", #cond);                                              \
	} while (0)

#define PEER_NV(n, v)                                                                              \
	{                                                                                          \
		(uint8_t *)(uintptr_t)(n), (uint8_t *)(uintptr_t)(v), strlen(n), strlen(v),        \
			NGHTTP2_NV_FLAG_NONE                                                       \
	}

/* Begins a call; extra headers as name, value, …, NULL. They may replace the method ("!method") and
 * the content type ("!content-type"). */
static inline struct call *peer_call_with(
	struct peer *p, const char *path, const char *const *extra)
{
	struct call *c = xcalloc(1, sizeof(*c));
	const char *method = "POST", *content_type = "application/grpc";
	nghttp2_nv nva[128];
	size_t n = 5;
	for (; extra != NULL && *extra != NULL; extra += 2) {
		if (strcmp(extra[0], "!method") == 0)
			method = extra[1];
		else if (strcmp(extra[0], "!content-type") == 0)
			content_type = extra[1];
		else
			nva[n++] = (nghttp2_nv)PEER_NV(extra[0], extra[1]);
	}
	nva[0] = (nghttp2_nv)PEER_NV(":method", method);
	nva[1] = (nghttp2_nv)PEER_NV(":scheme", "http");
	nva[2] = (nghttp2_nv)PEER_NV(":path", path);
	nva[3] = (nghttp2_nv)PEER_NV(":authority", "unit");
	nva[4] = (nghttp2_nv)PEER_NV("content-type", content_type);
	const nghttp2_data_provider from = {.source.ptr = c, .read_callback = peer_read_out};
	assert_true(p->n_calls < PEER_CALLS_MAX);
	p->calls[p->n_calls++] = c;
	c->id = nghttp2_submit_request(p->session, NULL, nva, n, &from, c);
	assert_true(c->id > 0);
	return c;
}

static inline struct call *peer_call(struct peer *p, const char *path)
{
	return peer_call_with(p, path, NULL);
}

/* Raw bytes of DATA. */
static inline void call_raw(struct peer *p, struct call *c, const void *data, size_t len, bool end)
{
	if (len > 0)
		buf_put(&c->out, data, len);
	c->out_end = end;
	if (c->waiting) {
		c->waiting = false;
		nghttp2_session_resume_data(p->session, c->id);
	}
}

/* One message. */
static inline void call_send(struct peer *p, struct call *c, const void *data, size_t len, bool end)
{
	uint8_t prefix[GRPC_PREFIX_BYTES];
	grpc_put_prefix(prefix, (uint32_t)len);
	call_raw(p, c, prefix, sizeof(prefix), false);
	call_raw(p, c, data, len, end);
}

/* The next message that came; false: there is none. */
static inline bool call_next(struct call *c, struct grpc_message *ret)
{
	static uint8_t kept[65536];
	if (grpc_message_next(c->in.data, c->in.len_bytes, sizeof(kept), ret) != 0)
		return false;
	memcpy(kept, ret->data, ret->len);
	ret->data = kept;
	buf_consume(&c->in, GRPC_PREFIX_BYTES + ret->len);
	return true;
}

#endif
