/* SPDX-License-Identifier: PostgreSQL */
/*
 * walstreamd from its first start on: what comes into the ring, and what stops it. Lost slots and
 * gaps: test_walstreamd_gaps. Runs inside tests/helpers/with-postgres.
 */
#include "config.h"

#include "tests/unit/helper_walstreamd.h"

/* ---- Tests ------------------------------------------------------------------------------------
 */

static void test_first_start(void **state)
{
	(void)state;
	run("INSERT INTO t VALUES (0, 'before the slot')");
	start_streaming();
	assert_true(sql_is("SELECT count(*) FROM howdah_mqtt.begun WHERE rows = 1", "1"));
	assert_true(sql_is("SELECT b.lsn = n.slot_lsn AND b.node = n.name AND n.timeline = 1 FROM "
			   "howdah_mqtt.begun b, howdah.node n",
		"t"));
	assert_true(sql_is("SELECT pubinsert AND NOT pubupdate FROM pg_publication WHERE pubname = "
			   "'howdah_alpha'",
		"t"));
	assert_true(
		sql_is("SELECT slot_name || two_phase FROM pg_replication_slots", SLOT "false"));
	assert_true(sql_is("SELECT application_name FROM pg_stat_replication", SLOT));
	forget();
	run("INSERT INTO t VALUES (1, 'a'), (2, 'b')");
	WAIT(one_commit);
	assert_string_equal(con.log, " B R:t I:1 I:2 C");
	WAIT(confirmed_past_end);
	forget();
	run("BEGIN; UPDATE t SET v = 'x' WHERE id = 1; DELETE FROM t WHERE id = 2; COMMIT");
	WAIT(one_commit);
	assert_string_equal(con.log, " B U:1 D:2 C");
	stop();

	/* Nothing comes again after an orderly stop, and nothing is missing. */
	run("INSERT INTO t VALUES (3, 'while it was down')");
	forget();
	start_streaming();
	WAIT(one_commit);
	assert_string_equal(con.log, " S B R:t I:3 C");
	assert_true(sql_is("SELECT count(*) FROM howdah_mqtt.begun", "1"));
	stop();
}

static uint64_t not_past;

static uint64_t confirmed(void)
{
	char *text = sql("SELECT confirmed_flush_lsn FROM pg_replication_slots");
	uint64_t lsn = 0;
	assert_int_equal(pgws_lsn_parse(text, &lsn), 0);
	free(text);
	return lsn;
}

static void test_acknowledged_only(void **state)
{
	(void)state;
	start_streaming();
	con.auto_ack = false;
	forget();
	run("INSERT INTO t VALUES (1, 'a')");
	WAIT(one_commit);
	not_past = con.last_end_lsn;
	run("INSERT INTO t VALUES (2, 'b')");
	(void)wait_for(never, 500);
	assert_int_equal(con.n_commits, 2);
	assert_true(confirmed() < not_past);

	/* SIGKILL: what was not acknowledged comes again (the reader drops what it has seen, a new
	 * one sees it). */
	kill_it();
	new_reader();
	forget();
	start_streaming();
	while (con.n_commits < 2)
		ev_loop_once(loop, true);
	assert_string_equal(con.log, " S B R:t I:1 C B I:2 C");
	/* The first one only. */
	ring_reader_ack(con.reader, not_past);
	(void)wait_for(never, 500);
	assert_true(confirmed() == not_past);
	ring_reader_ack(con.reader, con.last_end_lsn);
	WAIT(confirmed_past_end);
	stop();
}

static bool idle_lsn_follows(void)
{
	return sql_is("SELECT confirmed_flush_lsn >= pg_current_wal_lsn() - 0::numeric FROM "
		      "pg_replication_slots",
		"t");
}

/* WAL that concerns nobody must not be pinned. */
static void test_idle_slot_moves(void **state)
{
	(void)state;
	start_streaming();
	run("CREATE TABLE other (v text); INSERT INTO other SELECT repeat('x', 1000) FROM "
	    "generate_series(1, 1000); DROP TABLE other");
	WAIT(idle_lsn_follows);
	stop();
}

