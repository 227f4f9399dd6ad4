/* SPDX-License-Identifier: PostgreSQL */
/* pgconf: defaults, the conninfo that follows, what is refused. */
#include "config.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <libpq-fe.h>

#include "common/base/err.h"
#include "common/base/mem.h"
#include "common/pg/pgconf.h"

static int parse(const char *text, struct conf **ret_conf, struct buf *errors)
{
	static const struct conf_row *const schemas[] = {pgconf_rows, NULL};
	static const char *const foreign[] = {NULL};

	buf_init(errors, 65536);
	return conf_parse(text, "test.conf", schemas, foreign, ret_conf, errors);
}

static void test_embedded(void **state)
{
	struct conf *conf = NULL;
	struct buf errors;
	char *conninfo;
	PQconninfoOption *options;

	(void)state;
	assert_int_equal(parse("", &conf, &errors), 0);
	assert_true(pgconf_is_embedded(conf));
	assert_int_equal(pgconf_check(conf, &errors), 0);
	assert_string_equal(conf_str(conf, "postgres.bindir"), "");
	conninfo = pgconf_conninfo(conf, "/run/a 'b");
	options = PQconninfoParse(conninfo, NULL);
	assert_non_null(options);
	for (PQconninfoOption *o = options; o->keyword != NULL; o++) {
		if (strcmp(o->keyword, "host") == 0)
			assert_string_equal(o->val, "/run/a 'b/postgres");
		if (strcmp(o->keyword, "dbname") == 0 || strcmp(o->keyword, "user") == 0)
			assert_string_equal(o->val, "howdah");
	}
	PQconninfoFree(options);
	free(conninfo);
	conf_free(&conf);
	buf_free(&errors);
}

static void test_external(void **state)
{
	struct conf *conf = NULL;
	struct buf errors;
	char *conninfo;

	(void)state;
	assert_int_equal(parse("postgres = { mode = \"external\"; conninfo = "
			       "\"host=a,b target_session_attrs=read-write\"; };",
				 &conf, &errors),
		0);
	assert_false(pgconf_is_embedded(conf));
	assert_int_equal(pgconf_check(conf, NULL), 0);
	conninfo = pgconf_conninfo(conf, "/run/x");
	assert_string_equal(conninfo, "host=a,b target_session_attrs=read-write");
	free(conninfo);
	conf_free(&conf);
	buf_free(&errors);

	assert_int_equal(parse("postgres = { mode = \"external\"; };", &conf, &errors), 0);
	assert_int_equal(pgconf_check(conf, NULL), -ERR_CONFIG);
	assert_int_equal(pgconf_check(conf, &errors), -ERR_CONFIG);
	assert_non_null(strstr(buf_cstr(&errors), "postgres.conninfo: required"));
	conf_free(&conf);
	buf_free(&errors);
}

static void test_refused(void **state)
{
	static const struct {
		const char *text, *finding;
	} rows[] = {
		{"postgres = { mode = \"other\"; };", "postgres.mode"},
		{"postgres = { mode = \"external\"; conninfo = \"nonsense\"; };",
			"not a libpq connection string"},
		{"postgres = { conninfo = 5; };", "postgres.conninfo"},
		{"postgres = { speed = 5; };", "speed"},
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(rows); i++) {
		struct conf *conf = NULL;
		struct buf errors;

		assert_int_equal(parse(rows[i].text, &conf, &errors), -ERR_CONFIG);
		if (strstr(buf_cstr(&errors), rows[i].finding) == NULL)
			fail_msg("row %zu: %s", i, buf_cstr(&errors));
		buf_free(&errors);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_embedded),
		cmocka_unit_test(test_external),
		cmocka_unit_test(test_refused),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
