/* SPDX-License-Identifier: PostgreSQL */
/* The MQTT codec: byte-exact packets in both directions, every truncation, every refusal by its
 * code. */
#include "config.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "brokerd/mqtt_proto.h"
#include "common/base/err.h"
#include "common/base/mem.h"

#define V4 MQTT_VERSION_311
#define V5 MQTT_VERSION_5
#define BYTES(text) (const uint8_t *)(text), sizeof(text) - 1

/* A good packet: what it is, and that it encodes to itself. */
struct good {
	const char *name;
	uint8_t version; /* given to the decoder */
	enum mqtt_type type;
	const uint8_t *data;
	size_t len;
};

#define ALL_WILL_PROPS                                                                             \
	"\x34\x18\0\0\0\x05\x01\x01\x02\0\0\0\x3c\x03\0\x0atext/plain\x08\0\x03r/t\x09\0\x04"      \
	"corr\x26\0\x01k\0\x01v\x26\0\x01k\0\x01v"
#define CONNECT_PROPS                                                                              \
	"\x25\x11\0\0\0\x0a\x21\0\x14\x27\0\0\x10\0\x22\0\x0a\x19\x01\x17\x01\x26\0\x01k\0\x01v"   \
	"\x15\0\x02SC\x16\0\x02xy"

static const struct good goods[] = {
	{"CONNECT 3.1.1", 0, MQTT_CONNECT, BYTES("\x10\x0d\0\4MQTT\4\2\0\x3c\0\1c")},
	{"CONNECT 5.0", 0, MQTT_CONNECT, BYTES("\x10\x0e\0\4MQTT\5\2\0\x3c\0\0\1c")},
	{"CONNECT 3.1.1 with all", 0, MQTT_CONNECT,
		BYTES("\x10\x1b\0\4MQTT\4\xce\0\x3c\0\1c\0\1w\0\3bye\0\1u\0\1p")},
	{"CONNECT 5.0 password alone", 0, MQTT_CONNECT,
		BYTES("\x10\x11\0\4MQTT\5\x42\0\0\0\0\1c\0\1p")},
	{"CONNACK 3.1.1", V4, MQTT_CONNACK, BYTES("\x20\2\1\0")},
	{"CONNACK 3.1.1 refused", V4, MQTT_CONNACK, BYTES("\x20\2\0\5")},
	{"CONNACK 5.0", V5, MQTT_CONNACK,
		BYTES("\x20\x16\0\0\x13\x21\0\x64\x24\1\x25\0\x27\0\x10\0\0\x22\0\x40\x2a\0\x28"
		      "\1")},
	{"PUBLISH QoS 0", V4, MQTT_PUBLISH, BYTES("\x30\x07\0\3a/bhi")},
	{"PUBLISH empty payload", V4, MQTT_PUBLISH, BYTES("\x30\x05\0\3a/b")},
	{"PUBLISH QoS 1 dup retain", V4, MQTT_PUBLISH, BYTES("\x3b\x09\0\3a/b\0\1hi")},
	{"PUBLISH QoS 2", V4, MQTT_PUBLISH, BYTES("\x34\x09\0\3a/b\0\1hi")},
	{"PUBLISH 5.0", V5, MQTT_PUBLISH, BYTES("\x32\x0a\0\3a/b\0\1\0hi")},
	{"PUBLISH 5.0 props", V5, MQTT_PUBLISH,
		BYTES("\x32\x14\0\3a/b\x12\x34\x0a\1\1\x0b\1\x0b\xff\x7f\x23\0\1hi")},
	{"PUBLISH 5.0 alias", V5, MQTT_PUBLISH, BYTES("\x30\x07\0\0\3\x23\0\1x")},
	{"PUBACK 3.1.1", V4, MQTT_PUBACK, BYTES("\x40\2\0\1")},
	{"PUBACK 5.0", V5, MQTT_PUBACK, BYTES("\x40\2\0\1")},
	{"PUBACK 5.0 code", V5, MQTT_PUBACK, BYTES("\x40\3\0\1\x10")},
	{"PUBACK 5.0 props", V5, MQTT_PUBACK, BYTES("\x40\x08\0\1\x97\4\x1f\0\1r")},
	{"PUBREC", V5, MQTT_PUBREC, BYTES("\x50\3\0\1\x80")},
	{"PUBREL", V5, MQTT_PUBREL, BYTES("\x62\3\xff\xff\x92")},
	{"PUBCOMP", V4, MQTT_PUBCOMP, BYTES("\x70\2\xff\xff")},
	{"SUBSCRIBE 3.1.1", V4, MQTT_SUBSCRIBE, BYTES("\x82\x0c\0\1\0\3a/#\1\0\1+\2")},
	{"SUBSCRIBE 5.0", V5, MQTT_SUBSCRIBE, BYTES("\x82\x0c\0\1\3\x0b\x80\1\0\3a/#\x2d")},
	{"SUBSCRIBE empty filter", V5, MQTT_SUBSCRIBE, BYTES("\x82\6\0\1\0\0\0\1")},
	{"SUBACK 3.1.1", V4, MQTT_SUBACK, BYTES("\x90\5\0\1\0\1\x80")},
	{"SUBACK 5.0", V5, MQTT_SUBACK, BYTES("\x90\5\0\1\0\1\x9e")},
	{"UNSUBSCRIBE 3.1.1", V4, MQTT_UNSUBSCRIBE, BYTES("\xa2\5\0\2\0\1a")},
	{"UNSUBSCRIBE 5.0", V5, MQTT_UNSUBSCRIBE, BYTES("\xa2\x09\0\2\0\0\1a\0\1b")},
	{"UNSUBACK 3.1.1", V4, MQTT_UNSUBACK, BYTES("\xb0\2\0\2")},
	{"UNSUBACK 5.0", V5, MQTT_UNSUBACK, BYTES("\xb0\5\0\2\0\0\x11")},
	{"PINGREQ", V4, MQTT_PINGREQ, BYTES("\xc0\0")},
	{"PINGRESP", V5, MQTT_PINGRESP, BYTES("\xd0\0")},
	{"DISCONNECT 3.1.1", V4, MQTT_DISCONNECT, BYTES("\xe0\0")},
	{"DISCONNECT 5.0", V5, MQTT_DISCONNECT, BYTES("\xe0\0")},
	{"DISCONNECT 5.0 code", V5, MQTT_DISCONNECT, BYTES("\xe0\1\x8e")},
	{"DISCONNECT 5.0 props", V5, MQTT_DISCONNECT, BYTES("\xe0\7\4\5\x11\0\0\0\5")},
	{"AUTH", V5, MQTT_AUTH, BYTES("\xf0\7\x18\5\x15\0\2SC")},
	{"AUTH empty", V5, MQTT_AUTH, BYTES("\xf0\0")},
};

