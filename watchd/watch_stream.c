/* SPDX-License-Identifier: PostgreSQL */
/*
 * One stream of watches: what its client asks and is answered at once, the states of its watchers,
 * progress. Answers are etcd 3.4's to the letter, of which these surprise:
 *
 *   - a watch that cannot be made is answered with created and canceled and the id -1;
 *   - an id that compaction has cancelled stays taken until the client cancels it, too;
 *   - a negative start is "as compacted", but -1 is "now" while nothing has been compacted;
 *   - cancelling an unknown id is not answered.
 *
 * Answers differ in two: a progress request is answered when all watchers of the stream have
 * everything up to the revision in the answer, not at once (etcd's bug 15220); a negative start
 * after a compaction at revision 0 is cancelled, while etcd forgets it after an empty answer.
 *
 * See: watch_int.h.
 */
#include "config.h"

#include <stdlib.h>
#include <string.h>

#include "common/base/mem.h"
#include "watchd/watch_int.h"

#define REASON_EMPTY_RANGE "mvcc: watcher range is empty"
#define REASON_DUPLICATE_ID "mvcc: duplicate watch ID provided on the WatchStream"
#define REASON_TOO_MANY "etcdserver: too many requests"
#define FIRST_IDS 4

MEM_TYPE(type_stream, "watch stream");
MEM_TYPE(type_watcher, "watcher");

static void start_progress_timer(struct watch_stream *st);

/* ---- states ---- */

static bool is_behind(enum watch_state state)
{
	return state == WATCH_SCANNING || state == WATCH_WAITING;
}

static void leave_state(struct watcher *w)
{
	struct watch_stream *st = w->stream;
	struct watch_set *ws = st->ws;
	if (w->state == WATCH_SYNCED) {
		interval_remove(ws->synced, &w->member);
		ws->counts.synced--;
	} else if (w->state == WATCH_SCANNING) {
		interval_remove(st->scan, &w->member);
	}
	if (is_behind(w->state))
		ws->counts.behind--;
	list_remove(&w->link);
}

static void enter_state(struct watcher *w, enum watch_state to)
{
	struct watch_stream *st = w->stream;
	struct watch_set *ws = st->ws;
	w->state = (uint8_t)to;
	list_push_back(&st->watchers[to], &w->link);
	if (is_behind(to))
		ws->counts.behind++;
	if (to == WATCH_SYNCED) {
		interval_add(ws->synced, &w->member);
		ws->counts.synced++;
		if (w->next_rev > st->max_next_rev)
			st->max_next_rev = w->next_rev;
	} else if (to == WATCH_SCANNING) {
		if (st->scan == NULL)
			st->scan = interval_set_new();
		interval_add(st->scan, &w->member);
	}
}

void watch_move(struct watcher *w, enum watch_state to)
{
	OBJ_CHECK(w, WATCHER_MAGIC);
	leave_state(w);
	enter_state(w, to);
}

bool watch_stream_is_full(const struct watch_stream *st)
{
	const struct watch_set *ws = st->ws;
	return ws->ops->queued(st->arg) >= ws->options.stream_high_bytes;
}

/* There is something to catch up with. A full stream is woken by watch_stream_drained. */
static void make_runnable(struct watch_stream *st)
{
	if (!list_empty(&st->runnable) || watch_stream_is_full(st))
		return;
	list_push_back(&st->ws->runnable, &st->runnable);
	watch_set_schedule(st->ws);
}

/* Which state is right for one that is behind and has everything before its next_rev. */
static enum watch_state behind_state(struct watch_stream *st, int64_t next_rev)
{
	if (list_empty(&st->watchers[WATCH_SCANNING])) {
		if (!list_empty(&st->watchers[WATCH_WAITING]))
			return WATCH_WAITING;
		st->scan_rev = next_rev;
	}
	return next_rev >= st->scan_rev ? WATCH_SCANNING : WATCH_WAITING;
}

void watch_fall_behind(struct watcher *w, int64_t rev)
{
	OBJ_CHECK(w, WATCHER_MAGIC);
	w->next_rev = rev;
	watch_move(w, behind_state(w->stream, rev));
	make_runnable(w->stream);
}

/* ---- ids ---- */

static struct watcher **id_chain(const struct watch_stream *st, int64_t id)
{
	uint64_t h = (uint64_t)id * UINT64_C(0x9E3779B97F4A7C15);
	return &st->ids[h >> 32 & (st->n_ids - 1)];
}

