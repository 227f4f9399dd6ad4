/* SPDX-License-Identifier: PostgreSQL */
/*
 * Packets from a client: one function per packet type, found by the table at the end. See session.h
 * for the states, mqtt_proto.h for what is refused before it comes here.
 *
 * QoS 1: the publish becomes a row (msglog) and waits as struct inbound; when its commit returns,
 * it is published to the subscribers and, in the order of arrival, acknowledged. A client that
 * leaves in between loses its PUBACK, not its message. On a crash in between the row may be there
 * without the PUBACK: the client sends again, which is QoS 1.
 */
#include "config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "brokerd/msglog.h"
#include "brokerd/session.h"
#include "common/base/err.h"
#include "common/base/log.h"
#include "common/base/mem.h"

#define INBOUND_MAGIC 0x6d696e62u

MEM_TYPE(mem_inbound, "inbound publish");
MEM_TYPE(mem_will, "will");

void session_send(struct session *s, const struct mqtt_packet *p)
{
	size_t before = s->out.len_bytes;
	mqtt_encode(&s->out, p);
	size_t len = s->out.len_bytes - before;
	if (s->max_out_bytes > 0 && len > s->max_out_bytes) {
		s->out.len_bytes = before; /* MQTT-3.1.2-24: never sent */
		broker_count(s->b, STAT_DROPPED_LARGE, 1);
		if (s->state == SESSION_UP)
			session_end(s, END_TOO_LARGE,
				"an answer is longer than the client's maximum packet size");
		return;
	}
	broker_flush_soon(s->b, s);
}

/* --- properties that travel with a message --- */

struct travel {
	struct buf props; /* encoded; the expiry interval, if any, stands last */
	size_t without_expiry;
	bool has_expiry;
	uint32_t expiry_s;
};

static bool travels(uint8_t id)
{
	static const uint64_t set =
		UINT64_C(1) << MQTT_PROP_PAYLOAD_FORMAT | UINT64_C(1) << MQTT_PROP_CONTENT_TYPE |
		UINT64_C(1) << MQTT_PROP_RESPONSE_TOPIC |
		UINT64_C(1) << MQTT_PROP_CORRELATION_DATA | UINT64_C(1) << MQTT_PROP_USER_PROPERTY;
	return (set >> id & 1) != 0;
}

static void travel_init(struct travel *t, const struct mqtt_props *props)
{
	*t = (struct travel){0};
	buf_init(&t->props, 0);
	struct rd r = rd_make(props->raw.p, props->raw.len);
	for (struct mqtt_prop prop; props->present != 0 && mqtt_prop_next(&r, &prop);) {
		if (travels(prop.row->id))
			buf_put(&t->props, prop.raw.p, prop.raw.len);
	}
	t->without_expiry = t->props.len_bytes;
	t->has_expiry = mqtt_prop_has(props, MQTT_PROP_MESSAGE_EXPIRY);
	if (t->has_expiry) {
		t->expiry_s = props->v[MQTT_PROP_MESSAGE_EXPIRY].num;
		mqtt_prop_put_num(&t->props, MQTT_PROP_MESSAGE_EXPIRY, t->expiry_s);
	}
}

/* --- inbound publishes --- */

static struct inbound *inbound_new(struct broker *b, struct message *m)
{
	struct inbound *in = mem_new(&mem_inbound, sizeof(*in));
	in->magic = INBOUND_MAGIC;
	in->b = b;
	in->m = message_ref(m);
	list_init(&in->in_session);
	list_push_back(&b->inbounds, &in->in_broker);
	b->n_waiting++;
	return in;
}

void inbound_free(struct inbound **in)
{
	struct inbound *gone = *in;
	*in = NULL;
	if (gone == NULL)
		return;
	OBJ_CHECK(gone, INBOUND_MAGIC);
	list_remove(&gone->in_session);
	list_remove(&gone->in_broker);
	gone->b->n_waiting--;
	message_unref(&gone->m);
	free(gone->client_id);
	free(gone->props);
	gone->magic = 0;
	mem_free(&mem_inbound, gone);
}

static void send_puback(struct session *s, uint16_t packet_id, uint8_t reason)
{
	struct mqtt_packet p = {.type = MQTT_PUBACK, .version = s->version};
	p.ack = (struct mqtt_ack){.packet_id = packet_id, .reason = reason};
	session_send(s, &p);
}

