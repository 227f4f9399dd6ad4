/* SPDX-License-Identifier: PostgreSQL */
/*
 * The engine's connections, loading, and the beginning of a history.
 *
 *   writer held (the old backend is gone, its commits are safe)
 *     -> writer prepared -> reader and aux connect to the same server
 *       -> memory is empty: LOADING -> CATCHING_UP
 *          memory is there:           CATCHING_UP
 *            -> first tip read over: what was in doubt is decided -> READY
 *   writer lost: the reader is closed too, DOWN; batches in flight stay in doubt, memory stays
 *
 * A history begins with an ERA entry, a random cluster id. Whoever finds an empty log writes it;
 * and whoever finds that the database went back, unless somebody did since.
 *
 * The database went back (restored, or an asynchronous standby took over) if after loading anew
 * what we had seen committed is not in it: the cluster id is another; the log is shorter; an entry
 * that we know has another batch; or none that we know is left and no compaction that we had not
 * seen explains that.
 *
 * Context: event thread.
 */
#include "config.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>

#include "common/base/err.h"
#include "common/base/log.h"
#include "common/base/mem.h"
#include "watchd/engine_int.h"

static void set_phase(struct engine *e, enum engine_phase phase)
{
	static const char *const names[] = {"DOWN", "LOADING", "CATCHING_UP", "READY"};

	if (e->phase != phase)
		log_debug("engine.phase", "%s -> %s", names[e->phase], names[phase]);
	e->phase = phase;
}

/* ---- the beginning of a history ---- */

static enum etcd_error eval_era(struct engine_op *op, struct store *s)
{
	struct engine *e = list_entry(op, struct engine, era);
	uint64_t id = 0;

	if (store_cluster_id(s) != e->era_over) /* another node was faster */
		return ETCD_OK;
	while (id == 0 || id == e->era_over) {
		ssize_t n = getrandom(&id, sizeof id, 0);

		ASSERT(n == sizeof id);
	}
	store_era(s, id);
	return ETCD_OK;
}

static void announce(struct engine *e)
{
	engine_say(e, true, "loaded");
	if (!e->announced) {
		e->announced = true;
		e->before.again = false;
		e->ops.on_loaded(e->arg);
	} else if (e->before.again) {
		e->before.again = false;
		e->ops.on_reloaded(e->before.went_back, e->arg);
	}
	engine_trim_later(e);
	e->moved = true; /* what came while nobody could be told */
}

static void submit_era(struct engine *e);

static void on_era(struct engine_op *op, enum etcd_error err)
{
	struct engine *e = list_entry(op, struct engine, era);

	e->era_busy = false;
	if (err == ETCD_OK) {
		announce(e);
		engine_moved(e);
	} else if (!e->draining) {
		submit_era(e);
	}
}

static void submit_era(struct engine *e)
{
	e->era_busy = true;
	e->era.eval = eval_era;
	e->era.done = on_era;
	engine_submit_first(e, &e->era);
}

/* After a load: the cluster id must be there, and be another if the database went back. */
static void begin_history(struct engine *e)
{
	uint64_t id = store_cluster_id(e->store);

	if (e->era_busy)
		return;
	e->era_over = id;
	if (id == 0 || (e->before.again && e->before.went_back && id == e->before.cluster_id))
		submit_era(e);
	else
		announce(e);
}

void engine_caught_up(struct engine *e)
{
	if (e->n_flight > 0) {
		e->counts.in_doubt_again += e->n_flight;
		log_debug("engine.doubt", "%zu batches were not committed", e->n_flight);
	}
	engine_lose_flight(e);
	set_phase(e, ENGINE_READY);
	if (!e->announced || e->before.again)
		begin_history(e);
	else
		engine_say(e, true, "connected");
}

/* ---- loading ---- */

static void look_at_known(struct engine *e, const struct log_tip *tip)
{
	while (e->before.at < e->before.n_known && e->before.known[e->before.at].seq < tip->seq)
		e->before.at++;
	if (e->before.at == e->before.n_known || e->before.known[e->before.at].seq != tip->seq)
		return;
	if (e->before.known[e->before.at].batch == tip->batch)
		e->before.same = true;
	else
		e->before.other = true;
}

static int on_load_row(const struct store_row *row, int64_t batch, void *arg)
{
	struct engine *e;
	struct log_tip tip = {.seq = row->seq, .batch = batch};
	int err;

	OBJ_CAST(e, arg, ENGINE_MAGIC);
	err = store_apply(e->store, row, true);
	if (err != 0)
		return err;
	e->load_tip = tip;
	look_at_known(e, &tip);
	if (!row->last)
		return 0;
	e->load_whole = row->seq;
	engine_set_tip(e, tip);
	return 0;
}

