/* SPDX-License-Identifier: PostgreSQL */
/* Topics and payloads of changes: templates, the default payload, sets of mappings. */
#include "config.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <pgwalstream.h>

#include "brokerd/mapping.h"
#include "brokerd/template.h"
#include "common/base/err.h"
#include "common/base/mem.h"

/* t(id int key, name text, doc text), as the server announces it. */
static const struct pgws_relation_column columns[] = {
	{true, "id", 23, -1}, {false, "name", 25, -1}, {false, "doc", 25, -1}};
static struct pgws_relation rel = {.relid = 16400,
	.nspname = (char *)"public",
	.relname = (char *)"t",
	.replident = 'd',
	.n_columns = 3,
	.columns = (struct pgws_relation_column *)columns,
	.version = 1};

static struct typecache *types;
static struct change change;
static struct buf wire, out;

/* A tuple of three columns: NULL pointer is SQL NULL, "~" an unchanged TOASTed value. */
static void put_tuple(const char *const row[3])
{
	buf_put_be16(&wire, 3);
	for (int i = 0; i < 3; i++) {
		if (row[i] == NULL || strcmp(row[i], "~") == 0) {
			buf_put_u8(&wire, row[i] == NULL ? 'n' : 'u');
			continue;
		}
		buf_put_u8(&wire, 't');
		buf_put_be32(&wire, (uint32_t)strlen(row[i]));
		buf_put_text(&wire, row[i]);
	}
}

/* Decodes a change made of the rows; old_kind 0, 'K' or 'O'. */
static void make(
	char type, char old_kind, const char *const old_row[3], const char *const new_row[3])
{
	struct pgws_msg msg;

	buf_reset(&wire);
	buf_put_u8(&wire, (uint8_t)type);
	buf_put_be32(&wire, rel.relid);
	if (old_kind != 0) {
		buf_put_u8(&wire, (uint8_t)old_kind);
		put_tuple(old_row);
	}
	if (new_row != NULL) {
		buf_put_u8(&wire, 'N');
		put_tuple(new_row);
	}
	assert_int_equal(pgws_decode(wire.data, wire.len_bytes, false, &msg), 0);
	assert_true(change_set(&change, &msg, &rel, 0x16B374D848));
}

static int setup(void **state)
{
	(void)state;
	types = typecache_new();
	memset(&change, 0, sizeof(change));
	change_set_transaction(&change, 4242, 0);
	buf_init(&wire, 0);
	buf_init(&out, 0);
	rel.user = relmeta_new(&rel, types);
	return 0;
}

static int teardown(void **state)
{
	struct relmeta *meta = rel.user;

	(void)state;
	relmeta_free(&meta);
	change_fini(&change);
	typecache_free(&types);
	buf_free(&wire);
	buf_free(&out);
	return 0;
}

static int render(const char *text, bool is_topic)
{
	struct tmpl *t;
	const char *why = NULL;

	assert_int_equal(template_compile(text, is_topic, &t, &why), 0);
	buf_reset(&out);
	int err = template_render(t, &change, &out);
	template_free(&t);
	return err;
}

static void check(const char *text, bool is_topic, const char *expected)
{
	assert_int_equal(render(text, is_topic), 0);
	assert_string_equal(buf_cstr(&out), expected);
}

static void test_topic(void **state)
{
	(void)state;
	make('I', 0, NULL, (const char *[]){"7", "a/b+c#d%e", NULL});
	check("db/{schema}/{table}/{op}/{id}", true, "db/public/t/insert/7");
	check("{name}", true, "a%2Fb%2Bc%23d%25e");
	check("x/{doc}/y/{nothing}/z", true, "x//y//z");
	check("a{{b}}c/{{id}}", true, "a{b}c/{id}");
	check("{new}/{lsn}", true, "/"); /* topics know no such names: columns that are not there */
	make('I', 0, NULL, (const char *[]){"7", "$SYS", "\xff\x01\x7f\xc2\x85\xef\xbf\xbf ü"});
	check("{name}/{doc}", true, "%24SYS/%FF%01%7F%C2%85%EF%BF%BF ü");
	check("x{name}", true, "x$SYS");
	make('I', 0, NULL, (const char *[]){"7", "\xef\xb7\x90\xf0\x9f\xbf\xbe\xef\xbf\xbd", NULL});
	check("{name}", true, "%EF%B7%90%F0%9F%BF%BE\xef\xbf\xbd");
}

