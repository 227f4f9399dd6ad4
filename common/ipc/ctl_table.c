/* SPDX-License-Identifier: PostgreSQL */
/*
 * The admin commands of the whole suite: their words, arguments, the process that answers, and who
 * may. `pgctl help` prints this table, pgctl parses its arguments by it, and every daemon looks
 * requests up here.
 */
#include "config.h"

#include <string.h>

#include "common/ipc/ctl.h"

#define READ CTL_PERM_READ
#define ADMIN CTL_PERM_ADMIN

const struct ctl_command ctl_table[] = {
	{"status", "", ROLE_SUPERVISOR, READ,
		"state, pid, restarts, last exit and positions of every worker"},
	{"stats", "[WORKER]", ROLE_SUPERVISOR, READ, "every counter, of all workers or of one"},
	{"reload", "", ROLE_SUPERVISOR, ADMIN,
		"read the configuration again and say what every worker made of it"},
	{"worker.restart", "NAME", ROLE_SUPERVISOR, ADMIN, "stop one worker and start it anew"},
	{"log", "LEVEL", ROLE_SUPERVISOR, ADMIN,
		"set the log level until the next reload: error, warning, info or debug"},
	{"suite.info", "", ROLE_SUPERVISOR, READ,
		"version, node, user and folders of the running suite"},
	{"config.check", "[FILE]", ROLE_LOCAL, READ, "judge a configuration file"},
	{"db.init", "", ROLE_LOCAL, ADMIN, "install the schema into the database"},
	{"db.upgrade", "", ROLE_LOCAL, ADMIN, "bring the schema to this version"},
	{"db.status", "", ROLE_LOCAL, READ,
		"installed and available version of each part of the schema"},
	{"node.list", "", ROLE_LOCAL, READ, "the nodes that use this database"},
	{"node.remove", "NAME [--yes]", ROLE_LOCAL, ADMIN,
		"forget a node for good: its row, slot and publication"},
	{"mqtt.map.add", "RELATION TOPIC [--qos N] [--payload TEMPLATE] [--name NAME]", ROLE_LOCAL,
		ADMIN, "publish a table's changes to a topic"},
	{"mqtt.map.list", "", ROLE_LOCAL, READ, "the tables that are published, and where to"},
	{"mqtt.map.remove", "RELATION [--name NAME]", ROLE_LOCAL, ADMIN, "stop publishing a table"},
	{"mqtt.sessions", "[--limit N]", ROLE_BROKERD, READ, "connected MQTT clients"},
	{"watch.get", "KEY [--prefix] [--rev N] [--limit N] [--keys-only]", ROLE_WATCHD, READ,
		"the key, or all keys that begin with it"},
	{"watch.put", "KEY VALUE [--lease N]", ROLE_WATCHD, ADMIN,
		"set the key to a value, which a lease may end"},
	{"watch.del", "KEY [--prefix]", ROLE_WATCHD, ADMIN,
		"delete the key, or all keys that begin with it"},
	{"watch.watch", "KEY [--prefix] [--rev N]", ROLE_WATCHD, READ,
		"show changes of the key as they happen, until interrupted; of the past, too, from "
		"revision --rev on"},
	{"watch.compact", "[REVISION] [--before INTERVAL]", ROLE_WATCHD, ADMIN,
		"drop the history before a revision, or what is older than, say, '7 days'"},
	{"watch.status", "", ROLE_WATCHD, READ, "revision, sizes and alarms of the store"},
	{"wal.tail",
		"[--table NAME]... [--op LIST]... [--publication NAME]... [--from-slot] [--follow] "
		"[--limit N]",
		ROLE_LOCAL, ADMIN, "show the changes of the published tables as they commit"},
	{"wal.slots", "", ROLE_LOCAL, READ,
		"the server's replication slots: WAL held back, distance to invalidation"},
	{"wal.slots.create", "NAME [--physical] [--two-phase] [--failover] [--reserve-wal]",
		ROLE_LOCAL, ADMIN, "make a replication slot"},
	{"wal.slots.alter", "NAME [--failover on|off] [--two-phase on|off]", ROLE_LOCAL, ADMIN,
		"change a slot: failover from PostgreSQL 17 on, two-phase from 18 on"},
	{"wal.slots.drop", "NAME [--yes]", ROLE_LOCAL, ADMIN,
		"drop a replication slot and let its WAL go"},
	{"wal.lag", "", ROLE_WALSTREAMD, READ,
		"how far publishing and acknowledging are behind the server"},
	{"ring.status", "", ROLE_WALSTREAMD, READ,
		"the ring: positions, free space, and each consumer"},
	{"bench.pipeline", "[--delay N] [--rounds N] [--clients N] [--bindir FOLDER]", ROLE_LOCAL,
		READ, "measure a transaction of two updates on a server that is --delay ms away"},
	{"bench.wal", "[--all] [--events N] [--rounds N] [--transport LIST] [--bindir FOLDER]",
		ROLE_LOCAL, READ,
		"measure what following the WAL costs, beside pg_recvlogical and a libpq loop"},
	{"bench.watch",
		"[--all] [--only LIST] [--seconds N] [--rounds N] [--keys N] [--hold N] "
		"[--bindir FOLDER]",
		ROLE_LOCAL, READ, "measure watchd beside etcd, one client for both"},
	{"doctor", "", ROLE_LOCAL, READ,
		"look for what would keep the suite from working, with the statement that mends "
		"it"},
	{"help", "[COMMAND]", ROLE_LOCAL, READ, "this list, or one command"},
	{NULL, NULL, 0, READ, NULL},
};

const struct ctl_command *ctl_table_find(const char *name)
{
	for (const struct ctl_command *c = ctl_table; c->name != NULL; c++) {
		if (strcmp(c->name, name) == 0)
			return c;
	}
	return NULL;
}
