/* SPDX-License-Identifier: PostgreSQL */
/*
 * Versions of keys, and reading them. keyindex_key.value is 0 (none), a pointer to the one version,
 * or with MANY set a pointer to an array of several.
 */
#include "config.h"

#include <stdlib.h>
#include <string.h>

#include "common/base/mem.h"
#include "watchd/store_int.h"

#define MANY ((uintptr_t)1)
#define CAP_FIRST 4

MEM_TYPE(mem_version, "store_version");
MEM_TYPE(mem_history, "store_history");

struct history {
	uint32_t first, n, cap; /* v[first .. first + n) are used */
	struct version *v[];
};

static struct history *history_of(const struct keyindex_key *k)
{
	return (k->value & MANY) != 0 ? (struct history *)(k->value & ~MANY) : NULL;
}

static size_t history_size(uint32_t cap)
{
	return sizeof(struct history) + cap * sizeof(struct version *);
}

static size_t version_size(size_t value_len)
{
	return sizeof(struct version) + value_len;
}

struct version *version_new(
	struct store *s, struct keyindex_key *k, struct store_bytes value, bool tombstone)
{
	struct version *v = mem_new(&mem_version, version_size(value.len));
	v->key = k;
	v->version = tombstone ? 0 : 1;
	v->value_len = (uint32_t)value.len;
	if (value.len > 0)
		memcpy(v->value, value.data, value.len);
	s->memory_bytes += version_size(value.len);
	s->n_versions++;
	s->n_tombstones += tombstone;
	return v;
}

void version_free(struct store *s, struct version *v)
{
	s->memory_bytes -= version_size(v->value_len);
	s->n_versions--;
	s->n_tombstones -= is_tombstone(v);
	mem_free(&mem_version, v);
}

uint64_t version_row_bytes(const struct version *v)
{
	return (uint64_t)v->key->len + v->value_len + STORE_ROW_BYTES;
}

void version_kv(const struct version *v, struct store_kv *ret_kv)
{
	*ret_kv = (struct store_kv){.key = {v->key->bytes, v->key->len},
		.value = {v->value, v->value_len},
		.create_rev = v->create_rev,
		.mod_rev = v->mod_rev,
		.version = v->version,
		.lease = v->lease,
		.held = v};
}

void store_held(const void *held, struct store_kv *ret_kv)
{
	version_kv(held, ret_kv);
}

/* ---- a key's versions ---- */

size_t key_n_versions(const struct keyindex_key *k)
{
	const struct history *h = history_of(k);
	return h != NULL ? h->n : k->value != 0;
}

struct version *key_version(const struct keyindex_key *k, size_t i)
{
	const struct history *h = history_of(k);
	return h != NULL ? h->v[h->first + i] : (struct version *)k->value;
}

struct version *key_newest(const struct keyindex_key *k)
{
	const struct history *h = history_of(k);
	return h != NULL ? h->v[h->first + h->n - 1] : (struct version *)k->value;
}

static bool is_until(const struct version *v, int64_t rev, int32_t sub)
{
	return v->mod_rev < rev || (v->mod_rev == rev && v->sub <= sub);
}

size_t key_versions_until(const struct keyindex_key *k, int64_t rev, int32_t sub)
{
	size_t lo = 0, hi = key_n_versions(k);
	while (lo < hi) {
		size_t mid = (lo + hi) / 2;
		if (is_until(key_version(k, mid), rev, sub))
			lo = mid + 1;
		else
			hi = mid;
	}
	return lo;
}

struct version *key_at(const struct keyindex_key *k, int64_t rev)
{
	struct version *v = key_newest(k);
	if (v == NULL || v->mod_rev <= rev)
		return v;
	size_t n = key_versions_until(k, rev, INT32_MAX);
	return n > 0 ? key_version(k, n - 1) : NULL;
}

