/* SPDX-License-Identifier: PostgreSQL */
/*
 * The WAL daemon: registrar (SQL side), follower (replication connection) and publisher (ring), put
 * together. Each of them knows nothing of the others; what follows from what is said here.
 *
 * Context: event thread.
 *
 *   registrar: slot in order, free, at X   -> follower starts at X (if somebody reads the ring)
 *   registrar: slot to be made             -> follower makes it, registrar uses its snapshot
 *   registrar: connection lost             -> follower stops: the node's lock is gone with it
 *   publisher: a reader attached           -> follower stops, registrar looks, follower starts anew
 *   publisher: the last reader went away   -> follower stops
 *   publisher: ring full / room            -> follower reads no more / reads on
 *   publisher: acknowledged more           -> follower sends feedback
 *   follower: stopped                      -> registrar looks again (after a backoff, if it failed)
 *
 * Invariant: a stream begins only with a position that the registrar read while nobody used the
 * slot; RING_STREAM carries exactly that position.
 */
#include "config.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "common/base/err.h"
#include "common/base/list.h"
#include "common/base/log.h"
#include "common/base/mem.h"
#include "common/pg/pgconf.h"
#include "common/pg/pgconn.h"
#include "common/ring/ring_conf.h"

#include "walstreamd/follower.h"
#include "walstreamd/lag.h"
#include "walstreamd/publisher.h"
#include "walstreamd/registrar.h"
#include "walstreamd/retention.h"
#include "walstreamd/walstreamd.h"

#define WALSTREAMD_MAGIC 0x77616c64u
#define LAG_MAGIC 0x6c616771u
#define TICK_MS 1000
#define BACKOFF_BASE_MS 200
#define BACKOFF_CAP_MS 10000
#define SLOT_ACTIVE_MS 100
#define TEXT_BYTES 480
#define STUCK_MS 10000                      /* a ring that is full for so long without moving */
#define HEARTBEAT_BYTES (UINT64_C(1) << 20) /* less is not worth one */

MEM_TYPE(mem_walstreamd, "walstreamd");
MEM_TYPE(mem_lag, "wal.lag request");

struct walstreamd {
	uint32_t magic;
	struct daemon *d;
	struct registrar *registrar;
	struct follower *follower;
	struct publisher *publisher;
	struct ev_timer tick;
	struct ev_timer retry;
	struct ev_backoff backoff;
	uint64_t stream_since_ms; /* 0: none */
	uint64_t system;          /* of the server that the last stream was from */
	uint64_t n_went_back;     /* times that it turned out to be restored */
	bool went_back; /* since the last stream began, which is what its figures are of */
	int64_t stream_history;
	uint32_t stream_timeline;
	uint64_t known_lsn; /* on both: no transaction beyond came in any stream so far */
	struct ev_deferred detached;
	struct registrar_slot slot; /* as last looked at */
	bool create_wanted;         /* the registrar waits for a slot */
	bool draining;
	enum retention retention; /* as last judged */
	uint64_t looked_retained; /* bytes, when it was last looked at */
	bool said_not_parallel;
	uint64_t written; /* into the ring, when that moved last */
	uint64_t moved_ms;
	bool said_doomed;
	char trouble[TEXT_BYTES]; /* why there is no stream; "" if nothing is wrong */
	struct list lag_requests;
	struct lag_history lag_history;
};

struct lag_request {
	uint32_t magic;
	struct list link;
	struct ctl_client *client;
};

/* ---- Status --------------------------------------------------------------------------------- */

/* Logged when it becomes worse. */
static void retained_text(struct walstreamd *w, char *out, size_t size)
{
	uint64_t warn = (uint64_t)conf_int(w->d->conf, "walstreamd.wal_warn_bytes");
	enum retention r = retention_judge(&w->slot, warn);
	char slot[80];
	snprintf(slot, sizeof(slot), "howdah_%s", w->d->node);
	retention_text(r, &w->slot, slot, out, size);
	if (r > w->retention)
		log_warning("wal.retained", "%s; %s", out, retention_remedy(r));
	if (w->slot.known)
		w->retention = r;
}

static void update_status(struct walstreamd *w)
{
	char retained[320];
	retained_text(w, retained, sizeof(retained));
	const char *full = publisher_trouble(w->publisher);
	const char *no_streaming = publisher_no_streaming(w->publisher);
	enum follower_state state = follower_get_state(w->follower);
	if (w->trouble[0] != '\0')
		daemon_status(
			w->d, "%s%s%s", w->trouble, retained[0] != '\0' ? "; " : "", retained);
	else if (state == FOLLOWER_STREAMING)
		daemon_status(w->d, "streaming%s%s%s%s%s%s", full != NULL ? "; " : "",
			full != NULL ? full : "", retained[0] != '\0' ? "; " : "", retained,
			no_streaming != NULL ? "; " : "", no_streaming != NULL ? no_streaming : "");
	else if (registrar_is_ready(w->registrar) && !publisher_wants_stream(w->publisher))
		daemon_status(w->d, "waiting for a reader of the ring%s%s",
			retained[0] != '\0' ? "; " : "", retained);
	else
		daemon_status(w->d, "connecting");
}

