/* SPDX-License-Identifier: PostgreSQL */
/*
 * Rows for people (an aligned table) or for programs (one JSON object per line). A table is written
 * in blocks of OUTPUT_BLOCK_ROWS, each aligned by itself, so that a list of any length takes
 * bounded memory.
 */
#ifndef PGCTL_OUTPUT_H
#define PGCTL_OUTPUT_H

#include <jansson.h>
#include <stdbool.h>
#include <stdio.h>

#define OUTPUT_BLOCK_ROWS 1000
#define OUTPUT_COLUMNS_MAX 24

struct output {
	FILE *f;
	bool json;
	json_t *rows; /* of the block; owned */
	const char
		*columns; /* "a,b,c": which keys the table shows, in this order; NULL: all, in the
			     order in which they first appear. JSON lines always carry all. */
};

void output_init(struct output *o, FILE *f, bool json);
/* Borrows row. */
void output_row(struct output *o, json_t *row);
/* One value as it stands in a table, at once. */
void output_value(struct output *o, const json_t *value);
/* Writes what is left and frees. 0, or -EIO: not everything could be written. */
int output_end(struct output *o) __attribute__((warn_unused_result));

#endif
