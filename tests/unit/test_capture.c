/* SPDX-License-Identifier: PostgreSQL */
/*
 * Decoder and encoder on what a real server sends: traffic of every kind, peeked with every set of
 * pgoutput's options that this version has, each message decoded, checked against what the server
 * says beside it, encoded again and compared byte for byte. In the end every kind of message and
 * column must have come by. Runs inside tests/helpers/with-postgres.
 */
#include "config.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <libpq-fe.h>

#include <cmocka.h>

#include "libpgwalstream/pgwalstream.h"
#include "tests/unit/helper_capture.h"

#define BETWEEN "INSERT INTO by_key (note) VALUES ('between')"

static PGconn *first, *second;
static int version; /* 14, 15, … */

/* What came by, over all captures of one run. */
static struct {
	uint64_t types[2][256]; /* by in_stream */
	uint64_t identities[256], old_kinds[256], column_kinds[256];
	uint64_t aborts[2]; /* by has_lsn */
	uint64_t truncates[4];
	uint64_t messages, bytes, captures;
} seen;

/* ---- Traffic -------------------------------------------------------------------------------- */

static const char *const schema[] = {"CREATE TYPE mood AS ENUM ('sad', 'ok')",
	"CREATE DOMAIN small AS int CHECK (VALUE < 1000)", "CREATE TYPE pair AS (a int, b text)",
	/* A type without a send function: text in a binary stream too. */
	"CREATE TYPE nosend",
	"CREATE FUNCTION nosend_in(cstring) RETURNS nosend LANGUAGE internal IMMUTABLE STRICT"
	" AS 'textin'",
	"CREATE FUNCTION nosend_out(nosend) RETURNS cstring LANGUAGE internal IMMUTABLE STRICT"
	" AS 'textout'",
	"CREATE TYPE nosend (INPUT = nosend_in, OUTPUT = nosend_out, LIKE = text)",
	"CREATE TABLE by_key (id bigserial PRIMARY KEY, note text, m mood)",
	"CREATE TABLE by_full (id bigserial, note text, at timestamptz DEFAULT now(), f float8)",
	"ALTER TABLE by_full REPLICA IDENTITY FULL",
	"CREATE TABLE by_index (a int NOT NULL, b text, c int NOT NULL)",
	"CREATE UNIQUE INDEX by_index_i ON by_index (c, a)",
	"ALTER TABLE by_index REPLICA IDENTITY USING INDEX by_index_i",
	"CREATE TABLE by_nothing (a int, b text)",
	"ALTER TABLE by_nothing REPLICA IDENTITY NOTHING",
	"CREATE TABLE toasted (id int PRIMARY KEY, big text, n int)",
	"ALTER TABLE toasted ALTER big SET STORAGE EXTERNAL",
	"CREATE TABLE toasted_full (id int, big text, n int)",
	"ALTER TABLE toasted_full ALTER big SET STORAGE EXTERNAL",
	"ALTER TABLE toasted_full REPLICA IDENTITY FULL",
	"CREATE TABLE typed (id serial PRIMARY KEY, m mood, s small, p pair, ms mood[], x nosend,"
	" j jsonb, u uuid, b bytea, n numeric(12,3), g int GENERATED ALWAYS AS (1 + 1) STORED)",
	"CREATE TABLE \"Od\"\"d näme\" (\"a b\" int PRIMARY KEY, \"ü\" text)",
	"CREATE TABLE nothing_in_it ()", "CREATE TABLE changing (id serial PRIMARY KEY)",
	"CREATE TABLE emptied (id serial PRIMARY KEY)",
	"CREATE TABLE emptied_too (id int REFERENCES emptied)",
	"CREATE TABLE leafs (id int PRIMARY KEY, v text) PARTITION BY RANGE (id)",
	"CREATE TABLE leafs_1 PARTITION OF leafs FOR VALUES FROM (0) TO (100)",
	"CREATE TABLE leafs_2 PARTITION OF leafs FOR VALUES FROM (100) TO (200)",
	"CREATE TABLE root (id int PRIMARY KEY, v text) PARTITION BY RANGE (id)",
	"CREATE TABLE root_1 PARTITION OF root FOR VALUES FROM (0) TO (100)",
	"CREATE TABLE root_2 (v text, id int PRIMARY KEY)",
	"ALTER TABLE root ATTACH PARTITION root_2 FOR VALUES FROM (100) TO (200)",
	"CREATE PUBLICATION p_main FOR TABLE by_key, by_full, by_index, by_nothing, toasted,"
	" toasted_full, typed, \"Od\"\"d näme\", nothing_in_it, changing, emptied, emptied_too, "
	"leafs",
	"CREATE PUBLICATION p_root FOR TABLE root WITH (publish_via_partition_root)",
	"SELECT pg_replication_origin_create('elsewhere')", NULL};

