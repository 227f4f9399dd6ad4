/* SPDX-License-Identifier: PostgreSQL */
/*
 * The encoder: structures to pgoutput's bytes, the inverse of decode.c (the wire format is drawn
 * there). For tests and stand-ins of a server; nothing is allocated.
 *
 * Context: any thread; no state. A message is put out twice by the same functions: the first time
 * only counted and checked, the second time written.
 *
 * Invariants:
 *   1. Nothing is written unless all of it fits and all of it is a message.
 *   2. Columns are read and put out one by one, within the bounds that the tuple or relation gives:
 *      a caller's mistake is PGWS_EINVAL, not a read past the end.
 *   3. What is accepted here is accepted by the decoder and gives the same structure.
 */
#include "config.h"

#include <string.h>

#include "libpgwalstream/pgwalstream.h"
#include "libpgwalstream/wire.h"

/* Counts always, writes if there is a place; a mistake sticks. */
struct writer {
	uint8_t *to; /* NULL: only count */
	size_t n;
	bool invalid;
};

static void put_bytes(struct writer *w, const void *bytes, size_t len)
{
	if (bytes == NULL && len > 0)
		w->invalid = true;
	else if (w->to != NULL && len > 0)
		memcpy(w->to + w->n, bytes, len);
	w->n += len;
}

static void put8(struct writer *w, uint8_t v)
{
	if (w->to != NULL)
		w->to[w->n] = v;
	w->n++;
}

static void put16(struct writer *w, uint16_t v)
{
	if (w->to != NULL)
		pgwsi_put16(w->to + w->n, v);
	w->n += 2;
}

static void put32(struct writer *w, uint32_t v)
{
	if (w->to != NULL)
		pgwsi_put32(w->to + w->n, v);
	w->n += 4;
}

static void put64(struct writer *w, uint64_t v)
{
	if (w->to != NULL)
		pgwsi_put64(w->to + w->n, v);
	w->n += 8;
}

static void put_string(struct writer *w, const char *s)
{
	if (s == NULL)
		w->invalid = true;
	else
		put_bytes(w, s, strlen(s) + 1);
}

static void put_bool(struct writer *w, bool v)
{
	put8(w, v ? 1 : 0);
}

/* Flags that nobody has defined yet: the decoder does not take them either. */
static void put_no_flags(struct writer *w, uint8_t flags)
{
	if (flags != 0)
		w->invalid = true;
	put8(w, flags);
}

static void put_column(struct writer *w, const struct pgws_column *col)
{
	put8(w, (uint8_t)col->kind);
	switch (col->kind) {
	case PGWS_TEXT:
	case PGWS_BINARY:
		put32(w, col->len);
		put_bytes(w, col->data, col->len);
		break;
	case PGWS_NULL:
	case PGWS_UNCHANGED:
		break;
	default:
		w->invalid = true;
	}
}

/* The column at *offset, checked: the tuple may be the caller's own work. */
static bool next_column(const struct pgws_tuple *t, size_t *offset, struct pgws_column *ret_col)
{
	size_t left = t->len - *offset;
	if (left < 1)
		return false;
	uint8_t kind = t->data[*offset];
	if ((kind == PGWS_TEXT || kind == PGWS_BINARY) &&
		(left < 5 || pgwsi_get32(t->data + *offset + 1) > left - 5))
		return false;
	return pgws_tuple_next(t, offset, ret_col);
}

static void put_tuple(struct writer *w, const struct pgws_tuple *t)
{
	struct pgws_column col;
	size_t offset = 0;
	put16(w, t->n_columns);
	for (unsigned i = 0; i < t->n_columns && !w->invalid; i++) {
		if (t->data != NULL && next_column(t, &offset, &col))
			put_column(w, &col);
		else
			w->invalid = true;
	}
	if (offset != t->len)
		w->invalid = true;
}

static void put_relation_column(struct writer *w, const struct pgws_relation_column *col)
{
	put_bool(w, col->key);
	put_string(w, col->name);
	put32(w, col->typid);
	put32(w, (uint32_t)col->typmod);
}

/* As next_column. */
static bool next_relation_column(
	const struct pgws_msg *m, size_t *offset, struct pgws_relation_column *ret_col)
{
	const uint8_t *p = m->u.relation.columns + *offset;
	size_t left = m->u.relation.columns_len - *offset;
	if (left < 10 || p[0] > 1)
		return false;
	const uint8_t *zero = memchr(p + 1, 0, left - 1);
	if (zero == NULL || left - (size_t)(zero + 1 - p) < 8)
		return false;
	return pgws_relation_next(m, offset, ret_col);
}

static void encode_begin(struct writer *w, const struct pgws_msg *m)
{
	put64(w, m->u.begin.final_lsn);
	put64(w, (uint64_t)m->u.begin.commit_time);
	put32(w, m->u.begin.xid);
}

