/* SPDX-License-Identifier: PostgreSQL */
/*
 * Maintenance: alarms, figures, hashes, VACUUM of the log. The snapshot is in svc_snapshot.c.
 *
 * Every node can write, so each calls itself the leader as long as it holds its place. The log's
 * seq stands where etcd has the index of its consensus log.
 */
#include "config.h"

#include <stdio.h>
#include <stdlib.h>

#include "common/base/mem.h"
#include "watchd/svc.h"

#define HASH_STEP_VERSIONS 2000
#define ALARMS_MAX 64 /* shown: of 2 types */

MEM_TYPE(mem_hash_call, "hash call");

/* ---- Alarms ---- */

struct alarm_list {
	Etcdserverpb__AlarmMember members[ALARMS_MAX], *pointers[ALARMS_MAX];
	size_t n;
	Etcdserverpb__AlarmType type; /* NONE: all */
};

static void add_alarm(const char *node, int64_t type, void *arg)
{
	struct alarm_list *list = arg;
	Etcdserverpb__AlarmMember *m = &list->members[list->n];

	if (list->n == ALARMS_MAX ||
		(list->type != ETCDSERVERPB__ALARM_TYPE__NONE && type != (int64_t)list->type))
		return;
	etcdserverpb__alarm_member__init(m);
	m->memberid = engine_member_id(node);
	m->alarm = (Etcdserverpb__AlarmType)type;
	list->pointers[list->n++] = m;
}

static void pack_alarms(struct grpc_call *c, struct alarm_list *list)
{
	Etcdserverpb__AlarmResponse answer = ETCDSERVERPB__ALARM_RESPONSE__INIT;

	answer.n_alarms = list->n;
	answer.alarms = list->pointers;
	grpc_pack(&c->out, &answer.base); /* without a header, as etcd's */
}

struct alarm_search {
	uint64_t member_id;
	int64_t type;
	char *node; /* owned; NULL: not found */
};

static void look_for_alarm(const char *node, int64_t type, void *arg)
{
	struct alarm_search *search = arg;

	if (search->node == NULL && type == search->type &&
		(search->member_id == 0 || engine_member_id(node) == search->member_id))
		search->node = xstrdup(node);
}

/* A node raises its own alarm only: the row of the log says whose it is. */
static enum etcd_error eval_activate(struct engine_op *op, struct store *s)
{
	struct grpc_call *c = grpc_call_of(op);
	const Etcdserverpb__AlarmRequest *r = (const Etcdserverpb__AlarmRequest *)c->request;
	struct alarm_list list = {.n = 0};

	buf_reset(&c->out);
	if (r->memberid != 0 && r->memberid != c->svc->header.member_id)
		return ETCD_MEMBER_NOT_FOUND;
	if (r->alarm != ETCDSERVERPB__ALARM_TYPE__NONE) {
		store_alarm(s, r->alarm);
		add_alarm(c->svc->node, r->alarm, &list);
	}
	pack_alarms(c, &list);
	return ETCD_OK;
}

static enum etcd_error eval_deactivate(struct engine_op *op, struct store *s)
{
	struct grpc_call *c = grpc_call_of(op);
	const Etcdserverpb__AlarmRequest *r = (const Etcdserverpb__AlarmRequest *)c->request;
	struct alarm_search search = {.member_id = r->memberid, .type = r->alarm};
	struct alarm_list list = {.n = 0};

	buf_reset(&c->out);
	store_alarm_each(s, look_for_alarm, &search);
	if (search.node != NULL) {
		store_disarm(s, search.node, r->alarm);
		add_alarm(search.node, r->alarm, &list);
	}
	free(search.node);
	pack_alarms(c, &list);
	return ETCD_OK;
}

static void get_alarms(struct grpc_call *c)
{
	struct alarm_list list = {.type = ((const Etcdserverpb__AlarmRequest *)c->request)->alarm};

	store_alarm_each(c->svc->store, add_alarm, &list);
	buf_reset(&c->out);
	pack_alarms(c, &list);
	grpc_reply(c);
}

void svc_alarm(struct grpc_call *c)
{
	switch (((const Etcdserverpb__AlarmRequest *)c->request)->action) {
	case ETCDSERVERPB__ALARM_REQUEST__ALARM_ACTION__GET:
		grpc_linearize(c, get_alarms);
		break;
	case ETCDSERVERPB__ALARM_REQUEST__ALARM_ACTION__ACTIVATE:
		grpc_change(c, eval_activate, false);
		break;
	case ETCDSERVERPB__ALARM_REQUEST__ALARM_ACTION__DEACTIVATE:
		grpc_change(c, eval_deactivate, false);
		break;
	default:
		grpc_fail_with(c, GRPC_INTERNAL, GRPC_MALFORMED_REQUEST);
		break;
	}
}

/* ---- Status ---- */

#define ALARM_TEXT_MAX 64

struct alarm_texts {
	char texts[ALARMS_MAX][ALARM_TEXT_MAX], *pointers[ALARMS_MAX];
	size_t n;
};

