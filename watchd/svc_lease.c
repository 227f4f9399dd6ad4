/* SPDX-License-Identifier: PostgreSQL */
/*
 * Lease: granting and revoking are changes; how long a lease still lives only the lessor knows.
 *
 * A stream of KeepAlives has up to KEEPALIVES_MAX of them under way; then, or while its client
 * takes no answers, it is not read from. They are answered as they come to their end, which is
 * their order as long as no lease has to move. Its end waits for those under way.
 */
#include "config.h"

#include <stdlib.h>

#include "common/base/mem.h"
#include "watchd/svc.h"

#define KEEPALIVES_MAX 1000
#define KEEPALIVES_HIGH_BYTES 65536
#define KEEPALIVES_LOW_BYTES 16384
#define STREAM_MAGIC 0x6b616c76u
#define PING_MAGIC 0x6b617069u

MEM_TYPE(mem_keepalive_stream, "keepalive stream");
MEM_TYPE(mem_keepalive, "keepalive");

/* ---- Grant, Revoke ---- */

/* number[0]: the id, number[1]: the time to live; those that were asked for, then those chosen. */
static enum etcd_error eval_grant(struct engine_op *op, struct store *s)
{
	struct grpc_call *c = grpc_call_of(op);
	Etcdserverpb__LeaseGrantResponse answer = ETCDSERVERPB__LEASE_GRANT_RESPONSE__INIT;
	Etcdserverpb__ResponseHeader header;
	enum etcd_error err;

	buf_reset(&c->out);
	if (store_has_alarm(s, ETCDSERVERPB__ALARM_TYPE__CORRUPT))
		return ETCD_CORRUPT;
	err = lease_grant(s, &c->number[0], &c->number[1]);
	if (err != ETCD_OK)
		return err;
	grpc_header(c->svc, &header);
	header.revision = store_head_rev(s);
	answer.header = &header;
	answer.id = c->number[0];
	answer.ttl = c->number[1];
	grpc_pack(&c->out, &answer.base);
	return ETCD_OK;
}

void svc_lease_grant(struct grpc_call *c)
{
	const Etcdserverpb__LeaseGrantRequest *r =
		(const Etcdserverpb__LeaseGrantRequest *)c->request;

	c->number[0] = r->id;
	c->number[1] = r->ttl;
	grpc_change(c, eval_grant, true);
}

static enum etcd_error eval_revoke(struct engine_op *op, struct store *s)
{
	struct grpc_call *c = grpc_call_of(op);
	Etcdserverpb__LeaseRevokeResponse answer = ETCDSERVERPB__LEASE_REVOKE_RESPONSE__INIT;
	Etcdserverpb__ResponseHeader header;
	enum etcd_error err;

	buf_reset(&c->out);
	if (store_has_alarm(s, ETCDSERVERPB__ALARM_TYPE__CORRUPT))
		return ETCD_CORRUPT;
	err = lease_revoke(s, c->number[0]);
	if (err != ETCD_OK)
		return err;
	grpc_header(c->svc, &header);
	header.revision = store_head_rev(s);
	answer.header = &header;
	grpc_pack(&c->out, &answer.base);
	return ETCD_OK;
}

void svc_lease_revoke(struct grpc_call *c)
{
	c->number[0] = ((const Etcdserverpb__LeaseRevokeRequest *)c->request)->id;
	grpc_change(c, eval_revoke, false);
}

/* ---- TimeToLive, Leases ---- */

struct key_list {
	ProtobufCBinaryData *keys; /* bytes borrowed from the store */
	size_t n;
};

static bool add_key(struct store_bytes key, void *arg)
{
	struct key_list *l = arg;

	l->keys[l->n++] =
		(ProtobufCBinaryData){.data = (uint8_t *)(uintptr_t)key.data, .len = key.len};
	return true;
}

