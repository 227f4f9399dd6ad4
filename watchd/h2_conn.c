/* SPDX-License-Identifier: PostgreSQL */
/*
 * A connection's socket: the first bytes, reading, one write per pass, timeouts, the end. The
 * states are drawn in h2_int.h.
 *
 * Reading: one recv per pass into the server's buffer, handed on in place. Writing: nghttp2 is
 * asked for frames when the pass is over; they are collected in the server's buffer and leave in
 * one send. Only what the socket does not take is kept with the connection, and while something is
 * kept nothing is collected: what a slow reader costs is bounded by H2_FILL_BYTES and its queues.
 */
#include "config.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/base/err.h"
#include "common/base/listener.h"
#include "common/base/log.h"
#include "common/base/mem.h"
#include "watchd/h2_int.h"

MEM_TYPE(mem_conn, "h2 connection");

static void conn_set_state(struct h2_conn *c, enum conn_state state)
{
	static const char *const names[] = {"new", "h2", "http1", "linger", "gone"};
	if (log_get_level() >= LOG_LEVEL_DEBUG) {
		char peer[80];
		log_debug("watch.connection", "connection from %s: %s -> %s",
			h2_conn_peer(c, peer, sizeof(peer)), names[c->state], names[state]);
	}
	c->state = (uint8_t)state;
}

const char *h2_conn_peer(const struct h2_conn *c, char *out, size_t size)
{
	return listener_peer(c->fd, out, size);
}

/* --- the end --- */

static void release(void *arg)
{
	struct h2_conn *c;
	OBJ_CAST(c, arg, H2_CONN_MAGIC);
	ASSERT(c->state == CONN_GONE && list_empty(&c->streams));
	ASSERT(c->queued_bytes == 0 && c->unfinished_bytes == 0);
	buf_free(&c->in);
	buf_free(&c->out);
	buf_free(&c->head);
	c->magic = c->http.magic = 0;
	mem_free(&mem_conn, c);
}

static void end_session(struct h2_conn *c)
{
	/* A user that ends one call because of another one's end finds them all over. */
	list_for_each (it, &c->streams)
		list_entry(it, struct h2_stream, in_conn)->over = true;
	while (!list_empty(&c->streams))
		h2_stream_gone(list_first(&c->streams, struct h2_stream, in_conn));
	nghttp2_session_del(c->session);
	c->session = NULL;
}

void h2_conn_gone(struct h2_conn *c)
{
	if (c->state == CONN_GONE)
		return;
	conn_set_state(c, CONN_GONE);
	ev_io_stop(&c->io);
	(void)close(c->fd); /* nothing that was answered depends on it */
	c->fd = -1;
	list_remove(&c->in_all);
	list_remove(&c->in_dirty);
	ev_defer_cancel(c->srv->loop, &c->again);
	end_session(c);
	h2_http1_gone(c);
	h2_server_conn_gone(c->srv);
	ev_defer(c->srv->loop, &c->release, release, c);
}

void h2_conn_fail(struct h2_conn *c, enum h2_stat stat, const char *why)
{
	char peer[80];
	if (!c->ending) {
		log_limited(LOG_LEVEL_INFO, "watch.connection", "connection from %s ended: %s",
			h2_conn_peer(c, peer, sizeof(peer)), why);
		h2_count(c->srv, stat, 1);
	}
	h2_conn_gone(c);
}

void h2_conn_linger(struct h2_conn *c)
{
	if (c->state == CONN_LINGER || c->state == CONN_GONE)
		return;
	conn_set_state(c, CONN_LINGER);
	end_session(c);
	h2_http1_gone(c);
	c->quiet_ms = ev_now_ms();
	(void)shutdown(c->fd, SHUT_WR); /* if it fails, the sweep closes */
	ev_io_set(&c->io, c->fd, EV_READ);
}

void h2_conn_shut(struct h2_conn *c)
{
	if (c->state == CONN_NEW)
		h2_conn_gone(c);
	else if (c->state == CONN_H2)
		h2_session_shut(c);
	else if (c->state == CONN_HTTP1)
		c->http.keep_alive = false;
	h2_flush_soon(c);
}

/* --- sending --- */

static size_t out_left(const struct h2_conn *c)
{
	return c->out.len_bytes - c->out_at;
}

static void update_io(struct h2_conn *c)
{
	short what = out_left(c) > 0 ? EV_WRITE : 0;
	/* A client that sends requests ahead of its answers waits for them. */
	if (!c->eof && !(c->state == CONN_HTTP1 && c->in.len_bytes > H2_HEAD_MAX))
		what |= EV_READ;
	ev_io_set(&c->io, c->fd, what);
}

/* As much as the socket takes now: how much that was, or -errno. */
static ssize_t send_some(struct h2_conn *c, const uint8_t *data, size_t len)
{
	for (;;) {
		ssize_t n = send(c->fd, data, len, MSG_NOSIGNAL);
		if (n >= 0) {
			c->sent_ms = c->srv->now_ms;
			h2_count(c->srv, H2_STAT_BYTES_OUT, (uint64_t)n);
			return n;
		}
		if (errno == EAGAIN || errno == EWOULDBLOCK)
			return 0;
		if (errno != EINTR)
			return -errno;
	}
}

