/* SPDX-License-Identifier: PostgreSQL */
/*
 * See typecache.h. Entries are never removed: others point to them (elements, attributes, the
 * columns of relations). An entry that others need before its own row is seen starts out as text.
 *
 * On crash: nothing is kept; it is read again from the catalogue.
 */
#include "config.h"

#include <stdlib.h>
#include <string.h>

#include <uthash.h>

#include "common/base/buf.h"
#include "common/base/mem.h"
#include "common/pg/tojson.h"
#include "common/pg/typecache.h"

#define TYPECACHE_MAGIC 0x7c0de001
/* A chain of domains on domains longer than this is not followed. */
#define DOMAIN_DEPTH_MAX 32

MEM_TYPE(mem_typecache, "typecache");
MEM_TYPE(mem_entry, "typecache entry");

struct entry {
	struct type_info info; /* first: what callers hold */
	uint32_t oid;
	uint32_t base; /* domain */
	bool known;
	bool builtin;
	UT_hash_handle hh;
};

struct typecache {
	uint32_t magic;
	struct entry *by_oid; /* owned entries */
};

const char typecache_sql[] =
	"WITH RECURSIVE need(oid) AS ("
	" SELECT pg_catalog.unnest($1::oid[])"
	" UNION"
	" SELECT d.oid FROM need n JOIN pg_catalog.pg_type t ON t.oid = n.oid, LATERAL ("
	"  SELECT t.typbasetype WHERE t.typtype = 'd'"
	"  UNION ALL SELECT t.typelem WHERE t.typelem <> 0"
	"   AND t.typsubscript = 'pg_catalog.array_subscript_handler'::regproc"
	"  UNION ALL SELECT a.atttypid FROM pg_catalog.pg_attribute a WHERE t.typtype = 'c'"
	"   AND a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped) d(oid))"
	" SELECT t.oid, t.typtype, CASE t.typtype WHEN 'd' THEN t.typbasetype ELSE 0 END,"
	" CASE WHEN t.typsubscript = 'pg_catalog.array_subscript_handler'::regproc"
	"  THEN t.typelem ELSE 0 END,"
	" coalesce(e.typdelim, ','), a.attname, a.atttypid"
	" FROM need n JOIN pg_catalog.pg_type t ON t.oid = n.oid"
	" LEFT JOIN pg_catalog.pg_type e ON e.oid = t.typelem"
	" LEFT JOIN pg_catalog.pg_attribute a ON t.typtype = 'c' AND a.attrelid = t.typrelid"
	"  AND a.attnum > 0 AND NOT a.attisdropped"
	" ORDER BY t.oid, a.attnum";

/* OIDs of built-in types are fixed for ever (pg_type.dat). */
static const struct {
	uint16_t oid;
	uint8_t kind;
	uint16_t elem;
} builtin[] = {
	{16, TYPE_BOOL, 0},
	{17, TYPE_TEXT, 0},
	{18, TYPE_TEXT, 0},
	{19, TYPE_TEXT, 0},
	{20, TYPE_NUMBER, 0},
	{21, TYPE_NUMBER, 0},
	{23, TYPE_NUMBER, 0},
	{25, TYPE_TEXT, 0},
	{26, TYPE_TEXT, 0}, /* oid: to_jsonb gives a string */
	{22, TYPE_VECTOR, 21},
	{30, TYPE_VECTOR, 26},
	{114, TYPE_JSON, 0},
	{142, TYPE_TEXT, 0},
	{650, TYPE_TEXT, 0},
	{700, TYPE_NUMBER, 0},
	{701, TYPE_NUMBER, 0},
	{790, TYPE_TEXT, 0},
	{829, TYPE_TEXT, 0},
	{869, TYPE_TEXT, 0},
	{1042, TYPE_TEXT, 0},
	{1043, TYPE_TEXT, 0},
	{1082, TYPE_TEXT, 0}, /* date: ISO already */
	{1083, TYPE_TEXT, 0},
	{1114, TYPE_TIMESTAMP, 0},
	{1184, TYPE_TIMESTAMPTZ, 0},
	{1186, TYPE_TEXT, 0},
	{1266, TYPE_TEXT, 0},
	{1560, TYPE_TEXT, 0},
	{1562, TYPE_TEXT, 0},
	{1700, TYPE_NUMBER, 0},
	{2950, TYPE_TEXT, 0},
	{3614, TYPE_TEXT, 0},
	{3802, TYPE_JSONB, 0},
	{3904, TYPE_TEXT, 0},
	{3906, TYPE_TEXT, 0},
	{3908, TYPE_TEXT, 0},
	{3910, TYPE_TEXT, 0},
	{3912, TYPE_TEXT, 0},
	{3926, TYPE_TEXT, 0},
	{199, TYPE_ARRAY, 114},
	{1000, TYPE_ARRAY, 16},
	{1001, TYPE_ARRAY, 17},
	{1005, TYPE_ARRAY, 21},
	{1007, TYPE_ARRAY, 23},
	{1009, TYPE_ARRAY, 25},
	{1014, TYPE_ARRAY, 1042},
	{1015, TYPE_ARRAY, 1043},
	{1016, TYPE_ARRAY, 20},
	{1021, TYPE_ARRAY, 700},
	{1022, TYPE_ARRAY, 701},
	{1028, TYPE_ARRAY, 26},
	{1041, TYPE_ARRAY, 869},
	{1115, TYPE_ARRAY, 1114},
	{1182, TYPE_ARRAY, 1082},
	{1183, TYPE_ARRAY, 1083},
	{1185, TYPE_ARRAY, 1184},
	{1187, TYPE_ARRAY, 1186},
	{1231, TYPE_ARRAY, 1700},
	{2951, TYPE_ARRAY, 2950},
	{3807, TYPE_ARRAY, 3802},
};

