/* SPDX-License-Identifier: PostgreSQL */
/*
 * tojson against to_jsonb of a real server: many values of every common type, types from the
 * server's catalogue. The session has the settings that the walsender's has, so a text column here
 * is what pgoutput sends. Runs inside tests/helpers/with-postgres.
 */
#include "config.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>
#include <jansson.h>
#include <libpq-fe.h>

#include "common/base/mem.h"
#include "common/pg/tojson.h"

/* Keys of composites are in jsonb's order (by length, then bytes), so that texts can be compared.
 */
static const char setup_sql[] = "CREATE TYPE mood AS ENUM ('sad', 'ok', 'so \"happy\", so');"
				"CREATE TYPE pair AS (a int, b text);"
				"CREATE TYPE nest AS (l pair[], m mood, p pair, ts timestamptz);"
				"CREATE DOMAIN posint AS int CHECK (value > 0);"
				"CREATE DOMAIN dpair AS pair;"
				"CREATE DOMAIN dd AS posint;"
				"CREATE DOMAIN mail AS text[];"
				"CREATE TYPE frange AS RANGE (subtype = float8);"
				"CREATE TABLE rowtype (a int, gone text, bb numeric(10,3));"
				"ALTER TABLE rowtype DROP gone;"
				"CREATE TYPE hollow AS ();";