static void test_reattach(void **state)
{
	(void)state;
	start_streaming();
	run("INSERT INTO t VALUES (1, 'a')");
	WAIT(one_commit);
	WAIT(confirmed_past_end);
	run("ALTER TABLE t ADD COLUMN w int");
	con.auto_ack = false;
	run("INSERT INTO t VALUES (2, 'a', 7)");
	while (con.n_inserts < 2)
		ev_loop_once(loop, true);
	(void)wait_for(never, 200);
	/* brokerd dies and comes back: relations are announced to it again, the open one comes. */
	new_reader();
	send_peer(false, 0);
	forget();
	con.auto_ack = true;
	reader_up();
	WAIT(one_commit);
	assert_string_equal(con.log, " S B R:t I:2 C");
	WAIT(confirmed_past_end);
	stop();
}

static bool all_inserts(void)
{
	return con.n_inserts >= 20000;
}

static bool ring_is_full(void)
{
	return strstr(sup.status, "the ring is full") != NULL;
}

/* A reader that takes nothing: spool, then back-pressure, then on; with a row beyond the window. */
static void test_back_pressure(void **state)
{
	(void)state;
	start_streaming();
	con.pause = true;
	run("INSERT INTO t SELECT i, repeat('x', 300) FROM generate_series(1, 19999) i");
	run("INSERT INTO t VALUES (0, repeat('y', 3000000))");
	WAIT(ring_is_full);
	assert_true(strstr(sup.status, "brokerd") != NULL);
	con.pause = false;
	ring_reader_resume(con.reader);
	WAIT(all_inserts);
	assert_true(con.payload_bytes > 3000000 + 19999 * 300);
	assert_int_equal(con.n_inserts, 20000);
	WAIT(confirmed_past_end);
	assert_false(ring_is_full() && !wait_for(is_streaming, 3000));
	stop();
}

static bool all_30000(void)
{
	return con.n_inserts >= 30000;
}

/* A ring that is full, and a message for which the first room that a reader makes is not enough:
 * the producer is woken again as soon as there is more, not by its timer when the ring is empty. */
static void test_room_bit_by_bit(void **state)
{
	(void)state;
	start_streaming();
	con.slow = true;
	run("INSERT INTO t SELECT i, repeat('x', CASE WHEN hashint4(i) % 1500 = 0 THEN 125000 ELSE "
	    "300 END) "
	    "FROM generate_series(1, 30000) i");
	WAIT(all_30000);
	if (con.n_waits > 3)
		fail_msg("the reader had nothing to do %zu times", con.n_waits);
	stop();
}

static bool says_cannot_follow(void)
{
	return strstr(sup.status, "cannot be followed") != NULL;
}

static bool all_small_inserts(void)
{
	return con.n_inserts >= 40000;
}

/* A full ring has no room for the beginning of the next stream either: that waits too. */
static void test_full_ring_at_begin(void **state)
{
	(void)state;
	start_streaming();
	con.pause = true;
	run("INSERT INTO t SELECT i, 'x' FROM generate_series(1, 40000) i");
	WAIT(ring_is_full);
	for (int i = 0; i < 4; i++) {
		/* With the lock's connection the stream goes, and begins anew. */
		run("SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
		    "WHERE application_name = 'howdah walstreamd'");
		(void)wait_for(never, 300);
		WAIT(is_streaming);
		assert_false(wait_for(says_cannot_follow, 200));
	}
	con.pause = false;
	ring_reader_resume(con.reader);
	WAIT(all_small_inserts);
	assert_int_equal(con.n_inserts, 40000);
	WAIT(confirmed_past_end);
	stop();
}

static bool two_commits(void)
{
	return con.n_commits >= 2;
}

