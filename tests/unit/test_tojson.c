/* SPDX-License-Identifier: PostgreSQL */
/* tojson: texts and the JSON that they become, hostile texts too. */
#include "config.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>
#include <jansson.h>

#include "common/base/err.h"
#include "common/base/mem.h"
#include "common/pg/tojson.h"

/* Types as the catalogue would give them. */
enum { PAIR = 20000, PAIR_ARRAY, NESTED, EMPTY, DOMAIN_NUMERIC, DOMAIN_PAIR, BOX_LIKE, BOX_ARRAY };

static const struct type_row rows[] = {
	{PAIR, 'c', 0, 0, ',', "a", 23},
	{PAIR, 'c', 0, 0, ',', "b \"x\"", 25},
	{PAIR_ARRAY, 'b', 0, PAIR, ',', NULL, 0},
	{NESTED, 'c', 0, 0, ',', "p", PAIR},
	{NESTED, 'c', 0, 0, ',', "l", PAIR_ARRAY},
	{EMPTY, 'c', 0, 0, ',', NULL, 0},
	{DOMAIN_NUMERIC, 'd', 1700, 0, ',', NULL, 0},
	{DOMAIN_PAIR, 'd', PAIR, 0, ',', NULL, 0},
	{BOX_LIKE, 'b', 0, 0, ',', NULL, 0},
	{BOX_ARRAY, 'b', 0, BOX_LIKE, ';', NULL, 0},
};

struct sample {
	uint32_t type;
	const char *text, *json;
};

static const struct sample good[] = {
	{16, "t", "true"},
	{16, "f", "false"},
	{23, "0", "0"},
	{23, "-2147483648", "-2147483648"},
	{20, "9223372036854775807", "9223372036854775807"},
	{1700, "1.50", "1.50"},
	{1700, "-0.001", "-0.001"},
	{1700, "NaN", "\"NaN\""},
	{1700, "-Infinity", "\"-Infinity\""},
	{701, "1e+20", "100000000000000000000"},
	{701, "-1.5e-07", "-0.00000015"},
	{701, "1.25e+01", "12.5"},
	{701, "1.25e+02", "125"},
	{701, "1.25e+03", "1250"},
	{701, "-0", "0"},
	{701, "Infinity", "\"Infinity\""},
	{700, "3.4028235e+38", "340282350000000000000000000000000000000"},
	{701, "5e-324",
		"0."
		"00000000000000000000000000000000000000000000000000"
		"00000000000000000000000000000000000000000000000000"
		"00000000000000000000000000000000000000000000000000"
		"00000000000000000000000000000000000000000000000000"
		"00000000000000000000000000000000000000000000000000"
		"00000000000000000000000000000000000000000000000000"
		"000000000000000000000005"},
	{26, "17", "\"17\""},
	{25, "", "\"\""},
	{25, "a\"b\\c\n\t\b\f\r\x01\x1f\x7f/", "\"a\\\"b\\\\c\\n\\t\\b\\f\\r\\u0001\\u001f\x7f/\""},
	{25, "Grüße \xf0\x9f\x90\x98", "\"Grüße \xf0\x9f\x90\x98\""},
	{25, "\xff\xc3", "\"\xef\xbf\xbd\xef\xbf\xbd\""},
	{25, "\xed\xa0\x80\xc0\x80",
		"\"\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\""},
	{17, "\\x00ff", "\"\\\\x00ff\""},
	{114, "{ \"a b\" : [1,\n 2], \"q\\\" \": 1e5 }", "{\"a b\":[1,2],\"q\\\" \":1e5}"},
	{3802, "{\"a\": 1}", "{\"a\": 1}"},
	{1082, "0044-03-15 BC", "\"0044-03-15 BC\""},
	{1114, "2024-02-29 13:00:00.5", "\"2024-02-29T13:00:00.5\""},
	{1114, "-infinity", "\"-infinity\""},
	{1114, "0044-03-15 00:00:00 BC", "\"0044-03-15T00:00:00 BC\""},
	{1184, "2024-02-29 13:00:00+00", "\"2024-02-29T13:00:00+00:00\""},
	{1184, "0044-03-15 00:00:00.000001+00 BC", "\"0044-03-15T00:00:00.000001+00:00 BC\""},
	{1184, "infinity", "\"infinity\""},
	{1007, "{}", "[]"},
	{1007, "{1,NULL,-3}", "[1,null,-3]"},
	{1007, "{{1,2},{3,4}}", "[[1,2],[3,4]]"},
	{1007, "[0:1][-1:0]={{1,2},{3,4}}", "[[1,2],[3,4]]"},
	{1009, "{a,\"b c\",\"\",\"NULL\",NULL,\"q\\\"\\\\\",\"{,}\"}",
		"[\"a\",\"b c\",\"\",\"NULL\",null,\"q\\\"\\\\\",\"{,}\"]"},
	{1185, "{\"2024-01-01 00:00:00+00\"}", "[\"2024-01-01T00:00:00+00:00\"]"},
	{1022, "{1e+20,NaN}", "[100000000000000000000,\"NaN\"]"},
	{3807, "{\"{\\\"a\\\": 1}\",\"[1, 2]\"}", "[{\"a\": 1},[1, 2]]"},
	{22, "1 2 3", "[1,2,3]"},
	{30, "7", "[\"7\"]"},
	{22, "", "[]"},
	{PAIR, "(1,x)", "{\"a\":1,\"b \\\"x\\\"\":\"x\"}"},
	{PAIR, "(,)", "{\"a\":null,\"b \\\"x\\\"\":null}"},
	{PAIR, "(,\"\")", "{\"a\":null,\"b \\\"x\\\"\":\"\"}"},
	{PAIR, "(7,\"a \"\"b\"\" \\\\ (,)\")",
		"{\"a\":7,\"b \\\"x\\\"\":\"a \\\"b\\\" \\\\ (,)\"}"},
	{PAIR_ARRAY, "{\"(1,\\\"a b\\\")\",\"(2,)\",NULL}",
		"[{\"a\":1,\"b \\\"x\\\"\":\"a b\"},{\"a\":2,\"b \\\"x\\\"\":null},null]"},
	{NESTED, "(\"(1,x)\",\"{\"\"(2,\\\\\"\"y z\\\\\"\")\"\"}\")",
		"{\"p\":{\"a\":1,\"b \\\"x\\\"\":\"x\"},\"l\":[{\"a\":2,\"b \\\"x\\\"\":\"y "
		"z\"}]}"},
	{EMPTY, "()", "{}"},
	{DOMAIN_NUMERIC, "1.0", "1.0"},
	{DOMAIN_PAIR, "(1,)", "{\"a\":1,\"b \\\"x\\\"\":null}"},
	{BOX_ARRAY, "{(1,1),(0,0);(2,2),(1,1)}", "[\"(1,1),(0,0)\",\"(2,2),(1,1)\"]"},
};

