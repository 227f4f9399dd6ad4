/* SPDX-License-Identifier: PostgreSQL */
/*
 * The tip read: what is in the log from our tip on. It is the one answer to: is this read new
 * enough, what did the others write, what became of the batch in doubt, who was faster, is this
 * still the same history.
 *
 *   rows of a batch of ours in flight   it is committed
 *   other rows, next in order           applied; what is in flight above our tip is lost
 *   our tip's row missing or another's, a gap, a row that does not follow
 *                                       memory does not fit: engine_load_again
 *
 * The ring may announce what no other session sees yet: then it is read again until it shows.
 *
 * A pass is one tip read in as many steps as it takes. On the reader's connection one at a time,
 * shared by all reads that waited when it began; in a turn one more on the writer's.
 *
 * Only whole entries of a step are applied; the next step begins behind them.
 *
 * Context: event thread.
 */
#include "config.h"

#include <stdio.h>
#include <string.h>

#include "common/base/log.h"
#include "common/base/mem.h"
#include "watchd/engine_int.h"

#define STEP_BYTES (1024 * 1024)
#define STEP_ROWS 1000
#define RUNG_QUICK 5 /* reads without a rest */
#define RUNG_REST_MS 20
#define RUNG_MS 60000
#define STEP_ROWS_MAX (1 << 28) /* of an entry that is larger than a step */

static int send_step(struct engine_pass *p);

static bool can_begin(const struct engine *e)
{
	return !e->freed && !e->pass.busy && !e->tip_resting && e->pass.n_syncs == 0 &&
	       e->reader_ready && (e->phase == ENGINE_CATCHING_UP || e->phase == ENGINE_READY) &&
	       pgconn_get_state(e->reader) == PGCONN_UP;
}

static void begin(struct engine *e)
{
	struct engine_pass *p = &e->pass;

	p->owner = e;
	p->busy = true;
	p->failed = false;
	p->number = ++e->tip_number;
	p->limit = STEP_ROWS;
	e->tip_wanted = false;
	e->counts.tip_reads++;
	if (engine_is_told(e)) /* else a new history may have to begin first */
		list_splice_back(&e->reads.sent, &e->reads.waiting);
	if (send_step(p) != 0) /* the connection breaks: engine_tip_lost follows */
		p->failed = true;
}

void engine_tip_want(struct engine *e)
{
	e->tip_wanted = true;
	engine_pump_later(e); /* all reads of this pass of the loop share it */
}

void engine_tip_begin(struct engine *e)
{
	if ((e->tip_wanted || (engine_is_told(e) && !list_empty(&e->reads.waiting))) &&
		can_begin(e))
		begin(e);
}

void engine_tip_want_fresh(struct engine *e)
{
	e->tip_fresh = e->tip_number + 1;
	engine_tip_want(e);
}

int engine_tip_in_turn(struct engine *e)
{
	struct engine_pass *p = &e->turn_pass;

	p->owner = e;
	p->in_turn = true;
	p->busy = true;
	p->failed = false;
	p->number = ++e->tip_number;
	p->limit = STEP_ROWS;
	e->counts.tip_reads++;
	return send_step(p);
}

void engine_tip_lost(struct engine *e)
{
	e->pass.busy = false;
	/* In order: those that were sent are older. */
	list_splice_back(&e->reads.sent, &e->reads.waiting);
	list_splice_back(&e->reads.waiting, &e->reads.sent);
}

void engine_bell(struct engine *e, int64_t seq)
{
	OBJ_CHECK(e, ENGINE_MAGIC);
	if (seq != 0 && seq <= e->tip.seq)
		return;
	if (seq > e->rung) {
		e->rung = seq;
		e->rung_ms = ev_now_ms();
		e->rung_tries = 0;
	}
	engine_tip_want(e);
}

void engine_on_rung_again(void *engine)
{
	struct engine *e;

	OBJ_CAST(e, engine, ENGINE_MAGIC);
	engine_tip_want(e);
}

/* A commit is decoded as soon as it is flushed, and seen by others a moment later, or when a
 * synchronous standby has it. One that never shows belongs to a history that is gone. */
static void await_rung(struct engine *e)
{
	unsigned tries = e->rung_tries++;

	if (e->rung <= e->tip.seq || ev_now_ms() - e->rung_ms > RUNG_MS)
		e->rung = 0;
	else if (tries < RUNG_QUICK)
		e->tip_wanted = true;
	else if (!e->rung_again.active)
		ev_timer_start(&e->rung_again,
			tries - RUNG_QUICK < RUNG_REST_MS ? tries - RUNG_QUICK + 1 : RUNG_REST_MS);
}

/* ---- what a step shows ---- */

/* Index behind the last row of the last whole entry. */
static int whole_rows(const PGresult *res)
{
	struct store_row row;
	int64_t batch;
	int n = PQntuples(res);

	while (n > 0 && log_decode(res, n - 1, &row, &batch) && !row.last)
		n--;
	return n;
}

/* Another node's row, next in order. False: it does not follow. */
static bool apply_foreign(struct engine *e, const struct store_row *row, int64_t batch)
{
	if (row->seq != e->tip.seq + 1)
		return false; /* a gap: what is in flight may have been in it, and be removed */
	if (!list_empty(&e->flight)) {
		if (e->n_flight > 0)
			engine_count_loss(e);
		engine_lose_flight(e);
	}
	if (store_apply(e->store, row, false) != 0)
		return false;
	e->counts.tip_rows++;
	if (!row->last)
		return true;
	engine_set_tip(e, (struct log_tip){.seq = row->seq, .batch = batch});
	e->moved = true;
	store_commit(e->store, row->seq);
	return true;
}

