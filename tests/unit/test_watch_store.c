/* SPDX-License-Identifier: PostgreSQL */
/* store: the rules one by one, then long random histories against a model (store_model.h). */
#include "config.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#include "common/base/err.h"
#include "common/base/mem.h"
#include "tests/unit/store_model.h"
#include "watchd/store.h"

static struct store_bytes text(const char *s)
{
	return (struct store_bytes){s, strlen(s)};
}

static int64_t put(struct store *s, const char *key, const char *value, int64_t lease)
{
	store_begin(s);
	store_put(s, text(key), text(value), lease, NULL);
	store_end(s);
	return store_head_rev(s);
}

static int64_t del(struct store *s, const char *key)
{
	store_begin(s);
	store_delete(s, text(key));
	store_end(s);
	return store_head_rev(s);
}

static void commit(struct store *s)
{
	store_commit(s, store_head_seq(s));
}

static void compact(struct store *s, int64_t rev)
{
	store_begin(s);
	store_compact(s, rev);
	store_end(s);
	commit(s);
	while (store_trim(s, 1)) {
	}
}

static size_t garbage(struct store *s)
{
	struct store_counts c;
	store_get_counts(s, &c);
	return c.garbage;
}

static void assert_value(struct store *s, const char *key, int64_t rev, const char *value)
{
	struct store_kv kv;
	bool there = store_get(s, text(key), rev, &kv);
	assert_int_equal(there, value != NULL);
	if (value == NULL)
		return;
	assert_int_equal(kv.value.len, strlen(value));
	assert_memory_equal(kv.value.data, value, kv.value.len);
}

static int setup(void **state)
{
	*state = store_new("a", NULL, NULL);
	return 0;
}

static int teardown(void **state)
{
	struct store *s = *state;
	store_free(&s);
	store_free(&s);
	return 0;
}

static void test_empty(void **state)
{
	struct store *s = *state;
	struct store_counts c;
	assert_int_equal(store_head_seq(s), 0);
	assert_int_equal(store_visible_rev(s), 1);
	assert_int_equal(store_compact_rev(s), -1);
	assert_int_equal(store_cluster_id(s), 0);
	assert_false(store_trim(s, 10));
	store_get_counts(s, &c);
	assert_int_equal(c.keys + c.versions + c.log_bytes + c.garbage, 0);
	store_begin(s);
	assert_int_equal(store_end(s), 0);
	assert_int_equal(store_head_seq(s), 0);
	assert_string_equal(store_kind_str(STORE_MOVE), "move");
	assert_string_equal(store_kind_str(STORE_KIND_COUNT), "unknown");
}

/* Versions begin anew after a deletion, and all changes of an entry have one revision. */
static void test_versions(void **state)
{
	struct store *s = *state;
	struct store_kv kv;
	assert_int_equal(put(s, "k", "1", 0), 2);
	assert_int_equal(put(s, "k", "2", 0), 3);
	assert_true(store_get(s, text("k"), STORE_HEAD, &kv));
	assert_int_equal(kv.create_rev, 2);
	assert_int_equal(kv.version, 2);
	assert_int_equal(del(s, "k"), 4);
	assert_int_equal(put(s, "k", "3", 0), 5);
	assert_true(store_get(s, text("k"), STORE_HEAD, &kv));
	assert_int_equal(kv.create_rev, 5);
	assert_int_equal(kv.version, 1);
	store_begin(s);
	assert_int_equal(store_head_rev(s), 5);
	store_put(s, text("x"), text(""), 0, NULL);
	store_put(s, text("y"), text(""), 0, NULL);
	assert_int_equal(store_head_rev(s), 6);
	assert_int_equal(store_end(s), 2);
	assert_int_equal(store_head_seq(s), 5);
	commit(s);
	assert_value(s, "k", 1, NULL);
	assert_value(s, "k", 2, "1");
	assert_value(s, "k", 3, "2");
	assert_value(s, "k", 4, NULL);
	assert_value(s, "k", 5, "3");
}