/* Its commit or refusal is known, and so is that of everything its client sent before. */
static void inbound_settle(struct inbound *in)
{
	if (!in->committed)
		return;
	size_t n = broker_publish(in->b, in->m);
	in->reason = n > 0 ? MQTT_RC_SUCCESS : MQTT_RC_NO_MATCHING_SUBSCRIBERS;
}

/* MQTT-4.6.0-2, MQTT-4.6.0-6: to subscribers and back to the client in the order of the publishes.
 * Their batches may be done in another: one that has to be tried again lets the next one pass. */
static void acknowledge(struct session *s)
{
	while (s->state == SESSION_UP && !list_empty(&s->inbound)) {
		struct inbound *in = list_first(&s->inbound, struct inbound, in_session);
		if (!in->done)
			break;
		inbound_settle(in);
		/* MQTT 3.1.1 has no negative PUBACK: not acknowledging is all there is. */
		if (in->reason >= MQTT_RC_UNSPECIFIED && s->version != MQTT_VERSION_5) {
			session_end(s, END_REFUSED, "the database refused a message");
			return;
		}
		uint16_t packet_id = in->packet_id;
		uint8_t reason = in->reason;
		s->n_inbound--;
		inbound_free(&in);
		send_puback(s, packet_id, reason);
	}
}

void inbound_logged(int err, const char *why, void *arg)
{
	struct inbound *in;
	OBJ_CAST(in, arg, INBOUND_MAGIC);
	struct broker *b = in->b;
	in->done = true;
	if (err == 0) {
		broker_count(b, STAT_IN_COMMITTED, 1);
		in->committed = true;
	} else {
		char topic[160];
		broker_count(b, STAT_IN_REFUSED, 1);
		log_limited(LOG_LEVEL_WARNING, "mqtt.refused",
			"message to topic %s refused by the database: %s; not acknowledged",
			log_escape(in->m->topic, in->m->topic_len, topic, sizeof(topic)),
			why != NULL ? why : err_str(err));
		in->reason = MQTT_RC_IMPLEMENTATION_SPECIFIC;
	}
	struct session *s = in->s;
	if (s == NULL) {
		inbound_settle(in);
		inbound_free(&in);
		return;
	}
	acknowledge(s);
	if (s->paused)
		broker_resume_first(b, s);
}

int inbound_log(struct inbound *in, const char *client_id, const void *props, size_t props_len)
{
	return msglog_add(in->b->writer, in->b->message_kind, client_id, in->m, props, props_len,
		inbound_logged, in);
}

void session_forget_inbound(struct session *s)
{
	list_for_each_safe (it, &s->inbound) {
		struct inbound *in = list_entry(it, struct inbound, in_session);
		list_remove(&in->in_session);
		in->s = NULL;
		if (!in->done)
			continue;
		inbound_settle(in);
		inbound_free(&in);
	}
	s->n_inbound = 0;
}

/* --- wills --- */

static void will_free(struct will **will)
{
	if (*will == NULL)
		return;
	message_unref(&(*will)->m);
	mem_free(&mem_will, *will);
	*will = NULL;
}

void session_drop_will(struct session *s)
{
	will_free(&s->will);
}

void session_publish_will(struct session *s)
{
	struct broker *b = s->b;
	if (s->will == NULL)
		return;
	struct message *m = s->will->m;
	struct buf props;
	buf_init(&props, 0);
	if (m->props_len > 0)
		buf_put(&props, m->props, m->props_len);
	if (s->will->has_expiry) {
		m->expires_ms = ev_now_ms() + (uint64_t)s->will->expiry_s * 1000;
		mqtt_prop_put_num(&props, MQTT_PROP_MESSAGE_EXPIRY, s->will->expiry_s);
	}
	broker_count(b, STAT_WILLS, 1);
	if (m->qos == 0) {
		(void)broker_publish(b, m); /* how many got it interests nobody */
	} else {
		struct inbound *in = inbound_new(b, m);
		if (inbound_log(in, s->client_id, props.data, props.len_bytes) != 0) {
			in->client_id = xstrdup(s->client_id);
			in->props_len = (uint32_t)props.len_bytes;
			in->props =
				props.len_bytes > 0 ? xmemdup(props.data, props.len_bytes) : NULL;
			list_push_back(&b->waiting_wills, &in->in_session);
		}
	}
	buf_free(&props);
	will_free(&s->will);
}

