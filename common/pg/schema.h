/* SPDX-License-Identifier: PostgreSQL */
/*
 * The database schema: numbered SQL files per daemon (DATADIR/sql/<part>/<NNNN>-<what>.sql),
 * applied in order in one transaction under an advisory lock; howdah.schema_version(part, version,
 * applied_at) remembers. Parts in order: "howdah", "howdah_mqtt", "howdah_watch". Used, blocking,
 * by the postgres worker's helper process and by `pgctl db`; never from an event loop.
 */
#ifndef COMMON_PG_SCHEMA_H
#define COMMON_PG_SCHEMA_H

#include <libpq-fe.h>
#include <stddef.h>

#include "common/base/buf.h"

struct schema_status {
	const char *part;
	int installed; /* 0: not there */
	int available; /* highest file */
};

#define SCHEMA_PARTS_MAX 8

/* 0 and *ret_n rows, or -ERR_CONFIG / -ERR_VERSION (database is newer than this build) / -EIO with
 * why. */
int schema_status(PGconn *pg, const char *sql_dir,
	struct schema_status ret_status[SCHEMA_PARTS_MAX], size_t *ret_n, struct buf *why)
	__attribute__((warn_unused_result));
/* Applies what is missing; all or nothing. *ret_applied files. */
int schema_upgrade(PGconn *pg, const char *sql_dir, size_t *ret_applied, struct buf *why)
	__attribute__((warn_unused_result));

#endif
