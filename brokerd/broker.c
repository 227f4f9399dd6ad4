/* SPDX-License-Identifier: PostgreSQL */
/*
 * The broker's core, see broker.h and broker_int.h.
 *
 *     sources: clients' PUBLISH (session_in.c), table changes (changes.c)
 *        |  broker_publish: match, one delivery per session
 *        v
 *     sessions' queues --over their mark--> congested --> sources pause --back under half-->
 * on_room
 *
 * Invariants: (1) n_congested is the number of sessions with congested set; (2) a session is in
 * paused exactly while its paused is set; (3) callbacks of sources run deferred, never from inside
 * a call of theirs.
 */
#include "config.h"

#include <stdlib.h>
#include <string.h>

#include "brokerd/session.h"
#include "common/base/err.h"
#include "common/base/log.h"
#include "common/base/mem.h"

MEM_TYPE(mem_broker, "broker");

/* --- delivery --- */

struct match_state {
	struct broker *b;
	const struct message *m;
	size_t n;
};

static void on_match(struct topic_sub *sub, void *arg)
{
	struct match_state *st = arg;
	struct session *s;
	OBJ_CAST(s, sub->owner, SESSION_MAGIC);
	if (sub->no_local && st->m->origin != 0 && st->m->origin == s->origin)
		return;
	if (s->match_generation != st->b->match_generation) {
		s->match_generation = st->b->match_generation;
		s->match_subs = NULL;
		s->match_qos = 0;
		s->match_next = st->b->matched;
		st->b->matched = s;
		st->n++;
	}
	sub->match_next = s->match_subs;
	s->match_subs = sub;
	if (sub->qos > s->match_qos)
		s->match_qos = sub->qos;
}

size_t broker_publish(struct broker *b, struct message *m)
{
	OBJ_CHECK(b, BROKER_MAGIC);
	struct match_state st = {.b = b, .m = m};
	b->match_generation++;
	b->matched = NULL;
	topic_tree_match(b->tree, m->topic, m->topic_len, on_match, &st);
	for (struct session *s = b->matched; s != NULL; s = s->match_next)
		session_deliver(s, m);
	b->matched = NULL;
	return st.n;
}

bool broker_wants(struct broker *b, const char *topic, size_t topic_len)
{
	OBJ_CHECK(b, BROKER_MAGIC);
	return topic_tree_matches(b->tree, topic, topic_len);
}

bool broker_congested(const struct broker *b)
{
	return b->n_congested > 0;
}

void broker_on_room(struct broker *b, void (*cb)(void *arg), void *arg)
{
	OBJ_CHECK(b, BROKER_MAGIC);
	ASSERT(b->n_on_room < BROKER_ROOM_CALLBACKS_MAX);
	b->on_room[b->n_on_room].cb = cb;
	b->on_room[b->n_on_room++].arg = arg;
}

/* --- pausing and going on --- */

static void resume_some(struct broker *b, size_t n);

static void run_resume(void *arg)
{
	struct broker *b;
	OBJ_CAST(b, arg, BROKER_MAGIC);
	/* Those that pause again go to the end, so that everybody gets a turn: one may have to wait
	 * for what the next one need not wait for. */
	for (size_t i = 0; i < BROKER_RESUME_BUDGET && b->n_to_resume > 0; i++) {
		b->n_to_resume--;
		if (!list_empty(&b->paused))
			session_resume(list_first(&b->paused, struct session, in_paused));
	}
	resume_some(b, b->n_to_resume);
}

static void resume_some(struct broker *b, size_t n)
{
	b->n_to_resume = n < b->n_paused ? n : b->n_paused;
	if (!b->draining && b->n_to_resume > 0)
		ev_defer(b->loop, &b->resume, run_resume, b);
}

void broker_resume_soon(struct broker *b)
{
	resume_some(b, b->n_paused);
}

void broker_resume_first(struct broker *b, struct session *s)
{
	ASSERT(s->paused);
	list_remove(&s->in_paused);
	list_push_front(&b->paused, &s->in_paused);
	resume_some(b, b->n_to_resume + 1);
}

static void run_room(void *arg)
{
	struct broker *b;
	OBJ_CAST(b, arg, BROKER_MAGIC);
	for (size_t i = 0; i < b->n_on_room && !broker_congested(b); i++)
		b->on_room[i].cb(b->on_room[i].arg);
	broker_resume_soon(b);
}

