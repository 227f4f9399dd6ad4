/* SPDX-License-Identifier: PostgreSQL */
/*
 * The log's side: rows as the log has them are judged, then made at the head. While loading, rows
 * may be missing that compaction removed; the ones that are there must still be in order.
 *
 * An entry that comes row by row: `applying` from its first row to its last; entry_subs is the sub
 * that must come next (while loading: the least that may).
 */
#include "config.h"

#include <stdlib.h>
#include <string.h>

#include "common/base/err.h"
#include "common/base/mem.h"
#include "watchd/store_int.h"

#define NODE_NAME_MAX 255
#define BYTES_MAX (UINT32_MAX / 2) /* of a key, of a value */

/* ---- order ---- */

static bool is_kv(const struct store_row *row)
{
	return row->kind == STORE_PUT || row->kind == STORE_DELETE;
}

static bool follows_loading(const struct store *s, const struct store_row *row)
{
	if (row->seq != s->head_seq)
		return row->seq > s->head_seq && row->sub >= 0 && row->rev >= s->head_rev;
	return row->sub >= s->entry_subs && row->rev == s->head_rev;
}

/* All rows of an entry have one revision, a new one exactly if a key changes. */
static bool follows(const struct store *s, const struct store_row *row)
{
	int64_t base = s->applying ? s->entry_base_rev : s->head_rev;
	bool has_kv = is_kv(row) || (s->applying && s->entry_has_kv);
	if (row->seq != s->head_seq + 1 || row->sub != (s->applying ? s->entry_subs : 0))
		return false;
	if (s->applying ? row->rev != s->head_rev : row->rev != base && row->rev != base + 1)
		return false;
	if (has_kv)
		return row->rev == base + 1;
	return !row->last || row->rev == base;
}

static void open_entry(struct store *s, const struct store_row *row, bool loading)
{
	if (!s->applying && !loading) {
		s->entry_base_rev = s->head_rev;
		s->entry_has_kv = false;
	}
	s->entry_has_kv |= is_kv(row);
	s->entry_subs = row->sub + 1;
	s->head_rev = row->rev;
	s->applying = !loading && !row->last;
	if (!s->applying)
		s->head_seq = row->seq;
}

/* ---- judging ---- */

static const struct version *newest_of(const struct store *s, struct store_bytes key)
{
	const struct keyindex_key *k = keyindex_find(s->keys, key.data, key.len);
	return k != NULL ? key_newest(k) : NULL;
}

static bool check_put(const struct store *s, const struct store_row *row, bool loading)
{
	if (row->key.len == 0 || row->key.len > BYTES_MAX || row->value.len > BYTES_MAX)
		return false;
	if (row->version < 1 || row->create_rev < 1 || row->create_rev > row->rev)
		return false;
	if (loading)
		return true;
	if (row->lease != 0 && lease_at_head(s, row->lease) == NULL)
		return false;
	const struct version *old = newest_of(s, row->key);
	if (old == NULL || is_tombstone(old))
		return row->version == 1 && row->create_rev == row->rev;
	return row->version == old->version + 1 && row->create_rev == old->create_rev;
}

static bool check_delete(const struct store *s, const struct store_row *row, bool loading)
{
	if (row->key.len == 0 || row->key.len > BYTES_MAX || row->value.len != 0)
		return false;
	const struct version *old = newest_of(s, row->key);
	return loading || (old != NULL && !is_tombstone(old));
}

static bool check_grant(const struct store *s, const struct store_row *row, bool loading)
{
	(void)loading;
	return row->lease != 0 && lease_at_head(s, row->lease) == NULL;
}

static bool check_lease(const struct store *s, const struct store_row *row, bool loading)
{
	return row->lease != 0 && (loading || lease_at_head(s, row->lease) != NULL);
}

static bool check_revoke(const struct store *s, const struct store_row *row, bool loading)
{
	return check_lease(s, row, loading) && (loading || row->sub == 0);
}

static bool check_compact(const struct store *s, const struct store_row *row, bool loading)
{
	(void)loading;
	return row->arg > s->head_compact_rev && row->arg <= row->rev;
}

