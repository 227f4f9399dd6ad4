/* SPDX-License-Identifier: PostgreSQL */
/*
 * The replication connection: see follower.h.
 *
 * Context: event thread.
 *
 *   IDLE --start, create--> RESOLVING -> CONNECTING -> IDENTIFYING (-> HISTORY)
 *    ^                                    -+-> (ALTERING ->) STARTING -> STREAMING
 *    |                                     '-> CREATING -> SNAPSHOT
 *    '--- error, timeout: at once;  stop: at once, or from STREAMING through ENDING ------'
 *
 * Invariants:
 *   1. Feedback never carries less than the position that the stream began at, nor less than the
 *      feedback before it: older servers would take the slot back.
 *   2. While the consumer of on_data has a message that it could not take, nothing is read;
 * feedback goes on by the timer, which is all that keeps the session alive then.
 *   3. Every state but IDLE, SNAPSHOT has a timer that ends it, STREAMING by silence: each feedback
 *      by the timer asks for a reply, so a server that lives is heard at least that often.
 *
 * A server that shuts down waits for its walsenders to be told that everything has arrived. What a
 * subscriber has not acknowledged we do not acknowledge: it asks and asks, as soon as it is
 * answered. Asked for SHUTDOWN_ASKED_MS with nothing else to read, we leave, so that it can stop:
 * what was not acknowledged comes again from the slot.
 *
 * While nothing is read (invariant 2) the end of the connection cannot be read either: it is asked
 * for every FULL_LOOK_MS.
 */
#include "config.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/err.h"
#include "common/base/log.h"
#include "common/base/mem.h"
#include "common/pg/pgresolve.h"

#include "walstreamd/follower.h"
#include "walstreamd/timeline.h"

#define FOLLOWER_MAGIC 0x666f6c6cu
#define PHASE_TIMEOUT_MS 30000   /* resolving, connecting, commands */
#define CREATE_TIMEOUT_MS 600000 /* a slot waits for the transactions that run when it is made */
#define END_TIMEOUT_MS 500
#define FAILOVER_VERSION 170000 /* the first that has failover slots */
#define ACK_DELAY_MS 50         /* acknowledgements that come in a burst share one feedback */
#define ASKED_AGAIN_MS 1000     /* a longer pause, and it is another series of questions */
#define ASKED_DELAY_MS 100
#define SHUTDOWN_ASKED_MS 2000
#define FULL_LOOK_MS 1000
#define BUDGET_EVENTS 2000
#define BUDGET_BYTES (UINT64_C(1) << 20)

MEM_TYPE(mem_follower, "wal follower");

struct follower {
	uint32_t magic;
	struct ev_loop *loop;
	struct follower_ops ops;
	void *arg;
	char *conninfo, *slot, *publications;
	char *host, *hostaddr, *port; /* of conninfo's servers, which one; NULL: any */
	uint32_t silence_ms;
	enum follower_state state;
	bool create;          /* what the connection is for */
	bool full;            /* invariant 2 */
	bool no_more_answers; /* stop was asked for: errors on the way are no news */
	struct pgresolve *resolve;
	struct pgws_stream *stream;
	uint64_t start_lsn;
	uint64_t sent_flush_lsn;
	uint64_t server_lsn;
	uint64_t feedbacks;
	uint32_t timeline;
	uint32_t known_timeline;
	uint32_t slot_timeline; /* where start_lsn was read */
	uint64_t left_lsn;      /* of known_timeline */
	uint32_t no_history_of; /* timeline whose history the server does not have; 0: none */
	bool failover, alter_failover;
	enum pgws_streaming streaming;
	uint32_t feedback_ms;
	uint64_t heard_ms;
	uint64_t asked_since_ms, asked_last_ms; /* by keepalives in a row; 0: not */
	bool asked;                             /* in this round of reading */
	struct ev_io io;
	struct ev_timer phase_timer; /* the state's own limit */
	struct ev_timer ack_timer;
	struct ev_timer feedback_timer;
	struct ev_timer full_timer;
	struct ev_deferred read_on;
	struct ev_deferred stopped;
	enum pg_class stop_class;
	bool slot_busy;
	bool streaming_failed;
	char text[1400];
};

