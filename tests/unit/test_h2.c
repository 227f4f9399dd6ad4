/* SPDX-License-Identifier: PostgreSQL */
/*
 * The transport against a real client's nghttp2, over socket pairs: calls of every shape, errors,
 * limits, floods, back-pressure, drain; then HTTP/1.1 on the same server.
 */
#include "config.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>

#include "common/base/err.h"
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

static void on_gone(struct h2_stream *s, void *user)
{
	(void)user;
	the->n_gone++;
	if (the->held == s)
		the->held = NULL;
}

static void on_drained(struct h2_stream *s, void *user)
{
	(void)s;
	(void)user;
	the->n_drained++;
}

static void echo(struct h2_stream *s, const uint8_t *data, size_t len, void *user)
{
	(void)user;
	the->n_messages++;
	h2_stream_reply(s, data, len);
}

static void echo_each(struct h2_stream *s, const uint8_t *data, size_t len, void *user)
{
	(void)user;
	the->n_messages++;
	h2_stream_send(s, data, len);
}

static void end_ok(struct h2_stream *s, void *user)
{
	(void)user;
	the->n_half_closed++;
	h2_stream_end(s, GRPC_OK, NULL);
}

static void only_count(struct h2_stream *s, const uint8_t *data, size_t len, void *user)
{
	(void)s;
	(void)data;
	(void)len;
	(void)user;
	the->n_messages++;
}

static int fill_letters(uint8_t *out, size_t max, void *arg)
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

static void fill_done(void *arg)
{
	(void)arg;
	the->n_done++;
}

static const struct h2_source letters = {fill_letters, fill_done};

/* The message is the length, in decimal. */
static void generate(struct h2_stream *s, const uint8_t *data, size_t len, void *user)
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

static void on_call(struct h2_stream *s, const struct h2_request *rq, void *arg)
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

static void on_http(struct h2_http *h, const struct http1_request *rq, void *arg)
{
	(void)arg;
	if (http1_text_is(rq->path, "/later"))
		the->waiting = h;
	else if (http1_text_is(rq->path, "/health"))
		h2_http_answer(h, 200, "application/json", "{}", 2);
	else
		h2_http_answer(h, 404, NULL, NULL, 0);
}

static void on_http_gone(struct h2_http *h, void *arg)
{
	(void)h;
	(void)arg;
	the->n_http_gone++;
}

static const struct h2_server_ops server_ops = {
	.on_call = on_call, .on_http = on_http, .on_http_gone = on_http_gone};

static int set_up(void **state)
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

static void on_leak(const char *name, int64_t count, void *arg)
{
	(void)arg;
	fprintf(stderr, "left: %s %lld\n", name, (long long)count);
}

static int tear_down(void **state)
{
	struct fixture *f = *state;
	h2_server_free(&f->srv);
	ev_loop_free(&f->loop);
	stats_free(&f->stats);
	free(f);
	return mem_report(on_leak, NULL) == 0 ? 0 : -1;
}

static uint64_t count(struct fixture *f, enum h2_stat stat)
{
	return stats_get(f->stats, stat);
}

static void set_limits(struct fixture *f, struct h2_limits limits)
{
	h2_server_set_limits(f->srv, &limits);
}

/* One unary call that must succeed: the server is alive. */
static void check_alive(struct fixture *f)
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

/* --- calls --- */

static void test_unary(void **state)
{
	struct fixture *f = *state;
	struct peer *p = peer_new(f->srv, 0);
	static const char *const token[] = {"token", "abc", "authorization", "no", NULL};
	struct call *c = peer_call_with(p, "/echo", token);
	struct grpc_message m;
	call_send(p, c, "hello", 5, true);
	peer_until(f->loop, p, c->closed);
	assert_string_equal(c->http_status, "200");
	assert_string_equal(c->status, "0");
	assert_true(call_next(c, &m));
	assert_int_equal(m.len, 5);
	assert_memory_equal(m.data, "hello", 5);
	assert_false(call_next(c, &m));
	assert_int_equal(c->error, NGHTTP2_NO_ERROR);
	assert_string_equal(f->token, "abc");
	assert_int_equal(f->n_gone, 1);
	assert_int_equal(count(f, H2_STAT_CALLS), 1);
	peer_free(&p);
}

/* Two messages in one call, a message in pieces, an empty one. */
static void test_shapes(void **state)
{
	struct fixture *f = *state;
	struct peer *p = peer_new(f->srv, 0);
	struct call *two = peer_call(p, "/echo");
	struct call *pieces = peer_call(p, "/echo");
	struct call *empty = peer_call(p, "/echo");
	struct grpc_message m;
	call_send(p, two, "one", 3, false);
	call_send(p, two, "two", 3, true);
	call_raw(p, pieces, "\0\0\0", 3, false);
	call_send(p, empty, NULL, 0, true);
	peer_turn(f->loop, p);
	call_raw(p, pieces, "\0\3x", 3, false);
	peer_turn(f->loop, p);
	assert_false(pieces->headers);
	assert_int_equal(f->srv->unfinished_bytes, 6);
	call_raw(p, pieces, "yz", 2, true);
	peer_until(f->loop, p, pieces->closed && two->closed && empty->closed);
	assert_true(call_next(two, &m) && m.len == 3 && memcmp(m.data, "one", 3) == 0);
	assert_false(call_next(two, &m));
	assert_true(call_next(pieces, &m) && m.len == 3 && memcmp(m.data, "xyz", 3) == 0);
	assert_true(call_next(empty, &m) && m.len == 0);
	assert_int_equal(f->n_messages, 3);
	assert_int_equal(f->srv->unfinished_bytes, 0);
	peer_free(&p);
}

