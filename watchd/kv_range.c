/* SPDX-License-Identifier: PostgreSQL */
/*
 * Range: walk (count, measure, collect what must be sorted), sort, write.
 *
 *   WALK --all keys of the range seen--> SORT --heap empty--> READY --fill--> head, kvs, tail, done
 *     '------------nothing to sort-------------------------------^
 *
 * An answer whose key-values take no more than SMALL_BYTES is written down during the walk; a
 * larger one is walked again while it is written. What is sorted stands in a heap of no more than
 * `limit` entries of 24 bytes, its worst on top; taking them out one by one is the sorting, and can
 * be interrupted like all else.
 *
 * etcd's rules (applierV3.Range): a limit is applied after sorting and filtering, and `count` is
 * that of the range before both. With a sort target but no order the first limit + 1 keys are
 * sorted, ascending. An order that nobody knows does not sort.
 */
#include "config.h"

#include <stdlib.h>
#include <string.h>

#include "common/base/mem.h"
#include "watchd/keyindex.h"
#include "watchd/kv_int.h"

#define KV_RANGE_MAGIC 0x6b767267u
#define SMALL_BYTES 65536
#define PIECES 3 /* of a key-value: before its value, the value, behind it */

MEM_TYPE(mem_range, "kv_range");

enum sort_target {
	BY_KEY = ETCDSERVERPB__RANGE_REQUEST__SORT_TARGET__KEY,
	BY_VERSION = ETCDSERVERPB__RANGE_REQUEST__SORT_TARGET__VERSION,
	BY_CREATE = ETCDSERVERPB__RANGE_REQUEST__SORT_TARGET__CREATE,
	BY_MOD = ETCDSERVERPB__RANGE_REQUEST__SORT_TARGET__MOD,
	BY_VALUE = ETCDSERVERPB__RANGE_REQUEST__SORT_TARGET__VALUE,
};

/* Smaller rank first; then by value where that is asked for; then in the order of keys. */
struct ranked {
	int64_t rank;
	uint64_t at; /* its place in the walk */
	const void *held;
};

enum stage { WALK, SORT, READY, KVS, TAIL, DONE };

struct kv_range {
	uint32_t magic;
	enum stage stage;
	const struct store *s;
	const Etcdserverpb__RangeRequest *r;
	struct kv_header header;
	bool inside; /* of a Txn: no pin, short header */
	struct store_pin pin;
	int64_t rev, header_rev;
	struct store_bytes from, to;

	bool sorted, descending, filtered;
	uint64_t limit;     /* 0: none */
	uint64_t look_only; /* only so many keys are sorted at all; 0: all */

	uint64_t count, n_found, n_kvs, kvs_bytes;
	struct buf key;   /* where the walk goes on: the last key and a zero byte */
	struct buf small; /* the key-values, if they are few */
	bool is_small;
	struct ranked *heap; /* after SORT: in order */
	size_t n_heap, heap_cap, n_sorted;

	/* fill: */
	uint8_t piece_small[64];
	struct buf around; /* a key-value that did not fit at once, without its value */
	struct store_bytes
		pieces[PIECES]; /* what comes next, in order; those of length 0 are done */
	uint64_t n_written;
};

/* ---- beginning ---- */

enum etcd_error kv_check_rev(int64_t rev, int64_t current, int64_t compact)
{
	if (rev > current)
		return ETCD_FUTURE_REV;
	return (rev > 0 ? rev : current) < compact ? ETCD_COMPACTED : ETCD_OK;
}

static void set_order(struct kv_range *q)
{
	const Etcdserverpb__RangeRequest *r = q->r;
	int order = (int)r->sort_order;
	bool no_order = order == ETCDSERVERPB__RANGE_REQUEST__SORT_ORDER__NONE;
	q->filtered = r->min_mod_revision != 0 || r->max_mod_revision != 0 ||
		      r->min_create_revision != 0 || r->max_create_revision != 0;
	q->limit = r->limit > 0 ? (uint64_t)r->limit : 0;
	q->descending = order == ETCDSERVERPB__RANGE_REQUEST__SORT_ORDER__DESCEND;
	if (order == ETCDSERVERPB__RANGE_REQUEST__SORT_ORDER__ASCEND || no_order)
		q->sorted = (int)r->sort_target != BY_KEY;
	else
		q->sorted = q->descending;
	if (q->sorted && no_order && !q->filtered && q->limit > 0)
		q->look_only = q->limit + 1;
	if (r->count_only)
		q->sorted = false;
}

