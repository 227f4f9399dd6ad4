/* SPDX-License-Identifier: PostgreSQL */
/*
 * The tree of subscriptions, see topic.h.
 *
 *     root --"a"--> node --"+"--> node --"#"--> node
 *
 * A node is found by hashing its parent's address and its level's text; its memory is the level's
 * text and seven words. A node lives while it has subscriptions or children.
 *
 * Invariants: (1) n_children of a node is the number of nodes whose parent it is; (2) a node other
 * than the root has a subscription or a child; (3) the depth is at most max_topic_levels, which
 * bounds the recursion of matching.
 */
#include "config.h"

#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "brokerd/topic.h"
#include "common/base/mem.h"

#define TREE_MAGIC 0x746f7074u
#define TREE_BUCKETS_MIN 64

struct topic_node {
	struct topic_node *chain; /* in the bucket */
	struct topic_node *parent;
	struct list subs;
	uint64_t hash;
	uint32_t n_children;
	uint32_t level_len;
	char level[];
};

struct topic_tree {
	uint32_t magic;
	struct topic_node *root;
	struct topic_node **buckets;
	size_t n_buckets; /* power of two */
	size_t n_nodes;   /* without the root */
	size_t n_subs;
};

MEM_TYPE(mem_tree, "topic tree");
MEM_TYPE(mem_node, "topic node");
MEM_TYPE(mem_sub, "subscription");

/* --- names and filters --- */

static const char *length_error(const char *s, size_t len, const struct topic_limits *limits)
{
	if (len == 0)
		return "it is empty";
	if (len > limits->max_bytes)
		return "it is longer than brokerd.max_topic_bytes";
	size_t levels = 1;
	for (size_t i = 0; i < len; i++)
		levels += s[i] == '/';
	return levels > limits->max_levels ? "it has more levels than brokerd.max_topic_levels"
					   : NULL;
}

const char *topic_name_error(const char *name, size_t len_bytes, const struct topic_limits *limits)
{
	const char *why = length_error(name, len_bytes, limits);
	if (why == NULL && name[0] == '$')
		why = "topics that begin with $ belong to the broker";
	return why;
}

const char *topic_filter_error(
	const char *filter, size_t len_bytes, const struct topic_limits *limits)
{
	const char *why = length_error(filter, len_bytes, limits);
	for (size_t i = 0; why == NULL && i < len_bytes; i++) {
		bool starts = i == 0 || filter[i - 1] == '/';
		bool last = i + 1 == len_bytes;
		if (filter[i] == '#' && (!starts || !last))
			why = "# stands alone in the last level or not at all";
		else if (filter[i] == '+' && (!starts || !(last || filter[i + 1] == '/')))
			why = "+ stands alone in its level or not at all";
	}
	return why;
}

bool topic_filter_is_shared(const char *filter, size_t len_bytes)
{
	return len_bytes >= 6 && memcmp(filter, "$share", 6) == 0 &&
	       (len_bytes == 6 || filter[6] == '/');
}

/* --- SipHash-1-3 (Aumasson, Bernstein), keyed per process --- */

#define ROTL(x, b) (((x) << (b)) | ((x) >> (64 - (b))))

static void sip_round(uint64_t v[4])
{
	v[0] += v[1];
	v[2] += v[3];
	v[1] = ROTL(v[1], 13) ^ v[0];
	v[3] = ROTL(v[3], 16) ^ v[2];
	v[0] = ROTL(v[0], 32);
	v[2] += v[1];
	v[0] += v[3];
	v[1] = ROTL(v[1], 17) ^ v[2];
	v[3] = ROTL(v[3], 21) ^ v[0];
	v[2] = ROTL(v[2], 32);
}

static const uint64_t *hash_key(void)
{
	static uint64_t key[2];
	static bool ready;
	if (!ready) {
		/* Cannot fail for so few bytes once the system is up. */
		ASSERT(getrandom(key, sizeof(key), 0) == (ssize_t)sizeof(key));
		ready = true;
	}
	return key;
}

uint64_t topic_hash(const void *data, size_t len_bytes, uint64_t seed)
{
	const uint64_t *key = hash_key();
	uint64_t k0 = key[0] ^ seed, k1 = key[1];
	uint64_t v[4] = {k0 ^ 0x736f6d6570736575u, k1 ^ 0x646f72616e646f6du,
		k0 ^ 0x6c7967656e657261u, k1 ^ 0x7465646279746573u};
	const uint8_t *p = data;
	size_t left = len_bytes;
	uint64_t m = 0;
	for (; left >= 8; p += 8, left -= 8) {
		memcpy(&m, p, 8);
		v[3] ^= m;
		sip_round(v);
		v[0] ^= m;
	}
	m = (uint64_t)len_bytes << 56;
	for (size_t i = 0; i < left; i++)
		m |= (uint64_t)p[i] << (8 * i);
	v[3] ^= m;
	sip_round(v);
	v[0] ^= m;
	v[2] ^= 0xff;
	for (int i = 0; i < 3; i++)
		sip_round(v);
	return v[0] ^ v[1] ^ v[2] ^ v[3];
}

