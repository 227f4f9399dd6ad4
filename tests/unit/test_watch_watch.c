/* SPDX-License-Identifier: PostgreSQL */
/* Watches over a real store; what is sent is decoded as a client would. */
#include "config.h"

#include <malloc.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#include "common/base/mem.h"
#include "tests/unit/watch_model.h"
#include "tests/unit/watch_testing.h"

#define INIT ETCDSERVERPB__WATCH_CREATE_REQUEST__INIT

static ProtobufCBinaryData bin(const char *s)
{
	return (ProtobufCBinaryData){.len = strlen(s), .data = (uint8_t *)(uintptr_t)s};
}

static Etcdserverpb__WatchCreateRequest request(
	const char *key, const char *end, int64_t start_revision)
{
	Etcdserverpb__WatchCreateRequest r = INIT;
	r.key = bin(key);
	r.range_end = bin(end);
	r.start_revision = start_revision;
	return r;
}

static void create(struct wt_stream *s, const char *key, const char *end, int64_t start_revision)
{
	Etcdserverpb__WatchCreateRequest r = request(key, end, start_revision);
	wt_create(s, &r);
}

#define EXPECT(stream, text) assert_string_equal(wt_next_text(stream), text)

static void test_live(void **state)
{
	(void)state;
	struct wt_world w;
	struct wt_stream s;
	wt_open(&w, NULL);
	wt_stream_open(&w, &s);
	create(&s, "a", "", 0);
	EXPECT(&s, "0/1: created");
	wt_put(&w, "a", "1");
	wt_put(&w, "b", "1");
	wt_put(&w, "a", "2");
	wt_delete(&w, "a");
	wt_put(&w, "a", "3");
	EXPECT(&s, "0/2: a=1@2v1c2");
	EXPECT(&s, "0/4: a=2@4v2c2");
	EXPECT(&s, "0/5: -a@5");
	EXPECT(&s, "0/6: a=3@6v1c6");
	EXPECT(&s, "-");
	/* Several revisions that become visible at once are one response. */
	wt_entry(&w, &(struct wt_change){"a", "4"}, 1);
	wt_entry(&w, &(struct wt_change){"b", "4"}, 1);
	wt_entry(&w, &(struct wt_change){"a", NULL}, 1);
	EXPECT(&s, "-");
	wt_commit(&w);
	EXPECT(&s, "0/9: a=4@7v2c6 -a@9");
	wt_stream_close(&s);
	wt_close(&w);
}

/* etcd 3.4's answers, as the real one gave them. */
static void test_answers(void **state)
{
	(void)state;
	struct wt_world w;
	struct wt_stream s;
	wt_open(&w, NULL);
	wt_stream_open(&w, &s);
	wt_progress(&s);
	EXPECT(&s, "-1/1:");
	create(&s, "a", "", -5);
	create(&s, "a", "", -1);
	wt_run(&w);
	EXPECT(&s, "0/1: created");
	EXPECT(&s, "1/1: created");
	EXPECT(&s, "0/0: canceled() compact -1");
	wt_put(&w, "a", "0");
	EXPECT(&s, "1/2: a=0@2v1c2");
	create(&s, "b", "a", 0);
	EXPECT(&s, "-1/2: created canceled(mvcc: watcher range is empty)");
	create(&s, "b", "b", 0);
	EXPECT(&s, "-1/2: created canceled(mvcc: watcher range is empty)");
	create(&s, "b", "b\x01", 0);
	EXPECT(&s, "2/2: created");
	Etcdserverpb__WatchCreateRequest r = request("a", "", 0);
	r.watch_id = 2;
	wt_create(&s, &r);
	EXPECT(&s, "-1/2: created canceled(mvcc: duplicate watch ID provided on the WatchStream)");
	r.watch_id = 3;
	wt_create(&s, &r);
	EXPECT(&s, "3/2: created");
	r.watch_id = -7;
	wt_create(&s, &r);
	EXPECT(&s, "-7/2: created");
	create(&s, "z", "", 0);
	EXPECT(&s, "4/2: created");
	wt_cancel(&s, 4);
	EXPECT(&s, "4/2: canceled()");
	wt_cancel(&s, 4);
	wt_cancel(&s, 77);
	EXPECT(&s, "-");
	Etcdserverpb__WatchRequest nothing = ETCDSERVERPB__WATCH_REQUEST__INIT;
	watch_stream_request(s.st, &nothing);
	EXPECT(&s, "-");
	wt_put(&w, "a", "1");
	EXPECT(&s, "1/3: a=1@3v2c2");
	EXPECT(&s, "3/3: a=1@3v2c2");
	EXPECT(&s, "-7/3: a=1@3v2c2");
	EXPECT(&s, "-");
	wt_stream_close(&s);
	wt_close(&w);
}

