/* SPDX-License-Identifier: PostgreSQL */
/*
 * What the library says as text: error codes, its version, LSNs.
 *
 * Context: any thread; no state.
 */
#include "config.h"

#include <string.h>

#include "libpgwalstream/pgwalstream.h"

const char *pgws_version(void)
{
	return PACKAGE_VERSION;
}

const char *pgws_strerror(int err)
{
	static const char *const texts[] = {
		"success",
		"nothing now",
		"the server's bytes break the replication protocol",
		"the connection is lost or was refused",
		"the server reported an error",
		"a change names a relation that was not announced",
		"not possible in the present state",
		"the server ended the stream",
		"out of memory",
		"this server's version cannot do it",
		"an option that makes no sense",
		"a limit of the assembler is reached",
		"a file could not be read or written",
		"the slot is lost",
		"the server has another system identifier",
		"the server is on another timeline",
		"the server went back in time",
	};
	if (err > 0)
		err = 0;
	if (err < PGWS_EBACK)
		return "unknown error";
	return texts[-err];
}

const char *pgws_lsn_str(uint64_t lsn, char *buf)
{
	static const char digits[] = "0123456789ABCDEF";
	char *out = buf;
	for (int half = 1; half >= 0; half--) {
		uint32_t v = (uint32_t)(lsn >> (32 * half));
		int shift = 28;
		while (shift > 0 && v >> shift == 0)
			shift -= 4;
		for (; shift >= 0; shift -= 4)
			*out++ = digits[v >> shift & 15];
		*out++ = half == 1 ? '/' : 0;
	}
	return buf;
}

/* 1 to 8 hexadecimal digits from *text on, which is advanced past them. */
static int parse_half(const char **text, uint32_t *ret_v)
{
	static const char digits[] = "0123456789abcdef0123456789ABCDEF";
	uint32_t v = 0;
	int n = 0;
	for (const char *d; **text != 0 && (d = strchr(digits, **text)) != NULL; n++, (*text)++)
		v = v << 4 | (uint32_t)((d - digits) & 15);
	if (n < 1 || n > 8)
		return PGWS_EPROTO;
	*ret_v = v;
	return 0;
}

int pgws_lsn_parse(const char *text, uint64_t *ret_lsn)
{
	uint32_t high, low;
	if (parse_half(&text, &high) != 0 || *text++ != '/')
		return PGWS_EPROTO;
	if (parse_half(&text, &low) != 0 || *text != 0)
		return PGWS_EPROTO;
	*ret_lsn = (uint64_t)high << 32 | low;
	return 0;
}
