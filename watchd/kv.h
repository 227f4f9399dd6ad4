/* SPDX-License-Identifier: PostgreSQL */
/*
 * etcd's KV calls over the store: what is checked before anything else, what a request does at the
 * head, what it answers. Requests are the decoded protobuf messages; answers are encoded bytes of
 * the response message, made while the store is in the state that the request met.
 *
 * Rules: etcd's server/etcdserver/api/v3rpc/key.go (checks), server/etcdserver/apply.go (Txn: the
 * branch is chosen and its ranges and leases are judged before the first write), mvcc (Range).
 *
 * Context: one thread; nothing here waits.
 */
#ifndef WATCHD_KV_H
#define WATCHD_KV_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/buf.h"
#include "watchd/etcd_error.h"
#include "watchd/proto/rpc.pb-c.h"
#include "watchd/store.h"

/* Header of an answer; inner responses of a Txn carry only the revision. */
struct kv_header {
	uint64_t cluster_id, member_id, raft_term;
};

/* Nested more deeply than KV_TXN_DEPTH_MAX (ETCD_TOO_MANY_OPS, whatever is allowed of them). Ask
 * this of the bytes before they are unpacked: unpacking recurses. Malformed bytes are for the
 * unpacking to find. */
#define KV_TXN_DEPTH_MAX 128
bool kv_txn_is_too_deep(const void *data, size_t len);

/* Checks that need no state. max_ops: of one nesting path of a Txn. */
enum etcd_error kv_check_range(const Etcdserverpb__RangeRequest *r);
enum etcd_error kv_check_put(const Etcdserverpb__PutRequest *r);
enum etcd_error kv_check_delete(const Etcdserverpb__DeleteRangeRequest *r);
enum etcd_error kv_check_txn(const Etcdserverpb__TxnRequest *r, size_t max_ops);
/* No branch of it writes: it is a read (linearizable unless every Range in it is serializable). */
bool kv_txn_is_read(const Etcdserverpb__TxnRequest *r);
bool kv_txn_is_serializable(const Etcdserverpb__TxnRequest *r);

/* Evaluations for engine_op.eval: the store's entry is open, and may have been changed in part when
 * an error is returned. They append the encoded response to out (reset by the caller), whose
 * header's revision is that of the store after the entry. A response that does not fit into out is
 * ETCD_TOO_MANY_REQUESTS. */
enum etcd_error kv_put(struct store *s, const Etcdserverpb__PutRequest *r,
	const struct kv_header *h, struct buf *out);
enum etcd_error kv_delete(struct store *s, const Etcdserverpb__DeleteRangeRequest *r,
	const struct kv_header *h, struct buf *out);
enum etcd_error kv_txn(struct store *s, const Etcdserverpb__TxnRequest *r,
	const struct kv_header *h, struct buf *out);
/* A Txn that only reads, at the visible revision, no entry open. */
enum etcd_error kv_txn_read(const struct store *s, const Etcdserverpb__TxnRequest *r,
	const struct kv_header *h, struct buf *out);

/*
 * Range outside of a Txn, in steps, so that a list of a million keys neither stalls the loop nor
 * stands in memory:
 *
 *   begin -> step until it says it is done -> length is known -> fill until everything is out ->
 * end
 *
 * The revision is pinned from begin to end. What need not be sorted or filtered is walked twice
 * (once to measure, once to write); what must be sorted keeps key references, bounded by
 * kv_range_limits.
 */
struct kv_range;

/* Judges the revision (ETCD_COMPACTED, ETCD_FUTURE_REV). r is borrowed until kv_range_end. Small
 * answers are complete after one step. */
enum etcd_error kv_range_begin(struct store *s, const Etcdserverpb__RangeRequest *r,
	const struct kv_header *h, struct kv_range **ret_range);
/* Looks at up to `budget` keys; true: call again. */
bool kv_range_step(struct kv_range *q, size_t budget);
/* The store was loaded anew meanwhile: there will be no answer, end the call as unavailable. Ask
 * after every step and when fill returns 0. */
bool kv_range_is_lost(const struct kv_range *q);
/* After the last step: bytes of the encoded response. */
uint64_t kv_range_length(const struct kv_range *q);
/* Writes the next bytes, at most max, at least one until all are out. Returns how many; 0: all are
 * out, or it is lost. */
size_t kv_range_fill(struct kv_range *q, void *to, size_t max);
void kv_range_end(struct kv_range **q);

/* Shared encoders (watch, snapshot): a KeyValue as protobuf, and its length. Zeros are left out. */
size_t kv_encoded_len(const struct store_kv *kv);
void kv_encode(const struct store_kv *kv, struct buf *out);

#endif
