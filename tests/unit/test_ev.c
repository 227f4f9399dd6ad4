/* SPDX-License-Identifier: PostgreSQL */
/* The event loop: descriptors, timers, signals, deferred work, slow callbacks, backoff. */
#include "config.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/base/ev.h"
#include "common/base/mem.h"
#include "tests/unit/helper_assert.h"

struct probe {
	struct ev_loop *loop;
	struct ev_io io;
	struct ev_timer timer;
	struct ev_deferred first, second;
	int fds[2];
	int n_io, n_timer, n_signal, n_deferred;
	short what;
	char order[16];
	uint64_t fired_us;
};

static int setup(void **state)
{
	struct probe *p = xcalloc(1, sizeof(*p));
	p->loop = ev_loop_new();
	*state = p;
	return pipe(p->fds);
}

static int teardown(void **state)
{
	struct probe *p = *state;
	ev_io_stop(&p->io);
	ev_timer_stop(&p->timer);
	ev_loop_free(&p->loop);
	int rc = p->loop == NULL ? 0 : -1;
	close(p->fds[0]);
	close(p->fds[1]);
	free(p);
	return rc;
}

static void on_io(int fd, short what, void *arg)
{
	struct probe *p = arg;
	char c;
	p->what = what;
	p->n_io++;
	if (what & EV_READ)
		assert_int_equal(read(fd, &c, 1), 1);
}

static void test_io(void **state)
{
	struct probe *p = *state;
	ev_io_init(&p->io, p->loop, "probe", on_io, p);
	ev_io_stop(&p->io); /* never started: harmless */
	ev_io_set(&p->io, p->fds[0], EV_READ);
	ev_loop_once(p->loop, false);
	assert_int_equal(p->n_io, 0);
	assert_int_equal(write(p->fds[1], "ab", 2), 2);
	ev_io_set(&p->io, p->fds[0], EV_READ); /* the same: nothing changes */
	ev_loop_once(p->loop, true);
	ev_loop_once(p->loop, true); /* persistent */
	assert_int_equal(p->n_io, 2);
	assert_int_equal(p->what, EV_READ);
	ev_io_set(&p->io, p->fds[1], EV_WRITE); /* another descriptor, another direction */
	ev_loop_once(p->loop, true);
	assert_int_equal(p->n_io, 3);
	assert_int_equal(p->what, EV_WRITE);
	ev_io_set(&p->io, p->fds[1], 0);
	assert_false(p->io.active);
	ev_loop_once(p->loop, false);
	assert_int_equal(p->n_io, 3);
}

static void on_io_again(int fd, short what, void *arg)
{
	struct probe *p = arg;
	(void)what;
	p->n_io++;
	/* From inside of its own callback: another init, another descriptor. */
	ev_io_stop(&p->io);
	ev_io_init(&p->io, p->loop, "again", on_io, p);
	ev_io_set(&p->io, fd, EV_READ);
}

static void test_io_reinit(void **state)
{
	struct probe *p = *state;
	ev_io_init(&p->io, p->loop, "probe", on_io_again, p);
	ev_io_set(&p->io, p->fds[0], EV_READ);
	assert_int_equal(write(p->fds[1], "a", 1), 1);
	ev_loop_once(p->loop, true);
	assert_int_equal(p->what, 0);
	ev_loop_once(p->loop, true);
	assert_int_equal(p->n_io, 2);
	assert_int_equal(p->what, EV_READ);
}

static void on_timer(void *arg)
{
	struct probe *p = arg;
	p->n_timer++;
	p->fired_us = ev_now_us();
	assert_false(p->timer.active);
}

static void test_timer(void **state)
{
	struct probe *p = *state;
	ev_timer_init(&p->timer, p->loop, "tick", on_timer, p);
	for (uint64_t ms = 0; ms <= 13; ms++) {
		uint64_t start_us = ev_now_us();
		int before = p->n_timer;
		ev_timer_start(&p->timer, ms);
		while (p->n_timer == before)
			ev_loop_once(p->loop, true);
		assert_true(p->fired_us - start_us >= ms * 1000); /* never early */
	}
	ev_timer_start(&p->timer, 1);
	ev_timer_stop(&p->timer);
	ev_timer_stop(&p->timer);
	ev_timer_start(&p->timer, UINT64_MAX);
	ev_timer_start(&p->timer, 5); /* restarted, not doubled */
	int before = p->n_timer;
	while (p->n_timer == before)
		ev_loop_once(p->loop, true);
	ev_loop_once(p->loop, false);
	assert_int_equal(p->n_timer, before + 1);
}

