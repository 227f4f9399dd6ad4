/* SPDX-License-Identifier: PostgreSQL */
/*
 * See tracker.h.
 *
 * Invariants:
 *   1. in the list: end_lsn rises; the open transaction (end_lsn 0) is the last one
 *   2. every listed transaction has references left
 *   3. acked <= end of everything done that has nothing undone before it
 *
 * On crash: nothing is kept. The slot is behind everything that was not acknowledged, so it all
 * comes again.
 */
#include "config.h"

#include "common/base/list.h"
#include "common/base/mem.h"

#include "brokerd/tracker.h"

#define TRACKER_MAGIC 0x7c0de005
#define TX_MAGIC 0x7c0de006

MEM_TYPE(mem_tracker, "tracker");
MEM_TYPE(mem_tx, "tracked transaction");

struct tx {
	uint32_t magic;
	struct track track;
	struct tracker *owner; /* NULL: the tracker is gone, or it was abandoned */
	struct list node;      /* in owner->waiting */
	uint64_t end_lsn;      /* own end, or of a done one folded into it; 0: still open */
	uint64_t own_lsn;      /* own end */
};

struct tracker {
	uint32_t magic;
	struct list waiting; /* owns its tx until their last reference goes */
	struct tx *open;     /* last of waiting, or NULL */
	size_t n_waiting;
	uint64_t acked;
	void (*ack)(uint64_t lsn, void *arg);
	void *arg;
};

static void tracker_ack(struct tracker *t, uint64_t lsn)
{
	if (lsn <= t->acked)
		return;
	t->acked = lsn;
	t->ack(lsn, t->arg);
}

static void tx_unlist(struct tx *x)
{
	list_remove(&x->node);
	x->owner->n_waiting--;
	if (x->owner->open == x)
		x->owner->open = NULL;
	x->owner = NULL;
}

static void on_track_done(struct track *track)
{
	struct tx *x = list_entry(track, struct tx, track);
	struct tracker *t = x->owner;

	OBJ_CHECK(x, TX_MAGIC);
	if (t != NULL) {
		ASSERT(x->end_lsn != 0);
		uint64_t end_lsn = x->end_lsn;
		struct tx *before = list_entry(x->node.prev, struct tx, node);
		bool first = x->node.prev == &t->waiting;

		tx_unlist(x);
		if (first)
			tracker_ack(t, end_lsn);
		else
			before->end_lsn = end_lsn;
	}
	x->magic = 0;
	mem_free(&mem_tx, x);
}

struct tracker *tracker_new(void (*ack)(uint64_t lsn, void *arg), void *arg)
{
	struct tracker *t = mem_new(&mem_tracker, sizeof(*t));

	t->magic = TRACKER_MAGIC;
	list_init(&t->waiting);
	t->ack = ack;
	t->arg = arg;
	return t;
}

void tracker_abandon(struct tracker *t)
{
	struct tx *x = t->open;

	OBJ_CHECK(t, TRACKER_MAGIC);
	if (x == NULL)
		return;
	tx_unlist(x);
	track_unref(&x->track);
}

void tracker_free(struct tracker **tp)
{
	struct tracker *t = *tp;

	if (t == NULL)
		return;
	tracker_abandon(t);
	while (!list_empty(&t->waiting))
		tx_unlist(list_first(&t->waiting, struct tx, node));
	t->magic = 0;
	mem_free(&mem_tracker, t);
	*tp = NULL;
}

struct track *tracker_hold(struct tracker *t)
{
	OBJ_CHECK(t, TRACKER_MAGIC);
	if (t->open == NULL) {
		struct tx *x = mem_new(&mem_tx, sizeof(*x));

		x->magic = TX_MAGIC;
		x->track = (struct track){.refs = 1, .on_done = on_track_done};
		x->owner = t;
		list_push_back(&t->waiting, &x->node);
		t->n_waiting++;
		t->open = x;
	}
	return &t->open->track;
}

void tracker_commit(struct tracker *t, uint64_t end_lsn)
{
	struct tx *x = t->open;

	OBJ_CHECK(t, TRACKER_MAGIC);
	ASSERT(end_lsn != 0);
	if (x != NULL) {
		x->end_lsn = x->own_lsn = end_lsn;
		t->open = NULL;
		track_unref(&x->track);
	} else if (list_empty(&t->waiting)) {
		tracker_ack(t, end_lsn);
	} else {
		list_last(&t->waiting, struct tx, node)->end_lsn = end_lsn;
	}
}

void tracker_cut(struct tracker *t, uint64_t lsn)
{
	OBJ_CHECK(t, TRACKER_MAGIC);
	ASSERT(t->open == NULL);
	while (!list_empty(&t->waiting)) {
		struct tx *x = list_last(&t->waiting, struct tx, node);
		if (x->own_lsn <= lsn) {
			if (x->end_lsn > lsn)
				x->end_lsn = lsn;
			break;
		}
		tx_unlist(x); /* its track goes with its last reference */
	}
	if (t->acked > lsn)
		t->acked = lsn;
}

bool tracker_is_open(const struct tracker *t)
{
	return t->open != NULL;
}

size_t tracker_pending(const struct tracker *t)
{
	return t->n_waiting;
}

uint64_t tracker_acked(const struct tracker *t)
{
	return t->acked;
}
