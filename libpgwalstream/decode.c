/* SPDX-License-Identifier: PostgreSQL */
/*
 * The pgoutput decoder, protocol version 1: bytes in, one struct out, nothing allocated.
 *
 * Context: any thread; no state of its own. The library's users are the ring's consumers, which
 * decode records in place, and walstreamd, which looks at each message's envelope.
 *
 * Wire format, after the type byte (integers big-endian, str = zero-terminated):
 *
 *     B  lsn8 final, ts8, xid4                 C  i1 0, lsn8 commit, lsn8 end, ts8
 *     O  lsn8, str name                        Y  oid4, str namespace, str name
 *     R  oid4, str namespace, str name, i1 identity, i2 n, n * {i1 flags, str, oid4, i4 typmod}
 *     I  oid4 'N' tuple                        U  oid4 ['K' tuple | 'O' tuple] 'N' tuple
 *     D  oid4 'K'|'O' tuple                    T  i4 n, i1 bits, n * oid4
 *     M  i1 flags, lsn8, str prefix, i4 len, bytes
 *     A  xid4, subxid4 [lsn8, ts8]
 *     tuple  i2 n, n * ('n' | 'u' | 't' i4 len bytes | 'b' i4 len bytes)
 *
 * Invariants:
 *   1. No byte at or beyond data + len is read.
 *   2. A message is accepted only if it is used up exactly: a byte too many is an error too.
 *   3. Whatever was accepted can be walked without a further check of its bounds.
 */
#include "config.h"

#include <string.h>

#include "libpgwalstream/pgwalstream.h"

/* Reads over borrowed bytes with a sticky failure; a failed read gives zero. */
struct reader {
	const uint8_t *p;
	size_t left;
	bool failed;
};

static uint64_t be(const uint8_t *p, size_t n)
{
	uint64_t v = 0;
	for (size_t i = 0; i < n; i++)
		v = v << 8 | p[i];
	return v;
}

static const uint8_t *get_bytes(struct reader *r, size_t n)
{
	if (r->failed || r->left < n) {
		r->failed = true;
		return NULL;
	}
	const uint8_t *p = r->p;
	r->p += n;
	r->left -= n;
	return p;
}

static uint64_t get_int(struct reader *r, size_t n)
{
	const uint8_t *p = get_bytes(r, n);
	return p != NULL ? be(p, n) : 0;
}

static uint8_t get_u8(struct reader *r)
{
	return (uint8_t)get_int(r, 1);
}

static uint16_t get_u16(struct reader *r)
{
	return (uint16_t)get_int(r, 2);
}

static uint32_t get_u32(struct reader *r)
{
	return (uint32_t)get_int(r, 4);
}

static uint64_t get_u64(struct reader *r)
{
	return get_int(r, 8);
}

static const char *get_str(struct reader *r)
{
	const uint8_t *end = r->failed || r->left == 0 ? NULL : memchr(r->p, 0, r->left);
	if (end == NULL) {
		r->failed = true;
		return "";
	}
	return (const char *)get_bytes(r, (size_t)(end - r->p) + 1);
}

static void get_tuple(struct reader *r, struct pgws_tuple *ret_tuple)
{
	uint16_t n = get_u16(r);
	const uint8_t *start = r->p;
	for (uint16_t i = 0; i < n && !r->failed; i++) {
		uint8_t kind = get_u8(r);
		if (kind == PGWS_TEXT || kind == PGWS_BINARY)
			(void)get_bytes(r, get_u32(r)); /* its failure sticks */
		else if (kind != PGWS_NULL && kind != PGWS_UNCHANGED)
			r->failed = true;
	}
	*ret_tuple =
		(struct pgws_tuple){.data = start, .len = (size_t)(r->p - start), .n_columns = n};
}

static void decode_begin(struct reader *r, struct pgws_msg *m)
{
	m->u.begin.final_lsn = get_u64(r);
	m->u.begin.commit_time = (int64_t)get_u64(r);
	m->u.begin.xid = get_u32(r);
}

