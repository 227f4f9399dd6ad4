/* SPDX-License-Identifier: PostgreSQL */
/*
 * The ring's producer: makes the memory, lets consumers in and out, writes what the stream brings,
 * and knows up to where everybody is done.
 *
 * Context: event thread. It knows no connection: the follower gives it messages, walstreamd.c takes
 * the acknowledged position from it.
 */
#ifndef WALSTREAMD_PUBLISHER_H
#define WALSTREAMD_PUBLISHER_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/ev.h"
#include "common/ipc/daemon.h"
#include "common/ipc/imsg.h"
#include "libpgwalstream/pgwalstream.h"

struct publisher;

struct publisher_ops {
	/* A consumer attached (again): the stream has to begin anew for it. */
	void (*on_attached)(void *arg);
	/* A consumer is gone; it may have been the last one. */
	void (*on_detached)(void *arg);
	/* There is room again, or it is the turn of what is left of a large transaction: call
	 * publisher_continue. */
	void (*on_room)(void *arg);
	/* publisher_flush_lsn may have moved. */
	void (*on_acked)(void *arg);
};

struct publisher_options {
	size_t ring_size;
	size_t transaction_memory; /* of streamed transactions; beyond it they go to files */
	uint64_t spool_limit;      /* of these files, in bytes; 0: no files */
	const char *spool_dir;
};

/* 0, or -ENOMEM and the like: no memory for a ring of this size. Copies the options. */
int publisher_new(struct daemon *d, const struct publisher_options *options,
	const struct publisher_ops *ops, void *arg, struct publisher **ret_p)
	__attribute__((warn_unused_result));
void publisher_free(struct publisher **p);

/* ATTACH from a worker. Negative: garbled. */
int publisher_attach(struct publisher *p, uint32_t role, struct imsg *msg)
	__attribute__((warn_unused_result));
/* The worker of this role went away. */
void publisher_detach(struct publisher *p, uint32_t role);
size_t publisher_attached(const struct publisher *p);
/* Somebody is there to read, or nobody is expected. */
bool publisher_wants_stream(const struct publisher *p);

/* A stream as it begins: at the slot's confirmed position. */
struct publisher_begin {
	uint64_t confirmed_lsn;
	uint32_t timeline;
	int64_t history; /* a number of it: on another one LSNs name other changes, whatever the
			    timeline */
	uint32_t left_timeline; /* that the server was on before, as far as we know; 0: unknown */
	uint64_t left_lsn;      /* where it left that; 0: unknown */
};

/* What has to be told before the next stream: RING_GAP's fields and why. Copied. Replaces what was
 * said before. */
struct publisher_gap {
	uint64_t from_lsn, to_lsn;
	uint32_t timeline;
	int64_t at;
	const char *reason;
};
void publisher_set_gaps(struct publisher *p, const struct publisher_gap *gaps, size_t n);
/* Gaps wait for being told, and everybody has acknowledged them: forgets them. */
bool publisher_gaps_told(struct publisher *p);
/* Forgets half a message and what relations were announced, writes the gaps and RING_STREAM (before
 * anything else, as soon as there is room). On another timeline or history than before everybody
 * has to attach again. */
void publisher_begin(struct publisher *p, const struct publisher_begin *b);
/* The stream ended: drops what is left of a message that did not fit. */
void publisher_end(struct publisher *p);
/*
 * One DATA event. 0; -EAGAIN: the ring is full, or a large transaction takes several passes of the
 * loop: keep the event's bytes, give nothing more, and call publisher_continue after on_room.
 * The stream has to begin anew, publisher_error says why: -ERR_MALFORMED: it cannot be followed;
 * -ENOSPC: a large transaction does not fit, streaming is off from now on; -ENOMEM.
 */
int publisher_write(struct publisher *p, const struct pgws_event *ev)
	__attribute__((warn_unused_result));
/* 0: nothing waits any more; -EAGAIN: not yet; else as publisher_write. */
int publisher_continue(struct publisher *p) __attribute__((warn_unused_result));
bool publisher_is_full(const struct publisher *p);
/* Records written into the ring, ever: whether it moves. */
uint64_t publisher_written(const struct publisher *p);
const char *publisher_error(const struct publisher *p);
/* Why transactions are not to be streamed any more; NULL if they may be. */
const char *publisher_no_streaming(const struct publisher *p);
/* The server cannot send some transaction before its end: they are not to be streamed from now on.
 */
void publisher_forbid_streaming(struct publisher *p, const char *why);
/* The cause may be gone. */
void publisher_allow_streaming(struct publisher *p);
/* Everything sent before was before this position of the server. */
void publisher_keepalive(struct publisher *p, uint64_t wal_end);
/* Makes what was written visible and wakes who sleeps. */
void publisher_publish(struct publisher *p);

/* Up to here all enabled consumers are done: what the slot may be moved to. Never goes back on
 * one timeline of one history; 0 before the first stream. */
uint64_t publisher_flush_lsn(struct publisher *p);
/* A stream is followed and everything that came is acknowledged: whatever the slot lags behind is
 * no reader's doing. */
bool publisher_is_idle(const struct publisher *p);
uint32_t publisher_timeline(const struct publisher *p);
uint64_t publisher_published_lsn(const struct publisher *p);
uint64_t publisher_received_lsn(const struct publisher *p);
/* A text for the status while the ring is full: who is behind; NULL if it is not. */
const char *publisher_trouble(struct publisher *p);
void publisher_update_stats(struct publisher *p);

/* Rows for ring.status and, per consumer, for wal.lag. */
void publisher_each_row(struct publisher *p, void (*fn)(json_t *row, void *arg), void *arg);
void publisher_each_acked(struct publisher *p,
	void (*fn)(const char *consumer, bool attached, uint64_t acked_lsn, void *arg), void *arg);

#endif
