/* SPDX-License-Identifier: PostgreSQL */
/*
 * One change as one line of text, for the examples.
 */
#ifndef EXAMPLES_SHOW_H
#define EXAMPLES_SHOW_H

#include <pgwalstream.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

/* A value in its line, whatever stands in it. */
static inline void show_text(FILE *out, const char *text, size_t len)
{
	for (size_t i = 0; i < len; i++) {
		if (text[i] == '\n' || text[i] == '\r')
			fputs(text[i] == '\n' ? "\\n" : "\\r", out);
		else if (text[i] == '\\' || text[i] == '\'')
			fprintf(out, "\\%c", text[i]);
		else
			fputc(text[i], out);
	}
}

static inline void show_name(FILE *out, const char *name)
{
	show_text(out, name, strlen(name));
}

/* The columns of one row. Of an old row that is only the key, the other columns are not null: they
 * were not sent. */
static inline void show_row(
	FILE *out, const struct pgws_relation *rel, const struct pgws_tuple *row, bool key_only)
{
	struct pgws_column col;
	size_t offset = 0;

	for (unsigned i = 0; pgws_tuple_next(row, &offset, &col) && i < rel->n_columns; i++) {
		if (key_only && !rel->columns[i].key)
			continue;
		fputc(' ', out);
		show_name(out, rel->columns[i].name);
		fputc('=', out);
		switch (col.kind) {
		case PGWS_NULL:
			fputs("null", out);
			break;
		case PGWS_UNCHANGED: /* a large value that the update left alone: not sent */
			fputs("(unchanged)", out);
			break;
		case PGWS_TEXT:
			fputc('\'', out);
			show_text(out, col.data, col.len);
			fputc('\'', out);
			break;
		case PGWS_BINARY:
			for (uint32_t k = 0; k < col.len; k++)
				fprintf(out, "%02x", (unsigned char)col.data[k]);
			break;
		}
	}
}

static inline void show_rows(FILE *out, const struct pgws_relation *rel, const struct pgws_msg *m)
{
	const char *verb = m->type == PGWS_INSERT   ? "INSERT"
			   : m->type == PGWS_UPDATE ? "UPDATE"
						    : "DELETE";

	fprintf(out, "%s ", verb);
	show_name(out, rel->nspname);
	fputc('.', out);
	show_name(out, rel->relname);
	if (m->u.change.old_kind != PGWS_OLD_NONE) {
		fputs(" old", out);
		show_row(out, rel, &m->u.change.old_row, m->u.change.old_kind == PGWS_OLD_KEY);
	}
	if (m->type != PGWS_DELETE) {
		fputs(" new", out);
		show_row(out, rel, &m->u.change.new_row, false);
	}
	fputc('\n', out);
}

/* What the assembler and the consumer give out. Definitions (Relation, Type) are left out: the
 * change brings its relation along. */
static inline void show_change(FILE *out, const struct pgws_change *c)
{
	char lsn[18];

	switch (c->msg.type) {
	case PGWS_BEGIN:
		fprintf(out, "BEGIN xid %u\n", c->xid);
		break;
	case PGWS_COMMIT:
		fprintf(out, "COMMIT xid %u at %s\n", c->xid, pgws_lsn_str(c->commit_lsn, lsn));
		break;
	case PGWS_INSERT:
	case PGWS_UPDATE:
	case PGWS_DELETE:
		show_rows(out, c->relation, &c->msg);
		break;
	case PGWS_TRUNCATE:
		fprintf(out, "TRUNCATE of %u tables\n", c->msg.u.truncate.n_relids);
		break;
	case PGWS_MESSAGE:
		fputs("MESSAGE ", out);
		show_name(out, c->msg.u.message.prefix);
		fputs(": ", out);
		show_text(out, (const char *)c->msg.u.message.data, c->msg.u.message.len);
		fputc('\n', out);
		break;
	default:
		break;
	}
}

#endif