static void on_timer_slow(void *arg)
{
	struct probe *p = arg;
	uint64_t end = ev_now_ms() + EV_SLOW_MS + 5;
	while (ev_now_ms() < end)
		usleep(5000);
	p->n_timer++;
}

static void run_slow(void *arg)
{
	struct probe *p = arg;
	ev_timer_init(&p->timer, p->loop, "sleepy", on_timer_slow, p);
	ev_timer_start(&p->timer, 0);
	while (p->n_timer == 0)
		ev_loop_once(p->loop, true);
	ASSERT(ev_loop_slow_count(p->loop) == 1);
}

static void test_slow(void **state)
{
	struct probe *p = *state;
	char out[1024];
	assert_int_equal(run_in_child(run_slow, p, out, sizeof(out)), 0);
	assert_non_null(strstr(out, "<4>"));
	assert_non_null(strstr(out, "callback sleepy held the event loop for "));
	assert_non_null(strstr(out, "[ev.slow]"));
}

static void on_signal(int signo, void *arg)
{
	struct probe *p = arg;
	assert_int_equal(signo, SIGUSR1);
	p->n_signal++;
	ev_loop_stop(p->loop);
}

static void test_signal_and_run(void **state)
{
	struct probe *p = *state;
	struct ev_signal s;
	ev_signal_start(&s, p->loop, SIGUSR1, on_signal, p);
	kill(getpid(), SIGUSR1);
	ev_loop_run(p->loop); /* blocks without any descriptor, ends by ev_loop_stop */
	assert_int_equal(p->n_signal, 1);
	kill(getpid(), SIGUSR1);
	ev_loop_run(p->loop); /* may run again */
	assert_int_equal(p->n_signal, 2);
	ev_signal_stop(&s);
	ev_signal_stop(&s);
}

static void on_second(void *arg)
{
	struct probe *p = arg;
	strcat(p->order, "2");
	p->n_deferred++;
}

static void on_first(void *arg)
{
	struct probe *p = arg;
	strcat(p->order, "1");
	p->n_deferred++;
	if (p->n_deferred == 1)
		ev_defer(p->loop, &p->first, on_first, p);
}

static void test_deferred(void **state)
{
	struct probe *p = *state;
	ev_defer(p->loop, &p->first, on_first, p);
	ev_defer(p->loop, &p->second, on_second, p);
	ev_defer(p->loop, &p->first, on_first, p); /* queued already: keeps its place */
	ev_loop_once(p->loop, true);               /* does not block */
	assert_string_equal(p->order, "12"); /* what the first added waits for the next pass */
	ev_loop_once(p->loop, true);
	assert_string_equal(p->order, "121");

	ev_defer(p->loop, &p->second, on_second, p);
	ev_defer_cancel(p->loop, &p->second);
	ev_defer_cancel(p->loop, &p->second);
	ev_loop_once(p->loop, false);
	assert_string_equal(p->order, "121");

	ev_defer(p->loop, &p->second, on_second, p); /* left for ev_loop_free, see teardown */
}

static void on_cancelling(void *arg)
{
	struct probe *p = arg;
	ev_defer_cancel(p->loop, &p->second);
	strcat(p->order, "c");
}

static void test_cancel_while_draining(void **state)
{
	struct probe *p = *state;
	ev_defer(p->loop, &p->first, on_cancelling, p);
	ev_defer(p->loop, &p->second, on_second, p);
	ev_loop_once(p->loop, false);
	ev_loop_once(p->loop, false);
	assert_string_equal(p->order, "c");
}

struct doomed {
	struct ev_deferred d;
	int *n_freed;
};

static void on_doomed(void *arg)
{
	struct doomed *d = arg;
	(*d->n_freed)++;
	free(d);
}

static void test_free_runs_deferred(void **state)
{
	(void)state;
	struct ev_loop *loop = ev_loop_new();
	int n_freed = 0;
	struct doomed *d = xcalloc(1, sizeof(*d));
	d->n_freed = &n_freed;
	ev_defer(loop, &d->d, on_doomed, d);
	ev_loop_free(&loop);
	assert_int_equal(n_freed, 1);
	assert_null(loop);
	ev_loop_free(&loop);
}

