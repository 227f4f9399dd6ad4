/* SPDX-License-Identifier: PostgreSQL */
/*
 * Stores sets of mappings (howdah_mqtt.node_state) by the daemon's batching writer. Each one holds
 * the track of its transaction until it is committed, so nothing at or past the change of a mapping
 * is acknowledged before.
 *
 * Context: event thread.
 */
#ifndef BROKERD_STATESTORE_H
#define BROKERD_STATESTORE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "brokerd/message.h"
#include "common/base/buf.h"
#include "common/base/ev.h"
#include "common/pg/batch.h"

struct statestore;

struct statestore_ops {
	/* Why a set cannot be stored (it is tried again), or NULL: over. */
	void (*on_trouble)(const char *why, void *arg);
	/* Nothing is under way any more. Not from inside statestore_put. */
	void (*on_empty)(void *arg);
};

/* writer is borrowed; kind: index of changes_state_kind in its kinds. */
struct statestore *statestore_new(struct ev_loop *loop, struct batch *writer, size_t kind,
	const struct statestore_ops *ops, void *arg);
/* What is not yet stored is let go of: after the tracker is gone, and with the writer not running
 * any more, which drops it without a completion. */
void statestore_free(struct statestore **s);
/* Takes the content of mappings (which is empty afterwards) and a reference on track. */
void statestore_put(struct statestore *s, uint64_t lsn, struct buf *mappings, struct track *track);
/* True: no set waits for its commit. */
bool statestore_is_empty(const struct statestore *s);
uint64_t statestore_stored(const struct statestore *s);

#endif
