/* SPDX-License-Identifier: PostgreSQL */
#include "config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/mem.h"
#include "tests/unit/watch_model.h"
#include "tests/unit/watch_testing.h"

#define N_KEYS 12
#define N_STREAMS 4
#define MAX_WATCHERS 40

struct version {
	int64_t create, mod, version; /* version 0: there is none */
	char value[32];
};
struct model_event {
	int64_t rev;
	unsigned key;
	struct version now, before;
};
struct watcher {
	bool alive, compacted, fragmenting;
	size_t stream;
	int64_t id, start, last_rev, header_rev;
	char from[4], to[4];
	bool has_to;
	unsigned filters;
	bool prev_kv, fragment;
	size_t cursor; /* first event that was not given to it or passed over */
};
struct model {
	const struct wm_source *src;
	struct wt_world w;
	struct wt_stream streams[N_STREAMS];
	struct watcher watchers[MAX_WATCHERS];
	size_t n_watchers;
	struct version keys[N_KEYS], visible_keys[N_KEYS];
	struct model_event *events;
	size_t n_events, cap_events, n_visible;
	struct wm_counts counts;
};

static uint32_t below(struct model *m, uint32_t n)
{
	return m->src->below(n, m->src->arg);
}

static const char *key_name(unsigned i)
{
	static const char *const names[N_KEYS] = {
		"a", "aa", "ab", "b", "ba", "bb", "c", "ca", "cc", "d", "da", "e"};
	return names[i];
}

/* ---- judging ---- */

static bool concerns(const struct watcher *w, const struct model_event *e)
{
	const char *key = key_name(e->key);
	bool is_delete = e->now.version == 0;
	if (e->rev < w->start || (w->filters & (1u << is_delete)) != 0)
		return false;
	if (!w->has_to)
		return strcmp(key, w->from) == 0;
	return strcmp(key, w->from) >= 0 && (w->to[0] == '\0' || strcmp(key, w->to) < 0);
}

/* The next visible event that it must get, or NULL. */
static const struct model_event *next_event(struct model *m, struct watcher *w)
{
	while (w->cursor < m->n_visible && !concerns(w, &m->events[w->cursor]))
		w->cursor++;
	return w->cursor < m->n_visible ? &m->events[w->cursor] : NULL;
}

static bool bytes_are(const ProtobufCBinaryData *b, const char *s)
{
	return b->len == strlen(s) && (b->len == 0 || memcmp(b->data, s, b->len) == 0);
}

static void judge_event(struct model *m, struct watcher *w, const Mvccpb__Event *got)
{
	const struct model_event *e = next_event(m, w);
	ASSERT(e != NULL);
	const Mvccpb__KeyValue *kv = got->kv;
	ASSERT(bytes_are(&kv->key, key_name(e->key)));
	ASSERT(kv->mod_revision == e->rev && kv->version == e->now.version);
	ASSERT(kv->create_revision == e->now.create);
	ASSERT(bytes_are(&kv->value, e->now.version == 0 ? "" : e->now.value));
	ASSERT((got->type == MVCCPB__EVENT__EVENT_TYPE__DELETE) == (e->now.version == 0));
	bool creates = e->now.version != 0 && e->now.create == e->rev;
	bool has_prev = w->prev_kv && !creates && e->before.version != 0 &&
			e->rev - 1 >= store_compact_rev(m->w.store);
	ASSERT((got->prev_kv != NULL) == has_prev);
	if (has_prev) {
		ASSERT(got->prev_kv->mod_revision == e->before.mod);
		ASSERT(got->prev_kv->version == e->before.version);
		ASSERT(bytes_are(&got->prev_kv->key, key_name(e->key)));
		ASSERT(bytes_are(&got->prev_kv->value, e->before.value));
	}
	w->last_rev = e->rev;
	w->cursor++;
	m->counts.events++;
}

