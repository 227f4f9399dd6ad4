/* SPDX-License-Identifier: PostgreSQL */
/* Fuzz target: the start of a statistics page as another process may have left it. */
#include "config.h"

#include <stdint.h>
#include <string.h>

#include "common/base/err.h"
#include "common/base/mem.h"
#include "common/base/stats.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void on_value(const struct stats_value *v, void *arg)
{
	size_t *n = arg;
	ASSERT(++*n <= STATS_ROWS_MAX);
	ASSERT(strlen(v->name) > 0 && strlen(v->name) < 64);
	ASSERT(strlen(v->unit) < 16 && strlen(v->help) < 240);
	ASSERT(v->kind <= STATS_LSN && v->level <= STATS_DEBUG);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static _Alignas(64) uint8_t page[STATS_PAGE_BYTES];
	if (size > sizeof(page))
		size = sizeof(page);
	memset(page, 0, sizeof(page));
	if (size > 0)
		memcpy(page, data, size);
	size_t n = 0;
	int rc = stats_read(page, on_value, &n);
	ASSERT(rc == 0 || rc == -ERR_STATE || rc == -ERR_MALFORMED);
	char text[STATS_PANIC_BYTES + 1];
	ASSERT(strlen(stats_panic_copy(page, text, sizeof(text))) <= STATS_PANIC_BYTES);
	return 0;
}