/* q is zeroed. */
static void set_up(struct kv_range *q, const struct store *s, const Etcdserverpb__RangeRequest *r)
{
	q->magic = KV_RANGE_MAGIC;
	q->s = s;
	q->r = r;
	q->from = kv_bytes(r->key);
	q->to = kv_range_to(r->range_end);
	q->is_small = true;
	set_order(q);
}

enum etcd_error kv_range_begin(struct store *s, const Etcdserverpb__RangeRequest *r,
	const struct kv_header *h, struct kv_range **ret_range)
{
	int64_t current = store_visible_rev(s);
	enum etcd_error e = kv_check_rev(r->revision, current, store_compact_rev(s));
	if (e != ETCD_OK)
		return e;
	struct kv_range *q = mem_new(&mem_range, sizeof(*q));
	set_up(q, s, r);
	q->header = *h;
	q->header_rev = current;
	q->rev = r->revision > 0 ? r->revision : current;
	store_pin(s, &q->pin, q->rev);
	*ret_range = q;
	return ETCD_OK;
}

static void tear_down(struct kv_range *q)
{
	store_unpin(&q->pin);
	buf_free(&q->key);
	buf_free(&q->small);
	buf_free(&q->around);
	free(q->heap);
	q->heap = NULL;
}

void kv_range_end(struct kv_range **q)
{
	if (*q == NULL)
		return;
	OBJ_CHECK(*q, KV_RANGE_MAGIC);
	tear_down(*q);
	mem_free(&mem_range, *q);
	*q = NULL;
}

bool kv_range_is_lost(const struct kv_range *q)
{
	return q->pin.lost;
}

/* ---- the heap ---- */

static int64_t rank_of(const struct kv_range *q, const struct store_kv *kv)
{
	uint8_t b[8] = {0};
	uint64_t v;
	switch ((int)q->r->sort_target) {
	case BY_VERSION:
		return kv->version;
	case BY_CREATE:
		return kv->create_rev;
	case BY_MOD:
		return kv->mod_rev;
	case BY_VALUE:
		if (kv->value.len > 0)
			memcpy(b, kv->value.data, kv->value.len < 8 ? kv->value.len : 8);
		memcpy(&v, b, 8);
		return (int64_t)(__builtin_bswap64(v) ^ (UINT64_C(1) << 63));
	default:
		return (int64_t)q->n_found;
	}
}

static bool comes_before(const struct kv_range *q, const struct ranked *a, const struct ranked *b)
{
	if (a->rank != b->rank)
		return a->rank < b->rank;
	if ((int)q->r->sort_target == BY_VALUE) {
		struct store_kv x, y;
		store_held(a->held, &x);
		store_held(b->held, &y);
		int c = keyindex_compare(x.value.data, x.value.len, y.value.data, y.value.len);
		if (c != 0)
			return q->descending ? c > 0 : c < 0;
	}
	return a->at < b->at;
}

/* heap[i] may have to go down, to keep the one that comes last on top. */
static void sift_down(struct kv_range *q, size_t i, size_t n)
{
	struct ranked moving = q->heap[i];
	for (size_t child; (child = 2 * i + 1) < n; i = child) {
		if (child + 1 < n && comes_before(q, &q->heap[child], &q->heap[child + 1]))
			child++;
		if (!comes_before(q, &moving, &q->heap[child]))
			break;
		q->heap[i] = q->heap[child];
	}
	q->heap[i] = moving;
}

static void sift_up(struct kv_range *q, size_t i)
{
	struct ranked moving = q->heap[i];
	for (size_t up; i > 0; i = up) {
		up = (i - 1) / 2;
		if (!comes_before(q, &q->heap[up], &moving))
			break;
		q->heap[i] = q->heap[up];
	}
	q->heap[i] = moving;
}

static void collect(struct kv_range *q, const struct store_kv *kv)
{
	int64_t rank = rank_of(q, kv);
	struct ranked e = {
		.rank = q->descending ? ~rank : rank, .at = q->n_found, .held = kv->held};
	if (q->limit > 0 && q->n_heap == q->limit) {
		if (comes_before(q, &e, &q->heap[0])) {
			q->heap[0] = e;
			sift_down(q, 0, q->n_heap);
		}
		return;
	}
	if (q->n_heap == q->heap_cap) {
		q->heap_cap = q->heap_cap == 0 ? 64 : q->heap_cap * 2;
		q->heap = xrealloc(q->heap, q->heap_cap * sizeof(q->heap[0]));
	}
	q->heap[q->n_heap++] = e;
	sift_up(q, q->n_heap - 1);
}

/* ---- measuring ---- */

/* A key-value as it is answered. */
static void strip(const struct kv_range *q, struct store_kv *kv)
{
	if (q->r->keys_only)
		kv->value.len = 0;
}

