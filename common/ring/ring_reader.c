/* SPDX-License-Identifier: PostgreSQL */
/*
 * The consumer side of the ring for a daemon: see ring_reader.h for what it promises.
 *
 * Context: event thread. One pass at a time (`pass`), queued by ev_defer from every event; a pass
 * is
 *   1. deliver: spool, then ring, each record through joining and dropping of duplicates;
 *   2. if we are behind (paused, or the spool is not empty) and the ring is half full: ring ->
 * spool;
 *   3. nothing left to do: arm, look again, sleep until the eventfd.
 * The producer is told what was acknowledged, and so woken, behind the work that the pass has put
 * off: whoever waits for a message does not wait for that.
 *
 * Invariants:
 *   R1  spool before ring: a record is delivered from the ring only while the spool is empty
 *   R2  seen (what was handled) moves only after the handler has taken a record
 *   R3  pending (a whole record that the handler has not taken) is offered before anything else
 *   R4  acked_lsn is told to the producer only when its ring has carried that LSN: a new producer
 *       would take an LSN that it has not published yet for a lie; and only when the handler is on
 *       the ring's timeline and history: an LSN of another one names other changes
 *
 * On crash of this process: nothing here lasts; the next life attaches with its durable position.
 * On crash of the producer: DETACHED, then a new epoch, duplicates dropped.
 */
#include "config.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/base/err.h"
#include "common/base/log.h"
#include "common/base/mem.h"
#include "common/base/pg_time.h"
#include "common/ipc/worker_proto.h"
#include "common/ring/ring_link.h"
#include "common/ring/ring_notify.h"
#include "common/ring/ring_reader.h"
#include "common/ring/ring_spool.h"

#define READER_MAGIC 0x52524431u
#define BUDGET_RECORDS 1000
#define BUDGET_BYTES (UINT64_C(1) << 20) /* to the handler, per pass */
#define SPOOL_BYTES (UINT64_C(4) << 20)  /* to the spool, per pass */
#define SPOOL_RECORDS 5000
#define JOINED_MAX (UINT64_C(1) << 30)  /* PostgreSQL's messages end there */
#define JOINED_KEEP (UINT64_C(1) << 20) /* a larger buffer is given back after use */
#define SAFETY_MS 1000
#define SUSPECT_MS 20
#define DELAYS_MS 60000
#define FLAG_ANEW 0x8000u /* ours, on a RING_STREAM: the first one of an attachment */

/* First byte of a pgoutput message. */
#define MSG_BEGIN 'B'
#define MSG_COMMIT 'C'

MEM_TYPE(mem_reader, "ring reader");
MEM_TYPE(mem_attachment, "ring attachment");

/* One ring that we are or were attached to. */
struct attachment {
	int cursor_fd, data_event, space_event;
	void *cursor;
	const void *data;
	size_t data_len;
	struct ring_consumer *consumer; /* NULL before GRANT */
	bool streaming;    /* its RING_STREAM was seen: what came before is not for us */
	uint64_t lsn_max;  /* highest LSN that it carried (R4) */
	uint32_t timeline; /* of its last RING_STREAM (R4) */
	int64_t history;   /* the same */
	uint64_t since_ms;
};

/* What the handler has had. */
struct seen {
	uint32_t timeline; /* 0: nothing was seen yet */
	int64_t history;
	uint64_t done_lsn; /* commit LSN of the last whole transaction */
	uint64_t open_lsn; /* of the transaction begun, 0: none */
	uint32_t open_ordinal;
	uint32_t gap_timeline; /* of the last gap */
	uint64_t gap_lsn;      /* where it ended */
};

/* From a commit to the handler. */
struct delay {
	uint64_t at_ms;
	uint64_t us;
};

struct ring_reader {
	uint32_t magic;
	struct ev_loop *loop;
	struct ring_reader_ops ops;
	void *arg;
	uint32_t audience;
	size_t budget_records;

	bool peer_up;
	uint32_t peer_generation;
	struct attachment *at;   /* ring in use; after PEER gone the old one */
	struct attachment *next; /* ATTACH is out */
	bool dead;               /* at belongs to a life that is over */

	struct ring_spool *spool;
	bool paused, busy;
	bool spool_blocked; /* it took no more; tried again when it has shrunk, or by the safety
			       timer */
	bool backpressure;  /* what was last told to the handler */
	bool asleep, suspect;

