/* SPDX-License-Identifier: PostgreSQL */
/*
 * Error codes: every function that can fail returns 0 or a negative code. Codes below ERR_FIRST
 * are errno values; the ones here say what errno cannot.
 */
#ifndef COMMON_BASE_ERR_H
#define COMMON_BASE_ERR_H

enum err_code {
	ERR_FIRST = 4096,
	ERR_TRUNCATED = ERR_FIRST, /* the input ends before the structure does */
	ERR_MALFORMED,             /* the input breaks its format */
	ERR_VERSION,               /* the two sides speak different versions */
	ERR_LIMIT,                 /* a named limit is reached */
	ERR_STATE,                 /* not possible in the present state */
	ERR_CLOSED,                /* the peer is gone */
	ERR_CONFIG,                /* the configuration is wrong: EXIT_CONFIG, no restart */
	ERR_RESYNC,                /* the position asked for is no longer to be had */
	ERR_LAST
};

/* Exit status of a worker whose configuration is wrong: it stays down until a reload. */
#define EXIT_CONFIG 78

/* Text for a code of either sign, never NULL. Static or thread-local: not the caller's. */
const char *err_str(int err);

#endif