static void set_trouble(struct walstreamd *w, const char *text)
{
	snprintf(w->trouble, sizeof(w->trouble), "%s", text);
	update_status(w);
}

/* ---- What follows from what ----------------------------------------------------------------- */

/* What the readers have to be told before the next stream. */
static void take_gaps(struct walstreamd *w)
{
	size_t n;
	const struct registrar_gap *from = registrar_gaps(w->registrar, &n);
	struct publisher_gap gaps[REGISTRAR_GAPS_MAX];
	for (size_t i = 0; i < n; i++) {
		gaps[i] = (struct publisher_gap){
			.from_lsn = from[i].from_lsn,
			.to_lsn = from[i].to_lsn,
			.timeline = from[i].timeline,
			.at = from[i].at,
			.reason = from[i].reason,
		};
	}
	publisher_set_gaps(w->publisher, gaps, n);
}

/* The timeline that we are on: of the last stream of this life, else of the last one that was
 * noted. */
static uint32_t known_timeline(const struct walstreamd *w)
{
	uint32_t timeline = publisher_timeline(w->publisher);
	return timeline != 0 ? timeline : registrar_known_timeline(w->registrar);
}

static void prepare_follower(struct walstreamd *w)
{
	bool failover = conf_bool(w->d->conf, "walstreamd.failover_slot");
	const struct pgconn_peer peer = registrar_peer(w->registrar);
	follower_set_peer(w->follower, &peer);
	follower_set_timeline(w->follower, known_timeline(w), registrar_timeline(w->registrar));
	follower_set_failover(
		w->follower, failover, registrar_slot(w->registrar)->failover != failover);
}

static void drive(struct walstreamd *w)
{
	if (w->draining || w->retry.active || follower_get_state(w->follower) != FOLLOWER_IDLE)
		return;
	if (w->create_wanted) {
		w->create_wanted = false;
		prepare_follower(w);
		follower_create_slot(w->follower);
	} else if (publisher_wants_stream(w->publisher)) {
		registrar_check(w->registrar);
	}
	update_status(w);
}

static void on_retry(void *arg)
{
	struct walstreamd *w;
	OBJ_CAST(w, arg, WALSTREAMD_MAGIC);
	drive(w);
}

static void stay_down(struct walstreamd *w, const char *text)
{
	log_error("wal.config", "%s", text);
	set_trouble(w, text);
	daemon_exit(w->d, EXIT_CONFIG);
}

/* What the next stream asks for. */
static enum pgws_streaming choose_streaming(struct walstreamd *w)
{
	const char *wanted = conf_str(w->d->conf, "walstreamd.streaming");
	if (strcmp(wanted, "off") == 0 || publisher_no_streaming(w->publisher) != NULL)
		return PGWS_STREAMING_OFF;
	if (strcmp(wanted, "parallel") != 0)
		return PGWS_STREAMING_ON;
	if (registrar_server_version(w->registrar) >= 160000)
		return PGWS_STREAMING_PARALLEL;
	if (!w->said_not_parallel)
		log_info("wal.streaming_mode",
			"this server is too old for streaming = \"parallel\" (PostgreSQL 16 and "
			"later), using \"on\"");
	w->said_not_parallel = true;
	return PGWS_STREAMING_ON;
}

/* What the readers, and we, know of LSNs holds for one history: another server has its own, and one
 * that was restored to an earlier state writes another one from there. */
static int64_t history(const struct walstreamd *w)
{
	return (int64_t)(registrar_system(w->registrar) + w->n_went_back);
}

/* A server never stands before what it has sent, since it sends only what is durable. */
static void note_history(struct walstreamd *w)
{
	uint64_t server_lsn = registrar_slot(w->registrar)->server_lsn;
	uint64_t published = publisher_published_lsn(w->publisher);
	uint64_t acked = publisher_flush_lsn(w->publisher);
	uint64_t had = published > acked ? published : acked;
	bool same = publisher_timeline(w->publisher) == registrar_timeline(w->registrar) &&
		    w->system == registrar_system(w->registrar);
	char at[18], before[18];
	if (!same || server_lsn >= had || w->went_back)
		return;
	log_warning("wal.went_back",
		"the server stands at %s, before %s, which it had sent: it was restored to an "
		"earlier state; everything from the slot's position on is published again",
		pgws_lsn_str(server_lsn, at), pgws_lsn_str(had, before));
	w->went_back = true;
	w->n_went_back++;
}

