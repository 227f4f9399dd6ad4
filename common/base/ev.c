/* SPDX-License-Identifier: PostgreSQL */
/*
 * The event loop over libevent's core: every callback of ours goes through a trampoline here, which
 * measures it (evdns has its own events in the base).
 *
 * Invariants:
 *  1. A deferred object is in at most one list: pending (next drain), running (this drain) or
 *     resting (the drain after the rest).
 *  2. A timer's callback never runs before its due time: libevent reads a coarse clock that lags by
 *     up to a tick, so an early one is put back for the rest.
 *  3. When the loop is freed no descriptor event and no timer is active.
 *  4. The loop does not sleep while deferred work is pending.
 * The slow-callback warning is, next to ASSERT, the only line above debug that common/ writes: only
 * this place knows, and no caller could be told while the loop stands still.
 */
#include "config.h"

#include <errno.h>
#include <sched.h>
#include <string.h>
#include <time.h>

#include "common/base/ev.h"
#include "common/base/list.h"
#include "common/base/log.h"
#include "common/base/mem.h"

#define EV_LOOP_MAGIC 0x65764c50U

struct ev_loop {
	uint32_t magic;
	struct event_base *base;
	struct list pending;
	struct list running;
	struct list resting; /* becomes pending after the rest */
	bool stop;
	unsigned rest_us; /* before the next poll; 0: none */
	uint64_t n_slow;
	unsigned n_called; /* callbacks of events in this wait */
	uint64_t woken_us; /* when the first of them began */
	/* Busy polling. */
	unsigned poll_us;
	unsigned n_quick;       /* waits in a row that it would have paid for */
	uint64_t poll_after_us; /* not before: others wanted the CPU */
	unsigned poll_rest_ms;  /* the next time that they do */
	struct ev_poll_counts poll_counts;
	size_t n_active; /* descriptor events and timers, invariant 3 */
};

MEM_TYPE(type_loop, "event loop");

static uint64_t now_ns(void)
{
	struct timespec ts;
	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000U + (uint64_t)ts.tv_nsec;
}

uint64_t ev_now_ms(void)
{
	return now_ns() / 1000000;
}

uint64_t ev_now_us(void)
{
	return now_ns() / 1000;
}

struct ev_loop *ev_loop_new(void)
{
	struct ev_loop *loop = mem_new(&type_loop, sizeof(*loop));
	loop->magic = EV_LOOP_MAGIC;
	list_init(&loop->pending);
	list_init(&loop->running);
	list_init(&loop->resting);
	/* Without the cached clock a timer started at the end of a long callback keeps its full
	 * time. */
	struct event_config *config = event_config_new();
	ASSERT(config != NULL);
	event_config_set_flag(config, EVENT_BASE_FLAG_NO_CACHE_TIME);
	loop->base = event_base_new_with_config(config);
	event_config_free(config);
	ASSERT(loop->base != NULL);
	return loop;
}

/* The beginning of an event's callback. */
static void note_call(struct ev_loop *loop, uint64_t start_us)
{
	if (loop->n_called++ == 0)
		loop->woken_us = start_us;
}

/* The end of a callback that began at start_us. */
static void note_duration(struct ev_loop *loop, const char *name, uint64_t start_us)
{
	uint64_t took_us = ev_now_us() - start_us;
	if (took_us <= EV_SLOW_MS * 1000)
		return;
	loop->n_slow++;
	log_limited(LOG_LEVEL_WARNING, "ev.slow",
		"callback %s held the event loop for %u ms, everything else waited", name,
		(unsigned)(took_us / 1000));
}

static void drain_deferred(struct ev_loop *loop)
{
	ASSERT(list_empty(&loop->running));
	list_splice_back(&loop->running, &loop->pending);
	while (!list_empty(&loop->running)) {
		struct ev_deferred *d = list_first(&loop->running, struct ev_deferred, node);
		list_remove(&d->node);
		d->queued = false;
		uint64_t start_us = ev_now_us();
		d->cb(d->arg); /* may free d */
		note_duration(loop, "deferred work", start_us);
	}
}

