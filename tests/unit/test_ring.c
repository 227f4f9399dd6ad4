/* SPDX-License-Identifier: PostgreSQL */
/*
 * The ring's core in one thread: what is written is read, over every kind of wrap; what a hostile
 * peer may put into its page is refused.
 */
#include "config.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "common/base/err.h"
#include "common/ring/ring.h"
#include "common/ring/ring_layout.h"

#define CAPACITY RING_CAPACITY_MIN
#define DATA_LEN (RING_HEADER_BYTES + CAPACITY)

struct fixture {
	uint8_t *data;
	struct ring_cursor *cursor;
	struct ring_producer *p;
	struct ring_consumer *c;
};

static void *page_alloc(size_t len)
{
	void *m = aligned_alloc(4096, len);
	assert_non_null(m);
	memset(m, 0, len);
	return m;
}

static void open_at(struct fixture *f, uint64_t start_pos)
{
	f->data = page_alloc(DATA_LEN);
	f->cursor = page_alloc(RING_CURSOR_BYTES);
	f->p = ring_producer_new(f->data, CAPACITY, 7, start_pos);
	assert_int_equal(ring_producer_add(f->p, 2, f->cursor, 100), 0);
	assert_int_equal(ring_consumer_new(f->data, DATA_LEN, f->cursor, &f->c), 0);
}

static void close_all(struct fixture *f)
{
	ring_consumer_free(&f->c);
	ring_producer_free(&f->p);
	free(f->data);
	free(f->cursor);
}

static struct ring_record message(uint32_t n, size_t len)
{
	return (struct ring_record){
		.type = RING_MESSAGE,
		.audience = RING_TO_BROKERD,
		.relid = 16384 + n,
		.timeline = 3,
		.ordinal = n,
		.payload_len = (uint32_t)len,
		.lsn = 1000 + n,
		.commit_lsn = 5000 + n,
		.end_lsn = 6000 + n,
		.commit_time = -5,
	};
}

static void fill(uint8_t *b, size_t len, uint32_t seed)
{
	for (size_t i = 0; i < len; i++)
		b[i] = (uint8_t)(seed * 31 + i * 7 + (i >> 8));
}

static int refresh(struct fixture *f)
{
	unsigned bad = 99;
	int err = ring_producer_refresh(f->p, &bad);
	assert_int_equal(bad, err == 0 ? 99 : 2);
	return err;
}

/* Many sizes through the window a few times over, from the given position. */
static void run_through(uint64_t start_pos)
{
	struct fixture f;
	open_at(&f, start_pos);
	uint8_t *in = malloc(CAPACITY), *out = malloc(CAPACITY);
	uint32_t written = 0, read = 0, parts = 0;
	size_t got = 0;
	uint64_t total = 0;
	while (total < 10 * CAPACITY) {
		size_t len = (written * 2654435761u) % 20000;
		struct ring_record rec = message(written, len);
		fill(in, len, written);
		int err = ring_write(f.p, &rec, in);
		if (err == 0) {
			written++;
			total += len;
			if (written % 3 == 0)
				assert_int_equal(ring_publish(f.p), 0);
			continue;
		}
		assert_int_equal(err, -EAGAIN);
		assert_int_equal(ring_publish(f.p), 0);
		assert_int_equal(ring_check(f.data, DATA_LEN, f.cursor->read_pos), 0);
		const void *payload;
		while (ring_peek(f.c, &rec, &payload) == 1) {
			parts++;
			assert_int_equal(rec.offset, got);
			memcpy(out + got, payload, rec.payload_len);
			got += rec.payload_len;
			assert_int_equal(!!(rec.flags & RING_FLAG_FIRST), rec.offset == 0);
			if ((rec.flags & RING_FLAG_LAST) == 0)
				continue;
			assert_int_equal(rec.ordinal, read);
			assert_int_equal(rec.total_len, got);
			assert_int_equal(rec.relid, 16384 + read);
			assert_int_equal(rec.timeline, 3);
			assert_int_equal(rec.lsn, 1000 + read);
			assert_int_equal(rec.commit_lsn, 5000 + read);
			assert_int_equal(rec.end_lsn, 6000 + read);
			assert_int_equal(rec.commit_time, -5);
			assert_int_equal(got, (read * 2654435761u) % 20000);
			fill(in, got, read);
			assert_memory_equal(in, out, got);
			got = 0;
			read++;
		}
		assert_false(ring_release(f.c));
		assert_int_equal(refresh(&f), 0);
	}
	assert_true(read > 40 && parts > read);
	struct ring_counts counts;
	ring_producer_get_counts(f.p, &counts);
	assert_true(counts.pad_bytes > 0 && counts.records >= parts);
	free(in);
	free(out);
	close_all(&f);
}

