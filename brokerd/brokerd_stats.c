/* SPDX-License-Identifier: PostgreSQL */
/* The tables behind brokerd_stats.h. */
#include "config.h"

#include "brokerd/brokerd_stats.h"

/* clang-format off */
const struct stats_row brokerd_stats_rows[STAT_COUNT] = {
	CHANGES_STATS_ROWS,
#define X(id, name, kind, unit, level, help) [id] = {"mqtt_" name, kind, unit, level, help},
	BROKERD_COUNTERS(X)
#undef X
#define X(id, name, code, help) \
	[STAT_ENDS + id] = {"mqtt_ended_" name, STATS_COUNTER, "", STATS_INFO, "connections ended: " help},
	BROKERD_ENDS(X)
#undef X
};

const struct end_row brokerd_ends[END_COUNT] = {
#define X(id, name, code, help) [id] = {name, code, help},
	BROKERD_ENDS(X)
#undef X
};
/* clang-format on */
