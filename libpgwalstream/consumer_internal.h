/* SPDX-License-Identifier: PostgreSQL */
/*
 * What the files of the consumer share. consumer.c owns its life, waiting and threads,
 * consumer_session.c the way from nothing to a stream and back, consumer_stream.c what happens
 * while it streams.
 */
#ifndef LIBPGWALSTREAM_CONSUMER_INTERNAL_H
#define LIBPGWALSTREAM_CONSUMER_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>

#include "libpgwalstream/stream_internal.h"

enum pgwsi_consumer_state {
	PGWSI_PAUSED, /* until retry_at */
	PGWSI_CONNECTING,
	PGWSI_IDENTIFYING,
	PGWSI_READING_HISTORY,
	PGWSI_READING_SLOT,
	PGWSI_LOOKING, /* at settings and publications */
	PGWSI_STARTING,
	PGWSI_STREAMING,
	PGWSI_ENDING, /* the last position is sent, the server's end is awaited */
	PGWSI_ENDED   /* result says how, for ever; after the end in order the connection stands */
};

struct pgws_consumer {
	struct pgws_consumer_options options; /* stream and assembler have their own copies */
	struct pgws_stream *stream;
	struct pgws_assembler *assembler;
	enum pgwsi_consumer_state state;
	int result;

	/* Waiting: the caller's thread only. Times in microseconds, monotonic. */
	int epfd, eventfd, timerfd;
	int watched_fd; /* -1: none */
	uint32_t watched_events;
	int64_t timer_at; /* 0: not set */
	bool waited;      /* the last call said PGWS_EAGAIN: descriptors may have news */
	bool lit;         /* it did not: eventfd says that there may be more */
	unsigned rest_us; /* to rest before the stream is looked at again */

	/* Any thread. */
	_Atomic uint64_t write_lsn, flush_lsn, apply_lsn;
	atomic_bool stop;
	atomic_bool armed; /* who waits wants to be woken by a confirmation */
	_Atomic uint64_t server_lsn, received_lsn, sent_flush, reconnects;
	_Atomic uint32_t timeline;
	pthread_mutex_t name_lock; /* systemid */
	char systemid[24];

	/* The background thread; lock guards everything below, and the stream. */
	pthread_mutex_t lock;
	pthread_cond_t wake;
	pthread_t thread;
	bool has_thread, thread_ends;

	/* The session. */
	int64_t retry_at, deadline;
	unsigned attempts;     /* failed in a row, the stream said nothing */
	unsigned failures;     /* in a row, with no new transaction or steady session: the pause */
	unsigned suspicions;   /* of them, errors that a new session may repeat */
	int64_t busy_since;    /* the slot is somebody else's; 0: it is not */
	bool was_streaming;    /* once in this life: base_lsn is known */
	uint64_t base_lsn;     /* the position at the first start */
	uint32_t new_timeline; /* the server's, while its history is read */
	uint64_t random;

	/* The stream. */
	bool drained;         /* the assembler wants the next event */
	bool more;            /* a change has come of the last event */
	bool half;            /* a Begin was given out and not its Commit */
	bool skipping;        /* between Begin and Commit of a transaction that is left out */
	bool passed;          /* the stop LSN */
	uint64_t given_lsn;   /* everything given out is flushed once this is */
	uint64_t message_lsn; /* of the last Message outside a transaction that was given out */
	uint64_t idle_given, idle_lsn; /* flush >= idle_given: the server's idle_lsn is confirmed */
	uint64_t sent_write, sent_apply;
	uint64_t settled, settled_told; /* the server has it, the assembler knows */
	int64_t streams_since, last_status, interval;
	bool asked;          /* the server wants an answer */
	bool poke;           /* look at the stream without waiting: a blocked write may have read */
	bool was_quiet;      /* nothing was to be read when the stream was looked at last */
	bool heard;          /* something since the last status */
	unsigned unanswered; /* questions in a row, an interval apart each */
	int64_t questioned;  /* when the last of them was sent */
	int64_t asked_first, asked_last; /* a row of the server's questions with no data between */

	char sqlstate[6];
	char error[1024];
	char notice[1200]; /* not told yet; the caller's thread only */
};

/* consumer.c */
int64_t pgwsi_now_us(void);
int64_t pgwsi_coarse_us(void);

/* consumer_session.c: both without blocking and with the lock held, if there is the thread. Result
 * of pgws_consumer_next; PGWS_EAGAIN: wait. */
int pgwsi_consumer_session(struct pgws_consumer *c);
/* The stream or the assembler failed: tries again, or ends. */
int pgwsi_consumer_lost(struct pgws_consumer *c, int err);
/* Ends for good. */
int pgwsi_consumer_end(struct pgws_consumer *c, int result);
/* The end in order: the last position first. */
int pgwsi_consumer_finish(struct pgws_consumer *c);
/* Before free: sends what was confirmed and not sent yet, if the connection stands. Blocks, for 5 s
 * at most. */
void pgwsi_consumer_settle(struct pgws_consumer *c);

/* consumer_stream.c: likewise. */
void pgwsi_consumer_streams(struct pgws_consumer *c);
int pgwsi_consumer_receive(struct pgws_consumer *c, struct pgws_change *ret_change);
/* When the next status is due. */
int64_t pgwsi_consumer_due(const struct pgws_consumer *c);
/* may_ask: the status asks for an answer if there is a reason to. */
void pgwsi_consumer_status(struct pgws_consumer *c, bool may_ask);
/* What may be confirmed now. */
uint64_t pgwsi_consumer_flushed(const struct pgws_consumer *c);

#endif
