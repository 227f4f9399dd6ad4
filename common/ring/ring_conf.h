/* SPDX-License-Identifier: PostgreSQL */
/*
 * The "walstreamd" section of the configuration: the producer's keys and, since a section has one
 * table, the one that consumers read (spool_limit). A worker that names these rows in its schemas
 * may read any of them.
 */
#ifndef COMMON_RING_RING_CONF_H
#define COMMON_RING_RING_CONF_H

#include "common/base/conf.h"

/* walstreamd.enabled, ring_size, spool_limit, streaming, transaction_memory,
 * transaction_spool_limit, wal_warn_bytes; ends with path == NULL. */
extern const struct conf_row ring_conf_rows[];

#endif
