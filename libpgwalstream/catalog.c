/* SPDX-License-Identifier: PostgreSQL */
/*
 * The catalogue: what Relation messages taught, by relation id.
 *
 * Context: one thread per catalogue. A hash table with chains that doubles when it is full; a
 * definition is one allocation (relation, columns and names together), so that it goes in one
 * piece.
 *
 * Invariants:
 *   1. A relid stands in the table at most once.
 *   2. A definition that comes again unchanged (every session sends it anew) keeps its object,
 *      its version and the caller's pointer.
 *   3. on_drop is called exactly once for every definition that leaves, before it is freed.
 */
#include "config.h"

#include <stdlib.h>
#include <string.h>

#include "libpgwalstream/pgwalstream.h"

struct entry {
	struct entry *next;
	struct pgws_relation rel;
};

struct pgws_catalog {
	struct entry **buckets;
	size_t n_buckets; /* power of two */
	size_t n_entries;
	uint64_t version;
	void (*on_drop)(struct pgws_relation *rel, void *arg);
	void *arg;
};

#define BUCKETS_MIN 64

static size_t bucket_of(uint32_t relid, size_t n_buckets)
{
	return (size_t)(relid * UINT32_C(2654435761) >> 7) & (n_buckets - 1);
}

struct pgws_catalog *pgws_catalog_new(
	void (*on_drop)(struct pgws_relation *rel, void *arg), void *arg)
{
	struct pgws_catalog *c = calloc(1, sizeof(*c));
	if (c == NULL)
		return NULL;
	c->buckets = calloc(BUCKETS_MIN, sizeof(struct entry *));
	if (c->buckets == NULL) {
		free(c);
		return NULL;
	}
	c->n_buckets = BUCKETS_MIN;
	c->on_drop = on_drop;
	c->arg = arg;
	return c;
}

static void drop(struct pgws_catalog *c, struct entry *e)
{
	if (c->on_drop != NULL)
		c->on_drop(&e->rel, c->arg);
	free(e);
	c->n_entries--;
}

void pgws_catalog_reset(struct pgws_catalog *c)
{
	for (size_t i = 0; i < c->n_buckets; i++) {
		while (c->buckets[i] != NULL) {
			struct entry *e = c->buckets[i];
			c->buckets[i] = e->next;
			drop(c, e);
		}
	}
}

void pgws_catalog_free(struct pgws_catalog **c)
{
	if (*c == NULL)
		return;
	pgws_catalog_reset(*c);
	free((*c)->buckets);
	free(*c);
	*c = NULL;
}

static struct entry **find_slot(struct pgws_catalog *c, uint32_t relid)
{
	struct entry **at = &c->buckets[bucket_of(relid, c->n_buckets)];
	while (*at != NULL && (*at)->rel.relid != relid)
		at = &(*at)->next;
	return at;
}

struct pgws_relation *pgws_catalog_find(struct pgws_catalog *c, uint32_t relid)
{
	struct entry *e = *find_slot(c, relid);
	return e != NULL ? &e->rel : NULL;
}

/* More buckets, if there is memory; without it the chains just grow longer. */
static void grow(struct pgws_catalog *c)
{
	size_t n = c->n_buckets * 2;
	struct entry **bigger = calloc(n, sizeof(struct entry *));
	if (bigger == NULL)
		return;
	for (size_t i = 0; i < c->n_buckets; i++) {
		while (c->buckets[i] != NULL) {
			struct entry *e = c->buckets[i];
			c->buckets[i] = e->next;
			size_t b = bucket_of(e->rel.relid, n);
			e->next = bigger[b];
			bigger[b] = e;
		}
	}
	free(c->buckets);
	c->buckets = bigger;
	c->n_buckets = n;
}

static char *place(char **at, const char *s)
{
	size_t size = strlen(s) + 1;
	char *start = *at;
	memcpy(start, s, size);
	*at += size;
	return start;
}

static struct entry *build(const struct pgws_msg *msg)
{
	size_t n = msg->u.relation.n_columns;
	/* Names are at most what the message held; the columns area includes every one of them. */
	size_t names = strlen(msg->u.relation.nspname) + strlen(msg->u.relation.relname) + 2 +
		       msg->u.relation.columns_len;
	struct entry *e = calloc(1, sizeof(*e) + n * sizeof(struct pgws_relation_column) + names);
	if (e == NULL)
		return NULL;
	struct pgws_relation_column *columns = (struct pgws_relation_column *)(void *)(e + 1);
	char *at = (char *)(columns + n);
	e->rel.relid = msg->u.relation.relid;
	e->rel.replident = msg->u.relation.replident;
	e->rel.nspname = place(&at, msg->u.relation.nspname);
	e->rel.relname = place(&at, msg->u.relation.relname);
	e->rel.columns = columns;
	e->rel.n_columns = (uint16_t)n;
	size_t offset = 0;
	for (size_t i = 0; i < n && pgws_relation_next(msg, &offset, &columns[i]); i++)
		columns[i].name = place(&at, columns[i].name);
	return e;
}

static bool same(const struct pgws_relation *rel, const struct pgws_msg *msg)
{
	if (rel->replident != msg->u.relation.replident ||
		rel->n_columns != msg->u.relation.n_columns ||
		strcmp(rel->nspname, msg->u.relation.nspname) != 0 ||
		strcmp(rel->relname, msg->u.relation.relname) != 0)
		return false;
	struct pgws_relation_column col;
	size_t offset = 0;
	for (size_t i = 0; pgws_relation_next(msg, &offset, &col); i++) {
		const struct pgws_relation_column *have = &rel->columns[i];
		if (have->key != col.key || have->typid != col.typid ||
			have->typmod != col.typmod || strcmp(have->name, col.name) != 0)
			return false;
	}
	return true;
}

int pgws_catalog_learn(struct pgws_catalog *c, const struct pgws_msg *relation)
{
	if (relation->type != PGWS_RELATION)
		return PGWS_EPROTO;
	struct entry **at = find_slot(c, relation->u.relation.relid);
	struct entry *old = *at;
	if (old != NULL && same(&old->rel, relation))
		return 0;
	struct entry *e = build(relation);
	if (e == NULL)
		return PGWS_ENOMEM;
	e->rel.version = ++c->version;
	if (old != NULL) {
		e->next = old->next;
		*at = e;
		drop(c, old);
	} else {
		*at = e;
	}
	c->n_entries++;
	if (c->n_entries > c->n_buckets)
		grow(c);
	return 0;
}
