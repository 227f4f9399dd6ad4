/* SPDX-License-Identifier: PostgreSQL */
/*
 * The stream's options and commands against a real server of any version: what each version can do
 * is done and looked at in pg_replication_slots; what it cannot is refused before anything is sent.
 * Runs inside tests/helpers/with-postgres.
 */
#include "config.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <libpq-fe.h>

#include <cmocka.h>

#include "libpgwalstream/pgwalstream.h"
#include "tests/unit/helper_slots.h"

#define PATIENCE_MS 30000

static int major;

static struct pgws_stream *stream_with(const struct pgws_stream_options *o)
{
	struct pgws_stream *s = pgws_stream_new(o);
	assert_non_null(s);
	assert_int_equal(pgws_stream_connect(s), 0);
	if (pgws_stream_wait(s, PATIENCE_MS) != 0)
		fail_msg("%s", pgws_stream_error(s));
	return s;
}

static struct pgws_stream_options defaults(void)
{
	struct pgws_stream_options o = PGWS_STREAM_OPTIONS_INIT;
	o.conninfo = "";
	o.slot = "cmd_slot";
	o.publications = "p";
	return o;
}

static struct pgws_stream *stream(void)
{
	struct pgws_stream_options o = defaults();
	return stream_with(&o);
}

/* A command that was sent (err 0) and must succeed. */
static void done(struct pgws_stream *s, int err)
{
	if (err == 0)
		err = pgws_stream_wait(s, PATIENCE_MS);
	if (err != 0)
		fail_msg("%d: %s", err, pgws_stream_error(s));
	assert_int_equal(pgws_stream_phase(s), PGWS_PHASE_READY);
}

static void refused(struct pgws_stream *s, int err, int expect, const char *text)
{
	assert_int_equal(err, expect);
	if (strstr(pgws_stream_error(s), text) == NULL)
		fail_msg("'%s' is not in '%s'", text, pgws_stream_error(s));
	assert_int_equal(pgws_stream_phase(s), PGWS_PHASE_READY);
}

/* Done where the server is of this major version or later, else refused with its number. */
static bool done_from(struct pgws_stream *s, int err, int from)
{
	char text[40];
	snprintf(text, sizeof(text), "needs PostgreSQL %d or later", from);
	if (major >= from)
		done(s, err);
	else
		refused(s, err, PGWS_EUNSUPPORTED, text);
	return major >= from;
}

/* ---- Options --------------------------------------------------------------------------------- */

static void bad_options(struct pgws_stream_options o, const char *text)
{
	struct pgws_stream *s = pgws_stream_new(&o);
	assert_non_null(s);
	assert_int_equal(pgws_stream_connect(s), PGWS_EINVAL);
	if (strstr(pgws_stream_error(s), text) == NULL)
		fail_msg("'%s' is not in '%s'", text, pgws_stream_error(s));
	assert_int_equal(pgws_stream_phase(s), PGWS_PHASE_IDLE);
	pgws_stream_free(&s);
}

static void test_options_that_make_no_sense(void **state)
{
	(void)state;
	struct pgws_stream_options o = defaults();
	o.proto_version = 5;
	bad_options(o, "proto_version");
	o.proto_version = -1;
	bad_options(o, "proto_version");
	o = defaults();
	o.streaming = (enum pgws_streaming)7;
	bad_options(o, "streaming");
	o = defaults();
	o.origin = (enum pgws_origin_filter)7;
	bad_options(o, "origin");
	o = defaults();
	o.receive = (enum pgws_receive)7;
	bad_options(o, "receive");
	o = defaults();
	o.publications = "p,,q";
	bad_options(o, "publication");
	o.publications = "p,";
	bad_options(o, "publication");
	o = defaults();
	o.proto_version = 1;
	o.streaming = PGWS_STREAMING_ON;
	bad_options(o, "proto_version 2");
	o.proto_version = 3;
	o.streaming = PGWS_STREAMING_PARALLEL;
	bad_options(o, "proto_version 4");
	o.proto_version = 2;
	o.streaming = PGWS_STREAMING_ON;
	o.two_phase = true;
	bad_options(o, "proto_version 3");

	/* What only START needs. */
	o = defaults();
	o.slot = NULL;
	struct pgws_stream *s = stream_with(&o);
	refused(s, pgws_stream_start(s, 0), PGWS_EINVAL, "slot");
	refused(s, pgws_stream_read_slot(s, NULL), PGWS_EINVAL, "slot");
	refused(s, pgws_stream_drop_slot(s, NULL, false), PGWS_EINVAL, "slot");
	refused(s, pgws_stream_alter_slot(s, NULL, 1, -1), PGWS_EINVAL, "slot");
	pgws_stream_free(&s);
	o = defaults();
	o.publications = NULL;
	s = stream_with(&o);
	refused(s, pgws_stream_start(s, 0), PGWS_EINVAL, "publication");
	pgws_stream_free(&s);
}

