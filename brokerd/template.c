/* SPDX-License-Identifier: PostgreSQL */
/*
 * See template.h. A template is an array of parts; a column part remembers the column's index in
 * the definition of the relation that it saw last.
 */
#include "config.h"

#include <stdlib.h>
#include <string.h>

#include "common/base/err.h"
#include "common/base/mem.h"
#include "common/pg/tojson.h"

#include "brokerd/template.h"

#define TEMPLATE_MAGIC 0x7c0de003
#define COLUMN_NONE SIZE_MAX

MEM_TYPE(mem_template, "template");

enum part_kind {
	PART_TEXT,
	PART_COLUMN,
	PART_SCHEMA,
	PART_TABLE,
	PART_OP,
	PART_LSN,
	PART_XID,
	PART_TS,
	PART_NEW,
	PART_OLD,
	PART_JSON
};

struct part {
	enum part_kind kind;
	char *text; /* TEXT, COLUMN: owned */
	size_t len;
	/* COLUMN: index in version of relation relid */
	uint32_t relid;
	uint64_t version;
	size_t index;
};

struct tmpl {
	uint32_t magic;
	bool is_topic;
	size_t n_parts;
	struct part *parts;
};

static const struct {
	const char *name;
	enum part_kind kind;
	bool topic;
} names[] = {
	{"schema", PART_SCHEMA, true},
	{"table", PART_TABLE, true},
	{"op", PART_OP, true},
	{"lsn", PART_LSN, false},
	{"xid", PART_XID, false},
	{"ts", PART_TS, false},
	{"new", PART_NEW, false},
	{"old", PART_OLD, false},
	{"json", PART_JSON, false},
};

static struct part *part_add(struct tmpl *t, enum part_kind kind, const char *s, size_t len)
{
	t->parts = xrealloc(t->parts, (t->n_parts + 1) * sizeof(*t->parts));
	struct part *p = &t->parts[t->n_parts++];
	*p = (struct part){.kind = kind, .text = xstrndup(s, len), .len = len};
	return p;
}

static void part_add_named(struct tmpl *t, const char *s, size_t len)
{
	enum part_kind kind = PART_COLUMN;

	for (size_t i = 0; i < ARRAY_LEN(names); i++) {
		if (strlen(names[i].name) == len && memcmp(names[i].name, s, len) == 0 &&
			(names[i].topic || !t->is_topic))
			kind = names[i].kind;
	}
	(void)part_add(t, kind, s, len);
}

/* Characters that receivers refuse in a topic: control characters and what Unicode says is none.
 * n: length of the sequence at s. */
static bool is_unfit(const char *s, size_t n)
{
	const uint8_t *p = (const uint8_t *)s;

	if (n == 1)
		return p[0] < 0x20 || p[0] == 0x7f;
	if (n == 2)
		return p[0] == 0xc2 && p[1] < 0xa0;
	if (n == 3 && p[0] == 0xef && p[1] == 0xb7)
		return p[2] >= 0x90 && p[2] <= 0xaf;
	/* U+xxFFFE and U+xxFFFF */
	return (n == 4 || p[0] == 0xef) &&
	       (p[n - 3] & (n == 4 ? 0x0f : 0xff)) == (n == 4 ? 0x0f : 0xef) && p[n - 2] == 0xbf &&
	       p[n - 1] >= 0xbe;
}

static const char *topic_text_error(const char *s, size_t len)
{
	for (size_t i = 0, n; i < len; i += n) {
		n = tojson_utf8_len(s + i, len - i);
		if (n == 0 || is_unfit(s + i, n))
			return "a topic has no control characters";
		if (s[i] == '+' || s[i] == '#')
			return "a topic has no wildcards + and #";
	}
	return NULL;
}

/* Literal text up to the next placeholder; doubled braces taken off. */
static const char *take_text(struct tmpl *t, const char *s, struct buf *text, const char **ret_why)
{
	buf_reset(text);
	for (; *s != '\0'; s++) {
		if (*s == '{' && s[1] != '{')
			break;
		if (*s == '}' && s[1] != '}') {
			*ret_why = "a brace is not closed or stands alone";
			return NULL;
		}
		if (*s == '{' || *s == '}')
			s++;
		buf_put_u8(text, (uint8_t)*s);
	}
	if (text->len_bytes > 0) {
		const char *literal = (const char *)text->data;

		if (t->is_topic)
			*ret_why = topic_text_error(literal, text->len_bytes);
		if (*ret_why == NULL && t->is_topic && t->n_parts == 0 && literal[0] == '$')
			*ret_why = "topics that begin with $ belong to the broker";
		if (*ret_why != NULL)
			return NULL;
		(void)part_add(t, PART_TEXT, literal, text->len_bytes);
	}
	return s;
}

static const char *compile(struct tmpl *t, const char *s, struct buf *text)
{
	const char *why = NULL;

	while ((s = take_text(t, s, text, &why)) != NULL && *s != '\0') {
		size_t len = strcspn(s + 1, "{}");

		if (len == 0 || s[1 + len] != '}')
			return "a brace is not closed or stands alone";
		part_add_named(t, s + 1, len);
		s += len + 2;
	}
	if (why == NULL && t->is_topic && t->n_parts == 0)
		why = "it is empty";
	return why;
}

