/* SPDX-License-Identifier: PostgreSQL */
/*
 * The text of a command under construction: it grows, and remembers that memory was short.
 *
 * Context: one thread; used by command.c, slot.c and the consumer.
 */
#include "config.h"

#include <stdlib.h>
#include <string.h>

#include "libpgwalstream/stream_internal.h"

static void put_bytes(struct pgwsi_text *t, const char *bytes, size_t n)
{
	if (t->failed)
		return;
	if (t->len + n + 1 > t->size) {
		size_t size = 2 * (t->len + n + 1);
		char *grown = realloc(t->bytes, size);
		if (grown == NULL) {
			t->failed = true;
			return;
		}
		t->bytes = grown;
		t->size = size;
	}
	memcpy(t->bytes + t->len, bytes, n);
	t->len += n;
	t->bytes[t->len] = 0;
}

void pgwsi_text_free(struct pgwsi_text *t)
{
	free(t->bytes);
	*t = (struct pgwsi_text){.bytes = NULL};
}

void pgwsi_put(struct pgwsi_text *t, const char *text)
{
	put_bytes(t, text, strlen(text));
}

/* Between quotes, each quote inside doubled: identifiers everywhere, and literals of replication
 * commands, whose scanner knows no backslash. */
static void put_quoted(struct pgwsi_text *t, char quote, const char *text, size_t n)
{
	put_bytes(t, &quote, 1);
	for (size_t i = 0; i < n; i++) {
		if (text[i] == quote)
			put_bytes(t, &quote, 1);
		put_bytes(t, text + i, 1);
	}
	put_bytes(t, &quote, 1);
}

void pgwsi_put_identifier(struct pgwsi_text *t, const char *name, size_t len)
{
	put_quoted(t, '"', name, len);
}

void pgwsi_put_literal(struct pgwsi_text *t, const char *text)
{
	put_quoted(t, '\'', text, strlen(text));
}

/* "a,b" -> '"a","b"': a list of identifiers inside a literal. */
void pgwsi_put_publications(struct pgwsi_text *t, const char *list)
{
	struct pgwsi_text names = {.bytes = NULL};
	while (true) {
		size_t len = strcspn(list, ",");
		pgwsi_put_identifier(&names, list, len);
		list += len;
		if (*list == 0)
			break;
		pgwsi_put(&names, ",");
		list++;
	}
	if (names.failed)
		t->failed = true;
	else
		pgwsi_put_literal(t, names.bytes);
	pgwsi_text_free(&names);
}
