/* SPDX-License-Identifier: PostgreSQL */
/*
 * The consumer: stream and assembler under one iterator. This file has its life, its waiting and
 * its threads; consumer_session.c and consumer_stream.c have what it does.
 *
 * Context: one thread at a time calls next and run; confirm, get_position and stop come from any.
 * With background_feedback a thread of its own sends status updates while the caller is busy.
 *
 * Waiting: one epoll descriptor over the socket, a timer and an eventfd. Who is about to wait sets
 * armed and then looks for news once more; who confirms stores the position and then takes armed:
 * with both sequentially consistent, one of the two sees the other. Between two PGWS_EAGAIN the
 * eventfd is readable: what is buffered already shows on no socket.
 *
 * Locks: lock covers the stream and the state; nobody waits while holding it, and without the
 * background thread there is nobody to lock out. name_lock covers systemid alone, so that
 * get_position never waits for a host's name to be resolved.
 *
 * A change that waits in the buffers costs no system call, no clock (but for the coarse one, in
 * consumer_stream.c) and, without the background thread, no lock.
 */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/timerfd.h>

#include "libpgwalstream/consumer_internal.h"

int64_t pgwsi_now_us(void)
{
	struct timespec ts;
	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (int64_t)ts.tv_sec * 1000000 + ts.tv_nsec / 1000;
}

/* A few milliseconds behind at most, and five times as cheap: for every change. */
int64_t pgwsi_coarse_us(void)
{
	struct timespec ts;
	clock_gettime(CLOCK_MONOTONIC_COARSE, &ts);
	return (int64_t)ts.tv_sec * 1000000 + ts.tv_nsec / 1000;
}

/* Full: it is readable already. */
static void wake(struct pgws_consumer *c)
{
	uint64_t one = 1;
	(void)!write(c->eventfd, &one, sizeof(one));
}

/* ---- The background thread --------------------------------------------------------------------
 */

static struct timespec to_timespec(int64_t us)
{
	return (struct timespec){
		.tv_sec = (time_t)(us / 1000000), .tv_nsec = (long)(us % 1000000) * 1000};
}

/* Only what keeps the session alive: what the caller confirms meanwhile goes along. */
static void *background(void *arg)
{
	struct pgws_consumer *c = arg;
	pthread_mutex_lock(&c->lock);
	while (!c->thread_ends) {
		if (c->state != PGWSI_STREAMING) {
			pthread_cond_wait(&c->wake, &c->lock);
			continue;
		}
		int64_t due = c->last_status + c->interval;
		if (pgwsi_now_us() >= due) {
			pgwsi_consumer_status(c, false);
			if (c->poke)
				wake(c); /* input that no descriptor shows any more */
			continue;
		}
		struct timespec ts = to_timespec(due);
		(void)pthread_cond_timedwait(&c->wake, &c->lock, &ts);
	}
	pthread_mutex_unlock(&c->lock);
	return NULL;
}

static int start_thread(struct pgws_consumer *c)
{
	if (pthread_create(&c->thread, NULL, background, c) != 0)
		return PGWS_ENOMEM;
	c->has_thread = true;
	return 0;
}

static void end_thread(struct pgws_consumer *c)
{
	if (!c->has_thread)
		return;
	pthread_mutex_lock(&c->lock);
	c->thread_ends = true;
	pthread_cond_signal(&c->wake);
	pthread_mutex_unlock(&c->lock);
	pthread_join(c->thread, NULL);
}

/* ---- Life -------------------------------------------------------------------------------------
 */

static bool conninfo_sane(const char *conninfo)
{
	PQconninfoOption *all = PQconninfoParse(conninfo, NULL);
	PQconninfoFree(all);
	return all != NULL;
}

static bool options_sane(const struct pgws_consumer_options *o, const struct pgws_stream *s)
{
	return pgwsi_bad_options(&s->options) == NULL && *s->options.slot != 0 &&
	       *s->options.publications != 0 && conninfo_sane(s->options.conninfo) &&
	       o->retry_base_ms <= o->retry_cap_ms &&
	       (!s->options.two_phase || o->assembler.keep_prepared);
}

static int make_descriptors(struct pgws_consumer *c)
{
	/* Readable before the first call of next: there is something to do. */
	c->eventfd = eventfd(1, EFD_CLOEXEC | EFD_NONBLOCK);
	c->lit = true;
	c->timerfd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
	c->epfd = epoll_create1(EPOLL_CLOEXEC);
	if (c->eventfd < 0 || c->timerfd < 0 || c->epfd < 0)
		return PGWS_EIO;
	struct epoll_event ev = {.events = EPOLLIN, .data.fd = c->eventfd};
	if (epoll_ctl(c->epfd, EPOLL_CTL_ADD, c->eventfd, &ev) != 0)
		return PGWS_EIO;
	ev.data.fd = c->timerfd;
	return epoll_ctl(c->epfd, EPOLL_CTL_ADD, c->timerfd, &ev) == 0 ? 0 : PGWS_EIO;
}

