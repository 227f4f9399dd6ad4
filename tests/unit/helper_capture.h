/* SPDX-License-Identifier: PostgreSQL */
/*
 * What a real server makes of a slot's WAL with every set of pgoutput's options that its version
 * takes. The slot "one" is an ordinary one, "two" has two_phase; sql_conn has
 * logical_decoding_work_mem = 64kB. Include after cmocka.h and libpq-fe.h.
 */
#ifndef TESTS_UNIT_HELPER_CAPTURE_H
#define TESTS_UNIT_HELPER_CAPTURE_H

#include <stdbool.h>
#include <stdio.h>

#include "tests/unit/helper_sql.h"

/* A select list: more than logical_decoding_work_mem. */
#define MANY "SELECT repeat('m', 100) FROM generate_series(1, 900)"

struct capture {
	const char *publications; /* "a,b" */
	const char *beside;       /* column beside data: lsn, xid */
	int proto;
	const char *streaming; /* NULL: not given */
	bool binary, messages, two_phase;
	bool immediate;     /* every change is streamed */
	const char *origin; /* NULL: not given */
};

static inline void run_all(const char *const *statements)
{
	for (; *statements != NULL; statements++)
		run(*statements);
}

static inline void run_on(PGconn *conn, const char *statement)
{
	PGconn *before = sql_conn;
	sql_conn = conn;
	run(statement);
	sql_conn = before;
}

static inline int server_major(void)
{
	return PQserverVersion(sql_conn) / 10000;
}

/* The last version of the protocol that this server speaks. */
static inline int server_protos(void)
{
	return server_major() >= 16 ? 4 : server_major() == 15 ? 3 : 2;
}

/* Inserts, some of them below a savepoint given up, and PREPARE; then between and the end, if there
 * is one. */
static inline void prepare_transaction(
	const char *insert, const char *gid, const char *between, const char *end)
{
	char text[128];
	run("BEGIN");
	run(insert);
	run("SAVEPOINT s");
	run(insert);
	run("ROLLBACK TO s");
	run(insert);
	snprintf(text, sizeof(text), "PREPARE TRANSACTION '%s'", gid);
	run(text);
	if (end != NULL) {
		run(between);
		snprintf(text, sizeof(text), "%s PREPARED '%s'", end, gid);
		run(text);
	}
}

/* how: "peek" or "get". Two binary columns, what stands beside and the message. */
static inline PGresult *capture(const struct capture *o, const char *how)
{
	char text[512];
	size_t n = 0;
#define PUT(...) n += (size_t)snprintf(text + n, sizeof(text) - n, __VA_ARGS__)
	PUT("SELECT %s, data FROM pg_logical_slot_%s_binary_changes('%s', NULL, NULL, "
	    "'publication_names', '%s', 'proto_version', '%d', 'binary', '%s', 'messages', '%s'",
		o->beside, how, o->two_phase ? "two" : "one", o->publications, o->proto,
		o->binary ? "on" : "off", o->messages ? "on" : "off");
	if (o->streaming != NULL)
		PUT(", 'streaming', '%s'", o->streaming);
	if (o->two_phase)
		PUT(", 'two_phase', 'on'");
	if (o->origin != NULL)
		PUT(", 'origin', '%s'", o->origin);
	PUT(")");
#undef PUT
	assert_true(n < sizeof(text));
	if (server_major() >= 16)
		run(o->immediate ? "SET debug_logical_replication_streaming = immediate"
				 : "SET debug_logical_replication_streaming = buffered");
	PGresult *res = PQexecParams(sql_conn, text, 0, NULL, NULL, NULL, NULL, 1);
	if (PQresultStatus(res) != PGRES_TUPLES_OK)
		fail_msg("%s: %s", text, PQresultErrorMessage(res));
	return res;
}

/* fn for every way of streaming that the server and o's protocol have. */
static inline void each_streaming(
	struct capture o, void (*fn)(const struct capture *o, void *arg), void *arg)
{
	static const char *const modes[] = {"off", "on", "parallel"};
	for (int i = 0; i < 3; i++) {
		if ((i >= 1 && o.proto < 2) || (i == 2 && (o.proto < 4 || server_major() < 16)))
			continue;
		o.streaming = modes[i];
		o.immediate = false;
		fn(&o, arg);
		o.immediate = true;
		if (i >= 1 && server_major() >= 16)
			fn(&o, arg);
	}
}

#endif
