/* SPDX-License-Identifier: PostgreSQL */
/*
 * A queue of ring records in an unlinked file: where a consumer that was asked to pause puts what
 * it must take out of the ring. Private to ring_reader.
 *
 * The file vanishes with its process: what was in it comes again from the replication slot. What
 * has been read is given back to the file system (holes), so that the file takes about as much room
 * as it holds records; where holes cannot be made, the limit counts what was read too, until the
 * spool has run empty once.
 *
 * Context: event thread; file I/O goes to the page cache and is never flushed.
 */
#ifndef COMMON_RING_RING_SPOOL_H
#define COMMON_RING_RING_SPOOL_H

#include <stdbool.h>
#include <stdint.h>

#include "common/ring/ring.h"

struct ring_spool;

/* dir is copied; the file is made with the first record. */
struct ring_spool *ring_spool_new(const char *dir, uint64_t limit_bytes);
/* Drops what is in it. Nulls *s. */
void ring_spool_free(struct ring_spool **s);
/* Copies a record with its payload. 0; -ERR_LIMIT; -errno (ENOSPC, EIO …): nothing was added. */
int ring_spool_put(struct ring_spool *s, const struct ring_record *rec, const void *payload)
	__attribute__((warn_unused_result));
/* The oldest record: 1 and the record, payload borrowed until the next call; 0: empty; negative:
 * the file cannot be read, its content is lost (ring_spool_clear). */
int ring_spool_peek(struct ring_spool *s, struct ring_record *ret_rec, const void **ret_payload)
	__attribute__((warn_unused_result));
/* Takes off the record that was peeked. */
void ring_spool_next(struct ring_spool *s);
void ring_spool_clear(struct ring_spool *s);
bool ring_spool_empty(const struct ring_spool *s);
/* Bytes waiting, and bytes ever put. */
uint64_t ring_spool_bytes(const struct ring_spool *s);
uint64_t ring_spool_bytes_total(const struct ring_spool *s);

#endif
