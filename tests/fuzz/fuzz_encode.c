/* SPDX-License-Identifier: PostgreSQL */
/*
 * The encoder on structures that arbitrary bytes describe: type, fields, strings and columns are
 * taken from the input in turn, mistakes of a caller among them. Invariants: a mistake is
 * PGWS_EINVAL, anything else is not; the length is the same whatever the room; nothing is written
 * without room for all, nor behind it; the decoder accepts the bytes and gives back the structure.
 */
#include "config.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "libpgwalstream/pgwalstream.h"

#include "tests/unit/helper_msg.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* The input as a source of fields: zeros when it is used up. */
struct source {
	const uint8_t *p;
	size_t left;
	bool wrong;         /* a mistake was put into the message */
	bool unknown;       /* whether there is one is the encoder's to say */
	void *blocks[2100]; /* freed at the end; exactly as large as they claim to be */
	size_t n_blocks;
};

static void require(int what)
{
	if (!what)
		abort();
}

static uint64_t take(struct source *s, size_t n)
{
	uint64_t v = 0;
	for (; n > 0; n--) {
		v = v << 8 | (s->left > 0 ? *s->p : 0);
		s->p += s->left > 0;
		s->left -= s->left > 0;
	}
	return v;
}

static void *block(struct source *s, size_t size)
{
	require(s->n_blocks < sizeof(s->blocks) / sizeof(s->blocks[0]));
	void *p = malloc(size == 0 ? 1 : size);
	require(p != NULL);
	s->blocks[s->n_blocks++] = p;
	return p;
}

static void *take_bytes(struct source *s, size_t n)
{
	uint8_t *p = block(s, n);
	size_t have = n < s->left ? n : s->left;
	memset(p, 'x', n);
	if (have > 0)
		memcpy(p, s->p, have);
	s->p += have;
	s->left -= have;
	return p;
}

/* Length byte and bytes; 255 is a string that is NULL. */
static const char *take_string(struct source *s)
{
	size_t n = take(s, 1);
	if (n == 255) {
		s->wrong = true;
		return NULL;
	}
	char *text = take_bytes(s, n + 1);
	text[n] = 0;
	return text;
}

/* Mostly 0; the message is none otherwise. */
static uint8_t take_flags(struct source *s)
{
	uint8_t v = (uint8_t)take(s, 1);
	v = v < 250 ? 0 : v;
	s->wrong = s->wrong || v != 0;
	return v;
}

static bool take_bool(struct source *s)
{
	return (take(s, 1) & 1) != 0;
}

static struct pgws_column take_column(struct source *s)
{
	static const char kinds[] = "nutb";
	uint8_t kind = (uint8_t)take(s, 1);
	struct pgws_column col = {.kind = (enum pgws_column_kind)kind};
	if (kind < 240)
		col.kind = (enum pgws_column_kind)kinds[kind & 3];
	else
		s->wrong = true;
	if (kind < 240 && (kind & 2) != 0) {
		col.len = (uint32_t)take(s, (kind & 4) != 0 ? 2 : 1);
		col.data = take_bytes(s, col.len);
	}
	return col;
}

/* Made by the encoder, or a span of whatever bytes. */
static struct pgws_tuple take_tuple(struct source *s)
{
	struct pgws_tuple t = {NULL, 0, 0};
	uint8_t n = (uint8_t)take(s, 1);
	if ((n & 0x80) != 0) {
		s->unknown = true;
		t.n_columns = n & 0x7f;
		t.len = take(s, 1);
		t.data = take_bytes(s, t.len);
		return t;
	}
	struct pgws_column columns[128];
	bool was_wrong = s->wrong;
	s->wrong = false;
	for (unsigned i = 0; i < n; i++)
		columns[i] = take_column(s);
	int64_t len = pgws_encode_tuple(columns, n, NULL, 0, &t);
	require(s->wrong ? len == PGWS_EINVAL : len >= 0);
	if (len > 0) {
		require(t.data == NULL && t.len == 0 && t.n_columns == 0);
		require(pgws_encode_tuple(columns, n, block(s, (size_t)len), (size_t)len, &t) ==
			len);
	}
	require(s->wrong || (t.n_columns == n && t.len == (size_t)len));
	if (s->wrong)
		s->unknown = true; /* the tuple is empty now, and so a good one */
	s->wrong = was_wrong;
	return t;
}

