/* SPDX-License-Identifier: PostgreSQL */
/*
 * The engine: the one way in which shared state changes, and the one way to know how new it is.
 *
 *   mutation -> queue -> batch: evaluated at the store's head -> INSERT on the exact tip -> visible
 *                 ^                                                   | lost, unknown
 *                 '-------- rolled back, the missing entries read <---'
 *
 * A batch inserts only if the log's tip is exactly the one it was evaluated on, named by seq and
 * batch token (the number alone can be another node's). What a lost batch held is evaluated again.
 * At most two batches are in flight. There is no timer: what arrives while two are in flight is the
 * next batch.
 *
 * The tip read (all rows from our tip on) answers everything else: linearizable reads share one
 * that began after they arrived; a commit in doubt is found by its token once the writer's lock has
 * been taken from the old backend; other nodes' entries come by it when the ring rings; a row that
 * is missing in it means that compaction passed by: the log is loaded anew; our own tip missing
 * without a compaction means that the database went back.
 *
 *   DOWN -> LOADING -> READY <-> CUT OFF (no database; memory answers serializable reads)
 *
 * Context: event thread. on_* and done callbacks may call back into the engine.
 */
#ifndef WATCHD_ENGINE_H
#define WATCHD_ENGINE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/ev.h"
#include "common/base/list.h"
#include "watchd/etcd_error.h"
#include "watchd/store.h"

struct engine;

struct engine_ops {
	/* The first load is done: READY may be said. Once. */
	void (*on_loaded)(void *arg);
	/* visible has moved (own commits, other nodes'): feed watches from the event log. After the
	 * next batch was sent and before answers are given. */
	void (*on_visible)(void *arg);
	/* A row that is not PUT or DELETE became visible (store_ops.on_visible). Not while loading:
	 * what there is then is in the store when on_loaded or on_reloaded is called. */
	void (*on_row)(const struct store_row *row, void *arg);
	/* The store is about to be emptied and loaded anew: nothing that it holds is to be shown
	 * before on_reloaded (engine_is_loaded says false). */
	void (*on_unloaded)(void *arg);
	/* The store was emptied and loaded anew. went_back: history that was answered is gone, the
	 * cluster id is another: every watch must be cancelled. Else only event log positions are
	 * new: watches go on at their revision, or are cancelled as compacted. */
	void (*on_reloaded)(bool went_back, void *arg);
	/* Database lost (up false) and there again, with one line for the operator. */
	void (*on_database)(bool up, const char *why, void *arg);
};

struct engine_options {
	const char *conninfo;
	const char *node;
	const char *advertise_url;
	uint64_t quota_bytes;
	size_t max_waiting_ops;   /* 0: 100000 */
	size_t max_waiting_bytes; /* 0: 256 MB */
	size_t max_batch_ops;     /* 0: 1000 */
	size_t max_batch_bytes;   /* 0: 4 MB */
};

struct engine *engine_new(struct ev_loop *loop, const struct engine_options *options,
	const struct engine_ops *ops, void *arg);
/* Operations that are not done are dropped without their callbacks: drain first. Nulls *e. */
void engine_free(struct engine **e);
/* The store, for reads at or below store_visible_rev. Borrowed. */
struct store *engine_store(struct engine *e);
/* Our place is held (session with the node's lock), the state is loaded. */
bool engine_is_up(const struct engine *e);
/* Memory holds a state that may be read (serializable), even if the database is away. */
bool engine_is_loaded(const struct engine *e);

/*
 * One mutation. Embed it. eval is called with the store's entry open, possibly several times (each
 * time from the beginning: it resets what it built before), and answers ETCD_OK or an error (then
 * the entry is aborted, and the error is the outcome). It may change nothing: then the outcome is a
 * read, and as exact as a linearizable one. done runs once, when the outcome is final: after the
 * commit, or with the database's failure in err. Nothing of the outcome may leave before.
 */
