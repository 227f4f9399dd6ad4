/* SPDX-License-Identifier: PostgreSQL */
/*
 * brokerd's counters: the rows of table changes (changes.h) first, then ours.
 * Context: event thread.
 */
#ifndef BROKERD_BROKERD_STATS_H
#define BROKERD_BROKERD_STATS_H

#include "brokerd/changes.h"
#include "common/base/stats.h"

/* Why a connection ended: id, counter, reason code for DISCONNECT (0: none is sent), what it means.
 */
#define BROKERD_ENDS(X)                                                                            \
	X(END_CLIENT, "client", 0x00, "clients that said DISCONNECT")                              \
	X(END_LOST, "lost", 0x00, "connections that broke or were closed without DISCONNECT")      \
	X(END_CONNECT_TIMEOUT, "connect_timeout", 0x00,                                            \
		"connections without a CONNECT within brokerd.connect_timeout")                    \
	X(END_NOT_MQTT, "not_mqtt", 0x00, "connections that began with something else than MQTT")  \
	X(END_VERSION, "version", 0x84, "CONNECTs of another version of MQTT")                     \
	X(END_CLIENT_ID, "client_id", 0x85, "CONNECTs whose client identifier cannot be used")     \
	X(END_NOT_AUTHORIZED, "not_authorized", 0x87, "CONNECTs of clients that may not connect")  \
	X(END_AUTH_METHOD, "auth_method", 0x8C, "CONNECTs with an authentication method")          \
	X(END_MALFORMED, "malformed", 0x81, "malformed packets")                                   \
	X(END_PROTOCOL, "protocol", 0x82, "protocol errors")                                       \
	X(END_KEEP_ALIVE, "keep_alive", 0x8D, "clients silent for 1.5 times their keep-alive")     \
	X(END_TAKEN_OVER, "taken_over", 0x8E,                                                      \
		"clients replaced by another with the same identifier")                            \
	X(END_TOPIC, "topic_name", 0x90, "publishes to a topic that cannot be used")               \
	X(END_RECEIVE_MAXIMUM, "receive_maximum", 0x93,                                            \
		"clients that ignored brokerd.receive_maximum")                                    \
	X(END_TOPIC_ALIAS, "topic_alias", 0x94, "topic aliases out of range")                      \
	X(END_TOO_LARGE, "packet_too_large", 0x95, "packets longer than brokerd.max_packet")       \
	X(END_QUOTA, "quota", 0x97,                                                                \
		"clients that publish to themselves faster than they acknowledge")                 \
	X(END_ACK_TIMEOUT, "ack_timeout", 0x97,                                                    \
		"clients that acknowledged nothing within brokerd.ack_timeout")                    \
	X(END_STALLED, "stalled", 0x00,                                                            \
		"clients that took no byte within brokerd.ack_timeout while much waited for them") \
	X(END_RETAIN, "retain", 0x9A, "publishes with the retain flag, which is not supported")    \
	X(END_QOS, "qos", 0x9B, "publishes with QoS 2, which is not supported")                    \
	X(END_REFUSED, "refused", 0x83, "MQTT 3.1.1 clients whose publish the database refused")   \
	X(END_SHUTDOWN, "shutdown", 0x8B, "clients connected when the broker stopped")