static void encode_commit(struct writer *w, const struct pgws_msg *m)
{
	put_no_flags(w, m->u.commit.flags);
	put64(w, m->u.commit.commit_lsn);
	put64(w, m->u.commit.end_lsn);
	put64(w, (uint64_t)m->u.commit.commit_time);
}

static void encode_origin(struct writer *w, const struct pgws_msg *m)
{
	put64(w, m->u.origin.lsn);
	put_string(w, m->u.origin.name);
}

static void encode_relation(struct writer *w, const struct pgws_msg *m)
{
	char replident = m->u.relation.replident;
	put32(w, m->u.relation.relid);
	put_string(w, m->u.relation.nspname);
	put_string(w, m->u.relation.relname);
	if (replident == 0 || strchr("dnfi", replident) == NULL)
		w->invalid = true;
	put8(w, (uint8_t)replident);
	put16(w, m->u.relation.n_columns);
	struct pgws_relation_column col;
	size_t offset = 0;
	for (unsigned i = 0; i < m->u.relation.n_columns && !w->invalid; i++) {
		if (m->u.relation.columns != NULL && next_relation_column(m, &offset, &col))
			put_relation_column(w, &col);
		else
			w->invalid = true;
	}
	if (offset != m->u.relation.columns_len)
		w->invalid = true;
}

static void encode_type(struct writer *w, const struct pgws_msg *m)
{
	put32(w, m->u.type_.typid);
	put_string(w, m->u.type_.nspname);
	put_string(w, m->u.type_.typname);
}

static void encode_insert(struct writer *w, const struct pgws_msg *m)
{
	put32(w, m->u.change.relid);
	if (m->u.change.old_kind != PGWS_OLD_NONE)
		w->invalid = true;
	put8(w, 'N');
	put_tuple(w, &m->u.change.new_row);
}

static void put_old_row(struct writer *w, const struct pgws_msg *m)
{
	if (m->u.change.old_kind != PGWS_OLD_KEY && m->u.change.old_kind != PGWS_OLD_FULL)
		w->invalid = true;
	put8(w, (uint8_t)m->u.change.old_kind);
	put_tuple(w, &m->u.change.old_row);
}

static void encode_update(struct writer *w, const struct pgws_msg *m)
{
	put32(w, m->u.change.relid);
	if (m->u.change.old_kind != PGWS_OLD_NONE)
		put_old_row(w, m);
	put8(w, 'N');
	put_tuple(w, &m->u.change.new_row);
}

static void encode_delete(struct writer *w, const struct pgws_msg *m)
{
	put32(w, m->u.change.relid);
	put_old_row(w, m);
}

static void encode_truncate(struct writer *w, const struct pgws_msg *m)
{
	put32(w, m->u.truncate.n_relids);
	put8(w, (uint8_t)((m->u.truncate.cascade ? 1 : 0) |
			  (m->u.truncate.restart_identity ? 2 : 0)));
	if (m->u.truncate.n_relids > 0 && m->u.truncate.relids == NULL)
		w->invalid = true;
	for (uint32_t i = 0; i < m->u.truncate.n_relids && !w->invalid; i++)
		put32(w, pgws_truncate_relid(m, i));
}

static void encode_message(struct writer *w, const struct pgws_msg *m)
{
	put_bool(w, m->u.message.transactional);
	put64(w, m->u.message.lsn);
	put_string(w, m->u.message.prefix);
	put32(w, m->u.message.len);
	put_bytes(w, m->u.message.data, m->u.message.len);
}

static void encode_stream_start(struct writer *w, const struct pgws_msg *m)
{
	if (m->u.stream_start.xid == 0)
		w->invalid = true;
	put32(w, m->u.stream_start.xid);
	put_bool(w, m->u.stream_start.first);
}

static void encode_stream_stop(struct writer *w, const struct pgws_msg *m)
{
	(void)w;
	(void)m;
}

static void encode_stream_commit(struct writer *w, const struct pgws_msg *m)
{
	put32(w, m->u.stream_commit.xid);
	put_no_flags(w, m->u.stream_commit.flags);
	put64(w, m->u.stream_commit.commit_lsn);
	put64(w, m->u.stream_commit.end_lsn);
	put64(w, (uint64_t)m->u.stream_commit.commit_time);
}

static void encode_stream_abort(struct writer *w, const struct pgws_msg *m)
{
	put32(w, m->u.stream_abort.xid);
	put32(w, m->u.stream_abort.subxid);
	if (m->u.stream_abort.has_lsn) {
		put64(w, m->u.stream_abort.lsn);
		put64(w, (uint64_t)m->u.stream_abort.time);
	}
}

