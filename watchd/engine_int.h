/* SPDX-License-Identifier: PostgreSQL */
/*
 * What the engine's files share; nobody else includes it.
 *
 *   engine.c          life, operations, limits, deadlines, finished ones
 *   engine_batch.c    evaluation, batches in flight, the turn
 *   engine_tip.c      the tip read and what it decides
 *   engine_session.c  connections, loading, the beginning of a history
 *   engine_aux.c      removal, size, members, claims, vacuum: nothing that anybody's answer waits
 * for
 */
#ifndef WATCHD_ENGINE_INT_H
#define WATCHD_ENGINE_INT_H

#include "common/pg/writer_session.h"
#include "watchd/engine.h"
#include "watchd/log_load.h"
#include "watchd/log_sql.h"

#define ENGINE_MAGIC 0x656e676e /* engn */
#define ENGINE_ROLE "watchd"    /* with the node's name: key of the writer's lock */
#define ENGINE_FLIGHT_MAX 2
#define ENGINE_WIRE_MAX 8 /* unanswered, with those that are lost already */
#define ENGINE_TIMEOUT_MS 10000
#define ENGINE_KNOWN 256
#define ENGINE_TOKENS 32 /* 256 bytes: getrandom gives so many at once, or none */
#define ENGINE_LOSSES_FOR_TURN 2
#define ENGINE_ALARM_NOSPACE 1

enum engine_phase {
	ENGINE_DOWN,        /* no session with the node's lock, or no reader yet */
	ENGINE_LOADING,     /* memory is being filled */
	ENGINE_CATCHING_UP, /* what is in doubt is not decided yet */
	ENGINE_READY
};

/* States of an op: which list it is on. */
enum engine_op_state { OP_NONE, OP_WAITING, OP_IN_BATCH, OP_FINISHED };

/*
 * What was evaluated together. With rows: an INSERT; without: a proof, whose ops are final when a
 * moment after their evaluation is known in which the state was the one that they met.
 */
struct engine_batch {
	struct list link; /* of flight, while live */
	struct engine *owner;
	size_t n_rows;       /* 0: a proof */
	struct log_tip base; /* evaluated on */
	int64_t token, last_seq;
	struct list ops;
	size_t n_ops;
	bool live;          /* in flight, nothing known of its end */
	unsigned n_answers; /* outstanding */
	bool turn;          /* inserted in a turn's transaction */
	bool refused;       /* an error or no row: not committed */
	bool lost;          /* because of another node, not of an error */
	char why[256];
	/* Of a proof: a tip read with this number or a later one counts. One is over, and base was
	 * not committed yet: then its commit is enough. */
	uint64_t tip_number;
	bool armed;
};

/* A tip read, in one or more steps. One on the reader's connection, one within a turn. */
struct engine_pass {
	struct engine *owner;
	bool in_turn;
	bool busy, failed, more;
	unsigned n_syncs; /* outstanding */
	uint64_t number;
	struct log_tip from; /* of the present step */
	int limit;
};

/* Who waits for a round trip. */
struct engine_waiters {
	struct list waiting, sent;
	bool busy;
};

enum engine_turn { TURN_NONE, TURN_TAKING, TURN_HELD };

struct engine {
	uint32_t magic;
	struct ev_loop *loop;
	struct engine_ops ops;
	void *arg;
	char *conninfo, *node, *advertise_url, *role;
	uint64_t quota_bytes;
	size_t max_waiting_ops, max_waiting_bytes, max_batch_ops, max_batch_bytes;
	struct store *store;

	enum engine_phase phase;
	bool loaded;    /* memory holds the log as of some moment */
	bool announced; /* on_loaded was called */
	bool drained, draining, freed;
	void (*on_drained)(void *arg);
	void *drain_arg;

	struct writer_session *writer;
	struct pgconn *write, *reader; /* write: the writer's connection */
	struct log_load *load;
	struct ev_backoff backoff;
	struct ev_timer again; /* after a refusal: nothing is sent while it runs */
	bool reader_ready;

	/* Operations. */
	struct list queue, finished, finished_reads;
	size_t n_waiting, n_waiting_bytes; /* taken and not finished */
	struct ev_deferred pump, finish, destroy;
	struct ev_timer sweep;
	uint64_t sweep_at_ms;

	/* Batches. */
	struct list flight; /* live ones in the order of evaluation */
	size_t n_flight;    /* of them with rows */
	size_t n_wire;
	struct engine_batch *building;
	struct log_rows rows;          /* its rows, until they are sent */
	int64_t tokens[ENGINE_TOKENS]; /* drawn and not used: the last n_tokens */
	size_t n_tokens;
	struct log_tip tip; /* committed */
	struct log_tip known[ENGINE_KNOWN];
	size_t n_known;
	unsigned n_losses; /* in a row */
	enum engine_turn turn;
	bool turn_wanted, turn_failed;