static void take_relation(struct source *s, struct pgws_msg *m)
{
	static const char identities[] = "dnfi";
	m->u.relation.relid = (uint32_t)take(s, 4);
	m->u.relation.nspname = take_string(s);
	m->u.relation.relname = take_string(s);
	uint8_t identity = (uint8_t)take(s, 1);
	m->u.relation.replident = identity < 240 ? identities[identity & 3] : (char)identity;
	s->wrong = s->wrong || identity >= 240;
	uint8_t n = (uint8_t)take(s, 1);
	if ((n & 0x80) != 0) {
		s->unknown = true;
		m->u.relation.n_columns = n & 0x7f;
		m->u.relation.columns_len = take(s, 1);
		m->u.relation.columns = take_bytes(s, m->u.relation.columns_len);
		return;
	}
	struct pgws_relation_column columns[128];
	bool nameless = false, was_wrong = s->wrong;
	for (unsigned i = 0; i < n; i++) {
		columns[i].key = take_bool(s);
		columns[i].name = take_string(s);
		columns[i].typid = (uint32_t)take(s, 4);
		columns[i].typmod = (int32_t)take(s, 4);
		nameless = nameless || columns[i].name == NULL;
	}
	int64_t len = pgws_encode_relation_columns(columns, n, NULL, 0, m);
	require(nameless ? len == PGWS_EINVAL : len >= 0);
	if (nameless)
		s->unknown = true; /* without columns it is a good one */
	s->wrong = was_wrong;
	if (len > 0)
		require(pgws_encode_relation_columns(
				columns, n, block(s, (size_t)len), (size_t)len, m) == len);
}

static void take_change(struct source *s, struct pgws_msg *m)
{
	static const char kinds[] = {0, 'K', 'O', 'N'};
	m->u.change.relid = (uint32_t)take(s, 4);
	char old_kind = kinds[take(s, 1) & 3];
	if (m->type == PGWS_INSERT && old_kind == 'K')
		old_kind = 0;
	if (m->type == PGWS_DELETE && old_kind == 0)
		old_kind = 'K';
	m->u.change.old_kind = (enum pgws_old)old_kind;
	bool old_row = old_kind == 'K' || old_kind == 'O';
	if (old_kind == 'N' || (old_row && m->type == PGWS_INSERT))
		s->wrong = true;
	if (old_row)
		m->u.change.old_row = take_tuple(s);
	if (m->type != PGWS_DELETE)
		m->u.change.new_row = take_tuple(s);
}

static void take_truncate(struct source *s, struct pgws_msg *m)
{
	m->u.truncate.cascade = take_bool(s);
	m->u.truncate.restart_identity = take_bool(s);
	m->u.truncate.n_relids = (uint32_t)take(s, 1);
	m->u.truncate.relids = take_bytes(s, (size_t)m->u.truncate.n_relids * 4);
}

static void take_message(struct source *s, struct pgws_msg *m)
{
	m->u.message.transactional = take_bool(s);
	m->u.message.lsn = take(s, 8);
	m->u.message.prefix = take_string(s);
	m->u.message.len = (uint32_t)take(s, 2);
	m->u.message.data = take_bytes(s, m->u.message.len);
}

static void take_stream_abort(struct source *s, struct pgws_msg *m)
{
	m->u.stream_abort.xid = (uint32_t)take(s, 4);
	m->u.stream_abort.subxid = (uint32_t)take(s, 4);
	m->u.stream_abort.has_lsn = take_bool(s);
	if (m->u.stream_abort.has_lsn) {
		m->u.stream_abort.lsn = take(s, 8);
		m->u.stream_abort.time = (int64_t)take(s, 8);
	}
}

static void take_rollback_prepared(struct source *s, struct pgws_msg *m)
{
	m->u.rollback_prepared.flags = take_flags(s);
	m->u.rollback_prepared.prepare_end_lsn = take(s, 8);
	m->u.rollback_prepared.end_lsn = take(s, 8);
	m->u.rollback_prepared.prepare_time = (int64_t)take(s, 8);
	m->u.rollback_prepared.rollback_time = (int64_t)take(s, 8);
	m->u.rollback_prepared.xid = (uint32_t)take(s, 4);
	m->u.rollback_prepared.gid = take_string(s);
}

