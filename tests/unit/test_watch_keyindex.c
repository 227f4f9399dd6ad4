/* SPDX-License-Identifier: PostgreSQL */
/* keyindex: order, places, shapes of the tree, against a sorted array. */
#include "config.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/base/mem.h"
#include "watchd/keyindex.h"

static uint64_t seed = 1;

static uint32_t random_below(uint32_t n)
{
	seed = seed * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
	return (uint32_t)(seed >> 33) % n;
}

static void test_empty(void **state)
{
	(void)state;
	struct keyindex *ix = keyindex_new();
	struct keyindex_pos pos = keyindex_seek(ix, "", 0);
	assert_null(keyindex_next(&pos));
	assert_null(keyindex_next(&pos));
	assert_null(keyindex_find(ix, "a", 1));
	assert_int_equal(keyindex_count(ix), 0);
	keyindex_check(ix);
	keyindex_free(&ix);
	assert_null(ix);
	keyindex_free(&ix);
}

/* memcmp order, prefixes first, zeros and high bytes like any other; the hints alone cannot tell
 * some of these apart. */
static void test_order(void **state)
{
	(void)state;
	static const struct {
		const char *bytes;
		size_t len;
	} keys[] = {{"\0", 1}, {"\0\0", 2}, {"\0\0\0\0\0\0\0\0\0", 9}, {"a", 1}, {"a\0", 2},
		{"a\0\0\0\0\0\0\0", 8}, {"a\0\0\0\0\0\0\0\0", 9}, {"aa", 2}, {"abcdefgh", 8},
		{"abcdefgh\0", 9}, {"abcdefghi", 9}, {"b", 1}, {"\x80", 1}, {"\xff", 1},
		{"\xff\xff\xff\xff\xff\xff\xff\xff", 8},
		{"\xff\xff\xff\xff\xff\xff\xff\xff\xff", 9}};
	struct keyindex *ix = keyindex_new();
	for (size_t i = 0; i < ARRAY_LEN(keys); i++) {
		size_t k = i * 7 % ARRAY_LEN(keys);
		struct keyindex_key *made = keyindex_insert(ix, keys[k].bytes, keys[k].len);
		assert_int_equal(made->value, 0);
		made->value = (k + 1) * 2;
		assert_ptr_equal(keyindex_insert(ix, keys[k].bytes, keys[k].len), made);
	}
	keyindex_check(ix);
	struct keyindex_pos pos = keyindex_seek(ix, "", 0);
	for (size_t i = 0; i < ARRAY_LEN(keys); i++) {
		struct keyindex_key *k = keyindex_next(&pos);
		assert_non_null(k);
		assert_int_equal(k->value, (i + 1) * 2);
		assert_ptr_equal(keyindex_find(ix, keys[i].bytes, keys[i].len), k);
		struct keyindex_pos at = keyindex_seek(ix, keys[i].bytes, keys[i].len);
		assert_ptr_equal(keyindex_next(&at), k);
	}
	assert_null(keyindex_next(&pos));
	keyindex_free(&ix);
}

static size_t make_key(char *to, uint32_t i, int kind)
{
	static const char *const formats[] = {
		"%u", "/registry/pods/default/%09u", "%08x-with-a-tail-that-is-the-same", "x%u"};
	int n = snprintf(to, 64, formats[kind], i);
	return (size_t)n;
}

static int by_bytes(const void *a, const void *b)
{
	return strcmp(a, b);
}

/* Everything in, in some order, and out again in another. */
static void fill_and_empty(uint32_t n, int kind, int order)
{
	struct keyindex *ix = keyindex_new();
	char key[64], (*sorted)[64] = xcalloc(n, 64);
	for (uint32_t i = 0; i < n; i++) {
		uint32_t k = order == 0 ? i : order == 1 ? n - 1 - i : (i * 7919u) % n;
		size_t len = make_key(key, k, kind);
		keyindex_insert(ix, key, len);
		make_key(sorted[i], i, kind);
	}
	keyindex_check(ix);
	assert_int_equal(keyindex_count(ix), n);
	qsort(sorted, n, 64, by_bytes);
	struct keyindex_pos pos = keyindex_seek(ix, "", 0);
	for (uint32_t i = 0; i < n; i++) {
		const struct keyindex_key *k = keyindex_next(&pos);
		assert_int_equal(
			keyindex_compare(k->bytes, k->len, sorted[i], strlen(sorted[i])), 0);
	}
	assert_null(keyindex_next(&pos));
	for (uint32_t i = 0; i < n; i++) {
		uint32_t k = order == 2 ? n - 1 - i : (i * 104729u) % n;
		size_t len = make_key(key, k, kind);
		struct keyindex_key *found = keyindex_find(ix, key, len);
		assert_non_null(found);
		keyindex_remove(ix, found);
		assert_null(keyindex_find(ix, key, len));
		if (i % 997 == 0)
			keyindex_check(ix);
	}
	keyindex_check(ix);
	assert_int_equal(keyindex_count(ix), 0);
	pos = keyindex_seek(ix, key, 3);
	assert_null(keyindex_next(&pos));
	assert_non_null(keyindex_insert(ix, "b", 1));
	keyindex_check(ix);
	keyindex_free(&ix);
	free(sorted);
}

static void test_shapes(void **state)
{
	(void)state;
	for (int kind = 0; kind < 4; kind++)
		for (int order = 0; order < 3; order++)
			fill_and_empty(20011, kind, order);
	for (uint32_t n = 1; n < 300; n += 7)
		fill_and_empty(n, 1, 2);
}

/* Few letters, so that prefixes of each other abound; the model is a table of what is there. */
#define MODEL_KEYS 4096

static size_t model_key(char *to, uint32_t i)
{
	size_t len = 1 + i % 12;
	for (size_t k = 0; k < len; k++)
		to[k] = "\0a\xff"[i / (1u << k) % 3];
	to[len] = (char)(i >> 8);
	to[len + 1] = (char)i;
	return len + 2;
}

static void test_random(void **state)
{
	(void)state;
	struct keyindex *ix = keyindex_new();
	struct keyindex_key *there[MODEL_KEYS] = {NULL};
	char key[16];
	size_t n = 0;
	print_message("seed %llu\n", (unsigned long long)seed);
	for (int i = 0; i < 300000; i++) {
		/* The share of removals swings, so that the tree grows and shrinks. */
		bool grows = i / 20000 % 2 == 0;
		uint32_t k = random_below(MODEL_KEYS);
		size_t len = model_key(key, k);
		if (random_below(10) < (grows ? 7u : 3u)) {
			struct keyindex_key *got = keyindex_insert(ix, key, len);
			assert_true(there[k] == NULL || there[k] == got);
			n += there[k] == NULL;
			there[k] = got;
		} else if (there[k] != NULL) {
			keyindex_remove(ix, there[k]);
			there[k] = NULL;
			n--;
		}
		assert_ptr_equal(keyindex_find(ix, key, len), there[k]);
		if (i % 4999 == 0)
			keyindex_check(ix);
	}
	assert_int_equal(keyindex_count(ix), n);
	keyindex_check(ix);
	assert_true(keyindex_bytes(ix) > n * sizeof(struct keyindex_key));
	keyindex_free(&ix);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_empty),
		cmocka_unit_test(test_order),
		cmocka_unit_test(test_shapes),
		cmocka_unit_test(test_random),
	};
	if (getenv("HOWDAH_SEED") != NULL)
		seed = strtoull(getenv("HOWDAH_SEED"), NULL, 10);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
