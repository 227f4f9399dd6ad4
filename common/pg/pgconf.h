/* SPDX-License-Identifier: PostgreSQL */
/*
 * The "postgres" section of the configuration, which every worker with a connection reads, and the
 * conninfo that follows from it.
 */
#ifndef COMMON_PG_PGCONF_H
#define COMMON_PG_PGCONF_H

#include <stdbool.h>

#include "common/base/buf.h"
#include "common/base/conf.h"

/* postgres.mode, postgres.conninfo, postgres.bindir; ends with path == NULL. */
extern const struct conf_row pgconf_rows[];

bool pgconf_is_embedded(const struct conf *conf);
/* Embedded: "host=RUN_DIR/postgres dbname=howdah user=howdah"; external: as configured. Caller
 * frees. */
char *pgconf_conninfo(const struct conf *conf, const char *run_dir);
/* What the rows alone cannot say, for a daemon's check: 0, or -ERR_CONFIG with one finding per line
 * added to errors (may be NULL). */
int pgconf_check(const struct conf *conf, struct buf *errors) __attribute__((warn_unused_result));

#endif
