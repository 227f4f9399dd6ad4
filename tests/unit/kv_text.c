/* SPDX-License-Identifier: PostgreSQL */
#include "config.h"

#include <stdlib.h>
#include <string.h>

#include "common/base/mem.h"
#include "tests/unit/kv_text.h"

/* ---- parsing ---- */

struct parser {
	char *rest;
	char *word; /* the next one; NULL: the end */
};

static void next(struct parser *p)
{
	p->word = strtok_r(NULL, " ", &p->rest);
}

static bool is_word(const struct parser *p, const char *w)
{
	return p->word != NULL && strcmp(p->word, w) == 0;
}

static ProtobufCBinaryData bytes_of(const char *text)
{
	ProtobufCBinaryData b = {.len = strcmp(text, "-") == 0 ? 0 : strlen(text)};
	if (b.len == 0)
		return b;
	b.data = xmemdup(text, b.len);
	for (size_t i = 0; i < b.len; i++)
		if (b.data[i] == '@')
			b.data[i] = 0;
	return b;
}

static ProtobufCBinaryData take_bytes(struct parser *p)
{
	ASSERT(p->word != NULL);
	ProtobufCBinaryData b = bytes_of(p->word);
	next(p);
	return b;
}

/* NAME=VALUE: the value's place. */
static const char *option(const struct parser *p, const char *name)
{
	size_t n = strlen(name);
	if (p->word == NULL || strncmp(p->word, name, n) != 0 || p->word[n] != '=')
		return NULL;
	return p->word + n + 1;
}

static bool take_number(struct parser *p, const char *name, int64_t *to)
{
	const char *value = option(p, name);
	if (value == NULL)
		return false;
	*to = strtoll(value, NULL, 10);
	next(p);
	return true;
}

static bool take_flag(struct parser *p, const char *name, protobuf_c_boolean *to)
{
	if (!is_word(p, name))
		return false;
	*to = true;
	next(p);
	return true;
}

static bool take_to(struct parser *p, ProtobufCBinaryData *to)
{
	const char *value = option(p, "to");
	if (value == NULL)
		return false;
	*to = bytes_of(value);
	next(p);
	return true;
}

static Etcdserverpb__PutRequest *parse_put(struct parser *p)
{
	Etcdserverpb__PutRequest *r = xmalloc(sizeof(*r));
	etcdserverpb__put_request__init(r);
	r->key = take_bytes(p);
	r->value = take_bytes(p);
	while (take_flag(p, "prev", &r->prev_kv) || take_flag(p, "iv", &r->ignore_value) ||
		take_flag(p, "il", &r->ignore_lease) || take_number(p, "lease", &r->lease)) {
	}
	return r;
}

static int index_of(const char *word, const char *const *names, size_t n)
{
	for (size_t i = 0; i < n; i++)
		if (strcmp(word, names[i]) == 0)
			return (int)i;
	return (int)strtol(word, NULL, 10);
}

static bool take_sort(struct parser *p, Etcdserverpb__RangeRequest *r)
{
	static const char *const targets[] = {"key", "ver", "cre", "mod", "val"};
	static const char *const orders[] = {"", "+", "-"};
	const char *target = option(p, "sort"), *order = option(p, "order");
	if (target != NULL)
		r->sort_target = (Etcdserverpb__RangeRequest__SortTarget)index_of(
			target, targets, ARRAY_LEN(targets));
	else if (order != NULL)
		r->sort_order = (Etcdserverpb__RangeRequest__SortOrder)index_of(
			order, orders, ARRAY_LEN(orders));
	else
		return false;
	next(p);
	return true;
}

static Etcdserverpb__RangeRequest *parse_get(struct parser *p)
{
	Etcdserverpb__RangeRequest *r = xmalloc(sizeof(*r));
	etcdserverpb__range_request__init(r);
	r->key = take_bytes(p);
	while (take_to(p, &r->range_end) || take_number(p, "rev", &r->revision) ||
		take_number(p, "limit", &r->limit) || take_flag(p, "keys", &r->keys_only) ||
		take_flag(p, "count", &r->count_only) || take_flag(p, "ser", &r->serializable) ||
		take_number(p, "minmod", &r->min_mod_revision) ||
		take_number(p, "maxmod", &r->max_mod_revision) ||
		take_number(p, "mincre", &r->min_create_revision) ||
		take_number(p, "maxcre", &r->max_create_revision) || take_sort(p, r)) {
	}
	return r;
}

static Etcdserverpb__DeleteRangeRequest *parse_del(struct parser *p)
{
	Etcdserverpb__DeleteRangeRequest *r = xmalloc(sizeof(*r));
	etcdserverpb__delete_range_request__init(r);
	r->key = take_bytes(p);
	while (take_to(p, &r->range_end) || take_flag(p, "prev", &r->prev_kv)) {
	}
	return r;
}

