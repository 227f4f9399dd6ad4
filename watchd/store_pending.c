/* SPDX-License-Identifier: PostgreSQL */
/*
 * Rows above `visible`, and the names of nodes that rows carry.
 */
#include "config.h"

#include <stdlib.h>
#include <string.h>

#include "common/base/mem.h"
#include "watchd/store_int.h"

#define CAP_FIRST 64
#define CAP_KEPT 4096 /* what an empty ring may keep */

static struct pending *slot(const struct pendings *q, size_t i)
{
	return &q->row[(q->first + i) & (q->cap - 1)];
}

static void resize(struct store *s, size_t cap)
{
	struct pendings *q = &s->pending;
	struct pending *row = xmalloc(cap * sizeof(*row));
	for (size_t i = 0; i < q->n; i++)
		row[i] = *slot(q, i);
	free(q->row);
	s->memory_bytes += cap * sizeof(*row);
	s->memory_bytes -= q->cap * sizeof(*row);
	*q = (struct pendings){.row = row, .cap = cap, .n = q->n};
}

struct pending *pending_push(struct store *s)
{
	struct pendings *q = &s->pending;
	if (q->n == q->cap)
		resize(s, q->cap == 0 ? CAP_FIRST : q->cap * 2);
	struct pending *p = slot(q, q->n++);
	memset(p, 0, sizeof(*p));
	return p;
}

struct pending *pending_at(const struct store *s, size_t i)
{
	ASSERT(i < s->pending.n);
	return slot(&s->pending, i);
}

static void shrink(struct store *s)
{
	if (s->pending.n == 0 && s->pending.cap > CAP_KEPT)
		resize(s, CAP_FIRST);
}

void pending_pop_front(struct store *s)
{
	ASSERT(s->pending.n > 0);
	s->pending.first++;
	s->pending.n--;
	shrink(s);
}

void pending_pop_back(struct store *s)
{
	ASSERT(s->pending.n > 0);
	s->pending.n--;
	shrink(s);
}

void pending_free(struct store *s)
{
	s->memory_bytes -= s->pending.cap * sizeof(struct pending);
	free(s->pending.row);
	s->pending = (struct pendings){.row = NULL};
}

static void row_version(const struct version *v, struct store_row *row)
{
	row->key = (struct store_bytes){v->key->bytes, v->key->len};
	if (is_tombstone(v))
		return;
	row->value = (struct store_bytes){v->value, v->value_len};
	row->create_rev = v->create_rev;
	row->version = v->version;
	row->lease = v->lease;
}

void pending_row(const struct pending *p, struct store_row *ret_row)
{
	*ret_row = (struct store_row){.seq = p->seq,
		.sub = p->sub,
		.last = p->last,
		.kind = p->kind,
		.rev = p->rev,
		.arg = p->arg,
		.node = p->node};
	switch (p->kind) {
	case STORE_PUT:
	case STORE_DELETE:
		row_version(p->u.kv.v, ret_row);
		break;
	case STORE_GRANT:
	case STORE_REVOKE:
	case STORE_MOVE:
		ret_row->lease = p->u.lease.id;
		break;
	case STORE_DISARM:
		ret_row->key = (struct store_bytes){p->u.alarm.node, strlen(p->u.alarm.node)};
		break;
	default:
		break;
	}
}

uint64_t pending_row_bytes(const struct pending *p)
{
	struct store_row row;
	pending_row(p, &row);
	return row.key.len + row.value.len + STORE_ROW_BYTES;
}

/* Nodes are few. */
const char *intern(struct store *s, const char *name)
{
	struct names *t = &s->names;
	for (size_t i = 0; i < t->n; i++)
		if (strcmp(t->name[i], name) == 0)
			return t->name[i];
	t->name = xrealloc(t->name, (t->n + 1) * sizeof(t->name[0]));
	t->name[t->n] = xstrdup(name);
	return t->name[t->n++];
}
