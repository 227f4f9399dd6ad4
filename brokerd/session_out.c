/* SPDX-License-Identifier: PostgreSQL */
/*
 * Messages to a client: the queue of QoS 1 deliveries, its window, and QoS 0. See session.h for the
 * picture and the invariants.
 *
 * Bounds: a QoS 0 message is dropped and counted when max_queued_bytes wait for the client already.
 * QoS 1 messages are never dropped; they wait as references, and over max_queued_messages or
 * max_queued_bytes the session is congested, which pauses the sources.
 */
#include "config.h"

#include <stdlib.h>

#include "brokerd/session.h"
#include "common/base/err.h"
#include "common/base/mem.h"

#define QUEUE_MIN 8

static struct delivery *queue_at(struct session *s, uint32_t i)
{
	ASSERT(i < s->q_len);
	return &s->q[(s->q_head + i) & (s->q_cap - 1)];
}

static void queue_grow(struct session *s)
{
	uint32_t cap = s->q_cap == 0 ? QUEUE_MIN : s->q_cap * 2;
	struct delivery *q = xcalloc(cap, sizeof(*q));
	for (uint32_t i = 0; i < s->q_len; i++)
		q[i] = *queue_at(s, i);
	free(s->q);
	s->q = q;
	s->q_cap = cap;
	s->q_head = 0;
}

/* What a queued message stands for in max_queued_bytes. */
static uint64_t weight(const struct message *m)
{
	return sizeof(struct delivery) + sizeof(*m) + m->topic_len + m->payload_len + m->props_len;
}

static void update_congested(struct session *s)
{
	const struct broker_conf *c = &s->b->conf;
	bool over = s->q_len > c->max_queued_messages || s->q_bytes > c->max_queued_bytes;
	bool under =
		s->q_len <= c->max_queued_messages / 2 && s->q_bytes <= c->max_queued_bytes / 2;
	if (s->congested ? under : over) {
		s->congested = !s->congested;
		broker_count_congested(s->b, s->congested);
		/* It must be read from now, whatever paused it: its PUBACKs are what everybody
		 * waits for. */
		if (s->congested && s->paused)
			broker_resume_first(s->b, s);
	}
}

/* The delivery is acknowledged or given up. */
static void delivery_done(struct session *s, struct delivery *d)
{
	ASSERT(s->q_bytes >= weight(d->m));
	s->q_bytes -= weight(d->m);
	s->b->n_queued--;
	if (d->n_ids > 1)
		free(d->ids.many);
	d->n_ids = 0;
	message_unref(&d->m);
}

/* Takes what is done off the front. */
static void queue_trim(struct session *s)
{
	while (s->q_sent > 0 && queue_at(s, 0)->m == NULL) {
		s->q_head = (s->q_head + 1) & (s->q_cap - 1);
		s->q_len--;
		s->q_sent--;
		s->q_pid = s->q_pid == UINT16_MAX ? 1 : s->q_pid + 1;
	}
	if (s->q_len == 0 && s->q_cap > QUEUE_MIN) {
		free(s->q);
		s->q = NULL;
		s->q_cap = s->q_head = 0;
	}
}

static uint16_t packet_id_at(const struct session *s, uint32_t i)
{
	return (uint16_t)((s->q_pid - 1u + i) % UINT16_MAX + 1);
}

/* 0; -ERR_LIMIT: longer than the client takes; -ERR_STATE: expired. */
static int put_publish(struct session *s, const struct message *m, uint8_t qos, uint16_t packet_id,
	const uint32_t *ids, size_t n_ids)
{
	struct mqtt_publish_parts parts = {
		.version = s->version,
		.qos = qos,
		.packet_id = packet_id,
		.topic = {.p = (const uint8_t *)m->topic, .len = m->topic_len},
		.payload = {.p = m->payload, .len = m->payload_len},
		.props = {.p = m->props, .len = m->props_len},
		.sub_ids = ids,
		.n_sub_ids = n_ids,
	};
	if (m->expires_ms != 0) {
		uint64_t now = ev_now_ms();
		if (now >= m->expires_ms)
			return -ERR_STATE;
		parts.has_expiry = true;
		parts.expiry_s = (uint32_t)((m->expires_ms - now + 999) / 1000);
	}
	return mqtt_encode_publish(&s->out, &parts, s->max_out_bytes);
}

static void count_drop(struct session *s, int err)
{
	s->n_dropped++;
	broker_count(s->b, err == -ERR_STATE ? STAT_DROPPED_EXPIRED : STAT_DROPPED_LARGE, 1);
}

