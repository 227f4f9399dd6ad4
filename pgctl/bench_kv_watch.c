/* SPDX-License-Identifier: PostgreSQL */
/*
 * Watchers under load, and single calls: see bench_kv.h.
 *
 * Context: the bench process; one event loop per measurement.
 */
#include "config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/buf.h"
#include "common/base/ev.h"
#include "common/base/mem.h"
#include "pgctl/bench_grpc.h"
#include "pgctl/bench_kv.h"

#define PATH_PUT "/etcdserverpb.KV/Put"
#define PATH_COMPACT "/etcdserverpb.KV/Compact"
#define PATH_WATCH "/etcdserverpb.Watch/Watch"
#define FIELD_HEADER 1
#define FIELD_HEADER_REVISION 3
#define FIELD_WATCH_CREATED 3
#define FIELD_WATCH_EVENTS 11
#define CONNECTIONS 10
#define PUT_CLIENTS 10
#define LATE_MS 120000
#define IDLE_US 5000
#define SETTLE_US 500000

/* ---- Answers --------------------------------------------------------------------------------- */

struct field {
	unsigned number;
	uint64_t varint;
	const uint8_t *bytes; /* NULL: a varint */
	size_t len;
};

static bool take_varint(const uint8_t **p, const uint8_t *end, uint64_t *ret)
{
	*ret = 0;
	for (unsigned shift = 0; *p < end && shift < 64; shift += 7) {
		uint8_t byte = *(*p)++;
		*ret |= (uint64_t)(byte & 0x7f) << shift;
		if ((byte & 0x80) == 0)
			return true;
	}
	return false;
}

/* The next field; false: the end, or nothing that these messages have. */
static bool take_field(const uint8_t **p, const uint8_t *end, struct field *ret)
{
	uint64_t tag;
	if (!take_varint(p, end, &tag) || !take_varint(p, end, &ret->varint))
		return false;
	ret->number = (unsigned)(tag >> 3);
	ret->bytes = NULL;
	if ((tag & 7) == 0)
		return true;
	if ((tag & 7) != 2 || ret->varint > (uint64_t)(end - *p))
		return false;
	ret->bytes = *p;
	ret->len = (size_t)ret->varint;
	*p += ret->len;
	return true;
}

uint64_t bench_kv_revision(const uint8_t *data, size_t len)
{
	struct field f, h;
	const uint8_t *end = data + len;
	while (take_field(&data, end, &f)) {
		const uint8_t *p = f.bytes, *header_end = f.bytes + f.len;
		while (f.number == FIELD_HEADER && p != NULL && take_field(&p, header_end, &h)) {
			if (h.number == FIELD_HEADER_REVISION)
				return h.varint;
		}
	}
	return 0;
}

/* ---- Watchers and puts ----------------------------------------------------------------------- */

struct run {
	struct bench *b;
	const struct bench_kv_server *server;
	struct ev_loop *loop;
	struct ev_timer timer;
	struct bench_grpc *watching, *putting;
	size_t n_watching; /* connections, one stream each */
	struct bench_call *streams;
	struct buf *creates; /* what each stream asks for */
	struct putter {
		struct bench_call call;
		struct run *run;
		struct buf framed;
	} putters[PUT_CLIENTS];
	size_t n_created, n_wanted;
	size_t puts_left, n_answered, n_puts;
	uint64_t n_events, events_wanted;
	uint64_t *sent_us; /* per put, in order of the calls */
	size_t n_sent;
	double *ms;
	uint64_t per_put; /* watchers of each key */
	uint64_t last_us;
	uint64_t revision;
	bool failed, late;
};

static int run_failed(struct run *r)
{
	return pgctl_fail(r->b->p, PGCTL_FAILED, "look whether this machine is overloaded",
		"the %s to be measured %s", r->server->name,
		r->late ? "does not answer in time" : "has refused a call or closed a connection");
}

