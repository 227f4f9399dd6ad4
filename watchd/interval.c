/* SPDX-License-Identifier: PostgreSQL */
/*
 * Single keys hang in a hash table that grows and shrinks by one bucket at a time (linear hashing:
 * no pause when a million watchers come), ranges in a treap ordered by (from, to) in which every
 * node knows the node of its subtree whose range ends last.
 *
 *        [b,f) max g        A key is looked for by going down left as long as the subtree's last
 *        /         \        end is behind the key, and right as long as the node begins at or
 *   [a,c) max c  [d,g)      before it: O(log n + matches).
 *
 * A node's bytes are those of its first member, so that nothing is copied: all members of a node
 * have equal ones, whoever leaves first. Hash and priorities are seeded anew for each set: clients
 * choose the keys.
 *
 * Invariants:
 *  1. A node has at least one member.
 *  2. A treap node's priority is at least its children's; max is the subtree's last-ending node.
 *  3. n_buckets is 0 (never used), BUCKETS_MIN, or more and at most twice the nodes in the table.
 */
#include "config.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "common/base/mem.h"
#include "watchd/interval.h"

#define INTERVAL_SET_MAGIC 0x49767354U
#define BUCKETS_MIN 8

struct interval_node {
	struct list members;
	union {
		struct {
			struct interval_node *next;
			uint64_t hash;
		} key;
		struct {
			struct interval_node *left, *right, *max;
			uint32_t priority;
		} range;
	};
	uint32_t mark;
};

struct interval_set {
	uint32_t magic;
	uint64_t seed;
	uint64_t random;
	size_t n_members;
	struct interval_node *root;
	struct interval_node **buckets; /* n_buckets of cap are in use */
	size_t n_buckets, cap;
	size_t n_keys; /* nodes in the table */
};

MEM_TYPE(type_set, "interval set");
MEM_TYPE(type_node, "interval node");

struct interval_set *interval_set_new(void)
{
	struct interval_set *set = mem_new(&type_set, sizeof(*set));
	set->magic = INTERVAL_SET_MAGIC;
	/* Before the kernel's pool is full, or where the call is forbidden, the address must do. */
	if (getrandom(&set->seed, sizeof(set->seed), GRND_NONBLOCK) != sizeof(set->seed))
		set->seed = (uintptr_t)set * UINT64_C(0x9E3779B97F4A7C15);
	set->random = set->seed | 1;
	return set;
}

void interval_set_free(struct interval_set **set_ptr)
{
	struct interval_set *set = *set_ptr;
	*set_ptr = NULL;
	if (set == NULL)
		return;
	OBJ_CHECK(set, INTERVAL_SET_MAGIC);
	ASSERT(set->n_members == 0);
	free(set->buckets);
	set->magic = 0;
	mem_free(&type_set, set);
}

size_t interval_count(const struct interval_set *set)
{
	return set->n_members;
}

static int bytes_cmp(struct store_bytes a, struct store_bytes b)
{
	size_t n = a.len < b.len ? a.len : b.len;
	int rc = n == 0 ? 0 : memcmp(a.data, b.data, n);
	return rc != 0 ? rc : (a.len > b.len) - (a.len < b.len);
}

/* Ends: an empty one is behind all others. */
static int end_cmp(struct store_bytes a, struct store_bytes b)
{
	if (a.len == 0 || b.len == 0)
		return (a.len == 0) - (b.len == 0);
	return bytes_cmp(a, b);
}

static const struct interval_member *first(const struct interval_node *n)
{
	return list_first(&n->members, struct interval_member, link);
}

static struct interval_node *node_new(struct interval_member *m)
{
	struct interval_node *n = mem_new(&type_node, sizeof(*n));
	list_init(&n->members);
	list_push_back(&n->members, &m->link);
	m->node = n;
	return n;
}

/* ---- single keys ---- */

static uint64_t mix(uint64_t a, uint64_t b)
{
	__extension__ unsigned __int128 p = (unsigned __int128)a * b;
	return (uint64_t)p ^ (uint64_t)(p >> 64);
}

static uint64_t hash_key(const struct interval_set *set, struct store_bytes key)
{
	const uint8_t *p = key.data;
	size_t left = key.len;
	uint64_t h = set->seed ^ key.len;
	for (; left >= 8; p += 8, left -= 8) {
		uint64_t v;
		memcpy(&v, p, 8);
		h = mix(h ^ v, UINT64_C(0x9E3779B97F4A7C15));
	}
	uint64_t v = 0;
	if (left > 0)
		memcpy(&v, p, left);
	return mix(h ^ v ^ (set->seed >> 32), UINT64_C(0xD6E8FEB86659FD93));
}