static void on_read_on(void *arg);

const char *follower_state_str(enum follower_state s)
{
	static const char *const names[FOLLOWER_STATE_COUNT] = {"idle", "resolving", "connecting",
		"identifying", "reading the history", "altering the slot", "creating the slot",
		"snapshot", "starting", "streaming", "ending"};
	return s < FOLLOWER_STATE_COUNT ? names[s] : "?";
}

static void set_state(struct follower *f, enum follower_state state)
{
	log_debug("wal.follow", "slot %s: %s -> %s", f->slot, follower_state_str(f->state),
		follower_state_str(state));
	f->state = state;
}

static void watch(struct follower *f)
{
	int fd = pgws_stream_fd(f->stream);
	bool reads =
		pgws_stream_wants_read(f->stream) && !(f->full && f->state == FOLLOWER_STREAMING);
	short what = (short)((reads ? EV_READ : 0) |
			     (pgws_stream_wants_write(f->stream) ? EV_WRITE : 0));
	ev_io_set(&f->io, fd, fd >= 0 ? what : 0);
}

/* ---- Ends ------------------------------------------------------------------------------------ */

static void on_stopped_deferred(void *arg)
{
	struct follower *f;
	OBJ_CAST(f, arg, FOLLOWER_MAGIC);
	if (f->state == FOLLOWER_IDLE)
		f->ops.on_stopped(f->stop_class, f->text, f->arg);
}

/* Everything is let go; who asked or cares hears of it from the loop. */
static void become_idle(struct follower *f, enum pg_class class)
{
	ev_io_stop(&f->io);
	ev_timer_stop(&f->phase_timer);
	ev_timer_stop(&f->ack_timer);
	ev_timer_stop(&f->feedback_timer);
	ev_timer_stop(&f->full_timer);
	ev_defer_cancel(f->loop, &f->read_on);
	pgresolve_free(&f->resolve);
	pgws_stream_free(&f->stream);
	f->full = false;
	f->asked_since_ms = 0;
	f->stop_class = class;
	set_state(f, FOLLOWER_IDLE);
	ev_defer(f->loop, &f->stopped, on_stopped_deferred, f);
}

static const struct {
	const char *sqlstate;
	const char *text;
} remedies[] = {
	{"53400", "; drop a slot that nobody uses, or raise max_replication_slots"},
	{"53300", "; raise max_wal_senders"},
	{"42501", "; run ALTER ROLE … REPLICATION for the role of conninfo"},
	{"28000", "; let the role in for replication (pg_hba.conf: database \"replication\" is not "
		  "needed, the database itself is)"},
	{"42704",
		"; a publication that was dropped while the slot needed it cannot be brought back: "
		"pgctl node remove gives up what is pending and begins anew"},
};

static void fail_text(struct follower *f, enum pg_class class, const char *what, const char *why)
{
	snprintf(f->text, sizeof(f->text), "%s: %s", what, why);
	if (f->no_more_answers) {
		class = PG_OK;
		f->text[0] = '\0';
	}
	become_idle(f, class);
}

static void fail_stream(struct follower *f, int err)
{
	char why[1300];
	const char *state = pgws_stream_sqlstate(f->stream);
	const char *error = pgws_stream_error(f->stream);
	const char *remedy = "";
	f->slot_busy = strcmp(state, "55006") == 0;
	f->streaming_failed = pgws_stream_streaming_failed(f->stream);
	/* Lost, as by pg_resetwal: then nobody knows where the timelines part. Next time without.
	 */
	if (f->state == FOLLOWER_HISTORY && strcmp(state, "58P01") == 0)
		f->no_history_of = f->timeline;
	for (size_t i = 0; i < ARRAY_LEN(remedies); i++) {
		if (strcmp(remedies[i].sqlstate, state) == 0)
			remedy = remedies[i].text;
	}
	snprintf(why, sizeof(why), "%s%s", error[0] != '\0' ? error : pgws_strerror(err), remedy);
	enum pg_class class = state[0] != '\0' ? pg_classify(state) : PG_RETRY;
	fail_text(f, class, f->state == FOLLOWER_STREAMING ? "the stream broke" : "cannot stream",
		why);
}

