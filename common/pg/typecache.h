/* SPDX-License-Identifier: PostgreSQL */
/*
 * What to_jsonb needs to know of a type, by OID: the common built-in types from a table, every
 * other one from the catalogue, learnt once and kept.
 *
 * The catalogue shows types as they are now, not as they were at the place in the WAL that is being
 * read. A composite type that was altered since then shows itself by a different number of
 * fields: its value then does not fit (tojson says so), and typecache_forget has it read again.
 *
 * Context: event thread. Pure memory; the query is sent by whoever has a connection.
 */
#ifndef COMMON_PG_TYPECACHE_H
#define COMMON_PG_TYPECACHE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum type_kind {
	TYPE_TEXT, /* a JSON string of the value's text */
	TYPE_BOOL,
	TYPE_NUMBER,
	TYPE_JSON,
	TYPE_JSONB,
	TYPE_TIMESTAMP,
	TYPE_TIMESTAMPTZ,
	TYPE_ARRAY,
	TYPE_VECTOR, /* int2vector, oidvector: arrays that print without braces */
	TYPE_COMPOSITE
};

struct type_info;

struct type_attr {
	char *key; /* owned: the attribute's name as JSON with colon, "\"a\":" */
	size_t key_len;
	const struct type_info *type;
};

/* Owned by the cache, at its place for the cache's life; its content changes when it is learnt
 * again. A domain has the content of its base type. */
struct type_info {
	enum type_kind kind;
	char delim;                   /* ARRAY: between elements */
	const struct type_info *elem; /* ARRAY, VECTOR */
	size_t n_attrs;               /* COMPOSITE */
	struct type_attr *attrs;
};

struct typecache;

struct typecache *typecache_new(void);
void typecache_free(struct typecache **tc);
/* NULL: not known yet. */
const struct type_info *typecache_find(struct typecache *tc, uint32_t oid);
/* A type that is not built in becomes unknown, with what it is made of once it is learnt again; who
 * holds it goes on with what was known. */
void typecache_forget(struct typecache *tc, uint32_t oid);

/* One row per type, or per attribute of a composite type; rows of a type together, in order. */
struct type_row {
	uint32_t oid;
	char typtype;     /* as in pg_type */
	uint32_t base;    /* domain: what it is made on; 0 else */
	uint32_t elem;    /* true array: its element type; 0 else */
	char delim;       /* of the element type */
	const char *attr; /* NULL: not composite, or one without attributes */
	uint32_t attr_type;
};
/* The query: $1 oid[] as text, gives the columns of struct type_row in order, for the types and
 * everything they are made of. */
extern const char typecache_sql[];
/* asked: the OIDs of $1. Those that did not come back exist no more and are taken as text. */
void typecache_learn(struct typecache *tc, const struct type_row *rows, size_t n_rows,
	const uint32_t *asked, size_t n_asked);
/* The same with libpq's result of that query (PGRES_TUPLES_OK). */
struct pg_result;
void typecache_learn_result(
	struct typecache *tc, const struct pg_result *res, const uint32_t *asked, size_t n_asked);

#endif
