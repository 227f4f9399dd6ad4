/* SPDX-License-Identifier: PostgreSQL */
/*
 * Leases in time: deadlines, keepalives, expiry, adoption. What a lease is (id, time to live,
 * owner, keys) stands in the store and so in the log; when it ends is known only in the memory of
 * the node that owns it.
 *
 *   granted here ---> OURS --deadline--> REVOKE (evaluated: still ours, still past its deadline)
 *   granted elsewhere -> THEIRS --keepalive here--> MOVE -> OURS with its full time to live
 *                           '--its owner is dead (engine_claim)--> MOVE -> OURS, full time to live
 *
 * A crash extends, never shortens: whoever loads or adopts begins with the full time to live. A
 * KeepAlive of a lease of ours is answered after a tip read and a round trip on the session that
 * holds our place, both begun after it was asked: nobody had taken the lease over, nobody can have
 * begun to, so a client that got an answer has a lease that lives that long from when it asked.
 *
 * Deadlines are of a clock that stands still while our place is not held. They hang in a heap;
 * expiry revokes at most LEASE_REVOKES_PER_S (1000, etcd's), each lease with all its keys in one
 * revision. Leases of other nodes are looked after only while there are some: every
 * LEASE_CHECK_MS each of those nodes is asked for (engine_claim).
 *
 * Context: event thread. CLOCK_MONOTONIC (CLOCK_BOOTTIME is not needed: a machine that slept lets
 * its leases live longer).
 */
#ifndef WATCHD_LEASE_H
#define WATCHD_LEASE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/ev.h"
#include "watchd/engine.h"

#define LEASE_TTL_MIN_S 2 /* etcd: 1.5 election timeouts */
#define LEASE_TTL_MAX_S INT64_C(9000000000)
#define LEASE_REVOKES_PER_S 1000
#define LEASE_CHECK_MS 2000

struct lessor;

struct lessor *lessor_new(struct ev_loop *loop, struct engine *e, const char *node);
/* Before engine_free, and in the same pass of the loop: a claim may be under way. Keepalives must
 * be done or cancelled. Nulls *l. */
void lessor_free(struct lessor **l);
/* From engine_ops: a GRANT, MOVE or REVOKE became visible; the store was loaded (anew). */
void lessor_row(struct lessor *l, const struct store_row *row);
void lessor_loaded(struct lessor *l);
/* The database is there again / gone: deadlines do not run while our place is not held. */
void lessor_database(struct lessor *l, bool up);

/* Grant, for engine_op.eval. *id 0: chosen here (and kept over re-evaluation in *id); *ttl_s: what
 * is asked for, and then what is granted. */
enum etcd_error lease_grant(struct store *s, int64_t *id, int64_t *ttl_s);
/* All its keys go in the same revision. */
enum etcd_error lease_revoke(struct store *s, int64_t id);

/*
 * One keepalive. Embed it, set id, deadline_ms (of ev_now_ms, 0: none) and done; the rest is
 * private. done comes once, later, and never from inside a call: ttl_s is the full time to live
 * from when it was asked, 0 if there is no such lease.
 */
struct lease_keepalive {
	int64_t id;
	uint64_t deadline_ms;
	void (*done)(struct lease_keepalive *k, int64_t ttl_s, enum etcd_error err);

	struct lessor *lessor;
	struct engine_op op;
	struct engine_read read, confirm;
	bool reads, confirms, evaluates; /* what is under way */
	bool moves;
	int64_t ttl_s; /* as evaluated */
};
void lessor_keepalive(struct lessor *l, struct lease_keepalive *k);
void lessor_keepalive_cancel(struct lessor *l, struct lease_keepalive *k);
/* Seconds left (rounded down as etcd does); for a lease of another node: its time to live, because
 * only its owner knows. -1: no such lease. */
int64_t lessor_remaining_s(struct lessor *l, int64_t id);

struct lessor_counts {
	uint64_t leases, ours, keepalives, expired, adopted, moved;
};
void lessor_get_counts(const struct lessor *l, struct lessor_counts *ret_counts);

#endif
