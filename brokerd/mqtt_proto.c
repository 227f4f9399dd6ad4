/* SPDX-License-Identifier: PostgreSQL */
/*
 * Decoding MQTT packets. One small function per packet, found by table; each reads its fields from
 * a bounded reader and refuses with the reason code of the standard. Pure; see mqtt_proto.h.
 *
 *     fixed header:  type << 4 | flags, varint remaining length
 *
 * Invariants: nothing is read beyond the packet; nothing is allocated; a packet that decodes has no
 * bytes left over.
 */
#include "config.h"

#include <string.h>

#include "brokerd/mqtt_decode.h"
#include "common/base/err.h"
#include "common/base/mem.h"

#define MALFORMED MQTT_RC_MALFORMED
#define PROTOCOL MQTT_RC_PROTOCOL_ERROR

int mqtt_frame_peek(const void *data, size_t len_bytes, struct mqtt_frame *ret_frame)
{
	struct rd r = rd_make(data, len_bytes);
	if (len_bytes < 2)
		return -ERR_TRUNCATED;
	uint8_t first = rd_u8(&r);
	uint32_t remaining = 0;
	int err = mqtt_get_varint(&r, &remaining);
	if (err != 0)
		return err;
	*ret_frame = (struct mqtt_frame){.type = first >> 4,
		.flags = first & 0x0F,
		.header_bytes = len_bytes - r.left_bytes,
		.body_bytes = remaining};
	return 0;
}

static int short_packet(struct mqtt_error *e)
{
	return mqtt_refuse(e, MALFORMED, "the packet ends before its fields do");
}

static int get_packet_id(struct rd *r, uint16_t *ret_id, struct mqtt_error *e)
{
	uint16_t id = rd_be16(r);
	if (r->failed)
		return short_packet(e);
	if (id == 0)
		return mqtt_refuse(e, PROTOCOL, "the packet identifier is 0");
	*ret_id = id;
	return 0;
}

static bool has_wildcard(const struct mqtt_bytes *t)
{
	return memchr(t->p, '+', t->len) != NULL || memchr(t->p, '#', t->len) != NULL;
}

/* --- CONNECT --- */

static int get_protocol(struct rd *r, struct mqtt_packet *p, struct mqtt_error *e)
{
	struct mqtt_bytes name;
	e->version = 0;
	int err = mqtt_get_binary(r, &name, e);
	if (err != 0)
		return err;
	uint8_t level = rd_u8(r);
	if (r->failed)
		return short_packet(e);
	if (name.len == 6 && memcmp(name.p, "MQIsdp", 6) == 0) {
		e->version = MQTT_VERSION_311;
		return mqtt_refuse(e, MQTT_RC_UNSUPPORTED_VERSION,
			"MQTT 3.1 is not spoken here; use 3.1.1 or 5.0");
	}
	if (name.len != 4 || memcmp(name.p, "MQTT", 4) != 0)
		return mqtt_refuse(e, MQTT_RC_UNSUPPORTED_VERSION, "the protocol is not MQTT");
	e->version = level < MQTT_VERSION_5 ? MQTT_VERSION_311 : MQTT_VERSION_5;
	if (level != MQTT_VERSION_311 && level != MQTT_VERSION_5)
		return mqtt_refuse(e, MQTT_RC_UNSUPPORTED_VERSION,
			"this version of MQTT is not spoken here; use 3.1.1 or 5.0");
	p->version = level;
	return 0;
}