/* --- CONNECT --- */

/* False: refused. */
static bool check_connect(struct session *s, const struct mqtt_packet *p)
{
	const struct mqtt_connect *c = &p->connect;
	const struct {
		bool bad;
		enum end_reason end;
		const char *why;
	} checks[] = {
		{mqtt_prop_has(&p->props, MQTT_PROP_AUTH_METHOD), END_AUTH_METHOD,
			"no authentication method is supported"},
		{!s->b->conf.allow_anonymous, END_NOT_AUTHORIZED,
			"clients may not connect; see brokerd.allow_anonymous"},
		{c->client_id.len > SESSION_CLIENT_ID_MAX, END_CLIENT_ID,
			"the client identifier is longer than 1024 bytes"},
		{c->client_id.len == 0 && p->version != MQTT_VERSION_5 && !c->clean_start,
			END_CLIENT_ID, "an empty client identifier needs a clean session"},
		{c->has_will && c->will_qos == 2, END_QOS,
			"a will with QoS 2 is not supported; use QoS 0 or 1"},
		{c->has_will && c->will_retain, END_RETAIN,
			"a retained will is not supported; clear its retain flag"},
	};
	for (size_t i = 0; i < ARRAY_LEN(checks); i++) {
		if (checks[i].bad) {
			session_refuse(s, checks[i].end, p->version,
				brokerd_ends[checks[i].end].code, checks[i].why);
			return false;
		}
	}
	const char *why = !c->has_will ? NULL
				       : topic_name_error((const char *)c->will_topic.p,
						 c->will_topic.len, &s->b->conf.topic);
	if (why != NULL)
		session_refuse(s, END_TOPIC, p->version, MQTT_RC_TOPIC_NAME_INVALID, why);
	return why == NULL;
}

static void keep_will(struct session *s, const struct mqtt_connect *c)
{
	struct travel t;
	travel_init(&t, &c->will_props);
	s->will = mem_new(&mem_will, sizeof(*s->will));
	s->will->m =
		message_new((const char *)c->will_topic.p, c->will_topic.len, c->will_payload.p,
			c->will_payload.len, c->will_qos, t.props.data, t.without_expiry, NULL);
	s->will->has_expiry = t.has_expiry;
	s->will->expiry_s = t.expiry_s;
	buf_free(&t.props);
}

static void put_connack_props(
	struct session *s, const struct mqtt_packet *connect, struct buf *props)
{
	/* Sessions end with their connection, whatever was asked for. */
	if (mqtt_prop_num(&connect->props, MQTT_PROP_SESSION_EXPIRY, 0) != 0)
		mqtt_prop_put_num(props, MQTT_PROP_SESSION_EXPIRY, 0);
	if (s->receive_maximum != UINT16_MAX)
		mqtt_prop_put_num(props, MQTT_PROP_RECEIVE_MAXIMUM, s->receive_maximum);
	mqtt_prop_put_num(props, MQTT_PROP_MAXIMUM_QOS, 1);
	mqtt_prop_put_num(props, MQTT_PROP_RETAIN_AVAILABLE, 0);
	mqtt_prop_put_num(props, MQTT_PROP_MAXIMUM_PACKET_SIZE, s->max_in_bytes);
	if (connect->connect.client_id.len == 0)
		mqtt_prop_put_bytes(
			props, MQTT_PROP_ASSIGNED_CLIENT_ID, s->client_id, strlen(s->client_id));
	if (s->alias_maximum > 0)
		mqtt_prop_put_num(props, MQTT_PROP_TOPIC_ALIAS_MAXIMUM, s->alias_maximum);
	mqtt_prop_put_num(props, MQTT_PROP_SHARED_AVAILABLE, 0);
}

