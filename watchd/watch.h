/* SPDX-License-Identifier: PostgreSQL */
/*
 * Watches: who wants to hear of which keys, from which revision on. A watcher is a cursor in the
 * store's event log with a filter. Live ones ("synced") hang in an index over keys and ranges and
 * are fed by watch_feed when `visible` moves; those that start in the past or whose stream takes no
 * more ("behind") walk the event log in budgeted steps and join the live ones where the log ends,
 * without a gap or a repeat, because both read the same log.
 *
 *   CREATED --start <= visible--> BEHIND --end of the log--> SYNCED --stream full--> BEHIND
 *        '--start in the future-----------------------------^            cancel, compacted -> gone
 *
 * Each event is encoded once (with prev_kv: twice) whoever watches: a shared buffer per revision
 * and key; a response is its own small head and references to those.
 *
 * Rules (facts from etcd's watch.go and mvcc/watchable_store.go): `created` precedes every event of
 * an id; a response never splits a revision unless the watcher asked for fragments; header.revision
 * may exceed the last event; filters that leave nothing send nothing; a progress answer promises
 * that all events up to its revision were sent; compacted: `canceled` with compact_revision.
 *
 * Context: event thread.
 */
#ifndef WATCHD_WATCH_H
#define WATCHD_WATCH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/ev.h"
#include "watchd/kv.h"
#include "watchd/proto/rpc.pb-c.h"
#include "watchd/store.h"

struct watch_set;    /* all watches of the daemon */
struct watch_stream; /* one gRPC stream of them */
struct h2_slice;     /* a piece of an outgoing message, h2.h */

struct watch_options {
	uint64_t progress_interval_ms;  /* 0: 10 min, etcd's */
	size_t max_watchers_per_stream; /* 0: 100000 */
	size_t stream_high_bytes;       /* queued on a stream: no more events; 0: 1 MB */
	size_t fragment_bytes;          /* 0: 2 MB, etcd's limit of a request with its surplus */
	size_t step_events; /* looked at in one step of feeding or catching up; 0: 2000 */
};

/* How a stream's messages leave; svc_watch.c binds it to h2. Neither calls back from inside. */
struct watch_ops {
	/* Sends one WatchResponse, made of pieces (h2_stream_send_slices: it takes a reference of
	 * what is shared and copies the rest). */
	void (*send)(void *stream_arg, const struct h2_slice *slices, size_t n);
	/* Bytes that wait on the stream (h2_stream_queued_bytes). */
	size_t (*queued)(void *stream_arg);
};

struct watch_set *watch_set_new(struct ev_loop *loop, struct store *s,
	const struct watch_options *options, const struct watch_ops *ops);
void watch_set_free(struct watch_set **ws); /* streams must be gone */
/* The header's ids, again whenever they change. */
void watch_set_header(struct watch_set *ws, const struct kv_header *h);

struct watch_stream *watch_stream_new(struct watch_set *ws, void *stream_arg);
/* With all its watchers; stream_arg is not used any more. */
void watch_stream_free(struct watch_stream **st);
/* One WatchRequest of the client: create, cancel, progress. The answer is queued at once, however
 * full the stream: who calls this stops reading requests of a client that reads no answers. */
void watch_stream_request(struct watch_stream *st, const Etcdserverpb__WatchRequest *r);
/* The stream can take more again: queued has fallen below some mark under stream_high_bytes. */
void watch_stream_drained(struct watch_stream *st);

/* visible has moved: gives new events to synced watchers, cancels what was compacted away. */
void watch_feed(struct watch_set *ws);
/* The store is about to be loaded anew: nothing is looked for in it before watch_reloaded, and no
 * request is to be made. */
void watch_pause(struct watch_set *ws);
/* The store was loaded anew: all go on at their next revision from the new event log (behind), or
 * are cancelled as compacted. cancel_all: the database went back, each is cancelled with a reason.
 */
void watch_reloaded(struct watch_set *ws, bool cancel_all);
struct watch_counts {
	uint64_t streams, watchers, synced, behind, events_sent, responses_sent, events_encoded,
		slow_turns, compacted_cancels;
};
void watch_get_counts(const struct watch_set *ws, struct watch_counts *ret_counts);

#endif
