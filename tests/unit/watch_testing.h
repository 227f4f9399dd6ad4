/* SPDX-License-Identifier: PostgreSQL */
/*
 * What the watch tests share: a real store that they write to, streams whose messages are decoded
 * as a client would, and a model of what each watcher must see.
 */
#ifndef TESTS_UNIT_WATCH_TESTING_H
#define TESTS_UNIT_WATCH_TESTING_H

#include "common/base/ev.h"
#include "watchd/h2.h"
#include "watchd/store.h"
#include "watchd/watch.h"

/* A store with the rows that it made, so that another one can be loaded with them. */
struct wt_rows {
	struct store_row *rows;
	size_t n, cap;
};

struct wt_stream {
	struct wt_world *world;
	struct watch_stream *st;
	size_t queued;   /* of bytes, until wt_drain */
	size_t n_shared; /* slices by reference */
	const void *last_shared;
	Etcdserverpb__WatchResponse **got; /* in order */
	size_t n_got, cap_got, n_read;
	/* Called for each response, if set. */
	void (*on_response)(struct wt_stream *s, const Etcdserverpb__WatchResponse *r, void *arg);
	void *arg;
};

struct wt_world {
	struct ev_loop *loop;
	struct store *store;
	struct watch_set *set;
	struct wt_rows rows;
};

void wt_open(struct wt_world *w, const struct watch_options *options);
void wt_close(struct wt_world *w);
/* Deferred work until there is none left that does not wait for something. */
void wt_run(struct wt_world *w);

/* Entries that are not visible yet; key "k" to value "v" is a put, value NULL a delete (if there is
 * something to delete). */
struct wt_change {
	const char *key, *value;
};
void wt_entry(struct wt_world *w, const struct wt_change *changes, size_t n);
/* Makes all entries visible and feeds. */
void wt_commit(struct wt_world *w);
/* One entry, visible, fed. */
void wt_put(struct wt_world *w, const char *key, const char *value);
void wt_delete(struct wt_world *w, const char *key);
void wt_compact(struct wt_world *w, int64_t rev);
/* What is not visible yet is undone. */
void wt_rollback(struct wt_world *w);
/* Empties the store and loads it with its own rows. */
void wt_reload(struct wt_world *w);

void wt_stream_open(struct wt_world *w, struct wt_stream *s);
void wt_stream_close(struct wt_stream *s);
void wt_drain(struct wt_stream *s);
void wt_create(struct wt_stream *s, const Etcdserverpb__WatchCreateRequest *r);
void wt_cancel(struct wt_stream *s, int64_t id);
void wt_progress(struct wt_stream *s);
/* The next response that was not read yet, or NULL. */
const Etcdserverpb__WatchResponse *wt_next(struct wt_stream *s);
/* "id/header revision: created | canceled(reason) | compact N | fragment | key=value@mod -key@mod
 * (prev)" of it, or "-". Static. */
const char *wt_next_text(struct wt_stream *s);

#endif
