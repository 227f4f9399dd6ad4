/* SPDX-License-Identifier: PostgreSQL */
/* See change.h. */
#include "config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/mem.h"
#include "common/pg/tojson.h"

#include "brokerd/change.h"

#define RELMETA_MAGIC 0x7c0de002

MEM_TYPE(mem_relmeta, "relation");

static char *json_key(const char *name, size_t *ret_len)
{
	struct buf b;

	buf_init(&b, 0);
	tojson_string(&b, name, strlen(name));
	buf_put_u8(&b, ':');
	char *key = xstrndup((const char *)b.data, b.len_bytes);
	*ret_len = b.len_bytes;
	buf_free(&b);
	return key;
}

/* The server sends "" for pg_catalog. */
static const char *schema_name(const struct pgws_relation *rel)
{
	return rel->nspname[0] != '\0' ? rel->nspname : "pg_catalog";
}

struct relmeta *relmeta_new(const struct pgws_relation *rel, struct typecache *types)
{
	struct relmeta *m = mem_new(&mem_relmeta, sizeof(*m));
	struct buf names;

	m->magic = RELMETA_MAGIC;
	m->n_columns = rel->n_columns;
	m->columns = xcalloc(rel->n_columns > 0 ? rel->n_columns : 1, sizeof(*m->columns));
	for (size_t i = 0; i < m->n_columns; i++) {
		struct relmeta_column *col = &m->columns[i];

		col->key = json_key(rel->columns[i].name, &col->key_len);
		col->type = typecache_find(types, rel->columns[i].typid);
		ASSERT(col->type != NULL);
	}
	buf_init(&names, 0);
	buf_put_text(&names, "\"schema\":");
	tojson_string(&names, schema_name(rel), strlen(schema_name(rel)));
	buf_put_text(&names, ",\"table\":");
	tojson_string(&names, rel->relname, strlen(rel->relname));
	buf_put_u8(&names, ',');
	m->names = xstrdup(buf_cstr(&names));
	buf_free(&names);
	return m;
}

void relmeta_free(struct relmeta **mp)
{
	struct relmeta *m = *mp;

	if (m == NULL)
		return;
	OBJ_CHECK(m, RELMETA_MAGIC);
	for (size_t i = 0; i < m->n_columns; i++)
		free(m->columns[i].key);
	free(m->columns);
	free(m->names);
	m->magic = 0;
	mem_free(&mem_relmeta, m);
	*mp = NULL;
}

size_t relmeta_missing(const struct pgws_relation *rel, struct typecache *types, uint32_t *ret_oids)
{
	size_t n = 0;

	for (size_t i = 0; i < rel->n_columns; i++) {
		if (typecache_find(types, rel->columns[i].typid) == NULL)
			ret_oids[n++] = rel->columns[i].typid;
	}
	return n;
}

void change_fini(struct change *ch)
{
	free(ch->store);
	ch->store = NULL;
	ch->store_len = 0;
}

/* Fills cols from the tuple; true if it has exactly n columns. */
static bool take_row(const struct pgws_tuple *tuple, struct pgws_column *cols, size_t n)
{
	size_t offset = 0;

	if (tuple->n_columns != n)
		return false;
	for (size_t i = 0; i < n; i++) {
		if (!pgws_tuple_next(tuple, &offset, &cols[i]))
			return false;
	}
	return true;
}

static bool has_value(const struct pgws_column *col)
{
	return col->kind == PGWS_TEXT;
}

/* Unchanged TOAST: only a whole old row can supply it. Under a key, a column that is not part of it
 * comes as NULL without being one. */
static void merge_unchanged(
	struct pgws_column *new_row, const struct pgws_column *old_row, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		if (new_row[i].kind == PGWS_UNCHANGED)
			new_row[i] = old_row[i];
	}
}

bool change_set(struct change *ch, const struct pgws_msg *msg, const struct pgws_relation *rel,
	uint64_t lsn)
{
	static const uint8_t op_of[256] = {[PGWS_INSERT] = CHANGE_INSERT,
		[PGWS_UPDATE] = CHANGE_UPDATE,
		[PGWS_DELETE] = CHANGE_DELETE};
	size_t n = rel->n_columns;

	ch->op = msg != NULL ? (enum change_op)op_of[msg->type] : CHANGE_TRUNCATE;
	ch->rel = rel;
	ch->meta = rel->user;
	ch->new_row = ch->old_row = NULL;
	ch->old_kind = PGWS_OLD_NONE;
	pgws_lsn_str(lsn, ch->lsn);
	if (msg == NULL)
		return true;
	if (ch->store_len < 2 * n) {
		ch->store = xrealloc(ch->store, 2 * n * sizeof(*ch->store));
		ch->store_len = 2 * n;
	}
	struct pgws_column *new_row = ch->store, *old_row = ch->store + n;
	if (ch->op != CHANGE_DELETE) {
		if (!take_row(&msg->u.change.new_row, new_row, n))
			return false;
		ch->new_row = new_row;
	}
	ch->old_kind = msg->u.change.old_kind;
	if (ch->old_kind != PGWS_OLD_NONE) {
		if (!take_row(&msg->u.change.old_row, old_row, n))
			return false;
		ch->old_row = old_row;
	}
	if (ch->new_row != NULL && ch->old_kind == PGWS_OLD_FULL)
		merge_unchanged(new_row, old_row, n);
	return true;
}

