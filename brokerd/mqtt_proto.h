/* SPDX-License-Identifier: PostgreSQL */
/*
 * The MQTT codec: bytes in, struct out, and back; versions 3.1.1 (4) and 5.0 (5), all fifteen
 * packets, both directions. Pure: no descriptors, no clock, no memory of its own. What a packet
 * holds points into the bytes it was decoded from and lives as long as they do.
 *
 * Decoding is strict: whatever the standard forbids is refused, with the reason code that the
 * standard gives for it. What depends on the state of a session (a topic alias in use, the receive
 * maximum, which side may send what) is not judged here.
 *
 * Context: any thread.
 */
#ifndef BROKERD_MQTT_PROTO_H
#define BROKERD_MQTT_PROTO_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/buf.h"

#define MQTT_VERSION_31 3 /* known in order to be refused */
#define MQTT_VERSION_311 4
#define MQTT_VERSION_5 5

#define MQTT_REMAINING_MAX 268435455u /* MQTT-1.5.5 */
#define MQTT_FIXED_HEADER_MAX 5
#define MQTT_STRING_MAX 65535

enum mqtt_type {
	MQTT_CONNECT = 1,
	MQTT_CONNACK,
	MQTT_PUBLISH,
	MQTT_PUBACK,
	MQTT_PUBREC,
	MQTT_PUBREL,
	MQTT_PUBCOMP,
	MQTT_SUBSCRIBE,
	MQTT_SUBACK,
	MQTT_UNSUBSCRIBE,
	MQTT_UNSUBACK,
	MQTT_PINGREQ,
	MQTT_PINGRESP,
	MQTT_DISCONNECT,
	MQTT_AUTH,
	MQTT_TYPE_COUNT
};
/* "PUBLISH"; "reserved" for 0 and everything above AUTH. */
const char *mqtt_type_str(unsigned type);

/* MQTT 5.0 section 2.4. The same number can mean several things in different packets. */
enum mqtt_reason {
	MQTT_RC_SUCCESS = 0x00, /* normal disconnection, granted QoS 0 */
	MQTT_RC_GRANTED_QOS1 = 0x01,
	MQTT_RC_GRANTED_QOS2 = 0x02,
	MQTT_RC_DISCONNECT_WITH_WILL = 0x04,
	MQTT_RC_NO_MATCHING_SUBSCRIBERS = 0x10,
	MQTT_RC_NO_SUBSCRIPTION_EXISTED = 0x11,
	MQTT_RC_CONTINUE_AUTHENTICATION = 0x18,
	MQTT_RC_REAUTHENTICATE = 0x19,
	MQTT_RC_UNSPECIFIED = 0x80,
	MQTT_RC_MALFORMED = 0x81,
	MQTT_RC_PROTOCOL_ERROR = 0x82,
	MQTT_RC_IMPLEMENTATION_SPECIFIC = 0x83,
	MQTT_RC_UNSUPPORTED_VERSION = 0x84,
	MQTT_RC_CLIENT_ID_INVALID = 0x85,
	MQTT_RC_BAD_USER_OR_PASSWORD = 0x86,
	MQTT_RC_NOT_AUTHORIZED = 0x87,
	MQTT_RC_SERVER_UNAVAILABLE = 0x88,
	MQTT_RC_SERVER_BUSY = 0x89,
	MQTT_RC_BANNED = 0x8A,
	MQTT_RC_SHUTTING_DOWN = 0x8B,
	MQTT_RC_BAD_AUTH_METHOD = 0x8C,
	MQTT_RC_KEEP_ALIVE_TIMEOUT = 0x8D,
	MQTT_RC_SESSION_TAKEN_OVER = 0x8E,
	MQTT_RC_TOPIC_FILTER_INVALID = 0x8F,
	MQTT_RC_TOPIC_NAME_INVALID = 0x90,
	MQTT_RC_PACKET_ID_IN_USE = 0x91,
	MQTT_RC_PACKET_ID_NOT_FOUND = 0x92,
	MQTT_RC_RECEIVE_MAXIMUM_EXCEEDED = 0x93,
	MQTT_RC_TOPIC_ALIAS_INVALID = 0x94,
	MQTT_RC_PACKET_TOO_LARGE = 0x95,
	MQTT_RC_RATE_TOO_HIGH = 0x96,
	MQTT_RC_QUOTA_EXCEEDED = 0x97,
	MQTT_RC_ADMINISTRATIVE_ACTION = 0x98,
	MQTT_RC_PAYLOAD_FORMAT_INVALID = 0x99,
	MQTT_RC_RETAIN_NOT_SUPPORTED = 0x9A,
	MQTT_RC_QOS_NOT_SUPPORTED = 0x9B,
	MQTT_RC_USE_ANOTHER_SERVER = 0x9C,
	MQTT_RC_SERVER_MOVED = 0x9D,
	MQTT_RC_SHARED_NOT_SUPPORTED = 0x9E,
	MQTT_RC_CONNECTION_RATE = 0x9F,
	MQTT_RC_MAXIMUM_CONNECT_TIME = 0xA0,
	MQTT_RC_SUB_ID_NOT_SUPPORTED = 0xA1,
	MQTT_RC_WILDCARD_NOT_SUPPORTED = 0xA2
};
/* "topic alias invalid"; "unknown reason" for what is none. */
const char *mqtt_reason_str(uint8_t reason);
/* Whether a packet of this type may carry this reason code (MQTT 5.0). */
bool mqtt_reason_allowed(enum mqtt_type type, uint8_t reason);

