/* SPDX-License-Identifier: PostgreSQL */
/*
 * What is granted and revoked, who owns what, deadlines and expiry.
 *
 *   entry of ours:  in the heap --deadline--> revoking --REVOKE visible--> gone
 *                        ^-- not revoked: error, or not ours at the head --'
 *
 * See: lease_int.h.
 */
#include "config.h"

#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "common/base/mem.h"
#include "watchd/lease_int.h"

#define TOKENS_MAX (LEASE_REVOKES_PER_S / 2) /* at once, as etcd */
#define TOKEN_WAIT_MS 10
#define LOOK_MAX_MS 3600000
#define RETRY_MS 1000 /* after a revocation that failed */

MEM_TYPE(type_lessor, "lessor");
MEM_TYPE(type_entry, "lease entry");
MEM_TYPE(type_node, "lease node");
MEM_TYPE(type_revocation, "lease revocation");

struct revocation {
	struct engine_op op;
	struct list link;
	struct lessor *lessor;
	int64_t id;
};

static void on_expire(void *arg);

/* ---- grant, revoke ---- */

static int64_t random_id(void)
{
	int64_t id;
	ssize_t n = getrandom(&id, sizeof(id), 0);
	ASSERT(n == sizeof(id));
	return id & INT64_MAX;
}

enum etcd_error lease_grant(struct store *s, int64_t *id, int64_t *ttl_s)
{
	if (*ttl_s > LEASE_TTL_MAX_S)
		return ETCD_LEASE_TTL_TOO_LARGE;
	while (*id == 0)
		*id = random_id();
	if (store_lease_find(s, *id, true) != NULL)
		return ETCD_LEASE_EXISTS;
	if (*ttl_s < LEASE_TTL_MIN_S)
		*ttl_s = LEASE_TTL_MIN_S;
	store_grant(s, *id, *ttl_s);
	return ETCD_OK;
}

enum etcd_error lease_revoke(struct store *s, int64_t id)
{
	if (store_lease_find(s, id, true) == NULL)
		return ETCD_LEASE_NOT_FOUND;
	store_revoke(s, id);
	return ETCD_OK;
}

/* ---- the clock and the heap ---- */

uint64_t lessor_now(const struct lessor *l)
{
	return (l->frozen ? l->frozen_ms : ev_now_ms()) - l->stood_ms;
}

static void heap_set(struct lessor *l, size_t i, struct lease_entry *entry)
{
	l->heap[i] = entry;
	entry->heap_at = i + 1;
}

static void heap_up(struct lessor *l, size_t i)
{
	struct lease_entry *entry = l->heap[i];
	for (size_t up; i > 0; i = up) {
		up = (i - 1) / 2;
		if (l->heap[up]->deadline_ms <= entry->deadline_ms)
			break;
		heap_set(l, i, l->heap[up]);
	}
	heap_set(l, i, entry);
}

static void heap_down(struct lessor *l, size_t i)
{
	struct lease_entry *entry = l->heap[i];
	for (size_t down; (down = 2 * i + 1) < l->n_heap; i = down) {
		if (down + 1 < l->n_heap &&
			l->heap[down + 1]->deadline_ms < l->heap[down]->deadline_ms)
			down++;
		if (entry->deadline_ms <= l->heap[down]->deadline_ms)
			break;
		heap_set(l, i, l->heap[down]);
	}
	heap_set(l, i, entry);
}

static void heap_remove(struct lessor *l, struct lease_entry *entry)
{
	if (entry->heap_at == 0)
		return;
	size_t i = entry->heap_at - 1;
	struct lease_entry *last = l->heap[--l->n_heap];
	entry->heap_at = 0;
	if (last == entry)
		return;
	heap_set(l, i, last);
	heap_up(l, i);
	heap_down(l, last->heap_at - 1);
}

/* The timer is for the first deadline; one that comes too early finds nothing to do. */
static void start_timer(struct lessor *l)
{
	if (l->frozen || l->n_heap == 0)
		return;
	uint64_t now = lessor_now(l), due = l->heap[0]->deadline_ms;
	uint64_t after = due > now ? due - now : 0;
	ev_timer_start(&l->expire, after < LOOK_MAX_MS ? after : LOOK_MAX_MS);
}

static void heap_add(struct lessor *l, struct lease_entry *entry, uint64_t deadline_ms)
{
	entry->deadline_ms = deadline_ms;
	if (entry->heap_at == 0) {
		if (l->n_heap == l->cap_heap) {
			l->cap_heap = l->cap_heap == 0 ? 64 : l->cap_heap * 2;
			l->heap = xrealloc(l->heap, l->cap_heap * sizeof(l->heap[0]));
		}
		heap_set(l, l->n_heap++, entry);
		heap_up(l, entry->heap_at - 1);
	} else {
		heap_up(l, entry->heap_at - 1);
		heap_down(l, entry->heap_at - 1);
	}
	/* Later ones are found when the timer runs. */
	if (l->heap[0] == entry)
		start_timer(l);
}

