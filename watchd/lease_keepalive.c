/* SPDX-License-Identifier: PostgreSQL */
/*
 * Keepalives.
 *
 *   ours, not running out -> renewed, so that it does not end while this waits
 *                         -> tip read and round trip on our session, side by side -> renewed,
 *        | it is not any more                        answered with its time to live
 *        v
 *   else -> evaluated behind all that was submitted before: not there -> answered with 0
 *                                                           another's -> MOVE, ours from here on
 *
 * A lease that is just running out is evaluated behind its revocation: the answer is what became of
 * it, as etcd's.
 *
 * See: lease.h for why an answer can be relied on.
 */
#include "config.h"

#include <string.h>

#include "common/base/mem.h"
#include "watchd/lease_int.h"

static void finish(struct lease_keepalive *k, int64_t ttl_s, enum etcd_error err)
{
	k->lessor->counts.keepalives++;
	k->done(k, ttl_s, err); /* may free k */
}

static struct lease_entry *find_ours(const struct lessor *l, int64_t id)
{
	struct lease_entry *entry = lessor_find(l, id);
	return entry != NULL && lessor_is_ours(l, entry) && !entry->revoking ? entry : NULL;
}

/* ---- at the head ---- */

static enum etcd_error eval(struct engine_op *op, struct store *s)
{
	struct lease_keepalive *k = list_entry(op, struct lease_keepalive, op);
	const struct store_lease *lease = store_lease_find(s, k->id, true);
	k->moves = false;
	k->ttl_s = lease == NULL ? 0 : lease->ttl_s;
	if (lease != NULL && strcmp(lease->head_owner, k->lessor->self->name) != 0) {
		store_move(s, k->id);
		k->moves = true;
	}
	return ETCD_OK;
}

static void on_evaluated(struct engine_op *op, enum etcd_error err)
{
	struct lease_keepalive *k = list_entry(op, struct lease_keepalive, op);
	struct lessor *l = k->lessor;
	OBJ_CHECK(l, LESSOR_MAGIC);
	k->evaluates = false;
	if (err == ETCD_OK) {
		struct lease_entry *entry = find_ours(l, k->id);
		if (k->ttl_s > 0 && entry != NULL)
			lessor_renew(l, entry);
		/* It may have been revoked right behind, by what became visible together: the
		 * header's revision would say so, too. */
		if (lessor_find(l, k->id) == NULL)
			k->ttl_s = 0;
		l->counts.moved += k->moves;
	}
	finish(k, err == ETCD_OK ? k->ttl_s : 0, err);
}

static void evaluate(struct lease_keepalive *k)
{
	k->evaluates = true;
	k->op = (struct engine_op){
		.eval = eval, .done = on_evaluated, .deadline_ms = k->deadline_ms};
	engine_submit(k->lessor->e, &k->op);
}

/* ---- ours ---- */

static void on_proof(struct lease_keepalive *k, enum etcd_error err)
{
	struct lessor *l = k->lessor;
	OBJ_CHECK(l, LESSOR_MAGIC);
	if (err != ETCD_OK) {
		lessor_keepalive_cancel(l, k);
		finish(k, 0, err);
		return;
	}
	if (k->reads || k->confirms)
		return;
	struct lease_entry *entry = find_ours(l, k->id);
	if (entry == NULL) {
		evaluate(k);
		return;
	}
	lessor_renew(l, entry);
	finish(k, entry->ttl_s, ETCD_OK);
}

static void on_read(struct engine_read *r, enum etcd_error err)
{
	struct lease_keepalive *k = list_entry(r, struct lease_keepalive, read);
	k->reads = false;
	on_proof(k, err);
}

static void on_confirm(struct engine_read *r, enum etcd_error err)
{
	struct lease_keepalive *k = list_entry(r, struct lease_keepalive, confirm);
	k->confirms = false;
	on_proof(k, err);
}

void lessor_keepalive(struct lessor *l, struct lease_keepalive *k)
{
	OBJ_CHECK(l, LESSOR_MAGIC);
	k->lessor = l;
	k->reads = k->confirms = k->evaluates = false;
	struct lease_entry *entry = find_ours(l, k->id);
	if (entry == NULL) {
		evaluate(k);
		return;
	}
	lessor_renew(l, entry); /* longer than was promised does no harm */
	k->reads = k->confirms = true;
	k->read = (struct engine_read){.done = on_read, .deadline_ms = k->deadline_ms};
	k->confirm = (struct engine_read){.done = on_confirm, .deadline_ms = k->deadline_ms};
	engine_read(l->e, &k->read);
	engine_confirm(l->e, &k->confirm);
}

void lessor_keepalive_cancel(struct lessor *l, struct lease_keepalive *k)
{
	OBJ_CHECK(l, LESSOR_MAGIC);
	if (k->reads)
		engine_read_cancel(l->e, &k->read);
	if (k->confirms)
		engine_read_cancel(l->e, &k->confirm);
	if (k->evaluates)
		engine_cancel(l->e, &k->op);
	k->reads = k->confirms = k->evaluates = false;
}