/* As etcd prints its message. */
static void add_alarm_text(const char *node, int64_t type, void *arg)
{
	struct alarm_texts *t = arg;

	if (t->n == ALARMS_MAX)
		return;
	snprintf(t->texts[t->n], ALARM_TEXT_MAX, "memberID:%llu alarm:%s ",
		(unsigned long long)engine_member_id(node),
		type == ETCDSERVERPB__ALARM_TYPE__NOSPACE ? "NOSPACE" : "CORRUPT");
	t->pointers[t->n] = t->texts[t->n];
	t->n++;
}

void svc_status(struct grpc_call *c)
{
	Etcdserverpb__StatusResponse answer = ETCDSERVERPB__STATUS_RESPONSE__INIT;
	Etcdserverpb__ResponseHeader header;
	char version[] = ETCD_API_VERSION, no_leader[] = "etcdserver: no leader";
	struct alarm_texts alarms = {.n = 0};
	struct engine_counts engine;
	struct store_counts store;

	engine_get_counts(c->svc->engine, &engine);
	store_get_counts(c->svc->store, &store);
	store_alarm_each(c->svc->store, add_alarm_text, &alarms);
	if (!engine.up && alarms.n < ALARMS_MAX)
		alarms.pointers[alarms.n++] = no_leader;
	grpc_header(c->svc, &header);
	answer.header = &header;
	answer.version = version;
	answer.dbsize = (int64_t)engine.db_bytes;
	answer.dbsizeinuse = (int64_t)store.log_bytes;
	answer.leader = engine.up ? header.member_id : 0;
	answer.raftindex = (uint64_t)store_visible_seq(c->svc->store);
	answer.raftappliedindex = answer.raftindex;
	answer.raftterm = header.raft_term;
	answer.n_errors = alarms.n;
	answer.errors = alarms.pointers;
	grpc_reply_message(c, &answer.base);
}

/* ---- Defragment ---- */

static void on_defragmented(enum etcd_error err, void *arg)
{
	Etcdserverpb__DefragmentResponse answer = ETCDSERVERPB__DEFRAGMENT_RESPONSE__INIT;
	struct grpc_call *c = grpc_ticket_take(arg);

	if (c == NULL)
		return;
	if (err != ETCD_OK)
		grpc_fail(c, err);
	else
		grpc_reply_message(c, &answer.base);
}

void svc_defragment(struct grpc_call *c)
{
	engine_defragment(c->svc->engine, on_defragmented, grpc_ticket(c));
}

/* ---- Hashes ---- */

static void hash_release(struct grpc_call *c)
{
	struct store_hash *h = c->state;

	if (h == NULL)
		return;
	store_hash_end(h);
	mem_free(&mem_hash_call, h);
	c->state = NULL;
}

/* number[0]: HashKV was asked. */
static void hash_reply(struct grpc_call *c, const struct store_hash *h)
{
	Etcdserverpb__HashKVResponse kv = ETCDSERVERPB__HASH_KVRESPONSE__INIT;
	Etcdserverpb__HashResponse all = ETCDSERVERPB__HASH_RESPONSE__INIT;
	Etcdserverpb__ResponseHeader header;

	grpc_header(c->svc, &header);
	kv.header = all.header = &header;
	kv.hash = all.hash = h->crc;
	kv.compact_revision = h->compact_rev;
	grpc_reply_message(c, c->number[0] != 0 ? &kv.base : &all.base);
}

static void hash_step(void *arg)
{
	struct grpc_call *c = arg;
	struct store_hash *h = c->state;

	if (h2_stream_is_over(c->stream))
		return;
	bool more = store_hash_step(c->svc->store, h, HASH_STEP_VERSIONS);
	if (h->pin.lost)
		grpc_fail(c, ETCD_TIMEOUT); /* the store was loaded anew */
	else if (more)
		grpc_later(c, hash_step);
	else
		hash_reply(c, h);
}

static void hash_begin(struct grpc_call *c, int64_t rev)
{
	struct store_hash *h = mem_new(&mem_hash_call, sizeof(*h));

	h->rev = rev;
	c->state = h;
	c->release = hash_release;
	hash_step(c);
}

void svc_hash(struct grpc_call *c)
{
	if (!engine_is_loaded(c->svc->engine))
		grpc_fail(c, ETCD_TIMEOUT);
	else
		hash_begin(c, store_visible_rev(c->svc->store));
}

void svc_hash_kv(struct grpc_call *c)
{
	int64_t rev = ((const Etcdserverpb__HashKVRequest *)c->request)->revision;
	int64_t now = store_visible_rev(c->svc->store);

	c->number[0] = 1;
	if (!engine_is_loaded(c->svc->engine))
		grpc_fail(c, ETCD_TIMEOUT);
	else if (rev > now)
		grpc_fail(c, ETCD_FUTURE_REV);
	else if (rev > 0 && rev <= store_compact_rev(c->svc->store))
		grpc_fail(c, ETCD_COMPACTED);
	else
		hash_begin(c, rev > 0 ? rev : now);
}
