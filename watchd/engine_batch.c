/* SPDX-License-Identifier: PostgreSQL */
/*
 * Evaluation, batches in flight, the turn.
 *
 * flight, in the order of evaluation; R are batches with rows, p are proofs:
 *
 *   e->tip -- p -- R1 -- p -- R2 -- p      at most ENGINE_FLIGHT_MAX R; each R on the one before
 *
 * R is committed   its INSERT says so, or a tip read shows a row of it (a batch is one statement).
 * R is lost        its INSERT inserted nothing, or a tip read shows another's row in its place:
 * then everything from there on is. Ops go back to the front of the queue, in order. p is settled
 * - the next R is committed: in the moment before, the state was p's;
 *                  - a tip read that was begun after p shows p's base as the tip, or shows it not
 *                    committed yet, and later it is.
 *
 * The turn: a node that lost twice in a row queues for it. In its transaction nobody else can
 * insert: lock, tip read, evaluation, INSERT, COMMIT.
 *
 *   NONE -> TAKING (lock, tip read) -> HELD (INSERT, COMMIT) -> NONE
 *
 * Context: event thread.
 */
#include "config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "common/base/log.h"
#include "common/base/mem.h"
#include "watchd/engine_int.h"

#define UNIQUE_VIOLATION "23505"

MEM_TYPE(mem_batch, "engine batch");

/* Positive. */
static int64_t next_token(struct engine *e)
{
	int64_t token;

	do {
		if (e->n_tokens == 0) {
			ssize_t n = getrandom(e->tokens, sizeof e->tokens, 0);

			ASSERT(n == sizeof e->tokens);
			e->n_tokens = ENGINE_TOKENS;
		}
		token = e->tokens[--e->n_tokens] & INT64_MAX;
	} while (token == 0);
	return token;
}

static void free_if_over(struct engine_batch *b)
{
	if (b->live || b->n_answers > 0)
		return;
	ASSERT(list_empty(&b->ops));
	mem_free(&mem_batch, b);
}

static void leave_flight(struct engine *e, struct engine_batch *b)
{
	list_remove(&b->link);
	b->live = false;
	if (b->n_rows > 0)
		e->n_flight--;
}

static void add_answer(struct engine_batch *b)
{
	if (b->n_answers++ == 0)
		b->owner->n_wire++;
}

static void drop_answer(struct engine_batch *b)
{
	if (--b->n_answers == 0)
		b->owner->n_wire--;
}

struct engine_batch *engine_first_with_rows(struct engine *e)
{
	list_for_each (it, &e->flight) {
		struct engine_batch *b = list_entry(it, struct engine_batch, link);

		if (b->n_rows > 0)
			return b;
	}
	return NULL;
}

/* Where the next entry goes: behind the last batch in flight. */
static struct log_tip head_tip(struct engine *e)
{
	for (struct list *it = e->flight.prev; it != &e->flight; it = it->prev) {
		struct engine_batch *b = list_entry(it, struct engine_batch, link);

		if (b->n_rows > 0)
			return (struct log_tip){.seq = b->last_seq, .batch = b->token};
	}
	return e->tip;
}

void engine_set_tip(struct engine *e, struct log_tip tip)
{
	e->tip = tip;
	e->known[e->n_known++ % ENGINE_KNOWN] = tip;
}

/* ---- the end of a batch ---- */

/* All its ops have their answers. */
static void settle(struct engine *e, struct engine_batch *b)
{
	while (!list_empty(&b->ops)) {
		struct engine_op *op = list_first(&b->ops, struct engine_op, link);

		engine_finish_op(e, op, op->err);
	}
	leave_flight(e, b);
	free_if_over(b);
}

void engine_batch_committed(struct engine *e, struct engine_batch *b)
{
	struct log_tip tip = {.seq = b->last_seq, .batch = b->token};
	bool turn = b->turn;
	struct engine_batch *first;

	ASSERT(b->live && b->n_rows > 0 && b->base.seq == e->tip.seq);
	e->counts.batches++;
	e->counts.rows += b->n_rows;
	e->counts.entries += (uint64_t)(b->last_seq - b->base.seq);
	engine_set_tip(e, tip);
	e->moved = true;
	do {
		first = list_first(&e->flight, struct engine_batch, link);
		settle(e, first);
	} while (first != b);
	while (!list_empty(&e->flight)) {
		first = list_first(&e->flight, struct engine_batch, link);
		if (first->n_rows > 0 || !first->armed)
			break;
		settle(e, first);
	}
	/* Under contention one loss more is enough to queue again. */
	e->n_losses = turn ? ENGINE_LOSSES_FOR_TURN - 1 : 0;
	e->turn_wanted = false;
	ev_backoff_reset(&e->backoff);
	writer_session_works(e->writer);
	store_commit(e->store, tip.seq);
}

