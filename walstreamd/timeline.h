/* SPDX-License-Identifier: PostgreSQL */
/*
 * Reads a timeline's history file, as TIMELINE_HISTORY gives it.
 *
 * Context: any; pure.
 */
#ifndef WALSTREAMD_TIMELINE_H
#define WALSTREAMD_TIMELINE_H

#include <stddef.h>
#include <stdint.h>

/* Where the server left an older timeline: up to there its WAL is this one's too. 0: it never was
 * on it, or the history does not say. */
uint64_t timeline_left(const char *history, size_t len, uint32_t timeline);

#endif