void lessor_renew(struct lessor *l, struct lease_entry *entry)
{
	heap_add(l, entry, lessor_now(l) + (uint64_t)entry->ttl_s * 1000);
}

/* ---- the table ---- */

struct lease_entry *lessor_find(const struct lessor *l, int64_t id)
{
	struct lease_entry *entry;
	HASH_FIND(hh, l->by_id, &id, sizeof(id), entry);
	return entry;
}

bool lessor_is_ours(const struct lessor *l, const struct lease_entry *entry)
{
	return entry->node == l->self;
}

static struct lease_node *node_of(struct lessor *l, const char *name)
{
	list_for_each (it, &l->nodes) {
		struct lease_node *n = list_entry(it, struct lease_node, link);
		if (strcmp(n->name, name) == 0)
			return n;
	}
	size_t len = strlen(name) + 1;
	struct lease_node *n = mem_new(&type_node, sizeof(*n) + len);
	n->lessor = l;
	list_init(&n->leases);
	list_push_back(&l->nodes, &n->link);
	memcpy(n->name, name, len);
	return n;
}

static void leave_node(struct lessor *l, struct lease_entry *entry)
{
	heap_remove(l, entry);
	list_remove(&entry->link);
	entry->node->n_leases--;
	entry->revoking = false;
}

/* The owner is known, or another one from here on: the full time to live. */
static void enter_node(struct lessor *l, struct lease_entry *entry, const char *name)
{
	entry->node = node_of(l, name);
	entry->node->n_leases++;
	list_push_back(&entry->node->leases, &entry->link);
	if (lessor_is_ours(l, entry))
		lessor_renew(l, entry);
	else
		lessor_check_later(l);
}

static void add_entry(struct lessor *l, const struct store_lease *lease)
{
	struct lease_entry *entry = mem_new(&type_entry, sizeof(*entry));
	entry->id = lease->id;
	entry->ttl_s = lease->ttl_s;
	entry->seen = true;
	HASH_ADD(hh, l->by_id, id, sizeof(entry->id), entry);
	enter_node(l, entry, lease->owner);
}

static void drop_entry(struct lessor *l, struct lease_entry *entry)
{
	leave_node(l, entry);
	HASH_DEL(l->by_id, entry);
	mem_free(&type_entry, entry);
}

void lessor_row(struct lessor *l, const struct store_row *row)
{
	OBJ_CHECK(l, LESSOR_MAGIC);
	struct lease_entry *entry = lessor_find(l, row->lease);
	const struct store_lease *lease = store_lease_find(l->store, row->lease, false);
	if (row->kind == STORE_GRANT && entry == NULL && lease != NULL) {
		add_entry(l, lease);
	} else if (row->kind == STORE_MOVE && entry != NULL && lease != NULL) {
		leave_node(l, entry);
		enter_node(l, entry, lease->owner);
	} else if (row->kind == STORE_REVOKE && entry != NULL) {
		l->counts.expired += entry->revoking;
		drop_entry(l, entry);
	}
}

static bool load_one(struct store_lease *lease, void *arg)
{
	struct lessor *l = arg;
	struct lease_entry *entry = lessor_find(l, lease->id);
	if (entry != NULL)
		drop_entry(l, entry);
	add_entry(l, lease);
	return true;
}

void lessor_loaded(struct lessor *l)
{
	OBJ_CHECK(l, LESSOR_MAGIC);
	struct lease_entry *entry, *next;
	HASH_ITER (hh, l->by_id, entry, next)
		entry->seen = false;
	store_lease_each(l->store, load_one, l);
	HASH_ITER (hh, l->by_id, entry, next)
		if (!entry->seen)
			drop_entry(l, entry);
}

/* ---- expiry ---- */

/* Still the lease that ran out, and still ours? The id may be another lease's at the head. */
static enum etcd_error eval_revocation(struct engine_op *op, struct store *s)
{
	const struct revocation *r = list_entry(op, struct revocation, op);
	const struct lessor *l = r->lessor;
	const struct lease_entry *entry = lessor_find(l, r->id);
	const struct store_lease *lease = store_lease_find(s, r->id, true);
	if (entry == NULL || !entry->revoking || lease == NULL ||
		lease != store_lease_find(s, r->id, false) ||
		strcmp(lease->head_owner, l->self->name) != 0)
		return ETCD_OK;
	return lease_revoke(s, r->id);
}

static void free_revocation(struct revocation *r)
{
	list_remove(&r->link);
	mem_free(&type_revocation, r);
}

