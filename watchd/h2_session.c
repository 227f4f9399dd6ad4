/* SPDX-License-Identifier: PostgreSQL */
/*
 * nghttp2's callbacks: frames become calls. nghttp2 itself keeps the protocol (order of frames,
 * windows, HPACK, preface, pings); what it leaves to us are limits.
 *
 * Floods: what costs the client nothing and us something is counted. RST_STREAM, queued
 * acknowledgements, settings and CONTINUATION frames are counted by nghttp2, everything else
 * without use (pings, empty DATA, PRIORITY, invalid frames, headers over the limit)
 * here, per sweep. Over the limit: GOAWAY with ENHANCE_YOUR_CALM, and nothing more is read.
 */
#include "config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/err.h"
#include "common/base/log.h"
#include "common/base/mem.h"
#include "watchd/grpc_proto.h"
#include "watchd/h2_int.h"

#define HEAD_KEEP_BYTES 1024 /* a buffer of up to this size is kept for the next call */

MEM_TYPE(mem_stream, "h2 stream");

static struct h2_conn *conn_of(void *user_data)
{
	struct h2_conn *c;
	OBJ_CAST(c, user_data, H2_CONN_MAGIC);
	return c;
}

/* NULL: nghttp2 knows a stream that we do not (it refused it). */
static struct h2_stream *stream_of(struct h2_conn *c, int32_t id)
{
	struct h2_stream *s = nghttp2_session_get_stream_user_data(c->session, id);
	if (s != NULL)
		OBJ_CHECK(s, H2_STREAM_MAGIC);
	return s;
}

/* Frames without use, or what is as bad as that many. */
static void count_control(struct h2_conn *c, uint32_t n)
{
	c->n_control += n;
	if (c->n_control <= H2_CONTROL_MAX || c->ending)
		return;
	char peer[80];
	c->ending = true;
	h2_count(c->srv, H2_STAT_ENDED_FLOOD, 1);
	log_limited(LOG_LEVEL_INFO, "watch.connection",
		"connection from %s ended: more than %d frames without use within a second",
		h2_conn_peer(c, peer, sizeof(peer)), H2_CONTROL_MAX);
	(void)nghttp2_session_terminate_session(c->session, NGHTTP2_ENHANCE_YOUR_CALM);
}

/* --- a call begins --- */

static int on_begin_headers(nghttp2_session *session, const nghttp2_frame *frame, void *user_data)
{
	struct h2_conn *c = conn_of(user_data);
	c->cur = (struct h2_head){0};
	buf_reset(&c->head);
	buf_put_u8(&c->head, 0); /* so that offset 0 means none */
	if (frame->hd.type != NGHTTP2_HEADERS || frame->headers.cat != NGHTTP2_HCAT_REQUEST) {
		count_control(c, 1); /* trailers say nothing, and nothing ends them */
		return 0;
	}
	struct h2_stream *s = mem_new(&mem_stream, sizeof(*s));
	s->magic = H2_STREAM_MAGIC;
	s->id = frame->hd.stream_id;
	s->c = c;
	s->last = &s->first;
	list_init(&s->in_closing);
	list_init(&s->in_drained);
	buf_init(&s->in, 0);
	ev_timer_init(&s->deadline, c->srv->loop, "call's deadline", h2_out_deadline, s);
	list_push_back(&c->streams, &s->in_conn);
	c->n_streams++;
	c->srv->n_streams++;
	int rc = nghttp2_session_set_stream_user_data(session, s->id, s);
	ASSERT(rc == 0);
	return 0;
}

static size_t keep(struct h2_conn *c, const uint8_t *value, size_t len)
{
	size_t at = c->head.len_bytes;
	buf_put(&c->head, value, len);
	buf_put_u8(&c->head, 0);
	return at;
}

static bool is(const uint8_t *a, size_t len, const char *b)
{
	return len == strlen(b) && memcmp(a, b, len) == 0;
}

static void take_method(struct h2_conn *c, const uint8_t *v, size_t len)
{
	c->cur.is_post = is(v, len, "POST");
}

static void take_path(struct h2_conn *c, const uint8_t *v, size_t len)
{
	c->cur.path = keep(c, v, len);
}

static void take_content_type(struct h2_conn *c, const uint8_t *v, size_t len)
{
	c->cur.is_grpc = grpc_content_type_ok((const char *)v, len);
}

