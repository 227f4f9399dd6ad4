/* SPDX-License-Identifier: PostgreSQL */
/*
 * The B+tree behind keyindex.h. Leaves hold pointers to keys and are chained; inner nodes hold
 * children and between them separators, which are owned copies cut as short as still separates, so
 * that they outlive the keys they were made of.
 *
 * Leaves and inner nodes begin with the same part, struct keyindex_node, whose key[] are a leaf's
 * keys or an inner node's separators: one search and one way of keeping hints serve both.
 *
 * A node that is full splits; where the new key would be its last one, it keeps most of what it
 * has, so that keys that come in rising order leave well filled nodes behind. A node that has
 * become too small shares with a neighbour or is joined with it.
 */
#include "config.h"

#include <string.h>

#include "common/base/mem.h"
#include "watchd/keyindex.h"

#define FANOUT KEYINDEX_FANOUT
#define JOIN_AT (FANOUT * 3 / 4) /* two neighbours with no more than this become one */
#define DEPTH_MAX 16             /* KEYINDEX_MIN to this power is beyond any memory */

MEM_TYPE(mem_keyindex, "keyindex");
MEM_TYPE(mem_node, "keyindex_node");
MEM_TYPE(mem_key, "keyindex_key");

struct keyindex_node {
	uint16_t n_keys; /* of an inner node: its children less one */
	bool is_leaf;
	uint32_t skip;
	uint64_t hint[FANOUT];
	struct keyindex_key *key[FANOUT];
};

struct leaf {
	struct keyindex_node node;
	struct leaf *next;
};

struct inner {
	struct keyindex_node node;
	struct keyindex_node *child[FANOUT];
};

struct keyindex {
	struct keyindex_node *root;
	size_t count, bytes;
};

/* The way from the root to a leaf: in path[i].node the child path[i].at was taken. */
struct step {
	struct keyindex_node *node;
	size_t at;
};

struct path {
	struct step step[DEPTH_MAX];
	size_t depth;
};

static struct leaf *leaf_of(struct keyindex_node *n)
{
	return (struct leaf *)n;
}

static struct inner *inner_of(struct keyindex_node *n)
{
	return (struct inner *)n;
}

static size_t node_size(bool is_leaf)
{
	return is_leaf ? sizeof(struct leaf) : sizeof(struct inner);
}

static struct keyindex_node *node_new(struct keyindex *ix, bool is_leaf)
{
	struct keyindex_node *n = mem_new(&mem_node, node_size(is_leaf));
	n->is_leaf = is_leaf;
	ix->bytes += node_size(is_leaf);
	return n;
}

static void node_free(struct keyindex *ix, struct keyindex_node *n)
{
	ix->bytes -= node_size(n->is_leaf);
	mem_free(&mem_node, n);
}

static struct keyindex_key *key_new(struct keyindex *ix, const void *bytes, size_t len)
{
	struct keyindex_key *k = mem_new(&mem_key, sizeof(*k) + len);
	k->len = (uint32_t)len;
	if (len > 0)
		memcpy(k->bytes, bytes, len);
	ix->bytes += sizeof(*k) + len;
	return k;
}

static void key_free(struct keyindex *ix, struct keyindex_key *k)
{
	ix->bytes -= sizeof(*k) + k->len;
	mem_free(&mem_key, k);
}

/* ---- comparing ---- */

int keyindex_compare(const void *a, size_t a_len, const void *b, size_t b_len)
{
	size_t n = a_len < b_len ? a_len : b_len;
	int c = n > 0 ? memcmp(a, b, n) : 0;
	return c != 0 ? c : (a_len > b_len) - (a_len < b_len);
}

/* The eight bytes behind the first `skip`, zeros behind the end. */
static uint64_t hint_of(const uint8_t *bytes, size_t len, size_t skip)
{
	uint8_t b[8] = {0};
	if (len >= skip + 8)
		memcpy(b, bytes + skip, 8);
	else if (len > skip)
		memcpy(b, bytes + skip, len - skip);
	uint64_t v;
	memcpy(&v, b, 8);
	return __builtin_bswap64(v);
}

static size_t common_prefix(const struct keyindex_key *a, const void *b, size_t b_len)
{
	size_t n = a->len < b_len ? a->len : b_len, i = 0;
	const uint8_t *p = b;
	while (i < n && a->bytes[i] == p[i])
		i++;
	return i;
}

