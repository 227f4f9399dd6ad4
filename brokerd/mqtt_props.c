/* SPDX-License-Identifier: PostgreSQL */
/*
 * The 27 properties of MQTT 5.0 as one table (section 2.2.2.2), reading them strictly, walking and
 * building them. Pure; see mqtt_proto.h.
 *
 *     properties = varint length, then { varint id, value }*
 *
 * Refusals: a property that does not exist or that does not belong into the packet is a malformed
 * packet (0x81, section 2.2.2.2); one that stands twice or has a value outside its range is a
 * protocol error (0x82); a topic alias of 0 has a code of its own (0x94).
 */
#include "config.h"

#include <string.h>

#include "brokerd/mqtt_decode.h"
#include "common/base/err.h"
#include "common/base/mem.h"

#define CO MQTT_IN(MQTT_CONNECT)
#define CA MQTT_IN(MQTT_CONNACK)
#define PU MQTT_IN(MQTT_PUBLISH)
#define ACKS                                                                                       \
	(MQTT_IN(MQTT_PUBACK) | MQTT_IN(MQTT_PUBREC) | MQTT_IN(MQTT_PUBREL) | MQTT_IN(MQTT_PUBCOMP))
#define SU MQTT_IN(MQTT_SUBSCRIBE)
#define SA MQTT_IN(MQTT_SUBACK)
#define US MQTT_IN(MQTT_UNSUBSCRIBE)
#define UA MQTT_IN(MQTT_UNSUBACK)
#define DI MQTT_IN(MQTT_DISCONNECT)
#define AU MQTT_IN(MQTT_AUTH)
#define WI MQTT_IN_WILL
#define EVERYWHERE (CO | CA | PU | ACKS | SU | SA | US | UA | DI | AU | WI)
#define U32 UINT32_MAX
#define BAD MQTT_RC_PROTOCOL_ERROR

const struct mqtt_prop_row mqtt_prop_table[] = {
	{0x01, MQTT_PROP_BYTE, "payload format indicator", PU | WI, 0, 0, 1, BAD},
	{0x02, MQTT_PROP_U32, "message expiry interval", PU | WI, 0, 0, U32, BAD},
	{0x03, MQTT_PROP_STRING, "content type", PU | WI, 0, 0, 0, BAD},
	{0x08, MQTT_PROP_STRING, "response topic", PU | WI, 0, 0, 0, BAD},
	{0x09, MQTT_PROP_BINARY, "correlation data", PU | WI, 0, 0, 0, BAD},
	{0x0B, MQTT_PROP_VARINT, "subscription identifier", PU | SU, PU, 1, MQTT_REMAINING_MAX,
		BAD},
	{0x11, MQTT_PROP_U32, "session expiry interval", CO | CA | DI, 0, 0, U32, BAD},
	{0x12, MQTT_PROP_STRING, "assigned client identifier", CA, 0, 0, 0, BAD},
	{0x13, MQTT_PROP_U16, "server keep alive", CA, 0, 0, 65535, BAD},
	{0x15, MQTT_PROP_STRING, "authentication method", CO | CA | AU, 0, 0, 0, BAD},
	{0x16, MQTT_PROP_BINARY, "authentication data", CO | CA | AU, 0, 0, 0, BAD},
	{0x17, MQTT_PROP_BYTE, "request problem information", CO, 0, 0, 1, BAD},
	{0x18, MQTT_PROP_U32, "will delay interval", WI, 0, 0, U32, BAD},
	{0x19, MQTT_PROP_BYTE, "request response information", CO, 0, 0, 1, BAD},
	{0x1A, MQTT_PROP_STRING, "response information", CA, 0, 0, 0, BAD},
	{0x1C, MQTT_PROP_STRING, "server reference", CA | DI, 0, 0, 0, BAD},
	{0x1F, MQTT_PROP_STRING, "reason string", CA | ACKS | SA | UA | DI | AU, 0, 0, 0, BAD},
	{0x21, MQTT_PROP_U16, "receive maximum", CO | CA, 0, 1, 65535, BAD},
	{0x22, MQTT_PROP_U16, "topic alias maximum", CO | CA, 0, 0, 65535, BAD},
	{0x23, MQTT_PROP_U16, "topic alias", PU, 0, 1, 65535, MQTT_RC_TOPIC_ALIAS_INVALID},
	{0x24, MQTT_PROP_BYTE, "maximum QoS", CA, 0, 0, 1, BAD},
	{0x25, MQTT_PROP_BYTE, "retain available", CA, 0, 0, 1, BAD},
	{0x26, MQTT_PROP_PAIR, "user property", EVERYWHERE, EVERYWHERE, 0, 0, BAD},
	{0x27, MQTT_PROP_U32, "maximum packet size", CO | CA, 0, 1, U32, BAD},
	{0x28, MQTT_PROP_BYTE, "wildcard subscription available", CA, 0, 0, 1, BAD},
	{0x29, MQTT_PROP_BYTE, "subscription identifiers available", CA, 0, 0, 1, BAD},
	{0x2A, MQTT_PROP_BYTE, "shared subscription available", CA, 0, 0, 1, BAD},
};
const size_t mqtt_prop_count = ARRAY_LEN(mqtt_prop_table);
_Static_assert(ARRAY_LEN(mqtt_prop_table) == 27, "MQTT 5.0 has 27 properties");