/* Put and deleted by one entry: gone at its revision, but both are events. */
static void test_twice_in_an_entry(void **state)
{
	struct store *s = *state;
	struct store_event e;
	put(s, "k", "1", 0);
	store_begin(s);
	store_put(s, text("k"), text("2"), 0, NULL);
	store_delete(s, text("k"));
	store_end(s);
	commit(s);
	assert_value(s, "k", 3, NULL);
	assert_int_equal(store_log_end(s), 3);
	store_log_get(s, 2, &e);
	assert_true(e.is_delete && e.has_prev);
	assert_int_equal(e.prev.mod_rev, 2); /* what a read at revision 2 sees */
	compact(s, 3);
	assert_value(s, "k", 3, NULL);
	assert_int_equal(store_log_begin(s), 1);
	compact(s, put(s, "x", "", 0));
	assert_int_equal(garbage(s), 4); /* and the first COMPACT */
}

/* A tombstone at the compact revision can still be watched, one below it is gone. */
static void test_tombstone_at_compaction(void **state)
{
	struct store *s = *state;
	struct store_event e;
	struct store_counts c;
	put(s, "k", "1", 0);
	del(s, "k");
	put(s, "o", "1", 0);
	commit(s);
	compact(s, 3);
	assert_int_equal(store_log_find(s, 3), store_log_begin(s));
	store_log_get(s, store_log_begin(s), &e);
	assert_true(e.is_delete && !e.has_prev);
	assert_int_equal(garbage(s), 1);
	compact(s, 4);
	store_get_counts(s, &c);
	assert_int_equal(c.tombstones, 0);
	assert_int_equal(c.versions, 1);
	assert_int_equal(garbage(s), 3);
	assert_value(s, "k", 4, NULL);
	assert_value(s, "o", 4, "1");
}

static void test_garbage_order(void **state)
{
	struct store *s = *state;
	int64_t seqs[8];
	int32_t subs[8];
	put(s, "k", "1", 0);
	put(s, "k", "2", 0);
	del(s, "k");
	put(s, "o", "", 0);
	commit(s);
	compact(s, 5);
	assert_int_equal(store_take_garbage(s, seqs, subs, 2), 2);
	assert_int_equal(seqs[0], 1);
	assert_int_equal(seqs[1], 2);
	store_return_garbage(s, seqs, subs, 2);
	assert_int_equal(store_take_garbage(s, seqs, subs, 8), 3);
	assert_int_equal(seqs[0], 1);
	assert_int_equal(seqs[1], 2);
	assert_int_equal(seqs[2], 3);
	assert_int_equal(store_take_garbage(s, seqs, subs, 8), 0);
}

static void apply(struct store *s, const char *node, int64_t seq, enum store_kind kind, int64_t rev,
	const char *key, int64_t arg)
{
	struct store_row row = {.seq = seq,
		.last = true,
		.kind = kind,
		.rev = rev,
		.version = kind == STORE_PUT,
		.create_rev = kind == STORE_PUT ? rev : 0,
		.arg = arg,
		.node = node,
		.key = text(key)};
	assert_int_equal(store_apply(s, &row, false), 0);
	commit(s);
	while (store_trim(s, 1)) {
	}
}

/* What another node's compaction made needless is its business, until a tombstone that ended it is
 * ours to remove: then it must go first. */
static void test_garbage_of_others(void **state)
{
	struct store *s = *state;
	int64_t seqs[8];
	int32_t subs[8];
	apply(s, "b", 1, STORE_PUT, 2, "k", 0);
	apply(s, "b", 2, STORE_DELETE, 3, "k", 0);
	apply(s, "b", 3, STORE_PUT, 4, "o", 0);
	apply(s, "b", 4, STORE_COMPACT, 4, "", 3);
	assert_int_equal(garbage(s), 0);
	compact(s, 4);
	assert_int_equal(store_take_garbage(s, seqs, subs, 8), 3);
	assert_int_equal(seqs[0], 4); /* their COMPACT */
	assert_int_equal(seqs[1], 1);
	assert_int_equal(seqs[2], 2);
}