static void measure(struct kv_range *q, struct store_kv *kv)
{
	strip(q, kv);
	size_t kv_len = kv_encoded_len(kv), len = pb_message_len(kv_len);
	q->n_kvs++;
	q->kvs_bytes += len;
	if (!q->is_small)
		return;
	if (q->kvs_bytes > SMALL_BYTES) {
		q->is_small = false;
		buf_free(&q->small);
		return;
	}
	kv_write(pb_head(buf_reserve(&q->small, len), 2, kv_len), kv);
	buf_commit(&q->small, len);
}

static bool passes(const Etcdserverpb__RangeRequest *r, const struct store_kv *kv)
{
	return (r->max_mod_revision == 0 || kv->mod_rev <= r->max_mod_revision) &&
	       (r->min_mod_revision == 0 || kv->mod_rev >= r->min_mod_revision) &&
	       (r->max_create_revision == 0 || kv->create_rev <= r->max_create_revision) &&
	       (r->min_create_revision == 0 || kv->create_rev >= r->min_create_revision);
}

static void see(struct kv_range *q, struct store_kv *kv)
{
	q->count++;
	if (q->r->count_only || (q->filtered && !passes(q->r, kv)))
		return;
	q->n_found++;
	if (q->sorted) {
		if (q->look_only == 0 || q->n_found <= q->look_only)
			collect(q, kv);
	} else if (q->limit == 0 || q->n_kvs < q->limit) {
		measure(q, kv);
	}
}

/* ---- walking ---- */

static void go_on_behind(struct kv_range *q, struct store_bytes key)
{
	buf_reset(&q->key);
	buf_put(&q->key, key.data, key.len);
	buf_put_u8(&q->key, 0);
	q->from = (struct store_bytes){q->key.data, q->key.len_bytes};
}

/* True: the budget is used up. */
static bool walk(struct kv_range *q, size_t budget)
{
	struct store_iter it;
	struct store_kv kv;
	if (kv_is_single(q->r->range_end)) {
		if (store_get(q->s, q->from, q->rev, &kv))
			see(q, &kv);
		return false;
	}
	store_iter_init(&it, q->s, q->from, q->to, q->rev);
	it.budget = budget;
	while (store_iter_next(&it, &kv))
		see(q, &kv);
	if (it.stopped_at.data == NULL)
		return false;
	go_on_behind(q, it.stopped_at);
	return true;
}

/* The one that comes last goes to the end of what is left. */
static bool sort(struct kv_range *q, size_t budget)
{
	while (q->n_sorted < q->n_heap) {
		size_t last = q->n_heap - ++q->n_sorted;
		struct ranked top = q->heap[0];
		struct store_kv kv;
		q->heap[0] = q->heap[last];
		q->heap[last] = top;
		sift_down(q, 0, last);
		store_held(top.held, &kv);
		strip(q, &kv);
		q->n_kvs++;
		q->kvs_bytes += pb_message_len(kv_encoded_len(&kv));
		if (--budget == 0)
			return q->n_sorted < q->n_heap;
	}
	return false;
}

bool kv_range_step(struct kv_range *q, size_t budget)
{
	OBJ_CHECK(q, KV_RANGE_MAGIC);
	budget = budget > 0 ? budget : 1;
	if (q->pin.lost)
		return false;
	if (q->stage == WALK) {
		if (walk(q, budget))
			return true;
		q->from = kv_bytes(q->r->key);
		q->stage = q->sorted ? SORT : READY;
		if (q->n_heap > budget)
			return true;
	}
	if (q->stage == SORT) {
		if (sort(q, budget))
			return true;
		q->stage = READY;
	}
	return false;
}

/* ---- writing ---- */

/* RangeResponse: header 1, kvs 2, more 3, count 4. */
static size_t tail_len(const struct kv_range *q)
{
	return pb_int_len(q->n_found > q->n_kvs) + pb_int_len(q->count);
}

static const struct kv_header *header_of(const struct kv_range *q)
{
	return q->inside ? NULL : &q->header;
}

uint64_t kv_range_length(const struct kv_range *q)
{
	ASSERT(q->stage >= READY);
	return kv_header_len(header_of(q), q->header_rev) + q->kvs_bytes + tail_len(q);
}

static void set_piece(struct kv_range *q, const uint8_t *from, size_t len)
{
	q->pieces[0] = (struct store_bytes){from, len};
}

static struct store_bytes *next_piece(struct kv_range *q)
{
	for (size_t i = 0; i < PIECES; i++) {
		if (q->pieces[i].len > 0)
			return &q->pieces[i];
	}
	return NULL;
}

/* One key-value, at `to` if there is room, else as pieces: its value is not copied, since many
 * clients may take their time over many long ones. Returns what was written to `to`. */
