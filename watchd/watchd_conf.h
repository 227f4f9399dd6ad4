/* SPDX-License-Identifier: PostgreSQL */
/*
 * watchd's part of the configuration, and the settings that follow from a snapshot.
 * Context: event thread.
 */
#ifndef WATCHD_WATCHD_CONF_H
#define WATCHD_WATCHD_CONF_H

#include <stdint.h>

#include "common/base/buf.h"
#include "common/base/conf.h"

extern const struct conf_row watchd_conf_rows[];
/* NULL-terminated: ours, postgres, and what we read of walstreamd's section. */
extern const struct conf_row *const watchd_conf_schemas[];

enum compaction_mode { COMPACTION_OFF, COMPACTION_PERIODIC, COMPACTION_REVISION };

struct watchd_conf {
	char *advertise_url; /* owned: watchd_conf_free */
	uint64_t quota_bytes;
	enum compaction_mode compaction;
	uint64_t retention; /* PERIODIC: ms, REVISION: revisions */
	uint32_t max_request_bytes;
	uint32_t max_txn_ops;
	uint32_t max_connections;
	uint32_t max_streams;
	uint32_t max_watches;
	uint64_t max_waiting_bytes;
	uint32_t request_timeout_ms;
	uint32_t progress_interval_ms;
	uint32_t busy_poll_us;
};

void watchd_conf_get(const struct conf *conf, struct watchd_conf *ret_wc);
void watchd_conf_free(struct watchd_conf *wc);
/* Cross-checks for daemon_info. */
int watchd_conf_check(const struct conf *conf, struct buf *errors);

#endif