static void take_timeout(struct h2_conn *c, const uint8_t *v, size_t len)
{
	if (grpc_timeout_parse((const char *)v, len, &c->cur.timeout_us) != 0)
		c->cur.malformed = true;
	c->cur.has_timeout = true;
}

static void take_encoding(struct h2_conn *c, const uint8_t *v, size_t len)
{
	if (!is(v, len, "identity") && len > 0)
		c->cur.encoding = keep(c, v, len);
}

static void take_token(struct h2_conn *c, const uint8_t *v, size_t len)
{
	c->cur.token = keep(c, v, len);
}

static void take_authorization(struct h2_conn *c, const uint8_t *v, size_t len)
{
	c->cur.authorization = keep(c, v, len);
}

static void take_has_leader(struct h2_conn *c, const uint8_t *v, size_t len)
{
	c->cur.has_leader = is(v, len, "true");
}

static void take_api_version(struct h2_conn *c, const uint8_t *v, size_t len)
{
	c->cur.api_version = keep(c, v, len);
}

static const struct {
	const char *name;
	size_t len;
	void (*take)(struct h2_conn *c, const uint8_t *value, size_t len);
} header_rows[] = {
	{":method", 7, take_method},
	{":path", 5, take_path},
	{"content-type", 12, take_content_type},
	{"grpc-timeout", 12, take_timeout},
	{"grpc-encoding", 13, take_encoding},
	{"token", 5, take_token},
	{"authorization", 13, take_authorization},
	{"hasleader", 9, take_has_leader},
	{"client-api-version", 18, take_api_version},
};

/* As RFC 9113, section 8, has it, but for what :authority may be. */
static bool header_is_wrong(struct h2_head *h, const uint8_t *name, size_t len)
{
	static const char *const pseudo[] = {":method", ":path", ":scheme", ":authority"};
	static const char *const hop_by_hop[] = {
		"connection", "proxy-connection", "keep-alive", "upgrade", "transfer-encoding"};

	if (len == 0)
		return true;
	if (name[0] == ':') {
		for (size_t i = 0; i < ARRAY_LEN(pseudo); i++) {
			if (!is(name, len, pseudo[i]))
				continue;
			bool again = (h->pseudo & 1U << i) != 0;
			h->pseudo |= 1U << i;
			return again || h->regular;
		}
		return true;
	}
	h->regular = true;
	for (size_t i = 0; i < ARRAY_LEN(hop_by_hop); i++)
		if (is(name, len, hop_by_hop[i]))
			return true;
	for (size_t i = 0; i < len; i++)
		if (name[i] <= ' ' || name[i] >= 0x7f || (name[i] >= 'A' && name[i] <= 'Z'))
			return true;
	return false;
}

static int on_header(nghttp2_session *session, const nghttp2_frame *frame, const uint8_t *name,
	size_t name_len, const uint8_t *value, size_t value_len, uint8_t flags, void *user_data)
{
	struct h2_conn *c = conn_of(user_data);
	(void)session;
	(void)flags;
	c->cur.bytes += name_len + value_len + 32; /* RFC 9113, section 6.5.2 */
	if (c->cur.bytes > c->srv->limits.max_header_bytes) {
		if (!c->cur.too_large)
			count_control(c, H2_LARGE_HEADERS_COST);
		c->cur.too_large = true;
		return 0;
	}
	if (frame->headers.cat != NGHTTP2_HCAT_REQUEST)
		return 0;
	c->cur.wrong |=
		header_is_wrong(&c->cur, name, name_len) || memchr(value, 0, value_len) != NULL;
	for (size_t i = 0; i < ARRAY_LEN(header_rows); i++) {
		if (header_rows[i].len == name_len &&
			memcmp(header_rows[i].name, name, name_len) == 0) {
			header_rows[i].take(c, value, value_len);
			break;
		}
	}
	return 0;
}

static const char *text(const struct h2_conn *c, size_t at)
{
	return at == 0 ? NULL : (const char *)c->head.data + at;
}

/* The connection holds too much, or all of them together do and this one no small part. */
static bool is_crowded(const struct h2_conn *c)
{
	const struct h2_server *srv = c->srv;
	size_t max = srv->limits.max_queued_bytes;
	return c->queued_bytes > max ||
	       (srv->queued_bytes / H2_TOTAL_FACTOR > max && c->queued_bytes > H2_FAIR_BYTES);
}