static void set_compare_value(Etcdserverpb__Compare *c, const char *value)
{
	static const int cases[] = {ETCDSERVERPB__COMPARE__TARGET_UNION_VERSION,
		ETCDSERVERPB__COMPARE__TARGET_UNION_CREATE_REVISION,
		ETCDSERVERPB__COMPARE__TARGET_UNION_MOD_REVISION,
		ETCDSERVERPB__COMPARE__TARGET_UNION_VALUE,
		ETCDSERVERPB__COMPARE__TARGET_UNION_LEASE};
	bool other = strncmp(value, "VER:", 4) == 0;
	size_t target = (size_t)c->target;
	if (other || target >= ARRAY_LEN(cases)) {
		c->target_union_case = ETCDSERVERPB__COMPARE__TARGET_UNION_VERSION;
		c->version = strtoll(value + (other ? 4 : 0), NULL, 10);
		return;
	}
	c->target_union_case = (Etcdserverpb__Compare__TargetUnionCase)cases[target];
	if (c->target_union_case == ETCDSERVERPB__COMPARE__TARGET_UNION_VALUE)
		c->value = bytes_of(value);
	else
		c->version = strtoll(value, NULL, 10); /* all numbers share the union's place */
}

static Etcdserverpb__Compare *parse_compare(struct parser *p)
{
	static const char *const targets[] = {"ver", "cre", "mod", "val", "lea"};
	static const char *const results[] = {"=", ">", "<", "!"};
	Etcdserverpb__Compare *c = xmalloc(sizeof(*c));
	char *part[5], *rest = NULL;
	size_t n = 0;
	etcdserverpb__compare__init(c);
	for (char *w = strtok_r(p->word, "/", &rest); w != NULL && n < 5;
		w = strtok_r(NULL, "/", &rest))
		part[n++] = w;
	ASSERT(n >= 4);
	c->target = (Etcdserverpb__Compare__CompareTarget)index_of(
		part[0], targets, ARRAY_LEN(targets));
	c->key = bytes_of(part[1]);
	if (n == 5)
		c->range_end = bytes_of(part[2]);
	c->result = (Etcdserverpb__Compare__CompareResult)index_of(
		part[n - 2], results, ARRAY_LEN(results));
	set_compare_value(c, part[n - 1]);
	next(p);
	return c;
}

static Etcdserverpb__TxnRequest *parse_txn(struct parser *p);

static Etcdserverpb__RequestOp *parse_op(struct parser *p)
{
	Etcdserverpb__RequestOp *op = xmalloc(sizeof(*op));
	etcdserverpb__request_op__init(op);
	char kind = p->word[0];
	ASSERT(kind != '(' || is_word(p, "("));
	next(p);
	if (kind == 'p') {
		op->request_case = ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_PUT;
		op->request_put = parse_put(p);
	} else if (kind == 'g') {
		op->request_case = ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_RANGE;
		op->request_range = parse_get(p);
	} else if (kind == 'd') {
		op->request_case = ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_DELETE_RANGE;
		op->request_delete_range = parse_del(p);
	} else if (kind == '(') {
		ASSERT(is_word(p, "txn"));
		next(p);
		op->request_case = ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_TXN;
		op->request_txn = parse_txn(p);
		ASSERT(is_word(p, ")"));
		next(p);
	}
	return op;
}

static size_t parse_ops(struct parser *p, Etcdserverpb__RequestOp ***ret_ops)
{
	size_t n = 0;
	*ret_ops = NULL;
	next(p);
	while (p->word != NULL && !is_word(p, ":") && !is_word(p, ")")) {
		if (is_word(p, ";")) {
			next(p);
			continue;
		}
		*ret_ops = xrealloc(*ret_ops, (n + 1) * sizeof(**ret_ops));
		(*ret_ops)[n++] = parse_op(p);
	}
	return n;
}

static Etcdserverpb__TxnRequest *parse_txn(struct parser *p)
{
	Etcdserverpb__TxnRequest *r = xmalloc(sizeof(*r));
	etcdserverpb__txn_request__init(r);
	while (!is_word(p, "?")) {
		r->compare = xrealloc(r->compare, (r->n_compare + 1) * sizeof(r->compare[0]));
		r->compare[r->n_compare++] = parse_compare(p);
	}
	r->n_success = parse_ops(p, &r->success);
	if (is_word(p, ":"))
		r->n_failure = parse_ops(p, &r->failure);
	return r;
}

/* Through its bytes: what a client sends is what is tested. */
static void over_the_wire(struct kv_request *r)
{
	size_t len = protobuf_c_message_get_packed_size(r->base);
	uint8_t *bytes = xmalloc(len);
	const ProtobufCMessageDescriptor *d = r->base->descriptor;
	protobuf_c_message_pack(r->base, bytes);
	protobuf_c_message_free_unpacked(r->base, NULL);
	r->base = protobuf_c_message_unpack(d, NULL, len, bytes);
	ASSERT(r->base != NULL);
	free(bytes);
}