static void test_options_of_a_newer_server(void **state)
{
	(void)state;
	static const struct {
		int proto, from;
		enum pgws_streaming streaming;
		enum pgws_origin_filter origin;
		bool two_phase;
	} rows[] = {
		{1, 14, PGWS_STREAMING_OFF, PGWS_ORIGIN_ANY, false},
		{2, 14, PGWS_STREAMING_OFF, PGWS_ORIGIN_ANY, false},
		{3, 15, PGWS_STREAMING_OFF, PGWS_ORIGIN_ANY, false},
		{4, 16, PGWS_STREAMING_OFF, PGWS_ORIGIN_ANY, false},
		{0, 14, PGWS_STREAMING_ON, PGWS_ORIGIN_ANY, false},
		{4, 16, PGWS_STREAMING_ON, PGWS_ORIGIN_ANY, false},
		{0, 16, PGWS_STREAMING_PARALLEL, PGWS_ORIGIN_ANY, false},
		{0, 16, PGWS_STREAMING_OFF, PGWS_ORIGIN_NONE, false},
		{0, 15, PGWS_STREAMING_OFF, PGWS_ORIGIN_ANY, true},
		{0, 15, PGWS_STREAMING_ON, PGWS_ORIGIN_ANY, true},
		{0, 16, PGWS_STREAMING_PARALLEL, PGWS_ORIGIN_NONE, true},
	};
	struct pgws_stream *s = stream();
	struct pgws_slot_options so = PGWS_SLOT_OPTIONS_INIT;
	so.two_phase = major >= 15;
	done(s, pgws_stream_create_slot(s, &so));
	pgws_stream_free(&s);
	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]) * 2; i++) {
		struct pgws_stream_options o = defaults();
		size_t n = i / 2;
		o.proto_version = rows[n].proto;
		o.streaming = rows[n].streaming;
		o.origin = rows[n].origin;
		o.two_phase = rows[n].two_phase;
		o.binary = o.messages = i % 2 == 1;
		s = stream_with(&o);
		int err = pgws_stream_start(s, 0);
		if (major >= rows[n].from) {
			assert_int_equal(err, 0);
			if ((err = pgws_stream_wait(s, PATIENCE_MS)) != 0)
				fail_msg("row %zu: %d: %s", n, err, pgws_stream_error(s));
			assert_int_equal(pgws_stream_phase(s), PGWS_PHASE_STREAMING);
		} else {
			refused(s, err, PGWS_EUNSUPPORTED, "or later, this server is version");
		}
		pgws_stream_free(&s);
		wait_no_slot_in_use();
	}
}

/* Next DATA of this type. */
static struct pgws_event next_event(struct pgws_stream *s, enum pgws_type type)
{
	struct pgws_event ev = {.data = NULL};
	for (int i = 0; i < 30000; i++) {
		int err = pgws_stream_next(s, &ev);
		if (err == PGWS_EAGAIN)
			usleep(1000);
		else if (err != 0)
			fail_msg("%d: %s", err, pgws_stream_error(s));
		else if (ev.kind == PGWS_EVENT_DATA && ev.data[0] == (uint8_t)type)
			return ev;
	}
	fail_msg("no message of type %c", type);
	return ev;
}

