/* SPDX-License-Identifier: PostgreSQL */
/*
 * The assembler: streamed, prepared and ordinary transactions in, committed transactions out, one
 * message at a time, in protocol 1's form.
 *
 * Context: one thread per assembler.
 *
 * What it is in (messages as in the header):
 *
 *     OUTSIDE  --B--> ORDINARY --C--> OUTSIDE     each message given out at once, in place
 *     OUTSIDE  --S--> STREAMED --E--> OUTSIDE     R Y O I U D T M are appended to the transaction
 *     OUTSIDE  --b--> PREPARING --P--> OUTSIDE    the same; P and p keep it by its gid
 *     OUTSIDE  --c K--> giving out, until Commit  put is refused meanwhile
 *     A, r: cut or forget; a Message that is not transactional is given out wherever it comes
 *
 * Invariants:
 *   1. Nothing is given out of a transaction before its commit was put.
 *   2. The catalogue knows what was given out: a Relation of a streamed transaction is learnt when
 *      it is given out, in its place; one that an aborted stream taught never is. What stands in b
 *      .. P is the exception: the server takes it as said from then on, so it is given out and
 *      learnt at once, and again with its transaction.
 *   3. After an error nothing is given out until reset: what stands open may be incomplete.
 *   4. After a Commit the catalogue knows what the server said last outside streams, or in a stream
 *      that was given out: see learn.
 *
 * On crash: what is open is sent again by the server, as its Commit was not confirmed.
 */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "libpgwalstream/assemble_internal.h"
#include "libpgwalstream/wire.h"

#define BUCKETS 256 /* of open transactions by xid; power of two */

enum where { OUTSIDE, ORDINARY, STREAMED, PREPARING };
enum giving { GIVE_NOTHING, GIVE_BEGIN, GIVE_RECORDS, GIVE_END };

struct open_txn {
	struct open_txn *next; /* of its bucket */
	struct pgwsi_txn *txn;
};

/* A Relation message that has to be said again before the Commit. */
struct restore {
	struct restore *next;
	uint32_t relid;
	uint8_t *bytes;
	size_t len;
};

struct pgws_assembler {
	struct pgwsi_store store;
	struct pgws_catalog *catalog;
	struct pgwsi_keep *keep;        /* NULL: prepared transactions are refused */
	struct pgws_catalog *announced; /* PREPARING: what the transaction's own messages say */
	enum where where;
	bool in_transaction;      /* as seen by the caller */
	bool in_transaction_next; /* when the pending change has been taken */
	int broken;               /* the error that reset must follow; 0 */

	const struct pgws_change *pending; /* what next gives out: change or outside; NULL */
	struct pgws_change change;         /* of the transaction that is being given out */
	struct pgws_change outside;        /* without a transaction */
	uint32_t ordinal;                  /* given last */
	uint8_t *copy;                     /* of a message whose xid had to be taken out */
	size_t copy_size;

	struct pgwsi_txn *current; /* STREAMED: one of open; PREPARING: owned */
	struct open_txn *open[BUCKETS];
	uint64_t n_open;

	enum giving giving;
	struct pgwsi_txn *given;            /* owned */
	uint8_t frame[32];                  /* Begin or Commit */
	struct restore *restore, *restored; /* restored: given out last, borrowed */

	uint64_t n_heard; /* Relation messages of this life, in order of arrival */

	uint64_t streamed, aborted, ignored;
};

static int fail(struct pgws_assembler *a, int err)
{
	a->broken = err;
	a->pending = NULL;
	return err;
}

static int fail_proto(struct pgws_assembler *a, const struct pgws_event *ev, const char *why)
{
	char lsn[18];
	pgwsi_store_fail(&a->store, PGWS_EPROTO, "message '%c' of %zu bytes at %s: %s",
		ev->len == 0 || ev->data[0] < ' ' || ev->data[0] > '~' ? '?' : ev->data[0], ev->len,
		pgws_lsn_str(ev->start_lsn, lsn), why);
	return fail(a, PGWS_EPROTO);
}

/* ---- open transactions ---- */

static struct open_txn **find_open(struct pgws_assembler *a, uint32_t xid)
{
	struct open_txn **at = &a->open[xid & (BUCKETS - 1)];
	while (*at != NULL && (*at)->txn->xid != xid)
		at = &(*at)->next;
	return at;
}

/* Takes it out of the table; the transaction is the caller's. NULL if there is none. */
static struct pgwsi_txn *take_open(struct pgws_assembler *a, uint32_t xid)
{
	struct open_txn **at = find_open(a, xid);
	struct open_txn *o = *at;
	if (o == NULL)
		return NULL;
	struct pgwsi_txn *t = o->txn;
	*at = o->next;
	free(o);
	a->n_open--;
	return t;
}