static void take_fields(struct source *s, struct pgws_msg *m)
{
	switch (m->type) {
	case PGWS_BEGIN:
		m->u.begin.final_lsn = take(s, 8);
		m->u.begin.commit_time = (int64_t)take(s, 8);
		m->u.begin.xid = (uint32_t)take(s, 4);
		break;
	case PGWS_COMMIT:
		m->u.commit.flags = take_flags(s);
		m->u.commit.commit_lsn = take(s, 8);
		m->u.commit.end_lsn = take(s, 8);
		m->u.commit.commit_time = (int64_t)take(s, 8);
		break;
	case PGWS_ORIGIN:
		m->u.origin.lsn = take(s, 8);
		m->u.origin.name = take_string(s);
		break;
	case PGWS_RELATION:
		take_relation(s, m);
		break;
	case PGWS_TYPE:
		m->u.type_.typid = (uint32_t)take(s, 4);
		m->u.type_.nspname = take_string(s);
		m->u.type_.typname = take_string(s);
		break;
	case PGWS_INSERT:
	case PGWS_UPDATE:
	case PGWS_DELETE:
		take_change(s, m);
		break;
	case PGWS_TRUNCATE:
		take_truncate(s, m);
		break;
	case PGWS_MESSAGE:
		take_message(s, m);
		break;
	case PGWS_STREAM_START:
		m->u.stream_start.xid = (uint32_t)take(s, 4);
		m->u.stream_start.first = take_bool(s);
		s->wrong = s->wrong || m->u.stream_start.xid == 0;
		break;
	case PGWS_STREAM_STOP:
		break;
	case PGWS_STREAM_COMMIT:
		m->u.stream_commit.flags = take_flags(s);
		m->u.stream_commit.xid = (uint32_t)take(s, 4);
		m->u.stream_commit.commit_lsn = take(s, 8);
		m->u.stream_commit.end_lsn = take(s, 8);
		m->u.stream_commit.commit_time = (int64_t)take(s, 8);
		break;
	case PGWS_STREAM_ABORT:
		take_stream_abort(s, m);
		break;
	case PGWS_BEGIN_PREPARE:
	case PGWS_PREPARE:
	case PGWS_COMMIT_PREPARED:
	case PGWS_STREAM_PREPARE:
		m->u.prepare.flags = m->type == PGWS_BEGIN_PREPARE ? 0 : take_flags(s);
		m->u.prepare.lsn = take(s, 8);
		m->u.prepare.end_lsn = take(s, 8);
		m->u.prepare.time = (int64_t)take(s, 8);
		m->u.prepare.xid = (uint32_t)take(s, 4);
		m->u.prepare.gid = take_string(s);
		break;
	case PGWS_ROLLBACK_PREPARED:
		take_rollback_prepared(s, m);
		break;
	default:
		s->wrong = true;
	}
}

static void check(const struct pgws_msg *m, bool in_stream, const struct source *s)
{
	uint8_t canary[16], *bytes;
	memset(canary, 0x5a, sizeof(canary));
	int64_t len = pgws_encode(m, in_stream, NULL, 0);
	require(len > 0 || len == PGWS_EINVAL);
	require(s->unknown || (len < 0) == s->wrong);
	require(!s->wrong || len < 0);
	if (len < 0)
		return;
	size_t size = (size_t)len;
	bytes = malloc(size + sizeof(canary));
	require(bytes != NULL);
	memset(bytes, 0x5a, size + sizeof(canary));
	require(pgws_encode(m, in_stream, bytes, size - 1) == len);
	for (size_t i = 0; i < size; i++)
		require(bytes[i] == 0x5a);
	require(pgws_encode(m, in_stream, bytes, size + sizeof(canary)) == len);
	require(memcmp(bytes + size, canary, sizeof(canary)) == 0);
	uint8_t *exact = malloc(size);
	require(exact != NULL);
	memcpy(exact, bytes, size);
	struct pgws_msg again;
	require(pgws_decode(exact, size, in_stream, &again) == 0);
	require(messages_equal(m, &again));
	free(exact);
	free(bytes);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static const char types[] = "BCORYIUDTMSEcAbPKrp";
	struct source s = {.p = data, .left = size};
	bool in_stream = take_bool(&s);
	uint8_t type = (uint8_t)take(&s, 1);
	struct pgws_msg m = {.type = (enum pgws_type)type};
	if (type < 240)
		m.type = (enum pgws_type)types[type % (sizeof(types) - 1)];
	if (in_stream && strchr("RYIUDTM", (int)m.type) != NULL) {
		m.xid = (uint32_t)take(&s, 4);
		s.wrong = m.xid == 0;
	}
	take_fields(&s, &m);
	check(&m, in_stream, &s);
	while (s.n_blocks > 0)
		free(s.blocks[--s.n_blocks]);
	return 0;
}
