/* SPDX-License-Identifier: PostgreSQL */
/* The table behind watchd_stats.h. */
#include "config.h"

#include "watchd/watchd_stats.h"

/* clang-format off */
const struct stats_row watchd_stats_rows[STAT_COUNT] = {
#define X(id, name, kind, unit, level, help) [id] = {"watch_" name, kind, unit, level, help},
	WATCHD_COUNTERS(X)
#undef X
#define X(id, name, kind, unit, level, help) [STAT_H2 + id] = {"watch_" name, kind, unit, level, help},
	H2_COUNTERS(X)
#undef X
};
/* clang-format on */
