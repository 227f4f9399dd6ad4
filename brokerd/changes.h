/* SPDX-License-Identifier: PostgreSQL */
/*
 * Table changes as messages: records from the ring -> mappings -> topic and payload ->
 * broker_publish, and back: what every connected QoS 1 subscriber has acknowledged ->
 * ring_reader_ack.
 *
 * The set of mappings takes effect exactly at its place in the WAL: it starts from the newest
 * howdah_mqtt.node_state at or below the stream's from_lsn, follows the mapping table's own changes
 * in the stream, and is stored again, by batch, before anything past a change of it is
 * acknowledged.
 *
 * Context: event thread.
 */
#ifndef BROKERD_CHANGES_H
#define BROKERD_CHANGES_H

#include <stdbool.h>
#include <stdint.h>

#include "brokerd/broker.h"
#include "common/ipc/daemon.h"
#include "common/ipc/imsg.h"
#include "common/pg/batch.h"

struct changes;

/* conninfo: for its own reading connection (type catalogue, node_state). writer: the daemon's
 * batch, kind CHANGES_KIND_STATE is ours. All borrowed. */
struct changes *changes_new(struct daemon *d, struct broker *b, struct batch *writer,
	size_t state_kind, const char *conninfo);
/* Before the writer is freed, with no turn of the loop in between. Sessions may go later. */
void changes_free(struct changes **c);
/* The row kind that stores a set of mappings; one of the writer's kinds. */
extern const struct batch_kind changes_state_kind;
/* The broker is about to end its sessions, which is no PUBACK of theirs: from here on nothing is
 * read and nothing acknowledged; what was owed comes again to the next life. */
void changes_quiesce(struct changes *c);
/* Forwarded from daemon_info. */
void changes_peer(struct changes *c, bool up, uint32_t generation);
int changes_relay(struct changes *c, uint32_t kind, struct imsg *msg)
	__attribute__((warn_unused_result));
/* Copies the present figures into the daemon's statistics page (called once per second). Their rows
 * must be the first of the daemon's stats_rows: { CHANGES_STATS_ROWS, {"mqtt_…", …}, … }, the
 * daemon's own begin at index CHANGES_STAT_COUNT. */
void changes_update_stats(struct changes *c);
/* What the operator should know, one line for daemon_status; "" while all is well. Borrowed, valid
 * until the next call on c. */
const char *changes_trouble(const struct changes *c);

/* The last gap of this life, one line; "" if there was none. Borrowed. */
const char *changes_gap(const struct changes *c);

enum changes_stat {
	CHANGES_STAT_RECORDS,
	CHANGES_STAT_ROWS,
	CHANGES_STAT_MESSAGES,
	CHANGES_STAT_UNMATCHED,
	CHANGES_STAT_BAD_TOPIC,
	CHANGES_STAT_BAD_PAYLOAD,
	CHANGES_STAT_BAD_VALUE,
	CHANGES_STAT_BAD_MAPPING,
	CHANGES_STAT_MAPPINGS,
	CHANGES_STAT_PENDING_TX,
	CHANGES_STAT_PAUSES,
	CHANGES_STAT_STATES_STORED,
	CHANGES_STAT_DELAY_P50,
	CHANGES_STAT_DELAY_P99,
	CHANGES_STAT_RECEIVED_LSN,
	CHANGES_STAT_ACKED_LSN,
	CHANGES_STAT_RING_LAG,
	CHANGES_STAT_SPOOLED,
	CHANGES_STAT_SPOOL_BYTES,
	CHANGES_STAT_DUPLICATES,
	CHANGES_STAT_GAPS,
	CHANGES_STAT_COUNT
};
#define CHANGES_STATS_ROWS                                                                         \
	{"changes_records", STATS_COUNTER, "", STATS_INFO, "records taken from the ring"},         \
		{"changes_rows", STATS_COUNTER, "", STATS_STATUS, "changes of mapped tables"},     \
		{"changes_messages", STATS_COUNTER, "", STATS_STATUS, "messages made of changes"}, \
		{"changes_unmatched", STATS_COUNTER, "", STATS_INFO,                               \
			"changes that no session wanted as a message"},                            \
		{"changes_bad_topic", STATS_COUNTER, "", STATS_INFO,                               \
			"changes whose topic was empty or too long"},                              \
		{"changes_bad_payload", STATS_COUNTER, "", STATS_INFO,                             \
			"changes whose payload was too long"},                                     \
		{"changes_bad_value", STATS_COUNTER, "", STATS_INFO,                               \
			"values that did not fit their type and went out as strings"},             \
		{"changes_bad_mapping", STATS_COUNTER, "", STATS_INFO,                             \
			"changes whose mapping has an unusable template"},                         \
		{"changes_mappings", STATS_GAUGE, "", STATS_STATUS, "mappings in force"},          \
		{"changes_pending_transactions", STATS_GAUGE, "", STATS_STATUS,                    \
			"transactions that wait for subscribers"},                                 \
		{"changes_pauses", STATS_COUNTER, "", STATS_INFO,                                  \
			"times that reading paused for slow subscribers"},                         \
		{"changes_states_stored", STATS_COUNTER, "", STATS_INFO,                           \
			"sets of mappings stored"},                                                \
		{"changes_delay_p50", STATS_GAUGE, "us", STATS_STATUS,                             \
			"from a commit, by the server's clock, until brokerd has the change: "     \
			"median of the last minute"},                                              \
		{"changes_delay_p99", STATS_GAUGE, "us", STATS_INFO,                               \
			"the same: its 99th percentile"},                                          \
		{"changes_received_lsn", STATS_LSN, "", STATS_STATUS,                              \
			"end of the last transaction received"},                                   \
		{"changes_acked_lsn", STATS_LSN, "", STATS_STATUS,                                 \
			"everything up to here is acknowledged"},                                  \
		{"changes_ring_lag", STATS_GAUGE, "bytes", STATS_STATUS,                           \
			"in the ring and not yet read"},                                           \
		{"changes_spooled", STATS_COUNTER, "", STATS_INFO, "records that were spooled"},   \
		{"changes_spool_bytes", STATS_GAUGE, "bytes", STATS_STATUS, "spool in use"},       \
		{"changes_duplicates", STATS_COUNTER, "", STATS_INFO,                              \
			"records that came again and were dropped"},                               \
	{                                                                                          \
		"changes_gaps", STATS_COUNTER, "", STATS_STATUS,                                   \
			"times that changes were lost with the replication slot"                   \
	}

#endif