static void test_walsender_killed(void **state)
{
	(void)state;
	start_streaming();
	forget();
	run("INSERT INTO t VALUES (1, 'a')");
	WAIT(one_commit);
	run("SELECT pg_terminate_backend(pid) FROM pg_stat_replication");
	run("INSERT INTO t VALUES (2, 'b')");
	WAIT(two_commits);
	/* All of our connections, as a failover would. */
	run("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE "
	    "'howdah%' AND pid <> pg_backend_pid()");
	run("INSERT INTO t VALUES (3, 'c')");
	while (con.n_inserts < 3)
		ev_loop_once(loop, true);
	assert_non_null(strstr(con.log, "I:1"));
	assert_non_null(strstr(con.log, "I:2"));
	assert_non_null(strstr(con.log, "I:3"));
	stop();
}

static void test_half_made_slot(void **state)
{
	(void)state;
	/* As left by a start that died between the slot and its row. */
	run("SELECT pg_create_logical_replication_slot('" SLOT "', 'pgoutput')");
	run("INSERT INTO t VALUES (1, 'before')");
	start_streaming();
	assert_true(sql_is("SELECT rows FROM howdah_mqtt.begun", "1"));
	assert_true(sql_is("SELECT n.slot_lsn <= s.confirmed_flush_lsn FROM howdah.node n, "
			   "pg_replication_slots s",
		"t"));
	stop();
}

static bool says_foreign(void)
{
	return strstr(sup.status, "belongs to another database") != NULL;
}

/* Slots are the server's: the suite of another database may use the same node name. */
static void test_slot_of_another_database(void **state)
{
	(void)state;
	PGconn *other = PQconnectdb("dbname=template1");
	assert_int_equal(PQstatus(other), CONNECTION_OK);
	PGresult *res =
		PQexec(other, "SELECT pg_create_logical_replication_slot('" SLOT "', 'pgoutput')");
	assert_int_equal(PQresultStatus(res), PGRES_TUPLES_OK);
	PQclear(res);
	start();
	WAIT(says_foreign);
	assert_non_null(strstr(sup.status, "set another \"node\""));
	assert_true(sql_is("SELECT database FROM pg_replication_slots", "template1"));
	/* The same where our own was lost. */
	run("UPDATE howdah.node SET slot_lsn = '0/1'");
	sup.status[0] = '\0';
	kill_it();
	spawn("instance-1");
	WAIT(says_lost);
	assert_non_null(strstr(sup.status, "another database"));
	assert_true(sql_is("SELECT database FROM pg_replication_slots", "template1"));
	kill_it();
	res = PQexec(other, "SELECT pg_drop_replication_slot('" SLOT "')");
	assert_int_equal(PQresultStatus(res), PGRES_TUPLES_OK);
	PQclear(res);
	PQfinish(other);
}

static bool says_not_stored(void)
{
	return strstr(sup.status, "cannot store where the slot begins: not yet") != NULL;
}

/* A part that cannot store its beginning: nothing is half done, and it goes on when it can. */
static void test_beginning_refused(void **state)
{
	(void)state;
	run("CREATE OR REPLACE FUNCTION howdah_mqtt.slot_created(node text, lsn pg_lsn) RETURNS "
	    "void LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION $x$not yet$x$; END'");
	start();
	WAIT(says_not_stored);
	assert_true(sql_is("SELECT count(slot_lsn) FROM howdah.node", "0"));
	run("CREATE OR REPLACE FUNCTION howdah_mqtt.slot_created(node text, lsn pg_lsn) RETURNS "
	    "void LANGUAGE sql AS 'INSERT INTO howdah_mqtt.begun VALUES (node, lsn, 0)'");
	WAIT(has_stream);
	assert_true(sql_is("SELECT count(*) FROM howdah_mqtt.begun b, howdah.node n WHERE b.lsn = "
			   "n.slot_lsn",
		"1"));
	stop();
}

static void test_second_instance(void **state)
{
	(void)state;
	run("INSERT INTO howdah.node (name, instance, system_identifier, slot) VALUES ('alpha', "
	    "'somebody else', '1', '" SLOT "')");
	spawn("instance-1");
	int status = ended();
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), 78);
	assert_non_null(strstr(sup.status, "pgctl node remove alpha"));
	assert_true(sql_is("SELECT count(*) FROM pg_replication_slots", "0"));
}