void ev_loop_free(struct ev_loop **loop_ptr)
{
	struct ev_loop *loop = *loop_ptr;
	*loop_ptr = NULL;
	if (loop == NULL)
		return;
	OBJ_CHECK(loop, EV_LOOP_MAGIC);
	list_splice_back(&loop->pending, &loop->resting);
	while (!list_empty(&loop->pending))
		drain_deferred(loop);
	ASSERT(loop->n_active == 0); /* invariant 3 */
	event_base_free(loop->base);
	loop->magic = 0;
	mem_free(&type_loop, loop);
}

void ev_loop_rest(
	struct ev_loop *loop, unsigned us, struct ev_deferred *d, void (*cb)(void *arg), void *arg)
{
	OBJ_CHECK(loop, EV_LOOP_MAGIC);
	if (us > EV_REST_MAX_US)
		us = EV_REST_MAX_US;
	if (loop->rest_us == 0 || us < loop->rest_us)
		loop->rest_us = us;
	if (d->queued)
		return;
	*d = (struct ev_deferred){.cb = cb, .arg = arg, .queued = true};
	list_push_back(&loop->resting, &d->node);
}

/* A plain sleep: a timer of the poll's own precision costs the same wake-up, and two more calls. */
static void rest(struct ev_loop *loop)
{
	const struct timespec ts = {.tv_nsec = (long)loop->rest_us * 1000};
	loop->rest_us = 0;
	list_splice_back(&loop->pending, &loop->resting);
	(void)nanosleep(&ts, NULL); /* a signal may end it early: then something is to be done */
}

static void look(struct ev_loop *loop, int flags)
{
	int rc = event_base_loop(loop->base, EVLOOP_ONCE | EVLOOP_NO_EXIT_ON_EMPTY | flags);
	ASSERT(rc >= 0);
}

/* Callbacks have run, or something else is to be done (invariant 4). */
static bool is_awake(const struct ev_loop *loop)
{
	return loop->n_called > 0 || !list_empty(&loop->pending) || loop->rest_us != 0 ||
	       loop->stop;
}

/* Lets others have the CPU. False: they want it. */
static bool has_spare_cpu(struct ev_loop *loop, uint64_t start_us)
{
	(void)sched_yield();
	uint64_t now_us = ev_now_us();
	if (now_us - start_us <= EV_POLL_YIELD_US)
		return true;
	loop->poll_counts.yielded++;
	loop->poll_after_us = now_us + (uint64_t)loop->poll_rest_ms * 1000;
	loop->poll_rest_ms *= 2;
	if (loop->poll_rest_ms > EV_POLL_REST_MAX_MS)
		loop->poll_rest_ms = EV_POLL_REST_MAX_MS;
	return false;
}

/* True: an event came, and its callback has run. */
static bool busy_poll(struct ev_loop *loop, uint64_t start_us)
{
	loop->poll_counts.polls++;
	if (!has_spare_cpu(loop, start_us))
		return false;
	do {
		look(loop, EVLOOP_NONBLOCK);
		if (is_awake(loop)) {
			loop->poll_counts.caught++;
			loop->poll_rest_ms = EV_POLL_REST_MS;
			return true;
		}
	} while (ev_now_us() - start_us < loop->poll_us);
	return false;
}

/* Until there is something to do. */
static void await(struct ev_loop *loop)
{
	if (loop->poll_us == 0) {
		look(loop, 0);
		return;
	}
	loop->n_called = 0;
	look(loop, EVLOOP_NONBLOCK);
	if (is_awake(loop))
		return;
	uint64_t start_us = ev_now_us();
	bool pays = loop->n_quick >= EV_POLL_AFTER && start_us >= loop->poll_after_us;
	if (!pays || !busy_poll(loop, start_us))
		look(loop, 0);
	if (loop->n_called == 1 && loop->woken_us - start_us < loop->poll_us)
		loop->n_quick++;
	else
		loop->n_quick = 0;
}