static void reg_on_ready(uint64_t confirmed_lsn, void *arg)
{
	struct walstreamd *w;
	OBJ_CAST(w, arg, WALSTREAMD_MAGIC);
	bool wanted = !w->draining && publisher_wants_stream(w->publisher);
	if (!wanted)
		w->trouble[0] = '\0'; /* else it stays until the stream really begins */
	/* Not before its time, though the server is there again: the stream may be what killed it.
	 */
	if (wanted && !w->retry.active && follower_get_state(w->follower) == FOLLOWER_IDLE) {
		take_gaps(w);
		note_history(w);
		prepare_follower(w);
		follower_start(w->follower, confirmed_lsn,
			registrar_sender_timeout_ms(w->registrar), choose_streaming(w));
	}
	update_status(w);
}

static void reg_on_create_slot(void *arg)
{
	struct walstreamd *w;
	OBJ_CAST(w, arg, WALSTREAMD_MAGIC);
	w->create_wanted = true;
	ev_timer_stop(&w->retry);
	drive(w);
}

static void reg_on_snapshot_used(void *arg)
{
	struct walstreamd *w;
	OBJ_CAST(w, arg, WALSTREAMD_MAGIC);
	follower_stop(w->follower);
}

static void reg_on_trouble(const char *text, bool lost_connection, void *arg)
{
	struct walstreamd *w;
	OBJ_CAST(w, arg, WALSTREAMD_MAGIC);
	set_trouble(w, text);
	w->slot.known = false;
	if (!lost_connection)
		return;
	w->create_wanted = false;
	if (follower_get_state(w->follower) != FOLLOWER_IDLE)
		follower_stop(w->follower);
}

static void reg_on_config_error(const char *text, void *arg)
{
	struct walstreamd *w;
	OBJ_CAST(w, arg, WALSTREAMD_MAGIC);
	stay_down(w, text);
}

static void pub_on_attached(void *arg)
{
	struct walstreamd *w;
	OBJ_CAST(w, arg, WALSTREAMD_MAGIC);
	/* Before STREAMING nothing of this stream is in the ring yet: its beginning comes for all.
	 */
	if (follower_get_state(w->follower) == FOLLOWER_STREAMING) {
		log_debug("wal.restart", "a reader attached, the stream begins anew");
		follower_stop(w->follower);
	} else {
		drive(w);
	}
}

static void on_detached_deferred(void *arg)
{
	struct walstreamd *w;
	OBJ_CAST(w, arg, WALSTREAMD_MAGIC);
	if (!publisher_wants_stream(w->publisher) &&
		follower_get_state(w->follower) == FOLLOWER_STREAMING)
		follower_stop(w->follower);
	update_status(w);
}

/* May come from within on_data, which still uses the stream's bytes. */
static void pub_on_detached(void *arg)
{
	struct walstreamd *w;
	OBJ_CAST(w, arg, WALSTREAMD_MAGIC);
	ev_defer(w->d->loop, &w->detached, on_detached_deferred, w);
}

/* Counts and says why the stream cannot go on. */
static const char *write_failed(struct walstreamd *w, int err)
{
	if (err == -ENOMEM)
		return "out of memory";
	if (err == -ERR_MALFORMED)
		stats_add(w->d->stats, WAL_STAT_PROTOCOL_ERRORS, 1);
	return publisher_error(w->publisher);
}

static void pub_on_room(void *arg)
{
	struct walstreamd *w;
	OBJ_CAST(w, arg, WALSTREAMD_MAGIC);
	/* Else the bytes that waited are gone with their stream. */
	if (follower_get_state(w->follower) != FOLLOWER_STREAMING)
		return;
	int err = publisher_continue(w->publisher);
	if (err == -EAGAIN)
		return;
	publisher_publish(w->publisher);
	if (err == 0)
		follower_resume(w->follower);
	else
		follower_abandon(w->follower, write_failed(w, err));
}

static void note_told(struct walstreamd *w)
{
	if (!publisher_gaps_told(w->publisher))
		return;
	log_info("wal.gap_told", "slot howdah_%s: every reader knows of the gap", w->d->node);
	registrar_gaps_told(w->registrar);
}

static void pub_on_acked(void *arg)
{
	struct walstreamd *w;
	OBJ_CAST(w, arg, WALSTREAMD_MAGIC);
	follower_acked(w->follower);
	note_told(w);
}

/* Up to where both the present timeline and the one that we followed have everything acknowledged.
 */
static uint64_t acked_on(struct walstreamd *w, uint32_t timeline, uint64_t left_lsn)
{
	uint64_t acked = publisher_flush_lsn(w->publisher);
	/* What is known is of another history. */
	if (w->went_back || w->system != registrar_system(w->registrar))
		return 0;
	if (publisher_timeline(w->publisher) == timeline)
		return acked;
	return acked < left_lsn ? acked : left_lsn;
}

