/* SPDX-License-Identifier: PostgreSQL */
/* The two small parsers beside nghttp2: heads of HTTP/1.1 requests and gRPC's framing and texts. */
#include "config.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/base/err.h"
#include "common/base/mem.h"
#include "watchd/grpc_proto.h"
#include "watchd/http1_proto.h"

static int parse(const char *text, struct http1_request *rq)
{
	/* A copy of exact size, for the sanitizer. */
	size_t len = strlen(text);
	uint8_t *exact = xmemdup(text, len);
	struct http1_request r;
	int err = http1_parse(exact, len, &r);
	if (err == 0) { /* the same texts in the caller's copy */
		*rq = r;
		rq->path.p = text + (r.path.p - (char *)exact);
		rq->query.p = text + (r.query.p - (char *)exact);
	}
	free(exact);
	return err;
}

static const struct {
	const char *text;
	int err;
	enum http1_method method;
	const char *path, *query;
	bool keep_alive, has_body;
} rows[] = {
	{"GET / HTTP/1.1\r\n\r\n", 0, HTTP1_GET, "/", "", true, false},
	{"GET / HTTP/1.1\n\n", 0, HTTP1_GET, "/", "", true, false},
	{"\r\n\r\nGET / HTTP/1.1\r\n\r\n", 0, HTTP1_GET, "/", "", true, false},
	{"HEAD /a?b=c?d HTTP/1.0\r\nHost: x\r\n\r\n", 0, HTTP1_HEAD, "/a", "b=c?d", false, false},
	{"GET /a? HTTP/1.0\r\nConnection:  Keep-Alive \r\n\r\n", 0, HTTP1_GET, "/a", "", true,
		false},
	{"GET / HTTP/1.1\r\nConnection: te, close\r\n\r\n", 0, HTTP1_GET, "/", "", false, false},
	{"BREW /pot HTTP/1.1\r\nContent-Length: 00\r\n\r\n", 0, HTTP1_OTHER, "/pot", "", true,
		false},
	{"GET / HTTP/1.1\r\ncontent-length: 1\r\n\r\n", 0, HTTP1_GET, "/", "", true, true},
	{"GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", 0, HTTP1_GET, "/", "", true, true},
	{"", -ERR_TRUNCATED},
	{"GET / HTTP/1.1\r\n", -ERR_TRUNCATED},
	{"GET / HTTP/1.1\r\nA: b\r\n", -ERR_TRUNCATED},
	{"GET / HTTP/1.1\r\nA: b", -ERR_TRUNCATED},
	{"GET / HTTP/2.0\r\n\r\n", -ERR_VERSION},
	{"GET / HTTP/1.2\r\n\r\n", -ERR_VERSION},
	{"GET /\r\n\r\n", -ERR_MALFORMED},
	{"GET  / HTTP/1.1\r\n\r\n", -ERR_MALFORMED},
	{"GET ?a HTTP/1.1\r\n\r\n", -ERR_MALFORMED},
	{"GET http://a/ HTTP/1.1\r\n\r\n", -ERR_MALFORMED},
	{"GET / HTTP/1.1 \r\n\r\n", -ERR_MALFORMED},
	{"GET /\x80 HTTP/1.1\r\n\r\n", -ERR_MALFORMED},
	{"GE(T / HTTP/1.1\r\n\r\n", -ERR_MALFORMED},
	{"GET / HTTP/1.1\r\n A: folded\r\n\r\n", -ERR_MALFORMED},
	{"GET / HTTP/1.1\r\nA : b\r\n\r\n", -ERR_MALFORMED},
	{"GET / HTTP/1.1\r\nA\r\n\r\n", -ERR_MALFORMED},
	{"GET / HTTP/1.1\r\nA: b\rc\r\n\r\n", -ERR_MALFORMED},
	{"\x16\x03\x01\n", -ERR_MALFORMED},
};

static void test_heads(void **state)
{
	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(rows); i++) {
		struct http1_request rq = {.method = HTTP1_OTHER};
		int err = parse(rows[i].text, &rq);
		if (err != rows[i].err)
			fail_msg("%s: %s", rows[i].text, err_str(err));
		if (err != 0)
			continue;
		assert_int_equal(rq.method, rows[i].method);
		assert_true(http1_text_is(rq.path, rows[i].path));
		assert_true(http1_text_is(rq.query, rows[i].query));
		assert_int_equal(rq.keep_alive, rows[i].keep_alive);
		assert_int_equal(rq.has_body, rows[i].has_body);
		assert_int_equal(rq.head_bytes, strlen(rows[i].text));
	}
}