static void test_leases(void **state)
{
	struct store *s = *state;
	struct store_lease *l;
	store_begin(s);
	store_grant(s, 7, 60);
	store_end(s);
	assert_null(store_lease_find(s, 7, false));
	l = store_lease_find(s, 7, true);
	assert_string_equal(l->owner, "a");
	put(s, "b", "1", 7);
	put(s, "a", "1", 7);
	assert_int_equal(l->n_keys, 2);
	commit(s);
	assert_ptr_equal(store_lease_find(s, 7, false), l);
	l->user = s;
	int64_t before = store_head_seq(s);
	put(s, "b", "2", 0);
	assert_int_equal(l->n_keys, 1);
	store_begin(s);
	store_revoke(s, 7);
	assert_int_equal(store_end(s), 2);
	assert_null(store_lease_find(s, 7, true));
	assert_non_null(store_lease_find(s, 7, false));
	store_begin(s);
	store_grant(s, 7, 10);
	store_end(s);
	put(s, "c", "", 7);
	assert_ptr_not_equal(store_lease_find(s, 7, true), l);
	assert_ptr_equal(store_lease_find(s, 7, false), l);
	store_rollback(s, before);
	assert_ptr_equal(store_lease_find(s, 7, true), l);
	assert_ptr_equal(l->user, s);
	assert_int_equal(l->n_keys, 2);
	assert_value(s, "b", STORE_HEAD, "1");
	store_begin(s);
	store_revoke(s, 7);
	assert_int_equal(store_end(s), 3);
	commit(s);
	assert_null(store_lease_find(s, 7, false));
	assert_int_equal(garbage(s), 2); /* GRANT, REVOKE */
	assert_int_equal(store_visible_rev(s), 4);
}

static void test_move(void **state)
{
	struct store *s = *state;
	struct store_row grant = {.seq = 1,
		.last = true,
		.kind = STORE_GRANT,
		.rev = 1,
		.lease = 5,
		.arg = 9,
		.node = "b"};
	assert_int_equal(store_apply(s, &grant, false), 0);
	commit(s);
	struct store_lease *l = store_lease_find(s, 5, false);
	assert_string_equal(l->owner, "b");
	store_begin(s);
	store_move(s, 5);
	assert_int_equal(store_end(s), 1);
	assert_string_equal(l->owner, "b");
	assert_string_equal(l->head_owner, "a");
	store_begin(s);
	store_move(s, 5);
	assert_int_equal(store_end(s), 0);
	store_rollback(s, 1);
	assert_string_equal(l->head_owner, "b");
	store_begin(s);
	store_move(s, 5);
	store_end(s);
	commit(s);
	assert_string_equal(l->owner, "a");
}

static void test_alarms(void **state)
{
	struct store *s = *state;
	store_begin(s);
	store_alarm(s, 1);
	assert_int_equal(store_end(s), 1);
	assert_false(store_has_alarm(s, 1));
	store_begin(s);
	store_alarm(s, 1);
	assert_int_equal(store_end(s), 0);
	store_rollback(s, 0);
	store_begin(s);
	store_disarm(s, "a", 1);
	assert_int_equal(store_end(s), 0);
	store_begin(s);
	store_alarm(s, 1);
	store_end(s);
	commit(s);
	assert_true(store_has_alarm(s, 1));
	store_begin(s);
	store_disarm(s, "nobody", 1);
	store_disarm(s, "a", 2);
	store_disarm(s, "a", 1);
	assert_int_equal(store_end(s), 1);
	assert_true(store_has_alarm(s, 1));
	commit(s);
	assert_false(store_has_alarm(s, 1));
	assert_int_equal(garbage(s), 2);
}

