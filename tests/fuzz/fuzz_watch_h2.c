/* SPDX-License-Identifier: PostgreSQL */
/*
 * The whole transport fed raw bytes over a socket: HTTP/2 and HTTP/1.1. The first byte says in how
 * many pieces the rest arrives; handlers echo, stream, hold back, pause and refuse. Afterwards
 * nothing may be left: no call, no byte in the books, no object.
 */
#include "config.h"

#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/base/log.h"
#include "common/base/mem.h"
#include "common/base/proc.h"
#include "watchd/h2_int.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct {
	struct ev_loop *loop;
	struct stats *stats;
	struct h2_server *srv;
	size_t n_begun, n_gone;
	size_t n_http, n_http_answered;
	struct h2_http *waiting;
} f;

static void on_gone(struct h2_stream *s, void *user)
{
	(void)s;
	(void)user;
	f.n_gone++;
}

static void echo(struct h2_stream *s, const uint8_t *data, size_t len, void *user)
{
	(void)user;
	h2_stream_reply(s, data, len);
}

static void each(struct h2_stream *s, const uint8_t *data, size_t len, void *user)
{
	(void)user;
	h2_stream_send(s, data, len);
	h2_stream_pause(s, len == 3);
}

static void end(struct h2_stream *s, void *user)
{
	(void)user;
	h2_stream_end(s, GRPC_ABORTED, "half closed");
}

static void drained(struct h2_stream *s, void *user)
{
	(void)user;
	h2_stream_send(s, "more", 4);
}

static int fill(uint8_t *out, size_t max, void *arg)
{
	(void)arg;
	memset(out, 'x', max);
	return (int)max;
}

static void done(void *arg)
{
	(void)arg;
}

static void big(struct h2_stream *s, const uint8_t *data, size_t len, void *user)
{
	static const struct h2_source source = {fill, done};
	(void)data;
	(void)user;
	h2_stream_send_generated(s, (uint32_t)len * 100000, &source, NULL);
	if (len == 1)
		h2_stream_reset(s, NGHTTP2_CANCEL);
	else
		h2_stream_end(s, GRPC_OK, NULL);
}

static const struct {
	const char *path;
	struct h2_call_ops ops;
} calls[] = {
	{"/e", {.on_message = echo, .on_gone = on_gone, .unary = true}},
	{"/s", {.on_message = each,
		       .on_half_closed = end,
		       .on_gone = on_gone,
		       .on_drained = drained,
		       .low_bytes = 100}},
	{"/b", {.on_message = big, .on_gone = on_gone}},
};

static void on_call(struct h2_stream *s, const struct h2_request *rq, void *arg)
{
	(void)arg;
	for (size_t i = 0; i < ARRAY_LEN(calls); i++) {
		if (strcmp(rq->path, calls[i].path) == 0) {
			f.n_begun++;
			h2_stream_accept(s, &calls[i].ops, NULL);
			return;
		}
	}
	if (rq->path[0] == 'x')
		h2_stream_end(s, GRPC_UNAVAILABLE, rq->token);
}

static void on_http(struct h2_http *h, const struct http1_request *rq, void *arg)
{
	(void)arg;
	f.n_http++;
	if (http1_text_is(rq->path, "/later")) {
		f.waiting = h;
	} else {
		f.n_http_answered++;
		h2_http_answer(h, 200, "text/plain", rq->query.p, rq->query.len);
	}
}

static void on_http_gone(struct h2_http *h, void *arg)
{
	(void)arg;
	ASSERT(h == f.waiting);
	f.waiting = NULL;
	f.n_http_answered++;
}

static void set_up(void)
{
	static const struct h2_server_ops ops = {on_call, on_http, on_http_gone};
	static const struct stats_row rows[H2_STAT_COUNT] = {
#define X(id, name, kind, unit, level, help) [id] = {"watch_" name, kind, unit, level, help},
		H2_COUNTERS(X)
#undef X
	};
	struct h2_server_options o = {.limits = H2_LIMITS_DEFAULT};
	o.limits.max_streams = 50;
	o.limits.max_message_bytes = 2000;
	o.limits.max_unfinished_bytes = 5000;
	o.limits.max_queued_bytes = 20000;
	o.limits.max_header_bytes = 1000;
	log_init("fuzz", LOG_LEVEL_ERROR);
	f.loop = ev_loop_new();
	f.stats = stats_new(NULL, rows, H2_STAT_COUNT);
	o.stats = f.stats;
	f.srv = h2_server_new(f.loop, &o, &ops, NULL);
}

/* Says it piece by piece; what the server says is read and forgotten. */
static void talk(int fd, const uint8_t *data, size_t size, size_t piece)
{
	static uint8_t out[65536];
	for (size_t at = 0; at < size;) {
		size_t n = size - at < piece ? size - at : piece;
		ssize_t sent = send(fd, data + at, n, MSG_NOSIGNAL | MSG_DONTWAIT);
		if (sent <= 0)
			break;
		at += (size_t)sent;
		ev_loop_once(f.loop, false);
		while (recv(fd, out, sizeof(out), MSG_DONTWAIT) > 0)
			continue;
	}
	for (int i = 0; i < 4; i++) {
		ev_loop_once(f.loop, false);
		while (recv(fd, out, sizeof(out), MSG_DONTWAIT) > 0)
			continue;
	}
}

static void sweep(uint64_t later_ms)
{
	list_for_each_safe (it, &f.srv->conns)
		h2_conn_sweep(list_entry(it, struct h2_conn, in_all), ev_now_ms() + later_ms);
}

static void answer(void)
{
	struct h2_http *h = f.waiting;
	if (h == NULL)
		return;
	f.waiting = NULL;
	f.n_http_answered++;
	h2_http_answer(h, 404, NULL, NULL, 0);
	ev_loop_once(f.loop, false);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	int fds[2];
	if (f.loop == NULL)
		set_up();
	if (size < 1)
		return 0;
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) != 0)
		abort();
	ASSERT(proc_set_nonblock(fds[0]) == 0);
	h2_server_add(f.srv, fds[0]);
	talk(fds[1], data + 1, size - 1, data[0] == 0 ? size : data[0]);
	ASSERT(f.srv->n_conns <= 1 && f.srv->unfinished_bytes <= 5000);
	if ((data[0] & 1) != 0)
		answer();
	sweep((data[0] & 2) != 0 ? 100000 : 0);
	ev_loop_once(f.loop, false);
	close(fds[1]);
	for (int i = 0; i < 4; i++)
		ev_loop_once(f.loop, false);
	answer(); /* it is waited for, even by a client that has shut its side */
	sweep(1000000);
	for (int i = 0; i < 4; i++)
		ev_loop_once(f.loop, false);
	ASSERT(f.srv->n_conns == 0 && f.srv->n_streams == 0);
	ASSERT(f.srv->queued_bytes == 0 && f.srv->unfinished_bytes == 0);
	ASSERT(f.n_begun == f.n_gone && f.n_http == f.n_http_answered);
	return 0;
}