const struct mqtt_prop_row *mqtt_prop_find(uint32_t id)
{
	/* Position in the table plus one; 0: none. */
	static const uint8_t index[MQTT_PROP_ID_END] = {[0x01] = 1,
		[0x02] = 2,
		[0x03] = 3,
		[0x08] = 4,
		[0x09] = 5,
		[0x0B] = 6,
		[0x11] = 7,
		[0x12] = 8,
		[0x13] = 9,
		[0x15] = 10,
		[0x16] = 11,
		[0x17] = 12,
		[0x18] = 13,
		[0x19] = 14,
		[0x1A] = 15,
		[0x1C] = 16,
		[0x1F] = 17,
		[0x21] = 18,
		[0x22] = 19,
		[0x23] = 20,
		[0x24] = 21,
		[0x25] = 22,
		[0x26] = 23,
		[0x27] = 24,
		[0x28] = 25,
		[0x29] = 26,
		[0x2A] = 27};
	if (id >= MQTT_PROP_ID_END || index[id] == 0)
		return NULL;
	const struct mqtt_prop_row *row = &mqtt_prop_table[index[id] - 1];
	ASSERT(row->id == id);
	return row;
}

int mqtt_refuse(struct mqtt_error *e, uint8_t reason, const char *why)
{
	e->reason = reason;
	e->why = why;
	return -ERR_MALFORMED;
}

int mqtt_get_binary(struct rd *r, struct mqtt_bytes *ret_v, struct mqtt_error *e)
{
	uint16_t len = rd_be16(r);
	if (r->failed || len > r->left_bytes)
		return mqtt_refuse(e, MQTT_RC_MALFORMED, "a field is longer than its packet");
	/* An empty field at the very end still needs an address: NULL means absent. */
	*ret_v = (struct mqtt_bytes){
		.p = len > 0 ? rd_bytes(r, len) : (const uint8_t *)"", .len = len};
	return 0;
}

int mqtt_get_string(struct rd *r, struct mqtt_bytes *ret_v, struct mqtt_error *e)
{
	int err = mqtt_get_binary(r, ret_v, e);
	if (err == 0 && !mqtt_utf8_valid(ret_v->p, ret_v->len))
		return mqtt_refuse(
			e, MQTT_RC_MALFORMED, "a string is not valid UTF-8, or holds U+0000");
	return err;
}

static int get_number(
	struct rd *r, const struct mqtt_prop_row *row, uint32_t *ret_num, struct mqtt_error *e)
{
	uint32_t num = 0;
	int err = 0;
	switch (row->type) {
	case MQTT_PROP_BYTE:
		num = rd_u8(r);
		break;
	case MQTT_PROP_U16:
		num = rd_be16(r);
		break;
	case MQTT_PROP_U32:
		num = rd_be32(r);
		break;
	default:
		err = mqtt_get_varint(r, &num);
		break;
	}
	if (r->failed || err != 0)
		return mqtt_refuse(e, MQTT_RC_MALFORMED, "a property ends before its value does");
	if (num < row->min || num > row->max)
		return mqtt_refuse(e, row->out_of_range, "a property's value is out of its range");
	*ret_num = num;
	return 0;
}

static int get_value(struct rd *r, struct mqtt_prop *prop, struct mqtt_error *e)
{
	switch (prop->row->type) {
	case MQTT_PROP_STRING:
		return mqtt_get_string(r, &prop->bytes, e);
	case MQTT_PROP_BINARY:
		return mqtt_get_binary(r, &prop->bytes, e);
	case MQTT_PROP_PAIR: {
		int err = mqtt_get_string(r, &prop->key, e);
		return err != 0 ? err : mqtt_get_string(r, &prop->bytes, e);
	}
	default:
		return get_number(r, prop->row, &prop->num, e);
	}
}

static int get_prop(struct rd *r, struct mqtt_prop *ret_prop, struct mqtt_error *e)
{
	uint32_t id = 0;
	const uint8_t *start = r->p;
	if (mqtt_get_varint(r, &id) != 0)
		return mqtt_refuse(e, MQTT_RC_MALFORMED, "a property's identifier is malformed");
	ret_prop->row = mqtt_prop_find(id);
	if (ret_prop->row == NULL)
		return mqtt_refuse(
			e, MQTT_RC_MALFORMED, "there is no property with this identifier");
	int err = get_value(r, ret_prop, e);
	ret_prop->raw = (struct mqtt_bytes){.p = start, .len = (uint32_t)(r->p - start)};
	return err;
}