/* Texts that do not fit their type become strings. */
static const struct sample bad[] = {
	{16, "yes", "\"yes\""},
	{23, "", "\"\""},
	{23, "-", "\"-\""},
	{23, "1.", "\"1.\""},
	{23, ".5", "\".5\""},
	{23, "1e", "\"1e\""},
	{23, "1e+", "\"1e+\""},
	{23, "1e5000", "\"1e5000\""},
	{23, "1x", "\"1x\""},
	{1007, "", "\"\""},
	{1007, "{", "\"{\""},
	{1007, "{1", "\"{1\""},
	{1007, "{1,", "\"{1,\""},
	{1007, "{1}}", "\"{1}}\""},
	{1007, "[0:1]", "\"[0:1]\""},
	{1009, "{\"a", "\"{\\\"a\""},
	{1009, "{\"a\\", "\"{\\\"a\\\\\""},
	{PAIR, "(1)", "\"(1)\""},
	{PAIR, "(1,2,3)", "\"(1,2,3)\""},
	{PAIR, "(1,\"x)", "\"(1,\\\"x)\""},
	{PAIR, "()", "\"()\""},
	{PAIR, "(", "\"(\""},
	{EMPTY, "(1)", "\"(1)\""},
	{1114, "2024-01-01 <b>", "\"2024-01-01 <b>\""},
	{22, "1 x", "\"1 x\""},
};

static struct typecache *types;

static int setup(void **state)
{
	uint32_t asked[] = {PAIR, BOX_ARRAY};

	(void)state;
	types = typecache_new();
	typecache_learn(types, rows, ARRAY_LEN(rows), asked, ARRAY_LEN(asked));
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	typecache_free(&types);
	return 0;
}

static void check(const struct sample *s, int expected)
{
	struct buf out;
	/* An exact-size copy: reading past the end shows. */
	size_t len = strlen(s->text);
	char *text = xmemdup(len > 0 ? s->text : "x", len > 0 ? len : 1);

	buf_init(&out, 0);
	int err = tojson(&out, typecache_find(types, s->type), text, len);
	assert_string_equal(buf_cstr(&out), s->json);
	assert_int_equal(err, expected);
	json_t *v = json_loads(buf_cstr(&out), JSON_DECODE_ANY | JSON_DECODE_INT_AS_REAL, NULL);
	assert_non_null(v);
	json_decref(v);
	buf_free(&out);
	free(text);
}

static void test_values(void **state)
{
	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(good); i++)
		check(&good[i], 0);
}

static void test_misfits(void **state)
{
	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(bad); i++)
		check(&bad[i], -ERR_MALFORMED);
}

/* Deeper than any server nests: refused, not followed down the stack. */
static void test_depth(void **state)
{
	struct buf text, out;

	(void)state;
	buf_init(&text, 0);
	buf_init(&out, 0);
	for (int i = 0; i < 100000; i++)
		buf_put_u8(&text, '{');
	assert_int_equal(
		tojson(&out, typecache_find(types, 1007), (char *)text.data, text.len_bytes),
		-ERR_MALFORMED);
	assert_int_equal(out.len_bytes, text.len_bytes + 2);
	buf_free(&text);
	buf_free(&out);
}

static void test_altered_type(void **state)
{
	static const struct type_row wider[] = {
		{PAIR, 'c', 0, 0, ',', "a", 23},
		{PAIR, 'c', 0, 0, ',', "b", 25},
		{PAIR, 'c', 0, 0, ',', "c", 16},
	};
	static const struct sample domain = {
		DOMAIN_PAIR, "(1,,t)", "{\"a\":1,\"b\":null,\"c\":true}"};
	const struct type_info *before = typecache_find(types, PAIR);
	uint32_t asked = PAIR;

	(void)state;
	typecache_forget(types, PAIR);
	assert_null(typecache_find(types, PAIR));
	typecache_forget(types, 23); /* built in: stays */
	assert_non_null(typecache_find(types, 23));
	typecache_learn(types, wider, ARRAY_LEN(wider), &asked, 1);
	assert_ptr_equal(typecache_find(types, PAIR), before);
	check(&domain, 0);
	assert_null(typecache_find(types, 30000));
	asked = 30000; /* dropped since: text */
	typecache_learn(types, NULL, 0, &asked, 1);
	assert_int_equal(typecache_find(types, 30000)->kind, TYPE_TEXT);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_values, setup, teardown),
		cmocka_unit_test_setup_teardown(test_misfits, setup, teardown),
		cmocka_unit_test_setup_teardown(test_depth, setup, teardown),
		cmocka_unit_test_setup_teardown(test_altered_type, setup, teardown),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
