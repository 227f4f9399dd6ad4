/* SPDX-License-Identifier: PostgreSQL */
/*
 * Big-endian integers in bytes, as the replication protocol has them. Internal: for the library's
 * own files. The caller has checked the bounds.
 */
#ifndef LIBPGWALSTREAM_WIRE_H
#define LIBPGWALSTREAM_WIRE_H

#include <stdint.h>

static inline uint16_t pgwsi_get16(const uint8_t *p)
{
	return (uint16_t)(p[0] << 8 | p[1]);
}

/* Written out so that the compiler makes one load and one byte swap of it. */
static inline uint32_t pgwsi_get32(const uint8_t *p)
{
	return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

static inline uint64_t pgwsi_get64(const uint8_t *p)
{
	return (uint64_t)p[0] << 56 | (uint64_t)p[1] << 48 | (uint64_t)p[2] << 40 |
	       (uint64_t)p[3] << 32 | (uint64_t)p[4] << 24 | (uint64_t)p[5] << 16 |
	       (uint64_t)p[6] << 8 | (uint64_t)p[7];
}

static inline void pgwsi_put16(uint8_t *p, uint16_t v)
{
	p[0] = (uint8_t)(v >> 8);
	p[1] = (uint8_t)v;
}

static inline void pgwsi_put32(uint8_t *p, uint32_t v)
{
	pgwsi_put16(p, (uint16_t)(v >> 16));
	pgwsi_put16(p + 2, (uint16_t)v);
}

static inline void pgwsi_put64(uint8_t *p, uint64_t v)
{
	pgwsi_put32(p, (uint32_t)(v >> 32));
	pgwsi_put32(p + 4, (uint32_t)v);
}

#endif