static void on_late(void *arg)
{
	struct run *r = arg;
	r->late = true;
	ev_loop_stop(r->loop);
}

static void give_up(struct run *r)
{
	r->failed = true;
	ev_loop_stop(r->loop);
}

/* All have asked for all keys, so the n-th put is over when n times per_put events are there. */
static void on_events(struct run *r, uint64_t n)
{
	uint64_t before = r->per_put == 0 ? 0 : r->n_events / r->per_put;
	r->n_events += n;
	r->last_us = bench_now_us();
	for (uint64_t i = before; r->per_put != 0 && i < r->n_events / r->per_put && i < r->n_sent;
		i++)
		r->ms[i] = (double)(r->last_us - r->sent_us[i]) / 1000;
}

static void on_watch_message(struct bench_call *c, const uint8_t *data, size_t len)
{
	struct run *r = c->arg;
	const uint8_t *end = data + len;
	struct field f;
	uint64_t n = 0;
	while (take_field(&data, end, &f)) {
		n += f.number == FIELD_WATCH_EVENTS ? 1 : 0;
		r->n_created += f.number == FIELD_WATCH_CREATED && f.varint == 1 ? 1 : 0;
	}
	if (n > 0)
		on_events(r, n);
	if (r->n_created == r->n_wanted && r->n_events >= r->events_wanted &&
		r->n_answered == r->n_puts)
		ev_loop_stop(r->loop);
}

static void on_watch_end(struct bench_call *c, int grpc_status)
{
	(void)grpc_status;
	give_up(c->arg);
}

static void put_next(struct putter *p)
{
	struct run *r = p->run;
	struct buf message;
	if (r->puts_left == 0)
		return;
	r->puts_left--;
	buf_init(&message, 0);
	bench_kv_put_request(&message, r->n_sent % 100, r->n_sent);
	buf_reset(&p->framed);
	bench_pb_frame(&p->framed, &message);
	buf_free(&message);
	r->sent_us[r->n_sent++] = bench_now_us();
	bench_grpc_call(r->putting, (size_t)(p - r->putters), PATH_PUT, p->framed.data,
		p->framed.len_bytes, false, &p->call);
}

static void on_put_end(struct bench_call *c, int grpc_status)
{
	struct putter *p = c->arg;
	struct run *r = p->run;
	if (grpc_status != 0) {
		give_up(r);
		return;
	}
	r->n_answered++;
	put_next(p);
	if (r->n_answered == r->n_puts && r->n_events >= r->events_wanted)
		ev_loop_stop(r->loop);
}

/* Stream i watches: [from, to), or with one_key the key number `from` only. */
static void ask_for(struct run *r, size_t i, bool one_key, uint64_t key)
{
	struct buf create, request;
	char from[BENCH_KV_KEY_BYTES + 1];
	buf_init(&create, 0);
	buf_init(&request, 0);
	bench_kv_key(from, key);
	if (one_key) {
		bench_pb_bytes(&create, 1, from, BENCH_KV_KEY_BYTES);
	} else {
		bench_pb_bytes(&create, 1, "bench/", 6);
		bench_pb_bytes(&create, 2, "bench0", 6);
	}
	bench_pb_bytes(&request, 1, create.data, create.len_bytes);
	bench_pb_frame(&r->creates[i], &request);
	buf_free(&create);
	buf_free(&request);
	r->n_wanted++;
}

static int run_open(struct run *r, const struct bench_kv_server *watched, size_t n_watching)
{
	r->loop = ev_loop_new();
	ev_timer_init(&r->timer, r->loop, "bench late", on_late, r);
	r->n_watching = n_watching;
	r->streams = xcalloc(n_watching, sizeof(*r->streams));
	r->creates = xcalloc(n_watching, sizeof(*r->creates));
	for (size_t i = 0; i < n_watching; i++)
		buf_init(&r->creates[i], 0);
	for (size_t i = 0; i < PUT_CLIENTS; i++) {
		struct putter *p = &r->putters[i];
		*p = (struct putter){.call = {.on_end = on_put_end, .arg = p}, .run = r};
		buf_init(&p->framed, 0);
	}
	r->watching = bench_grpc_open(r->loop, watched->port, n_watching);
	r->putting = bench_grpc_open(r->loop, r->server->port, PUT_CLIENTS);
	return r->watching != NULL && r->putting != NULL ? PGCTL_OK : run_failed(r);
}