/* MQTT-3.1.2-3 and following. */
static int get_connect_flags(struct rd *r, struct mqtt_packet *p, struct mqtt_error *e)
{
	struct mqtt_connect *c = &p->connect;
	uint8_t flags = rd_u8(r);
	c->keep_alive_s = rd_be16(r);
	if (r->failed)
		return short_packet(e);
	c->clean_start = (flags & 0x02) != 0;
	c->has_will = (flags & 0x04) != 0;
	c->will_qos = flags >> 3 & 3;
	c->will_retain = (flags & 0x20) != 0;
	c->has_password = (flags & 0x40) != 0;
	c->has_username = (flags & 0x80) != 0;
	if ((flags & 0x01) != 0)
		return mqtt_refuse(e, MALFORMED, "the reserved flag of CONNECT is set");
	if (!c->has_will && (c->will_qos != 0 || c->will_retain))
		return mqtt_refuse(
			e, MALFORMED, "a will's QoS or retain flag is set without a will");
	if (c->will_qos == 3)
		return mqtt_refuse(e, MALFORMED, "the will's QoS is 3");
	if (p->version == MQTT_VERSION_311 && c->has_password && !c->has_username)
		return mqtt_refuse(e, MALFORMED, "a password without a user name");
	return 0;
}

static int get_will(struct rd *r, struct mqtt_packet *p, struct mqtt_error *e)
{
	struct mqtt_connect *c = &p->connect;
	int err = 0;
	if (!c->has_will)
		return 0;
	if (p->version == MQTT_VERSION_5)
		err = mqtt_get_props(r, MQTT_IN_WILL, &c->will_props, e);
	if (err == 0)
		err = mqtt_get_string(r, &c->will_topic, e);
	if (err == 0 && (c->will_topic.len == 0 || has_wildcard(&c->will_topic)))
		err = mqtt_refuse(e, MQTT_RC_TOPIC_NAME_INVALID,
			"the will's topic is empty or holds a wildcard");
	return err != 0 ? err : mqtt_get_binary(r, &c->will_payload, e);
}

static int decode_connect(struct rd *r, uint8_t flags, struct mqtt_packet *p, struct mqtt_error *e)
{
	struct mqtt_connect *c = &p->connect;
	(void)flags;
	memset(c, 0, offsetof(struct mqtt_connect, will_props));
	c->will_props.present = 0;
	c->will_props.raw.len = 0;
	int err = get_protocol(r, p, e);
	if (err == 0)
		err = get_connect_flags(r, p, e);
	if (err == 0 && p->version == MQTT_VERSION_5)
		err = mqtt_get_props(r, MQTT_IN(MQTT_CONNECT), &p->props, e);
	if (err == 0 && mqtt_prop_has(&p->props, MQTT_PROP_AUTH_DATA) &&
		!mqtt_prop_has(&p->props, MQTT_PROP_AUTH_METHOD))
		err = mqtt_refuse(e, PROTOCOL, "authentication data without a method");
	if (err == 0)
		err = mqtt_get_string(r, &c->client_id, e);
	if (err == 0)
		err = get_will(r, p, e);
	if (err == 0 && c->has_username)
		err = mqtt_get_string(r, &c->username, e);
	if (err == 0 && c->has_password)
		err = mqtt_get_binary(r, &c->password, e);
	return err;
}

static int decode_connack(struct rd *r, uint8_t flags, struct mqtt_packet *p, struct mqtt_error *e)
{
	(void)flags;
	uint8_t present = rd_u8(r);
	uint8_t code = rd_u8(r);
	if (r->failed)
		return short_packet(e);
	if ((present & 0xFE) != 0)
		return mqtt_refuse(e, MALFORMED, "reserved flags of CONNACK are set");
	bool known = p->version == MQTT_VERSION_5 ? mqtt_reason_allowed(MQTT_CONNACK, code)
						  : code <= MQTT_311_NOT_AUTHORIZED;
	if (!known)
		return mqtt_refuse(e, PROTOCOL, "this packet has no such reason code");
	if (present != 0 && code != 0)
		return mqtt_refuse(e, PROTOCOL, "a session is present in a refusal");
	p->connack = (struct mqtt_connack){.session_present = present != 0, .code = code};
	return p->version == MQTT_VERSION_5 ? mqtt_get_props(r, MQTT_IN(MQTT_CONNACK), &p->props, e)
					    : 0;
}

