/* SPDX-License-Identifier: PostgreSQL */
/*
 * CRC-32C (Castagnoli) of the ring's records, by the processor's instruction where there is one
 * (SSE4.2, ARMv8 with CRC), else by tables, four bytes at a time.
 *
 * Context: any thread. Which one it is was decided before main.
 *
 * Invariant: both give the same for the same bytes; test_ring compares them.
 */
#include "config.h"

#include <string.h>

#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

#include "common/ring/ring_layout.h"

static uint32_t crc_table[4][256];

uint32_t ring_crc32c_portable(uint32_t crc, const void *data, size_t len_bytes)
{
	const uint8_t *p = data;
	crc = ~crc;
	for (; len_bytes >= 4; len_bytes -= 4, p += 4) {
		crc ^= (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 |
		       (uint32_t)p[3] << 24;
		crc = crc_table[3][crc & 0xff] ^ crc_table[2][(crc >> 8) & 0xff] ^
		      crc_table[1][(crc >> 16) & 0xff] ^ crc_table[0][crc >> 24];
	}
	for (; len_bytes > 0; len_bytes--, p++)
		crc = (crc >> 8) ^ crc_table[0][(crc ^ *p) & 0xff];
	return ~crc;
}

uint32_t ring_crc32c_header_portable(const struct ring_record_header *h)
{
	struct ring_record_header copy = *h;
	copy.crc = 0;
	return ring_crc32c_portable(0, &copy, sizeof(copy));
}

static uint32_t (*crc_best)(
	uint32_t crc, const void *data, size_t len_bytes) = ring_crc32c_portable;
static uint32_t (*crc_header_best)(
	const struct ring_record_header *h) = ring_crc32c_header_portable;

/* Without the half of the header's second word that is the checksum, on a little-endian machine. */
#define CRC_WORD 1
#define CRC_WORD_MASK UINT64_C(0xffffffff00000000)
/* Of a header, whatever it was written as. */
typedef uint64_t __attribute__((may_alias)) header_word;
_Static_assert(offsetof(struct ring_record_header, crc) == CRC_WORD * 8, "crc in its word");
_Static_assert(sizeof(struct ring_record_header) % 8 == 0, "whole words");

#if defined(__x86_64__)

#define HAVE_HARDWARE 1

static bool hardware_has_crc(void)
{
	__builtin_cpu_init();
	return __builtin_cpu_supports("sse4.2") != 0;
}

__attribute__((target("sse4.2"))) static uint32_t crc_hardware(
	uint32_t crc, const void *data, size_t len_bytes)
{
	const uint8_t *p = data;
	uint64_t c = ~crc;
	for (; len_bytes >= 8; len_bytes -= 8, p += 8) {
		uint64_t word;
		memcpy(&word, p, sizeof(word));
		c = __builtin_ia32_crc32di(c, word);
	}
	uint32_t rest = (uint32_t)c;
	for (; len_bytes > 0; len_bytes--, p++)
		rest = __builtin_ia32_crc32qi(rest, *p);
	return ~rest;
}

__attribute__((target("sse4.2"))) static uint32_t crc_header_hardware(
	const struct ring_record_header *h)
{
	const header_word *words = (const void *)h;
	uint64_t c = UINT32_MAX;
#pragma GCC unroll 10
	for (size_t i = 0; i < sizeof(*h) / 8; i++)
		c = __builtin_ia32_crc32di(c, i == CRC_WORD ? words[i] & CRC_WORD_MASK : words[i]);
	return ~(uint32_t)c;
}

#elif defined(__aarch64__) && defined(__linux__) && defined(__AARCH64EL__)

#define HAVE_HARDWARE 1
#define HWCAP_CRC32_BIT (1UL << 7) /* HWCAP_CRC32 of the kernel's asm/hwcap.h */

static bool hardware_has_crc(void)
{
	return (getauxval(AT_HWCAP) & HWCAP_CRC32_BIT) != 0;
}

static uint32_t crc_word(uint32_t crc, uint64_t word)
{
	__asm__(".arch_extension crc\n\tcrc32cx %w0, %w0, %x1" : "+r"(crc) : "r"(word));
	return crc;
}

static uint32_t crc_header_hardware(const struct ring_record_header *h)
{
	const header_word *words = (const void *)h;
	uint32_t crc = UINT32_MAX;
#pragma GCC unroll 10
	for (size_t i = 0; i < sizeof(*h) / 8; i++)
		crc = crc_word(crc, i == CRC_WORD ? words[i] & CRC_WORD_MASK : words[i]);
	return ~crc;
}

static uint32_t crc_hardware(uint32_t crc, const void *data, size_t len_bytes)
{
	const uint8_t *p = data;
	crc = ~crc;
	for (; len_bytes >= 8; len_bytes -= 8, p += 8) {
		uint64_t word;
		memcpy(&word, p, sizeof(word));
		crc = crc_word(crc, word);
	}
	for (; len_bytes > 0; len_bytes--, p++)
		__asm__(".arch_extension crc\n\tcrc32cb %w0, %w0, %w1"
			: "+r"(crc)
			: "r"((uint32_t)*p));
	return ~crc;
}

#endif

__attribute__((constructor)) static void crc_init(void)
{
	for (uint32_t i = 0; i < 256; i++) {
		uint32_t c = i;
		for (int bit = 0; bit < 8; bit++)
			c = (c & 1) != 0 ? (c >> 1) ^ UINT32_C(0x82f63b78) : c >> 1;
		crc_table[0][i] = c;
	}
	for (uint32_t i = 0; i < 256; i++) {
		for (int t = 1; t < 4; t++)
			crc_table[t][i] = (crc_table[t - 1][i] >> 8) ^
					  crc_table[0][crc_table[t - 1][i] & 0xff];
	}
#ifdef HAVE_HARDWARE
	if (hardware_has_crc()) {
		crc_best = crc_hardware;
		crc_header_best = crc_header_hardware;
	}
#endif
}

uint32_t ring_crc32c(uint32_t crc, const void *data, size_t len_bytes)
{
	return crc_best(crc, data, len_bytes);
}

uint32_t ring_crc32c_header(const struct ring_record_header *h)
{
	return crc_header_best(h);
}