/* An empty key is "\0", an empty end the single key, the end "\0" everything behind. */
static void test_ranges(void **state)
{
	(void)state;
	struct wt_world w;
	struct wt_stream s;
	wt_open(&w, NULL);
	wt_stream_open(&w, &s);
	create(&s, "", "", 0);
	Etcdserverpb__WatchCreateRequest r = request("b", "", 0);
	r.range_end = (ProtobufCBinaryData){1, (uint8_t *)(uintptr_t) ""};
	wt_create(&s, &r); /* 1: from b on */
	r.key = bin("");
	wt_create(&s, &r); /* 2: everything */
	create(&s, "b", "c", 0);
	for (int i = 0; i < 4; i++)
		(void)wt_next(&s);
	wt_put(&w, "a", "x");
	EXPECT(&s, "2/2: a=x@2v1c2");
	wt_put(&w, "b", "x");
	EXPECT(&s, "2/3: b=x@3v1c3");
	EXPECT(&s, "3/3: b=x@3v1c3");
	EXPECT(&s, "1/3: b=x@3v1c3");
	wt_put(&w, "c", "x");
	EXPECT(&s, "2/4: c=x@4v1c4");
	EXPECT(&s, "1/4: c=x@4v1c4");
	EXPECT(&s, "-");
	wt_stream_close(&s);
	wt_close(&w);
}

static void test_past_and_future(void **state)
{
	(void)state;
	struct wt_world w;
	struct wt_stream s;
	wt_open(&w, NULL);
	wt_stream_open(&w, &s);
	for (int i = 0; i < 4; i++)
		wt_put(&w, "a", "v"); /* 2 to 5 */
	create(&s, "a", "", 4);
	create(&s, "a", "", 7);
	create(&s, "a", "", 1);
	EXPECT(&s, "0/5: created");
	EXPECT(&s, "1/5: created");
	EXPECT(&s, "2/5: created");
	wt_progress(&s);
	EXPECT(&s, "-"); /* nobody is in sync yet */
	wt_run(&w);
	EXPECT(&s, "0/5: a=v@4v3c2 a=v@5v4c2");
	EXPECT(&s, "2/5: a=v@2v1c2 a=v@3v2c2 a=v@4v3c2 a=v@5v4c2");
	EXPECT(&s, "-"); /* one begins later */
	wt_put(&w, "a", "v");
	EXPECT(&s, "0/6: a=v@6v5c2");
	EXPECT(&s, "2/6: a=v@6v5c2");
	EXPECT(&s, "-1/6:");
	wt_put(&w, "a", "v");
	EXPECT(&s, "1/7: a=v@7v6c2");
	EXPECT(&s, "0/7: a=v@7v6c2");
	EXPECT(&s, "2/7: a=v@7v6c2");
	wt_progress(&s);
	EXPECT(&s, "-1/7:");
	/* One that begins far away is gone: nobody waits for it. */
	create(&s, "a", "", 1000);
	EXPECT(&s, "3/7: created");
	wt_progress(&s);
	EXPECT(&s, "-");
	wt_cancel(&s, 3);
	EXPECT(&s, "3/7: canceled()");
	EXPECT(&s, "-1/7:");
	EXPECT(&s, "-");
	wt_stream_close(&s);
	wt_close(&w);
}