static void free_with_timer(void *arg)
{
	(void)arg;
	struct ev_loop *loop = ev_loop_new();
	struct ev_timer t;
	ev_timer_init(&t, loop, "left", on_timer, NULL);
	ev_timer_start(&t, 1000);
	ev_loop_free(&loop);
}

static void test_free_wants_all_stopped(void **state)
{
	(void)state;
	assert_aborts(free_with_timer, NULL, "n_active == 0");
}

static void test_backoff(void **state)
{
	(void)state;
	struct ev_backoff b = {.base_ms = 100, .cap_ms = 5000};
	uint32_t lowest = UINT32_MAX, highest = 0;
	for (int round = 0; round < 200; round++) {
		if (round % 2 == 0)
			ev_backoff_reset(&b);
		else
			ev_backoff_lasted(&b, EV_STEADY_MS);
		for (uint32_t i = 0; i < 40; i++) {
			ev_backoff_lasted(&b, EV_STEADY_MS - 1); /* no success */
			uint32_t plain = i < 6 ? 100U << i : 5000;
			uint32_t ms = ev_backoff_next_ms(&b);
			assert_in_range(ms, plain * 3 / 4, plain * 5 / 4);
			if (i == 10) {
				lowest = ms < lowest ? ms : lowest;
				highest = ms > highest ? ms : highest;
			}
		}
	}
	/* Jitter fills its range: one in 10^20 that 200 draws miss a third of it. */
	assert_true(lowest < 4600 && highest > 5400);
	struct ev_backoff huge = {
		.base_ms = UINT32_MAX, .cap_ms = UINT32_MAX, .attempt = UINT32_MAX};
	assert_true(ev_backoff_next_ms(&huge) >= UINT32_MAX / 4 * 3);
	assert_int_equal(huge.attempt, UINT32_MAX);
}

static void on_rested(void *arg)
{
	*(uint64_t *)arg = ev_now_us();
}

struct resting {
	struct ev_loop *loop;
	struct ev_deferred ask, d;
	uint64_t asked_us, ran_us;
};

static void on_ask(void *arg)
{
	struct resting *r = arg;
	r->asked_us = ev_now_us();
	ev_loop_rest(r->loop, 400, &r->d, on_rested, &r->ran_us);
}

static void test_rest(void **state)
{
	(void)state;
	struct ev_loop *l = ev_loop_new();
	struct ev_deferred d = {.queued = false}, cancelled = {.queued = false};
	uint64_t ran_us = 0, never_us = 0;
	/* Asked for by deferred work and by others: never in the pass that asked. */
	uint64_t start_us = ev_now_us();
	ev_loop_rest(l, 100000, &d, on_rested, &ran_us); /* cut to EV_REST_MAX_US */
	ev_loop_rest(l, 400, &cancelled, on_rested, &never_us);
	ev_defer_cancel(l, &cancelled);
	ev_loop_once(l, true);
	assert_true(ran_us - start_us >= 400);
	assert_int_equal(never_us, 0);
	struct resting r = {.loop = l};
	ev_defer(l, &r.ask, on_ask, &r);
	ev_loop_once(l, true);
	assert_int_equal(r.ran_us, 0);
	ev_loop_once(l, true);
	assert_true(r.ran_us - r.asked_us >= 400);
	/* Once only: one pass without it is proof enough on a machine that is busy. */
	uint64_t best_us = UINT64_MAX;
	for (int i = 0; i < 200; i++) {
		start_us = ev_now_us();
		ev_defer(l, &d, on_rested, &ran_us);
		ev_loop_once(l, true);
		if (ran_us - start_us < best_us)
			best_us = ran_us - start_us;
	}
	assert_true(best_us < 300);
	ev_loop_free(&l);
}

/* ---- busy polling ---- */

#define FOR_EVER_US 100000000

static struct ev_poll_counts poll_counts(struct probe *p)
{
	struct ev_poll_counts counts;
	ev_loop_get_poll_counts(p->loop, &counts);
	return counts;
}

/* A wait that is over at once. */
static void wait_ready(struct probe *p)
{
	assert_int_equal(write(p->fds[1], "a", 1), 1);
	ev_loop_once(p->loop, true);
}