/* The same, outside a streamed block, decoded. */
static struct pgws_msg next_type(struct pgws_stream *s, enum pgws_type type)
{
	struct pgws_event ev = next_event(s, type);
	struct pgws_msg m;
	assert_int_equal(pgws_decode(ev.data, ev.len, false, &m), 0);
	return m;
}

static void test_options_take_effect(void **state)
{
	(void)state;
	struct pgws_stream_options o = defaults();
	o.binary = o.messages = true;
	o.streaming = PGWS_STREAMING_ON;
	o.two_phase = major >= 15;
	o.conninfo = "options='-c logical_decoding_work_mem=64kB'";
	struct pgws_stream *s = stream_with(&o);
	struct pgws_slot_options so = PGWS_SLOT_OPTIONS_INIT;
	so.two_phase = o.two_phase;
	done(s, pgws_stream_create_slot(s, &so));
	assert_int_equal(pgws_stream_start(s, 0), 0);
	assert_int_equal(pgws_stream_wait(s, PATIENCE_MS), 0);
	run("INSERT INTO t VALUES (258, 'x')");
	struct pgws_msg m = next_type(s, PGWS_INSERT);
	struct pgws_column col;
	size_t at = 0;
	assert_true(pgws_tuple_next(&m.u.change.new_row, &at, &col));
	assert_int_equal(col.kind, PGWS_BINARY);
	assert_memory_equal(col.data, "\0\0\1\2", 4);
	run("SELECT pg_logical_emit_message(false, 'p', 'q')");
	next_type(s, PGWS_MESSAGE);
	run("BEGIN; INSERT INTO t SELECT i, 'streamed' FROM generate_series(1000, 9000) i; COMMIT");
	next_event(s, PGWS_STREAM_START);
	next_event(s, PGWS_STREAM_COMMIT);
	if (o.two_phase) {
		run("BEGIN; INSERT INTO t VALUES (1, 'x'); PREPARE TRANSACTION 'it''s'");
		struct pgws_event ev = next_event(s, PGWS_PREPARE);
		assert_memory_equal(ev.data + ev.len - 5, "it's", 5);
		run("COMMIT PREPARED 'it''s'");
		next_event(s, PGWS_COMMIT_PREPARED);
	}
	pgws_stream_free(&s);
}

/* ---- Commands -------------------------------------------------------------------------------- */

static void test_create_every_kind(void **state)
{
	(void)state;
	struct pgws_stream *s = stream();
	struct pgws_slot_options o = PGWS_SLOT_OPTIONS_INIT;
	done(s, pgws_stream_create_slot(s, &o));
	assert_true(pgws_stream_consistent_point(s) > 0);
	assert_null(pgws_stream_snapshot_name(s));
	assert_sql("SELECT slot_name || plugin || temporary || two_phase FROM pg_replication_slots",
		"cmd_slotpgoutputfalsefalse");
	done(s, pgws_stream_drop_slot(s, NULL, false));
	assert_int_equal(pgws_stream_consistent_point(s), 0);
	assert_sql("SELECT count(*) FROM pg_replication_slots", "0");

	o.slot = "other";
	o.plugin = "test_decoding_that_is_not_there";
	assert_int_equal(pgws_stream_create_slot(s, &o), 0);
	assert_int_equal(pgws_stream_wait(s, PATIENCE_MS), PGWS_ESERVER);
	assert_string_not_equal(pgws_stream_sqlstate(s), "");
	pgws_stream_free(&s);

	s = stream();
	o.plugin = NULL;
	o.two_phase = true;
	if (done_from(s, pgws_stream_create_slot(s, &o), 15)) {
		assert_sql("SELECT slot_name || two_phase FROM pg_replication_slots", "othertrue");
		done(s, pgws_stream_drop_slot(s, "other", true));
	}
	o.two_phase = false;
	o.failover = true;
	if (done_from(s, pgws_stream_create_slot(s, &o), 17)) {
		assert_sql("SELECT slot_name || failover FROM pg_replication_slots", "othertrue");
		done(s, pgws_stream_drop_slot(s, "other", true));
	}
	o = (struct pgws_slot_options)PGWS_SLOT_OPTIONS_INIT;
	o.physical = true;
	done(s, pgws_stream_create_slot(s, &o));
	assert_sql("SELECT slot_type || (restart_lsn IS NULL) FROM pg_replication_slots",
		"physicaltrue");
	done(s, pgws_stream_read_slot(s, NULL));
	assert_true(pgws_stream_slot_info(s)->physical);
	done(s, pgws_stream_drop_slot(s, NULL, false));
	o.reserve_wal = true;
	done(s, pgws_stream_create_slot(s, &o));
	assert_sql("SELECT slot_type || (restart_lsn IS NULL) FROM pg_replication_slots",
		"physicalfalse");
	done(s, pgws_stream_drop_slot(s, NULL, false));
	pgws_stream_free(&s);
}

