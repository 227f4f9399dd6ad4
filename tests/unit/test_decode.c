/* SPDX-License-Identifier: PostgreSQL */
/*
 * The decoder against messages written down byte by byte: every field, every shape of a tuple,
 * every truncation and every byte too many. Samples are copied to blocks of exactly their size, so
 * that the sanitizers see a read past the end.
 */
#include "config.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "libpgwalstream/pgwalstream.h"

#include "tests/unit/pgoutput_samples.h"

#define LSN_1 UINT64_C(0x16b374d848)
#define LSN_2 UINT64_C(0x16b374d878)
#define TIME_1 INT64_C(0x0002a10b5c7e1122)

static struct pgws_msg decode(int i)
{
	struct pgws_msg m;
	assert_int_equal(pgws_decode(samples[i].bytes, samples[i].len, false, &m), 0);
	assert_int_equal(m.type, samples[i].bytes[0]);
	return m;
}

static int decode_exact_in(const void *bytes, size_t len, bool in_stream)
{
	void *copy = malloc(len == 0 ? 1 : len);
	assert_non_null(copy);
	memcpy(copy, bytes, len);
	struct pgws_msg m;
	memset(&m, 0x5a, sizeof(m));
	struct pgws_msg before = m;
	int err = pgws_decode(copy, len, in_stream, &m);
	if (err != 0)
		assert_memory_equal(&m, &before, sizeof(m));
	free(copy);
	return err;
}

static int decode_exact(const void *bytes, size_t len)
{
	return decode_exact_in(bytes, len, false);
}

/* One letter per column and its text: "t:1 n u". */
static void check_tuple(const struct pgws_tuple *t, const char *expect)
{
	char got[256] = "";
	size_t offset = 0, n = 0;
	struct pgws_column col;
	for (; pgws_tuple_next(t, &offset, &col); n++) {
		char kind[3] = {n > 0 ? ' ' : (char)col.kind, n > 0 ? (char)col.kind : 0, 0};
		strcat(got, kind);
		if (col.kind == PGWS_TEXT || col.kind == PGWS_BINARY) {
			assert_non_null(col.data);
			strcat(got, ":");
			strncat(got, col.data, col.len);
		} else {
			assert_null(col.data);
			assert_int_equal(col.len, 0);
		}
	}
	assert_string_equal(got, expect);
	assert_int_equal(n, t->n_columns);
	assert_int_equal(offset, t->len);
}

static void test_transaction(void **state)
{
	(void)state;
	struct pgws_msg m = decode(S_BEGIN);
	assert_int_equal(m.u.begin.final_lsn, LSN_1);
	assert_int_equal(m.u.begin.commit_time, TIME_1);
	assert_int_equal(m.u.begin.xid, 757);
	m = decode(S_COMMIT);
	assert_int_equal(m.u.commit.commit_lsn, LSN_1);
	assert_int_equal(m.u.commit.end_lsn, LSN_2);
	assert_int_equal(m.u.commit.commit_time, TIME_1);
	m = decode(S_ORIGIN);
	assert_int_equal(m.u.origin.lsn, LSN_1);
	assert_string_equal(m.u.origin.name, "pg_16389");
}

static void test_stream(void **state)
{
	(void)state;
	struct pgws_msg m = decode(S_STREAM_START);
	assert_int_equal(m.u.stream_start.xid, 757);
	assert_true(m.u.stream_start.first);
	m = decode(S_STREAM_START_AGAIN);
	assert_int_equal(m.u.stream_start.xid, 757);
	assert_false(m.u.stream_start.first);
	m = decode(S_STREAM_STOP);
	assert_int_equal(m.xid, 0);
	m = decode(S_STREAM_COMMIT);
	assert_int_equal(m.u.stream_commit.xid, 757);
	assert_int_equal(m.u.stream_commit.flags, 0);
	assert_int_equal(m.u.stream_commit.commit_lsn, LSN_1);
	assert_int_equal(m.u.stream_commit.end_lsn, LSN_2);
	assert_int_equal(m.u.stream_commit.commit_time, TIME_1);
	m = decode(S_ABORT);
	assert_int_equal(m.u.stream_abort.xid, 757);
	assert_int_equal(m.u.stream_abort.subxid, 758);
	assert_false(m.u.stream_abort.has_lsn);
	assert_int_equal(m.u.stream_abort.lsn, 0);
	assert_int_equal(m.u.stream_abort.time, 0);
	m = decode(S_ABORT_LONG);
	assert_int_equal(m.u.stream_abort.xid, 757);
	assert_int_equal(m.u.stream_abort.subxid, 758);
	assert_true(m.u.stream_abort.has_lsn);
	assert_int_equal(m.u.stream_abort.lsn, LSN_1);
	assert_int_equal(m.u.stream_abort.time, TIME_1);
}

