/* SPDX-License-Identifier: PostgreSQL */
/* What the slot's hold on WAL is called, and what the operator reads. */
#include "config.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "common/base/mem.h"
#include "walstreamd/retention.h"

#define MB (UINT64_C(1) << 20)
#define WARN (1024 * MB)

/* No limit, no difference between what is confirmed and what is needed. */
static struct registrar_slot slot_of(const char *wal_status, uint64_t retained_mb)
{
	struct registrar_slot s = {.known = true,
		.restart_lsn = 5000 * MB,
		.confirmed_lsn = 5000 * MB,
		.retained_bytes = retained_mb * MB,
		.safe_wal_bytes = -1,
		.keep_limit_bytes = -1};
	snprintf(s.wal_status, sizeof(s.wal_status), "%s", wal_status);
	return s;
}

static void test_judge(void **state)
{
	static const struct {
		const char *wal_status;
		uint64_t retained_mb;
		int64_t safe_mb, limit_mb; /* -1: no max_slot_wal_keep_size */
		enum retention is;
		const char *text; /* "" if fine */
	} rows[] = {
		{"reserved", 0, -1, -1, RETENTION_FINE, ""},
		{"reserved", 1023, -1, -1, RETENTION_FINE, ""},
		{"extended", 1023, -1, -1, RETENTION_FINE, ""},
		{"reserved", 1024, -1, -1, RETENTION_MUCH, "keeps 1024 MB of WAL for slot s"},
		{"extended", 1024, -1, -1, RETENTION_EXTENDED, "more than max_wal_size"},
		/* a quarter of the limit, whatever wal_warn_bytes says */
		{"reserved", 700, 300, 1000, RETENTION_FINE, ""},
		{"extended", 750, 250, 1000, RETENTION_FINE, ""},
		{"extended", 751, 249, 1000, RETENTION_SHORT, "lost after 249 MB more"},
		{"extended", 2000, 0, 1000, RETENTION_SHORT, "lost after 0 MB more"},
		{"unreserved", 1, 0, 1000, RETENTION_UNRESERVED, "at the next checkpoint"},
		{"unreserved", 2000, -1, -1, RETENTION_UNRESERVED, "at the next checkpoint"},
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(rows); i++) {
		struct registrar_slot s = slot_of(rows[i].wal_status, rows[i].retained_mb);
		char text[400];

		if (rows[i].limit_mb >= 0) {
			s.safe_wal_bytes = rows[i].safe_mb * (int64_t)MB;
			s.keep_limit_bytes = rows[i].limit_mb * (int64_t)MB;
		}
		assert_int_equal(retention_judge(&s, WARN), rows[i].is);
		retention_text(rows[i].is, &s, "s", text, sizeof(text));
		if (rows[i].text[0] == '\0')
			assert_string_equal(text, "");
		else
			assert_non_null(strstr(text, rows[i].text));
	}
}

static void test_unknown(void **state)
{
	struct registrar_slot s = slot_of("unreserved", 5000);

	(void)state;
	s.known = false;
	assert_int_equal(retention_judge(&s, WARN), RETENTION_FINE);
}

/* Who keeps it: an open transaction is named if it is most of it, and only then. */
static void test_oldest(void **state)
{
	struct registrar_slot s = slot_of("extended", 2000);
	char text[400];

	(void)state;
	snprintf(s.oldest, sizeof(s.oldest), "pid 4711");
	assert_null(strstr(retention_text(RETENTION_MUCH, &s, "s", text, sizeof(text)), "4711"));
	s.confirmed_lsn = s.restart_lsn + 1000 * MB;
	assert_null(strstr(retention_text(RETENTION_MUCH, &s, "s", text, sizeof(text)), "4711"));
	s.confirmed_lsn++;
	assert_non_null(strstr(retention_text(RETENTION_MUCH, &s, "s", text, sizeof(text)),
		"; the open transaction of pid 4711 keeps it there"));
	assert_string_equal(retention_text(RETENTION_FINE, &s, "s", text, sizeof(text)), "");
	s.oldest[0] = '\0';
	assert_null(strstr(retention_text(RETENTION_MUCH, &s, "s", text, sizeof(text)), "open"));
}

static void test_remedy(void **state)
{
	(void)state;
	for (int r = RETENTION_MUCH; r <= RETENTION_UNRESERVED; r++) {
		const char *text = retention_remedy(r);

		assert_int_equal(r >= RETENTION_SHORT,
			strncmp(text, "raise max_slot_wal_keep_size", 28) == 0);
		assert_non_null(strstr(text, "pgctl wal lag"));
	}
}

/* A text that does not fit is cut, nothing more. */
static void test_small(void **state)
{
	struct registrar_slot s = slot_of("extended", 2000);
	char text[24 + 1] = "";

	(void)state;
	text[24] = '!';
	snprintf(s.oldest, sizeof(s.oldest), "pid 4711");
	s.confirmed_lsn = s.restart_lsn + 2000 * MB;
	retention_text(RETENTION_MUCH, &s, "s", text, 24);
	assert_string_equal(text, "the server keeps 2000 M");
	assert_int_equal(text[24], '!');
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_judge),
		cmocka_unit_test(test_unknown),
		cmocka_unit_test(test_oldest),
		cmocka_unit_test(test_remedy),
		cmocka_unit_test(test_small),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