static void test_create_refused(void **state)
{
	(void)state;
	struct pgws_stream *s = stream();
	struct pgws_slot_options o = PGWS_SLOT_OPTIONS_INIT;
	o.physical = o.two_phase = true;
	refused(s, pgws_stream_create_slot(s, &o), PGWS_EINVAL, "logical");
	o.two_phase = false;
	o.failover = true;
	refused(s, pgws_stream_create_slot(s, &o), PGWS_EINVAL, "logical");
	o.failover = false;
	o.snapshot = PGWS_SNAPSHOT_EXPORT;
	refused(s, pgws_stream_create_slot(s, &o), PGWS_EINVAL, "snapshot");
	o.snapshot = PGWS_SNAPSHOT_NOTHING;
	o.plugin = "pgoutput";
	refused(s, pgws_stream_create_slot(s, &o), PGWS_EINVAL, "plugin");
	o = (struct pgws_slot_options)PGWS_SLOT_OPTIONS_INIT;
	o.reserve_wal = true;
	refused(s, pgws_stream_create_slot(s, &o), PGWS_EINVAL, "reserve_wal");
	o = (struct pgws_slot_options)PGWS_SLOT_OPTIONS_INIT;
	o.failover = o.temporary = true;
	refused(s, pgws_stream_create_slot(s, &o), PGWS_EINVAL, "temporary");
	o = (struct pgws_slot_options)PGWS_SLOT_OPTIONS_INIT;
	o.snapshot = (enum pgws_snapshot)9;
	refused(s, pgws_stream_create_slot(s, &o), PGWS_EINVAL, "snapshot");
	/* Names that would end the command, were they not quoted or refused. */
	o = (struct pgws_slot_options)PGWS_SLOT_OPTIONS_INIT;
	o.slot = "x\" PHYSICAL; --";
	refused(s, pgws_stream_create_slot(s, &o), PGWS_EINVAL, "quote");
	refused(s, pgws_stream_drop_slot(s, o.slot, false), PGWS_EINVAL, "quote");
	o.slot = "x";
	o.plugin = "pgoutput\"";
	refused(s, pgws_stream_create_slot(s, &o), PGWS_EINVAL, "quote");
	o.plugin = NULL;
	o.slot = "x PHYSICAL; --";
	assert_int_equal(pgws_stream_create_slot(s, &o), 0);
	assert_int_equal(pgws_stream_wait(s, PATIENCE_MS), PGWS_ESERVER);
	assert_string_equal(pgws_stream_sqlstate(s), "42602");
	assert_sql("SELECT count(*) FROM pg_replication_slots", "0");
	pgws_stream_free(&s);
}

static void test_snapshot_export(void **state)
{
	(void)state;
	struct pgws_stream *s = stream();
	struct pgws_slot_options o = PGWS_SLOT_OPTIONS_INIT;
	o.snapshot = PGWS_SNAPSHOT_EXPORT;
	run("INSERT INTO t VALUES (1, 'before')");
	done(s, pgws_stream_create_slot(s, &o));
	assert_non_null(pgws_stream_snapshot_name(s));
	run("INSERT INTO t VALUES (2, 'after')");
	char text[200];
	snprintf(text, sizeof(text),
		"BEGIN ISOLATION LEVEL REPEATABLE READ; SET TRANSACTION SNAPSHOT '%s'",
		pgws_stream_snapshot_name(s));
	run(text);
	assert_sql("SELECT string_agg(v, ',') FROM t", "before");
	run("COMMIT");
	/* What the snapshot has not, the stream has. */
	assert_int_equal(pgws_stream_start(s, 0), 0);
	assert_int_equal(pgws_stream_wait(s, PATIENCE_MS), 0);
	struct pgws_msg m = next_type(s, PGWS_INSERT);
	struct pgws_column col;
	size_t at = 0;
	assert_true(pgws_tuple_next(&m.u.change.new_row, &at, &col));
	assert_memory_equal(col.data, "2", 1);
	pgws_stream_free(&s);
}