/* Anew from the keys. */
static void set_hints(struct keyindex_node *n)
{
	if (n->n_keys == 0) {
		n->skip = 0;
		return;
	}
	const struct keyindex_key *last = n->key[n->n_keys - 1];
	n->skip = (uint32_t)common_prefix(n->key[0], last->bytes, last->len);
	for (size_t i = 0; i < n->n_keys; i++)
		n->hint[i] = hint_of(n->key[i]->bytes, n->key[i]->len, n->skip);
}

/* First of the hints lo..hi that is not below h. */
static size_t hint_bound(const uint64_t *hint, size_t lo, size_t hi, uint64_t h)
{
	while (lo < hi) {
		size_t mid = (lo + hi) / 2;
		if (hint[mid] < h)
			lo = mid + 1;
		else
			hi = mid;
	}
	return lo;
}

/* The same for a key whose first `skip` bytes are those of the node. For others it is anywhere, but
 * *ret_equal is right even then. */
static size_t hinted_bound(
	const struct keyindex_node *n, const uint8_t *key, size_t len, bool *ret_equal)
{
	*ret_equal = false;
	uint64_t h = hint_of(key, len, n->skip);
	size_t lo = hint_bound(n->hint, 0, n->n_keys, h);
	if (lo == n->n_keys || n->hint[lo] != h)
		return lo;
	size_t hi = lo + 1;
	if (hi < n->n_keys && n->hint[hi] == h)
		hi = h == UINT64_MAX ? n->n_keys : hint_bound(n->hint, hi, n->n_keys, h + 1);
	while (lo < hi) {
		size_t mid = (lo + hi) / 2;
		const struct keyindex_key *k = n->key[mid];
		int c = keyindex_compare(k->bytes, k->len, key, len);
		if (c == 0) {
			*ret_equal = true;
			return mid;
		}
		if (c < 0)
			lo = mid + 1;
		else
			hi = mid;
	}
	return lo;
}

/* Index of the first key not below the one asked for; *ret_equal: it is that one. */
static size_t node_bound(
	const struct keyindex_node *n, const uint8_t *key, size_t len, bool *ret_equal)
{
	if (n->n_keys > 0 && n->skip > 0) {
		size_t m = len < n->skip ? len : n->skip;
		int c = m > 0 ? memcmp(key, n->key[0]->bytes, m) : 0;
		if (c != 0 || len < n->skip) {
			*ret_equal = false;
			return c > 0 ? n->n_keys : 0;
		}
	}
	return hinted_bound(n, key, len, ret_equal);
}

/* ---- ways down ---- */

static size_t child_at(const struct keyindex_node *n, const uint8_t *key, size_t len)
{
	bool equal;
	size_t i = node_bound(n, key, len, &equal);
	return equal ? i + 1 : i;
}

static struct keyindex_node *descend(
	const struct keyindex *ix, const uint8_t *key, size_t len, struct path *path)
{
	struct keyindex_node *n = ix->root;
	if (path != NULL)
		path->depth = 0;
	while (!n->is_leaf) {
		size_t at = child_at(n, key, len);
		if (path != NULL) {
			ASSERT(path->depth < DEPTH_MAX);
			path->step[path->depth++] = (struct step){.node = n, .at = at};
		}
		n = inner_of(n)->child[at];
	}
	/* The search will want some of these lines, and which is known late. */
	for (size_t i = 0; i < FANOUT; i += 8)
		__builtin_prefetch(&n->hint[i]);
	return n;
}

/* A search for equality needs no look at what the keys have in common: one cache miss less. */
static struct keyindex_key *leaf_find(const struct keyindex_node *n, const void *key, size_t len)
{
	bool equal;
	size_t i = hinted_bound(n, key, len, &equal);
	return equal ? n->key[i] : NULL;
}

struct keyindex_key *keyindex_find(const struct keyindex *ix, const void *key, size_t len)
{
	return leaf_find(descend(ix, key, len, NULL), key, len);
}

struct keyindex_pos keyindex_seek(const struct keyindex *ix, const void *key, size_t len)
{
	bool equal;
	struct keyindex_node *n = descend(ix, key, len, NULL);
	return (struct keyindex_pos){.leaf = n, .i = node_bound(n, key, len, &equal)};
}

#define FETCH_AHEAD 8

struct keyindex_key *keyindex_next(struct keyindex_pos *pos)
{
	struct keyindex_node *n = pos->leaf;
	while (n != NULL && pos->i >= n->n_keys) {
		struct leaf *next = leaf_of(n)->next;
		n = next != NULL ? &next->node : NULL;
		pos->i = 0;
	}
	pos->leaf = n;
	if (n == NULL)
		return NULL;
	size_t i = pos->i++;
	if (i + FETCH_AHEAD < n->n_keys)
		__builtin_prefetch(n->key[i + FETCH_AHEAD]);
	/* What the value points to follows half-way: by now its key has come. The low bit may be
	 * the user's mark. */
	if (i + FETCH_AHEAD / 2 < n->n_keys)
		__builtin_prefetch(
			(const void *)(n->key[i + FETCH_AHEAD / 2]->value & ~(uintptr_t)1));
	return n->key[i];
}