static void test_stream(void **state)
{
	struct fixture *f = *state;
	struct peer *p = peer_new(f->srv, 0);
	struct call *c = peer_call(p, "/stream");
	struct grpc_message m;
	for (int round = 0; round < 3; round++) {
		for (int i = 0; i < 100; i++)
			call_send(p, c, &i, sizeof(i), false);
		for (int i = 0; i < 100; i++) {
			int got = -1;
			peer_until(f->loop, p, call_next(c, &m));
			assert_int_equal(m.len, sizeof(i));
			memcpy(&got, m.data, sizeof(got));
			assert_int_equal(got, i);
		}
	}
	assert_int_equal(f->n_half_closed, 0);
	call_raw(p, c, NULL, 0, true);
	peer_until(f->loop, p, c->closed);
	assert_string_equal(c->status, "0");
	assert_int_equal(f->n_half_closed, 1);
	assert_int_equal(f->n_gone, 1);
	peer_free(&p);
}

static const struct {
	const char *what, *path;
	const char *header[3];
	const char *data; /* raw bytes of DATA */
	size_t len;
	const char *http_status, *status, *message;
} error_rows[] = {
	{"unknown", "/x", {0}, "\0\0\0\0\0", 5, "200", "12", "unknown method"},
	{"refused by the user", "/no", {0}, "", 0, "200", "5", "100 %25 %C3%A9%0A"},
	{"content type", "/echo", {"!content-type", "text/plain"}, "", 0, "415", "3",
		"the content-type of a call has to be application/grpc"},
	{"method", "/echo", {"!method", "GET"}, "", 0, "405", "13", "a call has to be a POST"},
	{"timeout", "/echo", {"grpc-timeout", "5 s"}, "", 0, "400", "13", "malformed grpc-timeout"},
	{"no time", "/echo", {"grpc-timeout", "0m"}, "", 0, "200", "4",
		"context deadline exceeded"},
	{"encoding", "/echo", {"grpc-encoding", "gzip"}, "", 0, "200", "12",
		"grpc: Decompressor is not installed for grpc-encoding \"gzip\""},
	{"compressed", "/echo", {0}, "\1\0\0\0\1a", 6, "200", "13",
		"grpc: compressed flag set with identity or empty encoding"},
	{"flag", "/echo", {0}, "\2\0\0\0\1a", 6, "200", "13",
		"grpc: received unexpected payload format 2"},
	{"too large", "/echo", {0}, "\0\0\x20\0\1a", 6, "200", "8",
		"grpc: received message larger than max (2097153 vs. 2097152)"},
	{"cut prefix", "/echo", {0}, "\0\0\0", 3, "200", "2", "unexpected EOF"},
	{"cut message", "/echo", {0}, "\0\0\0\0\3ab", 7, "200", "2", "unexpected EOF"},
	{"no message", "/echo", {0}, "", 0, "200", "2", "unexpected EOF"},
	{"cut message of a stream", "/stream", {0}, "\0\0\0\0\3ab", 7, "200", "13",
		"unexpected EOF"},
};

static void test_errors(void **state)
{
	struct fixture *f = *state;
	struct peer *p = peer_new(f->srv, 0);
	for (size_t i = 0; i < ARRAY_LEN(error_rows); i++) {
		struct call *c = peer_call_with(p, error_rows[i].path, error_rows[i].header);
		call_raw(p, c, error_rows[i].data, error_rows[i].len, true);
		peer_until(f->loop, p, c->closed);
		if (strcmp(c->http_status, error_rows[i].http_status) != 0 ||
			strcmp(c->status, error_rows[i].status) != 0 ||
			strcmp(c->message, error_rows[i].message) != 0)
			fail_msg("%s: %s %s \"%s\"", error_rows[i].what, c->http_status, c->status,
				c->message);
		assert_int_equal(c->error, NGHTTP2_NO_ERROR);
	}
	/* The same while the client has more to say: it is told to stop. */
	struct call *c = peer_call(p, "/echo");
	call_raw(p, c, "\2\0\0\0\1a", 6, false);
	peer_until(f->loop, p, c->closed);
	assert_string_equal(c->status, "13");
	assert_int_equal(f->srv->n_streams, 0);
	assert_int_equal(f->srv->unfinished_bytes, 0);
	peer_free(&p);
}