static void test_through(void **state)
{
	(void)state;
	run_through(0);
	run_through((UINT64_C(1) << 32) - CAPACITY / 2);
	run_through((UINT64_C(1) << 32) - 8);
	run_through(UINT64_MAX - CAPACITY / 2 + 1);
	run_through(UINT64_MAX - 7);
}

static void test_invisible_until_published(void **state)
{
	(void)state;
	struct fixture f;
	open_at(&f, 0);
	struct ring_record rec = message(1, 3);
	const void *payload;
	assert_int_equal(ring_write(f.p, &rec, "abc"), 0);
	assert_int_equal(ring_peek(f.c, &rec, &payload), 0);
	assert_int_equal(ring_publish(f.p), 0);
	assert_int_equal(ring_peek(f.c, &rec, &payload), 1);
	assert_memory_equal(payload, "abc", 3);
	assert_int_equal(ring_peek(f.c, &rec, &payload), 0);
	/* Not released: it comes again, and its space is not free. */
	ring_unpeek(f.c);
	assert_int_equal(ring_peek(f.c, &rec, &payload), 1);
	size_t room = ring_producer_free_bytes(f.p);
	assert_int_equal(refresh(&f), 0);
	assert_int_equal(ring_producer_free_bytes(f.p), room);
	assert_int_equal(ring_producer_lag_bytes(f.p, 2), CAPACITY - room);
	assert_int_equal(ring_consumer_lag_bytes(f.c), CAPACITY - room);
	assert_false(ring_release(f.c));
	assert_int_equal(refresh(&f), 0);
	assert_int_equal(ring_producer_free_bytes(f.p), CAPACITY);
	assert_int_equal(ring_producer_lag_bytes(f.p, 2), 0);
	close_all(&f);
}

/* A full window writes nothing; a payload of several windows goes through in parts. */
static void test_larger_than_window(void **state)
{
	(void)state;
	struct fixture f;
	open_at(&f, UINT64_MAX - 4095);
	size_t len = 5 * CAPACITY + 17, offset = 0, got = 0;
	uint8_t *in = malloc(len);
	fill(in, len, 9);
	struct ring_record rec = message(1, len), out;
	assert_int_equal(ring_write(f.p, &rec, in), -EMSGSIZE);
	rec.payload_len = CAPACITY / 2;
	assert_int_equal(ring_write(f.p, &rec, in), -EMSGSIZE);
	rec.payload_len = (uint32_t)len;
	unsigned rounds = 0;
	int err;
	const void *payload;
	do {
		err = ring_write_part(f.p, &rec, in, &offset);
		assert_true(err == 0 || err == -EAGAIN);
		(void)ring_publish(f.p);
		while (ring_peek(f.c, &out, &payload) == 1) {
			assert_int_equal(out.offset, got);
			assert_int_equal(out.total_len, len);
			assert_memory_equal(payload, in + got, out.payload_len);
			got += out.payload_len;
			assert_int_equal(!!(out.flags & RING_FLAG_LAST), got == len);
		}
		ring_release(f.c);
		assert_int_equal(refresh(&f), 0);
		rounds++;
	} while (err != 0);
	assert_int_equal(got, len);
	assert_true(rounds >= 5);
	free(in);
	close_all(&f);
}

static void test_full_writes_nothing(void **state)
{
	(void)state;
	struct fixture f;
	open_at(&f, 64);
	uint8_t *in = calloc(1, CAPACITY);
	struct ring_record rec = message(1, CAPACITY / 3), out;
	const void *payload;
	assert_int_equal(ring_write(f.p, &rec, in), 0);
	assert_int_equal(ring_write(f.p, &rec, in), 0);
	size_t room = ring_producer_free_bytes(f.p);
	assert_int_equal(ring_write(f.p, &rec, in), -EAGAIN);
	assert_int_equal(ring_producer_free_bytes(f.p), room);
	(void)ring_publish(f.p);
	unsigned whole = 0;
	while (ring_peek(f.c, &out, &payload) == 1)
		whole += (out.flags & RING_FLAG_LAST) != 0;
	assert_int_equal(whole, 2);
	/* A dropped consumer gates nothing. */
	ring_producer_drop(f.p, 2);
	assert_int_equal(ring_producer_free_bytes(f.p), CAPACITY);
	assert_int_equal(ring_write(f.p, &rec, in), 0);
	free(in);
	close_all(&f);
}