static void test_snapshot_use(void **state)
{
	(void)state;
	struct pgws_stream *s = stream();
	struct pgws_slot_options o = PGWS_SLOT_OPTIONS_INIT;
	o.snapshot = PGWS_SNAPSHOT_USE;
	run("INSERT INTO t VALUES (1, 'before')");
	done(s, pgws_stream_query(s, "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"));
	done(s, pgws_stream_create_slot(s, &o));
	assert_null(pgws_stream_snapshot_name(s));
	run("INSERT INTO t VALUES (2, 'after')");
	done(s, pgws_stream_query(s, "SELECT string_agg(v, ',') FROM t"));
	assert_string_equal(pgws_stream_value(s, 0, 0), "before");
	done(s, pgws_stream_query(s, "COMMIT"));
	done(s, pgws_stream_query(s, "SELECT string_agg(v, ',') FROM t"));
	assert_string_equal(pgws_stream_value(s, 0, 0), "before,after");
	done(s, pgws_stream_drop_slot(s, NULL, false));
	/* Outside a transaction it is the server that says no. */
	assert_int_equal(pgws_stream_create_slot(s, &o), 0);
	assert_int_equal(pgws_stream_wait(s, PATIENCE_MS), PGWS_ESERVER);
	pgws_stream_free(&s);
}

static void test_temporary_slot_is_gone(void **state)
{
	(void)state;
	struct pgws_stream *s = stream();
	struct pgws_slot_options o = PGWS_SLOT_OPTIONS_INIT;
	o.temporary = true;
	done(s, pgws_stream_create_slot(s, &o));
	assert_sql("SELECT temporary FROM pg_replication_slots", "t");
	done(s, pgws_stream_read_slot(s, NULL));
	assert_true(pgws_stream_slot_info(s)->temporary);
	assert_int_equal(pgws_stream_start(s, 0), 0);
	assert_int_equal(pgws_stream_wait(s, PATIENCE_MS), 0);
	pgws_stream_free(&s);
	wait_sql("SELECT count(*) FROM pg_replication_slots", "0");
}

/* A temporary copy of a slot, on the session that follows it: the original stays where it is. */
static void test_temporary_copy_of_a_slot(void **state)
{
	(void)state;
	struct pgws_stream *s = stream();
	struct pgws_slot_options so = PGWS_SLOT_OPTIONS_INIT;
	done(s, pgws_stream_create_slot(s, &so));
	pgws_stream_free(&s);
	run("INSERT INTO t VALUES (1, 'held back')");
	char *before = sql("SELECT confirmed_flush_lsn FROM pg_replication_slots");
	struct pgws_stream_options o = defaults();
	o.slot = "tail_copy";
	s = stream_with(&o);
	done(s, pgws_stream_query(s,
			"SELECT pg_copy_logical_replication_slot('cmd_slot', 'tail_copy', true)"));
	assert_int_equal(pgws_stream_start(s, 0), 0);
	assert_int_equal(pgws_stream_wait(s, PATIENCE_MS), 0);
	next_type(s, PGWS_INSERT);
	struct pgws_msg m = next_type(s, PGWS_COMMIT);
	uint64_t end = m.u.commit.end_lsn;
	assert_int_equal(pgws_stream_feedback(s, end, end, end, false), 0);
	pgws_stream_free(&s);
	wait_sql("SELECT count(*) FROM pg_replication_slots", "1");
	assert_sql("SELECT confirmed_flush_lsn FROM pg_replication_slots", before);
	free(before);
}