static struct pgwsi_txn *add_open(struct pgws_assembler *a, uint32_t xid)
{
	struct open_txn *o = malloc(sizeof(*o));
	struct pgwsi_txn *t = o != NULL ? pgwsi_txn_new(&a->store, xid) : NULL;
	if (t == NULL) {
		free(o);
		pgwsi_store_fail(&a->store, PGWS_ENOMEM, "out of memory");
		return NULL;
	}
	struct open_txn **at = find_open(a, xid);
	*o = (struct open_txn){.next = *at, .txn = t};
	*at = o;
	a->n_open++;
	return t;
}

/* ---- Relation messages ---- */

/* A Relation message of what the catalogue knows; bytes are the caller's to free. */
static int encode_relation(const struct pgws_relation *rel, uint8_t **ret_bytes, size_t *ret_len)
{
	struct pgws_msg m = {.type = PGWS_RELATION};
	m.u.relation.relid = rel->relid;
	m.u.relation.nspname = rel->nspname;
	m.u.relation.relname = rel->relname;
	m.u.relation.replident = rel->replident;
	*ret_bytes = NULL;
	int64_t size = pgws_encode_relation_columns(rel->columns, rel->n_columns, NULL, 0, &m);
	uint8_t *columns = malloc(size > 0 ? (size_t)size : 1);
	if (columns == NULL)
		return PGWS_ENOMEM;
	int err = PGWS_ENOMEM;
	if (pgws_encode_relation_columns(rel->columns, rel->n_columns, columns, (size_t)size, &m) ==
		size) {
		int64_t len = pgws_encode(&m, false, NULL, 0);
		uint8_t *bytes = len > 0 ? malloc((size_t)len) : NULL;
		if (bytes != NULL && pgws_encode(&m, false, bytes, (size_t)len) == len) {
			*ret_bytes = bytes;
			*ret_len = (size_t)len;
			err = 0;
		} else {
			free(bytes);
		}
	}
	free(columns);
	return err;
}

/* Out of the list; NULL if it is not there. */
static struct restore *take_restore(struct pgws_assembler *a, uint32_t relid)
{
	struct restore **at = &a->restore;
	while (*at != NULL && (*at)->relid != relid)
		at = &(*at)->next;
	struct restore *r = *at;
	if (r != NULL) {
		*at = r->next;
		r->next = NULL;
	}
	return r;
}

static void free_restore(struct restore **r)
{
	while (*r != NULL) {
		struct restore *next = (*r)->next;
		free((*r)->bytes);
		free(*r);
		*r = next;
	}
}

/* What is about to be replaced by something older. */
static int note_restore(struct pgws_assembler *a, const struct pgws_relation *rel)
{
	struct restore *r = calloc(1, sizeof(*r));
	if (r == NULL || encode_relation(rel, &r->bytes, &r->len) != 0) {
		free(r);
		return PGWS_ENOMEM;
	}
	r->relid = rel->relid;
	r->next = a->restore;
	a->restore = r;
	return 0;
}

/*
 * Learns a Relation that was heard as the given one in order (0: in an earlier life). In a stream
 * it is given out after what the server has said since then, to others, and what it will not say
 * again, as it knows that this came later: a schema renamed, a publication's columns changed while
 * the transaction was open. That is said again before the Commit (invariant 4).
 */
static int learn(struct pgws_assembler *a, const struct pgws_msg *m, uint64_t heard)
{
	uint32_t relid = m->u.relation.relid;
	struct pgws_relation *rel = pgws_catalog_find(a->catalog, relid);
	struct restore *known = take_restore(a, relid);
	uint64_t version = rel != NULL ? rel->version : 0;
	uint64_t last = rel != NULL ? rel->heard : 0;
	int err = 0;
	if (heard >= last) {
		free_restore(&known);
		last = heard;
	} else if (known != NULL) {
		known->next = a->restore;
		a->restore = known;
	} else {
		err = note_restore(a, rel);
	}
	if (err == 0)
		err = pgws_catalog_learn(a->catalog, m);
	if (err != 0)
		return err;
	rel = pgws_catalog_find(a->catalog, relid);
	rel->heard = last;
	if (heard < last && known == NULL && rel->version == version) {
		/* The same as before: nothing to say again. */
		known = take_restore(a, relid);
		free_restore(&known);
	}
	return 0;
}

/* ---- what all share ---- */

static int fail_unknown(struct pgws_assembler *a, const struct pgws_change *c, uint32_t relid)
{
	char lsn[18];
	pgwsi_store_fail(&a->store, PGWS_EUNKNOWN,
		"change '%c' at %s of transaction %u names relation %u, which no Relation message "
		"announced",
		(char)c->msg.type, pgws_lsn_str(c->lsn, lsn), c->xid, relid);
	return fail(a, PGWS_EUNKNOWN);
}

