/* SPDX-License-Identifier: PostgreSQL */
/*
 * Changes as lines: see tail_show.h.
 *
 * Context: pgctl wal tail.
 *
 * A BEGIN line is written with the first change that is shown, so that a filter hides the
 * transactions that it leaves nothing of.
 */
#include "config.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "common/base/mem.h"
#include "common/base/pg_time.h"
#include "common/pg/tojson.h"
#include "pgctl/tail_show.h"

#define TIME_BYTES 48

static const struct op {
	enum tail_op op;
	enum pgws_type type;
	const char *name, *word; /* JSON's, people's */
} ops[] = {
	{TAIL_INSERT, PGWS_INSERT, "insert", "INSERT"},
	{TAIL_UPDATE, PGWS_UPDATE, "update", "UPDATE"},
	{TAIL_DELETE, PGWS_DELETE, "delete", "DELETE"},
	{TAIL_TRUNCATE, PGWS_TRUNCATE, "truncate", "TRUNCATE"},
	{TAIL_MESSAGE, PGWS_MESSAGE, "message", "MESSAGE"},
};

/* ---- What is shown --------------------------------------------------------------------------- */

int tail_ops_parse(const char *list, unsigned *ret_ops)
{
	unsigned found = 0;
	while (true) {
		size_t len = strcspn(list, ","), i = 0;
		while (i < ARRAY_LEN(ops) &&
			(strlen(ops[i].name) != len || strncmp(ops[i].name, list, len) != 0))
			i++;
		if (i == ARRAY_LEN(ops))
			return -EINVAL;
		found |= ops[i].op;
		if (list[len] == '\0')
			break;
		list += len + 1;
	}
	*ret_ops = found;
	return 0;
}

static const struct op *find_op(enum pgws_type type)
{
	for (size_t i = 0; i < ARRAY_LEN(ops); i++) {
		if (ops[i].type == type)
			return &ops[i];
	}
	return NULL;
}

static const char *schema_of(const struct pgws_relation *rel)
{
	return rel->nspname[0] != '\0' ? rel->nspname : "pg_catalog";
}

bool tail_wants_relation(const struct tail_filter *f, const struct pgws_relation *rel)
{
	const char *schema = schema_of(rel);
	size_t len = strlen(schema);
	for (size_t i = 0; i < f->n_tables; i++) {
		const char *t = f->tables[i];
		if (strcmp(t, rel->relname) == 0)
			return true;
		if (strncmp(t, schema, len) == 0 && t[len] == '.' &&
			strcmp(t + len + 1, rel->relname) == 0)
			return true;
	}
	return f->n_tables == 0;
}

size_t tail_missing_types(
	const struct pgws_relation *rel, struct typecache *types, uint32_t *ret_oids)
{
	size_t n = 0;
	for (size_t i = 0; i < rel->n_columns; i++) {
		if (typecache_find(types, rel->columns[i].typid) == NULL)
			ret_oids[n++] = rel->columns[i].typid;
	}
	return n;
}

/* ---- Pieces ---------------------------------------------------------------------------------- */

/* Microseconds since 2000 as "2026-11-21T13:45:11.123456+00:00". */
static const char *time_str(int64_t us, char *out)
{
	int64_t s = us / 1000000, rest = us % 1000000;
	if (rest < 0) {
		rest += 1000000;
		s--;
	}
	time_t t = (time_t)(s + PG_EPOCH_S);
	struct tm tm;
	if (gmtime_r(&t, &tm) == NULL) {
		snprintf(out, TIME_BYTES, "?");
		return out;
	}
	size_t n = strftime(out, TIME_BYTES, "%Y-%m-%dT%H:%M:%S", &tm);
	snprintf(out + n, TIME_BYTES - n, ".%06d+00:00", (int)rest);
	return out;
}

/* A sequence that is valid UTF-8 and yet nothing to send to a terminal: C1 controls, line
 * separators, marks of direction. */
static bool is_harmful(const uint8_t *p, size_t n)
{
	if (n == 2)
		return p[0] == 0xc2 && p[1] < 0xa0;
	if (n != 3 || p[0] != 0xe2)
		return false;
	if (p[1] == 0x80)
		return p[2] == 0x8e || p[2] == 0x8f || (p[2] >= 0xa8 && p[2] <= 0xae);
	return p[1] == 0x81 && p[2] >= 0xa6 && p[2] <= 0xa9;
}