/* One with everything in it. */
static size_t build_full_connect(uint8_t *out)
{
	static const char body[] = "\0\4MQTT\5\xee\0\x3c" CONNECT_PROPS "\0\1c" ALL_WILL_PROPS
				   "\0\1w\0\3bye\0\1u\0\1p";
	out[0] = 0x10;
	size_t len = sizeof(body) - 1;
	assert_in_range(len, 100, 127);
	out[1] = (uint8_t)len;
	memcpy(out + 2, body, len);
	return len + 2;
}

static void check_same(
	const uint8_t *data, size_t len, const struct mqtt_packet *p, const char *name)
{
	struct buf out;
	buf_init(&out, 0);
	mqtt_encode(&out, p);
	if (out.len_bytes != len || memcmp(out.data, data, len) != 0)
		fail_msg("%s does not encode to itself", name);
	buf_free(&out);
}

static void test_good_packets(void **state)
{
	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(goods); i++) {
		const struct good *g = &goods[i];
		struct mqtt_packet p;
		struct mqtt_error e;
		int err = mqtt_decode(g->data, g->len, g->version, &p, &e);
		if (err != 0)
			fail_msg("%s: %s", g->name, e.why != NULL ? e.why : err_str(err));
		assert_int_equal(p.type, g->type);
		check_same(g->data, g->len, &p, g->name);
	}
}

