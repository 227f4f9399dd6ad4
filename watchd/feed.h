/* SPDX-License-Identifier: PostgreSQL */
/*
 * The ring's bell: other nodes' rows of howdah_watch.log as walstreamd publishes them. Nothing of a
 * row is used but its seq: the engine reads the log's tip, because what the WAL shows first may not
 * be visible to others yet. So everything is acknowledged as soon as it was read, and a gap in the
 * stream is no more than a reason to look.
 *
 * Context: event thread.
 */
#ifndef WATCHD_FEED_H
#define WATCHD_FEED_H

#include <stdbool.h>
#include <stdint.h>

#include "common/ipc/daemon.h"
#include "common/ipc/imsg.h"

struct feed;

/* on_bell: after each transaction with rows for us, the highest seq in it; 0: rows may have been
 * missed (the stream begins anew). Not from inside feed_new. */
struct feed *feed_new(struct daemon *d, void (*on_bell)(int64_t seq, void *arg), void *arg);
void feed_free(struct feed **f);
/* Forwarded from daemon_info. */
void feed_peer(struct feed *f, bool up, uint32_t generation);
int feed_relay(struct feed *f, uint32_t kind, struct imsg *msg) __attribute__((warn_unused_result));

struct feed_counts {
	uint64_t records, bells, received_lsn, lag_bytes, delay_p50_us, delay_p99_us;
	const char *trouble; /* "" while all is well; valid until the next turn of the loop */
};
void feed_get_counts(const struct feed *f, struct feed_counts *ret_counts);

#endif
