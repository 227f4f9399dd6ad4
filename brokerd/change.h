/* SPDX-License-Identifier: PostgreSQL */
/*
 * One change of a table, decoded, with what topics and payloads are made of. Values stay in the
 * record's memory.
 *
 * The default payload, one JSON object; every key is always there:
 *
 *   op         "insert" "update" "delete" "truncate"
 *   schema     and table: the names as of the change
 *   lsn        "16/B374D848", of the change itself: per row strictly rising
 *   xid ts     of the transaction; ts is its commit time, as to_jsonb(timestamptz)
 *   new        the row after insert and update; else null
 *   old        what the replica identity gives of the row before: the whole row under FULL, the key
 *              for a delete and for an update that changed it; else null
 *   unchanged  names of TOASTed columns that did not change and that no old row supplied: they are
 *              not in new; [] if none
 *
 * Context: event thread.
 */
#ifndef BROKERD_CHANGE_H
#define BROKERD_CHANGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <pgwalstream.h>

#include "common/base/buf.h"
#include "common/pg/typecache.h"

/* What is kept with a relation (pgws_relation.user): prepared once, used for every row. */
struct relmeta_column {
	char *key; /* "\"name\":" */
	size_t key_len;
	const struct type_info *type; /* borrowed from the typecache */
};
struct relmeta {
	uint32_t magic;
	size_t n_columns;
	struct relmeta_column *columns;
	char *names; /* "\"schema\":\"public\",\"table\":\"t\"," */
	/* For the owner: the relation's mappings, looked up once per generation of the set. */
	uint64_t mappings_generation;
	const void *mappings;
	uint64_t reread_ms; /* when its types were last read again */
};
/* All types must be known (relmeta_missing). */
struct relmeta *relmeta_new(const struct pgws_relation *rel, struct typecache *types);
void relmeta_free(struct relmeta **m);
/* OIDs of column types that the cache does not know, into oids (room for n_columns); how many. */
size_t relmeta_missing(
	const struct pgws_relation *rel, struct typecache *types, uint32_t *ret_oids);

enum change_op { CHANGE_INSERT, CHANGE_UPDATE, CHANGE_DELETE, CHANGE_TRUNCATE };

struct change {
	enum change_op op;
	const struct pgws_relation *rel;
	const struct relmeta *meta;
	/* Of n_columns each, NULL if there is no such row; storage belongs to the change. Unchanged
	 * columns of the new row are taken from a FULL old row. */
	const struct pgws_column *new_row, *old_row;
	enum pgws_old old_kind;
	char lsn[18];
	uint32_t xid;
	char ts[40];
	size_t bad_values; /* counts values that went out as strings because they did not fit */
	struct pgws_column *store; /* owned; kept between changes */
	size_t store_len;
};

void change_fini(struct change *ch);
/* msg NULL: truncate. false: the tuples do not have the relation's number of columns. */
bool change_set(struct change *ch, const struct pgws_msg *msg, const struct pgws_relation *rel,
	uint64_t lsn);
/* Of the transaction that the next changes belong to. */
void change_set_transaction(struct change *ch, uint32_t xid, int64_t commit_time);
const char *change_op_str(enum change_op op);

/* The value that templates see: new row, or old row for a delete; NULL: absent, unknown or NULL. */
const struct pgws_column *change_column(const struct change *ch, size_t i);
void change_put_json(struct change *ch, struct buf *out);
void change_put_new(struct change *ch, struct buf *out);
void change_put_old(struct change *ch, struct buf *out);

/* "2026-11-20T11:42:51.123456+00:00" as to_jsonb writes a timestamptz; out: at least 40 bytes. */
void change_time_str(int64_t us_since_2000, char *out);

#endif