static void test_every_truncation(void **state)
{
	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(goods); i++) {
		const struct good *g = &goods[i];
		for (size_t cut = 0; cut < g->len; cut++) {
			struct mqtt_packet p;
			struct mqtt_error e;
			/* Of exact size, so that a sanitizer sees a read beyond it. */
			uint8_t *part = xmemdup(g->data, cut > 0 ? cut : 1);
			assert_int_equal(
				mqtt_decode(part, cut, g->version, &p, &e), -ERR_TRUNCATED);
			/* The same with a header that says so: never truncated, good only where the
			 * rest was optional or a payload. */
			if (cut >= 2) {
				part[1] = (uint8_t)(cut - 2);
				int err = mqtt_decode(part, cut, g->version, &p, &e);
				assert_int_not_equal(err, -ERR_TRUNCATED);
				if (err == 0)
					check_same(part, cut, &p, g->name);
				else
					assert_true(e.reason >= 0x80 && e.why != NULL);
			}
			free(part);
		}
	}
}

static void test_connect_fields(void **state)
{
	(void)state;
	uint8_t data[512];
	size_t len = build_full_connect(data);
	struct mqtt_packet p;
	struct mqtt_error e;
	int err = mqtt_decode(data, len, 0, &p, &e);
	if (err != 0)
		fail_msg("refused: %s", e.why);
	const struct mqtt_connect *c = &p.connect;
	assert_int_equal(p.version, 5);
	assert_true(c->clean_start && c->has_will && c->will_retain && c->has_username);
	assert_int_equal(c->will_qos, 1);
	assert_int_equal(c->keep_alive_s, 60);
	assert_int_equal(mqtt_prop_num(&p.props, MQTT_PROP_SESSION_EXPIRY, 0), 10);
	assert_int_equal(mqtt_prop_num(&p.props, MQTT_PROP_RECEIVE_MAXIMUM, 0), 20);
	assert_int_equal(mqtt_prop_num(&p.props, MQTT_PROP_MAXIMUM_PACKET_SIZE, 0), 4096);
	assert_int_equal(mqtt_prop_num(&p.props, MQTT_PROP_TOPIC_ALIAS_MAXIMUM, 0), 10);
	assert_false(mqtt_prop_has(&p.props, MQTT_PROP_WILL_DELAY));
	assert_int_equal(mqtt_prop_num(&c->will_props, MQTT_PROP_WILL_DELAY, 0), 5);
	assert_memory_equal(c->will_payload.p, "bye", 3);
	assert_int_equal(c->password.len, 1);
	size_t users = 0;
	struct rd r = rd_make(c->will_props.raw.p, c->will_props.raw.len);
	for (struct mqtt_prop prop; mqtt_prop_next(&r, &prop);)
		users += prop.row->id == MQTT_PROP_USER_PROPERTY && prop.key.len == 1 &&
			 prop.bytes.p[0] == 'v';
	assert_int_equal(users, 2);
	check_same(data, len, &p, "full CONNECT");
	for (size_t cut = 0; cut < len; cut++)
		assert_int_equal(mqtt_decode(data, cut, 0, &p, &e), -ERR_TRUNCATED);
}

struct bad {
	const char *name;
	uint8_t version;
	uint8_t reason;
	uint8_t answer; /* mqtt_error.version */
	const uint8_t *data;
	size_t len;
};