/* ---- growing ---- */

static void put_key_at(struct keyindex_node *n, size_t i, struct keyindex_key *k)
{
	ASSERT(n->n_keys < FANOUT && i <= n->n_keys);
	memmove(&n->key[i + 1], &n->key[i], (n->n_keys - i) * sizeof(n->key[0]));
	memmove(&n->hint[i + 1], &n->hint[i], (n->n_keys - i) * sizeof(n->hint[0]));
	n->key[i] = k;
	n->n_keys++;
	const struct keyindex_key *other = n->key[i == 0 ? n->n_keys - 1 : 0];
	if (n->n_keys == 1 || common_prefix(other, k->bytes, k->len) < n->skip)
		set_hints(n);
	else
		n->hint[i] = hint_of(k->bytes, k->len, n->skip);
}

static void drop_key_at(struct keyindex_node *n, size_t i)
{
	ASSERT(i < n->n_keys);
	n->n_keys--;
	memmove(&n->key[i], &n->key[i + 1], (n->n_keys - i) * sizeof(n->key[0]));
	memmove(&n->hint[i], &n->hint[i + 1], (n->n_keys - i) * sizeof(n->hint[0]));
}

/* Between two keys, as short as it can be: what `right` has in common with `left` and one byte. */
static struct keyindex_key *separator_new(
	struct keyindex *ix, const struct keyindex_key *left, const struct keyindex_key *right)
{
	return key_new(ix, right->bytes, common_prefix(left, right->bytes, right->len) + 1);
}

static void grow_root(
	struct keyindex *ix, struct keyindex_key *separator, struct keyindex_node *right)
{
	struct keyindex_node *root = node_new(ix, false);
	inner_of(root)->child[0] = ix->root;
	inner_of(root)->child[1] = right;
	put_key_at(root, 0, separator);
	ix->root = root;
}

/* Moves what stands from `from` on into a new right neighbour; returns the separator. */
static struct keyindex_key *split_leaf(
	struct keyindex *ix, struct keyindex_node *n, size_t from, struct keyindex_node *right)
{
	right->n_keys = (uint16_t)(n->n_keys - from);
	memcpy(right->key, &n->key[from], right->n_keys * sizeof(n->key[0]));
	n->n_keys = (uint16_t)from;
	leaf_of(right)->next = leaf_of(n)->next;
	leaf_of(n)->next = leaf_of(right);
	set_hints(n);
	set_hints(right);
	return separator_new(ix, n->key[n->n_keys - 1], right->key[0]);
}

/* The separator in the middle goes up. */
static struct keyindex_key *split_inner(struct keyindex_node *n, struct keyindex_node *right)
{
	size_t up = n->n_keys / 2;
	struct keyindex_key *separator = n->key[up];
	right->n_keys = (uint16_t)(n->n_keys - up - 1);
	memcpy(right->key, &n->key[up + 1], right->n_keys * sizeof(n->key[0]));
	memcpy(inner_of(right)->child, &inner_of(n)->child[up + 1],
		(right->n_keys + 1u) * sizeof(inner_of(n)->child[0]));
	n->n_keys = (uint16_t)up;
	set_hints(n);
	set_hints(right);
	return separator;
}

/* Hangs `right` behind the child that the path took, splitting upwards. */
static void hang_right(struct keyindex *ix, struct path *path, struct keyindex_key *separator,
	struct keyindex_node *right)
{
	while (path->depth > 0) {
		struct step *s = &path->step[--path->depth];
		struct inner *in = inner_of(s->node);
		size_t at = s->at;
		/* One key less than children: FANOUT - 1 keys are FANOUT children. */
		struct keyindex_node *more = NULL;
		struct keyindex_key *up = NULL;
		if (s->node->n_keys == FANOUT - 1) {
			more = node_new(ix, false);
			up = split_inner(s->node, more);
			if (at > s->node->n_keys) {
				at -= s->node->n_keys + 1u;
				in = inner_of(more);
			}
		}
		memmove(&in->child[at + 2], &in->child[at + 1],
			(in->node.n_keys - at) * sizeof(in->child[0]));
		in->child[at + 1] = right;
		put_key_at(&in->node, at, separator);
		if (more == NULL)
			return;
		separator = up;
		right = more;
	}
	grow_root(ix, separator, right);
}