static struct watcher *find_id(const struct watch_stream *st, int64_t id)
{
	if (st->n_ids == 0)
		return NULL;
	struct watcher *w = *id_chain(st, id);
	while (w != NULL && w->id != id)
		w = w->id_next;
	return w;
}

static void link_id(struct watch_stream *st, struct watcher *w)
{
	struct watcher **at = id_chain(st, w->id);
	w->id_next = *at;
	*at = w;
}

static void add_id(struct watch_stream *st, struct watcher *w)
{
	if (st->n_watchers == st->n_ids) {
		free(st->ids);
		st->n_ids = st->n_ids == 0 ? FIRST_IDS : st->n_ids * 2;
		st->ids = xcalloc(st->n_ids, sizeof(st->ids[0]));
		for (size_t i = 0; i < WATCH_STATE_COUNT; i++)
			list_for_each (it, &st->watchers[i])
				link_id(st, list_entry(it, struct watcher, link));
	}
	link_id(st, w);
	st->n_watchers++;
	st->ws->counts.watchers++;
}

static void remove_id(struct watch_stream *st, struct watcher *w)
{
	struct watcher **at = id_chain(st, w->id);
	while (*at != w)
		at = &(*at)->id_next;
	*at = w->id_next;
	st->n_watchers--;
	st->ws->counts.watchers--;
}

void watch_free(struct watcher *w)
{
	OBJ_CHECK(w, WATCHER_MAGIC);
	leave_state(w);
	remove_id(w->stream, w);
	w->magic = 0;
	mem_free(&type_watcher, w);
}

/* ---- answers ---- */

void watch_send_head(struct watch_stream *st, const struct watch_head *head)
{
	struct watch_set *ws = st->ws;
	uint8_t bytes[WATCH_HEAD_MAX];
	const struct h2_slice slice = {
		.bytes = bytes, .len = (uint32_t)watch_encode_head(bytes, &ws->header, head)};
	ws->ops->send(st->arg, &slice, 1);
	ws->counts.responses_sent++;
}

void watch_cancel_compacted(struct watcher *w, int64_t compact_rev)
{
	w->stream->ws->counts.compacted_cancels++;
	watch_send_head(w->stream,
		&(struct watch_head){
			.watch_id = w->id, .canceled = true, .compact_revision = compact_rev});
	watch_move(w, WATCH_COMPACTED);
}

void watch_cancel_because(struct watcher *w, const char *reason)
{
	watch_send_head(
		w->stream, &(struct watch_head){.revision = store_visible_rev(w->stream->ws->store),
				   .watch_id = w->id,
				   .canceled = true,
				   .cancel_reason = reason});
	watch_free(w);
}

/* ---- requests ---- */

static void refuse(struct watch_stream *st, const char *reason)
{
	watch_send_head(st, &(struct watch_head){.revision = store_visible_rev(st->ws->store),
				    .watch_id = -1,
				    .created = true,
				    .canceled = true,
				    .cancel_reason = reason});
}

/* The id that a request gets; false: the one that it wants is taken. */
static bool choose_id(struct watch_stream *st, int64_t wanted, int64_t *ret_id)
{
	if (wanted != 0) {
		*ret_id = wanted;
		return find_id(st, wanted) == NULL;
	}
	while (find_id(st, st->next_id) != NULL)
		st->next_id++;
	*ret_id = st->next_id++;
	return true;
}

/* As etcd reads a range: an empty key is the smallest there is, an empty end means the single key,
 * the end "\0" everything from the key on. */
struct range {
	struct store_bytes from, to;
	bool is_single;
};
static struct range range_of(const Etcdserverpb__WatchCreateRequest *r)
{
	struct range g = {.from = {r->key.data, r->key.len},
		.to = {r->range_end.data, r->range_end.len},
		.is_single = r->range_end.len == 0};
	if (g.from.len == 0)
		g.from = (struct store_bytes){"\0", 1};
	if (g.to.len == 1 && *(const uint8_t *)g.to.data == 0)
		g.to.len = 0;
	return g;
}

static bool range_is_empty(const struct range *g)
{
	if (g->to.len == 0)
		return false;
	size_t n = g->from.len < g->to.len ? g->from.len : g->to.len;
	int rc = memcmp(g->from.data, g->to.data, n);
	return rc > 0 || (rc == 0 && g->from.len >= g->to.len);
}