static bool says_init(void)
{
	return strstr(sup.status, "pgctl db init") != NULL;
}

static void test_no_schema_yet(void **state)
{
	(void)state;
	run("DROP TABLE howdah.gap, howdah.node; "
	    "DROP FUNCTION howdah.node_register, howdah.slot_created, howdah.slot_lost, "
	    "howdah.node_publish_logs");
	start();
	WAIT(says_init);
	run_schema();
	WAIT(has_stream);
	stop();
}

static bool says_slots(void)
{
	return strstr(sup.status, "max_replication_slots") != NULL;
}

static void test_no_slot_left(void **state)
{
	(void)state;
	run("SELECT pg_create_physical_replication_slot('taken_' || i) FROM generate_series(1, "
	    "current_setting('max_replication_slots')::int) i");
	start();
	WAIT(says_slots);
	run("SELECT pg_drop_replication_slot('taken_1')");
	WAIT(has_stream);
	stop();
}

/* A reader that is away gates the LSN: nothing it has not acknowledged is passed. */
static void test_reader_away(void **state)
{
	(void)state;
	start_streaming();
	con.auto_ack = false;
	forget();
	run("INSERT INTO t VALUES (1, 'a')");
	WAIT(one_commit);
	uint64_t end = con.last_end_lsn;
	new_reader();
	send_peer(false, 0);
	WAIT(waits_for_reader);
	run("INSERT INTO t VALUES (2, 'b')");
	(void)wait_for(never, 500);
	assert_true(confirmed() < end);
	forget();
	con.auto_ack = true;
	reader_up();
	WAIT(two_commits);
	assert_string_equal(con.log, " S B R:t I:1 C B I:2 C");
	WAIT(confirmed_past_end);
	stop();
}

static pid_t pid_of(const char *backend_type)
{
	char text[200];
	snprintf(text, sizeof(text), "SELECT pid FROM pg_stat_activity WHERE backend_type = '%s'",
		backend_type);
	char *value = sql(text);
	pid_t pid = (pid_t)strtol(value, NULL, 10);
	free(value);
	assert_true(pid > 1);
	return pid;
}

static bool sql_is_back(void)
{
	PQreset(sql_conn);
	return PQstatus(sql_conn) == CONNECTION_OK;
}

static bool on_timeline_2(void)
{
	return con.timeline == 2 && one_commit();
}

/* A server that comes back on another timeline, with a slot that stands where it was before: what
 * was acknowledged on the old one, before they part, still is; what comes after is not. */
static void test_other_timeline(void **state)
{
	(void)state;
	start_streaming();
	/* It would have the slot's position saved. */
	pid_t writer = pid_of("background writer");
	kill(writer, SIGSTOP);
	run("INSERT INTO t VALUES (1, 'a')");
	WAIT(one_commit);
	WAIT(confirmed_past_end);
	uint64_t end = con.last_end_lsn;
	con.auto_ack = false;
	forget();
	char signal_file[4096];
	snprintf(signal_file, sizeof(signal_file), "%s/standby.signal",
		getenv("HOWDAH_TEST_PGDATA"));
	FILE *f = fopen(signal_file, "w");
	assert_non_null(f);
	fclose(f);
	kill(PQbackendPID(sql_conn), SIGKILL);
	kill(writer, SIGCONT);
	(void)wait_for(never, 300);
	WAIT(sql_is_back);
	run("SELECT pg_promote()");
	/* Both timelines have the first row, which was acknowledged: it does not come again, nor is
	 * its acknowledgement forgotten. */
	run("INSERT INTO t VALUES (2, 'b')");
	WAIT(on_timeline_2);
	assert_null(strstr(con.log, "I:1"));
	assert_non_null(strstr(con.log, " B R:t I:2 C"));
	(void)wait_for(never, 500);
	assert_true(confirmed() >= end && confirmed() < con.last_end_lsn);
	ring_reader_ack(con.reader, con.last_end_lsn);
	WAIT(confirmed_past_end);
	stop();
}

