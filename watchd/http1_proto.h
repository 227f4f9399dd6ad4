/* SPDX-License-Identifier: PostgreSQL */
/*
 * Heads of HTTP/1.x requests (RFC 9112): a pure parser over borrowed bytes, and the head of an
 * answer. No descriptors, no clock, no memory.
 *
 *     GET /health?serializable=true HTTP/1.1\r\n
 *     Host: a\r\n … \r\n
 *
 * The target is a path (origin-form); proxies and other forms have no business here. Requests with
 * a body (Content-Length over 0, Transfer-Encoding) are recognised and left to the caller to
 * refuse: nothing that is served takes one.
 */
#ifndef WATCHD_HTTP1_PROTO_H
#define WATCHD_HTTP1_PROTO_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/buf.h"

#define HTTP1_HEADERS_MAX 100

enum http1_method { HTTP1_GET, HTTP1_HEAD, HTTP1_OTHER };

struct http1_text {
	const char *p; /* not zero-terminated */
	size_t len;
};

/* All texts are borrowed from the input. */
struct http1_request {
	enum http1_method method;
	struct http1_text path;  /* "/health", as it was sent */
	struct http1_text query; /* "serializable=true", without the '?'; empty if there is none */
	uint8_t minor;           /* HTTP/1.minor */
	bool keep_alive;
	bool has_body;
	size_t head_bytes; /* up to and with the empty line */
};

/* 0: *rq is filled in; -ERR_TRUNCATED: the head does not end in data; -ERR_LIMIT: more than
 * HTTP1_HEADERS_MAX header lines; -ERR_MALFORMED, -ERR_VERSION (not 1.0 or 1.1). */
int http1_parse(const uint8_t *data, size_t len, struct http1_request *rq)
	__attribute__((warn_unused_result));

/* "OK" and the like, for the codes that are used here; "" for others. */
const char *http1_reason(int status);
/* The head of an answer with a body of len bytes. content_type NULL: none is named. */
void http1_put_head(
	struct buf *b, int status, const char *content_type, size_t len, bool keep_alive);

/* True if the query has name=value with that name: *ret_value is the value, not decoded. */
bool http1_query_get(
	const struct http1_request *rq, const char *name, struct http1_text *ret_value);
/* True if text is s. */
bool http1_text_is(struct http1_text text, const char *s);

#endif
