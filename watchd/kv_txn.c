/* SPDX-License-Identifier: PostgreSQL */
/*
 * Put, DeleteRange and Txn at the head; a Txn that only reads at the visible revision.
 *
 * A Txn in etcd's order (applierV3.Txn): the branches of the whole tree are chosen from the state
 * before it, in `path`; then all puts that will run are judged, then all ranges; then it runs, and
 * each operation sees what those before it did.
 *
 * The length of a nested Txn's response is known only behind it. It is written behind a gap that is
 * large enough for every length, and the gaps are closed in one pass at the end.
 */
#include "config.h"

#include <stdlib.h>
#include <string.h>

#include "common/base/mem.h"
#include "watchd/keyindex.h"
#include "watchd/kv_int.h"

/* ---- one operation ---- */

/* TxnResponse.responses and ResponseOp.response_txn, each with a length of up to five bytes. */
#define GAP 12

static enum etcd_error put_at(
	struct store *s, const Etcdserverpb__PutRequest *r, const struct kv_to *to)
{
	struct store_kv prev;
	struct store_bytes value = kv_bytes(r->value);
	int64_t lease = r->lease;
	bool has_prev = false;
	if (r->ignore_value || r->ignore_lease || r->prev_kv)
		has_prev = store_get(s, kv_bytes(r->key), STORE_HEAD, &prev);
	if ((r->ignore_value || r->ignore_lease) && !has_prev)
		return ETCD_KEY_NOT_FOUND;
	if (r->ignore_value)
		value = prev.value;
	if (r->ignore_lease)
		lease = prev.lease;
	store_put(s, kv_bytes(r->key), value, lease, NULL);

	/* PutResponse: header 1, prev_kv 2. */
	int64_t rev = store_head_rev(s);
	size_t kv_len = r->prev_kv && has_prev ? kv_encoded_len(&prev) : 0;
	size_t len = kv_header_len(to->h, rev) + (kv_len > 0 ? pb_message_len(kv_len) : 0);
	uint8_t *p = kv_response(to, KV_OP_PUT, len);
	if (p == NULL)
		return ETCD_TOO_MANY_REQUESTS;
	p = kv_write_header(p, to->h, rev);
	if (kv_len > 0)
		kv_write(pb_head(p, 2, kv_len), &prev);
	return ETCD_OK;
}

/* Versions that a DeleteRange found. */
struct found {
	const void **held;
	size_t n, cap;
	const void *few[8];
};

static void found_add(struct found *f, const void *held)
{
	if (f->n == f->cap) {
		const void **old = f->held;
		f->cap *= 2;
		f->held = xmalloc(f->cap * sizeof(f->held[0]));
		memcpy(f->held, old, f->n * sizeof(f->held[0]));
		if (old != f->few)
			free(old);
	}
	f->held[f->n++] = held;
}

static void find_range(const struct store *s, ProtobufCBinaryData key,
	ProtobufCBinaryData range_end, struct found *f)
{
	struct store_iter it;
	struct store_kv kv;
	if (kv_is_single(range_end)) {
		if (store_get(s, kv_bytes(key), STORE_HEAD, &kv))
			found_add(f, kv.held);
		return;
	}
	store_iter_init(&it, s, kv_bytes(key), kv_range_to(range_end), STORE_HEAD);
	while (store_iter_next(&it, &kv))
		found_add(f, kv.held);
}

/* DeleteRangeResponse: header 1, deleted 2, prev_kvs 3. */
static enum etcd_error answer_delete(
	const struct found *f, bool prev_kv, int64_t rev, const struct kv_to *to)
{
	struct store_kv kv;
	size_t len = kv_header_len(to->h, rev) + pb_int_len(f->n);
	for (size_t i = 0; prev_kv && i < f->n; i++) {
		store_held(f->held[i], &kv);
		len += pb_message_len(kv_encoded_len(&kv));
	}
	uint8_t *p = kv_response(to, KV_OP_DELETE, len);
	if (p == NULL)
		return ETCD_TOO_MANY_REQUESTS;
	p = pb_int(kv_write_header(p, to->h, rev), 2, f->n);
	for (size_t i = 0; prev_kv && i < f->n; i++) {
		store_held(f->held[i], &kv);
		p = kv_write(pb_head(p, 3, kv_encoded_len(&kv)), &kv);
	}
	return ETCD_OK;
}