static void test_topic_misfits(void **state)
{
	char *large = xmalloc(TOPIC_MAX_BYTES + 2);

	(void)state;
	make('I', 0, NULL, (const char *[]){"7", NULL, NULL});
	assert_int_equal(render("{name}", true), -ERR_MALFORMED);
	memset(large, 'x', TOPIC_MAX_BYTES + 1);
	large[TOPIC_MAX_BYTES + 1] = '\0';
	make('I', 0, NULL, (const char *[]){"7", large, NULL});
	assert_int_equal(render("{name}", true), -ERR_LIMIT);
	large[TOPIC_MAX_BYTES] = '\0';
	make('I', 0, NULL, (const char *[]){"7", large, NULL});
	assert_int_equal(render("{name}", true), 0);
	assert_int_equal(render("{name}{id}", true), -ERR_LIMIT);
	free(large);
}

static void test_refused(void **state)
{
	static const char *const bad[] = {"", "{", "}", "a{b", "a}b", "{}", "{a{b}}", "{a}}", "a+",
		"#", "$SYS/x", "a\nb", "\xff"};
	struct tmpl *t = NULL;
	const char *why = NULL;

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
		why = NULL;
		assert_int_equal(template_compile(bad[i], true, &t, &why), -ERR_MALFORMED);
		assert_non_null(why);
		assert_null(t);
	}
	assert_int_equal(template_compile("", false, &t, &why), 0);
	template_free(&t);
	assert_int_equal(template_compile("{a", false, &t, &why), -ERR_MALFORMED);
}

static void test_column_moves(void **state)
{
	struct tmpl *t;
	const char *why;
	struct pgws_relation_column moved[] = {
		{true, "name", 23, -1}, {false, "id", 25, -1}, {false, "doc", 25, -1}};

	(void)state;
	assert_int_equal(template_compile("{id}", true, &t, &why), 0);
	make('I', 0, NULL, (const char *[]){"7", "x", NULL});
	assert_int_equal(template_render(t, &change, &out), 0);
	rel.columns = moved;
	rel.version++;
	make('I', 0, NULL, (const char *[]){"8", "y", NULL});
	assert_int_equal(template_render(t, &change, &out), 0);
	assert_string_equal(buf_cstr(&out), "7y");
	rel.columns = (struct pgws_relation_column *)columns;
	rel.version++;
	template_free(&t);
}

#define HEAD(op)                                                                                   \
	"{\"op\":\"" op "\",\"schema\":\"public\",\"table\":\"t\",\"lsn\":\"16/B374D848\","        \
	"\"xid\":4242,\"ts\":\"2000-01-01T00:00:00+00:00\","

static void check_json(const char *expected)
{
	buf_reset(&out);
	change_put_json(&change, &out);
	assert_string_equal(buf_cstr(&out), expected);
}

static void test_default_payload(void **state)
{
	(void)state;
	make('I', 0, NULL, (const char *[]){"7", "x", NULL});
	check_json(HEAD("insert") "\"new\":{\"id\":7,\"name\":\"x\",\"doc\":null},\"old\":null,"
				  "\"unchanged\":[]}");
	make('U', 0, NULL, (const char *[]){"7", "y", "~"});
	check_json(HEAD("update") "\"new\":{\"id\":7,\"name\":\"y\"},\"old\":null,"
				  "\"unchanged\":[\"doc\"]}");
	/* A key that changed: what is not key comes as NULL without being so. */
	make('U', 'K', (const char *[]){"7", NULL, NULL}, (const char *[]){"8", "y", "~"});
	check_json(HEAD("update") "\"new\":{\"id\":8,\"name\":\"y\"},\"old\":{\"id\":7},"
				  "\"unchanged\":[\"doc\"]}");
	/* FULL: the old row supplies what did not change. */
	make('U', 'O', (const char *[]){"7", NULL, "long"}, (const char *[]){"7", "y", "~"});
	check_json(HEAD(
		"update") "\"new\":{\"id\":7,\"name\":\"y\",\"doc\":\"long\"},"
			  "\"old\":{\"id\":7,\"name\":null,\"doc\":\"long\"},\"unchanged\":[]}");
	make('D', 'K', (const char *[]){"7", NULL, NULL}, NULL);
	check_json(HEAD("delete") "\"new\":null,\"old\":{\"id\":7},\"unchanged\":[]}");
	make('D', 'O', (const char *[]){"7", NULL, "x"}, NULL);
	check_json(HEAD("delete") "\"new\":null,\"old\":{\"id\":7,\"name\":null,\"doc\":\"x\"},"
				  "\"unchanged\":[]}");
	assert_true(change_set(&change, NULL, &rel, 0x16B374D848));
	check_json(HEAD("truncate") "\"new\":null,\"old\":null,\"unchanged\":[]}");
	check("{op}/{id}", true, "truncate/");
}