static int resolve_truncate(struct pgws_assembler *a, struct pgws_change *c)
{
	for (uint32_t i = 0; i < c->msg.u.truncate.n_relids; i++) {
		uint32_t relid = pgws_truncate_relid(&c->msg, i);
		struct pgws_relation *rel = pgws_catalog_find(a->catalog, relid);
		if (rel == NULL)
			return fail_unknown(a, c, relid);
		if (i == 0)
			c->relation = rel;
	}
	return 0;
}

/* The relation of a change that is about to be given out; a Relation is learnt. */
static int resolve(struct pgws_assembler *a, struct pgws_change *c, uint64_t heard)
{
	uint32_t relid;
	c->relation = NULL;
	switch (c->msg.type) {
	case PGWS_INSERT:
	case PGWS_UPDATE:
	case PGWS_DELETE:
		relid = c->msg.u.change.relid;
		break;
	case PGWS_RELATION:
		relid = c->msg.u.relation.relid;
		if (learn(a, &c->msg, heard) != 0) {
			pgwsi_store_fail(&a->store, PGWS_ENOMEM, "out of memory");
			return fail(a, PGWS_ENOMEM);
		}
		break;
	case PGWS_TRUNCATE:
		return resolve_truncate(a, c);
	default:
		return 0;
	}
	c->relation = pgws_catalog_find(a->catalog, relid);
	return c->relation != NULL ? 0 : fail_unknown(a, c, relid);
}

static bool has_ordinal(enum pgws_type type)
{
	return type == PGWS_INSERT || type == PGWS_UPDATE || type == PGWS_DELETE ||
	       type == PGWS_TRUNCATE || type == PGWS_MESSAGE;
}

/* a->change for a transaction whose Begin is about to be given out. */
static void enter(struct pgws_assembler *a, uint64_t commit_lsn, int64_t commit_time, uint32_t xid)
{
	struct pgws_change *c = &a->change;
	c->commit_lsn = commit_lsn;
	c->commit_time = commit_time;
	c->end_lsn = 0;
	c->xid = c->subxid = xid;
	c->ordinal = 0;
	c->relation = NULL;
	c->gid = NULL;
	a->ordinal = 0;
	a->in_transaction_next = true;
}

/* The event's own bytes are what is given out; a->change.msg is decoded. */
static void give_in_place(struct pgws_assembler *a, const struct pgws_event *ev)
{
	a->change.data = ev->data;
	a->change.len = ev->len;
	a->change.lsn = ev->start_lsn;
	a->pending = &a->change;
}

/* The message without the xid that it carries in a stream, for as long as the event's bytes. */
static const uint8_t *without_xid(struct pgws_assembler *a, const struct pgws_event *ev)
{
	if (a->copy_size < ev->len) {
		uint8_t *bigger = realloc(a->copy, ev->len);
		if (bigger == NULL)
			return NULL;
		a->copy = bigger;
		a->copy_size = ev->len;
	}
	a->copy[0] = ev->data[0];
	memcpy(a->copy + 1, ev->data + 5, ev->len - 5);
	return a->copy;
}

/* A message that stands outside every transaction. */
static int give_outside(struct pgws_assembler *a, const struct pgws_event *ev)
{
	const struct pgws_msg *m = &a->change.msg;
	struct pgws_change *c = &a->outside;
	*c = (struct pgws_change){
		.msg = *m, .data = ev->data, .len = ev->len, .lsn = ev->start_lsn};
	if (m->xid != 0) {
		c->data = without_xid(a, ev);
		c->len -= 4;
		if (c->data == NULL || pgws_decode(c->data, c->len, false, &c->msg) != 0) {
			pgwsi_store_fail(&a->store, PGWS_ENOMEM, "out of memory");
			return fail(a, PGWS_ENOMEM);
		}
	}
	int err = resolve(a, c, m->type == PGWS_RELATION ? ++a->n_heard : 0);
	if (err == 0)
		a->pending = c;
	return err;
}

/* ---- messages ---- */

static int on_begin(struct pgws_assembler *a, const struct pgws_event *ev)
{
	const struct pgws_msg *m = &a->change.msg;
	enter(a, m->u.begin.final_lsn, m->u.begin.commit_time, m->u.begin.xid);
	a->where = ORDINARY;
	give_in_place(a, ev);
	return 0;
}

static int on_commit(struct pgws_assembler *a, const struct pgws_event *ev)
{
	struct pgws_change *c = &a->change;
	c->commit_lsn = c->msg.u.commit.commit_lsn;
	c->end_lsn = c->msg.u.commit.end_lsn;
	c->commit_time = c->msg.u.commit.commit_time;
	c->ordinal = 0;
	c->relation = NULL;
	a->where = OUTSIDE;
	a->in_transaction_next = false;
	give_in_place(a, ev);
	return 0;
}