void session_pump(struct session *s)
{
	bool idle = s->q_sent == 0;
	while (s->q_sent < s->q_len && s->q_sent < s->send_window &&
		session_out_bytes(s) < SESSION_OUT_CHUNK) {
		struct delivery *d = queue_at(s, s->q_sent);
		const uint32_t *ids = d->n_ids > 1 ? d->ids.many : &d->ids.one;
		int err = put_publish(s, d->m, 1, packet_id_at(s, s->q_sent), ids, d->n_ids);
		s->q_sent++;
		if (err == 0) {
			s->n_publish_out++;
			broker_count(s->b, STAT_OUT_QOS1, 1);
			continue;
		}
		/* MQTT-3.1.2-25: as if it had been acknowledged. */
		count_drop(s, err);
		delivery_done(s, d);
		queue_trim(s);
	}
	if (idle && s->q_sent > 0) {
		s->acked_ms = ev_now_ms();
		session_wake_at(s, s->acked_ms + s->b->conf.ack_timeout_ms);
	}
	update_congested(s);
}

bool session_acked(struct session *s, uint16_t packet_id)
{
	uint32_t i = (packet_id + (uint32_t)UINT16_MAX - s->q_pid) % UINT16_MAX;
	if (i >= s->q_sent || queue_at(s, i)->m == NULL)
		return false;
	s->acked_ms = ev_now_ms();
	delivery_done(s, queue_at(s, i));
	queue_trim(s);
	update_congested(s);
	if (s->q_sent < s->q_len)
		broker_flush_soon(s->b, s);
	return true;
}

void session_drop_queue(struct session *s)
{
	for (uint32_t i = 0; i < s->q_len; i++) {
		struct delivery *d = queue_at(s, i);
		if (d->m != NULL)
			delivery_done(s, d);
	}
	ASSERT(s->q_bytes == 0);
	free(s->q);
	s->q = NULL;
	s->q_cap = s->q_head = s->q_len = s->q_sent = 0;
	if (s->congested) {
		s->congested = false;
		broker_count_congested(s->b, false);
	}
}

/* The subscription identifiers of all subscriptions that matched, oldest subscription first. */
static uint32_t *collect_ids(const struct session *s, uint32_t *ret_n)
{
	uint32_t n = 0;
	for (const struct topic_sub *sub = s->match_subs; sub != NULL; sub = sub->match_next)
		n += sub->id != 0;
	*ret_n = n;
	if (n == 0)
		return NULL;
	uint32_t *ids = xcalloc(n, sizeof(*ids));
	for (const struct topic_sub *sub = s->match_subs; sub != NULL; sub = sub->match_next) {
		if (sub->id != 0)
			ids[--n] = sub->id;
	}
	return ids;
}

static void deliver_qos0(struct session *s, struct message *m, const uint32_t *ids, uint32_t n_ids)
{
	if (session_out_bytes(s) >= s->b->conf.max_queued_bytes) {
		s->n_dropped++;
		broker_count(s->b, STAT_DROPPED_SLOW, 1);
		return;
	}
	int err = put_publish(s, m, 0, 0, ids, n_ids);
	if (err != 0) {
		count_drop(s, err);
		return;
	}
	s->n_publish_out++;
	broker_count(s->b, STAT_OUT_QOS0, 1);
	broker_flush_soon(s->b, s);
}

static void enqueue(struct session *s, struct message *m, uint32_t **ids, uint32_t n_ids)
{
	if (s->q_len == 0) {
		s->acked_ms = ev_now_ms();
		session_wake_at(s, s->acked_ms + s->b->conf.ack_timeout_ms);
	}
	if (s->q_len == s->q_cap)
		queue_grow(s);
	s->q_len++;
	struct delivery *d = queue_at(s, s->q_len - 1);
	*d = (struct delivery){.m = message_ref(m), .n_ids = n_ids};
	if (n_ids > 1) {
		d->ids.many = *ids;
		*ids = NULL;
	} else if (n_ids == 1) {
		d->ids.one = **ids;
	}
	s->q_bytes += weight(m);
	s->b->n_queued++;
	update_congested(s);
	broker_flush_soon(s->b, s);
}

void session_deliver(struct session *s, struct message *m)
{
	ASSERT(s->state == SESSION_UP);
	uint32_t n_ids = 0;
	uint32_t *ids = s->version == MQTT_VERSION_5 ? collect_ids(s, &n_ids) : NULL;
	if (m->qos == 0 || s->match_qos == 0)
		deliver_qos0(s, m, ids, n_ids);
	else
		enqueue(s, m, &ids, n_ids);
	free(ids);
}
