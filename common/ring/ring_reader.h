/* SPDX-License-Identifier: PostgreSQL */
/*
 * The consumer side for a daemon: attaches to walstreamd (ring_link.h), wakes up by eventfd, joins
 * fragments, drops what was seen before and what is not for us, and gives records to one handler
 * in order, a budget per loop pass. When the handler asks for a pause and the ring is half full,
 * records are copied to the spool (an unlinked file under state_dir/spool) and handled from there
 * in order, so that no consumer stops the producer or a sibling until its spool limit is reached.
 *
 *   DETACHED --PEER up--> ATTACHING --GRANT--> LIVE --paused, ring >= 1/2--> SPOOLING
 *      ^                   | REFUSE: again       ^                               |
 *      |                   v after a backoff     '--------- spool empty ---------'
 *      '---- PEER gone; a ring or a spool that cannot be trusted: again after a backoff
 *
 * After PEER gone the old ring is read on until the next GRANT; what is then left in it comes again
 * from the server.
 *
 * What the handler sees, over all re-attachments and restarts of the stream on one timeline: BEGIN,
 * each data message and COMMIT of a transaction once, in order; a transaction that was cut short
 * goes on where it stopped when it comes again. Relation, type and origin messages (ordinal 0) may
 * come again at any place. On a new timeline what was seen is kept up to the LSN where the server
 * left the old one, and forgotten if that is unknown: then changes come again, and a BEGIN may
 * arrive while a transaction is open, whose rest then never comes.
 *
 * Context: event thread. ring_reader_free and ring_reader_resume not from inside the handlers.
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
#define RING_READER_DELAYS 128

/* Changes that nobody will ever get: see RING_GAP. */
struct ring_gap {
	uint64_t from_lsn, to_lsn; /* transactions that end in (from, to]; from 0: nobody knows */
	uint32_t timeline;         /* of to_lsn */
	int64_t at;                /* microseconds since 2000-01-01 */
	const char *reason;        /* borrowed for the call, not zero-terminated */
	size_t reason_len;
};

struct ring_reader_ops {
	/* A whole record: payload of rec->payload_len bytes, borrowed for the call. Returns 0
	 * (taken) or RING_READER_PAUSE (not taken: the same record comes again after
	 * ring_reader_resume). */
	int (*on_record)(const struct ring_record *rec, const void *payload, void *arg);
	/* The stream begins anew for us: transactions ending after from_lsn come, without
	 * those that were handled before. Before the first record, after each re-attachment,
	 * when the timeline changes, and when a restarted stream begins behind what was handled
	 * last (a slot that was made anew, or only transactions that were not for us). Same
	 * return as on_record (prepare state, then resume). */
	int (*on_stream)(uint64_t from_lsn, uint32_t timeline, void *arg);
	/* Send ATTACH with these descriptors to walstreamd (daemon_relay, which duplicates them).
	 */
	int (*send_attach)(const struct buf *body, const int *fds, size_t n_fds, void *arg);
	/* The spool takes no more (limit, full disk): back-pressure from here on (on = true), and
	 * over. Nothing is lost: the ring fills and the replication stream waits. */
	void (*on_backpressure)(bool on, void *arg);
	/* Changes are missing: before on_stream of the slot that was made anew, once in this
	 * reader's life. NULL: nobody cares. Same return as on_record. The gap counts as told once
	 * its to_lsn is acknowledged: until then a next life of the reader hears of it again. */
	int (*on_gap)(const struct ring_gap *gap, void *arg);
	/* The server is on another timeline, or it is another one, or it was restored to an earlier
	 * state (then kept_lsn is 0): before on_stream, once for each change. What was
	 * handled of transactions that end at or before kept_lsn stays handled and does not come
	 * again, all that came after is another history (0: all of it is). NULL: nobody cares. Same
	 * return as on_record. */
	int (*on_timeline)(uint32_t timeline, uint64_t kept_lsn, void *arg);
};

struct ring_reader_options {
	uint32_t audience;     /* our bit */
	const char *spool_dir; /* state_dir/spool, exists */
	uint64_t spool_limit;  /* bytes */
	size_t budget_records; /* per pass; 0: 1000 */
	uint64_t delays_ms;    /* how far back the delays go; 0: a minute */
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
/* Everything up to this LSN is done with (end LSN of a transaction). Before the first PEER: the
 * durable position of an earlier life, which goes into ATTACH. The producer is told by deferred
 * work, behind what the records of a pass have put off; what is not told when the reader is freed
 * comes again. */
void ring_reader_ack(struct ring_reader *r, uint64_t lsn);

struct ring_reader_counts {
	const char *state; /* "detached", "attaching", "live", "spooling" */
	uint64_t epoch, records, bytes, duplicates_dropped, spooled_records, spool_bytes_now,
		spool_bytes_total, lag_bytes, rescued_wakeups, acked_lsn;
	/* From a commit, by the server's clock (of a change that was itself replicated to it, by
	 * its origin's), until the handler is given a change of it, by ours; never below 0. Of the
	 * passes of the last minute that had changes, at most the last RING_READER_DELAYS; the
	 * first change of each. 0: there was none. */
	uint64_t delay_p50_us, delay_p99_us;
	uint64_t attachments, refusals, backpressures, gaps;
	bool backpressure;
	/* why it is not live, or why the spool takes no more; "" if all is well */
	const char *trouble;
};
void ring_reader_get_counts(const struct ring_reader *r, struct ring_reader_counts *ret_counts);

#endif
