/* SPDX-License-Identifier: PostgreSQL */
/*
 * Evaluation: changes that are made here first, at the head, and then offered to the log.
 */
#include "config.h"

#include <stdlib.h>
#include <string.h>

#include "common/base/mem.h"
#include "watchd/store_int.h"

void store_begin(struct store *s)
{
	ASSERT(!s->evaluating && !s->applying);
	s->evaluating = true;
	s->entry_has_kv = false;
	s->entry_subs = 0;
}

static struct pending *row_new(struct store *s)
{
	ASSERT(s->evaluating);
	struct pending *p = pending_push(s);
	p->seq = s->head_seq + 1;
	p->sub = s->entry_subs++;
	p->node = s->node;
	return p;
}

/* The first key that an entry changes makes its revision. */
static int64_t entry_rev(struct store *s)
{
	if (!s->entry_has_kv)
		s->head_rev++;
	s->entry_has_kv = true;
	return s->head_rev;
}

static void finish_version(struct store *s, struct version *v)
{
	struct pending *p = row_new(s);
	v->mod_rev = entry_rev(s);
	v->seq = p->seq;
	v->sub = p->sub;
	change_put(s, p, v);
}

bool store_put(struct store *s, struct store_bytes key, struct store_bytes value, int64_t lease,
	struct store_kv *ret_prev)
{
	ASSERT(key.len > 0 && (lease == 0 || lease_at_head(s, lease) != NULL));
	struct keyindex_key *k = keyindex_insert(s->keys, key.data, key.len);
	const struct version *old = key_newest(k);
	struct version *v = version_new(s, k, value, false);
	bool lives = old != NULL && !is_tombstone(old);
	if (lives && ret_prev != NULL)
		version_kv(old, ret_prev);
	v->create_rev = lives ? old->create_rev : entry_rev(s);
	v->version = lives ? old->version + 1 : 1;
	v->lease = lease;
	finish_version(s, v);
	return lives;
}

static void delete_key(struct store *s, struct keyindex_key *k)
{
	ASSERT(k != NULL && key_newest(k) != NULL && !is_tombstone(key_newest(k)));
	finish_version(s, version_new(s, k, (struct store_bytes){NULL, 0}, true));
}

void store_delete(struct store *s, struct store_bytes key)
{
	delete_key(s, keyindex_find(s->keys, key.data, key.len));
}

void store_grant(struct store *s, int64_t lease, int64_t ttl_s)
{
	ASSERT(lease != 0 && lease_at_head(s, lease) == NULL);
	change_grant(s, row_new(s), lease, ttl_s);
}

void store_revoke(struct store *s, int64_t lease)
{
	struct lease *l = lease_at_head(s, lease);
	ASSERT(l != NULL && s->entry_subs == 0);
	size_t n = l->pub.n_keys;
	struct keyindex_key **keys = lease_sorted_keys(l);
	change_revoke(s, row_new(s), lease);
	for (size_t i = 0; i < n; i++)
		delete_key(s, keys[i]);
	free(keys);
}

void store_move(struct store *s, int64_t lease)
{
	const struct lease *l = lease_at_head(s, lease);
	ASSERT(l != NULL);
	if (l->pub.head_owner != s->node)
		change_move(s, row_new(s), lease);
}

void store_compact(struct store *s, int64_t rev)
{
	ASSERT(rev > s->head_compact_rev && rev <= s->head_rev);
	change_compact(s, row_new(s), rev);
}

static void switch_alarm(struct store *s, const char *node, int64_t type, bool on)
{
	bool is_on = alarm_get(s, node, type)->head;
	if (is_on != on)
		change_alarm(s, row_new(s), node, type, on);
	else
		alarms_sweep(s);
}

void store_alarm(struct store *s, int64_t type)
{
	switch_alarm(s, s->node, type, true);
}

void store_disarm(struct store *s, const char *node, int64_t type)
{
	for (size_t i = 0; i < s->names.n; i++)
		if (strcmp(s->names.name[i], node) == 0)
			switch_alarm(s, s->names.name[i], type, false);
}

void store_era(struct store *s, uint64_t cluster_id)
{
	change_era(s, row_new(s), cluster_id);
}

size_t store_end(struct store *s)
{
	ASSERT(s->evaluating);
	size_t n = (size_t)s->entry_subs, from = s->pending.n - n;
	s->evaluating = false;
	if (n == 0)
		return 0;
	s->head_seq++;
	pending_at(s, s->pending.n - 1)->last = true;
	for (size_t i = from; i < s->pending.n; i++)
		pending_at(s, i)->rev = s->head_rev;
	for (size_t i = from; s->ops.on_row != NULL && i < s->pending.n; i++) {
		struct store_row row;
		pending_row(pending_at(s, i), &row);
		s->ops.on_row(&row, s->arg);
	}
	return n;
}

void store_abort(struct store *s)
{
	ASSERT(s->evaluating);
	for (; s->entry_subs > 0; s->entry_subs--) {
		change_undo(s, pending_at(s, s->pending.n - 1));
		pending_pop_back(s);
	}
	s->head_rev -= s->entry_has_kv;
	s->evaluating = false;
}
