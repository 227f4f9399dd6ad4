/* SPDX-License-Identifier: PostgreSQL */
/*
 * pgoutput messages, byte by byte, one of each kind and shape: what test_decode and test_catalog
 * decode. The seeds of fuzz_decode hold the same bytes, one file per sample.
 */
#ifndef TESTS_UNIT_PGOUTPUT_SAMPLES_H
#define TESTS_UNIT_PGOUTPUT_SAMPLES_H

#include <stddef.h>

struct sample {
	const char *name;
	const char *bytes;
	size_t len;
};

/* One message a line, as it is on the wire: kept as laid out here. */
/* clang-format off */
#define SAMPLE(name, bytes) {name, bytes, sizeof(bytes) - 1}

#define OID "\x00\x00\x40\x01"
#define LSN1 "\x00\x00\x00\x16\xb3\x74\xd8\x48"
#define LSN2 "\x00\x00\x00\x16\xb3\x74\xd8\x78"
#define TS "\x00\x02\xa1\x0b\x5c\x7e\x11\x22"
#define TS2 "\x00\x02\xa1\x0b\x5c\x7e\x11\x33"
#define TEXT_1 "t\x00\x00\x00\x01" "1"
#define TEXT_ABC "t\x00\x00\x00\x03" "abc"
#define TEXT_EMPTY "t\x00\x00\x00\x00"
#define COL_ID "\x01id\0" "\x00\x00\x00\x17" "\xff\xff\xff\xff"
#define COL_NOTE "\x00note\0" "\x00\x00\x04\x13" "\x00\x00\x00\x24"

enum {
	S_BEGIN, S_COMMIT, S_ORIGIN, S_RELATION, S_RELATION_CATALOG, S_RELATION_EMPTY, S_TYPE,
	S_INSERT, S_INSERT_NULL, S_INSERT_EMPTY, S_INSERT_BINARY, S_UPDATE, S_UPDATE_KEY,
	S_UPDATE_FULL, S_UPDATE_TOAST, S_DELETE_KEY, S_DELETE_FULL, S_TRUNCATE, S_TRUNCATE_TWO,
	S_MESSAGE, S_MESSAGE_TRANSACTIONAL, S_ABORT, S_ABORT_LONG, S_STREAM_START,
	S_STREAM_START_AGAIN, S_STREAM_STOP, S_STREAM_COMMIT, S_BEGIN_PREPARE, S_PREPARE,
	S_COMMIT_PREPARED, S_ROLLBACK_PREPARED, S_STREAM_PREPARE, S_COUNT
};

static const struct sample samples[S_COUNT] = {
	[S_BEGIN] = SAMPLE("begin", "B" LSN1 TS "\x00\x00\x02\xf5"),
	[S_COMMIT] = SAMPLE("commit", "C\0" LSN1 LSN2 TS),
	[S_ORIGIN] = SAMPLE("origin", "O" LSN1 "pg_16389\0"),
	[S_RELATION] = SAMPLE("relation", "R" OID "public\0" "orders\0" "d" "\x00\x02" COL_ID COL_NOTE),
	[S_RELATION_CATALOG] = SAMPLE("relation-catalog", "R" OID "\0" "t\0" "f" "\x00\x01" COL_NOTE),
	[S_RELATION_EMPTY] = SAMPLE("relation-empty", "R" OID "s\0" "t\0" "n" "\x00\x00"),
	[S_TYPE] = SAMPLE("type", "Y" OID "public\0" "mood\0"),
	[S_INSERT] = SAMPLE("insert", "I" OID "N\x00\x02" TEXT_1 TEXT_ABC),
	[S_INSERT_NULL] = SAMPLE("insert-null", "I" OID "N\x00\x02" TEXT_1 "n"),
	[S_INSERT_EMPTY] = SAMPLE("insert-empty", "I" OID "N\x00\x00"),
	[S_INSERT_BINARY] = SAMPLE("insert-binary",
		"I" OID "N\x00\x02" "b\x00\x00\x00\x04\x00\x00\x00\x01" TEXT_EMPTY),
	[S_UPDATE] = SAMPLE("update", "U" OID "N\x00\x02" TEXT_1 TEXT_ABC),
	[S_UPDATE_KEY] = SAMPLE("update-key",
		"U" OID "K\x00\x02" TEXT_1 "n" "N\x00\x02" "t\x00\x00\x00\x02" "12" TEXT_ABC),
	[S_UPDATE_FULL] = SAMPLE("update-full",
		"U" OID "O\x00\x02" TEXT_1 TEXT_ABC "N\x00\x02" TEXT_1 "u"),
	[S_UPDATE_TOAST] = SAMPLE("update-toast", "U" OID "N\x00\x02" TEXT_1 "u"),
	[S_DELETE_KEY] = SAMPLE("delete-key", "D" OID "K\x00\x02" TEXT_1 "n"),
	[S_DELETE_FULL] = SAMPLE("delete-full", "D" OID "O\x00\x02" TEXT_1 TEXT_ABC),
	[S_TRUNCATE] = SAMPLE("truncate", "T\x00\x00\x00\x01\x00" OID),
	[S_TRUNCATE_TWO] = SAMPLE("truncate-two", "T\x00\x00\x00\x02\x03" OID "\x00\x00\x40\x09"),
	[S_MESSAGE] = SAMPLE("message", "M\0" LSN1 "hb\0" "\x00\x00\x00\x00"),
	[S_MESSAGE_TRANSACTIONAL] = SAMPLE("message-transactional",
		"M\x01" LSN1 "app\0" "\x00\x00\x00\x05" "h\0llo"),
	[S_ABORT] = SAMPLE("abort", "A\x00\x00\x02\xf5\x00\x00\x02\xf6"),
	[S_ABORT_LONG] = SAMPLE("abort-long", "A\x00\x00\x02\xf5\x00\x00\x02\xf6" LSN1 TS),
	[S_STREAM_START] = SAMPLE("stream-start", "S\x00\x00\x02\xf5\x01"),
	[S_STREAM_START_AGAIN] = SAMPLE("stream-start-again", "S\x00\x00\x02\xf5\x00"),
	[S_STREAM_STOP] = SAMPLE("stream-stop", "E"),
	[S_STREAM_COMMIT] = SAMPLE("stream-commit", "c\x00\x00\x02\xf5\x00" LSN1 LSN2 TS),
	[S_BEGIN_PREPARE] = SAMPLE("begin-prepare", "b" LSN1 LSN2 TS "\x00\x00\x02\xf5" "gid 1\0"),
	[S_PREPARE] = SAMPLE("prepare", "P\0" LSN1 LSN2 TS "\x00\x00\x02\xf5" "gid 1\0"),
	[S_COMMIT_PREPARED] = SAMPLE("commit-prepared",
		"K\0" LSN1 LSN2 TS "\x00\x00\x02\xf5" "gid 1\0"),
	[S_ROLLBACK_PREPARED] = SAMPLE("rollback-prepared",
		"r\0" LSN1 LSN2 TS TS2 "\x00\x00\x02\xf5" "gid 1\0"),
	[S_STREAM_PREPARE] = SAMPLE("stream-prepare",
		"p\0" LSN1 LSN2 TS "\x00\x00\x02\xf5" "gid 1\0"),
};
/* clang-format on */

#endif