static void test_deadline(void **state)
{
	struct fixture *f = *state;
	struct peer *p = peer_new(f->srv, 100);
	static const char *const soon[] = {"grpc-timeout", "30m", NULL};
	struct call *c = peer_call_with(p, "/hold", soon);
	call_send(p, c, "x", 1, true);
	peer_until(f->loop, p, c->closed);
	assert_string_equal(c->status, "4");
	assert_int_equal(f->n_gone, 1);
	/* In the middle of a message there is only the reset. */
	c = peer_call_with(p, "/hold", soon);
	peer_until(f->loop, p, f->held != NULL);
	char large[1000] = "";
	p->no_read = true;
	h2_stream_send(f->held, large, sizeof(large));
	while (f->held != NULL)
		ev_loop_once(f->loop, true);
	p->no_read = false;
	peer_until(f->loop, p, c->closed);
	assert_int_equal(c->error, NGHTTP2_CANCEL);
	assert_int_equal(count(f, H2_STAT_DEADLINE), 2);
	assert_int_equal(f->srv->queued_bytes, 0);
	peer_free(&p);
}

static void test_client_resets(void **state)
{
	struct fixture *f = *state;
	struct peer *p = peer_new(f->srv, 0);
	struct call *c = peer_call(p, "/hold");
	call_send(p, c, "x", 1, false);
	peer_until(f->loop, p, f->n_messages == 1);
	nghttp2_submit_rst_stream(p->session, 0, c->id, NGHTTP2_CANCEL);
	peer_until(f->loop, p, f->n_gone == 1);
	/* And the whole connection, with calls open. */
	for (int i = 0; i < 10; i++)
		call_send(p, peer_call(p, "/hold"), "x", 1, false);
	peer_until(f->loop, p, f->n_messages == 11);
	assert_int_equal(f->srv->n_streams, 10);
	peer_free(&p);
	for (int i = 0; i < 4; i++)
		ev_loop_once(f->loop, false);
	assert_int_equal(f->n_gone, 11);
	assert_int_equal(f->srv->n_conns, 0);
}

/* --- out --- */

static void test_slices(void **state)
{
	struct fixture *f = *state;
	struct peer *p = peer_new(f->srv, 0);
	struct call *a = peer_call(p, "/hold"), *b;
	peer_until(f->loop, p, f->held != NULL);
	struct h2_stream *sa = f->held;
	b = peer_call(p, "/hold");
	peer_until(f->loop, p, f->held != sa);
	struct h2_shared *sh = h2_shared_new(6);
	struct grpc_message m;
	memcpy(sh->bytes, "shared", 6);
	const struct h2_slice parts[] = {
		{.bytes = (const uint8_t *)"one ", .len = 4},
		{.shared = sh, .bytes = sh->bytes, .len = 6},
		{.bytes = (const uint8_t *)" two", .len = 4},
		{.shared = sh, .bytes = sh->bytes + 2, .len = 4},
	};
	h2_stream_send_slices(sa, parts, 4);
	h2_stream_send_slices(f->held, parts + 1, 1);
	assert_int_equal(sh->refs, 4);
	h2_shared_unref(&sh);
	peer_until(f->loop, p, call_next(a, &m));
	assert_int_equal(m.len, 18);
	assert_memory_equal(m.data, "one shared twoared", 18);
	peer_until(f->loop, p, call_next(b, &m));
	assert_int_equal(m.len, 6);
	h2_stream_end(f->held, GRPC_ABORTED, "stop");
	h2_stream_send(f->held, "late", 4); /* does nothing */
	peer_until(f->loop, p, b->closed);
	assert_string_equal(b->status, "10");
	assert_int_equal(b->in.len_bytes, 0);
	peer_free(&p);
}

static void check_letters(const struct call *c, size_t len)
{
	assert_int_equal(c->in.len_bytes, len + 5);
	for (size_t i = 0; i < len; i++)
		assert_int_equal(c->in.data[5 + i], 'a' + i % 26);
}

static void test_generated(void **state)
{
	struct fixture *f = *state;
	struct peer *p = peer_new(f->srv, 0);
	struct call *c = peer_call(p, "/big");
	call_send(p, c, "3000000", 7, true);
	peer_until(f->loop, p, c->headers);
	/* Made only as the client takes it. */
	assert_true(f->made < 1000000);
	assert_int_equal(f->srv->queued_bytes, 0);
	peer_until(f->loop, p, c->closed);
	assert_string_equal(c->status, "0");
	check_letters(c, 3000000);
	assert_int_equal(f->n_done, 1);
	/* The generator fails. */
	f->made = 0;
	f->fill_fails = true;
	c = peer_call(p, "/big");
	call_send(p, c, "3000000", 7, true);
	peer_until(f->loop, p, c->closed);
	assert_int_equal(c->error, NGHTTP2_INTERNAL_ERROR);
	assert_int_equal(f->n_done, 2);
	/* The client goes away. */
	f->made = 0;
	f->fill_fails = false;
	c = peer_call(p, "/big");
	call_send(p, c, "3000000", 7, true);
	peer_until(f->loop, p, c->headers);
	peer_free(&p);
	for (int i = 0; i < 4; i++)
		ev_loop_once(f->loop, false);
	assert_int_equal(f->n_done, 3);
	assert_int_equal(f->n_gone, 3);
}

