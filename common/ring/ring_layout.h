/* SPDX-License-Identifier: PostgreSQL */
/*
 * The ring's bytes in memory. Included by ring.c, its tests and offline readers only; everybody
 * else uses ring.h.
 *
 *   header page:  0 geometry, written once, `ready` last | 256 head | 384 sleep_seq | 512 counters
 *   cursor page:  0 magic | 128 read_pos | 256 acked_lsn | 384 sleep_seq
 *   record:       RING_RECORD_BYTES of header, payload, zeroes up to a multiple of 8
 *
 * Words of different writers, and words that are polled, stand 128 bytes apart (two cache lines,
 * for the adjacent-line prefetcher). Only fixed-width integers: no pointer, no lock, no enum, no
 * size_t. A PAD record fills the end of the window; it may be as small as 8 bytes, so only its
 * first 8 bytes (len, type, flags) exist.
 */
#ifndef COMMON_RING_RING_LAYOUT_H
#define COMMON_RING_RING_LAYOUT_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#include "common/ring/ring.h"

#define RING_MAGIC UINT64_C(0x474e495244574f48) /* "HOWDRING" on a little-endian machine */
#define RING_CURSOR_MAGIC UINT64_C(0x5253525544574f48)
#define RING_LAYOUT_MAJOR 1
#define RING_LAYOUT_MINOR 1
#define RING_BYTE_ORDER UINT32_C(0x01020304)
#define RING_READY UINT32_C(0x59444552)
#define RING_BUILD_BYTES 32

/* Features that a consumer must know; an unknown bit is another version. */
#define RING_FEATURE_CRC_PAYLOAD UINT32_C(1) /* crc covers the payload too */
#define RING_FEATURES_KNOWN RING_FEATURE_CRC_PAYLOAD

struct ring_header {
	uint64_t magic;
	uint32_t layout_major, layout_minor;
	uint32_t header_len, record_header_len;
	uint32_t byte_order, features;
	uint64_t capacity;
	uint64_t epoch;
	uint64_t start_pos;
	char build[RING_BUILD_BYTES]; /* for people; versions are judged by layout_major */
	uint8_t reserved0[120];       /* zero */
	_Atomic uint32_t ready;       /* stored last, with release */
	uint8_t reserved1[44];
	_Atomic uint64_t head; /* the one word that publishes */
	uint8_t reserved2[120];
	_Atomic uint64_t sleep_seq; /* odd: the producer sleeps for space */
	uint8_t reserved3[120];
	/* Written by the producer for observers; nothing is decided by them. */
	_Atomic uint64_t n_records, n_bytes, n_pad_bytes, n_batches, n_stalls, n_wakes;
	uint8_t reserved4[RING_HEADER_BYTES - 560];
};

struct ring_cursor {
	uint64_t magic;
	uint8_t reserved0[120];
	_Atomic uint64_t read_pos; /* frees space */
	uint8_t reserved1[120];
	_Atomic uint64_t acked_lsn; /* moves the slot */
	uint8_t reserved2[120];
	_Atomic uint64_t sleep_seq; /* odd: the consumer sleeps for data */
	uint8_t reserved3[RING_CURSOR_BYTES - 392];
};

struct ring_record_header {
	uint32_t len; /* of the record: header, payload, padding; a multiple of 8 */
	uint16_t type, flags;
	uint32_t crc; /* CRC-32C of this header with crc = 0 (and of the payload, if the feature
			 says) */
	uint32_t audience;
	uint64_t pos; /* where it was written: tells a stale record from a fresh one */
	uint32_t relid, timeline;
	uint32_t ordinal, payload_len;
	uint32_t total_len, offset; /* of the whole payload; of this fragment in it */
	uint64_t lsn, commit_lsn, end_lsn;
	int64_t commit_time;
};

#define RING_RECORD_BYTES sizeof(struct ring_record_header)
#define RING_PAD_BYTES 8 /* what exists of a PAD's header */

_Static_assert(ATOMIC_LLONG_LOCK_FREE == 2, "64-bit atomics must be lock-free");
_Static_assert(sizeof(_Atomic uint64_t) == 8, "an atomic is its value");
_Static_assert(sizeof(struct ring_header) == RING_HEADER_BYTES, "header page");
_Static_assert(offsetof(struct ring_header, ready) == 208, "ready");
_Static_assert(offsetof(struct ring_header, head) == 256, "head");
_Static_assert(offsetof(struct ring_header, sleep_seq) == 384, "sleep_seq");
_Static_assert(offsetof(struct ring_header, n_records) == 512, "counters");
_Static_assert(sizeof(struct ring_cursor) == RING_CURSOR_BYTES, "cursor page");
_Static_assert(offsetof(struct ring_cursor, read_pos) == 128, "read_pos");
_Static_assert(offsetof(struct ring_cursor, acked_lsn) == 256, "acked_lsn");
_Static_assert(offsetof(struct ring_cursor, sleep_seq) == 384, "sleep_seq");
_Static_assert(sizeof(struct ring_record_header) == 80, "record header");

/* CRC-32C (Castagnoli), to be chained: start with 0. */
uint32_t ring_crc32c(uint32_t crc, const void *data, size_t len_bytes);
/* Of a record header as if its crc were 0. It is read in words of 8 bytes: write it so too, or the
 * processor waits for narrower stores to reach its cache. */
uint32_t ring_crc32c_header(const struct ring_record_header *h);
/* Both without the processor's help: for the comparison. */
uint32_t ring_crc32c_portable(uint32_t crc, const void *data, size_t len_bytes);
uint32_t ring_crc32c_header_portable(const struct ring_record_header *h);
/* What the crc word of this header must be. payload may be NULL without the feature. */
uint32_t ring_record_crc(
	const struct ring_record_header *h, const void *payload, uint32_t features);

#endif
