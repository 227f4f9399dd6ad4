/* SPDX-License-Identifier: PostgreSQL */
/*
 * The encoder against messages written down byte by byte: every message from a structure that no
 * decoder made, every sample there and back, room that does not suffice, and what is no message.
 */
#include "config.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "libpgwalstream/pgwalstream.h"

#include "tests/unit/helper_msg.h"
#include "tests/unit/pgoutput_samples.h"

#define LSN_1 UINT64_C(0x16b374d848)
#define LSN_2 UINT64_C(0x16b374d878)
#define TIME_1 INT64_C(0x0002a10b5c7e1122)
#define TIME_2 INT64_C(0x0002a10b5c7e1133)

#define N_OF(array) (sizeof(array) / sizeof((array)[0]))

static const struct pgws_column row_1[] = {{PGWS_TEXT, "1", 1}, {PGWS_TEXT, "abc", 3}};
static const struct pgws_column row_12[] = {{PGWS_TEXT, "12", 2}, {PGWS_TEXT, "abc", 3}};
static const struct pgws_column row_null[] = {{PGWS_TEXT, "1", 1}, {PGWS_NULL, NULL, 0}};
static const struct pgws_column row_toast[] = {{PGWS_TEXT, "1", 1}, {PGWS_UNCHANGED, NULL, 0}};
static const struct pgws_column row_binary[] = {{PGWS_BINARY, "\0\0\0\1", 4}, {PGWS_TEXT, "", 0}};

static uint8_t row_bytes[8][64];
static uint8_t *next_row_bytes;

static struct pgws_tuple tuple_of(const struct pgws_column *columns, uint16_t n)
{
	struct pgws_tuple t;
	int64_t len = pgws_encode_tuple(columns, n, next_row_bytes, sizeof(row_bytes[0]), &t);
	assert_in_range(len, 0, sizeof(row_bytes[0]));
	assert_ptr_equal(t.data, next_row_bytes);
	assert_int_equal(t.len, len);
	assert_int_equal(t.n_columns, n);
	next_row_bytes += sizeof(row_bytes[0]);
	return t;
}

/* Encodes into a block of exactly its size, and into one that is a byte short. */
static void check_bytes(const struct pgws_msg *m, bool in_stream, const void *expect, size_t len)
{
	assert_int_equal(pgws_encode(m, in_stream, NULL, 0), len);
	uint8_t *buf = malloc(len);
	assert_non_null(buf);
	memset(buf, 0x5a, len);
	assert_int_equal(pgws_encode(m, in_stream, buf, len - 1), len);
	for (size_t i = 0; i < len; i++)
		assert_int_equal(buf[i], 0x5a);
	assert_int_equal(pgws_encode(m, in_stream, buf, len), len);
	assert_memory_equal(buf, expect, len);
	free(buf);
}

static void check_sample(const struct pgws_msg *m, int i)
{
	check_bytes(m, false, samples[i].bytes, samples[i].len);
	/* The xid is of no account outside a stream, and stands behind the type inside. */
	struct pgws_msg with_xid = *m;
	with_xid.xid = 0x010002f6;
	check_bytes(&with_xid, false, samples[i].bytes, samples[i].len);
	char bytes[256] = {samples[i].bytes[0], 1, 0, 2, (char)0xf6};
	size_t head = strchr("RYIUDTM", bytes[0]) != NULL ? 5 : 1;
	memcpy(bytes + head, samples[i].bytes + 1, samples[i].len - 1);
	check_bytes(&with_xid, true, bytes, samples[i].len + head - 1);
}

static void test_samples(void **state)
{
	(void)state;
	for (int i = 0; i < S_COUNT; i++) {
		struct pgws_msg m, again;
		uint8_t buf[256];
		assert_int_equal(pgws_decode(samples[i].bytes, samples[i].len, false, &m), 0);
		check_sample(&m, i);
		int64_t len = pgws_encode(&m, false, buf, sizeof(buf));
		assert_int_equal(pgws_decode(buf, (size_t)len, false, &again), 0);
		assert_true(messages_equal(&m, &again));
	}
}

