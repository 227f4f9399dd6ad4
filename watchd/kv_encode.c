/* SPDX-License-Identifier: PostgreSQL */
/*
 * Answers as bytes, straight from the store's memory.
 */
#include "config.h"

#include <string.h>

#include "watchd/kv_int.h"

/* mvccpb.KeyValue: key 1, create_revision 2, mod_revision 3, version 4, value 5, lease 6. */
size_t kv_encoded_len(const struct store_kv *kv)
{
	size_t len = pb_int_len((uint64_t)kv->create_rev) + pb_int_len((uint64_t)kv->mod_rev) +
		     pb_int_len((uint64_t)kv->version) + pb_int_len((uint64_t)kv->lease);
	if (kv->key.len > 0)
		len += pb_message_len(kv->key.len);
	if (kv->value.len > 0)
		len += pb_message_len(kv->value.len);
	return len;
}

static uint8_t *write_bytes(uint8_t *p, unsigned field, struct store_bytes b)
{
	if (b.len == 0)
		return p;
	p = pb_head(p, field, b.len);
	memcpy(p, b.data, b.len);
	return p + b.len;
}

uint8_t *kv_write_front(uint8_t *p, const struct store_kv *kv)
{
	p = write_bytes(p, 1, kv->key);
	p = pb_int(p, 2, (uint64_t)kv->create_rev);
	p = pb_int(p, 3, (uint64_t)kv->mod_rev);
	p = pb_int(p, 4, (uint64_t)kv->version);
	return kv->value.len > 0 ? pb_head(p, 5, kv->value.len) : p;
}

uint8_t *kv_write_behind(uint8_t *p, const struct store_kv *kv)
{
	return pb_int(p, 6, (uint64_t)kv->lease);
}

uint8_t *kv_write(uint8_t *p, const struct store_kv *kv)
{
	p = kv_write_front(p, kv);
	if (kv->value.len > 0)
		memcpy(p, kv->value.data, kv->value.len);
	return kv_write_behind(p + kv->value.len, kv);
}

void kv_encode(const struct store_kv *kv, struct buf *out)
{
	size_t len = kv_encoded_len(kv);
	uint8_t *p = buf_reserve(out, len);
	if (p == NULL)
		return;
	kv_write(p, kv);
	buf_commit(out, len);
}

/* ResponseHeader: cluster_id 1, member_id 2, revision 3, raft_term 4. */
static size_t header_body_len(const struct kv_header *h, int64_t rev)
{
	size_t len = pb_int_len((uint64_t)rev);
	if (h != NULL)
		len += pb_int_len(h->cluster_id) + pb_int_len(h->member_id) +
		       pb_int_len(h->raft_term);
	return len;
}

size_t kv_header_len(const struct kv_header *h, int64_t rev)
{
	return pb_message_len(header_body_len(h, rev));
}

uint8_t *kv_write_header(uint8_t *p, const struct kv_header *h, int64_t rev)
{
	p = pb_head(p, 1, header_body_len(h, rev));
	if (h == NULL)
		return pb_int(p, 3, (uint64_t)rev);
	p = pb_int(p, 1, h->cluster_id);
	p = pb_int(p, 2, h->member_id);
	p = pb_int(p, 3, (uint64_t)rev);
	return pb_int(p, 4, h->raft_term);
}

uint8_t *kv_response(const struct kv_to *to, enum kv_op op, size_t len)
{
	size_t op_len = pb_message_len(len);
	size_t all = to->h != NULL ? len : pb_message_len(op_len);
	uint8_t *p = buf_reserve(to->out, all);
	if (p == NULL)
		return NULL;
	buf_commit(to->out, all);
	if (to->h != NULL)
		return p;
	p = pb_head(p, 3, op_len); /* TxnResponse.responses */
	return pb_head(p, op, len);
}