struct engine_op {
	struct list link; /* the engine's */
	enum etcd_error (*eval)(struct engine_op *op, struct store *s);
	/* err: what eval said, or ETCD_TIMEOUT / ETCD_STOPPED / ETCD_TOO_MANY_REQUESTS. rev: of the
	 * store after the entry, for headers. */
	void (*done)(struct engine_op *op, enum etcd_error err);
	size_t cost_bytes; /* of keys and values, for the limits and the quota */
	bool grows;        /* counts against the quota, refused while NOSPACE is on: put, grant */
	uint64_t deadline_ms; /* of ev_now_ms; 0: none. Past it: ETCD_TIMEOUT (outcome unknown) */
	int state;            /* the engine's */
	enum etcd_error err;  /* the engine's */
};
/* done is never called from inside. Refused (limits) = done with ETCD_TOO_MANY_REQUESTS, later. */
void engine_submit(struct engine *e, struct engine_op *op);
/* The client is gone: done will not be called, op may be freed after this. What is in flight may
 * still be committed. */
void engine_cancel(struct engine *e, struct engine_op *op);

/* A linearizable read: done runs when a tip read that began after this call has returned and all it
 * showed is visible. Embed it. */
struct engine_read {
	struct list link;
	void (*done)(struct engine_read *r, enum etcd_error err);
	uint64_t deadline_ms;
	int state;           /* the engine's */
	enum etcd_error err; /* the engine's */
};
void engine_read(struct engine *e, struct engine_read *r);
void engine_read_cancel(struct engine *e, struct engine_read *r);

/* Proof that we still hold the node's place: a round trip on the session that holds the lock,
 * begun after this call and shared by all who wait (KeepAlive). Same callbacks as a read. */
void engine_confirm(struct engine *e, struct engine_read *r);

/* Something was committed elsewhere (the ring's bell): read the tip if seq is above what we have;
 * 0: unknown, read it. */
void engine_bell(struct engine *e, int64_t seq);

/* Is the node alive (does a session hold its lock)? cb once: alive is false only if the lock could
 * be taken, in which case it is held for us until cb has submitted the MOVEs of its leases and
 * engine_claim_end is called. err != ETCD_OK: not known. */
void engine_claim(struct engine *e, const char *node,
	void (*cb)(const char *node, bool alive, enum etcd_error err, void *arg), void *arg);
void engine_claim_end(struct engine *e, const char *node);

/* VACUUM of the log, on a connection of its own; cb when it is over. One at a time: those asked for
 * while one runs share the next. */
void engine_defragment(struct engine *e, void (*cb)(enum etcd_error err, void *arg), void *arg);

struct engine_member {
	char *node, *advertise_url; /* owned by the list */
	uint64_t id;
};
/* Members as howdah_watch.member has them, kept fresh (read at load and when asked: cb). */
void engine_members(struct engine *e,
	void (*cb)(const struct engine_member *m, size_t n, enum etcd_error err, void *arg),
	void *arg);
uint64_t engine_member_id(const char *node); /* of a name; never 0 */

/* The newest revision written before a moment (text that PostgreSQL takes as interval, counted back
 * from now); cb once; rev 0: none, -1: the text is no interval. why: NULL or the server's words. */
void engine_rev_before(struct engine *e, const char *interval,
	void (*cb)(int64_t rev, enum etcd_error err, const char *why, void *arg), void *arg);

struct engine_counts {
	uint64_t batches, entries, rows, lost_batches, turns, tip_reads, tip_rows, loads,
		in_doubt_found, in_doubt_again, removed_rows, timeouts, refused, reads_ended;
	uint64_t ops_waiting, bytes_waiting, reads_waiting, batches_in_flight;
	uint64_t db_bytes; /* of the log with its index, as of the last look */
	bool up;
	const char *trouble; /* "" if all is well */
};
void engine_get_counts(const struct engine *e, struct engine_counts *ret_counts);

/* Orderly end: finish what waits, release the node's place; cb once. */
void engine_drain(struct engine *e, void (*cb)(void *arg), void *arg);

#endif
