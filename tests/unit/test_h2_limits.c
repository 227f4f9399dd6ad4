/* SPDX-License-Identifier: PostgreSQL */
/*
 * What the transport refuses: limits, floods, broken framing, clients that are idle or take
 * nothing; each is counted, and others are served.
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
	assert_false(h2_stream_is_crowded(f->held));
	h2_stream_send(f->held, data, sizeof(data));
	assert_true(h2_stream_is_crowded(f->held));
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
	assert_int_equal(count(f, H2_STAT_HEADERS_LARGE), n - 1); /* the last one is not read */
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
		{"trailers", {0, 0, 1, 1, 4, 0, 0, 0, 1, 0x82}, 10},
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

int main(void)
{
	const struct CMUnitTest tests[] = {
#define T(fn) cmocka_unit_test_setup_teardown(fn, set_up, tear_down)
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
#undef T
	};
	log_init("test_h2_limits", LOG_LEVEL_ERROR);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