static void judge_events(struct model *m, struct watcher *w, const Etcdserverpb__WatchResponse *r)
{
	ASSERT(!w->compacted && r->n_events > 0);
	for (size_t i = 0; i < r->n_events; i++)
		judge_event(m, w, r->events[i]);
	ASSERT(r->header->revision >= w->last_rev && r->header->revision >= w->header_rev);
	ASSERT(r->header->revision <= store_visible_rev(m->w.store));
	w->header_rev = r->header->revision;
	w->fragmenting = r->fragment;
	ASSERT(!r->fragment || w->fragment);
	m->counts.fragments += (uint64_t)r->fragment;
	/* Whole revisions. */
	const struct model_event *next = next_event(m, w);
	ASSERT(r->fragment || next == NULL || next->rev > w->last_rev);
}

static void judge_progress(struct model *m, size_t stream, int64_t rev)
{
	for (size_t i = 0; i < m->n_watchers; i++) {
		struct watcher *w = &m->watchers[i];
		if (!w->alive || w->compacted || w->stream != stream)
			continue;
		const struct model_event *next = next_event(m, w);
		ASSERT(next == NULL || next->rev > rev);
		ASSERT(w->start <= rev + 1);
	}
	m->counts.progress++;
}

static struct watcher *find(struct model *m, size_t stream, int64_t id)
{
	for (size_t i = 0; i < m->n_watchers; i++) {
		struct watcher *w = &m->watchers[i];
		if (w->alive && w->stream == stream && w->id == id)
			return w;
	}
	return NULL;
}

static void on_response(struct wt_stream *s, const Etcdserverpb__WatchResponse *r, void *arg)
{
	struct model *m = arg;
	size_t stream = (size_t)(s - m->streams);
	m->counts.responses++;
	if (r->created)
		return; /* judged by the one who asked */
	if (r->watch_id == -1) {
		judge_progress(m, stream, r->header->revision);
		return;
	}
	struct watcher *w = find(m, stream, r->watch_id);
	ASSERT(w != NULL);
	if (r->canceled && r->compact_revision == 0)
		return;
	ASSERT(!w->fragmenting || r->n_events > 0);
	if (!r->canceled) {
		judge_events(m, w, r);
		return;
	}
	ASSERT(!w->compacted && r->n_events == 0);
	ASSERT(r->compact_revision == store_compact_rev(m->w.store));
	ASSERT(w->start < r->compact_revision && w->last_rev < r->compact_revision);
	w->compacted = true;
	m->counts.compacted++;
}

/* ---- acting ---- */

static void random_key(struct model *m, char *out)
{
	snprintf(out, 4, "%s", key_name(below(m, N_KEYS)));
}

static void open_stream(struct model *m, size_t i)
{
	wt_stream_open(&m->w, &m->streams[i]);
	m->streams[i].on_response = on_response;
	m->streams[i].arg = m;
}