static void run_close(struct run *r)
{
	ev_timer_stop(&r->timer);
	bench_grpc_close(&r->watching);
	bench_grpc_close(&r->putting);
	for (size_t i = 0; i < r->n_watching; i++)
		buf_free(&r->creates[i]);
	for (size_t i = 0; i < PUT_CLIENTS; i++)
		buf_free(&r->putters[i].framed);
	free(r->streams);
	free(r->creates);
	free(r->sent_us);
	free(r->ms);
	ev_loop_free(&r->loop);
}

static int run_loop(struct run *r)
{
	ev_timer_start(&r->timer, LATE_MS);
	ev_loop_run(r->loop);
	return r->failed || r->late || bench_grpc_is_broken(r->watching) ||
			       bench_grpc_is_broken(r->putting)
		       ? run_failed(r)
		       : PGCTL_OK;
}

/* Opens the streams and waits until every watcher was created. */
static int run_create(struct run *r)
{
	for (size_t i = 0; i < r->n_watching; i++) {
		r->streams[i] = (struct bench_call){
			.on_message = on_watch_message, .on_end = on_watch_end, .arg = r};
		bench_grpc_call(r->watching, i, PATH_WATCH, r->creates[i].data,
			r->creates[i].len_bytes, true, &r->streams[i]);
	}
	return run_loop(r);
}

static int run_puts(struct run *r, size_t n, size_t clients, uint64_t per_put)
{
	r->puts_left = n;
	r->n_puts += n;
	r->events_wanted += n * per_put;
	r->per_put = per_put;
	for (size_t i = 0; i < clients; i++)
		put_next(&r->putters[i]);
	return run_loop(r);
}

static void alloc_puts(struct run *r, size_t n)
{
	r->sent_us = xcalloc(n, sizeof(*r->sent_us));
	r->ms = xcalloc(n, sizeof(*r->ms));
}

static void sum_up(struct run *r, double seconds, struct bench_kv_result *ret)
{
	size_t n = r->n_puts;
	ret->n = r->n_events;
	ret->per_s = (double)r->n_events / seconds;
	ret->p50_ms = bench_median(r->ms, n); /* sorts */
	ret->p99_ms = r->ms[n - 1 - n / 100];
	ret->max_ms = r->ms[n - 1];
}

/* ---- What is measured ------------------------------------------------------------------------ */

int bench_kv_watch(struct bench *b, const struct bench_kv_server *s, size_t watchers, size_t puts,
	struct bench_kv_result *ret)
{
	struct run r = {.b = b, .server = s};
	int status = run_open(&r, s, CONNECTIONS);
	uint64_t began;
	for (size_t i = 0; i < watchers; i++)
		ask_for(&r, i % CONNECTIONS, false, 0);
	alloc_puts(&r, puts);
	if (status == PGCTL_OK)
		status = run_create(&r);
	began = bench_now_us();
	if (status == PGCTL_OK)
		status = run_puts(&r, puts, PUT_CLIENTS, watchers);
	if (status == PGCTL_OK)
		sum_up(&r, (double)(r.last_us - began) / 1e6, ret);
	run_close(&r);
	return status;
}

