/* SPDX-License-Identifier: PostgreSQL */
/*
 * The event loop: one libevent base per process, embedded events with names, a deferred list that
 * is drained once per pass, timers on CLOCK_MONOTONIC, and a watch on callbacks that take longer
 * than EV_SLOW_MS (logged with their name and counted).
 *
 * Context: the process's only event thread. Nothing that a callback calls may block.
 */
#ifndef COMMON_BASE_EV_H
#define COMMON_BASE_EV_H

#include <stdbool.h>
#include <stdint.h>

#include <event2/event.h>
#include <event2/event_struct.h>

#include "common/base/list.h"

#define EV_SLOW_MS 50

struct ev_loop;

struct ev_loop *ev_loop_new(void);
/* Runs what is still deferred, then frees. All ev_io and ev_timer must be stopped. Nulls *loop. */
void ev_loop_free(struct ev_loop **loop);
/* Returns after ev_loop_stop: each pass is EVLOOP_ONCE, then the deferred list. */
void ev_loop_run(struct ev_loop *loop);
/* One pass; blocks for an event if may_block. For tests. */
void ev_loop_once(struct ev_loop *loop, bool may_block);
void ev_loop_stop(struct ev_loop *loop);

/*
 * Busy polling: before the loop sleeps it looks for events again and again, for us microseconds at
 * most (0, as at first: not at all). A sleep that is over soon costs two wake-ups of a CPU, which
 * is more than the rest of a small request, above all on virtual machines. Only while it pays and
 * disturbs nobody: after EV_POLL_AFTER waits in a row, each over within us by one callback alone
 * (with more at once, they share a wake-up), and if we have another CPU. Other threads are let in
 * first; when that took longer than EV_POLL_YIELD_US, the CPU is wanted, and the loop sleeps as
 * usual for EV_POLL_REST_MS, each time twice as long until it paid again. (Letting them in between
 * the looks, too, gains nothing: the kernel puts whom the server wakes before its answer in our
 * place just when the answer comes.) How many CPUs there are is read here; a quota of CPU time is
 * not seen.
 */
#define EV_POLL_AFTER 2
#define EV_POLL_YIELD_US 200
#define EV_POLL_REST_MS 10
#define EV_POLL_REST_MAX_MS 1000
void ev_loop_set_busy_poll(struct ev_loop *loop, unsigned us);
struct ev_poll_counts {
	uint64_t polls,  /* times that it was done */
		caught,  /* an event came */
		yielded; /* another thread wanted the CPU */
};
void ev_loop_get_poll_counts(const struct ev_loop *loop, struct ev_poll_counts *ret_counts);

/* For evdns and the like, whose callbacks are not measured. Borrowed. */
struct event_base *ev_loop_base(struct ev_loop *loop);
/* How many callbacks were slow so far. */
uint64_t ev_loop_slow_count(const struct ev_loop *loop);

/* CLOCK_MONOTONIC, read now. */
uint64_t ev_now_ms(void);
uint64_t ev_now_us(void);

/*
 * Descriptor events. Embed it; name is borrowed and shows in slow-callback lines. what passed to
 * the callback is EV_READ | EV_WRITE | EV_TIMEOUT bits. The callback may stop or re-init its own
 * ev_io, but memory that holds it is freed by ev_defer only.
 */
struct ev_io {
	struct event ev;
	struct ev_loop *loop;
	const char *name;
	void (*cb)(int fd, short what, void *arg);
	void *arg;
	bool active;
};

void ev_io_init(struct ev_io *io, struct ev_loop *loop, const char *name,
	void (*cb)(int fd, short what, void *arg), void *arg);
/* what: EV_READ and/or EV_WRITE, always persistent. Changing fd or what on an active one is fine;
 * the same again is free. what == 0 stops. Stop before the descriptor is closed: a new descriptor
 * of the same number would look like "the same again". */
void ev_io_set(struct ev_io *io, int fd, short what);
void ev_io_stop(struct ev_io *io);

/* One-shot timer. Embed it. */
struct ev_timer {
	struct event ev;
	struct ev_loop *loop;
	const char *name;
	void (*cb)(void *arg);
	void *arg;
	uint64_t due_us;
	bool active;
};

void ev_timer_init(struct ev_timer *t, struct ev_loop *loop, const char *name,
	void (*cb)(void *arg), void *arg);
/* Starts or restarts. */
void ev_timer_start(struct ev_timer *t, uint64_t after_ms);
void ev_timer_stop(struct ev_timer *t);

/* Signal events; embed. */
struct ev_signal {
	struct event ev;
	struct ev_loop *loop;
	void (*cb)(int signo, void *arg);
	void *arg;
	bool active;
};

void ev_signal_start(struct ev_signal *s, struct ev_loop *loop, int signo,
	void (*cb)(int signo, void *arg), void *arg);
void ev_signal_stop(struct ev_signal *s);

/*
 * Work for the end of this pass, in order, after all callbacks: freeing objects that a callback may
 * still be using, flushing what several callbacks added to. Embed it; queueing it again before it
 * ran is free. Work deferred by deferred work runs in the next pass, which then does not block.
 */
struct ev_deferred {
	struct list node;
	void (*cb)(void *arg);
	void *arg;
	bool queued;
};

void ev_defer(struct ev_loop *loop, struct ev_deferred *d, void (*cb)(void *arg), void *arg);
/*
 * The loop rests for us microseconds (at most EV_REST_MAX_US) before its next poll, whatever
 * becomes ready meanwhile, and d is deferred to the end of that pass: as ev_defer, but for the
 * rest in front. Of several requests the shortest counts. For a source whose pieces come one by
 * one and fast: a wake-up for each would cost more than all the work.
 */
#define EV_REST_MAX_US 3000
void ev_loop_rest(
	struct ev_loop *loop, unsigned us, struct ev_deferred *d, void (*cb)(void *arg), void *arg);
/* Takes it off again, if it is queued. */
void ev_defer_cancel(struct ev_loop *loop, struct ev_deferred *d);

/*
 * Exponential backoff with jitter: base·2^n up to cap, times 0.75 … 1.25.
 */
struct ev_backoff {
	uint32_t base_ms;
	uint32_t cap_ms;
	uint32_t attempt;
};

/* The next delay; counts the attempt. */
uint32_t ev_backoff_next_ms(struct ev_backoff *b);
static inline void ev_backoff_reset(struct ev_backoff *b)
{
	b->attempt = 0;
}
#define EV_STEADY_MS 60000
/* What the last attempt led to has ended after lasted_ms: if that was EV_STEADY_MS or more the next
 * delay is short again. What breaks sooner each time is no success, though it begins well. */
static inline void ev_backoff_lasted(struct ev_backoff *b, uint64_t lasted_ms)
{
	if (lasted_ms >= EV_STEADY_MS)
		ev_backoff_reset(b);
}

#endif
