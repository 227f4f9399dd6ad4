/* SPDX-License-Identifier: PostgreSQL */
/*
 * Plain HTTP/1.1 requests on a connection, one at a time: the next one is looked at when the answer
 * to the last one has left. What is wrong with a request is answered, and the connection closed.
 */
#include "config.h"

#include <string.h>

#include "common/base/err.h"
#include "common/base/mem.h"
#include "watchd/h2_int.h"

static void put_answer(
	struct h2_conn *c, int status, const char *content_type, const void *body, size_t len)
{
	struct buf out;
	buf_init(&out, 0);
	http1_put_head(&out, status, content_type, len, c->http.keep_alive);
	if (len > 0 && !c->http.head_only)
		buf_put(&out, body, len);
	h2_conn_put(c, out.data, out.len_bytes);
	buf_free(&out);
}

static void refuse(struct h2_conn *c, enum h2_stat stat, int status)
{
	h2_count(c->srv, stat, 1);
	c->http.keep_alive = false;
	buf_reset(&c->in);
	put_answer(c, status, NULL, NULL, 0);
}

static void refuse_head(struct h2_conn *c, int err)
{
	if (err == -ERR_LIMIT)
		refuse(c, H2_STAT_HEADERS_LARGE, 431);
	else
		refuse(c, H2_STAT_BAD_REQUEST, err == -ERR_VERSION ? 505 : 400);
}

/* The request at the start of c->in, if it is whole. */
static void take_request(struct h2_conn *c)
{
	struct http1_request rq;
	size_t have = c->in.len_bytes < H2_HEAD_MAX ? c->in.len_bytes : H2_HEAD_MAX;
	int err = http1_parse(c->in.data, have, &rq);
	if (err == -ERR_TRUNCATED && have < H2_HEAD_MAX)
		return;
	c->http.head_only = false;
	if (err != 0) {
		refuse_head(c, err == -ERR_TRUNCATED ? -ERR_LIMIT : err);
		return;
	}
	h2_count(c->srv, H2_STAT_HTTP, 1);
	c->http.head_only = rq.method == HTTP1_HEAD;
	c->http.keep_alive = rq.keep_alive && !c->srv->drain.on && !c->eof;
	if (rq.has_body) {
		refuse(c, H2_STAT_BAD_REQUEST, rq.method == HTTP1_OTHER ? 405 : 413);
		return;
	}
	if (rq.method == HTTP1_OTHER) {
		refuse(c, H2_STAT_BAD_REQUEST, 405);
		return;
	}
	c->http.busy = true;
	c->srv->ops->on_http(&c->http, &rq, c->srv->arg);
	buf_consume(&c->in, rq.head_bytes);
	if (c->in.len_bytes == 0 && c->in.cap_bytes > 1024)
		buf_free(&c->in);
}

/* Something was asked and not answered yet, or the answer has not left. */
static bool is_busy(const struct h2_conn *c)
{
	return c->http.busy || c->out.len_bytes > c->out_at || !list_empty(&c->in_dirty);
}

void h2_http1_read(struct h2_conn *c)
{
	if (!c->http.keep_alive)
		buf_reset(&c->in); /* the last answer was given */
	else if (!is_busy(c) && c->in.len_bytes > 0)
		take_request(c);
	if (c->state == CONN_HTTP1 && c->in.len_bytes > H2_HEAD_MAX)
		h2_flush_soon(c); /* stops reading */
}

static void run_again(void *arg)
{
	struct h2_conn *c;
	OBJ_CAST(c, arg, H2_CONN_MAGIC);
	if (c->state == CONN_HTTP1)
		h2_http1_read(c);
}

void h2_http1_flushed(struct h2_conn *c)
{
	if (c->http.busy)
		return;
	if (!c->http.keep_alive)
		h2_conn_linger(c);
	else if (c->in.len_bytes > 0)
		ev_defer(c->srv->loop, &c->again, run_again, c);
}

void h2_http1_gone(struct h2_conn *c)
{
	struct h2_server *srv = c->srv;
	if (!c->http.busy)
		return;
	c->http.busy = false;
	if (srv->ops->on_http_gone != NULL)
		srv->ops->on_http_gone(&c->http, srv->arg);
}

void h2_http_answer(
	struct h2_http *h, int status, const char *content_type, const void *body, size_t len)
{
	OBJ_CHECK(h, H2_HTTP_MAGIC);
	ASSERT(h->busy);
	struct h2_conn *c = (struct h2_conn *)(void *)((char *)h - offsetof(struct h2_conn, http));
	OBJ_CHECK(c, H2_CONN_MAGIC);
	h->busy = false;
	put_answer(c, status, content_type, body, len);
}
