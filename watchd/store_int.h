/* SPDX-License-Identifier: PostgreSQL */
/*
 * What the store's parts share (store*.c); nobody else includes it.
 *
 *      key index (keyindex.h)                       event log
 *        key -> its versions, oldest first <------- version, version, … in the order of the log
 *         \                                            |log_begin        |log_visible    |log_head
 *          '--> place in its lease's array of keys
 *
 * A key with one version, which most are, points straight to it; with more, to an array of them, so
 * that the version of a revision is found by bisection.
 *
 * Everything that was done above `visible` stands in `pending`, row by row, with what undoes it:
 * commit takes from its front, rollback from its back. There is no other undo information.
 */
#ifndef WATCHD_STORE_INT_H
#define WATCHD_STORE_INT_H

#include "watchd/keyindex.h"
#include "watchd/store.h"

struct version {
	struct keyindex_key *key;
	int64_t mod_rev, create_rev;
	int64_t version; /* 0: a tombstone */
	int64_t lease, seq;
	int32_t sub;
	uint32_t value_len;
	uint8_t value[];
};

static inline bool is_tombstone(const struct version *v)
{
	return v->version == 0;
}

/* Where a row stands in the log. seq 0: there is none. */
struct place {
	int64_t seq;
	int32_t sub;
};

struct lease {
	struct store_lease pub;
	struct lease *next; /* in its bucket */
	bool visible, revoked;
	/* Keys in no order; key->slot is the index here + 1. */
	struct keyindex_key **keys;
	size_t keys_cap;
	struct place grant, move; /* visible rows */
};

struct alarm {
	const char *node; /* interned */
	int64_t type;
	bool head, visible;
	struct place row; /* the visible one */
};

/* A row above `visible`. */
struct pending {
	uint8_t kind;
	bool last, loading;
	int32_t sub;
	int64_t seq, rev;
	const char *node; /* interned; who wrote it */
	int64_t arg;
	union {
		struct {
			struct version *v;
			struct lease *was; /* what the key was attached to before */
		} kv;
		struct {
			struct lease *lease; /* NULL: unknown, while loading */
			int64_t id;
			const char *was_owner;
		} lease;
		struct {
			const char *node; /* interned */
			bool was;
		} alarm;
		int64_t was; /* compact revision, cluster id */
	} u;
};

/* A ring of them. */
struct pendings {
	struct pending *row;
	size_t cap, first, n; /* cap: a power of two */
};

/* Pointers to versions by position; grows at the end, is cut at both. */
#define EVLOG_CHUNK 4096
struct evlog {
	struct version ***chunk; /* chunk[i] holds positions from (i + base) * EVLOG_CHUNK on */
	size_t n_chunks, cap;
	uint64_t base;
	uint64_t begin, visible, head;
};

/* Rows that can be removed from the log; a ring with room at both ends. */
struct garbage {
	struct place *row;
	size_t cap, first, n;
};

/* A visible compaction that is not trimmed yet. mine: its garbage is ours to remove. */
struct compaction {
	int64_t rev;
	bool mine;
};
#define COMPACTIONS_MAX 16

struct lease_table {
	struct lease **bucket;
	size_t n_buckets, n; /* a power of two */
};

struct names {
	char **name;
	size_t n;
};

struct store {
	uint32_t magic;
	const char *node; /* interned */
	struct store_ops ops;
	void *arg;
	struct keyindex *keys;
	struct evlog log;
	struct pendings pending;
	struct garbage garbage; /* what this node removes */
	struct garbage foreign; /* versions that another node should remove */
	struct lease_table leases;
	struct names names;
	struct alarm *alarms;
	size_t n_alarms, alarms_cap;
	struct store_pin pins; /* head of the list */

	int64_t head_seq, head_rev, visible_seq, visible_rev;
	int64_t head_compact_rev, compact_rev;
	uint64_t head_cluster_id, cluster_id;
	struct place compact_row, era_row;

	/* The open entry: evaluated (between begin and end), or applied in part. */
	bool evaluating, applying;
	bool entry_has_kv;
	int32_t entry_subs;
	int64_t entry_base_rev; /* of the one that is applied: before it */

