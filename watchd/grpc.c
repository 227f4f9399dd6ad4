/* SPDX-License-Identifier: PostgreSQL */
/* See grpc.h. */
#include "config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/mem.h"
#include "watchd/grpc.h"
#include "watchd/svc.h"
#include "watchd/watchd_stats.h"

#define CALL_MAGIC 0x67727063u
/* What an entry of etcd's consensus log adds to a request: the limit counts it too. */
#define REQUEST_OVERHEAD_BYTES 18

MEM_TYPE(mem_grpc_call, "grpc call");
MEM_TYPE(mem_grpc_ticket, "grpc ticket");

/* clang-format off */
const struct grpc_method grpc_methods[] = {
#define UNARY(service, method, message, counter, fn, changes_)                                    \
	{.path = "/etcdserverpb." service "/" method, .name = counter,                            \
		.request = &etcdserverpb__##message##__descriptor, .begin = fn, .changes = changes_}
	UNARY("KV", "Range", range_request, "range", svc_range, false),
	UNARY("KV", "Put", put_request, "put", svc_put, true),
	UNARY("KV", "Txn", txn_request, "txn", svc_txn, false),
	UNARY("KV", "DeleteRange", delete_range_request, "delete_range", svc_delete_range, true),
	UNARY("KV", "Compact", compaction_request, "compact", svc_compact, true),
	UNARY("Lease", "LeaseGrant", lease_grant_request, "lease_grant", svc_lease_grant, true),
	UNARY("Lease", "LeaseRevoke", lease_revoke_request, "lease_revoke", svc_lease_revoke, true),
	UNARY("Lease", "LeaseTimeToLive", lease_time_to_live_request, "lease_time_to_live",
		svc_lease_time_to_live, false),
	UNARY("Lease", "LeaseLeases", lease_leases_request, "lease_leases", svc_lease_leases, false),
	UNARY("Cluster", "MemberList", member_list_request, "member_list", svc_member_list, false),
	UNARY("Maintenance", "Alarm", alarm_request, "alarm", svc_alarm, true),
	UNARY("Maintenance", "Status", status_request, "status", svc_status, false),
	UNARY("Maintenance", "Defragment", defragment_request, "defragment", svc_defragment, false),
	UNARY("Maintenance", "Hash", hash_request, "hash", svc_hash, false),
	UNARY("Maintenance", "HashKV", hash_kvrequest, "hash_kv", svc_hash_kv, false),
	UNARY("Maintenance", "Snapshot", snapshot_request, "snapshot", svc_snapshot, false),
#undef UNARY
	{.path = "/etcdserverpb.Watch/Watch", .name = "watch", .open = svc_watch_open},
	{.path = "/etcdserverpb.Lease/LeaseKeepAlive", .name = "lease_keep_alive",
		.open = svc_keepalive_open},
	{.path = NULL},
};
/* clang-format on */
_Static_assert(ARRAY_LEN(grpc_methods) - 1 == GRPC_METHOD_COUNT, "a counter for each method");

uint64_t services_deadline(const struct services *svc)
{
	return ev_now_ms() + svc->conf->request_timeout_ms;
}

struct grpc_call *grpc_call_of(struct engine_op *op)
{
	struct grpc_call *c = list_entry(op, struct grpc_call, op);

	OBJ_CHECK(c, CALL_MAGIC);
	return c;
}

static struct grpc_call *call_of_read(struct engine_read *r)
{
	struct grpc_call *c = list_entry(r, struct grpc_call, read);

	OBJ_CHECK(c, CALL_MAGIC);
	return c;
}

/* ---- Answers ---- */

void grpc_end_with(
	struct services *svc, struct h2_stream *s, enum grpc_status status, const char *text)
{
	if (status != GRPC_OK)
		stats_add(svc->stats, STAT_ANSWERS + (size_t)status - 1, 1);
	h2_stream_end(s, status, text);
}

void grpc_end(struct services *svc, struct h2_stream *s, enum etcd_error err)
{
	const struct etcd_error_row *row = etcd_error_row(err);

	grpc_end_with(svc, s, row->code, err != ETCD_OK ? row->text : NULL);
}

void grpc_fail(struct grpc_call *c, enum etcd_error err)
{
	ASSERT(err != ETCD_OK && !c->answered);
	c->answered = true;
	grpc_end(c->svc, c->stream, err);
}

void grpc_fail_with(struct grpc_call *c, enum grpc_status status, const char *text)
{
	ASSERT(!c->answered);
	c->answered = true;
	grpc_end_with(c->svc, c->stream, status, text);
}

void grpc_reply(struct grpc_call *c)
{
	ASSERT(!c->answered && !c->out.failed);
	c->answered = true;
	h2_stream_reply(c->stream, c->out.data, c->out.len_bytes);
}

void grpc_pack(struct buf *out, const ProtobufCMessage *m)
{
	size_t len = protobuf_c_message_get_packed_size(m);
	uint8_t *to = buf_reserve(out, len);

	ASSERT(to != NULL); /* out has no limit */
	buf_commit(out, protobuf_c_message_pack(m, to));
}

void grpc_reply_message(struct grpc_call *c, const ProtobufCMessage *m)
{
	buf_reset(&c->out);
	grpc_pack(&c->out, m);
	grpc_reply(c);
}

void grpc_header(const struct services *svc, Etcdserverpb__ResponseHeader *h)
{
	etcdserverpb__response_header__init(h);
	h->cluster_id = svc->header.cluster_id;
	h->member_id = svc->header.member_id;
	h->raft_term = svc->header.raft_term;
	h->revision = store_visible_rev(svc->store);
}

/* ---- Waiting for the engine ---- */

static void on_op_done(struct engine_op *op, enum etcd_error err)
{
	struct grpc_call *c = grpc_call_of(op);

	c->op_waits = false;
	if (err != ETCD_OK)
		grpc_fail(c, err);
	else
		grpc_reply(c);
}

void grpc_change(struct grpc_call *c,
	enum etcd_error (*eval)(struct engine_op *op, struct store *s), bool grows)
{
	c->op = (struct engine_op){.eval = eval,
		.done = on_op_done,
		.cost_bytes = c->request_bytes,
		.grows = grows,
		.deadline_ms = services_deadline(c->svc)};
	c->op_waits = true;
	engine_submit(c->svc->engine, &c->op);
}

static void on_read_done(struct engine_read *r, enum etcd_error err)
{
	struct grpc_call *c = call_of_read(r);

	c->read_waits = false;
	if (err != ETCD_OK)
		grpc_fail(c, err);
	else
		c->on_read(c);
}

void grpc_linearize(struct grpc_call *c, void (*fn)(struct grpc_call *c))
{
	c->on_read = fn;
	c->read = (struct engine_read){
		.done = on_read_done, .deadline_ms = services_deadline(c->svc)};
	c->read_waits = true;
	engine_read(c->svc->engine, &c->read);
}

struct grpc_ticket {
	struct list link;
	struct grpc_call *call; /* NULL: gone */
};

struct grpc_ticket *grpc_ticket(struct grpc_call *c)
{
	struct grpc_ticket *t = mem_new(&mem_grpc_ticket, sizeof(*t));

	ASSERT(c->ticket == NULL);
	t->call = c;
	c->ticket = t;
	list_push_back(&c->svc->tickets, &t->link);
	return t;
}

struct grpc_call *grpc_ticket_take(struct grpc_ticket *t)
{
	struct grpc_call *c = t->call;

	if (c != NULL)
		c->ticket = NULL;
	list_remove(&t->link);
	mem_free(&mem_grpc_ticket, t);
	return c;
}

void grpc_tickets_free(struct services *svc)
{
	list_for_each_safe (it, &svc->tickets)
		(void)grpc_ticket_take(list_entry(it, struct grpc_ticket, link));
}

void grpc_later(struct grpc_call *c, void (*fn)(void *call))
{
	ev_defer(c->svc->loop, &c->later, fn, c);
}

/* ---- A unary call ---- */

static void call_free(struct grpc_call *c)
{
	if (c->op_waits)
		engine_cancel(c->svc->engine, &c->op);
	if (c->read_waits)
		engine_read_cancel(c->svc->engine, &c->read);
	if (c->ticket != NULL)
		c->ticket->call = NULL;
	ev_defer_cancel(c->svc->loop, &c->later);
	if (c->release != NULL)
		c->release(c);
	if (c->request != NULL)
		protobuf_c_message_free_unpacked(c->request, NULL);
	buf_free(&c->out);
	c->magic = 0;
	mem_free(&mem_grpc_call, c);
}

static void on_gone(struct h2_stream *s, void *user)
{
	struct grpc_call *c;

	(void)s;
	OBJ_CAST(c, user, CALL_MAGIC);
	call_free(c);
}

bool grpc_is_too_large(const struct grpc_call *c)
{
	return c->request_bytes + REQUEST_OVERHEAD_BYTES > c->svc->conf->max_request_bytes;
}

/* True: goes on. */
static bool judge_bytes(struct grpc_call *c, const uint8_t *data, size_t len)
{
	if (c->method->changes && grpc_is_too_large(c)) {
		grpc_fail(c, ETCD_REQUEST_TOO_LARGE);
		return false;
	}
	/* The decoder recurses. */
	if (c->method->begin == svc_txn && kv_txn_is_too_deep(data, len)) {
		grpc_fail(c, ETCD_TOO_MANY_OPS);
		return false;
	}
	c->request = protobuf_c_message_unpack(c->method->request, NULL, len, data);
	if (c->request == NULL)
		grpc_fail_with(c, GRPC_INTERNAL, GRPC_MALFORMED_REQUEST);
	return c->request != NULL;
}

static void on_message(struct h2_stream *s, const uint8_t *data, size_t len, void *user)
{
	struct grpc_call *c;

	(void)s;
	OBJ_CAST(c, user, CALL_MAGIC);
	c->request_bytes = len;
	if (judge_bytes(c, data, len))
		c->method->begin(c);
}

static void on_half_closed(struct h2_stream *s, void *user)
{
	struct grpc_call *c;

	(void)s;
	OBJ_CAST(c, user, CALL_MAGIC);
	if (c->request == NULL && !c->answered)
		grpc_fail_with(c, GRPC_INTERNAL, "grpc: the call has no request");
}

static void on_drained(struct h2_stream *s, void *user)
{
	struct grpc_call *c;

	(void)s;
	OBJ_CAST(c, user, CALL_MAGIC);
	if (c->on_drained != NULL)
		c->on_drained(c);
}

static void unary_begin(struct services *svc, struct h2_stream *s, const struct grpc_method *m)
{
	static const struct h2_call_ops ops = {.on_message = on_message,
		.on_half_closed = on_half_closed,
		.on_gone = on_gone,
		.on_drained = on_drained,
		.low_bytes = GRPC_LOW_BYTES,
		.unary = true};
	struct grpc_call *c = mem_new(&mem_grpc_call, sizeof(*c));

	c->magic = CALL_MAGIC;
	c->svc = svc;
	c->stream = s;
	c->method = m;
	buf_init(&c->out, 0);
	h2_stream_accept(s, &ops, c);
}

/* ---- Streams ---- */

void grpc_stream_add(struct services *svc, struct grpc_stream *g, struct h2_stream *s, bool leader)
{
	g->stream = s;
	g->leader = leader;
	list_push_back(&svc->streams, &g->in_all);
}

void grpc_stream_remove(struct grpc_stream *g)
{
	list_remove(&g->in_all);
}

void grpc_streams_end(struct services *svc, enum etcd_error err, bool all)
{
	list_for_each_safe (it, &svc->streams) {
		struct grpc_stream *g = list_entry(it, struct grpc_stream, in_all);

		if ((all || g->leader) && !h2_stream_is_over(g->stream))
			grpc_end(svc, g->stream, err);
	}
}

/* ---- Dispatch ---- */

static const struct grpc_method *find_method(const char *path)
{
	for (const struct grpc_method *m = grpc_methods; m->path != NULL; m++)
		if (strcmp(m->path, path) == 0)
			return m;
	return NULL;
}

/* A service that is served under this path, if not with this method? */
static bool is_service(const char *path, size_t len)
{
	for (const struct grpc_method *m = grpc_methods; m->path != NULL; m++)
		if (strncmp(m->path, path, len) == 0 && m->path[len] == '/')
			return true;
	return false;
}

/* As grpc-go says it. */
static void refuse_path(struct services *svc, struct h2_stream *s, const char *path)
{
	const char *slash = path[0] == '/' ? strrchr(path + 1, '/') : NULL;
	char text[256];

	if (slash == NULL) {
		snprintf(text, sizeof(text), "malformed method name: \"%.100s\"", path);
		grpc_end_with(svc, s, GRPC_RESOURCE_EXHAUSTED, text);
		return;
	}
	int len = slash - path < 100 ? (int)(slash - path) : 100;
	if (is_service(path, (size_t)(slash - path)))
		snprintf(text, sizeof(text), "unknown method %.100s for service %.*s", slash + 1,
			len - 1, path + 1);
	else
		snprintf(text, sizeof(text), "unknown service %.*s", len - 1, path + 1);
	grpc_end_with(svc, s, GRPC_UNIMPLEMENTED, text);
}

void grpc_on_call(struct h2_stream *s, const struct h2_request *rq, void *arg)
{
	struct services *svc = arg;
	const struct grpc_method *m = find_method(rq->path);

	if (m == NULL) {
		stats_add(svc->stats, STAT_UNKNOWN_METHOD, 1);
		refuse_path(svc, s, rq->path);
		return;
	}
	stats_add(svc->stats, STAT_METHODS + (size_t)(m - grpc_methods), 1);
	if (svc->stopping)
		grpc_end(svc, s, ETCD_STOPPED);
	else if (rq->has_leader && !engine_is_up(svc->engine))
		grpc_end(svc, s, ETCD_NO_LEADER);
	else if (m->open != NULL)
		m->open(svc, s, rq->has_leader);
	else
		unary_begin(svc, s, m);
}
