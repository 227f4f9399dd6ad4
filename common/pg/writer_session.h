/* SPDX-License-Identifier: PostgreSQL */
/*
 * The session of whoever writes for a node: a connection that holds the advisory lock of (node,
 * role), so that at most one backend writes in that name, and that never promises less than a
 * commit on disk (and on the synchronous standbys, if there are any).
 *
 *   DOWN -> LOCKING (end the backend that we had, take its lock, bounded tries) -> FLUSHING -> HELD
 *
 * Once the lock is ours, the backend that had it is gone: what it committed can be looked up, and
 * the answer is final. Its commit may have become visible because it was ended while it waited for
 * a synchronous standby; therefore, if something is in doubt, an (empty) commit of our own goes
 * first, which returns only when everything before it is as safe as synchronous_commit demands.
 *
 * Context: event thread. Callbacks may call back into the session, but free it only by
 * writer_session_free, which defers.
 */
#ifndef COMMON_PG_WRITER_SESSION_H
#define COMMON_PG_WRITER_SESSION_H

#include <stdbool.h>

#include "common/base/ev.h"
#include "common/pg/pgconn.h"

struct writer_session;

struct writer_session_ops {
	/* Whether commits are in doubt: then the empty commit goes first. NULL: never. */
	bool (*in_doubt)(void *arg);
	/* The lock is held: prepare, look up, write. */
	void (*on_held)(void *arg);
	/* Lost, refused or could not be had; it is tried again by itself. Every result callback has
	 * run. */
	void (*on_down)(enum pg_class class, const char *why, void *arg);
	/* The lock is another session's for long: two instances of one name. Repeated. */
	void (*on_locked_out)(const char *why, void *arg);
};

struct writer_session_options {
	const char *conninfo;
	const char *application_name;
	const char *node, *role;  /* the lock's key */
	uint32_t timeout_ms;      /* of a statement, as pgconn's */
	const char *const *setup; /* more statements of the session's setup; NULL: none */
};

struct writer_session *writer_session_new(struct ev_loop *loop,
	const struct writer_session_options *options, const struct writer_session_ops *ops,
	void *arg);
void writer_session_free(struct writer_session **s); /* nulls *s */
void writer_session_start(struct writer_session *s);
/* The connection; statements only while the session is held. Borrowed. */
struct pgconn *writer_session_conn(struct writer_session *s);
bool writer_session_is_held(const struct writer_session *s);

/* True if res is good. Else the session is over: start-over is on its way (on_down), or the
 * connection is about to say so. For the steps between on_held and the first work. */
bool writer_session_step_ok(struct writer_session *s, const PGresult *res);
/* A commit has succeeded: the next start-over is quick again. */
void writer_session_works(struct writer_session *s);
/* Orderly end: the lock is given back with the connection. No on_down. */
void writer_session_stop(struct writer_session *s);

/* A FATAL error ends the backend: whether its commit was done is for the next session to say. */
bool pg_result_is_fatal(const PGresult *res);
/* Whether the answer to a sync leaves open what became of the transaction. */
bool pg_sync_leaves_doubt(const PGresult *res);

#endif
