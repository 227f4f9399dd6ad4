/* SPDX-License-Identifier: PostgreSQL */
#include "config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/mem.h"
#include "tests/unit/watch_testing.h"

/* ---- the world ---- */

static void *copied(struct store_bytes b)
{
	return xmemdup(b.len == 0 ? "" : b.data, b.len);
}

static void on_row(const struct store_row *row, void *arg)
{
	struct wt_world *w = arg;
	if (w->rows.n == w->rows.cap) {
		w->rows.cap = w->rows.cap == 0 ? 64 : w->rows.cap * 2;
		w->rows.rows = xrealloc(w->rows.rows, w->rows.cap * sizeof(w->rows.rows[0]));
	}
	struct store_row *r = &w->rows.rows[w->rows.n++];
	*r = *row;
	r->node = "node1";
	r->key.data = copied(row->key);
	r->value.data = copied(row->value);
}

static void on_send(void *arg, const struct h2_slice *slices, size_t n)
{
	struct wt_stream *s = arg;
	struct buf b;
	buf_init(&b, 0);
	for (size_t i = 0; i < n; i++) {
		const struct h2_slice *p = &slices[i];
		ASSERT(p->len > 0);
		if (p->shared != NULL) {
			ASSERT(p->shared->refs > 0);
			ASSERT(p->bytes >= p->shared->bytes);
			ASSERT(p->bytes + p->len <= p->shared->bytes + p->shared->len);
			s->n_shared++;
			s->last_shared = p->shared;
		}
		buf_put(&b, p->bytes, p->len);
	}
	s->queued += b.len_bytes;
	Etcdserverpb__WatchResponse *r =
		etcdserverpb__watch_response__unpack(NULL, b.len_bytes, b.data);
	ASSERT(r != NULL);
	/* Our bytes are those that another encoder would make. */
	ASSERT(etcdserverpb__watch_response__get_packed_size(r) == b.len_bytes);
	buf_free(&b);
	if (s->on_response != NULL)
		s->on_response(s, r, s->arg);
	if (s->n_got == s->cap_got) {
		s->cap_got = s->cap_got == 0 ? 16 : s->cap_got * 2;
		s->got = xrealloc(s->got, s->cap_got * sizeof(s->got[0]));
	}
	s->got[s->n_got++] = r;
}

static size_t on_queued(void *arg)
{
	return ((struct wt_stream *)arg)->queued;
}

void wt_open(struct wt_world *w, const struct watch_options *options)
{
	static const struct store_ops store_ops = {.on_row = on_row};
	static const struct watch_ops watch_ops = {.send = on_send, .queued = on_queued};
	static const struct watch_options none;
	memset(w, 0, sizeof(*w));
	w->loop = ev_loop_new();
	w->store = store_new("node1", &store_ops, w);
	w->set = watch_set_new(w->loop, w->store, options != NULL ? options : &none, &watch_ops);
	const struct kv_header header = {
		.cluster_id = UINT64_MAX, .member_id = UINT64_C(1) << 63, .raft_term = 2};
	watch_set_header(w->set, &header);
}

void wt_run(struct wt_world *w)
{
	for (size_t i = 0; i < 200; i++)
		ev_loop_once(w->loop, false);
}

static struct store_bytes bytes(const char *s)
{
	return (struct store_bytes){.data = s, .len = strlen(s)};
}

void wt_entry(struct wt_world *w, const struct wt_change *changes, size_t n)
{
	struct store_kv kv;
	store_begin(w->store);
	for (size_t i = 0; i < n; i++) {
		if (changes[i].value != NULL)
			(void)store_put(
				w->store, bytes(changes[i].key), bytes(changes[i].value), 0, &kv);
		else if (store_get(w->store, bytes(changes[i].key), STORE_HEAD, &kv))
			store_delete(w->store, bytes(changes[i].key));
	}
	(void)store_end(w->store);
}

void wt_commit(struct wt_world *w)
{
	store_commit(w->store, store_head_seq(w->store));
	watch_feed(w->set);
}

void wt_put(struct wt_world *w, const char *key, const char *value)
{
	wt_entry(w, &(struct wt_change){key, value}, 1);
	wt_commit(w);
}

void wt_delete(struct wt_world *w, const char *key)
{
	wt_entry(w, &(struct wt_change){key, NULL}, 1);
	wt_commit(w);
}

void wt_compact(struct wt_world *w, int64_t rev)
{
	store_begin(w->store);
	store_compact(w->store, rev);
	(void)store_end(w->store);
	wt_commit(w);
}

static void drop_rows(struct wt_world *w, int64_t above_seq)
{
	while (w->rows.n > 0 && w->rows.rows[w->rows.n - 1].seq > above_seq) {
		w->rows.n--;
		free((void *)(uintptr_t)w->rows.rows[w->rows.n].key.data);
		free((void *)(uintptr_t)w->rows.rows[w->rows.n].value.data);
	}
}