static void test_filters_and_prev(void **state)
{
	(void)state;
	struct wt_world w;
	struct wt_stream s;
	wt_open(&w, NULL);
	wt_stream_open(&w, &s);
	Etcdserverpb__WatchCreateRequest r = request("a", "b", 0);
	r.prev_kv = true;
	wt_create(&s, &r);
	Etcdserverpb__WatchCreateRequest__FilterType filters[] = {
		ETCDSERVERPB__WATCH_CREATE_REQUEST__FILTER_TYPE__NOPUT,
		ETCDSERVERPB__WATCH_CREATE_REQUEST__FILTER_TYPE__NODELETE,
		(Etcdserverpb__WatchCreateRequest__FilterType)7};
	r.filters = &filters[0];
	r.n_filters = 1;
	wt_create(&s, &r);
	r.filters = &filters[1];
	r.n_filters = 2;
	wt_create(&s, &r);
	r.filters = filters;
	r.n_filters = 3;
	wt_create(&s, &r);
	for (int i = 0; i < 4; i++)
		(void)wt_next(&s);
	wt_put(&w, "a", "1");
	EXPECT(&s, "0/2: a=1@2v1c2");
	EXPECT(&s, "2/2: a=1@2v1c2");
	wt_put(&w, "a", "2");
	EXPECT(&s, "0/3: a=2@3v2c2(a=1@2v1c2)");
	EXPECT(&s, "2/3: a=2@3v2c2(a=1@2v1c2)");
	wt_delete(&w, "a");
	EXPECT(&s, "0/4: -a@4(a=2@3v2c2)");
	EXPECT(&s, "1/4: -a@4(a=2@3v2c2)");
	wt_put(&w, "a", "3");
	EXPECT(&s, "0/5: a=3@5v1c5");
	EXPECT(&s, "2/5: a=3@5v1c5");
	EXPECT(&s, "-");
	wt_stream_close(&s);
	wt_close(&w);
}

static void test_negative_start(void **state)
{
	(void)state;
	struct wt_world w;
	struct wt_stream s;
	wt_open(&w, NULL);
	wt_stream_open(&w, &s);
	wt_put(&w, "a", "v"); /* 2 */
	create(&s, "a", "", -1);
	create(&s, "a", "", -2);
	wt_run(&w);
	EXPECT(&s, "0/2: created");
	EXPECT(&s, "1/2: created");
	EXPECT(&s, "1/0: canceled() compact -1");
	wt_compact(&w, 0);
	create(&s, "a", "", -1);
	wt_run(&w);
	EXPECT(&s, "2/2: created");
	EXPECT(&s, "2/0: canceled()");
	wt_put(&w, "a", "v"); /* 3 */
	wt_run(&w);
	EXPECT(&s, "0/3: a=v@3v2c2");
	EXPECT(&s, "-");
	wt_stream_close(&s);
	wt_close(&w);
}

static void test_compaction(void **state)
{
	(void)state;
	struct wt_world w;
	struct wt_stream s;
	wt_open(&w, NULL);
	wt_stream_open(&w, &s);
	for (int i = 0; i < 4; i++)
		wt_put(&w, "a", "v"); /* 2 to 5 */
	wt_delete(&w, "a");           /* 6 */
	wt_put(&w, "b", "v");         /* 7 */
	wt_compact(&w, 6);
	while (store_trim(w.store, 100))
		;
	create(&s, "a", "", 5);
	create(&s, "a", "", -1);
	Etcdserverpb__WatchCreateRequest r = request("a", "", 6);
	r.prev_kv = true;
	wt_create(&s, &r);
	wt_run(&w);
	EXPECT(&s, "0/7: created");
	EXPECT(&s, "1/7: created");
	EXPECT(&s, "2/7: created");
	EXPECT(&s, "0/0: canceled() compact 6");
	/* What happened at the compact revision is still told, even a delete; the version before it
	 * is gone. */
	EXPECT(&s, "2/7: -a@6");
	EXPECT(&s, "1/0: canceled() compact 6");
	/* The id stays taken until it is cancelled. */
	r.watch_id = 1;
	wt_create(&s, &r);
	EXPECT(&s, "-1/7: created canceled(mvcc: duplicate watch ID provided on the WatchStream)");
	wt_cancel(&s, 1);
	EXPECT(&s, "1/7: canceled()");
	wt_cancel(&s, 1);
	EXPECT(&s, "-");
	struct watch_counts counts;
	watch_get_counts(w.set, &counts);
	assert_int_equal(counts.compacted_cancels, 2);
	assert_int_equal(counts.watchers, 2);
	assert_int_equal(counts.synced, 1);
	assert_int_equal(counts.behind, 0);
	wt_stream_close(&s);
	wt_close(&w);
}

