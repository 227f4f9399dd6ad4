/* SPDX-License-Identifier: PostgreSQL */
/*
 * Encoding MQTT packets, see mqtt_proto.h. mqtt_encode writes the body behind room for the longest
 * fixed header and then closes the gap; PUBLISH to subscribers, the hot path, computes its length
 * first.
 */
#include "config.h"

#include <string.h>

#include "brokerd/mqtt_proto.h"
#include "common/base/err.h"
#include "common/base/mem.h"

static void put_field(struct buf *b, struct mqtt_bytes v)
{
	ASSERT(v.len <= MQTT_STRING_MAX);
	buf_put_be16(b, (uint16_t)v.len);
	buf_put(b, v.p, v.len);
}

static void put_props(struct buf *b, const struct mqtt_packet *p)
{
	if (p->version != MQTT_VERSION_5)
		return;
	mqtt_put_varint(b, p->props.raw.len);
	buf_put(b, p->props.raw.p, p->props.raw.len);
}

static void encode_connect(struct buf *b, const struct mqtt_packet *p)
{
	const struct mqtt_connect *c = &p->connect;
	uint8_t flags = (uint8_t)((c->clean_start ? 2 : 0) | (c->has_will ? 4 : 0) |
				  c->will_qos << 3 | (c->will_retain ? 0x20 : 0) |
				  (c->has_password ? 0x40 : 0) | (c->has_username ? 0x80 : 0));
	put_field(b, (struct mqtt_bytes){.p = (const uint8_t *)"MQTT", .len = 4});
	buf_put_u8(b, p->version);
	buf_put_u8(b, flags);
	buf_put_be16(b, c->keep_alive_s);
	put_props(b, p);
	put_field(b, c->client_id);
	if (c->has_will) {
		if (p->version == MQTT_VERSION_5) {
			mqtt_put_varint(b, c->will_props.raw.len);
			buf_put(b, c->will_props.raw.p, c->will_props.raw.len);
		}
		put_field(b, c->will_topic);
		put_field(b, c->will_payload);
	}
	if (c->has_username)
		put_field(b, c->username);
	if (c->has_password)
		put_field(b, c->password);
}

static void encode_connack(struct buf *b, const struct mqtt_packet *p)
{
	buf_put_u8(b, p->connack.session_present ? 1 : 0);
	buf_put_u8(b, p->connack.code);
	put_props(b, p);
}

static void encode_publish(struct buf *b, const struct mqtt_packet *p)
{
	put_field(b, p->publish.topic);
	if (p->publish.qos > 0)
		buf_put_be16(b, p->publish.packet_id);
	put_props(b, p);
	buf_put(b, p->publish.payload.p, p->publish.payload.len);
}

static void put_reason(struct buf *b, const struct mqtt_packet *p, uint8_t reason)
{
	if (p->version != MQTT_VERSION_5 || (reason == 0 && p->props.raw.len == 0))
		return;
	buf_put_u8(b, reason);
	/* MQTT-3.14.2.2.1 and 3.4.2.2.1: no length means no properties. AUTH has no such form. */
	if (p->props.raw.len > 0 || p->type == MQTT_AUTH)
		put_props(b, p);
}

static void encode_ack(struct buf *b, const struct mqtt_packet *p)
{
	buf_put_be16(b, p->ack.packet_id);
	put_reason(b, p, p->ack.reason);
}

static void encode_reason(struct buf *b, const struct mqtt_packet *p)
{
	put_reason(b, p, p->reason);
}

static void encode_subscribe(struct buf *b, const struct mqtt_packet *p)
{
	buf_put_be16(b, p->subscribe.packet_id);
	put_props(b, p);
	buf_put(b, p->subscribe.filters.p, p->subscribe.filters.len);
}

static void encode_suback(struct buf *b, const struct mqtt_packet *p)
{
	buf_put_be16(b, p->suback.packet_id);
	put_props(b, p);
	buf_put(b, p->suback.codes.p, p->suback.codes.len);
}

static void encode_empty(struct buf *b, const struct mqtt_packet *p)
{
	(void)b;
	(void)p;
}

static void (*const encoders[MQTT_TYPE_COUNT])(struct buf *b, const struct mqtt_packet *p) = {
	[MQTT_CONNECT] = encode_connect,
	[MQTT_CONNACK] = encode_connack,
	[MQTT_PUBLISH] = encode_publish,
	[MQTT_PUBACK] = encode_ack,
	[MQTT_PUBREC] = encode_ack,
	[MQTT_PUBREL] = encode_ack,
	[MQTT_PUBCOMP] = encode_ack,
	[MQTT_SUBSCRIBE] = encode_subscribe,
	[MQTT_SUBACK] = encode_suback,
	[MQTT_UNSUBSCRIBE] = encode_subscribe,
	[MQTT_UNSUBACK] = encode_suback,
	[MQTT_PINGREQ] = encode_empty,
	[MQTT_PINGRESP] = encode_empty,
	[MQTT_DISCONNECT] = encode_reason,
	[MQTT_AUTH] = encode_reason,
};

