/* SPDX-License-Identifier: PostgreSQL */
/* kv: etcd's rules one by one (what is expected was asked of etcd 3.4), ranges against a model. */
#include "config.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#include "common/base/mem.h"
#include "tests/unit/kv_text.h"

static const struct kv_header header = {
	.cluster_id = UINT64_C(14841639068965178418), .member_id = 77, .raft_term = 2};

static int setup(void **state)
{
	*state = store_new("a", NULL, NULL);
	return 0;
}

static int teardown(void **state)
{
	struct store *s = *state;
	store_free(&s);
	return 0;
}

/* ---- calling ---- */

static enum etcd_error range_with(struct store *s, const Etcdserverpb__RangeRequest *r,
	size_t budget, size_t part, struct buf *out)
{
	struct kv_range *q;
	enum etcd_error e = kv_range_begin(s, r, &header, &q);
	if (e != ETCD_OK)
		return e;
	while (kv_range_step(q, budget)) {
	}
	assert_false(kv_range_is_lost(q));
	uint64_t len = kv_range_length(q);
	for (size_t n; (n = kv_range_fill(q, buf_reserve(out, part), part)) > 0;)
		buf_commit(out, n);
	assert_int_equal(out->len_bytes, len);
	kv_range_end(&q);
	assert_null(q);
	kv_range_end(&q);
	return ETCD_OK;
}

static enum etcd_error range(struct store *s, const Etcdserverpb__RangeRequest *r, struct buf *out)
{
	static const struct {
		size_t budget, part;
	} ways[] = {{1, 7}, {3, 100}, {1000, 1}};
	enum etcd_error e = range_with(s, r, SIZE_MAX, 65536, out);
	for (size_t i = 0; e == ETCD_OK && i < ARRAY_LEN(ways); i++) {
		struct buf other;
		buf_init(&other, 0);
		assert_int_equal(range_with(s, r, ways[i].budget, ways[i].part, &other), ETCD_OK);
		assert_int_equal(other.len_bytes, out->len_bytes);
		assert_memory_equal(other.data, out->data, out->len_bytes);
		buf_free(&other);
	}
	return e;
}

static enum etcd_error evaluate(struct store *s, const struct kv_request *r, struct buf *out)
{
	enum etcd_error e;
	store_begin(s);
	if (r->kind == KV_TEXT_PUT)
		e = kv_put(s, r->put, &header, out);
	else if (r->kind == KV_TEXT_DELETE)
		e = kv_delete(s, r->del, &header, out);
	else
		e = kv_txn(s, r->txn, &header, out);
	if (e == ETCD_OK)
		store_end(s);
	else
		store_abort(s);
	store_commit(s, store_head_seq(s));
	return e;
}