static const char *const schema_15[] = {
	"CREATE TABLE listed (id int PRIMARY KEY, a int, hidden text)",
	"CREATE PUBLICATION p_listed FOR TABLE listed (id, a) WHERE (id < 50)",
	NULL,
};

static const char *const small_ones[] = {
	"INSERT INTO by_key (note, m) VALUES ('one', 'ok'), ('', 'sad'), (NULL, NULL)",
	"UPDATE by_key SET note = 'two' WHERE id = 1", /* no old row */
	"UPDATE by_key SET id = -2 WHERE id = 2",      /* the key as old row */
	"DELETE FROM by_key WHERE id = 3",
	"INSERT INTO by_full (note, f) VALUES ('a', 0.1), (NULL, 'NaN')",
	"UPDATE by_full SET note = note || 'b'",
	"DELETE FROM by_full WHERE id = 2",
	"INSERT INTO by_index VALUES (1, 'x', 2), (3, NULL, 4)",
	"UPDATE by_index SET b = 'y'",
	"UPDATE by_index SET c = 9 WHERE a = 1",
	"DELETE FROM by_index",
	"INSERT INTO by_nothing VALUES (1, 'x')",
	"INSERT INTO toasted VALUES (1, repeat('t', 9000), 0)",
	"UPDATE toasted SET n = n + 1",
	"UPDATE toasted SET id = 2, n = n + 1",
	"INSERT INTO toasted_full VALUES (1, repeat('t', 9000), 0)",
	"UPDATE toasted_full SET n = n + 1",
	"DELETE FROM toasted_full",
	"INSERT INTO typed (m, s, p, ms, x, j, u, b, n) VALUES ('ok', 7, (1, 'b'), '{ok,sad}',"
	" 'no', '{\"a\": [1, null]}', '00000000-0000-0000-0000-000000000001', '\\x00ff', 12.5)",
	"INSERT INTO \"Od\"\"d näme\" VALUES (1, 'ß')",
	"INSERT INTO nothing_in_it DEFAULT VALUES",
	"INSERT INTO emptied DEFAULT VALUES",
	"TRUNCATE emptied, emptied_too",
	"TRUNCATE emptied RESTART IDENTITY CASCADE",
	"TRUNCATE emptied CASCADE",
	"TRUNCATE by_nothing RESTART IDENTITY",
	"INSERT INTO leafs VALUES (60, 'a'), (110, 'b')",
	"UPDATE leafs SET id = id + 60", /* one of them goes to the other leaf */
	"TRUNCATE leafs",
	"INSERT INTO root VALUES (1, 'a'), (150, 'b')",
	"UPDATE root SET id = id + 60 WHERE id = 1",
	"UPDATE root SET id = id + 60 WHERE id = 61",
	"DELETE FROM root WHERE id = 150",
	"TRUNCATE root",
	"SELECT pg_logical_emit_message(false, 'alone', 'text')",
	"SELECT pg_logical_emit_message(false, '', ''::bytea)",
	"SELECT pg_logical_emit_message(true, 'inside', '\\x0001ff'::bytea)",
	"BEGIN",
	"INSERT INTO changing DEFAULT VALUES",
	"ALTER TABLE changing ADD COLUMN note text DEFAULT 'new'",
	"INSERT INTO changing DEFAULT VALUES",
	"ALTER TABLE changing DROP COLUMN note",
	"INSERT INTO changing DEFAULT VALUES",
	"SAVEPOINT s",
	"INSERT INTO changing DEFAULT VALUES",
	"ROLLBACK TO s",
	"SELECT pg_logical_emit_message(false, 'beside', 'text')",
	"COMMIT",
	"BEGIN",
	"INSERT INTO by_key (note) VALUES ('never')",
	"ROLLBACK",
	"CREATE TABLE not_published (a int)",
	"INSERT INTO not_published VALUES (1)", /* an empty transaction for the subscriber */
	NULL,
};

