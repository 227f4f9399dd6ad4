/* SPDX-License-Identifier: PostgreSQL */
/*
 * The core of the shared-memory ring: see ring.h for the contract and ring_layout.h for the bytes.
 *
 * Context: producer functions from one thread, consumer functions from one thread per consumer.
 *
 * Invariants (positions are compared by differences, so that they may wrap):
 *   I1  read_pos <= head <= write_pos <= min(read_pos) + capacity
 *   I2  every position is a multiple of 8; every record lies within the window
 *   I3  bytes in [read_pos, head) are never written
 *   I4  geometry is read once; every length is read once, into a private copy, before it is judged
 *
 * Barriers:
 *   head: store-release in ring_publish pairs with load-acquire in consumer_head (payload is seen
 * whole); read_pos: store-release in ring_release pairs with load-acquire in refresh_one (payload
 * was read before it is overwritten); sleeping: "publish, fence, load sleep_seq" pairs with "store
 * sleep_seq, fence, load position": one of the two sides sees the other (store-load order needs the
 * full fence, on x86 too).
 *
 * On crash: a producer that dies before the store of head leaves no trace; after it, the batch is
 * whole. A consumer that dies leaves its read_pos where it was; it is dropped by who hears of it.
 */
#include "config.h"

#include <errno.h>
#include <string.h>

#include "common/base/err.h"
#include "common/base/mem.h"
#include "common/ring/ring.h"
#include "common/ring/ring_layout.h"

#define PRODUCER_MAGIC 0x52504431u
#define CONSUMER_MAGIC 0x52434e31u

MEM_TYPE(mem_ring_producer, "ring producer");
MEM_TYPE(mem_ring_consumer, "ring consumer");

/* Places where a test build stops the producer: between every two of its stores. */
#ifdef RING_INJECT
void ring_inject_point(void);
#define INJECT() ring_inject_point()
#else
#define INJECT() ((void)0)
#endif

/* Sanitizer builds look at every byte; production trusts memory and checks the chain of headers. */
#if defined(HOWDAH_SANITIZER) || defined(RING_INJECT)
#define FEATURES RING_FEATURE_CRC_PAYLOAD
#else
#define FEATURES 0
#endif

#define RING_LITTLE_ENDIAN (__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__)

/* Of a header in the window. */
typedef uint64_t __attribute__((may_alias)) header_word;
_Static_assert(offsetof(struct ring_record_header, audience) == 12 &&
		       offsetof(struct ring_record_header, pos) == 16 &&
		       offsetof(struct ring_record_header, ordinal) == 32 &&
		       offsetof(struct ring_record_header, total_len) == 40 &&
		       offsetof(struct ring_record_header, lsn) == 48 &&
		       offsetof(struct ring_record_header, commit_time) == 72,
	"write_header's words");

struct gate {
	struct ring_cursor *cursor; /* NULL: free */
	uint64_t read_pos;          /* last value believed */
	uint64_t acked_lsn;
	uint64_t signalled; /* sleep_seq that was answered by a wake-up */
};

struct ring_producer {
	uint32_t magic;
	uint32_t features;
	struct ring_header *header;
	uint8_t *window;
	uint64_t capacity;
	uint64_t head;      /* published */
	uint64_t write_pos; /* written, not yet published */
	uint64_t limit;     /* never written at or beyond it: see update_limit */
	uint64_t lsn_max;   /* nobody can have acknowledged more */
	uint64_t sleep_seq;
	struct gate gates[RING_CONSUMERS_MAX];
	struct ring_counts counts;   /* published */
	struct ring_counts unmerged; /* of what is written since */
};

struct ring_consumer {
	uint32_t magic;
	uint32_t features;
	const struct ring_header *header;
	const uint8_t *window;
	struct ring_cursor *cursor;
	uint64_t capacity;
	uint64_t epoch;
	uint64_t head; /* last one believed */
	uint64_t peek_pos, read_pos;
	uint64_t acked_lsn;
	uint64_t sleep_seq;
	uint64_t signalled; /* the producer's sleep_seq that was answered */
};

/* ---- Checksums ----------------------------------------------------------------------------- */

