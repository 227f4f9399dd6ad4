/* SPDX-License-Identifier: PostgreSQL */
/*
 * No key may be put twice in a Txn, nor put and deleted, as far as etcd looks (checkIntervals):
 *
 *   - two puts of a key on one level or in two of its nested Txns; the two branches of one nested
 *     Txn exclude each other and may both put it
 *   - a put, on this level or nested, of a key that this level deletes
 *   - a put in a nested Txn of a key that an earlier one deletes. Not: that a later one deletes
 *
 * A range_end of a lone zero byte is taken literally here, so a deletion of all keys from one on
 * meets nothing. The store can do with what slips through.
 *
 * On each level every put and deletion has an order: this level's deletions 0, those and the puts
 * of its i-th op, if that is a Txn, i + 1, its own puts beyond all. A put meets the deletions of
 * lower order. Sorted by key, one pass over puts and deletions does; the farthest end of the
 * deletions so far is kept by order in a Fenwick tree. So a request of a few hundred thousand
 * operations costs what sorting them costs.
 */
#include "config.h"

#include <stdlib.h>
#include <string.h>

#include "common/base/mem.h"
#include "watchd/keyindex.h"
#include "watchd/kv_int.h"

#define ORDER_LAST UINT32_MAX

struct put {
	struct store_bytes key;
	uint32_t order;
};

struct span {
	struct store_bytes from, to; /* to: not part of it, unless from == to, a single key */
	bool single;
	uint32_t order;
};

struct overlaps {
	struct put *puts;
	struct span *spans;
	size_t n_puts, puts_cap, n_spans, spans_cap;
};

static int compare(struct store_bytes a, struct store_bytes b)
{
	return keyindex_compare(a.data, a.len, b.data, b.len);
}

static void add_put(struct overlaps *o, struct store_bytes key)
{
	if (o->n_puts == o->puts_cap) {
		o->puts_cap = o->puts_cap == 0 ? 8 : o->puts_cap * 2;
		o->puts = xrealloc(o->puts, o->puts_cap * sizeof(o->puts[0]));
	}
	o->puts[o->n_puts++] = (struct put){.key = key, .order = ORDER_LAST};
}

static void add_span(struct overlaps *o, const Etcdserverpb__DeleteRangeRequest *r)
{
	bool single = kv_is_single(r->range_end);
	struct store_bytes from = kv_bytes(r->key), to = single ? from : kv_bytes(r->range_end);
	if (!single && compare(from, to) >= 0)
		return;
	if (o->n_spans == o->spans_cap) {
		o->spans_cap = o->spans_cap == 0 ? 8 : o->spans_cap * 2;
		o->spans = xrealloc(o->spans, o->spans_cap * sizeof(o->spans[0]));
	}
	o->spans[o->n_spans++] =
		(struct span){.from = from, .to = to, .single = single, .order = 0};
}

static int by_key(const void *a, const void *b)
{
	const struct put *x = a, *y = b;
	int c = compare(x->key, y->key);
	return c != 0 ? c : (x->order > y->order) - (x->order < y->order);
}

static int by_from(const void *a, const void *b)
{
	return compare(((const struct span *)a)->from, ((const struct span *)b)->from);
}

/* Whether span a ends behind b; NULL ends before everything. */
static bool ends_later(const struct span *a, const struct span *b)
{
	if (b == NULL)
		return true;
	int c = compare(a->to, b->to);
	return c > 0 || (c == 0 && a->single && !b->single);
}

static bool reaches(const struct span *s, struct store_bytes key)
{
	int c = compare(key, s->to);
	return c < 0 || (c == 0 && s->single);
}

/* tree[i]: the span that ends last among orders i - lowbit(i) .. i - 1. */
static void tree_add(const struct span **tree, size_t orders, const struct span *s)
{
	for (size_t i = s->order + 1; i <= orders; i += i & -i)
		if (ends_later(s, tree[i]))
			tree[i] = s;
}