/* What an earlier write left over. */
static int write_left(struct h2_conn *c)
{
	if (out_left(c) == 0)
		return 0;
	ssize_t n = send_some(c, c->out.data + c->out_at, out_left(c));
	if (n < 0)
		return (int)n;
	c->out_at += (size_t)n;
	if (out_left(c) == 0) {
		buf_free(&c->out);
		buf_init(&c->out, 0);
		c->out_at = 0;
	}
	return 0;
}

/* Frames into the server's buffer; DATA goes there by h2_out_write, which leaves room for one other
 * frame behind it. */
static int fill(struct h2_conn *c)
{
	struct h2_server *srv = c->srv;
	srv->fill_full = false;
	while (!srv->fill_full) {
		const uint8_t *p;
		ssize_t n = nghttp2_session_mem_send(c->session, &p);
		if (n <= 0)
			return (int)n;
		ASSERT((size_t)n <= sizeof(srv->fill_buf) - srv->fill_len);
		memcpy(srv->fill_buf + srv->fill_len, p, (size_t)n);
		srv->fill_len += (size_t)n;
		srv->fill_full = srv->fill_len + H2_FRAME_ROOM > sizeof(srv->fill_buf);
	}
	return 0;
}

static int write_fill(struct h2_conn *c)
{
	struct h2_server *srv = c->srv;
	size_t len = srv->fill_len;
	srv->fill_len = 0;
	ssize_t n = len > 0 ? send_some(c, srv->fill_buf, len) : 0;
	if (n < 0)
		return (int)n;
	if ((size_t)n < len)
		buf_put(&c->out, srv->fill_buf + n, len - (size_t)n);
	return 0;
}

static void tell_drained(struct h2_conn *c)
{
	while (!list_empty(&c->drained)) {
		struct h2_stream *s = list_first(&c->drained, struct h2_stream, in_drained);
		list_remove(&s->in_drained);
		if (!s->over)
			s->ops->on_drained(s, s->user);
	}
}

static void flush_h2(struct h2_conn *c)
{
	int err = fill(c);
	if (err != 0) {
		c->srv->fill_len = 0;
		h2_conn_fail(c, H2_STAT_ENDED_PROTOCOL, nghttp2_strerror(err));
		return;
	}
	err = write_fill(c);
	if (err != 0) {
		h2_conn_gone(c);
		return;
	}
	tell_drained(c);
	if (out_left(c) > 0)
		return;
	if (c->srv->fill_full)
		h2_flush_soon(c);
	else if (nghttp2_session_want_read(c->session) == 0 &&
		 nghttp2_session_want_write(c->session) == 0)
		h2_conn_linger(c);
}

void h2_conn_flush(struct h2_conn *c)
{
	OBJ_CHECK(c, H2_CONN_MAGIC);
	if (c->state == CONN_GONE || c->state == CONN_LINGER)
		return;
	if (write_left(c) != 0) {
		h2_conn_gone(c);
		return;
	}
	if (out_left(c) == 0 && c->state == CONN_H2)
		flush_h2(c);
	else if (out_left(c) == 0 && c->state == CONN_HTTP1)
		h2_http1_flushed(c);
	if (c->state != CONN_GONE && c->state != CONN_LINGER)
		update_io(c);
}

void h2_conn_put(struct h2_conn *c, const void *data, size_t len)
{
	if (out_left(c) == 0)
		c->sent_ms = ev_now_ms(); /* from now on the client is waited for */
	buf_put(&c->out, data, len);
	h2_flush_soon(c);
}

/* --- reading --- */

/* What a client of HTTP/2 begins with; no method of HTTP/1 is "PRI". */
static const char preface[] = "PRI * HTTP/2.0";

static void read_h2(struct h2_conn *c, const uint8_t *data, size_t len)
{
	int err = h2_session_read(c, data, len);
	if (err == 0)
		h2_flush_soon(c);
	else /* every other error that it gives up with is one of its limits */
		h2_conn_fail(c,
			err == NGHTTP2_ERR_BAD_CLIENT_MAGIC ? H2_STAT_ENDED_PROTOCOL
							    : H2_STAT_ENDED_FLOOD,
			nghttp2_strerror(err));
}

static void read_http1(struct h2_conn *c, const uint8_t *data, size_t len)
{
	if (c->in.len_bytes == 0)
		c->quiet_ms = c->heard_ms; /* each head has its own time */
	buf_put(&c->in, data, len);
	h2_http1_read(c);
}