static const struct bad bads[] = {
	/* fixed header */
	{"type 0", V5, 0x81, V5, BYTES("\0\0")},
	{"PINGREQ flags", V5, 0x81, V5, BYTES("\xc1\0")},
	{"PUBREL flags", V5, 0x81, V5, BYTES("\x60\2\0\1")},
	{"SUBSCRIBE flags", V4, 0x81, V4, BYTES("\x80\6\0\1\0\1a\0")},
	{"UNSUBSCRIBE flags", V4, 0x81, V4, BYTES("\xa0\5\0\1\0\1a")},
	{"length of five bytes", V5, 0x81, V5, BYTES("\x30\xff\xff\xff\xff\x01")},
	{"length not minimal", V5, 0x81, V5, BYTES("\xc0\x80\0")},
	{"bytes left over", V4, 0x81, V4, BYTES("\xc0\1\0")},
	{"PUBACK 3.1.1 with a code", V4, 0x81, V4, BYTES("\x40\3\0\1\0")},
	{"first is not CONNECT", 0, 0x82, 0, BYTES("\xc0\0")},
	/* CONNECT */
	{"not MQTT", 0, 0x84, 0, BYTES("\x10\x0d\0\4MQTX\4\2\0\x3c\0\1c")},
	{"MQTT 3.1", 0, 0x84, V4, BYTES("\x10\x0f\0\6MQIsdp\3\2\0\x3c\0\1c")},
	{"level 3", 0, 0x84, V4, BYTES("\x10\x0d\0\4MQTT\3\2\0\x3c\0\1c")},
	{"level 6", 0, 0x84, V5, BYTES("\x10\x0d\0\4MQTT\6\2\0\x3c\0\1c")},
	{"reserved flag", 0, 0x81, V4, BYTES("\x10\x0d\0\4MQTT\4\3\0\x3c\0\1c")},
	{"will QoS without will", 0, 0x81, V4, BYTES("\x10\x0d\0\4MQTT\4\x0a\0\x3c\0\1c")},
	{"will retain without will", 0, 0x81, V5, BYTES("\x10\x0e\0\4MQTT\5\x22\0\x3c\0\0\1c")},
	{"will QoS 3", 0, 0x81, V4, BYTES("\x10\x13\0\4MQTT\4\x1e\0\x3c\0\1c\0\1w\0\1m")},
	{"will topic with wildcard", 0, 0x90, V4,
		BYTES("\x10\x13\0\4MQTT\4\x06\0\x3c\0\1c\0\1#\0\1m")},
	{"password without user", 0, 0x81, V4, BYTES("\x10\x10\0\4MQTT\4\x42\0\0\0\1c\0\1p")},
	{"client id not UTF-8", 0, 0x81, V4, BYTES("\x10\x0d\0\4MQTT\4\2\0\x3c\0\1\xff")},
	{"auth data alone", 0, 0x82, V5, BYTES("\x10\x12\0\4MQTT\5\2\0\x3c\4\x16\0\1x\0\1c")},
	{"user name missing", 0, 0x81, V4, BYTES("\x10\x0d\0\4MQTT\4\x82\0\x3c\0\1c")},
	/* PUBLISH */
	{"QoS 3", V5, 0x81, V5, BYTES("\x36\6\0\1a\0\1\0")},
	{"DUP with QoS 0", V5, 0x81, V5, BYTES("\x38\4\0\1a\0")},
	{"packet id 0", V5, 0x82, V5, BYTES("\x32\6\0\1a\0\0\0")},
	{"wildcard +", V5, 0x90, V5, BYTES("\x30\4\0\1+\0")},
	{"wildcard #", V4, 0x90, V4, BYTES("\x30\3\0\1#")},
	{"no topic, no alias", V5, 0x82, V5, BYTES("\x30\3\0\0\0")},
	{"no topic 3.1.1", V4, 0x81, V4, BYTES("\x30\2\0\0")},
	{"topic with U+0000", V4, 0x81, V4, BYTES("\x30\3\0\1\0")},
	{"topic with a surrogate", V4, 0x81, V4, BYTES("\x30\5\0\3\xed\xa0\x80")},
	{"topic overlong", V4, 0x81, V4, BYTES("\x30\4\0\2\xc0\xaf")},
	{"topic longer than packet", V4, 0x81, V4, BYTES("\x30\3\0\5a")},
	{"alias 0", V5, 0x94, V5, BYTES("\x30\7\0\1a\3\x23\0\0")},
	{"alias twice", V5, 0x82, V5, BYTES("\x30\x0a\0\1a\6\x23\0\1\x23\0\1")},
	{"payload format 2", V5, 0x82, V5, BYTES("\x30\6\0\1a\2\1\2")},
	{"subscription id 0", V5, 0x82, V5, BYTES("\x30\6\0\1a\2\x0b\0")},
	{"response topic with wildcard", V5, 0x82, V5, BYTES("\x30\x08\0\1a\4\x08\0\1+")},
	{"unknown property", V5, 0x81, V5, BYTES("\x30\6\0\1a\2\x7e\0")},
	{"unknown property above 127", V5, 0x81, V5, BYTES("\x30\7\0\1a\3\x80\1\0")},
	{"misplaced property", V5, 0x81, V5, BYTES("\x30\7\0\1a\3\x21\0\1")},
	{"properties longer than packet", V5, 0x81, V5, BYTES("\x30\4\0\1a\1")},
	{"property cut off", V5, 0x81, V5, BYTES("\x30\6\0\1a\2\x23\0")},
	{"user property not UTF-8", V5, 0x81, V5, BYTES("\x30\x0b\0\1a\7\x26\0\1\xff\0\1v")},
	/* acknowledgements */
	{"PUBACK id 0", V4, 0x82, V4, BYTES("\x40\2\0\0")},
	{"PUBACK code of another", V5, 0x82, V5, BYTES("\x40\3\0\1\x11")},
	{"PUBREL code of another", V5, 0x82, V5, BYTES("\x62\3\0\1\x10")},
	{"CONNACK flags", V4, 0x81, V4, BYTES("\x20\2\2\0")},
	{"CONNACK code 6", V4, 0x82, V4, BYTES("\x20\2\0\6")},
	{"CONNACK present in refusal", V4, 0x82, V4, BYTES("\x20\2\1\5")},
	/* SUBSCRIBE */
	{"no filter", V5, 0x82, V5, BYTES("\x82\3\0\1\0")},
	{"no filter 3.1.1", V4, 0x82, V4, BYTES("\x82\2\0\1")},
	{"no options", V5, 0x81, V5, BYTES("\x82\6\0\1\0\0\1a")},
	{"options reserved 5.0", V5, 0x81, V5, BYTES("\x82\7\0\1\0\0\1a\x40")},
	{"options reserved 3.1.1", V4, 0x81, V4, BYTES("\x82\6\0\1\0\1a\4")},
	{"subscribe QoS 3", V5, 0x82, V5, BYTES("\x82\7\0\1\0\0\1a\3")},
	{"subscribe QoS 3 3.1.1", V4, 0x81, V4, BYTES("\x82\6\0\1\0\1a\3")},
	{"retain handling 3", V5, 0x82, V5, BYTES("\x82\7\0\1\0\0\1a\x30")},
	{"no local and shared", V5, 0x82, V5, BYTES("\x82\x10\0\1\0\0\x0a$share/g/x\4")},
	{"subscription id twice", V5, 0x82, V5, BYTES("\x82\x0b\0\1\4\x0b\1\x0b\1\0\1a\0")},
	{"subscribe id 0", V5, 0x82, V5, BYTES("\x82\7\0\0\0\0\1a\0")},
	{"SUBACK code", V4, 0x82, V4, BYTES("\x90\3\0\1\3")},
	{"SUBACK without code", V5, 0x82, V5, BYTES("\x90\3\0\1\0")},
	{"UNSUBSCRIBE no filter", V5, 0x82, V5, BYTES("\xa2\3\0\1\0")},
	{"UNSUBACK code", V5, 0x82, V5, BYTES("\xb0\4\0\1\0\1")},
	/* the rest */
	{"DISCONNECT 3.1.1 with code", V4, 0x81, V4, BYTES("\xe0\1\0")},
	{"DISCONNECT code", V5, 0x82, V5, BYTES("\xe0\1\x10")},
	{"AUTH in 3.1.1", V4, 0x81, V4, BYTES("\xf0\0")},
	{"AUTH code", V5, 0x82, V5, BYTES("\xf0\2\4\0")},
	{"AUTH without method", V5, 0x82, V5, BYTES("\xf0\2\x18\0")},
};