static int buffer(struct pgws_assembler *a, const struct pgws_event *ev)
{
	const struct pgws_msg *m = &a->change.msg;
	size_t skip = m->xid != 0 ? 5 : 1;
	struct pgwsi_record head = {.subxid = m->xid != 0 ? m->xid : a->current->xid,
		.lsn = m->type == PGWS_RELATION ? ++a->n_heard : ev->start_lsn,
		.data = ev->data,
		.len = 1};
	int err = pgwsi_txn_append(&a->store, a->current, &head, ev->data + skip, ev->len - skip);
	return err != 0 ? fail(a, err) : 0;
}

static int keep_relation(struct pgws_assembler *a, uint32_t relid)
{
	const struct pgws_relation *rel = pgws_catalog_find(a->announced, relid);
	if (rel != NULL)
		return 0;
	rel = pgws_catalog_find(a->catalog, relid);
	if (rel == NULL)
		return fail_unknown(a, &a->change, relid);
	uint8_t *bytes;
	size_t len;
	struct pgws_msg m;
	int err = encode_relation(rel, &bytes, &len);
	if (err == 0) {
		struct pgwsi_record head = {.subxid = a->current->xid, .data = bytes, .len = len};
		err = pgwsi_txn_append(&a->store, a->current, &head, NULL, 0);
	}
	if (err == 0 && pgws_decode(bytes, len, false, &m) == 0)
		err = pgws_catalog_learn(a->announced, &m);
	free(bytes);
	return err != 0 ? fail(a, err) : 0;
}

/* Between b and P. The server takes a Relation that it said here, or before, as known from then on:
 * so it is learnt and given out at once, and the transaction keeps one of every relation that it
 * names, as it may be given out in a later session that is told others. */
static int on_prepared_part(struct pgws_assembler *a, const struct pgws_event *ev)
{
	const struct pgws_msg *m = &a->change.msg;
	int err = 0;
	a->change.lsn = ev->start_lsn;
	a->change.xid = a->current->xid;
	if (m->type == PGWS_INSERT || m->type == PGWS_UPDATE || m->type == PGWS_DELETE)
		err = keep_relation(a, m->u.change.relid);
	for (uint32_t i = 0; m->type == PGWS_TRUNCATE && err == 0 && i < m->u.truncate.n_relids;
		i++)
		err = keep_relation(a, pgws_truncate_relid(m, i));
	if (m->type == PGWS_RELATION && pgws_catalog_learn(a->announced, m) != 0) {
		pgwsi_store_fail(&a->store, PGWS_ENOMEM, "out of memory");
		err = fail(a, PGWS_ENOMEM);
	}
	if (err == 0)
		err = buffer(a, ev);
	if (err == 0 && (m->type == PGWS_RELATION || m->type == PGWS_TYPE))
		err = give_outside(a, ev);
	return err;
}

/* R Y O I U D T and a transactional M: part of the transaction that we are in. */
static int on_part(struct pgws_assembler *a, const struct pgws_event *ev)
{
	struct pgws_change *c = &a->change;
	if (a->where == STREAMED)
		return buffer(a, ev);
	if (a->where == PREPARING)
		return on_prepared_part(a, ev);
	c->lsn = ev->start_lsn;
	int err = resolve(a, c, c->msg.type == PGWS_RELATION ? ++a->n_heard : 0);
	if (err != 0)
		return err;
	c->ordinal = has_ordinal(c->msg.type) ? ++a->ordinal : 0;
	give_in_place(a, ev);
	return 0;
}

static int on_message(struct pgws_assembler *a, const struct pgws_event *ev)
{
	if (!a->change.msg.u.message.transactional)
		return give_outside(a, ev);
	if (a->where == OUTSIDE)
		return fail_proto(a, ev, "a transactional message outside a transaction");
	return on_part(a, ev);
}

static int on_stream_start(struct pgws_assembler *a, const struct pgws_event *ev)
{
	const struct pgws_msg *m = &a->change.msg;
	uint32_t xid = m->u.stream_start.xid;
	struct open_txn *o = *find_open(a, xid);
	if (m->u.stream_start.first == (o != NULL))
		return fail_proto(a, ev,
			o != NULL ? "the transaction's first block, but there was one before"
				  : "not the transaction's first block, but there was none before");
	a->current = o != NULL ? o->txn : add_open(a, xid);
	if (a->current == NULL)
		return fail(a, PGWS_ENOMEM);
	if (o == NULL)
		a->current->begin_lsn = ev->start_lsn;
	a->where = STREAMED;
	return 0;
}