static void read_first(struct h2_conn *c, const uint8_t *data, size_t len)
{
	buf_put(&c->in, data, len);
	size_t n = c->in.len_bytes < 4 ? c->in.len_bytes : 4;
	if (memcmp(c->in.data, preface, n) != 0) {
		conn_set_state(c, CONN_HTTP1);
		h2_http1_read(c);
	} else if (n == 4) {
		struct buf first = c->in;
		buf_init(&c->in, 0);
		conn_set_state(c, CONN_H2);
		h2_session_start(c);
		read_h2(c, first.data, first.len_bytes);
		buf_free(&first);
	}
}

static void on_eof(struct h2_conn *c)
{
	/* One that has asked and shut its side may still wait for the answer. */
	if (c->state == CONN_HTTP1 && (c->http.busy || out_left(c) > 0)) {
		c->eof = true;
		c->http.keep_alive = false;
		update_io(c);
		return;
	}
	h2_conn_gone(c);
}

static void on_readable(struct h2_conn *c)
{
	struct h2_server *srv = c->srv;
	ssize_t n = recv(c->fd, srv->read_buf, sizeof(srv->read_buf), 0);
	if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR))
		return;
	if (n < 0) {
		h2_conn_gone(c);
		return;
	}
	if (n == 0) {
		on_eof(c);
		return;
	}
	c->heard_ms = ev_now_ms();
	h2_count(srv, H2_STAT_BYTES_IN, (uint64_t)n);
	if (c->state == CONN_H2)
		read_h2(c, srv->read_buf, (size_t)n);
	else if (c->state == CONN_NEW)
		read_first(c, srv->read_buf, (size_t)n);
	else if (c->state == CONN_HTTP1)
		read_http1(c, srv->read_buf, (size_t)n);
}

static void on_io(int fd, short what, void *arg)
{
	struct h2_conn *c;
	OBJ_CAST(c, arg, H2_CONN_MAGIC);
	(void)fd;
	if ((what & EV_WRITE) != 0)
		h2_flush_soon(c);
	if ((what & EV_READ) != 0)
		on_readable(c);
}

/* --- time --- */

/* Calls that are ended, or whose generator waits, and whose client takes nothing. */
static void sweep_streams(struct h2_conn *c, uint64_t now)
{
	list_for_each_safe (it, &c->closing) {
		struct h2_stream *s = list_entry(it, struct h2_stream, in_closing);
		if (now - s->moved_ms < c->srv->limits.stall_ms)
			continue;
		h2_count(c->srv, H2_STAT_ENDED_STALLED, 1);
		h2_stream_reset(s, NGHTTP2_CANCEL);
	}
}

static bool is_idle(const struct h2_conn *c, uint64_t now)
{
	uint32_t idle_ms = c->srv->limits.idle_ms;
	uint64_t since = c->heard_ms > c->quiet_ms ? c->heard_ms : c->quiet_ms;
	if (c->state == CONN_NEW || (c->state == CONN_H2 && !c->greeted) ||
		(c->state == CONN_HTTP1 && c->in.len_bytes > 0))
		return !c->http.busy && now - c->quiet_ms >= H2_FIRST_MS;
	return c->n_streams == 0 && !c->http.busy && idle_ms > 0 && now - since >= idle_ms;
}

void h2_conn_sweep(struct h2_conn *c, uint64_t now)
{
	const struct h2_limits *l = &c->srv->limits;
	c->n_control = 0;
	if (c->state == CONN_LINGER) {
		if (now - c->quiet_ms >= H2_LINGER_MS)
			h2_conn_gone(c);
		return;
	}
	if (out_left(c) > 0 && now - c->sent_ms >= l->stall_ms)
		h2_conn_fail(c, H2_STAT_ENDED_STALLED, "nothing was taken for too long");
	else if (c->unfinished_bytes > 0 && c->n_paused == 0 && now - c->heard_ms >= l->stall_ms)
		h2_conn_fail(c, H2_STAT_ENDED_STALLED, "a message stopped in its middle");
	else if (is_idle(c, now) && c->greeted)
		h2_session_idle(c);
	else if (is_idle(c, now))
		h2_conn_fail(c, H2_STAT_ENDED_IDLE, "idle");
	else
		sweep_streams(c, now);
}

/* --- life --- */

void h2_server_add(struct h2_server *srv, int fd)
{
	OBJ_CHECK(srv, H2_SERVER_MAGIC);
	struct h2_conn *c = mem_new(&mem_conn, sizeof(*c));
	c->magic = H2_CONN_MAGIC;
	c->http.magic = H2_HTTP_MAGIC;
	c->http.keep_alive = true;
	c->srv = srv;
	c->fd = fd;
	c->heard_ms = c->sent_ms = c->quiet_ms = ev_now_ms();
	list_push_back(&srv->conns, &c->in_all);
	list_init(&c->in_dirty);
	list_init(&c->streams);
	list_init(&c->closing);
	list_init(&c->drained);
	buf_init(&c->in, 0);
	buf_init(&c->out, 0);
	buf_init(&c->head, 0);
	srv->n_conns++;
	h2_count(srv, H2_STAT_ACCEPTED, 1);
	ev_io_init(&c->io, srv->loop, "watch connection", on_io, c);
	ev_io_set(&c->io, fd, EV_READ);
}