/* The bucket of a hash: with the lowest bits of the next power of two, or one less if that bucket
 * has not been split off yet. */
static size_t bucket_of(const struct interval_set *set, uint64_t hash)
{
	uint64_t mask = UINT64_MAX >> __builtin_clzll((uint64_t)set->n_buckets);
	size_t i = hash & mask;
	return i < set->n_buckets ? i : i & (mask >> 1);
}

static struct interval_node *find_key(
	const struct interval_set *set, struct store_bytes key, uint64_t hash)
{
	if (set->n_keys == 0)
		return NULL;
	struct interval_node *n = set->buckets[bucket_of(set, hash)];
	while (n != NULL && (n->key.hash != hash || bytes_cmp(first(n)->from, key) != 0))
		n = n->key.next;
	return n;
}

/* Chains of one bucket are spread anew over it and its twin. */
static void redistribute(struct interval_set *set, struct interval_node *chain)
{
	while (chain != NULL) {
		struct interval_node *n = chain;
		chain = n->key.next;
		struct interval_node **b = &set->buckets[bucket_of(set, n->key.hash)];
		n->key.next = *b;
		*b = n;
	}
}

static void grow(struct interval_set *set)
{
	if (set->n_buckets == set->cap) {
		set->cap = set->cap == 0 ? BUCKETS_MIN : set->cap * 2;
		set->buckets = xrealloc(set->buckets, set->cap * sizeof(set->buckets[0]));
	}
	if (set->n_buckets == 0) {
		memset(set->buckets, 0, BUCKETS_MIN * sizeof(set->buckets[0]));
		set->n_buckets = BUCKETS_MIN;
		return;
	}
	size_t highest = SIZE_MAX >> (__builtin_clzll((uint64_t)set->n_buckets) + 1);
	size_t twin = set->n_buckets & highest;
	struct interval_node *chain = set->buckets[twin];
	set->buckets[twin] = NULL;
	set->buckets[set->n_buckets++] = NULL;
	redistribute(set, chain);
}

static void shrink(struct interval_set *set)
{
	struct interval_node *chain = set->buckets[--set->n_buckets];
	redistribute(set, chain);
	if (set->cap > BUCKETS_MIN && set->n_buckets <= set->cap / 4) {
		set->cap /= 2;
		set->buckets = xrealloc(set->buckets, set->cap * sizeof(set->buckets[0]));
	}
}

static void add_key(struct interval_set *set, struct interval_member *m)
{
	uint64_t hash = hash_key(set, m->from);
	struct interval_node *n = find_key(set, m->from, hash);
	if (n != NULL) {
		list_push_back(&n->members, &m->link);
		m->node = n;
		return;
	}
	if (set->n_keys >= set->n_buckets)
		grow(set);
	n = node_new(m);
	n->key.hash = hash;
	struct interval_node **b = &set->buckets[bucket_of(set, hash)];
	n->key.next = *b;
	*b = n;
	set->n_keys++;
}

static void remove_key_node(struct interval_set *set, struct interval_node *n)
{
	struct interval_node **at = &set->buckets[bucket_of(set, n->key.hash)];
	while (*at != n)
		at = &(*at)->key.next;
	*at = n->key.next;
	set->n_keys--;
	if (set->n_buckets > BUCKETS_MIN && set->n_keys < set->n_buckets / 2)
		shrink(set);
}

/* ---- ranges ---- */

static int range_cmp(struct store_bytes from, struct store_bytes to, const struct interval_node *n)
{
	int rc = bytes_cmp(from, first(n)->from);
	return rc != 0 ? rc : end_cmp(to, first(n)->to);
}

static void update_max(struct interval_node *t)
{
	struct interval_node *max = t;
	struct interval_node *const children[] = {t->range.left, t->range.right};
	for (size_t i = 0; i < ARRAY_LEN(children); i++) {
		struct interval_node *c = children[i];
		if (c != NULL && end_cmp(first(c->range.max)->to, first(max)->to) > 0)
			max = c->range.max;
	}
	t->range.max = max;
}

static struct interval_node *rotate_right(struct interval_node *t)
{
	struct interval_node *l = t->range.left;
	t->range.left = l->range.right;
	l->range.right = t;
	update_max(t);
	return l;
}

static struct interval_node *rotate_left(struct interval_node *t)
{
	struct interval_node *r = t->range.right;
	t->range.right = r->range.left;
	r->range.left = t;
	update_max(t);
	return r;
}

static struct interval_node *treap_insert(struct interval_node *t, struct interval_node *n)
{
	if (t == NULL)
		return n;
	if (range_cmp(first(n)->from, first(n)->to, t) < 0) {
		t->range.left = treap_insert(t->range.left, n);
		if (t->range.left->range.priority > t->range.priority)
			t = rotate_right(t);
	} else {
		t->range.right = treap_insert(t->range.right, n);
		if (t->range.right->range.priority > t->range.priority)
			t = rotate_left(t);
	}
	update_max(t);
	return t;
}

