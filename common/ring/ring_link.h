/* SPDX-License-Identifier: PostgreSQL */
/*
 * How a consumer and the producer find each other, by RELAY messages through the supervisor:
 *
 *   consumer -> walstreamd  ATTACH  be32 layout version, be64 acked_lsn (0: none yet)
 *                                   [cursor memfd, data eventfd (producer signals)]
 *   walstreamd -> consumer  GRANT   be64 epoch, be64 from_lsn (transactions that end after it will
 *                                   come), be32 timeline
 *                                   [data memfd, space eventfd (consumer signals)]
 *                           REFUSE  string why
 *
 * A consumer attaches when PEER says that walstreamd is up, and again for each new life of it. The
 * producer starts the cursor at its present head and then (re)starts the replication stream, so
 * that the first record of a new consumer is RING_STREAM. Consumers that were there before drop
 * what they have seen, by (timeline, commit LSN, ordinal).
 */
#ifndef COMMON_RING_RING_LINK_H
#define COMMON_RING_RING_LINK_H

#include <stdint.h>

#include "common/base/buf.h"

#define RING_LINK_VERSION 1

struct ring_link_attach {
	uint32_t version;
	uint64_t acked_lsn;
};
struct ring_link_grant {
	uint64_t epoch;
	uint64_t from_lsn;
	uint32_t timeline;
};

void ring_link_put_attach(struct buf *b, const struct ring_link_attach *m);
int ring_link_get_attach(struct rd *r, struct ring_link_attach *ret_m)
	__attribute__((warn_unused_result));
void ring_link_put_grant(struct buf *b, const struct ring_link_grant *m);
int ring_link_get_grant(struct rd *r, struct ring_link_grant *ret_m)
	__attribute__((warn_unused_result));

#endif
