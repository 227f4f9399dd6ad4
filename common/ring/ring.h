/* SPDX-License-Identifier: PostgreSQL */
/*
 * The shared-memory ring: one producer (walstreamd), up to RING_CONSUMERS_MAX consumers, broadcast,
 * lossless while a consumer gates. This is the core: pure memory code over mappings that somebody
 * else made; no descriptors, no events (ring_notify.h), no spool (ring_reader.h).
 *
 *   data mapping:   [ header page | capacity bytes of records ]   written by the producer only
 *   cursor mapping: [ read_pos, acked_lsn, sleep_seq, … ]         one per consumer, written by it
 * only
 *
 * Positions are 64-bit byte counts that only grow; index = pos & (capacity - 1). A record is
 * 8-aligned and contiguous (a PAD record fills the end of the window). Records of a batch become
 * visible together by one release store of head; a producer that dies before it leaves no trace.
 * Payloads larger than ring_fragment_max() are split into fragments (FIRST/LAST flags).
 *
 * Context: the producer functions from one thread, the consumer functions from one thread per
 * consumer. Everything read from the other side's page is untrusted: bounds are checked on private
 * copies.
 */
#ifndef COMMON_RING_RING_H
#define COMMON_RING_RING_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define RING_CONSUMERS_MAX 8
#define RING_HEADER_BYTES 4096
#define RING_CURSOR_BYTES 4096
#define RING_CAPACITY_MIN 65536

enum ring_type {
	RING_PAD = 1, /* never given to a consumer */
	RING_STREAM,  /* a replication stream begins: commit_lsn = transactions that end after it
			 follow; forget any half record; a half transaction comes again from its
			 BEGIN. timeline says which one; relid is the timeline that the server was on
			 before and lsn where it left it (0: unknown). commit_time is a number
			 of the history: where it changes, LSNs name other changes, whatever
			 the timeline. Payload: none */
	RING_MESSAGE, /* one pgoutput message as the server sent it */
	RING_GAP,     /* the slot was lost: transactions that end after lsn (0: nobody knows) and
			 at or before end_lsn are in no stream. timeline: of end_lsn; commit_time:
			 when the new slot was made. Payload: why, UTF-8. Stands before RING_STREAM,
			 and comes again with every stream until end_lsn is acknowledged */
};

enum ring_flag { RING_FLAG_FIRST = 1, RING_FLAG_LAST = 2 };

/* Bits of audience. */
enum ring_audience {
	RING_TO_BROKERD = 1 << 0,
	RING_TO_WATCHD = 1 << 1,
	RING_TO_TUND = 1 << 2,
	RING_TO_ALL = 0xffff
};

/* What the producer says about a record, and the consumer reads. */
struct ring_record {
	uint16_t type;
	uint16_t flags;
	uint32_t audience;
	uint32_t relid; /* of a change or relation message; see RING_STREAM; 0 else */
	uint32_t timeline;
	uint32_t ordinal;     /* of the data message in its transaction, from 1; 0 for others */
	uint32_t payload_len; /* of this fragment; when writing: of the whole payload */
	uint32_t total_len;   /* of the whole payload, in every fragment; set by the ring */
	uint32_t offset;      /* of this fragment in the payload; set by the ring */
	uint64_t lsn;         /* of the message, 0 if it has none */
	uint64_t commit_lsn;  /* of its transaction (BEGIN's final LSN) */
	uint64_t end_lsn;     /* known at COMMIT: end of the commit record; else 0 */
	int64_t commit_time;  /* microseconds since 2000-01-01 */
};

struct ring_producer;
struct ring_consumer;

/* capacity: power of two, >= RING_CAPACITY_MIN. data maps RING_HEADER_BYTES + capacity zeroed
 * bytes. start_pos: first position (tests start just below 2^32 and 2^64; 8-aligned). Owns no
 * mapping. */
struct ring_producer *ring_producer_new(
	void *data, size_t capacity, uint64_t epoch, uint64_t start_pos);
void ring_producer_free(struct ring_producer **p);

size_t ring_fragment_max(size_t capacity); /* capacity / 8, header included */

/* Copies one record (fragmenting as needed) behind the last one, invisible until ring_publish.
 * 0; -EAGAIN: no room for all of it, nothing was written (publish, wait for room, try again);
 * -EMSGSIZE: would take more than half of the window: use ring_write_part, which takes any size. */
int ring_write(struct ring_producer *p, const struct ring_record *rec, const void *payload)
	__attribute__((warn_unused_result));