static void on_phase_timeout(void *arg)
{
	struct follower *f;
	OBJ_CAST(f, arg, FOLLOWER_MAGIC);
	if (f->state == FOLLOWER_STREAMING) {
		uint64_t silent_ms = ev_now_ms() - f->heard_ms;
		/* What we do not read we do not hear. */
		if (silent_ms < f->silence_ms || f->full) {
			ev_timer_start(&f->phase_timer,
				f->full ? f->silence_ms : f->silence_ms - silent_ms);
			return;
		}
		fail_text(f, PG_RETRY, "the stream broke", "the server is silent, giving it up");
	} else {
		fail_text(f, PG_RETRY, "cannot stream",
			f->state == FOLLOWER_CREATING
				? "the slot is not made yet; it waits for transactions that were "
				  "running when it began"
				: "no answer in time");
	}
}

/* ---- Feedback -------------------------------------------------------------------------------- */

static void send_feedback(struct follower *f, bool ask)
{
	uint64_t flush = f->ops.get_flush_lsn(f->arg);
	if (flush < f->start_lsn)
		flush = f->start_lsn;
	if (flush < f->sent_flush_lsn)
		flush = f->sent_flush_lsn;
	uint64_t received = f->server_lsn > flush ? f->server_lsn : flush;
	int err = pgws_stream_feedback(f->stream, received, flush, flush, ask);
	f->sent_flush_lsn = flush;
	f->feedbacks++;
	ev_timer_start(&f->feedback_timer, f->feedback_ms);
	if (err == PGWS_EAGAIN && !f->full)
		ev_defer(f->loop, &f->read_on, on_read_on, f); /* input may wait inside libpq */
	watch(f);
}

static void on_feedback_timer(void *arg)
{
	struct follower *f;
	OBJ_CAST(f, arg, FOLLOWER_MAGIC);
	if (f->state == FOLLOWER_STREAMING)
		send_feedback(f, true);
}

static void on_ack_timer(void *arg)
{
	struct follower *f;
	OBJ_CAST(f, arg, FOLLOWER_MAGIC);
	if (f->state == FOLLOWER_STREAMING)
		send_feedback(f, false);
}

void follower_acked(struct follower *f)
{
	OBJ_CHECK(f, FOLLOWER_MAGIC);
	if (f->state == FOLLOWER_STREAMING && !f->ack_timer.active &&
		f->ops.get_flush_lsn(f->arg) > f->sent_flush_lsn)
		ev_timer_start(&f->ack_timer, ACK_DELAY_MS);
}

/* The server wanted an answer in this round; several questions are one. It may have wanted them for
 * so long that we leave. */
static void answer(struct follower *f)
{
	uint64_t now = ev_now_ms();
	bool first = f->asked_since_ms == 0 || now - f->asked_last_ms > ASKED_AGAIN_MS;
	if (first)
		f->asked_since_ms = now;
	f->asked_last_ms = now;
	/* The first question at once; a server that asks again as soon as it is answered would
	 * have us run in a circle. */
	if (first)
		send_feedback(f, false);
	else if (now - f->asked_since_ms >= SHUTDOWN_ASKED_MS)
		fail_text(f, PG_RETRY, "the stream ended",
			"the server is shutting down and waits for acknowledgements that did not "
			"come");
	else if (!f->ack_timer.active)
		ev_timer_start(&f->ack_timer, ASKED_DELAY_MS);
}

/* ---- Full ------------------------------------------------------------------------------------ */

static bool connection_has_ended(struct follower *f)
{
	struct pollfd p = {.fd = pgws_stream_fd(f->stream), .events = POLLRDHUP};
	return poll(&p, 1, 0) > 0;
}

