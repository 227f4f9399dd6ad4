/* SPDX-License-Identifier: PostgreSQL */
/*
 * Bytes with bounds. struct buf grows up to a limit and is for building output and collecting
 * input; struct rd walks over borrowed bytes and never reads past their end. Both carry a sticky
 * failure, so that a parser or builder checks once, at its end.
 *
 * All integers are big-endian on the wire (MQTT, pgoutput and imsg agree on that).
 */
#ifndef COMMON_BASE_BUF_H
#define COMMON_BASE_BUF_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct buf {
	uint8_t *data;    /* owned */
	size_t len_bytes; /* used */
	size_t cap_bytes;
	size_t max_bytes; /* never grows beyond; 0: no limit (only for sizes we choose ourselves) */
	bool failed;      /* a put did not fit; the content is then worthless */
};

void buf_init(struct buf *b, size_t max_bytes);
/* Frees the bytes; the buf may be used again after buf_init. */
void buf_free(struct buf *b);
/* Empty, memory kept, failure forgotten. */
void buf_reset(struct buf *b);
/* Drops n_bytes at the front. */
void buf_consume(struct buf *b, size_t n_bytes);
/* Room for n_bytes at the end: pointer, or NULL and failed. buf_commit makes them part of it. */
uint8_t *buf_reserve(struct buf *b, size_t n_bytes);
void buf_commit(struct buf *b, size_t n_bytes);

void buf_put(struct buf *b, const void *data, size_t n_bytes);
void buf_put_u8(struct buf *b, uint8_t v);
void buf_put_be16(struct buf *b, uint16_t v);
void buf_put_be32(struct buf *b, uint32_t v);
void buf_put_be64(struct buf *b, uint64_t v);
/* Without the terminating zero. */
void buf_put_text(struct buf *b, const char *s);
void buf_printf(struct buf *b, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* 32-bit length, then the bytes; s may be NULL, read back as "". The pair of rd_string. */
void buf_put_string(struct buf *b, const char *s);
/* Adds a zero after the content (not counted in len_bytes) and returns it as C string. */
const char *buf_cstr(struct buf *b);

struct rd {
	const uint8_t *p; /* borrowed */
	size_t left_bytes;
	bool failed; /* something was read beyond the end; every later read gives zero */
};

static inline struct rd rd_make(const void *data, size_t len_bytes)
{
	return (struct rd){.p = data, .left_bytes = len_bytes, .failed = false};
}
uint8_t rd_u8(struct rd *r);
uint16_t rd_be16(struct rd *r);
uint32_t rd_be32(struct rd *r);
uint64_t rd_be64(struct rd *r);
/* n_bytes in place, or NULL and failed. Borrowed from the input. */
const uint8_t *rd_bytes(struct rd *r, size_t n_bytes);
/* The pair of buf_put_string: owned copy for the caller to free(), or NULL and failed. */
char *rd_string(struct rd *r);
/* 0 if nothing failed and nothing is left, else -ERR_TRUNCATED or -ERR_MALFORMED. */
int rd_end(const struct rd *r) __attribute__((warn_unused_result));

/* Bytes of the UTF-8 character at the start of text (shortest form, no surrogates), or 0 if there
 * is none. ret_code may be NULL. */
size_t utf8_char(const void *text, size_t left_bytes, uint32_t *ret_code);

#endif