static void on_load_chunk(void *arg)
{
	struct engine *e;

	OBJ_CAST(e, arg, ENGINE_MAGIC);
	if (e->load_whole > store_visible_seq(e->store))
		store_commit(e->store, e->load_whole);
}

static bool went_back(const struct engine *e)
{
	if (store_cluster_id(e->store) != e->before.cluster_id || e->before.other)
		return true;
	if (e->load_tip.seq < e->before.tip.seq)
		return true;
	return !e->before.same && store_compact_rev(e->store) < e->before.rev;
}

static void start_load(struct engine *e);

static void on_load_done(int err, const char *why, void *arg)
{
	struct engine *e;
	char text[384];

	OBJ_CAST(e, arg, ENGINE_MAGIC);
	log_load_free(&e->load);
	if (err == 0 && e->load_whole != e->load_tip.seq)
		err = -ERR_MALFORMED;
	if (err != 0) {
		snprintf(text, sizeof text, "cannot load the log: %s (%s, at seq %lld)",
			why[0] != '\0' ? why : "an entry's end is missing", err_str(err),
			(long long)e->load_tip.seq);
		engine_rest(e, text); /* and begins again */
		return;
	}
	e->loaded = true;
	if (e->before.again)
		e->before.went_back |= went_back(e);
	set_phase(e, ENGINE_CATCHING_UP);
	engine_tip_want(e);
}

static void start_load(struct engine *e)
{
	static const struct log_load_ops ops = {
		.on_row = on_load_row, .on_chunk = on_load_chunk, .on_done = on_load_done};

	set_phase(e, ENGINE_LOADING);
	e->counts.loads++;
	e->loaded = false;
	store_reset(e->store);
	e->tip = e->load_tip = (struct log_tip){0};
	e->n_known = 0;
	e->load_whole = 0;
	e->before.at = 0;
	e->before.same = e->before.other = false;
	e->load = log_load_start(e->reader, &ops, e);
}

/* Copies what is known, in order. */
static void remember(struct engine *e)
{
	size_t n = e->n_known < ENGINE_KNOWN ? e->n_known : ENGINE_KNOWN;

	for (size_t i = 0; i < n; i++)
		e->before.known[i] = e->known[(e->n_known - n + i) % ENGINE_KNOWN];
	e->before.n_known = n;
	e->before.tip = e->tip;
	e->before.rev = store_visible_rev(e->store);
	e->before.cluster_id = store_cluster_id(e->store);
	e->before.went_back = false;
	e->before.again = true;
}

static void restart_reader(struct engine *e)
{
	e->reader_ready = false;
	pgconn_stop(e->reader);
	log_load_free(&e->load);
	engine_tip_lost(e);
	if (writer_session_is_held(e->writer))
		pgconn_start(e->reader);
}

void engine_load_again(struct engine *e, const char *why)
{
	log_warning("engine.load", "the log and memory differ (%s); loading the log again", why);
	if (e->announced && !e->before.again) {
		remember(e);
		if (e->ops.on_unloaded != NULL)
			e->ops.on_unloaded(e->arg);
	}
	engine_turn_give_up(e);
	engine_fail_flight(e);
	e->tip_fresh = 0;
	e->loaded = false;
	set_phase(e, ENGINE_LOADING);
	restart_reader(e);
	engine_finish_later(e);
}

/* ---- the reader ---- */

static void on_reader_prepared(PGresult *res, void *arg)
{
	struct engine *e;
	char why[256];

	OBJ_CAST(e, arg, ENGINE_MAGIC);
	if (e->freed || res == NULL)
		return;
	if (PQresultStatus(res) != PGRES_COMMAND_OK) {
		engine_rest(e, pg_result_error(res, why, sizeof why));
		return;
	}
	e->reader_ready = true;
	if (!e->loaded) {
		start_load(e);
		return;
	}
	/* A reader that was lost alone leaves nothing in doubt. */
	if (e->phase == ENGINE_DOWN)
		set_phase(e, ENGINE_CATCHING_UP);
	engine_tip_want(e);
}

static void prepare_reader(struct engine *e)
{
	int err = log_prepare_tip(e->reader, on_reader_prepared, e);

	if (err == 0)
		err = pgconn_sync(e->reader, NULL, NULL);
	(void)err; /* the connection breaks: on_reader_down */
}

static void on_reader_up(struct pgconn *c, void *arg)
{
	struct engine *e;

	(void)c;
	OBJ_CAST(e, arg, ENGINE_MAGIC);
	prepare_reader(e);
}

static void on_reader_down(struct pgconn *c, enum pg_class class, const char *why, void *arg)
{
	struct engine *e;

	(void)c, (void)class;
	OBJ_CAST(e, arg, ENGINE_MAGIC);
	log_debug("engine.reader", "reader lost: %s", why);
	e->reader_ready = false;
	log_load_free(&e->load);
	engine_tip_lost(e);
}

/* ---- the writer ---- */