	struct compaction compactions[COMPACTIONS_MAX];
	size_t n_compactions;
	int64_t trimming_rev; /* what the walk over the event log goes up to, or went last */
	uint64_t trim_pos;    /* where it is */

	uint64_t n_live, n_versions, n_tombstones, n_leases;
	uint64_t log_bytes, memory_bytes;
};

#define STORE_MAGIC 0x53544f52u

/* ---- store_version.c ---- */

struct version *version_new(
	struct store *s, struct keyindex_key *k, struct store_bytes value, bool tombstone);
void version_free(struct store *s, struct version *v);
size_t key_n_versions(const struct keyindex_key *k);
struct version *key_version(const struct keyindex_key *k, size_t i);
struct version *key_newest(const struct keyindex_key *k); /* NULL: has none */
/* How many of a key's versions are at or below (rev, sub). */
size_t key_versions_until(const struct keyindex_key *k, int64_t rev, int32_t sub);
/* The newest at rev, a tombstone too; NULL: none. */
struct version *key_at(const struct keyindex_key *k, int64_t rev);
void key_push(struct store *s, struct keyindex_key *k, struct version *v);
void key_pop(struct store *s, struct keyindex_key *k);
void key_drop_oldest(struct store *s, struct keyindex_key *k);
/* Frees the list of versions, not the versions. */
void key_forget(struct store *s, struct keyindex_key *k);
void version_kv(const struct version *v, struct store_kv *ret_kv);
uint64_t version_row_bytes(const struct version *v);

/* ---- store_evlog.c ---- */

void evlog_push(struct store *s, struct version *v);
void evlog_pop(struct store *s);
void evlog_drop_oldest(struct store *s);
struct version *evlog_at(const struct store *s, uint64_t pos);
void evlog_free(struct store *s);

/* ---- store_pending.c ---- */

struct pending *pending_push(struct store *s);
struct pending *pending_at(const struct store *s, size_t i);
void pending_pop_front(struct store *s);
void pending_pop_back(struct store *s);
void pending_free(struct store *s);
/* The row as it is in the log. The key of a DISARM is its interned node. */
void pending_row(const struct pending *p, struct store_row *ret_row);
uint64_t pending_row_bytes(const struct pending *p);
/* A copy that lives as long as the store. */
const char *intern(struct store *s, const char *name);

/* ---- store_change.c: one change each, with its pending row filled ---- */

void change_put(struct store *s, struct pending *p, struct version *v);
void change_grant(struct store *s, struct pending *p, int64_t id, int64_t ttl_s);
void change_revoke(struct store *s, struct pending *p, int64_t id);
void change_move(struct store *s, struct pending *p, int64_t id);
void change_compact(struct store *s, struct pending *p, int64_t rev);
void change_alarm(struct store *s, struct pending *p, const char *node, int64_t type, bool on);
void change_era(struct store *s, struct pending *p, uint64_t cluster_id);
void change_undo(struct store *s, const struct pending *p);

/* ---- store_lease.c ---- */

struct lease *lease_at_head(const struct store *s, int64_t id);
struct lease *lease_add(struct store *s, int64_t id, int64_t ttl_s, const char *owner);
void lease_drop(struct store *s, struct lease *l);
void lease_attach(struct store *s, struct lease *l, struct keyindex_key *k);
/* From whatever it hangs on, which is returned; id: the lease that its newest version names. */
struct lease *lease_detach(struct store *s, struct keyindex_key *k, int64_t id);
/* Its keys in byte order; free() it. */
struct keyindex_key **lease_sorted_keys(const struct lease *l);
void leases_free(struct store *s);
struct alarm *alarm_get(struct store *s, const char *node, int64_t type);
void alarms_sweep(struct store *s);

/* ---- store_trim.c ---- */

void garbage_add(struct store *s, struct garbage *g, struct place row);
void garbage_free(struct store *s, struct garbage *g);
void compactions_add(struct store *s, int64_t rev, bool mine);

#endif
