/* SPDX-License-Identifier: PostgreSQL */
/*
 * Leases and the keys attached to them; alarms.
 *
 * The table may hold two leases of one id: one that is visible and whose revocation is in flight,
 * and one that was granted after it. At most one of an id is visible, at most one is not revoked.
 */
#include "config.h"

#include <stdlib.h>

#include "common/base/mem.h"
#include "watchd/store_int.h"

#define BUCKETS_FIRST 64

MEM_TYPE(mem_lease, "store_lease");

/* ---- the table ---- */

static struct lease **bucket_of(const struct lease_table *t, int64_t id)
{
	uint64_t h = (uint64_t)id * UINT64_C(0x9e3779b97f4a7c15);
	return &t->bucket[(h >> 32) & (t->n_buckets - 1)];
}

static void table_grow(struct store *s)
{
	struct lease_table *t = &s->leases, old = *t;
	t->n_buckets = old.n_buckets == 0 ? BUCKETS_FIRST : old.n_buckets * 2;
	t->bucket = xcalloc(t->n_buckets, sizeof(t->bucket[0]));
	s->memory_bytes += (t->n_buckets - old.n_buckets) * sizeof(t->bucket[0]);
	for (size_t i = 0; i < old.n_buckets; i++) {
		for (struct lease *l = old.bucket[i], *next; l != NULL; l = next) {
			struct lease **b = bucket_of(t, l->pub.id);
			next = l->next;
			l->next = *b;
			*b = l;
		}
	}
	free(old.bucket);
}

static struct lease *lease_visible(const struct store *s, int64_t id)
{
	if (s->leases.n == 0)
		return NULL;
	struct lease *l = *bucket_of(&s->leases, id);
	while (l != NULL && !(l->pub.id == id && l->visible))
		l = l->next;
	return l;
}

struct lease *lease_at_head(const struct store *s, int64_t id)
{
	if (s->leases.n == 0)
		return NULL;
	struct lease *l = *bucket_of(&s->leases, id);
	while (l != NULL && !(l->pub.id == id && !l->revoked))
		l = l->next;
	return l;
}

struct lease *lease_add(struct store *s, int64_t id, int64_t ttl_s, const char *owner)
{
	if (s->leases.n >= s->leases.n_buckets)
		table_grow(s);
	struct lease *l = mem_new(&mem_lease, sizeof(*l));
	s->memory_bytes += sizeof(*l);
	l->pub =
		(struct store_lease){.id = id, .ttl_s = ttl_s, .owner = owner, .head_owner = owner};
	struct lease **b = bucket_of(&s->leases, id);
	l->next = *b;
	*b = l;
	s->leases.n++;
	return l;
}

static void lease_free(struct store *s, struct lease *l)
{
	s->memory_bytes -= sizeof(*l) + l->keys_cap * sizeof(l->keys[0]);
	free(l->keys);
	mem_free(&mem_lease, l);
	s->leases.n--;
}

void lease_drop(struct store *s, struct lease *l)
{
	struct lease **at = bucket_of(&s->leases, l->pub.id);
	while (*at != l)
		at = &(*at)->next;
	*at = l->next;
	for (size_t i = 0; i < l->pub.n_keys; i++)
		l->keys[i]->slot = 0;
	lease_free(s, l);
}

void leases_free(struct store *s)
{
	struct lease_table *t = &s->leases;
	for (size_t i = 0; i < t->n_buckets; i++) {
		for (struct lease *l = t->bucket[i], *next; l != NULL; l = next) {
			next = l->next;
			lease_free(s, l);
		}
	}
	s->memory_bytes -= t->n_buckets * sizeof(t->bucket[0]);
	free(t->bucket);
	*t = (struct lease_table){.bucket = NULL};
}

/* ---- attached keys ---- */

static void keys_resize(struct store *s, struct lease *l, size_t cap)
{
	l->keys = xrealloc(l->keys, cap * sizeof(l->keys[0]));
	s->memory_bytes += cap * sizeof(l->keys[0]);
	s->memory_bytes -= l->keys_cap * sizeof(l->keys[0]);
	l->keys_cap = cap;
}

