/* SPDX-License-Identifier: PostgreSQL */
/*
 * The replication connection as a state machine: makes the slot, streams, sends feedback, ends.
 *
 * Context: event thread. Positions come from outside: where the stream begins from the registrar,
 * what is acknowledged from the publisher, by the callbacks.
 */
#ifndef WALSTREAMD_FOLLOWER_H
#define WALSTREAMD_FOLLOWER_H

#include <stdbool.h>
#include <stdint.h>

#include "common/base/ev.h"
#include "common/pg/pgconn.h"
#include "libpgwalstream/pgwalstream.h"

/* A server that does not say a word for so long, although asked, is gone. */
#define FOLLOWER_SILENCE_MS 60000
#define FOLLOWER_FEEDBACK_MS 10000

struct follower;

struct follower_ops {
	/* The slot is made and its snapshot exported: it lives until follower_stop. */
	void (*on_slot_created)(uint64_t lsn, uint32_t timeline, const char *snapshot, void *arg);
	/* The stream begins at from_lsn. */
	void (*on_stream)(uint64_t from_lsn, uint32_t timeline, void *arg);
	/* One message: 0; -EAGAIN: keep it, wait for follower_resume; else negative: the stream has
	 * to begin anew, *ret_why (borrowed for the moment) says why. */
	int (*on_data)(const struct pgws_event *ev, const char **ret_why, void *arg);
	/* The server is at this position, all before it was sent. */
	void (*on_keepalive)(uint64_t wal_end, void *arg);
	/* What was read in this round is over: make it visible. */
	void (*on_batch)(void *arg);
	/* The acknowledged position, for feedback. */
	uint64_t (*get_flush_lsn)(void *arg);
	/* Stopped, as asked (err_class PG_OK) or not: idle again. text for the operator, "" if
	 * there is nothing to say. */
	void (*on_stopped)(enum pg_class err_class, const char *text, void *arg);
};

struct follower_options {
	const char *conninfo;
	const char *slot;         /* also the application's name, seen in pg_stat_replication */
	const char *publications; /* "a,b" */
	uint32_t silence_ms;      /* 0: FOLLOWER_SILENCE_MS */
};

enum follower_state {
	FOLLOWER_IDLE,
	FOLLOWER_RESOLVING,
	FOLLOWER_CONNECTING,
	FOLLOWER_IDENTIFYING,
	FOLLOWER_HISTORY,  /* asks where the server left the timeline that we knew */
	FOLLOWER_ALTERING, /* the slot's failover property */
	FOLLOWER_CREATING,
	FOLLOWER_SNAPSHOT, /* the slot is made, its snapshot in use */
	FOLLOWER_STARTING,
	FOLLOWER_STREAMING,
	FOLLOWER_ENDING,
	FOLLOWER_STATE_COUNT
};

/* Copies the options. */
struct follower *follower_new(struct ev_loop *loop, const struct follower_options *options,
	const struct follower_ops *ops, void *arg);
void follower_free(struct follower **f);
/* IDLE only, for the next start: the timeline that is followed so far, 0: none, and the one on
 * which the slot's position was read, 0: not known. A server on another one is not followed: there
 * the position may name other transactions. */
void follower_set_timeline(struct follower *f, uint32_t known_timeline, uint32_t slot_timeline);
/* IDLE only, for the next start: whether standbys should keep the slot too (17+, ignored before),
 * and whether it has to be told so. */
void follower_set_failover(struct follower *f, bool wanted, bool alter);
/* IDLE only, for the next start: the one server of the conninfo to connect to. Copied. */
void follower_set_peer(struct follower *f, const struct pgconn_peer *peer);
/* IDLE only. */
void follower_create_slot(struct follower *f);
/* IDLE only: stream from the slot's confirmed position. sender_timeout_ms: the server's
 * wal_sender_timeout. streaming: as far as the server can, which is for the caller to know. */
void follower_start(struct follower *f, uint64_t confirmed_lsn, uint32_t sender_timeout_ms,
	enum pgws_streaming streaming);
/* Last feedback, CopyDone, a moment for the server to say its own end: then on_stopped, also when
 * it was idle (deferred in every case). */
void follower_stop(struct follower *f);
/* There is room for the message that on_data did not take, or it was taken: read on. */
void follower_resume(struct follower *f);
/* STREAMING: what on_data kept turned out to be impossible, and why: on_stopped follows. */
void follower_abandon(struct follower *f, const char *why);
/* The acknowledged position may have moved. */
void follower_acked(struct follower *f);
enum follower_state follower_get_state(const struct follower *f);
const char *follower_state_str(enum follower_state s);
/* Where the server left the timeline of follower_set_timeline; 0: it did not, or nobody knows. */
uint64_t follower_left_lsn(const struct follower *f);
/* In on_stopped: the slot is still in use by another session, most likely our own last one. */
bool follower_slot_busy(const struct follower *f);
/* The last stream ended because the server could not stream open transactions: see
 * pgws_stream_streaming_failed. */
bool follower_streaming_failed(const struct follower *f);
/* The position that the last feedback carried; the server's end as last heard. */
uint64_t follower_sent_flush_lsn(const struct follower *f);
uint64_t follower_server_lsn(const struct follower *f);
uint64_t follower_feedbacks(const struct follower *f);

#endif