/* b P p K: all but b have flags. */
static void encode_prepare(struct writer *w, const struct pgws_msg *m)
{
	if (m->type != PGWS_BEGIN_PREPARE)
		put_no_flags(w, m->u.prepare.flags);
	put64(w, m->u.prepare.lsn);
	put64(w, m->u.prepare.end_lsn);
	put64(w, (uint64_t)m->u.prepare.time);
	put32(w, m->u.prepare.xid);
	put_string(w, m->u.prepare.gid);
}

static void encode_rollback_prepared(struct writer *w, const struct pgws_msg *m)
{
	put_no_flags(w, m->u.rollback_prepared.flags);
	put64(w, m->u.rollback_prepared.prepare_end_lsn);
	put64(w, m->u.rollback_prepared.end_lsn);
	put64(w, (uint64_t)m->u.rollback_prepared.prepare_time);
	put64(w, (uint64_t)m->u.rollback_prepared.rollback_time);
	put32(w, m->u.rollback_prepared.xid);
	put_string(w, m->u.rollback_prepared.gid);
}

/* By type byte. */
static const struct encoder {
	void (*fn)(struct writer *w, const struct pgws_msg *m);
	bool has_xid; /* inside a stream */
} encoders[256] = {
	[PGWS_BEGIN] = {encode_begin, false},
	[PGWS_COMMIT] = {encode_commit, false},
	[PGWS_ORIGIN] = {encode_origin, false},
	[PGWS_RELATION] = {encode_relation, true},
	[PGWS_TYPE] = {encode_type, true},
	[PGWS_INSERT] = {encode_insert, true},
	[PGWS_UPDATE] = {encode_update, true},
	[PGWS_DELETE] = {encode_delete, true},
	[PGWS_TRUNCATE] = {encode_truncate, true},
	[PGWS_MESSAGE] = {encode_message, true},
	[PGWS_STREAM_START] = {encode_stream_start, false},
	[PGWS_STREAM_STOP] = {encode_stream_stop, false},
	[PGWS_STREAM_COMMIT] = {encode_stream_commit, false},
	[PGWS_STREAM_ABORT] = {encode_stream_abort, false},
	[PGWS_BEGIN_PREPARE] = {encode_prepare, false},
	[PGWS_PREPARE] = {encode_prepare, false},
	[PGWS_COMMIT_PREPARED] = {encode_prepare, false},
	[PGWS_ROLLBACK_PREPARED] = {encode_rollback_prepared, false},
	[PGWS_STREAM_PREPARE] = {encode_prepare, false},
};

static void encode(struct writer *w, const struct pgws_msg *m, bool in_stream)
{
	const struct encoder *e = &encoders[(uint8_t)m->type];
	put8(w, (uint8_t)m->type);
	if (in_stream && e->has_xid) {
		if (m->xid == 0)
			w->invalid = true;
		put32(w, m->xid);
	}
	e->fn(w, m);
}

int64_t pgws_encode(const struct pgws_msg *msg, bool in_stream, void *buf, size_t size)
{
	if ((unsigned)msg->type > UINT8_MAX || encoders[(uint8_t)msg->type].fn == NULL)
		return PGWS_EINVAL;
	struct writer w = {.to = NULL};
	encode(&w, msg, in_stream);
	if (w.invalid)
		return PGWS_EINVAL;
	if (w.n <= size) {
		w = (struct writer){.to = buf};
		encode(&w, msg, in_stream);
	}
	return (int64_t)w.n;
}

int64_t pgws_encode_tuple(const struct pgws_column *columns, uint16_t n, void *buf, size_t size,
	struct pgws_tuple *ret_tuple)
{
	struct writer w = {.to = NULL};
	for (unsigned i = 0; i < n; i++)
		put_column(&w, &columns[i]);
	if (w.invalid)
		return PGWS_EINVAL;
	if (w.n > size)
		return (int64_t)w.n;
	w = (struct writer){.to = buf};
	for (unsigned i = 0; i < n; i++)
		put_column(&w, &columns[i]);
	*ret_tuple = (struct pgws_tuple){.data = buf, .len = w.n, .n_columns = n};
	return (int64_t)w.n;
}

int64_t pgws_encode_relation_columns(const struct pgws_relation_column *columns, uint16_t n,
	void *buf, size_t size, struct pgws_msg *relation)
{
	struct writer w = {.to = NULL};
	for (unsigned i = 0; i < n; i++)
		put_relation_column(&w, &columns[i]);
	if (w.invalid)
		return PGWS_EINVAL;
	if (w.n > size)
		return (int64_t)w.n;
	w = (struct writer){.to = buf};
	for (unsigned i = 0; i < n; i++)
		put_relation_column(&w, &columns[i]);
	relation->u.relation.columns = buf;
	relation->u.relation.columns_len = w.n;
	relation->u.relation.n_columns = n;
	return (int64_t)w.n;
}