static void on_full_timer(void *arg)
{
	struct follower *f;
	OBJ_CAST(f, arg, FOLLOWER_MAGIC);
	if (f->state != FOLLOWER_STREAMING || !f->full)
		return;
	if (connection_has_ended(f))
		fail_text(f, PG_RETRY, "the stream broke",
			"the connection ended while the ring was full");
	else
		ev_timer_start(&f->full_timer, FULL_LOOK_MS);
}

/* ---- Streaming ------------------------------------------------------------------------------- */

static int take_data(struct follower *f, const struct pgws_event *ev)
{
	f->asked_since_ms = 0;
	const char *why = "a message of the server cannot be followed";
	int err = f->ops.on_data(ev, &why, f->arg);
	if (err == -EAGAIN) {
		f->full = true;
		ev_timer_start(&f->full_timer, FULL_LOOK_MS);
		return err;
	}
	if (err == -ERR_MALFORMED) {
		char bytes[100];
		size_t len = ev->len < 24 ? ev->len : 24;
		log_error("wal.protocol",
			"slot %s: the server sent a message that cannot be followed, it begins "
			"with %s",
			f->slot, log_escape(ev->data, len, bytes, sizeof(bytes)));
	}
	if (err != 0)
		fail_text(f, PG_RETRY, "the stream broke", why);
	return err;
}

/* One event. 0: go on; -EAGAIN: not now; else the stream is gone. */
static int next_event(struct follower *f, uint64_t *bytes)
{
	struct pgws_event ev;
	int err = pgws_stream_next(f->stream, &ev);
	if (err == PGWS_EAGAIN)
		return -EAGAIN;
	if (err != 0) {
		fail_stream(f, err);
		return -ECONNRESET;
	}
	if (ev.end_lsn > f->server_lsn)
		f->server_lsn = ev.end_lsn;
	*bytes += ev.len;
	if (ev.kind == PGWS_EVENT_DATA)
		return take_data(f, &ev);
	f->ops.on_keepalive(ev.end_lsn, f->arg);
	if (ev.reply_requested)
		f->asked = true;
	else
		f->asked_since_ms = 0;
	return 0;
}

/* Nothing now. While messages come fast the loop rests instead of being woken for each of them; the
 * library then wants to be asked again whether the descriptor is ready or not. */
static void rest(struct follower *f)
{
	unsigned us = pgws_stream_rest_us(f->stream);
	if (us != 0)
		ev_loop_rest(f->loop, us, &f->read_on, on_read_on, f);
}

static void read_stream(struct follower *f)
{
	uint64_t bytes = 0;
	int err = 0;
	ev_defer_cancel(f->loop, &f->read_on);
	f->heard_ms = ev_now_ms();
	f->asked = false;
	for (unsigned n = 0; n < BUDGET_EVENTS && bytes < BUDGET_BYTES && err == 0; n++)
		err = next_event(f, &bytes);
	f->ops.on_batch(f->arg);
	if (f->asked && f->state == FOLLOWER_STREAMING)
		answer(f);
	if (f->state != FOLLOWER_STREAMING)
		return;
	if (err == 0)
		ev_defer(f->loop, &f->read_on, on_read_on, f); /* the budget is used up */
	else if (!f->full)
		rest(f);
	follower_acked(f);
	watch(f);
}

static void on_read_on(void *arg)
{
	struct follower *f;
	OBJ_CAST(f, arg, FOLLOWER_MAGIC);
	if (f->state == FOLLOWER_STREAMING && !f->full)
		read_stream(f);
}

void follower_resume(struct follower *f)
{
	OBJ_CHECK(f, FOLLOWER_MAGIC);
	if (f->state != FOLLOWER_STREAMING || !f->full)
		return;
	f->full = false;
	ev_timer_stop(&f->full_timer);
	f->heard_ms = ev_now_ms();
	ev_defer(f->loop, &f->read_on, on_read_on, f);
}