/* The history of the server's timeline is lost: nobody can say any more where it left the one
 * before, but what is there can be followed. After test_other_timeline. */
static void test_no_history(void **state)
{
	(void)state;
	start_streaming();
	stop();
	run("UPDATE howdah.node SET confirmed_timeline = 1");
	char file[4096];
	snprintf(file, sizeof(file), "%s/pg_wal/00000002.history", getenv("HOWDAH_TEST_PGDATA"));
	assert_int_equal(unlink(file), 0);
	new_reader();
	forget();
	start_streaming();
	run("INSERT INTO t VALUES (3, 'c')");
	WAIT(one_commit);
	stop();
}

/* Other workers' logs are not brokerd's business; the frame of a transaction is everybody's. */
static void test_audience(void **state)
{
	(void)state;
	run("CREATE SCHEMA howdah_watch; CREATE TABLE howdah_watch.log (id int PRIMARY KEY, "
	    "node text);"
	    "ALTER PUBLICATION howdah ADD TABLE howdah_watch.log");
	start_streaming();
	forget();
	run("BEGIN; INSERT INTO howdah_watch.log VALUES (1); COMMIT");
	run("INSERT INTO t VALUES (1, 'a')");
	WAIT(one_commit);
	assert_true(con.n_empty >= 1);
	assert_string_equal(con.log, " B R:t I:1 C");
	stop();
	run("DROP SCHEMA howdah_watch CASCADE");
}

/* Whenever a first start is cut off, the next one makes it whole: one slot, and what the parts
 * stored belongs to it. */
static void test_killed_in_first_start(void **state)
{
	(void)state;
	run("INSERT INTO t VALUES (0, 'x')");
	for (unsigned ms = 0; ms < 150; ms += 7) {
		spawn("instance-1");
		(void)wait_for(is_closed, ms);
		kill_it();
	}
	start_streaming();
	assert_true(sql_is("SELECT count(*) FROM howdah_mqtt.begun b, howdah.node n WHERE b.lsn = "
			   "n.slot_lsn AND b.rows = 1",
		"1"));
	assert_true(sql_is("SELECT count(*) FROM howdah_mqtt.begun", "1"));
	assert_true(sql_is("SELECT n.slot_lsn <= s.confirmed_flush_lsn FROM howdah.node n, "
			   "pg_replication_slots s",
		"t"));
	forget();
	run("INSERT INTO t VALUES (1, 'a')");
	WAIT(one_commit);
	stop();
}

static char answer[8192];
static int client = -1;

static bool has_answer(void)
{
	size_t len = strlen(answer);
	ssize_t n = recv(client, answer + len, sizeof(answer) - 1 - len, MSG_DONTWAIT);
	if (n > 0)
		answer[len + (size_t)n] = '\0';
	return strstr(answer, "\"ok\"") != NULL || strstr(answer, "\"error\"") != NULL;
}

static void command(const char *name)
{
	int pair[2];
	char line[100];
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
	snprintf(
		line, sizeof(line), "{\"cmd\": \"%s\", \"args\": {}, \"id\": 1, \"v\": 1}\n", name);
	const struct worker_control m = {.line = line, .uid = getuid()};
	struct buf body;
	buf_init(&body, 0);
	worker_put_control(&body, &m);
	assert_int_equal(imsg_send(sup.channel, WORKER_MSG_CONTROL, 0, &body, &pair[1], 1), 0);
	buf_free(&body);
	close(pair[1]);
	answer[0] = '\0';
	client = pair[0];
	WAIT(has_answer);
	close(client);
}