static int init_locks(struct pgws_consumer *c)
{
	pthread_condattr_t attr;
	if (pthread_mutex_init(&c->lock, NULL) != 0)
		return PGWS_ENOMEM;
	(void)pthread_mutex_init(&c->name_lock, NULL);
	(void)pthread_condattr_init(&attr);
	(void)pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	(void)pthread_cond_init(&c->wake, &attr);
	(void)pthread_condattr_destroy(&attr);
	return 0;
}

static size_t aligned(size_t offset, size_t to)
{
	return (offset + to - 1) / to * to;
}

/*
 * One of the structures in the caller's options, which begins with its size: as much as we know of
 * it into copy. Returns where it ends, 0: not within the caller's options.
 */
static size_t take_part(const struct pgws_consumer_options *from, size_t offset, size_t alignment,
	void *copy, size_t copy_size)
{
	const char *part = (const char *)from + offset;
	size_t size, left = from->size > offset ? from->size - offset : 0;
	if (left < sizeof(size))
		return 0;
	memcpy(&size, part, sizeof(size));
	if (size < sizeof(size) || size > left || size % alignment != 0)
		return 0;
	memcpy(copy, part, size < copy_size ? size : copy_size);
	return offset + size;
}

/* The caller's header may be older or newer than this library: every structure inside has a size of
 * its own, and what follows it stands behind that. */
static int take_options(struct pgws_consumer_options *o, const struct pgws_consumer_options *from)
{
	const size_t ours = offsetof(struct pgws_consumer_options, start_lsn);
	size_t at = offsetof(struct pgws_consumer_options, stream);
	at = take_part(
		from, at, _Alignof(struct pgws_stream_options), &o->stream, sizeof(o->stream));
	if (at != 0)
		at = take_part(from, aligned(at, _Alignof(struct pgws_assembler_options)),
			_Alignof(struct pgws_assembler_options), &o->assembler,
			sizeof(o->assembler));
	if (at == 0)
		return PGWS_EINVAL;
	at = aligned(at, _Alignof(uint64_t));
	size_t rest = from->size > at ? from->size - at : 0;
	if (rest > sizeof(*o) - ours)
		rest = sizeof(*o) - ours;
	memcpy((char *)o + ours, (const char *)from + at, rest);
	o->size = ours + rest;
	return 0;
}

static int build(struct pgws_consumer *c, const struct pgws_consumer_options *o)
{
	c->stream = pgws_stream_new(&o->stream);
	if (c->stream == NULL)
		return PGWS_ENOMEM;
	if (!options_sane(o, c->stream))
		return PGWS_EINVAL;
	int err = pgws_assembler_new(&o->assembler, &c->assembler);
	if (err != 0)
		return err;
	err = make_descriptors(c);
	return err == 0 && o->background_feedback ? start_thread(c) : err;
}

int pgws_consumer_new(const struct pgws_consumer_options *options, struct pgws_consumer **ret_c)
{
	struct pgws_consumer *c = calloc(1, sizeof(*c));
	if (c == NULL)
		return PGWS_ENOMEM;
	if (init_locks(c) != 0) {
		free(c);
		return PGWS_ENOMEM;
	}
	struct pgws_consumer_options *o = &c->options;
	int err = take_options(o, options);
	c->epfd = c->eventfd = c->timerfd = c->watched_fd = -1;
	c->random = (uint64_t)pgwsi_now_us() ^ (uint64_t)getpid() << 32 ^ (uintptr_t)c;
	c->random |= 1;
	atomic_store(&c->timeline, o->known_timeline);
	if (o->known_systemid != NULL)
		strncpy(c->systemid, o->known_systemid, sizeof(c->systemid) - 1);
	/* Borrowed strings: the stream and the assembler have copies, nobody looks here again. */
	if (err == 0)
		err = build(c, o);
	o->known_systemid = NULL;
	if (err != 0) {
		pgws_consumer_free(&c);
		return err;
	}
	*ret_c = c;
	return 0;
}

static void close_fd(int fd)
{
	if (fd >= 0)
		close(fd);
}