uint32_t ring_record_crc(const struct ring_record_header *h, const void *payload, uint32_t features)
{
	uint32_t crc = ring_crc32c_header(h);
	if ((features & RING_FEATURE_CRC_PAYLOAD) != 0 && h->payload_len > 0)
		crc = ring_crc32c(crc, payload, h->payload_len);
	return crc;
}

/* ---- Small helpers ------------------------------------------------------------------------- */

static void full_fence(void)
{
#if defined(__SANITIZE_THREAD__) && !defined(__clang__)
	/* The sanitizer does not model fences, and need not: no plain access is ordered by this
	 * one. */
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wtsan"
	atomic_thread_fence(memory_order_seq_cst);
#pragma GCC diagnostic pop
#else
	atomic_thread_fence(memory_order_seq_cst);
#endif
}

static uint64_t align8(uint64_t n)
{
	return (n + 7) & ~UINT64_C(7);
}

size_t ring_fragment_max(size_t capacity)
{
	return capacity / 8;
}

static bool capacity_ok(uint64_t capacity)
{
	return capacity >= RING_CAPACITY_MIN && capacity <= SIZE_MAX / 2 &&
	       (capacity & (capacity - 1)) == 0;
}

static bool is_zero(const uint8_t *p, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		if (p[i] != 0)
			return false;
	}
	return true;
}

/* The sleeper's half: its own word goes odd, and whatever is re-checked afterwards is read after.
 */
static void sleep_arm(_Atomic uint64_t *word, uint64_t *seq)
{
	if (*seq % 2 == 0)
		(*seq)++;
	atomic_store_explicit(word, *seq, memory_order_relaxed);
	full_fence(); /* pairs with the fence in sleep_seen */
}

static void sleep_disarm(_Atomic uint64_t *word, uint64_t *seq)
{
	if (*seq % 2 == 0)
		return;
	(*seq)++;
	atomic_store_explicit(word, *seq, memory_order_relaxed);
}

/* The waker's half, after its position is stored and full_fence: one wake-up per odd value. */
static bool sleep_seen(const _Atomic uint64_t *word, uint64_t *signalled)
{
	uint64_t seq = atomic_load_explicit(word, memory_order_relaxed);
	if (seq % 2 == 0 || seq == *signalled)
		return false;
	*signalled = seq;
	return true;
}

/* ---- Producer ------------------------------------------------------------------------------ */

struct ring_producer *ring_producer_new(
	void *data, size_t capacity, uint64_t epoch, uint64_t start_pos)
{
	ASSERT(data != NULL && capacity_ok(capacity) && start_pos % 8 == 0);
	struct ring_producer *p = mem_new(&mem_ring_producer, sizeof(*p));
	p->magic = PRODUCER_MAGIC;
	p->features = FEATURES;
	p->header = data;
	p->window = (uint8_t *)data + RING_HEADER_BYTES;
	p->capacity = capacity;
	p->head = p->write_pos = start_pos;
	p->limit = start_pos + capacity;

	struct ring_header *h = p->header;
	h->magic = RING_MAGIC;
	h->layout_major = RING_LAYOUT_MAJOR;
	h->layout_minor = RING_LAYOUT_MINOR;
	h->header_len = RING_HEADER_BYTES;
	h->record_header_len = RING_RECORD_BYTES;
	h->byte_order = RING_BYTE_ORDER;
	h->features = p->features;
	h->capacity = capacity;
	h->epoch = epoch;
	h->start_pos = start_pos;
	strncpy(h->build, HOWDAH_VERSION, RING_BUILD_BYTES - 1);
	atomic_store_explicit(&h->head, start_pos, memory_order_relaxed);
	INJECT();
	/* Pairs with the load in ring_consumer_new. */
	atomic_store_explicit(&h->ready, RING_READY, memory_order_release);
	INJECT();
	return p;
}

void ring_producer_free(struct ring_producer **p)
{
	if (*p == NULL)
		return;
	OBJ_CHECK(*p, PRODUCER_MAGIC);
	(*p)->magic = 0;
	mem_free(&mem_ring_producer, *p);
	*p = NULL;
}

/* I1's bound, kept so that a write costs one comparison: a window ahead of the slowest consumer as
 * last believed; without consumers nothing unpublished may be lost. To be called when a gate, a
 * read_pos or head changes. */