static struct watcher *watcher_new(
	struct watch_stream *st, const struct range *g, const Etcdserverpb__WatchCreateRequest *r)
{
	struct watcher *w = mem_new(&type_watcher, sizeof(*w) + g->from.len + g->to.len);
	w->magic = WATCHER_MAGIC;
	w->stream = st;
	w->prev_kv = r->prev_kv;
	w->fragment = r->fragment;
	w->progress_notify = w->progress_due = r->progress_notify;
	for (size_t i = 0; i < r->n_filters; i++) {
		/* Unknown ones are passed over, as etcd does. */
		if ((unsigned)r->filters[i] <=
			ETCDSERVERPB__WATCH_CREATE_REQUEST__FILTER_TYPE__NODELETE)
			w->filters |= (uint8_t)(1u << r->filters[i]);
	}
	memcpy(w->bytes, g->from.data, g->from.len);
	if (g->to.len > 0)
		memcpy(w->bytes + g->from.len, g->to.data, g->to.len);
	w->member.from = (struct store_bytes){w->bytes, g->from.len};
	if (!g->is_single)
		w->member.to = (struct store_bytes){w->bytes + g->from.len, g->to.len};
	return w;
}

/* From which revision on; 0 and what etcd takes for it is what comes next. */
static int64_t start_of(const struct watch_set *ws, int64_t start_revision)
{
	bool is_now =
		start_revision == 0 || (start_revision == -1 && store_compact_rev(ws->store) == -1);
	return is_now ? store_visible_rev(ws->store) + 1 : start_revision;
}

static void create(struct watch_stream *st, const Etcdserverpb__WatchCreateRequest *r)
{
	struct watch_set *ws = st->ws;
	const struct range g = range_of(r);
	int64_t id;
	if (range_is_empty(&g)) {
		refuse(st, REASON_EMPTY_RANGE);
		return;
	}
	if (st->n_watchers >= ws->options.max_watchers_per_stream) {
		refuse(st, REASON_TOO_MANY);
		return;
	}
	if (!choose_id(st, r->watch_id, &id)) {
		refuse(st, REASON_DUPLICATE_ID);
		return;
	}
	struct watcher *w = watcher_new(st, &g, r);
	w->id = id;
	add_id(st, w);
	w->next_rev = start_of(ws, r->start_revision);
	watch_send_head(st,
		&(struct watch_head){
			.revision = store_visible_rev(ws->store), .watch_id = id, .created = true});
	if (w->next_rev > ws->fed_rev) {
		enter_state(w, WATCH_SYNCED);
	} else {
		enter_state(w, behind_state(st, w->next_rev));
		make_runnable(st);
	}
	if (r->progress_notify && !st->progress_timer.active)
		start_progress_timer(st);
}

static void cancel(struct watch_stream *st, int64_t id)
{
	struct watcher *w = find_id(st, id);
	if (w == NULL)
		return;
	watch_send_head(st, &(struct watch_head){.revision = store_visible_rev(st->ws->store),
				    .watch_id = id,
				    .canceled = true});
	watch_free(w);
	watch_stream_try_progress(st);
}

void watch_stream_request(struct watch_stream *st, const Etcdserverpb__WatchRequest *r)
{
	OBJ_CHECK(st, WATCH_STREAM_MAGIC);
	switch (r->request_union_case) {
	case ETCDSERVERPB__WATCH_REQUEST__REQUEST_UNION_CREATE_REQUEST:
		create(st, r->create_request);
		break;
	case ETCDSERVERPB__WATCH_REQUEST__REQUEST_UNION_CANCEL_REQUEST:
		cancel(st, r->cancel_request->watch_id);
		break;
	case ETCDSERVERPB__WATCH_REQUEST__REQUEST_UNION_PROGRESS_REQUEST:
		if (list_empty(&st->progress))
			list_push_back(&st->ws->progress, &st->progress);
		watch_stream_try_progress(st);
		break;
	default: /* etcd passes over what it does not know */
		break;
	}
}

void watch_stream_drained(struct watch_stream *st)
{
	OBJ_CHECK(st, WATCH_STREAM_MAGIC);
	if (!list_empty(&st->watchers[WATCH_SCANNING]) || !list_empty(&st->watchers[WATCH_WAITING]))
		make_runnable(st);
}

/* ---- progress ---- */

/* Has every watcher everything up to fed_rev, and does none begin after it? A watcher of "now"
 * begins right behind it. */