static void put_time_to_live(struct grpc_call *c, const struct store_lease *l, int64_t rev)
{
	const Etcdserverpb__LeaseTimeToLiveRequest *r =
		(const Etcdserverpb__LeaseTimeToLiveRequest *)c->request;
	Etcdserverpb__LeaseTimeToLiveResponse answer =
		ETCDSERVERPB__LEASE_TIME_TO_LIVE_RESPONSE__INIT;
	Etcdserverpb__ResponseHeader header;
	int64_t left_s = lessor_remaining_s(c->svc->lessor, r->id);
	struct key_list list = {.n = 0};

	grpc_header(c->svc, &header);
	header.revision = rev;
	answer.header = &header;
	answer.id = r->id;
	/* One that was granted just now has no deadline yet. */
	answer.ttl = l == NULL ? -1 : left_s >= 0 ? left_s : l->ttl_s;
	answer.grantedttl = l != NULL ? l->ttl_s : 0;
	if (l != NULL && r->keys && l->n_keys > 0) {
		list.keys = xcalloc(l->n_keys, sizeof(*list.keys));
		store_lease_keys(c->svc->store, l, add_key, &list);
		answer.n_keys = list.n;
		answer.keys = list.keys;
	}
	buf_reset(&c->out);
	grpc_pack(&c->out, &answer.base);
	free(list.keys);
}

static void time_to_live(struct grpc_call *c)
{
	struct store *s = c->svc->store;

	put_time_to_live(c, store_lease_find(s, c->number[0], false), store_visible_rev(s));
	grpc_reply(c);
}

/* Which keys are attached the store knows at the head only: answered when that is committed. */
static enum etcd_error eval_time_to_live(struct engine_op *op, struct store *s)
{
	struct grpc_call *c = grpc_call_of(op);

	put_time_to_live(c, store_lease_find(s, c->number[0], true), store_head_rev(s));
	return ETCD_OK;
}

void svc_lease_time_to_live(struct grpc_call *c)
{
	const Etcdserverpb__LeaseTimeToLiveRequest *r =
		(const Etcdserverpb__LeaseTimeToLiveRequest *)c->request;

	c->number[0] = r->id;
	if (r->keys)
		grpc_change(c, eval_time_to_live, false);
	else
		grpc_linearize(c, time_to_live);
}

struct lease_row {
	int64_t id, remaining_s;
};
struct lease_rows {
	struct lessor *lessor;
	struct lease_row *rows;
	size_t n, cap;
};

static bool add_lease(struct store_lease *l, void *arg)
{
	struct lease_rows *list = arg;

	if (list->n == list->cap) {
		list->cap = list->cap > 0 ? list->cap * 2 : 64;
		list->rows = xrealloc(list->rows, list->cap * sizeof(*list->rows));
	}
	list->rows[list->n++] = (struct lease_row){
		.id = l->id, .remaining_s = lessor_remaining_s(list->lessor, l->id)};
	return true;
}

/* Those that end first come first. */
static int by_end(const void *a, const void *b)
{
	const struct lease_row *x = a, *y = b;

	if (x->remaining_s != y->remaining_s)
		return x->remaining_s < y->remaining_s ? -1 : 1;
	return x->id < y->id ? -1 : x->id > y->id;
}

static void leases(struct grpc_call *c)
{
	Etcdserverpb__LeaseLeasesResponse answer = ETCDSERVERPB__LEASE_LEASES_RESPONSE__INIT;
	Etcdserverpb__ResponseHeader header;
	Etcdserverpb__LeaseStatus *status;
	struct lease_rows list = {.lessor = c->svc->lessor};

	store_lease_each(c->svc->store, add_lease, &list);
	if (list.n > 0)
		qsort(list.rows, list.n, sizeof(*list.rows), by_end);
	status = xcalloc(list.n + 1, sizeof(*status));
	answer.leases = xcalloc(list.n + 1, sizeof(*answer.leases));
	for (size_t i = 0; i < list.n; i++) {
		etcdserverpb__lease_status__init(&status[i]);
		status[i].id = list.rows[i].id;
		answer.leases[i] = &status[i];
	}
	answer.n_leases = list.n;
	grpc_header(c->svc, &header);
	answer.header = &header;
	grpc_reply_message(c, &answer.base);
	free(answer.leases);
	free(status);
	free(list.rows);
}

void svc_lease_leases(struct grpc_call *c)
{
	grpc_linearize(c, leases);
}

/* ---- KeepAlive ---- */

struct keepalive_stream {
	uint32_t magic;
	struct services *svc;
	struct grpc_stream stream;
	struct list pings;
	size_t n_pings;
	bool half_closed, paused;
};

struct keepalive {
	uint32_t magic;
	struct lease_keepalive k;
	struct list link;
	struct keepalive_stream *stream;
};

static void ping_free(struct keepalive *p)
{
	list_remove(&p->link);
	p->stream->n_pings--;
	p->magic = 0;
	mem_free(&mem_keepalive, p);
}