/* One character (or one byte that is none), harmless; returns how many bytes it took. */
static size_t put_char(struct buf *out, const char *s, size_t left, char quote)
{
	uint8_t c = (uint8_t)*s;
	if (c == (uint8_t)quote || c == '\\') {
		buf_put(out, (char[]){(char)c, (char)c}, 2);
		return 1;
	}
	if (c == '\n' || c == '\r' || c == '\t') {
		buf_put(out, (char[]){'\\', c == '\n' ? 'n' : c == '\r' ? 'r' : 't'}, 2);
		return 1;
	}
	size_t n = c >= 0x80 ? tojson_utf8_len(s, left) : 1;
	if (c < 0x20 || c == 0x7f || n == 0) {
		buf_printf(out, "\\x%02x", c);
		return 1;
	}
	if (!is_harmful((const uint8_t *)s, n)) {
		buf_put(out, s, n);
		return n;
	}
	for (size_t i = 0; i < n; i++)
		buf_printf(out, "\\x%02x", (uint8_t)s[i]);
	return n;
}

static void put_quoted(struct buf *out, const char *s, size_t len, char quote)
{
	buf_put_u8(out, (uint8_t)quote);
	for (size_t i = 0; i < len;)
		i += put_char(out, s + i, len - i, quote);
	buf_put_u8(out, (uint8_t)quote);
}

/* As SQL would want it: quoted where it is more than [a-z_][a-z0-9_]*. */
static void put_name(struct buf *out, const char *name)
{
	size_t len = strlen(name);
	if (len > 0 && !(name[0] >= '0' && name[0] <= '9') &&
		strspn(name, "abcdefghijklmnopqrstuvwxyz0123456789_") == len)
		buf_put(out, name, len);
	else
		put_quoted(out, name, len, '"');
}

static void put_relation(struct buf *out, const struct pgws_relation *rel)
{
	put_name(out, schema_of(rel));
	buf_put_u8(out, '.');
	put_name(out, rel->relname);
}

/* Digits and words (true, NaN) need no quotes. */
static bool is_plain(const struct type_info *type, const char *s, size_t len)
{
	if (type == NULL || (type->kind != TYPE_NUMBER && type->kind != TYPE_BOOL) || len == 0)
		return false;
	for (size_t i = 0; i < len; i++) {
		bool digit = s[i] >= '0' && s[i] <= '9';
		bool letter = (s[i] >= 'a' && s[i] <= 'z') || (s[i] >= 'A' && s[i] <= 'Z');
		if (!digit && !letter && s[i] != '-' && s[i] != '+' && s[i] != '.')
			return false;
	}
	return true;
}

static void put_text_value(
	struct buf *out, const struct type_info *type, const struct pgws_column *col)
{
	if (col->kind == PGWS_NULL)
		buf_put_text(out, "null");
	else if (col->kind == PGWS_UNCHANGED)
		buf_put_text(out, "(unchanged)");
	else if (is_plain(type, col->data, col->len))
		buf_put(out, col->data, col->len);
	else
		put_quoted(out, col->data, col->len, '\'');
}

/* ---- Rows ------------------------------------------------------------------------------------ */

enum which { ALL_COLUMNS, KEY_COLUMNS };

/* The value at the same place in the full old row: what an unchanged column still holds. */
static bool old_value(const struct pgws_change *c, size_t at, struct pgws_column *ret_col)
{
	const struct pgws_tuple *old = &c->msg.u.change.old_row;
	size_t offset = 0, i = 0;
	if (c->msg.type != PGWS_UPDATE || c->msg.u.change.old_kind != PGWS_OLD_FULL)
		return false;
	while (pgws_tuple_next(old, &offset, ret_col)) {
		if (i++ == at)
			return ret_col->kind != PGWS_UNCHANGED;
	}
	return false;
}

/* One column of a row on its way into text. */
struct cell {
	const struct pgws_relation_column *column;
	const struct type_info *type;
	struct pgws_column value;
	bool was_unchanged; /* value is the old row's, if that has it */
};

struct row {
	const struct tail_show *show;
	const struct pgws_change *change;
	const struct pgws_tuple *tuple;
	enum which which;
	size_t offset, at;
};

static bool row_next(struct row *r, struct cell *ret_cell)
{
	const struct pgws_relation *rel = r->change->relation;
	while (r->at < rel->n_columns && pgws_tuple_next(r->tuple, &r->offset, &ret_cell->value)) {
		size_t at = r->at++;
		ret_cell->column = &rel->columns[at];
		if (r->which == KEY_COLUMNS && !ret_cell->column->key)
			continue; /* sent as null, which says nothing */
		ret_cell->type = typecache_find(r->show->types, ret_cell->column->typid);
		ret_cell->was_unchanged = ret_cell->value.kind == PGWS_UNCHANGED;
		struct pgws_column old;
		if (ret_cell->was_unchanged && old_value(r->change, at, &old))
			ret_cell->value = old;
		return true;
	}
	return false;
}

static void put_json_value(struct buf *out, const struct cell *cell)
{
	static const struct type_info text = {.kind = TYPE_TEXT};
	if (cell->value.kind == PGWS_NULL)
		buf_put_text(out, "null");
	else /* what does not fit its type is a string then */
		(void)!tojson(out, cell->type != NULL ? cell->type : &text, cell->value.data,
			cell->value.len);
}