static void test_slowest_gates(void **state)
{
	(void)state;
	struct fixture f;
	open_at(&f, 0);
	struct ring_cursor *other = page_alloc(RING_CURSOR_BYTES);
	struct ring_record rec = message(1, 1000);
	uint8_t in[1000] = {0};
	const void *payload;
	assert_int_equal(ring_write(f.p, &rec, in), 0);
	(void)ring_publish(f.p);
	assert_int_equal(ring_producer_add(f.p, 2, other, 0), -EEXIST);
	assert_int_equal(ring_producer_add(f.p, 8, other, 0), -EINVAL);
	assert_int_equal(ring_producer_add(f.p, 0, other, 42), 0);
	/* It starts at the present head, and sees nothing older. */
	struct ring_consumer *late;
	assert_int_equal(ring_consumer_new(f.data, DATA_LEN, other, &late), 0);
	assert_int_equal(ring_peek(late, &rec, &payload), 0);
	assert_int_equal(ring_producer_acked(f.p, 0), 42);
	assert_int_equal(ring_producer_lag_bytes(f.p, 0), 0);
	assert_true(ring_producer_lag_bytes(f.p, 2) > 1000);
	size_t room = ring_producer_free_bytes(f.p);
	assert_true(room < CAPACITY);
	assert_int_equal(ring_peek(f.c, &rec, &payload), 1);
	ring_release(f.c);
	assert_int_equal(refresh(&f), 0);
	assert_int_equal(ring_producer_free_bytes(f.p), CAPACITY);
	ring_consumer_free(&late);
	free(other);
	close_all(&f);
}

static void test_sleep(void **state)
{
	(void)state;
	struct fixture f;
	open_at(&f, 0);
	struct ring_record rec = message(1, 10);
	const void *payload;
	ring_consumer_arm(f.c);
	assert_int_equal(ring_publish(f.p), 0); /* nothing new: nobody is woken */
	assert_int_equal(ring_write(f.p, &rec, "0123456789"), 0);
	assert_int_equal(ring_publish(f.p), 1 << 2);
	assert_int_equal(ring_write(f.p, &rec, "0123456789"), 0);
	assert_int_equal(ring_publish(f.p), 0); /* once per sleep */
	ring_consumer_disarm(f.c);
	assert_int_equal(ring_write(f.p, &rec, "0123456789"), 0);
	assert_int_equal(ring_publish(f.p), 0); /* awake */
	ring_consumer_arm(f.c);
	assert_int_equal(ring_write(f.p, &rec, "0123456789"), 0);
	assert_int_equal(ring_publish(f.p), 1 << 2);

	assert_int_equal(ring_peek(f.c, &rec, &payload), 1);
	assert_false(ring_release(f.c));
	ring_producer_arm_space(f.p);
	assert_false(ring_release(f.c)); /* nothing freed */
	assert_int_equal(ring_peek(f.c, &rec, &payload), 1);
	assert_true(ring_release(f.c));
	assert_int_equal(ring_peek(f.c, &rec, &payload), 1);
	assert_false(ring_release(f.c));
	ring_producer_disarm_space(f.p);
	ring_producer_arm_space(f.p);
	assert_int_equal(ring_peek(f.c, &rec, &payload), 1);
	assert_true(ring_release(f.c));
	struct ring_counts counts;
	ring_producer_get_counts(f.p, &counts);
	assert_int_equal(counts.stalls, 2);
	assert_int_equal(counts.wakes, 2);
	close_all(&f);
}

static void test_acks(void **state)
{
	(void)state;
	struct fixture f;
	open_at(&f, 0);
	struct ring_record rec = message(1, 1); /* end_lsn 6001 */
	assert_int_equal(ring_write(f.p, &rec, "x"), 0);
	(void)ring_publish(f.p);
	assert_int_equal(ring_producer_acked(f.p, 2), 100);
	assert_false(ring_ack(f.c, 100));
	assert_false(ring_ack(f.c, 99));
	assert_true(ring_ack(f.c, 6001));
	assert_int_equal(ring_producer_acked(f.p, 2), 100); /* until it is looked at */
	assert_int_equal(refresh(&f), 0);
	assert_int_equal(ring_producer_acked(f.p, 2), 6001);
	rec = (struct ring_record){
		.type = RING_STREAM, .audience = RING_TO_ALL, .commit_lsn = 9000};
	assert_int_equal(ring_write(f.p, &rec, NULL), 0);
	assert_true(ring_ack(f.c, 9000));
	assert_int_equal(refresh(&f), 0);
	assert_int_equal(ring_producer_acked(f.p, 2), 9000);
	close_all(&f);
}