static void send_ttl(struct keepalive_stream *ks, int64_t id, int64_t ttl_s)
{
	Etcdserverpb__LeaseKeepAliveResponse answer = ETCDSERVERPB__LEASE_KEEP_ALIVE_RESPONSE__INIT;
	Etcdserverpb__ResponseHeader header;
	struct buf out;

	grpc_header(ks->svc, &header);
	answer.header = &header;
	answer.id = id;
	answer.ttl = ttl_s;
	buf_init(&out, 0);
	grpc_pack(&out, &answer.base);
	h2_stream_send(ks->stream.stream, out.data, out.len_bytes);
	buf_free(&out);
}

static void pause_if_busy(struct keepalive_stream *ks)
{
	bool busy = ks->n_pings >= KEEPALIVES_MAX ||
		    h2_stream_queued_bytes(ks->stream.stream) >= KEEPALIVES_HIGH_BYTES;

	if (busy != ks->paused)
		h2_stream_pause(ks->stream.stream, busy);
	ks->paused = busy;
}

static void on_pings_drained(struct h2_stream *s, void *user)
{
	struct keepalive_stream *ks;

	(void)s;
	OBJ_CAST(ks, user, STREAM_MAGIC);
	pause_if_busy(ks);
}

static void on_ping_done(struct lease_keepalive *k, int64_t ttl_s, enum etcd_error err)
{
	struct keepalive *p = list_entry(k, struct keepalive, k);
	struct keepalive_stream *ks = p->stream;
	int64_t id = k->id;

	OBJ_CHECK(p, PING_MAGIC);
	ping_free(p);
	if (h2_stream_is_over(ks->stream.stream))
		return;
	if (err != ETCD_OK) {
		grpc_end(ks->svc, ks->stream.stream, err);
		return;
	}
	send_ttl(ks, id, ttl_s);
	if (ks->half_closed && ks->n_pings == 0)
		h2_stream_end(ks->stream.stream, GRPC_OK, NULL);
	else
		pause_if_busy(ks);
}

static void on_ping(struct h2_stream *s, const uint8_t *data, size_t len, void *user)
{
	struct keepalive_stream *ks;
	struct keepalive *p;
	Etcdserverpb__LeaseKeepAliveRequest *r =
		etcdserverpb__lease_keep_alive_request__unpack(NULL, len, data);

	OBJ_CAST(ks, user, STREAM_MAGIC);
	if (r == NULL) {
		grpc_end_with(ks->svc, s, GRPC_INTERNAL, GRPC_MALFORMED_MESSAGE);
		return;
	}
	p = mem_new(&mem_keepalive, sizeof(*p));
	p->magic = PING_MAGIC;
	p->stream = ks;
	p->k.id = r->id;
	p->k.done = on_ping_done;
	p->k.deadline_ms = services_deadline(ks->svc);
	list_push_back(&ks->pings, &p->link);
	ks->n_pings++;
	pause_if_busy(ks);
	protobuf_c_message_free_unpacked(&r->base, NULL);
	lessor_keepalive(ks->svc->lessor, &p->k);
}

static void on_pings_end(struct h2_stream *s, void *user)
{
	struct keepalive_stream *ks;

	OBJ_CAST(ks, user, STREAM_MAGIC);
	ks->half_closed = true;
	if (ks->n_pings == 0)
		h2_stream_end(s, GRPC_OK, NULL);
}

static void on_pings_gone(struct h2_stream *s, void *user)
{
	struct keepalive_stream *ks;

	(void)s;
	OBJ_CAST(ks, user, STREAM_MAGIC);
	list_for_each_safe (it, &ks->pings) {
		struct keepalive *p = list_entry(it, struct keepalive, link);

		lessor_keepalive_cancel(ks->svc->lessor, &p->k);
		ping_free(p);
	}
	grpc_stream_remove(&ks->stream);
	ks->magic = 0;
	mem_free(&mem_keepalive_stream, ks);
}

void svc_keepalive_open(struct services *svc, struct h2_stream *s, bool leader)
{
	static const struct h2_call_ops ops = {.on_message = on_ping,
		.on_half_closed = on_pings_end,
		.on_gone = on_pings_gone,
		.on_drained = on_pings_drained,
		.low_bytes = KEEPALIVES_LOW_BYTES};
	struct keepalive_stream *ks = mem_new(&mem_keepalive_stream, sizeof(*ks));

	ks->magic = STREAM_MAGIC;
	ks->svc = svc;
	list_init(&ks->pings);
	grpc_stream_add(svc, &ks->stream, s, leader);
	h2_stream_accept(s, &ops, ks);
}
