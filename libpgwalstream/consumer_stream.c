/* SPDX-License-Identifier: PostgreSQL */
/*
 * The consumer while it streams: events into the assembler, changes out, positions back.
 *
 * Context: the caller's thread, and the background thread for pgwsi_consumer_status; always with
 * the consumer's lock held.
 *
 * Positions:
 *     sent_flush <= flushed() = max(base_lsn, flush_lsn, idle_lsn if flush_lsn >= idle_given)
 *     base_lsn: where the first session began; the caller has all before it
 *     idle_given: what had been given out when the server said it stood at idle_lsn. Everything
 * that committed up to idle_lsn was given out before, so once that is flushed idle_lsn is
 * confirmed.
 *
 * Invariants:
 *   1. No position is confirmed beyond what the caller flushed, unless nothing was left to flush.
 *   2. A transaction is given out whole at most once in a consumer's life: commits come in the
 * order of their LSNs, so one whose commit record stands before received_lsn was given out already.
 *   3. No transaction that ends behind stop_lsn is begun (stop_lsn being the end of a record).
 */
#include "config.h"

#include "libpgwalstream/consumer_internal.h"

#define CONFIRM_SPACING_US 10000 /* between two statuses that the caller's confirmations cause */
#define IDLE_SPACING_US 1000000  /* the same of the server's idle positions */
#define REPEAT_SPACING_US 50000  /* between two answers that say the same */
#define SHUTDOWN_PATIENCE_US 5000000
#define UNANSWERED_MAX 6
#define LEFT_OUT_MAX 10000 /* changes at one go, about a millisecond */

/* ---- Positions ------------------------------------------------------------------------------- */

static uint64_t max_lsn(uint64_t a, uint64_t b)
{
	return a > b ? a : b;
}

static uint64_t with_idle(const struct pgws_consumer *c, uint64_t lsn)
{
	lsn = max_lsn(lsn, c->base_lsn);
	return lsn >= c->idle_given ? max_lsn(lsn, c->idle_lsn) : lsn;
}

uint64_t pgwsi_consumer_flushed(const struct pgws_consumer *c)
{
	return with_idle(c, atomic_load(&c->flush_lsn));
}

void pgwsi_consumer_status(struct pgws_consumer *c, bool may_ask)
{
	int64_t now = pgwsi_now_us();
	/* Statuses that confirm may follow each other faster than any answer comes. */
	bool quiet = may_ask && !c->heard && now - c->questioned >= c->interval;
	bool ask = quiet || (may_ask && c->options.stop_lsn != 0);
	uint64_t flush = pgwsi_consumer_flushed(c);
	uint64_t write = max_lsn(with_idle(c, atomic_load(&c->write_lsn)), flush);
	uint64_t apply = with_idle(c, atomic_load(&c->apply_lsn));

	/* A step behind: what is sent this moment may not arrive. */
	c->settled = atomic_load(&c->sent_flush);
	if (pgws_stream_feedback(c->stream, write, flush, apply, ask) == PGWS_EAGAIN)
		c->poke = true;
	c->sent_write = write;
	c->sent_apply = apply;
	atomic_store(&c->sent_flush, flush);
	c->last_status = now;
	c->asked = false;
	c->heard = false;
	if (quiet) {
		c->unanswered++;
		c->questioned = now;
	}
}

static int64_t earlier(int64_t a, int64_t b)
{
	return a < b ? a : b;
}

int64_t pgwsi_consumer_due(const struct pgws_consumer *c)
{
	uint64_t sent = atomic_load(&c->sent_flush);
	uint64_t flush = atomic_load(&c->flush_lsn);
	bool confirmed = flush > sent || atomic_load(&c->write_lsn) > c->sent_write ||
			 atomic_load(&c->apply_lsn) > c->sent_apply;
	bool moved = pgwsi_consumer_flushed(c) > sent;
	int64_t due = c->last_status + c->interval;

	if (confirmed)
		due = earlier(due, c->last_status + CONFIRM_SPACING_US);
	if (moved || c->options.stop_lsn != 0)
		due = earlier(due, c->last_status + IDLE_SPACING_US);
	if (c->asked)
		due = confirmed || moved ? 0 : earlier(due, c->last_status + REPEAT_SPACING_US);
	return due;
}