static bool want_two_cpus(void)
{
	cpu_set_t cpus;
	ASSERT(sched_getaffinity(0, sizeof(cpus), &cpus) == 0);
	return CPU_COUNT(&cpus) > 1;
}

/* A wait that is over soon, but not at once: the timer's time is short and the callback one. */
static void wait_quick(struct probe *p)
{
	p->n_timer = 0;
	ev_timer_start(&p->timer, 1);
	while (p->n_timer == 0)
		ev_loop_once(p->loop, true);
}

static void test_busy_poll(void **state)
{
	struct probe *p = *state;
	if (!want_two_cpus())
		skip();
	ev_timer_init(&p->timer, p->loop, "probe", on_timer, p);
	for (int i = 0; i < 2 * EV_POLL_AFTER; i++)
		wait_quick(p);
	assert_int_equal(poll_counts(p).polls, 0); /* not at first */
	ev_loop_set_busy_poll(p->loop, FOR_EVER_US);
	for (int i = 0; i < EV_POLL_AFTER; i++)
		wait_quick(p);
	assert_int_equal(poll_counts(p).polls, 0);
	/* On a busy machine others want the CPU at times. */
	while (poll_counts(p).caught == 0)
		wait_quick(p);
	assert_true(poll_counts(p).polls == poll_counts(p).caught + poll_counts(p).yielded);
	ev_loop_set_busy_poll(p->loop, 0);
	struct ev_poll_counts counts = poll_counts(p);
	for (int i = 0; i < 2 * EV_POLL_AFTER; i++)
		wait_quick(p);
	assert_int_equal(poll_counts(p).polls, counts.polls);
}

/* What does not come in time is waited for asleep, and the next wait, too. */
static void test_busy_poll_learns(void **state)
{
	struct probe *p = *state;
	if (!want_two_cpus())
		skip();
	ev_timer_init(&p->timer, p->loop, "probe", on_timer, p);
	ev_loop_set_busy_poll(p->loop, 20000);
	while (poll_counts(p).polls == 0)
		wait_quick(p);
	struct ev_poll_counts counts = poll_counts(p);
	ev_timer_start(&p->timer, 1000);
	p->n_timer = 0;
	while (p->n_timer == 0)
		ev_loop_once(p->loop, true);
	assert_int_equal(poll_counts(p).caught, counts.caught);
	counts = poll_counts(p);
	wait_quick(p);
	assert_int_equal(poll_counts(p).polls, counts.polls);
}

/* What is there already is no wait. */
static void test_busy_poll_not_when_ready(void **state)
{
	struct probe *p = *state;
	ev_io_init(&p->io, p->loop, "probe", on_io, p);
	ev_io_set(&p->io, p->fds[0], EV_READ);
	ev_loop_set_busy_poll(p->loop, FOR_EVER_US);
	for (int i = 0; i < 10; i++)
		wait_ready(p);
	assert_int_equal(p->n_io, 10);
	assert_int_equal(poll_counts(p).polls, 0);
}

static void on_foreign(evutil_socket_t fd, short what, void *arg)
{
	struct probe *p = arg;
	(void)fd;
	(void)what;
	ev_defer(p->loop, &p->second, on_second, p);
}

/* Of an event that is not ours (evdns'), only the deferred work is seen: it is done in this pass.
 */
static void test_busy_poll_with_foreign_events(void **state)
{
	struct probe *p = *state;
	const struct timeval soon = {.tv_usec = 5000};
	if (!want_two_cpus())
		skip();
	ev_timer_init(&p->timer, p->loop, "probe", on_timer, p);
	ev_loop_set_busy_poll(p->loop, FOR_EVER_US);
	while (poll_counts(p).caught == 0)
		wait_quick(p);
	ASSERT(event_base_once(ev_loop_base(p->loop), -1, EV_TIMEOUT, on_foreign, p, &soon) == 0);
	ev_timer_start(&p->timer, 10000);
	uint64_t start_ms = ev_now_ms();
	while (p->order[0] == '\0')
		ev_loop_once(p->loop, true);
	assert_true(ev_now_ms() - start_ms < 5000);
}

static void on_shared(int fd, short what, void *arg)
{
	struct probe *p = arg;
	(void)fd;
	(void)what;
	p->n_signal++;
}

