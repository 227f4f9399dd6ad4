/* SPDX-License-Identifier: PostgreSQL */
/* Topic names, filters, and the subscription tree against a matcher that is too simple to be wrong.
 */
#include "config.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "brokerd/topic.h"
#include "common/base/mem.h"

static const struct topic_limits limits = {.max_bytes = 40, .max_levels = 6};

static void test_names_and_filters(void **state)
{
	(void)state;
	static const struct {
		const char *text;
		bool name, filter;
	} rows[] = {{"", false, false}, {"a", true, true}, {"/", true, true}, {"a//b", true, true},
		{"#", true, true}, {"a/#", true, true}, {"a#", true, false}, {"#/a", true, false},
		{"a/#/b", true, false}, {"+", true, true}, {"+/a", true, true}, {"a/+", true, true},
		{"a+", true, false}, {"a/+b/c", true, false}, {"+/+/#", true, true},
		{"$SYS/x", false, true}, {"1/2/3/4/5/6", true, true},
		{"1/2/3/4/5/6/7", false, false},
		{"0123456789012345678901234567890123456789", true, true},
		{"01234567890123456789012345678901234567890", false, false}};
	/* Wildcards in names are the codec's business: here they are text. */
	for (size_t i = 0; i < ARRAY_LEN(rows); i++) {
		size_t len = strlen(rows[i].text);
		assert_int_equal(
			topic_name_error(rows[i].text, len, &limits) == NULL, rows[i].name);
		assert_int_equal(
			topic_filter_error(rows[i].text, len, &limits) == NULL, rows[i].filter);
	}
	assert_true(topic_filter_is_shared("$share/g/a", 10));
	assert_true(topic_filter_is_shared("$share", 6));
	assert_false(topic_filter_is_shared("$shared/a", 9));
	assert_false(topic_filter_is_shared("a/$share/", 9));
}

struct client {
	struct list subs;
	size_t hits;
};

static void on_hit(struct topic_sub *sub, void *arg)
{
	struct client *c = sub->owner;
	c->hits++;
	(*(size_t *)arg)++;
}

static size_t hits(struct topic_tree *t, const char *name)
{
	size_t n = 0;
	topic_tree_match(t, name, strlen(name), on_hit, &n);
	assert_int_equal(topic_tree_matches(t, name, strlen(name)), n > 0);
	return n;
}

static struct topic_sub *add(
	struct topic_tree *t, struct client *c, const char *filter, bool expect_new)
{
	bool fresh = !expect_new;
	struct topic_sub *sub = topic_tree_add(t, filter, strlen(filter), c, &c->subs, &fresh);
	assert_int_equal(fresh, expect_new);
	char *text = topic_sub_filter(sub);
	assert_string_equal(text, filter);
	free(text);
	return sub;
}

static void remove_all(struct topic_tree *t, struct client *c)
{
	while (!list_empty(&c->subs))
		topic_tree_remove(t, list_first(&c->subs, struct topic_sub, in_owner));
}

/* The examples of section 4.7. */
static void test_specification(void **state)
{
	(void)state;
	static const struct {
		const char *filter, *name;
		bool match;
	} rows[] = {{"sport/tennis/player1/#", "sport/tennis/player1", true},
		{"sport/tennis/player1/#", "sport/tennis/player1/ranking", true},
		{"sport/tennis/player1/#", "sport/tennis/player1/score/wimbledon", true},
		{"sport/#", "sport", true}, {"sport/tennis/+", "sport/tennis/player1", true},
		{"sport/tennis/+", "sport/tennis/player1/ranking", false},
		{"sport/+", "sport", false}, {"sport/+", "sport/", true}, {"+/+", "/finance", true},
		{"/+", "/finance", true}, {"+", "/finance", false}, {"#", "$SYS/a", false},
		{"+/monitor/Clients", "$SYS/monitor/Clients", false}, {"$SYS/#", "$SYS/", true},
		{"$SYS/monitor/+", "$SYS/monitor/Clients", true}, {"a/#", "a/$x", true},
		{"a/+", "a/$x", true}, {"A", "a", false}, {"a", "/a", false}, {"#", "/", true},
		{"/", "/", true}, {"+/", "a/", true}, {"a//b", "a//b", true},
		{"a/+/b", "a//b", true}, {"+", "a", true}, {"+/#", "a", true}};
	for (size_t i = 0; i < ARRAY_LEN(rows); i++) {
		struct topic_tree *t = topic_tree_new();
		struct client c = {.subs = LIST_INIT(c.subs)};
		add(t, &c, rows[i].filter, true);
		if (hits(t, rows[i].name) != rows[i].match)
			fail_msg("%s against %s", rows[i].filter, rows[i].name);
		remove_all(t, &c);
		topic_tree_free(&t);
		assert_null(t);
	}
}

