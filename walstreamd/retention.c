/* SPDX-License-Identifier: PostgreSQL */
/*
 * See retention.h. What the server says (pg_replication_slots):
 *
 *   wal_status   reserved -> extended -> unreserved -> lost
 *                            over max_wal_size   over max_slot_wal_keep_size
 *   safe_wal_size: bytes that can still be written before unreserved; NULL without that limit
 */
#include "config.h"

#include <stdio.h>
#include <string.h>

#include "walstreamd/retention.h"

#define SHORT_SHARE 4 /* a quarter of the limit */

static bool is_short(const struct registrar_slot *slot)
{
	return slot->safe_wal_bytes >= 0 && slot->keep_limit_bytes > 0 &&
	       slot->safe_wal_bytes < slot->keep_limit_bytes / SHORT_SHARE;
}

enum retention retention_judge(const struct registrar_slot *slot, uint64_t warn_bytes)
{
	if (!slot->known)
		return RETENTION_FINE;
	if (strcmp(slot->wal_status, "unreserved") == 0)
		return RETENTION_UNRESERVED;
	if (is_short(slot))
		return RETENTION_SHORT;
	if (slot->retained_bytes < warn_bytes)
		return RETENTION_FINE;
	return strcmp(slot->wal_status, "extended") == 0 ? RETENTION_EXTENDED : RETENTION_MUCH;
}

const char *retention_text(enum retention r, const struct registrar_slot *slot, const char *name,
	char *out, size_t size)
{
	unsigned long long kept = slot->retained_bytes >> 20;
	out[0] = '\0';
	switch (r) {
	case RETENTION_FINE:
		break;
	case RETENTION_MUCH:
		snprintf(out, size, "the server keeps %llu MB of WAL for slot %s", kept, name);
		break;
	case RETENTION_EXTENDED:
		snprintf(out, size,
			"the server keeps %llu MB of WAL for slot %s, more than max_wal_size", kept,
			name);
		break;
	case RETENTION_SHORT:
		snprintf(out, size,
			"the server keeps %llu MB of WAL for slot %s, which is lost after %lld MB "
			"more (max_slot_wal_keep_size)",
			kept, name, (long long)(slot->safe_wal_bytes >> 20));
		break;
	case RETENTION_UNRESERVED:
		snprintf(out, size,
			"the server keeps %llu MB of WAL for slot %s and gives it up at the next "
			"checkpoint (max_slot_wal_keep_size)",
			kept, name);
		break;
	}
	/* All before the confirmed position is done with: what keeps it is the server's own need.
	 */
	uint64_t own = slot->confirmed_lsn - slot->restart_lsn;
	size_t len = strlen(out);
	if (r != RETENTION_FINE && slot->oldest[0] != '\0' &&
		slot->confirmed_lsn > slot->restart_lsn && own > slot->retained_bytes / 2)
		snprintf(out + len, size - len, "; the open transaction of %s keeps it there",
			slot->oldest);
	return out;
}

const char *retention_remedy(enum retention r)
{
	return r >= RETENTION_SHORT
		       ? "raise max_slot_wal_keep_size now, or let subscribers acknowledge (see "
			 "pgctl wal lag)"
		       : "a reader that is held, a subscriber that does not acknowledge or an old "
			 "transaction keeps it there (see pgctl wal lag), pgctl node remove gives "
			 "it up";
}