	struct seen seen;
	bool stream_due; /* on_timeline was taken, on_stream has to follow */
	uint64_t acked_lsn;

	bool pass_timed;                         /* this pass has noted its delay */
	struct delay delays[RING_READER_DELAYS]; /* the latest, in no order */
	size_t n_delays;                         /* ever */
	uint64_t delays_ms;

	uint8_t *joined; /* of joined_cap bytes */
	size_t joined_cap, joined_len;
	struct ring_record joining; /* its first fragment; type 0: none */
	struct ring_record pending; /* whole, in joined; type 0: none */

	struct ev_io data_io;
	struct ev_deferred pass;
	struct ev_deferred ack_flush;
	struct ev_timer safety;
	struct ev_timer retry;
	struct ev_backoff backoff;
	char trouble[160];
	struct ring_reader_counts counts;
};

static void on_pass(void *arg);
static void on_data(int fd, short what, void *arg);
static void on_safety(void *arg);
static void on_retry(void *arg);
static void on_ack_flush(void *arg);

static void wake_pass(struct ring_reader *r)
{
	ev_defer(r->loop, &r->pass, on_pass, r);
}

/* ---- Attachments --------------------------------------------------------------------------- */

static void close_fd(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

static void attachment_free(struct attachment **at_ptr)
{
	struct attachment *at = *at_ptr;
	*at_ptr = NULL;
	if (at == NULL)
		return;
	ring_consumer_free(&at->consumer);
	ring_data_unmap(at->data, at->data_len);
	ring_cursor_unmap(at->cursor);
	close_fd(&at->cursor_fd);
	close_fd(&at->data_event);
	close_fd(&at->space_event);
	mem_free(&mem_attachment, at);
}

static int attachment_new(struct attachment **ret_at)
{
	struct attachment *at = mem_new(&mem_attachment, sizeof(*at));
	at->cursor_fd = at->data_event = at->space_event = -1;
	int err = ring_cursor_create(&at->cursor_fd, &at->cursor);
	if (err == 0)
		err = ring_event_create(&at->data_event);
	if (err != 0) {
		attachment_free(&at);
		return err;
	}
	*ret_at = at;
	return 0;
}

static void retry_later(struct ring_reader *r)
{
	ev_timer_start(&r->retry, ev_backoff_next_ms(&r->backoff));
}

static void trouble(struct ring_reader *r, const char *what, const char *why)
{
	snprintf(r->trouble, sizeof(r->trouble), "%s: %s", what, why);
	log_debug("ring.reader", "%s", r->trouble);
}

/* The ring in use is left; a record half joined from it will come again. */
static void leave_ring(struct ring_reader *r)
{
	ev_io_stop(&r->data_io);
	r->asleep = r->suspect = false;
	attachment_free(&r->at);
	r->dead = false;
}

static void send_attach(struct ring_reader *r)
{
	ASSERT(r->next == NULL);
	int err = attachment_new(&r->next);
	if (err == 0) {
		struct buf body;
		buf_init(&body, 0);
		struct ring_link_attach m = {
			.version = RING_LINK_VERSION, .acked_lsn = r->acked_lsn};
		ring_link_put_attach(&body, &m);
		int fds[2] = {r->next->cursor_fd, r->next->data_event};
		err = r->ops.send_attach(&body, fds, 2, r->arg);
		buf_free(&body);
	}
	if (err == 0) {
		close_fd(&r->next->cursor_fd);
		return;
	}
	attachment_free(&r->next);
	trouble(r, "cannot ask walstreamd for the ring", err_str(err));
	retry_later(r);
}

/* What we have cannot be trusted: start over with the same walstreamd. */
static void start_over(struct ring_reader *r, const char *what, int err)
{
	trouble(r, what, err_str(err));
	if (r->at != NULL)
		ev_backoff_lasted(&r->backoff, ev_now_ms() - r->at->since_ms);
	leave_ring(r);
	if (r->peer_up && r->next == NULL)
		retry_later(r);
}

static void on_retry(void *arg)
{
	struct ring_reader *r;
	OBJ_CAST(r, arg, READER_MAGIC);
	if (r->peer_up && r->next == NULL && (r->at == NULL || r->dead))
		send_attach(r);
}

void ring_reader_peer(struct ring_reader *r, bool up, uint32_t generation)
{
	OBJ_CHECK(r, READER_MAGIC);
	if (up && r->peer_up && generation == r->peer_generation)
		return;
	ev_timer_stop(&r->retry);
	ev_backoff_reset(&r->backoff);
	attachment_free(&r->next);
	r->dead = r->at != NULL;
	r->peer_up = up;
	r->peer_generation = generation;
	if (up)
		send_attach(r);
	wake_pass(r);
}

static int grant_take(struct ring_reader *r, struct imsg *msg, const struct ring_link_grant *m)
{
	struct attachment *at = r->next;
	at->space_event = imsg_take_fd(msg, 1);
	int data_fd = imsg_take_fd(msg, 0);
	int err = ring_data_map(data_fd, &at->data, &at->data_len);
	close(data_fd);
	if (err == 0)
		err = ring_consumer_new(at->data, at->data_len, at->cursor, &at->consumer);
	if (err == 0 && ring_consumer_epoch(at->consumer) != m->epoch)
		err = -ERR_MALFORMED;
	return err;
}

static int on_grant(struct ring_reader *r, struct imsg *msg)
{
	struct ring_link_grant m;
	int err = ring_link_get_grant(&msg->body, &m);
	if (err != 0)
		return err;
	if (msg->n_fds != 2 || msg->fds[0] < 0 || msg->fds[1] < 0)
		return -ERR_MALFORMED;
	if (r->next == NULL)
		return 0; /* of an attempt that is over */
	err = grant_take(r, msg, &m);
	if (err != 0) {
		attachment_free(&r->next);
		trouble(r, "cannot use walstreamd's ring", err_str(err));
		retry_later(r);
		return 0;
	}
	leave_ring(r);
	r->at = r->next;
	r->at->since_ms = ev_now_ms();
	r->next = NULL;
	r->counts.epoch = m.epoch;
	r->counts.attachments++;
	r->trouble[0] = '\0';
	ev_io_set(&r->data_io, r->at->data_event, EV_READ);
	wake_pass(r);
	return 0;
}

static int on_refuse(struct ring_reader *r, struct imsg *msg)
{
	char *why = rd_string(&msg->body);
	if (why == NULL || rd_end(&msg->body) != 0) {
		free(why);
		return -ERR_MALFORMED;
	}
	char text[100];
	trouble(r, "walstreamd refuses its ring", log_escape(why, strlen(why), text, sizeof(text)));
	free(why);
	r->counts.refusals++;
	/* Without a question of ours it means that we were dropped. */
	if (r->next != NULL)
		attachment_free(&r->next);
	else
		leave_ring(r);
	retry_later(r);
	return 0;
}

int ring_reader_relay(struct ring_reader *r, uint32_t kind, struct imsg *msg)
{
	OBJ_CHECK(r, READER_MAGIC);
	switch (kind) {
	case RELAY_RING_GRANT:
		return on_grant(r, msg);
	case RELAY_RING_REFUSE:
		return on_refuse(r, msg);
	default:
		return -ERR_MALFORMED;
	}
}

/* ---- What was seen ------------------------------------------------------------------------- */

static uint8_t message_tag(const struct ring_record *rec, const void *payload)
{
	return rec->payload_len > 0 ? *(const uint8_t *)payload : 0;
}

/* The first fragment is enough to judge a record. */
static bool is_duplicate(const struct seen *s, const struct ring_record *rec, uint8_t tag)
{
	bool frame = tag == MSG_BEGIN || tag == MSG_COMMIT;
	if (rec->type != RING_MESSAGE || rec->commit_lsn == 0 || (rec->ordinal == 0 && !frame))
		return false;
	if (rec->commit_lsn <= s->done_lsn)
		return true;
	if (rec->commit_lsn != s->open_lsn)
		return false;
	return rec->ordinal > 0 ? rec->ordinal <= s->open_ordinal : tag == MSG_BEGIN;
}

/* A stream that begins at or below this goes on where it was. */
static uint64_t seen_lsn(const struct seen *s)
{
	return s->open_lsn != 0 ? s->open_lsn : s->done_lsn;
}

static int64_t history_of(const struct ring_record *rec)
{
	return rec->commit_time;
}

static bool timeline_changes(const struct seen *s, const struct ring_record *rec)
{
	return s->timeline != 0 && (s->timeline != rec->timeline || s->history != history_of(rec));
}

/* Up to where this timeline has what the one before had; 0: nobody knows. */
static uint64_t kept_lsn(const struct seen *s, const struct ring_record *rec)
{
	return rec->relid == s->timeline && s->history == history_of(rec) ? rec->lsn : 0;
}

/* LSNs beyond the point where the server left the old timeline name other transactions now. */
static void seen_timeline(struct seen *s, const struct ring_record *rec)
{
	uint64_t kept = kept_lsn(s, rec);
	if (s->done_lsn > kept)
		s->done_lsn = kept;
	if (s->open_lsn >= kept)
		s->open_lsn = 0;
	if (s->history != history_of(rec))
		s->gap_timeline = 0; /* gaps, too, have LSNs */
	s->timeline = rec->timeline;
	s->history = history_of(rec);
}

static bool is_known_gap(const struct seen *s, const struct ring_record *rec)
{
	return rec->timeline < s->gap_timeline ||
	       (rec->timeline == s->gap_timeline && rec->end_lsn <= s->gap_lsn);
}

/* The handler took it (R2). */
static void seen_record(struct seen *s, const struct ring_record *rec, uint8_t tag)
{
	if (rec->type != RING_MESSAGE || rec->commit_lsn == 0)
		return;
	if (rec->ordinal == 0 && tag == MSG_COMMIT) {
		s->done_lsn = rec->commit_lsn;
		s->open_lsn = 0;
		s->open_ordinal = 0;
	} else if (rec->ordinal > 0 || tag == MSG_BEGIN) {
		s->open_lsn = rec->commit_lsn;
		s->open_ordinal = rec->ordinal;
	}
}

/* ---- Delay --------------------------------------------------------------------------------- */

/* Given to the handler at now_us. The first change of a pass stands for those that woke us with it:
 * one look at the clock for all of them. */
static void note_delay(struct ring_reader *r, const struct ring_record *rec, int64_t now_us)
{
	int64_t us = (int64_t)((uint64_t)now_us - (uint64_t)rec->commit_time);
	r->delays[r->n_delays++ % RING_READER_DELAYS] =
		(struct delay){.at_ms = ev_now_ms(), .us = us > 0 ? (uint64_t)us : 0};
	r->pass_timed = true;
}

static int compare_us(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
	return x < y ? -1 : x > y;
}

static void get_delays(const struct ring_reader *r, struct ring_reader_counts *ret_counts)
{
	uint64_t us[RING_READER_DELAYS], now_ms = ev_now_ms();
	size_t kept = r->n_delays < RING_READER_DELAYS ? r->n_delays : RING_READER_DELAYS, n = 0;
	for (size_t i = 0; i < kept; i++) {
		if (now_ms - r->delays[i].at_ms < r->delays_ms)
			us[n++] = r->delays[i].us;
	}
	qsort(us, n, sizeof(*us), compare_us);
	ret_counts->delay_p50_us = n > 0 ? us[n / 2] : 0;
	ret_counts->delay_p99_us = n > 0 ? us[n - 1 - n / 100] : 0;
}

/* ---- Delivery ------------------------------------------------------------------------------ */

static void joined_trim(struct ring_reader *r)
{
	if (r->joined_cap <= JOINED_KEEP)
		return;
	free(r->joined);
	r->joined = NULL;
	r->joined_cap = 0;
}

static int joined_reserve(struct ring_reader *r, size_t len)
{
	if (len > JOINED_MAX)
		return -ERR_LIMIT;
	if (r->joined_cap >= len)
		return 0;
	free(r->joined);
	r->joined_cap = 0;
	r->joined = malloc(len);
	if (r->joined == NULL)
		return -ENOMEM;
	r->joined_cap = len;
	return 0;
}

static int offer_gap(struct ring_reader *r, const struct ring_record *rec, const void *payload)
{
	const struct ring_gap gap = {
		.from_lsn = rec->lsn,
		.to_lsn = rec->end_lsn,
		.timeline = rec->timeline,
		.at = rec->commit_time,
		.reason = payload,
		.reason_len = rec->payload_len,
	};
	int rc = r->ops.on_gap != NULL ? r->ops.on_gap(&gap, r->arg) : 0;
	if (rc == 0) {
		r->seen.gap_timeline = rec->timeline;
		r->seen.gap_lsn = rec->end_lsn;
		r->counts.gaps++;
	}
	return rc;
}

static int offer_timeline(struct ring_reader *r, const struct ring_record *rec)
{
	uint64_t kept = kept_lsn(&r->seen, rec);
	int rc = r->ops.on_timeline != NULL ? r->ops.on_timeline(rec->timeline, kept, r->arg) : 0;
	if (rc != 0)
		return rc;
	seen_timeline(&r->seen, rec);
	r->stream_due = true;
	uint64_t limit = kept > rec->commit_lsn ? kept : rec->commit_lsn;
	if (r->acked_lsn > limit)
		r->acked_lsn = limit; /* what was above is another history */
	return 0;
}

static int offer_stream(struct ring_reader *r, const struct ring_record *rec)
{
	int rc = timeline_changes(&r->seen, rec) ? offer_timeline(r, rec) : 0;
	/* A position beyond what was seen is a gap, too: transactions that were not for us, or a
	 * slot made anew. */
	bool anew = (rec->flags & FLAG_ANEW) != 0 || r->stream_due ||
		    rec->commit_lsn > seen_lsn(&r->seen);
	if (rc == 0 && anew)
		rc = r->ops.on_stream(rec->commit_lsn, rec->timeline, r->arg);
	if (rc != 0)
		return rc;
	r->stream_due = false;
	r->seen.timeline = rec->timeline;
	r->seen.history = history_of(rec);
	return 0;
}

static int offer_message(struct ring_reader *r, const struct ring_record *rec, const void *payload)
{
	bool timed = rec->ordinal > 0 && !r->pass_timed;
	int64_t now_us = timed ? pg_now_us() : 0;
	int rc = r->ops.on_record(rec, payload, r->arg);
	if (rc == 0 && timed)
		note_delay(r, rec, now_us);
	return rc;
}

/* Offers a whole record. 0: taken or a duplicate; RING_READER_PAUSE: not taken. */
static int offer(struct ring_reader *r, const struct ring_record *rec, const void *payload)
{
	uint8_t tag = message_tag(rec, payload);
	int rc = 0;
	if (rec->type == RING_STREAM) {
		rc = offer_stream(r, rec);
	} else if (rec->type == RING_GAP) {
		if (is_known_gap(&r->seen, rec))
			return 0;
		rc = offer_gap(r, rec, payload);
	} else if (is_duplicate(&r->seen, rec, tag)) {
		r->counts.duplicates_dropped++;
		return 0;
	} else {
		rc = offer_message(r, rec, payload);
	}
	if (rc != 0) {
		r->paused = true;
		return RING_READER_PAUSE;
	}
	seen_record(&r->seen, rec, tag);
	r->counts.records++;
	r->counts.bytes += rec->payload_len;
	return 0;
}

/* A whole record that was not taken waits in joined. */
static int keep_pending(struct ring_reader *r, const struct ring_record *rec, const void *payload)
{
	if (payload != r->joined) {
		int err = joined_reserve(r, rec->payload_len > 0 ? rec->payload_len : 1);
		if (err != 0)
			return err;
		if (rec->payload_len > 0)
			memcpy(r->joined, payload, rec->payload_len);
	}
	r->pending = *rec;
	return 0;
}

static int deliver_whole(struct ring_reader *r, const struct ring_record *rec, const void *payload)
{
	if (offer(r, rec, payload) != 0)
		return keep_pending(r, rec, payload);
	joined_trim(r);
	return 0;
}

/* One fragment from ring or spool. Negative: its source cannot be trusted. */
static int deliver_fragment(
	struct ring_reader *r, const struct ring_record *rec, const void *payload)
{
	bool first = (rec->flags & RING_FLAG_FIRST) != 0, last = (rec->flags & RING_FLAG_LAST) != 0;
	if (first) {
		r->joining.type = 0; /* a half record that never ended is forgotten */
		if (last)
			return deliver_whole(r, rec, payload);
		if (is_duplicate(&r->seen, rec, message_tag(rec, payload))) {
			r->counts.duplicates_dropped++;
			return 0; /* its other fragments belong to nothing */
		}
		int err = joined_reserve(r, rec->total_len);
		if (err != 0)
			return err;
		r->joining = *rec;
		r->joined_len = 0;
	}
	if (r->joining.type == 0)
		return 0; /* the rest of a duplicate */
	if (rec->offset != r->joined_len || rec->total_len != r->joining.total_len)
		return -ERR_MALFORMED;
	memcpy(r->joined + r->joined_len, payload, rec->payload_len);
	r->joined_len += rec->payload_len;
	if (!last)
		return 0;
	struct ring_record whole = r->joining;
	whole.flags = RING_FLAG_FIRST | RING_FLAG_LAST;
	whole.payload_len = whole.total_len;
	whole.end_lsn = rec->end_lsn;
	r->joining.type = 0;
	return deliver_whole(r, &whole, r->joined);
}

/* Offers what was not taken before. */
static void deliver_pending(struct ring_reader *r)
{
	if (r->pending.type == 0)
		return;
	struct ring_record rec = r->pending;
	r->pending.type = 0;
	if (offer(r, &rec, r->joined) != 0) {
		r->pending = rec;
		return;
	}
	joined_trim(r);
}

static int deliver_spool(struct ring_reader *r, size_t *budget)
{
	struct ring_record rec;
	const void *payload;
	while (!r->paused && *budget > 0) {
		int rc = ring_spool_peek(r->spool, &rec, &payload);
		if (rc <= 0)
			return rc;
		rc = deliver_fragment(r, &rec, payload);
		if (rc < 0)
			return rc;
		ring_spool_next(r->spool);
		r->spool_blocked = false;
		(*budget)--;
	}
	return 0;
}

/* ---- Ring ---------------------------------------------------------------------------------- */

static void signal_producer(struct ring_reader *r)
{
	if (!r->dead)
		ring_event_signal(r->at->space_event);
}

static void release(struct ring_reader *r)
{
	if (ring_release(r->at->consumer))
		signal_producer(r);
}

/* The next fragment in the ring that concerns us: 1, 0, or negative. */
static int ring_next(struct ring_reader *r, struct ring_record *ret_rec, const void **ret_payload)
{
	struct attachment *at = r->at;
	int rc;
	while ((rc = ring_peek(at->consumer, ret_rec, ret_payload)) == 1) {
		if (ret_rec->type == RING_STREAM) {
			if (!at->streaming)
				ret_rec->flags |= FLAG_ANEW;
			at->streaming = true;
			at->timeline = ret_rec->timeline;
			at->history = history_of(ret_rec);
			if (ret_rec->commit_lsn > at->lsn_max)
				at->lsn_max = ret_rec->commit_lsn;
			return 1;
		}
		if (ret_rec->end_lsn > at->lsn_max)
			at->lsn_max = ret_rec->end_lsn;
		if (ret_rec->type == RING_GAP)
			return 1; /* stands before its RING_STREAM */
		if (at->streaming && (ret_rec->audience & r->audience) != 0)
			return 1;
	}
	return rc;
}

static int deliver_ring(struct ring_reader *r, size_t *budget)
{
	uint64_t bytes = 0, unreleased = 0;
	const uint64_t step = ring_consumer_capacity(r->at->consumer) / 16;
	struct ring_record rec;
	const void *payload;
	int rc = 0;
	while (!r->paused && *budget > 0 && bytes < BUDGET_BYTES) {
		rc = ring_next(r, &rec, &payload);
		if (rc <= 0)
			break;
		rc = deliver_fragment(r, &rec, payload);
		if (rc < 0)
			break;
		(*budget)--;
		bytes += rec.payload_len;
		unreleased += rec.payload_len;
		if (unreleased >= step) {
			release(r);
			unreleased = 0;
		}
	}
	if (rc >= 0)
		release(r);
	return rc < 0 ? rc : 0;
}

static void set_backpressure(struct ring_reader *r, bool on, const char *why)
{
	if (r->backpressure == on)
		return;
	r->backpressure = on;
	if (on) {
		r->counts.backpressures++;
		trouble(r, "the spool takes no more", why);
	} else {
		r->trouble[0] = '\0';
	}
	if (r->ops.on_backpressure != NULL)
		r->ops.on_backpressure(on, r->arg);
}

static bool half_full(const struct ring_reader *r)
{
	return r->at != NULL && ring_consumer_lag_bytes(r->at->consumer) >=
					ring_consumer_capacity(r->at->consumer) / 2;
}

static bool behind(const struct ring_reader *r)
{
	return r->paused || !ring_spool_empty(r->spool);
}

/* Ring -> spool, all that is there within the budget. Negative: the ring cannot be trusted. */
static int move_to_spool(struct ring_reader *r)
{
	uint64_t bytes = 0, n = 0;
	struct ring_record rec;
	const void *payload;
	int rc;
	while (bytes < SPOOL_BYTES && n++ < SPOOL_RECORDS &&
		(rc = ring_next(r, &rec, &payload)) != 0) {
		if (rc < 0)
			return rc;
		int err = ring_spool_put(r->spool, &rec, payload);
		if (err != 0) {
			if ((rec.flags & FLAG_ANEW) != 0)
				r->at->streaming = false; /* it will be met again */
			ring_unpeek(r->at->consumer);
			r->spool_blocked = true;
			set_backpressure(r, true, err_str(err));
			return 0;
		}
		release(r);
		bytes += rec.payload_len;
		r->counts.spooled_records++;
	}
	release(r);
	set_backpressure(r, false, NULL);
	return 0;
}

/* ---- The pass ------------------------------------------------------------------------------ */

static bool work_left(const struct ring_reader *r)
{
	if (behind(r) && !r->spool_blocked && half_full(r))
		return true;
	if (r->paused)
		return false;
	return !ring_spool_empty(r->spool) ||
	       (r->at != NULL && ring_consumer_lag_bytes(r->at->consumer) > 0);
}

/* Nothing to do now: arm, look again (the partner's fence makes sure that one of us sees the
 * other). */
static void sleep_or_go_on(struct ring_reader *r)
{
	if (work_left(r)) {
		wake_pass(r);
		return;
	}
	if (r->at == NULL)
		return;
	if (!r->safety.active)
		ev_timer_start(&r->safety, SAFETY_MS);
	if (r->spool_blocked)
		return; /* resume or the timer goes on */
	ring_consumer_arm(r->at->consumer);
	r->asleep = true;
	if (work_left(r))
		wake_pass(r);
}

static void wake_up(struct ring_reader *r)
{
	if (r->asleep && r->at != NULL)
		ring_consumer_disarm(r->at->consumer);
	r->asleep = r->suspect = false;
}

static void spool_lost(struct ring_reader *r, int err)
{
	ring_spool_clear(r->spool);
	r->joining.type = 0;
	/* The lost records were taken out of the ring: the server has them still. */
	start_over(r, "the spool cannot be read", err);
}

static void run_pass(struct ring_reader *r)
{
	size_t budget = r->budget_records;
	if (!r->paused)
		deliver_pending(r);
	int err = deliver_spool(r, &budget);
	if (err < 0) {
		spool_lost(r, err);
		return;
	}
	if (r->at == NULL)
		return;
	if (!behind(r)) {
		r->spool_blocked = false;
		set_backpressure(r, false, NULL);
		err = deliver_ring(r, &budget);
	}
	if (err == 0 && behind(r) && half_full(r))
		err = move_to_spool(r);
	if (err < 0)
		start_over(r, "the ring cannot be trusted", err);
}

static bool ack_is_due(const struct ring_reader *r)
{
	const struct attachment *at = r->at;
	return at != NULL && !r->dead && r->acked_lsn > ring_consumer_acked(at->consumer) &&
	       r->acked_lsn <= at->lsn_max && at->timeline == r->seen.timeline &&
	       at->history == r->seen.history; /* R4 */
}

/* Behind all that is put off by now. */
static void put_ack_off(struct ring_reader *r)
{
	ev_defer_cancel(r->loop, &r->ack_flush);
	if (ack_is_due(r))
		ev_defer(r->loop, &r->ack_flush, on_ack_flush, r);
}

static void on_pass(void *arg)
{
	struct ring_reader *r;
	OBJ_CAST(r, arg, READER_MAGIC);
	wake_up(r);
	r->busy = true;
	r->pass_timed = false;
	run_pass(r);
	r->busy = false;
	put_ack_off(r);
	sleep_or_go_on(r);
}

static void on_data(int fd, short what, void *arg)
{
	struct ring_reader *r;
	OBJ_CAST(r, arg, READER_MAGIC);
	(void)what;
	ring_event_drain(fd);
	wake_pass(r);
}

/*
 * The net under the sleep protocol, for a producer that died between publishing and waking. Work
 * that is there while we sleep may be just now on its way to us, so it is looked at twice.
 */
static void on_safety(void *arg)
{
	struct ring_reader *r;
	OBJ_CAST(r, arg, READER_MAGIC);
	if (r->spool_blocked) {
		r->spool_blocked = false; /* perhaps the disk has room again */
		wake_pass(r);
		return;
	}
	if (!r->asleep || !work_left(r)) {
		r->suspect = false;
		if (r->at != NULL)
			ev_timer_start(&r->safety, SAFETY_MS);
		return;
	}
	if (!r->suspect) {
		r->suspect = true;
		ev_timer_start(&r->safety, SUSPECT_MS);
		return;
	}
	r->counts.rescued_wakeups++;
	wake_pass(r);
}

/* ---- Outside ------------------------------------------------------------------------------- */

struct ring_reader *ring_reader_new(struct ev_loop *loop, const struct ring_reader_options *options,
	const struct ring_reader_ops *ops, void *arg)
{
	struct ring_reader *r = mem_new(&mem_reader, sizeof(*r));
	r->magic = READER_MAGIC;
	r->loop = loop;
	r->ops = *ops;
	r->arg = arg;
	r->audience = options->audience;
	r->budget_records = options->budget_records != 0 ? options->budget_records : BUDGET_RECORDS;
	r->delays_ms = options->delays_ms != 0 ? options->delays_ms : DELAYS_MS;
	r->spool = ring_spool_new(options->spool_dir, options->spool_limit);
	r->backoff = (struct ev_backoff){.base_ms = 100, .cap_ms = 10000};
	ev_io_init(&r->data_io, loop, "ring data", on_data, r);
	ev_timer_init(&r->safety, loop, "ring safety", on_safety, r);
	ev_timer_init(&r->retry, loop, "ring retry", on_retry, r);
	return r;
}

void ring_reader_free(struct ring_reader **r_ptr)
{
	struct ring_reader *r = *r_ptr;
	*r_ptr = NULL;
	if (r == NULL)
		return;
	OBJ_CHECK(r, READER_MAGIC);
	ASSERT(!r->busy);
	ev_defer_cancel(r->loop, &r->pass);
	ev_defer_cancel(r->loop, &r->ack_flush);
	ev_timer_stop(&r->safety);
	ev_timer_stop(&r->retry);
	leave_ring(r);
	attachment_free(&r->next);
	ring_spool_free(&r->spool);
	free(r->joined);
	r->magic = 0;
	mem_free(&mem_reader, r);
}

void ring_reader_resume(struct ring_reader *r)
{
	OBJ_CHECK(r, READER_MAGIC);
	ASSERT(!r->busy);
	if (!r->paused)
		return;
	r->paused = false;
	wake_pass(r);
}

static void on_ack_flush(void *arg)
{
	struct ring_reader *r;
	OBJ_CAST(r, arg, READER_MAGIC);
	if (ack_is_due(r) && ring_ack(r->at->consumer, r->acked_lsn))
		signal_producer(r);
}

void ring_reader_ack(struct ring_reader *r, uint64_t lsn)
{
	OBJ_CHECK(r, READER_MAGIC);
	if (lsn <= r->acked_lsn)
		return;
	r->acked_lsn = lsn;
	/* Once per pass of the loop, however many transactions it ends. */
	ev_defer(r->loop, &r->ack_flush, on_ack_flush, r);
}

static const char *state_str(const struct ring_reader *r)
{
	if (r->next != NULL)
		return "attaching";
	if (r->at == NULL || r->dead)
		return "detached";
	return ring_spool_empty(r->spool) ? "live" : "spooling";
}

void ring_reader_get_counts(const struct ring_reader *r, struct ring_reader_counts *ret_counts)
{
	OBJ_CHECK(r, READER_MAGIC);
	*ret_counts = r->counts;
	ret_counts->state = state_str(r);
	ret_counts->spool_bytes_now = ring_spool_bytes(r->spool);
	ret_counts->spool_bytes_total = ring_spool_bytes_total(r->spool);
	ret_counts->lag_bytes = r->at != NULL ? ring_consumer_lag_bytes(r->at->consumer) : 0;
	ret_counts->acked_lsn = r->acked_lsn;
	ret_counts->backpressure = r->backpressure;
	ret_counts->trouble = r->trouble;
	get_delays(r, ret_counts);
}
