/* SPDX-License-Identifier: PostgreSQL */
/*
 * The consumer's way to a stream: connecting, looking whether the server and the slot are what they
 * were, starting; and what a failure means.
 *
 * Context: the caller's thread, with the consumer's lock held. Nothing blocks, but for libpq's
 * look-up of a host's name.
 *
 *   PAUSED -> CONNECTING -> IDENTIFYING -> [READING_HISTORY] -> READING_SLOT -> LOOKING -> STARTING
 *     ^            |             |                 |                 |            |          |
 *     '-- a failure that may pass: backoff --------'-----------------'------------'- STREAMING
 *   one that cannot: ENDED;  the end in order: STREAMING -> ENDING -> ENDED, the slot let go and
 *   the connection kept, so that free can send what was confirmed since
 *
 * Invariants:
 *   1. START_REPLICATION is sent only after the slot was read in the same session: the server would
 *      silently go on behind a position that somebody else confirmed.
 *   2. No slot is ever made here.
 *   3. Between two attempts lies at least half of retry_base_ms.
 */
#include "config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "libpgwalstream/consumer_internal.h"

#define ATTEMPT_US 60000000        /* from the connection to the stream */
#define ENDING_US 5000000          /* for the server to end the stream in order */
#define BUSY_PATIENCE_US 120000000 /* a walsender that lost its client holds the slot */
#define STATUS_MAX_MS 10000
#define SUSPICIONS_MAX 2
#define STEADY_US 60000000 /* a session of this length was of use, whatever it brought */

/* ---- Ends -------------------------------------------------------------------------------------
 */

static void keep_text(struct pgws_consumer *c, const char *sqlstate, const char *text)
{
	snprintf(c->error, sizeof(c->error), "%s", text);
	snprintf(c->sqlstate, sizeof(c->sqlstate), "%s", sqlstate);
}

int pgwsi_consumer_end(struct pgws_consumer *c, int result)
{
	pgws_stream_close(c->stream);
	c->state = PGWSI_ENDED;
	c->result = result;
	return result;
}

int pgwsi_consumer_finish(struct pgws_consumer *c)
{
	if (c->state != PGWSI_STREAMING)
		return pgwsi_consumer_end(c, PGWS_EEND);
	pgwsi_consumer_status(c, false);
	if (pgws_stream_end(c->stream) != 0)
		return pgwsi_consumer_end(c, PGWS_EEND);
	c->state = PGWSI_ENDING;
	c->deadline = pgwsi_now_us() + ENDING_US;
	return pgwsi_consumer_session(c);
}

/* ---- Failures ---------------------------------------------------------------------------------
 */

enum verdict { RETRY, SUSPECT, BUSY, FATAL };

static bool begins(const char *text, const char *prefix)
{
	return strncmp(text, prefix, strlen(prefix)) == 0;
}

/*
 * What a SQLSTATE promises. SUSPECT: of the slot, of a publication, of a setting; the checks of the
 * next session tell which, and if they find nothing a second time is the last.
 */
static enum verdict judge_sqlstate(const char *state)
{
	static const char *const retry[] = {"08", "53", "57P", "58", "40", "XX", "55P03", "25006"};
	static const char *const fatal[] = {"28", "3D", "42501", "42601", "42602", "22", "0A"};

	if (strcmp(state, "55006") == 0)
		return BUSY;
	for (size_t i = 0; i < sizeof(retry) / sizeof(retry[0]); i++) {
		if (begins(state, retry[i]))
			return RETRY;
	}
	for (size_t i = 0; i < sizeof(fatal) / sizeof(fatal[0]); i++) {
		if (begins(state, fatal[i]))
			return FATAL;
	}
	return SUSPECT;
}

static enum verdict judge(const struct pgws_consumer *c, int err)
{
	switch (err) {
	case PGWS_EEND:
		return RETRY; /* the server shuts down */
	case PGWS_ECONN:
	case PGWS_ESERVER:
		return *c->sqlstate != 0 ? judge_sqlstate(c->sqlstate) : RETRY;
	case PGWS_EPROTO:
	case PGWS_EUNKNOWN:
		return SUSPECT;
	default:
		return FATAL;
	}
}

static uint64_t random_next(struct pgws_consumer *c)
{
	c->random ^= c->random << 13; /* xorshift64, Marsaglia 2003 */
	c->random ^= c->random >> 7;
	c->random ^= c->random << 17;
	return c->random;
}

