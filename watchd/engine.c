/* SPDX-License-Identifier: PostgreSQL */
/*
 * The engine's life and its operations: taking them, limits, deadlines, handing them back.
 *
 * Context: event thread. An operation's way, each arrow one list move:
 *
 *   submit -> queue -> batch in flight -> finished -> done
 *               ^---- lost ----'
 *
 * Invariants:
 *   1. e->tip is committed and visible; the store's head is at e->tip plus the rows in flight.
 *   2. n_waiting counts the ops in the queue and in batches.
 *   3. done runs from the loop, from result callbacks and timers, never from submit or cancel.
 *   4. Nothing is answered with success before its batch (or its proof) is settled.
 *
 * On crash: nothing that was not committed was answered; what was is in the log.
 * See: tests/unit/test_engine.c.
 */
#include "config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/log.h"
#include "common/base/mem.h"
#include "watchd/engine_int.h"

#define MAX_WAITING_OPS 100000
#define MAX_WAITING_BYTES ((size_t)256 * 1024 * 1024)
#define MAX_BATCH_OPS 1000
#define MAX_BATCH_BYTES ((size_t)4 * 1024 * 1024)
#define SWEEP_MIN_MS 20
#define TRIM_BUDGET 2000

MEM_TYPE(mem_engine, "engine");

static void on_finish(void *arg)
{
	struct engine *e;

	OBJ_CAST(e, arg, ENGINE_MAGIC);
	engine_run_finished(e);
}

static void on_pump(void *arg)
{
	struct engine *e;

	OBJ_CAST(e, arg, ENGINE_MAGIC);
	engine_pump(e);
}

void engine_finish_later(struct engine *e)
{
	if (!e->freed)
		ev_defer(e->loop, &e->finish, on_finish, e);
}

void engine_pump_later(struct engine *e)
{
	if (!e->freed)
		ev_defer(e->loop, &e->pump, on_pump, e);
}

bool engine_is_told(const struct engine *e)
{
	return e->announced && !e->before.again;
}

bool engine_is_up(const struct engine *e)
{
	return e->phase == ENGINE_READY && engine_is_told(e);
}

bool engine_is_loaded(const struct engine *e)
{
	return e->loaded && engine_is_told(e);
}

struct store *engine_store(struct engine *e)
{
	OBJ_CHECK(e, ENGINE_MAGIC);
	return e->store;
}

void engine_say(struct engine *e, bool up, const char *why)
{
	char line[sizeof e->trouble];

	if (e->freed ||
		(e->database_told && e->database_up == up && (up || strcmp(e->trouble, why) == 0)))
		return;
	snprintf(line, sizeof line, "%s", why);
	memcpy(e->trouble, up ? "" : line, up ? 1 : sizeof line);
	e->database_told = true;
	e->database_up = up;
	if (e->ops.on_database != NULL)
		e->ops.on_database(up, line, e->arg);
}

/* ---- operations ---- */

static void uncount(struct engine *e, struct engine_op *op)
{
	if (op->state != OP_WAITING && op->state != OP_IN_BATCH)
		return;
	e->n_waiting--;
	e->n_waiting_bytes -= op->cost_bytes;
}

void engine_finish_op(struct engine *e, struct engine_op *op, enum etcd_error err)
{
	uncount(e, op);
	if (op->state != OP_NONE)
		list_remove(&op->link);
	op->state = OP_FINISHED;
	op->err = err;
	list_push_back(&e->finished, &op->link);
}

static bool is_full(const struct engine *e, const struct engine_op *op)
{
	return e->n_waiting > 0 &&
	       (e->n_waiting >= e->max_waiting_ops ||
		       e->n_waiting_bytes + op->cost_bytes > e->max_waiting_bytes);
}

void engine_submit(struct engine *e, struct engine_op *op)
{
	OBJ_CHECK(e, ENGINE_MAGIC);
	op->state = OP_NONE;
	op->err = ETCD_OK;
	if (e->draining || is_full(e, op)) {
		e->counts.refused++;
		engine_finish_op(e, op, e->draining ? ETCD_STOPPED : ETCD_TOO_MANY_REQUESTS);
		engine_finish_later(e);
		return;
	}
	op->state = OP_WAITING;
	e->n_waiting++;
	e->n_waiting_bytes += op->cost_bytes;
	list_push_back(&e->queue, &op->link);
	engine_sweep_by(e, op->deadline_ms);
	engine_pump_later(e);
}

