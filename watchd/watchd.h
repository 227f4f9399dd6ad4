/* SPDX-License-Identifier: PostgreSQL */
/*
 * The daemon as its own files know it: watchd.c, watchd_main.c.
 * Context: event thread.
 */
#ifndef WATCHD_WATCHD_H
#define WATCHD_WATCHD_H

#include "common/ipc/daemon.h"
#include "watchd/feed.h"
#include "watchd/watchd_conf.h"

#define WATCHD_MAGIC 0x77617464u

struct watchd {
	uint32_t magic;
	struct daemon *d; /* borrowed */
	struct watchd_conf conf;
	struct feed *feed;
	struct ev_timer tick;
};

extern const struct daemon_info watchd_info;

#endif