/* The return codes of CONNACK and SUBACK in 3.1.1. */
enum mqtt_return_311 {
	MQTT_311_ACCEPTED = 0,
	MQTT_311_BAD_VERSION = 1,
	MQTT_311_BAD_CLIENT_ID = 2,
	MQTT_311_UNAVAILABLE = 3,
	MQTT_311_BAD_USER_OR_PASSWORD = 4,
	MQTT_311_NOT_AUTHORIZED = 5,
	MQTT_311_SUBACK_FAILURE = 0x80
};

struct mqtt_bytes {
	const uint8_t *p; /* borrowed; never NULL where the field is present, also if len is 0 */
	uint32_t len;
};

/* --- properties (MQTT 5.0 section 2.2.2) --- */

enum mqtt_prop_id {
	MQTT_PROP_PAYLOAD_FORMAT = 0x01,
	MQTT_PROP_MESSAGE_EXPIRY = 0x02,
	MQTT_PROP_CONTENT_TYPE = 0x03,
	MQTT_PROP_RESPONSE_TOPIC = 0x08,
	MQTT_PROP_CORRELATION_DATA = 0x09,
	MQTT_PROP_SUBSCRIPTION_ID = 0x0B,
	MQTT_PROP_SESSION_EXPIRY = 0x11,
	MQTT_PROP_ASSIGNED_CLIENT_ID = 0x12,
	MQTT_PROP_SERVER_KEEP_ALIVE = 0x13,
	MQTT_PROP_AUTH_METHOD = 0x15,
	MQTT_PROP_AUTH_DATA = 0x16,
	MQTT_PROP_REQUEST_PROBLEM_INFO = 0x17,
	MQTT_PROP_WILL_DELAY = 0x18,
	MQTT_PROP_REQUEST_RESPONSE_INFO = 0x19,
	MQTT_PROP_RESPONSE_INFO = 0x1A,
	MQTT_PROP_SERVER_REFERENCE = 0x1C,
	MQTT_PROP_REASON_STRING = 0x1F,
	MQTT_PROP_RECEIVE_MAXIMUM = 0x21,
	MQTT_PROP_TOPIC_ALIAS_MAXIMUM = 0x22,
	MQTT_PROP_TOPIC_ALIAS = 0x23,
	MQTT_PROP_MAXIMUM_QOS = 0x24,
	MQTT_PROP_RETAIN_AVAILABLE = 0x25,
	MQTT_PROP_USER_PROPERTY = 0x26,
	MQTT_PROP_MAXIMUM_PACKET_SIZE = 0x27,
	MQTT_PROP_WILDCARD_AVAILABLE = 0x28,
	MQTT_PROP_SUB_ID_AVAILABLE = 0x29,
	MQTT_PROP_SHARED_AVAILABLE = 0x2A,
	MQTT_PROP_ID_END
};