static void test_fragments(void **state)
{
	(void)state;
	struct wt_world w;
	struct wt_stream s;
	const struct watch_options options = {.fragment_bytes = 200};
	wt_open(&w, &options);
	wt_stream_open(&w, &s);
	Etcdserverpb__WatchCreateRequest r = request("a", "b", 0);
	wt_create(&s, &r);
	r.fragment = true;
	wt_create(&s, &r);
	(void)wt_next(&s);
	(void)wt_next(&s);
	struct wt_change changes[20];
	char keys[ARRAY_LEN(changes)][8];
	for (size_t i = 0; i < ARRAY_LEN(changes); i++) {
		snprintf(keys[i], sizeof(keys[i]), "a%02zu", i);
		changes[i] = (struct wt_change){keys[i], "0123456789"};
	}
	wt_entry(&w, changes, ARRAY_LEN(changes));
	wt_commit(&w);
	const Etcdserverpb__WatchResponse *got = wt_next(&s);
	assert_int_equal(got->watch_id, 0);
	assert_int_equal(got->n_events, 20);
	assert_false(got->fragment);
	size_t n = 0, responses = 0;
	do {
		got = wt_next(&s);
		assert_non_null(got);
		assert_int_equal(got->watch_id, 1);
		assert_true(got->n_events > 0);
		assert_true(etcdserverpb__watch_response__get_packed_size(got) < 200);
		for (size_t i = 0; i < got->n_events; i++, n++)
			assert_memory_equal(got->events[i]->kv->key.data, keys[n], 3);
		responses++;
	} while (got->fragment);
	assert_int_equal(n, 20);
	assert_true(responses > 3);
	/* A single event is never cut, and a small answer has no flag. */
	char big[401];
	memset(big, 'x', 400);
	big[400] = '\0';
	wt_put(&w, "a", big);
	wt_put(&w, "a", "small");
	for (int i = 0; i < 4; i++) {
		got = wt_next(&s);
		assert_int_equal(got->n_events, 1);
		assert_false(got->fragment);
	}
	EXPECT(&s, "-");
	wt_stream_close(&s);
	wt_close(&w);
}

static void test_slow_stream(void **state)
{
	(void)state;
	struct wt_world w;
	struct wt_stream slow, fast;
	const struct watch_options options = {.stream_high_bytes = 300, .step_events = 10};
	wt_open(&w, &options);
	wt_stream_open(&w, &slow);
	wt_stream_open(&w, &fast);
	for (int i = 0; i < 3; i++)
		create(&slow, "a", "b", 0);
	create(&slow, "never", "", 0);
	create(&fast, "a", "b", 0);
	for (int i = 0; i < 500; i++) {
		char key[8];
		snprintf(key, sizeof(key), "a%d", i % 7);
		wt_put(&w, key, "value");
		wt_run(&w);
		wt_drain(&fast);
		assert_true(slow.queued < 400);
	}
	struct watch_counts counts;
	watch_get_counts(w.set, &counts);
	assert_int_equal(counts.behind, 3);
	wt_progress(&slow);
	/* Each time a little; in the end everybody has everything once, in order. */
	for (int i = 0; i < 3000; i++) {
		wt_drain(&slow);
		wt_run(&w);
		assert_true(slow.queued < 1000);
	}
	int64_t next[3] = {2, 2, 2};
	const Etcdserverpb__WatchResponse *r;
	bool progress = false;
	while ((r = wt_next(&slow)) != NULL) {
		assert_false(progress);
		if (r->watch_id == -1) {
			progress = true;
			assert_int_equal(r->header->revision, 501);
		}
		for (size_t i = 0; i < r->n_events; i++)
			assert_int_equal(r->events[i]->kv->mod_revision, next[r->watch_id]++);
	}
	assert_true(progress);
	for (int i = 0; i < 3; i++)
		assert_int_equal(next[i], 502);
	watch_get_counts(w.set, &counts);
	assert_int_equal(counts.behind, 0);
	assert_int_equal(counts.synced, 5);
	wt_stream_close(&slow);
	wt_stream_close(&fast);
	wt_close(&w);
}