void pgwsi_consumer_streams(struct pgws_consumer *c)
{
	c->drained = true;
	c->skipping = c->poke = c->heard = c->was_quiet = false;
	c->unanswered = 0;
	c->questioned = c->asked_first = c->asked_last = 0;
	c->rest_us = 0;
	/* The first status goes out at once: the slot learns the caller's position. */
	c->asked = true;
	c->streams_since = pgwsi_now_us();
	c->last_status = c->streams_since - c->interval;
}

/* ---- Changes --------------------------------------------------------------------------------- */

/* One that the caller has had, or does not want. */
static bool left_out(const struct pgws_consumer *c, uint64_t commit_lsn)
{
	return commit_lsn < atomic_load(&c->received_lsn) || commit_lsn < c->options.start_lsn;
}

/* true: the change is for the caller. */
static bool admit_message(struct pgws_consumer *c, const struct pgws_change *change)
{
	if (change->lsn <= c->message_lsn || change->lsn < c->options.start_lsn)
		return false;
	if (c->options.stop_lsn != 0 && change->lsn >= c->options.stop_lsn) {
		c->passed = !c->half;
		return false;
	}
	c->message_lsn = change->lsn;
	c->failures = 0;
	c->given_lsn = max_lsn(c->given_lsn, change->lsn + 1);
	return true;
}

static bool admit(struct pgws_consumer *c, const struct pgws_change *change)
{
	uint64_t stop = c->options.stop_lsn;

	if (change->msg.type == PGWS_MESSAGE && change->commit_lsn == 0)
		return admit_message(c, change);
	if (change->msg.type == PGWS_BEGIN) {
		c->passed = stop != 0 && change->commit_lsn >= stop;
		c->skipping = c->passed || left_out(c, change->commit_lsn);
		c->half = !c->skipping;
		return c->half;
	}
	if (change->msg.type != PGWS_COMMIT)
		return !c->skipping;
	uint64_t end = change->end_lsn != 0 ? change->end_lsn : change->msg.u.commit.end_lsn;
	bool wanted = !c->skipping;
	c->skipping = c->half = false;
	if (wanted) {
		atomic_store(&c->received_lsn, end);
		c->given_lsn = max_lsn(c->given_lsn, end);
		c->failures = c->suspicions = 0;
	}
	c->passed = c->passed || (stop != 0 && end >= stop);
	return wanted;
}

/* ---- Events ---------------------------------------------------------------------------------- */

/* A server that asks again and again with nothing to say is shutting down and waits for what the
 * caller has not flushed. 0, or PGWS_ECONN: it has waited long enough. */
static int note_question(struct pgws_consumer *c)
{
	int64_t now = pgwsi_now_us();
	if (c->asked_last == 0 || now - c->asked_last > 1000000)
		c->asked_first = now;
	c->asked_last = now;
	c->asked = true;
	if (now - c->asked_first < SHUTDOWN_PATIENCE_US)
		return 0;
	pgwsi_keep_error(
		c->stream, "the server waits for what is not confirmed: it is shutting down");
	return PGWS_ECONN;
}

static int on_keepalive(struct pgws_consumer *c, const struct pgws_event *ev)
{
	if (!c->half && ev->end_lsn > c->idle_lsn) {
		/* An older pair that holds is not given up for one that does not hold yet. */
		if (atomic_load(&c->flush_lsn) >= c->idle_given)
			c->base_lsn = max_lsn(c->base_lsn, c->idle_lsn);
		c->idle_given = c->given_lsn;
		c->idle_lsn = ev->end_lsn;
		c->passed = c->passed ||
			    (c->options.stop_lsn != 0 && ev->end_lsn >= c->options.stop_lsn);
	}
	return ev->reply_requested ? note_question(c) : 0;
}