enum mqtt_prop_type {
	MQTT_PROP_BYTE = 1,
	MQTT_PROP_U16,
	MQTT_PROP_U32,
	MQTT_PROP_VARINT,
	MQTT_PROP_STRING,
	MQTT_PROP_BINARY,
	MQTT_PROP_PAIR
};

/* Where a property may stand: 1 << enum mqtt_type, and bit 0 for the properties of a will. */
#define MQTT_IN(type) (1u << (type))
#define MQTT_IN_WILL (1u << 0)

struct mqtt_prop_row {
	uint8_t id;
	enum mqtt_prop_type type;
	const char *name;
	uint32_t where;       /* MQTT_IN mask */
	uint32_t repeats;     /* MQTT_IN mask of packets that may hold it more than once */
	uint32_t min, max;    /* numbers: both ends inclusive */
	uint8_t out_of_range; /* reason code when a value is not within them */
};
extern const struct mqtt_prop_row mqtt_prop_table[];
extern const size_t mqtt_prop_count; /* 27 */
/* NULL if there is no such property. */
const struct mqtt_prop_row *mqtt_prop_find(uint32_t id);

/* The properties of one packet. Of repeated ones, the last is in v; walk raw for all of them. */
struct mqtt_props {
	struct mqtt_bytes raw; /* all of them, encoded, without the length */
	uint64_t present;      /* 1 << id */
	union {
		uint32_t num;
		struct mqtt_bytes bytes;
	} v[MQTT_PROP_ID_END]; /* valid where present */
};
static inline bool mqtt_prop_has(const struct mqtt_props *props, enum mqtt_prop_id id)
{
	return (props->present >> id & 1) != 0;
}
static inline uint32_t mqtt_prop_num(
	const struct mqtt_props *props, enum mqtt_prop_id id, uint32_t absent)
{
	return mqtt_prop_has(props, id) ? props->v[id].num : absent;
}

struct mqtt_prop {
	const struct mqtt_prop_row *row;
	uint32_t num;
	struct mqtt_bytes bytes; /* STRING, BINARY; value of a PAIR */
	struct mqtt_bytes key;   /* PAIR */
	struct mqtt_bytes raw;   /* the property as it was encoded, id and value */
};
/* Walks properties that were decoded before: r starts as rd_make(props->raw…). False at the end. */
bool mqtt_prop_next(struct rd *r, struct mqtt_prop *ret_prop);

/* Builders for a raw set of properties. Strings must be valid and at most MQTT_STRING_MAX. */
void mqtt_prop_put_num(struct buf *b, enum mqtt_prop_id id, uint32_t value);
void mqtt_prop_put_bytes(struct buf *b, enum mqtt_prop_id id, const void *data, size_t len_bytes);
void mqtt_prop_put_pair(
	struct buf *b, enum mqtt_prop_id id, struct mqtt_bytes key, struct mqtt_bytes value);

/* --- packets --- */

struct mqtt_connect {
	bool clean_start; /* 3.1.1: clean session */
	bool has_will, has_username, has_password;
	uint8_t will_qos;
	bool will_retain;
	uint16_t keep_alive_s;
	struct mqtt_bytes client_id;
	struct mqtt_bytes will_topic, will_payload;
	struct mqtt_bytes username, password;
	struct mqtt_props will_props;
};

struct mqtt_connack {
	bool session_present;
	uint8_t code; /* reason code; 3.1.1: return code */
};

struct mqtt_publish {
	bool dup, retain;
	uint8_t qos;
	uint16_t packet_id;      /* 0 with QoS 0 */
	struct mqtt_bytes topic; /* 5.0: may be empty when there is a topic alias */
	struct mqtt_bytes payload;
};

/* PUBACK, PUBREC, PUBREL, PUBCOMP. */
struct mqtt_ack {
	uint16_t packet_id;
	uint8_t reason;
};