void wt_rollback(struct wt_world *w)
{
	store_rollback(w->store, store_visible_seq(w->store));
	drop_rows(w, store_visible_seq(w->store));
}

void wt_reload(struct wt_world *w)
{
	store_reset(w->store);
	for (size_t i = 0; i < w->rows.n; i++)
		ASSERT(store_apply(w->store, &w->rows.rows[i], true) == 0);
	store_commit(w->store, store_head_seq(w->store));
}

void wt_close(struct wt_world *w)
{
	watch_set_free(&w->set);
	store_free(&w->store);
	ev_loop_free(&w->loop);
	drop_rows(w, 0);
	free(w->rows.rows);
}

/* ---- streams ---- */

void wt_stream_open(struct wt_world *w, struct wt_stream *s)
{
	memset(s, 0, sizeof(*s));
	s->world = w;
	s->st = watch_stream_new(w->set, s);
}

void wt_stream_close(struct wt_stream *s)
{
	watch_stream_free(&s->st);
	for (size_t i = 0; i < s->n_got; i++)
		etcdserverpb__watch_response__free_unpacked(s->got[i], NULL);
	free(s->got);
	s->got = NULL;
	s->n_got = s->cap_got = s->n_read = 0;
}

void wt_drain(struct wt_stream *s)
{
	s->queued = 0;
	watch_stream_drained(s->st);
}

void wt_create(struct wt_stream *s, const Etcdserverpb__WatchCreateRequest *r)
{
	Etcdserverpb__WatchCreateRequest copy = *r;
	Etcdserverpb__WatchRequest rq = ETCDSERVERPB__WATCH_REQUEST__INIT;
	rq.request_union_case = ETCDSERVERPB__WATCH_REQUEST__REQUEST_UNION_CREATE_REQUEST;
	rq.create_request = &copy;
	watch_stream_request(s->st, &rq);
}

void wt_cancel(struct wt_stream *s, int64_t id)
{
	Etcdserverpb__WatchCancelRequest c = ETCDSERVERPB__WATCH_CANCEL_REQUEST__INIT;
	Etcdserverpb__WatchRequest rq = ETCDSERVERPB__WATCH_REQUEST__INIT;
	c.watch_id = id;
	rq.request_union_case = ETCDSERVERPB__WATCH_REQUEST__REQUEST_UNION_CANCEL_REQUEST;
	rq.cancel_request = &c;
	watch_stream_request(s->st, &rq);
}

void wt_progress(struct wt_stream *s)
{
	Etcdserverpb__WatchProgressRequest p = ETCDSERVERPB__WATCH_PROGRESS_REQUEST__INIT;
	Etcdserverpb__WatchRequest rq = ETCDSERVERPB__WATCH_REQUEST__INIT;
	rq.request_union_case = ETCDSERVERPB__WATCH_REQUEST__REQUEST_UNION_PROGRESS_REQUEST;
	rq.progress_request = &p;
	watch_stream_request(s->st, &rq);
}

const Etcdserverpb__WatchResponse *wt_next(struct wt_stream *s)
{
	return s->n_read < s->n_got ? s->got[s->n_read++] : NULL;
}

static void put_kv(struct buf *b, const Mvccpb__KeyValue *kv)
{
	buf_put(b, kv->key.data, kv->key.len);
	if (kv->version > 0)
		buf_printf(b, "=%.*s", (int)kv->value.len, (const char *)kv->value.data);
	buf_printf(b, "@%lld", (long long)kv->mod_revision);
	if (kv->version > 0)
		buf_printf(b, "v%lldc%lld", (long long)kv->version, (long long)kv->create_revision);
}

const char *wt_next_text(struct wt_stream *s)
{
	static struct buf b;
	static bool ready;
	if (!ready)
		buf_init(&b, 0);
	ready = true;
	buf_reset(&b);
	const Etcdserverpb__WatchResponse *r = wt_next(s);
	if (r == NULL)
		return "-";
	buf_printf(&b, "%lld/%lld:", (long long)r->watch_id, (long long)r->header->revision);
	if (r->created)
		buf_printf(&b, " created");
	if (r->canceled)
		buf_printf(&b, " canceled(%s)", r->cancel_reason);
	if (r->compact_revision != 0)
		buf_printf(&b, " compact %lld", (long long)r->compact_revision);
	if (r->fragment)
		buf_printf(&b, " fragment");
	for (size_t i = 0; i < r->n_events; i++) {
		buf_put_text(
			&b, r->events[i]->type == MVCCPB__EVENT__EVENT_TYPE__DELETE ? " -" : " ");
		put_kv(&b, r->events[i]->kv);
		if (r->events[i]->prev_kv != NULL) {
			buf_put_text(&b, "(");
			put_kv(&b, r->events[i]->prev_kv);
			buf_put_text(&b, ")");
		}
	}
	return buf_cstr(&b);
}
