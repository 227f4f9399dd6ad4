/* SPDX-License-Identifier: PostgreSQL */
/*
 * The statistics page: one per worker, self-describing.
 *
 * Context: written by one worker's process (any of its threads), read by anybody who has the page.
 * Layout, native byte order, since both sides run on one machine and come from one build:
 *
 *     0      struct page_head   magic, version, row size, number of rows, ready
 *     64     struct page_row    value, kind, level, name, unit, help; STATS_ROWS_MAX of them
 *     61440  panic slot         STATS_PANIC_BYTES, zero-terminated text
 *     65536  end
 *
 * Invariants: everything but the values is written before `ready`, which is stored last with
 * release and never changes again; values are single atomic words. On crash: the page stays as it
 * is; values are what they were at the last store.
 */
#include "config.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/err.h"
#include "common/base/mem.h"
#include "common/base/stats.h"

#define STATS_MAGIC 0x73746174U
#define STATS_PAGE_MAGIC 0x68777370U
#define STATS_VERSION 1U
#define STATS_NAME_BYTES 64
#define STATS_UNIT_BYTES 16
#define STATS_HELP_BYTES 240

struct page_head {
	_Atomic uint32_t magic;
	_Atomic uint32_t version;
	_Atomic uint32_t row_bytes;
	_Atomic uint32_t n_rows;
	_Atomic uint32_t ready; /* STATS_PAGE_MAGIC; pairs with the acquire in stats_read */
	uint32_t unused[11];
};

struct page_row {
	_Atomic uint64_t value;
	_Atomic uint32_t kind;
	_Atomic uint32_t level;
	char name[STATS_NAME_BYTES];
	char unit[STATS_UNIT_BYTES];
	char help[STATS_HELP_BYTES];
};

struct page {
	struct page_head head;
	struct page_row rows[STATS_ROWS_MAX];
};

_Static_assert(sizeof(struct page_head) == 64, "layout");
_Static_assert(sizeof(struct page_row) == 336, "layout");
_Static_assert(sizeof(struct page) <= STATS_PAGE_BYTES - STATS_PANIC_BYTES, "rows fit the page");
_Static_assert(ATOMIC_LLONG_LOCK_FREE == 2, "a lock in shared memory could stay taken");

struct stats {
	uint32_t magic;
	bool own_page;
	struct page *page;
	size_t n_rows;
};

MEM_TYPE(type_stats, "statistics");

/* dst is zeroed; too long a text is a bug of the table. */
static void put_text(char *dst, size_t size, const char *text)
{
	size_t len = text == NULL ? 0 : strlen(text);
	ASSERT(len < size); /* of name, unit or help */
	if (len > 0)
		memcpy(dst, text, len);
}

struct stats *stats_new(void *page, const struct stats_row *rows, size_t n_rows)
{
	ASSERT(n_rows <= STATS_ROWS_MAX);
	struct stats *stats = mem_new(&type_stats, sizeof(*stats));
	stats->magic = STATS_MAGIC;
	stats->own_page = page == NULL;
	stats->page = page == NULL ? xcalloc(1, STATS_PAGE_BYTES) : page;
	stats->n_rows = n_rows;

	struct page_head *head = &stats->page->head;
	ASSERT(atomic_load(&head->ready) == 0);
	for (size_t i = 0; i < n_rows; i++) {
		struct page_row *row = &stats->page->rows[i];
		atomic_store_explicit(&row->kind, rows[i].kind, memory_order_relaxed);
		atomic_store_explicit(&row->level, rows[i].level, memory_order_relaxed);
		put_text(row->name, sizeof(row->name), rows[i].name);
		put_text(row->unit, sizeof(row->unit), rows[i].unit);
		put_text(row->help, sizeof(row->help), rows[i].help);
	}
	atomic_store_explicit(&head->magic, STATS_PAGE_MAGIC, memory_order_relaxed);
	atomic_store_explicit(&head->version, STATS_VERSION, memory_order_relaxed);
	atomic_store_explicit(
		&head->row_bytes, (uint32_t)sizeof(struct page_row), memory_order_relaxed);
	atomic_store_explicit(&head->n_rows, (uint32_t)n_rows, memory_order_relaxed);
	/* Pairs with the acquire in stats_read. */
	atomic_store_explicit(&head->ready, STATS_PAGE_MAGIC, memory_order_release);
	return stats;
}