static bool check_any(const struct store *s, const struct store_row *row, bool loading)
{
	(void)s;
	(void)row;
	(void)loading;
	return true;
}

static bool check_disarm(const struct store *s, const struct store_row *row, bool loading)
{
	(void)s;
	(void)loading;
	return row->key.len > 0 && row->key.len <= NODE_NAME_MAX &&
	       memchr(row->key.data, 0, row->key.len) == NULL;
}

/* ---- making ---- */

static void make_version(struct store *s, const struct store_row *row, struct pending *p)
{
	bool tombstone = row->kind == STORE_DELETE;
	struct keyindex_key *k = keyindex_insert(s->keys, row->key.data, row->key.len);
	struct version *v = version_new(s, k, row->value, tombstone);
	v->mod_rev = row->rev;
	v->seq = row->seq;
	v->sub = row->sub;
	if (!tombstone) {
		v->create_rev = row->create_rev;
		v->version = row->version;
		v->lease = row->lease;
	}
	change_put(s, p, v);
}

static void make_grant(struct store *s, const struct store_row *row, struct pending *p)
{
	change_grant(s, p, row->lease, row->arg);
}

static void make_revoke(struct store *s, const struct store_row *row, struct pending *p)
{
	change_revoke(s, p, row->lease);
}

static void make_move(struct store *s, const struct store_row *row, struct pending *p)
{
	change_move(s, p, row->lease);
}

static void make_compact(struct store *s, const struct store_row *row, struct pending *p)
{
	change_compact(s, p, row->arg);
}

static void make_alarm(struct store *s, const struct store_row *row, struct pending *p)
{
	change_alarm(s, p, p->node, row->arg, true);
}

static void make_disarm(struct store *s, const struct store_row *row, struct pending *p)
{
	char *node = xstrndup(row->key.data, row->key.len);
	change_alarm(s, p, intern(s, node), row->arg, false);
	free(node);
}

static void make_era(struct store *s, const struct store_row *row, struct pending *p)
{
	change_era(s, p, (uint64_t)row->arg);
}

static const struct {
	bool (*check)(const struct store *s, const struct store_row *row, bool loading);
	void (*make)(struct store *s, const struct store_row *row, struct pending *p);
} kinds[STORE_KIND_COUNT] = {
	[STORE_PUT] = {check_put, make_version},
	[STORE_DELETE] = {check_delete, make_version},
	[STORE_GRANT] = {check_grant, make_grant},
	[STORE_REVOKE] = {check_revoke, make_revoke},
	[STORE_MOVE] = {check_lease, make_move},
	[STORE_COMPACT] = {check_compact, make_compact},
	[STORE_ALARM] = {check_any, make_alarm},
	[STORE_DISARM] = {check_disarm, make_disarm},
	[STORE_ERA] = {check_any, make_era},
};

int store_apply(struct store *s, const struct store_row *row, bool loading)
{
	ASSERT(!s->evaluating && !(loading && s->applying));
	if (row->kind < STORE_PUT || row->kind >= STORE_KIND_COUNT)
		return -ERR_MALFORMED;
	if (loading ? !follows_loading(s, row) : !follows(s, row))
		return -ERR_MALFORMED;
	if (!kinds[row->kind].check(s, row, loading))
		return -ERR_MALFORMED;
	const char *node = intern(s, row->node);
	struct pending *p = pending_push(s);
	p->seq = row->seq;
	p->sub = row->sub;
	p->rev = row->rev;
	p->last = row->last;
	p->loading = loading;
	p->node = node;
	kinds[row->kind].make(s, row, p);
	open_entry(s, row, loading);
	return 0;
}

/* ---- undoing ---- */

void store_rollback(struct store *s, int64_t seq)
{
	ASSERT(!s->evaluating && seq >= s->visible_seq);
	const struct pending *p;
	while (s->pending.n > 0 && (p = pending_at(s, s->pending.n - 1))->seq > seq) {
		change_undo(s, p);
		pending_pop_back(s);
	}
	p = s->pending.n > 0 ? pending_at(s, s->pending.n - 1) : NULL;
	s->head_seq = p != NULL ? p->seq : s->visible_seq;
	s->head_rev = p != NULL ? p->rev : s->visible_rev;
	s->applying = false;
}