static enum etcd_error delete_at(
	struct store *s, const Etcdserverpb__DeleteRangeRequest *r, const struct kv_to *to)
{
	struct found f = {.cap = 8};
	f.held = f.few;
	find_range(s, r->key, r->range_end, &f);
	for (size_t i = 0; i < f.n; i++) {
		struct store_kv kv;
		store_held(f.held[i], &kv);
		store_delete(s, kv.key);
	}
	enum etcd_error e = answer_delete(&f, r->prev_kv, store_head_rev(s), to);
	if (f.held != f.few)
		free(f.held);
	return e;
}

enum etcd_error kv_put(struct store *s, const Etcdserverpb__PutRequest *r,
	const struct kv_header *h, struct buf *out)
{
	const struct kv_to to = {.out = out, .h = h};
	if (r->lease != 0 && store_lease_find(s, r->lease, true) == NULL)
		return ETCD_LEASE_NOT_FOUND;
	return put_at(s, r, &to);
}

enum etcd_error kv_delete(struct store *s, const Etcdserverpb__DeleteRangeRequest *r,
	const struct kv_header *h, struct buf *out)
{
	const struct kv_to to = {.out = out, .h = h};
	return delete_at(s, r, &to);
}

/* ---- a Txn ---- */

struct gap {
	size_t at, end; /* of the gap; of the response behind it, in the bytes as first written */
	size_t txn_len; /* of the response in the end */
	size_t saved;   /* bytes, with the gaps inside */
	size_t behind;  /* the next gap that is not inside */
};

struct txn {
	struct store *s;        /* NULL: it only reads */
	const struct store *rs; /* to read from */
	int64_t read_rev, current_rev, compact_rev;
	struct kv_to to; /* of its operations */
	/* Which branch, for it and its nested ones on the path, in the order of the ops. */
	bool *path;
	size_t n_path, path_cap, path_at;
	struct gap *gaps;
	size_t n_gaps, gaps_cap;
};

static bool take_path(struct txn *t)
{
	ASSERT(t->path_at < t->n_path);
	return t->path[t->path_at++];
}

struct ops {
	Etcdserverpb__RequestOp *const *op;
	size_t n;
};

static struct ops branch(const Etcdserverpb__TxnRequest *r, bool success)
{
	return success ? (struct ops){r->success, r->n_success}
		       : (struct ops){r->failure, r->n_failure};
}

/* ---- choosing ---- */

static int compare_int(int64_t a, int64_t b)
{
	return (a > b) - (a < b);
}