static void test_transaction(void **state)
{
	(void)state;
	struct pgws_msg m = {.type = PGWS_BEGIN,
		.u.begin = {.final_lsn = LSN_1, .commit_time = TIME_1, .xid = 757}};
	check_sample(&m, S_BEGIN);
	m = (struct pgws_msg){.type = PGWS_COMMIT,
		.u.commit = {.commit_lsn = LSN_1, .end_lsn = LSN_2, .commit_time = TIME_1}};
	check_sample(&m, S_COMMIT);
	m = (struct pgws_msg){.type = PGWS_ORIGIN, .u.origin = {.lsn = LSN_1, .name = "pg_16389"}};
	check_sample(&m, S_ORIGIN);
	m = (struct pgws_msg){.type = PGWS_TYPE,
		.u.type_ = {.typid = 16385, .nspname = "public", .typname = "mood"}};
	check_sample(&m, S_TYPE);
}

static void test_relation(void **state)
{
	(void)state;
	static const struct pgws_relation_column columns[] = {
		{.key = true, .name = "id", .typid = 23, .typmod = -1},
		{.key = false, .name = "note", .typid = 1043, .typmod = 36}};
	struct pgws_msg m = {.type = PGWS_RELATION,
		.u.relation = {.relid = 16385,
			.nspname = "public",
			.relname = "orders",
			.replident = 'd'}};
	uint8_t buf[64];
	int64_t len = pgws_encode_relation_columns(columns, 2, NULL, 0, &m);
	assert_int_equal(len, 12 + 14);
	assert_null(m.u.relation.columns);
	assert_int_equal(pgws_encode_relation_columns(columns, 2, buf, sizeof(buf), &m), len);
	assert_ptr_equal(m.u.relation.columns, buf);
	assert_int_equal(m.u.relation.columns_len, len);
	check_sample(&m, S_RELATION);

	m.u.relation.nspname = "";
	m.u.relation.relname = "t";
	m.u.relation.replident = 'f';
	assert_int_equal(pgws_encode_relation_columns(columns + 1, 1, buf, sizeof(buf), &m), 14);
	check_sample(&m, S_RELATION_CATALOG);
	m.u.relation.nspname = "s";
	m.u.relation.replident = 'n';
	assert_int_equal(pgws_encode_relation_columns(NULL, 0, buf, sizeof(buf), &m), 0);
	check_sample(&m, S_RELATION_EMPTY);
}

static void test_changes(void **state)
{
	(void)state;
	static const struct {
		int sample;
		enum pgws_old old_kind;
		const struct pgws_column *old_row, *new_row;
	} cases[] = {
		{S_INSERT, PGWS_OLD_NONE, NULL, row_1},
		{S_INSERT_NULL, PGWS_OLD_NONE, NULL, row_null},
		{S_INSERT_EMPTY, PGWS_OLD_NONE, NULL, NULL},
		{S_INSERT_BINARY, PGWS_OLD_NONE, NULL, row_binary},
		{S_UPDATE, PGWS_OLD_NONE, NULL, row_1},
		{S_UPDATE_KEY, PGWS_OLD_KEY, row_null, row_12},
		{S_UPDATE_FULL, PGWS_OLD_FULL, row_1, row_toast},
		{S_UPDATE_TOAST, PGWS_OLD_NONE, NULL, row_toast},
		{S_DELETE_KEY, PGWS_OLD_KEY, row_null, NULL},
		{S_DELETE_FULL, PGWS_OLD_FULL, row_1, NULL},
	};
	for (size_t i = 0; i < N_OF(cases); i++) {
		next_row_bytes = row_bytes[0];
		struct pgws_msg m = {
			.type = (enum pgws_type)samples[cases[i].sample].bytes[0],
			.u.change = {.relid = 16385, .old_kind = cases[i].old_kind},
		};
		if (cases[i].old_row != NULL)
			m.u.change.old_row = tuple_of(cases[i].old_row, 2);
		if (cases[i].new_row != NULL)
			m.u.change.new_row = tuple_of(cases[i].new_row, 2);
		check_sample(&m, cases[i].sample);
	}
}

static void test_truncate_and_message(void **state)
{
	(void)state;
	static const uint8_t relids[] = {0, 0, 0x40, 1, 0, 0, 0x40, 9};
	struct pgws_msg m = {
		.type = PGWS_TRUNCATE, .u.truncate = {.n_relids = 1, .relids = relids}};
	check_sample(&m, S_TRUNCATE);
	m.u.truncate.n_relids = 2;
	m.u.truncate.cascade = m.u.truncate.restart_identity = true;
	check_sample(&m, S_TRUNCATE_TWO);
	m = (struct pgws_msg){
		.type = PGWS_MESSAGE, .u.message = {.lsn = LSN_1, .prefix = "hb", .data = NULL}};
	check_sample(&m, S_MESSAGE);
	m.u.message.transactional = true;
	m.u.message.prefix = "app";
	m.u.message.data = (const uint8_t *)"h\0llo";
	m.u.message.len = 5;
	check_sample(&m, S_MESSAGE_TRANSACTIONAL);
}

