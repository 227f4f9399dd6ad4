/* SPDX-License-Identifier: PostgreSQL */
/*
 * A hostile producer: whatever its page holds, a consumer reads within the page, gives records that
 * keep their promises, and ends.
 *
 * Input: flags, start position (8 bytes), head minus start (4 bytes), with FLAG_GEOMETRY 64 bytes
 * that are laid over the header's geometry, and the bytes of the window from the start position on.
 * With FLAG_STAMP positions and checksums are made right along the chain of lengths, so that the
 * fuzzer gets past them.
 */
#include "config.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/mem.h"
#include "common/ring/ring.h"
#include "common/ring/ring_layout.h"

#define CAPACITY RING_CAPACITY_MIN
#define DATA_LEN (RING_HEADER_BYTES + CAPACITY)
#define FLAG_STAMP 1
#define FLAG_GEOMETRY 2
#define GEOMETRY_BYTES 64

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct input {
	uint8_t flags;
	uint64_t start;
	uint32_t behind;
};

static const uint8_t *take(const uint8_t **p, size_t *left, void *to, size_t n)
{
	const uint8_t *at = *p;
	if (*left < n)
		return NULL;
	memcpy(to, at, n);
	*p += n;
	*left -= n;
	return at;
}

/* Makes what a sane producer would have stamped. */
static void stamp(uint8_t *window, uint64_t start, uint64_t head, uint32_t features)
{
	for (uint64_t pos = start; pos != head;) {
		uint64_t at = pos & (CAPACITY - 1);
		struct ring_record_header h;
		if (CAPACITY - at < sizeof(h) || head - pos < sizeof(h))
			return;
		memcpy(&h, window + at, sizeof(h));
		if (h.len < sizeof(h) || h.len % 8 != 0 || h.len > CAPACITY - at ||
			h.len > head - pos)
			return;
		if (h.type != RING_PAD && h.payload_len <= h.len - sizeof(h)) {
			h.pos = pos;
			h.crc = ring_record_crc(&h, window + at + sizeof(h), features);
			memcpy(window + at, &h, sizeof(h));
		}
		pos += h.len;
	}
}

/* Keeps the compiler from leaving the reads out. */
static volatile uint8_t sink;

static void read_all(struct ring_consumer *c)
{
	struct ring_record rec;
	const void *payload;
	size_t n = 0;
	while (ring_peek(c, &rec, &payload) == 1) {
		ASSERT(rec.payload_len <= ring_fragment_max(CAPACITY));
		ASSERT((uint64_t)rec.offset + rec.payload_len <= rec.total_len);
		ASSERT(rec.type == RING_STREAM || rec.type == RING_MESSAGE);
		for (uint32_t i = 0; i < rec.payload_len; i++)
			sink ^= ((const uint8_t *)payload)[i];
		ASSERT(++n <= CAPACITY / 8); /* it ends */
		if (n % 3 == 0)
			(void)ring_release(c);
	}
	ring_unpeek(c);
	ASSERT(ring_consumer_lag_bytes(c) <= CAPACITY);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct input in = {.flags = 0};
	if (take(&data, &size, &in.flags, sizeof(in.flags)) == NULL ||
		take(&data, &size, &in.start, sizeof(in.start)) == NULL ||
		take(&data, &size, &in.behind, sizeof(in.behind)) == NULL)
		return 0;
	uint8_t *page = aligned_alloc(4096, DATA_LEN);
	struct ring_cursor *cursor = aligned_alloc(4096, sizeof(*cursor));
	if (page == NULL || cursor == NULL)
		abort();
	memset(page, 0, DATA_LEN);
	struct ring_producer *p = ring_producer_new(page, CAPACITY, 1, in.start & ~UINT64_C(7));
	ASSERT(ring_producer_add(p, 0, cursor, 0) == 0);
	ring_producer_free(&p);

	struct ring_header *h = (struct ring_header *)(void *)page;
	uint32_t features = h->features;
	if ((in.flags & FLAG_GEOMETRY) != 0)
		(void)take(&data, &size, page, GEOMETRY_BYTES);
	uint64_t start = in.start & ~UINT64_C(7), head = start + in.behind;
	uint64_t at = start & (CAPACITY - 1);
	uint8_t *window = page + RING_HEADER_BYTES;
	size_t n = size < CAPACITY - at ? size : (size_t)(CAPACITY - at);
	memcpy(window + at, data, n);
	memcpy(window, data + n, size - n < CAPACITY ? size - n : CAPACITY);
	if ((in.flags & FLAG_STAMP) != 0 && head % 8 == 0 && in.behind <= CAPACITY)
		stamp(window, start, head, features);
	h->head = head;

	struct ring_consumer *c = NULL;
	if (ring_consumer_new(page, DATA_LEN, cursor, &c) == 0)
		read_all(c);
	ring_consumer_free(&c);
	int rc = ring_check(page, DATA_LEN, start);
	ASSERT(rc <= 0);
	free(cursor);
	free(page);
	return 0;
}
