/* SPDX-License-Identifier: PostgreSQL */
/*
 * What the watch_*.c files share: the objects, and who moves them.
 *
 *   watch_set.c      the set, feeding of those that are in sync, reload, deferred steps
 *   watch_stream.c   requests and answers of one stream, its watchers' states, progress
 *   watch_catchup.c  those of a stream that are behind
 *   watch_round.c    from events and an index to responses
 *   watch_encode.c   bytes
 *
 * States of a watcher (watch_move is the only place where they change), each a list of its stream:
 *
 *   SYNCED     in the set's index. Has everything up to the set's fed_rev, or begins later.
 *   SCANNING   in its stream's index. Has everything below the stream's scan_rev.
 *   WAITING    in no index: begins below scan_rev and so waits for the stream's next scan.
 *   COMPACTED  was told so; the id stays taken until the client cancels it, as in etcd 3.4.
 *
 * Invariants:
 *  1. An event goes to a watcher exactly if the event's revision is at least next_rev and its
 *     filters let it pass. next_rev only rises, and passes a revision only when all of that
 *     revision's events were sent (or were none of the watcher's).
 *  2. A response holds whole revisions, but for fragments.
 *  3. Groups and accumulators live within one round, from collecting to the end of flushing.
 *  4. A stream's watchers that are SCANNING or WAITING have bytes ahead of them that are queued, or
 *     the stream is on the set's runnable list.
 */
#ifndef WATCHD_WATCH_INT_H
#define WATCHD_WATCH_INT_H

#include "common/base/buf.h"
#include "watchd/h2.h"
#include "watchd/interval.h"
#include "watchd/watch.h"
#include "watchd/watch_encode.h"

#define WATCH_SET_MAGIC 0x57536554U
#define WATCH_STREAM_MAGIC 0x5753744dU
#define WATCHER_MAGIC 0x57617463U

#define WATCH_PROGRESS_INTERVAL_MS 600000
#define WATCH_MAX_PER_STREAM 100000
#define WATCH_STREAM_HIGH_BYTES (1u << 20)
#define WATCH_FRAGMENT_BYTES (2u << 20)
#define WATCH_STEP_EVENTS 2000
/* A round ends behind the revision that makes it this large. */
#define WATCH_ROUND_BYTES (256u << 10)
/* Watchers of a dead stream that are freed in one step. */
#define WATCH_STEP_WATCHERS 1000

enum watch_state {
	WATCH_SYNCED,
	WATCH_SCANNING,
	WATCH_WAITING,
	WATCH_COMPACTED,
	WATCH_STATE_COUNT
};

struct watcher {
	uint32_t magic;
	struct interval_member member;
	struct list link; /* of its stream's list of its state */
	struct watch_stream *stream;
	struct watcher *id_next; /* in the stream's table */
	int64_t id;
	int64_t next_rev;
	uint8_t state;
	uint8_t filters; /* bits: 1 << WatchCreateRequest.FilterType */
	bool prev_kv, fragment, progress_notify, progress_due;
	uint8_t bytes[]; /* the range's two ends */
};

struct watch_stream {
	uint32_t magic;
	bool dead;             /* freed by the user; the rest goes in steps */
	bool progress_waiting; /* on the set's progress list */
	struct watch_set *ws;
	void *arg;            /* the user's */
	struct list link;     /* the set's streams, or its dead ones */
	struct list runnable; /* the set's, while there is something to catch up with */
	struct list progress; /* the set's, while a progress answer waits */
	struct list watchers[WATCH_STATE_COUNT];
	size_t n_watchers;
	struct watcher **ids; /* n_ids chains, a power of two */
	size_t n_ids;
	int64_t next_id;
	int64_t max_next_rev; /* of the synced ones; may be too high, then it is looked for anew */
	struct interval_set *scan; /* NULL: nobody was behind yet */
	int64_t scan_rev;          /* the next revision that the scan looks at */
	struct ev_timer progress_timer;
};