static const char *const values[] = {
	"true",
	"false",
	"0::int2",
	"'-32768'::int2",
	"2147483647",
	"9223372036854775807",
	"'-9223372036854775808'::int8",
	"1.10::numeric",
	"-0.000001::numeric",
	"12345678901234567890123456789.123456789::numeric",
	"1e100::numeric",
	"1e-100::numeric",
	"'NaN'::numeric",
	"'Infinity'::numeric",
	"'-Infinity'::numeric",
	"123.45::numeric(10,4)",
	"0::float8",
	"'-0'::float8",
	"1::float8",
	"0.1::float8",
	"1e15::float8",
	"1e16::float8",
	"1.5e300::float8",
	"1e-5::float8",
	"1.2345e-4::float8",
	"5e-324::float8",
	"1.7976931348623157e308::float8",
	"'NaN'::float8",
	"'Infinity'::float8",
	"'-Infinity'::float8",
	"pi()",
	"-1234567.891::float8",
	"3.4028235e38::float4",
	"1e-45::float4",
	"0.1::float4",
	"'-0'::float4",
	"16777216::float4",
	"''::text",
	"'plain'::text",
	"E'q\" b\\\\ n\\n t\\t r\\r b\\b f\\f x\\x01 \\x1f \\x7f /'::text",
	"U&'gr\\00fc\\00df \\+01f418 \\2028 \\ffff'",
	"'abc'::varchar(10)",
	"'abc'::char(6)",
	"'x'::\"char\"",
	"'name'::name",
	"'\\x00ff5c22'::bytea",
	"''::bytea",
	"'{ \"b\": [1, 2.50, {\"c\": null}], \"a\": \"\\u00e9\\\\ \\\"\" }'::jsonb",
	"'[]'::jsonb",
	"'\"str\"'::jsonb",
	"'null'::jsonb",
	"E'{\"a\" : [ 1,\\n\\t2.5 , true ],\"bb\":\"x y\\\\\" z\"}'::json",
	"'  \"a b\"  '::json",
	"'2024-02-29'::date",
	"'0044-03-15 BC'::date",
	"'infinity'::date",
	"'-infinity'::date",
	"'5874897-12-31'::date",
	"'2024-02-29 13:14:15.123456'::timestamp",
	"'2024-02-29 00:00:00'::timestamp",
	"'0044-03-15 01:02:03 BC'::timestamp",
	"'294276-12-31 23:59:59.999999'::timestamp",
	"'infinity'::timestamp",
	"'2024-02-29 13:14:15.1+05:30'::timestamptz",
	"'0044-03-15 01:02:03 BC'::timestamptz",
	"'-infinity'::timestamptz",
	"'294276-12-31 23:59:59.999999+00'::timestamptz",
	"'13:14:15.5'::time",
	"'24:00:00'::time",
	"'13:14:15+05:30'::timetz",
	"'1 year 2 mons -3 days 04:05:06.789'::interval",
	"'-1 day +02:03'::interval",
	"'0'::interval",
	"'6d7e8f90-1234-4abc-8def-001122334455'::uuid",
	"'192.168.1.0/24'::inet",
	"'2001:db8::1'::inet",
	"'10.0.0.0/8'::cidr",
	"'08:00:2b:01:02:03'::macaddr",
	"'08:00:2b:01:02:03:04:05'::macaddr8",
	"B'10101'::bit(5)",
	"B'101'::varbit",
	"'12.34'::money",
	"'<a b=\"c\">d</a>'::xml",
	"'(1,2)'::point",
	"'((1,2),(3,4))'::box",
	"'[(1,2),(3,4)]'::lseg",
	"'((0,0),(1,1),(1,0))'::polygon",
	"'<(0,0),1>'::circle",
	"'a fat cat'::tsvector",
	"'fat & !rat'::tsquery",
	"'[1,10)'::int4range",
	"'empty'::int4range",
	"'[1.5,2.5]'::numrange",
	"'[2024-01-01,2024-02-01)'::daterange",
	"'[\"2024-01-01 00:00:00\",)'::tsrange",
	"'{[1,3),[5,7)}'::int4multirange",
	"'[1,2]'::frange",
	"1::oid",
	"'pg_class'::regclass",
	"'int4'::regtype",
	"'0/16B3748'::pg_lsn",
	"'10:20:10,14'::pg_snapshot",
	"'1 2 3'::int2vector",
	"'1 2 3'::oidvector",
	"''::int2vector",
	"'{}'::int[]",
	"'{1,NULL,3}'::int[]",
	"'{{1,2},{3,4}}'::int[]",
	"'{{{1},{2}},{{3},{4}}}'::int8[]",
	"'[0:2]={1,2,3}'::int2[]",
	"'[-1:0][5:6]={{1,2},{3,4}}'::int[]",
	"'{t,f,NULL}'::bool[]",
	"ARRAY['', 'NULL', 'null', NULL, 'a,b', 'q\"q', E'b\\\\s', '{x}', ' sp ', E'n\\n']",
	"ARRAY['ab'::varchar, 'c']",
	"ARRAY['ab'::char(4)]",
	"'{1.0,NaN,-0.10}'::numeric[]",
	"'{1e20,NaN,-0,0.5}'::float8[]",
	"'{2024-01-01,infinity,0001-01-01 BC}'::date[]",
	"ARRAY['2024-01-01 01:02:03'::timestamp, 'infinity', '0044-03-15 BC']",
	"ARRAY['2024-01-01 01:02:03.5+02'::timestamptz, NULL]",
	"ARRAY['{\"a\": [1, \"x\\\"y\"]}'::jsonb, '1', 'null', NULL]",
	"ARRAY['{\"a\":[1,\"x\\\"y\"]}'::json, '[ 1 ]']",
	"ARRAY['\\x01'::bytea, '\\xff']",
	"ARRAY['6d7e8f90-1234-4abc-8def-001122334455'::uuid]",
	"ARRAY['1 day'::interval]",
	"ARRAY['(1,1),(0,0)'::box, '(2,2),(1,1)']",
	"ARRAY['(1,2)'::point]",
	"ARRAY['[1,3)'::int4range, 'empty']",
	"ARRAY['1 2'::int2vector]",
	"ARRAY[1::oid]",
	"ARRAY['x'::name]",
	"ARRAY['10.0.0.1'::inet]",
	"ARRAY['sad'::mood, 'so \"happy\", so']",
	"'ok'::mood",
	"'so \"happy\", so'::mood",
	"7::posint",
	"8::dd",
	"ARRAY[7::posint, 8]",
	"'{a@b,\"c d\"}'::mail",
	"ROW(1, 'x')::pair",
	"ROW(NULL, NULL)::pair",
	"ROW(-5, '')::pair",
	"ROW(1, E'a \"q\" \\\\ , ( ) \\n {}')::pair",
	"ROW(1, 'x')::dpair",
	"ARRAY[ROW(1, 'x y'), ROW(2, NULL), NULL, ROW(3, '\"')]::pair[]",
	"ARRAY[ROW(1, 'x y')::dpair]",
	"ROW(ARRAY[ROW(1, 'a \"b\" c'), ROW(NULL, '')]::pair[], 'ok', ROW(2, E'\\\\ \"'),"
	" '2024-01-01 00:00:00+00')::nest",
	"ROW(NULL, NULL, NULL, NULL)::nest",
	"ARRAY[ROW(ARRAY[ROW(1, 'a \"b\" c')]::pair[], 'so \"happy\", so', ROW(2, 'x'), "
	"NULL)::nest]",
	"ROW(1, 2.5)::rowtype",
	"ROW()::hollow",
	"'hi'::information_schema.sql_identifier",
	"'YES'::information_schema.yes_or_no",
};

static PGconn *pg;
static struct typecache *types;
static int differences;

static PGresult *query(const char *sql, int n, const char *const *params)
{
	PGresult *res = PQexecParams(pg, sql, n, NULL, params, NULL, NULL, 0);

	if (PQresultStatus(res) != PGRES_TUPLES_OK)
		fail_msg("%s: %s", sql, PQerrorMessage(pg));
	return res;
}