static void test_hostile_cursor(void **state)
{
	(void)state;
	static const struct {
		int64_t read_pos; /* relative to the start position */
		uint64_t acked;
		int err;
	} rows[] = {
		{-8, 100, -ERR_MALFORMED},            /* before the last one */
		{0, 100, 0},                          /* unmoved */
		{1, 100, -ERR_MALFORMED},             /* not aligned */
		{96, 100, 0},                         /* up to head */
		{104, 100, -ERR_MALFORMED},           /* beyond head */
		{1 << 30, 100, -ERR_MALFORMED},       /* far beyond */
		{INT64_MIN, 100, -ERR_MALFORMED},     /* half the number circle away */
		{-CAPACITY, 100, -ERR_MALFORMED},     /* a window back: same index */
		{96 + CAPACITY, 100, -ERR_MALFORMED}, /* a window ahead */
		{0, 99, -ERR_MALFORMED},              /* an LSN that goes back */
		{0, 0, -ERR_MALFORMED},
		{0, 6001, 0},              /* the commit that was published */
		{0, 6002, -ERR_MALFORMED}, /* one that was not */
		{0, UINT64_MAX, -ERR_MALFORMED},
	};
	static const uint64_t starts[] = {0, (UINT64_C(1) << 32) - 96, UINT64_MAX - 95, 4096};
	for (size_t s = 0; s < sizeof(starts) / sizeof(starts[0]); s++) {
		for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
			struct fixture f;
			open_at(&f, starts[s]);
			struct ring_record rec = message(1, 10); /* 96 bytes */
			assert_int_equal(ring_write(f.p, &rec, "0123456789"), 0);
			(void)ring_publish(f.p);
			size_t room = ring_producer_free_bytes(f.p);
			f.cursor->read_pos = starts[s] + (uint64_t)rows[i].read_pos;
			f.cursor->acked_lsn = rows[i].acked;
			assert_int_equal(refresh(&f), rows[i].err);
			if (rows[i].err != 0) {
				assert_int_equal(ring_producer_free_bytes(f.p), room);
				assert_int_equal(ring_producer_acked(f.p, 2), 100);
				ring_producer_drop(f.p, 2);
				assert_int_equal(refresh(&f), 0);
			}
			close_all(&f);
		}
	}
}

/* Going back after having gone forward is as hostile as going beyond. */
static void test_cursor_goes_back(void **state)
{
	(void)state;
	struct fixture f;
	open_at(&f, 0);
	struct ring_record rec = message(1, 10);
	for (int i = 0; i < 3; i++)
		assert_int_equal(ring_write(f.p, &rec, "0123456789"), 0);
	(void)ring_publish(f.p);
	f.cursor->read_pos = 192;
	assert_int_equal(refresh(&f), 0);
	f.cursor->read_pos = 96;
	assert_int_equal(refresh(&f), -ERR_MALFORMED);
	close_all(&f);
}

