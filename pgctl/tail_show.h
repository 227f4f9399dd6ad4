/* SPDX-License-Identifier: PostgreSQL */
/*
 * Changes as lines: which of them are shown, and how, for people or as JSON. Pure: changes in, text
 * out; no descriptors, no connection.
 *
 * People's text holds nothing that a terminal would act upon: control characters, what is not UTF-8
 * and marks that turn the direction of writing are shown as escapes.
 */
#ifndef PGCTL_TAIL_SHOW_H
#define PGCTL_TAIL_SHOW_H

#include <pgwalstream.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/buf.h"
#include "common/pg/typecache.h"

enum tail_op {
	TAIL_INSERT = 1,
	TAIL_UPDATE = 2,
	TAIL_DELETE = 4,
	TAIL_TRUNCATE = 8,
	TAIL_MESSAGE = 16
};
#define TAIL_OPS_DEFAULT (TAIL_INSERT | TAIL_UPDATE | TAIL_DELETE | TAIL_TRUNCATE)

struct tail_filter {
	unsigned ops;              /* enum tail_op */
	const char *const *tables; /* "table" or "schema.table"; borrowed */
	size_t n_tables;           /* 0: all. Messages belong to no table: ops alone decide */
};

struct tail_show {
	bool json;
	struct tail_filter filter;
	struct typecache *types;      /* borrowed */
	struct pgws_catalog *catalog; /* borrowed: what a Truncate's further relations are */
	/* The transaction that is being shown. */
	bool begun;           /* its BEGIN line is out */
	uint64_t rows, shown; /* all of it so far, and what was shown */
};

/* "insert,update" -> *ret_ops; 0, or -EINVAL. */
int tail_ops_parse(const char *list, unsigned *ret_ops) __attribute__((warn_unused_result));
/* OIDs of the relation's columns that the cache does not know; ret_oids has room for all of them.
 */
size_t tail_missing_types(
	const struct pgws_relation *rel, struct typecache *types, uint32_t *ret_oids);
/* Whether a change of this relation would be shown. */
bool tail_wants_relation(const struct tail_filter *f, const struct pgws_relation *rel);
/* Appends the lines of one change, if it is to be shown. How many changes were shown: 0 or 1, more
 * only for a Truncate of several tables. */
unsigned tail_show_change(struct tail_show *s, const struct pgws_change *c, struct buf *out);

#endif
