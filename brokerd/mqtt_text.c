/* SPDX-License-Identifier: PostgreSQL */
/*
 * The small things of the codec: UTF-8, variable byte integers, names of packets and reasons.
 * Pure; see mqtt_proto.h.
 */
#include "config.h"

#include <string.h>

#include "brokerd/mqtt_proto.h"
#include "common/base/err.h"
#include "common/base/mem.h"

/* One sequence of more than one byte at p; its length, or 0 if it is not well formed. The ranges
 * are Unicode's table 3-7, which has no overlong forms and no surrogates. */
static size_t utf8_sequence(const uint8_t *p, size_t left)
{
	uint8_t lo = 0x80, hi = 0xBF;
	size_t n = 0;
	if (p[0] >= 0xC2 && p[0] <= 0xDF) {
		n = 2;
	} else if (p[0] >= 0xE0 && p[0] <= 0xEF) {
		n = 3;
		lo = p[0] == 0xE0 ? 0xA0 : 0x80;
		hi = p[0] == 0xED ? 0x9F : 0xBF;
	} else if (p[0] >= 0xF0 && p[0] <= 0xF4) {
		n = 4;
		lo = p[0] == 0xF0 ? 0x90 : 0x80;
		hi = p[0] == 0xF4 ? 0x8F : 0xBF;
	}
	if (n == 0 || n > left || p[1] < lo || p[1] > hi)
		return 0;
	for (size_t i = 2; i < n; i++) {
		if (p[i] < 0x80 || p[i] > 0xBF)
			return 0;
	}
	return n;
}

bool mqtt_utf8_valid(const uint8_t *p, size_t len_bytes)
{
	for (size_t i = 0; i < len_bytes;) {
		if (p[i] == 0)
			return false;
		if (p[i] < 0x80) {
			i++;
			continue;
		}
		size_t n = utf8_sequence(p + i, len_bytes - i);
		if (n == 0)
			return false;
		i += n;
	}
	return true;
}

void mqtt_put_varint(struct buf *b, uint32_t v)
{
	ASSERT(v <= MQTT_REMAINING_MAX);
	do {
		uint8_t byte = v & 0x7F;
		v >>= 7;
		buf_put_u8(b, v > 0 ? byte | 0x80 : byte);
	} while (v > 0);
}

int mqtt_get_varint(struct rd *r, uint32_t *ret_v)
{
	uint32_t v = 0;
	for (unsigned i = 0; i < 4; i++) {
		if (r->failed || r->left_bytes == 0)
			return -ERR_TRUNCATED;
		uint8_t byte = rd_u8(r);
		v |= (uint32_t)(byte & 0x7F) << (7 * i);
		if ((byte & 0x80) == 0) {
			if (byte == 0 && i > 0)
				return -ERR_MALFORMED;
			*ret_v = v;
			return 0;
		}
	}
	return -ERR_MALFORMED;
}

const char *mqtt_type_str(unsigned type)
{
	static const char *const names[MQTT_TYPE_COUNT] = {"reserved", "CONNECT", "CONNACK",
		"PUBLISH", "PUBACK", "PUBREC", "PUBREL", "PUBCOMP", "SUBSCRIBE", "SUBACK",
		"UNSUBSCRIBE", "UNSUBACK", "PINGREQ", "PINGRESP", "DISCONNECT", "AUTH"};
	return type < MQTT_TYPE_COUNT ? names[type] : names[0];
}

#define CA MQTT_IN(MQTT_CONNACK)
#define PA (MQTT_IN(MQTT_PUBACK) | MQTT_IN(MQTT_PUBREC))
#define PR (MQTT_IN(MQTT_PUBREL) | MQTT_IN(MQTT_PUBCOMP))
#define SA MQTT_IN(MQTT_SUBACK)
#define UA MQTT_IN(MQTT_UNSUBACK)
#define DI MQTT_IN(MQTT_DISCONNECT)
#define AU MQTT_IN(MQTT_AUTH)

/* MQTT 5.0 table 2-6. */
static const struct {
	uint8_t code;
	uint32_t where;
	const char *name;
} reasons[] = {
	{0x00, CA | PA | PR | SA | UA | DI | AU, "success"},
	{0x01, SA, "granted QoS 1"},
	{0x02, SA, "granted QoS 2"},
	{0x04, DI, "disconnect with will message"},
	{0x10, PA, "no matching subscribers"},
	{0x11, UA, "no subscription existed"},
	{0x18, AU, "continue authentication"},
	{0x19, AU, "re-authenticate"},
	{0x80, CA | PA | SA | UA | DI, "unspecified error"},
	{0x81, CA | DI, "malformed packet"},
	{0x82, CA | DI, "protocol error"},
	{0x83, CA | PA | SA | UA | DI, "implementation specific error"},
	{0x84, CA, "unsupported protocol version"},
	{0x85, CA, "client identifier not valid"},
	{0x86, CA, "bad user name or password"},
	{0x87, CA | PA | SA | UA | DI, "not authorized"},
	{0x88, CA, "server unavailable"},
	{0x89, CA | DI, "server busy"},
	{0x8A, CA, "banned"},
	{0x8B, DI, "server shutting down"},
	{0x8C, CA | DI, "bad authentication method"},
	{0x8D, DI, "keep alive timeout"},
	{0x8E, DI, "session taken over"},
	{0x8F, SA | UA | DI, "topic filter invalid"},
	{0x90, CA | PA | DI, "topic name invalid"},
	{0x91, PA | SA | UA, "packet identifier in use"},
	{0x92, PR, "packet identifier not found"},
	{0x93, DI, "receive maximum exceeded"},
	{0x94, DI, "topic alias invalid"},
	{0x95, CA | DI, "packet too large"},
	{0x96, DI, "message rate too high"},
	{0x97, CA | PA | SA | DI, "quota exceeded"},
	{0x98, DI, "administrative action"},
	{0x99, CA | PA | DI, "payload format invalid"},
	{0x9A, CA | DI, "retain not supported"},
	{0x9B, CA | DI, "QoS not supported"},
	{0x9C, CA | DI, "use another server"},
	{0x9D, CA | DI, "server moved"},
	{0x9E, SA | DI, "shared subscriptions not supported"},
	{0x9F, CA | DI, "connection rate exceeded"},
	{0xA0, DI, "maximum connect time"},
	{0xA1, SA | DI, "subscription identifiers not supported"},
	{0xA2, SA | DI, "wildcard subscriptions not supported"},
};

const char *mqtt_reason_str(uint8_t reason)
{
	for (size_t i = 0; i < ARRAY_LEN(reasons); i++) {
		if (reasons[i].code == reason)
			return reasons[i].name;
	}
	return "unknown reason";
}

bool mqtt_reason_allowed(enum mqtt_type type, uint8_t reason)
{
	for (size_t i = 0; i < ARRAY_LEN(reasons); i++) {
		if (reasons[i].code == reason)
			return (reasons[i].where & MQTT_IN(type)) != 0;
	}
	return false;
}