void broker_count_congested(struct broker *b, bool congested)
{
	if (congested) {
		if (b->n_congested++ == 0)
			log_debug("mqtt.congested",
				"a client's queue is over its mark: sources pause");
		return;
	}
	ASSERT(b->n_congested > 0);
	if (--b->n_congested == 0) {
		log_debug("mqtt.congested", "no client's queue is over its mark: sources go on");
		ev_defer(b->loop, &b->room, run_room, b);
	}
}

static void log_waiting_wills(struct broker *b)
{
	while (!list_empty(&b->waiting_wills)) {
		struct inbound *in = list_first(&b->waiting_wills, struct inbound, in_session);
		if (inbound_log(in, in->client_id, in->props, in->props_len) != 0)
			return;
		list_remove(&in->in_session);
	}
}

void broker_writer_room(struct broker *b)
{
	OBJ_CHECK(b, BROKER_MAGIC);
	log_waiting_wills(b);
	broker_resume_soon(b);
}

/* --- sending --- */

static void run_flush(void *arg)
{
	struct broker *b;
	OBJ_CAST(b, arg, BROKER_MAGIC);
	struct list now = LIST_INIT(now);
	list_splice_back(&now, &b->dirty);
	while (!list_empty(&now)) {
		struct session *s = list_first(&now, struct session, in_dirty);
		list_remove(&s->in_dirty);
		session_flush(s);
	}
}

void broker_flush_soon(struct broker *b, struct session *s)
{
	if (s->state != SESSION_GONE && list_empty(&s->in_dirty)) {
		list_push_back(&b->dirty, &s->in_dirty);
		ev_defer(b->loop, &b->flush, run_flush, b);
	}
}

/* --- accepting --- */

static bool may_accept(void *arg)
{
	struct broker *b;
	OBJ_CAST(b, arg, BROKER_MAGIC);
	return b->n_connections < b->conf.max_connections;
}

static void on_accepted(int fd, void *arg)
{
	struct broker *b;
	OBJ_CAST(b, arg, BROKER_MAGIC);
	broker_count(b, STAT_ACCEPTED, 1);
	(void)session_new(b, fd); /* the broker owns it */
}

static void on_maximum(const char *url, void *arg)
{
	struct broker *b;
	OBJ_CAST(b, arg, BROKER_MAGIC);
	log_limited(LOG_LEVEL_WARNING, "mqtt.accept",
		"listener %s: connection closed: %zu are open; raise brokerd.max_connections", url,
		b->n_connections);
	broker_count(b, STAT_OVER_MAXIMUM, 1);
}

static void on_short(const char *url, int err, bool first, bool closed, void *arg)
{
	struct broker *b;
	OBJ_CAST(b, arg, BROKER_MAGIC);
	if (first)
		log_limited(LOG_LEVEL_WARNING, "mqtt.accept",
			"listener %s: cannot accept: %s; raise the limit on open files "
			"(LimitNOFILE=), resting for %d ms",
			url, err_str(err), LISTENER_REST_MS);
	if (closed)
		broker_count(b, STAT_NO_DESCRIPTOR, 1);
}

const struct listener_ops broker_listener_ops = {
	.name = "mqtt listener",
	.may_accept = may_accept,
	.on_accepted = on_accepted,
	.on_maximum = on_maximum,
	.on_short = on_short,
};

/* --- life --- */

struct broker *broker_new(
	struct ev_loop *loop, struct stats *stats, const struct broker_conf *conf, const char *node)
{
	struct broker *b = mem_new(&mem_broker, sizeof(*b));
	b->magic = BROKER_MAGIC;
	b->loop = loop;
	b->stats = stats;
	b->conf = *conf;
	b->node = xstrdup(node);
	b->tree = topic_tree_new();
	list_init(&b->sessions);
	list_init(&b->dirty);
	list_init(&b->paused);
	list_init(&b->waiting_wills);
	list_init(&b->inbounds);
	return b;
}

void broker_set_writer(struct broker *b, struct batch *writer, size_t message_kind)
{
	b->writer = writer;
	b->message_kind = message_kind;
}

static void end_all(struct broker *b, enum end_reason reason, const char *why)
{
	list_for_each_safe (it, &b->sessions) {
		struct session *s = list_entry(it, struct session, in_all);
		session_end(s, reason, why);
	}
}