static size_t write_kv(struct kv_range *q, struct store_kv *kv, uint8_t *to, size_t max)
{
	strip(q, kv);
	size_t kv_len = kv_encoded_len(kv), len = pb_message_len(kv_len);
	q->n_written++;
	if (len <= max) {
		kv_write(pb_head(to, 2, kv_len), kv);
		return len;
	}
	size_t around = len - kv->value.len;
	buf_reset(&q->around);
	uint8_t *front = buf_reserve(&q->around, around);
	uint8_t *behind = kv_write_front(pb_head(front, 2, kv_len), kv);
	kv_write_behind(behind, kv);
	set_piece(q, front, (size_t)(behind - front));
	q->pieces[1] = kv->value;
	q->pieces[2] = (struct store_bytes){behind, around - q->pieces[0].len};
	return 0;
}

static size_t write_sorted(struct kv_range *q, uint8_t *to, size_t max)
{
	struct store_kv kv;
	size_t n = 0;
	while (n < max && next_piece(q) == NULL && q->n_written < q->n_kvs) {
		store_held(q->heap[q->n_written].held, &kv);
		n += write_kv(q, &kv, to + n, max - n);
	}
	return n;
}

static size_t write_walk(struct kv_range *q, uint8_t *to, size_t max)
{
	struct store_iter it;
	struct store_kv kv;
	size_t n = 0;
	bool any = false;
	if (kv_is_single(q->r->range_end)) {
		ASSERT(store_get(q->s, q->from, q->rev, &kv));
		return write_kv(q, &kv, to, max);
	}
	store_iter_init(&it, q->s, q->from, q->to, q->rev);
	while (n < max && next_piece(q) == NULL && q->n_written < q->n_kvs) {
		ASSERT(store_iter_next(&it, &kv));
		if (q->filtered && !passes(q->r, &kv))
			continue;
		n += write_kv(q, &kv, to + n, max - n);
		any = true;
	}
	if (any)
		go_on_behind(q, kv.key);
	return n;
}

/* What comes next: bytes at `to`, or a piece, or the end. */
static size_t write_next(struct kv_range *q, uint8_t *to, size_t max)
{
	uint8_t *p = q->piece_small;
	switch (q->stage) {
	case READY:
		p = kv_write_header(p, header_of(q), q->header_rev);
		set_piece(q, q->piece_small, (size_t)(p - q->piece_small));
		q->stage = KVS;
		return 0;
	case KVS:
		if (q->n_written < q->n_kvs && q->is_small && !q->sorted) {
			set_piece(q, q->small.data, q->small.len_bytes);
			q->n_written = q->n_kvs;
			return 0;
		}
		if (q->n_written < q->n_kvs)
			return q->sorted ? write_sorted(q, to, max) : write_walk(q, to, max);
		p = pb_int(p, 3, q->n_found > q->n_kvs);
		p = pb_int(p, 4, q->count);
		set_piece(q, q->piece_small, (size_t)(p - q->piece_small));
		q->stage = TAIL;
		return 0;
	default:
		q->stage = DONE;
		return 0;
	}
}

size_t kv_range_fill(struct kv_range *q, void *to, size_t max)
{
	OBJ_CHECK(q, KV_RANGE_MAGIC);
	ASSERT(q->stage >= READY || q->pin.lost);
	uint8_t *p = to;
	size_t n = 0;
	while (n < max && q->stage != DONE && !q->pin.lost) {
		struct store_bytes *piece = next_piece(q);
		if (piece == NULL) {
			n += write_next(q, p + n, max - n);
			continue;
		}
		size_t part = piece->len < max - n ? piece->len : max - n;
		memcpy(p + n, piece->data, part);
		n += part;
		piece->data = (const uint8_t *)piece->data + part;
		piece->len -= part;
	}
	return n;
}

/* ---- inside of a Txn ---- */

enum etcd_error kv_range_inside(const struct store *s, const Etcdserverpb__RangeRequest *r,
	int64_t rev, int64_t header_rev, const struct kv_to *to)
{
	struct kv_range q = {.inside = true, .header_rev = header_rev};
	set_up(&q, s, r);
	q.rev = r->revision > 0 ? r->revision : rev;
	while (kv_range_step(&q, SIZE_MAX)) {
	}
	uint64_t len = kv_range_length(&q);
	uint8_t *p = kv_response(to, KV_OP_RANGE, len);
	if (p != NULL)
		ASSERT(kv_range_fill(&q, p, len) == len);
	tear_down(&q);
	return p != NULL ? ETCD_OK : ETCD_TOO_MANY_REQUESTS;
}
