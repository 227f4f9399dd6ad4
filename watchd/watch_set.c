/* SPDX-License-Identifier: PostgreSQL */
/*
 * All watches: feeding those that are in sync when `visible` has moved, and the deferred steps in
 * which the rest is done: a long feed, streams that catch up, large streams that are freed.
 *
 *   compacted ... | fed_rev | ...................... | visible
 *     synced watchers have |  events of this part go |
 *     everything up to here|  out in rounds, the     |
 *                          |  first one at once      |
 *
 * Invariants (those of watch_int.h, and):
 *  5. fed_rev <= visible, but for the time between a reload and watch_reloaded.
 *  6. fed_rev + 1 >= compact revision after watch_feed: what compaction lets go of has been fed.
 */
#include "config.h"

#include "common/base/mem.h"
#include "watchd/watch_int.h"

#define REASON_WENT_BACK "etcdserver: the database went back, its history is another"

MEM_TYPE(type_set, "watch set");

static void on_step(void *arg);

void watch_set_schedule(struct watch_set *ws)
{
	ev_defer(ws->loop, &ws->step, on_step, ws);
}

struct watch_set *watch_set_new(struct ev_loop *loop, struct store *s,
	const struct watch_options *options, const struct watch_ops *ops)
{
	struct watch_set *ws = mem_new(&type_set, sizeof(*ws));
	ws->magic = WATCH_SET_MAGIC;
	ws->loop = loop;
	ws->store = s;
	ws->ops = ops;
	ws->options = *options;
	if (ws->options.progress_interval_ms == 0)
		ws->options.progress_interval_ms = WATCH_PROGRESS_INTERVAL_MS;
	if (ws->options.max_watchers_per_stream == 0)
		ws->options.max_watchers_per_stream = WATCH_MAX_PER_STREAM;
	if (ws->options.stream_high_bytes == 0)
		ws->options.stream_high_bytes = WATCH_STREAM_HIGH_BYTES;
	if (ws->options.fragment_bytes == 0)
		ws->options.fragment_bytes = WATCH_FRAGMENT_BYTES;
	if (ws->options.step_events == 0)
		ws->options.step_events = WATCH_STEP_EVENTS;
	ws->synced = interval_set_new();
	ws->fed_rev = store_visible_rev(s);
	list_init(&ws->streams);
	list_init(&ws->dead);
	list_init(&ws->runnable);
	list_init(&ws->progress);
	return ws;
}

static void bury_dead(struct watch_set *ws)
{
	if (list_empty(&ws->dead))
		return;
	(void)watch_stream_bury(list_first(&ws->dead, struct watch_stream, link));
	if (!list_empty(&ws->dead))
		watch_set_schedule(ws);
}

void watch_set_free(struct watch_set **ws_ptr)
{
	struct watch_set *ws = *ws_ptr;
	*ws_ptr = NULL;
	if (ws == NULL)
		return;
	OBJ_CHECK(ws, WATCH_SET_MAGIC);
	ASSERT(list_empty(&ws->streams));
	while (!list_empty(&ws->dead))
		bury_dead(ws);
	ev_defer_cancel(ws->loop, &ws->step);
	interval_set_free(&ws->synced);
	watch_round_free(&ws->round);
	ws->magic = 0;
	mem_free(&type_set, ws);
}

void watch_set_header(struct watch_set *ws, const struct kv_header *h)
{
	ws->header = *h;
}

/* ---- feeding ---- */

static void on_sent(struct watcher *w, void *arg)
{
	/* next_rev need not rise: a synced watcher's is behind fed_rev or at its start. */
	(void)w;
	(void)arg;
}

static void on_missed(struct watcher *w, int64_t rev, void *arg)
{
	(void)arg;
	watch_fall_behind(w, rev);
}