static void test_refusals(void **state)
{
	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(bads); i++) {
		const struct bad *b = &bads[i];
		struct mqtt_packet p;
		struct mqtt_error e;
		int err = mqtt_decode(b->data, b->len, b->version, &p, &e);
		if (err != -ERR_MALFORMED)
			fail_msg("%s: %s", b->name, err_str(err));
		if (e.reason != b->reason || e.version != b->answer || e.why == NULL)
			fail_msg("%s: 0x%02x (%s), answer %u", b->name, e.reason, e.why, e.version);
	}
}

/* Every property in every packet: accepted exactly where the table says so, twice exactly where it
 * may repeat, and every value of a number outside its range refused with the row's code. */
static size_t put_value(uint8_t *out, const struct mqtt_prop_row *row, uint32_t num)
{
	struct buf b;
	struct mqtt_bytes one = {.p = (const uint8_t *)"x", .len = 1};
	buf_init(&b, 0);
	buf_put_u8(&b, row->id);
	if (row->type == MQTT_PROP_BYTE)
		buf_put_u8(&b, (uint8_t)num);
	else if (row->type == MQTT_PROP_U16)
		buf_put_be16(&b, (uint16_t)num);
	else if (row->type == MQTT_PROP_U32)
		buf_put_be32(&b, num);
	else if (row->type == MQTT_PROP_VARINT)
		mqtt_put_varint(&b, num);
	else if (row->type == MQTT_PROP_PAIR) {
		buf_reset(&b);
		mqtt_prop_put_pair(&b, row->id, one, one);
	} else {
		buf_reset(&b);
		mqtt_prop_put_bytes(&b, row->id, "x", 1);
	}
	memcpy(out, b.data, b.len_bytes);
	size_t len = b.len_bytes;
	buf_free(&b);
	return len;
}

