/* SPDX-License-Identifier: PostgreSQL */
/*
 * A server of the transport whose calls echo, stream, generate and hold, for tests of it. One at a
 * time: `the` is that of the running test. Include after helper_h2.h.
 */
#ifndef TESTS_UNIT_HELPER_H2_SERVER_H
#define TESTS_UNIT_HELPER_H2_SERVER_H

#include "common/base/log.h"
#include "helper_h2.h"
#include "watchd/h2_int.h"

static const struct stats_row rows[H2_STAT_COUNT] = {
#define X(id, name, kind, unit, level, help) [id] = {"watch_" name, kind, unit, level, help},
	H2_COUNTERS(X)
#undef X
};

struct fixture {
	struct ev_loop *loop;
	struct stats *stats;
	struct h2_server *srv;
	struct h2_stream *held;  /* /hold's last call */
	struct h2_http *waiting; /* /later's request */
	size_t n_messages, n_half_closed, n_gone, n_drained, n_http_gone, n_done;
	uint64_t made; /* by the generator */
	bool fill_fails;
	char token[64];
	bool drained;
};

static struct fixture *the; /* of the running test */

/* --- what the server does --- */

static inline void on_gone(struct h2_stream *s, void *user)
{
	(void)user;
	the->n_gone++;
	if (the->held == s)
		the->held = NULL;
}

static inline void on_drained(struct h2_stream *s, void *user)
{
	(void)s;
	(void)user;
	the->n_drained++;
}

static inline void echo(struct h2_stream *s, const uint8_t *data, size_t len, void *user)
{
	(void)user;
	the->n_messages++;
	h2_stream_reply(s, data, len);
}

static inline void echo_each(struct h2_stream *s, const uint8_t *data, size_t len, void *user)
{
	(void)user;
	the->n_messages++;
	h2_stream_send(s, data, len);
}

static inline void end_ok(struct h2_stream *s, void *user)
{
	(void)user;
	the->n_half_closed++;
	h2_stream_end(s, GRPC_OK, NULL);
}

static inline void only_count(struct h2_stream *s, const uint8_t *data, size_t len, void *user)
{
	(void)s;
	(void)data;
	(void)len;
	(void)user;
	the->n_messages++;
}

static inline int fill_letters(uint8_t *out, size_t max, void *arg)
{
	(void)arg;
	if (the->fill_fails && the->made > 100000)
		return -EIO;
	size_t n = max > 5000 ? 5000 : max;
	for (size_t i = 0; i < n; i++)
		out[i] = (uint8_t)('a' + (the->made + i) % 26);
	the->made += n;
	return (int)n;
}

static inline void fill_done(void *arg)
{
	(void)arg;
	the->n_done++;
}

static const struct h2_source letters = {fill_letters, fill_done};

/* The message is the length, in decimal. */
static inline void generate(struct h2_stream *s, const uint8_t *data, size_t len, void *user)
{
	char text[16] = "";
	(void)user;
	memcpy(text, data, len < 15 ? len : 15);
	h2_stream_send_generated(s, (uint32_t)atoi(text), &letters, NULL);
	h2_stream_end(s, GRPC_OK, NULL);
}

static const struct h2_call_ops echo_ops = {.on_message = echo, .on_gone = on_gone, .unary = true};
static const struct h2_call_ops stream_ops = {
	.on_message = echo_each, .on_half_closed = end_ok, .on_gone = on_gone};
static const struct h2_call_ops hold_ops = {
	.on_message = only_count, .on_gone = on_gone, .on_drained = on_drained, .low_bytes = 10000};
static const struct h2_call_ops big_ops = {
	.on_message = generate, .on_gone = on_gone, .unary = true};

static inline void on_call(struct h2_stream *s, const struct h2_request *rq, void *arg)
{
	(void)arg;
	snprintf(the->token, sizeof(the->token), "%s", rq->token != NULL ? rq->token : "");
	if (strcmp(rq->path, "/echo") == 0) {
		h2_stream_accept(s, &echo_ops, NULL);
	} else if (strcmp(rq->path, "/stream") == 0) {
		h2_stream_accept(s, &stream_ops, NULL);
	} else if (strcmp(rq->path, "/big") == 0) {
		h2_stream_accept(s, &big_ops, NULL);
	} else if (strcmp(rq->path, "/hold") == 0) {
		h2_stream_accept(s, &hold_ops, NULL);
		the->held = s;
	} else if (strcmp(rq->path, "/no") == 0) {
		h2_stream_end(s, GRPC_NOT_FOUND, "100 % \xC3\xA9\n");
	}
}

static inline void on_http(struct h2_http *h, const struct http1_request *rq, void *arg)
{
	(void)arg;
	if (http1_text_is(rq->path, "/later"))
		the->waiting = h;
	else if (http1_text_is(rq->path, "/health"))
		h2_http_answer(h, 200, "application/json", "{}", 2);
	else
		h2_http_answer(h, 404, NULL, NULL, 0);
}

static inline void on_http_gone(struct h2_http *h, void *arg)
{
	(void)h;
	(void)arg;
	the->n_http_gone++;
}

static const struct h2_server_ops server_ops = {
	.on_call = on_call, .on_http = on_http, .on_http_gone = on_http_gone};

static inline int set_up(void **state)
{
	struct fixture *f = xcalloc(1, sizeof(*f));
	struct h2_server_options o = {.limits = H2_LIMITS_DEFAULT};
	f->loop = ev_loop_new();
	f->stats = stats_new(NULL, rows, H2_STAT_COUNT);
	o.stats = f->stats;
	f->srv = h2_server_new(f->loop, &o, &server_ops, NULL);
	*state = the = f;
	return 0;
}

static inline void on_leak(const char *name, int64_t count, void *arg)
{
	(void)arg;
	fprintf(stderr, "left: %s %lld\n", name, (long long)count);
}

static inline int tear_down(void **state)
{
	struct fixture *f = *state;
	h2_server_free(&f->srv);
	ev_loop_free(&f->loop);
	stats_free(&f->stats);
	free(f);
	return mem_report(on_leak, NULL) == 0 ? 0 : -1;
}

static inline uint64_t count(struct fixture *f, enum h2_stat stat)
{
	return stats_get(f->stats, stat);
}

static inline void set_limits(struct fixture *f, struct h2_limits limits)
{
	h2_server_set_limits(f->srv, &limits);
}

/* One unary call that must succeed: the server is alive. */
static inline void check_alive(struct fixture *f)
{
	struct peer *p = peer_new(f->srv, 0);
	struct call *c = peer_call(p, "/echo");
	struct grpc_message m;
	call_send(p, c, "alive", 5, true);
	peer_until(f->loop, p, c->closed);
	assert_string_equal(c->status, "0");
	assert_true(call_next(c, &m));
	assert_memory_equal(m.data, "alive", 5);
	peer_free(&p);
	for (int i = 0; i < 4; i++)
		ev_loop_once(f->loop, false);
}

#endif