/* Doubled with every failure up to the cap, of that between a half and the whole. */
static int64_t pause_us(struct pgws_consumer *c)
{
	int64_t cap = (int64_t)c->options.retry_cap_ms * 1000;
	int64_t pause = (int64_t)c->options.retry_base_ms * 1000;
	for (unsigned i = 1; i < c->failures && pause < cap; i++)
		pause *= 2;
	if (pause > cap)
		pause = cap;
	return pause / 2 + (int64_t)(random_next(c) % (uint64_t)(pause / 2 + 1));
}

/* why: of the notice. */
static int pause_for_retry(struct pgws_consumer *c, const char *why)
{
	bool half = c->half;
	snprintf(c->notice, sizeof(c->notice), "%s; %s", c->error, why);
	pgws_stream_close(c->stream);
	pgws_assembler_reset(c->assembler);
	c->half = false;
	c->state = PGWSI_PAUSED;
	c->retry_at = pgwsi_now_us() + pause_us(c);
	return half ? PGWS_RESTARTED : PGWS_EAGAIN;
}

/* Once in a life, so it counts as no attempt. */
static int leave_streaming(struct pgws_consumer *c)
{
	c->stream->options.streaming = PGWS_STREAMING_OFF;
	return pause_for_retry(
		c, "large transactions are left to the server from now on, trying again");
}

/* The session that ends now, if there was a stream. One that breaks sooner at the same place each
 * time is no success, though it begins well and the server answers. */
static void note_steady(struct pgws_consumer *c)
{
	if (c->state == PGWSI_STREAMING && pgwsi_now_us() - c->streams_since >= STEADY_US)
		c->failures = c->suspicions = 0;
}

/* A standby, which a failover's first seconds may lead to: it is behind, or has no slot that could
 * be used there, and is promoted soon. The server reports it unasked (14 and later). */
static bool in_recovery(const struct pgws_consumer *c)
{
	const char *status = PQparameterStatus(c->stream->conn, "in_hot_standby");
	return status != NULL && strcmp(status, "on") == 0;
}

/* err: what the last attempt ends with. */
static int try_again(struct pgws_consumer *c, int err, enum verdict verdict)
{
	int64_t now = pgwsi_now_us();
	if (verdict != BUSY)
		c->busy_since = 0;
	else if (c->busy_since == 0)
		c->busy_since = now;
	/* Another one's slot counts only once a walsender without a client would be gone. */
	bool counts = verdict != BUSY || now - c->busy_since > BUSY_PATIENCE_US;
	if (counts && c->attempts >= c->options.retry_max)
		return pgwsi_consumer_end(c, err);
	c->attempts += counts;
	c->failures += counts;
	return pause_for_retry(c, "trying again");
}

int pgwsi_consumer_lost(struct pgws_consumer *c, int err)
{
	const char *of_assembler = pgws_assembler_error(c->assembler);
	bool streaming = pgws_stream_phase(c->stream) == PGWS_PHASE_STREAMING;
	if (streaming && *of_assembler != 0)
		keep_text(c, "", of_assembler);
	else
		keep_text(c, pgws_stream_sqlstate(c->stream), pgws_stream_error(c->stream));
	if (c->error[0] == 0)
		snprintf(c->error, sizeof(c->error), "%s", pgws_strerror(err));

	note_steady(c);
	if (pgws_stream_streaming_failed(c->stream))
		return leave_streaming(c);
	enum verdict verdict = judge(c, err);
	/* What a standby that does stream says of a stream is meant. */
	if (verdict != BUSY && err == PGWS_ESERVER && c->state != PGWSI_STREAMING && in_recovery(c))
		verdict = RETRY;
	if (verdict == FATAL)
		return pgwsi_consumer_end(c, err == PGWS_ECONN ? PGWS_ESERVER : err);
	if (verdict == SUSPECT && ++c->suspicions >= SUSPICIONS_MAX)
		return pgwsi_consumer_end(c, err);
	return try_again(c, err, verdict);
}

/* A text of our own: ends, but where the server may become what it should be. */
static int refuse(struct pgws_consumer *c, int err, const char *sqlstate, const char *text)
{
	keep_text(c, sqlstate, text);
	if (in_recovery(c) && (err == PGWS_ESLOT || err == PGWS_EBACK || err == PGWS_ESERVER))
		return try_again(c, err, RETRY);
	return pgwsi_consumer_end(c, err);
}

/* ---- Checks -----------------------------------------------------------------------------------
 */

