/* SPDX-License-Identifier: PostgreSQL */
/*
 * Tables and JSON lines: see output.h. What came from elsewhere is made harmless to a terminal:
 * control characters are shown as \xNN.
 *
 * Context: pgctl.
 */
#include "config.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/buf.h"
#include "common/base/mem.h"
#include "pgctl/output.h"

struct table {
	const char *names[OUTPUT_COLUMNS_MAX]; /* borrowed from the rows, or from list */
	size_t widths[OUTPUT_COLUMNS_MAX];
	bool numeric[OUTPUT_COLUMNS_MAX];
	size_t n;
	char *list;
};

void output_init(struct output *o, FILE *f, bool json)
{
	*o = (struct output){.f = f, .json = json, .rows = json_array()};
}

/* One cell as text. */
static void put_value(struct buf *b, const json_t *v)
{
	switch (v == NULL ? JSON_NULL : json_typeof(v)) {
	case JSON_NULL:
		buf_put_u8(b, '-');
		return;
	case JSON_TRUE:
	case JSON_FALSE:
		buf_put_text(b, json_is_true(v) ? "yes" : "no");
		return;
	case JSON_INTEGER:
		buf_printf(b, "%" JSON_INTEGER_FORMAT, json_integer_value(v));
		return;
	case JSON_REAL:
		buf_printf(b, "%.10g", json_real_value(v));
		return;
	case JSON_STRING:
		for (const unsigned char *s = (const unsigned char *)json_string_value(v);
			*s != '\0'; s++) {
			if (*s < 0x20 || *s == 0x7f)
				buf_printf(b, "\\x%02x", *s);
			else
				buf_put_u8(b, *s);
		}
		return;
	default: {
		char *text = json_dumps(v, JSON_COMPACT | JSON_ENCODE_ANY);
		buf_put_text(b, text != NULL ? text : "?");
		free(text);
		return;
	}
	}
}

void output_value(struct output *o, const json_t *value)
{
	struct buf b;

	buf_init(&b, 0);
	put_value(&b, value);
	fwrite(b.data, 1, b.len_bytes, o->f);
	buf_free(&b);
}

/* Characters, not bytes. */
static size_t display_width(const char *s)
{
	size_t n = 0;
	for (; *s != '\0'; s++)
		n += ((unsigned char)*s & 0xc0) != 0x80;
	return n;
}

static size_t table_column(struct table *t, const char *name)
{
	for (size_t i = 0; i < t->n; i++) {
		if (strcmp(t->names[i], name) == 0)
			return i;
	}
	if (t->n == OUTPUT_COLUMNS_MAX)
		return t->n;
	t->names[t->n] = name;
	t->widths[t->n] = display_width(name);
	t->numeric[t->n] = true;
	return t->n++;
}

static void table_layout(struct table *t, const struct output *o)
{
	const char *key;
	json_t *row, *value;
	size_t i;
	if (o->columns != NULL) {
		char *save = NULL;
		t->list = xstrdup(o->columns);
		for (char *w = strtok_r(t->list, ",", &save); w != NULL;
			w = strtok_r(NULL, ",", &save))
			(void)table_column(t, w); /* their number is ours */
	}
	json_array_foreach(o->rows, i, row)
	{
		if (o->columns == NULL)
			json_object_foreach(row, key, value)(void) table_column(t, key);
		for (size_t c = 0; c < t->n; c++) {
			struct buf b;
			buf_init(&b, 0);
			value = json_object_get(row, t->names[c]);
			put_value(&b, value);
			size_t width = display_width(buf_cstr(&b));
			if (width > t->widths[c])
				t->widths[c] = width;
			if (value != NULL && !json_is_number(value) && !json_is_null(value))
				t->numeric[c] = false;
			buf_free(&b);
		}
	}
}

static void put_cell(const struct table *t, size_t c, const char *text, FILE *f)
{
	size_t pad = t->widths[c] - display_width(text);
	bool last = c + 1 == t->n;
	if (t->numeric[c])
		fprintf(f, "%*s%s", (int)pad, "", text);
	else
		fprintf(f, "%s%*s", text, last ? 0 : (int)pad, "");
	fputs(last ? "\n" : "  ", f);
}

static void write_block(struct output *o)
{
	struct table t = {.n = 0};
	json_t *row;
	size_t i;
	if (json_array_size(o->rows) == 0)
		return;
	table_layout(&t, o);
	for (size_t c = 0; c < t.n; c++)
		put_cell(&t, c, t.names[c], o->f);
	json_array_foreach(o->rows, i, row)
	{
		for (size_t c = 0; c < t.n; c++) {
			struct buf b;
			buf_init(&b, 0);
			put_value(&b, json_object_get(row, t.names[c]));
			put_cell(&t, c, buf_cstr(&b), o->f);
			buf_free(&b);
		}
	}
	free(t.list);
	json_array_clear(o->rows);
}

void output_row(struct output *o, json_t *row)
{
	if (o->json) {
		(void)json_dumpf(row, o->f,
			JSON_COMPACT |
				JSON_REAL_PRECISION(12)); /* output_end looks at the stream */
		fputc('\n', o->f);
		return;
	}
	ASSERT(json_array_append(o->rows, row) == 0);
	if (json_array_size(o->rows) >= OUTPUT_BLOCK_ROWS)
		write_block(o);
}

int output_end(struct output *o)
{
	write_block(o);
	json_decref(o->rows);
	o->rows = NULL;
	errno = EIO;
	return fflush(o->f) != 0 || ferror(o->f) ? -errno : 0;
}