static int on_stream_stop(struct pgws_assembler *a, const struct pgws_event *ev)
{
	(void)ev;
	a->current = NULL;
	a->where = OUTSIDE;
	return 0;
}

static int on_stream_abort(struct pgws_assembler *a, const struct pgws_event *ev)
{
	const struct pgws_msg *m = &a->change.msg;
	uint32_t xid = m->u.stream_abort.xid, subxid = m->u.stream_abort.subxid;
	struct open_txn *o = *find_open(a, xid);
	if (o == NULL) {
		a->ignored++;
		return 0;
	}
	if (a->where != OUTSIDE)
		return fail_proto(a, ev, "the abort of a streamed transaction inside another");
	if (subxid == xid) {
		struct pgwsi_txn *t = take_open(a, xid);
		pgwsi_txn_free(&a->store, &t);
		a->aborted++;
		return 0;
	}
	bool known;
	int err = pgwsi_txn_truncate(&a->store, o->txn, subxid, &known);
	if (err != 0)
		return fail(a, err);
	a->aborted += known;
	return 0;
}

/* t is given out from the next call on; it is owned here now. */
static void begin_giving(struct pgws_assembler *a, struct pgwsi_txn *t, uint64_t commit_lsn,
	uint64_t end_lsn, int64_t commit_time)
{
	enter(a, commit_lsn, commit_time, t->xid);
	a->change.end_lsn = end_lsn;
	a->change.gid = t->gid;
	a->given = t;
	a->giving = GIVE_BEGIN;
}

static int on_stream_commit(struct pgws_assembler *a, const struct pgws_event *ev)
{
	const struct pgws_msg *m = &a->change.msg;
	struct pgwsi_txn *t = take_open(a, m->u.stream_commit.xid);
	if (t == NULL)
		return fail_proto(a, ev, "the commit of a transaction that was not streamed");
	begin_giving(a, t, m->u.stream_commit.commit_lsn, m->u.stream_commit.end_lsn,
		m->u.stream_commit.commit_time);
	a->streamed++;
	return 0;
}

static int not_kept(struct pgws_assembler *a)
{
	pgwsi_store_fail(&a->store, PGWS_ESTATE,
		"the server sends prepared transactions, which are not kept; set keep_prepared, or "
		"use a slot without two_phase");
	return fail(a, PGWS_ESTATE);
}

static int on_begin_prepare(struct pgws_assembler *a, const struct pgws_event *ev)
{
	if (a->keep == NULL)
		return not_kept(a);
	a->current = pgwsi_txn_new(&a->store, a->change.msg.u.prepare.xid);
	if (a->current == NULL) {
		pgwsi_store_fail(&a->store, PGWS_ENOMEM, "out of memory");
		return fail(a, PGWS_ENOMEM);
	}
	a->current->begin_lsn = ev->start_lsn;
	a->where = PREPARING;
	pgws_catalog_reset(a->announced);
	return 0;
}

/* t is kept by the message's gid; it is freed here. */
static int keep(struct pgws_assembler *a, struct pgwsi_txn *t)
{
	int err = pgwsi_keep_write(&a->store, a->keep, t, &a->change.msg);
	pgwsi_txn_free(&a->store, &t);
	return err != 0 ? fail(a, err) : 0;
}

static int on_prepare(struct pgws_assembler *a, const struct pgws_event *ev)
{
	struct pgwsi_txn *t = a->current;
	if (a->change.msg.u.prepare.xid != t->xid)
		return fail_proto(a, ev, "another transaction than the one that began");
	a->current = NULL;
	a->where = OUTSIDE;
	return keep(a, t);
}

static int on_stream_prepare(struct pgws_assembler *a, const struct pgws_event *ev)
{
	if (a->keep == NULL)
		return not_kept(a);
	struct pgwsi_txn *t = take_open(a, a->change.msg.u.prepare.xid);
	if (t == NULL)
		return fail_proto(a, ev, "the prepare of a transaction that was not streamed");
	return keep(a, t);
}

