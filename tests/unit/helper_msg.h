/* SPDX-License-Identifier: PostgreSQL */
/*
 * Whether two decoded messages say the same, field by field, whatever bytes they borrow.
 */
#ifndef TESTS_UNIT_HELPER_MSG_H
#define TESTS_UNIT_HELPER_MSG_H

#include <stdbool.h>
#include <stddef.h>
#include <string.h>

#include "libpgwalstream/pgwalstream.h"

static inline bool tuples_equal(const struct pgws_tuple *a, const struct pgws_tuple *b)
{
	struct pgws_column x, y;
	size_t at_a = 0, at_b = 0, n = 0;
	if (a->n_columns != b->n_columns)
		return false;
	for (; pgws_tuple_next(a, &at_a, &x); n++) {
		if (!pgws_tuple_next(b, &at_b, &y) || x.kind != y.kind || x.len != y.len ||
			(x.data == NULL) != (y.data == NULL) ||
			(x.len > 0 && memcmp(x.data, y.data, x.len) != 0))
			return false;
	}
	return n == a->n_columns && !pgws_tuple_next(b, &at_b, &y);
}

static inline bool relations_equal(const struct pgws_msg *a, const struct pgws_msg *b)
{
	struct pgws_relation_column x, y;
	size_t at_a = 0, at_b = 0, n = 0;
	if (a->u.relation.relid != b->u.relation.relid ||
		strcmp(a->u.relation.nspname, b->u.relation.nspname) != 0 ||
		strcmp(a->u.relation.relname, b->u.relation.relname) != 0 ||
		a->u.relation.replident != b->u.relation.replident ||
		a->u.relation.n_columns != b->u.relation.n_columns)
		return false;
	for (; pgws_relation_next(a, &at_a, &x); n++) {
		if (!pgws_relation_next(b, &at_b, &y) || x.key != y.key ||
			strcmp(x.name, y.name) != 0 || x.typid != y.typid || x.typmod != y.typmod)
			return false;
	}
	return n == a->u.relation.n_columns && !pgws_relation_next(b, &at_b, &y);
}

static inline bool truncates_equal(const struct pgws_msg *a, const struct pgws_msg *b)
{
	if (a->u.truncate.cascade != b->u.truncate.cascade ||
		a->u.truncate.restart_identity != b->u.truncate.restart_identity ||
		a->u.truncate.n_relids != b->u.truncate.n_relids)
		return false;
	for (uint32_t i = 0; i < a->u.truncate.n_relids; i++) {
		if (pgws_truncate_relid(a, i) != pgws_truncate_relid(b, i))
			return false;
	}
	return true;
}

static inline bool rows_equal(const struct pgws_msg *a, const struct pgws_msg *b)
{
	return a->u.change.relid == b->u.change.relid &&
	       a->u.change.old_kind == b->u.change.old_kind &&
	       tuples_equal(&a->u.change.old_row, &b->u.change.old_row) &&
	       tuples_equal(&a->u.change.new_row, &b->u.change.new_row);
}

static inline bool logical_messages_equal(const struct pgws_msg *a, const struct pgws_msg *b)
{
	return a->u.message.transactional == b->u.message.transactional &&
	       a->u.message.lsn == b->u.message.lsn &&
	       strcmp(a->u.message.prefix, b->u.message.prefix) == 0 &&
	       a->u.message.len == b->u.message.len &&
	       (a->u.message.len == 0 ||
		       memcmp(a->u.message.data, b->u.message.data, a->u.message.len) == 0);
}

/* b P p K r, and the ends of a stream. */
static inline bool ends_equal(const struct pgws_msg *a, const struct pgws_msg *b)
{
	switch (a->type) {
	case PGWS_STREAM_COMMIT:
		return a->u.stream_commit.xid == b->u.stream_commit.xid &&
		       a->u.stream_commit.flags == b->u.stream_commit.flags &&
		       a->u.stream_commit.commit_lsn == b->u.stream_commit.commit_lsn &&
		       a->u.stream_commit.end_lsn == b->u.stream_commit.end_lsn &&
		       a->u.stream_commit.commit_time == b->u.stream_commit.commit_time;
	case PGWS_STREAM_ABORT:
		return a->u.stream_abort.xid == b->u.stream_abort.xid &&
		       a->u.stream_abort.subxid == b->u.stream_abort.subxid &&
		       a->u.stream_abort.has_lsn == b->u.stream_abort.has_lsn &&
		       a->u.stream_abort.lsn == b->u.stream_abort.lsn &&
		       a->u.stream_abort.time == b->u.stream_abort.time;
	case PGWS_ROLLBACK_PREPARED:
		return a->u.rollback_prepared.flags == b->u.rollback_prepared.flags &&
		       a->u.rollback_prepared.prepare_end_lsn ==
			       b->u.rollback_prepared.prepare_end_lsn &&
		       a->u.rollback_prepared.end_lsn == b->u.rollback_prepared.end_lsn &&
		       a->u.rollback_prepared.prepare_time == b->u.rollback_prepared.prepare_time &&
		       a->u.rollback_prepared.rollback_time ==
			       b->u.rollback_prepared.rollback_time &&
		       a->u.rollback_prepared.xid == b->u.rollback_prepared.xid &&
		       strcmp(a->u.rollback_prepared.gid, b->u.rollback_prepared.gid) == 0;
	default:
		return a->u.prepare.flags == b->u.prepare.flags &&
		       a->u.prepare.lsn == b->u.prepare.lsn &&
		       a->u.prepare.end_lsn == b->u.prepare.end_lsn &&
		       a->u.prepare.time == b->u.prepare.time &&
		       a->u.prepare.xid == b->u.prepare.xid &&
		       strcmp(a->u.prepare.gid, b->u.prepare.gid) == 0;
	}
}

static inline bool messages_equal(const struct pgws_msg *a, const struct pgws_msg *b)
{
	if (a->type != b->type || a->xid != b->xid)
		return false;
	switch (a->type) {
	case PGWS_BEGIN:
		return a->u.begin.final_lsn == b->u.begin.final_lsn &&
		       a->u.begin.commit_time == b->u.begin.commit_time &&
		       a->u.begin.xid == b->u.begin.xid;
	case PGWS_COMMIT:
		return a->u.commit.flags == b->u.commit.flags &&
		       a->u.commit.commit_lsn == b->u.commit.commit_lsn &&
		       a->u.commit.end_lsn == b->u.commit.end_lsn &&
		       a->u.commit.commit_time == b->u.commit.commit_time;
	case PGWS_ORIGIN:
		return a->u.origin.lsn == b->u.origin.lsn &&
		       strcmp(a->u.origin.name, b->u.origin.name) == 0;
	case PGWS_RELATION:
		return relations_equal(a, b);
	case PGWS_TYPE:
		return a->u.type_.typid == b->u.type_.typid &&
		       strcmp(a->u.type_.nspname, b->u.type_.nspname) == 0 &&
		       strcmp(a->u.type_.typname, b->u.type_.typname) == 0;
	case PGWS_INSERT:
	case PGWS_UPDATE:
	case PGWS_DELETE:
		return rows_equal(a, b);
	case PGWS_TRUNCATE:
		return truncates_equal(a, b);
	case PGWS_MESSAGE:
		return logical_messages_equal(a, b);
	case PGWS_STREAM_START:
		return a->u.stream_start.xid == b->u.stream_start.xid &&
		       a->u.stream_start.first == b->u.stream_start.first;
	case PGWS_STREAM_STOP:
		return true;
	default:
		return ends_equal(a, b);
	}
}

#endif