int bench_kv_put_to_event(struct bench *b, const struct bench_kv_server *s,
	const struct bench_kv_server *at, size_t n, struct bench_kv_result *ret)
{
	struct run r = {.b = b, .server = s};
	int status = run_open(&r, at, 1);
	uint64_t began;
	ask_for(&r, 0, false, 0);
	alloc_puts(&r, n);
	if (status == PGCTL_OK)
		status = run_create(&r);
	began = bench_now_us();
	for (size_t i = 0; i < n && status == PGCTL_OK; i++) {
		bench_pause_us(IDLE_US);
		status = run_puts(&r, 1, 1, 1);
	}
	if (status == PGCTL_OK)
		sum_up(&r, (double)(r.last_us - began) / 1e6, ret);
	run_close(&r);
	return status;
}

/* VmRSS in bytes. */
double bench_kv_rss(const struct bench_kv_server *s)
{
	char path[40], line[200];
	double kb = 0;
	snprintf(path, sizeof(path), "/proc/%d/status", (int)s->pid);
	FILE *f = fopen(path, "re");
	while (f != NULL && fgets(line, sizeof(line), f) != NULL) {
		if (strncmp(line, "VmRSS:", 6) == 0)
			kb = strtod(line + 6, NULL);
	}
	if (f != NULL)
		fclose(f);
	return kb * 1024;
}

int bench_kv_watcher_bytes(
	struct bench *b, const struct bench_kv_server *s, size_t n, double *ret_bytes)
{
	struct run r = {.b = b, .server = s};
	int status = run_open(&r, s, CONNECTIONS);
	for (size_t i = 0; i < n; i++)
		ask_for(&r, i % CONNECTIONS, true, i);
	bench_pause_us(SETTLE_US);
	double before = bench_kv_rss(s);
	if (status == PGCTL_OK)
		status = run_create(&r);
	bench_pause_us(SETTLE_US);
	*ret_bytes = (bench_kv_rss(s) - before) / (double)n;
	run_close(&r);
	return status;
}

/* ---- Compaction ------------------------------------------------------------------------------ */

struct single {
	struct bench_call call;
	struct ev_loop *loop;
	uint64_t revision;
	int status;
};

static void on_single_message(struct bench_call *c, const uint8_t *data, size_t len)
{
	struct single *one = c->arg;
	one->revision = bench_kv_revision(data, len);
}

static void on_single_end(struct bench_call *c, int grpc_status)
{
	struct single *one = c->arg;
	one->status = grpc_status;
	ev_loop_stop(one->loop);
}

static bool call_once(struct bench_grpc *g, struct ev_loop *loop, const char *path,
	const struct buf *message, uint64_t *ret_revision)
{
	struct single one = {.loop = loop, .status = -1};
	struct buf framed;
	one.call = (struct bench_call){
		.on_message = on_single_message, .on_end = on_single_end, .arg = &one};
	buf_init(&framed, 0);
	bench_pb_frame(&framed, message);
	bench_grpc_call(g, 0, path, framed.data, framed.len_bytes, false, &one.call);
	ev_loop_run(loop);
	buf_free(&framed);
	*ret_revision = one.revision;
	return one.status == 0;
}

int bench_kv_compact(struct bench *b, const struct bench_kv_server *s, uint64_t keep)
{
	struct run r = {.b = b, .server = s, .loop = ev_loop_new()};
	struct buf message;
	uint64_t revision = 0;
	struct bench_grpc *g = bench_grpc_open(r.loop, s->port, 1);
	ev_timer_init(&r.timer, r.loop, "bench late", on_late, &r);
	ev_timer_start(&r.timer, LATE_MS);
	buf_init(&message, 0);
	bench_kv_put_request(&message, 0, 0);
	bool ok = g != NULL && call_once(g, r.loop, PATH_PUT, &message, &revision);
	buf_reset(&message);
	bench_pb_varint(&message, 1, revision > keep ? revision - keep : 1);
	ok = ok && call_once(g, r.loop, PATH_COMPACT, &message, &revision);
	buf_free(&message);
	ev_timer_stop(&r.timer);
	bench_grpc_close(&g);
	ev_loop_free(&r.loop);
	return ok ? PGCTL_OK : run_failed(&r);
}