static int on_commit_prepared(struct pgws_assembler *a, const struct pgws_event *ev)
{
	if (a->keep == NULL)
		return not_kept(a);
	const struct pgws_msg *m = &a->change.msg;
	struct pgwsi_kept *e =
		pgwsi_keep_find(a->keep, m->u.prepare.gid, m->u.prepare.xid, m->u.prepare.lsn);
	/* The server went back to before what was confirmed: the caller has it. */
	if (e == NULL && pgwsi_keep_was_removed(a->keep, m->u.prepare.end_lsn))
		return 0;
	if (e == NULL) {
		char lsn[18];
		(void)ev;
		pgwsi_store_fail(&a->store, PGWS_EPROTO,
			"COMMIT PREPARED of transaction %u at %s, but nothing is kept under its "
			"gid "
			"(\"%.200s\"): it was prepared before the slot had two_phase "
			"(two_phase_at), or "
			"it was kept in another folder than %s",
			m->u.prepare.xid, pgws_lsn_str(m->u.prepare.lsn, lsn), m->u.prepare.gid,
			a->store.dir);
		return fail(a, PGWS_EPROTO);
	}
	struct pgwsi_txn *t = NULL;
	int err = pgwsi_keep_end(&a->store, a->keep, e, m->u.prepare.end_lsn);
	if (err == 0)
		err = pgwsi_keep_read(&a->store, e, &t);
	if (err != 0)
		return fail(a, err);
	begin_giving(a, t, m->u.prepare.lsn, m->u.prepare.end_lsn, m->u.prepare.time);
	return 0;
}

/* One that is not known may come: what was prepared before the slot had two_phase. */
static int on_rollback_prepared(struct pgws_assembler *a, const struct pgws_event *ev)
{
	(void)ev;
	if (a->keep == NULL)
		return not_kept(a);
	const struct pgws_msg *m = &a->change.msg;
	struct pgwsi_kept *e = pgwsi_keep_find(a->keep, m->u.rollback_prepared.gid,
		m->u.rollback_prepared.xid, m->u.rollback_prepared.prepare_end_lsn);
	int err = e != NULL ? pgwsi_keep_end(&a->store, a->keep, e, m->u.rollback_prepared.end_lsn)
			    : 0;
	return err != 0 ? fail(a, err) : 0;
}

#define IN(where) (1U << (where))
#define ANYWHERE (IN(OUTSIDE) | IN(ORDINARY) | IN(STREAMED) | IN(PREPARING))
#define INSIDE (IN(ORDINARY) | IN(STREAMED) | IN(PREPARING))

static const struct {
	int (*fn)(struct pgws_assembler *a, const struct pgws_event *ev);
	unsigned where; /* may come there */
} handlers[128] = {
	[PGWS_BEGIN] = {on_begin, IN(OUTSIDE)},
	[PGWS_COMMIT] = {on_commit, IN(ORDINARY)},
	[PGWS_ORIGIN] = {on_part, INSIDE},
	[PGWS_RELATION] = {on_part, INSIDE},
	[PGWS_TYPE] = {on_part, INSIDE},
	[PGWS_INSERT] = {on_part, INSIDE},
	[PGWS_UPDATE] = {on_part, INSIDE},
	[PGWS_DELETE] = {on_part, INSIDE},
	[PGWS_TRUNCATE] = {on_part, INSIDE},
	[PGWS_MESSAGE] = {on_message, ANYWHERE},
	[PGWS_STREAM_START] = {on_stream_start, IN(OUTSIDE)},
	[PGWS_STREAM_STOP] = {on_stream_stop, IN(STREAMED)},
	[PGWS_STREAM_COMMIT] = {on_stream_commit, IN(OUTSIDE)},
	[PGWS_STREAM_ABORT] = {on_stream_abort, ANYWHERE},
	[PGWS_BEGIN_PREPARE] = {on_begin_prepare, IN(OUTSIDE)},
	[PGWS_PREPARE] = {on_prepare, IN(PREPARING)},
	[PGWS_STREAM_PREPARE] = {on_stream_prepare, IN(OUTSIDE)},
	[PGWS_COMMIT_PREPARED] = {on_commit_prepared, IN(OUTSIDE)},
	[PGWS_ROLLBACK_PREPARED] = {on_rollback_prepared, IN(OUTSIDE)},
};

int pgws_assembler_put(struct pgws_assembler *a, const struct pgws_event *ev)
{
	static const char *const names[] = {
		"outside a transaction", "in a transaction", "in a stream", "in a prepare"};
	if (a->broken != 0)
		return a->broken;
	if (a->pending != NULL || a->giving != GIVE_NOTHING)
		return pgwsi_store_fail(&a->store, PGWS_ESTATE,
			"the last event has not been given out; call pgws_assembler_next first");
	a->store.error[0] = 0;
	if (ev->kind != PGWS_EVENT_DATA)
		return 0;
	if (pgws_decode(ev->data, ev->len, a->where == STREAMED, &a->change.msg) != 0)
		return fail_proto(a, ev, "cannot be decoded");
	unsigned type = a->change.msg.type;
	if (type >= sizeof(handlers) / sizeof(handlers[0]) || handlers[type].fn == NULL)
		return fail_proto(a, ev, "not known");
	if ((handlers[type].where & IN(a->where)) == 0) {
		char why[64] = "does not belong ";
		return fail_proto(a, ev, strcat(why, names[a->where]));
	}
	return handlers[type].fn(a, ev);
}

