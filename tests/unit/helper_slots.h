/* SPDX-License-Identifier: PostgreSQL */
/*
 * A server with one table t, published by p, and slots that each test makes for itself: what comes
 * before and after such a test, and how it waits for the server. Include after cmocka.h and
 * libpq-fe.h.
 */
#ifndef TESTS_UNIT_HELPER_SLOTS_H
#define TESTS_UNIT_HELPER_SLOTS_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "libpgwalstream/pgwalstream.h"
#include "tests/unit/helper_sql.h"

static inline void assert_sql(const char *text, const char *expect)
{
	char *value = sql(text);
	assert_string_equal(value, expect);
	free(value);
}

/* Half a minute at most. */
static inline void wait_sql(const char *text, const char *expect)
{
	for (int i = 0; i < 1500 && !sql_is(text, expect); i++)
		usleep(20000);
	assert_sql(text, expect);
}

static inline uint64_t sql_lsn(const char *text)
{
	char *value = sql(text);
	uint64_t lsn;
	assert_int_equal(pgws_lsn_parse(value, &lsn), 0);
	free(value);
	return lsn;
}

static inline void wait_no_slot_in_use(void)
{
	wait_sql("SELECT count(*) FROM pg_replication_slots WHERE active", "0");
}

static inline void drop_slots(void)
{
	wait_no_slot_in_use();
	run("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots");
}

static inline int slots_setup(void **state)
{
	(void)state;
	run("CREATE TABLE t (id int PRIMARY KEY, v text); CREATE PUBLICATION p FOR TABLE t");
	return 0;
}

static inline int slots_teardown(void **state)
{
	(void)state;
	drop_slots();
	run("DROP PUBLICATION IF EXISTS p; DROP TABLE IF EXISTS t");
	return 0;
}

/* sql_conn and the server's major version; 0: cannot connect. */
static inline int slots_connect(const char *options)
{
	char conninfo[300];
	snprintf(conninfo, sizeof(conninfo), "options='-c client_min_messages=error %s'", options);
	sql_conn = PQconnectdb(conninfo);
	if (PQstatus(sql_conn) == CONNECTION_OK)
		return PQserverVersion(sql_conn) / 10000;
	fprintf(stderr, "%s\n", PQerrorMessage(sql_conn));
	PQfinish(sql_conn);
	sql_conn = NULL;
	return 0;
}

#endif