/* Small calls go on while a large answer is on its way on the same connection, and on another. */
static void test_large_and_small(void **state)
{
	struct fixture *f = *state;
	struct peer *p = peer_new(f->srv, 1 << 20), *q = peer_new(f->srv, 0);
	struct call *big = peer_call(p, "/big");
	call_send(p, big, "50000000", 8, true);
	peer_until(f->loop, p, big->headers);
	struct call *small = peer_call(p, "/echo");
	call_send(p, small, "s", 1, true);
	peer_until(f->loop, p, small->closed);
	assert_false(big->closed);
	struct call *other = peer_call(q, "/echo");
	call_send(q, other, "s", 1, true);
	for (int i = 0; i < 100 && !other->closed; i++) {
		peer_pump(p);
		peer_pump(q);
		ev_loop_once(f->loop, false);
	}
	assert_true(other->closed);
	assert_false(big->closed);
	peer_until(f->loop, p, big->closed);
	check_letters(big, 50000000);
	peer_free(&p);
	peer_free(&q);
}

static void test_back_pressure(void **state)
{
	struct fixture *f = *state;
	struct peer *p = peer_new(f->srv, 100);
	uint8_t data[1000] = "";
	struct call *c = peer_call(p, "/hold");
	peer_until(f->loop, p, f->held != NULL);
	p->no_read = true;
	for (int i = 0; i < 15; i++)
		h2_stream_send(f->held, data, sizeof(data));
	assert_int_equal(h2_stream_queued_bytes(f->held), 15 * 1005);
	peer_turn(f->loop, p);
	assert_int_equal(h2_stream_queued_bytes(f->held), 15 * 1005 - 100);
	assert_int_equal(f->n_drained, 0);
	p->no_read = false;
	peer_until(f->loop, p, f->n_drained == 1);
	assert_true(h2_stream_queued_bytes(f->held) < 10000);
	peer_until(f->loop, p, c->in.len_bytes == 15 * 1005);
	assert_int_equal(f->n_drained, 1);
	assert_int_equal(f->srv->queued_bytes, 0);
	peer_free(&p);
}

static void test_pause(void **state)
{
	struct fixture *f = *state;
	struct peer *p = peer_new(f->srv, 0);
	static uint8_t data[100000];
	struct call *c = peer_call(p, "/hold");
	peer_until(f->loop, p, f->held != NULL);
	h2_stream_pause(f->held, true);
	for (int i = 0; i < 15; i++)
		call_send(p, c, data, sizeof(data), i == 14);
	for (int i = 0; i < 50; i++)
		peer_turn(f->loop, p);
	assert_int_equal(f->n_messages, 0);
	assert_int_equal(f->srv->unfinished_bytes, H2_STREAM_WINDOW); /* not more than that */
	struct call *other = peer_call(p, "/echo");
	call_send(p, other, "x", 1, true);
	peer_until(f->loop, p, other->closed);
	h2_stream_pause(f->held, false);
	peer_until(f->loop, p, f->n_messages == 16);
	assert_int_equal(f->srv->unfinished_bytes, 0);
	/* Paused again, and gone so. */
	h2_stream_pause(f->held, true);
	peer_free(&p);
	for (int i = 0; i < 4; i++)
		ev_loop_once(f->loop, false);
	assert_int_equal(f->n_gone, 2);
}

/* --- limits --- */

static void test_large_message(void **state)
{
	struct fixture *f = *state;
	struct peer *p = peer_new(f->srv, 4 << 20);
	size_t len = 2 << 20;
	uint8_t *data = xcalloc(1, len);
	struct call *c = peer_call(p, "/echo");
	call_send(p, c, data, len, true);
	peer_until(f->loop, p, c->closed);
	assert_string_equal(c->status, "0");
	assert_int_equal(c->in.len_bytes, len + 5);
	free(data);
	peer_free(&p);
}

static void test_unfinished(void **state)
{
	struct fixture *f = *state;
	struct h2_limits l = H2_LIMITS_DEFAULT;
	l.max_message_bytes = 50000;
	l.max_unfinished_bytes = 100000;
	set_limits(f, l);
	struct peer *p = peer_new(f->srv, 0);
	static uint8_t data[40000];
	struct call *c[4];
	size_t n_refused = 0;
	for (int i = 0; i < 4; i++) {
		c[i] = peer_call(p, "/echo");
		call_raw(p, c[i], "\0\0\0\xC3\x50", 5, false);
		call_raw(p, c[i], data, sizeof(data), false);
	}
	peer_until(f->loop, p, count(f, H2_STAT_UNFINISHED) >= 2);
	for (int i = 0; i < 4; i++)
		n_refused += strcmp(c[i]->status, "8") == 0;
	assert_int_equal(n_refused, 2);
	assert_true(f->srv->unfinished_bytes <= 100000);
	peer_free(&p);
	check_alive(f);
	assert_int_equal(f->srv->unfinished_bytes, 0);
}

static void test_queued_limit(void **state)
{
	struct fixture *f = *state;
	struct h2_limits l = H2_LIMITS_DEFAULT;
	l.max_queued_bytes = 100000;
	set_limits(f, l);
	struct peer *p = peer_new(f->srv, 10);
	static uint8_t data[150000];
	struct call *c = peer_call(p, "/hold"), *refused;
	peer_until(f->loop, p, f->held != NULL);
	p->no_read = true;
	h2_stream_send(f->held, data, sizeof(data));
	peer_turn(f->loop, p);
	refused = peer_call(p, "/echo");
	peer_turn(f->loop, p);
	p->no_read = false;
	peer_until(f->loop, p, refused->closed);
	assert_int_equal(refused->error, NGHTTP2_REFUSED_STREAM);
	assert_int_equal(count(f, H2_STAT_REFUSED_STREAM), 1);
	nghttp2_submit_rst_stream(p->session, 0, c->id, NGHTTP2_CANCEL);
	peer_until(f->loop, p, f->srv->queued_bytes == 0);
	c = peer_call(p, "/echo");
	call_send(p, c, "x", 1, true);
	peer_until(f->loop, p, c->closed);
	assert_string_equal(c->status, "0");
	peer_free(&p);
}