/* What this life has of the server: beyond it lies nothing that it could lose. */
static uint64_t had_lsn(const struct pgws_consumer *c)
{
	uint64_t had = atomic_load(&c->received_lsn);
	uint64_t flushed = pgwsi_consumer_flushed(c);
	if (flushed > had)
		had = flushed;
	return c->options.start_lsn > had ? c->options.start_lsn : had;
}

static int went_back(struct pgws_consumer *c, const char *what, uint64_t at)
{
	char text[200], a[18], b[18];
	snprintf(text, sizeof(text), "%s at %s, before %s, which was already received or confirmed",
		what, pgws_lsn_str(at, a), pgws_lsn_str(had_lsn(c), b));
	return refuse(c, PGWS_EBACK, "", text);
}

static int read_slot(struct pgws_consumer *c)
{
	c->state = PGWSI_READING_SLOT;
	return pgws_stream_read_slot(c->stream, NULL);
}

static void keep_systemid(struct pgws_consumer *c, const char *systemid)
{
	pthread_mutex_lock(&c->name_lock);
	snprintf(c->systemid, sizeof(c->systemid), "%s", systemid);
	pthread_mutex_unlock(&c->name_lock);
}

static int on_identified(struct pgws_consumer *c)
{
	const struct pgws_system *sys = pgws_stream_system(c->stream);
	uint32_t known = atomic_load(&c->timeline);
	char text[200];
	if (sys == NULL)
		return pgwsi_consumer_lost(c, PGWS_EPROTO);
	if (*c->systemid != 0 && strcmp(c->systemid, sys->systemid) != 0) {
		snprintf(text, sizeof(text), "the server is of system %s, not %s", sys->systemid,
			c->systemid);
		return refuse(c, PGWS_ESYSTEM, "", text);
	}
	keep_systemid(c, sys->systemid);
	if (known != 0 && sys->timeline < known) {
		snprintf(text, sizeof(text), "the server is on timeline %u, before %u",
			sys->timeline, known);
		return refuse(c, PGWS_EBACK, "", text);
	}
	if (known != 0 && sys->timeline != known && !c->options.accept_timeline) {
		snprintf(text, sizeof(text), "the server is on timeline %u, not %u", sys->timeline,
			known);
		return refuse(c, PGWS_ETIMELINE, "", text);
	}
	if (sys->xlogpos < had_lsn(c))
		return went_back(c, "the server stands", sys->xlogpos);
	if (known == 0 || sys->timeline == known) {
		atomic_store(&c->timeline, sys->timeline);
		return read_slot(c);
	}
	c->new_timeline = sys->timeline;
	c->state = PGWSI_READING_HISTORY;
	return pgws_stream_timeline_history(c->stream, sys->timeline);
}

static int on_history(struct pgws_consumer *c)
{
	size_t len;
	const char *history = pgws_stream_text(c->stream, &len);
	uint32_t known = atomic_load(&c->timeline);
	uint64_t left;
	char text[120];
	if (history == NULL)
		return pgwsi_consumer_lost(c, PGWS_EPROTO);
	if (pgwsi_timeline_end(history, len, known, &left) != 0) {
		snprintf(text, sizeof(text), "timeline %u did not come from timeline %u",
			c->new_timeline, known);
		return refuse(c, PGWS_EBACK, "", text);
	}
	if (left < had_lsn(c))
		return went_back(c, "the server's new timeline began", left);
	atomic_store(&c->timeline, c->new_timeline);
	return read_slot(c);
}

/* Why no stream can come from this slot, or NULL; err says which kind of reason. */
static const char *bad_slot(
	struct pgws_consumer *c, const struct pgws_slot_info *i, char *text, size_t size, int *err)
{
	const char *name = c->stream->options.slot;
	char a[18], b[18];
	uint64_t ours = c->was_streaming ? atomic_load(&c->sent_flush) : c->options.start_lsn;
	*err = PGWS_ESLOT;
	if (!i->exists) {
		snprintf(text, size, "replication slot \"%s\" does not exist%s", name,
			c->was_streaming ? " any more" : "");
	} else if (*i->invalidation != 0 || i->conflicting || strcmp(i->wal_status, "lost") == 0) {
		snprintf(text, size, "replication slot \"%s\" is invalidated: %s", name,
			*i->invalidation != 0 ? i->invalidation : "its WAL was removed");
	} else if (i->temporary) {
		snprintf(text, size, "slot \"%s\" is a temporary one of another session", name);
	} else if (i->physical || strcmp(i->plugin, "pgoutput") != 0) {
		snprintf(text, size, "slot \"%s\" is not a logical one of pgoutput", name);
		*err = PGWS_EINVAL;
	} else if (i->two_phase && !c->stream->options.two_phase) {
		snprintf(text, size, "slot \"%s\" has two_phase: ask for it", name);
		*err = PGWS_EINVAL;
	} else if (i->confirmed_lsn > ours && !c->was_streaming && c->options.exact_start) {
		snprintf(text, size,
			"slot \"%s\" stands at %s, start_lsn is %s: somebody else moved it, or "
			"the position at which the last life ended was not stored (exact_start)",
			name, pgws_lsn_str(i->confirmed_lsn, a), pgws_lsn_str(ours, b));
	} else if (i->confirmed_lsn > ours && c->was_streaming) {
		snprintf(text, size, "slot \"%s\" was moved to %s by somebody else, from %s", name,
			pgws_lsn_str(i->confirmed_lsn, a), pgws_lsn_str(ours, b));
	} else {
		return NULL;
	}
	return text;
}

