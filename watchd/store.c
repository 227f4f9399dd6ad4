/* SPDX-License-Identifier: PostgreSQL */
/*
 * The store's life, positions and figures. Its parts: store_version.c (keys' versions, reading),
 * store_evlog.c (the event log), store_eval.c (changes that begin here), store_apply.c (changes
 * from the log), store_change.c (both, with their undoing), store_commit.c, store_trim.c,
 * store_lease.c, store_hash.c; shared types in store_int.h.
 */
#include "config.h"

#include <stdlib.h>

#include "common/base/mem.h"
#include "watchd/store_int.h"

MEM_TYPE(mem_store, "store");

const char *store_kind_str(enum store_kind k)
{
	static const char *const names[STORE_KIND_COUNT] = {
		[STORE_PUT] = "put",
		[STORE_DELETE] = "delete",
		[STORE_GRANT] = "grant",
		[STORE_REVOKE] = "revoke",
		[STORE_MOVE] = "move",
		[STORE_COMPACT] = "compact",
		[STORE_ALARM] = "alarm",
		[STORE_DISARM] = "disarm",
		[STORE_ERA] = "era",
	};
	return k >= STORE_PUT && k < STORE_KIND_COUNT ? names[k] : "unknown";
}

/* What an empty store begins with. */
static void set_up(struct store *s)
{
	s->keys = keyindex_new();
	s->head_rev = s->visible_rev = 1;
	s->head_compact_rev = s->compact_rev = s->trimming_rev = -1;
	s->pins.prev = s->pins.next = &s->pins;
}

struct store *store_new(const char *node, const struct store_ops *ops, void *arg)
{
	struct store *s = mem_new(&mem_store, sizeof(*s));
	s->magic = STORE_MAGIC;
	if (ops != NULL)
		s->ops = *ops;
	s->arg = arg;
	s->node = intern(s, node);
	set_up(s);
	return s;
}

static void free_versions(struct store *s)
{
	struct keyindex_pos pos = keyindex_seek(s->keys, "", 0);
	for (struct keyindex_key *k; (k = keyindex_next(&pos)) != NULL;) {
		size_t n = key_n_versions(k);
		for (size_t i = 0; i < n; i++)
			version_free(s, key_version(k, i));
		key_forget(s, k);
	}
}

/* Everything but the names. */
static void tear_down(struct store *s)
{
	while (s->pins.next != &s->pins) {
		s->pins.next->lost = true;
		store_unpin(s->pins.next);
	}
	free_versions(s);
	leases_free(s);
	evlog_free(s);
	pending_free(s);
	garbage_free(s, &s->garbage);
	garbage_free(s, &s->foreign);
	free(s->alarms);
	keyindex_free(&s->keys);
	ASSERT(s->memory_bytes == 0 && s->n_versions == 0 && s->n_tombstones == 0);
}

void store_free(struct store **s)
{
	if (*s == NULL)
		return;
	OBJ_CHECK(*s, STORE_MAGIC);
	tear_down(*s);
	for (size_t i = 0; i < (*s)->names.n; i++)
		free((*s)->names.name[i]);
	free((*s)->names.name);
	mem_free(&mem_store, *s);
	*s = NULL;
}

void store_reset(struct store *s)
{
	OBJ_CHECK(s, STORE_MAGIC);
	ASSERT(!s->evaluating);
	tear_down(s);
	*s = (struct store){.magic = STORE_MAGIC,
		.node = s->node,
		.ops = s->ops,
		.arg = s->arg,
		.names = s->names};
	set_up(s);
}

/* ---- positions ---- */

int64_t store_head_seq(const struct store *s)
{
	return s->head_seq;
}

int64_t store_head_rev(const struct store *s)
{
	return s->head_rev;
}

int64_t store_visible_seq(const struct store *s)
{
	return s->visible_seq;
}

int64_t store_visible_rev(const struct store *s)
{
	return s->visible_rev;
}

int64_t store_head_compact_rev(const struct store *s)
{
	return s->head_compact_rev;
}

int64_t store_compact_rev(const struct store *s)
{
	return s->compact_rev;
}

uint64_t store_cluster_id(const struct store *s)
{
	return s->cluster_id;
}

void store_get_counts(const struct store *s, struct store_counts *ret_counts)
{
	*ret_counts = (struct store_counts){.keys = s->n_live,
		.versions = s->n_versions,
		.tombstones = s->n_tombstones,
		.leases = s->n_leases,
		.garbage = s->garbage.n,
		.log_bytes = s->log_bytes,
		.memory_bytes = s->memory_bytes + keyindex_bytes(s->keys) + sizeof(*s)};
}
