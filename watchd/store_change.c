/* SPDX-License-Identifier: PostgreSQL */
/*
 * Changes at the head, and their undoing. Evaluation (store_eval.c) and the log (store_apply.c)
 * come here with the same pending row, so that both leave the same state behind.
 *
 * Undoing runs strictly backwards: what a row found when it was made is there again when it is
 * undone.
 */
#include "config.h"

#include "common/base/mem.h"
#include "watchd/store_int.h"

static void count_live(struct store *s, const struct version *before, const struct version *after)
{
	s->n_live -= before != NULL && !is_tombstone(before);
	s->n_live += after != NULL && !is_tombstone(after);
}

void change_put(struct store *s, struct pending *p, struct version *v)
{
	struct keyindex_key *k = v->key;
	const struct version *old = key_newest(k);
	p->kind = is_tombstone(v) ? STORE_DELETE : STORE_PUT;
	p->u.kv.v = v;
	if (k->slot != 0)
		p->u.kv.was = lease_detach(s, k, old->lease);
	/* Only a damaged log puts a key of a lease that was revoked; that one may be freed first.
	 */
	if (p->u.kv.was != NULL && p->u.kv.was->revoked && p->kind == STORE_PUT)
		p->u.kv.was = NULL;
	count_live(s, old, v);
	key_push(s, k, v);
	evlog_push(s, v);
	struct lease *l = v->lease != 0 ? lease_at_head(s, v->lease) : NULL;
	if (l != NULL)
		lease_attach(s, l, k);
	s->log_bytes += pending_row_bytes(p);
}

static void undo_put(struct store *s, const struct pending *p)
{
	struct version *v = p->u.kv.v;
	struct keyindex_key *k = v->key;
	ASSERT(key_newest(k) == v);
	if (k->slot != 0)
		(void)lease_detach(s, k, v->lease);
	key_pop(s, k);
	evlog_pop(s);
	const struct version *old = key_newest(k);
	count_live(s, v, old);
	if (p->u.kv.was != NULL)
		lease_attach(s, p->u.kv.was, k);
	version_free(s, v);
	if (old == NULL)
		keyindex_remove(s->keys, k);
}

void change_grant(struct store *s, struct pending *p, int64_t id, int64_t ttl_s)
{
	p->kind = STORE_GRANT;
	p->arg = ttl_s;
	p->u.lease.id = id;
	p->u.lease.lease = lease_add(s, id, ttl_s, p->node);
	s->log_bytes += pending_row_bytes(p);
}

static void undo_grant(struct store *s, const struct pending *p)
{
	lease_drop(s, p->u.lease.lease);
}

void change_revoke(struct store *s, struct pending *p, int64_t id)
{
	struct lease *l = lease_at_head(s, id);
	p->kind = STORE_REVOKE;
	p->u.lease.id = id;
	p->u.lease.lease = l;
	if (l != NULL)
		l->revoked = true;
	s->log_bytes += pending_row_bytes(p);
}

static void undo_revoke(struct store *s, const struct pending *p)
{
	(void)s;
	if (p->u.lease.lease != NULL)
		p->u.lease.lease->revoked = false;
}

void change_move(struct store *s, struct pending *p, int64_t id)
{
	struct lease *l = lease_at_head(s, id);
	p->kind = STORE_MOVE;
	p->u.lease.id = id;
	p->u.lease.lease = l;
	if (l != NULL) {
		p->u.lease.was_owner = l->pub.head_owner;
		l->pub.head_owner = p->node;
	}
	s->log_bytes += pending_row_bytes(p);
}

static void undo_move(struct store *s, const struct pending *p)
{
	(void)s;
	if (p->u.lease.lease != NULL)
		p->u.lease.lease->pub.head_owner = p->u.lease.was_owner;
}

void change_compact(struct store *s, struct pending *p, int64_t rev)
{
	p->kind = STORE_COMPACT;
	p->arg = rev;
	p->u.was = s->head_compact_rev;
	s->head_compact_rev = rev;
	s->log_bytes += pending_row_bytes(p);
}

static void undo_compact(struct store *s, const struct pending *p)
{
	s->head_compact_rev = p->u.was;
}

void change_alarm(struct store *s, struct pending *p, const char *node, int64_t type, bool on)
{
	struct alarm *a = alarm_get(s, node, type);
	p->kind = on ? STORE_ALARM : STORE_DISARM;
	p->arg = type;
	p->u.alarm.node = node;
	p->u.alarm.was = a->head;
	a->head = on;
	s->log_bytes += pending_row_bytes(p);
}

static void undo_alarm(struct store *s, const struct pending *p)
{
	alarm_get(s, p->u.alarm.node, p->arg)->head = p->u.alarm.was;
	alarms_sweep(s);
}

void change_era(struct store *s, struct pending *p, uint64_t cluster_id)
{
	p->kind = STORE_ERA;
	p->arg = (int64_t)cluster_id;
	p->u.was = (int64_t)s->head_cluster_id;
	s->head_cluster_id = cluster_id;
	s->log_bytes += pending_row_bytes(p);
}

static void undo_era(struct store *s, const struct pending *p)
{
	s->head_cluster_id = (uint64_t)p->u.was;
}

void change_undo(struct store *s, const struct pending *p)
{
	static void (*const undo[STORE_KIND_COUNT])(struct store *, const struct pending *) = {
		[STORE_PUT] = undo_put,
		[STORE_DELETE] = undo_put,
		[STORE_GRANT] = undo_grant,
		[STORE_REVOKE] = undo_revoke,
		[STORE_MOVE] = undo_move,
		[STORE_COMPACT] = undo_compact,
		[STORE_ALARM] = undo_alarm,
		[STORE_DISARM] = undo_alarm,
		[STORE_ERA] = undo_era,
	};
	s->log_bytes -= pending_row_bytes(p);
	undo[p->kind](s, p);
}
