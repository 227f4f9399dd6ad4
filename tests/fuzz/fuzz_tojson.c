/* SPDX-License-Identifier: PostgreSQL */
/*
 * Fuzz target: the first byte chooses a type, the rest is its text. Whatever it is, one JSON value
 * must come out (json and jsonb excepted: the server has judged those).
 */
#include "config.h"

#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "common/base/mem.h"
#include "common/pg/tojson.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { PAIR = 20000, PAIR_ARRAY, NESTED, HOLLOW, BOX_ARRAY, NESTED_ARRAY };

static const struct type_row rows[] = {
	{PAIR, 'c', 0, 0, ',', "a", 23},
	{PAIR, 'c', 0, 0, ',', "b", 25},
	{PAIR_ARRAY, 'b', 0, PAIR, ',', NULL, 0},
	{NESTED, 'c', 0, 0, ',', "l", PAIR_ARRAY},
	{NESTED, 'c', 0, 0, ',', "t", 1185},
	{NESTED, 'c', 0, 0, ',', "v", 22},
	{HOLLOW, 'c', 0, 0, ',', NULL, 0},
	{BOX_ARRAY, 'b', 0, 25, ';', NULL, 0},
	{NESTED_ARRAY, 'b', 0, NESTED, ',', NULL, 0},
};

static const uint32_t oids[] = {16, 23, 701, 1700, 25, 1114, 1184, 1000, 1007, 1009, 1022, 1185, 22,
	30, PAIR, PAIR_ARRAY, NESTED, HOLLOW, BOX_ARRAY, NESTED_ARRAY, 114, 3802};
#define N_CHECKED (ARRAY_LEN(oids) - 2)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct buf out;

	if (size == 0 || data[0] >= ARRAY_LEN(oids))
		return 0;
	struct typecache *types = typecache_new();
	typecache_learn(types, rows, ARRAY_LEN(rows), NULL, 0);
	buf_init(&out, 0);
	(void)!tojson(&out, typecache_find(types, oids[data[0]]), (const char *)data + 1, size - 1);
	if (data[0] < N_CHECKED) {
		json_error_t error;
		json_t *v = json_loadb((const char *)out.data, out.len_bytes,
			JSON_DECODE_ANY | JSON_DECODE_INT_AS_REAL | JSON_ALLOW_NUL, &error);
		/* A number too large for a double is JSON nevertheless. */
		if (v == NULL && json_error_code(&error) != json_error_numeric_overflow)
			abort();
		json_decref(v);
	}
	buf_free(&out);
	typecache_free(&types);
	return 0;
}
