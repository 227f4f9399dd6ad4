/* SPDX-License-Identifier: PostgreSQL */
/*
 * Memory that cannot fail, typed counters, and the end of a process whose invariant is broken.
 *
 * Context: any thread. The registry of types is written by constructors before main only and never
 * shrinks, so readers need no lock; the counters are atomic.
 * On crash: assert_failed leaves "file:line: expr" in the panic slot, which outlives the process.
 */
#include "config.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/log.h"
#include "common/base/log_panic.h"
#include "common/base/mem.h"

static struct mem_type *all_types;

/* Not an ASSERT: this text says what is wrong to somebody who does not read C. */
static _Noreturn void out_of_memory(size_t len_bytes)
{
	char line[128];
	snprintf(line, sizeof(line), "out of memory: cannot allocate %zu bytes", len_bytes);
	log_panic(line);
	abort();
}

_Noreturn void assert_failed(const char *file, int line, const char *expr)
{
	char text[512];
	snprintf(text, sizeof(text), "%s:%d: %s", file, line, expr);
	log_panic(text);
	abort();
}

void mem_type_register(struct mem_type *type)
{
	type->next = all_types;
	all_types = type;
}

void *mem_new(struct mem_type *type, size_t len_bytes)
{
	void *ptr = xcalloc(1, len_bytes);
	atomic_fetch_add_explicit(&type->count, 1, memory_order_relaxed);
	return ptr;
}

void *mem_new_raw(struct mem_type *type, size_t len_bytes)
{
	void *ptr = xmalloc(len_bytes);
	atomic_fetch_add_explicit(&type->count, 1, memory_order_relaxed);
	return ptr;
}

void mem_free(struct mem_type *type, void *ptr)
{
	if (ptr == NULL)
		return;
	int64_t before = atomic_fetch_sub_explicit(&type->count, 1, memory_order_relaxed);
	ASSERT(before > 0);
	free(ptr);
}

size_t mem_report(void (*fn)(const char *name, int64_t count, void *arg), void *arg)
{
	size_t n_types = 0;
	for (struct mem_type *type = all_types; type != NULL; type = type->next) {
		int64_t count = atomic_load_explicit(&type->count, memory_order_relaxed);
		if (count == 0)
			continue;
		n_types++;
		fn(type->name, count, arg);
	}
	return n_types;
}

void *xmalloc(size_t len_bytes)
{
	/* malloc(0) may be NULL, which our callers take for a failure. */
	void *ptr = malloc(len_bytes == 0 ? 1 : len_bytes);
	if (ptr == NULL)
		out_of_memory(len_bytes);
	return ptr;
}

void *xcalloc(size_t n, size_t len_bytes)
{
	if (n == 0 || len_bytes == 0)
		n = len_bytes = 1;
	void *ptr = calloc(n, len_bytes);
	if (ptr == NULL)
		out_of_memory(len_bytes);
	return ptr;
}

void *xrealloc(void *ptr, size_t len_bytes)
{
	void *bigger = realloc(ptr, len_bytes == 0 ? 1 : len_bytes);
	if (bigger == NULL)
		out_of_memory(len_bytes);
	return bigger;
}

char *xstrdup(const char *s)
{
	return xmemdup(s, strlen(s) + 1);
}

char *xstrndup(const char *s, size_t n)
{
	size_t len_bytes = strnlen(s, n);
	char *copy = xmalloc(len_bytes + 1);
	memcpy(copy, s, len_bytes);
	copy[len_bytes] = '\0';
	return copy;
}

void *xmemdup(const void *ptr, size_t len_bytes)
{
	void *copy = xmalloc(len_bytes);
	if (len_bytes > 0)
		memcpy(copy, ptr, len_bytes);
	return copy;
}

char *xasprintf(const char *fmt, ...)
{
	va_list ap;
	char *text = NULL;
	va_start(ap, fmt);
	int len = vasprintf(&text, fmt, ap);
	va_end(ap);
	if (len < 0)
		out_of_memory(strlen(fmt));
	return text;
}