void lease_attach(struct store *s, struct lease *l, struct keyindex_key *k)
{
	ASSERT(k->slot == 0 && l->pub.n_keys < UINT32_MAX - 1);
	if (l->pub.n_keys == l->keys_cap)
		keys_resize(s, l, l->keys_cap == 0 ? 1 : l->keys_cap * 2);
	l->keys[l->pub.n_keys++] = k;
	k->slot = (uint32_t)l->pub.n_keys;
}

struct lease *lease_detach(struct store *s, struct keyindex_key *k, int64_t id)
{
	size_t i = k->slot - 1;
	struct lease *l = *bucket_of(&s->leases, id);
	while (l != NULL && !(l->pub.id == id && i < l->pub.n_keys && l->keys[i] == k))
		l = l->next;
	ASSERT(l != NULL);
	k->slot = 0;
	struct keyindex_key *moved = l->keys[--l->pub.n_keys];
	if (moved != k) {
		l->keys[i] = moved;
		moved->slot = (uint32_t)i + 1;
	}
	if (l->keys_cap > 8 && l->pub.n_keys < l->keys_cap / 4)
		keys_resize(s, l, l->keys_cap / 2);
	return l;
}

static int compare_keys(const void *a, const void *b)
{
	const struct keyindex_key *x = *(struct keyindex_key *const *)a;
	const struct keyindex_key *y = *(struct keyindex_key *const *)b;
	return keyindex_compare(x->bytes, x->len, y->bytes, y->len);
}

struct keyindex_key **lease_sorted_keys(const struct lease *l)
{
	if (l->pub.n_keys == 0)
		return NULL;
	struct keyindex_key **keys = xmemdup(l->keys, l->pub.n_keys * sizeof(l->keys[0]));
	qsort(keys, l->pub.n_keys, sizeof(keys[0]), compare_keys);
	return keys;
}

/* ---- for others ---- */

struct store_lease *store_lease_find(struct store *s, int64_t id, bool at_head)
{
	struct lease *l = at_head ? lease_at_head(s, id) : lease_visible(s, id);
	return l != NULL ? &l->pub : NULL;
}

void store_lease_each(struct store *s, bool (*fn)(struct store_lease *l, void *arg), void *arg)
{
	for (size_t i = 0; i < s->leases.n_buckets; i++)
		for (struct lease *l = s->leases.bucket[i]; l != NULL; l = l->next)
			if (l->visible && !fn(&l->pub, arg))
				return;
}

void store_lease_keys(const struct store *s, const struct store_lease *l,
	bool (*fn)(struct store_bytes key, void *arg), void *arg)
{
	(void)s;
	const struct lease *lease = (const struct lease *)l; /* its first member */
	struct keyindex_key **keys = lease_sorted_keys(lease);
	for (size_t i = 0; i < l->n_keys; i++)
		if (!fn((struct store_bytes){keys[i]->bytes, keys[i]->len}, arg))
			break;
	free(keys);
}

/* ---- alarms ---- */

struct alarm *alarm_get(struct store *s, const char *node, int64_t type)
{
	for (size_t i = 0; i < s->n_alarms; i++)
		if (s->alarms[i].node == node && s->alarms[i].type == type)
			return &s->alarms[i];
	if (s->n_alarms == s->alarms_cap) {
		s->alarms_cap = s->alarms_cap == 0 ? 4 : s->alarms_cap * 2;
		s->alarms = xrealloc(s->alarms, s->alarms_cap * sizeof(s->alarms[0]));
	}
	struct alarm *a = &s->alarms[s->n_alarms++];
	*a = (struct alarm){.node = node, .type = type};
	return a;
}

void alarms_sweep(struct store *s)
{
	size_t n = 0;
	for (size_t i = 0; i < s->n_alarms; i++)
		if (s->alarms[i].head || s->alarms[i].visible)
			s->alarms[n++] = s->alarms[i];
	s->n_alarms = n;
}

bool store_has_alarm(const struct store *s, int64_t type)
{
	for (size_t i = 0; i < s->n_alarms; i++)
		if (s->alarms[i].visible && s->alarms[i].type == type)
			return true;
	return false;
}

void store_alarm_each(
	const struct store *s, void (*fn)(const char *node, int64_t type, void *arg), void *arg)
{
	for (size_t i = 0; i < s->n_alarms; i++)
		if (s->alarms[i].visible)
			fn(s->alarms[i].node, s->alarms[i].type, arg);
}