void pgws_consumer_free(struct pgws_consumer **c)
{
	struct pgws_consumer *k = *c;
	if (k == NULL)
		return;
	end_thread(k);
	pgwsi_consumer_settle(k);
	pgws_stream_free(&k->stream);
	pgws_assembler_free(&k->assembler);
	close_fd(k->epfd);
	close_fd(k->eventfd);
	close_fd(k->timerfd);
	pthread_cond_destroy(&k->wake);
	pthread_mutex_destroy(&k->lock);
	pthread_mutex_destroy(&k->name_lock);
	free(k);
	*c = NULL;
}

/* ---- Waiting ----------------------------------------------------------------------------------
 */

/* One that is watched no more was closed, which took it out; its number may be another's by now. */
static void watch(struct pgws_consumer *c, int fd, uint32_t events)
{
	struct epoll_event ev = {.events = events, .data.fd = fd};
	if (fd >= 0 && epoll_ctl(c->epfd, EPOLL_CTL_MOD, fd, &ev) != 0)
		(void)epoll_ctl(c->epfd, EPOLL_CTL_ADD, fd, &ev);
	c->watched_fd = fd;
	c->watched_events = events;
}

static void watch_stream(struct pgws_consumer *c)
{
	int fd = pgws_stream_fd(c->stream);
	uint32_t events = 0;
	bool rests = c->state == PGWSI_STREAMING && c->rest_us != 0;
	if (!rests && pgws_stream_wants_read(c->stream))
		events |= EPOLLIN;
	if (pgws_stream_wants_write(c->stream))
		events |= EPOLLOUT;
	/* While libpq connects, another socket may have the same number. */
	if (fd != c->watched_fd || events != c->watched_events || c->state != PGWSI_STREAMING)
		watch(c, fd, events);
}

/* Timer at the latest then: one that fires earlier is set again in time. */
static void set_timer(struct pgws_consumer *c, int64_t at)
{
	int64_t now = pgwsi_now_us();
	if (c->timer_at > now && c->timer_at <= at)
		return;
	struct itimerspec its = {.it_value = to_timespec(at > 0 ? at : 1)};
	(void)timerfd_settime(c->timerfd, TFD_TIMER_ABSTIME, &its, NULL);
	c->timer_at = at > 0 ? at : 1;
}

static int64_t next_deadline(const struct pgws_consumer *c)
{
	int64_t rest;
	switch (c->state) {
	case PGWSI_PAUSED:
		return c->retry_at;
	case PGWSI_STREAMING:
		rest = c->rest_us != 0 ? pgwsi_now_us() + c->rest_us : INT64_MAX;
		return rest < pgwsi_consumer_due(c) ? rest : pgwsi_consumer_due(c);
	case PGWSI_ENDED:
		return 0;
	default:
		return c->deadline;
	}
}

/* Not fired: nothing. */
static void clear(int fd)
{
	uint64_t count;
	(void)!read(fd, &count, sizeof(count));
}

/* The eventfd while there may be more to give out. Whoever woke us meanwhile is looked for after
 * it is cleared. */
static void light(struct pgws_consumer *c, bool on)
{
	if (c->lit == on)
		return;
	c->lit = on;
	if (on)
		wake(c);
	else
		clear(c->eventfd);
}

/* What fired is cleared; the socket is looked at anyway. */
static void wait_for_news(struct pgws_consumer *c, int timeout_ms)
{
	struct epoll_event evs[3];
	int n = epoll_wait(c->epfd, evs, 3, timeout_ms);
	for (int i = 0; i < n; i++) {
		if (evs[i].data.fd != c->eventfd && evs[i].data.fd != c->timerfd)
			continue;
		if (evs[i].data.fd == c->timerfd)
			c->timer_at = 0;
		clear(evs[i].data.fd);
	}
	c->rest_us = 0;
}

/* Without the lock: it is the caller's code. */
static void tell_notice(struct pgws_consumer *c)
{
	char text[sizeof(c->notice)];
	memcpy(text, c->notice, sizeof(text));
	c->notice[0] = 0;
	if (c->options.on_notice != NULL)
		c->options.on_notice(text, c->options.notice_arg);
}