/* NULL, or why memory does not fit. */
static const char *take_row(struct engine *e, const struct store_row *row, int64_t batch)
{
	struct engine_batch *ours;

	if (row->seq <= e->tip.seq)
		return NULL;
	ours = engine_first_with_rows(e);
	if (ours != NULL && ours->token == batch) {
		if (row->seq != ours->base.seq + 1)
			return "entries are missing in the log";
		if (ours->n_answers == 0)
			e->counts.in_doubt_found++;
		engine_batch_committed(e, ours);
		return NULL;
	}
	return apply_foreign(e, row, batch) ? NULL : "entries are missing in the log";
}

static const char *check_base(const struct engine_pass *p, const PGresult *res)
{
	struct store_row row;
	int64_t batch;

	if (p->from.seq == 0)
		return NULL;
	if (PQntuples(res) == 0 || !log_decode(res, 0, &row, &batch) || row.seq != p->from.seq)
		return "the last entry known is not in the log";
	return batch == p->from.batch ? NULL : "the last entry known is another one in the log";
}

/* NULL, or why memory does not fit. Sets p->more. */
static const char *take_step(struct engine_pass *p, const PGresult *res)
{
	struct engine *e = p->owner;
	int base = p->from.seq > 0, n = PQntuples(res), whole = whole_rows(res);
	const char *why = check_base(p, res);

	if (why != NULL)
		return why;
	p->more = n - base >= p->limit;
	if (!p->more && whole < n && whole >= base && n > base)
		return "an entry's end is missing in the log";
	for (int i = base; i < whole && why == NULL; i++) {
		struct store_row row;
		int64_t batch;

		why = log_decode(res, i, &row, &batch) ? take_row(e, &row, batch)
						       : "the log has a row that is none";
	}
	if (p->more && whole <= base)
		p->limit = p->limit < STEP_ROWS_MAX ? p->limit * 4 : p->limit;
	else if (p->more)
		p->limit = log_rows_for_bytes(res, STEP_BYTES);
	return why;
}

static void on_step(PGresult *res, void *arg)
{
	struct engine_pass *p = arg;
	struct engine *e = p->owner;
	const char *why;
	char text[256];

	if (e->freed || !p->busy)
		return;
	p->more = false;
	if (PQresultStatus(res) != PGRES_TUPLES_OK) {
		p->failed = true;
		if (res != NULL && PQresultStatus(res) != PGRES_PIPELINE_ABORTED)
			engine_rest(e, pg_result_error(res, text, sizeof text));
		return;
	}
	why = take_step(p, res);
	if (why != NULL)
		engine_load_again(e, why);
}

static void pass_over(struct engine_pass *p)
{
	struct engine *e = p->owner;

	p->busy = false;
	if (e->phase == ENGINE_CATCHING_UP)
		engine_caught_up(e);
	engine_settle_proofs(e, p->number);
	if (e->tip_fresh != 0 && p->number >= e->tip_fresh)
		e->tip_fresh = 0;
	if (p->in_turn) {
		engine_turn_ready(e);
	} else {
		while (!list_empty(&e->reads.sent))
			engine_finish_read(
				e, list_first(&e->reads.sent, struct engine_read, link), ETCD_OK);
	}
	if (!e->refused)
		engine_say(e, true, "reading");
	engine_moved(e);
	await_rung(e);
	engine_tip_begin(e);
}

static void on_sync(PGresult *res, void *arg)
{
	struct engine_pass *p = arg;
	struct engine *e = p->owner;

	p->n_syncs--;
	if (e->freed || !p->busy || PQresultStatus(res) != PGRES_PIPELINE_SYNC)
		return; /* lost: engine_tip_lost follows */
	if (p->failed) {
		p->busy = false;
		if (p->in_turn) {
			engine_turn_give_up(e);
		} else {
			engine_tip_lost(e);
			e->tip_wanted = true;
			e->tip_resting = e->again.active;
		}
		return;
	}
	if (p->more && send_step(p) != 0)
		p->failed = true; /* the connection breaks */
	if (!p->more)
		pass_over(p);
}

static int send_step(struct engine_pass *p)
{
	struct engine *e = p->owner;
	struct pgconn *c = p->in_turn ? e->write : e->reader;
	int err;

	p->from = e->tip;
	err = log_send_tip(c, p->from.seq, p->limit, on_step, p);
	if (err == 0)
		err = pgconn_sync(c, on_sync, p);
	if (err == 0)
		p->n_syncs++;
	return err;
}

/* ---- is our place still ours ---- */

static void on_confirmed(PGresult *res, void *arg)
{
	struct engine *e;

	OBJ_CAST(e, arg, ENGINE_MAGIC);
	if (e->freed || res == NULL)
		return;                               /* lost: engine_confirm_lost follows */
	if (PQresultStatus(res) != PGRES_TUPLES_OK) { /* within a turn that failed: again */
		engine_confirm_lost(e);
		engine_pump_later(e);
		return;
	}
	e->confirms.busy = false;
	while (!list_empty(&e->confirms.sent))
		engine_finish_read(
			e, list_first(&e->confirms.sent, struct engine_read, link), ETCD_OK);
	engine_confirm_next(e);
	engine_run_finished(e);
}

void engine_confirm_next(struct engine *e)
{
	if (e->confirms.busy || list_empty(&e->confirms.waiting) || !engine_is_up(e) ||
		!writer_session_is_held(e->writer))
		return;
	list_splice_back(&e->confirms.sent, &e->confirms.waiting);
	e->confirms.busy = pgconn_simple(e->write, "SELECT", 0, NULL, on_confirmed, e) == 0;
}

void engine_confirm_lost(struct engine *e)
{
	e->confirms.busy = false;
	list_splice_back(&e->confirms.sent, &e->confirms.waiting);
	list_splice_back(&e->confirms.waiting, &e->confirms.sent);
}
