/* SPDX-License-Identifier: PostgreSQL */
/*
 * The store: etcd's state as a deterministic machine in memory. Its input is the log
 * (howdah_watch.log), entry by entry in the order of seq; whoever has applied the same entries has
 * the same state. It knows no SQL, no socket and no clock.
 *
 *      log trimmed      compact revision          visible                  head
 *   ------|------------------|-----------------------|-----------------------|
 *     rows that nobody     history that can be        committed: what         evaluated, in
 *     needs: garbage       read and watched           clients may see         flight, not known
 *
 * Entries are made at the head: either evaluated here (store_begin, changes, store_end), each row
 * handed to on_row for the SQL log, or applied as the log has them (store_apply). What is above
 * `visible` can be undone (store_rollback); store_commit moves `visible` up.
 *
 * Revisions are etcd's: 1 is the empty store, each entry that changes keys is one more. All history
 * since the compact revision is in memory; the quota bounds it. So a watcher that starts in the
 * past walks the event log here and needs no SQL, and cannot meet a gap.
 *
 * Ownership: the store owns keys, values, leases. What it gives out is borrowed until the next call
 * that changes the store (begin, apply, commit, rollback, trim), unless pinned. Changes of an open
 * entry free nothing: what was read in it is good until it is ended or aborted.
 *
 * Invariants:
 *   1. committed_seq <= head_seq; seq is dense from the first entry on.
 *   2. A key's versions are in the order of the log; a tombstone never follows a tombstone. Two may
 *      have the same mod_revision (etcd accepts transactions that put and delete a key): the later
 *      one is what reads at that revision see.
 *   3. The event log holds every version with mod_revision >= compact_revision, in (rev, sub)
 * order.
 *   4. A lease's attached keys are exactly the keys whose newest version at the head names it.
 *
 * Context: one thread.
 */
#ifndef WATCHD_STORE_H
#define WATCHD_STORE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct store;

/* Kinds of rows; values stand in the database and never change. */
enum store_kind {
	STORE_PUT = 1,
	STORE_DELETE = 2,  /* tombstone; create_rev, version, lease are 0 */
	STORE_GRANT = 3,   /* lease, arg = time to live in s; the owner is the row's node */
	STORE_REVOKE = 4,  /* lease; sub 0, its keys' tombstones follow in the same entry */
	STORE_MOVE = 5,    /* lease; the row's node is its owner from here on */
	STORE_COMPACT = 6, /* arg = compact revision */
	STORE_ALARM = 7,   /* arg = etcd's alarm type; the row's node raised it */
	STORE_DISARM = 8,  /* arg = alarm type; key = the node whose alarm it was */
	STORE_ERA =
		9, /* arg = cluster id: the first row of all, and after the database went back */
	STORE_KIND_COUNT
};
const char *store_kind_str(enum store_kind k);

struct store_bytes {
	const void *data;
	size_t len;
};

/* One row of the log. Bytes borrowed. */
struct store_row {
	int64_t seq;
	int32_t sub; /* from 0 */
	bool last;   /* of its entry: with dense seq and sub it shows that nothing is missing */
	enum store_kind kind;
	int64_t rev; /* of the store after this entry */
	int64_t create_rev, version, lease;
	int64_t arg;
	const char *node; /* who wrote it */
	struct store_bytes key, value;
};

struct store_kv {
	struct store_bytes key, value;
	int64_t create_rev, mod_rev, version, lease;
	const void *held; /* names this version for store_held; while a revision is pinned at which
			     it is the newest, it is good over changes of the store */
};

struct store_event {
	bool is_delete; /* kv: key and mod_rev only */
	struct store_kv kv;
	/* What a read at mod_rev - 1 sees, unless that is below the compact revision or this
	 * creates the key (etcd's rules). */
	bool has_prev;
	struct store_kv prev;
};

/* Observers; all may be NULL. None may change the store. */
struct store_ops {
	/* A row was made by evaluation (not by store_apply), in order. */
	void (*on_row)(const struct store_row *row, void *arg);
	/* A row has become visible (store_commit), in order: for leases, alarms, compaction, era.
	 * Not called for PUT and DELETE: the event log has them. */
	void (*on_visible)(const struct store_row *row, void *arg);
};