/* Everything that can be done at once: a result, or PGWS_EAGAIN with the descriptors set. */
static int step(struct pgws_consumer *c, struct pgws_change *ret_change)
{
	int rc;
	if (c->has_thread)
		pthread_mutex_lock(&c->lock);
	/* Only we set it, so what looks unset is. */
	if (atomic_load_explicit(&c->armed, memory_order_relaxed))
		atomic_store(&c->armed, false);
	while (true) {
		if (atomic_load(&c->stop) && c->state < PGWSI_ENDING)
			rc = pgwsi_consumer_finish(c);
		else
			rc = pgwsi_consumer_session(c);
		if (rc == 0)
			rc = pgwsi_consumer_receive(c, ret_change);
		if (rc != PGWS_EAGAIN || atomic_load(&c->armed))
			break;
		light(c, false);
		/* Once more, for what another thread did before it could see armed. */
		atomic_store(&c->armed, true);
		if (!atomic_load(&c->stop) &&
			(c->state != PGWSI_STREAMING || pgwsi_now_us() < pgwsi_consumer_due(c)))
			break;
	}
	if (rc == PGWS_EAGAIN || c->state == PGWSI_ENDED) {
		watch_stream(c);
		set_timer(c, next_deadline(c));
	}
	if (c->has_thread)
		pthread_mutex_unlock(&c->lock);
	if (c->notice[0] != 0)
		tell_notice(c);
	return rc;
}

/* A rest without the descriptors, while messages come fast. */
static void rest(struct pgws_consumer *c, int64_t left_us)
{
	int64_t us = c->rest_us;
	struct timespec ts = to_timespec(left_us >= 0 && left_us < us ? left_us : us);
	(void)clock_nanosleep(CLOCK_MONOTONIC, 0, &ts, NULL);
	c->rest_us = 0;
}

int pgws_consumer_next(struct pgws_consumer *c, int timeout_ms, struct pgws_change *ret_change)
{
	int64_t end = 0; /* the clock runs once there is something to wait for */
	int rc;
	if (c->waited)
		wait_for_news(c, 0);
	while ((rc = step(c, ret_change)) == PGWS_EAGAIN && timeout_ms != 0) {
		int64_t now = timeout_ms > 0 ? pgwsi_now_us() : 0;
		if (end == 0)
			end = now + (int64_t)timeout_ms * 1000;
		int64_t left = timeout_ms < 0 ? -1 : end - now;
		if (timeout_ms > 0 && left <= 0)
			break;
		if (c->rest_us != 0)
			rest(c, left);
		else
			wait_for_news(c, timeout_ms < 0 ? -1 : (int)((left + 999) / 1000));
	}
	c->waited = rc == PGWS_EAGAIN;
	if (!c->waited)
		light(c, true);
	return rc;
}

int pgws_consumer_run(struct pgws_consumer *c,
	int (*on_change)(const struct pgws_change *change, void *arg), void *arg)
{
	while (true) {
		struct pgws_change change;
		int rc = pgws_consumer_next(c, -1, &change);
		if (rc == 0 || rc == PGWS_RESTARTED)
			rc = on_change(rc == 0 ? &change : NULL, arg);
		if (rc != 0)
			return rc;
	}
}

int pgws_consumer_fd(struct pgws_consumer *c)
{
	return c->epfd;
}

/* ---- Any thread -------------------------------------------------------------------------------
 */

/* true: it grew. */
static bool raise_lsn(_Atomic uint64_t *lsn, uint64_t to)
{
	uint64_t was = atomic_load(lsn);
	while (was < to) {
		if (atomic_compare_exchange_weak(lsn, &was, to))
			return true;
	}
	return false;
}

void pgws_consumer_confirm(
	struct pgws_consumer *c, uint64_t write_lsn, uint64_t flush_lsn, uint64_t apply_lsn)
{
	bool news = raise_lsn(&c->write_lsn, write_lsn);
	news = raise_lsn(&c->flush_lsn, flush_lsn) || news;
	news = raise_lsn(&c->apply_lsn, apply_lsn) || news;
	if (news && atomic_exchange(&c->armed, false))
		wake(c);
}

void pgws_consumer_stop(struct pgws_consumer *c)
{
	int saved = errno;
	atomic_store(&c->stop, true);
	wake(c);
	errno = saved;
}

void pgws_consumer_get_position(struct pgws_consumer *c, struct pgws_position *ret_position)
{
	ret_position->received_lsn = atomic_load(&c->received_lsn);
	ret_position->server_lsn = atomic_load(&c->server_lsn);
	/* Before the first event of a life there is only the slot's position. */
	if (ret_position->server_lsn < ret_position->received_lsn)
		ret_position->server_lsn = ret_position->received_lsn;
	ret_position->confirmed_lsn = atomic_load(&c->sent_flush);
	ret_position->reconnects = atomic_load(&c->reconnects);
	ret_position->timeline = atomic_load(&c->timeline);
	pthread_mutex_lock(&c->name_lock);
	memcpy(ret_position->systemid, c->systemid, sizeof(c->systemid));
	pthread_mutex_unlock(&c->name_lock);
}

const char *pgws_consumer_error(const struct pgws_consumer *c)
{
	return c->error;
}

const char *pgws_consumer_sqlstate(const struct pgws_consumer *c)
{
	return c->sqlstate;
}
