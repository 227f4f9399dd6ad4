/* SPDX-License-Identifier: PostgreSQL */
/*
 * The pgoutput decoder, protocol versions 1 to 4: bytes in, one struct out, nothing allocated.
 *
 * Context: any thread; no state of its own: that one stands inside a stream is the caller's
 * knowledge, as is whether a message belongs there. Called once for every event that is received
 * and again by every consumer of it: the changes are the hot path.
 *
 * Wire format, after the type byte (integers big-endian, str = zero-terminated, [xid] = xid4 only
 * inside a stream):
 *
 *     B  lsn8 final, ts8, xid4                 C  i1 0, lsn8 commit, lsn8 end, ts8
 *     O  lsn8, str name                        Y  [xid] oid4, str namespace, str name
 *     R  [xid] oid4, str namespace, str name, i1 identity, i2 n,
 *        n * {i1 key, str, oid4, i4 typmod}
 *     I  [xid] oid4 'N' tuple                  U  [xid] oid4 ['K' tuple | 'O' tuple] 'N' tuple
 *     D  [xid] oid4 'K'|'O' tuple              T  [xid] i4 n, i1 bits, n * oid4
 *     M  [xid] i1 flags, lsn8, str prefix, i4 len, bytes
 *     S  xid4, i1 first                        E  nothing
 *     c  xid4, i1 0, lsn8, lsn8 end, ts8       A  xid4, subxid4 [lsn8, ts8]
 *     b  lsn8, lsn8 end, ts8, xid4, str gid    P p K  i1 0, then as b
 *     r  i1 0, lsn8 prepare end, lsn8 end, ts8 prepare, ts8 rollback, xid4, str gid
 *     tuple  i2 n, n * ('n' | 'u' | 't' i4 len bytes | 'b' i4 len bytes)
 *
 * Invariants:
 *   1. No byte at or beyond data + len is read.
 *   2. A message is accepted only if it is used up exactly: a byte too many is an error too.
 *   3. Whatever was accepted can be walked without a further check of its bounds.
 *   4. Nothing is lost: a bit that no field holds (flags that nobody has defined, a boolean other
 *      than 0 and 1) is an error, so that the encoder gives back the same bytes.
 */
#include "config.h"

#include <string.h>

#include "libpgwalstream/pgwalstream.h"
#include "libpgwalstream/wire.h"

/* Size of the string at p with its zero byte; 0 if it does not end within left bytes. */
static size_t string_size(const uint8_t *p, size_t left)
{
	const uint8_t *zero = left == 0 ? NULL : memchr(p, 0, left);
	return zero != NULL ? (size_t)(zero - p) + 1 : 0;
}

/* Behind n columns of a tuple, NULL if they do not fit. */
static inline const uint8_t *skip_columns(const uint8_t *p, const uint8_t *end, unsigned n)
{
	for (; n > 0; n--) {
		if (p == end)
			return NULL;
		uint8_t kind = *p++;
		if (kind == PGWS_TEXT || kind == PGWS_BINARY) {
			if (end - p < 4)
				return NULL;
			uint32_t len = pgwsi_get32(p);
			p += 4;
			if ((size_t)(end - p) < len)
				return NULL;
			p += len;
		} else if (kind != PGWS_NULL && kind != PGWS_UNCHANGED) {
			return NULL;
		}
	}
	return p;
}

/* A tuple with its count. Returns behind it, NULL if it is malformed. */
static inline const uint8_t *get_tuple(
	const uint8_t *p, const uint8_t *end, struct pgws_tuple *ret_tuple)
{
	if (end - p < 2)
		return NULL;
	uint16_t n = pgwsi_get16(p);
	p += 2;
	const uint8_t *behind = skip_columns(p, end, n);
	if (behind != NULL)
		*ret_tuple = (struct pgws_tuple){p, (size_t)(behind - p), n};
	return behind;
}

/*
 * One function for each message: the bytes behind type and xid, all of them. They write ret_msg's
 * union only when the message is good.
 */

static int decode_begin(const uint8_t *p, size_t len, struct pgws_msg *ret_msg)
{
	if (len != 20)
		return PGWS_EPROTO;
	ret_msg->u.begin.final_lsn = pgwsi_get64(p);
	ret_msg->u.begin.commit_time = (int64_t)pgwsi_get64(p + 8);
	ret_msg->u.begin.xid = pgwsi_get32(p + 16);
	return 0;
}

static int decode_commit(const uint8_t *p, size_t len, struct pgws_msg *ret_msg)
{
	if (len != 25 || p[0] != 0)
		return PGWS_EPROTO;
	ret_msg->u.commit.flags = 0;
	ret_msg->u.commit.commit_lsn = pgwsi_get64(p + 1);
	ret_msg->u.commit.end_lsn = pgwsi_get64(p + 9);
	ret_msg->u.commit.commit_time = (int64_t)pgwsi_get64(p + 17);
	return 0;
}