static void test_layout_refused(void **state)
{
	(void)state;
	static const struct {
		size_t offset;
		uint64_t value;
		size_t len;
		int err;
	} rows[] = {
		{offsetof(struct ring_header, magic), 1, 8, -ERR_MALFORMED},
		{offsetof(struct ring_header, layout_major), 2, 4, -ERR_VERSION},
		{offsetof(struct ring_header, layout_minor), 9, 4, 0},
		{offsetof(struct ring_header, header_len), 8192, 4, -ERR_VERSION},
		{offsetof(struct ring_header, record_header_len), 72, 4, -ERR_VERSION},
		{offsetof(struct ring_header, byte_order), 0x04030201, 4, -ERR_VERSION},
		{offsetof(struct ring_header, features), 1u << 31, 4, -ERR_VERSION},
		{offsetof(struct ring_header, capacity), 0, 8, -ERR_MALFORMED},
		{offsetof(struct ring_header, capacity), CAPACITY / 2, 8, -ERR_MALFORMED},
		{offsetof(struct ring_header, capacity), CAPACITY + 8, 8, -ERR_MALFORMED},
		{offsetof(struct ring_header, capacity), CAPACITY * 2, 8, -ERR_MALFORMED},
		{offsetof(struct ring_header, capacity), UINT64_C(1) << 63, 8, -ERR_MALFORMED},
		{offsetof(struct ring_header, capacity), UINT64_MAX, 8, -ERR_MALFORMED},
		{offsetof(struct ring_header, start_pos), 4, 8, -ERR_MALFORMED},
		{offsetof(struct ring_header, reserved0), 1, 1, -ERR_MALFORMED},
		{offsetof(struct ring_header, ready), 0, 4, -ERR_MALFORMED},
		{offsetof(struct ring_header, head), 4, 8, -ERR_MALFORMED},
		{offsetof(struct ring_header, head), CAPACITY + 8, 8, -ERR_MALFORMED},
	};
	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		struct fixture f;
		open_at(&f, 0);
		ring_consumer_free(&f.c);
		memcpy(f.data + rows[i].offset, &rows[i].value, rows[i].len);
		assert_int_equal(ring_consumer_new(f.data, DATA_LEN, f.cursor, &f.c), rows[i].err);
		close_all(&f);
	}
	struct fixture f;
	open_at(&f, 0);
	struct ring_consumer *c = NULL;
	assert_int_equal(ring_consumer_new(f.data, DATA_LEN - 1, f.cursor, &c), -ERR_MALFORMED);
	assert_int_equal(ring_consumer_new(f.data, 100, f.cursor, &c), -ERR_MALFORMED);
	f.cursor->magic = 0;
	assert_int_equal(ring_consumer_new(f.data, DATA_LEN, f.cursor, &c), -ERR_MALFORMED);
	assert_null(c);
	close_all(&f);
}

/* Geometry that changes after the attachment changes nothing for us. */
static void test_geometry_read_once(void **state)
{
	(void)state;
	struct fixture f;
	open_at(&f, 0);
	struct ring_record rec = message(1, 10), out;
	const void *payload;
	assert_int_equal(ring_write(f.p, &rec, "0123456789"), 0);
	(void)ring_publish(f.p);
	struct ring_header *h = (struct ring_header *)f.data;
	h->capacity = UINT64_C(1) << 40;
	h->record_header_len = 1;
	h->features = UINT32_MAX;
	h->ready = 0;
	assert_int_equal(ring_peek(f.c, &out, &payload), 1);
	assert_memory_equal(payload, "0123456789", 10);
	close_all(&f);
}

static void test_hostile_head(void **state)
{
	(void)state;
	static const uint64_t heads[] = {
		88, 97, 96 + CAPACITY + 8, UINT64_MAX - 7, UINT64_C(1) << 40};
	for (size_t i = 0; i < sizeof(heads) / sizeof(heads[0]); i++) {
		struct fixture f;
		open_at(&f, 0);
		struct ring_record rec = message(1, 10);
		const void *payload;
		assert_int_equal(ring_write(f.p, &rec, "0123456789"), 0);
		(void)ring_publish(f.p);
		assert_int_equal(ring_peek(f.c, &rec, &payload), 1);
		ring_release(f.c);
		((struct ring_header *)f.data)->head = heads[i];
		assert_int_equal(ring_peek(f.c, &rec, &payload), -ERR_MALFORMED);
		assert_true(ring_consumer_lag_bytes(f.c) <= CAPACITY);
		close_all(&f);
	}
}