static uint64_t reg_get_acked(uint32_t timeline, void *arg)
{
	struct walstreamd *w;
	OBJ_CAST(w, arg, WALSTREAMD_MAGIC);
	return acked_on(w, timeline, 0);
}

static void fol_on_slot_created(uint64_t lsn, uint32_t timeline, const char *snapshot, void *arg)
{
	struct walstreamd *w;
	OBJ_CAST(w, arg, WALSTREAMD_MAGIC);
	char text[18];
	log_info("wal.slot_created", "slot howdah_%s begins at %s", w->d->node,
		pgws_lsn_str(lsn, text));
	registrar_slot_created(w->registrar, lsn, timeline, snapshot,
		acked_on(w, timeline, follower_left_lsn(w->follower)));
}

static void fol_on_stream(uint64_t from_lsn, uint32_t timeline, void *arg)
{
	struct walstreamd *w;
	OBJ_CAST(w, arg, WALSTREAMD_MAGIC);
	char text[18];
	log_info("wal.streaming", "slot howdah_%s: streaming from %s on timeline %u", w->d->node,
		pgws_lsn_str(from_lsn, text), (unsigned)timeline);
	stats_add(w->d->stats, WAL_STAT_STREAMS, 1);
	w->trouble[0] = '\0';
	w->stream_since_ms = ev_now_ms();
	if (timeline != w->stream_timeline || history(w) != w->stream_history ||
		from_lsn > w->known_lsn)
		w->known_lsn = from_lsn;
	w->stream_timeline = timeline;
	w->stream_history = history(w);
	w->system = registrar_system(w->registrar);
	w->went_back = false;
	const struct publisher_begin begin = {
		.confirmed_lsn = from_lsn,
		.timeline = timeline,
		.history = history(w),
		.left_timeline = known_timeline(w),
		.left_lsn = follower_left_lsn(w->follower),
	};
	publisher_begin(w->publisher, &begin);
	update_status(w);
}

static int fol_on_data(const struct pgws_event *ev, const char **ret_why, void *arg)
{
	struct walstreamd *w;
	OBJ_CAST(w, arg, WALSTREAMD_MAGIC);
	int err = publisher_write(w->publisher, ev);
	if (err != 0 && err != -EAGAIN)
		*ret_why = write_failed(w, err);
	return err;
}

static void fol_on_keepalive(uint64_t wal_end, void *arg)
{
	struct walstreamd *w;
	OBJ_CAST(w, arg, WALSTREAMD_MAGIC);
	publisher_keepalive(w->publisher, wal_end);
}

static void fol_on_batch(void *arg)
{
	struct walstreamd *w;
	OBJ_CAST(w, arg, WALSTREAMD_MAGIC);
	publisher_publish(w->publisher);
}

static uint64_t fol_get_flush_lsn(void *arg)
{
	struct walstreamd *w;
	OBJ_CAST(w, arg, WALSTREAMD_MAGIC);
	return publisher_flush_lsn(w->publisher);
}

/* The stream, if there was one, has ended. Only one that brought a new transaction was of use, or
 * one that lasted: one that breaks at the same place again (the server cannot decode a change) is
 * not asked for again at once, though it begins well each time. */
static void end_stream(struct walstreamd *w)
{
	uint64_t since_ms = w->stream_since_ms, lsn = publisher_published_lsn(w->publisher);
	w->stream_since_ms = 0;
	if (since_ms == 0)
		return;
	ev_backoff_lasted(&w->backoff, ev_now_ms() - since_ms);
	if (lsn > w->known_lsn) {
		w->known_lsn = lsn;
		ev_backoff_reset(&w->backoff);
	}
}

static void fol_on_stopped(enum pg_class class, const char *text, void *arg)
{
	struct walstreamd *w;
	OBJ_CAST(w, arg, WALSTREAMD_MAGIC);
	end_stream(w);
	publisher_end(w->publisher);
	if (w->draining) {
		daemon_drained(w->d);
		return;
	}
	if (class == PG_CONFIG && !pgconf_is_embedded(w->d->conf)) {
		stay_down(w, text);
		return;
	}
	if (text[0] != '\0') {
		uint32_t ms = follower_slot_busy(w->follower) ? SLOT_ACTIVE_MS
							      : ev_backoff_next_ms(&w->backoff);
		if (strcmp(text, w->trouble) != 0)
			log_warning("wal.stream", "slot howdah_%s: %s, retrying", w->d->node, text);
		set_trouble(w, text);
		ev_timer_start(&w->retry, ms);
	}
	if (follower_streaming_failed(w->follower))
		publisher_forbid_streaming(w->publisher, text);
	/* Else it is not the making of a slot that ended: that was only asked for meanwhile. */
	if (!w->create_wanted)
		registrar_slot_failed(w->registrar, text);
	drive(w);
}

/* ---- Admin commands -------------------------------------------------------------------------- */

