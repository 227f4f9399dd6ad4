/* SPDX-License-Identifier: PostgreSQL */
/*
 * Topic and payload templates: text with {placeholders}; {{ and }} are braces.
 *
 *   both:     {schema} {table} {op} {any column}     (these names hide columns of the same name)
 *   payloads: {new} {old} {json} {lsn} {xid} {ts}    ({json}: the default payload)
 *
 * Topic: values are percent-encoded for % / + #, control characters, what is not UTF-8, and a $
 * at the very beginning; NULL, and a column that is not there, is an empty level.
 * Payload: values are the raw text; NULL is empty.
 *
 * Context: event thread (a column's place is remembered inside the template).
 */
#ifndef BROKERD_TEMPLATE_H
#define BROKERD_TEMPLATE_H

#include <stdbool.h>

#include "brokerd/change.h"

#define TOPIC_MAX_BYTES 65535

struct tmpl;

/* 0, or -ERR_MALFORMED with *ret_why (static text). */
int template_compile(const char *text, bool is_topic, struct tmpl **ret_t, const char **ret_why)
	__attribute__((warn_unused_result));
void template_free(struct tmpl **t);
/* Appends to out. 0; topics: -ERR_LIMIT (longer than TOPIC_MAX_BYTES), -ERR_MALFORMED (empty);
 * payloads: -ERR_LIMIT (out is full). */
int template_render(struct tmpl *t, struct change *ch, struct buf *out)
	__attribute__((warn_unused_result));

#endif