/* A target that does not belong to the union's value compares with zero, as in etcd. */
static int compare_target(const Etcdserverpb__Compare *c, const struct store_kv *kv)
{
	const int target = (int)c->target, have = (int)c->target_union_case;
	static const struct {
		int target, value;
	} pairs[] = {
		{ETCDSERVERPB__COMPARE__COMPARE_TARGET__VERSION,
			ETCDSERVERPB__COMPARE__TARGET_UNION_VERSION},
		{ETCDSERVERPB__COMPARE__COMPARE_TARGET__CREATE,
			ETCDSERVERPB__COMPARE__TARGET_UNION_CREATE_REVISION},
		{ETCDSERVERPB__COMPARE__COMPARE_TARGET__MOD,
			ETCDSERVERPB__COMPARE__TARGET_UNION_MOD_REVISION},
		{ETCDSERVERPB__COMPARE__COMPARE_TARGET__VALUE,
			ETCDSERVERPB__COMPARE__TARGET_UNION_VALUE},
		{ETCDSERVERPB__COMPARE__COMPARE_TARGET__LEASE,
			ETCDSERVERPB__COMPARE__TARGET_UNION_LEASE},
	};
	bool belongs = false;
	for (size_t i = 0; i < ARRAY_LEN(pairs); i++)
		belongs |= pairs[i].target == target && pairs[i].value == have;
	switch (target) {
	case ETCDSERVERPB__COMPARE__COMPARE_TARGET__VERSION:
		return compare_int(kv->version, belongs ? c->version : 0);
	case ETCDSERVERPB__COMPARE__COMPARE_TARGET__CREATE:
		return compare_int(kv->create_rev, belongs ? c->create_revision : 0);
	case ETCDSERVERPB__COMPARE__COMPARE_TARGET__MOD:
		return compare_int(kv->mod_rev, belongs ? c->mod_revision : 0);
	case ETCDSERVERPB__COMPARE__COMPARE_TARGET__LEASE:
		return compare_int(kv->lease, belongs ? c->lease : 0);
	case ETCDSERVERPB__COMPARE__COMPARE_TARGET__VALUE:
		return keyindex_compare(kv->value.data, kv->value.len,
			belongs ? c->value.data : NULL, belongs ? c->value.len : 0);
	default:
		return 0;
	}
}

static bool holds_for(const Etcdserverpb__Compare *c, const struct store_kv *kv)
{
	int result = compare_target(c, kv);
	switch ((int)c->result) {
	case ETCDSERVERPB__COMPARE__COMPARE_RESULT__EQUAL:
		return result == 0;
	case ETCDSERVERPB__COMPARE__COMPARE_RESULT__NOT_EQUAL:
		return result != 0;
	case ETCDSERVERPB__COMPARE__COMPARE_RESULT__GREATER:
		return result > 0;
	case ETCDSERVERPB__COMPARE__COMPARE_RESULT__LESS:
		return result < 0;
	default:
		return true;
	}
}

/* No key there: it compares as zeros, but its value as nothing at all. */
static bool holds_for_nothing(const Etcdserverpb__Compare *c)
{
	static const struct store_kv none;
	return c->target != ETCDSERVERPB__COMPARE__COMPARE_TARGET__VALUE && holds_for(c, &none);
}

static bool holds(const struct txn *t, const Etcdserverpb__Compare *c)
{
	struct store_iter it;
	struct store_kv kv;
	bool any = false;
	if (kv_is_single(c->range_end))
		return store_get(t->rs, kv_bytes(c->key), t->read_rev, &kv) ? holds_for(c, &kv)
									    : holds_for_nothing(c);
	store_iter_init(&it, t->rs, kv_bytes(c->key), kv_range_to(c->range_end), t->read_rev);
	while (store_iter_next(&it, &kv)) {
		if (!holds_for(c, &kv))
			return false;
		any = true;
	}
	return any || holds_for_nothing(c);
}

static void choose(struct txn *t, const Etcdserverpb__TxnRequest *r)
{
	bool success = true;
	for (size_t i = 0; i < r->n_compare && success; i++)
		success = holds(t, r->compare[i]);
	if (t->n_path == t->path_cap) {
		t->path_cap = t->path_cap == 0 ? 8 : t->path_cap * 2;
		t->path = xrealloc(t->path, t->path_cap * sizeof(t->path[0]));
	}
	t->path[t->n_path++] = success;
	struct ops ops = branch(r, success);
	for (size_t i = 0; i < ops.n; i++)
		if (ops.op[i]->request_case == ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_TXN)
			choose(t, ops.op[i]->request_txn);
}

/* ---- judging ---- */

static enum etcd_error judge_put(struct txn *t, const Etcdserverpb__RequestOp *op)
{
	struct store_kv kv;
	if (op->request_case != ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_PUT)
		return ETCD_OK;
	const Etcdserverpb__PutRequest *r = op->request_put;
	if ((r->ignore_value || r->ignore_lease) &&
		!store_get(t->rs, kv_bytes(r->key), t->read_rev, &kv))
		return ETCD_KEY_NOT_FOUND;
	if (r->lease != 0 && store_lease_find(t->s, r->lease, true) == NULL)
		return ETCD_LEASE_NOT_FOUND;
	return ETCD_OK;
}

