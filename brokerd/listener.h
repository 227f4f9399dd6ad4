/* SPDX-License-Identifier: PostgreSQL */
/*
 * A listening socket: accepts connections and makes sessions of them.
 *
 * Out of descriptors: a spare one is given up to accept and close the connection that waits, so
 * that its client learns it; then accepting rests for LISTENER_REST_MS.
 *
 * Context: event thread.
 */
#ifndef BROKERD_LISTENER_H
#define BROKERD_LISTENER_H

#include "brokerd/broker_int.h"

#define LISTENER_REST_MS 500
#define LISTENER_ACCEPT_BUDGET 128 /* per pass */

struct listener;

/* Takes over fd, a listening socket; url is copied. */
struct listener *listener_new(struct broker *b, int fd, const char *url);
/* Nulls *l. */
void listener_free(struct listener **l);

#endif