/* Ops of all batches back into the queue's front, or finished with err. */
static void empty_flight(struct engine *e, bool fail_rows)
{
	struct list again = LIST_INIT(again);

	while (!list_empty(&e->flight)) {
		struct engine_batch *b = list_first(&e->flight, struct engine_batch, link);

		while (!list_empty(&b->ops)) {
			struct engine_op *op = list_first(&b->ops, struct engine_op, link);

			if (fail_rows && b->n_rows > 0) {
				engine_finish_op(e, op, ETCD_TIMEOUT);
				continue;
			}
			list_remove(&op->link);
			op->state = OP_WAITING;
			list_push_back(&again, &op->link);
		}
		leave_flight(e, b);
		free_if_over(b);
	}
	list_splice_back(&again, &e->queue);
	list_splice_back(&e->queue, &again);
}

void engine_lose_flight(struct engine *e)
{
	empty_flight(e, false);
	if (store_head_seq(e->store) > e->tip.seq)
		store_rollback(e->store, e->tip.seq);
}

void engine_fail_flight(struct engine *e)
{
	empty_flight(e, true);
}

void engine_count_loss(struct engine *e)
{
	e->counts.lost_batches++;
	if (++e->n_losses >= ENGINE_LOSSES_FOR_TURN)
		e->turn_wanted = true;
}

void engine_settle_proofs(struct engine *e, uint64_t n)
{
	list_for_each_safe (it, &e->flight) {
		struct engine_batch *b = list_entry(it, struct engine_batch, link);

		if (b->n_rows > 0 || b->tip_number > n)
			continue;
		ASSERT(b->base.seq >= e->tip.seq);
		if (b->base.seq == e->tip.seq)
			settle(e, b);
		else
			b->armed = true;
	}
}

void engine_drop_batches(struct engine *e)
{
	while (!list_empty(&e->flight)) {
		struct engine_batch *b = list_first(&e->flight, struct engine_batch, link);

		list_init(&b->ops); /* their owners' */
		leave_flight(e, b);
		ASSERT(b->n_answers == 0);
		free_if_over(b);
	}
}

/* ---- answers ---- */

void engine_rest(struct engine *e, const char *why)
{
	ev_timer_start(&e->again, ev_backoff_next_ms(&e->backoff));
	engine_say(e, false, why);
}

static void note_refusal(struct engine_batch *b, const PGresult *res)
{
	const char *state = PQresultErrorField(res, PG_DIAG_SQLSTATE);

	b->refused = true;
	b->lost |= state != NULL && strcmp(state, UNIQUE_VIOLATION) == 0;
	if (b->why[0] == '\0')
		pg_result_error(res, b->why, sizeof b->why);
}

static void note_count(struct engine_batch *b, uint64_t n)
{
	ASSERT(n == 0 || n == b->n_rows);
	if (n == 0)
		b->refused = b->lost = true;
}

/* Of the INSERT, and of a turn's COMMIT. */
static void on_statement(PGresult *res, void *arg)
{
	struct engine_batch *b = arg;
	ExecStatusType status = PQresultStatus(res);

	drop_answer(b);
	if (res != NULL && status != PGRES_PIPELINE_ABORTED && status != PGRES_COMMAND_OK)
		note_refusal(b, res);
	else if (status == PGRES_COMMAND_OK && strncmp(PQcmdStatus(res), "INSERT", 6) == 0)
		note_count(b, strtoull(PQcmdTuples(res), NULL, 10));
	free_if_over(b);
}

/* It is not in the log, and what is behind it cannot be. */
static void batch_refused(struct engine *e, struct engine_batch *b)
{
	char why[sizeof b->why];
	bool lost = b->lost;

	memcpy(why, b->why, sizeof why);
	engine_lose_flight(e);
	engine_tip_want_fresh(e);
	e->refused = !lost;
	if (lost)
		engine_count_loss(e);
	else
		engine_rest(e, why);
}