static void test_max_streams(void **state)
{
	struct fixture *f = *state;
	struct h2_limits l = H2_LIMITS_DEFAULT;
	l.max_streams = 3;
	set_limits(f, l);
	struct peer *p = peer_new(f->srv, 0);
	struct call *c[5];
	for (int i = 0; i < 5; i++) /* the client does not know the limit yet */
		c[i] = peer_call(p, "/hold");
	peer_until(f->loop, p, c[3]->closed && c[4]->closed);
	assert_int_equal(p->max_streams, 3);
	assert_int_equal(c[3]->error, NGHTTP2_REFUSED_STREAM);
	assert_int_equal(f->srv->n_streams, 3);
	assert_int_equal(count(f, H2_STAT_REFUSED_STREAM), 2);
	assert_false(p->goaway);
	peer_free(&p);
}

static void test_large_headers(void **state)
{
	struct fixture *f = *state;
	struct peer *p = peer_new(f->srv, 0);
	char *large = xcalloc(1, 40001);
	memset(large, 'x', 40000);
	const char *extra[] = {"x-large", large, NULL};
	struct call *c = peer_call_with(p, "/echo", extra);
	peer_until(f->loop, p, c->closed);
	assert_string_equal(c->http_status, "431");
	assert_string_equal(c->status, "8");
	assert_int_equal(count(f, H2_STAT_HEADERS_LARGE), 1);
	free(large);
	peer_free(&p);
	check_alive(f);
}

/* 60 times the same header of len bytes, again and again until the connection ends; returns how
 * many calls that took. */
static int say_large(struct fixture *f, struct peer *p, size_t len)
{
	char *large = xcalloc(1, len + 1);
	const char *extra[121];
	int n = 0;
	memset(large, 'x', len);
	for (int i = 0; i < 60; i++) {
		extra[2 * i] = "x-l";
		extra[2 * i + 1] = large;
	}
	extra[120] = NULL;
	for (; n < 60 && !p->goaway && !p->eof; n++) {
		struct call *c = peer_call_with(p, "/echo", extra);
		peer_until(f->loop, p, c->closed || p->goaway || p->eof);
	}
	free(large);
	return n;
}

/* An entry of HPACK's table that is named again and again: a few bytes become many. */
static void test_hpack_bomb(void **state)
{
	struct fixture *f = *state;
	struct peer *p = peer_new(f->srv, 0);
	int n = say_large(f, p, 3000);
	assert_true(p->goaway && n > 10 && n < 30);
	assert_int_equal(p->goaway_error, NGHTTP2_ENHANCE_YOUR_CALM);
	assert_int_equal(count(f, H2_STAT_HEADERS_LARGE), n);
	assert_int_equal(count(f, H2_STAT_ENDED_FLOOD), 1);
	peer_free(&p);
	check_alive(f);
}

/* Too large for the table: as many CONTINUATION frames as it takes. */
static void test_continuations(void **state)
{
	struct fixture *f = *state;
	struct peer *p = peer_new(f->srv, 0);
	assert_int_equal(say_large(f, p, 4000), 1);
	assert_true(p->eof);
	assert_int_equal(count(f, H2_STAT_ENDED_FLOOD), 1);
	peer_free(&p);
	check_alive(f);
}

static void test_max_connections(void **state)
{
	struct fixture *f = *state;
	struct h2_limits l = H2_LIMITS_DEFAULT;
	struct sockaddr_un {
		sa_family_t family;
		char path[6];
	} at = {AF_UNIX, ""};
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), fds[3];
	struct sockaddr_storage bound;
	socklen_t len = sizeof(bound);
	l.max_connections = 2;
	set_limits(f, l);
	/* An abstract name that the kernel chooses. */
	assert_int_equal(bind(fd, (struct sockaddr *)&at, sizeof(sa_family_t)), 0);
	assert_int_equal(listen(fd, 10), 0);
	assert_int_equal(getsockname(fd, (struct sockaddr *)&bound, &len), 0);
	h2_server_listen(f->srv, fd, "unix");
	for (int i = 0; i < 3; i++) {
		fds[i] = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
		assert_int_equal(connect(fds[i], (struct sockaddr *)&bound, len), 0);
	}
	ev_loop_once(f->loop, false);
	assert_int_equal(f->srv->n_conns, 2);
	assert_int_equal(count(f, H2_STAT_OVER_MAXIMUM), 1);
	char c;
	assert_int_equal(read(fds[2], &c, 1), 0);
	for (int i = 0; i < 3; i++)
		close(fds[i]);
}

/* --- floods --- */