bool h2_stream_is_crowded(const struct h2_stream *s)
{
	OBJ_CHECK(s, H2_STREAM_MAGIC);
	return is_crowded(s->c);
}

static bool is_over_limits(const struct h2_conn *c)
{
	const struct h2_server *srv = c->srv;
	if (is_crowded(c))
		return true;
	return srv->n_streams > H2_TOTAL_STREAMS && c->n_streams > H2_FAIR_STREAMS;
}

/* True: it was answered. What is asked for is not a gRPC call, or not one that we can take. */
static bool refuse(struct h2_stream *s)
{
	struct h2_conn *c = s->c;
	const struct h2_head *h = &c->cur;
	const struct h2_server *srv = c->srv;
	char why[256];
	if (is_over_limits(c)) {
		h2_count(c->srv, H2_STAT_REFUSED_STREAM, 1);
		h2_stream_reset(s, NGHTTP2_REFUSED_STREAM);
		return true;
	}
	if (h->wrong) {
		h2_count(c->srv, H2_STAT_BAD_REQUEST, 1);
		h2_stream_reset(s, NGHTTP2_PROTOCOL_ERROR);
		return true;
	}
	if (h->too_large) {
		h2_count(c->srv, H2_STAT_HEADERS_LARGE, 1);
		snprintf(why, sizeof(why), "the call's headers are larger than max (%zu vs. %u)",
			h->bytes, srv->limits.max_header_bytes);
		h2_out_status(s, "431", GRPC_RESOURCE_EXHAUSTED, why);
		return true;
	}
	if (h->is_post && h->is_grpc && !h->malformed && h->encoding == 0)
		return false;
	h2_count(c->srv, H2_STAT_BAD_REQUEST, 1);
	if (!h->is_post) {
		h2_out_status(s, "405", GRPC_INTERNAL, "a call has to be a POST");
	} else if (!h->is_grpc) {
		h2_out_status(s, "415", GRPC_INVALID_ARGUMENT,
			"the content-type of a call has to be application/grpc");
	} else if (h->malformed) {
		h2_out_status(s, "400", GRPC_INTERNAL, "malformed grpc-timeout");
	} else {
		snprintf(why, sizeof(why),
			"grpc: Decompressor is not installed for grpc-encoding \"%s\"",
			text(c, h->encoding));
		h2_stream_end(s, GRPC_UNIMPLEMENTED, why);
	}
	return true;
}

static void begin_call(struct h2_stream *s)
{
	struct h2_conn *c = s->c;
	const struct h2_head *h = &c->cur;
	if (refuse(s))
		return;
	h2_count(c->srv, H2_STAT_CALLS, 1);
	if (h->has_timeout && h->timeout_us < 1000) {
		h2_out_deadline(s);
		return;
	}
	if (h->has_timeout)
		ev_timer_start(&s->deadline, h->timeout_us / 1000);
	size_t token = h->token != 0 ? h->token : h->authorization;
	const struct h2_request rq = {
		.path = h->path != 0 ? text(c, h->path) : "",
		.token = text(c, token),
		.client_api_version = text(c, h->api_version),
		.has_leader = h->has_leader,
	};
	c->srv->ops->on_call(s, &rq, c->srv->arg);
	if (s->ops == NULL && !s->over)
		h2_stream_end(s, GRPC_UNIMPLEMENTED, "unknown method");
}

/* --- frames --- */

static bool is_useful(const nghttp2_frame_hd *hd)
{
	switch (hd->type) {
	case NGHTTP2_DATA:
		return hd->length > 0 || (hd->flags & NGHTTP2_FLAG_END_STREAM) != 0;
	case NGHTTP2_HEADERS:       /* limited by the streams that it opens */
	case NGHTTP2_RST_STREAM:    /* limited by nghttp2 */
	case NGHTTP2_WINDOW_UPDATE: /* one or two for each frame that we send */
		return true;
	default:
		return false;
	}
}

static int on_begin_frame(nghttp2_session *session, const nghttp2_frame_hd *hd, void *user_data)
{
	struct h2_conn *c = conn_of(user_data);
	(void)session;
	c->greeted = true;
	if (!is_useful(hd))
		count_control(c, 1);
	return 0;
}