/* What a watcher is sent in a round, and all that watch the same in the same way. */
struct watch_acc {
	int64_t first_rev;
	size_t bytes, n_events;
	uint32_t first, last; /* pieces */
	uint32_t n_pieces;
};
/* The watchers of an interval: kinds of those that take what the round has from its beginning on,
 * as bits and each with its accumulator; and those that begin within the round, one by one. */
struct watch_group {
	struct interval_node *node;
	uint32_t kinds;
	uint32_t accs; /* the first kind's */
	uint32_t late, n_late;
};
struct watch_late {
	struct watcher *w;
	struct watch_acc acc;
};
/* A run of encoded events. */
struct watch_piece {
	uint32_t chunk, off, len, next;
};
struct watch_chunk {
	struct buf b;
	struct h2_shared *shared; /* the same bytes, once somebody refers to them */
};
struct watch_round {
	struct watch_group *groups;
	struct watch_acc *accs;
	struct watch_late *late;
	struct watch_piece *pieces;
	struct watch_chunk *chunks;
	struct h2_slice *slices;
	size_t n_groups, cap_groups, n_accs, cap_accs, n_late, cap_late, n_pieces, cap_pieces,
		n_chunks, cap_chunks, cap_slices;
	size_t bytes, matches;
	int64_t first_rev;
	/* The present event, and where it stands without and with the previous version. */
	struct store_event event;
	struct watch_piece at[2];
	bool is_encoded[2];
	uint32_t open_chunk[2]; /* index plus 1; 0: none yet */
};

struct watch_set {
	uint32_t magic;
	struct ev_loop *loop;
	struct store *store;
	struct watch_options options;
	const struct watch_ops *ops;
	struct kv_header header;
	struct interval_set *synced;
	int64_t fed_rev; /* synced watchers have everything up to here */
	bool paused;     /* the store is being loaded */
	struct list streams, dead, runnable, progress;
	struct ev_deferred step;
	struct watch_round round;
	struct watch_counts counts;
};

/* ---- watch_set.c ---- */

/* Something is left to do: a step at the end of this pass. */
void watch_set_schedule(struct watch_set *ws);

/* ---- watch_stream.c ---- */

/* The one place that changes a watcher's state, and the index it is in. */
void watch_move(struct watcher *w, enum watch_state to);
/* A synced watcher has missed what begins at rev. */
void watch_fall_behind(struct watcher *w, int64_t rev);
void watch_free(struct watcher *w);
bool watch_stream_is_full(const struct watch_stream *st);
void watch_send_head(struct watch_stream *st, const struct watch_head *head);
void watch_cancel_compacted(struct watcher *w, int64_t compact_rev);
/* Cancelled by the server with a reason; frees it. */
void watch_cancel_because(struct watcher *w, const char *reason);
/* Answers a progress request that waits, if now is the time. */
void watch_stream_try_progress(struct watch_stream *st);
/* Frees at most WATCH_STEP_WATCHERS of a dead stream; true: it is gone. */
bool watch_stream_bury(struct watch_stream *st);

/* ---- watch_catchup.c ---- */

/* One step for a stream; *budget in events and in watchers that change their index. false: nothing
 * to do for it until it is drained or somebody falls behind. */
bool watch_catchup_step(struct watch_stream *st, size_t *budget);

/* ---- watch_round.c ---- */

/*
 * Looks at events from pos on, before end: at least one revision, at most about `budget` events,
 * and gives each to the accumulators of whom it concerns. Returns the position behind the last one,
 * *ret_rev its revision.
 */
uint64_t watch_round_collect(struct watch_set *ws, const struct interval_set *index, uint64_t pos,
	uint64_t end, size_t budget, int64_t *ret_rev);
/* Sends what was collected, with `revision` in the header; missed is called for a watcher whose
 * stream is full, with the first revision that it was not sent, sent for the others. Neither may
 * free other watchers, or touch the index but for the watcher itself. */
struct watch_flush {
	int64_t revision;
	void (*sent)(struct watcher *w, void *arg);
	void (*missed)(struct watcher *w, int64_t rev, void *arg);
	void *arg;
};
void watch_round_flush(struct watch_set *ws, const struct watch_flush *f);
void watch_round_free(struct watch_round *r);

#endif