static void test_commands(void **state)
{
	(void)state;
	start_streaming();
	run("INSERT INTO t VALUES (1, 'a')");
	WAIT(one_commit);
	WAIT(confirmed_past_end);
	command("wal.lag");
	static const char *const points[] = {"server", "sent", "received", "published", "brokerd",
		"acknowledged", "slot", "retained from"};
	for (size_t i = 0; i < sizeof(points) / sizeof(points[0]); i++)
		assert_non_null(strstr(answer, points[i]));
	assert_null(strstr(answer, "\"0/0\""));
	command("ring.status");
	assert_non_null(strstr(answer, "\"size_bytes\":1048576"));
	assert_non_null(strstr(answer, "\"name\":\"brokerd\""));
	assert_non_null(strstr(answer, "\"attached\":true"));
	stop();
}

static bool is_granted(void)
{
	return sup.n_grants > 0;
}

static bool is_refused(void)
{
	return sup.relay_refused[0] != '\0';
}

/* A reader that writes nonsense into its cursor loses the ring, and gets it again when it asks. */
static void test_hostile_cursor(void **state)
{
	(void)state;
	start_streaming();
	int fds[2];
	void *cursor;
	struct buf body;
	const struct ring_link_attach m = {.version = RING_LINK_VERSION, .acked_lsn = UINT64_MAX};
	assert_int_equal(ring_cursor_create(&fds[0], &cursor), 0);
	assert_int_equal(ring_event_create(&fds[1]), 0);
	buf_init(&body, 0);
	ring_link_put_attach(&body, &m);
	sup.n_grants = 0;
	sup.relay_refused[0] = '\0';
	assert_int_equal(send_attach(&body, fds, 2, NULL), 0);
	buf_free(&body);
	WAIT(is_granted);
	memset(cursor, 0x5a, RING_CURSOR_BYTES);
	command("ring.status");
	WAIT(is_refused);
	assert_non_null(strstr(sup.relay_refused, "cursor"));
	forget();
	WAIT(has_stream); /* the true reader was told too and attached again */
	run("INSERT INTO t VALUES (1, 'a')");
	WAIT(one_commit);
	WAIT(confirmed_past_end);
	assert_true(sql_is("SELECT confirmed_flush_lsn <= pg_current_wal_lsn() FROM "
			   "pg_replication_slots",
		"t"));
	stop();
	ring_cursor_unmap(cursor);
	close(fds[0]);
	close(fds[1]);
}

/* The server removed WAL that the slot needed. */
static void test_invalidated_slot(void **state)
{
	(void)state;
	start_streaming();
	stop();
	run("ALTER SYSTEM SET max_slot_wal_keep_size = '1MB'");
	run("SELECT pg_reload_conf()");
	for (int i = 0; i < 6; i++) {
		run("CREATE TABLE filler (i int); DROP TABLE filler");
		run("SELECT pg_switch_wal()");
		run("CHECKPOINT");
	}
	assert_true(sql_is("SELECT wal_status FROM pg_replication_slots", "lost"));
	start();
	WAIT(says_lost);
	assert_true(strstr(sup.status, "max_slot_wal_keep_size") != NULL ||
		    strstr(sup.status, "wal_removed") != NULL);
	assert_true(sql_is("SELECT count(*) FROM howdah_mqtt.begun", "1"));
	run("ALTER SYSTEM RESET max_slot_wal_keep_size");
	run("SELECT pg_reload_conf()");
	/* pgctl node remove */
	run("SELECT pg_drop_replication_slot('" SLOT "'); DELETE FROM howdah.node");
	forget();
	WAIT(has_stream);
	stop();
}

/* ---- Large transactions --------------------------------------------------------------------- */

/* Most of them are streamed then; on 16 and later all of them. */
static void stream_small_ones(bool on)
{
	run(on ? "ALTER SYSTEM SET logical_decoding_work_mem = '64kB'"
	       : "ALTER SYSTEM RESET logical_decoding_work_mem");
	if (PQserverVersion(sql_conn) >= 160000)
		run(on ? "ALTER SYSTEM SET debug_logical_replication_streaming = 'immediate'"
		       : "ALTER SYSTEM RESET debug_logical_replication_streaming");
	run("SELECT pg_reload_conf()");
}

