/* SPDX-License-Identifier: PostgreSQL */
/*
 * Those of a stream that are behind: one scan of the event log for all of them.
 *
 *   scan_rev                                      visible
 *      |  the scan has an index of its own, of       |
 *      |  this stream's SCANNING watchers            | end: they become SYNCED,
 *   ---+---------------------------------------------+ some in each step
 *      |
 *   WAITING watchers begin further back: they are the next scan's
 *
 * A stream that is full rests where it is, until it is drained. The scan knows revisions, not
 * positions, so that trimming and reloading the log do not concern it.
 *
 * See: watch_int.h, invariants 1 and 4.
 */
#include "config.h"

#include "common/base/mem.h"
#include "watchd/watch_int.h"

static struct watcher *first_of(struct watch_stream *st, enum watch_state state)
{
	if (list_empty(&st->watchers[state]))
		return NULL;
	return list_first(&st->watchers[state], struct watcher, link);
}

/* Tells those that compaction has overtaken. */
static void cancel_overtaken(struct watch_stream *st)
{
	int64_t compact_rev = store_compact_rev(st->ws->store);
	if (st->scan_rev >= compact_rev)
		return;
	list_for_each_safe (it, &st->watchers[WATCH_SCANNING]) {
		struct watcher *w = list_entry(it, struct watcher, link);
		if (w->next_rev < compact_rev)
			watch_cancel_compacted(w, compact_rev);
	}
}

/* Begins a scan with as many of those that wait as the budget allows. */
static void begin_scan(struct watch_stream *st, size_t *budget)
{
	int64_t from = INT64_MAX;
	struct watcher *w;
	for (; *budget > 0 && (w = first_of(st, WATCH_WAITING)) != NULL; (*budget)--) {
		if (w->next_rev < from)
			from = w->next_rev;
		watch_move(w, WATCH_SCANNING);
	}
	if (from != INT64_MAX)
		st->scan_rev = from;
}

/* The scan has come to the end of the log. true: some are left for the next step. */
static bool end_scan(struct watch_stream *st, size_t *budget)
{
	struct watcher *w;
	for (; *budget > 0 && (w = first_of(st, WATCH_SCANNING)) != NULL; (*budget)--) {
		if (w->next_rev < st->scan_rev)
			w->next_rev = st->scan_rev;
		watch_move(w, WATCH_SYNCED);
	}
	return first_of(st, WATCH_SCANNING) != NULL || first_of(st, WATCH_WAITING) != NULL;
}

static void on_sent(struct watcher *w, void *arg)
{
	w->next_rev = *(const int64_t *)arg;
}

static void on_missed(struct watcher *w, int64_t rev, void *arg)
{
	(void)arg;
	w->next_rev = rev;
	if (rev < w->stream->scan_rev)
		w->stream->scan_rev = rev;
}

bool watch_catchup_step(struct watch_stream *st, size_t *budget)
{
	struct watch_set *ws = st->ws;
	if (watch_stream_is_full(st)) {
		ws->counts.slow_turns++;
		return false;
	}
	if (first_of(st, WATCH_SCANNING) == NULL)
		begin_scan(st, budget);
	cancel_overtaken(st);
	if (first_of(st, WATCH_SCANNING) == NULL)
		return first_of(st, WATCH_WAITING) != NULL;

	uint64_t pos = store_log_find(ws->store, st->scan_rev), end = store_log_end(ws->store);
	int64_t visible = store_visible_rev(ws->store);
	if (pos < end) {
		int64_t rev;
		uint64_t begin = pos;
		pos = watch_round_collect(ws, st->scan, pos, end, *budget, &rev);
		*budget -= pos - begin < *budget ? pos - begin : *budget;
		if (pos == end)
			rev = visible;
		int64_t next_rev = rev + 1;
		st->scan_rev = next_rev;
		watch_round_flush(ws, &(struct watch_flush){.revision = rev,
					      .sent = on_sent,
					      .missed = on_missed,
					      .arg = &next_rev});
	} else if (st->scan_rev <= visible) {
		st->scan_rev = visible + 1;
	}
	return st->scan_rev <= visible || end_scan(st, budget);
}