static void update_limit(struct ring_producer *p)
{
	uint64_t behind = 0; /* of write_pos */
	bool any = false;
	for (size_t i = 0; i < RING_CONSUMERS_MAX; i++) {
		const struct gate *g = &p->gates[i];
		if (g->cursor == NULL)
			continue;
		any = true;
		if (p->write_pos - g->read_pos > behind)
			behind = p->write_pos - g->read_pos;
	}
	p->limit = (any ? p->write_pos - behind : p->head) + p->capacity;
}

size_t ring_producer_free_bytes(const struct ring_producer *p)
{
	return (size_t)(p->limit - p->write_pos);
}

static void write_pad(struct ring_producer *p, uint64_t len)
{
	uint8_t *at = p->window + (p->write_pos & (p->capacity - 1));
	struct ring_record_header h = {.len = (uint32_t)len, .type = RING_PAD};
	memcpy(at, &h, RING_PAD_BYTES);
	INJECT();
	p->write_pos += len;
	p->unmerged.pad_bytes += len;
}

static void copy_bytes(uint8_t *to, const void *from, size_t len)
{
#ifdef RING_INJECT
	size_t half = len / 2;
	memcpy(to, from, half);
	INJECT();
	memcpy(to + half, (const uint8_t *)from + half, len - half);
	INJECT();
#else
	memcpy(to, from, len);
#endif
}

/* Neighbours in a header as one word. */
static inline uint32_t pair16(uint32_t first, uint32_t second)
{
	return RING_LITTLE_ENDIAN ? first | second << 16 : first << 16 | second;
}

static inline uint64_t pair(uint32_t first, uint32_t second)
{
	return RING_LITTLE_ENDIAN ? first | (uint64_t)second << 32 : (uint64_t)first << 32 | second;
}

/* In place, and in words: what is written is read again at once, for the checksum. */
static inline void write_header(struct ring_producer *p, header_word *at,
	const struct ring_record *rec, size_t offset, size_t n)
{
	const uint32_t flags = (offset == 0 ? RING_FLAG_FIRST : 0) |
			       (offset + n == rec->payload_len ? RING_FLAG_LAST : 0);
	at[0] = pair((uint32_t)align8(RING_RECORD_BYTES + n), pair16(rec->type, flags));
	INJECT();
	at[2] = p->write_pos;
	at[3] = pair(rec->relid, rec->timeline);
	at[4] = pair(rec->ordinal, (uint32_t)n);
	INJECT();
	at[5] = pair(rec->payload_len, (uint32_t)offset);
	at[6] = rec->lsn;
	at[7] = rec->commit_lsn;
	INJECT();
	at[8] = rec->end_lsn;
	at[9] = (uint64_t)rec->commit_time;
	at[1] = pair(0, rec->audience);
	INJECT();
	at[1] = pair(ring_crc32c_header((const void *)at), rec->audience);
	INJECT();
}

static void add_payload_crc(struct ring_record_header *h, const void *payload)
{
	h->crc = ring_record_crc(h, payload, RING_FEATURE_CRC_PAYLOAD);
	INJECT();
}

/* One fragment, n bytes from offset on, with a PAD before it where the window ends. -EAGAIN: no
 * room, nothing written. */
static inline int write_fragment(struct ring_producer *p, const struct ring_record *rec,
	const uint8_t *payload, size_t offset, size_t n)
{
	const uint64_t len = align8(RING_RECORD_BYTES + n);
	const uint64_t to_end = p->capacity - (p->write_pos & (p->capacity - 1));
	const uint64_t pad = len > to_end ? to_end : 0;
	if (pad + len > p->limit - p->write_pos)
		return -EAGAIN;
	if (pad > 0)
		write_pad(p, pad);
	uint8_t *at = p->window + (p->write_pos & (p->capacity - 1));
	/* First the last word, whose end is the padding: the payload then covers the rest of it. */
	memset(at + len - 8, 0, 8);
	INJECT();
	if (n > 0)
		copy_bytes(at + RING_RECORD_BYTES, payload, n);
	write_header(p, (header_word *)(void *)at, rec, offset, n);
	if ((p->features & RING_FEATURE_CRC_PAYLOAD) != 0)
		add_payload_crc((struct ring_record_header *)(void *)at, payload);
	p->write_pos += len;
	p->unmerged.records++;
	p->unmerged.bytes += len;
	return 0;
}

