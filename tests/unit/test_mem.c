/* SPDX-License-Identifier: PostgreSQL */
/* Counted allocation, helpers, and the end of a process by ASSERT. */
#include "config.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>

#include <cmocka.h>

#include "common/base/log.h"
#include "common/base/mem.h"
#include "tests/unit/helper_assert.h"

MEM_TYPE(type_apple, "apple");
MEM_TYPE(type_pear, "pear");

struct seen {
	int64_t apples, pears;
};

static void on_type(const char *name, int64_t count, void *arg)
{
	struct seen *seen = arg;
	if (strcmp(name, "apple") == 0)
		seen->apples = count;
	else if (strcmp(name, "pear") == 0)
		seen->pears = count;
}

static void test_counters(void **state)
{
	(void)state;
	struct seen seen = {0, 0};
	size_t before = mem_report(on_type, &seen);
	assert_int_equal(seen.apples, 0);
	char *a = mem_new(&type_apple, 100);
	char *b = mem_new(&type_apple, 0);
	char *c = mem_new(&type_pear, 8);
	for (int i = 0; i < 100; i++)
		assert_int_equal(a[i], 0);
	assert_int_equal(mem_report(on_type, &seen), before + 2);
	assert_int_equal(seen.apples, 2);
	assert_int_equal(seen.pears, 1);
	mem_free(&type_apple, a);
	mem_free(&type_apple, b);
	mem_free(&type_apple, NULL);
	mem_free(&type_pear, c);
	assert_int_equal(mem_report(on_type, &seen), before);
}

static void test_helpers(void **state)
{
	(void)state;
	char *s = xstrdup("howdah");
	char *n = xstrndup("elephant", 4);
	char *f = xasprintf("%s-%d", s, 7);
	char *d = xmemdup("a\0b", 3);
	assert_string_equal(n, "elep");
	assert_string_equal(f, "howdah-7");
	assert_memory_equal(d, "a\0b", 3);
	s = xrealloc(s, 1000);
	assert_string_equal(s, "howdah");
	void *zero = xmalloc(0);
	uint8_t *zeroes = xcalloc(3, 5);
	assert_non_null(zero);
	for (int i = 0; i < 15; i++)
		assert_int_equal(zeroes[i], 0);
	free(s);
	free(n);
	free(f);
	free(d);
	free(zero);
	free(zeroes);
}

struct object {
	uint32_t magic;
};

static void cast_wrong(void *arg)
{
	struct object *o;
	OBJ_CAST(o, arg, 0x1234);
	(void)o;
}

static void free_twice(void *arg)
{
	(void)arg;
	mem_free(&type_pear, malloc(1));
}

static void panic_into(void *arg)
{
	log_set_panic_slot(arg, 32);
	ASSERT(1 + 1 == 3);
}

static void allocate_too_much(void *arg)
{
	log_set_panic_slot(arg, 64);
	volatile size_t all = SIZE_MAX / 2;
	free(xmalloc(all));
}

static void test_assert(void **state)
{
	(void)state;
	struct object good = {0x1234}, bad = {0x4321}, *o;
	OBJ_CAST(o, (void *)&good, 0x1234);
	assert_ptr_equal(o, &good);
	assert_aborts(cast_wrong, &bad, "magic == (0x1234)");
	assert_aborts(cast_wrong, NULL, "!= NULL");
	assert_aborts(free_twice, NULL, "before > 0");

	char *slot = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	assert_ptr_not_equal(slot, MAP_FAILED);
	slot[32] = 'x';
	assert_aborts(panic_into, slot, "1 + 1 == 3");
	assert_int_equal(strlen(slot), 31); /* cut, terminated, nothing behind it touched */
	assert_int_equal(slot[32], 'x');
	assert_int_equal(strncmp(slot, __FILE__, 10), 0);
#ifndef HOWDAH_SANITIZER /* which ends the process by itself */
	assert_aborts(allocate_too_much, slot, "out of memory");
	assert_int_equal(strncmp(slot, "out of memory", 13), 0);
#else
	(void)allocate_too_much;
#endif
	munmap(slot, 4096);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_counters),
		cmocka_unit_test(test_helpers),
		cmocka_unit_test(test_assert),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
