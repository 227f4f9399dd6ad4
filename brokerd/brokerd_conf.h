/* SPDX-License-Identifier: PostgreSQL */
/*
 * brokerd's part of the configuration, and the settings that follow from a snapshot.
 * Context: event thread.
 */
#ifndef BROKERD_BROKERD_CONF_H
#define BROKERD_BROKERD_CONF_H

#include <stdbool.h>
#include <stdint.h>

#include "brokerd/topic.h"
#include "common/base/buf.h"
#include "common/base/conf.h"

extern const struct conf_row brokerd_conf_rows[];
/* NULL-terminated: ours, postgres, and what we read of walstreamd's section. */
extern const struct conf_row *const brokerd_conf_schemas[];

struct broker_conf {
	bool allow_anonymous;
	uint32_t ack_timeout_ms;
	uint32_t connect_timeout_ms;
	uint32_t max_packet_bytes;
	uint16_t receive_maximum;
	uint16_t topic_alias_maximum;
	uint32_t max_connections;
	uint32_t max_queued_messages;
	uint64_t max_queued_bytes;
	uint32_t max_subscriptions;
	struct topic_limits topic;
};

void brokerd_conf_get(const struct conf *conf, struct broker_conf *ret_bc);
/* Cross-checks for daemon_info. */
int brokerd_conf_check(const struct conf *conf, struct buf *errors);
/* NULL, or why it is not the URL of a listener that can be served (static text). */
const char *brokerd_url_error(const char *url);
/* Whether the host of a valid URL is this machine only. */
bool brokerd_url_is_loopback(const char *url);

#endif