static uint64_t ring_value(const char *key)
{
	char quoted[64];
	snprintf(quoted, sizeof(quoted), "\"%s\":", key);
	command("ring.status");
	const char *at = strstr(answer, quoted);
	assert_non_null(at);
	return strtoull(at + strlen(quoted), NULL, 10);
}

static void exec_other(PGconn *other, const char *text)
{
	PGresult *res = PQexec(other, text);
	assert_int_equal(PQresultStatus(res), PGRES_COMMAND_OK);
	PQclear(res);
}

/* Two large transactions at a time, with savepoints; one is rolled back. 4,103 rows remain. */
static void two_interleaved(void)
{
	PGconn *other = PQconnectdb("");
	assert_int_equal(PQstatus(other), CONNECTION_OK);
	run("BEGIN; INSERT INTO t SELECT i, repeat('x', 100) FROM generate_series(1, 4000) i;"
	    "SAVEPOINT a; INSERT INTO t SELECT i, 'a' FROM generate_series(4001, 9000) i");
	exec_other(other,
		"BEGIN; INSERT INTO t SELECT i, 'gone' FROM generate_series(100001, 105000) i");
	run("SAVEPOINT b; INSERT INTO t SELECT i, 'b' FROM generate_series(9001, 14000) i;"
	    "ROLLBACK TO a; INSERT INTO t SELECT i, 'c' FROM generate_series(4001, 4102) i");
	exec_other(other, "ROLLBACK");
	exec_other(other, "INSERT INTO t VALUES (200000, 'between')");
	run("COMMIT");
	PQfinish(other);
}

static bool all_4103(void)
{
	return con.n_inserts >= 4103 && con.n_commits >= 2;
}

/* The same WAL in every mode: what is in the ring is the same, to the byte. */
static void test_streaming_modes(void **state)
{
	(void)state;
	static const char *const modes[] = {"streaming = \"on\"; transaction_memory = \"64kB\";",
		"streaming = \"off\";", "streaming = \"parallel\";",
		"streaming = \"on\"; transaction_memory = \"64MB\";"};
	uint64_t digest = 0;
	stream_small_ones(true);
	con.auto_ack = false;
	start_streaming();
	stop();
	two_interleaved();
	for (size_t i = 0; i < sizeof(modes) / sizeof(modes[0]); i++) {
		more_keys = modes[i];
		new_reader();
		forget();
		start_streaming();
		WAIT(all_4103);
		assert_int_equal(con.n_inserts, 4103);
		assert_int_equal(con.n_commits, 2);
		if (i == 0)
			digest = con.digest;
		assert_true(con.digest == digest);
		bool streams = strstr(modes[i], "off") == NULL;
		assert_true(streams ? ring_value("streamed") >= 1 : ring_value("streamed") == 0);
		assert_true(i == 0 ? ring_value("spilled") >= 1 : ring_value("spilled") == 0);
		assert_int_equal(ring_value("open"), 0);
		assert_int_equal(ring_value("memory_bytes"), 0);
		assert_int_equal(ring_value("file_bytes"), 0);
		stop();
	}
	stream_small_ones(false);
}

static bool is_in_files(void)
{
	return ring_value("open") == 1 && ring_value("file_bytes") > 1 << 20;
}

#ifndef HOWDAH_SANITIZER
static uint64_t peak_kb(void)
{
	char line[200];
	unsigned long long kb = 0;
	snprintf(line, sizeof(line), "/proc/%d/status", (int)sup.pid);
	FILE *f = fopen(line, "r");
	assert_non_null(f);
	while (fgets(line, sizeof(line), f) != NULL && sscanf(line, "VmHWM: %llu", &kb) != 1)
		continue;
	fclose(f);
	assert_true(kb > 0);
	return kb;
}
#endif

static bool all_large(void)
{
	return con.n_inserts >= 60000 && con.n_commits >= 1;
}

/* A transaction far larger than the ring and than transaction_memory, and a SIGKILL while it runs
 * and while it is given out. */