/* For payloads of any size: writes as many fragments as fit from *offset on and advances it.
 * 0 when the last fragment is written, -EAGAIN when more is left (publish first, or they wait for
 * each other). rec->payload_len is the whole length. */
int ring_write_part(struct ring_producer *p, const struct ring_record *rec, const void *payload,
	size_t *offset) __attribute__((warn_unused_result));
/* Makes everything written visible. Returns the bit mask of consumers that asked to be woken. */
uint32_t ring_publish(struct ring_producer *p);

/* Consumers, seen by the producer. id 0 … RING_CONSUMERS_MAX-1, chosen by the caller. The cursor
 * mapping (RING_CURSOR_BYTES, shared) is initialised to the present head before the consumer
 * starts. */
int ring_producer_add(struct ring_producer *p, unsigned id, void *cursor, uint64_t acked_lsn)
	__attribute__((warn_unused_result));
void ring_producer_drop(struct ring_producer *p, unsigned id);
/* Re-reads cursors. 0, or -ERR_MALFORMED with *ret_bad_id: that consumer's read_pos is not
 * monotonic or outside [previous, head], or its acked_lsn went back or beyond every end_lsn (of a
 * commit or gap) and commit_lsn (of a RING_STREAM) written so far; drop it, then call again. */
int ring_producer_refresh(struct ring_producer *p, unsigned *ret_bad_id)
	__attribute__((warn_unused_result));
/* Last acked LSN seen of a consumer (monotonic; a value that goes back is malformed, see refresh).
 */
uint64_t ring_producer_acked(const struct ring_producer *p, unsigned id);
uint64_t ring_producer_lag_bytes(const struct ring_producer *p, unsigned id);
uint64_t ring_producer_head(const struct ring_producer *p);
size_t ring_producer_free_bytes(const struct ring_producer *p);
/* Sleep protocol for space: arm, then re-check (refresh, try again), then sleep. */
void ring_producer_arm_space(struct ring_producer *p);
void ring_producer_disarm_space(struct ring_producer *p);

struct ring_counts {
	uint64_t records, bytes, pad_bytes, batches; /* published; records counts fragments */
	uint64_t stalls;                             /* times that the producer slept for space */
	uint64_t wakes;                              /* consumers told to wake up */
};
void ring_producer_get_counts(const struct ring_producer *p, struct ring_counts *ret_counts);

/* Consumer side: data is mapped read-only; geometry is checked and copied. -ERR_VERSION (layout),
 * -ERR_MALFORMED. */
int ring_consumer_new(const void *data, size_t data_len, void *cursor, struct ring_consumer **ret_c)
	__attribute__((warn_unused_result));
void ring_consumer_free(struct ring_consumer **c);
uint64_t ring_consumer_epoch(const struct ring_consumer *c);
/* Next record not yet peeked, PADs skipped: 1 and the record with its payload in place (borrowed
 * until ring_release passes it); 0: nothing; -ERR_MALFORMED: the ring cannot be trusted. Advances
 * the peek position, not read_pos. */
int ring_peek(struct ring_consumer *c, struct ring_record *ret_rec, const void **ret_payload)
	__attribute__((warn_unused_result));
/* Steps back to the last release: what was peeked since comes again. */
void ring_unpeek(struct ring_consumer *c);
/* Frees the space of everything peeked so far. Returns true if the producer wants to be woken. */
bool ring_release(struct ring_consumer *c);
/* Effects up to this LSN are durable or acknowledged; monotonic (lower is ignored). Returns true if
 * the producer wants to be woken (it always does for a changed acked_lsn: once per change of loop).
 */
bool ring_ack(struct ring_consumer *c, uint64_t lsn);
/* The highest one given to ring_ack, or that the producer began with. */
uint64_t ring_consumer_acked(const struct ring_consumer *c);
/* From read_pos to head; capacity if the head is not to be believed. */
uint64_t ring_consumer_lag_bytes(const struct ring_consumer *c);
size_t ring_consumer_capacity(const struct ring_consumer *c);
/* Sleep protocol for data: arm, then peek again, then sleep; disarm when awake. */
void ring_consumer_arm(struct ring_consumer *c);
void ring_consumer_disarm(struct ring_consumer *c);

/* Walks everything between the slowest possible start and head, checking every header. For tests
 * and the dumper: 0 or -ERR_MALFORMED. */
int ring_check(const void *data, size_t data_len, uint64_t from_pos)
	__attribute__((warn_unused_result));

#endif