int ring_write_part(
	struct ring_producer *p, const struct ring_record *rec, const void *payload, size_t *offset)
{
	OBJ_CHECK(p, PRODUCER_MAGIC);
	ASSERT(*offset <= rec->payload_len && rec->type != RING_PAD);
	const size_t room = ring_fragment_max(p->capacity) - RING_RECORD_BYTES;
	const size_t total = rec->payload_len;
	const uint8_t *from = payload;
	do {
		size_t n = total - *offset < room ? total - *offset : room;
		int err = write_fragment(p, rec, n > 0 ? from + *offset : NULL, *offset, n);
		if (err != 0)
			return err;
		*offset += n;
	} while (*offset < total);
	uint64_t lsn = rec->type == RING_STREAM ? rec->commit_lsn : rec->end_lsn;
	if (lsn > p->lsn_max)
		p->lsn_max = lsn;
	return 0;
}

int ring_write(struct ring_producer *p, const struct ring_record *rec, const void *payload)
{
	OBJ_CHECK(p, PRODUCER_MAGIC);
	const size_t room = ring_fragment_max(p->capacity) - RING_RECORD_BYTES;
	uint64_t n = rec->payload_len == 0 ? 1 : (rec->payload_len + (uint64_t)room - 1) / room;
	uint64_t need = rec->payload_len + n * (RING_RECORD_BYTES + 7);
	/* Half: with the worst PAD it still fits into an empty window, so that -EAGAIN never lasts.
	 */
	if (need > p->capacity / 2)
		return -EMSGSIZE;
	uint64_t before = p->write_pos;
	struct ring_counts counts = p->unmerged;
	size_t offset = 0;
	int err = ring_write_part(p, rec, payload, &offset);
	if (err != 0) {
		/* Invisible bytes beyond head: they are simply written again. */
		p->write_pos = before;
		p->unmerged = counts;
	}
	return err;
}

static void publish_counts(struct ring_producer *p)
{
	struct ring_header *h = p->header;
	p->counts.records += p->unmerged.records;
	p->counts.bytes += p->unmerged.bytes;
	p->counts.pad_bytes += p->unmerged.pad_bytes;
	p->counts.batches++;
	memset(&p->unmerged, 0, sizeof(p->unmerged));
	atomic_store_explicit(&h->n_records, p->counts.records, memory_order_relaxed);
	INJECT();
	atomic_store_explicit(&h->n_bytes, p->counts.bytes, memory_order_relaxed);
	INJECT();
	atomic_store_explicit(&h->n_pad_bytes, p->counts.pad_bytes, memory_order_relaxed);
	INJECT();
	atomic_store_explicit(&h->n_batches, p->counts.batches, memory_order_relaxed);
	INJECT();
}

uint32_t ring_publish(struct ring_producer *p)
{
	OBJ_CHECK(p, PRODUCER_MAGIC);
	if (p->write_pos == p->head)
		return 0;
	INJECT();
	p->head = p->write_pos;
	update_limit(p);
	/* Pairs with the load-acquire in consumer_head. */
	atomic_store_explicit(&p->header->head, p->head, memory_order_release);
	INJECT();
	full_fence(); /* pairs with the fence in sleep_arm */
	uint32_t wake = 0;
	for (unsigned i = 0; i < RING_CONSUMERS_MAX; i++) {
		struct gate *g = &p->gates[i];
		if (g->cursor != NULL && sleep_seen(&g->cursor->sleep_seq, &g->signalled)) {
			wake |= UINT32_C(1) << i;
			p->counts.wakes++;
		}
	}
	publish_counts(p);
	atomic_store_explicit(&p->header->n_wakes, p->counts.wakes, memory_order_relaxed);
	INJECT();
	return wake;
}

int ring_producer_add(struct ring_producer *p, unsigned id, void *cursor, uint64_t acked_lsn)
{
	OBJ_CHECK(p, PRODUCER_MAGIC);
	if (id >= RING_CONSUMERS_MAX || cursor == NULL)
		return -EINVAL;
	struct gate *g = &p->gates[id];
	if (g->cursor != NULL)
		return -EEXIST;
	struct ring_cursor *c = cursor;
	memset(c, 0, sizeof(*c));
	c->magic = RING_CURSOR_MAGIC;
	atomic_store_explicit(&c->acked_lsn, acked_lsn, memory_order_relaxed);
	atomic_store_explicit(&c->read_pos, p->head, memory_order_release);
	*g = (struct gate){.cursor = c, .read_pos = p->head, .acked_lsn = acked_lsn};
	update_limit(p);
	return 0;
}

