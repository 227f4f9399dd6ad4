/* SPDX-License-Identifier: PostgreSQL */
/*
 * What was made at the head becomes visible, and with it what it makes needless in the log.
 */
#include "config.h"

#include "common/base/mem.h"
#include "watchd/store_int.h"

/* Whoever wrote the row that makes others needless removes them; what is found while loading,
 * everybody does. */
static bool is_mine(const struct store *s, const struct pending *p)
{
	return p->loading || p->node == s->node;
}

static struct place place_of(const struct pending *p)
{
	return (struct place){.seq = p->seq, .sub = p->sub};
}

/* Takes a row without a key, made needless by p, out of the count. */
static void release(struct store *s, const struct pending *p, struct place *row)
{
	if (row->seq == 0)
		return;
	s->log_bytes -= STORE_ROW_BYTES;
	if (is_mine(s, p))
		garbage_add(s, &s->garbage, *row);
	*row = (struct place){0, 0};
}

/* The row itself is of no use any more. */
static void release_self(struct store *s, const struct pending *p)
{
	s->log_bytes -= pending_row_bytes(p);
	if (is_mine(s, p))
		garbage_add(s, &s->garbage, place_of(p));
}

static void commit_version(struct store *s, const struct pending *p)
{
	(void)p;
	s->log.visible++;
}

static void commit_grant(struct store *s, const struct pending *p)
{
	p->u.lease.lease->visible = true;
	p->u.lease.lease->grant = place_of(p);
	s->n_leases++;
}

/* Oldest first: a REVOKE without its GRANT does nothing when it is loaded, a GRANT without its
 * REVOKE would live. */
static void commit_revoke(struct store *s, const struct pending *p)
{
	struct lease *l = p->u.lease.lease;
	if (l != NULL) {
		release(s, p, &l->grant);
		release(s, p, &l->move);
		l->visible = false;
		s->n_leases--;
	}
	release_self(s, p);
}

static void commit_move(struct store *s, const struct pending *p)
{
	struct lease *l = p->u.lease.lease;
	if (l == NULL) {
		release_self(s, p);
		return;
	}
	release(s, p, &l->move);
	l->move = place_of(p);
	l->pub.owner = p->node;
}

static void commit_compact(struct store *s, const struct pending *p)
{
	release(s, p, &s->compact_row);
	s->compact_row = place_of(p);
	s->compact_rev = p->arg;
	compactions_add(s, p->arg, is_mine(s, p));
}

static void commit_alarm(struct store *s, const struct pending *p)
{
	struct alarm *a = alarm_get(s, p->u.alarm.node, p->arg);
	release(s, p, &a->row);
	a->visible = p->kind == STORE_ALARM;
	if (a->visible)
		a->row = place_of(p);
	else
		release_self(s, p);
	alarms_sweep(s);
}

static void commit_era(struct store *s, const struct pending *p)
{
	release(s, p, &s->era_row);
	s->era_row = place_of(p);
	s->cluster_id = (uint64_t)p->arg;
}

static void (*const commits[STORE_KIND_COUNT])(struct store *, const struct pending *) = {
	[STORE_PUT] = commit_version,
	[STORE_DELETE] = commit_version,
	[STORE_GRANT] = commit_grant,
	[STORE_REVOKE] = commit_revoke,
	[STORE_MOVE] = commit_move,
	[STORE_COMPACT] = commit_compact,
	[STORE_ALARM] = commit_alarm,
	[STORE_DISARM] = commit_alarm,
	[STORE_ERA] = commit_era,
};

static void tell(struct store *s, const struct pending *p)
{
	struct store_row row;
	if (s->ops.on_visible == NULL || p->kind == STORE_PUT || p->kind == STORE_DELETE)
		return;
	pending_row(p, &row);
	s->ops.on_visible(&row, s->arg);
}

void store_commit(struct store *s, int64_t seq)
{
	ASSERT(!s->evaluating && seq <= s->head_seq);
	while (s->pending.n > 0 && pending_at(s, 0)->seq <= seq) {
		const struct pending *p = pending_at(s, 0);
		commits[p->kind](s, p);
		s->visible_seq = p->seq;
		s->visible_rev = p->rev;
		tell(s, p);
		/* Whoever listens may have looked at the lease for the last time. */
		if (p->kind == STORE_REVOKE && p->u.lease.lease != NULL)
			lease_drop(s, p->u.lease.lease);
		pending_pop_front(s);
	}
}