static void test_many_headers(void **state)
{
	(void)state;
	struct http1_request rq;
	struct buf b;
	buf_init(&b, 0);
	buf_put_text(&b, "GET / HTTP/1.1\r\n");
	for (int i = 0; i < HTTP1_HEADERS_MAX; i++)
		buf_put_text(&b, "a:b\r\n");
	size_t len = b.len_bytes;
	buf_put_text(&b, "\r\n");
	assert_int_equal(parse(buf_cstr(&b), &rq), 0);
	b.len_bytes = len;
	buf_put_text(&b, "a:b\r\n\r\n");
	assert_int_equal(parse(buf_cstr(&b), &rq), -ERR_LIMIT);
	buf_free(&b);
}

static void test_query(void **state)
{
	struct http1_request rq;
	struct http1_text v;
	(void)state;
	assert_int_equal(parse("GET /h?a=1&&bb=2=3&c&a=9&d= HTTP/1.1\r\n\r\n", &rq), 0);
	assert_true(http1_query_get(&rq, "a", &v) && http1_text_is(v, "1"));
	assert_true(http1_query_get(&rq, "bb", &v) && http1_text_is(v, "2=3"));
	assert_true(http1_query_get(&rq, "c", &v) && http1_text_is(v, ""));
	assert_true(http1_query_get(&rq, "d", &v) && http1_text_is(v, ""));
	assert_false(http1_query_get(&rq, "b", &v));
	assert_false(http1_query_get(&rq, "9", &v));
}

static void test_framing(void **state)
{
	static const uint8_t two[] = {0, 0, 0, 0, 2, 'a', 'b', 0, 0, 0, 0, 0};
	struct grpc_message m;
	uint8_t prefix[GRPC_PREFIX_BYTES];
	(void)state;
	for (size_t len = 0; len < 7; len++)
		assert_int_equal(grpc_message_next(two, len, 2, &m), -ERR_TRUNCATED);
	assert_int_equal(grpc_message_next(two, sizeof(two), 2, &m), 0);
	assert_true(m.len == 2 && m.data == two + 5);
	assert_int_equal(grpc_message_next(two, 5, 1, &m), -ERR_LIMIT);
	assert_int_equal(m.len, 2);
	assert_int_equal(grpc_message_next(two + 7, 5, 2, &m), 0);
	assert_int_equal(m.len, 0);
	assert_int_equal(
		grpc_message_next((const uint8_t *)"\1\xff\xff\xff\xff", 5, 2, &m), -ERR_MALFORMED);
	assert_true(m.flag == 1 && m.len == UINT32_MAX);
	grpc_put_prefix(prefix, 0x01020304);
	assert_memory_equal(prefix, "\0\1\2\3\4", 5);
}

static void test_timeouts(void **state)
{
	static const struct {
		const char *text;
		int err;
		uint64_t us;
	} timeouts[] = {{"1S", 0, 1000000}, {"5000m", 0, 5000000}, {"0n", 0, 0}, {"1999n", 0, 1},
		{"7u", 0, 7}, {"2M", 0, 120000000}, {"99999999H", 0, 359999996400000000},
		{"", -ERR_MALFORMED}, {"S", -ERR_MALFORMED}, {"1", -ERR_MALFORMED},
		{"1s", -ERR_MALFORMED}, {"-1S", -ERR_MALFORMED}, {"123456789S", -ERR_MALFORMED},
		{"1 S", -ERR_MALFORMED}};
	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(timeouts); i++) {
		uint64_t us = 0;
		int err = grpc_timeout_parse(timeouts[i].text, strlen(timeouts[i].text), &us);
		if (err != timeouts[i].err || us != timeouts[i].us)
			fail_msg("%s: %s, %llu us", timeouts[i].text, err_str(err),
				(unsigned long long)us);
	}
}

static void test_texts(void **state)
{
	struct buf b;
	(void)state;
	buf_init(&b, 0);
	grpc_put_status_message(&b, "a %\n\xC3\xA9~\x7f");
	assert_string_equal(buf_cstr(&b), "a %25%0A%C3%A9~%7F");
	buf_free(&b);
	static const char *const good[] = {
		"application/grpc", "application/grpc+proto", "application/grpc;charset=utf-8"};
	static const char *const bad[] = {
		"", "application/grp", "application/grpcx", "application/json", "text/plain"};
	for (size_t i = 0; i < ARRAY_LEN(good); i++)
		assert_true(grpc_content_type_ok(good[i], strlen(good[i])));
	for (size_t i = 0; i < ARRAY_LEN(bad); i++)
		assert_false(grpc_content_type_ok(bad[i], strlen(bad[i])));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_heads),
		cmocka_unit_test(test_many_headers),
		cmocka_unit_test(test_query),
		cmocka_unit_test(test_framing),
		cmocka_unit_test(test_timeouts),
		cmocka_unit_test(test_texts),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