static const char *const listed_ones[] = {
	"INSERT INTO listed VALUES (1, 2, 'secret'), (60, 2, 'filtered')",
	"UPDATE listed SET id = 61 WHERE id = 1", /* leaves the filter: a delete */
	"UPDATE listed SET id = 2 WHERE id = 60", /* comes in: an insert */
	NULL,
};

static const char *const from_elsewhere[] = {
	"SELECT pg_replication_origin_session_setup('elsewhere')",
	"BEGIN",
	"SELECT pg_replication_origin_xact_setup('0/12345678', '2026-01-02 03:04:05+00')",
	"INSERT INTO by_key (note) VALUES ('elsewhere')",
	"COMMIT",
	"BEGIN",
	"INSERT INTO by_key (note) SELECT repeat('e', 100) FROM generate_series(1, 900)",
	"COMMIT",
	"SELECT pg_replication_origin_session_reset()",
	NULL,
};

/* Everything inside one transaction that the server streams, savepoints given up among it. */
static const char *const large_one[] = {
	"BEGIN",
	"INSERT INTO by_key (note) " MANY,
	"SELECT pg_logical_emit_message(true, 'large', 'one')",
	"SAVEPOINT a",
	"INSERT INTO by_full (note) " MANY,
	"UPDATE by_full SET note = note || '!'",
	"SAVEPOINT b",
	"DELETE FROM by_full",
	"INSERT INTO by_key (note) " MANY,
	"ROLLBACK TO a",
	"INSERT INTO typed (m, s, p, x) SELECT 'ok', 1, ROW(g, 'p'::text)::pair, 'x' FROM "
	"generate_series(1, 900) "
	"g",
	"ALTER TABLE changing ADD COLUMN later int",
	"INSERT INTO changing (later) SELECT g FROM generate_series(1, 900) g",
	"UPDATE by_key SET id = -id - 10",
	"DELETE FROM by_key WHERE id % 2 = 0",
	"TRUNCATE emptied, emptied_too, root",
	"UPDATE toasted SET n = n + 1",
	"INSERT INTO by_key (note) " MANY,
	"RELEASE a",
	"COMMIT",
	"BEGIN",
	"INSERT INTO by_key (note) " MANY,
	"SAVEPOINT a",
	"INSERT INTO by_key (note) " MANY,
	"ROLLBACK",
	NULL,
};

/* Two large transactions and small ones in between, each of the large ones with an end of its own.
 */
static void interleave(const char *end_of_second)
{
	run_on(first, "BEGIN");
	run_on(second, "BEGIN");
	for (int i = 0; i < 3; i++) {
		run_on(first, "INSERT INTO by_key (note) " MANY);
		run_on(second, "SAVEPOINT s");
		run_on(second, "INSERT INTO by_full (note) " MANY);
		if (i == 1)
			run_on(second, "ROLLBACK TO s");
	}
	run_on(second, end_of_second);
	run_on(first, "COMMIT");
}