void follower_abandon(struct follower *f, const char *why)
{
	OBJ_CHECK(f, FOLLOWER_MAGIC);
	ASSERT(f->state == FOLLOWER_STREAMING);
	fail_text(f, PG_RETRY, "the stream broke", why);
}

static void begin_streaming(struct follower *f)
{
	set_state(f, FOLLOWER_STREAMING);
	f->sent_flush_lsn = f->start_lsn;
	f->heard_ms = ev_now_ms();
	ev_timer_start(&f->phase_timer, f->silence_ms);
	f->ops.on_stream(f->start_lsn, f->timeline, f->arg);
	/* The server's answer tells where it stands: an idle database is acknowledged at once. */
	send_feedback(f, true);
	ev_defer(f->loop, &f->read_on, on_read_on, f);
}

/* ---- The way there --------------------------------------------------------------------------- */

static void command(struct follower *f, enum follower_state state, int err, uint32_t timeout_ms)
{
	if (err != 0) {
		fail_stream(f, err);
		return;
	}
	set_state(f, state);
	ev_timer_start(&f->phase_timer, timeout_ms);
	watch(f);
}

static void create_slot(struct follower *f)
{
	struct pgws_slot_options options = PGWS_SLOT_OPTIONS_INIT;
	options.snapshot = PGWS_SNAPSHOT_EXPORT;
	options.failover = f->failover && pgws_stream_server_version(f->stream) >= FAILOVER_VERSION;
	command(f, FOLLOWER_CREATING, pgws_stream_create_slot(f->stream, &options),
		CREATE_TIMEOUT_MS);
}

static void start_stream(struct follower *f)
{
	command(f, FOLLOWER_STARTING, pgws_stream_start(f->stream, f->start_lsn), PHASE_TIMEOUT_MS);
}

/* The timelines are known. */
static void after_history(struct follower *f)
{
	if (f->create)
		create_slot(f);
	else if (f->alter_failover && pgws_stream_server_version(f->stream) >= FAILOVER_VERSION)
		command(f, FOLLOWER_ALTERING,
			pgws_stream_alter_slot(f->stream, NULL, f->failover, -1), PHASE_TIMEOUT_MS);
	else
		start_stream(f);
}

/* The SQL connection has not noticed yet that its server is gone. */
static void fail_other_timeline(struct follower *f)
{
	char why[160];
	snprintf(why, sizeof(why),
		"the server is on timeline %u, the slot was looked at on timeline %u",
		(unsigned)f->timeline, (unsigned)f->slot_timeline);
	fail_text(f, PG_RETRY, "cannot stream", why);
}

static void identified(struct follower *f)
{
	f->timeline = pgws_stream_system(f->stream)->timeline;
	if (f->slot_timeline != 0 && f->slot_timeline != f->timeline)
		fail_other_timeline(f);
	else if (f->known_timeline != 0 && f->known_timeline < f->timeline &&
		 f->no_history_of != f->timeline)
		command(f, FOLLOWER_HISTORY, pgws_stream_timeline_history(f->stream, f->timeline),
			PHASE_TIMEOUT_MS);
	else
		after_history(f);
}

static void read_history(struct follower *f)
{
	size_t len = 0;
	const char *text = pgws_stream_text(f->stream, &len);
	if (text != NULL)
		f->left_lsn = timeline_left(text, len, f->known_timeline);
}

/* The phase of the library ended well: what comes next. */
static void next_step(struct follower *f)
{
	switch (f->state) {
	case FOLLOWER_CONNECTING:
		command(f, FOLLOWER_IDENTIFYING, pgws_stream_identify(f->stream), PHASE_TIMEOUT_MS);
		break;
	case FOLLOWER_IDENTIFYING:
		identified(f);
		break;
	case FOLLOWER_HISTORY:
		read_history(f);
		after_history(f);
		break;
	case FOLLOWER_ALTERING:
		log_info("wal.failover", "slot %s: standbys %s", f->slot,
			f->failover ? "keep it too from now on" : "need not keep it any more");
		start_stream(f);
		break;
	case FOLLOWER_CREATING:
		set_state(f, FOLLOWER_SNAPSHOT);
		ev_io_stop(&f->io);
		ev_timer_start(&f->phase_timer, CREATE_TIMEOUT_MS);
		f->ops.on_slot_created(pgws_stream_consistent_point(f->stream), f->timeline,
			pgws_stream_snapshot_name(f->stream), f->arg);
		break;
	case FOLLOWER_STARTING:
		begin_streaming(f);
		break;
	case FOLLOWER_ENDING:
		become_idle(f, PG_OK);
		break;
	default:
		ASSERT(!"a phase ended in this state");
	}
}