/* --- nodes --- */

static struct topic_node *node_find(const struct topic_tree *t, const struct topic_node *parent,
	const char *level, size_t len, uint64_t *ret_hash)
{
	uint64_t hash = topic_hash(level, len, (uint64_t)(uintptr_t)parent);
	*ret_hash = hash;
	for (struct topic_node *n = t->buckets[hash & (t->n_buckets - 1)]; n != NULL;
		n = n->chain) {
		if (n->hash == hash && n->parent == parent && n->level_len == len &&
			memcmp(n->level, level, len) == 0)
			return n;
	}
	return NULL;
}

static void tree_resize(struct topic_tree *t, size_t n_buckets)
{
	struct topic_node **buckets = xcalloc(n_buckets, sizeof(*buckets));
	for (size_t i = 0; i < t->n_buckets; i++) {
		for (struct topic_node *n = t->buckets[i], *next; n != NULL; n = next) {
			next = n->chain;
			n->chain = buckets[n->hash & (n_buckets - 1)];
			buckets[n->hash & (n_buckets - 1)] = n;
		}
	}
	free(t->buckets);
	t->buckets = buckets;
	t->n_buckets = n_buckets;
}

static struct topic_node *node_new(struct topic_node *parent, const char *level, size_t len)
{
	struct topic_node *n = mem_new(&mem_node, sizeof(*n) + len);
	n->parent = parent;
	list_init(&n->subs);
	n->level_len = (uint32_t)len;
	if (len > 0)
		memcpy(n->level, level, len);
	return n;
}

static struct topic_node *node_get(
	struct topic_tree *t, struct topic_node *parent, const char *level, size_t len)
{
	uint64_t hash;
	struct topic_node *n = node_find(t, parent, level, len, &hash);
	if (n != NULL)
		return n;
	if (t->n_nodes >= t->n_buckets)
		tree_resize(t, t->n_buckets * 2);
	n = node_new(parent, level, len);
	n->hash = hash;
	n->chain = t->buckets[hash & (t->n_buckets - 1)];
	t->buckets[hash & (t->n_buckets - 1)] = n;
	parent->n_children++;
	t->n_nodes++;
	return n;
}

/* Frees the node and its ancestors as far as nobody needs them (invariant 2). */
static void node_release(struct topic_tree *t, struct topic_node *n)
{
	while (n != t->root && n->n_children == 0 && list_empty(&n->subs)) {
		struct topic_node *parent = n->parent;
		struct topic_node **at = &t->buckets[n->hash & (t->n_buckets - 1)];
		while (*at != n)
			at = &(*at)->chain;
		*at = n->chain;
		ASSERT(parent->n_children > 0 && t->n_nodes > 0);
		parent->n_children--;
		t->n_nodes--;
		mem_free(&mem_node, n);
		n = parent;
	}
	if (t->n_buckets > TREE_BUCKETS_MIN && t->n_nodes < t->n_buckets / 8)
		tree_resize(t, t->n_buckets / 2);
}

struct topic_tree *topic_tree_new(void)
{
	struct topic_tree *t = mem_new(&mem_tree, sizeof(*t));
	t->magic = TREE_MAGIC;
	t->root = node_new(NULL, NULL, 0);
	tree_resize(t, TREE_BUCKETS_MIN);
	return t;
}

void topic_tree_free(struct topic_tree **t)
{
	if (*t == NULL)
		return;
	OBJ_CHECK(*t, TREE_MAGIC);
	ASSERT((*t)->n_subs == 0 && (*t)->n_nodes == 0);
	mem_free(&mem_node, (*t)->root);
	free((*t)->buckets);
	mem_free(&mem_tree, *t);
	*t = NULL;
}

/* The length of the first level of s. */
static size_t level_length(const char *s, size_t len)
{
	const char *slash = len > 0 ? memchr(s, '/', len) : NULL;
	return slash != NULL ? (size_t)(slash - s) : len;
}

/* Along both lists at once, so that the shorter one decides how long it takes: a client with many
 * subscriptions, or a filter with many clients, is usual; both at once is not. */
static struct topic_sub *find_of_owner(const struct topic_node *node, const struct list *owner_subs)
{
	const struct list *n = node->subs.next, *o = owner_subs->next;
	for (; n != &node->subs && o != owner_subs; n = n->next, o = o->next) {
		struct topic_sub *by_owner = list_entry(o, struct topic_sub, in_owner);
		struct topic_sub *by_node = list_entry(n, struct topic_sub, in_node);
		if (by_owner->node == node)
			return by_owner;
		if (by_node->owner_subs == owner_subs)
			return by_node;
	}
	return NULL;
}