/* Unlike outside of a Txn a negative revision is one that was compacted. */
static enum etcd_error judge_range(struct txn *t, const Etcdserverpb__RequestOp *op)
{
	if (op->request_case != ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_RANGE)
		return ETCD_OK;
	int64_t rev = op->request_range->revision;
	if (rev == 0)
		return ETCD_OK;
	if (rev > t->current_rev)
		return ETCD_FUTURE_REV;
	return rev < t->compact_rev ? ETCD_COMPACTED : ETCD_OK;
}

typedef enum etcd_error judge_fn(struct txn *t, const Etcdserverpb__RequestOp *op);

static enum etcd_error judge(struct txn *t, const Etcdserverpb__TxnRequest *r, judge_fn *fn)
{
	struct ops ops = branch(r, take_path(t));
	enum etcd_error e = ETCD_OK;
	for (size_t i = 0; i < ops.n && e == ETCD_OK; i++)
		e = ops.op[i]->request_case == ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_TXN
			    ? judge(t, ops.op[i]->request_txn, fn)
			    : fn(t, ops.op[i]);
	return e;
}

static enum etcd_error judge_all(struct txn *t, const Etcdserverpb__TxnRequest *r)
{
	enum etcd_error e = ETCD_OK;
	if (t->s != NULL)
		e = judge(t, r, judge_put);
	t->path_at = 0;
	if (e == ETCD_OK)
		e = judge(t, r, judge_range);
	t->path_at = 0;
	return e;
}

/* ---- running ---- */

static enum etcd_error run(struct txn *t, const Etcdserverpb__TxnRequest *r);

/* TxnResponse: header 1, succeeded 2, responses 3. A nested one's header is there and empty. */
static enum etcd_error run_nested(struct txn *t, const Etcdserverpb__TxnRequest *r)
{
	struct buf *out = t->to.out;
	size_t at = t->n_gaps++;
	if (at == t->gaps_cap) {
		t->gaps_cap = t->gaps_cap == 0 ? 8 : t->gaps_cap * 2;
		t->gaps = xrealloc(t->gaps, t->gaps_cap * sizeof(t->gaps[0]));
	}
	t->gaps[at] = (struct gap){.at = out->len_bytes};
	uint8_t *p = buf_reserve(out, GAP + 4);
	if (p == NULL)
		return ETCD_TOO_MANY_REQUESTS;
	uint8_t *end = pb_int(pb_head(p + GAP, 1, 0), 2, t->path[t->path_at]);
	buf_commit(out, (size_t)(end - p));
	enum etcd_error e = run(t, r);
	t->gaps[at].end = out->len_bytes;
	t->gaps[at].behind = t->n_gaps;
	return e;
}

static enum etcd_error run_op(struct txn *t, const Etcdserverpb__RequestOp *op)
{
	switch (op->request_case) {
	case ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_RANGE:
		return kv_range_inside(t->rs, op->request_range, t->read_rev,
			t->s != NULL ? store_head_rev(t->s) : t->current_rev, &t->to);
	case ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_PUT:
		return put_at(t->s, op->request_put, &t->to);
	case ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_DELETE_RANGE:
		return delete_at(t->s, op->request_delete_range, &t->to);
	case ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_TXN:
		return run_nested(t, op->request_txn);
	default:
		return ETCD_KEY_NOT_FOUND; /* kv_check_txn refuses it */
	}
}

static enum etcd_error run(struct txn *t, const Etcdserverpb__TxnRequest *r)
{
	struct ops ops = branch(r, take_path(t));
	enum etcd_error e = ETCD_OK;
	for (size_t i = 0; i < ops.n && e == ETCD_OK; i++)
		e = run_op(t, ops.op[i]);
	return e;
}