static void on_io(int fd, short what, void *arg)
{
	struct follower *f;
	OBJ_CAST(f, arg, FOLLOWER_MAGIC);
	(void)fd; /* libpq's */
	if (f->state == FOLLOWER_STREAMING) {
		if ((what & EV_READ) != 0 || !f->full) {
			read_stream(f);
		} else {
			(void)pgws_stream_flush(f->stream); /* what is left shows in wants_write */
			watch(f);
		}
		return;
	}
	/* libpq may close this socket and open another under the same number. */
	if (f->state == FOLLOWER_CONNECTING)
		ev_io_stop(&f->io);
	int err = pgws_stream_work(f->stream);
	if (err == PGWS_EAGAIN)
		watch(f);
	else if (err != 0)
		fail_stream(f, err);
	else
		next_step(f);
}

static void on_resolved(int err, const char *conninfo, const char *why, void *arg)
{
	struct follower *f;
	OBJ_CAST(f, arg, FOLLOWER_MAGIC);
	if (err != 0) {
		fail_text(f, PG_RETRY, "cannot stream", why);
		return;
	}
	const struct pgws_stream_options options = {.size = sizeof(struct pgws_stream_options),
		.conninfo = conninfo,
		.slot = f->slot,
		.publications = f->publications,
		.streaming = f->streaming};
	f->stream = pgws_stream_new(&options);
	if (f->stream == NULL) {
		fail_text(f, PG_RETRY, "cannot stream", "out of memory");
		return;
	}
	pgresolve_free(&f->resolve);
	set_state(f, FOLLOWER_CONNECTING);
	err = pgws_stream_connect(f->stream);
	if (err != 0)
		fail_stream(f, err);
	else
		watch(f);
}

static void begin(struct follower *f)
{
	ASSERT(f->state == FOLLOWER_IDLE);
	/* Without a peer the list ends behind application_name. */
	const char *const extra[] = {"application_name", f->slot, f->host != NULL ? "host" : NULL,
		f->host, "hostaddr", f->hostaddr, "port", f->port, NULL};
	ev_defer_cancel(f->loop, &f->stopped);
	f->no_more_answers = false;
	f->full = false;
	f->slot_busy = f->streaming_failed = false;
	f->left_lsn = 0;
	f->text[0] = '\0';
	set_state(f, FOLLOWER_RESOLVING);
	ev_timer_start(&f->phase_timer, PHASE_TIMEOUT_MS);
	f->resolve = pgresolve_start(f->loop, f->conninfo, extra, on_resolved, f);
}

static void set_text(char **at, const char *text)
{
	free(*at);
	*at = text != NULL ? xstrdup(text) : NULL;
}

void follower_set_peer(struct follower *f, const struct pgconn_peer *peer)
{
	OBJ_CHECK(f, FOLLOWER_MAGIC);
	set_text(&f->host, peer->host);
	set_text(&f->hostaddr, peer->hostaddr);
	set_text(&f->port, peer->port);
}

void follower_set_timeline(struct follower *f, uint32_t known_timeline, uint32_t slot_timeline)
{
	f->known_timeline = known_timeline;
	f->slot_timeline = slot_timeline;
}

void follower_set_failover(struct follower *f, bool wanted, bool alter)
{
	f->failover = wanted;
	f->alter_failover = alter;
}

uint64_t follower_left_lsn(const struct follower *f)
{
	return f->left_lsn;
}