void stats_free(struct stats **stats_ptr)
{
	struct stats *stats = *stats_ptr;
	*stats_ptr = NULL;
	if (stats == NULL)
		return;
	OBJ_CHECK(stats, STATS_MAGIC);
	if (stats->own_page)
		free(stats->page);
	stats->magic = 0;
	mem_free(&type_stats, stats);
}

static _Atomic uint64_t *value_at(const struct stats *stats, size_t index)
{
	OBJ_CHECK(stats, STATS_MAGIC);
	ASSERT(index < stats->n_rows);
	return &stats->page->rows[index].value;
}

void stats_add(struct stats *stats, size_t index, uint64_t n)
{
	atomic_fetch_add_explicit(value_at(stats, index), n, memory_order_relaxed);
}

void stats_set(struct stats *stats, size_t index, uint64_t v)
{
	atomic_store_explicit(value_at(stats, index), v, memory_order_relaxed);
}

uint64_t stats_get(const struct stats *stats, size_t index)
{
	return atomic_load_explicit(value_at(stats, index), memory_order_relaxed);
}

char *stats_panic_slot(void *page)
{
	return (char *)page + STATS_PAGE_BYTES - STATS_PANIC_BYTES;
}

const char *stats_panic_copy(const void *page, char *out, size_t out_size)
{
	const volatile char *slot =
		(const volatile char *)page + STATS_PAGE_BYTES - STATS_PANIC_BYTES;
	size_t i = 0;
	ASSERT(out_size > 0);
	for (; i < STATS_PANIC_BYTES && i + 1 < out_size; i++) {
		char c = slot[i];
		if (c == '\0')
			break;
		out[i] = c >= 0x20 && c < 0x7f ? c : '?';
	}
	out[i] = '\0';
	return out;
}

/*
 * A private, terminated, printable copy. The page may change under our eyes: each byte is read
 * once.
 */
static void take_text(char *out, const char *field, size_t size)
{
	const volatile char *from = field;
	size_t i = 0;
	for (; i + 1 < size; i++) {
		unsigned char c = (unsigned char)from[i];
		if (c == '\0')
			break;
		out[i] = c >= 0x20 && c != 0x7f ? (char)c : '?';
	}
	out[i] = '\0';
}

static bool name_ok(const char *name)
{
	return name[0] != '\0' &&
	       strspn(name, "abcdefghijklmnopqrstuvwxyz0123456789_") == strlen(name);
}

int stats_read(const void *page_ptr, void (*fn)(const struct stats_value *v, void *arg), void *arg)
{
	const struct page *page = page_ptr;
	/* Pairs with the release in stats_new. */
	uint32_t ready = atomic_load_explicit(&page->head.ready, memory_order_acquire);
	if (ready == 0)
		return -ERR_STATE;
	uint32_t n_rows = atomic_load_explicit(&page->head.n_rows, memory_order_relaxed);
	if (ready != STATS_PAGE_MAGIC ||
		atomic_load_explicit(&page->head.magic, memory_order_relaxed) != STATS_PAGE_MAGIC ||
		atomic_load_explicit(&page->head.version, memory_order_relaxed) != STATS_VERSION ||
		atomic_load_explicit(&page->head.row_bytes, memory_order_relaxed) !=
			sizeof(struct page_row) ||
		n_rows > STATS_ROWS_MAX)
		return -ERR_MALFORMED;

	for (uint32_t i = 0; i < n_rows; i++) {
		const struct page_row *row = &page->rows[i];
		char name[STATS_NAME_BYTES], unit[STATS_UNIT_BYTES], help[STATS_HELP_BYTES];
		take_text(name, row->name, sizeof(name));
		take_text(unit, row->unit, sizeof(unit));
		take_text(help, row->help, sizeof(help));
		uint32_t kind = atomic_load_explicit(&row->kind, memory_order_relaxed);
		uint32_t level = atomic_load_explicit(&row->level, memory_order_relaxed);
		if (!name_ok(name) || kind > STATS_LSN || level > STATS_DEBUG)
			return -ERR_MALFORMED;
		struct stats_value v = {
			.name = name,
			.unit = unit,
			.help = help,
			.kind = (enum stats_kind)kind,
			.level = (enum stats_level)level,
			.value = atomic_load_explicit(&row->value, memory_order_relaxed),
		};
		fn(&v, arg);
	}
	return 0;
}