/* --- PUBLISH and its acknowledgements --- */

static int check_publish_topic(const struct mqtt_packet *p, struct mqtt_error *e)
{
	const struct mqtt_bytes *t = &p->publish.topic;
	if (has_wildcard(t))
		return mqtt_refuse(
			e, MQTT_RC_TOPIC_NAME_INVALID, "the topic name holds a wildcard");
	if (t->len > 0 || mqtt_prop_has(&p->props, MQTT_PROP_TOPIC_ALIAS))
		return 0;
	return mqtt_refuse(
		e, p->version == MQTT_VERSION_5 ? PROTOCOL : MALFORMED, "the topic name is empty");
}

static int decode_publish(struct rd *r, uint8_t flags, struct mqtt_packet *p, struct mqtt_error *e)
{
	struct mqtt_publish *pub = &p->publish;
	*pub = (struct mqtt_publish){
		.dup = (flags & 8) != 0, .qos = flags >> 1 & 3, .retain = (flags & 1) != 0};
	if (pub->qos == 3)
		return mqtt_refuse(e, MALFORMED, "QoS 3");
	if (pub->dup && pub->qos == 0)
		return mqtt_refuse(e, MALFORMED, "the DUP flag is set with QoS 0");
	int err = mqtt_get_string(r, &pub->topic, e);
	if (err == 0 && pub->qos > 0)
		err = get_packet_id(r, &pub->packet_id, e);
	if (err == 0 && p->version == MQTT_VERSION_5)
		err = mqtt_get_props(r, MQTT_IN(MQTT_PUBLISH), &p->props, e);
	if (err == 0)
		err = check_publish_topic(p, e);
	if (err != 0)
		return err;
	uint32_t len = (uint32_t)r->left_bytes;
	pub->payload = (struct mqtt_bytes){
		.p = len > 0 ? rd_bytes(r, len) : (const uint8_t *)"", .len = len};
	return 0;
}

static int decode_ack(struct rd *r, uint8_t flags, struct mqtt_packet *p, struct mqtt_error *e)
{
	(void)flags;
	p->ack = (struct mqtt_ack){0};
	int err = get_packet_id(r, &p->ack.packet_id, e);
	if (err != 0 || p->version != MQTT_VERSION_5 || r->left_bytes == 0)
		return err;
	p->ack.reason = rd_u8(r);
	if (!mqtt_reason_allowed(p->type, p->ack.reason))
		return mqtt_refuse(e, PROTOCOL, "this packet has no such reason code");
	return r->left_bytes > 0 ? mqtt_get_props(r, MQTT_IN(p->type), &p->props, e) : 0;
}

/* --- SUBSCRIBE, UNSUBSCRIBE and their acknowledgements --- */

static int get_filter(struct rd *r, const struct mqtt_packet *p, struct mqtt_error *e)
{
	struct mqtt_bytes filter;
	int err = mqtt_get_string(r, &filter, e);
	if (err != 0 || p->type == MQTT_UNSUBSCRIBE)
		return err;
	uint8_t options = rd_u8(r);
	if (r->failed)
		return short_packet(e);
	bool v5 = p->version == MQTT_VERSION_5;
	if ((options & (v5 ? 0xC0 : 0xFC)) != 0)
		return mqtt_refuse(e, MALFORMED, "reserved bits of a subscription are set");
	if ((options & 3) == 3)
		return mqtt_refuse(e, v5 ? PROTOCOL : MALFORMED, "QoS 3 in a subscription");
	if ((options >> 4 & 3) == 3)
		return mqtt_refuse(e, PROTOCOL, "retain handling 3 in a subscription");
	if ((options & 4) != 0 && filter.len >= 7 && memcmp(filter.p, "$share/", 7) == 0)
		return mqtt_refuse(e, PROTOCOL, "no local with a shared subscription");
	return 0;
}