struct topic_sub *topic_tree_add(struct topic_tree *t, const char *filter, size_t len_bytes,
	void *owner, struct list *owner_subs, bool *ret_new)
{
	OBJ_CHECK(t, TREE_MAGIC);
	ASSERT(len_bytes > 0);
	struct topic_node *node = t->root;
	for (size_t left = len_bytes;;) {
		size_t len = level_length(filter, left);
		node = node_get(t, node, filter, len);
		if (len == left)
			break;
		filter += len + 1;
		left -= len + 1;
	}
	struct topic_sub *sub = list_empty(&node->subs) ? NULL : find_of_owner(node, owner_subs);
	*ret_new = sub == NULL;
	if (sub != NULL)
		return sub;
	sub = mem_new(&mem_sub, sizeof(*sub));
	sub->node = node;
	sub->owner_subs = owner_subs;
	sub->owner = owner;
	list_push_back(&node->subs, &sub->in_node);
	list_push_back(owner_subs, &sub->in_owner);
	t->n_subs++;
	return sub;
}

struct topic_sub *topic_tree_find(
	struct topic_tree *t, const char *filter, size_t len_bytes, struct list *owner_subs)
{
	OBJ_CHECK(t, TREE_MAGIC);
	const struct topic_node *node = t->root;
	for (size_t left = len_bytes; node != NULL;) {
		size_t len = level_length(filter, left);
		uint64_t hash;
		node = node_find(t, node, filter, len, &hash);
		if (len == left)
			break;
		filter += len + 1;
		left -= len + 1;
	}
	return node != NULL ? find_of_owner(node, owner_subs) : NULL;
}

void topic_tree_remove(struct topic_tree *t, struct topic_sub *sub)
{
	OBJ_CHECK(t, TREE_MAGIC);
	struct topic_node *node = sub->node;
	list_remove(&sub->in_node);
	list_remove(&sub->in_owner);
	mem_free(&mem_sub, sub);
	ASSERT(t->n_subs > 0);
	t->n_subs--;
	node_release(t, node);
}

/* --- matching --- */

struct match {
	struct topic_tree *t;
	void (*fn)(struct topic_sub *sub, void *arg); /* NULL: the first one is enough */
	void *arg;
	bool found;
};

static void give(struct match *m, const struct topic_node *node)
{
	m->found = m->found || !list_empty(&node->subs);
	if (m->fn == NULL)
		return;
	list_for_each (it, &node->subs)
		m->fn(list_entry(it, struct topic_sub, in_node), m->arg);
}

/* s: what is left of the name below node; depth 0: the whole name. s == NULL: the name has ended.
 */
static void match_below(struct match *m, const struct topic_node *node, const char *s, size_t left)
{
	if (node->n_children == 0 || (m->fn == NULL && m->found))
		return;
	uint64_t hash;
	/* MQTT-4.7.2-1: a leading wildcard does not match names that begin with $. */
	bool wild = node != m->t->root || left == 0 || s[0] != '$';
	const struct topic_node *n = wild ? node_find(m->t, node, "#", 1, &hash) : NULL;
	if (n != NULL)
		give(m, n);
	if (s == NULL)
		return;
	size_t len = level_length(s, left);
	const char *rest = len < left ? s + len + 1 : NULL;
	size_t rest_len = len < left ? left - len - 1 : 0;
	const struct topic_node *next[2] = {node_find(m->t, node, s, len, &hash),
		wild ? node_find(m->t, node, "+", 1, &hash) : NULL};
	for (size_t i = 0; i < 2; i++) {
		if (next[i] == NULL)
			continue;
		if (rest == NULL)
			give(m, next[i]);
		match_below(m, next[i], rest, rest_len);
	}
}

void topic_tree_match(struct topic_tree *t, const char *name, size_t len_bytes,
	void (*fn)(struct topic_sub *sub, void *arg), void *arg)
{
	OBJ_CHECK(t, TREE_MAGIC);
	struct match m = {.t = t, .fn = fn, .arg = arg};
	match_below(&m, t->root, name, len_bytes);
}

bool topic_tree_matches(struct topic_tree *t, const char *name, size_t len_bytes)
{
	OBJ_CHECK(t, TREE_MAGIC);
	struct match m = {.t = t};
	match_below(&m, t->root, name, len_bytes);
	return m.found;
}

char *topic_sub_filter(const struct topic_sub *sub)
{
	size_t len = 0;
	for (const struct topic_node *n = sub->node; n->parent != NULL; n = n->parent)
		len += n->level_len + 1;
	char *text = xmalloc(len);
	char *end = text + len - 1;
	*end = '\0';
	for (const struct topic_node *n = sub->node; n->parent != NULL; n = n->parent) {
		end -= n->level_len;
		memcpy(end, n->level, n->level_len);
		if (end > text)
			*--end = '/';
	}
	return text;
}

size_t topic_tree_nodes(const struct topic_tree *t)
{
	return t->n_nodes;
}

size_t topic_tree_subs(const struct topic_tree *t)
{
	return t->n_subs;
}
