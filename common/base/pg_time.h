/* SPDX-License-Identifier: PostgreSQL */
/*
 * PostgreSQL's timestamps: microseconds since 2000-01-01 UTC (src/include/datatype/timestamp.h).
 */
#ifndef COMMON_BASE_PG_TIME_H
#define COMMON_BASE_PG_TIME_H

#include <stdint.h>
#include <time.h>

#define PG_EPOCH_S INT64_C(946684800) /* in Unix time */

/* Now, by this machine's clock: comparable with a server's as far as the two clocks agree. */
static inline int64_t pg_now_us(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_REALTIME, &ts);
	return ((int64_t)ts.tv_sec - PG_EPOCH_S) * 1000000 + ts.tv_nsec / 1000;
}

#endif