void ev_loop_once(struct ev_loop *loop, bool may_block)
{
	OBJ_CHECK(loop, EV_LOOP_MAGIC);
	if (loop->rest_us != 0 && !loop->stop)
		rest(loop);
	if (may_block && list_empty(&loop->pending))
		await(loop);
	else
		look(loop, EVLOOP_NONBLOCK);
	drain_deferred(loop);
}

void ev_loop_set_busy_poll(struct ev_loop *loop, unsigned us)
{
	cpu_set_t cpus;
	OBJ_CHECK(loop, EV_LOOP_MAGIC);
	bool alone = sched_getaffinity(0, sizeof(cpus), &cpus) == 0 && CPU_COUNT(&cpus) < 2;
	loop->poll_us = alone ? 0 : us;
	loop->n_quick = 0;
	loop->poll_after_us = 0;
	loop->poll_rest_ms = EV_POLL_REST_MS;
}

void ev_loop_get_poll_counts(const struct ev_loop *loop, struct ev_poll_counts *ret_counts)
{
	OBJ_CHECK(loop, EV_LOOP_MAGIC);
	*ret_counts = loop->poll_counts;
}

void ev_loop_run(struct ev_loop *loop)
{
	while (!loop->stop)
		ev_loop_once(loop, true);
	loop->stop = false;
}

void ev_loop_stop(struct ev_loop *loop)
{
	OBJ_CHECK(loop, EV_LOOP_MAGIC);
	loop->stop = true;
}

struct event_base *ev_loop_base(struct ev_loop *loop)
{
	OBJ_CHECK(loop, EV_LOOP_MAGIC);
	return loop->base;
}

uint64_t ev_loop_slow_count(const struct ev_loop *loop)
{
	return loop->n_slow;
}

/* ---- descriptors ---- */

static void on_io(evutil_socket_t fd, short what, void *arg)
{
	struct ev_io *io = arg;
	struct ev_loop *loop = io->loop;
	const char *name = io->name;
	OBJ_CHECK(loop, EV_LOOP_MAGIC);
	uint64_t start_us = ev_now_us();
	note_call(loop, start_us);
	io->cb(fd, what, io->arg);
	note_duration(loop, name, start_us);
}

void ev_io_init(struct ev_io *io, struct ev_loop *loop, const char *name,
	void (*cb)(int fd, short what, void *arg), void *arg)
{
	OBJ_CHECK(loop, EV_LOOP_MAGIC);
	*io = (struct ev_io){.loop = loop, .name = name, .cb = cb, .arg = arg};
}

void ev_io_set(struct ev_io *io, int fd, short what)
{
	what &= EV_READ | EV_WRITE;
	if (what == 0) {
		ev_io_stop(io);
		return;
	}
	if (io->active && event_get_fd(&io->ev) == fd &&
		event_get_events(&io->ev) == (what | EV_PERSIST))
		return;
	ASSERT(fd >= 0);
	ev_io_stop(io);
	int rc = event_assign(&io->ev, io->loop->base, fd, (short)(what | EV_PERSIST), on_io, io);
	ASSERT(rc == 0);
	rc = event_add(&io->ev, NULL);
	ASSERT(rc == 0);
	io->active = true;
	io->loop->n_active++;
}

void ev_io_stop(struct ev_io *io)
{
	if (!io->active)
		return;
	event_del(&io->ev);
	io->active = false;
	ASSERT(io->loop->n_active > 0);
	io->loop->n_active--;
}

/* ---- timers ---- */

static void timer_add(struct ev_timer *t, uint64_t after_us)
{
	struct timeval tv = {.tv_sec = (time_t)(after_us / 1000000),
		.tv_usec = (suseconds_t)(after_us % 1000000)};
	int rc = event_add(&t->ev, &tv);
	ASSERT(rc == 0);
}