static void test_prepared(void **state)
{
	(void)state;
	static const int same_form[] = {
		S_BEGIN_PREPARE, S_PREPARE, S_COMMIT_PREPARED, S_STREAM_PREPARE};
	for (size_t i = 0; i < sizeof(same_form) / sizeof(same_form[0]); i++) {
		struct pgws_msg m = decode(same_form[i]);
		assert_int_equal(m.u.prepare.flags, 0);
		assert_int_equal(m.u.prepare.lsn, LSN_1);
		assert_int_equal(m.u.prepare.end_lsn, LSN_2);
		assert_int_equal(m.u.prepare.time, TIME_1);
		assert_int_equal(m.u.prepare.xid, 757);
		assert_string_equal(m.u.prepare.gid, "gid 1");
	}
	struct pgws_msg m = decode(S_ROLLBACK_PREPARED);
	assert_int_equal(m.u.rollback_prepared.flags, 0);
	assert_int_equal(m.u.rollback_prepared.prepare_end_lsn, LSN_1);
	assert_int_equal(m.u.rollback_prepared.end_lsn, LSN_2);
	assert_int_equal(m.u.rollback_prepared.prepare_time, TIME_1);
	assert_int_equal(m.u.rollback_prepared.rollback_time, TIME_1 + 0x11);
	assert_int_equal(m.u.rollback_prepared.xid, 757);
	assert_string_equal(m.u.rollback_prepared.gid, "gid 1");
}

/* Inside a stream R Y I U D T M carry an xid, the others nothing more. */
static void test_in_stream(void **state)
{
	(void)state;
	for (int i = 0; i < S_COUNT; i++) {
		char bytes[256] = {samples[i].bytes[0]};
		bool carries = strchr("RYIUDTM", bytes[0]) != NULL;
		size_t head = carries ? 5 : 1, len = samples[i].len + head - 1;
		if (carries)
			memcpy(bytes + 1, "\x01\x00\x02\xf6", 4);
		memcpy(bytes + head, samples[i].bytes + 1, samples[i].len - 1);
		struct pgws_msg m;
		assert_int_equal(pgws_decode(bytes, len, true, &m), 0);
		assert_int_equal(m.xid, carries ? 0x010002f6 : 0);
		for (size_t cut = 0; cut < len; cut++) {
			if (i != S_ABORT_LONG || cut != samples[S_ABORT].len)
				assert_int_equal(decode_exact_in(bytes, cut, true), PGWS_EPROTO);
		}
		assert_int_equal(decode_exact_in(bytes, len, true), 0);
		assert_int_equal(decode_exact_in(bytes, len + 1, true), PGWS_EPROTO);
		if (carries) {
			memset(bytes + 1, 0, 4); /* no transaction has this number */
			assert_int_equal(decode_exact_in(bytes, len, true), PGWS_EPROTO);
		}
	}
}

static void test_relation(void **state)
{
	(void)state;
	struct pgws_msg m = decode(S_RELATION);
	assert_int_equal(m.u.relation.relid, 16385);
	assert_string_equal(m.u.relation.nspname, "public");
	assert_string_equal(m.u.relation.relname, "orders");
	assert_int_equal(m.u.relation.replident, 'd');
	assert_int_equal(m.u.relation.n_columns, 2);
	size_t offset = 0;
	struct pgws_relation_column col;
	assert_true(pgws_relation_next(&m, &offset, &col));
	assert_true(col.key);
	assert_string_equal(col.name, "id");
	assert_int_equal(col.typid, 23);
	assert_int_equal(col.typmod, -1);
	assert_true(pgws_relation_next(&m, &offset, &col));
	assert_false(col.key);
	assert_string_equal(col.name, "note");
	assert_int_equal(col.typid, 1043);
	assert_int_equal(col.typmod, 36);
	assert_false(pgws_relation_next(&m, &offset, &col));

	m = decode(S_RELATION_CATALOG);
	assert_string_equal(m.u.relation.nspname, "");
	m = decode(S_RELATION_EMPTY);
	offset = 0;
	assert_false(pgws_relation_next(&m, &offset, &col));
	m = decode(S_TYPE);
	assert_int_equal(m.u.type_.typid, 16385);
	assert_string_equal(m.u.type_.nspname, "public");
	assert_string_equal(m.u.type_.typname, "mood");
}