/* One that was slow is overtaken by compaction, the others of its stream are not. */
static void test_slow_and_compacted(void **state)
{
	(void)state;
	struct wt_world w;
	struct wt_stream s;
	const struct watch_options options = {.stream_high_bytes = 100};
	wt_open(&w, &options);
	wt_stream_open(&w, &s);
	create(&s, "a", "", 0);
	create(&s, "b", "", 0);
	for (int i = 0; i < 20; i++)
		wt_put(&w, "a", "value");
	wt_compact(&w, 15);
	while (store_trim(w.store, 100))
		;
	for (int i = 0; i < 10; i++) {
		wt_drain(&s);
		wt_run(&w);
	}
	const Etcdserverpb__WatchResponse *r, *last = NULL;
	while ((r = wt_next(&s)) != NULL)
		last = r;
	assert_int_equal(last->watch_id, 0);
	assert_true(last->canceled);
	assert_int_equal(last->compact_revision, 15);
	wt_put(&w, "b", "1");
	EXPECT(&s, "1/22: b=1@22v1c22");
	wt_stream_close(&s);
	wt_close(&w);
}

/* What counts is how far it was looked for, not how far something was found. */
static void test_passed_compaction(void **state)
{
	(void)state;
	struct wt_world w;
	struct wt_stream s;
	const struct watch_options options = {.stream_high_bytes = 400, .step_events = 4};
	wt_open(&w, &options);
	wt_stream_open(&w, &s);
	for (int i = 0; i < 40; i++)
		wt_put(&w, "a", "value");
	create(&s, "a", "", 2);
	create(&s, "b", "", 2);
	wt_run(&w); /* until it is full */
	struct watch_counts counts;
	watch_get_counts(w.set, &counts);
	assert_int_equal(counts.behind, 2);
	wt_compact(&w, 4);
	while (store_trim(w.store, 100))
		;
	wt_put(&w, "b", "1");
	for (int i = 0; i < 20; i++) {
		wt_drain(&s);
		wt_run(&w);
	}
	const Etcdserverpb__WatchResponse *r;
	size_t n_a = 0, n_b = 0;
	while ((r = wt_next(&s)) != NULL) {
		assert_false(r->canceled);
		n_a += r->watch_id == 0 ? r->n_events : 0;
		n_b += r->watch_id == 1 ? r->n_events : 0;
	}
	assert_int_equal(n_a, 40);
	assert_int_equal(n_b, 1);
	wt_stream_close(&s);
	wt_close(&w);
}

/* Much becomes visible at once, and a compaction with it: what it lets go of is fed first. */
static void test_feed_before_trim(void **state)
{
	(void)state;
	struct wt_world w;
	struct wt_stream s;
	const struct watch_options options = {.step_events = 1};
	wt_open(&w, &options);
	wt_stream_open(&w, &s);
	create(&s, "a", "", 0);
	for (int i = 0; i < 30; i++)
		wt_entry(&w, &(struct wt_change){"a", "value"}, 1);
	wt_compact(&w, 25);
	while (store_trim(w.store, 100))
		;
	wt_run(&w);
	const Etcdserverpb__WatchResponse *r;
	int64_t next = 2;
	while ((r = wt_next(&s)) != NULL) {
		assert_false(r->canceled);
		for (size_t i = 0; i < r->n_events; i++)
			assert_int_equal(r->events[i]->kv->mod_revision, next++);
	}
	assert_int_equal(next, 32);
	wt_stream_close(&s);
	wt_close(&w);
}

static void test_periodic_progress(void **state)
{
	(void)state;
	struct wt_world w;
	struct wt_stream s;
	const struct watch_options options = {.progress_interval_ms = 20};
	wt_open(&w, &options);
	wt_stream_open(&w, &s);
	Etcdserverpb__WatchCreateRequest r = request("a", "", 0);
	wt_create(&s, &r);
	r.progress_notify = true;
	wt_create(&s, &r);
	r.start_revision = 100;
	wt_create(&s, &r);
	wt_put(&w, "b", "1");
	wt_put(&w, "a", "1");
	for (int i = 0; i < 3; i++)
		(void)wt_next(&s);
	EXPECT(&s, "0/3: a=1@3v1c3");
	EXPECT(&s, "1/3: a=1@3v1c3");
	wt_put(&w, "b", "1");
	/* The first one is left out, for there was an event. */
	for (int n = 0; n < 3; n++) {
		while (s.n_read == s.n_got)
			ev_loop_once(w.loop, true);
		EXPECT(&s, "1/4:");
	}
	wt_stream_close(&s);
	wt_close(&w);
}