/* Every field of a record's header that could lead us astray, with a checksum that is right. */
static void test_hostile_record(void **state)
{
	(void)state;
	struct row {
		size_t offset;
		uint64_t value;
		size_t len;
	};
	static const struct row rows[] = {
		{offsetof(struct ring_record_header, len), 0, 4},
		{offsetof(struct ring_record_header, len), 4, 4},
		{offsetof(struct ring_record_header, len), 8, 4},
		{offsetof(struct ring_record_header, len), 80, 4},
		{offsetof(struct ring_record_header, len), 97, 4},
		{offsetof(struct ring_record_header, len), 104, 4},
		{offsetof(struct ring_record_header, len), 192, 4},
		{offsetof(struct ring_record_header, len), UINT32_MAX & ~7u, 4},
		{offsetof(struct ring_record_header, type), 0, 2},
		{offsetof(struct ring_record_header, type), RING_PAD, 2},
		{offsetof(struct ring_record_header, type), RING_GAP + 1, 2},
		{offsetof(struct ring_record_header, flags), 0, 2},
		{offsetof(struct ring_record_header, flags), RING_FLAG_FIRST, 2},
		{offsetof(struct ring_record_header, flags), RING_FLAG_LAST, 2},
		{offsetof(struct ring_record_header, flags), 7, 2},
		{offsetof(struct ring_record_header, pos), 96, 8},
		{offsetof(struct ring_record_header, payload_len), 17, 4},
		{offsetof(struct ring_record_header, payload_len), 0, 4},
		{offsetof(struct ring_record_header, payload_len), UINT32_MAX, 4},
		{offsetof(struct ring_record_header, total_len), 9, 4},
		{offsetof(struct ring_record_header, total_len), 11, 4},
		{offsetof(struct ring_record_header, offset), 1, 4},
		{offsetof(struct ring_record_header, offset), UINT32_MAX, 4},
	};
	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		struct fixture f;
		open_at(&f, 0);
		struct ring_record rec = message(1, 10);
		const void *payload;
		assert_int_equal(ring_write(f.p, &rec, "0123456789"), 0);
		(void)ring_publish(f.p);
		uint8_t *at = f.data + RING_HEADER_BYTES;
		struct ring_record_header h;
		memcpy(at + rows[i].offset, &rows[i].value, rows[i].len);
		memcpy(&h, at, sizeof(h));
		h.crc = ring_record_crc(&h, at + sizeof(h), 0);
		memcpy(at, &h, sizeof(h));
		f.c = (ring_consumer_free(&f.c), NULL);
		((struct ring_header *)f.data)->features = 0;
		assert_int_equal(ring_consumer_new(f.data, DATA_LEN, f.cursor, &f.c), 0);
		assert_int_equal(ring_peek(f.c, &rec, &payload), -ERR_MALFORMED);
		assert_int_equal(ring_check(f.data, DATA_LEN, 0), -ERR_MALFORMED);
		close_all(&f);
	}
}

static void test_checksum(void **state)
{
	(void)state;
	uint8_t bytes[600];
	uint32_t x = 1;
	for (size_t i = 0; i < sizeof(bytes); i++)
		bytes[i] = (uint8_t)((x = x * 1664525 + 1013904223) >> 24);
	for (size_t start = 0; start < 16; start++) {
		for (size_t len = 0; len <= sizeof(bytes) - 16; len++)
			assert_int_equal(ring_crc32c((uint32_t)len, bytes + start, len),
				ring_crc32c_portable((uint32_t)len, bytes + start, len));
	}
	assert_int_equal(ring_crc32c_portable(0, "123456789", 9), 0xe3069283);
	for (size_t start = 0; start < 100; start++) {
		struct ring_record_header h;
		memcpy(&h, bytes + start, sizeof(h));
		uint32_t crc = ring_crc32c_header_portable(&h);
		assert_int_equal(ring_crc32c_header(&h), crc);
		h.crc = 0;
		assert_int_equal(ring_crc32c_portable(0, &h, sizeof(h)), crc);
	}
	assert_int_equal(ring_crc32c(0, "123456789", 9), 0xe3069283);
	assert_int_equal(ring_crc32c(ring_crc32c(0, "12345", 5), "6789", 4), 0xe3069283);
	struct fixture f;
	open_at(&f, 0);
	struct ring_record rec = message(1, 10);
	const void *payload;
	assert_int_equal(ring_write(f.p, &rec, "0123456789"), 0);
	(void)ring_publish(f.p);
	f.data[RING_HEADER_BYTES + offsetof(struct ring_record_header, commit_lsn)] ^= 1;
	assert_int_equal(ring_peek(f.c, &rec, &payload), -ERR_MALFORMED);
	close_all(&f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_through),
		cmocka_unit_test(test_invisible_until_published),
		cmocka_unit_test(test_larger_than_window),
		cmocka_unit_test(test_full_writes_nothing),
		cmocka_unit_test(test_slowest_gates),
		cmocka_unit_test(test_sleep),
		cmocka_unit_test(test_acks),
		cmocka_unit_test(test_hostile_cursor),
		cmocka_unit_test(test_cursor_goes_back),
		cmocka_unit_test(test_layout_refused),
		cmocka_unit_test(test_geometry_read_once),
		cmocka_unit_test(test_hostile_head),
		cmocka_unit_test(test_hostile_record),
		cmocka_unit_test(test_checksum),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