#define BROKERD_COUNTERS(X)                                                                        \
	X(STAT_CONNECTIONS, "connections", STATS_GAUGE, "", STATS_STATUS, "open connections")      \
	X(STAT_SESSIONS, "sessions", STATS_GAUGE, "", STATS_STATUS, "connected clients")           \
	X(STAT_SUBSCRIPTIONS, "subscriptions", STATS_GAUGE, "", STATS_STATUS, "subscriptions")     \
	X(STAT_ACCEPTED, "accepted", STATS_COUNTER, "", STATS_INFO, "connections accepted")        \
	X(STAT_OVER_MAXIMUM, "over_max_connections", STATS_COUNTER, "", STATS_INFO,                \
		"connections closed because of brokerd.max_connections")                           \
	X(STAT_NO_DESCRIPTOR, "no_descriptor", STATS_COUNTER, "", STATS_INFO,                      \
		"connections closed for want of a file descriptor")                                \
	X(STAT_CONNECTED, "connected", STATS_COUNTER, "", STATS_INFO, "CONNECTs accepted")         \
	X(STAT_BYTES_IN, "bytes_received", STATS_COUNTER, "bytes", STATS_INFO,                     \
		"bytes received from clients")                                                     \
	X(STAT_BYTES_OUT, "bytes_sent", STATS_COUNTER, "bytes", STATS_INFO,                        \
		"bytes sent to clients")                                                           \
	X(STAT_IN_QOS0, "publish_received_qos0", STATS_COUNTER, "", STATS_STATUS,                  \
		"QoS 0 messages received")                                                         \
	X(STAT_IN_QOS1, "publish_received_qos1", STATS_COUNTER, "", STATS_STATUS,                  \
		"QoS 1 messages received")                                                         \
	X(STAT_IN_COMMITTED, "publish_committed", STATS_COUNTER, "", STATS_STATUS,                 \
		"QoS 1 messages committed")                                                        \
	X(STAT_IN_REFUSED, "publish_refused", STATS_COUNTER, "", STATS_STATUS,                     \
		"QoS 1 messages that the database refused")                                        \
	X(STAT_IN_WAITING, "publish_waiting", STATS_GAUGE, "", STATS_STATUS,                       \
		"QoS 1 messages waiting for their commit")                                         \
	X(STAT_OUT_QOS0, "publish_sent_qos0", STATS_COUNTER, "", STATS_STATUS,                     \
		"QoS 0 messages sent")                                                             \
	X(STAT_OUT_QOS1, "publish_sent_qos1", STATS_COUNTER, "", STATS_STATUS,                     \
		"QoS 1 messages sent")                                                             \
	X(STAT_OUT_ACKED, "publish_acknowledged", STATS_COUNTER, "", STATS_STATUS,                 \
		"QoS 1 messages acknowledged by subscribers")                                      \
	X(STAT_OUT_ACK_REFUSED, "puback_refused", STATS_COUNTER, "", STATS_INFO,                   \
		"acknowledgements with an error code; the message counts as delivered")            \
	X(STAT_OUT_ACK_UNKNOWN, "puback_unknown", STATS_COUNTER, "", STATS_INFO,                   \
		"acknowledgements of nothing that was sent")                                       \
	X(STAT_OUT_QUEUED, "queued_messages", STATS_GAUGE, "", STATS_STATUS,                       \
		"QoS 1 deliveries not yet acknowledged")                                           \
	X(STAT_CONGESTED, "congested_clients", STATS_GAUGE, "", STATS_STATUS,                      \
		"clients whose queue makes sources pause")                                         \
	X(STAT_PAUSED, "paused_clients", STATS_GAUGE, "", STATS_STATUS,                            \
		"publishers that are not read from at the moment")                                 \
	X(STAT_PAUSES, "pauses", STATS_COUNTER, "", STATS_INFO,                                    \
		"times that reading from a publisher was paused")                                  \
	X(STAT_DROPPED_SLOW, "dropped_slow", STATS_COUNTER, "", STATS_STATUS,                      \
		"QoS 0 messages dropped: brokerd.max_queued_bytes of the client were used up")     \
	X(STAT_DROPPED_LARGE, "dropped_too_large", STATS_COUNTER, "", STATS_STATUS,                \
		"messages dropped: longer than the client's maximum packet size")                  \
	X(STAT_DROPPED_EXPIRED, "dropped_expired", STATS_COUNTER, "", STATS_STATUS,                \
		"messages dropped: their expiry interval had passed")                              \
	X(STAT_WILLS, "wills", STATS_COUNTER, "", STATS_INFO, "will messages published")           \
	X(STAT_SUB_REFUSED, "subscriptions_refused", STATS_COUNTER, "", STATS_INFO,                \
		"subscriptions refused in a SUBACK")                                               \
	X(STAT_LOG_REMOVED, "log_removed", STATS_COUNTER, "", STATS_INFO,                          \
		"old rows removed from howdah_mqtt.message")                                       \
	X(STAT_BATCHES, "batches_committed", STATS_COUNTER, "", STATS_INFO, "batches committed")   \
	X(STAT_BATCHES_RETRIED, "batches_retried", STATS_COUNTER, "", STATS_INFO,                  \
		"batches sent again")                                                              \
	X(STAT_IN_DOUBT, "batches_in_doubt", STATS_COUNTER, "", STATS_INFO,                        \
		"batches looked up after a lost connection")

enum end_reason {
#define X(id, name, code, help) id,
	BROKERD_ENDS(X)
#undef X
		END_COUNT
};

enum brokerd_stat {
	STAT_FIRST = CHANGES_STAT_COUNT - 1,
#define X(id, name, kind, unit, level, help) id,
	BROKERD_COUNTERS(X)
#undef X
		STAT_ENDS, /* one for each enum end_reason */
	STAT_COUNT = STAT_ENDS + END_COUNT
};

extern const struct stats_row brokerd_stats_rows[STAT_COUNT];

struct end_row {
	const char *name;
	uint8_t code;
	const char *help;
};
extern const struct end_row brokerd_ends[END_COUNT];

#endif