/* Splits a full leaf in which a key is to stand at *i; returns where it goes instead. */
static struct keyindex_node *make_room(struct keyindex *ix, struct path *path,
	struct keyindex_node *n, size_t *i, const void *key, size_t len)
{
	struct keyindex_node *right = node_new(ix, true);
	size_t from = *i == n->n_keys ? FANOUT - KEYINDEX_MIN : FANOUT / 2;
	struct keyindex_key *separator = split_leaf(ix, n, from, right);
	/* A key between the two halves may be on either side of the shortened separator. */
	bool goes_right = *i > from || (*i == from && keyindex_compare(key, len, separator->bytes,
							      separator->len) >= 0);
	hang_right(ix, path, separator, right);
	if (!goes_right)
		return n;
	*i -= from;
	return right;
}

struct keyindex_key *keyindex_insert(struct keyindex *ix, const void *key, size_t len)
{
	bool equal;
	struct path path;
	ASSERT(len > 0 && len < UINT32_MAX);
	struct keyindex_node *n = descend(ix, key, len, &path);
	struct keyindex_key *k = leaf_find(n, key, len);
	if (k != NULL)
		return k;
	size_t i = node_bound(n, key, len, &equal);
	if (n->n_keys == FANOUT)
		n = make_room(ix, &path, n, &i, key, len);
	k = key_new(ix, key, len);
	put_key_at(n, i, k);
	ix->count++;
	return k;
}

/* ---- shrinking ---- */

/* Two neighbours' keys (and children) in one row. */
struct row {
	struct keyindex_key *key[2 * FANOUT];
	struct keyindex_node *child[2 * FANOUT];
	size_t n_keys;
};

static void row_add(struct row *row, const struct keyindex_node *n)
{
	memcpy(&row->key[row->n_keys], n->key, n->n_keys * sizeof(n->key[0]));
	if (!n->is_leaf)
		memcpy(&row->child[row->n_keys], ((const struct inner *)n)->child,
			(n->n_keys + 1u) * sizeof(row->child[0]));
	row->n_keys += n->n_keys;
}

static void row_take(const struct row *row, size_t from, size_t n_keys, struct keyindex_node *n)
{
	memcpy(n->key, &row->key[from], n_keys * sizeof(n->key[0]));
	if (!n->is_leaf)
		memcpy(inner_of(n)->child, &row->child[from], (n_keys + 1) * sizeof(row->child[0]));
	n->n_keys = (uint16_t)n_keys;
	set_hints(n);
}

/* The right one's entries go to the left one; it and its separator leave the parent. */
static void join(struct keyindex *ix, struct inner *parent, size_t left_at)
{
	struct keyindex_node *left = parent->child[left_at], *right = parent->child[left_at + 1];
	struct keyindex_key *separator = parent->node.key[left_at];
	struct row row = {.n_keys = 0};
	row_add(&row, left);
	if (left->is_leaf) {
		leaf_of(left)->next = leaf_of(right)->next;
		key_free(ix, separator);
	} else {
		row.key[row.n_keys++] = separator;
	}
	row_add(&row, right);
	row_take(&row, 0, row.n_keys, left);
	drop_key_at(&parent->node, left_at);
	memmove(&parent->child[left_at + 1], &parent->child[left_at + 2],
		(parent->node.n_keys - left_at) * sizeof(parent->child[0]));
	node_free(ix, right);
}

static void replace_separator(struct inner *parent, size_t at, struct keyindex_key *separator)
{
	parent->node.key[at] = separator;
	set_hints(&parent->node);
}

/* Half of both for each. */
static void share(struct keyindex *ix, struct inner *parent, size_t left_at)
{
	struct keyindex_node *left = parent->child[left_at], *right = parent->child[left_at + 1];
	struct keyindex_key *separator = parent->node.key[left_at];
	struct row row = {.n_keys = 0};
	row_add(&row, left);
	if (!left->is_leaf)
		row.key[row.n_keys++] = separator;
	row_add(&row, right);
	size_t half = row.n_keys / 2;
	row_take(&row, 0, half, left);
	if (left->is_leaf) {
		row_take(&row, half, row.n_keys - half, right);
		key_free(ix, separator);
		separator = separator_new(ix, left->key[half - 1], right->key[0]);
	} else {
		row_take(&row, half + 1, row.n_keys - half - 1, right);
		separator = row.key[half];
	}
	replace_separator(parent, left_at, separator);
}

