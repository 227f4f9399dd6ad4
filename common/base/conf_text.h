/* SPDX-License-Identifier: PostgreSQL */
/*
 * Pure text work for conf.c: what libconfig does not tell, and how alike two names are.
 */
#ifndef COMMON_BASE_CONF_TEXT_H
#define COMMON_BASE_CONF_TEXT_H

#include <stddef.h>

enum conf_scan_what {
	CONF_SCAN_INCLUDE, /* an "@" directive: libconfig would open the file */
	CONF_SCAN_NUMBER,  /* libconfig would read another number than what stands there */
	CONF_SCAN_ZERO     /* "\x00" in a string: libconfig would end the string there */
};

/* Walks over libconfig text and calls fn for each place that libconfig would misread silently. */
void conf_scan(
	const char *text, void (*fn)(enum conf_scan_what what, int line, void *arg), void *arg);

/* Single-letter edits (insert, drop, replace, swap) between two names, at most limit + 1. */
size_t conf_distance(const char *a, const char *b, size_t limit);

#endif
