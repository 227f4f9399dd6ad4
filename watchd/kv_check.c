/* SPDX-License-Identifier: PostgreSQL */
/*
 * What is judged before a request meets the store: etcd's v3rpc/key.go.
 */
#include "config.h"

#include "watchd/kv_int.h"

/* ---- how deep a Txn is, from its bytes ---- */

struct level {
	const uint8_t *end;
	bool is_txn; /* else a RequestOp */
};

/* False: malformed. */
static bool take_varint(const uint8_t **p, const uint8_t *end, uint64_t *ret_v)
{
	*ret_v = 0;
	for (unsigned shift = 0; *p < end && shift < 70; shift += 7) {
		uint8_t b = *(*p)++;
		*ret_v |= shift < 64 ? (uint64_t)(b & 0x7f) << shift : 0;
		if (b < 0x80)
			return true;
	}
	return false;
}

/* Steps over a field's value; a nested message's bytes are stepped into (*ret_nested is their
 * length). False: malformed. */
static bool take_value(const uint8_t **p, const uint8_t *end, uint64_t tag, bool is_txn,
	bool *ret_nested, uint64_t *ret_len)
{
	uint64_t n = 0, field = tag >> 3;
	*ret_nested = false;
	switch (tag & 7) {
	case 0:
		return take_varint(p, end, &n);
	case 1:
		n = 8;
		break;
	case 5:
		n = 4;
		break;
	case PB_BYTES:
		if (!take_varint(p, end, &n))
			return false;
		*ret_nested = is_txn ? field == 2 || field == 3 : field == KV_OP_TXN;
		break;
	default:
		return false;
	}
	if (n > (uint64_t)(end - *p))
		return false;
	*ret_len = n;
	if (!*ret_nested)
		*p += n;
	return true;
}

bool kv_txn_is_too_deep(const void *data, size_t len)
{
	struct level level[2 * KV_TXN_DEPTH_MAX + 1];
	const uint8_t *p = data;
	size_t depth = 0;
	if (len == 0)
		return false;
	level[0] = (struct level){.end = p + len, .is_txn = true};
	for (;;) {
		uint64_t tag, n = 0;
		bool nested;
		while (p == level[depth].end) {
			if (depth == 0)
				return false;
			depth--;
		}
		const struct level *l = &level[depth];
		if (!take_varint(&p, l->end, &tag) ||
			!take_value(&p, l->end, tag, l->is_txn, &nested, &n))
			return false;
		if (!nested)
			continue;
		if (depth == 2 * KV_TXN_DEPTH_MAX)
			return true;
		bool is_txn = !l->is_txn;
		level[++depth] = (struct level){.end = p + n, .is_txn = is_txn};
	}
}

/* ---- single requests ---- */

enum etcd_error kv_check_range(const Etcdserverpb__RangeRequest *r)
{
	if (r->key.len == 0)
		return ETCD_EMPTY_KEY;
	/* etcd 3.4 crashes here, later ones say so. */
	if (r->sort_target < ETCDSERVERPB__RANGE_REQUEST__SORT_TARGET__KEY ||
		r->sort_target > ETCDSERVERPB__RANGE_REQUEST__SORT_TARGET__VALUE)
		return ETCD_INVALID_SORT;
	return ETCD_OK;
}

enum etcd_error kv_check_put(const Etcdserverpb__PutRequest *r)
{
	if (r->key.len == 0)
		return ETCD_EMPTY_KEY;
	if (r->ignore_value && r->value.len != 0)
		return ETCD_VALUE_PROVIDED;
	if (r->ignore_lease && r->lease != 0)
		return ETCD_LEASE_PROVIDED;
	return ETCD_OK;
}

enum etcd_error kv_check_delete(const Etcdserverpb__DeleteRangeRequest *r)
{
	return r->key.len == 0 ? ETCD_EMPTY_KEY : ETCD_OK;
}

/* ---- transactions ---- */

static enum etcd_error check_ops(const Etcdserverpb__TxnRequest *r, size_t max_ops);

static enum etcd_error check_op(const Etcdserverpb__RequestOp *op, size_t max_ops)
{
	switch (op->request_case) {
	case ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_RANGE:
		return kv_check_range(op->request_range);
	case ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_PUT:
		return kv_check_put(op->request_put);
	case ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_DELETE_RANGE:
		return kv_check_delete(op->request_delete_range);
	case ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_TXN:
		return check_ops(op->request_txn, max_ops);
	default:
		return ETCD_KEY_NOT_FOUND; /* etcd's word for an op without content */
	}
}

static size_t larger(size_t a, size_t b)
{
	return a > b ? a : b;
}

static enum etcd_error check_ops(const Etcdserverpb__TxnRequest *r, size_t max_ops)
{
	size_t n = larger(r->n_compare, larger(r->n_success, r->n_failure));
	enum etcd_error e = ETCD_OK;
	if (n > max_ops)
		return ETCD_TOO_MANY_OPS;
	for (size_t i = 0; i < r->n_compare; i++)
		if (r->compare[i]->key.len == 0)
			return ETCD_EMPTY_KEY;
	for (size_t i = 0; i < r->n_success && e == ETCD_OK; i++)
		e = check_op(r->success[i], max_ops - n);
	for (size_t i = 0; i < r->n_failure && e == ETCD_OK; i++)
		e = check_op(r->failure[i], max_ops - n);
	return e;
}

enum etcd_error kv_check_txn(const Etcdserverpb__TxnRequest *r, size_t max_ops)
{
	enum etcd_error e = check_ops(r, max_ops);
	return e != ETCD_OK ? e : kv_check_overlaps(r);
}

static bool ops_only_read(Etcdserverpb__RequestOp *const *ops, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		bool is_range =
			ops[i]->request_case == ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_RANGE;
		bool is_txn = ops[i]->request_case == ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_TXN;
		if (!is_range && !(is_txn && kv_txn_is_read(ops[i]->request_txn)))
			return false;
	}
	return true;
}

bool kv_txn_is_read(const Etcdserverpb__TxnRequest *r)
{
	return ops_only_read(r->success, r->n_success) && ops_only_read(r->failure, r->n_failure);
}

static bool ops_are_serializable(Etcdserverpb__RequestOp *const *ops, size_t n)
{
	for (size_t i = 0; i < n; i++)
		if (ops[i]->request_case != ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_RANGE ||
			!ops[i]->request_range->serializable)
			return false;
	return true;
}

/* etcd does not look into nested ones. */
bool kv_txn_is_serializable(const Etcdserverpb__TxnRequest *r)
{
	return ops_are_serializable(r->success, r->n_success) &&
	       ops_are_serializable(r->failure, r->n_failure);
}