/* While the log is being loaded the store has a part of it: nobody is fed from that. */
static void test_paused(void **state)
{
	(void)state;
	struct wt_world w;
	struct wt_stream s;
	wt_open(&w, NULL);
	wt_stream_open(&w, &s);
	wt_put(&w, "a", "v");
	create(&s, "a", "", 0);
	create(&s, "a", "", 2);
	EXPECT(&s, "0/2: created");
	EXPECT(&s, "1/2: created");
	watch_pause(w.set);
	wt_reload(&w);
	wt_run(&w);
	wt_put(&w, "a", "w");
	wt_run(&w);
	EXPECT(&s, "-");
	watch_reloaded(w.set, false);
	wt_run(&w);
	EXPECT(&s, "0/3: a=w@3v2c2");
	EXPECT(&s, "1/3: a=v@2v1c2 a=w@3v2c2");
	EXPECT(&s, "-");
	wt_stream_close(&s);
	wt_close(&w);
}

static void test_reload(void **state)
{
	(void)state;
	struct wt_world w;
	struct wt_stream s;
	wt_open(&w, NULL);
	wt_stream_open(&w, &s);
	for (int i = 0; i < 4; i++)
		wt_put(&w, "a", "v"); /* 2 to 5 */
	create(&s, "a", "", 0);
	create(&s, "a", "", 9);
	EXPECT(&s, "0/5: created");
	EXPECT(&s, "1/5: created");
	/* Entries that other nodes made, seen by the load only. */
	wt_entry(&w, &(struct wt_change){"a", "6"}, 1);
	wt_reload(&w);
	watch_reloaded(w.set, false);
	wt_run(&w);
	EXPECT(&s, "0/6: a=6@6v5c2");
	EXPECT(&s, "-");
	/* Compaction has passed by meanwhile: the gap is told, never left out. */
	wt_entry(&w, &(struct wt_change){"a", "7"}, 1);
	wt_entry(&w, &(struct wt_change){"a", "8"}, 1);
	store_begin(w.store);
	store_compact(w.store, 8);
	(void)store_end(w.store);
	wt_reload(&w);
	watch_reloaded(w.set, false);
	wt_run(&w);
	EXPECT(&s, "0/0: canceled() compact 8");
	EXPECT(&s, "-");
	wt_put(&w, "a", "9");
	EXPECT(&s, "1/9: a=9@9v8c2");
	/* The database went back. */
	create(&s, "a", "", 9);
	wt_reload(&w);
	watch_reloaded(w.set, true);
	wt_run(&w);
	EXPECT(&s, "2/9: created");
	EXPECT(&s, "1/9: canceled(etcdserver: the database went back, its history is another)");
	EXPECT(&s, "2/9: canceled(etcdserver: the database went back, its history is another)");
	EXPECT(&s, "-");
	struct watch_counts counts;
	watch_get_counts(w.set, &counts);
	assert_int_equal(counts.watchers, 0);
	wt_stream_close(&s);
	wt_close(&w);
}

/* A thousand watchers of a prefix, and each event is encoded once and sent by reference. */
static void test_sharing(void **state)
{
	(void)state;
	struct wt_world w;
	struct wt_stream s[10];
	wt_open(&w, NULL);
	for (size_t i = 0; i < ARRAY_LEN(s); i++) {
		wt_stream_open(&w, &s[i]);
		for (size_t j = 0; j < 100; j++) {
			Etcdserverpb__WatchCreateRequest r = request("a", "b", 0);
			r.prev_kv = j % 2 == 1;
			wt_create(&s[i], &r);
		}
	}
	char big[1001];
	memset(big, 'x', 1000);
	big[1000] = '\0';
	wt_put(&w, "a", big);
	wt_put(&w, "a", big);
	const void *shared = s[0].last_shared;
	struct watch_counts counts;
	watch_get_counts(w.set, &counts);
	assert_int_equal(counts.events_encoded, 3); /* the first had no previous version */
	assert_int_equal(counts.events_sent, 2000);
	for (size_t i = 0; i < ARRAY_LEN(s); i++) {
		assert_int_equal(s[i].n_shared, 200);
		assert_ptr_equal(s[i].last_shared, shared);
		wt_stream_close(&s[i]);
	}
	wt_close(&w);
}

