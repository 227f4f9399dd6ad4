/* SPDX-License-Identifier: PostgreSQL */
/*
 * watchd's counters. Context: event thread.
 */
#ifndef WATCHD_WATCHD_STATS_H
#define WATCHD_WATCHD_STATS_H

#include "common/base/stats.h"
#include "watchd/h2.h"

#define WATCHD_COUNTERS(X)                                                                         \
	X(STAT_FEED_RECORDS, "feed_records", STATS_COUNTER, "", STATS_INFO,                        \
		"records taken from the ring")                                                     \
	X(STAT_FEED_BELLS, "feed_bells", STATS_COUNTER, "", STATS_INFO,                            \
		"times that the ring announced another node's entries")                            \
	X(STAT_FEED_LSN, "feed_received_lsn", STATS_LSN, "", STATS_STATUS,                         \
		"end of the last transaction received")                                            \
	X(STAT_FEED_LAG, "feed_ring_lag", STATS_GAUGE, "bytes", STATS_INFO,                        \
		"in the ring and not yet read")

enum watchd_stat {
#define X(id, name, kind, unit, level, help) id,
	WATCHD_COUNTERS(X)
#undef X
		STAT_H2, /* one for each enum h2_stat */
	STAT_COUNT = STAT_H2 + H2_STAT_COUNT
};

extern const struct stats_row watchd_stats_rows[STAT_COUNT];

#endif
