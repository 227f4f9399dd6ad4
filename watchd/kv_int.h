/* SPDX-License-Identifier: PostgreSQL */
/*
 * What the parts of kv (kv*.c) share: protobuf's encoding in its shortest form, fields in order,
 * zeros left out; a range that needs no allocation of its own.
 */
#ifndef WATCHD_KV_INT_H
#define WATCHD_KV_INT_H

#include "watchd/kv.h"

/* ---- encoding: X_len says how many bytes X writes; X returns what is behind them ---- */

static inline size_t pb_varint_len(uint64_t v)
{
	return (size_t)(63 - __builtin_clzll(v | 1)) / 7 + 1;
}

static inline uint8_t *pb_varint(uint8_t *p, uint64_t v)
{
	for (; v >= 0x80; v >>= 7)
		*p++ = (uint8_t)(v | 0x80);
	*p++ = (uint8_t)v;
	return p;
}

/* Fields up to number 15: their tag is one byte. */
#define PB_VARINT 0
#define PB_BYTES 2
#define PB_TAG(field, type) ((uint8_t)((field) << 3 | (type)))

static inline size_t pb_int_len(uint64_t v)
{
	return v != 0 ? 1 + pb_varint_len(v) : 0;
}

static inline uint8_t *pb_int(uint8_t *p, unsigned field, uint64_t v)
{
	if (v == 0)
		return p;
	*p++ = PB_TAG(field, PB_VARINT);
	return pb_varint(p, v);
}

/* Of a message or of bytes, its head included. */
static inline size_t pb_message_len(size_t len)
{
	return 1 + pb_varint_len(len) + len;
}

static inline uint8_t *pb_head(uint8_t *p, unsigned field, size_t len)
{
	*p++ = PB_TAG(field, PB_BYTES);
	return pb_varint(p, len);
}

uint8_t *kv_write(uint8_t *p, const struct store_kv *kv);
/* The same without the value's own bytes: what stands before and behind them. */
uint8_t *kv_write_front(uint8_t *p, const struct store_kv *kv);
uint8_t *kv_write_behind(uint8_t *p, const struct store_kv *kv);

/* A header as field 1 of a response. h NULL: inside of a Txn. */
size_t kv_header_len(const struct kv_header *h, int64_t rev);
uint8_t *kv_write_header(uint8_t *p, const struct kv_header *h, int64_t rev);

/* Numbers of ResponseOp's fields, which are those of RequestOp. */
enum kv_op { KV_OP_RANGE = 1, KV_OP_PUT = 2, KV_OP_DELETE = 3, KV_OP_TXN = 4 };

/* Where an evaluation writes. h NULL: inside of a Txn, as one of its responses. */
struct kv_to {
	struct buf *out;
	const struct kv_header *h;
};
/* Room for a response of len bytes; inside of a Txn the heads of TxnResponse.responses and of the
 * op are written before it. NULL: it does not fit. */
uint8_t *kv_response(const struct kv_to *to, enum kv_op op, size_t len);

/* ---- range_end ---- */

static inline bool kv_is_single(ProtobufCBinaryData range_end)
{
	return range_end.len == 0;
}

static inline struct store_bytes kv_bytes(ProtobufCBinaryData b)
{
	return (struct store_bytes){b.data, b.len};
}

/* range_end as the store's walk takes it: a lone zero byte means no end. */
static inline struct store_bytes kv_range_to(ProtobufCBinaryData range_end)
{
	if (range_end.len == 1 && range_end.data[0] == 0)
		return (struct store_bytes){NULL, 0};
	return kv_bytes(range_end);
}

/* ---- parts ---- */

/* Judges a revision that a request names. */
enum etcd_error kv_check_rev(int64_t rev, int64_t current, int64_t compact);

/* A range inside of a Txn: at once, read at rev, its header says header_rev. */
enum etcd_error kv_range_inside(const struct store *s, const Etcdserverpb__RangeRequest *r,
	int64_t rev, int64_t header_rev, const struct kv_to *to);

/* Two puts of a key, or a put and a delete of it, in one branch of a Txn. */
enum etcd_error kv_check_overlaps(const Etcdserverpb__TxnRequest *r);

#endif
