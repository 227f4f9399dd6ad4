/* SPDX-License-Identifier: PostgreSQL */
/*
 * The broker's core as its own files know it: broker.c, session*.c, brokerd*.c.
 * Context: event thread.
 */
#ifndef BROKERD_BROKER_INT_H
#define BROKERD_BROKER_INT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "brokerd/broker.h"
#include "brokerd/brokerd_conf.h"
#include "brokerd/brokerd_stats.h"
#include "brokerd/topic.h"
#include "common/base/buf.h"
#include "common/base/ev.h"
#include "common/base/list.h"
#include "common/base/listener.h"
#include "common/pg/batch.h"

#define BROKER_READ_BYTES 65536     /* one read, shared by all connections */
#define BROKER_ROOM_CALLBACKS_MAX 4 /* sources that may ask for broker_on_room */
#define BROKER_RESUME_BUDGET 64     /* paused publishers that go on in one pass */
#define BROKER_DRAIN_MS 5000        /* how long a stop waits for commits and for clients to read */

struct session;

struct broker {
	uint32_t magic;
	struct ev_loop *loop; /* borrowed */
	struct stats *stats;  /* borrowed */
	struct batch *writer; /* borrowed; NULL only before broker_set_writer */
	size_t message_kind;  /* of the writer */
	char *node;           /* owned */
	struct broker_conf conf;
	struct topic_tree *tree;
	struct list sessions;      /* all connections, oldest first */
	struct session *by_client; /* uthash of those that are UP */
	struct list dirty;         /* sessions with something to send */
	struct list paused;        /* sessions that wait for room */
	struct list waiting_wills; /* struct inbound that found no room */
	struct list inbounds;      /* every struct inbound */
	struct ev_deferred flush;
	struct ev_deferred resume;
	struct ev_deferred room;
	size_t n_connections, n_sessions, n_congested, n_paused, n_waiting;
	size_t n_to_resume; /* of the paused, how many are looked at again; at most n_paused */
	uint64_t n_queued;
	uint64_t next_serial;
	uint64_t match_generation;
	struct session *matched; /* scratch of broker_publish */
	bool draining;           /* nothing new is taken */
	uint64_t drain_looks;
	struct {
		void (*cb)(void *arg);
		void *arg;
	} on_room[BROKER_ROOM_CALLBACKS_MAX];
	size_t n_on_room;
	uint8_t read_buf[BROKER_READ_BYTES];
};

#define BROKER_MAGIC 0x62726b72u

struct broker *broker_new(struct ev_loop *loop, struct stats *stats, const struct broker_conf *conf,
	const char *node);
/* Closes every connection without a word; the writer is gone by now. Nulls *b. */
void broker_free(struct broker **b);
/* Where QoS 1 publishes go; before the first client. */
void broker_set_writer(struct broker *b, struct batch *writer, size_t message_kind);
/* The writer's on_room. */
void broker_writer_room(struct broker *b);
/* A session has become, or is no longer, congested. */
void broker_count_congested(struct broker *b, bool congested);
/* Lets paused publishers look again, at the end of this pass. */
void broker_resume_soon(struct broker *b);
/* Lets this paused publisher look again. */
void broker_resume_first(struct broker *b, struct session *s);
/* The session has something to send: at the end of this pass. */
void broker_flush_soon(struct broker *b, struct session *s);
static inline void broker_count(struct broker *b, size_t stat, uint64_t n)
{
	stats_add(b->stats, stat, n);
}
/* What a listener does with connections; arg: the broker. */
extern const struct listener_ops broker_listener_ops;
/* Gauges onto the statistics page. */
void broker_update_stats(struct broker *b);

/* Stop: no new connections are the listeners' business; publishers are no longer read, what is in
 * the writer is acknowledged, everybody is told, wills are published; then done runs, deferred. */
void broker_drain(struct broker *b, void (*done)(void *arg), void *arg);

#endif