void ring_producer_drop(struct ring_producer *p, unsigned id)
{
	OBJ_CHECK(p, PRODUCER_MAGIC);
	if (id >= RING_CONSUMERS_MAX)
		return;
	p->gates[id] = (struct gate){0};
	update_limit(p);
}

/* Takes a consumer's words over if they may be true. Each is read once (I4). */
static bool refresh_one(const struct ring_producer *p, struct gate *g)
{
	/* Pairs with the store-release in ring_release: its reads are over before we overwrite. */
	uint64_t read_pos = atomic_load_explicit(&g->cursor->read_pos, memory_order_acquire);
	uint64_t acked = atomic_load_explicit(&g->cursor->acked_lsn, memory_order_acquire);
	if (read_pos % 8 != 0 || read_pos - g->read_pos > p->head - g->read_pos)
		return false;
	if (acked < g->acked_lsn || (acked > g->acked_lsn && acked > p->lsn_max))
		return false;
	g->read_pos = read_pos;
	g->acked_lsn = acked;
	return true;
}

int ring_producer_refresh(struct ring_producer *p, unsigned *ret_bad_id)
{
	OBJ_CHECK(p, PRODUCER_MAGIC);
	for (unsigned i = 0; i < RING_CONSUMERS_MAX; i++) {
		struct gate *g = &p->gates[i];
		if (g->cursor != NULL && !refresh_one(p, g)) {
			*ret_bad_id = i;
			return -ERR_MALFORMED;
		}
	}
	update_limit(p);
	return 0;
}

uint64_t ring_producer_acked(const struct ring_producer *p, unsigned id)
{
	return id < RING_CONSUMERS_MAX ? p->gates[id].acked_lsn : 0;
}

uint64_t ring_producer_lag_bytes(const struct ring_producer *p, unsigned id)
{
	if (id >= RING_CONSUMERS_MAX || p->gates[id].cursor == NULL)
		return 0;
	return p->head - p->gates[id].read_pos;
}

uint64_t ring_producer_head(const struct ring_producer *p)
{
	return p->head;
}

void ring_producer_arm_space(struct ring_producer *p)
{
	OBJ_CHECK(p, PRODUCER_MAGIC);
	if (p->sleep_seq % 2 == 0) {
		p->counts.stalls++;
		atomic_store_explicit(&p->header->n_stalls, p->counts.stalls, memory_order_relaxed);
	}
	sleep_arm(&p->header->sleep_seq, &p->sleep_seq);
}

void ring_producer_disarm_space(struct ring_producer *p)
{
	OBJ_CHECK(p, PRODUCER_MAGIC);
	sleep_disarm(&p->header->sleep_seq, &p->sleep_seq);
}

void ring_producer_get_counts(const struct ring_producer *p, struct ring_counts *ret_counts)
{
	*ret_counts = p->counts;
}

/* ---- Consumer ------------------------------------------------------------------------------ */

/* Geometry, judged on a private copy: 0, -ERR_VERSION, -ERR_MALFORMED. */
static int header_check(const struct ring_header *h, size_t data_len, struct ring_header *copy)
{
	if (data_len < RING_HEADER_BYTES)
		return -ERR_MALFORMED;
	/* Pairs with the store-release in ring_producer_new. */
	if (atomic_load_explicit(&h->ready, memory_order_acquire) != RING_READY)
		return -ERR_MALFORMED;
	memcpy(copy, h, offsetof(struct ring_header, ready));
	if (copy->magic != RING_MAGIC)
		return -ERR_MALFORMED;
	if (copy->layout_major != RING_LAYOUT_MAJOR || copy->byte_order != RING_BYTE_ORDER ||
		copy->header_len != RING_HEADER_BYTES ||
		copy->record_header_len != RING_RECORD_BYTES ||
		(copy->features & ~RING_FEATURES_KNOWN) != 0)
		return -ERR_VERSION;
	if (!capacity_ok(copy->capacity) || data_len - RING_HEADER_BYTES < copy->capacity ||
		copy->start_pos % 8 != 0 || !is_zero(copy->reserved0, sizeof(copy->reserved0)))
		return -ERR_MALFORMED;
	return 0;
}

