/* SPDX-License-Identifier: PostgreSQL */
/*
 * What the tests of the assembler share: pgoutput messages made by hand (so that they do not depend
 * on the encoder), fed one by one, and what comes out kept as a list of copies.
 */
#ifndef TESTS_UNIT_ASSEMBLE_TESTING_H
#define TESTS_UNIT_ASSEMBLE_TESTING_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "libpgwalstream/pgwalstream.h"

#define ASM_BYTES_MAX 4096

/* A message under construction. */
struct asm_msg {
	uint8_t bytes[ASM_BYTES_MAX];
	size_t len;
};

static inline void asm_int(struct asm_msg *m, uint64_t v, int n)
{
	while (n-- > 0)
		m->bytes[m->len++] = (uint8_t)(v >> (8 * n));
}

static inline void asm_str(struct asm_msg *m, const char *s)
{
	size_t size = strlen(s) + 1;
	memcpy(m->bytes + m->len, s, size);
	m->len += size;
}

/* Type byte, and the xid of a message in a stream (0: not in a stream). */
static inline struct asm_msg asm_start(char type, uint32_t xid)
{
	struct asm_msg m;
	m.bytes[0] = (uint8_t)type;
	m.len = 1;
	if (xid != 0)
		asm_int(&m, xid, 4);
	return m;
}

static inline struct asm_msg asm_begin(uint32_t xid, uint64_t commit_lsn)
{
	struct asm_msg m = asm_start('B', 0);
	asm_int(&m, commit_lsn, 8);
	asm_int(&m, commit_lsn + 1000000, 8); /* the time */
	asm_int(&m, xid, 4);
	return m;
}

static inline struct asm_msg asm_commit(uint64_t commit_lsn)
{
	struct asm_msg m = asm_start('C', 0);
	asm_int(&m, 0, 1);
	asm_int(&m, commit_lsn, 8);
	asm_int(&m, commit_lsn + 48, 8);
	asm_int(&m, commit_lsn + 1000000, 8);
	return m;
}

static inline struct asm_msg asm_stream_commit(uint32_t xid, uint64_t commit_lsn)
{
	struct asm_msg m = asm_start('c', 0);
	asm_int(&m, xid, 4);
	asm_int(&m, 0, 1);
	asm_int(&m, commit_lsn, 8);
	asm_int(&m, commit_lsn + 48, 8);
	asm_int(&m, commit_lsn + 1000000, 8);
	return m;
}

static inline struct asm_msg asm_stream_start(uint32_t xid, bool first)
{
	struct asm_msg m = asm_start('S', 0);
	asm_int(&m, xid, 4);
	asm_int(&m, first, 1);
	return m;
}

static inline struct asm_msg asm_stream_abort(uint32_t xid, uint32_t subxid, bool with_lsn)
{
	struct asm_msg m = asm_start('A', 0);
	asm_int(&m, xid, 4);
	asm_int(&m, subxid, 4);
	if (with_lsn) {
		asm_int(&m, 77, 8);
		asm_int(&m, 88, 8);
	}
	return m;
}

/* A table of one column. */
static inline struct asm_msg asm_relation(uint32_t xid, uint32_t relid, const char *column)
{
	struct asm_msg m = asm_start('R', xid);
	asm_int(&m, relid, 4);
	asm_str(&m, "public");
	asm_str(&m, "t");
	asm_int(&m, 'd', 1);
	asm_int(&m, 1, 2);
	asm_int(&m, 1, 1);
	asm_str(&m, column);
	asm_int(&m, 25, 4);
	asm_int(&m, UINT32_MAX, 4);
	return m;
}

static inline struct asm_msg asm_type(uint32_t xid, uint32_t typid)
{
	struct asm_msg m = asm_start('Y', xid);
	asm_int(&m, typid, 4);
	asm_str(&m, "public");
	asm_str(&m, "mood");
	return m;
}

static inline struct asm_msg asm_insert(uint32_t xid, uint32_t relid, const char *value)
{
	struct asm_msg m = asm_start('I', xid);
	asm_int(&m, relid, 4);
	asm_int(&m, 'N', 1);
	asm_int(&m, 1, 2);
	asm_int(&m, 't', 1);
	asm_int(&m, strlen(value), 4);
	memcpy(m.bytes + m.len, value, strlen(value));
	m.len += strlen(value);
	return m;
}

static inline struct asm_msg asm_truncate(uint32_t xid, uint32_t relid, uint32_t other)
{
	struct asm_msg m = asm_start('T', xid);
	asm_int(&m, other != 0 ? 2 : 1, 4);
	asm_int(&m, 0, 1);
	asm_int(&m, relid, 4);
	if (other != 0)
		asm_int(&m, other, 4);
	return m;
}