/* Packets around a set of properties: before and after its length byte. */
static const struct {
	uint32_t where;
	const uint8_t *before;
	size_t before_len;
	const uint8_t *after;
	size_t after_len;
} shells[] = {
	{MQTT_IN(MQTT_CONNECT), BYTES("\x10\0\0\4MQTT\5\2\0\0"), BYTES("\0\1c")},
	{MQTT_IN_WILL, BYTES("\x10\0\0\4MQTT\5\6\0\0\0\0\1c"), BYTES("\0\1w\0\1m")},
	{MQTT_IN(MQTT_CONNACK), BYTES("\x20\0\0\0"), BYTES("")},
	{MQTT_IN(MQTT_PUBLISH), BYTES("\x30\0\0\1a"), BYTES("")},
	{MQTT_IN(MQTT_PUBACK), BYTES("\x40\0\0\1\0"), BYTES("")},
	{MQTT_IN(MQTT_PUBREC), BYTES("\x50\0\0\1\0"), BYTES("")},
	{MQTT_IN(MQTT_PUBREL), BYTES("\x62\0\0\1\0"), BYTES("")},
	{MQTT_IN(MQTT_PUBCOMP), BYTES("\x70\0\0\1\0"), BYTES("")},
	{MQTT_IN(MQTT_SUBSCRIBE), BYTES("\x82\0\0\1"), BYTES("\0\1a\0")},
	{MQTT_IN(MQTT_SUBACK), BYTES("\x90\0\0\1"), BYTES("\0")},
	{MQTT_IN(MQTT_UNSUBSCRIBE), BYTES("\xa2\0\0\1"), BYTES("\0\1a")},
	{MQTT_IN(MQTT_UNSUBACK), BYTES("\xb0\0\0\1"), BYTES("\0")},
	{MQTT_IN(MQTT_DISCONNECT), BYTES("\xe0\0\0"), BYTES("")},
	{MQTT_IN(MQTT_AUTH), BYTES("\xf0\0\x18"), BYTES("")},
};

static uint8_t decode_shell(size_t shell, const uint8_t *props, size_t props_len)
{
	uint8_t data[256];
	size_t len = shells[shell].before_len;
	memcpy(data, shells[shell].before, len);
	data[len++] = (uint8_t)props_len;
	memcpy(data + len, props, props_len);
	len += props_len;
	memcpy(data + len, shells[shell].after, shells[shell].after_len);
	len += shells[shell].after_len;
	data[1] = (uint8_t)(len - 2);
	struct mqtt_packet p;
	struct mqtt_error e;
	int err = mqtt_decode(data, len, data[0] == 0x10 ? 0 : V5, &p, &e);
	assert_int_not_equal(err, -ERR_TRUNCATED);
	return err == 0 ? 0 : e.reason;
}