static bool is_synced(struct watch_stream *st)
{
	int64_t now = st->ws->fed_rev + 1;
	if (!list_empty(&st->watchers[WATCH_SCANNING]) || !list_empty(&st->watchers[WATCH_WAITING]))
		return false;
	if (st->max_next_rev <= now)
		return true;
	/* It may be of one that is gone. */
	st->max_next_rev = 0;
	list_for_each (it, &st->watchers[WATCH_SYNCED]) {
		const struct watcher *w = list_entry(it, struct watcher, link);
		if (w->next_rev > st->max_next_rev)
			st->max_next_rev = w->next_rev;
	}
	return st->max_next_rev <= now;
}

void watch_stream_try_progress(struct watch_stream *st)
{
	if (list_empty(&st->progress) || !is_synced(st))
		return;
	list_remove(&st->progress);
	watch_send_head(st, &(struct watch_head){.revision = st->ws->fed_rev, .watch_id = -1});
}

/* Each stream has its own moment, so that not all are due at once. */
static void start_progress_timer(struct watch_stream *st)
{
	uint64_t interval_ms = st->ws->options.progress_interval_ms;
	uint64_t jitter_ms = (uint64_t)rand() % (interval_ms / 10 + 1);
	ev_timer_start(&st->progress_timer, interval_ms + jitter_ms);
}

/* Tells one where it stands, unless it had an event since the last time. true: it wants that. */
static bool notify_progress(struct watcher *w)
{
	const struct watch_set *ws = w->stream->ws;
	if (!w->progress_notify)
		return false;
	if (w->state == WATCH_SYNCED && w->progress_due && w->next_rev <= ws->fed_rev + 1 &&
		!watch_stream_is_full(w->stream))
		watch_send_head(w->stream,
			&(struct watch_head){.revision = ws->fed_rev, .watch_id = w->id});
	w->progress_due = true;
	return true;
}

static void on_progress_timer(void *arg)
{
	struct watch_stream *st;
	OBJ_CAST(st, arg, WATCH_STREAM_MAGIC);
	size_t n = 0;
	for (size_t i = 0; i < WATCH_COMPACTED; i++)
		list_for_each (it, &st->watchers[i])
			n += notify_progress(list_entry(it, struct watcher, link));
	if (n > 0)
		start_progress_timer(st);
}

/* ---- birth and death ---- */

struct watch_stream *watch_stream_new(struct watch_set *ws, void *stream_arg)
{
	OBJ_CHECK(ws, WATCH_SET_MAGIC);
	struct watch_stream *st = mem_new(&type_stream, sizeof(*st));
	st->magic = WATCH_STREAM_MAGIC;
	st->ws = ws;
	st->arg = stream_arg;
	for (size_t i = 0; i < WATCH_STATE_COUNT; i++)
		list_init(&st->watchers[i]);
	list_init(&st->runnable);
	list_init(&st->progress);
	list_push_back(&ws->streams, &st->link);
	ws->counts.streams++;
	ev_timer_init(&st->progress_timer, ws->loop, "watch progress", on_progress_timer, st);
	return st;
}

bool watch_stream_bury(struct watch_stream *st)
{
	OBJ_CHECK(st, WATCH_STREAM_MAGIC);
	size_t budget = WATCH_STEP_WATCHERS;
	for (size_t i = 0; i < WATCH_STATE_COUNT; i++)
		for (; budget > 0 && !list_empty(&st->watchers[i]); budget--)
			watch_free(list_first(&st->watchers[i], struct watcher, link));
	if (st->n_watchers > 0)
		return false;
	interval_set_free(&st->scan);
	free(st->ids);
	list_remove(&st->link);
	st->magic = 0;
	mem_free(&type_stream, st);
	return true;
}

void watch_stream_free(struct watch_stream **st_ptr)
{
	struct watch_stream *st = *st_ptr;
	*st_ptr = NULL;
	if (st == NULL)
		return;
	OBJ_CHECK(st, WATCH_STREAM_MAGIC);
	struct watch_set *ws = st->ws;
	st->dead = true;
	ev_timer_stop(&st->progress_timer);
	list_remove(&st->runnable);
	list_remove(&st->progress);
	list_remove(&st->link);
	list_push_back(&ws->dead, &st->link);
	ws->counts.streams--;
	if (!watch_stream_bury(st))
		watch_set_schedule(ws);
}
