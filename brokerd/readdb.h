/* SPDX-License-Identifier: PostgreSQL */
/*
 * The reading connection of the table changes: the set of mappings to begin with, types from the
 * catalogue, and the removal of sets that are no longer needed. A request is kept and asked again
 * until it is answered; its owner waits with the ring paused.
 *
 * Context: event thread. Callbacks come from the loop, never from inside a request.
 */
#ifndef BROKERD_READDB_H
#define BROKERD_READDB_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/ev.h"
#include "common/pg/typecache.h"

struct readdb;

struct readdb_ops {
	/* The newest stored set at or below the LSN asked for: JSON, borrowed; NULL: there is none.
	 * False: not usable, it is asked for again in a few seconds. */
	bool (*on_state)(const char *mappings, void *arg);
	/* What was asked for is in the cache now. */
	void (*on_types)(void *arg);
	/* What keeps requests from being answered (one line with its remedy), or NULL: over. */
	void (*on_trouble)(const char *why, void *arg);
};

/* node and types are borrowed. */
struct readdb *readdb_new(struct ev_loop *loop, const char *conninfo, const char *node,
	struct typecache *types, const struct readdb_ops *ops, void *arg);
void readdb_free(struct readdb **r);
/* One request of each kind at a time; the same again replaces the one before. */
/* Removes the sets stored beyond lsn, too: what made them comes again, or belongs to a history that
 * ended. */
void readdb_want_state(struct readdb *r, uint64_t lsn);
void readdb_want_types(struct readdb *r, const uint32_t *oids, size_t n);
/* Removes the stored sets that neither acked_lsn nor a restart of the slot can need again. Dropped
 * silently while there is no connection: it is asked for again and again. */
void readdb_prune(struct readdb *r, uint64_t acked_lsn);

#endif