static void send_connack(struct session *s, const struct mqtt_packet *connect)
{
	struct mqtt_packet p = {.type = MQTT_CONNACK, .version = s->version};
	struct buf props;
	buf_init(&props, 0);
	if (s->version == MQTT_VERSION_5)
		put_connack_props(s, connect, &props);
	p.props.raw = (struct mqtt_bytes){.p = props.data, .len = (uint32_t)props.len_bytes};
	session_send(s, &p);
	buf_free(&props);
}

static enum handled on_connect(struct session *s, const struct mqtt_packet *p)
{
	const struct mqtt_connect *c = &p->connect;
	const struct broker_conf *conf = &s->b->conf;
	if (!check_connect(s, p))
		return HANDLED;
	s->version = p->version;
	s->keep_alive_s = c->keep_alive_s;
	s->receive_maximum = conf->receive_maximum;
	s->alias_maximum = p->version == MQTT_VERSION_5 ? conf->topic_alias_maximum : 0;
	uint32_t window = mqtt_prop_num(&p->props, MQTT_PROP_RECEIVE_MAXIMUM, UINT16_MAX);
	s->send_window =
		(uint16_t)(window < conf->receive_maximum ? window : conf->receive_maximum);
	s->max_out_bytes = mqtt_prop_num(&p->props, MQTT_PROP_MAXIMUM_PACKET_SIZE, 0);
	s->asked_expiry = mqtt_prop_num(&p->props, MQTT_PROP_SESSION_EXPIRY, 0) != 0;
	if (c->has_will)
		keep_will(s, c);
	char *id =
		c->client_id.len > 0
			? xstrndup((const char *)c->client_id.p, c->client_id.len)
			: xasprintf("howdah-%s-%016llx", s->b->node,
				  (unsigned long long)topic_hash(&s->serial, sizeof(s->serial), 1));
	session_up(s, id);
	send_connack(s, p);
	free(id);
	return HANDLED;
}

/* --- PUBLISH --- */

/* The topic with the alias resolved; false: the session has ended. */
static bool resolve_alias(
	struct session *s, const struct mqtt_packet *p, struct mqtt_bytes *ret_topic)
{
	*ret_topic = p->publish.topic;
	if (!mqtt_prop_has(&p->props, MQTT_PROP_TOPIC_ALIAS))
		return true;
	uint32_t n = p->props.v[MQTT_PROP_TOPIC_ALIAS].num;
	if (n > s->alias_maximum) {
		session_end(s, END_TOPIC_ALIAS, "a topic alias above the topic alias maximum");
		return false;
	}
	if (ret_topic->len > 0)
		return true;
	struct alias *alias = s->aliases != NULL ? &s->aliases[n - 1] : NULL;
	if (alias == NULL || alias->topic == NULL) {
		session_end(s, END_PROTOCOL, "a topic alias that was never set");
		return false;
	}
	*ret_topic = (struct mqtt_bytes){.p = (const uint8_t *)alias->topic, .len = alias->len};
	return true;
}

/* After the topic was found good, so that the length of what is kept is limited. */
static void remember_alias(struct session *s, const struct mqtt_packet *p)
{
	if (!mqtt_prop_has(&p->props, MQTT_PROP_TOPIC_ALIAS) || p->publish.topic.len == 0)
		return;
	if (s->aliases == NULL)
		s->aliases = xcalloc(s->alias_maximum, sizeof(*s->aliases));
	struct alias *alias = &s->aliases[p->props.v[MQTT_PROP_TOPIC_ALIAS].num - 1];
	free(alias->topic);
	alias->topic = xstrndup((const char *)p->publish.topic.p, p->publish.topic.len);
	alias->len = p->publish.topic.len;
}

static enum handled pause_reading(struct session *s)
{
	if (!s->paused) {
		s->paused = true;
		s->unread_ms = ev_now_ms();
		s->b->n_paused++;
		list_push_back(&s->b->paused, &s->in_paused);
		broker_count(s->b, STAT_PAUSES, 1);
	}
	return HANDLED_LATER;
}

/*
 * Whether a publish can be taken now: 0; -EAGAIN: pause; -ERR_STATE: the session has ended. While
 * somebody is congested, publishers pause. The congested ones themselves do not: their PUBACKs
 * stand behind their publishes, and holding those back would keep everybody waiting for ever. So
 * that such a client cannot grow its own queue without end, it is told to go at SELF_QUEUE_FACTOR
 * times the mark.
 */