static const struct type_info *find_type(uint32_t oid)
{
	const struct type_info *t = typecache_find(types, oid);
	char list[32];
	const char *params[] = {list};

	if (t != NULL)
		return t;
	snprintf(list, sizeof(list), "{%u}", oid);
	PGresult *res = query(typecache_sql, 1, params);
	assert_true(PQntuples(res) > 0);
	typecache_learn_result(types, res, &oid, 1);
	PQclear(res);
	return typecache_find(types, oid);
}

/* Takes blanks between tokens out, in place. */
static void squeeze(char *s)
{
	char *to = s;
	bool quoted = false;

	for (; *s != '\0'; s++) {
		if (*s == '"')
			quoted = !quoted;
		if (quoted && *s == '\\')
			*to++ = *s++;
		else if (!quoted && *s == ' ')
			continue;
		*to++ = *s;
	}
	*to = '\0';
}

static void check(const char *expr)
{
	char *sql = xasprintf("SELECT v, to_jsonb(v)::text FROM (SELECT (%s) AS v) x", expr);
	PGresult *res = query(sql, 0, NULL);
	struct buf out;

	buf_init(&out, 0);
	int err = tojson(&out, find_type(PQftype(res, 0)), PQgetvalue(res, 0, 0),
		(size_t)PQgetlength(res, 0, 0));
	char *ours = xstrdup(buf_cstr(&out)), *theirs = xstrdup(PQgetvalue(res, 0, 1));
	squeeze(ours);
	squeeze(theirs);
	if (err != 0 || strcmp(ours, theirs) != 0) {
		/* json keeps the order and spelling of its own text. */
		json_t *a = json_loads(ours, JSON_DECODE_ANY, NULL);
		json_t *b = json_loads(theirs, JSON_DECODE_ANY, NULL);
		if (err != 0 || strstr(expr, "::json") == NULL || !json_equal(a, b)) {
			print_error("%s: ours %s, to_jsonb %s\n", expr, ours, theirs);
			differences++;
		}
		json_decref(a);
		json_decref(b);
	}
	free(ours);
	free(theirs);
	buf_free(&out);
	PQclear(res);
	free(sql);
}

static void test_values(void **state)
{
	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(values); i++)
		check(values[i]);
	assert_int_equal(differences, 0);
}

/* Random doubles, most of them with exponents. */
static void test_doubles(void **state)
{
	(void)state;
	PGresult *res = query("SELECT (random() - 0.5) * 10 ^ (random() * 600 - 300)::int"
			      " FROM generate_series(1, 500)",
		0, NULL);
	for (int i = 0; i < PQntuples(res); i++) {
		char *expr = xasprintf("'%s'::float8", PQgetvalue(res, i, 0));
		check(expr);
		free(expr);
	}
	PQclear(res);
	assert_int_equal(differences, 0);
}

/* Every row of real catalogue tables: names, vectors, arrays, chars, as rows and arrays of rows. */
static void test_catalogue_rows(void **state)
{
	static const char *const tables[] = {"pg_type", "pg_class", "pg_index", "pg_settings"};

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(tables); i++) {
		char *sql = xasprintf("SELECT t, to_jsonb(t)::text FROM %s t LIMIT 300", tables[i]);
		PGresult *res = query(sql, 0, NULL);
		for (int r = 0; r < PQntuples(res); r++) {
			struct buf out;
			buf_init(&out, 0);
			assert_int_equal(
				tojson(&out, find_type(PQftype(res, 0)), PQgetvalue(res, r, 0),
					(size_t)PQgetlength(res, r, 0)),
				0);
			json_t *a = json_loads(buf_cstr(&out), 0, NULL);
			json_t *b = json_loads(PQgetvalue(res, r, 1), 0, NULL);
			assert_true(json_equal(a, b));
			json_decref(a);
			json_decref(b);
			buf_free(&out);
		}
		assert_true(PQntuples(res) > 10);
		PQclear(res);
		free(sql);
	}
}

int main(void)
{
	pg = PQconnectdb("options='-c datestyle=ISO -c timezone=UTC -c intervalstyle=postgres "
			 "-c bytea_output=hex -c extra_float_digits=1 -c client_encoding=UTF8'");
	PGresult *res = PQexec(pg, setup_sql);
	if (PQresultStatus(res) != PGRES_COMMAND_OK) {
		fprintf(stderr, "%s\n", PQerrorMessage(pg));
		return 1;
	}
	PQclear(res);
	types = typecache_new();
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_values),
		cmocka_unit_test(test_doubles),
		cmocka_unit_test(test_catalogue_rows),
	};
	int failed = cmocka_run_group_tests(tests, NULL, NULL);
	typecache_free(&types);
	PQfinish(pg);
	return failed;
}
