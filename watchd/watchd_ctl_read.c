/* SPDX-License-Identifier: PostgreSQL */
/*
 * Listing keys and following events for pgctl: some per pass of the loop, as the client takes
 * them. A list is that of one revision, which is pinned meanwhile. A watch knows the revision that
 * it shows next, and finds its place in the event log by it, so that a store that was loaded anew
 * is nothing special; a revision's events are shown in one go.
 */
#include "config.h"

#include <string.h>

#include "common/base/mem.h"
#include "watchd/watchd_ctl.h"

#define STEP_KEYS 500
#define STEP_EVENTS 500
/* A silent watch says where it is: pgctl does not wait for ever. */
#define PROGRESS_MS 30000

/* Bytes under their name, or in hexadecimal under name_hex if they are no text. */
static void set_bytes(json_t *row, const char *name, struct store_bytes b)
{
	static const char digits[] = "0123456789abcdef";
	json_t *text = json_stringn(b.len > 0 ? b.data : "", b.len);

	if (text != NULL) {
		json_object_set_new(row, name, text);
		return;
	}
	const uint8_t *p = b.data;
	char *hex = xmalloc(2 * b.len + 1), key[40];
	for (size_t i = 0; i < b.len; i++) {
		hex[2 * i] = digits[p[i] >> 4];
		hex[2 * i + 1] = digits[p[i] & 15];
	}
	snprintf(key, sizeof(key), "%s_hex", name);
	json_object_set_new(row, key, json_stringn(hex, 2 * b.len));
	free(hex);
}

static void set_numbers(json_t *row, const struct store_kv *kv)
{
	json_object_set_new(row, "create_revision", json_integer(kv->create_rev));
	json_object_set_new(row, "mod_revision", json_integer(kv->mod_rev));
	json_object_set_new(row, "version", json_integer(kv->version));
	json_object_set_new(row, "lease", json_integer(kv->lease));
}

/* ---- get ---- */

/* True: it was shown, go on. */
static bool show_key(struct wctl *w, const struct store_kv *kv)
{
	json_t *row = json_object();

	set_bytes(row, "key", kv->key);
	if (!w->keys_only)
		set_bytes(row, "value", kv->value);
	set_numbers(row, kv);
	if (w->left > 0)
		w->left--;
	w->full = ctl_row(w->client, row) != 0;
	return !w->full;
}

static void list_step(void *arg)
{
	struct wctl *w;
	struct store_iter it;
	struct store_kv kv;
	bool more = false;

	OBJ_CAST(w, arg, WCTL_MAGIC);
	struct store_bytes from = {.data = w->next.data, .len = w->next.len_bytes};
	if (w->pin.lost) {
		wctl_fail(w, ETCD_TIMEOUT);
		return;
	}
	store_iter_init(&it, w->self->svc.store, from, wctl_to(w), w->rev);
	for (int i = 0; i < STEP_KEYS && w->left != 0 && (more = store_iter_next(&it, &kv)); i++) {
		bool go_on = show_key(w, &kv);

		buf_reset(&w->next);
		buf_put(&w->next, kv.key.data, kv.key.len);
		buf_put_u8(&w->next, 0);
		if (!go_on)
			return; /* wctl_drained goes on */
	}
	if (w->left == 0 || !more)
		wctl_ok(w);
	else
		ev_defer(w->self->svc.loop, &w->later, list_step, w);
}

static void get_one(struct wctl *w)
{
	struct store_kv kv;

	if (!store_get(w->self->svc.store, wctl_from(w), w->rev, &kv)) {
		wctl_fail_with(w, "not-found", NULL, "there is no such key");
		return;
	}
	(void)show_key(w, &kv);
	wctl_ok(w);
}

static void get(struct wctl *w)
{
	struct store *s = w->self->svc.store;

	if (w->rev > store_visible_rev(s)) {
		wctl_fail(w, ETCD_FUTURE_REV);
		return;
	}
	if (w->rev > 0 && w->rev < store_compact_rev(s)) {
		wctl_fail(w, ETCD_COMPACTED);
		return;
	}
	if (w->rev <= 0)
		w->rev = store_visible_rev(s);
	if (!w->prefix) {
		get_one(w);
		return;
	}
	store_pin(s, &w->pin, w->rev);
	buf_put(&w->next, w->key.data, w->key.len_bytes);
	list_step(w);
}

