/* SPDX-License-Identifier: PostgreSQL */
/* The table behind watchd_stats.h. */
#include "config.h"

#include "watchd/watchd_stats.h"

_Static_assert((int)STAT_COUNT <= STATS_ROWS_MAX, "they fit on the page");

/* clang-format off */
const struct stats_row watchd_stats_rows[STAT_COUNT] = {
#define X(id, name, kind, unit, level, help) [id] = {"watch_" name, kind, unit, level, help},
	WATCHD_COUNTERS(X)
#undef X
#define X(id, name, kind, unit, level, help) [STAT_H2 + id] = {"watch_" name, kind, unit, level, help},
	H2_COUNTERS(X)
#undef X
#define X(name) {"watch_calls_" name, STATS_COUNTER, "", STATS_INFO, "calls of this method"},
	GRPC_METHODS(X)
#undef X
#define X(name) {"watch_answers_" name, STATS_COUNTER, "", STATS_INFO, "calls answered with this status"},
	GRPC_STATUSES(X)
#undef X
};
/* clang-format on */