void engine_submit_first(struct engine *e, struct engine_op *op)
{
	op->state = OP_WAITING;
	op->err = ETCD_OK;
	e->n_waiting++;
	e->n_waiting_bytes += op->cost_bytes;
	list_push_front(&e->queue, &op->link);
	engine_pump_later(e);
}

void engine_cancel(struct engine *e, struct engine_op *op)
{
	OBJ_CHECK(e, ENGINE_MAGIC);
	if (op->state == OP_NONE)
		return;
	uncount(e, op);
	list_remove(&op->link);
	op->state = OP_NONE;
}

void engine_finish_read(struct engine *e, struct engine_read *r, enum etcd_error err)
{
	list_remove(&r->link);
	r->state = OP_FINISHED;
	r->err = err;
	list_push_back(&e->finished_reads, &r->link);
}

static void wait_for(struct engine *e, struct engine_waiters *w, struct engine_read *r)
{
	r->state = OP_WAITING;
	r->err = ETCD_OK;
	list_push_back(&w->waiting, &r->link);
	engine_sweep_by(e, r->deadline_ms);
	if (e->draining) {
		engine_finish_read(e, r, ETCD_STOPPED);
		engine_finish_later(e);
	}
}

void engine_read(struct engine *e, struct engine_read *r)
{
	OBJ_CHECK(e, ENGINE_MAGIC);
	wait_for(e, &e->reads, r);
	engine_tip_want(e);
}

void engine_confirm(struct engine *e, struct engine_read *r)
{
	OBJ_CHECK(e, ENGINE_MAGIC);
	wait_for(e, &e->confirms, r);
	engine_confirm_next(e);
}

void engine_read_cancel(struct engine *e, struct engine_read *r)
{
	OBJ_CHECK(e, ENGINE_MAGIC);
	if (r->state != OP_NONE)
		list_remove(&r->link);
	r->state = OP_NONE;
}

/* Without the database there is nothing to wait for. */
static void stop_all(struct engine *e)
{
	struct list *const reads[] = {
		&e->reads.waiting, &e->reads.sent, &e->confirms.waiting, &e->confirms.sent};

	list_for_each_safe (it, &e->queue)
		engine_finish_op(e, list_entry(it, struct engine_op, link), ETCD_STOPPED);
	list_for_each (it, &e->flight)
		list_for_each_safe (at, &list_entry(it, struct engine_batch, link)->ops)
			engine_finish_op(e, list_entry(at, struct engine_op, link), ETCD_STOPPED);
	for (size_t i = 0; i < ARRAY_LEN(reads); i++)
		list_for_each_safe (it, reads[i])
			engine_finish_read(
				e, list_entry(it, struct engine_read, link), ETCD_STOPPED);
}

static void maybe_drained(struct engine *e)
{
	if (e->draining && !e->drained && !engine_is_up(e)) {
		stop_all(e);
		if (!list_empty(&e->finished) || !list_empty(&e->finished_reads)) {
			engine_finish_later(e);
			return;
		}
	}
	if (!e->draining || e->drained || e->n_waiting > 0 || !list_empty(&e->reads.waiting) ||
		!list_empty(&e->reads.sent) || !list_empty(&e->confirms.waiting) ||
		!list_empty(&e->confirms.sent))
		return;
	e->drained = true;
	engine_session_stop(e);
	e->on_drained(e->drain_arg);
}

void engine_run_finished(struct engine *e)
{
	while (!e->freed && !list_empty(&e->finished)) {
		struct engine_op *op = list_first(&e->finished, struct engine_op, link);

		list_remove(&op->link);
		op->state = OP_NONE;
		op->done(op, op->err);
	}
	while (!e->freed && !list_empty(&e->finished_reads)) {
		struct engine_read *r = list_first(&e->finished_reads, struct engine_read, link);

		list_remove(&r->link);
		r->state = OP_NONE;
		r->done(r, r->err);
	}
	if (!e->freed)
		maybe_drained(e);
}