/* node: this node's name, copied; rows made here carry it. */
struct store *store_new(const char *node, const struct store_ops *ops, void *arg);
void store_free(struct store **s);
/* Empty again, as after store_new. Pins are taken off and marked lost; leases (with what `user`
 * pointed to, which is its owner's business) and all else that was given out are gone. */
void store_reset(struct store *s);

/* ---- positions ---- */

int64_t store_head_seq(const struct store *s); /* 0: no entry yet */
/* With an entry open: of the store after it, as far as it has come. */
int64_t store_head_rev(const struct store *s);
int64_t store_visible_seq(const struct store *s);
int64_t store_visible_rev(const struct store *s);
/* At the head, which reads of a batch under evaluation see; and the visible one. -1: nothing was
 * compacted yet (etcd's number). */
int64_t store_head_compact_rev(const struct store *s);
int64_t store_compact_rev(const struct store *s);
uint64_t store_cluster_id(const struct store *s); /* visible; 0: no ERA yet */

/* ---- evaluation at the head ---- */

/* Opens the entry head_seq + 1. Changes are seen at once by reads with rev = STORE_HEAD. */
void store_begin(struct store *s);
/* Puts; returns the previous version in *ret_prev if there was a live one (true). lease must exist
 * or be 0. */
bool store_put(struct store *s, struct store_bytes key, struct store_bytes value, int64_t lease,
	struct store_kv *ret_prev);
/* Deletes one key that exists (a bug otherwise). */
void store_delete(struct store *s, struct store_bytes key);
void store_grant(struct store *s, int64_t lease, int64_t ttl_s);
/* Revokes with the tombstones of all its keys, in key order, in this entry, which must be empty. */
void store_revoke(struct store *s, int64_t lease);
/* This node becomes the owner; nothing changes if it is already (at the head). */
void store_move(struct store *s, int64_t lease);
/* rev must be above store_head_compact_rev and not above store_head_rev. */
void store_compact(struct store *s, int64_t rev);
/* Nothing changes if the alarm is on, or off, already. */
void store_alarm(struct store *s, int64_t type);
void store_disarm(struct store *s, const char *node, int64_t type);
void store_era(struct store *s, uint64_t cluster_id);
/* Closes the entry: number of rows. 0: nothing changed, its seq is not used. The last row's `last`
 * is known only now, so on_row runs from here. */
size_t store_end(struct store *s);
/* Undoes the open entry instead. */
void store_abort(struct store *s);

/* ---- the log's side ---- */

/* Applies a row as the log has it, in order, at the head; visible only after store_commit, which
 * should come every few thousand rows: until then each holds what would undo it.
 * 0; -ERR_MALFORMED: it does not follow (revision, duplicate key version, unknown lease); what came
 * before in the same entry can be undone (store_rollback).
 * loading: rows may be missing below (compaction removed them), and what is found to be needless is
 * garbage. */
int store_apply(struct store *s, const struct store_row *row, bool loading)
	__attribute__((warn_unused_result));
/* Everything up to seq is committed. */
void store_commit(struct store *s, int64_t seq);
/* Undoes all entries above seq (>= visible), and rows of an entry whose last row has not come. */
void store_rollback(struct store *s, int64_t seq);

/* ---- reading ---- */

#define STORE_HEAD INT64_MAX /* as revision: the head, uncommitted changes included */

/* The newest version of key at rev; false: none, or deleted. rev is a revision between the compact
 * revision and the visible (not checked here), or STORE_HEAD. */
bool store_get(const struct store *s, struct store_bytes key, int64_t rev, struct store_kv *ret_kv);

/* Walks live keys in [from, to) at rev in byte order; to.data NULL: from on to the end. Borrowed
 * and valid until the store changes: to go on later, start again at the last key + one zero byte.
 */
struct store_iter {
	const struct store *s;
	int64_t rev;
	struct store_bytes to;
	/* Keys that may still be looked at, those that do not live included; without limit unless
	 * set after store_iter_init. next says false when it is used up; stopped_at is then the key
	 * to go on behind, else its data is NULL. */
	size_t budget;
	struct store_bytes stopped_at;
	void *leaf; /* private */
	size_t pos;
};
void store_iter_init(struct store_iter *it, const struct store *s, struct store_bytes from,
	struct store_bytes to, int64_t rev);