static void test_stream(void **state)
{
	(void)state;
	struct pgws_msg m = {
		.type = PGWS_STREAM_START, .u.stream_start = {.xid = 757, .first = true}};
	check_sample(&m, S_STREAM_START);
	m.u.stream_start.first = false;
	check_sample(&m, S_STREAM_START_AGAIN);
	m = (struct pgws_msg){.type = PGWS_STREAM_STOP};
	check_sample(&m, S_STREAM_STOP);
	m = (struct pgws_msg){
		.type = PGWS_STREAM_COMMIT,
		.u.stream_commit = {.xid = 757,
			.commit_lsn = LSN_1,
			.end_lsn = LSN_2,
			.commit_time = TIME_1},
	};
	check_sample(&m, S_STREAM_COMMIT);
	m = (struct pgws_msg){
		.type = PGWS_STREAM_ABORT,
		.u.stream_abort = {.xid = 757, .subxid = 758, .lsn = LSN_1, .time = TIME_1},
	};
	check_sample(&m, S_ABORT);
	m.u.stream_abort.has_lsn = true;
	check_sample(&m, S_ABORT_LONG);
}

static void test_prepared(void **state)
{
	(void)state;
	static const int same_form[] = {
		S_BEGIN_PREPARE, S_PREPARE, S_COMMIT_PREPARED, S_STREAM_PREPARE};
	for (size_t i = 0; i < N_OF(same_form); i++) {
		struct pgws_msg m = {
			.type = (enum pgws_type)samples[same_form[i]].bytes[0],
			.u.prepare = {.lsn = LSN_1,
				.end_lsn = LSN_2,
				.time = TIME_1,
				.xid = 757,
				.gid = "gid 1"},
		};
		check_sample(&m, same_form[i]);
	}
	struct pgws_msg m = {
		.type = PGWS_ROLLBACK_PREPARED,
		.u.rollback_prepared = {.prepare_end_lsn = LSN_1,
			.end_lsn = LSN_2,
			.prepare_time = TIME_1,
			.rollback_time = TIME_2,
			.xid = 757,
			.gid = "gid 1"},
	};
	check_sample(&m, S_ROLLBACK_PREPARED);
}

static void refuse(const struct pgws_msg *m, bool in_stream)
{
	uint8_t buf[256], before[256];
	memset(buf, 0x5a, sizeof(buf));
	memcpy(before, buf, sizeof(buf));
	assert_int_equal(pgws_encode(m, in_stream, buf, sizeof(buf)), PGWS_EINVAL);
	assert_memory_equal(buf, before, sizeof(buf));
}

static void test_not_a_message(void **state)
{
	(void)state;
	for (int type = -1; type < 600; type++) {
		struct pgws_msg m = {.type = (enum pgws_type)type};
		if (type <= 0 || type > 255 || strchr("BCORYIUDTMSEcAbPKrp", type) == NULL)
			refuse(&m, false);
	}
	static const struct pgws_msg bad[] = {
		{.type = PGWS_COMMIT, .u.commit = {.flags = 1}},
		{.type = PGWS_ORIGIN, .u.origin = {.name = NULL}},
		{.type = PGWS_TYPE, .u.type_ = {.nspname = NULL, .typname = "t"}},
		{.type = PGWS_TYPE, .u.type_ = {.nspname = "s", .typname = NULL}},
		{.type = PGWS_RELATION, .u.relation = {.relname = "t", .replident = 'd'}},
		{.type = PGWS_RELATION, .u.relation = {.nspname = "s", .replident = 'd'}},
		{.type = PGWS_RELATION, .u.relation = {.nspname = "s", .relname = "t"}},
		{.type = PGWS_RELATION,
			.u.relation = {.nspname = "s", .relname = "t", .replident = 'x'}},
		{.type = PGWS_INSERT, .u.change = {.old_kind = PGWS_OLD_KEY}},
		{.type = PGWS_UPDATE, .u.change = {.old_kind = (enum pgws_old)'N'}},
		{.type = PGWS_DELETE, .u.change = {.old_kind = PGWS_OLD_NONE}},
		{.type = PGWS_TRUNCATE, .u.truncate = {.n_relids = 1, .relids = NULL}},
		{.type = PGWS_MESSAGE, .u.message = {.prefix = NULL}},
		{.type = PGWS_MESSAGE, .u.message = {.prefix = "p", .data = NULL, .len = 1}},
		{.type = PGWS_STREAM_START, .u.stream_start = {.xid = 0}},
		{.type = PGWS_STREAM_COMMIT, .u.stream_commit = {.flags = 1}},
		{.type = PGWS_PREPARE, .u.prepare = {.flags = 1, .gid = "g"}},
		{.type = PGWS_PREPARE, .u.prepare = {.gid = NULL}},
		{.type = PGWS_ROLLBACK_PREPARED, .u.rollback_prepared = {.flags = 1, .gid = "g"}},
		{.type = PGWS_ROLLBACK_PREPARED, .u.rollback_prepared = {.gid = NULL}},
	};
	for (size_t i = 0; i < N_OF(bad); i++)
		refuse(&bad[i], false);
	/* A change of a stream without the transaction that made it. */
	const struct pgws_msg no_xid = {.type = PGWS_INSERT};
	refuse(&no_xid, true);
}