/* ---- closing the gaps ---- */

/* Inner ones have higher numbers, so they are known first. */
static void measure_gaps(struct txn *t)
{
	for (size_t i = t->n_gaps; i-- > 0;) {
		struct gap *g = &t->gaps[i];
		size_t inside = 0;
		for (size_t k = i + 1; k < g->behind; k = t->gaps[k].behind)
			inside += t->gaps[k].saved;
		g->txn_len = g->end - g->at - GAP - inside;
		size_t heads =
			2 + pb_varint_len(g->txn_len) + pb_varint_len(pb_message_len(g->txn_len));
		ASSERT(heads <= GAP);
		g->saved = inside + GAP - heads;
	}
}

static void close_gaps(struct txn *t)
{
	struct buf *out = t->to.out;
	if (t->n_gaps == 0)
		return;
	measure_gaps(t);
	uint8_t *to = out->data + t->gaps[0].at;
	size_t from = t->gaps[0].at;
	for (size_t i = 0; i < t->n_gaps; i++) {
		const struct gap *g = &t->gaps[i];
		memmove(to, out->data + from, g->at - from);
		to += g->at - from;
		to = pb_head(to, 3, pb_message_len(g->txn_len));
		to = pb_head(to, KV_OP_TXN, g->txn_len);
		from = g->at + GAP;
	}
	memmove(to, out->data + from, out->len_bytes - from);
	out->len_bytes = (size_t)(to - out->data) + out->len_bytes - from;
}

/* ---- the whole ---- */

/* Header and `succeeded` stand before the responses, but the revision is known only after them:
 * room is left for the highest that it can be, and rarely is a byte too much. */
static enum etcd_error run_whole(
	struct txn *t, const Etcdserverpb__TxnRequest *r, const struct kv_header *h)
{
	struct buf *out = t->to.out;
	size_t start = out->len_bytes;
	bool success = t->path[0];
	size_t room = kv_header_len(h, t->current_rev + 1) + pb_int_len(success);
	if (buf_reserve(out, room) == NULL)
		return ETCD_TOO_MANY_REQUESTS;
	buf_commit(out, room);
	enum etcd_error e = run(t, r);
	if (e != ETCD_OK)
		return e;
	close_gaps(t);
	int64_t rev = t->s != NULL ? store_head_rev(t->s) : t->current_rev;
	size_t need = kv_header_len(h, rev) + pb_int_len(success);
	ASSERT(need <= room);
	if (need < room) {
		memmove(out->data + start + need, out->data + start + room,
			out->len_bytes - start - room);
		out->len_bytes -= room - need;
	}
	pb_int(kv_write_header(out->data + start, h, rev), 2, success);
	return ETCD_OK;
}

static enum etcd_error evaluate(
	struct txn *t, const Etcdserverpb__TxnRequest *r, const struct kv_header *h)
{
	choose(t, r);
	enum etcd_error e = judge_all(t, r);
	if (e == ETCD_OK)
		e = run_whole(t, r, h);
	free(t->path);
	free(t->gaps);
	return e;
}

enum etcd_error kv_txn(struct store *s, const Etcdserverpb__TxnRequest *r,
	const struct kv_header *h, struct buf *out)
{
	struct txn t = {.s = s,
		.rs = s,
		.read_rev = STORE_HEAD,
		.current_rev = store_head_rev(s),
		.compact_rev = store_head_compact_rev(s),
		.to = {.out = out, .h = NULL}};
	return evaluate(&t, r, h);
}

enum etcd_error kv_txn_read(const struct store *s, const Etcdserverpb__TxnRequest *r,
	const struct kv_header *h, struct buf *out)
{
	struct txn t = {.rs = s,
		.read_rev = store_visible_rev(s),
		.current_rev = store_visible_rev(s),
		.compact_rev = store_compact_rev(s),
		.to = {.out = out, .h = NULL}};
	ASSERT(kv_txn_is_read(r));
	return evaluate(&t, r, h);
}