/* ---- giving out ---- */

static int give_frame(struct pgws_assembler *a, size_t len, uint64_t lsn)
{
	struct pgws_change *c = &a->change;
	c->data = a->frame;
	c->len = len;
	c->lsn = lsn;
	c->subxid = c->xid;
	c->ordinal = 0;
	c->relation = NULL;
	return pgws_decode(c->data, c->len, false, &c->msg);
}

/* The Begin that protocol 1 would have sent. */
static int give_begin(struct pgws_assembler *a)
{
	a->frame[0] = PGWS_BEGIN;
	pgwsi_put64(a->frame + 1, a->change.commit_lsn);
	pgwsi_put64(a->frame + 9, (uint64_t)a->change.commit_time);
	pgwsi_put32(a->frame + 17, a->change.xid);
	a->giving = GIVE_RECORDS;
	a->in_transaction = true;
	return give_frame(a, 21, a->given->begin_lsn);
}

static int give_commit(struct pgws_assembler *a)
{
	a->frame[0] = PGWS_COMMIT;
	a->frame[1] = 0;
	pgwsi_put64(a->frame + 2, a->change.commit_lsn);
	pgwsi_put64(a->frame + 10, a->change.end_lsn);
	pgwsi_put64(a->frame + 18, (uint64_t)a->change.commit_time);
	a->giving = GIVE_END;
	a->in_transaction = a->in_transaction_next = false;
	return give_frame(a, 26, a->change.end_lsn);
}

static int give_restore(struct pgws_assembler *a)
{
	struct pgws_change *c = &a->change;
	free_restore(&a->restored);
	a->restored = a->restore;
	a->restore = a->restored->next;
	a->restored->next = NULL;
	c->data = a->restored->bytes;
	c->len = a->restored->len;
	c->lsn = 0;
	c->subxid = c->xid;
	c->ordinal = 0;
	const struct pgws_relation *rel = pgws_catalog_find(a->catalog, a->restored->relid);
	if (rel == NULL || pgws_decode(c->data, c->len, false, &c->msg) != 0)
		return fail(a, PGWS_ENOMEM); /* not possible: it is what we encoded */
	return resolve(a, c, rel->heard);
}

static int give_record(struct pgws_assembler *a)
{
	struct pgwsi_record r;
	int err = pgwsi_txn_read(&a->store, a->given, &r);
	if (err == PGWS_EAGAIN)
		return a->restore != NULL ? give_restore(a) : give_commit(a);
	if (err != 0)
		return fail(a, err);
	struct pgws_change *c = &a->change;
	if (pgws_decode(r.data, r.len, false, &c->msg) != 0) {
		errno = EIO;
		pgwsi_store_fail(&a->store, PGWS_EIO,
			"what was kept of transaction %u cannot be decoded any more", c->xid);
		return fail(a, PGWS_EIO);
	}
	c->data = r.data;
	c->len = r.len;
	c->subxid = r.subxid;
	c->ordinal = has_ordinal(c->msg.type) ? ++a->ordinal : 0;
	c->lsn = r.lsn;
	if (c->msg.type != PGWS_RELATION)
		return resolve(a, c, 0);
	c->lsn = 0;
	return resolve(a, c, a->given->kept ? 0 : r.lsn);
}

/* Of the transaction that is being given out. */
static int give_next(struct pgws_assembler *a, struct pgws_change *ret_change)
{
	if (a->giving == GIVE_END) {
		free_restore(&a->restored);
		pgwsi_txn_free(&a->store, &a->given);
		a->giving = GIVE_NOTHING;
		return PGWS_EAGAIN;
	}
	int err = a->giving == GIVE_BEGIN ? give_begin(a) : give_record(a);
	if (err == 0)
		*ret_change = a->change;
	return err;
}

int pgws_assembler_next(struct pgws_assembler *a, struct pgws_change *ret_change)
{
	if (a->pending != NULL) {
		*ret_change = *a->pending;
		a->pending = NULL;
		a->in_transaction = a->in_transaction_next;
		return 0;
	}
	if (a->broken != 0)
		return a->broken;
	if (a->giving != GIVE_NOTHING)
		return give_next(a, ret_change);
	return PGWS_EAGAIN;
}

/* ---- life ---- */

/* Why pgws_assembler_new failed: there is nothing else to keep it in. */
static _Thread_local char new_error[PGWSI_ERROR_BYTES];

static int refuse(const char *why)
{
	snprintf(new_error, sizeof(new_error), "%s", why);
	return PGWS_EINVAL;
}

