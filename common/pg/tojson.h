/* SPDX-License-Identifier: PostgreSQL */
/*
 * Text values as pgoutput sends them (ISO dates, UTC, UTF-8) to JSON with the meaning that to_jsonb
 * gives them, written without a tree in between: this is on the path of every row.
 *
 * Differences from to_jsonb's own text, none in meaning: no blanks between tokens (jsonb values
 * keep theirs), the attributes of a composite in their order, a json value's own keys and numbers
 * as written. Two of meaning: a user's own cast to json is not run, its value is a string; bytes
 * that are not UTF-8 (a SQL_ASCII database) become U+FFFD.
 *
 * Pure; any thread.
 */
#ifndef COMMON_PG_TOJSON_H
#define COMMON_PG_TOJSON_H

#include <stddef.h>
#include <stdint.h>

#include "common/base/buf.h"
#include "common/pg/typecache.h"

/* Appends the JSON value. 0; -ERR_MALFORMED: the text does not fit the type, its JSON string was
 * written instead. A full buf shows in out->failed. */
int tojson(struct buf *out, const struct type_info *type, const char *text, size_t len_bytes)
	__attribute__((warn_unused_result));
/* Appends the text as a JSON string. */
void tojson_string(struct buf *out, const char *text, size_t len_bytes);
/* Length of the valid UTF-8 sequence that starts at p (left_bytes > 0 there), or 0. */
size_t tojson_utf8_len(const char *p, size_t left_bytes);

#endif