static int may_publish(struct session *s, const struct mqtt_publish *pub)
{
	const struct broker *b = s->b;
	if (b->draining)
		return -EAGAIN;
	if (s->congested &&
		(s->q_len / SESSION_SELF_QUEUE_FACTOR > b->conf.max_queued_messages ||
			s->q_bytes / SESSION_SELF_QUEUE_FACTOR > b->conf.max_queued_bytes)) {
		session_end(s, END_QUOTA,
			"the client publishes faster than it acknowledges what comes back to it");
		return -ERR_STATE;
	}
	if (!s->congested && broker_congested(b))
		return -EAGAIN;
	if (pub->qos == 0 || s->n_inbound < s->receive_maximum)
		return 0;
	if (s->version != MQTT_VERSION_5)
		return -EAGAIN; /* 3.1.1 has no window to break: TCP holds it back */
	session_end(s, END_RECEIVE_MAXIMUM, "more QoS 1 publishes than the receive maximum");
	return -ERR_STATE;
}

static enum handled take_qos1(struct session *s, const struct mqtt_publish *pub, struct message *m,
	const struct travel *t)
{
	struct inbound *in = inbound_new(s->b, m);
	in->s = s;
	in->packet_id = pub->packet_id;
	if (inbound_log(in, s->client_id, t->props.data, t->props.len_bytes) != 0) {
		inbound_free(&in);
		return pause_reading(s);
	}
	list_push_back(&s->inbound, &in->in_session);
	s->n_inbound++;
	broker_count(s->b, STAT_IN_QOS1, 1);
	return HANDLED;
}

static enum handled take_publish(
	struct session *s, const struct mqtt_packet *p, struct mqtt_bytes topic)
{
	struct travel t;
	travel_init(&t, &p->props);
	struct message *m = message_new((const char *)topic.p, topic.len, p->publish.payload.p,
		p->publish.payload.len, p->publish.qos, t.props.data, t.without_expiry, NULL);
	m->origin = s->origin;
	if (t.has_expiry)
		m->expires_ms = ev_now_ms() + (uint64_t)t.expiry_s * 1000;
	enum handled done = HANDLED;
	if (p->publish.qos == 1) {
		done = take_qos1(s, &p->publish, m, &t);
	} else {
		broker_count(s->b, STAT_IN_QOS0, 1);
		(void)broker_publish(s->b, m); /* QoS 0: nobody is told how many got it */
	}
	if (done == HANDLED)
		s->n_publish_in++;
	message_unref(&m);
	buf_free(&t.props);
	return done;
}

static enum handled on_publish(struct session *s, const struct mqtt_packet *p)
{
	const struct mqtt_publish *pub = &p->publish;
	struct mqtt_bytes topic = {0};
	const char *why = NULL;
	if (pub->retain) {
		session_end(s, END_RETAIN,
			"retained messages are not supported; publish without the retain flag");
	} else if (pub->qos == 2) {
		session_end(s, END_QOS, "QoS 2 is not supported; publish with QoS 0 or 1");
	} else if (mqtt_prop_has(&p->props, MQTT_PROP_SUBSCRIPTION_ID)) {
		session_end(s, END_PROTOCOL, "a subscription identifier in a client's PUBLISH");
	} else if (resolve_alias(s, p, &topic)) {
		why = topic_name_error((const char *)topic.p, topic.len, &s->b->conf.topic);
		if (why != NULL)
			session_end(s, END_TOPIC, why);
	}
	if (s->state != SESSION_UP)
		return HANDLED;
	int err = may_publish(s, pub);
	if (err != 0)
		return err == -EAGAIN ? pause_reading(s) : HANDLED;
	remember_alias(s, p);
	return take_publish(s, p, topic);
}

static enum handled on_puback(struct session *s, const struct mqtt_packet *p)
{
	if (p->ack.reason >= MQTT_RC_UNSPECIFIED)
		broker_count(s->b, STAT_OUT_ACK_REFUSED, 1);
	bool known = session_acked(s, p->ack.packet_id);
	broker_count(s->b, known ? STAT_OUT_ACKED : STAT_OUT_ACK_UNKNOWN, 1);
	return HANDLED;
}