int ring_consumer_new(const void *data, size_t data_len, void *cursor, struct ring_consumer **ret_c)
{
	struct ring_header h;
	struct ring_cursor *cur = cursor;
	int err = header_check(data, data_len, &h);
	if (err != 0)
		return err;
	uint64_t pos = atomic_load_explicit(&cur->read_pos, memory_order_acquire);
	uint64_t head = atomic_load_explicit(
		&((const struct ring_header *)data)->head, memory_order_acquire);
	if (cur->magic != RING_CURSOR_MAGIC || pos % 8 != 0 || head % 8 != 0 ||
		head - pos > h.capacity)
		return -ERR_MALFORMED;
	struct ring_consumer *c = mem_new(&mem_ring_consumer, sizeof(*c));
	c->magic = CONSUMER_MAGIC;
	c->features = h.features;
	c->header = data;
	c->window = (const uint8_t *)data + RING_HEADER_BYTES;
	c->cursor = cur;
	c->capacity = h.capacity;
	c->epoch = h.epoch;
	c->head = head;
	c->peek_pos = c->read_pos = pos;
	c->acked_lsn = atomic_load_explicit(&cur->acked_lsn, memory_order_relaxed);
	*ret_c = c;
	return 0;
}

void ring_consumer_free(struct ring_consumer **c)
{
	if (*c == NULL)
		return;
	OBJ_CHECK(*c, CONSUMER_MAGIC);
	(*c)->magic = 0;
	mem_free(&mem_ring_consumer, *c);
	*c = NULL;
}

uint64_t ring_consumer_epoch(const struct ring_consumer *c)
{
	return c->epoch;
}

size_t ring_consumer_capacity(const struct ring_consumer *c)
{
	return (size_t)c->capacity;
}

/* The head, if it may be true: never back, never more than a window ahead of us. */
static int consumer_head(struct ring_consumer *c)
{
	/* Pairs with the store-release in ring_publish. */
	uint64_t head = atomic_load_explicit(&c->header->head, memory_order_acquire);
	if (head % 8 != 0 || head - c->read_pos > c->capacity ||
		head - c->read_pos < c->head - c->read_pos)
		return -ERR_MALFORMED;
	c->head = head;
	return 0;
}

static bool record_ok(const struct ring_record_header *h, uint64_t pos)
{
	bool first = (h->flags & RING_FLAG_FIRST) != 0, last = (h->flags & RING_FLAG_LAST) != 0;
	uint64_t end = (uint64_t)h->offset + h->payload_len;
	return h->type >= RING_STREAM && h->type <= RING_GAP &&
	       (h->flags & ~(RING_FLAG_FIRST | RING_FLAG_LAST)) == 0 && h->pos == pos &&
	       align8(RING_RECORD_BYTES + (uint64_t)h->payload_len) == h->len &&
	       end <= h->total_len && first == (h->offset == 0) && last == (end == h->total_len);
}

/* Judges what lies at pos: its header in *ret_h (one copy, I4). 0 or -ERR_MALFORMED. */
static int record_read(
	const struct ring_consumer *c, uint64_t pos, struct ring_record_header *ret_h)
{
	uint64_t at = pos & (c->capacity - 1);
	uint64_t to_end = c->capacity - at, to_head = c->head - pos;
	uint64_t room = to_end < to_head ? to_end : to_head;
	memset(ret_h, 0, sizeof(*ret_h));
	memcpy(ret_h, c->window + at,
		room < RING_RECORD_BYTES ? RING_PAD_BYTES : RING_RECORD_BYTES);
	if (ret_h->len % 8 != 0 || ret_h->len < RING_PAD_BYTES || ret_h->len > room)
		return -ERR_MALFORMED;
	if (ret_h->type == RING_PAD)
		return ret_h->len == to_end && ret_h->flags == 0 ? 0 : -ERR_MALFORMED;
	if (ret_h->len < RING_RECORD_BYTES || ret_h->len > ring_fragment_max(c->capacity) ||
		!record_ok(ret_h, pos))
		return -ERR_MALFORMED;
	const uint8_t *payload = c->window + at + RING_RECORD_BYTES;
	return ret_h->crc == ring_record_crc(ret_h, payload, c->features) ? 0 : -ERR_MALFORMED;
}