static void lag_consumer(const char *consumer, bool attached, uint64_t acked_lsn, void *arg)
{
	struct lag_positions *p = arg;
	if (p->n_consumers < LAG_CONSUMERS_MAX)
		p->consumers[p->n_consumers++] = (struct lag_consumer){
			.name = consumer, .attached = attached, .acked = acked_lsn};
}

static void lag_row(json_t *row, void *arg)
{
	(void)ctl_row(arg, row); /* a handful of rows: never over the mark */
}

/* The server's side was read a moment ago, ours is read now: lag_settle makes one ladder of it. */
static void answer_lag(
	struct walstreamd *w, struct ctl_client *c, const struct registrar_slot *slot)
{
	struct lag_positions p = {
		.sent = follower_server_lsn(w->follower),
		.received = publisher_received_lsn(w->publisher),
		.published = publisher_published_lsn(w->publisher),
		.acknowledged = publisher_flush_lsn(w->publisher),
	};
	if (!publisher_is_full(w->publisher))
		p.published = p.received; /* nothing waits: the server's idle position, too */
	publisher_each_acked(w->publisher, lag_consumer, &p);
	if (slot != NULL) {
		p.server = slot->server_lsn;
		p.slot = slot->confirmed_lsn;
		p.retained = slot->restart_lsn;
	}
	lag_settle(&p);
	lag_rows(&p, &w->lag_history, ev_now_ms(), lag_row, c);
	ctl_ok(c);
}

static void lag_end(struct lag_request *q)
{
	list_remove(&q->link);
	q->magic = 0;
	mem_free(&mem_lag, q);
}

/* More and more is kept although nothing is owed: the server may have nothing to decode for us, and
 * with that no reason to move the slot. */
static void maybe_heartbeat(struct walstreamd *w)
{
	bool grows = w->slot.retained_bytes > w->looked_retained;
	w->looked_retained = w->slot.retained_bytes;
	if (grows && w->slot.server_lsn > w->slot.confirmed_lsn + HEARTBEAT_BYTES &&
		follower_get_state(w->follower) == FOLLOWER_STREAMING &&
		publisher_is_idle(w->publisher) && registrar_heartbeat(w->registrar))
		stats_add(w->d->stats, WAL_STAT_HEARTBEATS, 1);
}

/* Nobody took anything out of a full ring for a while. */
static bool is_stuck(struct walstreamd *w)
{
	uint64_t written = publisher_written(w->publisher);
	if (follower_get_state(w->follower) != FOLLOWER_STREAMING ||
		publisher_trouble(w->publisher) == NULL || written != w->written) {
		w->written = written;
		w->moved_ms = ev_now_ms();
	}
	return ev_now_ms() - w->moved_ms >= STUCK_MS;
}

/* The slot may be given up at the next checkpoint, which first has to end its walsender. One that
 * cannot write, since we do not read, does not end, and the checkpoint would wait for it for ever
 * (slot.c, InvalidatePossiblyObsoleteSlot): whatever the server decides, we are not in its way. */
static void leave_if_doomed(struct walstreamd *w)
{
	bool stuck = is_stuck(w), unreserved = strcmp(w->slot.wal_status, "unreserved") == 0;
	char text[TEXT_BYTES];
	if (!unreserved)
		w->said_doomed = false;
	if (!stuck || !unreserved)
		return;
	snprintf(text, sizeof(text),
		"%s, and slot howdah_%s holds more WAL than max_slot_wal_keep_size: the stream "
		"pauses, so that the server may give the slot up; raise that, or end the slow "
		"reader's sessions, to keep it",
		publisher_trouble(w->publisher), w->d->node);
	if (!w->said_doomed)
		log_warning("wal.unreserved", "%s", text);
	w->said_doomed = true;
	set_trouble(w, text);
	ev_timer_start(&w->retry, BACKOFF_CAP_MS);
	follower_stop(w->follower);
}

static void reg_on_look(const struct registrar_slot *slot, void *arg)
{
	struct walstreamd *w;
	OBJ_CAST(w, arg, WALSTREAMD_MAGIC);
	if (slot != NULL) {
		w->slot = *slot;
		maybe_heartbeat(w);
	}
	while (!list_empty(&w->lag_requests)) {
		struct lag_request *q = list_first(&w->lag_requests, struct lag_request, link);
		struct ctl_client *c = q->client;
		lag_end(q);
		answer_lag(w, c, slot);
	}
	update_status(w);
}

static void lag_gone(struct ctl_client *c, void *arg)
{
	struct lag_request *q;
	(void)c;
	OBJ_CAST(q, arg, LAG_MAGIC);
	lag_end(q);
}

