/* SPDX-License-Identifier: PostgreSQL */
/*
 * walstreamd whose slot is lost, and the gaps that such losses leave: who is told, and what is
 * noted of it. Runs inside tests/helpers/with-postgres.
 */
#include "config.h"

#include "tests/unit/helper_walstreamd.h"

static void test_lost_slot(void **state)
{
	(void)state;
	start_streaming();
	stop();
	run("SELECT pg_drop_replication_slot('" SLOT "')");
	start();
	WAIT(says_lost);
	(void)wait_for(never, 300);
	assert_true(sql_is("SELECT count(*) FROM pg_replication_slots", "0"));
	/* The way out, as pgctl takes it. */
	run("DELETE FROM howdah.node");
	forget();
	WAIT(has_stream);
	run("INSERT INTO t VALUES (1, 'a')");
	WAIT(one_commit);
	assert_true(sql_is("SELECT count(*) FROM howdah_mqtt.begun", "2"));
	stop();

	run("UPDATE howdah.node SET system_identifier = '1'");
	start();
	WAIT(says_lost);
	assert_non_null(strstr(sup.status, "moved"));
	stop();
	/* Always a person's decision. */
	more_keys = "lost_slot = \"recreate\";";
	start();
	WAIT(says_lost);
	(void)wait_for(never, 300);
	assert_non_null(strstr(sup.status, "moved"));
	assert_true(sql_is("SELECT count(*) FROM howdah.gap", "0"));
	assert_true(sql_is("SELECT slot_lsn IS NOT NULL FROM howdah.node", "t"));
	stop();
}

/* Gaps that nobody was told of, right before where the slot stands. */
static void make_gaps(int n)
{
	char text[400];
	snprintf(text, sizeof(text),
		"INSERT INTO howdah.gap (node, from_lsn, to_lsn, timeline, reason) SELECT 'alpha', "
		"confirmed_flush_lsn - (10 + %d - i) * 4, confirmed_flush_lsn - (10 + %d - i) * 4 "
		"+ 2, 1, 'no ' || i FROM pg_replication_slots, generate_series(1, %d) i",
		n, n, n);
	run(text);
}

static bool all_told(void)
{
	return sql_is("SELECT bool_and(told_at IS NOT NULL) FROM howdah.gap", "t");
}

/* More than one stream has room for: all are told, the newest in one, and only then said to be. */
static void test_many_gaps(void **state)
{
	(void)state;
	char expect[400] = "", text[200], from[18], to[18];
	start_streaming();
	stop();
	make_gaps(20);
	for (int i = 1; i <= 15; i++)
		snprintf(expect + strlen(expect), 20, " G:no %d", i);
	strcat(expect, " G:5 gaps in one, the last: no 20 S");
	new_reader();
	forget();
	con.auto_ack = false;
	start_streaming();
	assert_string_equal(con.log, expect);
	snprintf(text, sizeof(text),
		"SELECT min(from_lsn) = '%s' AND max(to_lsn) = '%s' FROM howdah.gap "
		"WHERE reason >= 'no 16' AND reason <= 'no 20' AND length(reason) = 5",
		pgws_lsn_str(con.gap_from_lsn, from), pgws_lsn_str(con.gap_to_lsn, to));
	assert_true(sql_is(text, "t"));
	/* Up to the one before the last: nobody says yet that it knows. */
	ring_reader_ack(con.reader, con.gap_to_lsn - 3);
	(void)wait_for(never, 300);
	assert_true(sql_is("SELECT count(told_at) FROM howdah.gap", "0"));
	ring_reader_ack(con.reader, con.gap_to_lsn);
	WAIT(all_told);
	con.auto_ack = true;
	stop();
	forget();
	new_reader();
	start_streaming();
	assert_int_equal(con.n_gaps, 0);
	stop();
}

static bool telling_waits(void)
{
	return sql_is("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND "
		      "query LIKE 'UPDATE howdah.gap SET told_at%'",
		"1");
}

static bool registrar_is_gone(void)
{
	return sql_is("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'howdah "
		      "walstreamd'",
		"0");
}

/* Dies when the readers have acknowledged a gap and before that is stored: the next life tells it
 * again, to a new reader and to one that knows of it. */
static void dies_before_told_at(PGconn *other, bool same_reader)
{
	run("UPDATE howdah.gap SET told_at = NULL");
	PQclear(PQexec(other, "BEGIN; SELECT FROM howdah.gap FOR UPDATE"));
	new_reader();
	forget();
	start_streaming();
	assert_string_equal(con.log, " G:no 1 S");
	WAIT(telling_waits);
	kill_it();
	run("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = "
	    "'howdah walstreamd'");
	WAIT(registrar_is_gone);
	PQclear(PQexec(other, "ROLLBACK"));
	assert_true(sql_is("SELECT count(told_at) FROM howdah.gap", "0"));
	if (!same_reader)
		new_reader();
	forget();
	start_streaming();
	assert_string_equal(con.log, same_reader ? " S" : " G:no 1 S");
	WAIT(all_told);
	stop();
}

static void test_killed_before_told_at(void **state)
{
	(void)state;
	PGconn *other = PQconnectdb("");
	assert_int_equal(PQstatus(other), CONNECTION_OK);
	start_streaming();
	stop();
	make_gaps(1);
	dies_before_told_at(other, false);
	dies_before_told_at(other, true);
	PQfinish(other);
}

int main(void)
{
	if (!begin_tests("test_walstreamd_gaps"))
		return 1;
#define TEST(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)
	const struct CMUnitTest tests[] = {
		TEST(test_lost_slot),
		TEST(test_many_gaps),
		TEST(test_killed_before_told_at),
	};
	return end_tests(cmocka_run_group_tests(tests, NULL, NULL));
}
