/* SPDX-License-Identifier: PostgreSQL */
/* Log lines, levels, escaping, rate limit; error texts. */
#include "config.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <errno.h>
#include <limits.h>

#include <cmocka.h>

#include "common/base/err.h"
#include "common/base/log.h"
#include "common/base/mem.h"
#include "tests/unit/helper_assert.h"

static void write_lines(void *arg)
{
	(void)arg;
	log_init("tester", LOG_LEVEL_INFO);
	errno = EBADF;
	log_error("a.b", "cannot %s", "sing");
	ASSERT(errno == EBADF);
	log_warning("a.c", "two\nlines\x1b");
	log_info("a.d", "hello");
	log_debug("a.e", "hidden");
	log_set_level(LOG_LEVEL_DEBUG);
	log_debug("a.f", "shown");
	log_set_level(LOG_LEVEL_ERROR);
	log_warning("a.g", "hidden");
}

static void write_long(void *arg)
{
	(void)arg;
	char text[9000];
	for (size_t i = 0; i + 2 < sizeof(text); i += 2)
		memcpy(text + i, "\xc3\xa9", 3);
	log_init("t", LOG_LEVEL_INFO);
	log_error("long.line", "%s", text);
	log_error("long.line", "x%s", text);
}

static void write_limited(void *arg)
{
	(void)arg;
	log_init("t", LOG_LEVEL_INFO);
	struct log_limit limit = {0, 0, 0};
	for (int i = 0; i < 10; i++) {
		if (log_limit_pass(&limit, 3, "l.x"))
			log_info("l.x", "line %d", i);
	}
	limit.window_start_ms -= 10000; /* the window is over */
	if (log_limit_pass(&limit, 3, "l.x"))
		log_info("l.x", "again");
	for (int i = 0; i < 30; i++)
		log_limited(LOG_LEVEL_INFO, "l.y", "site %d", i);
}

static void test_lines(void **state)
{
	(void)state;
	char out[16384];
	assert_int_equal(run_in_child(write_lines, NULL, out, sizeof(out)), 0);
	assert_string_equal(out, "<3>tester: cannot sing [a.b]\n"
				 "<4>tester: two lines  [a.c]\n"
				 "<6>tester: hello [a.d]\n"
				 "<7>tester: shown [a.f]\n");
}

static void test_long_line(void **state)
{
	(void)state;
	char out[16384];
	assert_int_equal(run_in_child(write_long, NULL, out, sizeof(out)), 0);
	char *second = strchr(out, '\n') + 1;
	assert_true(second - out <= 4096);
	/* Whole characters, the ellipsis and the id, whichever way the cut falls. */
	char *end = strstr(out, "\xc3\xa9\xe2\x80\xa6 [long.line]\n");
	assert_non_null(end);
	assert_true(end < second);
	end = strstr(second, "\xc3\xa9\xe2\x80\xa6 [long.line]\n");
	assert_non_null(end);
}

static void test_limit(void **state)
{
	(void)state;
	char out[16384];
	assert_int_equal(run_in_child(write_limited, NULL, out, sizeof(out)), 0);
	assert_non_null(strstr(out, "line 2 [l.x]\n<4>t: 7 similar lines suppressed [l.x]\n"
				    "<6>t: again [l.x]\n<6>t: site 0 [l.y]\n"));
	assert_non_null(strstr(out, "site 9 "));
	assert_null(strstr(out, "site 10 "));
}

static void check_escape(const char *text, size_t len, size_t size, const char *want)
{
	char out[256];
	memset(out, 'Z', sizeof(out));
	assert_string_equal(log_escape(text, len, out, size), want);
	assert_int_equal(out[size], 'Z');
}

static void test_escape(void **state)
{
	(void)state;
	check_escape("plain", 5, 100, "\"plain\"");
	check_escape("", 0, 100, "\"\"");
	check_escape("a\0b\n\"\\", 6, 100, "\"a\\x00b\\x0a\\x22\\x5c\"");
	check_escape("\xc3\xa9\xe2\x82\xac\xf0\x9f\x90\x98", 9, 100,
		"\"\xc3\xa9\xe2\x82\xac\xf0\x9f\x90\x98\"");
	/* Cut short, overlong, surrogate, beyond the last, lone continuation, C1, turned text. */
	check_escape("\xe2\x82", 2, 100, "\"\\xe2\\x82\"");
	check_escape("\xc0\xaf", 2, 100, "\"\\xc0\\xaf\"");
	check_escape("\xe0\x80\xaf", 3, 100, "\"\\xe0\\x80\\xaf\"");
	check_escape("\xed\xa0\x80", 3, 100, "\"\\xed\\xa0\\x80\"");
	check_escape("\xf4\x90\x80\x80", 4, 100, "\"\\xf4\\x90\\x80\\x80\"");
	check_escape("\x80", 1, 100, "\"\\x80\"");
	check_escape("\xc2\x85", 2, 100, "\"\\xc2\\x85\"");
	check_escape("\xe2\x80\xae", 3, 100, "\"\\xe2\\x80\\xae\"");
	/* Cut with the ellipsis, never in the middle of an escape or a character. */
	check_escape("abcdefghij", 10, 12, "\"abcdef\xe2\x80\xa6\"");
	check_escape("abcd\xc3\xa9zzzz", 10, 11, "\"abcd\xe2\x80\xa6\"");
	check_escape("abc\nzzzz", 8, 12, "\"abc\xe2\x80\xa6\"");
}

static void test_levels(void **state)
{
	(void)state;
	enum log_level level = LOG_LEVEL_ERROR;
	for (int i = LOG_LEVEL_ERROR; i <= LOG_LEVEL_DEBUG; i++) {
		assert_int_equal(log_level_parse(log_level_str((enum log_level)i), &level), 0);
		assert_int_equal(level, i);
	}
	assert_int_equal(log_level_parse("loud", &level), -EINVAL);
	assert_int_equal(level, LOG_LEVEL_DEBUG);
}

static void test_err_str(void **state)
{
	(void)state;
	assert_string_equal(err_str(0), "no error");
	assert_string_equal(err_str(-ENOENT), "No such file or directory");
	assert_string_equal(err_str(ENOENT), "No such file or directory");
	assert_string_equal(err_str(-ERR_TRUNCATED), "input ends too early");
	for (int e = ERR_FIRST; e < ERR_LAST; e++) {
		assert_string_equal(err_str(e), err_str(-e));
		assert_null(strstr(err_str(e), "Unknown"));
	}
	assert_non_null(err_str(INT_MIN));
	assert_non_null(err_str(ERR_LAST));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_lines),
		cmocka_unit_test(test_long_line),
		cmocka_unit_test(test_limit),
		cmocka_unit_test(test_escape),
		cmocka_unit_test(test_levels),
		cmocka_unit_test(test_err_str),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
