/* SPDX-License-Identifier: PostgreSQL */
/*
 * Memory that cannot fail, typed allocation counters, and the object checks that every callback
 * starts with. Sizes that a peer or the configuration chooses are limited before they come here:
 * running out of memory ends the process (class 2 of the error rules).
 *
 * Context: any process, any thread (the counters are atomic).
 */
#ifndef COMMON_BASE_MEM_H
#define COMMON_BASE_MEM_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

/* One counter per kind of object; define with MEM_TYPE at file scope, it registers itself. */
struct mem_type {
	const char *name;
	_Atomic int64_t count; /* objects alive */
	struct mem_type *next;
};

void mem_type_register(struct mem_type *type);

#define MEM_TYPE(var, text)                                                                        \
	static struct mem_type var = {.name = (text)};                                             \
	__attribute__((constructor)) static void var##_register(void)                              \
	{                                                                                          \
		mem_type_register(&var);                                                           \
	}                                                                                          \
	struct mem_type

/* Zeroed object of len_bytes counted under type. Never NULL. Free with mem_free and the same type.
 */
void *mem_new(struct mem_type *type, size_t len_bytes) __attribute__((malloc, returns_nonnull));
/* The same, not zeroed: for bytes that are written at once. */
void *mem_new_raw(struct mem_type *type, size_t len_bytes) __attribute__((malloc, returns_nonnull));
/* NULL is a no-op. */
void mem_free(struct mem_type *type, void *ptr);

/* Calls fn for every type with objects alive; returns how many types that is. */
size_t mem_report(void (*fn)(const char *name, int64_t count, void *arg), void *arg);

/* Untyped helpers; free() them. Fatal when memory is short. */
void *xmalloc(size_t len_bytes) __attribute__((malloc, returns_nonnull));
void *xcalloc(size_t n, size_t len_bytes) __attribute__((malloc, returns_nonnull));
void *xrealloc(void *ptr, size_t len_bytes) __attribute__((returns_nonnull));
char *xstrdup(const char *s) __attribute__((malloc, returns_nonnull));
char *xstrndup(const char *s, size_t n) __attribute__((malloc, returns_nonnull));
void *xmemdup(const void *ptr, size_t len_bytes) __attribute__((malloc, returns_nonnull));
char *xasprintf(const char *fmt, ...)
	__attribute__((format(printf, 1, 2), malloc, returns_nonnull));

/*
 * Invariants. Always compiled in: the text goes to the log and to the panic slot (log.h), then the
 * process aborts and the supervisor restarts it.
 */
#define ASSERT(expr)                                                                               \
	do {                                                                                       \
		if (__builtin_expect(!(expr), 0))                                                  \
			assert_failed(__FILE__, __LINE__, #expr);                                  \
	} while (0)

_Noreturn void assert_failed(const char *file, int line, const char *expr);

/* First field of an object that travels through a void pointer: uint32_t magic. */
#define OBJ_CHECK(obj, value) ASSERT((obj) != NULL && (obj)->magic == (value))

/* obj = checked void pointer of a callback. */
#define OBJ_CAST(obj, arg, value)                                                                  \
	do {                                                                                       \
		(obj) = (arg);                                                                     \
		OBJ_CHECK(obj, value);                                                             \
	} while (0)

#define ARRAY_LEN(a) (sizeof(a) / sizeof((a)[0]))

#endif