/* One round. false: everything visible is fed. */
static bool feed_round(struct watch_set *ws)
{
	int64_t visible = store_visible_rev(ws->store);
	if (ws->fed_rev >= visible)
		return false;
	uint64_t end = store_log_end(ws->store);
	uint64_t pos =
		interval_count(ws->synced) == 0 ? end : store_log_find(ws->store, ws->fed_rev + 1);
	int64_t rev = visible;
	if (pos < end) {
		pos = watch_round_collect(ws, ws->synced, pos, end, ws->options.step_events, &rev);
		if (pos == end)
			rev = visible;
		watch_round_flush(
			ws, &(struct watch_flush){
				    .revision = rev, .sent = on_sent, .missed = on_missed});
	}
	ws->fed_rev = rev;
	return rev < visible;
}

static void try_progress(struct watch_set *ws)
{
	list_for_each_safe (it, &ws->progress)
		watch_stream_try_progress(list_entry(it, struct watch_stream, progress));
}

void watch_feed(struct watch_set *ws)
{
	OBJ_CHECK(ws, WATCH_SET_MAGIC);
	if (ws->paused)
		return;
	bool more = feed_round(ws);
	while (more && ws->fed_rev + 1 < store_compact_rev(ws->store)) /* invariant 6 */
		more = feed_round(ws);
	if (more)
		watch_set_schedule(ws);
	try_progress(ws);
}

/* ---- steps ---- */

/* Streams take turns of a quarter of the budget. */
static void catch_up(struct watch_set *ws)
{
	size_t budget = ws->options.step_events;
	while (budget > 0 && !list_empty(&ws->runnable)) {
		struct watch_stream *st = list_first(&ws->runnable, struct watch_stream, runnable);
		size_t turn = ws->options.step_events / 4 + 1;
		if (turn > budget)
			turn = budget;
		size_t left = turn;
		bool more = watch_catchup_step(st, &left);
		/* A step costs something even if there was nothing to do. */
		budget -= left < turn ? turn - left : 1;
		list_remove(&st->runnable);
		if (more)
			list_push_back(&ws->runnable, &st->runnable);
		watch_stream_try_progress(st);
	}
	if (!list_empty(&ws->runnable))
		watch_set_schedule(ws);
}

static void on_step(void *arg)
{
	struct watch_set *ws;
	OBJ_CAST(ws, arg, WATCH_SET_MAGIC);
	watch_feed(ws);
	if (!ws->paused)
		catch_up(ws);
	bury_dead(ws);
}

/* ---- the store was loaded anew ---- */

static void cancel_all_of(struct watch_stream *st)
{
	for (size_t i = 0; i < WATCH_STATE_COUNT; i++)
		list_for_each_safe (it, &st->watchers[i]) {
			struct watcher *w = list_entry(it, struct watcher, link);
			if (i == WATCH_COMPACTED)
				watch_free(w);
			else
				watch_cancel_because(w, REASON_WENT_BACK);
		}
}

/* Those that are behind are looked at by the next step of their stream. */
static void cancel_overtaken(struct watch_stream *st, int64_t compact_rev)
{
	list_for_each_safe (it, &st->watchers[WATCH_SYNCED]) {
		struct watcher *w = list_entry(it, struct watcher, link);
		if (w->next_rev < compact_rev)
			watch_cancel_compacted(w, compact_rev);
	}
}

void watch_pause(struct watch_set *ws)
{
	OBJ_CHECK(ws, WATCH_SET_MAGIC);
	ws->paused = true;
}

void watch_reloaded(struct watch_set *ws, bool cancel_all)
{
	OBJ_CHECK(ws, WATCH_SET_MAGIC);
	ws->paused = false;
	int64_t compact_rev = store_compact_rev(ws->store);
	bool is_overtaken = ws->fed_rev + 1 < compact_rev;
	list_for_each (it, &ws->streams) {
		struct watch_stream *st = list_entry(it, struct watch_stream, link);
		if (cancel_all)
			cancel_all_of(st);
		else if (is_overtaken)
			cancel_overtaken(st, compact_rev);
	}
	if (cancel_all)
		ws->fed_rev = store_visible_rev(ws->store);
	watch_feed(ws);
	watch_set_schedule(ws);
}

void watch_get_counts(const struct watch_set *ws, struct watch_counts *ret_counts)
{
	*ret_counts = ws->counts;
}
