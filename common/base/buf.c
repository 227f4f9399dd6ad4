/* SPDX-License-Identifier: PostgreSQL */
/*
 * Bytes with bounds: the growing buffer and the reader over borrowed bytes.
 *
 * Invariants: len_bytes <= cap_bytes; cap_bytes <= max_bytes where there is a limit; data has
 * cap_bytes + 1 bytes, the last one for the zero of buf_cstr; once failed, nothing is added or
 * read.
 */
#include "config.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/buf.h"
#include "common/base/err.h"
#include "common/base/mem.h"

#define BUF_FIRST_BYTES 64

void buf_init(struct buf *b, size_t max_bytes)
{
	*b = (struct buf){.max_bytes = max_bytes};
}

void buf_free(struct buf *b)
{
	free(b->data);
	buf_init(b, b->max_bytes);
}

void buf_reset(struct buf *b)
{
	b->len_bytes = 0;
	b->failed = false;
}

void buf_consume(struct buf *b, size_t n_bytes)
{
	ASSERT(n_bytes <= b->len_bytes);
	b->len_bytes -= n_bytes;
	if (n_bytes > 0 && b->len_bytes > 0)
		memmove(b->data, b->data + n_bytes, b->len_bytes);
}

uint8_t *buf_reserve(struct buf *b, size_t n_bytes)
{
	if (b->failed)
		return NULL;
	size_t limit = b->max_bytes > 0 ? b->max_bytes : SIZE_MAX / 4;
	if (n_bytes > limit || b->len_bytes > limit - n_bytes) {
		b->failed = true;
		return NULL;
	}
	size_t need = b->len_bytes + n_bytes;
	if (b->data == NULL || need > b->cap_bytes) {
		size_t cap = b->cap_bytes == 0 ? BUF_FIRST_BYTES : b->cap_bytes * 2;
		if (cap < need)
			cap = need;
		if (cap > limit)
			cap = limit;
		b->data = xrealloc(b->data, cap + 1);
		b->cap_bytes = cap;
	}
	return b->data + b->len_bytes;
}

void buf_commit(struct buf *b, size_t n_bytes)
{
	ASSERT(n_bytes <= b->cap_bytes - b->len_bytes);
	b->len_bytes += n_bytes;
}

void buf_put(struct buf *b, const void *data, size_t n_bytes)
{
	if (n_bytes == 0)
		return;
	uint8_t *at = buf_reserve(b, n_bytes);
	if (at == NULL)
		return;
	memcpy(at, data, n_bytes);
	b->len_bytes += n_bytes;
}

void buf_put_u8(struct buf *b, uint8_t v)
{
	buf_put(b, &v, 1);
}

void buf_put_be16(struct buf *b, uint16_t v)
{
	uint8_t bytes[2] = {(uint8_t)(v >> 8), (uint8_t)v};
	buf_put(b, bytes, sizeof(bytes));
}

void buf_put_be32(struct buf *b, uint32_t v)
{
	uint8_t bytes[4];
	for (int i = 0; i < 4; i++)
		bytes[i] = (uint8_t)(v >> (24 - 8 * i));
	buf_put(b, bytes, sizeof(bytes));
}

void buf_put_be64(struct buf *b, uint64_t v)
{
	uint8_t bytes[8];
	for (int i = 0; i < 8; i++)
		bytes[i] = (uint8_t)(v >> (56 - 8 * i));
	buf_put(b, bytes, sizeof(bytes));
}

void buf_put_text(struct buf *b, const char *s)
{
	buf_put(b, s, strlen(s));
}

void buf_printf(struct buf *b, const char *fmt, ...)
{
	va_list ap;
	va_start(ap, fmt);
	int len = vsnprintf(NULL, 0, fmt, ap);
	va_end(ap);
	/* The zero that vsnprintf adds goes where buf_cstr would put it. */
	uint8_t *at = len < 0 ? NULL : buf_reserve(b, (size_t)len);
	if (at == NULL) {
		b->failed = true;
		return;
	}
	va_start(ap, fmt);
	vsnprintf((char *)at, (size_t)len + 1, fmt, ap);
	va_end(ap);
	b->len_bytes += (size_t)len;
}

