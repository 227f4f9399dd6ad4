/* SPDX-License-Identifier: PostgreSQL */
/* The intrusive list. */
#include "config.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "common/base/list.h"

struct item {
	int n;
	struct list node;
};

static int sum_in_order(struct list *head)
{
	int sum = 0;
	list_for_each (it, head)
		sum = sum * 10 + list_entry(it, struct item, node)->n;
	return sum;
}

static void test_list(void **state)
{
	(void)state;
	struct list head = LIST_INIT(head), other;
	list_init(&other);
	struct item items[5];
	for (int i = 0; i < 5; i++)
		items[i].n = i + 1;
	assert_true(list_empty(&head));
	list_push_back(&head, &items[1].node);
	list_push_back(&head, &items[2].node);
	list_push_front(&head, &items[0].node);
	assert_int_equal(sum_in_order(&head), 123);
	assert_int_equal(list_first(&head, struct item, node)->n, 1);
	assert_int_equal(list_last(&head, struct item, node)->n, 3);

	list_push_back(&other, &items[3].node);
	list_push_back(&other, &items[4].node);
	list_splice_back(&head, &other);
	list_splice_back(&head, &other); /* nothing left in it */
	assert_true(list_empty(&other));
	assert_int_equal(sum_in_order(&head), 12345);

	list_for_each_safe (it, &head) {
		if (list_entry(it, struct item, node)->n % 2 == 0) {
			list_remove(it);
			list_remove(it); /* harmless */
		}
	}
	assert_int_equal(sum_in_order(&head), 135);
	list_for_each_safe (it, &head)
		list_remove(it);
	assert_true(list_empty(&head));
}

int main(void)
{
	const struct CMUnitTest tests[] = {cmocka_unit_test(test_list)};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