void broker_free(struct broker **b)
{
	struct broker *gone = *b;
	*b = NULL;
	if (gone == NULL)
		return;
	OBJ_CHECK(gone, BROKER_MAGIC);
	gone->draining = true;
	/* Wills have been published by broker_drain; whoever is left now leaves without one, since
	 * the writer that would keep it is going as well. */
	list_for_each_safe (it, &gone->sessions) {
		struct session *s = list_entry(it, struct session, in_all);
		session_drop_will(s);
		session_end(s, END_SHUTDOWN, "the broker stops");
		session_abandon(s);
	}
	while (!list_empty(&gone->inbounds)) {
		struct inbound *in = list_first(&gone->inbounds, struct inbound, in_broker);
		inbound_free(&in);
	}
	ev_defer_cancel(gone->loop, &gone->flush);
	ev_defer_cancel(gone->loop, &gone->resume);
	ev_defer_cancel(gone->loop, &gone->room);
	topic_tree_free(&gone->tree);
	free(gone->node);
	mem_free(&mem_broker, gone);
}

/* --- stop --- */

struct drain {
	struct broker *b;
	struct ev_timer timer;
	struct ev_deferred end;
	void (*done)(void *arg);
	void *arg;
	bool told; /* everybody has got its DISCONNECT */
	bool over;
};

MEM_TYPE(mem_drain, "broker drain");

static void drain_end(void *arg)
{
	struct drain *d = arg;
	void (*done)(void *arg) = d->done;
	void *done_arg = d->arg;
	mem_free(&mem_drain, d);
	done(done_arg);
}

static void drain_over(struct drain *d)
{
	if (d->over)
		return;
	d->over = true;
	ev_timer_stop(&d->timer);
	ev_defer(d->b->loop, &d->end, drain_end, d);
}

static void drain_tell(struct drain *d)
{
	d->told = true;
	end_all(d->b, END_SHUTDOWN, "the broker stops");
}

static bool drain_is_quiet(const struct broker *b)
{
	return list_empty(&b->sessions) && b->n_waiting == 0;
}

#define DRAIN_LOOK_MS 20

/* Looks, every DRAIN_LOOK_MS, how far it is: commits first, then goodbyes. */
static void on_drain_timer(void *arg)
{
	struct drain *d = arg;
	struct broker *b = d->b;
	static const uint64_t looks = BROKER_DRAIN_MS / DRAIN_LOOK_MS;
	b->drain_looks++;
	bool late = b->drain_looks > looks;
	log_waiting_wills(b);
	if (!d->told && (b->n_waiting == 0 || b->drain_looks > looks / 2))
		drain_tell(d);
	else if (d->told && (late || drain_is_quiet(b)))
		drain_over(d);
	if (!d->over)
		ev_timer_start(&d->timer, DRAIN_LOOK_MS);
}

void broker_drain(struct broker *b, void (*done)(void *arg), void *arg)
{
	OBJ_CHECK(b, BROKER_MAGIC);
	struct drain *d = mem_new(&mem_drain, sizeof(*d));
	b->draining = true;
	d->b = b;
	d->done = done;
	d->arg = arg;
	ev_timer_init(&d->timer, b->loop, "mqtt drain", on_drain_timer, d);
	ev_timer_start(&d->timer, 0);
}

void broker_update_stats(struct broker *b)
{
	struct batch_counts c = {0};
	if (b->writer != NULL)
		batch_get_counts(b->writer, &c);
	const struct {
		size_t stat;
		uint64_t v;
	} gauges[] = {
		{STAT_CONNECTIONS, b->n_connections},
		{STAT_SESSIONS, b->n_sessions},
		{STAT_SUBSCRIPTIONS, topic_tree_subs(b->tree)},
		{STAT_IN_WAITING, b->n_waiting},
		{STAT_OUT_QUEUED, b->n_queued},
		{STAT_CONGESTED, b->n_congested},
		{STAT_PAUSED, b->n_paused},
		{STAT_BATCHES, c.batches_committed},
		{STAT_BATCHES_RETRIED, c.batches_retried},
		{STAT_IN_DOUBT, c.in_doubt_resolved},
	};
	for (size_t i = 0; i < ARRAY_LEN(gauges); i++)
		stats_set(b->stats, gauges[i].stat, gauges[i].v);
}