static uint8_t expected(const struct mqtt_prop_row *row, uint32_t where, bool twice)
{
	if ((row->where & where) == 0)
		return MQTT_RC_MALFORMED;
	if (twice && (row->repeats & where) == 0)
		return MQTT_RC_PROTOCOL_ERROR;
	/* These two need the other. */
	if (row->id == MQTT_PROP_AUTH_DATA && where == MQTT_IN(MQTT_CONNECT))
		return MQTT_RC_PROTOCOL_ERROR;
	if (row->id != MQTT_PROP_AUTH_METHOD && where == MQTT_IN(MQTT_AUTH))
		return MQTT_RC_PROTOCOL_ERROR;
	return 0;
}

static void test_every_property_in_every_packet(void **state)
{
	(void)state;
	assert_int_equal(mqtt_prop_count, 27);
	for (size_t i = 0; i < mqtt_prop_count; i++) {
		const struct mqtt_prop_row *row = &mqtt_prop_table[i];
		for (size_t k = 0; k < ARRAY_LEN(shells); k++) {
			uint8_t props[64];
			size_t len = put_value(props, row, row->min);
			uint8_t got = decode_shell(k, props, len);
			if (got != expected(row, shells[k].where, false))
				fail_msg("%s in packet %zu: 0x%02x", row->name, k, got);
			memcpy(props + len, props, len);
			got = decode_shell(k, props, 2 * len);
			if (got != expected(row, shells[k].where, true))
				fail_msg("%s twice in packet %zu: 0x%02x", row->name, k, got);
		}
	}
}

static void test_ranges(void **state)
{
	(void)state;
	size_t n = 0;
	for (size_t i = 0; i < mqtt_prop_count; i++) {
		const struct mqtt_prop_row *row = &mqtt_prop_table[i];
		uint32_t tries[2] = {row->min - 1, row->max + 1};
		uint32_t widest = row->type == MQTT_PROP_BYTE  ? 255
				  : row->type == MQTT_PROP_U16 ? 65535
							       : MQTT_REMAINING_MAX;
		for (size_t t = 0; row->type <= MQTT_PROP_VARINT && t < 2; t++) {
			if (tries[t] > widest || (tries[t] >= row->min && tries[t] <= row->max))
				continue;
			for (size_t k = 0; k < ARRAY_LEN(shells); k++) {
				uint8_t props[16];
				if ((row->where & shells[k].where) == 0)
					continue;
				size_t len = put_value(props, row, tries[t]);
				assert_int_equal(decode_shell(k, props, len), row->out_of_range);
				n++;
			}
		}
	}
	assert_in_range(n, 15, 100);
}

static void test_long_forms(void **state)
{
	(void)state;
	struct mqtt_packet p;
	struct mqtt_error e;
	assert_int_equal(mqtt_decode("\x40\4\0\1\0\0", 6, V5, &p, &e), 0);
	assert_int_equal(p.ack.reason, 0);
	assert_int_equal(mqtt_decode("\xe0\2\0\0", 4, V5, &p, &e), 0);
	assert_int_equal(p.reason, 0);
}

