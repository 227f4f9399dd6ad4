/* SPDX-License-Identifier: PostgreSQL */
/*
 * Table changes as messages: records from the ring -> mappings -> topic and payload -> broker_publish,
 * and back: what every connected QoS 1 subscriber has acknowledged -> ring_reader_ack.
 *
 * The set of mappings takes effect exactly at its place in the WAL: it starts from the newest
 * howdah_mqtt.node_state at or below the stream's from_lsn, follows the mapping table's own changes
 * in the stream, and is stored again, by batch, before anything past a change of it is acknowledged.
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

/* conninfo: for its own reading connection (type catalogue, node_state). writer: the daemon's batch,
 * kind CHANGES_KIND_STATE is ours. All borrowed. */
struct changes *changes_new(struct daemon *d, struct broker *b, struct batch *writer,
	size_t state_kind, const char *conninfo);
void changes_free(struct changes **c);
/* The row kind that stores a set of mappings; one of the writer's kinds. */
extern const struct batch_kind changes_state_kind;
/* Forwarded from daemon_info. */
void changes_peer(struct changes *c, bool up, uint32_t generation);
int changes_relay(struct changes *c, uint32_t kind, struct imsg *msg) __attribute__((warn_unused_result));
/* Copies the present figures into the daemon's statistics page (called once per second). */
void changes_update_stats(struct changes *c);

#endif