/* What the types do not say: MQTT-3.3.2-14 (a response topic has no wildcards). */
static int check_prop(const struct mqtt_prop *prop, struct mqtt_error *e)
{
	if (prop->row->id != MQTT_PROP_RESPONSE_TOPIC)
		return 0;
	const struct mqtt_bytes *t = &prop->bytes;
	if (t->len == 0 || memchr(t->p, '+', t->len) != NULL || memchr(t->p, '#', t->len) != NULL)
		return mqtt_refuse(e, MQTT_RC_PROTOCOL_ERROR,
			"the response topic is empty or holds a wildcard");
	return 0;
}

int mqtt_get_props(struct rd *r, uint32_t where, struct mqtt_props *ret_props, struct mqtt_error *e)
{
	uint32_t len = 0;
	ret_props->present = 0;
	if (mqtt_get_varint(r, &len) != 0 || len > r->left_bytes)
		return mqtt_refuse(
			e, MQTT_RC_MALFORMED, "the length of the properties is malformed");
	ret_props->raw = (struct mqtt_bytes){.p = len > 0 ? r->p : (const uint8_t *)"", .len = len};
	struct rd in = rd_make(ret_props->raw.p, len);
	if (len > 0)
		(void)rd_bytes(r, len); /* cannot fail: checked above */
	while (in.left_bytes > 0) {
		struct mqtt_prop prop = {0};
		int err = get_prop(&in, &prop, e);
		if (err != 0)
			return err;
		if ((prop.row->where & where) == 0)
			return mqtt_refuse(e, MQTT_RC_MALFORMED,
				"a property does not belong into this packet");
		if (mqtt_prop_has(ret_props, prop.row->id) && (prop.row->repeats & where) == 0)
			return mqtt_refuse(e, MQTT_RC_PROTOCOL_ERROR, "a property is there twice");
		err = check_prop(&prop, e);
		if (err != 0)
			return err;
		ret_props->present |= UINT64_C(1) << prop.row->id;
		if (prop.row->type <= MQTT_PROP_VARINT)
			ret_props->v[prop.row->id].num = prop.num;
		else
			ret_props->v[prop.row->id].bytes = prop.bytes;
	}
	return 0;
}

bool mqtt_prop_next(struct rd *r, struct mqtt_prop *ret_prop)
{
	struct mqtt_error e;
	*ret_prop = (struct mqtt_prop){0};
	return !r->failed && r->left_bytes > 0 && get_prop(r, ret_prop, &e) == 0;
}

void mqtt_prop_put_num(struct buf *b, enum mqtt_prop_id id, uint32_t value)
{
	const struct mqtt_prop_row *row = mqtt_prop_find(id);
	ASSERT(row != NULL && value >= row->min && value <= row->max);
	buf_put_u8(b, (uint8_t)id);
	switch (row->type) {
	case MQTT_PROP_BYTE:
		buf_put_u8(b, (uint8_t)value);
		break;
	case MQTT_PROP_U16:
		buf_put_be16(b, (uint16_t)value);
		break;
	case MQTT_PROP_U32:
		buf_put_be32(b, value);
		break;
	case MQTT_PROP_VARINT:
		mqtt_put_varint(b, value);
		break;
	default:
		ASSERT(!"a number");
	}
}

static void put_field(struct buf *b, const void *data, size_t len_bytes)
{
	ASSERT(len_bytes <= MQTT_STRING_MAX);
	buf_put_be16(b, (uint16_t)len_bytes);
	buf_put(b, data, len_bytes);
}

void mqtt_prop_put_bytes(struct buf *b, enum mqtt_prop_id id, const void *data, size_t len_bytes)
{
	const struct mqtt_prop_row *row = mqtt_prop_find(id);
	ASSERT(row != NULL && (row->type == MQTT_PROP_STRING || row->type == MQTT_PROP_BINARY));
	buf_put_u8(b, (uint8_t)id);
	put_field(b, data, len_bytes);
}

void mqtt_prop_put_pair(
	struct buf *b, enum mqtt_prop_id id, struct mqtt_bytes key, struct mqtt_bytes value)
{
	const struct mqtt_prop_row *row = mqtt_prop_find(id);
	ASSERT(row != NULL && row->type == MQTT_PROP_PAIR);
	buf_put_u8(b, (uint8_t)id);
	put_field(b, key.p, key.len);
	put_field(b, value.p, value.len);
}
