/* SPDX-License-Identifier: PostgreSQL */
/*
 * What the slot's hold on WAL means for the operator: how bad it is, and a text with the remedy.
 *
 * Context: any; pure.
 */
#ifndef WALSTREAMD_RETENTION_H
#define WALSTREAMD_RETENTION_H

#include <stddef.h>
#include <stdint.h>

#include "walstreamd/registrar.h"

/* In order: worse is higher. */
enum retention {
	RETENTION_FINE,
	RETENTION_MUCH,      /* over walstreamd.wal_warn_bytes */
	RETENTION_EXTENDED,  /* more than max_wal_size, kept for slots only */
	RETENTION_SHORT,     /* less than a quarter of max_slot_wal_keep_size is left */
	RETENTION_UNRESERVED /* the next checkpoint may take it */
};

enum retention retention_judge(const struct registrar_slot *slot, uint64_t warn_bytes);
/* One clause without a full stop for the status; "" if fine. */
const char *retention_text(enum retention r, const struct registrar_slot *slot, const char *name,
	char *out, size_t size);
/* What to do about it. */
const char *retention_remedy(enum retention r);

#endif
