/* SPDX-License-Identifier: PostgreSQL */
/*
 * The broker's core, between its sources of messages (clients' PUBLISH, table changes) and its
 * sessions: who gets a message, and whether there is room for more.
 *
 * Context: event thread.
 */
#ifndef BROKERD_BROKER_H
#define BROKERD_BROKER_H

#include <stdbool.h>

#include "brokerd/message.h"
#include "common/ipc/daemon.h"

struct broker;

/* Gives the message to every matching subscriber (once per session, highest granted QoS of the
 * overlapping subscriptions). QoS 1 deliveries hold the message, and so its track, until PUBACK or
 * the end of the session. QoS 0 for a client that is not keeping up is dropped and counted. Always
 * takes the message; the caller keeps its own reference. Returns the number of sessions. */
size_t broker_publish(struct broker *b, struct message *m);

/* Whether anybody subscribes to this topic: a message that nobody would get need not be made. */
bool broker_wants(struct broker *b, const char *topic, size_t topic_len);

/* True while some QoS 1 subscriber's queue is over its mark: sources should pause. on_room (set
 * once by each source) is called, deferred, when that is over. */
bool broker_congested(const struct broker *b);
void broker_on_room(struct broker *b, void (*cb)(void *arg), void *arg);

#endif
