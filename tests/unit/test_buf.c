/* SPDX-License-Identifier: PostgreSQL */
/* Growing buffers and bounded reading. */
#include "config.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/base/buf.h"
#include "common/base/err.h"

static void test_put_and_read(void **state)
{
	(void)state;
	struct buf b;
	buf_init(&b, 0);
	buf_put_u8(&b, 0xab);
	buf_put_be16(&b, 0x1234);
	buf_put_be32(&b, 0xdeadbeef);
	buf_put_be64(&b, UINT64_C(0x0123456789abcdef));
	buf_put_string(&b, "hello");
	buf_put_string(&b, NULL);
	buf_put(&b, "zero", 5);
	buf_printf(&b, "%d-%s", 42, "x");
	assert_false(b.failed);
	assert_memory_equal(b.data, "\xab\x12\x34\xde\xad\xbe\xef\x01\x23", 9);

	struct rd r = rd_make(b.data, b.len_bytes);
	assert_int_equal(rd_u8(&r), 0xab);
	assert_int_equal(rd_be16(&r), 0x1234);
	assert_int_equal(rd_be32(&r), 0xdeadbeef);
	assert_true(rd_be64(&r) == UINT64_C(0x0123456789abcdef));
	char *s = rd_string(&r), *empty = rd_string(&r);
	assert_string_equal(s, "hello");
	assert_string_equal(empty, "");
	free(s);
	free(empty);
	assert_memory_equal(rd_bytes(&r, 5), "zero", 5);
	assert_int_equal(rd_end(&r), -ERR_MALFORMED);
	assert_memory_equal(rd_bytes(&r, 4), "42-x", 4);
	assert_int_equal(rd_end(&r), 0);
	buf_free(&b);
	assert_null(b.data);
}

static void test_limit(void **state)
{
	(void)state;
	struct buf b;
	buf_init(&b, 100);
	for (int i = 0; i < 100; i++)
		buf_put_u8(&b, (uint8_t)i);
	assert_false(b.failed);
	assert_int_equal(strlen(buf_cstr(&b) + 1), 99); /* the zero is outside of the limit */
	buf_put_u8(&b, 1);
	assert_true(b.failed);
	assert_int_equal(b.len_bytes, 100);
	assert_null(buf_reserve(&b, 0)); /* sticky */
	buf_reset(&b);
	assert_non_null(buf_reserve(&b, 100));
	assert_null(buf_reserve(&b, 101));
	buf_reset(&b);
	assert_null(buf_reserve(&b, SIZE_MAX));
	buf_reset(&b);
	buf_printf(&b, "%0100d", 1);
	assert_false(b.failed);
	buf_printf(&b, "%d", 1);
	assert_true(b.failed);
	buf_free(&b);
	buf_init(&b, 3);
	assert_string_equal(buf_cstr(&b), "");
	buf_put_text(&b, "abc");
	assert_string_equal(buf_cstr(&b), "abc");
	buf_put_string(&b, "");
	assert_true(b.failed);
	buf_free(&b);
}

static void test_reserve_consume(void **state)
{
	(void)state;
	struct buf b;
	buf_init(&b, 0);
	uint8_t *at = buf_reserve(&b, 1000);
	memset(at, 7, 10);
	buf_commit(&b, 10);
	buf_put(&b, NULL, 0);
	buf_put_text(&b, "tail");
	buf_consume(&b, 9);
	assert_int_equal(b.len_bytes, 5);
	assert_memory_equal(b.data, "\x07tail", 5);
	buf_consume(&b, 0);
	buf_consume(&b, 5);
	assert_int_equal(b.len_bytes, 0);
	buf_free(&b);
	buf_consume(&b, 0);
}

/* Every read at every length: never beyond the end, zero after a failure, sticky. */
static void test_read_bounds(void **state)
{
	(void)state;
	for (size_t len = 0; len < 16; len++) {
		uint8_t *exact = malloc(len == 0 ? 1 : len);
		memset(exact, 0xff, len == 0 ? 1 : len);
		struct rd r = rd_make(len == 0 ? NULL : exact, len);
		uint64_t v = rd_be64(&r);
		assert_true(len < 8 ? v == 0 && r.failed : v == UINT64_MAX && !r.failed);
		r = rd_make(exact, len);
		(void)rd_be32(&r);
		assert_int_equal(r.failed, len < 4);
		r = rd_make(exact, len);
		(void)rd_be16(&r);
		assert_int_equal(r.failed, len < 2);
		r = rd_make(exact, len);
		(void)rd_u8(&r);
		assert_int_equal(r.failed, len < 1);
		r = rd_make(exact, len);
		assert_null(rd_string(&r)); /* length of 4 GB */
		assert_int_equal(rd_u8(&r), 0);
		assert_null(rd_bytes(&r, 0));
		free(exact);
	}
	struct rd r = rd_make("\0\0\0\3a\0b", 7);
	assert_null(rd_string(&r)); /* a zero inside would shorten it silently */
	assert_int_equal(rd_end(&r), -ERR_TRUNCATED);
	r = rd_make(NULL, 0);
	assert_non_null(rd_bytes(&r, 0));
	assert_int_equal(rd_end(&r), 0);
}

static void test_utf8(void **state)
{
	(void)state;
	uint32_t code = 0;
	assert_int_equal(utf8_char("a", 1, &code), 1);
	assert_int_equal(code, 'a');
	assert_int_equal(utf8_char("\xe2\x82\xac", 3, &code), 3);
	assert_int_equal(code, 0x20ac);
	assert_int_equal(utf8_char("\xf4\x8f\xbf\xbf", 4, &code), 4);
	assert_int_equal(code, 0x10ffff);
	assert_int_equal(utf8_char("\xf4\x90\x80\x80", 4, NULL), 0);
	assert_int_equal(utf8_char("\xed\xa0\x80", 3, NULL), 0);
	assert_int_equal(utf8_char("\xe2\x82\xac", 2, NULL), 0);
	assert_int_equal(utf8_char("\xc1\xbf", 2, NULL), 0);
	assert_int_equal(utf8_char("", 0, NULL), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_put_and_read),
		cmocka_unit_test(test_limit),
		cmocka_unit_test(test_reserve_consume),
		cmocka_unit_test(test_read_bounds),
		cmocka_unit_test(test_utf8),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
