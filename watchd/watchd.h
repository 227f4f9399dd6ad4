/* SPDX-License-Identifier: PostgreSQL */
/*
 * The daemon as its own files know it: watchd.c, watchd_ctl.c, watchd_main.c.
 * Context: event thread.
 */
#ifndef WATCHD_WATCHD_H
#define WATCHD_WATCHD_H

#include "common/ipc/daemon.h"
#include "watchd/compactor.h"
#include "watchd/feed.h"
#include "watchd/h2.h"
#include "watchd/http.h"
#include "watchd/services.h"
#include "watchd/watchd_conf.h"

#define WATCHD_MAGIC 0x77617464u

struct watchd {
	uint32_t magic;
	struct daemon *d; /* borrowed */
	struct watchd_conf conf;
	struct services svc;
	struct h2_server *server;
	struct http *http;
	struct compactor *compactor;
	struct feed *feed;
	struct ev_timer tick;
	bool ready, loaded;
	uint64_t down_since_ms;   /* our place is not held; 0: it is */
	char *database_trouble;   /* owned; NULL: all is well */
	struct list ctl_requests; /* of watchd_ctl.c */
};

extern const struct daemon_info watchd_info;

/* watchd_ctl.c */
extern const struct ctl_handler watchd_commands[];
/* Events have become visible; the store was loaded anew. */
void watchd_ctl_feed(struct watchd *self);
/* About once per second. */
void watchd_ctl_tick(struct watchd *self);
/* Those that the engine will not call back any more. */
void watchd_ctl_free(struct watchd *self);

#endif
