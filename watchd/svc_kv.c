/* SPDX-License-Identifier: PostgreSQL */
/*
 * KV: what is judged before the store is asked, and how long answers leave.
 *
 *   Range: judged -> (linearized) -> begun -> steps -> length known -> small: replied
 *                                                          '-> large: written as the client takes
 * it
 *
 * A Range holds its revision until its last byte is out or its client has left.
 */
#include "config.h"

#include "common/base/mem.h"
#include "watchd/svc.h"

/* Keys that are looked at in one pass of the loop. */
#define RANGE_STEP_KEYS 2000
/* Longer answers do not stand in memory. */
#define RANGE_WHOLE_BYTES 65536
/* But those of a Txn and a DeleteRange must: a client chooses how large they are. */
#define EVAL_ANSWER_BYTES (256u << 20)

/* ---- Range ---- */

static void range_release(struct grpc_call *c)
{
	struct kv_range *q = c->state;

	kv_range_end(&q);
	c->state = NULL;
}

static int range_fill(uint8_t *out, size_t max, void *arg)
{
	struct grpc_call *c = arg;
	size_t n = kv_range_fill(c->state, out, max);

	return n > 0 ? (int)n : -1; /* none: the store was loaded anew */
}

static void range_filled(void *arg)
{
	range_release(arg);
}

static void range_whole(struct grpc_call *c, size_t len)
{
	buf_reset(&c->out);
	while (c->out.len_bytes < len) {
		size_t left = len - c->out.len_bytes;
		size_t n = kv_range_fill(c->state, buf_reserve(&c->out, left), left);

		if (n == 0) {
			grpc_fail(c, ETCD_TIMEOUT);
			return;
		}
		buf_commit(&c->out, n);
	}
	range_release(c);
	grpc_reply(c);
}

static void range_answer(struct grpc_call *c)
{
	static const struct h2_source source = {.fill = range_fill, .done = range_filled};
	uint64_t len = kv_range_length(c->state);

	if (len <= RANGE_WHOLE_BYTES) {
		range_whole(c, (size_t)len);
	} else if (len > INT32_MAX) {
		grpc_fail_with(c, GRPC_RESOURCE_EXHAUSTED,
			"grpc: trying to send message larger than max; ask with a limit");
	} else {
		c->answered = true;
		h2_stream_send_generated(c->stream, (uint32_t)len, &source, c);
		h2_stream_end(c->stream, GRPC_OK, NULL);
	}
}

static void range_step(void *arg)
{
	struct grpc_call *c = arg;

	if (h2_stream_is_over(c->stream))
		return;
	bool more = kv_range_step(c->state, RANGE_STEP_KEYS);
	if (kv_range_is_lost(c->state))
		grpc_fail(c, ETCD_TIMEOUT);
	else if (more)
		grpc_later(c, range_step);
	else
		range_answer(c);
}

static void range_run(struct grpc_call *c)
{
	struct kv_range *q;
	enum etcd_error err = kv_range_begin(
		c->svc->store, (const Etcdserverpb__RangeRequest *)c->request, &c->svc->header, &q);

	if (err != ETCD_OK) {
		grpc_fail(c, err);
		return;
	}
	c->state = q;
	c->release = range_release;
	range_step(c);
}

void svc_range(struct grpc_call *c)
{
	const Etcdserverpb__RangeRequest *r = (const Etcdserverpb__RangeRequest *)c->request;
	enum etcd_error err = kv_check_range(r);

	if (err != ETCD_OK)
		grpc_fail(c, err);
	else if (r->serializable && engine_is_loaded(c->svc->engine))
		range_run(c);
	else
		grpc_linearize(c, range_run);
}

/* ---- Changes ---- */

static void begin_answer(struct grpc_call *c)
{
	buf_reset(&c->out);
	c->out.max_bytes = EVAL_ANSWER_BYTES;
}

/* While data is known to be damaged nothing is built on it. */
static enum etcd_error begin_eval(struct grpc_call *c, const struct store *s)
{
	begin_answer(c);
	return store_has_alarm(s, ETCDSERVERPB__ALARM_TYPE__CORRUPT) ? ETCD_CORRUPT : ETCD_OK;
}

static enum etcd_error eval_put(struct engine_op *op, struct store *s)
{
	struct grpc_call *c = grpc_call_of(op);
	enum etcd_error err = begin_eval(c, s);

	if (err != ETCD_OK)
		return err;
	return kv_put(s, (const Etcdserverpb__PutRequest *)c->request, &c->svc->header, &c->out);
}