static int decode_subscribe(
	struct rd *r, uint8_t flags, struct mqtt_packet *p, struct mqtt_error *e)
{
	(void)flags;
	struct mqtt_subscribe *s = &p->subscribe;
	*s = (struct mqtt_subscribe){0};
	int err = get_packet_id(r, &s->packet_id, e);
	if (err == 0 && p->version == MQTT_VERSION_5)
		err = mqtt_get_props(r, MQTT_IN(p->type), &p->props, e);
	if (err != 0)
		return err;
	if (r->left_bytes == 0)
		return mqtt_refuse(e, PROTOCOL, "there is no topic filter in the packet");
	s->filters = (struct mqtt_bytes){.p = r->p, .len = (uint32_t)r->left_bytes};
	while (err == 0 && r->left_bytes > 0) {
		err = get_filter(r, p, e);
		s->n_filters++;
	}
	return err;
}

bool mqtt_filter_next(struct rd *r, enum mqtt_type type, struct mqtt_filter *ret_filter)
{
	if (r->failed || r->left_bytes == 0)
		return false;
	*ret_filter = (struct mqtt_filter){0};
	uint16_t len = rd_be16(r);
	ret_filter->filter.p = len > 0 ? rd_bytes(r, len) : (const uint8_t *)"";
	ret_filter->filter.len = len;
	if (type == MQTT_SUBSCRIBE) {
		uint8_t options = rd_u8(r);
		ret_filter->qos = options & 3;
		ret_filter->no_local = (options & 4) != 0;
		ret_filter->retain_as_published = (options & 8) != 0;
		ret_filter->retain_handling = options >> 4 & 3;
	}
	return !r->failed;
}

static int check_suback_code(const struct mqtt_packet *p, uint8_t code)
{
	if (p->version == MQTT_VERSION_5)
		return mqtt_reason_allowed(p->type, code);
	return code <= 2 || code == MQTT_311_SUBACK_FAILURE;
}

static int decode_suback(struct rd *r, uint8_t flags, struct mqtt_packet *p, struct mqtt_error *e)
{
	(void)flags;
	p->suback = (struct mqtt_suback){0};
	int err = get_packet_id(r, &p->suback.packet_id, e);
	if (err == 0 && p->version == MQTT_VERSION_5)
		err = mqtt_get_props(r, MQTT_IN(p->type), &p->props, e);
	if (err != 0 || (p->type == MQTT_UNSUBACK && p->version != MQTT_VERSION_5))
		return err;
	if (r->left_bytes == 0)
		return mqtt_refuse(e, PROTOCOL, "there is no reason code in the packet");
	p->suback.codes.len = (uint32_t)r->left_bytes;
	p->suback.codes.p = rd_bytes(r, r->left_bytes);
	for (uint32_t i = 0; i < p->suback.codes.len; i++) {
		if (!check_suback_code(p, p->suback.codes.p[i]))
			return mqtt_refuse(e, PROTOCOL, "this packet has no such reason code");
	}
	return 0;
}

/* --- the rest --- */

static int decode_empty(struct rd *r, uint8_t flags, struct mqtt_packet *p, struct mqtt_error *e)
{
	(void)r;
	(void)flags;
	(void)p;
	(void)e;
	return 0; /* that nothing is left is checked for every packet */
}

static int decode_disconnect(
	struct rd *r, uint8_t flags, struct mqtt_packet *p, struct mqtt_error *e)
{
	(void)flags;
	p->reason = 0;
	if (p->version != MQTT_VERSION_5 || r->left_bytes == 0)
		return 0;
	p->reason = rd_u8(r);
	if (!mqtt_reason_allowed(MQTT_DISCONNECT, p->reason))
		return mqtt_refuse(e, PROTOCOL, "this packet has no such reason code");
	return r->left_bytes > 0 ? mqtt_get_props(r, MQTT_IN(MQTT_DISCONNECT), &p->props, e) : 0;
}