static void test_pins(void **state)
{
	struct store *s = *state;
	struct store_pin pin, other;
	struct store_kv kv;
	put(s, "k", "1", 0);
	put(s, "k", "2", 0);
	put(s, "k", "3", 0);
	commit(s);
	store_pin(s, &pin, 3);
	assert_true(store_get(s, text("k"), 3, &kv));
	compact(s, 4);
	assert_value(s, "k", 2, NULL);
	assert_value(s, "k", 3, "2");
	struct store_kv again;
	store_held(kv.held, &again);
	assert_int_equal(again.mod_rev, 3);
	store_pin(s, &other, 4);
	store_unpin(&pin);
	store_unpin(&pin);
	while (store_trim(s, 1)) {
	}
	assert_value(s, "k", 3, NULL);
	assert_value(s, "k", 4, "3");
	store_reset(s);
	assert_true(other.lost);
	assert_false(pin.lost);
	assert_int_equal(store_visible_rev(s), 1);
}

static void test_old_pins(void **state)
{
	struct store *s = *state;
	struct store_pin old, present;
	put(s, "k", "1", 0);
	put(s, "k", "2", 0);
	put(s, "k", "3", 0);
	commit(s);
	store_pin(s, &old, 3);
	store_pin(s, &present, 4);
	assert_int_equal(store_age_pins(s, 1), 0); /* nothing is held back yet */
	compact(s, 4);
	assert_int_equal(store_age_pins(s, 2), 0);
	assert_false(old.lost);
	assert_int_equal(store_age_pins(s, 2), 1);
	assert_true(old.lost);
	assert_false(present.lost);
	while (store_trim(s, 1)) {
	}
	assert_value(s, "k", 3, NULL);
	assert_value(s, "k", 4, "3");
	store_unpin(&old);
	store_unpin(&present);
}

static void refuse(struct store *s, struct store_row row)
{
	int64_t seq = store_head_seq(s), rev = store_head_rev(s);
	row.node = row.node != NULL ? row.node : "b";
	assert_int_equal(store_apply(s, &row, false), -ERR_MALFORMED);
	assert_int_equal(store_head_seq(s), seq);
	assert_int_equal(store_head_rev(s), rev);
}

static void test_malformed(void **state)
{
	struct store *s = *state;
	put(s, "k", "1", 0);
	commit(s);
	const struct store_row good = {.seq = 2,
		.last = true,
		.kind = STORE_PUT,
		.rev = 3,
		.create_rev = 2,
		.version = 2,
		.node = "b",
		.key = text("k")};
#define REFUSE(...)                                                                                \
	do {                                                                                       \
		struct store_row row = good;                                                       \
		__VA_ARGS__;                                                                       \
		refuse(s, row);                                                                    \
	} while (0)
	REFUSE(row.seq = 3);
	REFUSE(row.seq = 1);
	REFUSE(row.sub = 1);
	REFUSE(row.rev = 2);
	REFUSE(row.rev = 4);
	REFUSE(row.version = 3);
	REFUSE(row.version = 0);
	REFUSE(row.create_rev = 3);
	REFUSE(row.lease = 9);
	REFUSE(row.key.len = 0);
	REFUSE(row.kind = 0);
	REFUSE(row.kind = STORE_KIND_COUNT);
	REFUSE(row.kind = STORE_DELETE; row.key = text("x"));
	REFUSE(row.kind = STORE_REVOKE; row.lease = 9; row.rev = 2);
	REFUSE(row.kind = STORE_MOVE; row.lease = 9; row.rev = 2);
	REFUSE(row.kind = STORE_GRANT; row.lease = 9);
	REFUSE(row.kind = STORE_GRANT; row.rev = 2);
	REFUSE(row.kind = STORE_COMPACT; row.arg = 3; row.rev = 2);
	REFUSE(row.kind = STORE_COMPACT; row.arg = -1; row.rev = 2);
	REFUSE(row.kind = STORE_DISARM; row.key.len = 0; row.rev = 2);
	assert_int_equal(store_apply(s, &good, false), 0);
	assert_int_equal(store_head_rev(s), 3);
}

