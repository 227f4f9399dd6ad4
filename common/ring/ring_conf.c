/* SPDX-License-Identifier: PostgreSQL */
/*
 * The rows of the "walstreamd" section.
 *
 * Context: any process, at start and reload.
 */
#include "config.h"

#include "common/ring/ring_conf.h"

#define KB INT64_C(1024)
#define MB (KB * KB)
#define GB (KB * MB)
#define TB (KB * GB)

static const char *validate_ring_size(const char *text)
{
	int64_t bytes;
	if (conf_parse_size(text, &bytes) != 0 || (bytes & (bytes - 1)) != 0)
		return "not a power of two; write for example \"64MB\"";
	return NULL;
}

const struct conf_row ring_conf_rows[] = {
	{
		.path = "walstreamd.enabled",
		.type = CONF_BOOL,
		.def = "true",
		.reload = CONF_LIVE,
		.help = "follow the WAL; without it no table change becomes a message",
	},
	{
		.path = "walstreamd.ring_size",
		.type = CONF_SIZE,
		.min = MB,
		.max = 16 * GB,
		.def = "64MB",
		.reload = CONF_WORKER,
		.validate = validate_ring_size,
		.help = "shared memory between walstreamd and its readers; a power of two",
	},
	{
		.path = "walstreamd.spool_limit",
		.type = CONF_SIZE,
		.min = 0,
		.max = 1024 * TB,
		.def = "4GB",
		.reload = CONF_WORKER,
		.help = "how much a reader that is behind puts aside in state_dir/spool before the "
			"WAL has to wait for it",
	},
	{
		.path = "walstreamd.streaming",
		.type = CONF_ENUM,
		.choices = "off|on|parallel",
		.def = "on",
		.reload = CONF_WORKER,
		.help = "take large transactions while they run, so that the server need not put "
			"them aside; parallel: PostgreSQL 16 and later",
	},
	{
		.path = "walstreamd.transaction_memory",
		.type = CONF_SIZE,
		.min = 64 * KB,
		.max = 64 * GB,
		.def = "64MB",
		.reload = CONF_WORKER,
		.help = "memory for transactions that are taken while they run; what is beyond it "
			"goes to files in state_dir/spool",
	},
	{
		.path = "walstreamd.transaction_spool_limit",
		.type = CONF_SIZE,
		.min = 0,
		.max = 1024 * TB,
		.def = "16GB",
		.reload = CONF_WORKER,
		.help = "how much these files may take; beyond it the server puts large "
			"transactions aside itself",
	},
	{
		.path = "walstreamd.wal_warn_bytes",
		.type = CONF_SIZE,
		.min = 16 * MB,
		.max = 1024 * TB,
		.def = "1GB",
		.reload = CONF_LIVE,
		.help = "warn when the server has to keep so much WAL for this node",
	},
	{
		.path = "walstreamd.lost_slot",
		.type = CONF_ENUM,
		.choices = "stop|recreate",
		.def = "stop",
		.reload = CONF_LIVE,
		.help = "what to do when the slot is lost: stop and say so, or make a new one and "
			"report what is missing",
	},
	{
		.path = "walstreamd.heartbeat",
		.type = CONF_DURATION,
		.min = 0,
		.max = 3600000,
		.def = "10s",
		.reload = CONF_LIVE,
		.help = "at most so often a logical message is written while the server keeps more "
			"and more WAL for a database in which nothing happens; \"0s\": never",
	},
	{
		.path = "walstreamd.failover_slot",
		.type = CONF_BOOL,
		.def = "true",
		.reload = CONF_LIVE,
		.help = "let standbys keep the slot too, where the server can (PostgreSQL 17 on)",
	},
	{.path = NULL},
};