static void test_changes(void **state)
{
	(void)state;
	static const struct {
		int sample;
		enum pgws_old old_kind;
		const char *old_row, *new_row;
	} cases[] = {
		{S_INSERT, PGWS_OLD_NONE, "", "t:1 t:abc"},
		{S_INSERT_NULL, PGWS_OLD_NONE, "", "t:1 n"},
		{S_INSERT_EMPTY, PGWS_OLD_NONE, "", ""},
		{S_UPDATE, PGWS_OLD_NONE, "", "t:1 t:abc"},
		{S_UPDATE_KEY, PGWS_OLD_KEY, "t:1 n", "t:12 t:abc"},
		{S_UPDATE_FULL, PGWS_OLD_FULL, "t:1 t:abc", "t:1 u"},
		{S_UPDATE_TOAST, PGWS_OLD_NONE, "", "t:1 u"},
		{S_DELETE_KEY, PGWS_OLD_KEY, "t:1 n", ""},
		{S_DELETE_FULL, PGWS_OLD_FULL, "t:1 t:abc", ""},
	};
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct pgws_msg m = decode(cases[i].sample);
		assert_int_equal(m.u.change.relid, 16385);
		assert_int_equal(m.u.change.old_kind, cases[i].old_kind);
		check_tuple(&m.u.change.old_row, cases[i].old_row);
		check_tuple(&m.u.change.new_row, cases[i].new_row);
	}
	struct pgws_msg m = decode(S_INSERT_BINARY);
	struct pgws_column col;
	size_t offset = 0;
	assert_true(pgws_tuple_next(&m.u.change.new_row, &offset, &col));
	assert_int_equal(col.kind, PGWS_BINARY);
	assert_int_equal(col.len, 4);
	assert_memory_equal(col.data, "\0\0\0\1", 4);
	assert_true(pgws_tuple_next(&m.u.change.new_row, &offset, &col));
	assert_int_equal(col.kind, PGWS_TEXT);
	assert_int_equal(col.len, 0);
	assert_false(pgws_tuple_next(&m.u.change.new_row, &offset, &col));
}

static void test_truncate_and_message(void **state)
{
	(void)state;
	struct pgws_msg m = decode(S_TRUNCATE);
	assert_int_equal(m.u.truncate.n_relids, 1);
	assert_false(m.u.truncate.cascade || m.u.truncate.restart_identity);
	m = decode(S_TRUNCATE_TWO);
	assert_int_equal(m.u.truncate.n_relids, 2);
	assert_true(m.u.truncate.cascade && m.u.truncate.restart_identity);
	assert_int_equal(pgws_truncate_relid(&m, 0), 16385);
	assert_int_equal(pgws_truncate_relid(&m, 1), 16393);
	assert_int_equal(pgws_truncate_relid(&m, 2), 0);
	m = decode(S_MESSAGE);
	assert_false(m.u.message.transactional);
	assert_int_equal(m.u.message.lsn, LSN_1);
	assert_string_equal(m.u.message.prefix, "hb");
	assert_int_equal(m.u.message.len, 0);
	m = decode(S_MESSAGE_TRANSACTIONAL);
	assert_true(m.u.message.transactional);
	assert_string_equal(m.u.message.prefix, "app");
	assert_int_equal(m.u.message.len, 5);
	assert_memory_equal(m.u.message.data, "h\0llo", 5);
}

static void test_every_truncation(void **state)
{
	(void)state;
	for (int i = 0; i < S_COUNT; i++) {
		for (size_t len = 0; len < samples[i].len; len++) {
			if (i == S_ABORT_LONG && len == samples[S_ABORT].len)
				continue; /* that is the short form */
			assert_int_equal(decode_exact(samples[i].bytes, len), PGWS_EPROTO);
		}
		assert_int_equal(decode_exact(samples[i].bytes, samples[i].len), 0);
		char longer[256];
		memcpy(longer, samples[i].bytes, samples[i].len);
		longer[samples[i].len] = 0;
		assert_int_equal(decode_exact(longer, samples[i].len + 1), PGWS_EPROTO);
	}
}

