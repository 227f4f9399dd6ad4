/* SPDX-License-Identifier: PostgreSQL */
/*
 * What the store and the calls on it cost, without a server: loading, putting, reading, walking, a
 * hot key, trimming; memory per key. By hand: tests/bench/bench_watch_store [keys [key bytes [value
 * bytes]]]
 */
#include "config.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "common/base/mem.h"
#include "watchd/kv.h"

static size_t n_keys = 1000000, key_bytes = 32, value_bytes = 256;
static char *value;

static double now_s(void)
{
	struct timespec t;
	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static size_t rss_bytes(void)
{
	size_t pages = 0, resident = 0;
	FILE *f = fopen("/proc/self/statm", "r");
	if (f == NULL || fscanf(f, "%zu %zu", &pages, &resident) != 2)
		resident = 0;
	if (f != NULL)
		fclose(f);
	return resident * (size_t)sysconf(_SC_PAGESIZE);
}

static void say(const char *what, size_t n, double seconds)
{
	printf("%-44s %9zu in %7.3f s CPU  %8.0f ns each\n", what, n, seconds,
		seconds * 1e9 / (double)n);
}

/* Spreads 0..n over the keys, each once if n is no multiple of the factor. */
static size_t scatter(size_t i)
{
	return (size_t)((i * UINT64_C(2654435761)) % n_keys);
}

static struct store_bytes key_of(char *to, size_t i)
{
	int n = snprintf(to, key_bytes + 24, "/registry/pods/default/%09zu", i);
	for (size_t at = (size_t)n; at < key_bytes; at++)
		to[at] = 'x';
	return (struct store_bytes){to, key_bytes};
}

static void load(struct store *s, bool in_order)
{
	char *key = xmalloc(key_bytes + 24);
	double start = now_s();
	for (size_t i = 0; i < n_keys; i++) {
		int64_t rev = store_head_rev(s) + 1;
		struct store_row row = {.seq = store_head_seq(s) + 1,
			.last = true,
			.kind = STORE_PUT,
			.rev = rev,
			.create_rev = rev,
			.version = 1,
			.node = "a",
			.key = key_of(key, in_order ? i : scatter(i)),
			.value = {value, value_bytes}};
		if (store_apply(s, &row, true) != 0)
			abort();
		if (i % 1000 == 999)
			store_commit(s, row.seq);
	}
	store_commit(s, store_head_seq(s));
	say(in_order ? "load, keys in order" : "load, keys in disorder", n_keys, now_s() - start);
	free(key);
}

static void put_all(struct store *s, size_t n, size_t hot, const char *what)
{
	char *key = xmalloc(key_bytes + 24);
	double start = now_s();
	for (size_t i = 0; i < n; i++) {
		store_begin(s);
		store_put(s, key_of(key, hot < n_keys ? hot : scatter(i)),
			(struct store_bytes){value, value_bytes}, 0, NULL);
		store_end(s);
		if (i % 100 == 99)
			store_commit(s, store_head_seq(s));
	}
	store_commit(s, store_head_seq(s));
	say(what, n, now_s() - start);
	free(key);
}

static void roll_back(struct store *s, size_t n)
{
	char *key = xmalloc(key_bytes + 24);
	int64_t seq = store_visible_seq(s);
	double start = now_s();
	for (size_t i = 0; i < n; i++) {
		store_begin(s);
		store_put(s, key_of(key, scatter(i)), (struct store_bytes){value, value_bytes}, 0,
			NULL);
		store_end(s);
	}
	store_rollback(s, seq);
	say("put and roll back", n, now_s() - start);
	free(key);
}

static void get_all(struct store *s, int64_t rev, const char *what)
{
	char *key = xmalloc(key_bytes + 24);
	struct store_kv kv;
	double start = now_s();
	for (size_t i = 0; i < n_keys; i++)
		if (!store_get(s, key_of(key, scatter(i)), rev, &kv))
			abort();
	say(what, n_keys, now_s() - start);
	free(key);
}

static void walk(struct store *s, int64_t rev, const char *what)
{
	struct store_iter it;
	struct store_kv kv;
	size_t n = 0;
	double start = now_s();
	store_iter_init(&it, s, (struct store_bytes){"", 0}, (struct store_bytes){NULL, 0}, rev);
	while (store_iter_next(&it, &kv))
		n++;
	say(what, n, now_s() - start);
}

static void compact(struct store *s)
{
	store_begin(s);
	store_compact(s, store_head_rev(s));
	store_end(s);
	store_commit(s, store_head_seq(s));
	struct store_counts before, after;
	store_get_counts(s, &before);
	double start = now_s();
	while (store_trim(s, 1000)) {
	}
	double end = now_s();
	store_get_counts(s, &after);
	say("trim, of versions", before.versions - after.versions, end - start);
}

static void hash(struct store *s)
{
	struct store_hash h = {.rev = store_visible_rev(s)};
	double start = now_s();
	while (store_hash_step(s, &h, 1000)) {
	}
	say("hash", n_keys, now_s() - start);
	store_hash_end(&h);
}

static const struct kv_header header = {.cluster_id = 1, .member_id = 2, .raft_term = 3};

/* As a call does it: from the request to the bytes of the answer. */
static void kv_get_all(struct store *s)
{
	char *key = xmalloc(key_bytes + 24), *answer = xmalloc(value_bytes + key_bytes + 100);
	Etcdserverpb__RangeRequest r = ETCDSERVERPB__RANGE_REQUEST__INIT;
	double start = now_s();
	for (size_t i = 0; i < n_keys; i++) {
		struct kv_range *q;
		struct store_bytes name = key_of(key, scatter(i));
		r.key = (ProtobufCBinaryData){name.len, (uint8_t *)key};
		if (kv_range_begin(s, &r, &header, &q) != ETCD_OK)
			abort();
		while (kv_range_step(q, 100)) {
		}
		if (kv_range_fill(q, answer, value_bytes + key_bytes + 100) != kv_range_length(q))
			abort();
		kv_range_end(&q);
	}
	say("call: get", n_keys, now_s() - start);
	free(key);
	free(answer);
}

static void kv_put_all(struct store *s, bool as_txn)
{
	char *key = xmalloc(key_bytes + 24);
	Etcdserverpb__PutRequest r = ETCDSERVERPB__PUT_REQUEST__INIT;
	Etcdserverpb__RequestOp op = ETCDSERVERPB__REQUEST_OP__INIT, *ops[] = {&op};
	Etcdserverpb__Compare c = ETCDSERVERPB__COMPARE__INIT, *compares[] = {&c};
	Etcdserverpb__TxnRequest t = ETCDSERVERPB__TXN_REQUEST__INIT;
	struct buf out;
	buf_init(&out, 0);
	op.request_case = ETCDSERVERPB__REQUEST_OP__REQUEST_REQUEST_PUT;
	op.request_put = &r;
	c.result = ETCDSERVERPB__COMPARE__COMPARE_RESULT__GREATER;
	t.n_compare = t.n_success = 1;
	t.compare = compares;
	t.success = ops;
	r.value = (ProtobufCBinaryData){value_bytes, (uint8_t *)value};
	double start = now_s();
	for (size_t i = 0; i < n_keys; i++) {
		struct store_bytes name = key_of(key, scatter(i));
		r.key = c.key = (ProtobufCBinaryData){name.len, (uint8_t *)key};
		buf_reset(&out);
		store_begin(s);
		if ((as_txn ? kv_check_txn(&t, 128) : kv_check_put(&r)) != ETCD_OK ||
			(as_txn ? kv_txn(s, &t, &header, &out) : kv_put(s, &r, &header, &out)) !=
				ETCD_OK)
			abort();
		store_end(s);
		if (i % 100 == 99)
			store_commit(s, store_head_seq(s));
	}
	store_commit(s, store_head_seq(s));
	say(as_txn ? "call: txn (version > 0: put)" : "call: put", n_keys, now_s() - start);
	buf_free(&out);
	free(key);
}

static void kv_list(struct store *s, bool count_only)
{
	static uint8_t part[65536];
	Etcdserverpb__RangeRequest r = ETCDSERVERPB__RANGE_REQUEST__INIT;
	struct kv_range *q;
	size_t steps = 0, bytes = 0;
	double start = now_s(), longest = 0, at = start;
	r.key = r.range_end = (ProtobufCBinaryData){1, (uint8_t *)""};
	r.count_only = count_only;
	if (kv_range_begin(s, &r, &header, &q) != ETCD_OK)
		abort();
	for (bool more = true; more; steps++) {
		more = kv_range_step(q, 1000);
		double now = now_s();
		longest = now - at > longest ? now - at : longest;
		at = now;
	}
	for (size_t n; (n = kv_range_fill(q, part, sizeof(part))) > 0; steps++) {
		double now = now_s();
		longest = now - at > longest ? now - at : longest;
		at = now;
		bytes += n;
	}
	kv_range_end(&q);
	say(count_only ? "call: count" : "call: list", n_keys, now_s() - start);
	printf("    %zu steps, the longest %.3f ms; %zu MB\n", steps, longest * 1e3, bytes >> 20);
}

static void memory(const struct store *s, size_t rss_before)
{
	struct store_counts c;
	store_get_counts(s, &c);
	printf("memory: %.0f bytes per key counted, %.0f resident (key and value are %zu)\n",
		(double)c.memory_bytes / (double)n_keys,
		(double)(rss_bytes() - rss_before) / (double)n_keys, key_bytes + value_bytes);
}

int main(int argc, char **argv)
{
	size_t *numbers[] = {&n_keys, &key_bytes, &value_bytes};
	for (int i = 1; i < argc && i <= 3; i++)
		*numbers[i - 1] = (size_t)strtoull(argv[i], NULL, 10);
	value = xmalloc(value_bytes + 1);
	memset(value, 'v', value_bytes);
	struct store *s = store_new("a", NULL, NULL);
	size_t rss = rss_bytes();
	load(s, true);
	memory(s, rss);
	store_reset(s);
	rss = rss_bytes();
	load(s, false);
	memory(s, rss);
	int64_t loaded = store_visible_rev(s);
	get_all(s, STORE_HEAD, "get");
	put_all(s, n_keys, SIZE_MAX, "put, each key once");
	get_all(s, loaded, "get, of two versions the older");
	roll_back(s, n_keys);
	put_all(s, n_keys, n_keys / 2, "put, one hot key");
	get_all(s, loaded + 10, "get, at an old revision");
	walk(s, STORE_HEAD, "walk");
	walk(s, loaded, "walk at an old revision");
	hash(s);
	compact(s);
	kv_get_all(s);
	kv_put_all(s, false);
	kv_put_all(s, true);
	kv_list(s, true);
	kv_list(s, false);
	compact(s);
	double start = now_s();
	store_free(&s);
	say("free", n_keys, now_s() - start);
	free(value);
	return 0;
}
