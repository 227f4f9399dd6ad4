/* SPDX-License-Identifier: PostgreSQL */
/*
 * Leases of dead nodes: each gets a new owner, and its full time to live with it.
 *
 *   every LEASE_CHECK_MS, for each other node that owns leases:
 *   engine_claim --alive, not known--> next time
 *        '--dead: the node's lock is ours--> MOVEs, ADOPT_LEASES in an entry, one entry at a time
 *                                            '--all moved, or an error--> engine_claim_end
 *
 * Two nodes cannot adopt from a third at a time, for one of them has its lock; if they did, a lease
 * would be moved twice and live longer, no more.
 */
#include "config.h"

#include <stdlib.h>
#include <string.h>

#include "common/base/mem.h"
#include "watchd/lease_int.h"

#define ADOPT_LEASES 500

MEM_TYPE(type_adoption, "lease adoption");

struct adoption {
	struct engine_op op;
	struct list link;
	struct lessor *lessor;
	struct lease_node *node;
	size_t n, n_moved;
	int64_t ids[ADOPT_LEASES];
};

static void free_adoption(struct adoption *a)
{
	list_remove(&a->link);
	mem_free(&type_adoption, a);
}

static void end_adoption(struct adoption *a)
{
	engine_claim_end(a->lessor->e, a->node->name);
	a->node->claiming = false;
	lessor_check_later(a->lessor);
	free_adoption(a);
}

static enum etcd_error eval(struct engine_op *op, struct store *s)
{
	struct adoption *a = list_entry(op, struct adoption, op);
	a->n_moved = 0;
	for (size_t i = 0; i < a->n; i++) {
		const struct store_lease *lease = store_lease_find(s, a->ids[i], true);
		if (lease == NULL || strcmp(lease->head_owner, a->node->name) != 0)
			continue;
		store_move(s, a->ids[i]);
		a->n_moved++;
	}
	return ETCD_OK;
}

static void on_moved(struct engine_op *op, enum etcd_error err);

/* false: there is nothing left. */
static bool adopt_some(struct adoption *a)
{
	a->n = 0;
	list_for_each (it, &a->node->leases) {
		if (a->n == ADOPT_LEASES)
			break;
		a->ids[a->n++] = list_entry(it, struct lease_entry, link)->id;
	}
	if (a->n == 0)
		return false;
	a->op = (struct engine_op){.eval = eval, .done = on_moved};
	engine_submit(a->lessor->e, &a->op);
	return true;
}

static void on_moved(struct engine_op *op, enum etcd_error err)
{
	struct adoption *a = list_entry(op, struct adoption, op);
	OBJ_CHECK(a->lessor, LESSOR_MAGIC);
	if (err == ETCD_OK)
		a->lessor->counts.adopted += a->n_moved;
	if (err != ETCD_OK || a->n_moved == 0 || !adopt_some(a))
		end_adoption(a);
}

static void on_claim(const char *name, bool alive, enum etcd_error err, void *arg)
{
	struct lease_node *n = arg;
	struct lessor *l = n->lessor;
	OBJ_CHECK(l, LESSOR_MAGIC);
	(void)name;
	if (err != ETCD_OK || alive) {
		n->claiming = false;
		lessor_check_later(l);
		return;
	}
	struct adoption *a = mem_new(&type_adoption, sizeof(*a));
	a->lessor = l;
	a->node = n;
	list_push_back(&l->adoptions, &a->link);
	if (!adopt_some(a))
		end_adoption(a);
}

void lessor_on_check(void *arg)
{
	struct lessor *l;
	OBJ_CAST(l, arg, LESSOR_MAGIC);
	if (l->frozen)
		return;
	list_for_each (it, &l->nodes) {
		struct lease_node *n = list_entry(it, struct lease_node, link);
		if (n == l->self || n->n_leases == 0 || n->claiming)
			continue;
		n->claiming = true;
		engine_claim(l->e, n->name, on_claim, n);
	}
}

void lessor_check_later(struct lessor *l)
{
	if (l->check.active || l->frozen)
		return;
	list_for_each (it, &l->nodes) {
		const struct lease_node *n = list_entry(it, struct lease_node, link);
		if (n == l->self || n->n_leases == 0 || n->claiming)
			continue;
		ev_timer_start(&l->check,
			LEASE_CHECK_MS * 3 / 4 + (uint64_t)rand() % (LEASE_CHECK_MS / 2));
		return;
	}
}

void lessor_adopt_stop(struct lessor *l)
{
	while (!list_empty(&l->adoptions)) {
		struct adoption *a = list_first(&l->adoptions, struct adoption, link);
		engine_cancel(l->e, &a->op);
		engine_claim_end(l->e, a->node->name);
		free_adoption(a);
	}
}