static void record_fill(struct ring_record *rec, const struct ring_record_header *h)
{
	*rec = (struct ring_record){
		.type = h->type,
		.flags = h->flags,
		.audience = h->audience,
		.relid = h->relid,
		.timeline = h->timeline,
		.ordinal = h->ordinal,
		.payload_len = h->payload_len,
		.total_len = h->total_len,
		.offset = h->offset,
		.lsn = h->lsn,
		.commit_lsn = h->commit_lsn,
		.end_lsn = h->end_lsn,
		.commit_time = h->commit_time,
	};
}

int ring_peek(struct ring_consumer *c, struct ring_record *ret_rec, const void **ret_payload)
{
	OBJ_CHECK(c, CONSUMER_MAGIC);
	if (c->peek_pos == c->head && consumer_head(c) != 0)
		return -ERR_MALFORMED;
	while (c->peek_pos != c->head) {
		struct ring_record_header h;
		if (record_read(c, c->peek_pos, &h) != 0)
			return -ERR_MALFORMED;
		uint64_t at = c->peek_pos & (c->capacity - 1);
		c->peek_pos += h.len;
		if (h.type == RING_PAD)
			continue;
		record_fill(ret_rec, &h);
		*ret_payload = c->window + at + RING_RECORD_BYTES;
		return 1;
	}
	return 0;
}

void ring_unpeek(struct ring_consumer *c)
{
	OBJ_CHECK(c, CONSUMER_MAGIC);
	c->peek_pos = c->read_pos;
}

bool ring_release(struct ring_consumer *c)
{
	OBJ_CHECK(c, CONSUMER_MAGIC);
	if (c->read_pos == c->peek_pos)
		return false;
	c->read_pos = c->peek_pos;
	/* Pairs with the load-acquire in refresh_one. */
	atomic_store_explicit(&c->cursor->read_pos, c->read_pos, memory_order_release);
	full_fence(); /* pairs with the fence in sleep_arm */
	return sleep_seen(&c->header->sleep_seq, &c->signalled);
}

bool ring_ack(struct ring_consumer *c, uint64_t lsn)
{
	OBJ_CHECK(c, CONSUMER_MAGIC);
	if (lsn <= c->acked_lsn)
		return false;
	c->acked_lsn = lsn;
	atomic_store_explicit(&c->cursor->acked_lsn, lsn, memory_order_release);
	return true;
}

uint64_t ring_consumer_acked(const struct ring_consumer *c)
{
	return c->acked_lsn;
}

uint64_t ring_consumer_lag_bytes(const struct ring_consumer *c)
{
	uint64_t head = atomic_load_explicit(&c->header->head, memory_order_acquire);
	uint64_t lag = head - c->read_pos;
	return lag <= c->capacity ? lag : c->capacity;
}

void ring_consumer_arm(struct ring_consumer *c)
{
	OBJ_CHECK(c, CONSUMER_MAGIC);
	sleep_arm(&c->cursor->sleep_seq, &c->sleep_seq);
}

void ring_consumer_disarm(struct ring_consumer *c)
{
	OBJ_CHECK(c, CONSUMER_MAGIC);
	sleep_disarm(&c->cursor->sleep_seq, &c->sleep_seq);
}

int ring_check(const void *data, size_t data_len, uint64_t from_pos)
{
	struct ring_header h;
	int err = header_check(data, data_len, &h);
	if (err != 0)
		return err;
	struct ring_consumer c = {
		.magic = CONSUMER_MAGIC,
		.features = h.features,
		.header = data,
		.window = (const uint8_t *)data + RING_HEADER_BYTES,
		.capacity = h.capacity,
		.head = from_pos,
		.peek_pos = from_pos,
		.read_pos = from_pos,
	};
	struct ring_record rec;
	const void *payload;
	int more;
	if (from_pos % 8 != 0)
		return -ERR_MALFORMED;
	while ((more = ring_peek(&c, &rec, &payload)) == 1)
		c.read_pos = c.peek_pos;
	return more;
}