static void test_alter(void **state)
{
	(void)state;
	struct pgws_stream *s = stream();
	struct pgws_slot_options so = PGWS_SLOT_OPTIONS_INIT;
	done(s, pgws_stream_create_slot(s, &so));
	refused(s, pgws_stream_alter_slot(s, NULL, -1, -1), PGWS_EINVAL, "nothing");
	if (done_from(s, pgws_stream_alter_slot(s, NULL, 1, -1), 17)) {
		assert_sql("SELECT failover FROM pg_replication_slots", "t");
		done(s, pgws_stream_read_slot(s, NULL));
		assert_true(pgws_stream_slot_info(s)->failover);
		done(s, pgws_stream_alter_slot(s, "cmd_slot", 0, -1));
		assert_sql("SELECT failover FROM pg_replication_slots", "f");
	}
	if (done_from(s, pgws_stream_alter_slot(s, NULL, -1, 1), 18)) {
		assert_sql("SELECT two_phase FROM pg_replication_slots", "t");
		done(s, pgws_stream_alter_slot(s, NULL, 1, 0));
		assert_sql("SELECT failover AND NOT two_phase FROM pg_replication_slots", "t");
	}
	pgws_stream_free(&s);
}

static void test_read_slot(void **state)
{
	(void)state;
	struct pgws_stream *s = stream();
	assert_null(pgws_stream_slot_info(s));
	done(s, pgws_stream_read_slot(s, NULL));
	assert_non_null(pgws_stream_slot_info(s));
	assert_false(pgws_stream_slot_info(s)->exists);
	done(s, pgws_stream_read_slot(s, "it's \\ not"));
	assert_false(pgws_stream_slot_info(s)->exists);
	struct pgws_slot_options so = PGWS_SLOT_OPTIONS_INIT;
	so.two_phase = major >= 15;
	done(s, pgws_stream_create_slot(s, &so));
	uint64_t point = pgws_stream_consistent_point(s);
	done(s, pgws_stream_read_slot(s, "cmd_slot"));
	const struct pgws_slot_info *i = pgws_stream_slot_info(s);
	assert_true(i->exists);
	assert_false(i->physical || i->temporary || i->active || i->failover || i->synced ||
		     i->conflicting);
	assert_int_equal(i->two_phase, major >= 15);
	assert_int_equal(i->confirmed_lsn, point);
	assert_true(i->restart_lsn > 0 && i->restart_lsn <= point);
	assert_int_equal(i->two_phase_at != 0, major >= 18);
	assert_int_equal(i->safe_wal_size, -1);
	assert_string_equal(i->plugin, "pgoutput");
	assert_string_equal(i->database, "postgres");
	assert_string_equal(i->wal_status, "reserved");
	assert_string_equal(i->invalidation, "");
	assert_int_equal(i->active_pid, 0);

	struct pgws_stream *t = stream();
	assert_int_equal(pgws_stream_start(t, 0), 0);
	assert_int_equal(pgws_stream_wait(t, PATIENCE_MS), 0);
	run("ALTER SYSTEM SET max_slot_wal_keep_size = '1GB'");
	run("SELECT pg_reload_conf()");
	wait_sql("SELECT safe_wal_size > 0 FROM pg_replication_slots", "t");
	done(s, pgws_stream_read_slot(s, NULL));
	i = pgws_stream_slot_info(s);
	assert_true(i->active && i->active_pid > 0);
	assert_true(i->safe_wal_size > 0);
	run("ALTER SYSTEM RESET max_slot_wal_keep_size");
	run("SELECT pg_reload_conf()");
	done(s, pgws_stream_identify(s));
	assert_null(pgws_stream_slot_info(s));
	pgws_stream_free(&t);
	pgws_stream_free(&s);
}