static int setup(void **state)
{
	(void)state;
	first = PQconnectdb("");
	second = PQconnectdb("");
	if (PQstatus(first) != CONNECTION_OK || PQstatus(second) != CONNECTION_OK)
		return 1;
	sql_conn = first;
	version = server_major();
	run_all(schema);
	if (version >= 15)
		run_all(schema_15);
	run("SELECT pg_create_logical_replication_slot('one', 'pgoutput')");
	run("SELECT pg_create_logical_replication_slot('two', 'pgoutput', false, true)");
	run_all(small_ones);
	if (version >= 15)
		run_all(listed_ones);
	run_all(from_elsewhere);
	run_all(large_one);
	interleave("COMMIT");
	interleave("ROLLBACK");
	prepare_transaction("INSERT INTO by_key (note) VALUES ('p')", "small", BETWEEN, "COMMIT");
	prepare_transaction("INSERT INTO by_key (note) VALUES ('p')", "small", BETWEEN,
		"ROLLBACK"); /* used again */
	prepare_transaction("INSERT INTO by_key (note) " MANY, "large", BETWEEN, "COMMIT");
	prepare_transaction(
		"INSERT INTO by_key (note) " MANY, "large, given up", BETWEEN, "ROLLBACK");
	prepare_transaction("INSERT INTO by_key (note) " MANY, "open", NULL, NULL);
	run("SET logical_decoding_work_mem = '64kB'");
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	PQfinish(first);
	PQfinish(second);
	return 0;
}

/* ---- Captures ------------------------------------------------------------------------------- */

static void check_tuple(const struct pgws_tuple *t, const struct pgws_relation *rel)
{
	struct pgws_column col;
	size_t offset = 0;
	assert_int_equal(t->n_columns, rel->n_columns);
	while (pgws_tuple_next(t, &offset, &col))
		seen.column_kinds[col.kind]++;
}

static void check_change(struct pgws_catalog *catalog, const struct pgws_msg *m)
{
	struct pgws_relation *rel = pgws_catalog_find(catalog, m->u.change.relid);
	assert_non_null(rel);
	seen.old_kinds[m->u.change.old_kind]++;
	if (m->u.change.old_kind != PGWS_OLD_NONE)
		check_tuple(&m->u.change.old_row, rel);
	if (m->type != PGWS_DELETE)
		check_tuple(&m->u.change.new_row, rel);
}

/* The top transaction that the message names itself, 0 if it does not. */
static uint32_t top_xid(const struct pgws_msg *m)
{
	switch (m->type) {
	case PGWS_BEGIN:
		return m->u.begin.xid;
	case PGWS_STREAM_START:
		return m->u.stream_start.xid;
	case PGWS_STREAM_COMMIT:
		return m->u.stream_commit.xid;
	case PGWS_STREAM_ABORT:
		return m->u.stream_abort.xid;
	case PGWS_BEGIN_PREPARE:
	case PGWS_PREPARE:
	case PGWS_COMMIT_PREPARED:
	case PGWS_STREAM_PREPARE:
		return m->u.prepare.xid;
	case PGWS_ROLLBACK_PREPARED:
		return m->u.rollback_prepared.xid;
	default:
		return 0;
	}
}

static void check_message(
	struct pgws_catalog *catalog, const struct pgws_msg *m, bool in_stream, uint32_t xid)
{
	seen.types[in_stream][m->type]++;
	assert_int_equal(m->xid != 0, in_stream && strchr("RYIUDTM", (int)m->type) != NULL);
	if (top_xid(m) != 0 && m->type != PGWS_STREAM_ABORT) /* there it may be the sub's */
		assert_int_equal(top_xid(m), xid);
	switch (m->type) {
	case PGWS_RELATION:
		seen.identities[(uint8_t)m->u.relation.replident]++;
		assert_int_equal(pgws_catalog_learn(catalog, m), 0);
		break;
	case PGWS_INSERT:
	case PGWS_UPDATE:
	case PGWS_DELETE:
		check_change(catalog, m);
		break;
	case PGWS_TRUNCATE:
		seen.truncates[m->u.truncate.cascade + 2 * m->u.truncate.restart_identity]++;
		for (uint32_t i = 0; i < m->u.truncate.n_relids; i++)
			assert_non_null(pgws_catalog_find(catalog, pgws_truncate_relid(m, i)));
		break;
	case PGWS_STREAM_ABORT:
		seen.aborts[m->u.stream_abort.has_lsn]++;
		break;
	default:
		break;
	}
}

static void check_round_trip(const struct pgws_msg *m, bool in_stream, const void *data, size_t len)
{
	uint8_t *again = malloc(len);
	assert_non_null(again);
	assert_int_equal(pgws_encode(m, in_stream, again, len), len);
	assert_memory_equal(again, data, len);
	free(again);
}