static void test_publish_parts(void **state)
{
	(void)state;
	static const uint32_t ids[] = {1, 200};
	struct mqtt_publish_parts parts = {.version = V5,
		.qos = 1,
		.packet_id = 0x1234,
		.topic = {.p = (const uint8_t *)"a/b", .len = 3},
		.payload = {.p = (const uint8_t *)"hi", .len = 2},
		.props = {.p = (const uint8_t *)"\1\1", .len = 2},
		.has_expiry = true,
		.expiry_s = 30,
		.sub_ids = ids,
		.n_sub_ids = 2};
	static const uint8_t want[] =
		"\x32\x16\0\3a/b\x12\x34\x0c\1\1\2\0\0\0\x1e\x0b\1\x0b\xc8\1hi";
	struct buf out;
	buf_init(&out, 0);
	assert_int_equal(mqtt_encode_publish(&out, &parts, 23), -ERR_LIMIT);
	assert_int_equal(out.len_bytes, 0);
	assert_int_equal(mqtt_encode_publish(&out, &parts, 24), 0);
	assert_int_equal(out.len_bytes, sizeof(want) - 1);
	assert_memory_equal(out.data, want, sizeof(want) - 1);
	buf_reset(&out);
	parts.version = V4;
	parts.qos = 0;
	assert_int_equal(mqtt_encode_publish(&out, &parts, 0), 0);
	assert_int_equal(out.len_bytes, 9);
	assert_memory_equal(out.data, "\x30\7\0\3a/bhi", 9);
	buf_free(&out);
}

static void test_varint(void **state)
{
	(void)state;
	static const struct {
		uint32_t v;
		const char *text;
		size_t len;
	} rows[] = {{0, "\0", 1}, {127, "\x7f", 1}, {128, "\x80\1", 2}, {16383, "\xff\x7f", 2},
		{16384, "\x80\x80\1", 3}, {2097151, "\xff\xff\x7f", 3},
		{2097152, "\x80\x80\x80\1", 4}, {268435455, "\xff\xff\xff\x7f", 4}};
	for (size_t i = 0; i < ARRAY_LEN(rows); i++) {
		struct buf b;
		uint32_t v = 1;
		buf_init(&b, 0);
		mqtt_put_varint(&b, rows[i].v);
		assert_int_equal(b.len_bytes, rows[i].len);
		assert_memory_equal(b.data, rows[i].text, rows[i].len);
		struct rd r = rd_make(b.data, b.len_bytes);
		assert_int_equal(mqtt_get_varint(&r, &v), 0);
		assert_int_equal(v, rows[i].v);
		r = rd_make(b.data, b.len_bytes - 1);
		assert_int_equal(mqtt_get_varint(&r, &v), -ERR_TRUNCATED);
		buf_free(&b);
	}
}

static void test_utf8(void **state)
{
	(void)state;
	static const struct {
		const char *text;
		size_t len;
		bool valid;
	} rows[] = {{"", 0, true}, {"abc", 3, true}, {"a\0b", 3, false}, {"\x7f", 1, true},
		{"\xc2\x80", 2, true}, {"\xc1\xbf", 2, false}, {"\xdf\xbf", 2, true},
		{"\xe0\x9f\xbf", 3, false}, {"\xe0\xa0\x80", 3, true}, {"\xed\x9f\xbf", 3, true},
		{"\xed\xa0\x80", 3, false}, {"\xed\xbf\xbf", 3, false}, {"\xee\x80\x80", 3, true},
		{"\xef\xbf\xbf", 3, true}, {"\xf0\x8f\xbf\xbf", 4, false},
		{"\xf0\x90\x80\x80", 4, true}, {"\xf4\x8f\xbf\xbf", 4, true},
		{"\xf4\x90\x80\x80", 4, false}, {"\xf5\x80\x80\x80", 4, false}, {"\x80", 1, false},
		{"\xe2\x82", 2, false}, {"\xe2\x82\x41", 3, false}, {"\xff", 1, false}};
	for (size_t i = 0; i < ARRAY_LEN(rows); i++) {
		if (mqtt_utf8_valid((const uint8_t *)rows[i].text, rows[i].len) != rows[i].valid)
			fail_msg("row %zu", i);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_good_packets),
		cmocka_unit_test(test_every_truncation),
		cmocka_unit_test(test_connect_fields),
		cmocka_unit_test(test_refusals),
		cmocka_unit_test(test_every_property_in_every_packet),
		cmocka_unit_test(test_ranges),
		cmocka_unit_test(test_long_forms),
		cmocka_unit_test(test_publish_parts),
		cmocka_unit_test(test_varint),
		cmocka_unit_test(test_utf8),
	};
	return cmocka_run_group_tests_name("mqtt_proto", tests, NULL, NULL);
}
