/* SPDX-License-Identifier: PostgreSQL */
/*
 * The message log: QoS 1 publishes as rows of howdah_mqtt.message through the batching writer, and
 * the removal of old rows on a connection of its own.
 *
 * Context: event thread.
 */
#ifndef BROKERD_MSGLOG_H
#define BROKERD_MSGLOG_H

#include <stddef.h>

#include "brokerd/message.h"
#include "common/base/ev.h"
#include "common/base/stats.h"
#include "common/pg/batch.h"

#define MSGLOG_KEEP_MS 3600000      /* rows older than this are removed */
#define MSGLOG_PURGE_EVERY_MS 60000 /* how often that is looked after */
#define MSGLOG_PURGE_ROWS 10000     /* in one transaction */
#define MSGLOG_PURGE_PAUSE_MS 20    /* between two of them */

/* The kind of row to give to batch_new. */
extern const struct batch_kind msglog_kind;

/* Adds a row. props: as they came, with the expiry interval. 0 or -ERR_LIMIT, as batch_add. */
int msglog_add(struct batch *writer, size_t kind, const char *client_id, const struct message *m,
	const void *props, size_t props_len, batch_done_fn done, void *arg)
	__attribute__((warn_unused_result));

struct msglog_purge;
/* conninfo is borrowed for the call. stat: index of the counter of removed rows. */
struct msglog_purge *msglog_purge_new(
	struct ev_loop *loop, const char *conninfo, struct stats *stats, size_t stat);
void msglog_purge_free(struct msglog_purge **p);

#endif