static int decode_origin(const uint8_t *p, size_t len, struct pgws_msg *ret_msg)
{
	if (len < 9 || string_size(p + 8, len - 8) != len - 8)
		return PGWS_EPROTO;
	ret_msg->u.origin.lsn = pgwsi_get64(p);
	ret_msg->u.origin.name = (const char *)p + 8;
	return 0;
}

/* Behind n columns of a Relation message, NULL if they do not fit. */
static const uint8_t *skip_relation_columns(const uint8_t *p, const uint8_t *end, unsigned n)
{
	for (; n > 0; n--) {
		if (p == end || p[0] > 1)
			return NULL;
		p++;
		size_t size = string_size(p, (size_t)(end - p));
		if (size == 0 || (size_t)(end - p) - size < 8)
			return NULL;
		p += size + 8;
	}
	return p;
}

static int decode_relation(const uint8_t *p, size_t len, struct pgws_msg *ret_msg)
{
	if (len < 4)
		return PGWS_EPROTO;
	size_t namespace_size = string_size(p + 4, len - 4);
	if (namespace_size == 0)
		return PGWS_EPROTO;
	size_t at = 4 + namespace_size;
	size_t name_size = string_size(p + at, len - at);
	if (name_size == 0 || len - at - name_size < 3)
		return PGWS_EPROTO;
	const uint8_t *rest = p + at + name_size;
	if (rest[0] == 0 || strchr("dnfi", rest[0]) == NULL)
		return PGWS_EPROTO;
	uint16_t n = pgwsi_get16(rest + 1);
	if (skip_relation_columns(rest + 3, p + len, n) != p + len)
		return PGWS_EPROTO;
	ret_msg->u.relation.relid = pgwsi_get32(p);
	ret_msg->u.relation.nspname = (const char *)p + 4;
	ret_msg->u.relation.relname = (const char *)p + at;
	ret_msg->u.relation.replident = (char)rest[0];
	ret_msg->u.relation.n_columns = n;
	ret_msg->u.relation.columns = rest + 3;
	ret_msg->u.relation.columns_len = (size_t)(p + len - (rest + 3));
	return 0;
}

static int decode_type(const uint8_t *p, size_t len, struct pgws_msg *ret_msg)
{
	if (len < 4)
		return PGWS_EPROTO;
	size_t namespace_size = string_size(p + 4, len - 4);
	if (namespace_size == 0)
		return PGWS_EPROTO;
	size_t at = 4 + namespace_size;
	if (len == at || string_size(p + at, len - at) != len - at)
		return PGWS_EPROTO;
	ret_msg->u.type_.typid = pgwsi_get32(p);
	ret_msg->u.type_.nspname = (const char *)p + 4;
	ret_msg->u.type_.typname = (const char *)p + at;
	return 0;
}

static int decode_insert(const uint8_t *p, size_t len, struct pgws_msg *ret_msg)
{
	struct pgws_tuple row;
	if (len < 5 || p[4] != 'N' || get_tuple(p + 5, p + len, &row) != p + len)
		return PGWS_EPROTO;
	ret_msg->u.change.relid = pgwsi_get32(p);
	ret_msg->u.change.old_kind = PGWS_OLD_NONE;
	ret_msg->u.change.old_row = (struct pgws_tuple){NULL, 0, 0};
	ret_msg->u.change.new_row = row;
	return 0;
}

static int decode_update(const uint8_t *p, size_t len, struct pgws_msg *ret_msg)
{
	if (len < 5)
		return PGWS_EPROTO;
	const uint8_t *end = p + len, *at = p + 4;
	struct pgws_tuple old_row = {NULL, 0, 0}, new_row;
	enum pgws_old old_kind = PGWS_OLD_NONE;
	if (*at == PGWS_OLD_KEY || *at == PGWS_OLD_FULL) {
		old_kind = (enum pgws_old)at[0];
		at = get_tuple(at + 1, end, &old_row);
		if (at == NULL || at == end)
			return PGWS_EPROTO;
	}
	if (*at != 'N' || get_tuple(at + 1, end, &new_row) != end)
		return PGWS_EPROTO;
	ret_msg->u.change.relid = pgwsi_get32(p);
	ret_msg->u.change.old_kind = old_kind;
	ret_msg->u.change.old_row = old_row;
	ret_msg->u.change.new_row = new_row;
	return 0;
}