void engine_moved(struct engine *e)
{
	if (e->freed)
		return;
	engine_pump(e);
	if (e->moved && engine_is_told(e) && e->ops.on_visible != NULL) {
		e->moved = false;
		e->ops.on_visible(e->arg);
	}
	engine_run_finished(e);
}

/* ---- deadlines ---- */

void engine_sweep_by(struct engine *e, uint64_t deadline_ms)
{
	uint64_t now = ev_now_ms();

	if (deadline_ms == 0 || (e->sweep.active && e->sweep_at_ms <= deadline_ms))
		return;
	if (deadline_ms < now + SWEEP_MIN_MS)
		deadline_ms = now + SWEEP_MIN_MS;
	e->sweep_at_ms = deadline_ms;
	ev_timer_start(&e->sweep, deadline_ms - now);
}

/* True if the deadline has passed; else it counts for the next sweep. */
static bool is_over(uint64_t deadline_ms, uint64_t now, uint64_t *next)
{
	if (deadline_ms == 0)
		return false;
	if (deadline_ms <= now)
		return true;
	if (*next == 0 || deadline_ms < *next)
		*next = deadline_ms;
	return false;
}

static void sweep_ops(struct engine *e, struct list *ops, uint64_t now, uint64_t *next)
{
	list_for_each_safe (it, ops) {
		struct engine_op *op = list_entry(it, struct engine_op, link);

		if (!is_over(op->deadline_ms, now, next))
			continue;
		e->counts.timeouts++;
		engine_finish_op(e, op, ETCD_TIMEOUT);
	}
}

static void sweep_reads(struct engine *e, struct list *reads, uint64_t now, uint64_t *next)
{
	list_for_each_safe (it, reads) {
		struct engine_read *r = list_entry(it, struct engine_read, link);

		if (!is_over(r->deadline_ms, now, next))
			continue;
		e->counts.timeouts++;
		engine_finish_read(e, r, ETCD_TIMEOUT);
	}
}

static void on_sweep(void *arg)
{
	struct engine *e;
	uint64_t now = ev_now_ms(), next = 0;

	OBJ_CAST(e, arg, ENGINE_MAGIC);
	sweep_ops(e, &e->queue, now, &next);
	list_for_each (it, &e->flight)
		sweep_ops(e, &list_entry(it, struct engine_batch, link)->ops, now, &next);
	sweep_reads(e, &e->reads.waiting, now, &next);
	sweep_reads(e, &e->reads.sent, now, &next);
	sweep_reads(e, &e->confirms.waiting, now, &next);
	sweep_reads(e, &e->confirms.sent, now, &next);
	engine_sweep_by(e, next);
	engine_run_finished(e);
}

/* ---- the store's side ---- */

static void on_trim(void *arg)
{
	struct engine *e;

	OBJ_CAST(e, arg, ENGINE_MAGIC);
	if (store_trim(e->store, TRIM_BUDGET))
		ev_defer(e->loop, &e->trim, on_trim, e);
}

void engine_trim_later(struct engine *e)
{
	ev_defer(e->loop, &e->trim, on_trim, e);
}

static void on_store_row(const struct store_row *row, void *arg)
{
	struct engine *e;

	OBJ_CAST(e, arg, ENGINE_MAGIC);
	engine_row_made(e, row);
}

static void on_store_visible(const struct store_row *row, void *arg)
{
	struct engine *e;

	OBJ_CAST(e, arg, ENGINE_MAGIC);
	if (e->phase == ENGINE_LOADING)
		return;
	if (row->kind == STORE_COMPACT)
		engine_trim_later(e);
	if (engine_is_told(e) && e->ops.on_row != NULL)
		e->ops.on_row(row, e->arg);
}

/* ---- life ---- */

static size_t or_default(size_t value, size_t def)
{
	return value != 0 ? value : def;
}