static int on_frame(nghttp2_session *session, const nghttp2_frame *frame, void *user_data)
{
	struct h2_conn *c = conn_of(user_data);
	(void)session;
	if (frame->hd.type != NGHTTP2_HEADERS && frame->hd.type != NGHTTP2_DATA)
		return 0;
	struct h2_stream *s = stream_of(c, frame->hd.stream_id);
	if (s == NULL)
		return 0;
	if (frame->hd.type == NGHTTP2_HEADERS && frame->headers.cat == NGHTTP2_HCAT_REQUEST) {
		begin_call(s);
		if (c->head.cap_bytes > HEAD_KEEP_BYTES)
			buf_free(&c->head);
	}
	if ((frame->hd.flags & NGHTTP2_FLAG_END_STREAM) != 0)
		h2_stream_half_closed(s);
	return 0;
}

static int on_data(nghttp2_session *session, uint8_t flags, int32_t stream_id, const uint8_t *data,
	size_t len, void *user_data)
{
	struct h2_conn *c = conn_of(user_data);
	struct h2_stream *s = stream_of(c, stream_id);
	(void)session;
	(void)flags;
	if (s != NULL)
		h2_stream_data(s, data, len);
	else
		(void)nghttp2_session_consume(c->session, stream_id, len);
	return 0;
}

static int on_invalid_frame(
	nghttp2_session *session, const nghttp2_frame *frame, int err, void *user_data)
{
	struct h2_conn *c = conn_of(user_data);
	(void)session;
	(void)frame;
	if (err == NGHTTP2_ERR_REFUSED_STREAM)
		h2_count(c->srv, H2_STAT_REFUSED_STREAM, 1);
	count_control(c, 1);
	return 0;
}

static void note_goaway(struct h2_conn *c, uint32_t error)
{
	char peer[80];
	if (error == NGHTTP2_NO_ERROR || c->ending)
		return;
	/* nghttp2's limit on resets gives INTERNAL_ERROR; nothing else of ours does. */
	bool flood = error == NGHTTP2_INTERNAL_ERROR || error == NGHTTP2_ENHANCE_YOUR_CALM;
	c->ending = true;
	h2_count(c->srv, flood ? H2_STAT_ENDED_FLOOD : H2_STAT_ENDED_PROTOCOL, 1);
	log_limited(LOG_LEVEL_INFO, "watch.connection", "connection from %s ended: GOAWAY with %s",
		h2_conn_peer(c, peer, sizeof(peer)), nghttp2_http2_strerror(error));
}

static int on_frame_sent(nghttp2_session *session, const nghttp2_frame *frame, void *user_data)
{
	struct h2_conn *c = conn_of(user_data);
	if (frame->hd.type == NGHTTP2_GOAWAY) {
		note_goaway(c, frame->goaway.error_code);
	} else if (frame->hd.type == NGHTTP2_HEADERS &&
		   (frame->hd.flags & NGHTTP2_FLAG_END_STREAM) != 0) {
		/* The answer is complete; a client that is still sending is told to stop. */
		struct h2_stream *s = stream_of(c, frame->hd.stream_id);
		if (s != NULL && !s->half_closed)
			(void)nghttp2_submit_rst_stream(
				session, NGHTTP2_FLAG_NONE, s->id, NGHTTP2_NO_ERROR);
	}
	return 0;
}

static int on_stream_close(
	nghttp2_session *session, int32_t stream_id, uint32_t error, void *user_data)
{
	struct h2_stream *s = stream_of(conn_of(user_data), stream_id);
	(void)session;
	(void)error;
	if (s != NULL)
		h2_stream_gone(s);
	return 0;
}

void h2_stream_gone(struct h2_stream *s)
{
	struct h2_conn *c = s->c;
	struct h2_server *srv = c->srv;
	s->over = true;
	ev_timer_stop(&s->deadline);
	ev_defer_cancel(srv->loop, &s->again);
	list_remove(&s->in_conn);
	list_remove(&s->in_closing);
	list_remove(&s->in_drained);
	h2_out_drop(s);
	h2_in_drop(s);
	c->n_paused -= s->paused ? 1 : 0;
	c->n_streams--;
	srv->n_streams--;
	if (c->n_streams == 0)
		c->quiet_ms = ev_now_ms();
	if (s->ops != NULL && s->ops->on_gone != NULL)
		s->ops->on_gone(s, s->user);
	free(s->message);
	s->magic = 0;
	mem_free(&mem_stream, s);
}

/* --- the session --- */