static void decode_commit(struct reader *r, struct pgws_msg *m)
{
	if (get_u8(r) != 0)
		r->failed = true; /* flags that nobody has defined */
	m->u.commit.commit_lsn = get_u64(r);
	m->u.commit.end_lsn = get_u64(r);
	m->u.commit.commit_time = (int64_t)get_u64(r);
}

static void decode_origin(struct reader *r, struct pgws_msg *m)
{
	m->u.origin.lsn = get_u64(r);
	m->u.origin.name = get_str(r);
}

static void decode_relation(struct reader *r, struct pgws_msg *m)
{
	m->u.relation.relid = get_u32(r);
	m->u.relation.nspname = get_str(r);
	m->u.relation.relname = get_str(r);
	m->u.relation.replident = (char)get_u8(r);
	if (m->u.relation.replident == 0 || strchr("dnfi", m->u.relation.replident) == NULL)
		r->failed = true;
	m->u.relation.n_columns = get_u16(r);
	m->u.relation.columns = r->p;
	for (uint16_t i = 0; i < m->u.relation.n_columns && !r->failed; i++) {
		(void)get_u8(r);
		(void)get_str(r);
		(void)get_bytes(r, 8);
	}
	m->u.relation.columns_len = (size_t)(r->p - m->u.relation.columns);
}

static void decode_type(struct reader *r, struct pgws_msg *m)
{
	m->u.type_.typid = get_u32(r);
	m->u.type_.nspname = get_str(r);
	m->u.type_.typname = get_str(r);
}

static void decode_insert(struct reader *r, struct pgws_msg *m)
{
	m->u.change.relid = get_u32(r);
	if (get_u8(r) != 'N')
		r->failed = true;
	get_tuple(r, &m->u.change.new_row);
}

static void decode_update(struct reader *r, struct pgws_msg *m)
{
	m->u.change.relid = get_u32(r);
	uint8_t which = get_u8(r);
	if (which == PGWS_OLD_KEY || which == PGWS_OLD_FULL) {
		m->u.change.old_kind = (enum pgws_old)which;
		get_tuple(r, &m->u.change.old_row);
		which = get_u8(r);
	}
	if (which != 'N')
		r->failed = true;
	get_tuple(r, &m->u.change.new_row);
}

static void decode_delete(struct reader *r, struct pgws_msg *m)
{
	m->u.change.relid = get_u32(r);
	uint8_t which = get_u8(r);
	if (which == PGWS_OLD_KEY || which == PGWS_OLD_FULL)
		m->u.change.old_kind = (enum pgws_old)which;
	else
		r->failed = true;
	get_tuple(r, &m->u.change.old_row);
}

static void decode_truncate(struct reader *r, struct pgws_msg *m)
{
	m->u.truncate.n_relids = get_u32(r);
	uint8_t bits = get_u8(r);
	m->u.truncate.cascade = (bits & 1) != 0;
	m->u.truncate.restart_identity = (bits & 2) != 0;
	/* Compared by division: n * 4 could overflow where size_t has 32 bits. */
	if (r->left / 4 < m->u.truncate.n_relids)
		r->failed = true;
	else
		m->u.truncate.relids = get_bytes(r, (size_t)m->u.truncate.n_relids * 4);
}

static void decode_message(struct reader *r, struct pgws_msg *m)
{
	m->u.message.transactional = (get_u8(r) & 1) != 0;
	m->u.message.lsn = get_u64(r);
	m->u.message.prefix = get_str(r);
	m->u.message.len = get_u32(r);
	m->u.message.data = get_bytes(r, m->u.message.len);
}

static void decode_stream_abort(struct reader *r, struct pgws_msg *m)
{
	(void)m;
	(void)get_bytes(r, 8);
	if (r->left != 0)
		(void)get_bytes(r, 16);
}