/* --- SUBSCRIBE, UNSUBSCRIBE --- */

static uint8_t subscribe_one(struct session *s, const struct mqtt_filter *f, uint32_t id)
{
	const char *filter = (const char *)f->filter.p;
	struct broker *b = s->b;
	if (topic_filter_error(filter, f->filter.len, &b->conf.topic) != NULL)
		return MQTT_RC_TOPIC_FILTER_INVALID;
	if (topic_filter_is_shared(filter, f->filter.len))
		return MQTT_RC_SHARED_NOT_SUPPORTED;
	bool fresh = false;
	struct topic_sub *sub;
	if (s->n_subs >= b->conf.max_subscriptions) {
		sub = topic_tree_find(b->tree, filter, f->filter.len, &s->subs);
		if (sub == NULL)
			return MQTT_RC_QUOTA_EXCEEDED;
	} else {
		sub = topic_tree_add(b->tree, filter, f->filter.len, s, &s->subs, &fresh);
	}
	s->n_subs += fresh;
	sub->qos = f->qos > 1 ? 1 : f->qos;
	sub->no_local = f->no_local;
	sub->id = id;
	return sub->qos;
}

static void send_suback(
	struct session *s, enum mqtt_type type, uint16_t packet_id, const struct buf *codes)
{
	struct mqtt_packet p = {.type = type, .version = s->version};
	p.suback.packet_id = packet_id;
	p.suback.codes = (struct mqtt_bytes){.p = codes->data, .len = (uint32_t)codes->len_bytes};
	session_send(s, &p);
}

static void log_sub_refused(struct session *s, const struct mqtt_filter *f, uint8_t code)
{
	char name[320], filter[160];
	broker_count(s->b, STAT_SUB_REFUSED, 1);
	log_limited(LOG_LEVEL_INFO, "mqtt.subscribe", "%s: subscription to %s refused: %s",
		session_name(s, name, sizeof(name)),
		log_escape(f->filter.p, f->filter.len, filter, sizeof(filter)),
		mqtt_reason_str(code));
}

static enum handled on_subscribe(struct session *s, const struct mqtt_packet *p)
{
	uint32_t id = mqtt_prop_num(&p->props, MQTT_PROP_SUBSCRIPTION_ID, 0);
	struct rd r = rd_make(p->subscribe.filters.p, p->subscribe.filters.len);
	struct buf codes;
	buf_init(&codes, 0);
	for (struct mqtt_filter f; mqtt_filter_next(&r, p->type, &f);) {
		uint8_t code = subscribe_one(s, &f, id);
		if (code >= MQTT_RC_UNSPECIFIED) {
			log_sub_refused(s, &f, code);
			if (s->version != MQTT_VERSION_5)
				code = MQTT_311_SUBACK_FAILURE;
		}
		buf_put_u8(&codes, code);
	}
	send_suback(s, MQTT_SUBACK, p->subscribe.packet_id, &codes);
	buf_free(&codes);
	return HANDLED;
}

static uint8_t unsubscribe_one(struct session *s, const struct mqtt_bytes *filter)
{
	const char *text = (const char *)filter->p;
	if (topic_filter_error(text, filter->len, &s->b->conf.topic) != NULL)
		return MQTT_RC_TOPIC_FILTER_INVALID;
	struct topic_sub *sub = topic_tree_find(s->b->tree, text, filter->len, &s->subs);
	if (sub == NULL)
		return MQTT_RC_NO_SUBSCRIPTION_EXISTED;
	topic_tree_remove(s->b->tree, sub);
	s->n_subs--;
	return MQTT_RC_SUCCESS;
}

static enum handled on_unsubscribe(struct session *s, const struct mqtt_packet *p)
{
	struct rd r = rd_make(p->subscribe.filters.p, p->subscribe.filters.len);
	struct buf codes;
	buf_init(&codes, 0);
	for (struct mqtt_filter f; mqtt_filter_next(&r, p->type, &f);) {
		uint8_t code = unsubscribe_one(s, &f.filter);
		if (s->version == MQTT_VERSION_5)
			buf_put_u8(&codes, code);
	}
	send_suback(s, MQTT_UNSUBACK, p->subscribe.packet_id, &codes);
	buf_free(&codes);
	return HANDLED;
}