static void flood(struct fixture *f, struct peer *p, const uint8_t *frames, size_t len)
{
	for (int i = 0; i < 20000 && !p->eof && !p->goaway; i++) {
		if (send(p->fd, frames, len, MSG_NOSIGNAL | MSG_DONTWAIT) < 0 && errno != EAGAIN)
			break;
		if (i % 16 == 0)
			peer_turn(f->loop, p);
	}
	for (int i = 0; i < 50 && !p->eof; i++)
		peer_turn(f->loop, p);
}

static void test_floods(void **state)
{
	struct fixture *f = *state;
	static const struct {
		const char *what;
		uint8_t frame[17];
		size_t len;
	} floods[] = {
		{"ping", {0, 0, 8, 6, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8}, 17},
		{"settings", {0, 0, 0, 4, 0, 0, 0, 0, 0}, 9},
		{"empty data", {0, 0, 0, 0, 0, 0, 0, 0, 1}, 9},
		{"priority", {0, 0, 5, 2, 0, 0, 0, 0, 9, 0, 0, 0, 0, 7}, 14},
	};
	for (size_t i = 0; i < ARRAY_LEN(floods); i++) {
		struct peer *p = peer_new(f->srv, 0);
		uint8_t many[100 * 17];
		struct call *c = peer_call(p, "/hold");
		peer_until(f->loop, p, f->held != NULL);
		for (size_t k = 0; k < 100; k++)
			memcpy(many + k * floods[i].len, floods[i].frame, floods[i].len);
		flood(f, p, many, 100 * floods[i].len);
		/* nghttp2 itself gives up without a word when too many acknowledgements wait. */
		if (p->goaway ? p->goaway_error != NGHTTP2_ENHANCE_YOUR_CALM : !p->eof)
			fail_msg("%s: goaway %d, error %u", floods[i].what, p->goaway,
				p->goaway_error);
		assert_int_equal(count(f, H2_STAT_ENDED_FLOOD), i + 1);
		assert_null(f->held);
		assert_false(c->end_stream);
		peer_free(&p);
		check_alive(f);
	}
}

static void test_rapid_reset(void **state)
{
	struct fixture *f = *state;
	struct peer *p = peer_new(f->srv, 0);
	int n = 0;
	while (n + 50 < PEER_CALLS_MAX && !p->goaway) {
		struct call *c[50];
		for (int i = 0; i < 50; i++, n++)
			c[i] = peer_call(p, "/hold");
		peer_pump(p);
		for (int i = 0; i < 50; i++)
			nghttp2_submit_rst_stream(p->session, 0, c[i]->id, NGHTTP2_CANCEL);
		peer_turn(f->loop, p);
	}
	assert_true(p->goaway && n > H2_RESET_BURST && n < H2_RESET_BURST + 1000);
	assert_int_equal(count(f, H2_STAT_ENDED_FLOOD), 1);
	assert_int_equal(f->srv->n_streams, 0);
	peer_free(&p);
	check_alive(f);
}

/* Bytes that nghttp2's client would not say. */
static void test_wrong_protocol(void **state)
{
	struct fixture *f = *state;
	static const char preface[] = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0";
	static const struct {
		const char *bytes;
		size_t len;
	} wrong[] = {
		{"\0\0\0\0\0\0\0\0\1", 9},                   /* DATA on an idle stream */
		{"\0\0\0\1\5\0\0\0\2", 9},                   /* an even stream */
		{"\0\0\4\3\0\0\0\0\1\0\0\0\0", 13},          /* RST_STREAM of an idle stream */
		{"\0\0\4\10\0\0\0\0\0\0\0\0\0", 13},         /* a window grown by nothing */
		{"\0\0\4\10\0\0\0\0\0\x7f\xff\xff\xff", 13}, /* … and by too much */
		{"\0\0\1\1\5\0\0\0\1\xff", 10},              /* HPACK's end of nothing */
		{"\xff\xff\xff\0\0\0\0\0\1", 9},             /* a frame of 16 MB */
		{"\0\0\0\11\4\0\0\0\1", 9},                  /* CONTINUATION of nothing */
		{"\0\0\5\6\0\0\0\0\0abcde", 14},             /* PING of five bytes */
	};
	for (size_t i = 0; i < ARRAY_LEN(wrong); i++) {
		struct peer *p = peer_new(f->srv, 0);
		uint64_t before = count(f, H2_STAT_ENDED_PROTOCOL);
		assert_true(send(p->fd, preface, sizeof(preface) - 1, 0) > 0);
		assert_true(send(p->fd, wrong[i].bytes, wrong[i].len, 0) > 0);
		for (int k = 0; k < 8; k++)
			ev_loop_once(f->loop, false);
		if (count(f, H2_STAT_ENDED_PROTOCOL) != before + 1)
			fail_msg("case %zu is not counted", i);
		peer_free(&p);
		check_alive(f);
		assert_int_equal(f->srv->n_conns, 0);
	}
}

/* --- time --- */

static void age(struct fixture *f, uint64_t ms)
{
	list_for_each_safe (it, &f->srv->conns)
		h2_conn_sweep(list_entry(it, struct h2_conn, in_all), ev_now_ms() + ms);
	for (int i = 0; i < 4; i++)
		ev_loop_once(f->loop, false);
}