static void test_streamed_large(void **state)
{
	(void)state;
	stream_small_ones(true);
	more_keys = "transaction_memory = \"64kB\";";
	start_streaming();
	run("BEGIN; INSERT INTO t SELECT i, repeat('x', 300) FROM generate_series(1, 30000) i");
	while (!is_in_files())
		assert_false(sup.closed);
	/* What runs holds nothing: its commit comes later. */
	run("CREATE TABLE other (v text)");
	kill_it();
	new_reader();
	forget();
	start_streaming();
	run("INSERT INTO t SELECT i, repeat('x', 300) FROM generate_series(30001, 60000) i");
	con.pause = true;
	run("COMMIT");
	WAIT(ring_is_full);
	uint64_t before = confirmed();
	kill_it();
	new_reader();
	con.pause = false;
	forget();
	start_streaming();
	WAIT(all_large);
	assert_int_equal(con.n_inserts, 60000);
	assert_int_equal(con.n_commits, 1);
	assert_true(confirmed() >= before);
	WAIT(confirmed_past_end);
	assert_int_equal(ring_value("file_bytes"), 0);
#ifndef HOWDAH_SANITIZER
	/* The ring, transaction_memory, 10 MB. */
	if (peak_kb() > 1024 + 64 + 10240)
		fail_msg("%llu kB at its peak", (unsigned long long)peak_kb());
#endif
	run("DROP TABLE other");
	stop();
	stream_small_ones(false);
}

static bool says_spool_limit(void)
{
	return is_streaming() && strstr(sup.status, "raise walstreamd.transaction_spool_limit");
}

static bool says_no_limit(void)
{
	return is_streaming() && strstr(sup.status, "transaction_spool_limit") == NULL;
}

static bool all_5000(void)
{
	return con.n_inserts >= 5000 && con.n_commits >= 1;
}

/* A transaction that does not fit is left to the server, said, and tried again after a reload. */
static void test_streaming_limit(void **state)
{
	(void)state;
	stream_small_ones(true);
	more_keys = "transaction_memory = \"64kB\"; transaction_spool_limit = \"0\";";
	start_streaming();
	for (int i = 0; i < 2; i++) {
		forget();
		run(i == 0 ? "INSERT INTO t SELECT i, repeat('x', 300) FROM generate_series(1, "
			     "5000) i"
			   : "INSERT INTO t SELECT -i, repeat('x', 300) FROM generate_series(1, "
			     "5000) "
			     "i");
		WAIT(all_5000);
		assert_int_equal(con.n_inserts, 5000);
		assert_int_equal(con.n_commits, 1);
		WAIT(says_spool_limit);
		WAIT(confirmed_past_end);
		send_reload();
		WAIT(says_no_limit);
	}
	stop();
	stream_small_ones(false);
}

int main(void)
{
	if (!begin_tests("test_walstreamd"))
		return 1;
#define TEST(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)
	const struct CMUnitTest tests[] = {
		TEST(test_first_start),
		TEST(test_acknowledged_only),
		TEST(test_idle_slot_moves),
		TEST(test_reattach),
		TEST(test_back_pressure),
		TEST(test_room_bit_by_bit),
		TEST(test_full_ring_at_begin),
		TEST(test_walsender_killed),
		TEST(test_half_made_slot),
		TEST(test_slot_of_another_database),
		TEST(test_beginning_refused),
		TEST(test_second_instance),
		TEST(test_no_schema_yet),
		TEST(test_no_slot_left),
		TEST(test_reader_away),
		TEST(test_audience),
		TEST(test_killed_in_first_start),
		TEST(test_commands),
		TEST(test_hostile_cursor),
		TEST(test_invalidated_slot),
		TEST(test_streaming_modes),
		TEST(test_streamed_large),
		TEST(test_streaming_limit),
		TEST(test_other_timeline),
		TEST(test_no_history),
	};
	return end_tests(cmocka_run_group_tests(tests, NULL, NULL));
}
