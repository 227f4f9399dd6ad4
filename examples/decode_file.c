/* SPDX-License-Identifier: PostgreSQL */
/*
 * The decoder alone, without a connection: reads pgoutput messages from a file that psql wrote,
 *
 *     \copy (SELECT lsn, xid, data FROM pg_logical_slot_peek_binary_changes('slot', NULL, NULL,
 *           'proto_version', '1', 'publication_names', 'pub')) TO 'capture.txt'
 *
 * one message a line: LSN, xid and the bytes in hexadecimal, between tabs. Of protocol 2 and later
 * it prints the frames of the streams too, and the (sub)transaction of each change.
 *
 *     decode_file FILE
 */
#include <pgwalstream.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "show.h"

static int digit(char c)
{
	return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* Bytes of "\\x49…" (COPY doubles the backslash), in place. Negative: not hexadecimal. */
static ssize_t unhex(char *text)
{
	char *in = text + strspn(text, "\\"), *out = text;

	if (*in++ != 'x')
		return -1;
	for (; in[0] != 0 && in[0] != '\n'; in += 2) {
		int high = digit(in[0]), low = digit(in[1]);
		if (high < 0 || low < 0)
			return -1;
		*out++ = (char)(high << 4 | low);
	}
	return out - text;
}

/* What only the decoder sees: streams and prepared transactions, which an assembler would turn into
 * committed ones. */
static void show_frame(const struct pgws_msg *m)
{
	switch (m->type) {
	case PGWS_STREAM_START:
		printf("STREAM of xid %u\n", m->u.stream_start.xid);
		break;
	case PGWS_STREAM_STOP:
		puts("STREAM STOP");
		break;
	case PGWS_STREAM_COMMIT:
		printf("STREAM COMMIT xid %u\n", m->u.stream_commit.xid);
		break;
	case PGWS_STREAM_ABORT:
		printf("STREAM ABORT xid %u of %u\n", m->u.stream_abort.subxid,
			m->u.stream_abort.xid);
		break;
	case PGWS_RELATION:
		printf("RELATION %s.%s\n", m->u.relation.nspname, m->u.relation.relname);
		break;
	case PGWS_TYPE:
		printf("TYPE %s.%s\n", m->u.type_.nspname, m->u.type_.typname);
		break;
	case PGWS_ORIGIN:
		printf("ORIGIN %s\n", m->u.origin.name);
		break;
	case PGWS_PREPARE:
	case PGWS_STREAM_PREPARE:
	case PGWS_COMMIT_PREPARED:
		printf("%c xid %u gid %s\n", m->type, m->u.prepare.xid, m->u.prepare.gid);
		break;
	default:
		break;
	}
}

/* One message: 0, or why not. */
static int handle(struct pgws_catalog *catalog, const char *data, size_t len, bool *in_stream)
{
	struct pgws_change c = {.data = (const uint8_t *)data, .len = len};
	int err = pgws_decode(data, len, *in_stream, &c.msg);

	if (err != 0)
		return err;
	if (c.msg.xid != 0)
		printf("[%u] ", c.msg.xid);
	switch (c.msg.type) {
	case PGWS_STREAM_START:
	case PGWS_STREAM_STOP:
		*in_stream = c.msg.type == PGWS_STREAM_START;
		break;
	case PGWS_RELATION:
		err = pgws_catalog_learn(catalog, &c.msg);
		break;
	case PGWS_INSERT:
	case PGWS_UPDATE:
	case PGWS_DELETE:
		c.relation = pgws_catalog_find(catalog, c.msg.u.change.relid);
		if (c.relation == NULL)
			return PGWS_EUNKNOWN;
		break;
	case PGWS_BEGIN:
		c.xid = c.msg.u.begin.xid;
		break;
	case PGWS_COMMIT:
		c.commit_lsn = c.msg.u.commit.commit_lsn;
		break;
	default:
		break;
	}
	show_frame(&c.msg);
	show_change(stdout, &c);
	return err;
}

int main(int argc, char **argv)
{
	FILE *file = argc == 2 ? fopen(argv[1], "r") : NULL;
	struct pgws_catalog *catalog = pgws_catalog_new(NULL, NULL);
	char *line = NULL;
	size_t size = 0;
	bool in_stream = false;
	int err = 0;

	if (file == NULL || catalog == NULL) {
		fprintf(stderr, "usage: %s FILE\n", argv[0]);
		return 2;
	}
	for (unsigned n = 1; err == 0 && getline(&line, &size, file) > 0; n++) {
		char *hex = strrchr(line, '\t');
		ssize_t len = hex != NULL ? unhex(hex + 1) : -1;
		err = len < 0 ? PGWS_EPROTO : handle(catalog, hex + 1, (size_t)len, &in_stream);
		if (err != 0)
			fprintf(stderr, "line %u: %s\n", n, pgws_strerror(err));
	}
	free(line);
	fclose(file);
	pgws_catalog_free(&catalog);
	return err == 0 ? 0 : 1;
}