static void test_idle(void **state)
{
	struct fixture *f = *state;
	struct peer *silent = peer_new(f->srv, 0), *idle = peer_new(f->srv, 0),
		    *busy = peer_new(f->srv, 0), *half = peer_new(f->srv, 0);
	peer_call(busy, "/hold");
	peer_turn(f->loop, idle);
	peer_turn(f->loop, busy);
	assert_int_equal(send(half->fd, "PRI * H", 7, 0), 7);
	peer_turn(f->loop, busy);
	age(f, H2_FIRST_MS - 1000);
	assert_int_equal(f->srv->n_conns, 4);
	age(f, H2_FIRST_MS + 1000);
	assert_int_equal(f->srv->n_conns, 2);
	age(f, 599000);
	assert_int_equal(f->srv->n_conns, 2);
	age(f, 601000);
	peer_turn(f->loop, idle);
	assert_true(idle->goaway && idle->goaway_error == NGHTTP2_NO_ERROR && idle->eof);
	assert_int_equal(count(f, H2_STAT_ENDED_IDLE), 3);
	assert_false(busy->goaway);
	peer_free(&silent);
	peer_free(&idle);
	peer_free(&busy);
	peer_free(&half);
}

static void test_stalled(void **state)
{
	struct fixture *f = *state;
	struct peer *window = peer_new(f->srv, 10), *deaf = peer_new(f->srv, 1 << 30),
		    *cut = peer_new(f->srv, 0);
	/* One answer waits for its window, … */
	struct call *c = peer_call(window, "/big");
	call_send(window, c, "1000", 4, true);
	window->no_read = true;
	peer_turn(f->loop, window);
	/* … one for its socket, … */
	call_send(deaf, peer_call(deaf, "/big"), "100000000", 9, true);
	deaf->no_read = true;
	peer_turn(f->loop, deaf);
	/* … and a message stops in its middle. */
	call_raw(cut, peer_call(cut, "/echo"), "\0\0\0\0\5a", 6, false);
	peer_turn(f->loop, cut);
	assert_int_equal(f->srv->n_conns, 3);
	age(f, 59000);
	assert_int_equal(count(f, H2_STAT_ENDED_STALLED), 0);
	age(f, 61000);
	assert_int_equal(count(f, H2_STAT_ENDED_STALLED), 3);
	assert_int_equal(f->srv->n_conns, 1);
	assert_int_equal(f->srv->n_streams, 0);
	window->no_read = false;
	peer_until(f->loop, window, c->closed);
	assert_int_equal(c->error, NGHTTP2_CANCEL);
	peer_free(&window);
	peer_free(&deaf);
	peer_free(&cut);
}

/* --- stop --- */

static void on_server_drained(void *arg)
{
	struct fixture *f = arg;
	f->drained = true;
}

static void test_drain(void **state)
{
	struct fixture *f = *state;
	struct peer *p = peer_new(f->srv, 0), *idle = peer_new(f->srv, 0);
	struct call *c = peer_call(p, "/hold");
	peer_until(f->loop, p, f->held != NULL);
	peer_turn(f->loop, idle);
	h2_server_drain(f->srv, 60000, on_server_drained, f);
	peer_turn(f->loop, idle);
	assert_true(idle->goaway && idle->eof);
	peer_turn(f->loop, p);
	assert_true(p->goaway && p->goaway_error == NGHTTP2_NO_ERROR);
	peer_free(&idle);
	assert_false(f->drained);
	h2_stream_reply(f->held, "done", 4);
	peer_until(f->loop, p, c->closed);
	assert_string_equal(c->status, "0");
	peer_until(f->loop, p, p->eof);
	peer_free(&p);
	for (int i = 0; i < 4; i++)
		ev_loop_once(f->loop, false);
	assert_true(f->drained);
}

static void test_drain_late(void **state)
{
	struct fixture *f = *state;
	struct peer *p = peer_new(f->srv, 0);
	peer_call(p, "/hold");
	peer_until(f->loop, p, f->held != NULL);
	h2_server_drain(f->srv, 50, on_server_drained, f);
	peer_until(f->loop, p, f->drained);
	assert_true(p->eof);
	assert_int_equal(f->n_gone, 1);
	peer_free(&p);
}

static void test_ping(void **state)
{
	struct fixture *f = *state;
	struct peer *p = peer_new(f->srv, 0);
	for (int i = 0; i < 100; i++)
		nghttp2_submit_ping(p->session, 0, NULL);
	peer_until(f->loop, p, p->n_pongs == 100);
	assert_false(p->goaway);
	peer_free(&p);
}

/* --- HTTP/1.1 --- */

/* Says text, shuts if asked to, and gives back everything that comes until the server is quiet. */
static const char *plain(struct fixture *f, struct peer *p, const char *said, size_t len)
{
	static char got[65536];
	size_t n = 0;
	if (len > 0)
		assert_int_equal(send(p->fd, said, len, MSG_NOSIGNAL), len);
	for (int i = 0; i < 20; i++) {
		ev_loop_once(f->loop, false);
		ssize_t k = recv(p->fd, got + n, sizeof(got) - 1 - n, MSG_DONTWAIT);
		if (k > 0)
			n += (size_t)k;
		p->eof = k == 0;
	}
	got[n] = '\0';
	return got;
}

#define OK_HEAD "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Type: application/json\r\n"
#define EMPTY(status, more) "HTTP/1.1 " status "\r\nContent-Length: 0\r\n" more