/* --- the rest --- */

static enum handled on_pingreq(struct session *s, const struct mqtt_packet *p)
{
	struct mqtt_packet pong = {.type = MQTT_PINGRESP, .version = p->version};
	session_send(s, &pong);
	return HANDLED;
}

static enum handled on_disconnect(struct session *s, const struct mqtt_packet *p)
{
	/* Section 3.14.2.2.2: what was 0 at CONNECT cannot become something. */
	if (mqtt_prop_num(&p->props, MQTT_PROP_SESSION_EXPIRY, 0) != 0 && !s->asked_expiry) {
		session_end(s, END_PROTOCOL, "DISCONNECT sets a session expiry that was 0");
		return HANDLED;
	}
	if (mqtt_prop_has(&p->props, MQTT_PROP_SERVER_REFERENCE)) {
		session_end(s, END_PROTOCOL, "a server reference from a client");
		return HANDLED;
	}
	if (p->reason == MQTT_RC_SUCCESS)
		will_free(&s->will);
	session_end(s, END_CLIENT, mqtt_reason_str(p->reason));
	return HANDLED;
}

static enum handled on_second_connect(struct session *s, const struct mqtt_packet *p)
{
	(void)p;
	session_end(s, END_PROTOCOL, "a second CONNECT");
	return HANDLED;
}

static enum handled on_auth(struct session *s, const struct mqtt_packet *p)
{
	(void)p;
	/* Section 3.15: an error unless CONNECT brought an authentication method, which is refused.
	 */
	session_end(s, END_PROTOCOL, "AUTH without an authentication method in CONNECT");
	return HANDLED;
}

static enum handled on_unexpected(struct session *s, const struct mqtt_packet *p)
{
	(void)p;
	session_end(s, END_PROTOCOL, "a packet that only a server sends, or that belongs to QoS 2");
	return HANDLED;
}

/* What a client may send in state UP. In NEW only CONNECT comes through the codec. */
static enum handled (*const handlers[MQTT_TYPE_COUNT])(
	struct session *s, const struct mqtt_packet *p) = {
	[MQTT_CONNECT] = on_second_connect,
	[MQTT_CONNACK] = on_unexpected,
	[MQTT_PUBLISH] = on_publish,
	[MQTT_PUBACK] = on_puback,
	[MQTT_PUBREC] = on_unexpected,
	[MQTT_PUBREL] = on_unexpected,
	[MQTT_PUBCOMP] = on_unexpected,
	[MQTT_SUBSCRIBE] = on_subscribe,
	[MQTT_SUBACK] = on_unexpected,
	[MQTT_UNSUBSCRIBE] = on_unsubscribe,
	[MQTT_UNSUBACK] = on_unexpected,
	[MQTT_PINGREQ] = on_pingreq,
	[MQTT_PINGRESP] = on_unexpected,
	[MQTT_DISCONNECT] = on_disconnect,
	[MQTT_AUTH] = on_auth,
};

static enum end_reason end_of_code(uint8_t code)
{
	static const enum end_reason ends[] = {END_MALFORMED, END_PROTOCOL, END_TOPIC,
		END_TOPIC_ALIAS, END_VERSION, END_AUTH_METHOD};
	for (size_t i = 0; i < ARRAY_LEN(ends); i++) {
		if (brokerd_ends[ends[i]].code == code)
			return ends[i];
	}
	return END_PROTOCOL;
}

enum handled session_handle(struct session *s, const uint8_t *data, size_t len_bytes)
{
	struct mqtt_packet p;
	struct mqtt_error e;
	int err = mqtt_decode(data, len_bytes, s->version, &p, &e);
	ASSERT(err != -ERR_TRUNCATED); /* the caller gives whole packets */
	if (s->state == SESSION_NEW) {
		if (err == 0)
			return on_connect(s, &p);
		session_refuse(s, e.version == 0 ? END_NOT_MQTT : end_of_code(e.reason), e.version,
			e.reason, e.why);
		return HANDLED;
	}
	ASSERT(s->state == SESSION_UP);
	if (err == 0)
		return handlers[p.type](s, &p);
	session_end_code(s, end_of_code(e.reason), e.reason, e.why);
	return HANDLED;
}