static void on_sync(PGresult *res, void *arg)
{
	struct engine_batch *b = arg;
	struct engine *e = b->owner;

	drop_answer(b);
	if (e->freed || pg_sync_leaves_doubt(res)) {
		free_if_over(b);
		return;
	}
	if (PQresultStatus(res) != PGRES_PIPELINE_SYNC)
		note_refusal(b, res);
	if (b->turn) {
		if (b->refused)
			engine_turn_give_up(e);
		e->turn = TURN_NONE;
	}
	if (!b->live) {
		free_if_over(b);
		engine_pump_later(e);
	} else if (b->refused) {
		batch_refused(e, b);
		engine_moved(e);
	} else {
		engine_batch_committed(e, b);
		e->refused = false;
		engine_say(e, true, "writing");
		engine_moved(e);
	}
}

/* ---- forming ---- */

void engine_row_made(struct engine *e, const struct store_row *row)
{
	ASSERT(e->building != NULL);
	log_rows_add(&e->rows, row);
}

static void raise_alarm(struct engine *e);

/* Above the quota, or the alarm is on: nothing that grows. */
static bool has_no_space(struct engine *e, const struct engine_op *op)
{
	struct store_counts counts;

	if (!op->grows)
		return false;
	if (store_has_alarm(e->store, ENGINE_ALARM_NOSPACE))
		return true;
	if (e->quota_bytes == 0)
		return false;
	store_get_counts(e->store, &counts);
	if (counts.log_bytes + op->cost_bytes <= e->quota_bytes)
		return false;
	raise_alarm(e);
	return true;
}

static void evaluate(struct engine *e, struct engine_batch *b, struct engine_op *op)
{
	if (has_no_space(e, op)) {
		op->err = ETCD_NO_SPACE;
	} else {
		store_begin(e->store);
		op->err = op->eval(op, e->store);
		if (op->err == ETCD_OK)
			store_end(e->store);
		else
			store_abort(e->store);
	}
	list_remove(&op->link);
	op->state = OP_IN_BATCH;
	list_push_back(&b->ops, &op->link);
}

/* What is waiting, up to the limits, evaluated at the head. Joins flight. */
static struct engine_batch *form_batch(struct engine *e, bool turn)
{
	struct engine_batch *b = mem_new(&mem_batch, sizeof *b);
	uint64_t now_ms = ev_now_ms();
	size_t n = 0;

	b->owner = e;
	b->live = true;
	b->turn = turn;
	b->base = head_tip(e);
	list_init(&b->ops);
	e->building = b;
	ASSERT(e->rows.n == 0);
	while (!list_empty(&e->queue) && n++ < e->max_batch_ops &&
		e->rows.n_bytes < e->max_batch_bytes) {
		struct engine_op *op = list_first(&e->queue, struct engine_op, link);

		if (op->deadline_ms != 0 && op->deadline_ms <= now_ms) {
			e->counts.timeouts++;
			engine_finish_op(e, op, ETCD_TIMEOUT);
			engine_finish_later(e);
			continue;
		}
		evaluate(e, b, op);
		if (op ==
			&e->era) /* headers carry the cluster id: nothing is evaluated before it */
			break;
	}
	e->building = NULL;
	b->n_rows = e->rows.n;
	b->last_seq = b->n_rows > 0 ? e->rows.last_seq : b->base.seq;
	ASSERT(b->n_rows == 0 || e->rows.first_seq == b->base.seq + 1);
	ASSERT(b->last_seq == store_head_seq(e->store));
	list_push_back(&e->flight, &b->link);
	if (b->n_rows > 0) {
		e->n_flight++;
		b->token = next_token(e);
	} else {
		b->tip_number = e->tip_number + 1;
	}
	return b;
}

static int send_statement(struct engine *e, struct engine_batch *b, const char *sql)
{
	struct pgconn_query q = {.sql = sql};
	int err = pgconn_query(e->write, &q, on_statement, b);

	if (err == 0)
		add_answer(b);
	return err;
}

static void send_batch(struct engine *e, struct engine_batch *b)
{
	int err = 0;

	if (b->n_rows > 0) {
		err = log_send_insert(
			e->write, &e->rows, b->base, b->token, e->node, b->turn, on_statement, b);
		if (err == 0)
			add_answer(b);
		log_rows_reset(&e->rows);
	}
	if (err == 0 && b->turn)
		err = send_statement(e, b, "COMMIT");
	if (err == 0)
		err = pgconn_sync(e->write, on_sync, b);
	if (err == 0)
		add_answer(b);
	(void)err; /* the connection breaks: the batch is in doubt */
}