static int decode_delete(const uint8_t *p, size_t len, struct pgws_msg *ret_msg)
{
	struct pgws_tuple row;
	if (len < 5 || (p[4] != PGWS_OLD_KEY && p[4] != PGWS_OLD_FULL) ||
		get_tuple(p + 5, p + len, &row) != p + len)
		return PGWS_EPROTO;
	ret_msg->u.change.relid = pgwsi_get32(p);
	ret_msg->u.change.old_kind = (enum pgws_old)p[4];
	ret_msg->u.change.old_row = row;
	ret_msg->u.change.new_row = (struct pgws_tuple){NULL, 0, 0};
	return 0;
}

static int decode_truncate(const uint8_t *p, size_t len, struct pgws_msg *ret_msg)
{
	/* 64 bits: n * 4 could overflow where size_t has 32. */
	if (len < 5 || p[4] > 3 || (uint64_t)pgwsi_get32(p) * 4 != len - 5)
		return PGWS_EPROTO;
	ret_msg->u.truncate.n_relids = pgwsi_get32(p);
	ret_msg->u.truncate.cascade = (p[4] & 1) != 0;
	ret_msg->u.truncate.restart_identity = (p[4] & 2) != 0;
	ret_msg->u.truncate.relids = p + 5;
	return 0;
}

static int decode_message(const uint8_t *p, size_t len, struct pgws_msg *ret_msg)
{
	if (len < 9 || p[0] > 1)
		return PGWS_EPROTO;
	size_t prefix_size = string_size(p + 9, len - 9);
	if (prefix_size == 0 || len - 9 - prefix_size < 4)
		return PGWS_EPROTO;
	const uint8_t *rest = p + 9 + prefix_size;
	if (pgwsi_get32(rest) != len - 9 - prefix_size - 4)
		return PGWS_EPROTO;
	ret_msg->u.message.transactional = p[0] == 1;
	ret_msg->u.message.lsn = pgwsi_get64(p + 1);
	ret_msg->u.message.prefix = (const char *)p + 9;
	ret_msg->u.message.data = rest + 4;
	ret_msg->u.message.len = pgwsi_get32(rest);
	return 0;
}

static int decode_stream_start(const uint8_t *p, size_t len, struct pgws_msg *ret_msg)
{
	if (len != 5 || p[4] > 1 || pgwsi_get32(p) == 0)
		return PGWS_EPROTO;
	ret_msg->u.stream_start.xid = pgwsi_get32(p);
	ret_msg->u.stream_start.first = p[4] == 1;
	return 0;
}

static int decode_stream_stop(const uint8_t *p, size_t len, struct pgws_msg *ret_msg)
{
	(void)p;
	(void)ret_msg;
	return len == 0 ? 0 : PGWS_EPROTO;
}

static int decode_stream_commit(const uint8_t *p, size_t len, struct pgws_msg *ret_msg)
{
	if (len != 29 || p[4] != 0)
		return PGWS_EPROTO;
	ret_msg->u.stream_commit.xid = pgwsi_get32(p);
	ret_msg->u.stream_commit.flags = 0;
	ret_msg->u.stream_commit.commit_lsn = pgwsi_get64(p + 5);
	ret_msg->u.stream_commit.end_lsn = pgwsi_get64(p + 13);
	ret_msg->u.stream_commit.commit_time = (int64_t)pgwsi_get64(p + 21);
	return 0;
}

static int decode_stream_abort(const uint8_t *p, size_t len, struct pgws_msg *ret_msg)
{
	if (len != 8 && len != 24)
		return PGWS_EPROTO;
	ret_msg->u.stream_abort.xid = pgwsi_get32(p);
	ret_msg->u.stream_abort.subxid = pgwsi_get32(p + 4);
	ret_msg->u.stream_abort.has_lsn = len == 24;
	ret_msg->u.stream_abort.lsn = len == 24 ? pgwsi_get64(p + 8) : 0;
	ret_msg->u.stream_abort.time = len == 24 ? (int64_t)pgwsi_get64(p + 16) : 0;
	return 0;
}

static int decode_begin_prepare(const uint8_t *p, size_t len, struct pgws_msg *ret_msg)
{
	if (len < 29 || string_size(p + 28, len - 28) != len - 28)
		return PGWS_EPROTO;
	ret_msg->u.prepare.flags = 0;
	ret_msg->u.prepare.lsn = pgwsi_get64(p);
	ret_msg->u.prepare.end_lsn = pgwsi_get64(p + 8);
	ret_msg->u.prepare.time = (int64_t)pgwsi_get64(p + 16);
	ret_msg->u.prepare.xid = pgwsi_get32(p + 24);
	ret_msg->u.prepare.gid = (const char *)p + 28;
	return 0;
}

/* P, p and K. */
static int decode_prepare(const uint8_t *p, size_t len, struct pgws_msg *ret_msg)
{
	if (len == 0 || p[0] != 0)
		return PGWS_EPROTO;
	return decode_begin_prepare(p + 1, len - 1, ret_msg);
}