static void put_json_row(struct buf *out, struct row r, const char *name)
{
	struct cell cell;
	bool first = true;
	buf_printf(out, ",\"%s\":{", name);
	while (row_next(&r, &cell)) {
		if (cell.value.kind == PGWS_UNCHANGED)
			continue;
		if (!first)
			buf_put_u8(out, ',');
		first = false;
		tojson_string(out, cell.column->name, strlen(cell.column->name));
		buf_put_u8(out, ':');
		put_json_value(out, &cell);
	}
	buf_put_u8(out, '}');
}

static void put_json_unchanged(struct buf *out, struct row r)
{
	struct cell cell;
	size_t n = 0;
	while (row_next(&r, &cell)) {
		if (!cell.was_unchanged)
			continue;
		buf_put_text(out, n++ == 0 ? ",\"unchanged\":[" : ",");
		tojson_string(out, cell.column->name, strlen(cell.column->name));
	}
	if (n > 0)
		buf_put_u8(out, ']');
}

static void put_text_row(struct buf *out, struct row r)
{
	struct cell cell;
	bool first = true;
	while (row_next(&r, &cell)) {
		if (!first)
			buf_put_u8(out, ' ');
		first = false;
		put_name(out, cell.column->name);
		buf_put_u8(out, '=');
		put_text_value(out, cell.type, &cell.value);
	}
}

static void put_rows(struct tail_show *s, const struct pgws_change *c, struct buf *out)
{
	const struct pgws_msg *m = &c->msg;
	struct row new_row = {.show = s, .change = c, .tuple = &m->u.change.new_row};
	struct row old_row = {.show = s, .change = c, .tuple = &m->u.change.old_row};
	const char *old = NULL;
	if (m->type != PGWS_INSERT && m->u.change.old_kind != PGWS_OLD_NONE) {
		old = m->u.change.old_kind == PGWS_OLD_KEY ? "key" : "old";
		old_row.which = m->u.change.old_kind == PGWS_OLD_KEY ? KEY_COLUMNS : ALL_COLUMNS;
	}
	if (s->json) {
		if (m->type != PGWS_DELETE)
			put_json_row(out, new_row, "new");
		if (old != NULL)
			put_json_row(out, old_row, old);
		if (m->type == PGWS_UPDATE)
			put_json_unchanged(out, new_row);
		return;
	}
	if (old != NULL) {
		buf_printf(out, " %s(", old);
		put_text_row(out, old_row);
		buf_put_u8(out, ')');
	}
	if (m->type != PGWS_DELETE) {
		buf_put_u8(out, ' ');
		put_text_row(out, new_row);
	}
}

/* ---- Lines ----------------------------------------------------------------------------------- */

static void put_json_lsn(struct buf *out, const char *name, uint64_t lsn)
{
	char text[18];
	if (lsn != 0)
		buf_printf(out, "\"%s\":\"%s\",", name, pgws_lsn_str(lsn, text));
	else
		buf_printf(out, "\"%s\":null,", name);
}

static void put_json_head(struct buf *out, const struct pgws_change *c, const struct op *op)
{
	char time[TIME_BYTES];
	buf_put_u8(out, '{');
	put_json_lsn(out, "lsn", c->lsn);
	put_json_lsn(out, "commit_lsn", c->commit_lsn);
	put_json_lsn(out, "end_lsn", c->end_lsn);
	if (c->commit_lsn != 0)
		buf_printf(out, "\"xid\":%u,\"subxid\":%u,\"ordinal\":%u,\"commit_time\":\"%s\",",
			c->xid, c->subxid, c->ordinal, time_str(c->commit_time, time));
	else
		buf_put_text(
			out, "\"xid\":null,\"subxid\":null,\"ordinal\":null,\"commit_time\":null,");
	if (c->gid != NULL) {
		buf_put_text(out, "\"gid\":");
		tojson_string(out, c->gid, strlen(c->gid));
		buf_put_u8(out, ',');
	}
	buf_printf(out, "\"op\":\"%s\"", op->name);
}

static void put_json_relation(struct buf *out, const struct pgws_relation *rel)
{
	buf_put_text(out, ",\"schema\":");
	tojson_string(out, schema_of(rel), strlen(schema_of(rel)));
	buf_put_text(out, ",\"table\":");
	tojson_string(out, rel->relname, strlen(rel->relname));
}