static const struct {
	uint8_t type;
	void (*fn)(struct reader *r, struct pgws_msg *m);
} decoders[] = {
	{PGWS_INSERT, decode_insert},
	{PGWS_UPDATE, decode_update},
	{PGWS_DELETE, decode_delete},
	{PGWS_BEGIN, decode_begin},
	{PGWS_COMMIT, decode_commit},
	{PGWS_RELATION, decode_relation},
	{PGWS_TYPE, decode_type},
	{PGWS_TRUNCATE, decode_truncate},
	{PGWS_MESSAGE, decode_message},
	{PGWS_ORIGIN, decode_origin},
	{PGWS_STREAM_ABORT, decode_stream_abort},
};

int pgws_decode(const void *data, size_t len, bool in_stream, struct pgws_msg *ret_msg)
{
	(void)in_stream;
	struct reader r = {.p = data, .left = len};
	uint8_t type = get_u8(&r);
	struct pgws_msg m = {.type = (enum pgws_type)type};
	size_t i = 0;
	while (i < sizeof(decoders) / sizeof(decoders[0]) && decoders[i].type != type)
		i++;
	if (i == sizeof(decoders) / sizeof(decoders[0]))
		return PGWS_EPROTO;
	decoders[i].fn(&r, &m);
	if (r.failed || r.left != 0)
		return PGWS_EPROTO;
	*ret_msg = m;
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
		ret_col->len = (uint32_t)be(p + 1, 4);
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
	p += 1 + name_size;
	*ret_col = (struct pgws_relation_column){
		.key = (relation->u.relation.columns[*offset] & 1) != 0,
		.name = name,
		.typid = (uint32_t)be(p, 4),
		.typmod = (int32_t)(uint32_t)be(p + 4, 4),
	};
	*offset += 1 + name_size + 8;
	return true;
}

uint32_t pgws_truncate_relid(const struct pgws_msg *truncate, uint32_t i)
{
	if (i >= truncate->u.truncate.n_relids)
		return 0;
	return (uint32_t)be(truncate->u.truncate.relids + (size_t)i * 4, 4);
}

const char *pgws_strerror(int err)
{
	static const char *const texts[] = {
		"success",
		"nothing now",
		"the server's bytes break the replication protocol",
		"the connection is lost or was refused",
		"the server reported an error",
		"a change names a relation that was not announced",
		"not possible in the present state",
		"the server ended the stream",
		"out of memory",
		"this server's version cannot do it",
		"an option that makes no sense",
		"a limit of the assembler is reached",
		"a file could not be read or written",
		"the slot is lost",
		"the server has another system identifier",
		"the server is on another timeline",
		"the server went back in time",
	};
	if (err > 0)
		err = 0;
	if (err < PGWS_EBACK)
		return "unknown error";
	return texts[-err];
}

const char *pgws_lsn_str(uint64_t lsn, char *buf)
{
	static const char digits[] = "0123456789ABCDEF";
	char *out = buf;
	for (int half = 1; half >= 0; half--) {
		uint32_t v = (uint32_t)(lsn >> (32 * half));
		int shift = 28;
		while (shift > 0 && v >> shift == 0)
			shift -= 4;
		for (; shift >= 0; shift -= 4)
			*out++ = digits[v >> shift & 15];
		*out++ = half == 1 ? '/' : 0;
	}
	return buf;
}

/* 1 to 8 hexadecimal digits from *text on, which is advanced past them. */
static int parse_half(const char **text, uint32_t *ret_v)
{
	static const char digits[] = "0123456789abcdef0123456789ABCDEF";
	uint32_t v = 0;
	int n = 0;
	for (const char *d; **text != 0 && (d = strchr(digits, **text)) != NULL; n++, (*text)++)
		v = v << 4 | (uint32_t)((d - digits) & 15);
	if (n < 1 || n > 8)
		return PGWS_EPROTO;
	*ret_v = v;
	return 0;
}

int pgws_lsn_parse(const char *text, uint64_t *ret_lsn)
{
	uint32_t high, low;
	if (parse_half(&text, &high) != 0 || *text++ != '/')
		return PGWS_EPROTO;
	if (parse_half(&text, &low) != 0 || *text != 0)
		return PGWS_EPROTO;
	*ret_lsn = (uint64_t)high << 32 | low;
	return 0;
}