int template_compile(const char *s, bool is_topic, struct tmpl **ret_t, const char **ret_why)
{
	struct tmpl *t = mem_new(&mem_template, sizeof(*t));
	struct buf text;

	t->magic = TEMPLATE_MAGIC;
	t->is_topic = is_topic;
	buf_init(&text, 0);
	const char *why = compile(t, s, &text);
	buf_free(&text);
	if (why != NULL) {
		template_free(&t);
		*ret_why = why;
		return -ERR_MALFORMED;
	}
	*ret_t = t;
	return 0;
}

void template_free(struct tmpl **tp)
{
	struct tmpl *t = *tp;

	if (t == NULL)
		return;
	OBJ_CHECK(t, TEMPLATE_MAGIC);
	for (size_t i = 0; i < t->n_parts; i++)
		free(t->parts[i].text);
	free(t->parts);
	t->magic = 0;
	mem_free(&mem_template, t);
	*tp = NULL;
}

static const struct pgws_column *part_column(struct part *p, const struct change *ch)
{
	const struct pgws_relation *rel = ch->rel;

	if (p->relid != rel->relid || p->version != rel->version) {
		p->relid = rel->relid;
		p->version = rel->version;
		p->index = COLUMN_NONE;
		for (size_t i = 0; i < rel->n_columns; i++) {
			if (strcmp(rel->columns[i].name, p->text) == 0)
				p->index = i;
		}
	}
	return p->index != COLUMN_NONE ? change_column(ch, p->index) : NULL;
}

static void put_percent(struct buf *out, const char *s, size_t n)
{
	static const char hex[] = "0123456789ABCDEF";

	for (size_t i = 0; i < n; i++) {
		uint8_t c = (uint8_t)s[i];
		buf_put(out, (char[]){'%', hex[c >> 4], hex[c & 15]}, 3);
	}
}

static void put_topic_value(struct buf *out, size_t start, const char *s, size_t len)
{
	for (size_t i = 0, n; i < len; i += n) {
		bool special =
			memchr("%/+#", s[i], 4) != NULL || (s[i] == '$' && out->len_bytes == start);

		n = tojson_utf8_len(s + i, len - i);
		if (n == 0) {
			n = 1;
			special = true;
		}
		if (special || is_unfit(s + i, n))
			put_percent(out, s + i, n);
		else
			buf_put(out, s + i, n);
	}
}

/* Text of a part that is one; *ret_len its length. */
static const char *part_text(struct part *p, struct change *ch, size_t *ret_len)
{
	const struct pgws_column *col;
	const char *s = p->text;

	switch (p->kind) {
	case PART_COLUMN:
		col = part_column(p, ch);
		*ret_len = col != NULL ? col->len : 0;
		return col != NULL ? col->data : "";
	case PART_SCHEMA:
		s = ch->rel->nspname[0] != '\0' ? ch->rel->nspname : "pg_catalog";
		break;
	case PART_TABLE:
		s = ch->rel->relname;
		break;
	case PART_OP:
		s = change_op_str(ch->op);
		break;
	case PART_LSN:
		s = ch->lsn;
		break;
	case PART_TS:
		s = ch->ts;
		break;
	default:
		*ret_len = p->len;
		return s;
	}
	*ret_len = strlen(s);
	return s;
}

static int render_topic(struct tmpl *t, struct change *ch, struct buf *out)
{
	size_t start = out->len_bytes, len;

	for (size_t i = 0; i < t->n_parts; i++) {
		struct part *p = &t->parts[i];
		const char *s = part_text(p, ch, &len);

		if (p->kind == PART_TEXT)
			buf_put(out, s, len);
		else if (len > TOPIC_MAX_BYTES)
			return -ERR_LIMIT;
		else
			put_topic_value(out, start, s, len);
	}
	if (out->failed || out->len_bytes - start > TOPIC_MAX_BYTES)
		return -ERR_LIMIT;
	return out->len_bytes > start ? 0 : -ERR_MALFORMED;
}

int template_render(struct tmpl *t, struct change *ch, struct buf *out)
{
	size_t len;

	OBJ_CHECK(t, TEMPLATE_MAGIC);
	if (t->is_topic)
		return render_topic(t, ch, out);
	for (size_t i = 0; i < t->n_parts; i++) {
		struct part *p = &t->parts[i];

		if (p->kind == PART_NEW) {
			change_put_new(ch, out);
		} else if (p->kind == PART_OLD) {
			change_put_old(ch, out);
		} else if (p->kind == PART_JSON) {
			change_put_json(ch, out);
		} else if (p->kind == PART_XID) {
			buf_printf(out, "%u", ch->xid);
		} else {
			const char *s = part_text(p, ch, &len);
			buf_put(out, s, len);
		}
	}
	return out->failed ? -ERR_LIMIT : 0;
}
