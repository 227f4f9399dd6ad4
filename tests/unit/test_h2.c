/* SPDX-License-Identifier: PostgreSQL */
/*
 * The transport against a real client's nghttp2, over socket pairs: calls of every shape, errors,
 * back-pressure, drain; then HTTP/1.1 on the same server. Limits and floods: test_h2_limits.c.
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
#include "helper_h2_server.h"

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
