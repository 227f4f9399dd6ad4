/* SPDX-License-Identifier: PostgreSQL */
/*
 * Which transactions still wait for somebody, and up to where the stream may be acknowledged:
 * strictly in commit order.
 *
 *   tracker_hold (first message, or a set of mappings to store) -> open -> tracker_commit ->
 * waiting the last reference of its track goes -> done -> acknowledged when all before it are
 *
 * Transactions that held nothing, or are done before their turn, cost nothing: their end is folded
 * into the one before them. So the list is as long as there are transactions with something
 * outstanding, which the broker's congestion mark bounds.
 *
 * Context: event thread. A track may outlive the tracker (a session still holds the message): it
 * then frees itself and acknowledges nothing.
 */
#ifndef BROKERD_TRACKER_H
#define BROKERD_TRACKER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "brokerd/message.h"

struct tracker;

/* ack: everything up to this LSN is done with; rising; may come from inside tracker_commit and from
 * inside track_unref. */
struct tracker *tracker_new(void (*ack)(uint64_t lsn, void *arg), void *arg);
void tracker_free(struct tracker **t);
/* The open transaction's track, made on the first call; the reference is the tracker's own until
 * tracker_commit: take one more for whoever is to be waited for. */
struct track *tracker_hold(struct tracker *t);
/* The open transaction is complete and ends here. */
void tracker_commit(struct tracker *t, uint64_t end_lsn);
/* The open transaction will never be complete: what it held is waited for no more. */
void tracker_abandon(struct tracker *t);
/* Everything beyond this LSN is another history now: what was committed there is waited for no
 * more, and the acknowledged position goes back if it is beyond. No transaction is open. */
void tracker_cut(struct tracker *t, uint64_t lsn);
bool tracker_is_open(const struct tracker *t);
/* Transactions that wait. */
size_t tracker_pending(const struct tracker *t);
/* Last acknowledged LSN; 0: none yet. */
uint64_t tracker_acked(const struct tracker *t);

#endif
