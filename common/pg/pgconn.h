/* SPDX-License-Identifier: PostgreSQL */
/*
 * One connection to PostgreSQL that keeps itself alive: an asynchronous state machine over libpq,
 * always in pipeline mode once it is up, with backoff, several hosts, and name resolution off the
 * event loop (pgresolve.h).
 *
 *   IDLE --start--> RESOLVING -> CONNECTING -> SETUP -> UP --error--> WAITING --backoff-->
 * RESOLVING
 *
 * SETUP runs the session's fixed statements (settings, locks); only when all succeeded is it UP.
 * Nothing survives a lost connection: every query outstanding is answered with PGCONN_LOST, and the
 * caller decides.
 *
 * Context: event thread. Callbacks may call back into the connection, but free it only by
 * pgconn_free, which defers.
 */
#ifndef COMMON_PG_PGCONN_H
#define COMMON_PG_PGCONN_H

#include <libpq-fe.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/ev.h"

/* Reactions to an SQLSTATE: one table for the suite, in pgstate.c. */
enum pg_class {
	PG_OK,
	PG_RETRY,  /* 08*, 53*, 57P*, 40001, 40P01, 55006, 25006 and everything unknown */
	PG_RESYNC, /* a slot that is gone or cannot be used: 42704, 55000, 58P01 */
	PG_CONFIG, /* 28*, 3D000, 42501, 0A000 …: exit status 78 */
	PG_DATA    /* 22*, 23*: this row is bad, the others are not */
};
/* sqlstate NULL (no answer from a server) is PG_RETRY. */
enum pg_class pg_classify(const char *sqlstate);
const char *pg_class_str(enum pg_class c);

enum pgconn_state {
	PGCONN_IDLE,
	PGCONN_RESOLVING,
	PGCONN_CONNECTING,
	PGCONN_SETUP,
	PGCONN_UP,
	PGCONN_WAITING,
	PGCONN_STATE_COUNT
};
const char *pgconn_state_str(enum pgconn_state s);

struct pgconn;

struct pgconn_ops {
	void (*on_up)(struct pgconn *c, void *arg);
	/* Lost or could not be had. class PG_CONFIG: retrying will not help (it is still retried,
	 * at the backoff's cap, unless the callback stops it). why: one line, for the log. */
	void (*on_down)(struct pgconn *c, enum pg_class class, const char *why, void *arg);
};

struct pgconn_options {
	const char *conninfo;         /* libpq; several hosts allowed */
	const char *application_name; /* "howdah brokerd writer" */
	/* NULL-terminated; run in order in SETUP, each must succeed. Borrowed for the connection's
	 * life. */
	const char *const *setup;
	/* A statement that takes this long while we wait is given up and the connection dropped; 0:
	 * never. */
	uint32_t timeout_ms;
};

struct pgconn *pgconn_new(struct ev_loop *loop, const struct pgconn_options *options,
	const struct pgconn_ops *ops, void *arg);
/* Outstanding queries are answered with NULL first. Safe in callbacks. Nulls *c. */
void pgconn_free(struct pgconn **c);
void pgconn_start(struct pgconn *c);
/* Closes and stays IDLE; outstanding queries are answered with NULL; no on_down. */
void pgconn_stop(struct pgconn *c);
enum pgconn_state pgconn_get_state(const struct pgconn *c);
/* In UP: the server's version (150004), its backend pid; 0 else. */
int pgconn_server_version(const struct pgconn *c);
int pgconn_backend_pid(const struct pgconn *c);
/* Which server of the conninfo this is, for a second connection that must reach the same one.
 * Borrowed while the connection lasts; host is NULL while there is none, hostaddr "" for a socket.
 */
struct pgconn_peer {
	const char *host, *hostaddr, *port;
};
struct pgconn_peer pgconn_peer(const struct pgconn *c);
/* From the next attempt on only this server is tried (copied), whatever hosts the conninfo has. */
void pgconn_set_peer(struct pgconn *c, const struct pgconn_peer *peer);
/* Last error in one line, "" if none. */
const char *pgconn_error(const struct pgconn *c);

/*
 * Result of one query. res == NULL: the connection was lost, whether it was executed is unknown.
 * PGRES_PIPELINE_ABORTED: an earlier one before the same sync failed. Borrowed for the call.
 */
typedef void (*pgconn_result_fn)(PGresult *res, void *arg);

struct pgconn_query {
	const char *sql; /* or the name of a prepared statement, if prepared is set */
	bool prepared;
	int n_params;
	const Oid *types;          /* may be NULL; not used with prepared */
	const char *const *values; /* copied before return */
	const int *lengths;        /* binary parameters */
	const int *formats;        /* NULL: text */
	int result_format;         /* 0 text, 1 binary */
};

/* Queues a query; UP only (-ERR_STATE else; -ERR_CLOSED: it broke just now, on_down follows).
 * Queries until the next pgconn_sync are one implicit transaction. cb may be NULL; it is called,
 * once, exactly if 0 was returned. A server that answers 25006 (read-only) is left after that
 * answer. */
int pgconn_query(struct pgconn *c, const struct pgconn_query *q, pgconn_result_fn cb, void *arg)
	__attribute__((warn_unused_result));
int pgconn_prepare(struct pgconn *c, const char *name, const char *sql, int n_params,
	const Oid *types, pgconn_result_fn cb, void *arg) __attribute__((warn_unused_result));
/* Ends the implicit transaction and sends everything out. cb runs once: with PGRES_PIPELINE_SYNC
 * when it is over (committed, if no query of it failed); with the server's error if the commit
 * itself failed (a deferred constraint; rolled back, unless the error is a FATAL one: then it is
 * unknown, as with NULL); with NULL if the connection was lost. */
int pgconn_sync(struct pgconn *c, pgconn_result_fn cb, void *arg)
	__attribute__((warn_unused_result));
/* Convenience: one text query and a sync. */
int pgconn_simple(struct pgconn *c, const char *sql, int n_params, const char *const *values,
	pgconn_result_fn cb, void *arg) __attribute__((warn_unused_result));

/* One line from a result's error: message, SQLSTATE; into buf. Returns buf. */
const char *pg_result_error(const PGresult *res, char *buf, size_t size);

#endif