static struct history *history_resize(struct store *s, struct history *old, uint32_t cap)
{
	struct history *h = mem_new(&mem_history, history_size(cap));
	s->memory_bytes += history_size(cap);
	h->cap = cap;
	if (old != NULL) {
		h->n = old->n;
		memcpy(h->v, &old->v[old->first], old->n * sizeof(h->v[0]));
		s->memory_bytes -= history_size(old->cap);
		mem_free(&mem_history, old);
	}
	return h;
}

void key_push(struct store *s, struct keyindex_key *k, struct version *v)
{
	struct history *h = history_of(k);
	if (k->value == 0) {
		k->value = (uintptr_t)v;
		return;
	}
	if (h == NULL) {
		h = history_resize(s, NULL, CAP_FIRST);
		h->v[h->n++] = (struct version *)k->value;
	} else if (h->first + h->n == h->cap && h->first >= h->cap / 2) {
		memmove(h->v, &h->v[h->first], h->n * sizeof(h->v[0]));
		h->first = 0;
	} else if (h->first + h->n == h->cap) {
		ASSERT(h->cap < UINT32_MAX / 2);
		h = history_resize(s, h, h->cap * 2);
	}
	h->v[h->first + h->n++] = v;
	k->value = (uintptr_t)h | MANY;
}

/* After something was taken away. */
static void history_shrink(struct store *s, struct keyindex_key *k, struct history *h)
{
	if (h->n == 1) {
		k->value = (uintptr_t)h->v[h->first];
		s->memory_bytes -= history_size(h->cap);
		mem_free(&mem_history, h);
	} else if (h->cap > CAP_FIRST && h->n <= h->cap / 8) {
		k->value = (uintptr_t)history_resize(s, h, h->cap / 4) | MANY;
	}
}

void key_pop(struct store *s, struct keyindex_key *k)
{
	struct history *h = history_of(k);
	ASSERT(k->value != 0);
	if (h == NULL) {
		k->value = 0;
		return;
	}
	h->n--;
	history_shrink(s, k, h);
}

void key_drop_oldest(struct store *s, struct keyindex_key *k)
{
	struct history *h = history_of(k);
	ASSERT(k->value != 0);
	if (h == NULL) {
		k->value = 0;
		return;
	}
	h->first++;
	h->n--;
	history_shrink(s, k, h);
}

void key_forget(struct store *s, struct keyindex_key *k)
{
	struct history *h = history_of(k);
	k->value = 0;
	if (h == NULL)
		return;
	s->memory_bytes -= history_size(h->cap);
	mem_free(&mem_history, h);
}

/* ---- reading ---- */

bool store_get(const struct store *s, struct store_bytes key, int64_t rev, struct store_kv *ret_kv)
{
	const struct keyindex_key *k = keyindex_find(s->keys, key.data, key.len);
	const struct version *v = k != NULL ? key_at(k, rev) : NULL;
	if (v == NULL || is_tombstone(v))
		return false;
	version_kv(v, ret_kv);
	return true;
}

void store_iter_init(struct store_iter *it, const struct store *s, struct store_bytes from,
	struct store_bytes to, int64_t rev)
{
	struct keyindex_pos pos = keyindex_seek(s->keys, from.data, from.len);
	*it = (struct store_iter){
		.s = s, .rev = rev, .to = to, .budget = SIZE_MAX, .leaf = pos.leaf, .pos = pos.i};
}

bool store_iter_next(struct store_iter *it, struct store_kv *ret_kv)
{
	struct keyindex_pos pos = {.leaf = it->leaf, .i = it->pos};
	while (it->budget > 0) {
		const struct keyindex_key *k = keyindex_next(&pos);
		if (k == NULL || (it->to.data != NULL && keyindex_compare(k->bytes, k->len,
								 it->to.data, it->to.len) >= 0)) {
			it->leaf = NULL;
			it->stopped_at = (struct store_bytes){NULL, 0};
			return false;
		}
		it->budget--;
		it->stopped_at = (struct store_bytes){k->bytes, k->len};
		it->leaf = pos.leaf;
		it->pos = pos.i;
		const struct version *v = key_at(k, it->rev);
		if (v != NULL && !is_tombstone(v)) {
			version_kv(v, ret_kv);
			return true;
		}
	}
	return false;
}