static void put_head(struct tail_show *s, const struct pgws_change *c, const struct op *op,
	const struct pgws_relation *rel, struct buf *out)
{
	char lsn[18], time[TIME_BYTES];
	if (s->json) {
		put_json_head(out, c, op);
		if (rel != NULL)
			put_json_relation(out, rel);
		return;
	}
	if (!s->begun && c->commit_lsn != 0) {
		buf_printf(out, "BEGIN xid %u at %s %s\n", c->xid, pgws_lsn_str(c->commit_lsn, lsn),
			time_str(c->commit_time, time));
		s->begun = true;
	}
	buf_printf(out, "%s%s", c->commit_lsn != 0 ? "  " : "", op->word);
	if (rel != NULL) {
		buf_put_u8(out, ' ');
		put_relation(out, rel);
	}
}

static void put_end(struct tail_show *s, struct buf *out)
{
	buf_put_text(out, s->json ? "}\n" : "\n");
	s->shown++;
}

static unsigned show_truncate(
	struct tail_show *s, const struct pgws_change *c, const struct op *op, struct buf *out)
{
	bool cascade = c->msg.u.truncate.cascade, restart = c->msg.u.truncate.restart_identity;
	unsigned n = 0;
	for (uint32_t i = 0; i < c->msg.u.truncate.n_relids; i++) {
		const struct pgws_relation *rel =
			pgws_catalog_find(s->catalog, pgws_truncate_relid(&c->msg, i));
		if (rel == NULL || !tail_wants_relation(&s->filter, rel))
			continue;
		put_head(s, c, op, rel, out);
		if (s->json)
			buf_printf(out, ",\"cascade\":%s,\"restart_identity\":%s",
				cascade ? "true" : "false", restart ? "true" : "false");
		else
			buf_printf(out, "%s%s", cascade ? " cascade" : "",
				restart ? " restart identity" : "");
		put_end(s, out);
		n++;
	}
	return n;
}

static bool is_utf8(const char *s, size_t len)
{
	for (size_t i = 0; i < len;) {
		size_t n = tojson_utf8_len(s + i, len - i);
		if (n == 0)
			return false;
		i += n;
	}
	return true;
}

static void put_message(struct tail_show *s, const struct pgws_change *c, struct buf *out)
{
	const char *prefix = c->msg.u.message.prefix;
	const char *data = (const char *)c->msg.u.message.data;
	uint32_t len = c->msg.u.message.len;
	if (!s->json) {
		buf_put_u8(out, ' ');
		put_quoted(out, prefix, strlen(prefix), '\'');
		buf_put_u8(out, ' ');
		put_quoted(out, data, len, '\'');
		return;
	}
	buf_printf(out, ",\"transactional\":%s,\"prefix\":",
		c->msg.u.message.transactional ? "true" : "false");
	tojson_string(out, prefix, strlen(prefix));
	if (is_utf8(data, len)) {
		buf_put_text(out, ",\"content\":");
		tojson_string(out, data, len);
		return;
	}
	buf_put_text(out, ",\"content_hex\":\"");
	for (uint32_t i = 0; i < len; i++)
		buf_printf(out, "%02x", (uint8_t)data[i]);
	buf_put_u8(out, '"');
}

static void show_commit(struct tail_show *s, const struct pgws_change *c, struct buf *out)
{
	char lsn[18], time[TIME_BYTES];
	if (s->begun) {
		buf_printf(out, "COMMIT xid %u end %s %s ", c->xid, pgws_lsn_str(c->end_lsn, lsn),
			time_str(c->commit_time, time));
		if (s->shown != s->rows)
			buf_printf(out, "%llu of ", (unsigned long long)s->shown);
		buf_printf(out, "%llu %s\n", (unsigned long long)s->rows,
			s->rows == 1 ? "change" : "changes");
	}
	s->begun = false;
	s->rows = s->shown = 0;
}

unsigned tail_show_change(struct tail_show *s, const struct pgws_change *c, struct buf *out)
{
	const struct op *op = find_op(c->msg.type);
	if (c->msg.type == PGWS_BEGIN) {
		s->begun = false;
		s->rows = s->shown = 0;
	} else if (c->msg.type == PGWS_COMMIT) {
		show_commit(s, c, out);
	}
	if (op == NULL)
		return 0;
	bool loose = c->commit_lsn == 0; /* a message outside of every transaction */
	if (!loose)
		s->rows += op->op == TAIL_TRUNCATE ? c->msg.u.truncate.n_relids : 1;
	if ((s->filter.ops & op->op) == 0)
		return 0;
	if (op->op == TAIL_TRUNCATE)
		return show_truncate(s, c, op, out);
	if (op->op != TAIL_MESSAGE && !tail_wants_relation(&s->filter, c->relation))
		return 0;
	uint64_t shown = s->shown;
	put_head(s, c, op, c->relation, out);
	if (op->op == TAIL_MESSAGE)
		put_message(s, c, out);
	else
		put_rows(s, c, out);
	put_end(s, out);
	if (loose)
		s->shown = shown;
	return 1;
}
