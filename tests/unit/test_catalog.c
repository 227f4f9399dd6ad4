/* SPDX-License-Identifier: PostgreSQL */
/*
 * The catalogue: learning, learning again (the same and a changed definition), what on_drop sees,
 * growth over many relations, reset.
 */
#include "config.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "libpgwalstream/pgwalstream.h"

#include "tests/unit/pgoutput_samples.h"

static size_t n_dropped;
static void *last_user;

static void on_drop(struct pgws_relation *rel, void *arg)
{
	assert_ptr_equal(arg, &n_dropped);
	last_user = rel->user;
	n_dropped++;
}

static int setup(void **state)
{
	n_dropped = 0;
	last_user = NULL;
	*state = pgws_catalog_new(on_drop, &n_dropped);
	return *state == NULL;
}

static int teardown(void **state)
{
	struct pgws_catalog *c = *state;
	pgws_catalog_free(&c);
	assert_null(c);
	pgws_catalog_free(&c);
	return 0;
}

static int learn(struct pgws_catalog *c, const void *bytes, size_t len)
{
	/* The bytes are gone afterwards: nothing may be kept of them. */
	char *copy = malloc(len);
	assert_non_null(copy);
	memcpy(copy, bytes, len);
	struct pgws_msg m;
	assert_int_equal(pgws_decode(copy, len, false, &m), 0);
	int err = pgws_catalog_learn(c, &m);
	memset(copy, 'x', len);
	free(copy);
	return err;
}

static void test_learn(void **state)
{
	struct pgws_catalog *c = *state;
	assert_null(pgws_catalog_find(c, 16385));
	assert_int_equal(learn(c, samples[S_INSERT].bytes, samples[S_INSERT].len), PGWS_EPROTO);
	assert_int_equal(learn(c, samples[S_RELATION].bytes, samples[S_RELATION].len), 0);
	struct pgws_relation *rel = pgws_catalog_find(c, 16385);
	assert_non_null(rel);
	assert_string_equal(rel->nspname, "public");
	assert_string_equal(rel->relname, "orders");
	assert_int_equal(rel->replident, 'd');
	assert_int_equal(rel->n_columns, 2);
	assert_true(rel->columns[0].key);
	assert_string_equal(rel->columns[0].name, "id");
	assert_string_equal(rel->columns[1].name, "note");
	assert_int_equal(rel->columns[1].typid, 1043);
	assert_int_equal(rel->columns[1].typmod, 36);
	assert_null(rel->user);
	assert_null(pgws_catalog_find(c, 16386));
}

static void test_learn_again(void **state)
{
	struct pgws_catalog *c = *state;
	int mine;
	assert_int_equal(learn(c, samples[S_RELATION].bytes, samples[S_RELATION].len), 0);
	struct pgws_relation *rel = pgws_catalog_find(c, 16385);
	uint64_t version = rel->version;
	rel->user = &mine;
	assert_int_equal(learn(c, samples[S_RELATION].bytes, samples[S_RELATION].len), 0);
	assert_ptr_equal(pgws_catalog_find(c, 16385), rel);
	assert_ptr_equal(rel->user, &mine);
	assert_int_equal(rel->version, version);
	assert_int_equal(n_dropped, 0);

	/* Each byte of the definition matters: identity, key flag, names, type, modifier. */
	static const struct sample changed[] = {
		SAMPLE("identity", "R" OID "public\0"
				   "orders\0"
				   "f"
				   "\x00\x02" COL_ID COL_NOTE),
		SAMPLE("schema", "R" OID "privat\0"
				 "orders\0"
				 "f"
				 "\x00\x02" COL_ID COL_NOTE),
		SAMPLE("name", "R" OID "privat\0"
			       "orderx\0"
			       "f"
			       "\x00\x02" COL_ID COL_NOTE),
		SAMPLE("columns", "R" OID "privat\0"
				  "orderx\0"
				  "f"
				  "\x00\x01" COL_ID),
		SAMPLE("key", "R" OID "privat\0"
			      "orderx\0"
			      "f"
			      "\x00\x01"
			      "\x00id\0"
			      "\x00\x00\x00\x17"
			      "\xff\xff\xff\xff"),
		SAMPLE("column name", "R" OID "privat\0"
				      "orderx\0"
				      "f"
				      "\x00\x01"
				      "\x00ix\0"
				      "\x00\x00\x00\x17"
				      "\xff\xff\xff\xff"),
		SAMPLE("type", "R" OID "privat\0"
			       "orderx\0"
			       "f"
			       "\x00\x01"
			       "\x00ix\0"
			       "\x00\x00\x00\x14"
			       "\xff\xff\xff\xff"),
		SAMPLE("modifier", "R" OID "privat\0"
				   "orderx\0"
				   "f"
				   "\x00\x01"
				   "\x00ix\0"
				   "\x00\x00\x00\x14"
				   "\x00\x00\x00\x08"),
	};
	for (size_t i = 0; i < sizeof(changed) / sizeof(changed[0]); i++) {
		last_user = NULL;
		pgws_catalog_find(c, 16385)->user = &mine;
		assert_int_equal(learn(c, changed[i].bytes, changed[i].len), 0);
		assert_int_equal(n_dropped, i + 1);
		assert_ptr_equal(last_user, &mine);
		rel = pgws_catalog_find(c, 16385);
		assert_null(rel->user);
		assert_true(rel->version > version);
		version = rel->version;
	}
}

static void test_many(void **state)
{
	struct pgws_catalog *c = *state;
	char bytes[64];
	size_t len = samples[S_RELATION_EMPTY].len;
	memcpy(bytes, samples[S_RELATION_EMPTY].bytes, len);
	for (unsigned i = 0; i < 5000; i++) {
		bytes[3] = (char)(i >> 8);
		bytes[4] = (char)i;
		assert_int_equal(learn(c, bytes, len), 0);
	}
	for (unsigned i = 0; i < 5000; i++) {
		struct pgws_relation *rel = pgws_catalog_find(c, i);
		assert_non_null(rel);
		assert_int_equal(rel->relid, i);
	}
	assert_null(pgws_catalog_find(c, 5000));
	pgws_catalog_reset(c);
	assert_int_equal(n_dropped, 5000);
	assert_null(pgws_catalog_find(c, 1));
	assert_int_equal(learn(c, bytes, len), 0);
	assert_true(pgws_catalog_find(c, 4999)->version > 5000);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_learn, setup, teardown),
		cmocka_unit_test_setup_teardown(test_learn_again, setup, teardown),
		cmocka_unit_test_setup_teardown(test_many, setup, teardown),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
