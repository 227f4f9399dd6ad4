/* SPDX-License-Identifier: PostgreSQL */
/*
 * See watchd_ctl.h. A request lives until it is answered or its client has left; one that waits for
 * a callback that cannot be called off lives until then, without a client.
 */
#include "config.h"

#include <stdlib.h>
#include <string.h>

#include "common/base/mem.h"
#include "watchd/svc.h"
#include "watchd/watchd_ctl.h"

MEM_TYPE(mem_wctl, "watch command");

/* ---- A request ---- */

static void wctl_free(struct wctl *w)
{
	struct engine *e = w->self->svc.engine;

	if (w->wait == WCTL_OP)
		engine_cancel(e, &w->op);
	if (w->wait == WCTL_READ)
		engine_read_cancel(e, &w->read);
	ev_defer_cancel(w->self->svc.loop, &w->later);
	store_unpin(&w->pin);
	buf_free(&w->key);
	buf_free(&w->end);
	buf_free(&w->value);
	buf_free(&w->out);
	buf_free(&w->next);
	list_remove(&w->link);
	w->magic = 0;
	mem_free(&mem_wctl, w);
}

static void on_drained(struct ctl_client *c, void *arg)
{
	struct wctl *w;

	(void)c;
	OBJ_CAST(w, arg, WCTL_MAGIC);
	w->full = false;
	wctl_drained(w);
}

static void on_gone(struct ctl_client *c, void *arg)
{
	struct wctl *w;

	(void)c;
	OBJ_CAST(w, arg, WCTL_MAGIC);
	w->client = NULL;
	if (w->wait != WCTL_ANSWER)
		wctl_free(w);
}

/* Behind all that begins with key; empty: to the end of all keys. */
static void put_prefix_end(struct buf *end, const struct buf *key)
{
	size_t len = key->len_bytes;

	while (len > 0 && key->data[len - 1] == 0xff)
		len--;
	if (len == 0)
		return;
	buf_put(end, key->data, len);
	end->data[len - 1]++;
}

struct wctl *wctl_new(struct watchd *self, struct ctl_client *c, const struct ctl_request *req)
{
	struct wctl *w = mem_new(&mem_wctl, sizeof(*w));
	const json_t *key = json_object_get(req->args, "key");

	w->magic = WCTL_MAGIC;
	w->self = self;
	w->client = c;
	w->left = -1;
	buf_init(&w->key, 0);
	buf_init(&w->end, 0);
	buf_init(&w->value, 0);
	buf_init(&w->out, 0);
	buf_init(&w->next, 0);
	if (json_is_string(key))
		buf_put(&w->key, json_string_value(key), json_string_length(key));
	w->prefix = json_is_true(json_object_get(req->args, "prefix"));
	if (w->prefix)
		put_prefix_end(&w->end, &w->key);
	list_push_back(&self->ctl_requests, &w->link);
	ctl_hold(c, on_drained, on_gone, w);
	return w;
}

void wctl_ok(struct wctl *w)
{
	struct ctl_client *c = w->client;

	w->client = NULL;
	wctl_free(w);
	if (c != NULL)
		ctl_ok(c);
}

void wctl_fail_with(struct wctl *w, const char *code, const char *hint, const char *message)
{
	struct ctl_client *c = w->client;

	w->client = NULL;
	if (c != NULL)
		ctl_fail(c, code, hint, "%s", message);
	wctl_free(w);
}

static const char *code_of(enum grpc_status status)
{
	switch (status) {
	case GRPC_NOT_FOUND:
		return "not-found";
	case GRPC_UNAVAILABLE:
		return "unavailable";
	case GRPC_INVALID_ARGUMENT:
	case GRPC_OUT_OF_RANGE:
		return "invalid";
	default:
		return "failed";
	}
}

void wctl_fail(struct wctl *w, enum etcd_error err)
{
	const struct etcd_error_row *row = etcd_error_row(err);

	wctl_fail_with(w, code_of(row->code), NULL, row->text);
}

int64_t wctl_number(const struct ctl_request *req, const char *name)
{
	return json_integer_value(json_object_get(req->args, name)); /* 0 for what is none */
}

struct store_bytes wctl_from(const struct wctl *w)
{
	return (struct store_bytes){.data = w->key.data, .len = w->key.len_bytes};
}

struct store_bytes wctl_to(const struct wctl *w)
{
	return (struct store_bytes){
		.data = w->end.len_bytes > 0 ? w->end.data : NULL, .len = w->end.len_bytes};
}

static ProtobufCBinaryData binary(const struct buf *b)
{
	return (ProtobufCBinaryData){.data = b->data, .len = b->len_bytes};
}

/* ---- Changes ---- */

static struct wctl *wctl_of(struct engine_op *op)
{
	struct wctl *w = list_entry(op, struct wctl, op);