static int on_event(struct pgws_consumer *c, const struct pgws_event *ev)
{
	c->heard = true;
	c->attempts = c->unanswered = 0;
	/* Only this thread raises it, and nothing else hangs on it: no barrier for every change. */
	if (ev->end_lsn > atomic_load_explicit(&c->server_lsn, memory_order_relaxed))
		atomic_store_explicit(&c->server_lsn, ev->end_lsn, memory_order_relaxed);
	if (ev->kind == PGWS_EVENT_KEEPALIVE)
		return on_keepalive(c, ev);
	c->asked_last = 0;
	c->drained = c->more = false;
	return pgws_assembler_put(c->assembler, ev);
}

/* Nothing to read now. */
static int on_quiet(struct pgws_consumer *c)
{
	if (c->unanswered >= UNANSWERED_MAX) {
		pgwsi_keep_error(c->stream, "the server does not answer");
		return pgwsi_consumer_lost(c, PGWS_ECONN);
	}
	c->rest_us = pgws_stream_rest_us(c->stream);
	c->was_quiet = true;
	return PGWS_EAGAIN;
}

/* One event from the stream: 0, or a result for the caller. */
static int read_event(struct pgws_consumer *c)
{
	struct pgws_event ev;
	c->poke = false;
	/* The timer goes by the exact clock: by a coarse one behind it nothing would be due yet,
	 * and the timer would fire again at once. */
	int64_t now = c->was_quiet ? pgwsi_now_us() : pgwsi_coarse_us();
	c->was_quiet = false;
	if (now >= pgwsi_consumer_due(c))
		pgwsi_consumer_status(c, true);
	if (c->settled > c->settled_told) {
		c->settled_told = c->settled;
		/* A failure keeps a file for longer. */
		(void)pgws_assembler_confirmed(c->assembler, c->settled);
	}
	int err = pgws_stream_next(c->stream, &ev);
	if (err == PGWS_EAGAIN)
		return c->poke ? 0 : on_quiet(c);
	if (err == 0)
		err = on_event(c, &ev);
	return err == 0 ? 0 : pgwsi_consumer_lost(c, err);
}

/* A change that is not its event's only one: no event may come for as long as the caller takes over
 * a large transaction, so its statuses are sent from here. Nothing is read, so nothing is asked. */
static void keep_alive(struct pgws_consumer *c)
{
	if (c->more && pgwsi_coarse_us() >= pgwsi_consumer_due(c))
		pgwsi_consumer_status(c, false);
	c->more = true;
}

/* The assembler's changes up to the next one for the caller: 0 and that; PGWS_EAGAIN: none, drained
 * or passed, or as many as may be left out at one go; else a result for the caller. */
static int give(struct pgws_consumer *c, struct pgws_change *ret_change)
{
	struct pgws_change change;
	for (unsigned n = 0; !c->passed && n < LEFT_OUT_MAX; n++) {
		int err = pgws_assembler_next(c->assembler, &change);
		c->drained = err == PGWS_EAGAIN;
		if (c->drained)
			return PGWS_EAGAIN;
		if (err != 0)
			return pgwsi_consumer_lost(c, err);
		keep_alive(c);
		if (admit(c, &change)) {
			*ret_change = change;
			return 0;
		}
	}
	return PGWS_EAGAIN;
}

int pgwsi_consumer_receive(struct pgws_consumer *c, struct pgws_change *ret_change)
{
	while (true) {
		int err;
		if (c->drained && (err = read_event(c)) != 0)
			return err;
		if (!c->drained && (err = give(c, ret_change)) != PGWS_EAGAIN)
			return err;
		if (c->passed)
			return pgwsi_consumer_finish(c);
		if (!c->drained) {
			/* A large transaction is left out: its Relations count, so it is read to
			 * its end, but the caller's timeout and stop are looked at meanwhile. */
			c->rest_us = 1;
			return PGWS_EAGAIN;
		}
	}
}