void buf_put_string(struct buf *b, const char *s)
{
	size_t len_bytes = s == NULL ? 0 : strlen(s);
	if (len_bytes > UINT32_MAX) {
		b->failed = true;
		return;
	}
	buf_put_be32(b, (uint32_t)len_bytes);
	buf_put(b, s, len_bytes);
}

const char *buf_cstr(struct buf *b)
{
	if (b->data == NULL) {
		size_t cap = b->max_bytes > 0 && b->max_bytes < BUF_FIRST_BYTES ? b->max_bytes
										: BUF_FIRST_BYTES;
		b->data = xmalloc(cap + 1);
		b->cap_bytes = cap;
	}
	b->data[b->len_bytes] = '\0';
	return (const char *)b->data;
}

const uint8_t *rd_bytes(struct rd *r, size_t n_bytes)
{
	if (r->failed || n_bytes > r->left_bytes) {
		r->failed = true;
		r->left_bytes = 0;
		return NULL;
	}
	const uint8_t *at = r->p;
	/* An empty reader may stand on NULL, to which nothing may be added. */
	if (n_bytes > 0)
		r->p += n_bytes;
	r->left_bytes -= n_bytes;
	return at != NULL ? at : (const uint8_t *)"";
}

uint8_t rd_u8(struct rd *r)
{
	const uint8_t *at = rd_bytes(r, 1);
	return at == NULL ? 0 : at[0];
}

uint16_t rd_be16(struct rd *r)
{
	const uint8_t *at = rd_bytes(r, 2);
	return at == NULL ? 0 : (uint16_t)((uint16_t)at[0] << 8 | at[1]);
}

uint32_t rd_be32(struct rd *r)
{
	const uint8_t *at = rd_bytes(r, 4);
	if (at == NULL)
		return 0;
	return (uint32_t)at[0] << 24 | (uint32_t)at[1] << 16 | (uint32_t)at[2] << 8 | at[3];
}

uint64_t rd_be64(struct rd *r)
{
	const uint8_t *at = rd_bytes(r, 8);
	if (at == NULL)
		return 0;
	uint64_t v = 0;
	for (int i = 0; i < 8; i++)
		v = v << 8 | at[i];
	return v;
}

char *rd_string(struct rd *r)
{
	uint32_t len_bytes = rd_be32(r);
	const uint8_t *at = rd_bytes(r, len_bytes);
	if (at == NULL)
		return NULL;
	/* A zero inside would make the C string shorter than what was sent. */
	if (memchr(at, 0, len_bytes) != NULL) {
		r->failed = true;
		r->left_bytes = 0;
		return NULL;
	}
	return xstrndup((const char *)at, len_bytes);
}

int rd_end(const struct rd *r)
{
	if (r->failed)
		return -ERR_TRUNCATED;
	return r->left_bytes > 0 ? -ERR_MALFORMED : 0;
}

size_t utf8_char(const void *text, size_t left_bytes, uint32_t *ret_code)
{
	static const uint32_t smallest[] = {0, 0, 0x80, 0x800, 0x10000};
	const uint8_t *p = text;
	if (left_bytes == 0)
		return 0;
	uint32_t code = p[0];
	size_t n = 1;
	if (code >= 0x80) {
		n = code >= 0xf0 ? 4 : code >= 0xe0 ? 3 : 2;
		if (code < 0xc2 || code > 0xf4 || n > left_bytes)
			return 0;
		code &= 0xffU >> (n + 1);
		for (size_t i = 1; i < n; i++) {
			if ((p[i] & 0xc0) != 0x80)
				return 0;
			code = code << 6 | (p[i] & 0x3f);
		}
		if (code < smallest[n] || code > 0x10ffff || (code >= 0xd800 && code <= 0xdfff))
			return 0;
	}
	if (ret_code != NULL)
		*ret_code = code;
	return n;
}