	OBJ_CHECK(w, WCTL_MAGIC);
	return w;
}

static void submit(struct wctl *w, enum etcd_error (*eval)(struct engine_op *op, struct store *s),
	void (*done)(struct engine_op *op, enum etcd_error err), bool grows)
{
	w->op = (struct engine_op){.eval = eval,
		.done = done,
		.cost_bytes = w->key.len_bytes + w->value.len_bytes,
		.grows = grows,
		.deadline_ms = services_deadline(&w->self->svc)};
	w->wait = WCTL_OP;
	engine_submit(w->self->svc.engine, &w->op);
}

/* One row: what has become of it. */
static void answer(struct wctl *w, enum etcd_error err, const char *name)
{
	w->wait = WCTL_NOTHING;
	if (err != ETCD_OK) {
		wctl_fail(w, err);
		return;
	}
	if (w->client != NULL)
		(void)ctl_row(w->client, json_pack("{s:I,s:I}", name, (json_int_t)w->result,
						 "revision", (json_int_t)w->rev));
	wctl_ok(w);
}

static enum etcd_error eval_put(struct engine_op *op, struct store *s)
{
	struct wctl *w = wctl_of(op);
	Etcdserverpb__PutRequest r = ETCDSERVERPB__PUT_REQUEST__INIT;
	enum etcd_error err;

	r.key = binary(&w->key);
	r.value = binary(&w->value);
	r.lease = w->lease;
	buf_reset(&w->out);
	err = kv_put(s, &r, &w->self->svc.header, &w->out);
	w->rev = store_head_rev(s);
	w->result = 1;
	return err;
}

static void put_done(struct engine_op *op, enum etcd_error err)
{
	answer(wctl_of(op), err, "put");
}

static void cmd_put(struct ctl_client *c, const struct ctl_request *req, void *arg)
{
	const struct daemon *d = arg;
	struct wctl *w = wctl_new(d->self, c, req);
	const json_t *value = json_object_get(req->args, "value");

	if (json_is_string(value))
		buf_put(&w->value, json_string_value(value), json_string_length(value));
	w->lease = wctl_number(req, "lease");
	if (w->key.len_bytes == 0)
		wctl_fail(w, ETCD_EMPTY_KEY);
	else
		submit(w, eval_put, put_done, true);
}

static enum etcd_error eval_del(struct engine_op *op, struct store *s)
{
	struct wctl *w = wctl_of(op);
	static uint8_t zero[1];
	Etcdserverpb__DeleteRangeRequest r = ETCDSERVERPB__DELETE_RANGE_REQUEST__INIT;
	Etcdserverpb__DeleteRangeResponse *answered;
	enum etcd_error err;

	r.key = w->key.len_bytes > 0 ? binary(&w->key)
				     : (ProtobufCBinaryData){.data = zero, .len = 1};
	if (w->prefix)
		r.range_end = w->end.len_bytes > 0 ? binary(&w->end)
						   : (ProtobufCBinaryData){.data = zero, .len = 1};
	buf_reset(&w->out);
	err = kv_delete(s, &r, &w->self->svc.header, &w->out);
	if (err != ETCD_OK)
		return err;
	answered = etcdserverpb__delete_range_response__unpack(NULL, w->out.len_bytes, w->out.data);
	ASSERT(answered != NULL);
	w->result = answered->deleted;
	w->rev = store_head_rev(s);
	protobuf_c_message_free_unpacked(&answered->base, NULL);
	return ETCD_OK;
}

static void del_done(struct engine_op *op, enum etcd_error err)
{
	answer(wctl_of(op), err, "deleted");
}

static void cmd_del(struct ctl_client *c, const struct ctl_request *req, void *arg)
{
	const struct daemon *d = arg;
	struct wctl *w = wctl_new(d->self, c, req);

	if (w->key.len_bytes == 0 && !w->prefix)
		wctl_fail(w, ETCD_EMPTY_KEY);
	else
		submit(w, eval_del, del_done, false);
}

/* ---- Compaction ---- */

static enum etcd_error eval_compact(struct engine_op *op, struct store *s)
{
	struct wctl *w = wctl_of(op);

	w->rev = store_head_rev(s);
	return svc_do_compact(s, w->result);
}

static void compact_done(struct engine_op *op, enum etcd_error err)
{
	answer(wctl_of(op), err, "compact_revision");
}

static void compact_at(struct wctl *w, int64_t rev)
{
	w->result = rev;
	submit(w, eval_compact, compact_done, false);
}

