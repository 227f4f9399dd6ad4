/* SPDX-License-Identifier: PostgreSQL */
/* The index of watched keys and ranges, against a list that is too simple to be wrong. */
#include "config.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#include "common/base/mem.h"
#include "watchd/interval.h"

struct watcher {
	struct interval_member m;
	char from[8], to[8];
	unsigned hits;
};

static struct store_bytes bytes(const char *s)
{
	return (struct store_bytes){.data = s, .len = strlen(s)};
}

static void on_match(struct interval_member *m, void *arg)
{
	list_entry(m, struct watcher, m)->hits++;
	(*(size_t *)arg)++;
}

static void on_member(struct interval_member *m, void *arg)
{
	(void)m;
	(*(size_t *)arg)++;
}

static size_t matches(const struct interval_set *set, const char *key)
{
	size_t n = 0;
	interval_match(set, bytes(key), on_match, &n);
	return n;
}

static void add(struct interval_set *set, struct watcher *w, const char *from, const char *to)
{
	memset(w, 0, sizeof(*w));
	snprintf(w->from, sizeof(w->from), "%s", from);
	w->m.from = bytes(w->from);
	if (to != NULL) {
		snprintf(w->to, sizeof(w->to), "%s", to);
		w->m.to = bytes(w->to);
	}
	interval_add(set, &w->m);
}

static void test_shapes(void **state)
{
	(void)state;
	struct interval_set *set = interval_set_new();
	assert_int_equal(matches(set, "a"), 0);
	struct watcher key, range, from, same, zero;
	add(set, &key, "b", NULL);
	add(set, &range, "b", "d");
	add(set, &from, "c", "");
	add(set, &same, "b", "d");
	add(set, &zero, "", "");
	assert_int_equal(interval_count(set), 5);
	static const struct {
		const char *k;
		size_t n;
	} rows[] = {{"", 1}, {"a", 1}, {"b", 4}, {"ba", 3}, {"c", 4}, {"czzz", 4}, {"d", 2},
		{"\xff\xff", 2}};
	for (size_t i = 0; i < ARRAY_LEN(rows); i++)
		assert_int_equal(matches(set, rows[i].k), rows[i].n);
	/* The one whose bytes the node shows leaves first. */
	interval_remove(set, &range.m);
	memset(range.from, 'z', sizeof(range.from) - 1);
	assert_int_equal(matches(set, "b"), 3);
	interval_remove(set, &range.m);
	interval_remove(set, &same.m);
	assert_int_equal(matches(set, "b"), 2);
	interval_remove(set, &key.m);
	interval_remove(set, &from.m);
	interval_remove(set, &zero.m);
	assert_int_equal(interval_count(set), 0);
	assert_int_equal(matches(set, "b"), 0);
	interval_set_free(&set);
	assert_null(set);
}

static void test_zero_bytes(void **state)
{
	(void)state;
	struct interval_set *set = interval_set_new();
	struct interval_member a = {.from = {"a\0b", 3}}, b = {.from = {"a", 1}, .to = {"a\0", 2}},
			       c = {.from = {"a\0", 2}, .to = {"a\1", 2}};
	interval_add(set, &a);
	interval_add(set, &b);
	interval_add(set, &c);
	static const struct {
		struct store_bytes k;
		size_t n;
	} rows[] = {{{"a", 1}, 1}, {{"a\0", 2}, 1}, {{"a\0b", 3}, 2}, {{"a\0b\0", 4}, 1},
		{{"a\1", 2}, 0}};
	for (size_t i = 0; i < ARRAY_LEN(rows); i++) {
		size_t n = 0;
		interval_match(set, rows[i].k, on_member, &n);
		assert_int_equal(n, rows[i].n);
	}
	interval_remove(set, &a);
	interval_remove(set, &b);
	interval_remove(set, &c);
	interval_set_free(&set);
}

static bool naive(const struct watcher *w, const char *key)
{
	if (w->m.to.data == NULL)
		return strcmp(w->from, key) == 0;
	return strcmp(w->from, key) <= 0 && (w->to[0] == '\0' || strcmp(key, w->to) < 0);
}

static void random_key(char *out, unsigned letters)
{
	size_t len = 1 + (size_t)rand() % 3;
	for (size_t i = 0; i < len; i++)
		out[i] = (char)('a' + rand() % (int)letters);
	out[len] = '\0';
}

static void compare(struct interval_set *set, struct watcher *all, size_t n, unsigned letters)
{
	char key[8];
	random_key(key, letters);
	for (size_t i = 0; i < n; i++)
		all[i].hits = 0;
	size_t total = matches(set, key), expected = 0;
	for (size_t i = 0; i < n; i++) {
		unsigned want = all[i].m.node != NULL && naive(&all[i], key);
		if (all[i].hits != want)
			fail_msg("key %s, watcher %s..%s: %u, not %u", key, all[i].from,
				all[i].m.to.data == NULL ? "(single)" : all[i].to, all[i].hits,
				want);
		expected += want;
	}
	assert_int_equal(total, expected);
}

static void random_run(size_t n, unsigned letters, size_t rounds)
{
	struct interval_set *set = interval_set_new();
	struct watcher *all = xcalloc(n, sizeof(*all));
	size_t in = 0;
	for (size_t r = 0; r < rounds; r++) {
		/* Towards full, then towards empty, and again. */
		bool fill = (r / (2 * n)) % 2 == 0;
		struct watcher *w = &all[(size_t)rand() % n];
		if (w->m.node == NULL && (fill || rand() % 4 == 0)) {
			char from[8], to[8];
			random_key(from, letters);
			random_key(to, letters);
			int kind = rand() % 3;
			add(set, w, from, kind == 0 ? NULL : kind == 1 ? "" : to);
			in++;
		} else if (w->m.node != NULL && (!fill || rand() % 4 == 0)) {
			interval_remove(set, &w->m);
			in--;
		}
		assert_int_equal(interval_count(set), in);
		if (r % (n < 100 ? 1 : 97) == 0)
			compare(set, all, n, letters);
	}
	for (size_t i = 0; i < n; i++)
		interval_remove(set, &all[i].m);
	interval_set_free(&set);
	free(all);
}

static void test_random(void **state)
{
	(void)state;
	unsigned seed = (unsigned)time(NULL);
	const char *env = getenv("HOWDAH_SEED");
	if (env != NULL)
		seed = (unsigned)strtoul(env, NULL, 10);
	print_message("HOWDAH_SEED=%u\n", seed);
	srand(seed);
	random_run(12, 3, 20000);
	random_run(300, 4, 30000);
	random_run(3000, 26, 60000);
}

static void on_leak(const char *name, int64_t count, void *arg)
{
	(void)arg;
	print_message("%s: %lld\n", name, (long long)count);
}

static void test_no_leak(void **state)
{
	(void)state;
	assert_int_equal(mem_report(on_leak, NULL), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_shapes),
		cmocka_unit_test(test_zero_bytes),
		cmocka_unit_test(test_random),
		cmocka_unit_test(test_no_leak),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
