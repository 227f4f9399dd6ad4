/* SPDX-License-Identifier: PostgreSQL */
/*
 * Key-value requests as a client may send them: the first byte is the kind, the rest its protobuf
 * bytes. What unpacks and passes the checks is evaluated on a store with some history; the answer
 * must be canonical protobuf, and the store as before when it is rolled back.
 */
#include "config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/mem.h"
#include "tests/unit/kv_text.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const struct kv_header header = {.cluster_id = 1, .member_id = 2, .raft_term = 3};

static struct store_bytes text(const char *s)
{
	return (struct store_bytes){s, strlen(s)};
}

static struct store *make_store(void)
{
	struct store *s = store_new("a", NULL, NULL);
	store_begin(s);
	store_grant(s, 7, 60);
	store_end(s);
	for (int i = 0; i < 40; i++) {
		char key[4] = {'a' + (char)(i % 10), (char)('0' + i % 3), 0};
		store_begin(s);
		store_put(s, text(key), text(key + i % 2), i % 4 == 0 ? 7 : 0, NULL);
		if (i % 7 == 6)
			store_delete(s, text(key));
		store_end(s);
	}
	store_begin(s);
	store_compact(s, 20);
	store_end(s);
	store_commit(s, store_head_seq(s));
	while (store_trim(s, 100)) {
	}
	return s;
}

static enum etcd_error range(struct store *s, const Etcdserverpb__RangeRequest *r, struct buf *out)
{
	struct kv_range *q;
	enum etcd_error e = kv_range_begin(s, r, &header, &q);
	if (e != ETCD_OK)
		return e;
	while (kv_range_step(q, 3)) {
	}
	uint64_t len = kv_range_length(q);
	for (size_t n; (n = kv_range_fill(q, buf_reserve(out, 11), 11)) > 0;)
		buf_commit(out, n);
	ASSERT(out->len_bytes == len);
	kv_range_end(&q);
	return ETCD_OK;
}

static enum etcd_error evaluate(struct store *s, const struct kv_request *r, struct buf *out)
{
	switch (r->kind) {
	case KV_TEXT_PUT:
		return kv_put(s, r->put, &header, out);
	case KV_TEXT_DELETE:
		return kv_delete(s, r->del, &header, out);
	default:
		return kv_txn(s, r->txn, &header, out);
	}
}

static enum etcd_error check(const struct kv_request *r)
{
	switch (r->kind) {
	case KV_TEXT_PUT:
		return kv_check_put(r->put);
	case KV_TEXT_GET:
		return kv_check_range(r->get);
	case KV_TEXT_DELETE:
		return kv_check_delete(r->del);
	default:
		return kv_check_txn(r->txn, 128);
	}
}

static void check_answer(const struct kv_request *r, const struct buf *out)
{
	free(kv_text_answer((int)r->kind, out->data, out->len_bytes));
}

static void run(struct store *s, const struct kv_request *r)
{
	struct store_counts before, after;
	struct buf out;
	buf_init(&out, 1 << 20);
	store_get_counts(s, &before);
	if (r->kind == KV_TEXT_GET) {
		if (range(s, r->get, &out) == ETCD_OK)
			check_answer(r, &out);
		buf_free(&out);
		return;
	}
	store_begin(s);
	enum etcd_error e = evaluate(s, r, &out);
	if (e == ETCD_OK) {
		check_answer(r, &out);
		size_t n = store_end(s);
		ASSERT(r->kind != KV_TEXT_TXN || !kv_txn_is_read(r->txn) || n == 0);
		store_rollback(s, store_visible_seq(s));
	} else {
		store_abort(s);
	}
	store_get_counts(s, &after);
	ASSERT(after.versions == before.versions && after.log_bytes == before.log_bytes);
	if (r->kind == KV_TEXT_TXN && kv_txn_is_read(r->txn)) {
		buf_reset(&out);
		if (kv_txn_read(s, r->txn, &header, &out) == ETCD_OK)
			check_answer(r, &out);
	}
	buf_free(&out);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static const ProtobufCMessageDescriptor *const types[] = {
		&etcdserverpb__put_request__descriptor, &etcdserverpb__range_request__descriptor,
		&etcdserverpb__delete_range_request__descriptor,
		&etcdserverpb__txn_request__descriptor};
	static struct store *s;
	if (size == 0)
		return 0;
	if (s == NULL)
		s = make_store();
	struct kv_request r = {.kind = data[0] & 3};
	if (r.kind == KV_TEXT_TXN && kv_txn_is_too_deep(data + 1, size - 1))
		return 0;
	r.base = protobuf_c_message_unpack(types[r.kind], NULL, size - 1, data + 1);
	if (r.base == NULL)
		return 0;
	if (check(&r) == ETCD_OK)
		run(s, &r);
	kv_text_free(&r);
	return 0;
}