static void cmd_wal_lag(struct ctl_client *c, const struct ctl_request *req, void *arg)
{
	struct daemon *d = arg;
	struct walstreamd *w;
	OBJ_CAST(w, d->self, WALSTREAMD_MAGIC);
	(void)req; /* no arguments */
	struct lag_request *q = mem_new(&mem_lag, sizeof(*q));
	q->magic = LAG_MAGIC;
	q->client = c;
	list_push_back(&w->lag_requests, &q->link);
	ctl_hold(c, NULL, lag_gone, q);
	registrar_look(w->registrar);
}

static void ring_row(json_t *row, void *arg)
{
	(void)ctl_row(arg, row); /* a handful of rows: never over the mark */
}

static void cmd_ring_status(struct ctl_client *c, const struct ctl_request *req, void *arg)
{
	struct daemon *d = arg;
	struct walstreamd *w;
	OBJ_CAST(w, d->self, WALSTREAMD_MAGIC);
	(void)req; /* no arguments */
	publisher_each_row(w->publisher, ring_row, c);
	ctl_ok(c);
}

static const struct ctl_handler commands[] = {
	{"wal.lag", cmd_wal_lag},
	{"ring.status", cmd_ring_status},
	{NULL, NULL},
};

/* ---- Life ------------------------------------------------------------------------------------ */

static void on_tick(void *arg)
{
	struct walstreamd *w;
	OBJ_CAST(w, arg, WALSTREAMD_MAGIC);
	struct stats *s = w->d->stats;
	ev_timer_start(&w->tick, TICK_MS);
	note_told(w);
	publisher_update_stats(w->publisher);
	stats_set(s, WAL_STAT_RETAINED_BYTES, w->slot.known ? w->slot.retained_bytes : 0);
	stats_set(s, WAL_STAT_SAFE_BYTES,
		w->slot.known && w->slot.safe_wal_bytes > 0 ? (uint64_t)w->slot.safe_wal_bytes : 0);
	uint64_t server = follower_server_lsn(w->follower);
	if (w->slot.server_lsn > server)
		server = w->slot.server_lsn;
	stats_set(s, WAL_STAT_SERVER_LSN, server);
	lag_history_note(&w->lag_history, server, w->slot.confirmed_lsn, ev_now_ms());
	stats_set(s, WAL_STAT_STREAMING, follower_get_state(w->follower) == FOLLOWER_STREAMING);
	stats_set(s, WAL_STAT_FEEDBACKS, follower_feedbacks(w->follower));
	leave_if_doomed(w);
	update_status(w);
}

static const struct registrar_ops registrar_ops = {
	.on_ready = reg_on_ready,
	.on_create_slot = reg_on_create_slot,
	.on_snapshot_used = reg_on_snapshot_used,
	.on_trouble = reg_on_trouble,
	.on_config_error = reg_on_config_error,
	.get_acked = reg_get_acked,
	.on_look = reg_on_look,
};

static const struct follower_ops follower_ops = {
	.on_slot_created = fol_on_slot_created,
	.on_stream = fol_on_stream,
	.on_data = fol_on_data,
	.on_keepalive = fol_on_keepalive,
	.on_batch = fol_on_batch,
	.get_flush_lsn = fol_get_flush_lsn,
	.on_stopped = fol_on_stopped,
};

static const struct publisher_ops publisher_ops = {
	.on_attached = pub_on_attached,
	.on_detached = pub_on_detached,
	.on_room = pub_on_room,
	.on_acked = pub_on_acked,
};

static void walstreamd_fini(struct daemon *d)
{
	struct walstreamd *w;
	OBJ_CAST(w, d->self, WALSTREAMD_MAGIC);
	ev_timer_stop(&w->tick);
	ev_timer_stop(&w->retry);
	ev_defer_cancel(d->loop, &w->detached);
	while (!list_empty(&w->lag_requests)) {
		struct lag_request *q = list_first(&w->lag_requests, struct lag_request, link);
		struct ctl_client *c = q->client;
		lag_end(q);
		ctl_fail(c, "unavailable", NULL, "walstreamd is stopping");
	}
	follower_free(&w->follower);
	registrar_free(&w->registrar);
	publisher_free(&w->publisher);
	w->magic = 0;
	mem_free(&mem_walstreamd, w);
	d->self = NULL;
}

static int make_publisher(struct walstreamd *w)
{
	const struct conf *conf = w->d->conf;
	char *spool_dir = xasprintf("%s/spool", w->d->state_dir);
	const struct publisher_options options = {
		.ring_size = (size_t)conf_int(conf, "walstreamd.ring_size"),
		.transaction_memory = (size_t)conf_int(conf, "walstreamd.transaction_memory"),
		.spool_limit = (uint64_t)conf_int(conf, "walstreamd.transaction_spool_limit"),
		.spool_dir = spool_dir};
	(void)mkdir(spool_dir, 0700); /* who cannot use it says why */
	int err = publisher_new(w->d, &options, &publisher_ops, w, &w->publisher);
	if (err != 0)
		log_error("wal.ring", "cannot make a ring of %zu bytes: %s; lower ring_size",
			options.ring_size, err_str(err));
	free(spool_dir);
	return err;
}