static struct interval_node *treap_join(struct interval_node *a, struct interval_node *b)
{
	if (a == NULL || b == NULL)
		return a != NULL ? a : b;
	if (a->range.priority > b->range.priority) {
		a->range.right = treap_join(a->range.right, b);
		update_max(a);
		return a;
	}
	b->range.left = treap_join(a, b->range.left);
	update_max(b);
	return b;
}

static struct interval_node *treap_remove(struct interval_node *t, struct interval_node *n)
{
	ASSERT(t != NULL);
	if (t == n)
		return treap_join(t->range.left, t->range.right);
	if (range_cmp(first(n)->from, first(n)->to, t) < 0)
		t->range.left = treap_remove(t->range.left, n);
	else
		t->range.right = treap_remove(t->range.right, n);
	update_max(t);
	return t;
}

static uint32_t next_priority(struct interval_set *set)
{
	set->random ^= set->random << 13;
	set->random ^= set->random >> 7;
	set->random ^= set->random << 17;
	return (uint32_t)(set->random >> 32);
}

static void add_range(struct interval_set *set, struct interval_member *m)
{
	struct interval_node *t = set->root;
	while (t != NULL) {
		int rc = range_cmp(m->from, m->to, t);
		if (rc == 0) {
			list_push_back(&t->members, &m->link);
			m->node = t;
			return;
		}
		t = rc < 0 ? t->range.left : t->range.right;
	}
	struct interval_node *n = node_new(m);
	n->range.max = n;
	n->range.priority = next_priority(set);
	set->root = treap_insert(set->root, n);
}

/* ---- both ---- */

void interval_add(struct interval_set *set, struct interval_member *m)
{
	OBJ_CHECK(set, INTERVAL_SET_MAGIC);
	ASSERT(m->node == NULL);
	if (m->to.data == NULL)
		add_key(set, m);
	else
		add_range(set, m);
	set->n_members++;
}

void interval_remove(struct interval_set *set, struct interval_member *m)
{
	OBJ_CHECK(set, INTERVAL_SET_MAGIC);
	struct interval_node *n = m->node;
	if (n == NULL)
		return;
	ASSERT(set->n_members > 0);
	set->n_members--;
	/* The last one is needed to find the node. */
	bool is_last = n->members.next == n->members.prev;
	if (is_last && m->to.data == NULL)
		remove_key_node(set, n);
	else if (is_last)
		set->root = treap_remove(set->root, n);
	list_remove(&m->link);
	m->node = NULL;
	if (is_last)
		mem_free(&type_node, n);
}

struct list *interval_node_members(struct interval_node *n)
{
	return &n->members;
}

uint32_t *interval_node_mark(struct interval_node *n)
{
	return &n->mark;
}

struct matching {
	struct store_bytes key;
	void (*fn)(struct interval_node *n, void *arg);
	void *arg;
};

static void match_ranges(struct interval_node *t, const struct matching *w)
{
	while (t != NULL) {
		struct store_bytes last = first(t->range.max)->to;
		if (last.len > 0 && bytes_cmp(w->key, last) >= 0)
			return;
		match_ranges(t->range.left, w);
		const struct interval_member *m = first(t);
		if (bytes_cmp(w->key, m->from) < 0)
			return;
		if (m->to.len == 0 || bytes_cmp(w->key, m->to) < 0)
			w->fn(t, w->arg);
		t = t->range.right;
	}
}

void interval_match_nodes(const struct interval_set *set, struct store_bytes key,
	void (*fn)(struct interval_node *n, void *arg), void *arg)
{
	OBJ_CHECK(set, INTERVAL_SET_MAGIC);
	const struct matching w = {.key = key, .fn = fn, .arg = arg};
	if (set->n_keys > 0) {
		struct interval_node *n = find_key(set, key, hash_key(set, key));
		if (n != NULL)
			fn(n, arg);
	}
	match_ranges(set->root, &w);
}

struct each_member {
	void (*fn)(struct interval_member *m, void *arg);
	void *arg;
};

static void on_node(struct interval_node *n, void *arg)
{
	const struct each_member *e = arg;
	list_for_each (it, &n->members)
		e->fn(list_entry(it, struct interval_member, link), e->arg);
}

void interval_match(const struct interval_set *set, struct store_bytes key,
	void (*fn)(struct interval_member *m, void *arg), void *arg)
{
	struct each_member e = {.fn = fn, .arg = arg};
	interval_match_nodes(set, key, on_node, &e);
}