static void test_subscriptions(void **state)
{
	(void)state;
	struct topic_tree *t = topic_tree_new();
	struct client a = {.subs = LIST_INIT(a.subs)}, b = {.subs = LIST_INIT(b.subs)};
	struct topic_sub *one = add(t, &a, "x/y", true);
	assert_ptr_equal(add(t, &a, "x/y", false), one);
	add(t, &a, "x/+", true);
	add(t, &b, "x/#", true);
	add(t, &b, "x/y", true);
	assert_int_equal(topic_tree_subs(t), 4);
	assert_int_equal(topic_tree_nodes(t), 4);
	assert_int_equal(hits(t, "x/y"), 4);
	assert_int_equal(a.hits, 2);
	assert_ptr_equal(topic_tree_find(t, "x/y", 3, &a.subs), one);
	assert_null(topic_tree_find(t, "x/#", 3, &a.subs));
	assert_null(topic_tree_find(t, "x", 1, &a.subs));
	assert_null(topic_tree_find(t, "q/r/s", 5, &a.subs));
	topic_tree_remove(t, one);
	assert_int_equal(hits(t, "x/y"), 3);
	remove_all(t, &b);
	assert_int_equal(topic_tree_nodes(t), 2);
	remove_all(t, &a);
	assert_int_equal(topic_tree_nodes(t), 0);
	topic_tree_free(&t);
}

/* Level by level, by the words of the specification. */
static bool simple_match(const char *f, const char *n, bool first)
{
	if (first && *n == '$' && (*f == '+' || *f == '#'))
		return false;
	if (strcmp(f, "#") == 0)
		return true;
	const char *fs = strchr(f, '/'), *ns = strchr(n, '/');
	size_t fl = fs != NULL ? (size_t)(fs - f) : strlen(f);
	size_t nl = ns != NULL ? (size_t)(ns - n) : strlen(n);
	if (!(fl == 1 && *f == '+') && (fl != nl || memcmp(f, n, fl) != 0))
		return false;
	if (fs == NULL || ns == NULL)
		return (fs == NULL && ns == NULL) || (ns == NULL && strcmp(fs, "/#") == 0);
	return simple_match(fs + 1, ns + 1, false);
}

static void random_topic(char *out, bool filter)
{
	static const char *const words[] = {"a", "b", "", "c", "$d", "+", "+"};
	int levels = 1 + rand() % 4;
	*out = '\0';
	for (int i = 0; i < levels; i++) {
		if (i > 0)
			strcat(out, "/");
		strcat(out, words[rand() % (filter ? 7 : 5)]);
	}
	if (filter && rand() % 4 == 0)
		strcat(out, "/#");
	if (*out == '\0')
		strcpy(out, "a");
}

static void test_against_simple_matcher(void **state)
{
	(void)state;
	enum { CLIENTS = 200, ROUNDS = 20, NAMES = 200 };
	static struct client clients[CLIENTS];
	static char filters[CLIENTS][64];
	srand(7);
	struct topic_tree *t = topic_tree_new();
	for (size_t i = 0; i < CLIENTS; i++) {
		list_init(&clients[i].subs);
		filters[i][0] = '\0';
	}
	for (size_t round = 0; round < ROUNDS; round++) {
		for (size_t i = 0; i < CLIENTS; i++) {
			if (rand() % 3 == 0)
				continue;
			remove_all(t, &clients[i]);
			random_topic(filters[i], true);
			add(t, &clients[i], filters[i], true);
		}
		for (size_t k = 0; k < NAMES; k++) {
			char name[64];
			random_topic(name, false);
			for (size_t i = 0; i < CLIENTS; i++)
				clients[i].hits = 0;
			(void)hits(t, name);
			for (size_t i = 0; i < CLIENTS; i++) {
				bool want = filters[i][0] != '\0' &&
					    simple_match(filters[i], name, true);
				if (clients[i].hits != want)
					fail_msg("%s against %s: %zu", filters[i], name,
						clients[i].hits);
			}
		}
	}
	for (size_t i = 0; i < CLIENTS; i++)
		remove_all(t, &clients[i]);
	assert_int_equal(topic_tree_nodes(t), 0);
	topic_tree_free(&t);
}

/* Many nodes: the table grows and shrinks, and nothing is lost on the way. */
static void test_growth(void **state)
{
	(void)state;
	enum { MANY = 20000 };
	struct topic_tree *t = topic_tree_new();
	struct client *clients = calloc(MANY, sizeof(*clients));
	char name[64];
	for (size_t i = 0; i < MANY; i++) {
		list_init(&clients[i].subs);
		snprintf(name, sizeof(name), "dev/%zu/cmd", i);
		add(t, &clients[i], name, true);
	}
	assert_int_equal(topic_tree_nodes(t), 1 + 2 * MANY);
	for (size_t i = 0; i < MANY; i++) {
		snprintf(name, sizeof(name), "dev/%zu/cmd", i);
		assert_int_equal(hits(t, name), 1);
		if (i % 2 == 0)
			remove_all(t, &clients[i]);
	}
	for (size_t i = 0; i < MANY; i++) {
		snprintf(name, sizeof(name), "dev/%zu/cmd", i);
		assert_int_equal(hits(t, name), i % 2);
		remove_all(t, &clients[i]);
	}
	free(clients);
	topic_tree_free(&t);
}

static void on_leak(const char *name, int64_t count, void *arg)
{
	(void)arg;
	fprintf(stderr, "left: %s %lld\n", name, (long long)count);
}

static int no_leaks(void **state)
{
	(void)state;
	return mem_report(on_leak, NULL) == 0 ? 0 : -1;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_teardown(test_names_and_filters, no_leaks),
		cmocka_unit_test_teardown(test_specification, no_leaks),
		cmocka_unit_test_teardown(test_subscriptions, no_leaks),
		cmocka_unit_test_teardown(test_against_simple_matcher, no_leaks),
		cmocka_unit_test_teardown(test_growth, no_leaks),
	};
	return cmocka_run_group_tests_name("topic", tests, NULL, NULL);
}