static void test_malformed(void **state)
{
	(void)state;
	static const struct sample bad[] = {
		SAMPLE("column kind", "I" OID "N\x00\x01"
				      "x"),
		SAMPLE("length over the end", "I" OID "N\x00\x01"
					      "t\x7f\xff\xff\xff"
					      "abc"),
		SAMPLE("negative length", "I" OID "N\x00\x01"
					  "t\xff\xff\xff\xff"
					  "abc"),
		SAMPLE("insert without N", "I" OID "K\x00\x01"
					   "n"),
		SAMPLE("two old rows", "U" OID "K\x00\x01"
				       "n"
				       "O\x00\x01"
				       "n"
				       "N\x00\x01"
				       "n"),
		SAMPLE("delete with N", "D" OID "N\x00\x01"
					"n"),
		SAMPLE("identity", "R" OID "s\0"
				   "t\0"
				   "x"
				   "\x00\x00"),
		SAMPLE("identity zero", "R" OID "s\0"
					"t\0"
					"\0"
					"\x00\x00"),
		SAMPLE("name without end", "R" OID "s\0"
					   "ttttt"),
		SAMPLE("truncate of 2^30", "T\x40\x00\x00\x00\x00" OID),
		SAMPLE("truncate of 2^32-1", "T\xff\xff\xff\xff\x00" OID),
		SAMPLE("commit flags", "C\1" LSN1 LSN2 TS),
		SAMPLE("column flags", "R" OID "s\0"
				       "t\0"
				       "d\x00\x01"
				       "\x02id\0"
				       "\x00\x00\x00\x17"
				       "\xff\xff\xff\xff"),
		SAMPLE("truncate bits", "T\x00\x00\x00\x01\x04" OID),
		SAMPLE("message flags", "M\2" LSN1 "hb\0"
					"\x00\x00\x00\x00"),
		SAMPLE("first block", "S\x00\x00\x02\xf5\x02"),
		SAMPLE("stream of nobody", "S\x00\x00\x00\x00\x01"),
		SAMPLE("stream commit flags", "c\x00\x00\x02\xf5\x01" LSN1 LSN2 TS),
		SAMPLE("prepare flags", "P\1" LSN1 LSN2 TS OID "g\0"),
		SAMPLE("commit prepared flags", "K\1" LSN1 LSN2 TS OID "g\0"),
		SAMPLE("stream prepare flags", "p\1" LSN1 LSN2 TS OID "g\0"),
		SAMPLE("rollback prepared flags", "r\1" LSN1 LSN2 TS TS OID "g\0"),
		SAMPLE("gid with a zero", "b" LSN1 LSN2 TS OID "g\0"
					  "x\0"),
		SAMPLE("abort of 20 bytes", "A" OID OID LSN1 OID),
		SAMPLE("message length", "M\0" LSN1 "hb\0"
					 "\xff\xff\xff\xff"),
	};
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
		assert_int_equal(decode_exact(bad[i].bytes, bad[i].len), PGWS_EPROTO);
	for (int type = 0; type < 256; type++) {
		char one[64] = {(char)type};
		if (type != 0 && strchr("BCORYIUDTMSEcAbPKrp", type) != NULL)
			continue;
		for (size_t len = 1; len < sizeof(one); len++)
			assert_int_equal(decode_exact(one, len), PGWS_EPROTO);
	}
}

static void test_lsn(void **state)
{
	(void)state;
	static const struct {
		uint64_t lsn;
		const char *text;
	} cases[] = {{0, "0/0"}, {LSN_1, "16/B374D848"}, {UINT64_MAX, "FFFFFFFF/FFFFFFFF"},
		{UINT64_C(1) << 32, "1/0"}, {0x10, "0/10"}};
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		char text[18];
		uint64_t lsn;
		assert_string_equal(pgws_lsn_str(cases[i].lsn, text), cases[i].text);
		assert_int_equal(pgws_lsn_parse(cases[i].text, &lsn), 0);
		assert_true(lsn == cases[i].lsn);
	}
	uint64_t lsn = 7;
	static const char *const bad[] = {"", "/", "1", "1/", "/1", "1/2 ", " 1/2", "1/123456789",
		"123456789/1", "1/g", "-1/2", "0x1/2", "1//2"};
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
		assert_int_equal(pgws_lsn_parse(bad[i], &lsn), PGWS_EPROTO);
	assert_int_equal(lsn, 7);
	assert_int_equal(pgws_lsn_parse("16/b374d848", &lsn), 0);
	assert_true(lsn == LSN_1);
}

static void test_strerror(void **state)
{
	(void)state;
	for (int err = 0; err >= PGWS_EBACK; err--)
		assert_string_not_equal(pgws_strerror(err), "unknown error");
	assert_string_equal(pgws_strerror(PGWS_EBACK - 1), "unknown error");
	assert_string_equal(pgws_strerror(5), "success");
	assert_string_equal(pgws_version(), PACKAGE_VERSION);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_transaction),
		cmocka_unit_test(test_stream),
		cmocka_unit_test(test_prepared),
		cmocka_unit_test(test_in_stream),
		cmocka_unit_test(test_relation),
		cmocka_unit_test(test_changes),
		cmocka_unit_test(test_truncate_and_message),
		cmocka_unit_test(test_every_truncation),
		cmocka_unit_test(test_malformed),
		cmocka_unit_test(test_lsn),
		cmocka_unit_test(test_strerror),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