/* A lease that is there in spite of it is tried again. */
static void revocation_done(struct engine_op *op, enum etcd_error err)
{
	struct revocation *r = list_entry(op, struct revocation, op);
	struct lessor *l = r->lessor;
	OBJ_CHECK(l, LESSOR_MAGIC);
	(void)err; /* whatever it was: the lease shows it */
	struct lease_entry *entry = lessor_find(l, r->id);
	if (entry != NULL && entry->revoking) {
		entry->revoking = false;
		heap_add(l, entry, lessor_now(l) + RETRY_MS);
	}
	free_revocation(r);
}

static void revoke_expired(struct lessor *l, struct lease_entry *entry)
{
	struct revocation *r = mem_new(&type_revocation, sizeof(*r));
	heap_remove(l, entry);
	entry->revoking = true;
	r->lessor = l;
	r->id = entry->id;
	r->op.eval = eval_revocation;
	r->op.done = revocation_done;
	list_push_back(&l->revocations, &r->link);
	engine_submit(l->e, &r->op);
}

static void refill_tokens(struct lessor *l)
{
	uint64_t now = ev_now_ms();
	uint64_t more = (now - l->tokens_ms) * LEASE_REVOKES_PER_S / 1000;
	l->tokens_ms = now;
	l->tokens = l->tokens + more < TOKENS_MAX ? l->tokens + more : TOKENS_MAX;
}

static void on_expire(void *arg)
{
	struct lessor *l;
	OBJ_CAST(l, arg, LESSOR_MAGIC);
	if (l->frozen)
		return;
	refill_tokens(l);
	uint64_t now = lessor_now(l);
	while (l->n_heap > 0 && l->heap[0]->deadline_ms <= now && l->tokens > 0) {
		l->tokens--;
		revoke_expired(l, l->heap[0]);
	}
	if (l->n_heap > 0 && l->heap[0]->deadline_ms <= now)
		ev_timer_start(&l->expire, TOKEN_WAIT_MS);
	else
		start_timer(l);
}

void lessor_database(struct lessor *l, bool up)
{
	OBJ_CHECK(l, LESSOR_MAGIC);
	if (up == !l->frozen)
		return;
	uint64_t now = ev_now_ms();
	l->frozen = !up;
	if (up) {
		l->stood_ms += now - l->frozen_ms;
		start_timer(l);
		lessor_check_later(l);
	} else {
		l->frozen_ms = now;
		ev_timer_stop(&l->expire);
	}
}

int64_t lessor_remaining_s(struct lessor *l, int64_t id)
{
	const struct lease_entry *entry = lessor_find(l, id);
	if (entry == NULL)
		return -1;
	if (!lessor_is_ours(l, entry))
		return entry->ttl_s;
	uint64_t now = lessor_now(l);
	return entry->deadline_ms > now ? (int64_t)((entry->deadline_ms - now) / 1000) : 0;
}

/* ---- birth and death ---- */

struct lessor *lessor_new(struct ev_loop *loop, struct engine *e, const char *node)
{
	struct lessor *l = mem_new(&type_lessor, sizeof(*l));
	l->magic = LESSOR_MAGIC;
	l->loop = loop;
	l->e = e;
	l->store = engine_store(e);
	list_init(&l->nodes);
	list_init(&l->revocations);
	list_init(&l->adoptions);
	l->self = node_of(l, node);
	l->frozen = true;
	l->frozen_ms = l->tokens_ms = ev_now_ms();
	l->tokens = TOKENS_MAX;
	ev_timer_init(&l->expire, loop, "lease expiry", on_expire, l);
	ev_timer_init(&l->check, loop, "lease adoption", lessor_on_check, l);
	return l;
}

void lessor_free(struct lessor **l_ptr)
{
	struct lessor *l = *l_ptr;
	*l_ptr = NULL;
	if (l == NULL)
		return;
	OBJ_CHECK(l, LESSOR_MAGIC);
	ev_timer_stop(&l->expire);
	ev_timer_stop(&l->check);
	lessor_adopt_stop(l);
	while (!list_empty(&l->revocations)) {
		struct revocation *r = list_first(&l->revocations, struct revocation, link);
		engine_cancel(l->e, &r->op);
		free_revocation(r);
	}
	struct lease_entry *entry, *next;
	HASH_ITER (hh, l->by_id, entry, next)
		drop_entry(l, entry);
	while (!list_empty(&l->nodes)) {
		struct lease_node *n = list_first(&l->nodes, struct lease_node, link);
		list_remove(&n->link);
		mem_free(&type_node, n);
	}
	free(l->heap);
	l->magic = 0;
	mem_free(&type_lessor, l);
}

void lessor_get_counts(const struct lessor *l, struct lessor_counts *ret_counts)
{
	*ret_counts = l->counts;
	ret_counts->leases = HASH_COUNT(l->by_id);
	ret_counts->ours = l->self->n_leases;
}
