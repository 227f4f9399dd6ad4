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
#include <stdint.h>

#include "common/ipc/daemon.h"

struct registrar;

/* The server's side of the positions, as last looked at. */
struct registrar_slot {
	bool known;
	uint64_t server_lsn, restart_lsn, confirmed_lsn;
	uint64_t retained_bytes;
	char wal_status[16]; /* reserved extended unreserved lost */
};

struct registrar_ops {
	/* A check ended well: the slot is there, nobody uses it, and it stands here. */
	void (*on_ready)(uint64_t confirmed_lsn, void *arg);
	/* First start: make the slot, then call registrar_slot_created or _failed. */
	void (*on_create_slot)(void *arg);
	/* The snapshot was used: the connection that exported it is no longer needed. */
	void (*on_snapshot_used)(void *arg);
	/* Why the node cannot stream; it is tried again. Also on a lost connection. */
	void (*on_trouble)(const char *text, bool lost_connection, void *arg);
	/* No sense in trying again: another instance, or a refusal that a retry will not change. */
	void (*on_config_error)(const char *text, void *arg);
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
void registrar_slot_created(
	struct registrar *r, uint64_t lsn, uint32_t timeline, const char *snapshot);
void registrar_slot_failed(struct registrar *r, const char *why);
/* Asks for the server's positions now: on_look follows. */
void registrar_look(struct registrar *r);
/* Connected, registered, slot in order. */
bool registrar_is_ready(const struct registrar *r);
/* The server's wal_sender_timeout in milliseconds; 0: off or unknown. */
uint32_t registrar_sender_timeout_ms(const struct registrar *r);

#endif
