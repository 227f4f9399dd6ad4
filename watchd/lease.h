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
 * KeepAlive is answered only after engine_confirm: an owner that lost its place answers nothing, so
 * a client that got an answer has a lease that lives that long from when it asked.
 *
 * Deadlines: a heap; expiry revokes at most LEASE_REVOKES_PER_S (1000, etcd's).
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

struct lessor;

struct lessor *lessor_new(struct ev_loop *loop, struct engine *e, const char *node);
void lessor_free(struct lessor **l);
/* From engine_ops: a GRANT, MOVE or REVOKE became visible; the store was loaded (anew). */
void lessor_row(struct lessor *l, const struct store_row *row);
void lessor_loaded(struct lessor *l);
/* The database is there again / gone: deadlines do not run while our place is not held. */
void lessor_database(struct lessor *l, bool up);

/* Grant, for engine_op.eval: id 0: chosen here (and kept over re-evaluation in *id). */
enum etcd_error lease_grant(struct store *s, int64_t *id, int64_t *ttl_s);
enum etcd_error lease_revoke(struct store *s, int64_t id);

/* One keepalive. cb once, later: ttl_s is the full time to live from `now`, 0 if there is no such
 * lease. Embed it. */
struct lease_keepalive {
	struct engine_op op;
	struct engine_read confirm;
	struct lessor *lessor;
	int64_t id;
	void (*done)(struct lease_keepalive *k, int64_t ttl_s, enum etcd_error err);
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