/* One row: wal_sender_timeout in milliseconds, publications that are missing. */
static int look(struct pgws_consumer *c)
{
	struct pgwsi_text t = {.bytes = NULL};
	const char *list = c->stream->options.publications;
	pgwsi_put(&t, "SELECT (SELECT setting FROM pg_catalog.pg_settings"
		      " WHERE name = 'wal_sender_timeout'), (SELECT "
		      "pg_catalog.string_agg(v.n, ', ') FROM (VALUES ");
	for (const char *sep = ""; true; sep = ", ") {
		size_t len = strcspn(list, ",");
		char *literal = PQescapeLiteral(c->stream->conn, list, len);
		pgwsi_put(&t, sep);
		pgwsi_put(&t, "(");
		pgwsi_put(&t, literal != NULL ? literal : "NULL");
		pgwsi_put(&t, ")");
		PQfreemem(literal);
		list += len;
		if (*list++ == 0)
			break;
	}
	pgwsi_put(&t, ") v (n) WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_publication p"
		      " WHERE p.pubname = v.n))");
	c->state = PGWSI_LOOKING;
	return pgwsi_send_command(c->stream, PGWSI_CMD_QUERY, &t);
}

static int on_slot(struct pgws_consumer *c)
{
	const struct pgws_slot_info *i = pgws_stream_slot_info(c->stream);
	char text[300];
	int err;
	if (i == NULL)
		return pgwsi_consumer_lost(c, PGWS_EPROTO);
	if (bad_slot(c, i, text, sizeof(text), &err) != NULL)
		return refuse(c, err, "", text);
	if (!c->was_streaming) {
		c->base_lsn = i->confirmed_lsn > c->options.start_lsn ? i->confirmed_lsn
								      : c->options.start_lsn;
		atomic_store(&c->sent_flush, c->base_lsn);
		atomic_store(&c->received_lsn, c->base_lsn);
		c->given_lsn = c->idle_given = c->idle_lsn = 0;
		c->was_streaming = true;
	}
	if (c->options.stop_lsn != 0 && pgwsi_consumer_flushed(c) >= c->options.stop_lsn)
		return pgwsi_consumer_end(c, PGWS_EEND);
	return look(c);
}

static int on_looked(struct pgws_consumer *c)
{
	const char *timeout = pgws_stream_value(c->stream, 0, 0);
	const char *missing = pgws_stream_value(c->stream, 0, 1);
	int64_t ms = timeout != NULL ? strtoll(timeout, NULL, 10) : 0;
	int64_t interval =
		c->options.status_interval_ms != 0 ? c->options.status_interval_ms : STATUS_MAX_MS;
	if (missing != NULL) {
		char text[300];
		snprintf(text, sizeof(text), "publication %s does not exist", missing);
		return refuse(c, PGWS_ESERVER, PGWSI_UNDEFINED_OBJECT, text);
	}
	if (ms > 0 && interval > ms / 3)
		interval = ms / 3;
	c->interval = (interval > 0 ? interval : 1) * 1000;
	c->state = PGWSI_STARTING;
	return pgws_stream_start(c->stream, pgwsi_consumer_flushed(c));
}

/* ---- The way ----------------------------------------------------------------------------------
 */

static int on_started(struct pgws_consumer *c)
{
	c->busy_since = 0;
	c->state = PGWSI_STREAMING;
	pgwsi_consumer_streams(c);
	pthread_cond_signal(&c->wake); /* the background thread has something to do */
	return 0;
}

