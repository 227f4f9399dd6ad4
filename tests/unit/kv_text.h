/* SPDX-License-Identifier: PostgreSQL */
/*
 * Key-value calls as text, for tests:
 *
 *   put KEY VALUE [prev] [iv] [il] [lease=N]                  iv, il: ignore value, lease
 *   get KEY [to=KEY] [rev=N] [limit=N] [sort=TARGET] [order=+|-|N] [keys] [count] [ser]
 *           [minmod=N] [maxmod=N] [mincre=N] [maxcre=N]
 *   del KEY [to=KEY] [prev]
 *   txn COMPARE… ? OP ; OP… [: OP ; OP…]                      OP: one of these, ( txn … ), or nop
 *
 *   COMPARE: TARGET/KEY[/TO]/RESULT/VALUE, TARGET one of ver cre mod val lea or a number, RESULT
 * one of = ! > < or a number; a VALUE of VER:N is given as a version whatever the target is
 *
 * In keys and values @ is a zero byte and - alone is the empty string. Answers:
 *
 *   rev=3 prev a=1@MOD/CREATE/VERSION[/LEASE]     rev=3 [a=1@… b=2@…] count=2 more
 *   rev=3 deleted=1 [a=1@…]                       rev=3 ok { rev=3 ; rev=3 [] ; - ok { } }
 *
 * or etcd's error text. Every answer must be byte for byte what protobuf-c packs of it.
 */
#ifndef TESTS_UNIT_KV_TEXT_H
#define TESTS_UNIT_KV_TEXT_H

#include "watchd/kv.h"

struct kv_request {
	enum { KV_TEXT_PUT, KV_TEXT_GET, KV_TEXT_DELETE, KV_TEXT_TXN } kind;
	union {
		Etcdserverpb__PutRequest *put;
		Etcdserverpb__RangeRequest *get;
		Etcdserverpb__DeleteRangeRequest *del;
		Etcdserverpb__TxnRequest *txn;
		ProtobufCMessage *base;
	};
};

/* A parsed request is unpacked from its own bytes, as from a client; kv_text_free frees it. */
struct kv_request kv_text_parse(const char *text);
void kv_text_free(struct kv_request *r);

/* Answers of these kinds as text; the caller frees it. Asserts that the bytes are canonical. */
char *kv_text_answer(int kind, const uint8_t *bytes, size_t len);

#endif
