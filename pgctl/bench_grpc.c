/* SPDX-License-Identifier: PostgreSQL */
/*
 * See bench_grpc.h. One nghttp2 client session per connection; what callbacks of one pass have
 * queued leaves in one write at its end.
 */
#include "config.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <nghttp2/nghttp2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/base/buf.h"
#include "common/base/mem.h"
#include "pgctl/bench_grpc.h"

#define CONN_MAGIC 0x62677263
#define READ_BYTES 65536
#define WINDOW_BYTES (64 << 20)
#define FRAME_HEAD 5 /* compressed flag, 32-bit length */

struct bench_grpc_conn {
	uint32_t magic;
	struct bench_grpc *owner;
	int fd;
	nghttp2_session *session;
	struct ev_io io;
	struct ev_deferred flush;
	struct buf out;
};

struct bench_grpc {
	struct ev_loop *loop;
	bool broken;
	char authority[32];
	size_t n;
	struct bench_grpc_conn conns[];
};

MEM_TYPE(mem_grpc, "bench grpc client");

/* ---- Out ------------------------------------------------------------------------------------- */

static void conn_broken(struct bench_grpc_conn *c)
{
	c->owner->broken = true;
	ev_io_stop(&c->io);
	ev_loop_stop(c->owner->loop);
}

bool bench_grpc_is_broken(const struct bench_grpc *g)
{
	return g->broken;
}

static void write_out(struct bench_grpc_conn *c)
{
	while (c->out.len_bytes > 0) {
		ssize_t n = send(c->fd, c->out.data, c->out.len_bytes, MSG_NOSIGNAL);
		if (n < 0) {
			if (errno != EAGAIN && errno != EINTR) {
				conn_broken(c);
				return;
			}
			break;
		}
		buf_consume(&c->out, (size_t)n);
	}
	ev_io_set(&c->io, c->fd, (short)(EV_READ | (c->out.len_bytes > 0 ? EV_WRITE : 0)));
}

static void on_flush(void *arg)
{
	struct bench_grpc_conn *c;
	const uint8_t *data;
	ssize_t n;
	OBJ_CAST(c, arg, CONN_MAGIC);
	while ((n = nghttp2_session_mem_send(c->session, &data)) > 0)
		buf_put(&c->out, data, (size_t)n);
	if (!c->owner->broken)
		write_out(c);
}

static void flush_later(struct bench_grpc_conn *c)
{
	ev_defer(c->owner->loop, &c->flush, on_flush, c);
}

static ssize_t on_read_request(nghttp2_session *session, int32_t stream_id, uint8_t *to, size_t max,
	uint32_t *flags, nghttp2_data_source *source, void *arg)
{
	struct bench_call *call = source->ptr;
	size_t n = call->out_len < max ? call->out_len : max;
	(void)session;
	(void)stream_id;
	(void)arg;
	if (n == 0 && call->keep_open)
		return NGHTTP2_ERR_DEFERRED;
	memcpy(to, call->out, n);
	call->out += n;
	call->out_len -= n;
	if (call->out_len == 0 && !call->keep_open)
		*flags |= NGHTTP2_DATA_FLAG_EOF;
	return (ssize_t)n;
}

#define HEADER(name, value, value_len)                                                             \
	{                                                                                          \
		(uint8_t *)(uintptr_t)(name), (uint8_t *)(uintptr_t)(value), sizeof(name) - 1,     \
			(value_len), NGHTTP2_NV_FLAG_NO_COPY_NAME                                  \
	}

void bench_grpc_call(struct bench_grpc *g, size_t i, const char *path, const void *framed,
	size_t len, bool keep_open, struct bench_call *call)
{
	struct bench_grpc_conn *c = &g->conns[i % g->n];
	const nghttp2_nv headers[] = {
		HEADER(":method", "POST", 4),
		HEADER(":scheme", "http", 4),
		HEADER(":path", path, strlen(path)),
		HEADER(":authority", g->authority, strlen(g->authority)),
		HEADER("content-type", "application/grpc", 16),
		HEADER("te", "trailers", 8),
	};
	const nghttp2_data_provider body = {.source.ptr = call, .read_callback = on_read_request};
	call->conn = c;
	call->out = framed;
	call->out_len = len;
	call->keep_open = keep_open;
	call->status = -1;
	call->in_len = 0;
	call->stream_id =
		nghttp2_submit_request(c->session, NULL, headers, ARRAY_LEN(headers), &body, call);
	ASSERT(call->stream_id > 0);
	flush_later(c);
}