static bool in_doubt(void *arg)
{
	(void)arg;
	return true; /* the tip read shows what our old backend committed */
}

static void on_write_prepared(PGresult *res, void *arg)
{
	struct engine *e;
	struct pgconn_peer peer;

	OBJ_CAST(e, arg, ENGINE_MAGIC);
	if (e->freed || !writer_session_step_ok(e->writer, res))
		return;
	peer = pgconn_peer(e->write);
	pgconn_set_peer(e->reader, &peer);
	pgconn_start(e->reader);
	engine_aux_up(e->aux, &peer);
}

static void on_write_step(PGresult *res, void *arg)
{
	struct engine *e;

	OBJ_CAST(e, arg, ENGINE_MAGIC);
	if (!e->freed)
		(void)writer_session_step_ok(e->writer, res);
}

static void on_held(void *arg)
{
	struct engine *e;
	int err;

	OBJ_CAST(e, arg, ENGINE_MAGIC);
	err = log_prepare_insert(e->write, on_write_step, e);
	if (err == 0)
		err = log_prepare_tip(e->write, on_write_step, e);
	if (err == 0)
		err = pgconn_sync(e->write, on_write_prepared, e);
	(void)err; /* the connection breaks: on_writer_down */
}

static void leave(struct engine *e)
{
	set_phase(e, ENGINE_DOWN);
	e->reader_ready = false;
	pgconn_stop(e->reader);
	log_load_free(&e->load);
	e->turn = TURN_NONE;
	e->turn_pass.busy = false;
	e->tip_fresh = 0;
	ev_timer_stop(&e->again);
	e->refused = e->tip_resting = false;
	engine_tip_lost(e);
	engine_confirm_lost(e);
	engine_aux_down(e->aux);
}

static void on_writer_down(enum pg_class class, const char *why, void *arg)
{
	struct engine *e;

	(void)class;
	OBJ_CAST(e, arg, ENGINE_MAGIC);
	leave(e);
	engine_say(e, false, why);
	if (e->draining)
		engine_finish_later(e);
}

static void on_locked_out(const char *why, void *arg)
{
	struct engine *e;

	OBJ_CAST(e, arg, ENGINE_MAGIC);
	engine_say(e, false, why);
}

static void on_again(void *arg)
{
	struct engine *e;

	OBJ_CAST(e, arg, ENGINE_MAGIC);
	e->tip_resting = false;
	if (pgconn_get_state(e->reader) == PGCONN_UP && !e->reader_ready)
		prepare_reader(e);
	else if (e->phase == ENGINE_LOADING && e->reader_ready && e->load == NULL)
		start_load(e);
	e->tip_wanted |= e->tip_fresh != 0;
	engine_pump_later(e);
}

/* ---- life ---- */

static const char *const reader_setup[] = {
	"SET default_transaction_isolation = 'read committed'",
	"SELECT set_config(name, '0', false) FROM pg_settings "
	"WHERE name IN ('idle_session_timeout', 'idle_in_transaction_session_timeout')",
	"SET plan_cache_mode = force_generic_plan",
	"SET enable_seqscan = off",
	"SET enable_bitmapscan = off",
	"SET max_parallel_workers_per_gather = 0",
	"SET jit = off",
	NULL,
};

void engine_session_new(struct engine *e)
{
	static const struct writer_session_ops writer_ops = {.in_doubt = in_doubt,
		.on_held = on_held,
		.on_down = on_writer_down,
		.on_locked_out = on_locked_out};
	static const struct pgconn_ops reader_ops = {
		.on_up = on_reader_up, .on_down = on_reader_down};
	const struct writer_session_options writer_options = {
		.conninfo = e->conninfo,
		.application_name = "howdah watchd writer",
		.node = e->node,
		.role = ENGINE_ROLE,
		.timeout_ms = ENGINE_TIMEOUT_MS,
		.setup = log_session_setup,
	};
	const struct pgconn_options reader_options = {
		.conninfo = e->conninfo,
		.application_name = "howdah watchd reader",
		.setup = reader_setup,
		.timeout_ms = ENGINE_TIMEOUT_MS,
	};

	e->backoff = (struct ev_backoff){.base_ms = 100, .cap_ms = 5000};
	ev_timer_init(&e->again, e->loop, "engine again", on_again, e);
	e->writer = writer_session_new(e->loop, &writer_options, &writer_ops, e);
	e->write = writer_session_conn(e->writer);
	e->reader = pgconn_new(e->loop, &reader_options, &reader_ops, e);
	writer_session_start(e->writer);
}

void engine_session_stop(struct engine *e)
{
	writer_session_stop(e->writer);
	leave(e);
}

void engine_session_free(struct engine *e)
{
	ev_timer_stop(&e->again);
	writer_session_free(&e->writer);
	pgconn_free(&e->reader);
	log_load_free(&e->load);
}
