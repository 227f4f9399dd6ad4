/* SPDX-License-Identifier: PostgreSQL */
/*
 * A listening socket: accepts connections and hands them to its daemon.
 *
 * Out of descriptors: a spare one is given up to accept and close the connection that waits, so
 * that its client learns it; then accepting rests for LISTENER_REST_MS.
 *
 * Context: event thread.
 */
#ifndef COMMON_BASE_LISTENER_H
#define COMMON_BASE_LISTENER_H

#include <stdbool.h>
#include <stddef.h>

#include "common/base/ev.h"

#define LISTENER_REST_MS 500
#define LISTENER_ACCEPT_BUDGET 128 /* per pass */

struct listener;

/* Lives as long as the process; arg is passed through. No callback may free the listener. */
struct listener_ops {
	const char *name; /* of its descriptor event, "mqtt listener" */
	/* False: as many connections are open as may be. */
	bool (*may_accept)(void *arg);
	/* Takes over fd: non-blocking, close-on-exec, TCP_NODELAY, SO_KEEPALIVE. */
	void (*on_accepted)(int fd, void *arg);
	/* may_accept was false: a connection was closed unseen. */
	void (*on_maximum)(const char *url, void *arg);
	/* Short of descriptors or memory (err): resting. closed: the connection that waited was
	 * closed by means of the spare descriptor; first: since one was last accepted. */
	void (*on_short)(const char *url, int err, bool first, bool closed, void *arg);
};

/* Takes over fd, a listening socket; url is copied. */
struct listener *listener_new(
	struct ev_loop *loop, int fd, const char *url, const struct listener_ops *ops, void *arg);
/* Nulls *l. */
void listener_free(struct listener **l);

/* Who is at the other end of a connected socket, for the log: "127.0.0.1:4711", "[::1]:4711",
 * "local", or "?" (it is gone, or fd is negative). Returns out. */
const char *listener_peer(int fd, char *out, size_t size);

#endif
