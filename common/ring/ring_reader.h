/* SPDX-License-Identifier: PostgreSQL */
/*
 * The consumer side for a daemon: attaches to walstreamd (ring_link.h), wakes up by eventfd, joins
 * fragments, drops what was seen before and what is not for us, and gives records to one handler
 * in order, a budget per loop pass. When the handler asks for a pause and the ring is half full,
 * records are copied to the spool (an unlinked file under state_dir/spool) and handled from there in
 * order, so that no consumer stops the producer or a sibling until its spool limit is reached.
 *
 *   DETACHED --PEER up--> ATTACHING --GRANT--> LIVE <--resume/drained-- SPOOLING (paused, ring >= 1/2)
 *      ^------- PEER gone / malformed ring -----'        (an old epoch is drained to its last head)
 *
 * Context: event thread.
 */
#ifndef COMMON_RING_RING_READER_H
#define COMMON_RING_RING_READER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/ev.h"
#include "common/ipc/imsg.h"
#include "common/ring/ring.h"

struct ring_reader;

#define RING_READER_PAUSE 1

struct ring_reader_ops {
	/* A whole record: payload of rec->payload_len bytes, borrowed for the call. Returns 0 (taken) or
	 * RING_READER_PAUSE (not taken: the same record comes again after ring_reader_resume). */
	int (*on_record)(const struct ring_record *rec, const void *payload, void *arg);
	/* The stream begins anew for us: transactions ending after from_lsn come. Before the first record
	 * and after each re-attachment. Same return as on_record (prepare state, then resume). */
	int (*on_stream)(uint64_t from_lsn, uint32_t timeline, void *arg);
	/* Send ATTACH with these descriptors to walstreamd (daemon_relay). */
	int (*send_attach)(const struct buf *body, const int *fds, size_t n_fds, void *arg);
	/* Spool limit reached: back-pressure from here on (on = true), and over. */
	void (*on_backpressure)(bool on, void *arg);
};

struct ring_reader_options {
	uint32_t audience;      /* our bit */
	const char *spool_dir;  /* state_dir/spool, exists */
	uint64_t spool_limit;   /* bytes */
	size_t budget_records;  /* per pass; 0: 1000 */
};

struct ring_reader *ring_reader_new(struct ev_loop *loop, const struct ring_reader_options *options,
	const struct ring_reader_ops *ops, void *arg);
void ring_reader_free(struct ring_reader **r);
/* walstreamd came up / went away. */
void ring_reader_peer(struct ring_reader *r, bool up, uint32_t generation);
/* A RELAY of kind GRANT or REFUSE from walstreamd. Negative: garbled. */
int ring_reader_relay(struct ring_reader *r, uint32_t kind, struct imsg *msg)
	__attribute__((warn_unused_result));
void ring_reader_resume(struct ring_reader *r);
/* Everything up to this LSN is done with (end LSN of a transaction). */
void ring_reader_ack(struct ring_reader *r, uint64_t lsn);

struct ring_reader_counts {
	const char *state; /* "detached", "attaching", "live", "spooling" */
	uint64_t epoch, records, bytes, duplicates_dropped, spooled_records, spool_bytes_now,
		spool_bytes_total, lag_bytes, rescued_wakeups, acked_lsn;
};
void ring_reader_get_counts(const struct ring_reader *r, struct ring_reader_counts *ret_counts);

#endif
