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
		ev_backoff_reset(&b);
		for (uint32_t i = 0; i < 40; i++) {
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

static void test_busy_poll(void **state)
{
	struct probe *p = *state;
	if (!want_two_cpus())
		skip();
	ev_io_init(&p->io, p->loop, "probe", on_io, p);
	ev_io_set(&p->io, p->fds[0], EV_READ);
	ev_timer_init(&p->timer, p->loop, "probe", on_timer, p);
	wait_ready(p);
	wait_ready(p);
	wait_ready(p);
	assert_int_equal(poll_counts(p).polls, 0); /* not at first */
	ev_loop_set_busy_poll(p->loop, FOR_EVER_US);
	for (int i = 0; i < EV_POLL_AFTER; i++)
		wait_ready(p);
	assert_int_equal(poll_counts(p).polls, 0);
	wait_ready(p);
	assert_int_equal(poll_counts(p).polls, 1);
	assert_int_equal(poll_counts(p).caught, 1);
	/* Nothing comes in time: it sleeps, until the timer, and has learned. (On a busy machine
	 * the waits that come before may take too long.) */
	ev_loop_set_busy_poll(p->loop, 2000);
	while (poll_counts(p).polls == 1) {
		for (int i = 0; i < EV_POLL_AFTER; i++)
			wait_ready(p);
		p->n_timer = 0;
		ev_timer_start(&p->timer, 50);
		ev_loop_once(p->loop, true);
		assert_int_equal(p->n_timer, 1);
	}
	assert_int_equal(poll_counts(p).polls, 2);
	assert_int_equal(poll_counts(p).caught, 1);
	wait_ready(p);
	assert_int_equal(poll_counts(p).polls, 2);
	ev_loop_set_busy_poll(p->loop, 0);
	for (int i = 0; i < 2 * EV_POLL_AFTER; i++)
		wait_ready(p);
	assert_int_equal(poll_counts(p).polls, 2);
}

/* With several events at once they share a wake-up. */
static void test_busy_poll_not_for_many(void **state)
{
	struct probe *p = *state;
	struct probe other = {.loop = p->loop};
	if (!want_two_cpus())
		skip();
	assert_int_equal(pipe(other.fds), 0);
	ev_io_init(&p->io, p->loop, "probe", on_io, p);
	ev_io_set(&p->io, p->fds[0], EV_READ);
	ev_io_init(&other.io, p->loop, "other", on_io, &other);
	ev_io_set(&other.io, other.fds[0], EV_READ);
	ev_loop_set_busy_poll(p->loop, FOR_EVER_US);
	for (int i = 0; i < 10; i++) {
		assert_int_equal(write(other.fds[1], "a", 1), 1);
		wait_ready(p);
	}
	assert_int_equal(p->n_io, 10);
	assert_int_equal(other.n_io, 10);
	assert_int_equal(poll_counts(p).polls, 0);
	ev_io_stop(&other.io);
	close(other.fds[0]);
	close(other.fds[1]);
}

static void test_busy_poll_not_alone(void **state)
{
	struct probe *p = *state;
	cpu_set_t all, one;
	int cpu = 0;
	ASSERT(sched_getaffinity(0, sizeof(all), &all) == 0);
	while (!CPU_ISSET(cpu, &all))
		cpu++;
	CPU_ZERO(&one);
	CPU_SET(cpu, &one);
	ASSERT(sched_setaffinity(0, sizeof(one), &one) == 0);
	ev_io_init(&p->io, p->loop, "probe", on_io, p);
	ev_io_set(&p->io, p->fds[0], EV_READ);
	ev_loop_set_busy_poll(p->loop, FOR_EVER_US);
	for (int i = 0; i < 10; i++)
		wait_ready(p);
	assert_int_equal(poll_counts(p).polls, 0);
	ASSERT(sched_setaffinity(0, sizeof(all), &all) == 0);
}

/* Every CPU is wanted: the loop makes room, and sleeps for a while. */
static void test_busy_poll_makes_room(void **state)
{
	enum { HOGS_MAX = 1024, TRIES = 1000 };
	struct probe *p = *state;
	pid_t hogs[HOGS_MAX];
	cpu_set_t cpus;
	ASSERT(sched_getaffinity(0, sizeof(cpus), &cpus) == 0);
	int n_hogs = 2 * CPU_COUNT(&cpus);
	if (n_hogs < 4 || n_hogs > HOGS_MAX)
		skip();
	for (int i = 0; i < n_hogs; i++) {
		hogs[i] = fork();
		ASSERT(hogs[i] >= 0);
		if (hogs[i] == 0) {
			(void)alarm(120);
			for (volatile unsigned n = 0;; n++)
				;
		}
	}
	ev_io_init(&p->io, p->loop, "probe", on_io, p);
	ev_io_set(&p->io, p->fds[0], EV_READ);
	ev_timer_init(&p->timer, p->loop, "probe", on_timer, p);
	ev_loop_set_busy_poll(p->loop, 10000);
	for (int i = 0; i < TRIES && poll_counts(p).yielded == 0; i++) {
		for (int k = 0; k < EV_POLL_AFTER; k++)
			wait_ready(p);
		ev_timer_start(&p->timer, 20);
		ev_loop_once(p->loop, true);
	}
	for (int i = 0; i < n_hogs; i++) {
		(void)kill(hogs[i], SIGKILL);
		ASSERT(waitpid(hogs[i], NULL, 0) == hogs[i]);
	}
	assert_int_equal(poll_counts(p).yielded, 1);
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
		WITH_LOOP(test_busy_poll_not_alone),
		WITH_LOOP(test_busy_poll_makes_room),
		cmocka_unit_test(test_free_runs_deferred),
		cmocka_unit_test(test_free_wants_all_stopped),
		cmocka_unit_test(test_rest),
		cmocka_unit_test(test_backoff),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