struct engine *engine_new(struct ev_loop *loop, const struct engine_options *options,
	const struct engine_ops *ops, void *arg)
{
	static const struct store_ops store_ops = {
		.on_row = on_store_row, .on_visible = on_store_visible};
	struct engine *e = mem_new(&mem_engine, sizeof *e);
	struct list *const lists[] = {&e->queue, &e->finished, &e->finished_reads, &e->flight,
		&e->reads.waiting, &e->reads.sent, &e->confirms.waiting, &e->confirms.sent};

	e->magic = ENGINE_MAGIC;
	e->loop = loop;
	e->ops = *ops;
	e->arg = arg;
	e->conninfo = xstrdup(options->conninfo);
	e->node = xstrdup(options->node);
	e->advertise_url = xstrdup(options->advertise_url != NULL ? options->advertise_url : "");
	e->quota_bytes = options->quota_bytes;
	e->max_waiting_ops = or_default(options->max_waiting_ops, MAX_WAITING_OPS);
	e->max_waiting_bytes = or_default(options->max_waiting_bytes, MAX_WAITING_BYTES);
	e->max_batch_ops = or_default(options->max_batch_ops, MAX_BATCH_OPS);
	e->max_batch_bytes = or_default(options->max_batch_bytes, MAX_BATCH_BYTES);
	for (size_t i = 0; i < ARRAY_LEN(lists); i++)
		list_init(lists[i]);
	ev_timer_init(&e->sweep, loop, "engine deadlines", on_sweep, e);
	ev_timer_init(&e->rung_again, loop, "engine bell", engine_on_rung_again, e);
	e->store = store_new(e->node, &store_ops, e);
	engine_session_new(e);
	e->aux = engine_aux_new(e);
	return e;
}

static void destroy(void *arg)
{
	struct engine *e;

	OBJ_CAST(e, arg, ENGINE_MAGIC);
	engine_drop_batches(e);
	log_rows_free(&e->rows);
	store_free(&e->store);
	free(e->conninfo);
	free(e->node);
	free(e->advertise_url);
	e->magic = 0;
	mem_free(&mem_engine, e);
}

void engine_free(struct engine **ep)
{
	struct engine *e = *ep;

	if (e == NULL)
		return;
	OBJ_CHECK(e, ENGINE_MAGIC);
	*ep = NULL;
	ASSERT(!e->freed);
	e->freed = true;
	engine_aux_free(&e->aux);
	engine_session_free(e);
	ev_timer_stop(&e->sweep);
	ev_timer_stop(&e->rung_again);
	ev_defer_cancel(e->loop, &e->pump);
	ev_defer_cancel(e->loop, &e->finish);
	ev_defer_cancel(e->loop, &e->trim);
	/* A result callback of ours may be on the stack. */
	ev_defer(e->loop, &e->destroy, destroy, e);
}

void engine_drain(struct engine *e, void (*cb)(void *arg), void *arg)
{
	OBJ_CHECK(e, ENGINE_MAGIC);
	ASSERT(!e->draining);
	e->draining = true;
	e->on_drained = cb;
	e->drain_arg = arg;
	engine_finish_later(e);
}

void engine_get_counts(const struct engine *e, struct engine_counts *ret_counts)
{
	*ret_counts = e->counts;
	ret_counts->ops_waiting = e->n_waiting;
	ret_counts->bytes_waiting = e->n_waiting_bytes;
	ret_counts->batches_in_flight = e->n_flight;
	ret_counts->reads_waiting = 0;
	list_for_each (it, &e->reads.waiting)
		ret_counts->reads_waiting++;
	list_for_each (it, &e->reads.sent)
		ret_counts->reads_waiting++;
	ret_counts->up = engine_is_up(e);
	ret_counts->trouble = e->trouble;
}

uint64_t engine_member_id(const char *node)
{
	uint64_t h = UINT64_C(14695981039346656037); /* FNV-1a, then mixed: names are short */

	for (; *node != '\0'; node++)
		h = (h ^ (uint8_t)*node) * UINT64_C(1099511628211);
	h ^= h >> 33;
	h *= UINT64_C(0xff51afd7ed558ccd);
	h ^= h >> 33;
	return h != 0 ? h : 1;
}