static int walstreamd_init(struct daemon *d)
{
	struct walstreamd *w = mem_new(&mem_walstreamd, sizeof(*w));
	w->magic = WALSTREAMD_MAGIC;
	w->d = d;
	w->backoff = (struct ev_backoff){.base_ms = BACKOFF_BASE_MS, .cap_ms = BACKOFF_CAP_MS};
	list_init(&w->lag_requests);
	ev_timer_init(&w->tick, d->loop, "walstreamd tick", on_tick, w);
	ev_timer_init(&w->retry, d->loop, "walstreamd retry", on_retry, w);
	int err = make_publisher(w);
	if (err != 0) {
		mem_free(&mem_walstreamd, w);
		return err;
	}
	char *conninfo = pgconf_conninfo(d->conf, d->run_dir);
	char *slot = xasprintf("howdah_%s", d->node);
	char *publications = xasprintf("howdah,howdah_%s", d->node);
	const struct follower_options options = {
		.conninfo = conninfo, .slot = slot, .publications = publications};
	w->follower = follower_new(d->loop, &options, &follower_ops, w);
	w->registrar = registrar_new(d, conninfo, slot, &registrar_ops, w);
	free(conninfo);
	free(slot);
	free(publications);
	d->self = w;
	ev_timer_start(&w->tick, TICK_MS);
	registrar_start(w->registrar);
	update_status(w);
	daemon_ready(d);
	return 0;
}

static void walstreamd_drain(struct daemon *d)
{
	struct walstreamd *w;
	OBJ_CAST(w, d->self, WALSTREAMD_MAGIC);
	w->draining = true;
	ev_timer_stop(&w->retry);
	follower_stop(w->follower); /* on_stopped ends it */
}

static void walstreamd_on_peer(struct daemon *d, uint32_t role, bool up, uint32_t generation)
{
	struct walstreamd *w;
	OBJ_CAST(w, d->self, WALSTREAMD_MAGIC);
	(void)generation; /* a worker that comes up attaches by itself, maybe before this is said */
	if (!up)
		publisher_detach(w->publisher, role);
}

static int walstreamd_on_relay(
	struct daemon *d, uint32_t from_role, uint32_t kind, struct imsg *msg)
{
	struct walstreamd *w;
	OBJ_CAST(w, d->self, WALSTREAMD_MAGIC);
	if (kind != RELAY_RING_ATTACH)
		return -ERR_MALFORMED;
	return publisher_attach(w->publisher, from_role, msg);
}

/* LIVE keys are read where they are used; the others wait for the next start. */
static int walstreamd_reload(struct daemon *d, const struct conf *next, const char **ret_why)
{
	struct walstreamd *w;
	OBJ_CAST(w, d->self, WALSTREAMD_MAGIC);
	bool stream_again = publisher_no_streaming(w->publisher) != NULL;
	publisher_allow_streaming(w->publisher);
	if (stream_again && follower_get_state(w->follower) == FOLLOWER_STREAMING)
		follower_stop(w->follower);
	/* Whoever mended something need not wait. */
	ev_backoff_reset(&w->backoff);
	if (w->retry.active)
		ev_timer_start(&w->retry, 0); /* by then this configuration is in force */
	(void)next;
	(void)ret_why;
	return 0;
}

static const struct conf_row *const schemas[] = {ring_conf_rows, pgconf_rows, NULL};