bool store_iter_next(struct store_iter *it, struct store_kv *ret_kv);
/* A version again by its store_kv.held. */
void store_held(const void *held, struct store_kv *ret_kv);

/* While a revision is pinned, trimming leaves what is needed to read at it. */
struct store_pin {
	struct store_pin *prev, *next;
	int64_t rev;
	bool lost; /* store_reset came, or it was too old: what was read is gone */
	unsigned age;
};
void store_pin(struct store *s, struct store_pin *pin, int64_t rev);
void store_unpin(struct store_pin *pin); /* twice is harmless */
/* A reader that never ends must not keep history for ever. Each call ages the pins below the
 * visible compact revision, which alone hold something back, by one; those that come to `most` are
 * taken off and lost. Returns how many. */
size_t store_age_pins(struct store *s, unsigned most);

/* The event log: positions are counts that only grow (over trims; not over store_reset). */
uint64_t store_log_begin(const struct store *s);             /* oldest position there is */
uint64_t store_log_end(const struct store *s);               /* behind the newest visible event */
uint64_t store_log_find(const struct store *s, int64_t rev); /* first event with mod_rev >= rev */
void store_log_get(const struct store *s, uint64_t pos, struct store_event *ret_event);

/* ---- leases, alarms ---- */

struct store_lease {
	int64_t id, ttl_s;
	const char *owner;      /* node, as far as committed; of one not visible: who granted it */
	const char *head_owner; /* with a MOVE that is in flight */
	size_t n_keys;          /* at the head */
	void *user;             /* of the one who keeps deadlines (lease.c); NULL at first */
};
/* Visible ones only (granted above `visible`: at_head = true). NULL: none. Borrowed until revoked
 * and committed. */
struct store_lease *store_lease_find(struct store *s, int64_t id, bool at_head);
void store_lease_each(struct store *s, bool (*fn)(struct store_lease *l, void *arg), void *arg);
/* Attached keys in byte order; fn false: stop. */
void store_lease_keys(const struct store *s, const struct store_lease *l,
	bool (*fn)(struct store_bytes key, void *arg), void *arg);
/* Visible alarms. */
bool store_has_alarm(const struct store *s, int64_t type);
void store_alarm_each(
	const struct store *s, void (*fn)(const char *node, int64_t type, void *arg), void *arg);

/* ---- trimming ---- */

/* Frees what the visible compact revision made needless, looking at no more than `budget` versions;
 * true: there is more to do at once. Call it from a deferred step until false, after each
 * compaction and when a pin is gone; without work it costs nothing. */
bool store_trim(struct store *s, size_t budget);

/* Rows that can be removed from the SQL log, in the order in which they must be removed (a put
 * before the tombstone that ended it): those made needless by entries of this node, and those found
 * while loading. Two nodes may be given the same row. Takes at most max; returns how many. */
size_t store_take_garbage(struct store *s, int64_t *ret_seqs, int32_t *ret_subs, size_t max);
/* They could not be removed: they come again. */
void store_return_garbage(struct store *s, const int64_t *seqs, const int32_t *subs, size_t n);

/* ---- figures ---- */

struct store_counts {
	uint64_t keys; /* that live, at the head */
	uint64_t versions, tombstones, leases, garbage;
	uint64_t log_bytes; /* of the rows that are needed or not trimmed yet, at the head, as the
			       quota counts them: key + value + STORE_ROW_BYTES each */
	uint64_t memory_bytes; /* what the store has allocated */
};
#define STORE_ROW_BYTES 128
void store_get_counts(const struct store *s, struct store_counts *ret_counts);
/* CRC-32C over the versions that a store compacted at compact_rev has up to rev, whether it is
 * trimmed yet or not: equal on all nodes. In steps of at most budget versions; true: go on with the
 * same struct. Zero it and set rev (<= visible) before the first; it pins what it needs, and reads
 * compact_rev itself. `lost` in the pin: the store was reset, begin again. */
struct store_hash {
	uint32_t crc;
	bool begun;
	int64_t rev, compact_rev;
	struct store_pin pin;
	struct store_bytes next; /* key, owned by the struct; and behind which of its versions */
	int64_t after_rev;
	int32_t after_sub;
};
bool store_hash_step(struct store *s, struct store_hash *h, size_t budget);
/* Frees what it holds; twice is harmless. */
void store_hash_end(struct store_hash *h);

#endif