nghttp2_session_callbacks *h2_callbacks_new(void)
{
	nghttp2_session_callbacks *cb;
	int rc = nghttp2_session_callbacks_new(&cb);
	ASSERT(rc == 0);
	nghttp2_session_callbacks_set_on_begin_headers_callback(cb, on_begin_headers);
	nghttp2_session_callbacks_set_on_header_callback(cb, on_header);
	nghttp2_session_callbacks_set_on_begin_frame_callback(cb, on_begin_frame);
	nghttp2_session_callbacks_set_on_frame_recv_callback(cb, on_frame);
	nghttp2_session_callbacks_set_on_data_chunk_recv_callback(cb, on_data);
	nghttp2_session_callbacks_set_on_invalid_frame_recv_callback(cb, on_invalid_frame);
	nghttp2_session_callbacks_set_on_frame_send_callback(cb, on_frame_sent);
	nghttp2_session_callbacks_set_on_stream_close_callback(cb, on_stream_close);
	nghttp2_session_callbacks_set_send_data_callback(cb, h2_out_write);
	return cb;
}

nghttp2_option *h2_option_new(void)
{
	nghttp2_option *o;
	int rc = nghttp2_option_new(&o);
	ASSERT(rc == 0);
	nghttp2_option_set_no_auto_window_update(o, 1); /* h2_in.c does it */
	nghttp2_option_set_no_closed_streams(o, 1);     /* nothing depends on them */
	/* What a call needs of its headers is looked at here; etcd's clients name a URL as their
	 * :authority, which nghttp2 would not let pass. */
	nghttp2_option_set_no_http_messaging(o, 1);
#ifdef HAVE_NGHTTP2_OPTION_SET_STREAM_RESET_RATE_LIMIT
	nghttp2_option_set_stream_reset_rate_limit(o, H2_RESET_BURST, H2_RESET_RATE);
#endif
	return o;
}

static void *h2_malloc(size_t size, void *arg)
{
	(void)arg;
	return xmalloc(size > 0 ? size : 1);
}

static void h2_free(void *p, void *arg)
{
	(void)arg;
	free(p);
}

static void *h2_calloc(size_t n, size_t size, void *arg)
{
	(void)arg;
	return xcalloc(n > 0 ? n : 1, size > 0 ? size : 1);
}

static void *h2_realloc(void *p, size_t size, void *arg)
{
	(void)arg;
	return xrealloc(p, size > 0 ? size : 1);
}

/* With these nghttp2 never sees that memory is short: what it asks for is bounded by limits. */
static nghttp2_mem memory = {NULL, h2_malloc, h2_free, h2_calloc, h2_realloc};

void h2_session_start(struct h2_conn *c)
{
	const struct h2_limits *l = &c->srv->limits;
	const nghttp2_settings_entry settings[] = {
		{NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS, l->max_streams},
		{NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, H2_STREAM_WINDOW},
		{NGHTTP2_SETTINGS_MAX_HEADER_LIST_SIZE, l->max_header_bytes},
	};
	int rc = nghttp2_session_server_new3(
		&c->session, c->srv->callbacks, c, c->srv->option, &memory);
	ASSERT(rc == 0);
	rc = nghttp2_submit_settings(c->session, NGHTTP2_FLAG_NONE, settings, ARRAY_LEN(settings));
	ASSERT(rc == 0);
	rc = nghttp2_session_set_local_window_size(
		c->session, NGHTTP2_FLAG_NONE, 0, H2_CONN_WINDOW);
	ASSERT(rc == 0);
	h2_flush_soon(c);
}

int h2_session_read(struct h2_conn *c, const uint8_t *data, size_t len)
{
	if (c->ending)
		return 0; /* it was told so */
	ssize_t n = nghttp2_session_mem_recv(c->session, data, len);
	return n < 0 ? (int)n : 0;
}

void h2_session_shut(struct h2_conn *c)
{
	int32_t last = nghttp2_session_get_last_proc_stream_id(c->session);
	(void)nghttp2_submit_goaway(c->session, NGHTTP2_FLAG_NONE, last, NGHTTP2_NO_ERROR, NULL, 0);
	h2_flush_soon(c);
}

void h2_session_idle(struct h2_conn *c)
{
	if (c->ending)
		return;
	c->ending = true;
	h2_count(c->srv, H2_STAT_ENDED_IDLE, 1);
	h2_session_shut(c);
}