static const struct stats_row stats_rows[WAL_STAT_COUNT] = {
	[WAL_STAT_PUBLISHED_LSN] = {"wal_published_lsn", STATS_LSN, "", STATS_STATUS,
		"end of the last transaction that the ring's readers can see"},
	[WAL_STAT_ACKNOWLEDGED_LSN] = {"wal_acknowledged_lsn", STATS_LSN, "", STATS_STATUS,
		"position up to which all readers are done"},
	[WAL_STAT_RETAINED_BYTES] = {"wal_retained_bytes", STATS_GAUGE, "bytes", STATS_STATUS,
		"WAL that the server keeps for this node's slot"},
	[WAL_STAT_SERVER_LSN] = {"wal_server_lsn", STATS_LSN, "", STATS_INFO,
		"the server's position as last heard"},
	[WAL_STAT_STREAMING] = {"wal_streaming", STATS_GAUGE, "", STATS_INFO,
		"1 while the replication stream is open"},
	[WAL_STAT_STREAMS] = {"wal_streams", STATS_COUNTER, "", STATS_INFO,
		"replication streams begun: starts, reconnects, readers that attached"},
	[WAL_STAT_TRANSACTIONS] = {"wal_transactions", STATS_COUNTER, "", STATS_INFO,
		"transactions written into the ring"},
	[WAL_STAT_MESSAGES] = {"wal_messages", STATS_COUNTER, "", STATS_INFO,
		"replication messages written into the ring"},
	[WAL_STAT_BYTES] = {"wal_bytes", STATS_COUNTER, "bytes", STATS_INFO, "their bytes"},
	[WAL_STAT_FEEDBACKS] = {"wal_feedbacks", STATS_COUNTER, "", STATS_INFO,
		"status updates sent to the server"},
	[WAL_STAT_PROTOCOL_ERRORS] = {"wal_protocol_errors", STATS_COUNTER, "", STATS_INFO,
		"streams left because a message could not be followed"},
	[WAL_STAT_CONSUMERS] = {"ring_readers", STATS_GAUGE, "", STATS_INFO,
		"workers that read the ring now"},
	[WAL_STAT_ATTACHES] = {"ring_attaches", STATS_COUNTER, "", STATS_INFO,
		"times that a worker was let in to read the ring"},
	[WAL_STAT_REFUSALS] = {"ring_refusals", STATS_COUNTER, "", STATS_INFO,
		"times that a worker was refused, or put out for an impossible cursor"},
	[WAL_STAT_RING_STALLS] = {"ring_stalls", STATS_COUNTER, "", STATS_INFO,
		"times that the ring was full and the WAL had to wait"},
	[WAL_STAT_RING_STALL_MS] = {"ring_stall_ms", STATS_COUNTER, "ms", STATS_INFO,
		"how long, all in all"},
	[WAL_STAT_RING_FREE_BYTES] = {"ring_free_bytes", STATS_GAUGE, "bytes", STATS_INFO,
		"room in the ring"},
	[WAL_STAT_RING_RECORDS] = {"ring_records", STATS_COUNTER, "", STATS_INFO,
		"records published"},
	[WAL_STAT_RING_PAD_BYTES] = {"ring_pad_bytes", STATS_COUNTER, "bytes", STATS_DEBUG,
		"bytes passed over at the end of the window"},
	[WAL_STAT_RING_WAKES] = {"ring_wakes", STATS_COUNTER, "", STATS_DEBUG,
		"sleeping readers that were woken"},
	[WAL_STAT_SAFE_BYTES] = {"wal_safe_bytes", STATS_GAUGE, "bytes", STATS_INFO,
		"WAL that can be written before the slot can be lost; 0: no limit, or no time "
		"left"},
	[WAL_STAT_HEARTBEATS] = {"wal_heartbeats", STATS_COUNTER, "", STATS_INFO,
		"logical messages written to move the slot of a quiet database"},
	[WAL_STAT_SLOTS_LOST] = {"wal_slots_lost", STATS_COUNTER, "", STATS_STATUS,
		"lost slots that were made anew"},
	[WAL_STAT_TXN_OPEN] = {"wal_transactions_open", STATS_GAUGE, "", STATS_INFO,
		"large transactions that are taken while they run"},
	[WAL_STAT_TXN_MEMORY_BYTES] = {"wal_transaction_memory_bytes", STATS_GAUGE, "bytes",
		STATS_INFO, "memory that they take"},
	[WAL_STAT_TXN_FILE_BYTES] = {"wal_transaction_file_bytes", STATS_GAUGE, "bytes", STATS_INFO,
		"and what they take in files in state_dir/spool"},
	[WAL_STAT_TXN_STREAMED] = {"wal_transactions_streamed", STATS_COUNTER, "", STATS_INFO,
		"transactions taken while they ran that were committed"},
	[WAL_STAT_TXN_ABORTED] = {"wal_transactions_aborted", STATS_COUNTER, "", STATS_INFO,
		"transactions and subtransactions taken while they ran that were rolled back"},
	[WAL_STAT_TXN_SPILLED] = {"wal_transactions_spilled", STATS_COUNTER, "", STATS_INFO,
		"transactions that went beyond transaction_memory into a file"},
	[WAL_STAT_TXN_SPILLED_BYTES] = {"wal_transaction_spilled_bytes", STATS_COUNTER, "bytes",
		STATS_INFO, "bytes written to these files"},
	[WAL_STAT_STREAMING_GIVEN_UP] = {"wal_streaming_given_up", STATS_COUNTER, "", STATS_INFO,
		"times that large transactions had to be left to the server"},
};

const struct daemon_info walstreamd_info = {
	.name = "walstreamd",
	.role = ROLE_WALSTREAMD,
	.schemas = schemas,
	.commands = commands,
	.stats_rows = stats_rows,
	.n_stats_rows = WAL_STAT_COUNT,
	.check = pgconf_check,
	.init = walstreamd_init,
	.reload = walstreamd_reload,
	.drain = walstreamd_drain,
	.fini = walstreamd_fini,
	.on_peer = walstreamd_on_peer,
	.on_relay = walstreamd_on_relay,
};