struct kv_request kv_text_parse(const char *text)
{
	struct kv_request r;
	char *copy = xstrdup(text);
	struct parser p = {.rest = NULL};
	p.word = strtok_r(copy, " ", &p.rest);
	char kind = p.word[0];
	next(&p);
	if (kind == 'p') {
		r.kind = KV_TEXT_PUT;
		r.put = parse_put(&p);
	} else if (kind == 'g') {
		r.kind = KV_TEXT_GET;
		r.get = parse_get(&p);
	} else if (kind == 'd') {
		r.kind = KV_TEXT_DELETE;
		r.del = parse_del(&p);
	} else {
		r.kind = KV_TEXT_TXN;
		r.txn = parse_txn(&p);
	}
	ASSERT(p.word == NULL);
	free(copy);
	over_the_wire(&r);
	return r;
}

void kv_text_free(struct kv_request *r)
{
	protobuf_c_message_free_unpacked(r->base, NULL);
	r->base = NULL;
}

/* ---- answers ---- */

static void say_bytes(struct buf *b, ProtobufCBinaryData d)
{
	for (size_t i = 0; i < d.len; i++)
		buf_put_u8(b, d.data[i] == 0 ? '@' : d.data[i]);
}

static void say_kv(struct buf *b, const Mvccpb__KeyValue *kv)
{
	say_bytes(b, kv->key);
	buf_put_text(b, "=");
	say_bytes(b, kv->value);
	buf_printf(b, "@%lld/%lld/%lld", (long long)kv->mod_revision,
		(long long)kv->create_revision, (long long)kv->version);
	if (kv->lease != 0)
		buf_printf(b, "/%lld", (long long)kv->lease);
}

static void say_kvs(struct buf *b, Mvccpb__KeyValue *const *kvs, size_t n)
{
	buf_put_text(b, " [");
	for (size_t i = 0; i < n; i++) {
		buf_put_text(b, i > 0 ? " " : "");
		say_kv(b, kvs[i]);
	}
	buf_put_text(b, "]");
}

static void say_rev(struct buf *b, const Etcdserverpb__ResponseHeader *h)
{
	if (h->revision != 0)
		buf_printf(b, "rev=%lld", (long long)h->revision);
	else
		buf_put_text(b, "-");
}

static void say_put(struct buf *b, const Etcdserverpb__PutResponse *r)
{
	say_rev(b, r->header);
	if (r->prev_kv == NULL)
		return;
	buf_put_text(b, " prev ");
	say_kv(b, r->prev_kv);
}

static void say_get(struct buf *b, const Etcdserverpb__RangeResponse *r)
{
	say_rev(b, r->header);
	say_kvs(b, r->kvs, r->n_kvs);
	buf_printf(b, " count=%lld%s", (long long)r->count, r->more ? " more" : "");
}

static void say_del(struct buf *b, const Etcdserverpb__DeleteRangeResponse *r)
{
	say_rev(b, r->header);
	buf_printf(b, " deleted=%lld", (long long)r->deleted);
	if (r->n_prev_kvs > 0)
		say_kvs(b, r->prev_kvs, r->n_prev_kvs);
}

static void say_txn(struct buf *b, const Etcdserverpb__TxnResponse *r)
{
	say_rev(b, r->header);
	buf_put_text(b, r->succeeded ? " ok {" : " no {");
	for (size_t i = 0; i < r->n_responses; i++) {
		const Etcdserverpb__ResponseOp *op = r->responses[i];
		buf_put_text(b, i > 0 ? " ; " : " ");
		if (op->response_case == ETCDSERVERPB__RESPONSE_OP__RESPONSE_RESPONSE_PUT)
			say_put(b, op->response_put);
		else if (op->response_case == ETCDSERVERPB__RESPONSE_OP__RESPONSE_RESPONSE_RANGE)
			say_get(b, op->response_range);
		else if (op->response_case ==
			 ETCDSERVERPB__RESPONSE_OP__RESPONSE_RESPONSE_DELETE_RANGE)
			say_del(b, op->response_delete_range);
		else
			say_txn(b, op->response_txn);
	}
	buf_put_text(b, " }");
}

char *kv_text_answer(int kind, const uint8_t *bytes, size_t len)
{
	static const ProtobufCMessageDescriptor *const types[] = {
		&etcdserverpb__put_response__descriptor, &etcdserverpb__range_response__descriptor,
		&etcdserverpb__delete_range_response__descriptor,
		&etcdserverpb__txn_response__descriptor};
	ProtobufCMessage *m = protobuf_c_message_unpack(types[kind], NULL, len, bytes);
	struct buf b;
	ASSERT(m != NULL && m->n_unknown_fields == 0);
	ASSERT(protobuf_c_message_get_packed_size(m) == len);
	uint8_t *again = xmalloc(len);
	protobuf_c_message_pack(m, again);
	ASSERT(memcmp(again, bytes, len) == 0);
	free(again);
	buf_init(&b, 0);
	if (kind == KV_TEXT_PUT)
		say_put(&b, (void *)m);
	else if (kind == KV_TEXT_GET)
		say_get(&b, (void *)m);
	else if (kind == KV_TEXT_DELETE)
		say_del(&b, (void *)m);
	else
		say_txn(&b, (void *)m);
	char *text = xstrdup(buf_cstr(&b));
	buf_free(&b);
	protobuf_c_message_free_unpacked(m, NULL);
	return text;
}