static void do_create(struct model *m)
{
	if (m->n_watchers == MAX_WATCHERS)
		return;
	struct watcher *w = &m->watchers[m->n_watchers];
	*w = (struct watcher){.stream = below(m, N_STREAMS), .filters = below(m, 8) & 3};
	w->filters = w->filters == 3 && below(m, 2) == 0 ? 0 : w->filters;
	w->prev_kv = below(m, 2);
	w->fragment = below(m, 3) == 0;
	random_key(m, w->from);
	w->has_to = below(m, 3) > 0;
	if (w->has_to && below(m, 2) == 0)
		random_key(m, w->to);
	Etcdserverpb__WatchCreateRequest r = ETCDSERVERPB__WATCH_CREATE_REQUEST__INIT;
	Etcdserverpb__WatchCreateRequest__FilterType filters[2];
	r.filters = filters;
	for (unsigned f = 0; f < 2; f++)
		if ((w->filters & (1u << f)) != 0)
			filters[r.n_filters++] = (Etcdserverpb__WatchCreateRequest__FilterType)f;
	r.key = (ProtobufCBinaryData){strlen(w->from), (uint8_t *)w->from};
	if (w->has_to && w->to[0] == '\0')
		r.range_end = (ProtobufCBinaryData){1, (uint8_t *)w->to};
	else if (w->has_to)
		r.range_end = (ProtobufCBinaryData){strlen(w->to), (uint8_t *)w->to};
	r.prev_kv = w->prev_kv;
	r.fragment = w->fragment;
	int64_t visible = store_visible_rev(m->w.store);
	uint32_t back = below(m, 4) == 0 ? (uint32_t)visible : 25;
	if (below(m, 3) > 0)
		r.start_revision = visible + 4 - (int64_t)below(m, back + 4);
	if (r.start_revision < 0)
		r.start_revision = 0;
	w->start = r.start_revision == 0 ? visible + 1 : r.start_revision;
	if (below(m, 4) == 0)
		r.watch_id = 1 + below(m, 6);
	struct wt_stream *s = &m->streams[w->stream];
	bool taken = r.watch_id != 0 && find(m, w->stream, r.watch_id) != NULL;
	bool empty = w->has_to && w->to[0] != '\0' && strcmp(w->from, w->to) >= 0;
	wt_create(s, &r);
	const Etcdserverpb__WatchResponse *got = s->got[s->n_got - 1];
	ASSERT(got->created && got->canceled == (taken || empty));
	if (got->canceled) {
		ASSERT(got->watch_id == -1);
		return;
	}
	ASSERT(r.watch_id == 0 || r.watch_id == got->watch_id);
	ASSERT(find(m, w->stream, got->watch_id) == NULL);
	w->id = got->watch_id;
	w->alive = true;
	m->n_watchers++;
}

static void forget(struct model *m, struct watcher *w)
{
	*w = m->watchers[--m->n_watchers];
}

static void do_cancel(struct model *m)
{
	if (m->n_watchers == 0)
		return;
	struct watcher *w = &m->watchers[below(m, (uint32_t)m->n_watchers)];
	struct wt_stream *s = &m->streams[w->stream];
	/* A progress answer may have waited for it alone. */
	w->compacted = true;
	wt_cancel(s, w->id);
	const Etcdserverpb__WatchResponse *got = s->got[s->n_got - 1];
	if (got->watch_id == -1)
		got = s->got[s->n_got - 2];
	ASSERT(got->canceled && got->watch_id == w->id && got->cancel_reason[0] == '\0');
	forget(m, w);
}

static void add_event(struct model *m, int64_t rev, unsigned key, const char *value)
{
	if (m->n_events == m->cap_events) {
		m->cap_events = m->cap_events == 0 ? 64 : m->cap_events * 2;
		m->events = xrealloc(m->events, m->cap_events * sizeof(m->events[0]));
	}
	struct version *v = &m->keys[key];
	struct model_event *e = &m->events[m->n_events++];
	memset(e, 0, sizeof(*e));
	e->rev = rev;
	e->key = key;
	e->before = *v;
	if (value == NULL) {
		memset(v, 0, sizeof(*v));
	} else {
		v->create = v->version == 0 ? rev : v->create;
		v->version++;
		v->mod = rev;
		snprintf(v->value, sizeof(v->value), "%s", value);
	}
	e->now = *v;
}

/* An entry of some keys, each at most once. */
static void do_entry(struct model *m)
{
	struct wt_change changes[N_KEYS];
	char values[N_KEYS][32];
	size_t n = 0, n_max = below(m, 4) == 0 ? N_KEYS : 1 + below(m, 2);
	int64_t rev = store_head_rev(m->w.store) + 1;
	unsigned first = below(m, N_KEYS);
	for (unsigned i = 0; i < N_KEYS && n < n_max; i++) {
		unsigned key = (first + i) % N_KEYS;
		bool is_delete = below(m, 3) == 0;
		if (is_delete && m->keys[key].version == 0)
			continue;
		snprintf(values[n], sizeof(values[n]), "%u-%lld", key, (long long)rev);
		changes[n] = (struct wt_change){key_name(key), is_delete ? NULL : values[n]};
		add_event(m, rev, key, changes[n].value);
		n++;
	}
	wt_entry(&m->w, changes, n);
}