/* The phase that ended, and what comes then: 0, or a result, or what a call of the stream says. */
static int next_step(struct pgws_consumer *c)
{
	switch (c->state) {
	case PGWSI_CONNECTING:
		c->state = PGWSI_IDENTIFYING;
		return pgws_stream_identify(c->stream);
	case PGWSI_IDENTIFYING:
		return on_identified(c);
	case PGWSI_READING_HISTORY:
		return on_history(c);
	case PGWSI_READING_SLOT:
		return on_slot(c);
	case PGWSI_LOOKING:
		return on_looked(c);
	default:
		return on_started(c);
	}
}

static int begin_attempt(struct pgws_consumer *c)
{
	if (pgwsi_now_us() < c->retry_at)
		return PGWS_EAGAIN;
	if (c->was_streaming)
		atomic_fetch_add(&c->reconnects, 1);
	c->deadline = pgwsi_now_us() + ATTEMPT_US;
	c->state = PGWSI_CONNECTING;
	return pgws_stream_connect(c->stream);
}

/* ENDING: whatever happens now, it is the end. */
static int work_ending(struct pgws_consumer *c)
{
	int err = pgws_stream_work(c->stream);
	if (err == PGWS_EAGAIN && pgwsi_now_us() < c->deadline)
		return PGWS_EAGAIN;
	if (err != 0)
		return pgwsi_consumer_end(c, PGWS_EEND);
	c->state = PGWSI_ENDED;
	c->result = PGWS_EEND;
	return PGWS_EEND;
}

int pgwsi_consumer_session(struct pgws_consumer *c)
{
	while (c->state != PGWSI_STREAMING) {
		enum pgwsi_consumer_state before = c->state;
		int err;
		if (c->state == PGWSI_ENDED)
			return c->result;
		if (c->state == PGWSI_ENDING)
			return work_ending(c);
		if (c->state == PGWSI_PAUSED) {
			err = begin_attempt(c);
			if (c->state == PGWSI_PAUSED)
				return err;
		} else {
			err = pgws_stream_work(c->stream);
			if (err == PGWS_EAGAIN && pgwsi_now_us() < c->deadline)
				return PGWS_EAGAIN;
			if (err == PGWS_EAGAIN) {
				pgwsi_keep_error(c->stream, "the server did not answer in time");
				err = PGWS_ECONN;
			}
			if (err == 0)
				err = next_step(c);
		}
		if (c->state == PGWSI_ENDED || (c->state == PGWSI_PAUSED && before != c->state))
			return err; /* it was dealt with */
		if (err != 0)
			return pgwsi_consumer_lost(c, err);
	}
	return 0;
}

/* ---- Before free ------------------------------------------------------------------------------
 */

static bool has_news(const struct pgws_consumer *c)
{
	return pgwsi_consumer_flushed(c) > atomic_load(&c->sent_flush);
}

/* 0: the phase ended well before the deadline. */
static int wait_until(struct pgws_consumer *c, int64_t deadline)
{
	int64_t left = deadline - pgwsi_now_us();
	return pgws_stream_wait(c->stream, left > 0 ? (int)(left / 1000) : 0);
}

/* The slot moves to what was confirmed, never back. A second START_REPLICATION in one session would
 * not do: the server takes it as ended already (PostgreSQL 15). */
static int advance_slot(struct pgws_consumer *c)
{
	const char *slot = c->stream->options.slot;
	char *literal = PQescapeLiteral(c->stream->conn, slot, strlen(slot));
	struct pgwsi_text t = {.bytes = NULL};
	char lsn[18];
	if (literal == NULL)
		return PGWS_ENOMEM;
	pgwsi_put(&t, "SELECT pg_catalog.pg_replication_slot_advance(");
	pgwsi_put(&t, literal);
	pgwsi_put(&t, ", '");
	pgwsi_put(&t, pgws_lsn_str(pgwsi_consumer_flushed(c), lsn));
	pgwsi_put(&t, "')");
	PQfreemem(literal);
	return pgwsi_send_command(c->stream, PGWSI_CMD_QUERY, &t);
}

void pgwsi_consumer_settle(struct pgws_consumer *c)
{
	int64_t deadline = pgwsi_now_us() + ENDING_US;
	if (c->state == PGWSI_STREAMING && has_news(c))
		(void)pgwsi_consumer_finish(c); /* the state says how far it went */
	if (c->state == PGWSI_ENDING && wait_until(c, deadline) != 0)
		return;
	/* Confirmed since the end? The connection is there only after one in order. */
	if (c->state >= PGWSI_ENDING && pgws_stream_phase(c->stream) == PGWS_PHASE_READY &&
		has_news(c) && advance_slot(c) == 0)
		(void)wait_until(c, deadline); /* it is closed whatever comes */
}
