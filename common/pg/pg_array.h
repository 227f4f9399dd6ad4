/* SPDX-License-Identifier: PostgreSQL */
/*
 * One-dimensional arrays in PostgreSQL's binary form, for the parameters of unnest: begin, then per
 * element its length (be32, -1: NULL) and bytes, end.
 */
#ifndef COMMON_PG_PG_ARRAY_H
#define COMMON_PG_PG_ARRAY_H

#include <arpa/inet.h>
#include <string.h>

#include "common/base/buf.h"
#include "common/base/mem.h"

#define PG_ARRAY_HEADER_BYTES 20

/* a must be empty. element: the OID of the element's type. */
static inline void pg_array_begin(struct buf *a, uint32_t element)
{
	ASSERT(a->len_bytes == 0);
	buf_put_be32(a, 1); /* dimensions */
	buf_put_be32(a, 0); /* has NULLs: set at the end */
	buf_put_be32(a, element);
	buf_put_be32(a, 0); /* elements: set at the end */
	buf_put_be32(a, 1); /* lower bound */
}

static inline void pg_array_end(struct buf *a, size_t n, bool has_null)
{
	uint32_t be = htonl((uint32_t)n);

	ASSERT(a->len_bytes >= PG_ARRAY_HEADER_BYTES && !a->failed);
	memcpy(a->data + 12, &be, sizeof be);
	be = htonl(has_null);
	memcpy(a->data + 4, &be, sizeof be);
}

#endif