static void on_linear(struct engine_read *r, enum etcd_error err)
{
	struct wctl *w = list_entry(r, struct wctl, read);

	w->wait = WCTL_NOTHING;
	if (err != ETCD_OK)
		wctl_fail(w, err);
	else
		w->on_read(w);
}

static void linearize(struct wctl *w, void (*fn)(struct wctl *w))
{
	w->on_read = fn;
	w->read = (struct engine_read){
		.done = on_linear, .deadline_ms = services_deadline(&w->self->svc)};
	w->wait = WCTL_READ;
	engine_read(w->self->svc.engine, &w->read);
}

void wctl_cmd_get(struct ctl_client *c, const struct ctl_request *req, void *arg)
{
	const struct daemon *d = arg;
	struct wctl *w = wctl_new(d->self, c, req);
	int64_t limit = wctl_number(req, "limit");

	w->rev = wctl_number(req, "rev");
	w->left = limit > 0 ? limit : -1;
	w->keys_only = json_is_true(json_object_get(req->args, "keys-only"));
	linearize(w, get);
}

/* ---- watch ---- */

static bool concerns(const struct wctl *w, struct store_bytes key)
{
	size_t n = w->key.len_bytes;

	if (key.len < n || (n > 0 && memcmp(key.data, w->key.data, n) != 0))
		return false;
	return w->prefix || key.len == n;
}

static void show_event(struct wctl *w, const struct store_event *ev)
{
	json_t *row = json_object();

	json_object_set_new(row, "type", json_string(ev->is_delete ? "DELETE" : "PUT"));
	set_bytes(row, "key", ev->kv.key);
	if (!ev->is_delete)
		set_bytes(row, "value", ev->kv.value);
	set_numbers(row, &ev->kv);
	w->said_ms = ev_now_ms();
	w->full = ctl_row(w->client, row) != 0;
}

static void show_progress(struct wctl *w)
{
	w->said_ms = ev_now_ms();
	w->full = ctl_row(w->client, json_pack("{s:s,s:I}", "type", "PROGRESS", "mod_revision",
					     (json_int_t)(w->rev - 1))) != 0;
}

/* Shows events up to the end of the log, of the step, or of what the client takes, but no revision
 * by halves. */
static void show_events(void *arg)
{
	struct wctl *w;
	struct store_event ev;

	OBJ_CAST(w, arg, WCTL_MAGIC);
	struct store *s = w->self->svc.store;
	uint64_t end = store_log_end(s), pos;
	if (w->full || !engine_is_loaded(w->self->svc.engine))
		return; /* watchd_ctl_feed comes after a load, too */
	if (w->rev < store_compact_rev(s)) {
		wctl_fail(w, ETCD_COMPACTED);
		return;
	}
	pos = store_log_find(s, w->rev);
	for (int i = 0; pos < end; pos++, i++) {
		store_log_get(s, pos, &ev);
		if (ev.kv.mod_rev > w->rev && (w->full || i >= STEP_EVENTS))
			break;
		w->rev = ev.kv.mod_rev;
		if (concerns(w, ev.kv.key))
			show_event(w, &ev);
	}
	if (pos < end) {
		w->rev = ev.kv.mod_rev;
		if (!w->full)
			ev_defer(w->self->svc.loop, &w->later, show_events, w);
	} else if (w->rev <= store_visible_rev(s)) {
		w->rev = store_visible_rev(s) + 1;
	}
}

void wctl_feed(struct wctl *w)
{
	show_events(w);
}

static void watch_begin(struct wctl *w)
{
	if (w->rev <= 0)
		w->rev = store_visible_rev(w->self->svc.store) + 1;
	w->wait = WCTL_EVENTS;
	show_progress(w);
	show_events(w);
}

void wctl_cmd_watch(struct ctl_client *c, const struct ctl_request *req, void *arg)
{
	const struct daemon *d = arg;
	struct wctl *w = wctl_new(d->self, c, req);

	w->rev = wctl_number(req, "rev");
	linearize(w, watch_begin);
}

void wctl_tick(struct wctl *w)
{
	if (!w->full && ev_now_ms() - w->said_ms >= PROGRESS_MS)
		show_progress(w);
}

void wctl_drained(struct wctl *w)
{
	if (w->wait == WCTL_EVENTS)
		show_events(w);
	else
		list_step(w);
}