/* A span of an order below `order` that reaches key? */
static bool tree_meets(
	const struct span *const *tree, size_t orders, uint32_t order, struct store_bytes key)
{
	for (size_t i = order < orders ? order : orders; i > 0; i -= i & -i)
		if (tree[i] != NULL && reaches(tree[i], key))
			return true;
	return false;
}

/* Sorts the puts from first_put on and drops those that come twice from one nested Txn. */
static bool puts_differ(struct overlaps *o, size_t first_put)
{
	size_t n = first_put;
	if (o->n_puts - first_put > 1)
		qsort(&o->puts[first_put], o->n_puts - first_put, sizeof(o->puts[0]), by_key);
	for (size_t i = first_put; i < o->n_puts; i++) {
		if (n > first_put && compare(o->puts[n - 1].key, o->puts[i].key) == 0) {
			if (o->puts[n - 1].order != o->puts[i].order ||
				o->puts[i].order == ORDER_LAST)
				return false;
			continue;
		}
		o->puts[n++] = o->puts[i];
	}
	o->n_puts = n;
	return true;
}

static bool puts_meet_no_span(struct overlaps *o, size_t n_ops, size_t first_put, size_t first_span)
{
	const size_t orders = n_ops + 1; /* of deletions */
	const struct span **tree;
	size_t next = first_span;
	bool fine = true;
	if (o->n_spans == first_span || o->n_puts == first_put)
		return true;
	tree = xcalloc(orders + 1, sizeof(*tree));
	if (o->n_spans - first_span > 1)
		qsort(&o->spans[first_span], o->n_spans - first_span, sizeof(o->spans[0]), by_from);
	for (size_t i = first_put; i < o->n_puts && fine; i++) {
		const struct put *p = &o->puts[i];
		while (next < o->n_spans && compare(o->spans[next].from, p->key) <= 0)
			tree_add(tree, orders, &o->spans[next++]);
		fine = !tree_meets(tree, orders, p->order, p->key);
	}
	free(tree);
	return fine;
}

static bool check_level(struct overlaps *o, Etcdserverpb__RequestOp *const *ops, size_t n);

/* One nested Txn, the i-th op: both branches, whose puts and deletions then have its order. */
static bool check_nested(struct overlaps *o, const Etcdserverpb__TxnRequest *r, size_t i)
{
	size_t first_put = o->n_puts, first_span = o->n_spans;
	if (!check_level(o, r->success, r->n_success) || !check_level(o, r->failure, r->n_failure))
		return false;
	for (size_t k = first_put; k < o->n_puts; k++)
		o->puts[k].order = (uint32_t)i + 1;
	for (size_t k = first_span; k < o->n_spans; k++)
		o->spans[k].order = (uint32_t)i + 1;
	return true;
}

static bool check_level(struct overlaps *o, Etcdserverpb__RequestOp *const *ops, size_t n)
{
	size_t first_put = o->n_puts, first_span = o->n_spans;
	for (size_t i = 0; i < n; i++)
		if (ops[i]->request_case == ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_TXN &&
			!check_nested(o, ops[i]->request_txn, i))
			return false;
	for (size_t i = 0; i < n; i++) {
		if (ops[i]->request_case == ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_PUT)
			add_put(o, kv_bytes(ops[i]->request_put->key));
		if (ops[i]->request_case == ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_DELETE_RANGE)
			add_span(o, ops[i]->request_delete_range);
	}
	return puts_differ(o, first_put) && puts_meet_no_span(o, n, first_put, first_span);
}

enum etcd_error kv_check_overlaps(const Etcdserverpb__TxnRequest *r)
{
	struct overlaps success = {.puts = NULL}, failure = {.puts = NULL};
	bool fine = check_level(&success, r->success, r->n_success) &&
		    check_level(&failure, r->failure, r->n_failure);
	free(success.puts);
	free(success.spans);
	free(failure.puts);
	free(failure.spans);
	return fine ? ETCD_OK : ETCD_DUPLICATE_KEY;
}