static int decode_rollback_prepared(const uint8_t *p, size_t len, struct pgws_msg *ret_msg)
{
	if (len < 38 || p[0] != 0 || string_size(p + 37, len - 37) != len - 37)
		return PGWS_EPROTO;
	ret_msg->u.rollback_prepared.flags = 0;
	ret_msg->u.rollback_prepared.prepare_end_lsn = pgwsi_get64(p + 1);
	ret_msg->u.rollback_prepared.end_lsn = pgwsi_get64(p + 9);
	ret_msg->u.rollback_prepared.prepare_time = (int64_t)pgwsi_get64(p + 17);
	ret_msg->u.rollback_prepared.rollback_time = (int64_t)pgwsi_get64(p + 25);
	ret_msg->u.rollback_prepared.xid = pgwsi_get32(p + 33);
	ret_msg->u.rollback_prepared.gid = (const char *)p + 37;
	return 0;
}

/* By type byte. */
static const struct decoder {
	int (*fn)(const uint8_t *p, size_t len, struct pgws_msg *ret_msg);
	bool has_xid; /* inside a stream */
} decoders[256] = {
	[PGWS_BEGIN] = {decode_begin, false},
	[PGWS_COMMIT] = {decode_commit, false},
	[PGWS_ORIGIN] = {decode_origin, false},
	[PGWS_RELATION] = {decode_relation, true},
	[PGWS_TYPE] = {decode_type, true},
	[PGWS_INSERT] = {decode_insert, true},
	[PGWS_UPDATE] = {decode_update, true},
	[PGWS_DELETE] = {decode_delete, true},
	[PGWS_TRUNCATE] = {decode_truncate, true},
	[PGWS_MESSAGE] = {decode_message, true},
	[PGWS_STREAM_START] = {decode_stream_start, false},
	[PGWS_STREAM_STOP] = {decode_stream_stop, false},
	[PGWS_STREAM_COMMIT] = {decode_stream_commit, false},
	[PGWS_STREAM_ABORT] = {decode_stream_abort, false},
	[PGWS_BEGIN_PREPARE] = {decode_begin_prepare, false},
	[PGWS_PREPARE] = {decode_prepare, false},
	[PGWS_COMMIT_PREPARED] = {decode_prepare, false},
	[PGWS_ROLLBACK_PREPARED] = {decode_rollback_prepared, false},
	[PGWS_STREAM_PREPARE] = {decode_prepare, false},
};

int pgws_decode(const void *data, size_t len, bool in_stream, struct pgws_msg *ret_msg)
{
	if (len == 0)
		return PGWS_EPROTO;
	const uint8_t *p = data;
	uint8_t type = *p++;
	len--;
	const struct decoder *d = &decoders[type];
	if (d->fn == NULL)
		return PGWS_EPROTO;
	uint32_t xid = 0;
	if (in_stream && d->has_xid) {
		if (len < 4 || (xid = pgwsi_get32(p)) == 0)
			return PGWS_EPROTO;
		p += 4;
		len -= 4;
	}
	int err = d->fn(p, len, ret_msg);
	if (err != 0)
		return err;
	ret_msg->type = (enum pgws_type)type;
	ret_msg->xid = xid;
	return 0;
}

bool pgws_tuple_next(const struct pgws_tuple *t, size_t *offset, struct pgws_column *ret_col)
{
	if (*offset >= t->len)
		return false;
	const uint8_t *p = t->data + *offset;
	*ret_col = (struct pgws_column){.kind = (enum pgws_column_kind)p[0]};
	*offset += 1;
	if (p[0] == PGWS_TEXT || p[0] == PGWS_BINARY) {
		ret_col->len = pgwsi_get32(p + 1);
		ret_col->data = (const char *)p + 5;
		*offset += 4 + (size_t)ret_col->len;
	}
	return true;
}

bool pgws_relation_next(
	const struct pgws_msg *relation, size_t *offset, struct pgws_relation_column *ret_col)
{
	if (*offset >= relation->u.relation.columns_len)
		return false;
	const uint8_t *p = relation->u.relation.columns + *offset;
	const char *name = (const char *)p + 1;
	size_t name_size = strlen(name) + 1;
	*ret_col = (struct pgws_relation_column){
		.key = p[0] == 1,
		.name = name,
		.typid = pgwsi_get32(p + 1 + name_size),
		.typmod = (int32_t)pgwsi_get32(p + 1 + name_size + 4),
	};
	*offset += 1 + name_size + 8;
	return true;
}

uint32_t pgws_truncate_relid(const struct pgws_msg *truncate, uint32_t i)
{
	if (i >= truncate->u.truncate.n_relids)
		return 0;
	return pgwsi_get32(truncate->u.truncate.relids + (size_t)i * 4);
}
