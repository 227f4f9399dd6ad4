/* SPDX-License-Identifier: PostgreSQL */
/*
 * The admin commands of watchd: what a request is while it waits. watchd_ctl.c has what changes
 * the store and what all share, watchd_ctl_read.c what lists and watches.
 *
 * Context: event thread.
 */
#ifndef WATCHD_WATCHD_CTL_H
#define WATCHD_WATCHD_CTL_H

#include "common/base/buf.h"
#include "watchd/watchd.h"

#define WCTL_MAGIC 0x7763746cu

enum wctl_wait {
	WCTL_NOTHING,
	WCTL_OP,     /* op */
	WCTL_READ,   /* read */
	WCTL_ANSWER, /* a callback that cannot be called off */
	WCTL_EVENTS  /* watch */
};

struct wctl {
	uint32_t magic;
	struct list link; /* in watchd's ctl_requests */
	struct watchd *self;
	struct ctl_client *client; /* NULL: gone */
	enum wctl_wait wait;
	struct engine_op op;
	struct engine_read read;
	void (*on_read)(struct wctl *w);
	struct ev_deferred later;
	/* The range: key, and with prefix the end of what begins with it. */
	struct buf key, end, value;
	bool prefix, keys_only, full; /* full: the client takes no more for now */
	int64_t rev, lease, left;     /* left: rows that may still be shown; -1: all */
	int64_t result;               /* revision, or number, for the answer */
	struct buf out;
	/* get */
	struct store_pin pin;
	struct buf next; /* where the next step begins */
	/* watch */
	uint64_t said_ms; /* the last row */
};

/* Takes KEY and --prefix of the request. The client is held from here on. */
struct wctl *wctl_new(struct watchd *self, struct ctl_client *c, const struct ctl_request *req);
/* The request is answered: frees it. */
void wctl_ok(struct wctl *w);
void wctl_fail(struct wctl *w, enum etcd_error err);
void wctl_fail_with(struct wctl *w, const char *code, const char *hint, const char *message);
/* --NAME N, or 0. */
int64_t wctl_number(const struct ctl_request *req, const char *name);
/* From key to end, as the store takes them. */
struct store_bytes wctl_from(const struct wctl *w);
struct store_bytes wctl_to(const struct wctl *w);

/* watchd_ctl_read.c */
void wctl_cmd_get(struct ctl_client *c, const struct ctl_request *req, void *arg);
void wctl_cmd_watch(struct ctl_client *c, const struct ctl_request *req, void *arg);
/* The client has taken what there was. */
void wctl_drained(struct wctl *w);
/* Events have become visible; time has passed. */
void wctl_feed(struct wctl *w);
void wctl_tick(struct wctl *w);

#endif