/* Mends nodes that have become too small, from the leaf upwards. */
static void mend(struct keyindex *ix, struct path *path, struct keyindex_node *n)
{
	while (path->depth > 0 && n->n_keys < KEYINDEX_MIN) {
		struct step *s = &path->step[--path->depth];
		struct inner *parent = inner_of(s->node);
		size_t left_at = s->at > 0 ? s->at - 1 : 0;
		size_t both = parent->child[left_at]->n_keys + parent->child[left_at + 1]->n_keys;
		if (both > JOIN_AT) {
			share(ix, parent, left_at);
			return;
		}
		join(ix, parent, left_at);
		n = s->node;
	}
	if (!ix->root->is_leaf && ix->root->n_keys == 0) {
		n = ix->root;
		ix->root = inner_of(n)->child[0];
		node_free(ix, n);
	}
}

void keyindex_remove(struct keyindex *ix, struct keyindex_key *k)
{
	bool equal;
	struct path path;
	struct keyindex_node *n = descend(ix, k->bytes, k->len, &path);
	size_t i = node_bound(n, k->bytes, k->len, &equal);
	ASSERT(equal && n->key[i] == k);
	drop_key_at(n, i);
	key_free(ix, k);
	ix->count--;
	mend(ix, &path, n);
}

/* ---- life ---- */

struct keyindex *keyindex_new(void)
{
	struct keyindex *ix = mem_new(&mem_keyindex, sizeof(*ix));
	ix->bytes = sizeof(*ix);
	ix->root = node_new(ix, true);
	return ix;
}

static void free_tree(struct keyindex *ix, struct keyindex_node *n)
{
	for (size_t i = 0; i < n->n_keys; i++)
		key_free(ix, n->key[i]);
	for (size_t i = 0; !n->is_leaf && i <= n->n_keys; i++)
		free_tree(ix, inner_of(n)->child[i]);
	node_free(ix, n);
}

void keyindex_free(struct keyindex **ix)
{
	if (*ix == NULL)
		return;
	free_tree(*ix, (*ix)->root);
	ASSERT((*ix)->bytes == sizeof(**ix));
	mem_free(&mem_keyindex, *ix);
	*ix = NULL;
}

size_t keyindex_count(const struct keyindex *ix)
{
	return ix->count;
}

size_t keyindex_bytes(const struct keyindex *ix)
{
	return ix->bytes;
}

/* ---- checking ---- */

struct check {
	const struct keyindex *ix;
	const struct leaf *leaf; /* the one that the chain says comes next */
	size_t count, leaf_depth;
};

static void check_order(const struct keyindex_key *a, const struct keyindex_key *b, bool may_equal)
{
	if (a == NULL || b == NULL)
		return;
	int c = keyindex_compare(a->bytes, a->len, b->bytes, b->len);
	ASSERT(c < 0 || (may_equal && c == 0));
}

static void check_node(struct check *c, struct keyindex_node *n, size_t depth,
	const struct keyindex_key *low, const struct keyindex_key *high)
{
	ASSERT(n == c->ix->root || n->n_keys >= KEYINDEX_MIN);
	ASSERT(n->n_keys <= FANOUT && (n->is_leaf || (n->n_keys >= 1 && n->n_keys < FANOUT)));
	for (size_t i = 0; i < n->n_keys; i++) {
		const struct keyindex_key *k = n->key[i];
		ASSERT(common_prefix(n->key[0], k->bytes, k->len) >= n->skip);
		ASSERT(n->hint[i] == hint_of(k->bytes, k->len, n->skip));
		check_order(i == 0 ? low : n->key[i - 1], k, i == 0);
	}
	check_order(n->n_keys > 0 ? n->key[n->n_keys - 1] : NULL, high, false);
	if (n->is_leaf) {
		ASSERT(c->leaf == NULL || c->leaf == leaf_of(n));
		ASSERT(c->leaf_depth == 0 || c->leaf_depth == depth);
		c->leaf_depth = depth;
		c->leaf = leaf_of(n)->next;
		c->count += n->n_keys;
		return;
	}
	for (size_t i = 0; i <= n->n_keys; i++)
		check_node(c, inner_of(n)->child[i], depth + 1, i == 0 ? low : n->key[i - 1],
			i == n->n_keys ? high : n->key[i]);
}

void keyindex_check(const struct keyindex *ix)
{
	struct check c = {.ix = ix};
	check_node(&c, ix->root, 1, NULL, NULL);
	ASSERT(c.leaf == NULL && c.count == ix->count);
}