static void test_payload_template(void **state)
{
	(void)state;
	make('U', 'K', (const char *[]){"7", NULL, NULL}, (const char *[]){"8", "y\"", "~"});
	check("{{\"id\":{id},\"n\":\"{name}\"}}", false, "{\"id\":8,\"n\":\"y\"\"}");
	check("{old}{new}", false, "{\"id\":7}{\"id\":8,\"name\":\"y\\\"\"}");
	check("{lsn} {xid} {ts} {op} {schema}.{table} [{doc}] +#", false,
		"16/B374D848 4242 2000-01-01T00:00:00+00:00 update public.t [] +#");
	make('D', 'K', (const char *[]){"7", NULL, NULL}, NULL);
	check("{id}", false, "7");
	check("{json}", false, HEAD("delete") "\"new\":null,\"old\":{\"id\":7},\"unchanged\":[]}");
}

static void test_wrong_width(void **state)
{
	struct pgws_msg msg;

	(void)state;
	make('I', 0, NULL, (const char *[]){"7", NULL, NULL});
	rel.n_columns = 2;
	assert_int_equal(pgws_decode(wire.data, wire.len_bytes, false, &msg), 0);
	assert_false(change_set(&change, &msg, &rel, 1));
	rel.n_columns = 4;
	assert_false(change_set(&change, &msg, &rel, 1));
	rel.n_columns = 3;
}

static void test_time(void **state)
{
	static const struct {
		int64_t us;
		const char *text;
	} times[] = {
		{0, "2000-01-01T00:00:00+00:00"},
		{-1, "1999-12-31T23:59:59.999999+00:00"},
		{762566399123450, "2024-02-29T23:59:59.12345+00:00"},
		{848533371000000, "2026-11-20T23:42:51+00:00"},
		{3155803200000000, "2100-01-01T12:00:00+00:00"},
	};
	char text[40];

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(times); i++) {
		change_time_str(times[i].us, text);
		assert_string_equal(text, times[i].text);
	}
	change_time_str(INT64_MAX, text);
	change_time_str(INT64_MIN, text);
}

static void test_mapping_set(void **state)
{
	struct mapping_set *a = mapping_set_new(), *b = mapping_set_new();
	struct mapping_row r = {.relid = 5, .qos = 1, .name = "n", .topic = "x/{id}"};
	struct buf again;

	(void)state;
	mapping_set_put(a, &r);
	uint64_t generation = mapping_set_generation(a);
	r.name = "a\"";
	r.topic = "y/#"; /* cannot be used: kept, with the reason */
	r.payload = "{{}}";
	mapping_set_put(a, &r);
	r.relid = 6;
	r.qos = 0;
	mapping_set_put(a, &r);
	assert_true(mapping_set_generation(a) != generation);
	assert_int_equal(mapping_set_count(a), 3);
	const struct mapping *m = mapping_set_find(a, 5);
	assert_string_equal(m->name, "a\"");
	assert_non_null(m->why);
	assert_string_equal(m->next->name, "n");
	assert_null(m->next->why);
	assert_null(m->next->next);
	assert_null(mapping_set_find(a, 7));

	mapping_set_put_json(a, &out);
	assert_int_equal(mapping_set_load_json(b, buf_cstr(&out)), 0);
	buf_init(&again, 0);
	mapping_set_put_json(b, &again);
	assert_string_equal(buf_cstr(&again), buf_cstr(&out));
	buf_free(&again);

	assert_int_equal(mapping_set_load_json(b, "{}"), -ERR_MALFORMED);
	assert_int_equal(
		mapping_set_load_json(b, "[{\"relid\":1,\"name\":\"x\"}]"), -ERR_MALFORMED);
	assert_int_equal(mapping_set_load_json(b, "nonsense"), -ERR_MALFORMED);
	assert_int_equal(mapping_set_count(b), 3);
	mapping_set_remove(b, 5, "n");
	mapping_set_remove(b, 5, "n");
	mapping_set_remove(b, 5, "a\"");
	assert_null(mapping_set_find(b, 5));
	assert_int_equal(mapping_set_count(b), 1);
	assert_int_equal(mapping_set_load_json(b, "[]"), 0);
	assert_int_equal(mapping_set_count(b), 0);
	mapping_set_free(&a);
	mapping_set_free(&b);
}

int main(void)
{
#define TEST(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)
	const struct CMUnitTest tests[] = {
		TEST(test_topic),
		TEST(test_topic_misfits),
		TEST(test_refused),
		TEST(test_column_moves),
		TEST(test_default_payload),
		TEST(test_payload_template),
		TEST(test_wrong_width),
		TEST(test_time),
		TEST(test_mapping_set),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
