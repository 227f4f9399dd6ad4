/* SPDX-License-Identifier: PostgreSQL */
/* tracker: acknowledgements in order, whatever order the tracks end in. */
#include "config.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "brokerd/tracker.h"
#include "common/base/mem.h"

static uint64_t acked;

static void on_ack(uint64_t lsn, void *arg)
{
	assert_true(lsn > acked);
	assert_ptr_equal(arg, &acked);
	acked = lsn;
}

static int setup(void **state)
{
	acked = 0;
	*state = tracker_new(on_ack, &acked);
	return 0;
}

static int teardown(void **state)
{
	struct tracker *t = *state;

	tracker_free(&t);
	return 0;
}

static struct track *take(struct tracker *t)
{
	struct track *k = tracker_hold(t);

	track_ref(k);
	return k;
}

static void test_empty_transactions(void **state)
{
	struct tracker *t = *state;

	tracker_commit(t, 10);
	assert_int_equal(acked, 10);
	tracker_commit(t, 20);
	assert_int_equal(acked, 20);
	/* Held by nobody in the end. */
	(void)tracker_hold(t);
	assert_true(tracker_is_open(t));
	assert_int_equal(acked, 20);
	tracker_commit(t, 30);
	assert_int_equal(acked, 30);
	assert_false(tracker_is_open(t));
	assert_int_equal(tracker_pending(t), 0);
}

static void test_in_order(void **state)
{
	struct tracker *t = *state;
	struct track *a = take(t);

	assert_ptr_equal(take(t), a);
	tracker_commit(t, 10);
	tracker_commit(t, 20); /* empty, behind a */
	struct track *b = take(t);
	tracker_commit(t, 30);
	struct track *c = take(t);
	tracker_commit(t, 40);
	assert_int_equal(tracker_pending(t), 3);
	assert_int_equal(acked, 0);
	track_unref(b);
	assert_int_equal(acked, 0);
	assert_int_equal(tracker_pending(t), 2);
	track_unref(a);
	assert_int_equal(acked, 0); /* a has one more */
	track_unref(a);
	assert_int_equal(acked, 30);
	track_unref(c);
	assert_int_equal(acked, 40);
	assert_int_equal(tracker_acked(t), 40);
}

/* What is open does not let itself be passed, even when everybody has answered. */
static void test_open(void **state)
{
	struct tracker *t = *state;
	struct track *a = take(t);

	track_unref(a);
	assert_int_equal(acked, 0);
	a = take(t);
	tracker_commit(t, 10);
	struct track *b = take(t);
	track_unref(b);
	track_unref(a);
	assert_int_equal(acked, 10);
	tracker_abandon(t);
	tracker_abandon(t);
	assert_int_equal(tracker_pending(t), 0);
	tracker_commit(t, 20);
	assert_int_equal(acked, 20);
}

static void test_outlived(void **state)
{
	struct tracker *t = tracker_new(on_ack, &acked);
	struct track *a = take(t);

	(void)state;
	tracker_commit(t, 10);
	struct track *b = take(t);
	tracker_free(&t);
	assert_null(t);
	track_unref(b);
	track_unref(a);
	assert_int_equal(acked, 0);
}

/* Any order: the acknowledged LSN is always the end of the longest done prefix. */
static void test_random(void **state)
{
	enum { N = 2000 };
	struct tracker *t = *state;
	struct track *held[N] = {NULL};
	size_t committed = 0;

	srand(7);
	while (committed < N || tracker_pending(t) > 0) {
		if (committed < N && rand() % 2 == 0) {
			int refs = rand() % 3;
			held[committed] = refs > 0 ? take(t) : NULL;
			committed++;
			tracker_commit(t, committed * 10);
		} else if (committed > 0) {
			size_t i = (size_t)rand() % committed;
			struct track *k = held[i];
			held[i] = NULL;
			if (k != NULL)
				track_unref(k);
		}
		size_t done = 0;
		while (done < committed && held[done] == NULL)
			done++;
		assert_int_equal(acked, done * 10);
	}
	assert_int_equal(acked, N * 10);
}

int main(void)
{
#define TEST(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)
	const struct CMUnitTest tests[] = {
		TEST(test_empty_transactions),
		TEST(test_in_order),
		TEST(test_open),
		TEST(test_outlived),
		TEST(test_random),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
