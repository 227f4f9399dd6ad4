/* SPDX-License-Identifier: PostgreSQL */
/*
 * The SQL side: the node's row, the lock, the publications, the slot's bookkeeping, and how much
 * WAL the server keeps for us.
 *
 * Context: event thread. It decides whether the node may stream and from where; the follower
 * holds the replication connection.
 */
#ifndef WALSTREAMD_REGISTRAR_H
#define WALSTREAMD_REGISTRAR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/ipc/daemon.h"
#include "common/pg/pgconn.h"

struct registrar;

/* The server's side of the positions, as last looked at. */
struct registrar_slot {
	bool known;
	bool failover; /* the slot is kept by standbys too (17+) */
	uint64_t server_lsn, restart_lsn, confirmed_lsn;
	uint64_t retained_bytes;
	int64_t safe_wal_bytes;   /* may be written before the slot can be lost; -1: no limit */
	int64_t keep_limit_bytes; /* max_slot_wal_keep_size; -1: none */
	char oldest[96];          /* who has the oldest open transaction that writes; "" if none */
	char wal_status[16];      /* reserved extended unreserved lost */
};

/* Changes that a lost slot took with it: transactions that end in (from, to]. */
struct registrar_gap {
	int64_t id; /* of the newest row that it stands for */
	uint64_t from_lsn, to_lsn;
	uint32_t timeline;
	int64_t at; /* microseconds since 2000-01-01 */
	char reason[240];
};
#define REGISTRAR_GAPS_MAX 16

struct registrar_ops {
	/* A check ended well: the slot is there, nobody uses it, and it stands here. What
	 * registrar_gaps holds has to be told before anything else. */
	void (*on_ready)(uint64_t confirmed_lsn, void *arg);
	/* First start: make the slot, then call registrar_slot_created or _failed. */
	void (*on_create_slot)(void *arg);
	/* The snapshot was used: the connection that exported it is no longer needed. */
	void (*on_snapshot_used)(void *arg);
	/* Why the node cannot stream; it is tried again. Also on a lost connection. */
	void (*on_trouble)(const char *text, bool lost_connection, void *arg);
	/* No sense in trying again: another instance, or a refusal that a retry will not change. */
	void (*on_config_error)(const char *text, void *arg);
	/* Up to where everything on this timeline is known to be acknowledged; 0: not known. */
	uint64_t (*get_acked)(uint32_t timeline, void *arg);
	/* Answer to registrar_look, and what the monitor saw. slot NULL: no answer. */
	void (*on_look)(const struct registrar_slot *slot, void *arg);
};

/* conninfo and slot are copied. */
struct registrar *registrar_new(struct daemon *d, const char *conninfo, const char *slot,
	const struct registrar_ops *ops, void *arg);
void registrar_free(struct registrar **r);
/* Connects, then keeps checking until the node is ready. */
void registrar_start(struct registrar *r);
/* Checks again: on_ready or on_trouble follows. Merged with a check that is under way. */
void registrar_check(struct registrar *r);
/* acked_lsn: what get_acked would say now that more may be known of the timelines; 0: nothing. */
void registrar_slot_created(struct registrar *r, uint64_t lsn, uint32_t timeline,
	const char *snapshot, uint64_t acked_lsn);
void registrar_slot_failed(struct registrar *r, const char *why);
/* Asks for the server's positions now: on_look follows. */
void registrar_look(struct registrar *r);
/* Writes a logical message that means nothing, so that the server has something to decode: at most
 * once per walstreamd.heartbeat. True: sent. */
bool registrar_heartbeat(struct registrar *r);
/* Connected, registered, slot in order. */
bool registrar_is_ready(const struct registrar *r);
/* Gaps that not everybody knows of, oldest first; valid until the next check. More than
 * REGISTRAR_GAPS_MAX: the last one stands for all that are newer. */
const struct registrar_gap *registrar_gaps(const struct registrar *r, size_t *ret_n);
/* Everybody knows of them: the next check finds none. */
void registrar_gaps_told(struct registrar *r);
/* The timeline that was followed when the node was last seen; 0: unknown. */
uint32_t registrar_known_timeline(const struct registrar *r);
/* The server's own, at the last check; 0: unknown. */
uint32_t registrar_timeline(const struct registrar *r);
/* The server's system identifier, at the last check; 0: unknown. */
uint64_t registrar_system(const struct registrar *r);
/* As last looked at. */
const struct registrar_slot *registrar_slot(const struct registrar *r);
/* As libpq says it, 160004; 0: not connected. */
int registrar_server_version(const struct registrar *r);
/* The server that the SQL connection has reached: the stream has to come from the same one, and
 * what else the conninfo names may be silent. */
struct pgconn_peer registrar_peer(const struct registrar *r);
/* The server's wal_sender_timeout in milliseconds; 0: off or unknown. */
uint32_t registrar_sender_timeout_ms(const struct registrar *r);

#endif