/* More WAL than the server may keep: the slot is lost, and says why. */
static void test_read_slot_invalidated(void **state)
{
	(void)state;
	struct pgws_stream *s = stream();
	struct pgws_slot_options so = PGWS_SLOT_OPTIONS_INIT;
	done(s, pgws_stream_create_slot(s, &so));
	run("ALTER SYSTEM SET max_slot_wal_keep_size = '1MB'");
	run("SELECT pg_reload_conf()");
	for (int i = 0; i < 4; i++)
		run("SELECT pg_logical_emit_message(false, 'fill', 'x'), pg_switch_wal()");
	run("CHECKPOINT");
	wait_sql("SELECT wal_status FROM pg_replication_slots", "lost");
	done(s, pgws_stream_read_slot(s, NULL));
	const struct pgws_slot_info *i = pgws_stream_slot_info(s);
	assert_true(i->exists);
	assert_string_equal(i->wal_status, "lost");
	assert_string_equal(i->invalidation, major >= 17   ? "wal_removed"
					     : major == 16 ? "conflicting"
							   : "");
	assert_int_equal(i->restart_lsn, 0);
	run("ALTER SYSTEM RESET max_slot_wal_keep_size");
	run("SELECT pg_reload_conf()");
	pgws_stream_free(&s);
}

static void test_drop_waits(void **state)
{
	(void)state;
	struct pgws_stream *s = stream(), *t = stream();
	struct pgws_slot_options so = PGWS_SLOT_OPTIONS_INIT;
	done(s, pgws_stream_create_slot(s, &so));
	assert_int_equal(pgws_stream_start(t, 0), 0);
	assert_int_equal(pgws_stream_wait(t, PATIENCE_MS), 0);
	assert_int_equal(pgws_stream_drop_slot(s, NULL, true), 0);
	assert_int_equal(pgws_stream_wait(s, 300), PGWS_EAGAIN);
	assert_sql("SELECT count(*) FROM pg_replication_slots", "1");
	pgws_stream_free(&t);
	done(s, 0);
	assert_sql("SELECT count(*) FROM pg_replication_slots", "0");

	done(s, pgws_stream_create_slot(s, &so));
	t = stream();
	assert_int_equal(pgws_stream_start(t, 0), 0);
	assert_int_equal(pgws_stream_wait(t, PATIENCE_MS), 0);
	assert_int_equal(pgws_stream_drop_slot(s, NULL, false), 0);
	assert_int_equal(pgws_stream_wait(s, PATIENCE_MS), PGWS_ESERVER);
	assert_string_equal(pgws_stream_sqlstate(s), "55006");
	pgws_stream_free(&t);
	pgws_stream_free(&s);
}

static void test_query(void **state)
{
	(void)state;
	struct pgws_stream *s = stream();
	assert_null(pgws_stream_value(s, 0, 0));
	done(s, pgws_stream_query(s, "SELECT 1, NULL, 'it''s' UNION ALL SELECT 2, '', 'b'"));
	assert_string_equal(pgws_stream_value(s, 0, 0), "1");
	assert_null(pgws_stream_value(s, 0, 1));
	assert_string_equal(pgws_stream_value(s, 0, 2), "it's");
	assert_string_equal(pgws_stream_value(s, 1, 1), "");
	assert_null(pgws_stream_value(s, 2, 0));
	assert_null(pgws_stream_value(s, 0, 3));
	assert_null(pgws_stream_value(s, -1, 0));
	assert_null(pgws_stream_value(s, 0, -1));
	done(s, pgws_stream_query(s, "SHOW client_encoding"));
	assert_string_equal(pgws_stream_value(s, 0, 0), "UTF8");
	done(s, pgws_stream_query(s, "SET work_mem = '1MB'"));
	assert_null(pgws_stream_value(s, 0, 0));
	assert_int_equal(pgws_stream_query(s, "SELECT 1/0"), 0);
	assert_int_equal(pgws_stream_query(s, "SELECT 1"), PGWS_ESTATE);
	assert_int_equal(pgws_stream_wait(s, PATIENCE_MS), PGWS_ESERVER);
	assert_string_equal(pgws_stream_sqlstate(s), "22012");
	pgws_stream_close(s);
	assert_int_equal(pgws_stream_query(s, "SELECT 1"), PGWS_ESTATE);
	assert_int_equal(pgws_stream_wait(s, 10), PGWS_ESTATE);
	assert_int_equal(pgws_stream_connect(s), 0);
	assert_int_equal(pgws_stream_wait(s, -1), 0);
	pgws_stream_free(&s);
}