/* All kinds of watchers of one interval, each gets its own, and one that begins amid a round. */
static void test_kinds(void **state)
{
	(void)state;
	struct wt_world w;
	struct wt_stream s;
	wt_open(&w, &(struct watch_options){.fragment_bytes = 20});
	wt_stream_open(&w, &s);
	wt_put(&w, "a", "0"); /* 2 */
	for (int i = 0; i < 16; i++) {
		Etcdserverpb__WatchCreateRequest r = request("a", "", 0);
		Etcdserverpb__WatchCreateRequest__FilterType filters[2];
		r.filters = filters;
		for (unsigned f = 0; f < 2; f++)
			if ((i & 1 << f) != 0)
				filters[r.n_filters++] =
					(Etcdserverpb__WatchCreateRequest__FilterType)f;
		r.prev_kv = (i & 4) != 0;
		r.fragment = (i & 8) != 0;
		wt_create(&s, &r);
		(void)wt_next(&s);
	}
	create(&s, "a", "", 4);
	(void)wt_next(&s);
	wt_entry(&w, &(struct wt_change){"a", "1"}, 1);
	wt_entry(&w, &(struct wt_change){"a", NULL}, 1);
	wt_commit(&w);
	static const char *const kinds[] = {"%d/4: a=1@3v2c2 -a@4", "%d/4: -a@4", "%d/4: a=1@3v2c2",
		NULL, "%d/4: a=1@3v2c2(a=0@2v1c2) -a@4(a=1@3v2c2)", "%d/4: -a@4(a=1@3v2c2)",
		"%d/4: a=1@3v2c2(a=0@2v1c2)", NULL, "%d/4: fragment a=1@3v2c2", "%d/4: -a@4",
		"%d/4: a=1@3v2c2", NULL, "%d/4: fragment a=1@3v2c2(a=0@2v1c2)",
		"%d/4: -a@4(a=1@3v2c2)", "%d/4: a=1@3v2c2(a=0@2v1c2)", NULL};
	for (int i = 0; i < 16; i++) {
		char text[80];
		if (kinds[i] == NULL)
			continue;
		snprintf(text, sizeof(text), kinds[i], i);
		EXPECT(&s, text);
		if (i == 8)
			EXPECT(&s, "8/4: -a@4");
		if (i == 12)
			EXPECT(&s, "12/4: -a@4(a=1@3v2c2)");
	}
	EXPECT(&s, "16/4: -a@4");
	EXPECT(&s, "-");
	wt_stream_close(&s);
	wt_close(&w);
}

/* Streams and watchers cost what etcd's do, or less (350 bytes a watcher, 18 kB a stream). */
static void test_memory(void **state)
{
	(void)state;
#ifdef HOWDAH_SANITIZER
	skip();
#else
	struct wt_world w;
	enum { STREAMS = 100, EACH = 1000 };
	struct wt_stream *s = xcalloc(STREAMS, sizeof(*s));
	wt_open(&w, NULL);
	size_t before = mallinfo2().uordblks;
	for (size_t i = 0; i < STREAMS; i++)
		s[i].st = watch_stream_new(w.set, &s[i]);
	size_t streams = mallinfo2().uordblks - before;
	/* Their answers are not counted. */
	for (size_t i = 0; i < STREAMS; i++) {
		for (size_t j = 0; j < EACH; j++) {
			char key[64], end[64];
			snprintf(key, sizeof(key), "/registry/pods/namespace-%zu/pod-%zu", i, j);
			snprintf(end, sizeof(end), "/registry/pods/namespace-%zu/pod-%zu0", i, j);
			create(&s[i], key, j % 2 == 0 ? "" : end, 0);
		}
		for (size_t k = 0; k < s[i].n_got; k++)
			etcdserverpb__watch_response__free_unpacked(s[i].got[k], NULL);
		free(s[i].got);
		s[i].got = NULL;
		s[i].n_got = s[i].cap_got = 0;
	}
	size_t all = mallinfo2().uordblks - before - streams;
	print_message(
		"%zu bytes a stream, %zu a watcher\n", streams / STREAMS, all / (STREAMS * EACH));
	assert_true(all / (STREAMS * EACH) <= 350);
	assert_true(streams / STREAMS <= 1000);
	for (size_t i = 0; i < STREAMS; i++)
		wt_stream_close(&s[i]);
	wt_close(&w);
	free(s);
#endif
}