static const struct {
	const char *said, *answer;
	bool closed;
} plain_rows[] = {
	{"GET /health HTTP/1.1\r\n\r\n", OK_HEAD "Connection: keep-alive\r\n\r\n{}", false},
	{"HEAD /health HTTP/1.1\r\n\r\n", OK_HEAD "Connection: keep-alive\r\n\r\n", false},
	{"GET /health HTTP/1.0\r\n\r\n", OK_HEAD "Connection: close\r\n\r\n{}", true},
	{"GET /health HTTP/1.1\r\nConnection: close\r\n\r\n", OK_HEAD "Connection: close\r\n\r\n{}",
		true},
	{"GET /health HTTP/1.1\r\n\r\nGET /x HTTP/1.1\r\n\r\n",
		OK_HEAD "Connection: keep-alive\r\n\r\n{}" EMPTY(
			"404 Not Found", "Connection: keep-alive\r\n\r\n"),
		false},
	{"PUT /health HTTP/1.1\r\n\r\n",
		EMPTY("405 Method Not Allowed", "Allow: GET, HEAD\r\nConnection: close\r\n\r\n"),
		true},
	{"GET / HTTP/1.1\r\nContent-Length: 5\r\n\r\nabcde",
		EMPTY("413 Content Too Large", "Connection: close\r\n\r\n"), true},
	{"\x16\x03\x01\r\n\r\n", EMPTY("400 Bad Request", "Connection: close\r\n\r\n"), true},
	{"GET / HTTP/2.0\r\n\r\n",
		EMPTY("505 HTTP Version Not Supported", "Connection: close\r\n\r\n"), true},
	{"PUT", "", false},
	{"PRI", "", false},
};

static void test_plain(void **state)
{
	struct fixture *f = *state;
	for (size_t i = 0; i < ARRAY_LEN(plain_rows); i++) {
		struct peer *p = peer_new(f->srv, 0);
		const char *got = plain(f, p, plain_rows[i].said, strlen(plain_rows[i].said));
		if (strcmp(got, plain_rows[i].answer) != 0 || p->eof != plain_rows[i].closed)
			fail_msg("%s\n%s%s", plain_rows[i].said, got, p->eof ? "EOF" : "");
		peer_free(&p);
		ev_loop_once(f->loop, false);
		ev_loop_once(f->loop, false);
		assert_int_equal(f->srv->n_conns, 0);
	}
}

static void test_plain_large(void **state)
{
	struct fixture *f = *state;
	struct peer *p = peer_new(f->srv, 0);
	char *large = xcalloc(1, 30000);
	memset(large, 'a', 30000);
	memcpy(large, "GET /", 5);
	const char *got = plain(f, p, large, 30000);
	assert_int_equal(strncmp(got, "HTTP/1.1 431 ", 13), 0);
	assert_true(p->eof);
	assert_int_equal(count(f, H2_STAT_HEADERS_LARGE), 1);
	free(large);
	peer_free(&p);
}

static void test_plain_later(void **state)
{
	struct fixture *f = *state;
	static const char twice[] = "GET /later HTTP/1.1\r\n\r\nGET /health HTTP/1.1\r\n\r\n";
	struct peer *p = peer_new(f->srv, 0);
	assert_string_equal(plain(f, p, twice, sizeof(twice) - 1), "");
	assert_non_null(f->waiting);
	h2_http_answer(f->waiting, 503, "text/plain", "no", 2);
	const char *got = plain(f, p, "", 0);
	assert_non_null(strstr(got, "503 Service Unavailable"));
	assert_non_null(strstr(got, "{}"));
	/* A client that has shut its side still gets its answer; one that is gone does not. */
	assert_string_equal(plain(f, p, twice, 23), "");
	shutdown(p->fd, SHUT_WR);
	ev_loop_once(f->loop, false);
	h2_http_answer(f->waiting, 200, NULL, NULL, 0);
	assert_non_null(strstr(plain(f, p, "", 0), "200 OK"));
	peer_free(&p);
	p = peer_new(f->srv, 0);
	assert_string_equal(plain(f, p, twice, 23), "");
	h2_server_drain(f->srv, 20, on_server_drained, f);
	peer_until(f->loop, p, f->drained);
	assert_int_equal(f->n_http_gone, 1);
	peer_free(&p);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
#define T(fn) cmocka_unit_test_setup_teardown(fn, set_up, tear_down)
		T(test_unary),
		T(test_shapes),
		T(test_stream),
		T(test_errors),
		T(test_deadline),
		T(test_client_resets),
		T(test_slices),
		T(test_generated),
		T(test_large_and_small),
		T(test_back_pressure),
		T(test_pause),
		T(test_large_message),
		T(test_unfinished),
		T(test_queued_limit),
		T(test_max_streams),
		T(test_large_headers),
		T(test_hpack_bomb),
		T(test_continuations),
		T(test_max_connections),
		T(test_floods),
		T(test_rapid_reset),
		T(test_wrong_protocol),
		T(test_idle),
		T(test_stalled),
		T(test_drain),
		T(test_drain_late),
		T(test_ping),
		T(test_plain),
		T(test_plain_large),
		T(test_plain_later),
#undef T
	};
	log_init("test_h2", LOG_LEVEL_ERROR);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
