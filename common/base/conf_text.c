/* SPDX-License-Identifier: PostgreSQL */
/*
 * Sizes, durations, likeness of names, and a scan for what libconfig 1.5 misreads without a word:
 * "8589934592" becomes 0 (an integer without the suffix L is cut to 32 bits), "\x00" ends a string,
 * and "@include" opens files on behalf of whoever parses.
 *
 * Context: pure functions, no state. The scan follows libconfig's lexer: comments "#", "//" and
 * C style; strings with backslash escapes; names [A-Za-z*][-A-Za-z0-9_*]*; numbers.
 */
#include "config.h"

#include <ctype.h>
#include <errno.h>
#include <limits.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/conf.h"
#include "common/base/conf_text.h"
#include "common/base/mem.h"

#define NAME_MAX_BYTES 64

struct unit {
	const char *name;
	int64_t factor;
};

static const struct unit size_units[] = {
	{"B", 1},
	{"kB", INT64_C(1) << 10},
	{"MB", INT64_C(1) << 20},
	{"GB", INT64_C(1) << 30},
	{"TB", INT64_C(1) << 40},
	{NULL, 0},
};

static const struct unit duration_units[] = {
	{"ms", 1},
	{"s", 1000},
	{"min", 60 * 1000},
	{"h", 3600 * 1000},
	{"d", 24 * 3600 * 1000},
	{NULL, 0},
};

static int parse_with_unit(const char *text, const struct unit *units, int64_t *ret)
{
	if (!isdigit((unsigned char)text[0]))
		return -EINVAL;
	int64_t n = 0;
	bool too_large = false;
	for (; isdigit((unsigned char)*text); text++) {
		if (__builtin_mul_overflow(n, 10, &n) || __builtin_add_overflow(n, *text - '0', &n))
			too_large = true;
	}
	while (*text == ' ')
		text++;
	if (*text == '\0' && n == 0 && !too_large) {
		*ret = 0; /* nothing is nothing in any unit */
		return 0;
	}
	for (const struct unit *u = units; u->name != NULL; u++) {
		if (strcmp(text, u->name) != 0)
			continue;
		if (too_large || n > INT64_MAX / u->factor)
			return -ERANGE;
		*ret = n * u->factor;
		return 0;
	}
	return -EINVAL;
}

int conf_parse_size(const char *text, int64_t *ret_bytes)
{
	return parse_with_unit(text, size_units, ret_bytes);
}

int conf_parse_duration(const char *text, int64_t *ret_ms)
{
	return parse_with_unit(text, duration_units, ret_ms);
}

static size_t min_of(size_t a, size_t b)
{
	return a < b ? a : b;
}

size_t conf_distance(const char *a, const char *b, size_t limit)
{
	size_t la = strlen(a), lb = strlen(b);
	size_t apart = la > lb ? la - lb : lb - la;
	if (apart > limit || la >= NAME_MAX_BYTES || lb >= NAME_MAX_BYTES)
		return limit + 1;
	/* Rows of the edit matrix: i - 2, i - 1, i. */
	size_t rows[3][NAME_MAX_BYTES + 1];
	for (size_t j = 0; j <= lb; j++)
		rows[0][j] = j;
	for (size_t i = 1; i <= la; i++) {
		size_t *now = rows[i % 3];
		const size_t *last = rows[(i + 2) % 3], *before = rows[(i + 1) % 3];
		now[0] = i;
		for (size_t j = 1; j <= lb; j++) {
			size_t best = last[j - 1] + (a[i - 1] != b[j - 1]);
			best = min_of(best, min_of(last[j], now[j - 1]) + 1);
			if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
				best = min_of(best, before[j - 2] + 1);
			now[j] = best;
		}
	}
	return min_of(rows[la % 3][lb], limit + 1);
}

/* ---- the scan ---- */

struct scan {
	const char *p;
	int line;
	void (*fn)(enum conf_scan_what what, int line, void *arg);
	void *arg;
};

static void step(struct scan *s)
{
	if (*s->p == '\n')
		s->line++;
	s->p++;
}

static void skip_line(struct scan *s)
{
	while (*s->p != '\0' && *s->p != '\n')
		s->p++;
}

static void skip_comment(struct scan *s)
{
	s->p += 2;
	while (*s->p != '\0' && !(s->p[0] == '*' && s->p[1] == '/'))
		step(s);
	if (*s->p != '\0')
		s->p += 2;
}

static void scan_string(struct scan *s)
{
	s->p++;
	while (*s->p != '\0' && *s->p != '"') {
		if (s->p[0] == '\\' && (s->p[1] == 'x' || s->p[1] == 'X') && s->p[2] == '0' &&
			s->p[3] == '0')
			s->fn(CONF_SCAN_ZERO, s->line, s->arg);
		if (s->p[0] == '\\' && s->p[1] != '\0')
			step(s);
		step(s);
	}
	if (*s->p == '"')
		s->p++;
}

static void scan_number(struct scan *s)
{
	const char *start = s->p;
	bool hex = start[0] == '0' && (start[1] == 'x' || start[1] == 'X');
	const char *end = hex ? start + 2 : start;
	while (hex ? isxdigit((unsigned char)*end) : isdigit((unsigned char)*end))
		end++;
	if (!hex && (*end == '.' || *end == 'e' || *end == 'E')) {
		/* A floating point number is no value of any key; conf.c says so. */
		while (isalnum((unsigned char)*end) || *end == '.')
			end++;
		s->p = end;
		return;
	}
	errno = 0;
	unsigned long long n = strtoull(start, NULL, hex ? 16 : 10);
	bool is_long = *end == 'L';
	if (errno == ERANGE || n > (is_long ? (unsigned long long)INT64_MAX : INT32_MAX))
		s->fn(CONF_SCAN_NUMBER, s->line, s->arg);
	while (*end == 'L')
		end++;
	s->p = end;
}

static void skip_name(struct scan *s)
{
	while (isalnum((unsigned char)*s->p) || *s->p == '-' || *s->p == '_' || *s->p == '*')
		s->p++;
}

void conf_scan(
	const char *text, void (*fn)(enum conf_scan_what what, int line, void *arg), void *arg)
{
	struct scan s = {.p = text, .line = 1, .fn = fn, .arg = arg};
	while (*s.p != '\0') {
		unsigned char c = (unsigned char)*s.p;
		if (c == '#' || (c == '/' && s.p[1] == '/')) {
			skip_line(&s);
		} else if (c == '/' && s.p[1] == '*') {
			skip_comment(&s);
		} else if (c == '"') {
			scan_string(&s);
		} else if (isdigit(c)) {
			scan_number(&s);
		} else if (isalpha(c) || c == '*') {
			skip_name(&s);
		} else {
			if (c == '@')
				fn(CONF_SCAN_INCLUDE, s.line, arg);
			step(&s);
		}
	}
}