/* Spans that a caller made wrongly: refused without reading past their end. */
static void test_wrong_spans(void **state)
{
	(void)state;
	static const struct {
		const char *bytes;
		size_t len;
		uint16_t n;
	} tuples[] = {
		{"n", 1, 2},
		{"nn", 2, 1},
		{"x", 1, 1},
		{"t\0\0\0", 4, 1},
		{"t\0\0\0\2a", 6, 1},
		{"b\xff\xff\xff\xff", 5, 1},
		{NULL, 0, 1},
		{NULL, 1, 0},
	};
	static const struct {
		const char *bytes;
		size_t len;
		uint16_t n;
	} columns[] = {
		{"\1a\0\0\0\0\1\0\0\0\1", 11, 2},
		{"\1a\0\0\0\0\1\0\0\0\1", 11, 0},
		{"\1a\0\0\0\0\1\0\0\0", 10, 1},
		{"\2a\0\0\0\0\1\0\0\0\1", 11, 1},
		{"\1aaaaaaaaaa", 11, 1},
		{NULL, 0, 1},
	};
	for (size_t i = 0; i < N_OF(tuples); i++) {
		uint8_t *exact = tuples[i].bytes != NULL ? malloc(tuples[i].len) : NULL;
		if (exact != NULL)
			memcpy(exact, tuples[i].bytes, tuples[i].len);
		struct pgws_msg m = {.type = PGWS_INSERT,
			.u.change.new_row = {exact, tuples[i].len, tuples[i].n}};
		refuse(&m, false);
		free(exact);
	}
	for (size_t i = 0; i < N_OF(columns); i++) {
		uint8_t *exact = columns[i].bytes != NULL ? malloc(columns[i].len) : NULL;
		if (exact != NULL)
			memcpy(exact, columns[i].bytes, columns[i].len);
		struct pgws_msg m = {.type = PGWS_RELATION,
			.u.relation = {.nspname = "s",
				.relname = "t",
				.replident = 'd',
				.columns = exact,
				.columns_len = columns[i].len,
				.n_columns = columns[i].n}};
		refuse(&m, false);
		free(exact);
	}
	const struct pgws_column bad[] = {
		{(enum pgws_column_kind)'x', "", 0}, {PGWS_TEXT, NULL, 1}};
	struct pgws_tuple t = {NULL, 7, 7};
	uint8_t buf[16];
	for (size_t i = 0; i < N_OF(bad); i++)
		assert_int_equal(pgws_encode_tuple(&bad[i], 1, buf, sizeof(buf), &t), PGWS_EINVAL);
	assert_int_equal(pgws_encode_tuple(row_1, 2, buf, 5, &t), 6 + 8);
	assert_int_equal(t.len, 7);
	const struct pgws_relation_column nameless = {.name = NULL};
	struct pgws_msg m = {.type = PGWS_RELATION};
	assert_int_equal(
		pgws_encode_relation_columns(&nameless, 1, buf, sizeof(buf), &m), PGWS_EINVAL);
	assert_null(m.u.relation.columns);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_samples),
		cmocka_unit_test(test_transaction),
		cmocka_unit_test(test_relation),
		cmocka_unit_test(test_changes),
		cmocka_unit_test(test_truncate_and_message),
		cmocka_unit_test(test_stream),
		cmocka_unit_test(test_prepared),
		cmocka_unit_test(test_not_a_message),
		cmocka_unit_test(test_wrong_spans),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