	/* Tip reads. */
	struct engine_pass pass, turn_pass;
	struct engine_waiters reads, confirms;
	uint64_t tip_number; /* of the last one begun */
	uint64_t tip_fresh;  /* nothing is evaluated before one with this number or a later one is
				over; 0: no need */
	/* The highest seq that the ring has shown: the walsender may be ahead of what other
	 * sessions see, so the tip is read until it is there. */
	int64_t rung;
	uint64_t rung_ms;    /* since when that is not there */
	unsigned rung_tries; /* tip reads since then */
	struct ev_timer rung_again;
	bool tip_wanted, moved; /* moved: something became visible and was not told */
	bool tip_resting;       /* refused: not again before the rest is over */

	/* The beginning of a history. */
	struct engine_op era;
	bool era_busy;
	uint64_t era_over; /* cluster id that it ends */
	struct engine_op alarm;
	bool alarm_busy;

	/* While loading anew: what memory held before. */
	struct {
		bool again;     /* on_reloaded is owed */
		bool went_back; /* as far as it is known */
		struct log_tip tip;
		uint64_t cluster_id;
		int64_t rev;
		struct log_tip known[ENGINE_KNOWN]; /* in order */
		size_t n_known, at;
		bool same, other; /* entries that we knew are there, are others there */
	} before;
	struct log_tip load_tip; /* of the last row */
	int64_t load_whole;      /* the last seq whose rows are all here */

	struct ev_deferred trim;
	struct engine_aux *aux;
	struct engine_counts counts;
	bool database_told, database_up;
	bool refused; /* the last batch, by an error */
	char trouble[512];
};

/* ---- engine.c ---- */
void engine_pump_later(struct engine *e);
/* The op is over: its done will run with err. From any list. */
void engine_finish_op(struct engine *e, struct engine_op *op, enum etcd_error err);
void engine_finish_read(struct engine *e, struct engine_read *r, enum etcd_error err);
/* Runs done callbacks now, or at the end of this pass. */
void engine_run_finished(struct engine *e);
void engine_finish_later(struct engine *e);
/* Whoever uses the engine knows of the state that memory holds (on_loaded, on_reloaded). */
bool engine_is_told(const struct engine *e);
/* After `visible` may have moved: the next batch, watches, then answers. */
void engine_moved(struct engine *e);
/* One line for the operator; up: database there. */
void engine_say(struct engine *e, bool up, const char *why);
/* Puts an op of the engine's own in front. */
void engine_submit_first(struct engine *e, struct engine_op *op);
void engine_sweep_by(struct engine *e, uint64_t deadline_ms);
void engine_trim_later(struct engine *e);

void engine_on_rung_again(void *engine); /* of its timer; engine_tip.c */

/* ---- engine_batch.c ---- */
/* Evaluates and sends what can be sent. */
void engine_pump(struct engine *e);
/* The first batch with rows, and the proofs before it, are committed. */
void engine_batch_committed(struct engine *e, struct engine_batch *b);
struct engine_batch *engine_first_with_rows(struct engine *e);
/* All in flight is not committed: it is evaluated again from the queue. */
void engine_lose_flight(struct engine *e);
/* What became of it will never be known. */
void engine_fail_flight(struct engine *e);
/* Another node was faster. */
void engine_count_loss(struct engine *e);
void engine_set_tip(struct engine *e, struct log_tip tip);
void engine_row_made(struct engine *e, const struct store_row *row);
/* Tip read number n is over. */
void engine_settle_proofs(struct engine *e, uint64_t n);
/* The turn's tip read is over. */
void engine_turn_ready(struct engine *e);
void engine_turn_give_up(struct engine *e);
void engine_drop_batches(struct engine *e);
/* After a refusal: nothing is sent for a while. */
void engine_rest(struct engine *e, const char *why);

/* ---- engine_tip.c ---- */
/* At the end of this pass of the loop, or as soon as it can be. */
void engine_tip_want(struct engine *e);
/* Begins what is wanted, if it can. */
void engine_tip_begin(struct engine *e);
/* Nothing is evaluated until a tip read that begins now is over. */
void engine_tip_want_fresh(struct engine *e);
/* Begins on the writer's connection. 0 or pgconn's error. */
int engine_tip_in_turn(struct engine *e) __attribute__((warn_unused_result));
void engine_tip_lost(struct engine *e); /* the reader's connection is gone */
void engine_confirm_next(struct engine *e);
void engine_confirm_lost(struct engine *e); /* the writer's is */

/* ---- engine_session.c ---- */
void engine_session_new(struct engine *e);
void engine_session_free(struct engine *e);
/* Orderly: the node's place is given up. */
void engine_session_stop(struct engine *e);
/* The tip read found that memory and log do not fit. */
void engine_load_again(struct engine *e, const char *why);
/* What was in doubt is decided. */
void engine_caught_up(struct engine *e);

/* ---- engine_aux.c ---- */
struct engine_aux *engine_aux_new(struct engine *e);
void engine_aux_free(struct engine_aux **a);
/* The writer's session is there (on which server), or gone. */
void engine_aux_up(struct engine_aux *a, const struct pgconn_peer *peer);
void engine_aux_down(struct engine_aux *a);

#endif
