/* SPDX-License-Identifier: PostgreSQL */
/*
 * Ordered index of keys: a B+tree over byte strings in memcmp order (a prefix comes first). A
 * zero byte is a byte like any other.
 *
 * Every node keeps how many leading bytes its keys have in common and, for each key, the eight
 * bytes behind them as a number. A search looks at those numbers, which lie side by side, and goes
 * to the key itself only where they are equal: about one cache miss for each level and one for the
 * key.
 *
 * Ownership: the index owns its keys. A key does not move until it is removed. What its `value`
 * points to is the user's.
 *
 * Invariants:
 *   1. Every node but the root holds at least KEYINDEX_MIN keys (an inner node: separators).
 *   2. A node's `skip` bytes are common to all its keys.
 *   3. separator[i] is above every key below child[i], and not above any key below child[i + 1].
 *
 * Context: one thread.
 */
#ifndef WATCHD_KEYINDEX_H
#define WATCHD_KEYINDEX_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define KEYINDEX_FANOUT 64
#define KEYINDEX_MIN 16

struct keyindex;
struct keyindex_node;

struct keyindex_key {
	uintptr_t value; /* the user's; 0 at first */
	uint32_t slot;   /* the user's; 0 at first */
	uint32_t len;
	uint8_t bytes[];
};

/* A place between keys. Good until the index changes. */
struct keyindex_pos {
	struct keyindex_node *leaf;
	size_t i;
};

struct keyindex *keyindex_new(void);
/* Frees the keys too. Nulls *ix. */
void keyindex_free(struct keyindex **ix);

/* NULL: not there. Borrowed. */
struct keyindex_key *keyindex_find(const struct keyindex *ix, const void *key, size_t len);
/* The key, made if it is not there yet (then its value is 0). */
struct keyindex_key *keyindex_insert(struct keyindex *ix, const void *key, size_t len);
/* Removes and frees a key of this index. */
void keyindex_remove(struct keyindex *ix, struct keyindex_key *k);

/* The place before the first key that is not below `key`; len 0: before the first of all. */
struct keyindex_pos keyindex_seek(const struct keyindex *ix, const void *key, size_t len);
/* The key behind the place, which moves over it; NULL: the end. Keys that follow are fetched into
 * the cache ahead of their use. */
struct keyindex_key *keyindex_next(struct keyindex_pos *pos);

/* memcmp order, a prefix first. */
int keyindex_compare(const void *a, size_t a_len, const void *b, size_t b_len);

size_t keyindex_count(const struct keyindex *ix);
/* Of keys and nodes. */
size_t keyindex_bytes(const struct keyindex *ix);
/* Walks the whole tree and asserts the invariants (tests). */
void keyindex_check(const struct keyindex *ix);

#endif
