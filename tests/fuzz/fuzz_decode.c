/* SPDX-License-Identifier: PostgreSQL */
/*
 * The decoder on arbitrary bytes: the first says by its lowest bit whether the message stands
 * inside a stream, the rest is the message. What is accepted is walked to the last byte, taught to
 * a catalogue, and encoded again. Invariants beyond "no invalid read": a tuple has as many columns
 * as it says, the walk ends exactly at its end, and the encoder gives back the same bytes.
 */
#include "config.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "libpgwalstream/pgwalstream.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static volatile uint64_t sink; /* keeps the reads from being optimised away */

static void touch(const void *p, size_t len)
{
	const uint8_t *bytes = p;
	uint64_t sum = 0;
	for (size_t i = 0; i < len; i++)
		sum += bytes[i];
	sink += sum;
}

static void touch_string(const char *s)
{
	touch(s, strlen(s));
}

static void require(int what)
{
	if (!what)
		abort();
}

static void walk_tuple(const struct pgws_tuple *t)
{
	struct pgws_column col;
	size_t offset = 0, n = 0;
	for (; pgws_tuple_next(t, &offset, &col); n++)
		touch(col.data, col.len);
	require(n == t->n_columns && offset == t->len);
}

static void walk_relation(const struct pgws_msg *m)
{
	struct pgws_relation_column col;
	size_t offset = 0, n = 0;
	for (; pgws_relation_next(m, &offset, &col); n++)
		touch_string(col.name);
	require(n == m->u.relation.n_columns && offset == m->u.relation.columns_len);
	struct pgws_catalog *c = pgws_catalog_new(NULL, NULL);
	require(c != NULL && pgws_catalog_learn(c, m) == 0 && pgws_catalog_learn(c, m) == 0);
	struct pgws_relation *rel = pgws_catalog_find(c, m->u.relation.relid);
	require(rel != NULL && rel->version == 1 && rel->n_columns == n);
	for (size_t i = 0; i < n; i++)
		touch_string(rel->columns[i].name);
	pgws_catalog_free(&c);
}

static void walk(const struct pgws_msg *m)
{
	switch (m->type) {
	case PGWS_RELATION:
		walk_relation(m);
		break;
	case PGWS_INSERT:
	case PGWS_UPDATE:
	case PGWS_DELETE:
		walk_tuple(&m->u.change.old_row);
		walk_tuple(&m->u.change.new_row);
		break;
	case PGWS_TRUNCATE:
		for (uint32_t i = 0; i < m->u.truncate.n_relids; i++)
			sink += pgws_truncate_relid(m, i);
		break;
	case PGWS_MESSAGE:
		touch_string(m->u.message.prefix);
		touch(m->u.message.data, m->u.message.len);
		break;
	case PGWS_ORIGIN:
		touch_string(m->u.origin.name);
		break;
	case PGWS_TYPE:
		touch_string(m->u.type_.nspname);
		touch_string(m->u.type_.typname);
		break;
	case PGWS_BEGIN_PREPARE:
	case PGWS_PREPARE:
	case PGWS_COMMIT_PREPARED:
	case PGWS_STREAM_PREPARE:
		touch_string(m->u.prepare.gid);
		break;
	case PGWS_ROLLBACK_PREPARED:
		touch_string(m->u.rollback_prepared.gid);
		break;
	default:
		break;
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct pgws_msg m;
	if (size == 0)
		return 0;
	bool in_stream = (data[0] & 1) != 0;
	data++;
	size--;
	if (pgws_decode(data, size, in_stream, &m) != 0)
		return 0;
	walk(&m);
	uint8_t *again = malloc(size);
	require(again != NULL && pgws_encode(&m, in_stream, again, size) == (int64_t)size);
	require(memcmp(again, data, size) == 0);
	free(again);
	return 0;
}
