/* SPDX-License-Identifier: PostgreSQL */
/*
 * A checksum of what the store holds, in steps. It covers what a store that is fully trimmed at the
 * compact revision would hold, so that it does not depend on how far trimming is.
 */
#include "config.h"

#include <endian.h>
#include <stdlib.h>

#include "common/base/mem.h"
#include "common/ring/ring_layout.h" /* CRC-32C */
#include "watchd/store_int.h"

static uint32_t add_version(uint32_t crc, const struct version *v)
{
	const uint64_t head[] = {htobe64(v->key->len), htobe64(v->value_len),
		htobe64((uint64_t)v->mod_rev), htobe64((uint64_t)v->sub),
		htobe64((uint64_t)v->create_rev), htobe64((uint64_t)v->version),
		htobe64((uint64_t)v->lease)};
	crc = ring_crc32c(crc, head, sizeof(head));
	crc = ring_crc32c(crc, v->key->bytes, v->key->len);
	return ring_crc32c(crc, v->value, v->value_len);
}

/* The first version of a key that compaction at compact_rev leaves. */
static size_t first_kept(const struct keyindex_key *k, int64_t compact_rev)
{
	size_t n = key_versions_until(k, compact_rev, INT32_MAX);
	if (n == 0)
		return 0;
	const struct version *v = key_version(k, n - 1);
	return is_tombstone(v) && v->mod_rev < compact_rev ? n : n - 1;
}

/* What a step ended at. */
static void remember(struct store_hash *h, const struct version *v)
{
	free((void *)h->next.data);
	h->next.len = v->key->len;
	h->next.data = xmemdup(v->key->bytes, v->key->len);
	h->after_rev = v->mod_rev;
	h->after_sub = v->sub;
}

static bool is_next(const struct store_hash *h, const struct keyindex_key *k)
{
	return h->next.data != NULL &&
	       keyindex_compare(k->bytes, k->len, h->next.data, h->next.len) == 0;
}

static void begin(struct store *s, struct store_hash *h)
{
	ASSERT(h->rev <= s->visible_rev);
	h->begun = true;
	h->compact_rev = s->compact_rev;
	store_pin(s, &h->pin, h->compact_rev);
}

bool store_hash_step(struct store *s, struct store_hash *h, size_t budget)
{
	if (!h->begun)
		begin(s, h);
	if (h->pin.lost)
		return false;
	struct keyindex_pos pos =
		keyindex_seek(s->keys, h->next.len > 0 ? h->next.data : "", h->next.len);
	for (struct keyindex_key *k; (k = keyindex_next(&pos)) != NULL;) {
		size_t n = key_versions_until(k, h->rev, INT32_MAX);
		size_t i = is_next(h, k) ? key_versions_until(k, h->after_rev, h->after_sub)
					 : first_kept(k, h->compact_rev);
		for (; i < n; i++) {
			h->crc = add_version(h->crc, key_version(k, i));
			if (budget > 1) {
				budget--;
				continue;
			}
			remember(h, key_version(k, i));
			return true;
		}
	}
	store_unpin(&h->pin);
	return false;
}

void store_hash_end(struct store_hash *h)
{
	store_unpin(&h->pin);
	free((void *)h->next.data);
	h->next = (struct store_bytes){NULL, 0};
}
