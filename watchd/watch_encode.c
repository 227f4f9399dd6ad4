/* SPDX-License-Identifier: PostgreSQL */
/*
 * Lengths are summed first, because a message in a message begins with its length; then everything
 * is written into space of exactly that size.
 */
#include "config.h"

#include <string.h>

#include "common/base/mem.h"
#include "watchd/watch_encode.h"

/* Tags: field number << 3 | wire type; the same in every message that has the field. */
#define TAG_VARINT(field) ((uint8_t)((field) << 3))
#define TAG_BYTES(field) ((uint8_t)((field) << 3 | 2))

/* mvccpb.KeyValue */
enum { KV_KEY = 1, KV_CREATE, KV_MOD, KV_VERSION, KV_VALUE, KV_LEASE };
/* mvccpb.Event */
enum { EVENT_TYPE = 1, EVENT_KV, EVENT_PREV_KV };
enum { EVENT_IS_DELETE = 1 };
/* ResponseHeader */
enum { HEADER_CLUSTER = 1, HEADER_MEMBER, HEADER_REVISION, HEADER_TERM };
/* WatchResponse */
enum {
	WATCH_HEADER = 1,
	WATCH_ID,
	WATCH_CREATED,
	WATCH_CANCELED,
	WATCH_COMPACT_REVISION,
	WATCH_CANCEL_REASON,
	WATCH_FRAGMENT,
	WATCH_EVENTS = 11
};

static size_t varint_len(uint64_t v)
{
	/* 7 bits a byte: ceil(bits / 7) for 1 to 64 bits. */
	unsigned bits = 64 - (unsigned)__builtin_clzll(v | 1);
	return (bits * 9 + 64) / 64;
}

static uint8_t *put_varint(uint8_t *to, uint64_t v)
{
	for (; v >= 0x80; v >>= 7)
		*to++ = (uint8_t)(v | 0x80);
	*to++ = (uint8_t)v;
	return to;
}

static size_t int_len(int64_t v)
{
	return v == 0 ? 0 : 1 + varint_len((uint64_t)v);
}

static uint8_t *put_int(uint8_t *to, unsigned field, int64_t v)
{
	if (v == 0)
		return to;
	*to++ = TAG_VARINT(field);
	return put_varint(to, (uint64_t)v);
}

static size_t bytes_len(size_t len)
{
	return len == 0 ? 0 : 1 + varint_len(len) + len;
}

static uint8_t *put_bytes(uint8_t *to, unsigned field, struct store_bytes b)
{
	if (b.len == 0)
		return to;
	*to++ = TAG_BYTES(field);
	to = put_varint(to, b.len);
	memcpy(to, b.data, b.len);
	return to + b.len;
}

static size_t kv_len(const struct store_kv *kv)
{
	return bytes_len(kv->key.len) + int_len(kv->create_rev) + int_len(kv->mod_rev) +
	       int_len(kv->version) + bytes_len(kv->value.len) + int_len(kv->lease);
}

static uint8_t *put_kv(uint8_t *to, unsigned field, const struct store_kv *kv, size_t len)
{
	*to++ = TAG_BYTES(field);
	to = put_varint(to, len);
	to = put_bytes(to, KV_KEY, kv->key);
	to = put_int(to, KV_CREATE, kv->create_rev);
	to = put_int(to, KV_MOD, kv->mod_rev);
	to = put_int(to, KV_VERSION, kv->version);
	to = put_bytes(to, KV_VALUE, kv->value);
	return put_int(to, KV_LEASE, kv->lease);
}

void watch_encode_event(struct buf *out, const struct store_event *e, bool with_prev)
{
	struct store_kv kv = e->kv;
	if (e->is_delete)
		kv = (struct store_kv){.key = kv.key, .mod_rev = kv.mod_rev};
	with_prev = with_prev && e->has_prev;
	size_t kv_bytes = kv_len(&kv), prev_bytes = with_prev ? kv_len(&e->prev) : 0;
	size_t len =
		int_len(e->is_delete ? EVENT_IS_DELETE : 0) + 1 + varint_len(kv_bytes) + kv_bytes;
	if (with_prev)
		len += 1 + varint_len(prev_bytes) + prev_bytes;
	size_t total = 1 + varint_len(len) + len;

	uint8_t *begin = buf_reserve(out, total);
	ASSERT(begin != NULL); /* the buffer has no limit: the quota bounds what is in the store */
	uint8_t *to = begin;
	*to++ = TAG_BYTES(WATCH_EVENTS);
	to = put_varint(to, len);
	to = put_int(to, EVENT_TYPE, e->is_delete ? EVENT_IS_DELETE : 0);
	to = put_kv(to, EVENT_KV, &kv, kv_bytes);
	if (with_prev)
		to = put_kv(to, EVENT_PREV_KV, &e->prev, prev_bytes);
	ASSERT((size_t)(to - begin) == total);
	buf_commit(out, total);
}

size_t watch_encode_head(
	uint8_t *begin, const struct kv_header *header, const struct watch_head *head)
{
	uint8_t *to = begin;
	const int64_t ids[] = {(int64_t)header->cluster_id, (int64_t)header->member_id,
		head->revision, (int64_t)header->raft_term};
	size_t len = 0;
	for (size_t i = 0; i < ARRAY_LEN(ids); i++)
		len += int_len(ids[i]);
	*to++ = TAG_BYTES(WATCH_HEADER);
	*to++ = (uint8_t)len; /* at most 4 * 11 */
	for (size_t i = 0; i < ARRAY_LEN(ids); i++)
		to = put_int(to, HEADER_CLUSTER + (unsigned)i, ids[i]);
	to = put_int(to, WATCH_ID, head->watch_id);
	to = put_int(to, WATCH_CREATED, head->created);
	to = put_int(to, WATCH_CANCELED, head->canceled);
	to = put_int(to, WATCH_COMPACT_REVISION, head->compact_revision);
	if (head->cancel_reason != NULL) {
		struct store_bytes reason = {head->cancel_reason, strlen(head->cancel_reason)};
		ASSERT(reason.len <= WATCH_REASON_MAX);
		to = put_bytes(to, WATCH_CANCEL_REASON, reason);
	}
	to = put_int(to, WATCH_FRAGMENT, head->fragment);
	ASSERT(to - begin <= WATCH_HEAD_MAX);
	return (size_t)(to - begin);
}