static int open_dir(struct pgwsi_store *s, const char *dir)
{
	s->dir = strdup(dir);
	if (s->dir == NULL)
		return pgwsi_store_fail(s, PGWS_ENOMEM, "out of memory");
	s->dir_fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (s->dir_fd < 0)
		return pgwsi_store_fail_errno(s, "cannot open %s", dir);
	return 0;
}

int pgws_assembler_new(const struct pgws_assembler_options *options, struct pgws_assembler **ret_a)
{
	struct pgws_assembler_options o = PGWS_ASSEMBLER_OPTIONS_INIT;
	new_error[0] = 0;
	if (options->size < sizeof(options->size) || options->size > sizeof(o))
		return refuse("options.size is not this library's");
	memcpy(&o, options, options->size);
	if (o.file_limit == 0 && o.memory_limit == 0)
		return refuse("memory_limit and file_limit are both 0");
	if (o.file_limit == 0 && o.keep_prepared)
		return refuse("keep_prepared needs a file_limit");
	if (o.file_limit != 0 && o.dir == NULL)
		return refuse("file_limit needs a dir");
	struct pgws_assembler *a = calloc(1, sizeof(*a));
	if (a == NULL)
		return PGWS_ENOMEM;
	a->store.dir_fd = -1;
	a->store.memory_limit = o.memory_limit;
	a->store.file_limit = o.file_limit;
	a->catalog = pgws_catalog_new(NULL, NULL);
	a->announced = pgws_catalog_new(NULL, NULL);
	int err = 0;
	if (a->catalog == NULL || a->announced == NULL)
		err = pgwsi_store_fail(&a->store, PGWS_ENOMEM, "out of memory");
	if (err == 0 && o.file_limit != 0)
		err = open_dir(&a->store, o.dir);
	if (err == 0 && o.keep_prepared)
		err = pgwsi_keep_open(&a->store, &a->keep);
	if (err != 0) {
		memcpy(new_error, a->store.error, sizeof(new_error));
		pgws_assembler_free(&a);
		return err;
	}
	*ret_a = a;
	return 0;
}

/* Everything that a session brought. */
static void forget(struct pgws_assembler *a)
{
	for (size_t i = 0; i < BUCKETS; i++) {
		while (a->open[i] != NULL) {
			struct pgwsi_txn *t = take_open(a, a->open[i]->txn->xid);
			pgwsi_txn_free(&a->store, &t);
		}
	}
	pgwsi_txn_free(&a->store, &a->given);
	free_restore(&a->restore);
	free_restore(&a->restored);
	if (a->where == PREPARING)
		pgwsi_txn_free(&a->store, &a->current);
	a->current = NULL;
	a->giving = GIVE_NOTHING;
	a->where = OUTSIDE;
	a->pending = NULL;
	a->in_transaction = a->in_transaction_next = false;
	a->broken = 0;
	a->store.error[0] = 0;
}

void pgws_assembler_reset(struct pgws_assembler *a)
{
	forget(a);
	pgws_catalog_reset(a->catalog);
}

void pgws_assembler_free(struct pgws_assembler **a)
{
	if (*a == NULL)
		return;
	int saved = errno;
	forget(*a);
	pgwsi_keep_close(&(*a)->store, &(*a)->keep);
	pgws_catalog_free(&(*a)->catalog);
	pgws_catalog_free(&(*a)->announced);
	if ((*a)->store.dir_fd >= 0)
		(void)close((*a)->store.dir_fd); /* read only: nothing to lose */
	free((*a)->store.dir);
	free((*a)->copy);
	free(*a);
	*a = NULL;
	errno = saved;
}

int pgws_assembler_confirmed(struct pgws_assembler *a, uint64_t lsn)
{
	return a->keep != NULL ? pgwsi_keep_confirmed(&a->store, a->keep, lsn) : 0;
}

/* ---- questions ---- */

struct pgws_catalog *pgws_assembler_catalog(struct pgws_assembler *a)
{
	return a->catalog;
}

bool pgws_assembler_in_transaction(const struct pgws_assembler *a)
{
	return a->in_transaction;
}

void pgws_assembler_get_counts(
	const struct pgws_assembler *a, struct pgws_assembler_counts *ret_counts)
{
	*ret_counts = (struct pgws_assembler_counts){
		.open = a->n_open,
		.prepared = pgwsi_keep_count(a->keep),
		.memory_bytes = a->store.memory + pgwsi_keep_memory(a->keep),
		.file_bytes = a->store.files,
		.streamed = a->streamed,
		.aborted = a->aborted,
		.spilled = a->store.spilled,
		.spilled_bytes = a->store.spilled_bytes,
		.ignored = a->ignored,
	};
}

const char *pgws_assembler_error(const struct pgws_assembler *a)
{
	return a != NULL ? a->store.error : new_error;
}