bool follower_slot_busy(const struct follower *f)
{
	return f->slot_busy;
}

bool follower_streaming_failed(const struct follower *f)
{
	return f->streaming_failed;
}

void follower_create_slot(struct follower *f)
{
	OBJ_CHECK(f, FOLLOWER_MAGIC);
	f->create = true;
	begin(f);
}

void follower_start(struct follower *f, uint64_t confirmed_lsn, uint32_t sender_timeout_ms,
	enum pgws_streaming streaming)
{
	OBJ_CHECK(f, FOLLOWER_MAGIC);
	f->create = false;
	f->streaming = streaming;
	f->start_lsn = confirmed_lsn;
	f->server_lsn = confirmed_lsn;
	f->feedback_ms = FOLLOWER_FEEDBACK_MS;
	if (sender_timeout_ms > 0 && sender_timeout_ms / 3 < f->feedback_ms)
		f->feedback_ms = sender_timeout_ms / 3;
	if (f->silence_ms / 3 < f->feedback_ms)
		f->feedback_ms = f->silence_ms / 3;
	begin(f);
}

void follower_stop(struct follower *f)
{
	OBJ_CHECK(f, FOLLOWER_MAGIC);
	f->no_more_answers = true;
	if (f->state == FOLLOWER_ENDING)
		return;
	if (f->state == FOLLOWER_STREAMING) {
		send_feedback(f, false);
		ev_defer_cancel(f->loop, &f->read_on);
		if (pgws_stream_end(f->stream) == 0) {
			ev_timer_stop(&f->ack_timer);
			ev_timer_stop(&f->feedback_timer);
			set_state(f, FOLLOWER_ENDING);
			ev_timer_start(&f->phase_timer, END_TIMEOUT_MS);
			int err = pgws_stream_work(f->stream);
			if (err == PGWS_EAGAIN) {
				watch(f);
				return;
			}
		}
	}
	become_idle(f, PG_OK);
}

/* ---- Life -------------------------------------------------------------------------------------
 */

struct follower *follower_new(struct ev_loop *loop, const struct follower_options *options,
	const struct follower_ops *ops, void *arg)
{
	struct follower *f = mem_new(&mem_follower, sizeof(*f));
	f->magic = FOLLOWER_MAGIC;
	f->loop = loop;
	f->ops = *ops;
	f->arg = arg;
	f->conninfo = xstrdup(options->conninfo);
	f->slot = xstrdup(options->slot);
	f->publications = xstrdup(options->publications);
	f->silence_ms = options->silence_ms != 0 ? options->silence_ms : FOLLOWER_SILENCE_MS;
	ev_io_init(&f->io, loop, "replication", on_io, f);
	ev_timer_init(&f->phase_timer, loop, "replication", on_phase_timeout, f);
	ev_timer_init(&f->ack_timer, loop, "replication feedback", on_ack_timer, f);
	ev_timer_init(&f->feedback_timer, loop, "replication feedback", on_feedback_timer, f);
	ev_timer_init(&f->full_timer, loop, "replication", on_full_timer, f);
	return f;
}

void follower_free(struct follower **fp)
{
	struct follower *f = *fp;
	*fp = NULL;
	if (f == NULL)
		return;
	OBJ_CHECK(f, FOLLOWER_MAGIC);
	become_idle(f, PG_OK);
	ev_defer_cancel(f->loop, &f->stopped);
	free(f->conninfo);
	free(f->slot);
	free(f->publications);
	free(f->host);
	free(f->hostaddr);
	free(f->port);
	f->magic = 0;
	mem_free(&mem_follower, f);
}

enum follower_state follower_get_state(const struct follower *f)
{
	return f->state;
}

uint64_t follower_sent_flush_lsn(const struct follower *f)
{
	return f->sent_flush_lsn;
}

uint64_t follower_server_lsn(const struct follower *f)
{
	return f->server_lsn;
}

uint64_t follower_feedbacks(const struct follower *f)
{
	return f->feedbacks;
}