static void check_capture(PGresult *res, bool may_stream)
{
	struct pgws_catalog *catalog = pgws_catalog_new(NULL, NULL);
	assert_non_null(catalog);
	bool in_stream = false;
	for (int row = 0; row < PQntuples(res); row++) {
		size_t len = (size_t)PQgetlength(res, row, 1);
		/* Exactly as large, for the sanitizers. */
		uint8_t *data = malloc(len);
		assert_non_null(data);
		memcpy(data, PQgetvalue(res, row, 1), len);
		const uint8_t *x = (const uint8_t *)PQgetvalue(res, row, 0);
		uint32_t xid =
			(uint32_t)x[0] << 24 | (uint32_t)x[1] << 16 | (uint32_t)x[2] << 8 | x[3];
		struct pgws_msg m;
		if (pgws_decode(data, len, in_stream, &m) != 0)
			fail_msg("message %d, type %c, %zu bytes: not decoded", row, data[0], len);
		check_message(catalog, &m, in_stream, xid);
		check_round_trip(&m, in_stream, data, len);
		if (m.type == PGWS_STREAM_START || m.type == PGWS_STREAM_STOP) {
			assert_true(may_stream);
			assert_int_equal(in_stream, m.type == PGWS_STREAM_STOP);
			in_stream = m.type == PGWS_STREAM_START;
		}
		seen.messages++;
		seen.bytes += len;
		free(data);
	}
	assert_false(in_stream);
	pgws_catalog_free(&catalog);
}

static void capture_one(const struct capture *o, void *arg)
{
	(void)arg;
	PGresult *res = capture(o, "peek");
	assert_true(PQntuples(res) > 1000);
	check_capture(res, o->streaming != NULL && strcmp(o->streaming, "off") != 0);
	PQclear(res);
	seen.captures++;
}

/* Every set of options that this server takes. */
static void test_every_option(void **state)
{
	(void)state;
	static const char *const origins[] = {NULL, "any", "none"};
	for (int proto = 1; proto <= server_protos(); proto++) {
		for (int bits = 0; bits < 8; bits++) {
			struct capture o = {.proto = proto,
				.publications =
					version >= 15 ? "p_main,p_root,p_listed" : "p_main,p_root",
				.beside = "xid",
				.binary = (bits & 1) != 0,
				.messages = (bits & 2) != 0,
				.two_phase = (bits & 4) != 0};
			if (o.two_phase && proto < 3)
				continue;
			for (int i = 0; i < (version >= 16 ? 3 : 1); i++) {
				if (i == 1 && bits != 0)
					continue; /* the default, spelt out */
				o.origin = origins[i];
				each_streaming(o, capture_one, NULL);
				if (proto == 1)
					capture_one(&o, NULL);
			}
		}
	}
}

static void must_have(const char *what, const uint64_t *counts, const char *letters)
{
	for (; *letters != 0; letters++) {
		if (counts[(uint8_t)*letters] == 0)
			fail_msg("%s '%c' never came", what, *letters);
	}
}

static void test_everything_came_by(void **state)
{
	(void)state;
	print_message("PostgreSQL %d: %llu messages, %llu bytes in %llu captures\n", version,
		(unsigned long long)seen.messages, (unsigned long long)seen.bytes,
		(unsigned long long)seen.captures);
	must_have("message", seen.types[false], "BCORYIUDTMScA");
	must_have("streamed message", seen.types[true], "ORYIUDTME");
	if (version >= 15)
		must_have("message", seen.types[false], "bPKrp");
	must_have("identity", seen.identities, "dnfi");
	must_have("old row", seen.old_kinds, "KO");
	must_have("column", seen.column_kinds, "nutb");
	assert_true(seen.old_kinds[0] > 0);
	assert_true(seen.aborts[false] > 0);
	assert_int_equal(seen.aborts[true] > 0, version >= 16);
	for (int i = 0; i < 4; i++)
		assert_true(seen.truncates[i] > 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_every_option),
		cmocka_unit_test(test_everything_came_by),
	};
	return cmocka_run_group_tests(tests, setup, teardown);
}
