/* SPDX-License-Identifier: PostgreSQL */
/*
 * Loads on a server of the etcd API: closed loops of clients, each with one call under way, and
 * watchers. Keys are 32 bytes, values 256; the same requests whoever serves.
 *
 * Context: the bench process. Functions return an exit status of pgctl.h and have said why.
 */
#ifndef PGCTL_BENCH_KV_H
#define PGCTL_BENCH_KV_H

#include <stdint.h>

#include "pgctl/bench.h"

#define BENCH_KV_KEY_BYTES 32
#define BENCH_KV_VALUE_BYTES 256
#define BENCH_KV_CLIENTS_MAX 10000
#define BENCH_KV_CONNECTIONS 100 /* more clients share them */

enum bench_kv_op { BENCH_KV_PUT, BENCH_KV_RANGE_L, BENCH_KV_RANGE_S };

struct bench_kv_server {
	const char *name; /* "watchd", "etcd" */
	int port;
	pid_t pid;
};

struct bench_kv_result {
	double per_s, p50_ms, p99_ms, max_ms;
	uint64_t n; /* calls, or events, in that time */
};

/* Puts each of the keys 0 … n-1 once. */
int bench_kv_fill(struct bench *b, const struct bench_kv_server *s, uint64_t n);
/* Closed loops of `clients` on random keys below n_keys for so many ms, after a tenth of that to
 * warm up. */
int bench_kv_run(struct bench *b, const struct bench_kv_server *s, enum bench_kv_op op,
	size_t clients, uint64_t n_keys, unsigned ms, struct bench_kv_result *ret);
/* One large call on a connection of its own, beside a closed loop. */
struct bench_kv_beside {
	bool compact;       /* Compact at the present revision; else a list of all keys */
	uint64_t us, bytes; /* how long it took, how much came */
};
/* As bench_kv_run; the call begins after the warming up, and the loop goes on for at least ms and
 * until it has ended. */
int bench_kv_run_beside(struct bench *b, const struct bench_kv_server *s, enum bench_kv_op op,
	size_t clients, uint64_t n_keys, unsigned ms, struct bench_kv_beside *beside,
	struct bench_kv_result *ret);
/* One put at a time on an idle machine, to the event at a watcher of the key on another connection
 * of `at` (the same server, or another node of it). */
int bench_kv_put_to_event(struct bench *b, const struct bench_kv_server *s,
	const struct bench_kv_server *at, size_t n, struct bench_kv_result *ret);
/* `watchers` of all keys on ten connections, `puts` of ten clients; until all have seen all. per_s:
 * events delivered; latencies: of a put, from its call to the last watcher's event. */
int bench_kv_watch(struct bench *b, const struct bench_kv_server *s, size_t watchers, size_t puts,
	struct bench_kv_result *ret);
double bench_kv_rss(const struct bench_kv_server *s); /* resident bytes */
/* Resident bytes of the server that `n` watchers take, each on a key of its own. */
int bench_kv_watcher_bytes(
	struct bench *b, const struct bench_kv_server *s, size_t n, double *ret_bytes);
/* header.revision of an answer of any kind; 0: it has none. */
uint64_t bench_kv_revision(const uint8_t *answer, size_t len);
/* Compaction at the present revision minus keep. */
int bench_kv_compact(struct bench *b, const struct bench_kv_server *s, uint64_t keep);

struct buf;
/* Key number i; a PutRequest of it with a value that salt makes its own, appended to message. */
void bench_kv_key(char key[BENCH_KV_KEY_BYTES + 1], uint64_t i);
void bench_kv_put_request(struct buf *message, uint64_t i, uint64_t salt);

/* An etcd of its own in b->dir/etcd, from the PATH. */
int bench_etcd_start(struct bench *b, struct bench_kv_server *ret);

#endif
