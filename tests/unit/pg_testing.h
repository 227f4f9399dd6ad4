/* SPDX-License-Identifier: PostgreSQL */
/*
 * What the pg tests share: waiting with a limit, a blocking second connection, and a proxy on a
 * Unix socket that can stop passing bytes, cut, or cut in the moment the server answers.
 *
 * The server is the one of tests/helpers/with-postgres.
 */
#ifndef TESTS_UNIT_PG_TESTING_H
#define TESTS_UNIT_PG_TESTING_H

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <libpq-fe.h>

#include "common/base/ev.h"

#define TEST_TIMEOUT_MS 30000

/* Runs the loop until cond holds; fails the test after TEST_TIMEOUT_MS. */
#define wait_until(loop, cond)                                                                     \
	do {                                                                                       \
		uint64_t wait_end = ev_now_ms() + TEST_TIMEOUT_MS;                                 \
		while (!(cond)) {                                                                  \
			if (ev_now_ms() > wait_end)                                                \
				fail_msg("timeout waiting for: %s", #cond);                        \
			pg_testing_turn(loop);                                                     \
		}                                                                                  \
	} while (0)

/* One pass of at most some milliseconds. */
void pg_testing_turn(struct ev_loop *loop);
/* Runs the loop for so long. */
void pg_testing_run(struct ev_loop *loop, uint64_t ms);

/* Blocking: runs sql on a connection of its own; the first value, or "". Static buffer. */
const char *pg_testing_sql(const char *sql);
/* The same on a given connection. */
const char *pg_testing_on(PGconn *pg, const char *sql);

/* A teardown for cmocka: fails if counted objects are alive. */
int pg_testing_no_leaks(void **state);

/*
 * The proxy stands between a connection and the server's socket, in the same loop. It listens on
 * "DIR/.s.PGSQL.PORT" in a folder of its own; conninfo is what leads to it.
 */
struct proxy;
struct proxy *proxy_new(struct ev_loop *loop);
void proxy_free(struct proxy **p);
const char *proxy_conninfo(const struct proxy *p);
/* Nothing passes, nothing is closed: a half-open connection. */
void proxy_freeze(struct proxy *p, bool frozen);
/* Closes everything at once. */
void proxy_cut(struct proxy *p);
/* After n more bytes to the server: the answer to what was sent is not passed on, but read from the
 * server until it has been quiet for quiet_ms, so that it did its work; then both sides are closed.
 */
void proxy_cut_answer(struct proxy *p, size_t after_bytes, uint32_t quiet_ms);
size_t proxy_cuts(const struct proxy *p);

#endif