/* Nothing is quadratic: a key with 200,000 versions, in the time of so many keys. */
static void test_hot_key(void **state)
{
	struct store *s = *state;
	struct store_counts c;
	const int n = 200000;
	clock_t start = clock();
	for (int i = 0; i < n; i++) {
		put(s, "hot", "v", 0);
		if (i % 2 == 0)
			commit(s);
	}
	commit(s);
	for (int64_t rev = 2; rev < n; rev++)
		assert_value(s, "hot", rev, "v");
	int64_t seq = store_head_seq(s);
	for (int i = 0; i < n; i++)
		put(s, "hot", "w", 0);
	store_rollback(s, seq);
	assert_value(s, "hot", STORE_HEAD, "v");
	compact(s, store_visible_rev(s));
	store_get_counts(s, &c);
	assert_int_equal(c.versions, 1);
	assert_int_equal(garbage(s), n - 1);
	assert_true(clock() - start < 20 * CLOCKS_PER_SEC);
}

static void test_hash(void **state)
{
	struct store *s = *state;
	uint32_t first = 0;
	put(s, "a", "1", 0);
	put(s, "b", "2", 0);
	put(s, "a", "3", 0);
	commit(s);
	for (size_t budget = 1; budget < 5; budget++) {
		struct store_hash h = {.rev = 4};
		while (store_hash_step(s, &h, budget)) {
		}
		assert_true(budget == 1 || h.crc == first);
		first = h.crc;
		store_hash_end(&h);
	}
	struct store_hash at3 = {.rev = 3}, lost = {.rev = 4};
	while (store_hash_step(s, &at3, 1)) {
	}
	assert_int_not_equal(at3.crc, first);
	store_hash_end(&at3);
	assert_true(store_hash_step(s, &lost, 1));
	store_reset(s);
	assert_false(store_hash_step(s, &lost, 1));
	assert_true(lost.pin.lost);
	store_hash_end(&lost);
	store_hash_end(&lost);
}

static void run_seed(uint64_t seed, size_t len)
{
	uint8_t *bytes = xmalloc(len);
	uint64_t r = seed;
	for (size_t i = 0; i < len; i++) {
		r = r * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
		bytes[i] = (uint8_t)(r >> 56);
	}
	size_t n = store_model_run(bytes, len);
	print_message("seed %llu: %zu entries\n", (unsigned long long)seed, n);
	free(bytes);
}

/* HOWDAH_SEED: from there on; HOWDAH_SEEDS: so many, by hand. */
static void test_random(void **state)
{
	(void)state;
	const char *from = getenv("HOWDAH_SEED"), *seeds = getenv("HOWDAH_SEEDS");
	uint64_t seed = from != NULL ? strtoull(from, NULL, 10) : (uint64_t)time(NULL);
	size_t n = seeds != NULL ? strtoull(seeds, NULL, 10) : 6;
	for (size_t i = 0; i < n; i++) {
		print_message("seed %llu\n", (unsigned long long)(seed + i));
		run_seed(seed + i, i % 3 == 0 ? 60000 : 6000);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_empty, setup, teardown),
		cmocka_unit_test_setup_teardown(test_versions, setup, teardown),
		cmocka_unit_test_setup_teardown(test_twice_in_an_entry, setup, teardown),
		cmocka_unit_test_setup_teardown(test_tombstone_at_compaction, setup, teardown),
		cmocka_unit_test_setup_teardown(test_garbage_order, setup, teardown),
		cmocka_unit_test_setup_teardown(test_garbage_of_others, setup, teardown),
		cmocka_unit_test_setup_teardown(test_leases, setup, teardown),
		cmocka_unit_test_setup_teardown(test_move, setup, teardown),
		cmocka_unit_test_setup_teardown(test_alarms, setup, teardown),
		cmocka_unit_test_setup_teardown(test_pins, setup, teardown),
		cmocka_unit_test_setup_teardown(test_old_pins, setup, teardown),
		cmocka_unit_test_setup_teardown(test_malformed, setup, teardown),
		cmocka_unit_test_setup_teardown(test_hot_key, setup, teardown),
		cmocka_unit_test_setup_teardown(test_hash, setup, teardown),
		cmocka_unit_test(test_random),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