/* ---- In -------------------------------------------------------------------------------------- */

static void take_bytes(struct bench_call *call, const uint8_t *data, size_t len)
{
	if (call->in_len + len > call->in_size) {
		call->in_size = 2 * (call->in_len + len);
		call->in = xrealloc(call->in, call->in_size);
	}
	memcpy(call->in + call->in_len, data, len);
	call->in_len += len;
}

/* Length of the message at the front, if it is whole. */
static bool message_at(const uint8_t *data, size_t len, size_t *ret_len)
{
	if (len < FRAME_HEAD)
		return false;
	*ret_len = (size_t)data[1] << 24 | (size_t)data[2] << 16 | (size_t)data[3] << 8 | data[4];
	return len - FRAME_HEAD >= *ret_len;
}

/* Whole messages where they came; only what is cut is copied. */
static void take_messages(struct bench_call *call, const uint8_t *data, size_t len)
{
	bool kept = call->in_len > 0;
	size_t at = 0, n;
	if (kept) {
		take_bytes(call, data, len);
		data = call->in;
		len = call->in_len;
	}
	while (message_at(data + at, len - at, &n)) {
		if (call->on_message != NULL)
			call->on_message(call, data + at + FRAME_HEAD, n);
		at += FRAME_HEAD + n;
	}
	if (kept) {
		memmove(call->in, call->in + at, call->in_len - at);
		call->in_len -= at;
	} else if (at < len) {
		take_bytes(call, data + at, len - at);
	}
}

static int on_data(nghttp2_session *session, uint8_t flags, int32_t stream_id, const uint8_t *data,
	size_t len, void *arg)
{
	struct bench_call *call = nghttp2_session_get_stream_user_data(session, stream_id);
	(void)flags;
	(void)arg;
	if (call != NULL)
		take_messages(call, data, len);
	return 0;
}

static int on_header(nghttp2_session *session, const nghttp2_frame *frame, const uint8_t *name,
	size_t name_len, const uint8_t *value, size_t value_len, uint8_t flags, void *arg)
{
	struct bench_call *call =
		nghttp2_session_get_stream_user_data(session, frame->hd.stream_id);
	(void)flags;
	(void)arg;
	if (call != NULL && name_len == 11 && memcmp(name, "grpc-status", 11) == 0 && value_len < 3)
		call->status = atoi((const char *)value); /* nghttp2 ends values with a zero */
	return 0;
}

static int on_stream_close(
	nghttp2_session *session, int32_t stream_id, uint32_t error_code, void *arg)
{
	struct bench_call *call = nghttp2_session_get_stream_user_data(session, stream_id);
	(void)arg;
	if (call == NULL)
		return 0;
	(void)nghttp2_session_set_stream_user_data(session, stream_id, NULL);
	free(call->in);
	call->in = NULL;
	call->in_len = call->in_size = 0;
	call->on_end(call, error_code == NGHTTP2_NO_ERROR ? call->status : -1);
	return 0;
}

static void on_io(int fd, short what, void *arg)
{
	static uint8_t bytes[READ_BYTES];
	struct bench_grpc_conn *c;
	OBJ_CAST(c, arg, CONN_MAGIC);
	if ((what & EV_READ) != 0) {
		ssize_t n = recv(fd, bytes, sizeof(bytes), 0);
		if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR) ||
			(n > 0 && nghttp2_session_mem_recv(c->session, bytes, (size_t)n) != n))
			conn_broken(c);
	}
	flush_later(c);
}

/* ---- Life ------------------------------------------------------------------------------------ */

