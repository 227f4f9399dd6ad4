/* SPDX-License-Identifier: PostgreSQL */
/*
 * Which watchers does a key concern? Single keys by hash, ranges [from, to) by an interval tree.
 * Members are embedded; keys are borrowed from their owner while a member is in.
 *
 * Context: one thread; members must not be added or removed while interval_match runs.
 */
#ifndef WATCHD_INTERVAL_H
#define WATCHD_INTERVAL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/list.h"
#include "watchd/store.h"

struct interval_set;
struct interval_node;

/* to.data NULL: the single key `from`; to.len 0 with data: everything from `from` on. Members of
 * the same interval share a node of the tree. */
struct interval_member {
	struct list link;
	struct interval_node *node; /* private; NULL: not in */
	struct store_bytes from, to;
};

struct interval_set *interval_set_new(void);
void interval_set_free(struct interval_set **set); /* members must be out */
void interval_add(struct interval_set *set, struct interval_member *m);
void interval_remove(struct interval_set *set, struct interval_member *m); /* twice is harmless */
/* Calls fn for each member that contains key. O(log n + matches). */
void interval_match(const struct interval_set *set, struct store_bytes key,
	void (*fn)(struct interval_member *m, void *arg), void *arg);
/* The same by nodes: all members of a node have the same interval. */
void interval_match_nodes(const struct interval_set *set, struct store_bytes key,
	void (*fn)(struct interval_node *n, void *arg), void *arg);
/* Its members, by their link. Removing a member is allowed; with the last one the node goes. */
struct list *interval_node_members(struct interval_node *n);
/* The user's; 0 in a new node. */
uint32_t *interval_node_mark(struct interval_node *n);
size_t interval_count(const struct interval_set *set);

#endif