/* As many as another node may have written meanwhile. */
static void do_burst(struct model *m)
{
	for (uint32_t n = below(m, 60); n > 0; n--)
		do_entry(m);
}

static void seen(struct model *m)
{
	m->n_visible = m->n_events;
	memcpy(m->visible_keys, m->keys, sizeof(m->keys));
}

static void do_commit(struct model *m)
{
	seen(m);
	wt_commit(&m->w);
}

static void do_rollback(struct model *m)
{
	wt_rollback(&m->w);
	m->n_events = m->n_visible;
	memcpy(m->keys, m->visible_keys, sizeof(m->keys));
}

static void do_compact(struct model *m)
{
	int64_t visible = store_visible_rev(m->w.store), at = store_compact_rev(m->w.store);
	int64_t rev = visible - (int64_t)below(m, 20);
	if (rev <= at || rev < 1)
		return;
	seen(m);
	wt_compact(&m->w, rev);
}

static void do_reload(struct model *m)
{
	if (below(m, 2) == 0)
		do_rollback(m);
	seen(m);
	wt_reload(&m->w);
	watch_reloaded(m->w.set, false);
}

static void do_stream(struct model *m)
{
	size_t i = below(m, N_STREAMS);
	for (size_t k = m->n_watchers; k-- > 0;)
		if (m->watchers[k].stream == i)
			forget(m, &m->watchers[k]);
	wt_stream_close(&m->streams[i]);
	open_stream(m, i);
}

static void step(struct model *m)
{
	uint32_t what = below(m, 100);
	if (what < 28)
		do_entry(m);
	else if (what < 30)
		do_burst(m);
	else if (what < 50)
		do_commit(m);
	else if (what < 62)
		do_create(m);
	else if (what < 66)
		do_cancel(m);
	else if (what < 78)
		wt_drain(&m->streams[below(m, N_STREAMS)]);
	else if (what < 90)
		ev_loop_once(m->w.loop, false);
	else if (what < 93)
		wt_progress(&m->streams[below(m, N_STREAMS)]);
	else if (what < 95)
		do_compact(m);
	else if (what < 97)
		(void)store_trim(m->w.store, 1 + below(m, 30));
	else if (what < 98)
		do_rollback(m);
	else if (what < 99)
		do_reload(m);
	else
		do_stream(m);
}

static void settle(struct model *m)
{
	do_commit(m);
	/* A step may look at a single event that concerns nobody. */
	for (size_t quiet = 0; quiet < m->n_events + 10;) {
		uint64_t before = m->counts.responses;
		struct watch_counts counts;
		for (size_t i = 0; i < N_STREAMS; i++)
			wt_drain(&m->streams[i]);
		ev_loop_once(m->w.loop, false);
		watch_get_counts(m->w.set, &counts);
		quiet = before == m->counts.responses && counts.behind == 0 ? quiet + 1 : 0;
	}
	for (size_t i = 0; i < m->n_watchers; i++) {
		struct watcher *w = &m->watchers[i];
		ASSERT(w->compacted || next_event(m, w) == NULL);
		ASSERT(!w->fragmenting);
	}
}

void wm_run(const struct wm_source *src, struct wm_counts *ret_counts)
{
	struct model *m = xcalloc(1, sizeof(*m));
	m->src = src;
	const struct watch_options options = {.stream_high_bytes = 50 + below(m, 1000),
		.fragment_bytes = 100 + below(m, 300),
		.step_events = 1 + below(m, 30)};
	wt_open(&m->w, &options);
	for (size_t i = 0; i < N_STREAMS; i++)
		open_stream(m, i);
	while (!src->is_over(src->arg))
		step(m);
	settle(m);
	for (size_t i = 0; i < N_STREAMS; i++)
		wt_stream_close(&m->streams[i]);
	wt_close(&m->w);
	*ret_counts = m->counts;
	free(m->events);
	free(m);
}