static nghttp2_session *session_new(struct bench_grpc_conn *c)
{
	static const nghttp2_settings_entry settings[] = {
		{NGHTTP2_SETTINGS_ENABLE_PUSH, 0},
		{NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, WINDOW_BYTES},
	};
	nghttp2_session_callbacks *callbacks;
	nghttp2_session *session;
	ASSERT(nghttp2_session_callbacks_new(&callbacks) == 0);
	nghttp2_session_callbacks_set_on_data_chunk_recv_callback(callbacks, on_data);
	nghttp2_session_callbacks_set_on_header_callback(callbacks, on_header);
	nghttp2_session_callbacks_set_on_stream_close_callback(callbacks, on_stream_close);
	ASSERT(nghttp2_session_client_new(&session, callbacks, c) == 0);
	nghttp2_session_callbacks_del(callbacks);
	ASSERT(nghttp2_submit_settings(session, NGHTTP2_FLAG_NONE, settings, ARRAY_LEN(settings)) ==
		0);
	ASSERT(nghttp2_session_set_local_window_size(session, NGHTTP2_FLAG_NONE, 0, WINDOW_BYTES) ==
		0);
	return session;
}

static int connect_to(int port)
{
	const struct sockaddr_in a = {.sin_family = AF_INET,
		.sin_addr.s_addr = htonl(INADDR_LOOPBACK),
		.sin_port = htons((uint16_t)port)};
	int on = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return -1;
	if (connect(fd, (const struct sockaddr *)&a, sizeof(a)) != 0 ||
		fcntl(fd, F_SETFL, O_NONBLOCK) != 0 ||
		setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on)) != 0) {
		int err = errno;
		close(fd);
		errno = err;
		return -1;
	}
	return fd;
}

struct bench_grpc *bench_grpc_open(struct ev_loop *loop, int port, size_t n)
{
	struct bench_grpc *g = mem_new(&mem_grpc, sizeof(*g) + n * sizeof(g->conns[0]));
	g->loop = loop;
	snprintf(g->authority, sizeof(g->authority), "127.0.0.1:%d", port);
	for (; g->n < n; g->n++) {
		struct bench_grpc_conn *c = &g->conns[g->n];
		*c = (struct bench_grpc_conn){
			.magic = CONN_MAGIC, .owner = g, .fd = connect_to(port)};
		if (c->fd < 0) {
			bench_grpc_close(&g);
			return NULL;
		}
		buf_init(&c->out, 0);
		c->session = session_new(c);
		ev_io_init(&c->io, loop, "bench connection", on_io, c);
		ev_io_set(&c->io, c->fd, EV_READ);
		flush_later(c);
	}
	return g;
}

static void forget_call(nghttp2_session *session, int32_t id)
{
	struct bench_call *call = nghttp2_session_get_stream_user_data(session, id);
	if (call == NULL)
		return;
	(void)nghttp2_session_set_stream_user_data(session, id, NULL);
	free(call->in);
	call->in = NULL;
}

void bench_grpc_close(struct bench_grpc **gp)
{
	struct bench_grpc *g = *gp;
	if (g == NULL)
		return;
	for (size_t i = 0; i < g->n; i++) {
		struct bench_grpc_conn *c = &g->conns[i];
		ev_defer_cancel(g->loop, &c->flush);
		ev_io_stop(&c->io);
		/* Ours are odd, and rise. */
		for (uint32_t id = 1; id < nghttp2_session_get_next_stream_id(c->session); id += 2)
			forget_call(c->session, (int32_t)id);
		nghttp2_session_del(c->session);
		close(c->fd);
		buf_free(&c->out);
	}
	mem_free(&mem_grpc, g);
	*gp = NULL;
}

/* ---- Protobuf -------------------------------------------------------------------------------- */

static void put_varint(struct buf *b, uint64_t v)
{
	for (; v >= 0x80; v >>= 7)
		buf_put_u8(b, (uint8_t)(v | 0x80));
	buf_put_u8(b, (uint8_t)v);
}

void bench_pb_varint(struct buf *b, unsigned field, uint64_t value)
{
	put_varint(b, field << 3);
	put_varint(b, value);
}

void bench_pb_bytes(struct buf *b, unsigned field, const void *data, size_t len)
{
	put_varint(b, field << 3 | 2);
	put_varint(b, len);
	buf_put(b, data, len);
}

void bench_pb_frame(struct buf *framed, const struct buf *message)
{
	buf_put_u8(framed, 0);
	buf_put_be32(framed, (uint32_t)message->len_bytes);
	buf_put(framed, message->data, message->len_bytes);
}