static struct entry *entry_get(struct typecache *tc, uint32_t oid)
{
	struct entry *e;

	HASH_FIND(hh, tc->by_oid, &oid, sizeof(oid), e);
	if (e != NULL)
		return e;
	e = mem_new(&mem_entry, sizeof(*e));
	e->oid = oid;
	e->info.delim = ',';
	HASH_ADD(hh, tc->by_oid, oid, sizeof(e->oid), e);
	return e;
}

static void entry_drop_attrs(struct entry *e)
{
	/* A domain shares the attributes of its base type. */
	if (e->base == 0) {
		for (size_t i = 0; i < e->info.n_attrs; i++)
			free(e->info.attrs[i].key);
		free(e->info.attrs);
	}
	e->info.attrs = NULL;
	e->info.n_attrs = 0;
}

struct typecache *typecache_new(void)
{
	struct typecache *tc = mem_new(&mem_typecache, sizeof(*tc));

	tc->magic = TYPECACHE_MAGIC;
	for (size_t i = 0; i < ARRAY_LEN(builtin); i++) {
		struct entry *e = entry_get(tc, builtin[i].oid);

		e->known = true;
		e->builtin = true;
		e->info.kind = builtin[i].kind;
		if (builtin[i].elem != 0)
			e->info.elem = &entry_get(tc, builtin[i].elem)->info;
	}
	return tc;
}

void typecache_free(struct typecache **tc)
{
	if (*tc == NULL)
		return;
	OBJ_CHECK(*tc, TYPECACHE_MAGIC);

	struct entry *e, *next;
	HASH_ITER (hh, (*tc)->by_oid, e, next) {
		HASH_DEL((*tc)->by_oid, e);
		entry_drop_attrs(e);
		mem_free(&mem_entry, e);
	}
	(*tc)->magic = 0;
	mem_free(&mem_typecache, *tc);
	*tc = NULL;
}

const struct type_info *typecache_find(struct typecache *tc, uint32_t oid)
{
	struct entry *e;

	OBJ_CHECK(tc, TYPECACHE_MAGIC);
	HASH_FIND(hh, tc->by_oid, &oid, sizeof(oid), e);
	return e != NULL && e->known ? &e->info : NULL;
}

void typecache_forget(struct typecache *tc, uint32_t oid)
{
	struct entry *e;

	HASH_FIND(hh, tc->by_oid, &oid, sizeof(oid), e);
	if (e != NULL && !e->builtin)
		e->known = false;
}

static void learn_attrs(
	struct typecache *tc, struct entry *e, const struct type_row *rows, size_t n)
{
	struct buf key;

	e->info.attrs = xcalloc(n, sizeof(*e->info.attrs));
	e->info.n_attrs = n;
	buf_init(&key, 0);
	for (size_t i = 0; i < n; i++) {
		buf_reset(&key);
		tojson_string(&key, rows[i].attr, strlen(rows[i].attr));
		buf_put_u8(&key, ':');
		e->info.attrs[i] = (struct type_attr){
			.key = xstrndup((const char *)key.data, key.len_bytes),
			.key_len = key.len_bytes,
			.type = &entry_get(tc, rows[i].attr_type)->info,
		};
	}
	buf_free(&key);
}

/* rows: all of one type. */
static void learn_one(struct typecache *tc, const struct type_row *rows, size_t n)
{
	struct entry *e = entry_get(tc, rows->oid);

	if (e->builtin)
		return;
	entry_drop_attrs(e);
	e->known = true;
	e->base = rows->base;
	e->info.kind = TYPE_TEXT;
	if (rows->elem != 0) {
		e->info.kind = TYPE_ARRAY;
		e->info.delim = rows->delim;
		e->info.elem = &entry_get(tc, rows->elem)->info;
	} else if (rows->typtype == 'c') {
		e->info.kind = TYPE_COMPOSITE;
		if (rows->attr != NULL)
			learn_attrs(tc, e, rows, n);
	}
}

/* Domains take over the content of what they stand on; when all others are known. */
static void resolve_domains(struct typecache *tc)
{
	struct entry *e, *next;

	HASH_ITER (hh, tc->by_oid, e, next) {
		struct entry *base = e;

		for (int i = 0; base->base != 0 && i < DOMAIN_DEPTH_MAX; i++)
			base = entry_get(tc, base->base);
		if (base != e)
			e->info = base->info;
	}
}

void typecache_learn(struct typecache *tc, const struct type_row *rows, size_t n_rows,
	const uint32_t *asked, size_t n_asked)
{
	OBJ_CHECK(tc, TYPECACHE_MAGIC);
	for (size_t i = 0, end; i < n_rows; i = end) {
		for (end = i + 1; end < n_rows && rows[end].oid == rows[i].oid;)
			end++;
		learn_one(tc, rows + i, end - i);
	}
	for (size_t i = 0; i < n_asked; i++)
		entry_get(tc, asked[i])->known = true;
	resolve_domains(tc);
}