static int decode_auth(struct rd *r, uint8_t flags, struct mqtt_packet *p, struct mqtt_error *e)
{
	(void)flags;
	p->reason = 0;
	if (p->version != MQTT_VERSION_5)
		return mqtt_refuse(e, MALFORMED, "packet type 15 is reserved in MQTT 3.1.1");
	if (r->left_bytes == 0)
		return 0;
	p->reason = rd_u8(r);
	if (!mqtt_reason_allowed(MQTT_AUTH, p->reason))
		return mqtt_refuse(e, PROTOCOL, "this packet has no such reason code");
	int err = mqtt_get_props(r, MQTT_IN(MQTT_AUTH), &p->props, e);
	if (err == 0 && !mqtt_prop_has(&p->props, MQTT_PROP_AUTH_METHOD))
		err = mqtt_refuse(e, PROTOCOL, "AUTH without an authentication method");
	return err;
}

#define FLAGS_ANY 0xFF
static const struct {
	uint8_t flags; /* required; FLAGS_ANY: they mean something */
	int (*decode)(struct rd *r, uint8_t flags, struct mqtt_packet *p, struct mqtt_error *e);
} packets[16] = {
	[MQTT_CONNECT] = {0, decode_connect},
	[MQTT_CONNACK] = {0, decode_connack},
	[MQTT_PUBLISH] = {FLAGS_ANY, decode_publish},
	[MQTT_PUBACK] = {0, decode_ack},
	[MQTT_PUBREC] = {0, decode_ack},
	[MQTT_PUBREL] = {2, decode_ack},
	[MQTT_PUBCOMP] = {0, decode_ack},
	[MQTT_SUBSCRIBE] = {2, decode_subscribe},
	[MQTT_SUBACK] = {0, decode_suback},
	[MQTT_UNSUBSCRIBE] = {2, decode_subscribe},
	[MQTT_UNSUBACK] = {0, decode_suback},
	[MQTT_PINGREQ] = {0, decode_empty},
	[MQTT_PINGRESP] = {0, decode_empty},
	[MQTT_DISCONNECT] = {0, decode_disconnect},
	[MQTT_AUTH] = {0, decode_auth},
};

int mqtt_decode(const void *data, size_t len_bytes, uint8_t version, struct mqtt_packet *ret_packet,
	struct mqtt_error *ret_error)
{
	struct mqtt_frame frame;
	*ret_error = (struct mqtt_error){.version = version};
	int err = mqtt_frame_peek(data, len_bytes, &frame);
	if (err == -ERR_TRUNCATED)
		return err;
	if (err != 0)
		return mqtt_refuse(ret_error, MALFORMED, "the remaining length is malformed");
	if (len_bytes - frame.header_bytes < frame.body_bytes)
		return -ERR_TRUNCATED;
	if (frame.type == 0)
		return mqtt_refuse(ret_error, MALFORMED, "packet type 0 is reserved");
	if (version == 0 && frame.type != MQTT_CONNECT)
		return mqtt_refuse(ret_error, PROTOCOL, "the first packet is not CONNECT");
	if (packets[frame.type].flags != FLAGS_ANY && frame.flags != packets[frame.type].flags)
		return mqtt_refuse(ret_error, MALFORMED, "the flags of the fixed header are wrong");
	ret_packet->type = frame.type;
	ret_packet->version = version;
	ret_packet->props.present = 0;
	ret_packet->props.raw = (struct mqtt_bytes){.p = (const uint8_t *)"", .len = 0};
	struct rd r =
		rd_make((const uint8_t *)data + frame.header_bytes, len_bytes - frame.header_bytes);
	err = packets[frame.type].decode(&r, frame.flags, ret_packet, ret_error);
	if (err == 0 && (r.failed || r.left_bytes > 0))
		err = mqtt_refuse(ret_error, MALFORMED, "the packet goes on after its last field");
	return err;
}
