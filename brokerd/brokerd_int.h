/* SPDX-License-Identifier: PostgreSQL */
/*
 * The daemon as its own files know it: brokerd.c, brokerd_ctl.c, brokerd_main.c.
 * Context: event thread.
 */
#ifndef BROKERD_BROKERD_INT_H
#define BROKERD_BROKERD_INT_H

#include "brokerd/broker_int.h"
#include "brokerd/changes.h"
#include "brokerd/msglog.h"
#include "common/ipc/daemon.h"

#define BROKERD_MAGIC 0x6d71646du

struct brokerd {
	uint32_t magic;
	struct daemon *d; /* borrowed */
	struct broker *b;
	struct batch *writer;
	struct changes *changes;
	struct msglog_purge *purge;
	struct listener *listeners[DAEMON_LISTENERS_MAX];
	struct ev_timer tick;
	char *writer_trouble; /* owned; NULL: all is well */
};

extern const struct daemon_info brokerd_info;
extern const struct ctl_handler brokerd_commands[];

#endif