void change_set_transaction(struct change *ch, uint32_t xid, int64_t commit_time)
{
	ch->xid = xid;
	change_time_str(commit_time, ch->ts);
}

const char *change_op_str(enum change_op op)
{
	static const char *const names[] = {"insert", "update", "delete", "truncate"};

	return names[op];
}

const struct pgws_column *change_column(const struct change *ch, size_t i)
{
	const struct pgws_column *row = ch->op == CHANGE_DELETE ? ch->old_row : ch->new_row;

	return row != NULL && has_value(&row[i]) ? &row[i] : NULL;
}

static void put_column(struct change *ch, struct buf *out, size_t i, const struct pgws_column *col)
{
	const struct relmeta_column *meta = &ch->meta->columns[i];

	buf_put(out, meta->key, meta->key_len);
	if (!has_value(col))
		buf_put_text(out, "null");
	else if (tojson(out, meta->type, col->data, col->len) != 0)
		ch->bad_values++;
}

/* Of an old key, only what is part of it. The flags are those of the published relation; a
 * partition may have another identity than its root, so a value that came is shown, too. */
static bool is_shown(const struct change *ch, const struct pgws_column *row, size_t i)
{
	if (row[i].kind == PGWS_UNCHANGED)
		return false;
	if (row != ch->old_row || ch->old_kind == PGWS_OLD_FULL)
		return true;
	return ch->rel->columns[i].key || has_value(&row[i]);
}

static void put_row(struct change *ch, struct buf *out, const struct pgws_column *row)
{
	bool first = true;

	if (row == NULL) {
		buf_put_text(out, "null");
		return;
	}
	buf_put_u8(out, '{');
	for (size_t i = 0; i < ch->rel->n_columns; i++) {
		if (!is_shown(ch, row, i))
			continue;
		if (!first)
			buf_put_u8(out, ',');
		first = false;
		put_column(ch, out, i, &row[i]);
	}
	buf_put_u8(out, '}');
}

void change_put_new(struct change *ch, struct buf *out)
{
	put_row(ch, out, ch->new_row);
}

void change_put_old(struct change *ch, struct buf *out)
{
	put_row(ch, out, ch->old_row);
}

static void put_unchanged(const struct change *ch, struct buf *out)
{
	bool first = true;

	buf_put_u8(out, '[');
	for (size_t i = 0; ch->new_row != NULL && i < ch->rel->n_columns; i++) {
		if (ch->new_row[i].kind != PGWS_UNCHANGED)
			continue;
		if (!first)
			buf_put_u8(out, ',');
		first = false;
		/* The key without its colon. */
		buf_put(out, ch->meta->columns[i].key, ch->meta->columns[i].key_len - 1);
	}
	buf_put_u8(out, ']');
}

void change_put_json(struct change *ch, struct buf *out)
{
	char xid[16];

	snprintf(xid, sizeof(xid), "%u", ch->xid);
	buf_put_text(out, "{\"op\":\"");
	buf_put_text(out, change_op_str(ch->op));
	buf_put_text(out, "\",");
	buf_put_text(out, ch->meta->names);
	buf_put_text(out, "\"lsn\":\"");
	buf_put_text(out, ch->lsn);
	buf_put_text(out, "\",\"xid\":");
	buf_put_text(out, xid);
	buf_put_text(out, ",\"ts\":\"");
	buf_put_text(out, ch->ts);
	buf_put_text(out, "\",\"new\":");
	change_put_new(ch, out);
	buf_put_text(out, ",\"old\":");
	change_put_old(ch, out);
	buf_put_text(out, ",\"unchanged\":");
	put_unchanged(ch, out);
	buf_put_u8(out, '}');
}

/* Days since 1970-01-01 to a date of the Gregorian calendar, by 400-year eras that begin in March.
 */
static void civil_from_days(int64_t days, int64_t *ret_year, int *ret_month, int *ret_day)
{
	days += 719468;
	int64_t era = (days >= 0 ? days : days - 146096) / 146097;
	int64_t doe = days - era * 146097;
	int64_t yoe = (doe - doe / 1460 + doe / 36524 - doe / 146096) / 365;
	int64_t doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
	int64_t mp = (5 * doy + 2) / 153;

	*ret_day = (int)(doy - (153 * mp + 2) / 5 + 1);
	*ret_month = (int)(mp < 10 ? mp + 3 : mp - 9);
	*ret_year = yoe + era * 400 + (*ret_month <= 2);
}

void change_time_str(int64_t us, char *out)
{
	int64_t days = us / 86400000000, rest = us % 86400000000, year;
	int month, day;

	if (rest < 0) {
		rest += 86400000000;
		days--;
	}
	civil_from_days(days + 10957, &year, &month, &day);
	int n = snprintf(out, 40, "%04lld-%02d-%02dT%02d:%02d:%02d", (long long)(year % 1000000),
		month, day, (int)(rest / 3600000000), (int)(rest / 60000000 % 60),
		(int)(rest / 1000000 % 60));
	if (rest % 1000000 != 0) {
		n += snprintf(out + n, 40 - (size_t)n, ".%06d", (int)(rest % 1000000));
		while (out[n - 1] == '0')
			n--;
	}
	memcpy(out + n, "+00:00", 7);
}
