/* SPDX-License-Identifier: PostgreSQL */
/* The statistics page, from the writer's side and from a reader that trusts nothing. */
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
#include "common/base/stats.h"
#include "tests/unit/helper_assert.h"

static const struct stats_row rows[] = {
	{"bytes_in", STATS_COUNTER, "bytes", STATS_STATUS, "Bytes received"},
	{"sessions", STATS_GAUGE, "", STATS_INFO, "Sessions now"},
	{"lsn_acked", STATS_LSN, NULL, STATS_DEBUG, NULL},
};

struct seen {
	size_t n;
	struct stats_value v[STATS_ROWS_MAX];
	char name[STATS_ROWS_MAX][64];
};

static void on_value(const struct stats_value *v, void *arg)
{
	struct seen *seen = arg;
	assert_in_range(seen->n, 0, STATS_ROWS_MAX - 1);
	assert_true(strlen(v->name) < 64 && strlen(v->unit) < 16 && strlen(v->help) < 240);
	seen->v[seen->n] = *v;
	strcpy(seen->name[seen->n++], v->name);
}

static void test_roundtrip(void **state)
{
	(void)state;
	void *page = xcalloc(1, STATS_PAGE_BYTES);
	struct seen seen = {0};
	assert_int_equal(stats_read(page, on_value, &seen), -ERR_STATE);
	struct stats *st = stats_new(page, rows, ARRAY_LEN(rows));
	stats_add(st, 0, 5);
	stats_add(st, 0, 7);
	stats_set(st, 1, 3);
	stats_set(st, 2, UINT64_MAX);
	assert_int_equal(stats_get(st, 0), 12);
	assert_int_equal(stats_read(page, on_value, &seen), 0);
	assert_int_equal(seen.n, 3);
	assert_string_equal(seen.name[0], "bytes_in");
	assert_int_equal(seen.v[0].value, 12);
	assert_int_equal(seen.v[0].kind, STATS_COUNTER);
	assert_int_equal(seen.v[0].level, STATS_STATUS);
	assert_int_equal(seen.v[1].value, 3);
	assert_true(seen.v[2].value == UINT64_MAX);
	assert_int_equal(seen.v[2].kind, STATS_LSN);
	stats_free(&st);
	assert_null(st);
	stats_free(&st);

	char *slot = stats_panic_slot(page), copy[64];
	assert_ptr_equal(slot, (char *)page + STATS_PAGE_BYTES - STATS_PANIC_BYTES);
	assert_string_equal(stats_panic_copy(page, copy, sizeof(copy)), "");
	strcpy(slot, "a.c:1: x\n\x1b");
	assert_string_equal(stats_panic_copy(page, copy, sizeof(copy)), "a.c:1: x??");
	memset(slot, 'x', STATS_PANIC_BYTES); /* no end */
	assert_int_equal(strlen(stats_panic_copy(page, copy, sizeof(copy))), sizeof(copy) - 1);
	char *whole = xmalloc(2 * STATS_PANIC_BYTES);
	stats_panic_copy(page, whole, 2 * STATS_PANIC_BYTES);
	assert_int_equal(strlen(whole), STATS_PANIC_BYTES);
	free(whole);
	free(page);
}

static void test_private_and_full(void **state)
{
	(void)state;
	struct stats *st = stats_new(NULL, rows, ARRAY_LEN(rows));
	stats_add(st, 1, 1);
	assert_int_equal(stats_get(st, 1), 1);
	stats_free(&st);

	static struct stats_row many[STATS_ROWS_MAX];
	for (size_t i = 0; i < STATS_ROWS_MAX; i++)
		many[i] = (struct stats_row){"name", STATS_COUNTER, "u", STATS_INFO, "help"};
	void *page = xcalloc(1, STATS_PAGE_BYTES);
	st = stats_new(page, many, STATS_ROWS_MAX);
	stats_set(st, STATS_ROWS_MAX - 1, 9);
	assert_int_equal(stats_panic_slot(page)[0], 0);
	struct seen seen = {0};
	assert_int_equal(stats_read(page, on_value, &seen), 0);
	assert_int_equal(seen.n, STATS_ROWS_MAX);
	assert_int_equal(seen.v[STATS_ROWS_MAX - 1].value, 9);
	stats_free(&st);
	free(page);
}

static void index_too_far(void *arg)
{
	stats_add(arg, ARRAY_LEN(rows), 1);
}

static void name_too_long(void *arg)
{
	(void)arg;
	struct stats_row row = {
		.name = "n2345678901234567890123456789012345678901234567890123456789012345"};
	(void)stats_new(NULL, &row, 1);
}

static void test_bugs_abort(void **state)
{
	(void)state;
	struct stats *st = stats_new(NULL, rows, ARRAY_LEN(rows));
	assert_aborts(index_too_far, st, "index < stats->n_rows");
	assert_aborts(name_too_long, NULL, "len < size");
	stats_free(&st);
}

/* Any word of the page overwritten with anything: bounded, never a crash. */
static void test_hostile(void **state)
{
	(void)state;
	void *page = xcalloc(1, STATS_PAGE_BYTES), *bad = xmalloc(STATS_PAGE_BYTES);
	struct stats *st = stats_new(page, rows, ARRAY_LEN(rows));
	static const uint32_t evil[] = {0, 1, 0x7fffffff, 0xffffffff, 181, 0x41414141};
	int n_refused = 0;
	for (size_t at = 0; at < 64 + 3 * 336; at += 4) {
		for (size_t e = 0; e < ARRAY_LEN(evil); e++) {
			memcpy(bad, page, STATS_PAGE_BYTES);
			memcpy((char *)bad + at, &evil[e], 4);
			struct seen seen = {0};
			int rc = stats_read(bad, on_value, &seen);
			assert_true(rc == 0 || rc == -ERR_MALFORMED || rc == -ERR_STATE);
			n_refused += rc != 0;
		}
	}
	assert_true(n_refused > 30); /* head, kinds, levels, names */
	memset(bad, 'A', STATS_PAGE_BYTES);
	struct seen seen = {0};
	assert_int_equal(stats_read(bad, on_value, &seen), -ERR_MALFORMED);
	assert_int_equal(seen.n, 0);

	/* Text without an end, with controls: cut and cleaned. */
	memcpy(bad, page, STATS_PAGE_BYTES);
	memset((char *)bad + 64 + 16, 'n', 64);
	memset((char *)bad + 64 + 16 + 64, '\n', 16);
	assert_int_equal(stats_read(bad, on_value, &seen), 0);
	assert_int_equal(strlen(seen.name[0]), 63);
	/* A name that would break /metrics. */
	memcpy((char *)bad + 64 + 16, "a b", 4);
	assert_int_equal(stats_read(bad, on_value, &seen), -ERR_MALFORMED);
	stats_free(&st);
	free(page);
	free(bad);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_roundtrip),
		cmocka_unit_test(test_private_and_full),
		cmocka_unit_test(test_bugs_abort),
		cmocka_unit_test(test_hostile),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