static void on_write_soon(evutil_socket_t fd, short what, void *arg)
{
	struct probe *p = arg;
	(void)fd;
	(void)what;
	assert_int_equal(write(p->fds[1], "a", 1), 1);
}

/* Events that come together share a wake-up: here two of one descriptor. */
static void test_busy_poll_not_for_many(void **state)
{
	struct probe *p = *state;
	const struct timeval soon = {.tv_usec = 1000};
	struct ev_io other;
	ev_io_init(&p->io, p->loop, "probe", on_io, p);
	ev_io_set(&p->io, p->fds[0], EV_READ);
	ev_io_init(&other, p->loop, "other", on_shared, p);
	ev_io_set(&other, p->fds[0], EV_READ);
	ev_loop_set_busy_poll(p->loop, FOR_EVER_US);
	for (int i = 1; i <= 10; i++) {
		ASSERT(event_base_once(ev_loop_base(p->loop), -1, EV_TIMEOUT, on_write_soon, p,
			       &soon) == 0);
		while (p->n_io < i)
			ev_loop_once(p->loop, true);
	}
	assert_int_equal(p->n_signal, 10);
	assert_int_equal(poll_counts(p).polls, 0);
	ev_io_stop(&other);
}

static void pin_to_one(cpu_set_t *ret_all, cpu_set_t *ret_one)
{
	int cpu = 0;
	ASSERT(sched_getaffinity(0, sizeof(*ret_all), ret_all) == 0);
	while (!CPU_ISSET(cpu, ret_all))
		cpu++;
	CPU_ZERO(ret_one);
	CPU_SET(cpu, ret_one);
	ASSERT(sched_setaffinity(0, sizeof(*ret_one), ret_one) == 0);
}

static void test_busy_poll_not_with_one_cpu(void **state)
{
	struct probe *p = *state;
	cpu_set_t all, one;
	pin_to_one(&all, &one);
	ev_timer_init(&p->timer, p->loop, "probe", on_timer, p);
	ev_loop_set_busy_poll(p->loop, FOR_EVER_US);
	for (int i = 0; i < 10; i++)
		wait_quick(p);
	assert_int_equal(poll_counts(p).polls, 0);
	ASSERT(sched_setaffinity(0, sizeof(all), &all) == 0);
}

/* Our CPU is wanted: the loop makes room, and sleeps for a while. */
static void test_busy_poll_makes_room(void **state)
{
	struct probe *p = *state;
	cpu_set_t all, one;
	if (!want_two_cpus())
		skip();
	ev_timer_init(&p->timer, p->loop, "probe", on_timer, p);
	ev_loop_set_busy_poll(p->loop, FOR_EVER_US);
	pin_to_one(&all, &one);
	pid_t hog = fork();
	ASSERT(hog >= 0);
	if (hog == 0) {
		(void)alarm(60);
		for (volatile unsigned n = 0;; n++)
			;
	}
	uint64_t end_ms = ev_now_ms() + 50000;
	while (poll_counts(p).yielded == 0 && ev_now_ms() < end_ms)
		wait_quick(p);
	(void)kill(hog, SIGKILL);
	ASSERT(waitpid(hog, NULL, 0) == hog);
	ASSERT(sched_setaffinity(0, sizeof(all), &all) == 0);
	assert_true(poll_counts(p).yielded > 0);
}

int main(void)
{
#define WITH_LOOP(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)
	const struct CMUnitTest tests[] = {
		WITH_LOOP(test_io),
		WITH_LOOP(test_io_reinit),
		WITH_LOOP(test_timer),
		WITH_LOOP(test_slow),
		WITH_LOOP(test_signal_and_run),
		WITH_LOOP(test_deferred),
		WITH_LOOP(test_cancel_while_draining),
		WITH_LOOP(test_busy_poll),
		WITH_LOOP(test_busy_poll_not_for_many),
		WITH_LOOP(test_busy_poll_learns),
		WITH_LOOP(test_busy_poll_not_when_ready),
		WITH_LOOP(test_busy_poll_with_foreign_events),
		WITH_LOOP(test_busy_poll_not_with_one_cpu),
		WITH_LOOP(test_busy_poll_makes_room),
		cmocka_unit_test(test_free_runs_deferred),
		cmocka_unit_test(test_free_wants_all_stopped),
		cmocka_unit_test(test_rest),
		cmocka_unit_test(test_backoff),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