/* SUBSCRIBE and UNSUBSCRIBE: walk filters with mqtt_filter_next. */
struct mqtt_subscribe {
	uint16_t packet_id;
	uint32_t n_filters; /* at least 1 */
	struct mqtt_bytes filters;
};

/* SUBACK and UNSUBACK (codes: empty in a 3.1.1 UNSUBACK). */
struct mqtt_suback {
	uint16_t packet_id;
	struct mqtt_bytes codes;
};

struct mqtt_packet {
	enum mqtt_type type;
	uint8_t version;
	union {
		struct mqtt_connect connect;
		struct mqtt_connack connack;
		struct mqtt_publish publish;
		struct mqtt_ack ack;
		struct mqtt_subscribe subscribe;
		struct mqtt_suback suback;
		uint8_t reason; /* DISCONNECT, AUTH */
	};
	struct mqtt_props props; /* 3.1.1: empty */
};

struct mqtt_filter {
	struct mqtt_bytes filter;
	uint8_t qos;
	bool no_local, retain_as_published;
	uint8_t retain_handling;
};
/* Walks the filters of a decoded SUBSCRIBE or UNSUBSCRIBE; r starts over subscribe.filters. */
bool mqtt_filter_next(struct rd *r, enum mqtt_type type, struct mqtt_filter *ret_filter);

/* Why a packet was refused. */
struct mqtt_error {
	uint8_t reason;  /* 5.0 reason code to answer with */
	uint8_t version; /* CONNECT: in which version to answer; 0: do not answer, the peer is no
			    MQTT client */
	const char *why; /* static text */
};

/* The fixed header of the packet at the start of data. */
struct mqtt_frame {
	uint8_t type; /* 0 … 15 */
	uint8_t flags;
	size_t header_bytes;
	size_t body_bytes;
};
/* 0; -ERR_TRUNCATED: not all there yet; -ERR_MALFORMED: bad remaining length (0x81). */
int mqtt_frame_peek(const void *data, size_t len_bytes, struct mqtt_frame *ret_frame)
	__attribute__((warn_unused_result));

/*
 * Decodes the one packet that data holds exactly. version: that of the connection; 0 before
 * CONNECT, which brings its own. 0; -ERR_TRUNCATED: data ends before the packet does;
 * -ERR_MALFORMED: refused, *ret_error says why. *ret_packet is undefined on failure.
 */
int mqtt_decode(const void *data, size_t len_bytes, uint8_t version, struct mqtt_packet *ret_packet,
	struct mqtt_error *ret_error) __attribute__((warn_unused_result));

/* Appends the packet (packet->version decides how; properties from props.raw and, for a will,
 * connect.will_props.raw). Acknowledgements and DISCONNECT take their shortest form. The content
 * must be what decoding would accept. */
void mqtt_encode(struct buf *out, const struct mqtt_packet *packet);

/* The hot path: one PUBLISH put together from its parts, without a struct mqtt_packet. */
struct mqtt_publish_parts {
	uint8_t version;
	uint8_t qos;
	bool dup;
	uint16_t packet_id;
	struct mqtt_bytes topic, payload;
	struct mqtt_bytes props; /* encoded, go first */
	bool has_expiry;
	uint32_t expiry_s;
	const uint32_t *sub_ids;
	size_t n_sub_ids;
};
/* Appends it if it is at most max_bytes long (0: no limit), else -ERR_LIMIT and nothing is written.
 */
int mqtt_encode_publish(struct buf *out, const struct mqtt_publish_parts *parts, size_t max_bytes)
	__attribute__((warn_unused_result));

/* --- text --- */

/* Well-formed UTF-8 without U+0000 and without surrogates (MQTT-1.5.4). */
bool mqtt_utf8_valid(const uint8_t *p, size_t len_bytes);

void mqtt_put_varint(struct buf *b, uint32_t v);
/* 0 with *ret_v; -ERR_TRUNCATED; -ERR_MALFORMED (over four bytes, or not the shortest form). */
int mqtt_get_varint(struct rd *r, uint32_t *ret_v) __attribute__((warn_unused_result));

#endif