/* A stream of very many watchers goes away in steps. */
static void test_burial(void **state)
{
	(void)state;
	struct wt_world w;
	struct wt_stream s, other;
	wt_open(&w, &(struct watch_options){.max_watchers_per_stream = 3000});
	wt_stream_open(&w, &s);
	wt_stream_open(&w, &other);
	create(&other, "a", "", 0);
	for (int i = 0; i < 3001; i++)
		create(&s, "a", i % 2 == 0 ? "" : "b", 0);
	assert_true(s.got[2999]->created && !s.got[2999]->canceled);
	assert_string_equal(s.got[3000]->cancel_reason, "etcdserver: too many requests");
	wt_stream_close(&s);
	struct watch_counts counts;
	watch_get_counts(w.set, &counts);
	assert_int_equal(counts.streams, 1);
	assert_in_range(counts.watchers, 2, 3000);
	wt_put(&w, "a", "1"); /* the dead hear nothing */
	watch_get_counts(w.set, &counts);
	assert_int_equal(counts.events_sent, 1);
	wt_run(&w);
	watch_get_counts(w.set, &counts);
	assert_int_equal(counts.watchers, 1);
	/* Also if the set goes first. */
	wt_stream_open(&w, &s);
	for (int i = 0; i < 3000; i++)
		create(&s, "a", "", i % 2);
	wt_stream_close(&s);
	wt_stream_close(&other);
	wt_close(&w);
}

struct numbers {
	uint64_t state;
	size_t left;
};

static uint32_t below(uint32_t n, void *arg)
{
	struct numbers *r = arg;
	r->state = r->state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
	return (uint32_t)(r->state >> 33) % n;
}

static bool is_over(void *arg)
{
	struct numbers *r = arg;
	return r->left-- == 0;
}

/* Every watcher sees exactly its events, in order, once. HOWDAH_SEED repeats a run, HOWDAH_ROUNDS
 * makes it longer. */
static void test_random(void **state)
{
	(void)state;
	const char *env = getenv("HOWDAH_SEED"), *rounds = getenv("HOWDAH_ROUNDS");
	uint64_t seed = env != NULL ? strtoull(env, NULL, 10) : (uint64_t)time(NULL) << 16;
	size_t n = rounds != NULL ? strtoul(rounds, NULL, 10) : 60;
	struct wm_counts sum = {0};
	print_message("HOWDAH_SEED=%llu\n", (unsigned long long)seed);
	for (size_t i = 0; i < n; i++, seed++) {
		struct numbers r = {.state = seed, .left = 3000};
		const struct wm_source src = {.below = below, .is_over = is_over, .arg = &r};
		struct wm_counts c;
		wm_run(&src, &c);
		sum.events += c.events;
		sum.compacted += c.compacted;
		sum.progress += c.progress;
		sum.fragments += c.fragments;
	}
	print_message("%llu events, %llu compacted, %llu progress, %llu fragments\n",
		(unsigned long long)sum.events, (unsigned long long)sum.compacted,
		(unsigned long long)sum.progress, (unsigned long long)sum.fragments);
	assert_true(sum.events > 0 && sum.compacted > 0 && sum.progress > 0 && sum.fragments > 0);
}

static void on_leak(const char *name, int64_t count, void *arg)
{
	(void)arg;
	print_message("%s: %lld\n", name, (long long)count);
}

static void test_no_leak(void **state)
{
	(void)state;
	assert_int_equal(mem_report(on_leak, NULL), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_live),
		cmocka_unit_test(test_answers),
		cmocka_unit_test(test_ranges),
		cmocka_unit_test(test_past_and_future),
		cmocka_unit_test(test_filters_and_prev),
		cmocka_unit_test(test_negative_start),
		cmocka_unit_test(test_compaction),
		cmocka_unit_test(test_fragments),
		cmocka_unit_test(test_slow_stream),
		cmocka_unit_test(test_slow_and_compacted),
		cmocka_unit_test(test_passed_compaction),
		cmocka_unit_test(test_feed_before_trim),
		cmocka_unit_test(test_periodic_progress),
		cmocka_unit_test(test_paused),
		cmocka_unit_test(test_reload),
		cmocka_unit_test(test_sharing),
		cmocka_unit_test(test_kinds),
		cmocka_unit_test(test_memory),
		cmocka_unit_test(test_burial),
		cmocka_unit_test(test_random),
		cmocka_unit_test(test_no_leak),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