static uint8_t fixed_flags(const struct mqtt_packet *p)
{
	if (p->type == MQTT_PUBLISH)
		return (uint8_t)((p->publish.dup ? 8 : 0) | p->publish.qos << 1 |
				 (p->publish.retain ? 1 : 0));
	return p->type == MQTT_PUBREL || p->type == MQTT_SUBSCRIBE || p->type == MQTT_UNSUBSCRIBE
		       ? 2
		       : 0;
}

static size_t varint_size(size_t v)
{
	return v < 128 ? 1 : v < 16384 ? 2 : v < 2097152 ? 3 : 4;
}

static uint8_t *write_varint(uint8_t *p, size_t v)
{
	for (; v >= 128; v >>= 7)
		*p++ = (uint8_t)(v & 0x7F) | 0x80;
	*p++ = (uint8_t)v;
	return p;
}

void mqtt_encode(struct buf *out, const struct mqtt_packet *packet)
{
	ASSERT(packet->type > 0 && packet->type < MQTT_TYPE_COUNT);
	size_t start = out->len_bytes;
	if (buf_reserve(out, MQTT_FIXED_HEADER_MAX) == NULL)
		return;
	buf_commit(out, MQTT_FIXED_HEADER_MAX);
	encoders[packet->type](out, packet);
	if (out->failed)
		return;
	size_t body = out->len_bytes - start - MQTT_FIXED_HEADER_MAX;
	ASSERT(body <= MQTT_REMAINING_MAX);
	uint8_t *p = out->data + start;
	*p++ = (uint8_t)(packet->type << 4 | fixed_flags(packet));
	p = write_varint(p, body);
	memmove(p, out->data + start + MQTT_FIXED_HEADER_MAX, body);
	out->len_bytes = (size_t)(p - out->data) + body;
}

static uint8_t *write_bytes(uint8_t *p, const void *data, size_t len)
{
	if (len > 0)
		memcpy(p, data, len);
	return p + len;
}

static uint8_t *write_be16(uint8_t *p, uint32_t v)
{
	p[0] = (uint8_t)(v >> 8);
	p[1] = (uint8_t)v;
	return p + 2;
}

static uint8_t *write_own_props(uint8_t *p, const struct mqtt_publish_parts *parts)
{
	if (parts->has_expiry) {
		*p++ = MQTT_PROP_MESSAGE_EXPIRY;
		p = write_be16(p, parts->expiry_s >> 16);
		p = write_be16(p, parts->expiry_s);
	}
	for (size_t i = 0; i < parts->n_sub_ids; i++) {
		*p++ = MQTT_PROP_SUBSCRIPTION_ID;
		p = write_varint(p, parts->sub_ids[i]);
	}
	return p;
}

int mqtt_encode_publish(struct buf *out, const struct mqtt_publish_parts *parts, size_t max_bytes)
{
	bool v5 = parts->version == MQTT_VERSION_5;
	size_t props = v5 ? parts->props.len + (parts->has_expiry ? 5 : 0) : 0;
	for (size_t i = 0; v5 && i < parts->n_sub_ids; i++)
		props += 1 + varint_size(parts->sub_ids[i]);
	size_t body = 2 + (size_t)parts->topic.len + (parts->qos > 0 ? 2 : 0) +
		      (v5 ? varint_size(props) + props : 0) + parts->payload.len;
	if (body > MQTT_REMAINING_MAX)
		return -ERR_LIMIT;
	size_t total = 1 + varint_size(body) + body;
	if (max_bytes > 0 && total > max_bytes)
		return -ERR_LIMIT;
	uint8_t *p = buf_reserve(out, total), *start = p;
	if (p == NULL)
		return -ERR_LIMIT;
	*p++ = (uint8_t)(MQTT_PUBLISH << 4 | (parts->dup ? 8 : 0) | parts->qos << 1);
	p = write_varint(p, body);
	p = write_be16(p, parts->topic.len);
	p = write_bytes(p, parts->topic.p, parts->topic.len);
	if (parts->qos > 0)
		p = write_be16(p, parts->packet_id);
	if (v5) {
		p = write_varint(p, props);
		p = write_bytes(p, parts->props.p, parts->props.len);
		p = write_own_props(p, parts);
	}
	p = write_bytes(p, parts->payload.p, parts->payload.len);
	ASSERT((size_t)(p - start) == total);
	buf_commit(out, total);
	return 0;
}
