/* SPDX-License-Identifier: PostgreSQL */
/*
 * Statistics: one shared page per worker, created by the supervisor, written by that worker only.
 * A worker declares its counters once, in a table; the page carries names and kinds, so that any
 * reader can show it without knowing the worker. The page also holds the panic slot (log.h).
 *
 * Readers treat the page as untrusted: names are bounded, values are single atomic loads.
 */
#ifndef COMMON_BASE_STATS_H
#define COMMON_BASE_STATS_H

#include <stddef.h>
#include <stdint.h>

#define STATS_PAGE_BYTES 65536
#define STATS_PANIC_BYTES 4096
#define STATS_ROWS_MAX 180

enum stats_kind { STATS_COUNTER, STATS_GAUGE, STATS_LSN };
/* STATS_STATUS rows are shown by `pgctl status` too. */
enum stats_level { STATS_STATUS, STATS_INFO, STATS_DEBUG };

struct stats_row {
	const char *name; /* "mqtt_publish_received", as in /metrics without the prefix */
	enum stats_kind kind;
	const char *unit; /* "bytes", "ms", "" … */
	enum stats_level level;
	const char *help; /* one line */
};

struct stats;

/* Writer: lays rows (at most STATS_ROWS_MAX, index = position) over a zeroed mapping of
 * STATS_PAGE_BYTES; page NULL: private memory (tests). Names are [a-z0-9_]{1,63}, units at most 15
 * bytes, help at most 239: more is a bug (ASSERT). Never fails. */
struct stats *stats_new(void *page, const struct stats_row *rows, size_t n_rows);
void stats_free(struct stats **stats);
void stats_add(struct stats *stats, size_t index, uint64_t n);
void stats_set(struct stats *stats, size_t index, uint64_t v);
uint64_t stats_get(const struct stats *stats, size_t index);

/* The panic slot inside a page: STATS_PANIC_BYTES, zero-terminated text or empty. */
char *stats_panic_slot(void *page);
/* Reader: a private, printable copy of the panic text, "" if there is none. Returns out. */
const char *stats_panic_copy(const void *page, char *out, size_t out_size);

/* Reader. Calls fn for each counter on the page; -ERR_STATE: not laid out yet; -ERR_MALFORMED: not
 * a page, or one that is garbled from here on. */
struct stats_value {
	const char *name; /* private copy for the call */
	const char *unit;
	const char *help;
	enum stats_kind kind;
	enum stats_level level;
	uint64_t value;
};
int stats_read(const void *page, void (*fn)(const struct stats_value *v, void *arg), void *arg)
	__attribute__((warn_unused_result));

#endif