void svc_put(struct grpc_call *c)
{
	enum etcd_error err = kv_check_put((const Etcdserverpb__PutRequest *)c->request);

	if (err != ETCD_OK)
		grpc_fail(c, err);
	else
		grpc_change(c, eval_put, true);
}

static enum etcd_error eval_delete(struct engine_op *op, struct store *s)
{
	struct grpc_call *c = grpc_call_of(op);
	enum etcd_error err = begin_eval(c, s);

	if (err != ETCD_OK)
		return err;
	return kv_delete(
		s, (const Etcdserverpb__DeleteRangeRequest *)c->request, &c->svc->header, &c->out);
}

void svc_delete_range(struct grpc_call *c)
{
	enum etcd_error err = kv_check_delete((const Etcdserverpb__DeleteRangeRequest *)c->request);

	if (err != ETCD_OK)
		grpc_fail(c, err);
	else
		grpc_change(c, eval_delete, false);
}

/* ---- Txn ---- */

static enum etcd_error eval_txn(struct engine_op *op, struct store *s)
{
	struct grpc_call *c = grpc_call_of(op);
	enum etcd_error err = begin_eval(c, s);

	if (err != ETCD_OK)
		return err;
	return kv_txn(s, (const Etcdserverpb__TxnRequest *)c->request, &c->svc->header, &c->out);
}

static bool has_put(const Etcdserverpb__TxnRequest *r);

static bool op_puts(const Etcdserverpb__RequestOp *op)
{
	switch (op->request_case) {
	case ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_PUT:
		return true;
	case ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_TXN:
		return has_put(op->request_txn);
	default:
		return false;
	}
}

/* In either branch: then it counts against the quota. As deep as kv_check_txn allows. */
static bool has_put(const Etcdserverpb__TxnRequest *r)
{
	for (size_t i = 0; i < r->n_success; i++)
		if (op_puts(r->success[i]))
			return true;
	for (size_t i = 0; i < r->n_failure; i++)
		if (op_puts(r->failure[i]))
			return true;
	return false;
}

static void txn_read(struct grpc_call *c)
{
	enum etcd_error err;

	begin_answer(c);
	err = kv_txn_read(c->svc->store, (const Etcdserverpb__TxnRequest *)c->request,
		&c->svc->header, &c->out);
	if (err != ETCD_OK)
		grpc_fail(c, err);
	else
		grpc_reply(c);
}

void svc_txn(struct grpc_call *c)
{
	const Etcdserverpb__TxnRequest *r = (const Etcdserverpb__TxnRequest *)c->request;
	enum etcd_error err = kv_check_txn(r, c->svc->conf->max_txn_ops);

	if (err != ETCD_OK)
		grpc_fail(c, err);
	else if (kv_txn_is_read(r) && kv_txn_is_serializable(r) && engine_is_loaded(c->svc->engine))
		txn_read(c);
	else if (kv_txn_is_read(r))
		grpc_linearize(c, txn_read);
	else if (grpc_is_too_large(c))
		grpc_fail(c, ETCD_REQUEST_TOO_LARGE);
	else
		grpc_change(c, eval_txn, has_put(r));
}

/* ---- Compact ---- */

static enum etcd_error eval_compact(struct engine_op *op, struct store *s)
{
	struct grpc_call *c = grpc_call_of(op);
	const Etcdserverpb__CompactionRequest *r =
		(const Etcdserverpb__CompactionRequest *)c->request;
	Etcdserverpb__CompactionResponse answer = ETCDSERVERPB__COMPACTION_RESPONSE__INIT;
	Etcdserverpb__ResponseHeader header;
	enum etcd_error err = begin_eval(c, s);

	if (err == ETCD_OK)
		err = svc_do_compact(s, r->revision);
	if (err != ETCD_OK)
		return err;
	grpc_header(c->svc, &header);
	header.revision = store_head_rev(s);
	answer.header = &header;
	grpc_pack(&c->out, &answer.base);
	return ETCD_OK;
}

enum etcd_error svc_do_compact(struct store *s, int64_t rev)
{
	if (rev <= store_head_compact_rev(s))
		return ETCD_COMPACTED;
	if (rev > store_head_rev(s))
		return ETCD_FUTURE_REV;
	store_compact(s, rev);
	return ETCD_OK;
}

/* `physical` changes nothing: memory is given back in the passes that follow, rows of the log when
 * they are old enough, and neither is to be seen by a client. */
void svc_compact(struct grpc_call *c)
{
	grpc_change(c, eval_compact, false);
}