/* ---- the turn ---- */

static void on_turn_statement(PGresult *res, void *arg)
{
	struct engine *e;
	ExecStatusType status = PQresultStatus(res);
	char why[256];

	OBJ_CAST(e, arg, ENGINE_MAGIC);
	if (e->freed || res == NULL || status == PGRES_COMMAND_OK || status == PGRES_TUPLES_OK ||
		status == PGRES_PIPELINE_ABORTED || e->turn != TURN_TAKING)
		return;
	engine_turn_give_up(e);
	engine_rest(e, pg_result_error(res, why, sizeof why));
}

static void take_turn(struct engine *e)
{
	static const char *const steps[] = {log_turn_begin, log_turn_limit, log_turn_take};
	int err = 0;

	e->turn = TURN_TAKING;
	e->counts.turns++;
	for (size_t i = 0; i < ARRAY_LEN(steps) && err == 0; i++) {
		struct pgconn_query q = {.sql = steps[i]};

		err = pgconn_query(e->write, &q, on_turn_statement, e);
	}
	if (err == 0)
		err = engine_tip_in_turn(e);
	(void)err; /* the connection breaks */
}

void engine_turn_give_up(struct engine *e)
{
	if (e->turn == TURN_NONE)
		return;
	e->turn = TURN_NONE;
	e->turn_pass.busy = false;
	/* If it cannot be sent, the transaction ends with the connection. */
	if (pgconn_simple(e->write, "ROLLBACK", 0, NULL, NULL, NULL) != 0)
		log_debug("engine.turn", "connection lost in the turn");
}

void engine_turn_ready(struct engine *e)
{
	struct engine_batch *b;

	e->turn_wanted = false;
	e->n_losses = 0;
	if (list_empty(&e->queue)) {
		engine_turn_give_up(e);
		return;
	}
	e->turn = TURN_HELD;
	b = form_batch(e, true);
	if (b->n_rows == 0) {
		b->turn = false;
		engine_turn_give_up(e);
		engine_tip_want(e);
		return;
	}
	send_batch(e, b);
}

/* ---- the pump ---- */

/* Headers carry the cluster id: until the era is told, nothing else is evaluated. */
static bool is_era_next(const struct engine *e)
{
	return list_empty(&e->flight) && !list_empty(&e->queue) && e->queue.next == &e->era.link;
}

static bool can_send(const struct engine *e)
{
	return !e->freed && e->phase == ENGINE_READY && e->tip_fresh == 0 && !e->again.active &&
	       e->turn == TURN_NONE && writer_session_is_held(e->writer) &&
	       !list_empty(&e->queue) && e->n_flight < ENGINE_FLIGHT_MAX &&
	       e->n_wire < ENGINE_WIRE_MAX && (!e->era_busy || is_era_next(e));
}

void engine_pump(struct engine *e)
{
	engine_confirm_next(e);
	engine_tip_begin(e);
	while (can_send(e)) {
		struct engine_batch *b;

		if (e->turn_wanted) {
			if (e->n_wire == 0 && e->turn_pass.n_syncs == 0)
				take_turn(e);
			return;
		}
		b = form_batch(e, false);
		if (b->n_rows > 0) {
			send_batch(e, b);
			continue;
		}
		e->tip_wanted = true;
		engine_tip_begin(e);
	}
}

/* ---- the alarm ---- */

static enum etcd_error eval_alarm(struct engine_op *op, struct store *s)
{
	(void)op;
	store_alarm(s, ENGINE_ALARM_NOSPACE);
	return ETCD_OK;
}

static void on_alarm(struct engine_op *op, enum etcd_error err)
{
	struct engine *e = list_entry(op, struct engine, alarm);

	(void)err; /* the next one that grows raises it again */
	e->alarm_busy = false;
}

static void raise_alarm(struct engine *e)
{
	if (e->alarm_busy)
		return;
	e->alarm_busy = true;
	e->alarm.eval = eval_alarm;
	e->alarm.done = on_alarm;
	e->alarm.state = OP_WAITING;
	e->alarm.err = ETCD_OK;
	e->n_waiting++;
	list_push_back(&e->queue, &e->alarm.link);
}