static void on_timer(evutil_socket_t fd, short what, void *arg)
{
	(void)fd;
	(void)what;
	struct ev_timer *t = arg;
	struct ev_loop *loop = t->loop;
	const char *name = t->name;
	OBJ_CHECK(loop, EV_LOOP_MAGIC);
	uint64_t start_us = ev_now_us();
	if (start_us < t->due_us) { /* invariant 2 */
		timer_add(t, t->due_us - start_us);
		return;
	}
	note_call(loop, start_us);
	t->active = false;
	loop->n_active--;
	t->cb(t->arg);
	note_duration(loop, name, start_us);
}

void ev_timer_init(struct ev_timer *t, struct ev_loop *loop, const char *name,
	void (*cb)(void *arg), void *arg)
{
	OBJ_CHECK(loop, EV_LOOP_MAGIC);
	*t = (struct ev_timer){.loop = loop, .name = name, .cb = cb, .arg = arg};
	int rc = evtimer_assign(&t->ev, loop->base, on_timer, t);
	ASSERT(rc == 0);
}

void ev_timer_start(struct ev_timer *t, uint64_t after_ms)
{
	/* A century: far from what overflows, and nobody waits for it. */
	if (after_ms > UINT64_C(3155760000000))
		after_ms = UINT64_C(3155760000000);
	t->due_us = ev_now_us() + after_ms * 1000;
	timer_add(t, after_ms * 1000);
	if (!t->active) {
		t->active = true;
		t->loop->n_active++;
	}
}

void ev_timer_stop(struct ev_timer *t)
{
	if (!t->active)
		return;
	event_del(&t->ev);
	t->active = false;
	ASSERT(t->loop->n_active > 0);
	t->loop->n_active--;
}

/* ---- signals ---- */

static void on_signal(evutil_socket_t signo, short what, void *arg)
{
	(void)what;
	struct ev_signal *s = arg;
	struct ev_loop *loop = s->loop;
	OBJ_CHECK(loop, EV_LOOP_MAGIC);
	uint64_t start_us = ev_now_us();
	note_call(loop, start_us);
	s->cb((int)signo, s->arg);
	note_duration(loop, "signal", start_us);
}

void ev_signal_start(struct ev_signal *s, struct ev_loop *loop, int signo,
	void (*cb)(int signo, void *arg), void *arg)
{
	OBJ_CHECK(loop, EV_LOOP_MAGIC);
	*s = (struct ev_signal){.loop = loop, .cb = cb, .arg = arg, .active = true};
	int rc = evsignal_assign(&s->ev, loop->base, signo, on_signal, s);
	ASSERT(rc == 0);
	rc = evsignal_add(&s->ev, NULL);
	ASSERT(rc == 0);
}

void ev_signal_stop(struct ev_signal *s)
{
	if (!s->active)
		return;
	evsignal_del(&s->ev);
	s->active = false;
}

/* ---- deferred work ---- */

void ev_defer(struct ev_loop *loop, struct ev_deferred *d, void (*cb)(void *arg), void *arg)
{
	OBJ_CHECK(loop, EV_LOOP_MAGIC);
	d->cb = cb;
	d->arg = arg;
	if (d->queued)
		return;
	d->queued = true;
	list_push_back(&loop->pending, &d->node);
}

void ev_defer_cancel(struct ev_loop *loop, struct ev_deferred *d)
{
	OBJ_CHECK(loop, EV_LOOP_MAGIC);
	if (!d->queued)
		return;
	list_remove(&d->node);
	d->queued = false;
}

/* ---- backoff ---- */

uint32_t ev_backoff_next_ms(struct ev_backoff *b)
{
	uint64_t delay_ms = b->cap_ms;
	if (b->attempt < 32 && (uint64_t)b->base_ms << b->attempt < b->cap_ms)
		delay_ms = (uint64_t)b->base_ms << b->attempt;
	if (b->attempt < UINT32_MAX)
		b->attempt++;
	uint32_t random;
	evutil_secure_rng_get_bytes(&random, sizeof(random));
	/* 0.75 … 1.25, so that what fell together does not come back together. */
	delay_ms = delay_ms * 3 / 4 + delay_ms / 2 * random / UINT32_MAX;
	return delay_ms > UINT32_MAX ? UINT32_MAX : (uint32_t)delay_ms;
}