/* A Txn that only reads gives the same both ways. */
static enum etcd_error read_txn(struct store *s, const struct kv_request *r, struct buf *out)
{
	struct buf other;
	buf_init(&other, 0);
	int64_t seq = store_head_seq(s);
	enum etcd_error e = kv_txn_read(s, r->txn, &header, out);
	assert_int_equal(evaluate(s, r, &other), e);
	assert_int_equal(store_head_seq(s), seq);
	if (e == ETCD_OK) {
		assert_int_equal(other.len_bytes, out->len_bytes);
		assert_memory_equal(other.data, out->data, out->len_bytes);
	}
	buf_free(&other);
	return e;
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

static char *call(struct store *s, const char *text)
{
	struct kv_request r = kv_text_parse(text);
	struct buf out;
	char *answer;
	buf_init(&out, 0);
	enum etcd_error e = check(&r);
	if (e == ETCD_OK && r.kind == KV_TEXT_GET)
		e = range(s, r.get, &out);
	else if (e == ETCD_OK && r.kind == KV_TEXT_TXN && kv_txn_is_read(r.txn))
		e = read_txn(s, &r, &out);
	else if (e == ETCD_OK)
		e = evaluate(s, &r, &out);
	if (e == ETCD_OK)
		answer = kv_text_answer((int)r.kind, out.data, out.len_bytes);
	else
		answer = xstrdup(etcd_error_row(e)->text);
	kv_text_free(&r);
	buf_free(&out);
	return answer;
}

static void expect(struct store *s, const char *request, const char *answer)
{
	char *got = call(s, request);
	if (strcmp(got, answer) != 0)
		print_message("%s\n", request);
	assert_string_equal(got, answer);
	free(got);
}

static void compact(struct store *s, int64_t rev)
{
	store_begin(s);
	store_compact(s, rev);
	store_end(s);
	store_commit(s, store_head_seq(s));
}

static void grant(struct store *s, int64_t id)
{
	store_begin(s);
	store_grant(s, id, 60);
	store_end(s);
	store_commit(s, store_head_seq(s));
}

#define EMPTY_KEY "etcdserver: key is not provided"
#define NOT_FOUND "etcdserver: key not found"
#define NO_LEASE "etcdserver: requested lease not found"
#define DUPLICATE "etcdserver: duplicate key given in txn request"
#define COMPACTED "etcdserver: mvcc: required revision has been compacted"
#define FUTURE "etcdserver: mvcc: required revision is a future revision"
#define TOO_MANY "etcdserver: too many operations in txn request"

/* ---- single calls ---- */

static void test_put(void **state)
{
	struct store *s = *state;
	expect(s, "put - v", EMPTY_KEY);
	expect(s, "put k 1", "rev=2");
	expect(s, "put k 2 prev", "rev=3 prev k=1@2/2/1");
	expect(s, "put k - iv prev", "rev=4 prev k=2@3/2/2");
	expect(s, "get k", "rev=4 [k=2@4/2/3] count=1");
	expect(s, "put k x iv", "etcdserver: value is provided");
	expect(s, "put k x il lease=4", "etcdserver: lease is provided");
	expect(s, "put x - iv", NOT_FOUND);
	expect(s, "put x 1 il", NOT_FOUND);
	expect(s, "put k 1 lease=5", NO_LEASE);
	expect(s, "put x - iv lease=5", NO_LEASE);
	grant(s, 5);
	expect(s, "put k 3 lease=5", "rev=5");
	expect(s, "put k 4 il prev", "rev=6 prev k=3@5/2/4/5");
	expect(s, "get k", "rev=6 [k=4@6/2/5/5] count=1");
	expect(s, "put k - iv", "rev=7");
	expect(s, "get k", "rev=7 [k=4@7/2/6] count=1");
	expect(s, "put x - prev", "rev=8");
	expect(s, "get x", "rev=8 [x=@8/8/1] count=1");
}

static void test_delete(void **state)
{
	struct store *s = *state;
	expect(s, "del -", EMPTY_KEY);
	expect(s, "del k prev", "rev=1 deleted=0");
	expect(s, "put a 1", "rev=2");
	expect(s, "put b 2", "rev=3");
	expect(s, "put c 3", "rev=4");
	expect(s, "del b", "rev=5 deleted=1");
	expect(s, "del b", "rev=5 deleted=0");
	expect(s, "del c to=a", "rev=5 deleted=0");
	expect(s, "del a to=c prev", "rev=6 deleted=1 [a=1@2/2/1]");
	expect(s, "put a 5", "rev=7");
	expect(s, "get a", "rev=7 [a=5@7/7/1] count=1");
	expect(s, "put d@ 6", "rev=8");
	expect(s, "del b to=@ prev", "rev=9 deleted=2 [c=3@4/4/1 d@=6@8/8/1]");
	expect(s, "put b 1", "rev=10");
	expect(s, "del @ to=@ prev", "rev=11 deleted=2 [a=5@7/7/1 b=1@10/10/1]");
	expect(s, "get @ to=@", "rev=11 [] count=0");
}

static void test_range(void **state)
{
	struct store *s = *state;
	expect(s, "get -", EMPTY_KEY);
	expect(s, "get k sort=9", "etcdserver: invalid sort option");
	expect(s, "get k", "rev=1 [] count=0");
	for (int i = 0; i < 5; i++) {
		char text[32];
		snprintf(text, sizeof(text), "put k%d %d", i, 9 - i);
		free(call(s, text));
	}
	expect(s, "put k0 z", "rev=7");
	expect(s, "get k", "rev=7 [] count=0");
	expect(s, "get k1", "rev=7 [k1=8@3/3/1] count=1");
	expect(s, "get k1 to=k3", "rev=7 [k1=8@3/3/1 k2=7@4/4/1] count=2");
	expect(s, "get k to=l limit=2", "rev=7 [k0=z@7/2/2 k1=8@3/3/1] count=5 more");
	expect(s, "get k3 to=@", "rev=7 [k3=6@5/5/1 k4=5@6/6/1] count=2");
	expect(s, "get k to=l limit=5 keys",
		"rev=7 [k0=@7/2/2 k1=@3/3/1 k2=@4/4/1 k3=@5/5/1 k4=@6/6/1] count=5");
	expect(s, "get k to=l limit=-1 count", "rev=7 [] count=5");
	expect(s, "get k to=l limit=1 count minmod=4", "rev=7 [] count=5");
	expect(s, "get z to=a", "rev=7 [] count=0");
	/* History; the header says what is now. */
	expect(s, "get k to=l rev=3", "rev=7 [k0=9@2/2/1 k1=8@3/3/1] count=2");
	expect(s, "get k to=l rev=8", FUTURE);
	expect(s, "get k1 rev=-5", "rev=7 [k1=8@3/3/1] count=1");
	compact(s, 5);
	expect(s, "get k1 rev=4", COMPACTED);
	expect(s, "get k1 rev=5", "rev=7 [k1=8@3/3/1] count=1");
}

static void test_sort(void **state)
{
	struct store *s = *state;
	expect(s, "put a 3", "rev=2");
	expect(s, "put b 1", "rev=3");
	expect(s, "put c 2", "rev=4");
	expect(s, "put a 3", "rev=5");
	expect(s, "get a to=z sort=mod", "rev=5 [b=1@3/3/1 c=2@4/4/1 a=3@5/2/2] count=3");
	expect(s, "get a to=z sort=mod order=-", "rev=5 [a=3@5/2/2 c=2@4/4/1 b=1@3/3/1] count=3");
	expect(s, "get a to=z sort=key order=- limit=2",
		"rev=5 [c=2@4/4/1 b=1@3/3/1] count=3 more");
	expect(s, "get a to=z sort=cre order=- limit=1", "rev=5 [c=2@4/4/1] count=3 more");
	expect(s, "get a to=z sort=val order=+", "rev=5 [b=1@3/3/1 c=2@4/4/1 a=3@5/2/2] count=3");
	/* Equals stay in the order of keys, whichever way. */
	expect(s, "get a to=z sort=ver order=-", "rev=5 [a=3@5/2/2 b=1@3/3/1 c=2@4/4/1] count=3");
	expect(s, "get a to=z sort=ver order=+", "rev=5 [b=1@3/3/1 c=2@4/4/1 a=3@5/2/2] count=3");
	/* Without an order the limit comes first: of the first limit + 1 keys. */
	expect(s, "get a to=z sort=val limit=1", "rev=5 [b=1@3/3/1] count=3 more");
	expect(s, "put d 0", "rev=6");
	expect(s, "get a to=z sort=val limit=1", "rev=6 [b=1@3/3/1] count=4 more");
	expect(s, "get a to=z sort=val limit=1 order=+", "rev=6 [d=0@6/6/1] count=4 more");
	expect(s, "get a to=z sort=val limit=1 minmod=1", "rev=6 [d=0@6/6/1] count=4 more");
	/* An order that is none does not sort. */
	expect(s, "get a to=z sort=mod order=9 limit=2",
		"rev=6 [a=3@5/2/2 b=1@3/3/1] count=4 more");
	expect(s, "get a to=z minmod=4 maxmod=5", "rev=6 [a=3@5/2/2 c=2@4/4/1] count=4");
	expect(s, "get a to=z minmod=4 limit=1", "rev=6 [a=3@5/2/2] count=4 more");
	expect(s, "get a to=z mincre=3 maxcre=4 sort=mod order=-",
		"rev=6 [c=2@4/4/1 b=1@3/3/1] count=4");
	expect(s, "get a to=z maxmod=-1", "rev=6 [] count=4");
	expect(s, "get a maxcre=1", "rev=6 [] count=1");
	expect(s, "get a sort=val order=- keys limit=1", "rev=6 [a=@5/2/2] count=1");
}

/* ---- Txn ---- */

static void test_compare(void **state)
{
	struct store *s = *state;
	expect(s, "put q 5", "rev=2");
	expect(s, "put q 6", "rev=3");
	static const struct {
		const char *compare;
		bool holds;
	} rows[] = {{"ver/q/=/2", true}, {"ver/q/>/1", true}, {"ver/q/</2", false},
		{"ver/q/!/3", true}, {"cre/q/=/2", true}, {"mod/q/=/3", true}, {"mod/q/>/3", false},
		{"lea/q/=/0", true}, {"val/q/=/6", true}, {"val/q/</7", true},
		{"val/q/>/66", false}, {"val/q/!/-", true},
		/* A key that is not there is zeros, but has no value. */
		{"val/none/!/x", false}, {"val/none/=/-", false}, {"cre/none/=/0", true},
		{"ver/none/</1", true}, {"lea/none/!/0", false},
		/* A value of another target, targets and results that nobody knows. */
		{"mod/q/>/VER:100", true}, {"val/q/>/VER:9", true}, {"9/q/=/0", true},
		{"9/q/!/0", false}, {"ver/q/9/77", true},
		/* Ranges: all keys must; none: as a key that is not there. */
		{"ver/a/z/=/2", true}, {"ver/a/@/>/1", true}, {"mod/x/z/=/0", true},
		{"val/x/z/=/-", false}, {"ver/z/a/=/0", true}};
	for (size_t i = 0; i < ARRAY_LEN(rows); i++) {
		char text[64];
		snprintf(text, sizeof(text), "txn %s ?", rows[i].compare);
		expect(s, text, rows[i].holds ? "rev=3 ok { }" : "rev=3 no { }");
	}
	expect(s, "put r 1", "rev=4");
	expect(s, "txn ver/a/z/=/2 ?", "rev=4 no { }");
	expect(s, "txn ver/q/=/2 ver/r/=/2 ? get q : get r",
		"rev=4 no { rev=4 [r=1@4/4/1] count=1 }");
	expect(s, "txn ver/-/=/0 ?", EMPTY_KEY);
}

static void test_txn(void **state)
{
	struct store *s = *state;
	expect(s, "txn ?", "rev=1 ok { }");
	expect(s, "txn ? get a rev=-1", "rev=1 ok { rev=1 [] count=0 }");
	expect(s, "txn ? get a rev=-5", COMPACTED);
	expect(s, "txn ? put a 1 ; get a ; put b 2 prev ; get a to=z limit=1",
		"rev=2 ok { rev=2 ; rev=2 [a=1@2/2/1] count=1 ; rev=2 ; "
		"rev=2 [a=1@2/2/1] count=2 more }");
}

static void test_txn_order(void **state)
{
	struct store *s = *state;
	expect(s, "put k1 8", "rev=2");
	/* Before the first change inner answers say the old revision. */
	expect(s, "txn ? get n ; del none ; put n 1 ; get n",
		"rev=3 ok { rev=2 [] count=0 ; rev=2 deleted=0 ; rev=3 ; rev=3 [n=1@3/3/1] count=1 "
		"}");
	expect(s, "txn ? ( txn ? get n ; put m - prev ) ; del k1 prev ; get k1 ; del nope",
		"rev=4 ok { - ok { rev=3 [n=1@3/3/1] count=1 ; rev=4 } ; "
		"rev=4 deleted=1 [k1=8@2/2/1] ; rev=4 [] count=0 ; rev=4 deleted=0 }");
	expect(s, "txn ? del zzz", "rev=4 ok { rev=4 deleted=0 }");
	/* Branches are chosen before anything is written. */
	expect(s,
		"txn ? put n 2 ; ( txn val/n/=/1 ? put o 1 : put p 1 ) ; ( txn ver/x/=/1 ? : get n "
		")",
		"rev=5 ok { rev=5 ; - ok { rev=5 } ; - no { rev=5 [n=2@5/3/2] count=1 } }");
	expect(s, "txn ? ( txn ? ( txn ver/n/=/9 ? : ( txn ? get n keys ) ) )",
		"rev=5 ok { - ok { - no { - ok { rev=5 [n=@5/3/2] count=1 } } } }");
	expect(s, "txn ? ( txn ? )", "rev=5 ok { - ok { } }");
	/* A range at a revision reads there. */
	expect(s, "txn ? put n 3 ; get n rev=3", "rev=6 ok { rev=6 ; rev=6 [n=1@3/3/1] count=1 }");
}

static void test_txn_errors(void **state)
{
	struct store *s = *state;
	expect(s, "put q 1", "rev=2");
	expect(s, "txn ? nop", NOT_FOUND);
	expect(s, "txn ? put - 1", EMPTY_KEY);
	expect(s, "txn ? get -", EMPTY_KEY);
	expect(s, "txn ? del -", EMPTY_KEY);
	expect(s, "txn ? get q : ( txn ? put - 1 )", EMPTY_KEY);
	expect(s, "txn ? put w 1 ; put q 3 ; get q rev=3", FUTURE);
	expect(s, "txn ? put w 1 lease=5", NO_LEASE);
	expect(s, "txn ? put zz - lease=5 iv", NOT_FOUND);
	expect(s, "txn ? put q - iv ; put zz 1 il", NOT_FOUND);
	expect(s, "txn ? put q x iv", "etcdserver: value is provided");
	expect(s, "put q 2", "rev=3");
	compact(s, 3);
	expect(s, "txn ? get q rev=2", COMPACTED);
	expect(s, "txn ? get q rev=-9", COMPACTED);
	/* Puts are judged before ranges, and only the branch that runs is. */
	expect(s, "txn ? get q rev=2 ; put q 1 lease=77", NO_LEASE);
	expect(s, "txn ? get q : put q 1 lease=77 ; get q rev=9",
		"rev=3 ok { rev=3 [q=2@3/2/2] count=1 }");
	expect(s, "get q", "rev=3 [q=2@3/2/2] count=1");
}

static void test_overlaps(void **state)
{
	struct store *s = *state;
	static const char *const bad[] = {"txn ? put q 1 ; put q 2", "txn ? put q 1 ; del q",
		"txn ? del q ; put q 1", "txn ? del a to=z ; put q 1", "txn ? : put q 1 ; put q 1",
		"txn ? ( txn ? del w ) ; ( txn ? put w 1 )", "txn ? put w 1 ; ( txn ? del w )",
		"txn ? ( txn ? put w 1 ) ; del w", "txn ? ( txn ? put w 1 ) ; put w 1",
		"txn ? ( txn ? : put w 1 ) ; ( txn ? put w 1 )",
		"txn ? ( txn ? ( txn ? : put w 1 ) ) ; ( txn ? : ( txn ? put w 1 ) )",
		"txn ? ( txn ? put a 1 : del q to=r ) ; put q@ 1",
		"txn ? del a to=c ; del b to=z ; put x 1", "txn ? del m ; del a to=c ; put m 1"};
	static const char *const good[] = {"txn ? del q ; del q", "txn ? del a to=z ; del q",
		"txn ? put q 1 : put q 1", "txn ? ( txn ? put w 1 : put w 2 )",
		"txn ? ( txn ? put w 1 : del w )", "txn ? ( txn ? put w 1 ) ; ( txn ? del w )",
		"txn ? del a to=q ; put q 1", "txn ? del q to=a ; put q 1",
		"txn ? put q 1 ; del @ to=@", "txn ? del m ; put m@ 1 ; put l 1",
		"txn ? ( txn ? put w 1 : ( txn ? put w 2 : put w 3 ) )"};
	for (size_t i = 0; i < ARRAY_LEN(bad); i++)
		expect(s, bad[i], DUPLICATE);
	for (size_t i = 0; i < ARRAY_LEN(good); i++) {
		char *got = call(s, good[i]);
		assert_string_not_equal(got, DUPLICATE);
		free(got);
	}
}

/* What etcd's check lets through: a key changed twice by one entry. */
static void test_changed_twice(void **state)
{
	struct store *s = *state;
	expect(s, "put k0 z", "rev=2");
	expect(s, "txn ? put q 1 ; del @ to=@ prev",
		"rev=3 ok { rev=3 ; rev=3 deleted=2 [k0=z@2/2/1 q=1@3/3/1] }");
	expect(s, "get @ to=@", "rev=3 [] count=0");
	expect(s, "txn ? del @ to=@ ; put q 2 prev", "rev=4 ok { rev=3 deleted=0 ; rev=4 }");
	expect(s, "txn ? ( txn ? put w 1 ) ; ( txn ? del w )",
		"rev=5 ok { - ok { rev=5 } ; - ok { rev=5 deleted=1 } }");
	expect(s, "get @ to=@", "rev=5 [q=2@4/4/1] count=1");
	/* etcd stops dead here. */
	expect(s, "txn ? del @ to=@ ; put q - iv", NOT_FOUND);
	expect(s, "get @ to=@", "rev=5 [q=2@4/4/1] count=1");
}

static char *many(const char *op, size_t n, size_t nested)
{
	struct buf b;
	buf_init(&b, 0);
	buf_put_text(&b, "txn ?");
	for (size_t i = 0; i < nested; i++)
		buf_put_text(&b, " ( txn ?");
	for (size_t i = 0; i < n; i++)
		buf_printf(&b, " %s ;", op);
	for (size_t i = 0; i < nested; i++)
		buf_put_text(&b, " )");
	char *text = xstrdup(buf_cstr(&b));
	buf_free(&b);
	return text;
}

static void test_limits(void **state)
{
	struct store *s = *state;
	static const struct {
		size_t n, nested;
		bool fine;
	} rows[] = {{128, 0, true}, {129, 0, false}, {127, 1, true}, {128, 1, false},
		{1, 127, true}, {0, 128, true}, {1, 128, false}};
	for (size_t i = 0; i < ARRAY_LEN(rows); i++) {
		char *text = many("get a", rows[i].n, rows[i].nested), *got = call(s, text);
		assert_int_equal(strcmp(got, TOO_MANY) != 0, rows[i].fine);
		free(got);
		free(text);
	}
}

/* Before unpacking: a Txn within a Txn within … */
static void test_depth(void **state)
{
	(void)state;
	for (size_t depth = 0; depth < 100000; depth += depth < 140 ? 1 : 9999) {
		/* From the inside out: Txn.success (2) of RequestOp.request_txn (4). */
		size_t cap = 16 + depth * 10, at = cap, len = 0;
		uint8_t *b = xcalloc(1, cap);
		for (size_t i = 0; i < depth * 2; i++) {
			uint8_t head[8];
			size_t n = 0;
			head[n++] = i % 2 == 0 ? 0x22 : 0x12;
			for (uint64_t v = len; n == 1 || v > 0; v >>= 7)
				head[n++] = (uint8_t)((v & 0x7f) | (v > 0x7f ? 0x80 : 0));
			at -= n;
			memcpy(&b[at], head, n);
			len += n;
		}
		assert_int_equal(kv_txn_is_too_deep(&b[at], len), depth > KV_TXN_DEPTH_MAX);
		if (len > 0)
			(void)kv_txn_is_too_deep(&b[at], len - 1);
		free(b);
	}
	assert_false(kv_txn_is_too_deep("\x12\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", 12));
	assert_false(kv_txn_is_too_deep("\x0a\x05ver", 5));
}

static void test_kinds(void **state)
{
	(void)state;
	static const struct {
		const char *text;
		bool reads, serializable;
	} rows[] = {{"txn ?", true, true}, {"txn ? get a", true, false},
		{"txn ? get a ser : get b ser", true, true},
		{"txn ? get a ser : get b", true, false}, {"txn ? : put a 1", false, false},
		{"txn ? ( txn ? get a ser )", true, false},
		{"txn ? ( txn ? : del a )", false, false}, {"txn ? del a", false, false}};
	for (size_t i = 0; i < ARRAY_LEN(rows); i++) {
		struct kv_request r = kv_text_parse(rows[i].text);
		assert_int_equal(kv_txn_is_read(r.txn), rows[i].reads);
		assert_int_equal(kv_txn_is_serializable(r.txn), rows[i].serializable);
		kv_text_free(&r);
	}
}

/* An answer that does not fit is an error, and what was done is undone. */
static void test_no_room(void **state)
{
	struct store *s = *state;
	static const char *const requests[] = {"txn ? put a 1 ; get k", "del k prev",
		"put k 1 prev", "txn ? ( txn ? ( txn ? put x 1 ; get k ) ) ; del k prev"};
	char value[3000];
	memset(value, 'v', sizeof(value));
	store_begin(s);
	store_put(s, (struct store_bytes){"k", 1}, (struct store_bytes){value, sizeof(value)}, 0,
		NULL);
	store_end(s);
	store_commit(s, 1);
	for (size_t i = 0; i < ARRAY_LEN(requests); i++) {
		for (size_t room = 0; room < 3000; room += room < 100 ? 1 : 290) {
			struct kv_request r = kv_text_parse(requests[i]);
			struct buf out;
			buf_init(&out, room > 0 ? room : 1);
			assert_int_equal(evaluate(s, &r, &out), ETCD_TOO_MANY_REQUESTS);
			assert_int_equal(store_head_rev(s), 2);
			buf_free(&out);
			kv_text_free(&r);
		}
	}
}

/* The revision's length may grow by a Txn that turns out to change nothing. */
static void test_header_length(void **state)
{
	struct store *s = *state;
	for (int i = 0; i < 140; i++) {
		char answer[64];
		snprintf(answer, sizeof(answer), "rev=%d ok { rev=%d deleted=0 ; - ok { } }", i + 1,
			i + 1);
		expect(s, "txn ? del none ; ( txn ? )", answer);
		free(call(s, "put k v"));
	}
}

/* ---- ranges against a model ---- */

#define MODEL_KEYS 400

static uint64_t random_state;

static uint32_t random_below(uint32_t n)
{
	random_state = random_state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
	return (uint32_t)(random_state >> 33) % n;
}

static int model_target, model_order;

static int compare_model(const void *a, const void *b)
{
	const struct store_kv *x = a, *y = b;
	int c = 0;
	if (model_target == 1)
		c = (x->version > y->version) - (x->version < y->version);
	else if (model_target == 2)
		c = (x->create_rev > y->create_rev) - (x->create_rev < y->create_rev);
	else if (model_target == 3)
		c = (x->mod_rev > y->mod_rev) - (x->mod_rev < y->mod_rev);
	else if (model_target == 4)
		c = strcmp(x->value.data, y->value.data);
	else
		c = strcmp(x->key.data, y->key.data);
	if (model_order == 2)
		c = -c;
	return c != 0 ? c : strcmp(x->key.data, y->key.data);
}

/* All live keys at a revision, by brute force. */
static size_t model_collect(struct store *s, int64_t rev, const char *from, const char *to,
	struct store_kv *kvs, char (*names)[8], char (*values)[8])
{
	size_t n = 0;
	for (int i = 0; i < MODEL_KEYS; i++) {
		struct store_kv kv;
		snprintf(names[n], 8, "k%03d", i);
		if (strcmp(names[n], from) < 0 || strcmp(names[n], to) >= 0 ||
			!store_get(s, (struct store_bytes){names[n], 4}, rev, &kv))
			continue;
		memcpy(values[n], kv.value.data, kv.value.len);
		values[n][kv.value.len] = 0;
		kvs[n] = kv;
		kvs[n].key.data = names[n];
		kvs[n].value.data = values[n];
		n++;
	}
	return n;
}

static size_t model_filter(const Etcdserverpb__RangeRequest *r, struct store_kv *kvs, size_t n)
{
	size_t kept = 0;
	for (size_t i = 0; i < n; i++)
		if (!((r->max_mod_revision != 0 && kvs[i].mod_rev > r->max_mod_revision) ||
			    (r->min_mod_revision != 0 && kvs[i].mod_rev < r->min_mod_revision) ||
			    (r->max_create_revision != 0 &&
				    kvs[i].create_rev > r->max_create_revision) ||
			    (r->min_create_revision != 0 &&
				    kvs[i].create_rev < r->min_create_revision)))
			kvs[kept++] = kvs[i];
	return kept;
}

static char *model_range(
	struct store *s, const Etcdserverpb__RangeRequest *r, const char *from, const char *to)
{
	static struct store_kv kvs[MODEL_KEYS];
	static char names[MODEL_KEYS + 1][8], values[MODEL_KEYS + 1][8];
	int64_t rev = r->revision > 0 ? r->revision : store_visible_rev(s);
	size_t count = model_collect(s, rev, from, to, kvs, names, values), n = count;
	size_t limit = r->limit > 0 ? (size_t)r->limit : SIZE_MAX;
	bool filters = r->min_mod_revision != 0 || r->max_mod_revision != 0 ||
		       r->min_create_revision != 0 || r->max_create_revision != 0;
	struct buf b;
	if (r->sort_order == 0 && !filters && limit != SIZE_MAX && n > limit + 1)
		n = limit + 1;
	n = model_filter(r, kvs, n);
	model_target = (int)r->sort_target;
	model_order = r->sort_order == 0 ? 1 : (int)r->sort_order;
	qsort(kvs, n, sizeof(kvs[0]), compare_model);
	buf_init(&b, 0);
	buf_printf(&b, "rev=%lld [", (long long)store_visible_rev(s));
	for (size_t i = 0; i < n && i < limit && !r->count_only; i++)
		buf_printf(&b, "%s%s=%s@%lld/%lld/%lld", i > 0 ? " " : "", (char *)kvs[i].key.data,
			r->keys_only ? "" : (char *)kvs[i].value.data, (long long)kvs[i].mod_rev,
			(long long)kvs[i].create_rev, (long long)kvs[i].version);
	buf_printf(&b, "] count=%zu%s", count, n > limit && !r->count_only ? " more" : "");
	char *text = xstrdup(buf_cstr(&b));
	buf_free(&b);
	return text;
}

static void random_request(
	struct store *s, char *text, size_t size, const char *from, const char *to)
{
	static const char *const sorts[] = {"key", "ver", "cre", "mod", "val"};
	static const char *const filters[] = {"minmod", "maxmod", "mincre", "maxcre"};
	int n = snprintf(text, size, "get %s to=%s", from, to);
	uint32_t rev = (uint32_t)store_visible_rev(s);
	if (random_below(3) == 0)
		n += snprintf(text + n, size - (size_t)n, " rev=%u", 1 + random_below(rev));
	if (random_below(2) == 0)
		n += snprintf(text + n, size - (size_t)n, " limit=%u",
			random_below(random_below(2) == 0 ? 10 : 500));
	if (random_below(2) == 0)
		n += snprintf(text + n, size - (size_t)n, " sort=%s", sorts[random_below(5)]);
	if (random_below(2) == 0)
		n += snprintf(text + n, size - (size_t)n, " order=%s", random_below(2) ? "+" : "-");
	for (int i = 0; i < 4; i++)
		if (random_below(6) == 0)
			n += snprintf(text + n, size - (size_t)n, " %s=%u", filters[i],
				random_below(rev + 1));
	if (random_below(6) == 0)
		n += snprintf(text + n, size - (size_t)n, " keys");
	if (random_below(10) == 0)
		snprintf(text + n, size - (size_t)n, " count");
}

static void random_changes(struct store *s)
{
	for (uint32_t i = 1 + random_below(60); i > 0; i--) {
		char key[8], value[8];
		struct store_kv kv;
		store_begin(s);
		for (uint32_t k = 1 + random_below(3); k > 0; k--) {
			snprintf(key, sizeof(key), "k%03u", random_below(MODEL_KEYS));
			int len = snprintf(value, sizeof(value), "%u", random_below(60));
			struct store_bytes name = {key, 4};
			if (random_below(4) > 0)
				store_put(
					s, name, (struct store_bytes){value, (size_t)len}, 0, NULL);
			else if (store_get(s, name, STORE_HEAD, &kv))
				store_delete(s, name);
		}
		store_end(s);
	}
	/* What is in flight must not be seen. */
	store_commit(s, store_head_seq(s) - (int64_t)random_below(3));
}

static void test_random_ranges(void **state)
{
	struct store *s = *state;
	const char *seed = getenv("HOWDAH_SEED");
	random_state = seed != NULL ? strtoull(seed, NULL, 10) : (uint64_t)time(NULL);
	print_message("seed %llu\n", (unsigned long long)random_state);
	for (int i = 0; i < 1500; i++) {
		char text[256], from[8], to[8];
		if (i % 10 == 0)
			random_changes(s);
		snprintf(from, sizeof(from), "k%03u", random_below(MODEL_KEYS));
		snprintf(to, sizeof(to), "k%03u", random_below(MODEL_KEYS));
		if (random_below(3) == 0)
			snprintf(from, sizeof(from), "a");
		if (random_below(3) == 0)
			snprintf(to, sizeof(to), "z");
		random_request(s, text, sizeof(text), from, to);
		struct kv_request r = kv_text_parse(text);
		char *answer = model_range(s, r.get, from, to);
		expect(s, text, answer);
		free(answer);
		kv_text_free(&r);
	}
}

/* Larger than what is kept aside, while the store changes, is compacted, trimmed and reset. */
static void test_long_range(void **state)
{
	struct store *s = *state;
	char key[16], value[1000];
	memset(value, 'v', sizeof(value));
	for (int i = 0; i < 500; i++) {
		snprintf(key, sizeof(key), "k%04d", i);
		store_begin(s);
		store_put(s, (struct store_bytes){key, 5},
			(struct store_bytes){value, sizeof(value)}, 0, NULL);
		store_end(s);
	}
	store_commit(s, store_head_seq(s));
	static const char *const texts[] = {"get a to=z", "get a to=z sort=mod order=-",
		"get a to=z minmod=100 limit=300", "get k0007"};
	for (size_t i = 0; i < ARRAY_LEN(texts); i++) {
		struct kv_request r = kv_text_parse(texts[i]);
		struct buf before, during;
		struct kv_range *q;
		buf_init(&before, 0);
		buf_init(&during, 0);
		assert_int_equal(range(s, r.get, &before), ETCD_OK);
		assert_int_equal(kv_range_begin(s, r.get, &header, &q), ETCD_OK);
		while (kv_range_step(q, 100)) {
			free(call(s, "del k to=k0003"));
			free(call(s, "put k0001 other"));
		}
		size_t n;
		while ((n = kv_range_fill(q, buf_reserve(&during, 3000), 3000)) > 0) {
			buf_commit(&during, n);
			free(call(s, "put k0499 x"));
			free(call(s, "del k0002 to=k0005"));
			compact(s, store_visible_rev(s));
			while (store_trim(s, 10)) {
			}
		}
		assert_int_equal(during.len_bytes, before.len_bytes);
		assert_memory_equal(during.data, before.data, before.len_bytes);
		kv_range_end(&q);
		buf_free(&before);
		buf_free(&during);
		kv_text_free(&r);
	}
	struct kv_request r = kv_text_parse("get a to=z");
	struct kv_range *q;
	assert_int_equal(kv_range_begin(s, r.get, &header, &q), ETCD_OK);
	assert_true(kv_range_step(q, 10));
	store_reset(s);
	assert_false(kv_range_step(q, 10));
	assert_true(kv_range_is_lost(q));
	assert_int_equal(kv_range_fill(q, value, sizeof(value)), 0);
	kv_range_end(&q);
	kv_text_free(&r);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
#define TEST(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)
		TEST(test_put),
		TEST(test_delete),
		TEST(test_range),
		TEST(test_sort),
		TEST(test_compare),
		TEST(test_txn),
		TEST(test_txn_order),
		TEST(test_txn_errors),
		TEST(test_overlaps),
		TEST(test_changed_twice),
		TEST(test_limits),
		TEST(test_depth),
		TEST(test_kinds),
		TEST(test_no_room),
		TEST(test_header_length),
		TEST(test_random_ranges),
		TEST(test_long_range),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