static inline struct asm_msg asm_message(uint32_t xid, bool transactional, const char *text)
{
	struct asm_msg m = asm_start('M', xid);
	asm_int(&m, transactional, 1);
	asm_int(&m, 1234, 8);
	asm_str(&m, "prefix");
	asm_int(&m, strlen(text), 4);
	memcpy(m.bytes + m.len, text, strlen(text));
	m.len += strlen(text);
	return m;
}

static inline struct asm_msg asm_origin(uint64_t lsn, const char *name)
{
	struct asm_msg m = asm_start('O', 0);
	asm_int(&m, lsn, 8);
	asm_str(&m, name);
	return m;
}

/* b, P, p and K have one form but for the flags, which b lacks. */
static inline struct asm_msg asm_prepare(char type, uint32_t xid, uint64_t lsn, const char *gid)
{
	struct asm_msg m = asm_start(type, 0);
	if (type != 'b')
		asm_int(&m, 0, 1);
	asm_int(&m, lsn, 8);
	asm_int(&m, lsn + 48, 8);
	asm_int(&m, lsn + 1000000, 8);
	asm_int(&m, xid, 4);
	asm_str(&m, gid);
	return m;
}

static inline struct asm_msg asm_rollback_prepared(
	uint32_t xid, uint64_t prepare_lsn, uint64_t lsn, const char *gid)
{
	struct asm_msg m = asm_start('r', 0);
	asm_int(&m, 0, 1);
	asm_int(&m, prepare_lsn + 48, 8);
	asm_int(&m, lsn + 48, 8);
	asm_int(&m, 5, 8);
	asm_int(&m, 6, 8);
	asm_int(&m, xid, 4);
	asm_str(&m, gid);
	return m;
}

/* What came out: copies. */
struct asm_out {
	struct asm_given {
		struct pgws_change change; /* its pointers are not valid */
		uint8_t *bytes;
		size_t len;
		char gid[32];
		char relname[64]; /* "schema.name" of the relation, if there is one */
		char column[32];  /* its first column's name */
	} * list;
	size_t n, max;
};

static inline void asm_out_add(struct asm_out *o, const struct pgws_change *c)
{
	if (o->n == o->max) {
		o->max = o->max == 0 ? 64 : o->max * 2;
		o->list = realloc(o->list, o->max * sizeof(*o->list));
		if (o->list == NULL)
			abort();
	}
	struct asm_given *g = &o->list[o->n++];
	memset(g, 0, sizeof(*g));
	g->change = *c;
	g->bytes = malloc(c->len == 0 ? 1 : c->len);
	if (g->bytes == NULL)
		abort();
	memcpy(g->bytes, c->data, c->len);
	g->len = c->len;
	snprintf(g->gid, sizeof(g->gid), "%s", c->gid != NULL ? c->gid : "");
	if (c->relation != NULL)
		snprintf(g->relname, sizeof(g->relname), "%s.%s", c->relation->nspname,
			c->relation->relname);
	if (c->relation != NULL && c->relation->n_columns > 0)
		snprintf(g->column, sizeof(g->column), "%s", c->relation->columns[0].name);
}

static inline void asm_out_clear(struct asm_out *o)
{
	for (size_t i = 0; i < o->n; i++)
		free(o->list[i].bytes);
	free(o->list);
	*o = (struct asm_out){0};
}

/* Feeds bytes (a copy of just that size, gone afterwards) and takes what comes. The error, or 0. */
static inline int asm_feed_bytes(
	struct pgws_assembler *a, struct asm_out *o, const void *bytes, size_t len, uint64_t lsn)
{
	uint8_t *copy = malloc(len == 0 ? 1 : len);
	if (copy == NULL)
		abort();
	memcpy(copy, bytes, len);
	struct pgws_event ev = {.kind = PGWS_EVENT_DATA,
		.start_lsn = lsn,
		.end_lsn = lsn,
		.data = copy,
		.len = len};
	int err = pgws_assembler_put(a, &ev);
	while (err == 0) {
		struct pgws_change c;
		err = pgws_assembler_next(a, &c);
		if (err == 0)
			asm_out_add(o, &c);
	}
	free(copy);
	return err == PGWS_EAGAIN ? 0 : err;
}

static inline int asm_feed(
	struct pgws_assembler *a, struct asm_out *o, struct asm_msg m, uint64_t lsn)
{
	return asm_feed_bytes(a, o, m.bytes, m.len, lsn);
}

#endif