/* ---- Timelines ------------------------------------------------------------------------------- */

static void begin_is(const char *history, uint32_t timeline, uint64_t expect)
{
	uint64_t lsn = 99;
	assert_int_equal(pgws_timeline_begin(history, strlen(history), timeline, &lsn), 0);
	assert_int_equal(lsn, expect);
}

static void begin_fails(const char *history, uint32_t timeline)
{
	uint64_t lsn = 99;
	assert_int_equal(
		pgws_timeline_begin(history, strlen(history), timeline, &lsn), PGWS_EPROTO);
	assert_int_equal(lsn, 99);
}

static void test_timeline_begin(void **state)
{
	(void)state;
	static const char two[] = "1\t0/3000148\tno recovery target specified\n";
	static const char five[] = "# why\n1\t0/3000148\tno recovery\n\n  \t\n"
				   "2\t0/5000000\tbefore \"x\" 3\t0/1\r\n4\t1/AB\tlast";
	begin_is(two, 1, 0);
	begin_is(two, 2, 0x3000148);
	begin_is(five, 1, 0);
	begin_is(five, 2, 0x3000148);
	begin_is(five, 4, 0x5000000);
	begin_is(five, 5, 0x1000000ab);
	begin_fails(five, 3);
	begin_fails("", 2);
	begin_fails("nonsense\n", 2);
	begin_fails("1\tnonsense\n", 2);
	begin_fails("2\t0/5\n1\t0/6\n", 3);
	begin_fails("1\t0/6\n2\t0/5\n", 3);
	begin_fails("0\t0/6\n", 3);
	begin_fails("1\t0/123456789\n", 2);
}

static void test_timeline_history(void **state)
{
	(void)state;
	struct pgws_stream *s = stream();
	refused(s, pgws_stream_timeline_history(s, 1), PGWS_EINVAL, "history");
	refused(s, pgws_stream_timeline_history(s, 0), PGWS_EINVAL, "history");
	assert_null(pgws_stream_text(s, NULL));
	char path[300];
	const char text[] = "1\t0/3000148\tno recovery target specified\n";
	snprintf(path, sizeof(path), "%s/pg_wal/00000002.history", getenv("HOWDAH_TEST_PGDATA"));
	FILE *f = fopen(path, "w");
	assert_non_null(f);
	assert_true(fputs(text, f) >= 0);
	assert_int_equal(fclose(f), 0);
	assert_int_equal(chmod(path, 0644), 0);
	done(s, pgws_stream_timeline_history(s, 2));
	size_t len;
	const char *got = pgws_stream_text(s, &len);
	assert_int_equal(len, strlen(text));
	assert_memory_equal(got, text, len);
	uint64_t lsn;
	assert_int_equal(pgws_timeline_begin(got, len, 2, &lsn), 0);
	assert_int_equal(lsn, 0x3000148);
	assert_int_equal(unlink(path), 0);
	assert_int_equal(pgws_stream_timeline_history(s, 2), 0);
	assert_int_equal(pgws_stream_wait(s, PATIENCE_MS), PGWS_ESERVER);
	pgws_stream_free(&s);
}

int main(void)
{
	major = slots_connect("");
	if (major == 0)
		return 1;
#define TEST(fn) cmocka_unit_test_setup_teardown(fn, slots_setup, slots_teardown)
	const struct CMUnitTest tests[] = {
		TEST(test_options_that_make_no_sense),
		TEST(test_options_of_a_newer_server),
		TEST(test_options_take_effect),
		TEST(test_create_every_kind),
		TEST(test_create_refused),
		TEST(test_snapshot_export),
		TEST(test_snapshot_use),
		TEST(test_temporary_slot_is_gone),
		TEST(test_temporary_copy_of_a_slot),
		TEST(test_alter),
		TEST(test_read_slot),
		TEST(test_read_slot_invalidated),
		TEST(test_drop_waits),
		TEST(test_query),
		cmocka_unit_test(test_timeline_begin),
		TEST(test_timeline_history),
	};
	int failed = cmocka_run_group_tests(tests, NULL, NULL);
	PQfinish(sql_conn);
	return failed;
}
