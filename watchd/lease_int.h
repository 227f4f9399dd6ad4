/* SPDX-License-Identifier: PostgreSQL */
/*
 * What the lease*.c files share; nobody else includes it.
 *
 *   lease.c            what is granted and revoked, the table, deadlines and expiry
 *   lease_keepalive.c  keepalives
 *   lease_adopt.c      leases of dead nodes
 *
 * Invariants:
 *  1. The table has exactly the visible leases, each on the list of its owner's node.
 *  2. In the heap are exactly ours that are not being revoked.
 *  3. What revokes, moves or adopts decides when it is evaluated, by the store's head; the table
 *     only says when to try.
 */
#ifndef WATCHD_LEASE_INT_H
#define WATCHD_LEASE_INT_H

#include <uthash.h>

#include "watchd/lease.h"

#define LESSOR_MAGIC 0x4c657373U

struct lease_node {
	struct list link;
	struct lessor *lessor;
	struct list leases;
	size_t n_leases;
	bool claiming; /* asked for, or being adopted from */
	char name[];
};

struct lease_entry {
	UT_hash_handle hh;
	int64_t id, ttl_s;
	uint64_t deadline_ms; /* of lessor_now */
	size_t heap_at;       /* index plus 1; 0: not in the heap */
	struct lease_node *node;
	struct list link; /* node->leases */
	bool revoking;    /* a revocation of ours is under way */
	bool seen;        /* while loading */
};

struct lessor {
	uint32_t magic;
	struct ev_loop *loop;
	struct engine *e;
	struct store *store;
	struct lease_entry *by_id;
	struct list nodes;
	struct lease_node *self;
	/* Deadlines. */
	struct lease_entry **heap;
	size_t n_heap, cap_heap;
	bool frozen; /* our place is not held: since when, of ev_now_ms */
	uint64_t frozen_ms, stood_ms;
	struct ev_timer expire;
	uint64_t tokens, tokens_ms; /* revocations that may begin, as of when */
	struct list revocations;
	/* Adoption. */
	struct ev_timer check;
	struct list adoptions;
	struct lessor_counts counts;
};

/* ---- lease.c ---- */
/* The leases' clock: it stands still while our place is not held. */
uint64_t lessor_now(const struct lessor *l);
struct lease_entry *lessor_find(const struct lessor *l, int64_t id);
bool lessor_is_ours(const struct lessor *l, const struct lease_entry *entry);
/* Ours lives its full time from now. */
void lessor_renew(struct lessor *l, struct lease_entry *entry);

/* ---- lease_adopt.c ---- */
/* Looks after leases of other nodes from now on, if there are some. */
void lessor_check_later(struct lessor *l);
void lessor_adopt_stop(struct lessor *l);
void lessor_on_check(void *arg);

#endif