static void on_rev(int64_t rev, enum etcd_error err, const char *why, void *arg)
{
	struct wctl *w;

	OBJ_CAST(w, arg, WCTL_MAGIC);
	w->wait = WCTL_NOTHING;
	if (w->client == NULL)
		wctl_free(w);
	else if (why != NULL)
		wctl_fail_with(w, "invalid", "write for example --before '7 days'", why);
	else if (err != ETCD_OK)
		wctl_fail(w, err);
	else if (rev <= store_compact_rev(w->self->svc.store) || rev == 0)
		wctl_fail_with(w, "not-found", NULL, "there is no history that is older");
	else
		compact_at(w, rev);
}

static void cmd_compact(struct ctl_client *c, const struct ctl_request *req, void *arg)
{
	const struct daemon *d = arg;
	struct wctl *w = wctl_new(d->self, c, req);
	const char *revision = json_string_value(json_object_get(req->args, "revision"));
	const char *before = json_string_value(json_object_get(req->args, "before"));
	char *end = NULL;
	long long rev = revision != NULL ? strtoll(revision, &end, 10) : 0;

	if ((revision == NULL) == (before == NULL))
		wctl_fail_with(w, "invalid", NULL, "give a revision or --before INTERVAL");
	else if (revision != NULL && (rev <= 0 || *end != '\0'))
		wctl_fail_with(w, "invalid", "give a whole number", "that is no revision");
	else if (revision != NULL)
		compact_at(w, rev);
	else {
		w->wait = WCTL_ANSWER;
		engine_rev_before(w->self->svc.engine, before, on_rev, w);
	}
}

/* ---- Status ---- */

static void add_alarm(const char *node, int64_t type, void *arg)
{
	json_t *alarms = arg;

	(void)json_array_append_new(
		alarms, json_pack("{s:s,s:s}", "node", node, "alarm",
				type == ETCDSERVERPB__ALARM_TYPE__NOSPACE ? "NOSPACE" : "CORRUPT"));
}

static json_t *status_row(const struct watchd *self)
{
	const struct services *svc = &self->svc;
	struct store_counts store;
	struct engine_counts engine;
	struct watch_counts watches;
	json_t *alarms = json_array();
	char cluster[20];

	store_get_counts(svc->store, &store);
	engine_get_counts(svc->engine, &engine);
	watch_get_counts(svc->watches, &watches);
	store_alarm_each(svc->store, add_alarm, alarms);
	snprintf(cluster, sizeof(cluster), "%llx", (unsigned long long)svc->header.cluster_id);
	return json_pack("{s:s,s:s,s:b,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:s,s:o}", //
		"node", svc->node,                                                        //
		"cluster_id", cluster,                                                    //
		"up", (int)engine.up,                                                     //
		"revision", (json_int_t)store_visible_rev(svc->store),                    //
		"compact_revision", (json_int_t)store_compact_rev(svc->store),            //
		"seq", (json_int_t)store_visible_seq(svc->store),                         //
		"keys", (json_int_t)store.keys,                                           //
		"leases", (json_int_t)store.leases,                                       //
		"watches", (json_int_t)watches.watchers,                                  //
		"log_bytes_in_use", (json_int_t)store.log_bytes,                          //
		"log_bytes", (json_int_t)engine.db_bytes,                                 //
		"quota_bytes", (json_int_t)self->conf.quota_bytes,                        //
		"memory_bytes", (json_int_t)store.memory_bytes,                           //
		"trouble", engine.trouble,                                                //
		"alarms", alarms);
}

static void cmd_status(struct ctl_client *c, const struct ctl_request *req, void *arg)
{
	const struct daemon *d = arg;

	(void)req;
	(void)ctl_row(c, status_row(d->self));
	ctl_ok(c);
}

/* ---- For the daemon ---- */

const struct ctl_handler watchd_commands[] = {
	{"watch.get", wctl_cmd_get},
	{"watch.put", cmd_put},
	{"watch.del", cmd_del},
	{"watch.watch", wctl_cmd_watch},
	{"watch.compact", cmd_compact},
	{"watch.status", cmd_status},
	{NULL, NULL},
};

void watchd_ctl_feed(struct watchd *self)
{
	list_for_each_safe (it, &self->ctl_requests) {
		struct wctl *w = list_entry(it, struct wctl, link);

		if (w->wait == WCTL_EVENTS)
			wctl_feed(w);
	}
}

void watchd_ctl_tick(struct watchd *self)
{
	list_for_each_safe (it, &self->ctl_requests) {
		struct wctl *w = list_entry(it, struct wctl, link);

		if (w->wait == WCTL_EVENTS)
			wctl_tick(w);
	}
}

void watchd_ctl_free(struct watchd *self)
{
	list_for_each_safe (it, &self->ctl_requests) {
		struct wctl *w = list_entry(it, struct wctl, link);

		w->wait = WCTL_NOTHING; /* there is no engine any more */
		wctl_free(w);
	}
}
