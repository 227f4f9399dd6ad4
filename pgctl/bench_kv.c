/* SPDX-License-Identifier: PostgreSQL */
/*
 * Loads on a server of the etcd API: see bench_kv.h. Requests are written by hand (field numbers of
 * etcd's rpc.proto); of answers only their gRPC status is looked at, and of watch responses how
 * many events they carry.
 *
 * Context: the bench process; one event loop per load.
 */
#include "config.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/buf.h"
#include "common/base/ev.h"
#include "common/base/mem.h"
#include "pgctl/bench_grpc.h"
#include "pgctl/bench_kv.h"

#define PATH_PUT "/etcdserverpb.KV/Put"
#define PATH_COMPACT "/etcdserverpb.KV/Compact"
#define PATH_RANGE "/etcdserverpb.KV/Range"
#define FILL_CLIENTS 100
#define LATE_MS 60000

struct client {
	struct bench_call call;
	struct load *load;
	struct buf framed;
	uint64_t since_us;
};

/* A closed loop of clients. */
struct load {
	struct bench *b;
	const struct bench_kv_server *server;
	enum bench_kv_op op;
	struct ev_loop *loop;
	struct bench_grpc *g;
	struct client *clients;
	size_t n_clients, n_running;
	uint64_t n_keys;
	uint64_t next, end; /* of a fill: keys in order; end 0: random keys until until_us */
	uint64_t from_us, until_us; /* what is counted */
	uint64_t last_us;           /* the last that was */
	double *ms;                 /* of each call in that time; owned */
	size_t n_ms, size_ms;
	uint64_t random;
	int failed; /* a grpc-status + 1 */
	bool late;
	struct ev_timer timer;
	struct bench_kv_beside *beside; /* NULL: nothing */
	struct bench_grpc *beside_g;
	struct bench_call beside_call;
	struct buf beside_framed;
	bool beside_begun, beside_ended;
	uint64_t revision; /* of the last put */
};

/* ---- Requests -------------------------------------------------------------------------------- */

/* xorshift64*: cheap, and the same for both servers. */
static uint64_t draw(uint64_t *state)
{
	*state ^= *state >> 12;
	*state ^= *state << 25;
	*state ^= *state >> 27;
	return *state * UINT64_C(2685821657736338717);
}

void bench_kv_key(char key[BENCH_KV_KEY_BYTES + 1], uint64_t i)
{
	snprintf(key, BENCH_KV_KEY_BYTES + 1, "bench/%026" PRIu64, i);
}

void bench_kv_put_request(struct buf *message, uint64_t i, uint64_t salt)
{
	char key[BENCH_KV_KEY_BYTES + 1], value[BENCH_KV_VALUE_BYTES];
	bench_kv_key(key, i);
	memset(value, 'v', sizeof(value));
	memcpy(value, &salt, sizeof(salt));
	bench_pb_bytes(message, 1, key, BENCH_KV_KEY_BYTES);
	bench_pb_bytes(message, 2, value, sizeof(value));
}

static void range_request(struct buf *message, uint64_t i, bool serializable)
{
	char key[BENCH_KV_KEY_BYTES + 1];
	bench_kv_key(key, i);
	bench_pb_bytes(message, 1, key, BENCH_KV_KEY_BYTES);
	if (serializable)
		bench_pb_varint(message, 7, 1);
}

static void frame_request(struct load *l, struct client *c, uint64_t key)
{
	struct buf message;
	buf_init(&message, 0);
	if (l->op == BENCH_KV_PUT)
		bench_kv_put_request(&message, key, draw(&l->random));
	else
		range_request(&message, key, l->op == BENCH_KV_RANGE_S);
	buf_reset(&c->framed);
	bench_pb_frame(&c->framed, &message);
	buf_free(&message);
}

/* ---- One call beside it -----------------------------------------------------------------------
 */

static void on_beside_message(struct bench_call *call, const uint8_t *data, size_t len)
{
	struct load *l = call->arg;
	(void)data;
	l->beside->bytes += len;
}

static void on_beside_end(struct bench_call *call, int grpc_status)
{
	struct load *l = call->arg;
	l->beside->us = bench_now_us() - l->beside->us;
	l->beside_ended = true;
	if (grpc_status != 0) {
		l->failed = grpc_status + 1;
		ev_loop_stop(l->loop);
	}
}

static void begin_beside(struct load *l)
{
	struct buf message;
	buf_init(&message, 0);
	if (l->beside->compact) {
		bench_pb_varint(&message, 1, l->revision);
	} else {
		bench_pb_bytes(&message, 1, "", 1); /* one zero byte: from the first key */
		bench_pb_bytes(&message, 2, "", 1);
	}
	bench_pb_frame(&l->beside_framed, &message);
	buf_free(&message);
	l->beside_call = (struct bench_call){
		.on_message = on_beside_message, .on_end = on_beside_end, .arg = l};
	l->beside_begun = true;
	l->beside->us = bench_now_us();
	bench_grpc_call(l->beside_g, 0, l->beside->compact ? PATH_COMPACT : PATH_RANGE,
		l->beside_framed.data, l->beside_framed.len_bytes, false, &l->beside_call);
}

/* ---- The closed loop ------------------------------------------------------------------------- */

static void keep_ms(struct load *l, double ms)
{
	if (l->n_ms == l->size_ms) {
		l->size_ms = l->size_ms == 0 ? 65536 : 2 * l->size_ms;
		l->ms = xrealloc(l->ms, l->size_ms * sizeof(*l->ms));
	}
	l->ms[l->n_ms++] = ms;
}

static bool is_over(const struct load *l)
{
	if (l->end != 0)
		return l->next == l->end;
	return bench_now_us() >= l->until_us && (l->beside == NULL || l->beside_ended);
}

static bool client_next(struct client *c)
{
	struct load *l = c->load;
	uint64_t key;
	if (is_over(l))
		return false;
	key = l->end != 0 ? l->next++ : draw(&l->random) % l->n_keys;
	frame_request(l, c, key);
	c->since_us = bench_now_us();
	bench_grpc_call(l->g, (size_t)(c - l->clients),
		l->op == BENCH_KV_PUT ? PATH_PUT : PATH_RANGE, c->framed.data, c->framed.len_bytes,
		false, &c->call);
	return true;
}

static void on_answer_message(struct bench_call *call, const uint8_t *data, size_t len)
{
	struct client *c = call->arg;
	if (c->load->beside != NULL && c->load->beside->compact)
		c->load->revision = bench_kv_revision(data, len);
}

static void on_answer(struct bench_call *call, int grpc_status)
{
	struct client *c = call->arg;
	struct load *l = c->load;
	uint64_t now = bench_now_us();
	if (grpc_status != 0)
		l->failed = grpc_status + 1;
	else if (now >= l->from_us && !is_over(l))
		keep_ms(l, (double)((l->last_us = now) - c->since_us) / 1000);
	if (l->beside != NULL && !l->beside_begun && now >= l->from_us)
		begin_beside(l);
	if (l->failed != 0 || !client_next(c)) {
		l->n_running--;
		if (l->n_running == 0 || l->failed != 0)
			ev_loop_stop(l->loop);
	}
}

static void on_late(void *arg)
{
	struct load *l = arg;
	l->late = true;
	ev_loop_stop(l->loop);
}

static int load_failed(struct load *l)
{
	const char *what = l->late ? "does not answer" : "has closed a connection";
	char status[48];
	if (l->failed > 0) {
		snprintf(status, sizeof(status), "has answered with gRPC status %d", l->failed - 1);
		what = status;
	}
	return pgctl_fail(l->b->p, PGCTL_FAILED, "look whether this machine is overloaded",
		"the %s to be measured %s", l->server->name, what);
}

static int load_open(struct load *l, size_t n_clients)
{
	size_t n = n_clients < BENCH_KV_CONNECTIONS ? n_clients : BENCH_KV_CONNECTIONS;
	l->random = 88172645463325252U;
	l->n_clients = n_clients;
	l->loop = ev_loop_new();
	ev_timer_init(&l->timer, l->loop, "bench late", on_late, l);
	l->clients = xcalloc(n_clients, sizeof(*l->clients));
	l->g = bench_grpc_open(l->loop, l->server->port, n);
	buf_init(&l->beside_framed, 0);
	if (l->beside != NULL)
		l->beside_g = bench_grpc_open(l->loop, l->server->port, 1);
	if (l->g == NULL || (l->beside != NULL && l->beside_g == NULL))
		return load_failed(l);
	for (size_t i = 0; i < n_clients; i++) {
		struct client *c = &l->clients[i];
		*c = (struct client){.load = l,
			.call = {.on_message = on_answer_message, .on_end = on_answer, .arg = c}};
		buf_init(&c->framed, 0);
	}
	return PGCTL_OK;
}

static void load_close(struct load *l)
{
	ev_timer_stop(&l->timer);
	bench_grpc_close(&l->g);
	bench_grpc_close(&l->beside_g);
	buf_free(&l->beside_framed);
	for (size_t i = 0; i < l->n_clients; i++)
		buf_free(&l->clients[i].framed);
	free(l->clients);
	free(l->ms);
	ev_loop_free(&l->loop);
}

static int load_run(struct load *l, unsigned limit_ms)
{
	ev_timer_start(&l->timer, limit_ms);
	for (size_t i = 0; i < l->n_clients; i++)
		l->n_running += client_next(&l->clients[i]) ? 1 : 0;
	if (l->n_running > 0)
		ev_loop_run(l->loop);
	return l->failed != 0 || l->late || bench_grpc_is_broken(l->g) ? load_failed(l) : PGCTL_OK;
}

int bench_kv_fill(struct bench *b, const struct bench_kv_server *s, uint64_t n)
{
	struct load l = {.b = b, .server = s, .op = BENCH_KV_PUT, .n_keys = n, .end = n};
	int status = load_open(&l, n < FILL_CLIENTS ? (size_t)n : FILL_CLIENTS);
	if (status == PGCTL_OK)
		status = load_run(&l, LATE_MS + (unsigned)n);
	load_close(&l);
	return status;
}

static void sum_up(struct load *l, uint64_t us, struct bench_kv_result *ret)
{
	ret->n = l->n_ms;
	ret->per_s = (double)l->n_ms * 1e6 / (double)us;
	ret->p50_ms = bench_median(l->ms, l->n_ms); /* sorts */
	ret->p99_ms = l->ms[l->n_ms - 1 - l->n_ms / 100];
	ret->max_ms = l->ms[l->n_ms - 1];
}

static int run_for(struct load *l, size_t clients, unsigned ms, struct bench_kv_result *ret)
{
	int status = load_open(l, clients);
	l->from_us = bench_now_us() + (uint64_t)ms * 100;
	l->until_us = l->from_us + (uint64_t)ms * 1000;
	if (status == PGCTL_OK)
		status = load_run(l, ms + LATE_MS);
	if (status == PGCTL_OK && l->n_ms == 0)
		status = load_failed(l);
	if (status == PGCTL_OK)
		sum_up(l, l->last_us - l->from_us, ret);
	load_close(l);
	return status;
}

int bench_kv_run(struct bench *b, const struct bench_kv_server *s, enum bench_kv_op op,
	size_t clients, uint64_t n_keys, unsigned ms, struct bench_kv_result *ret)
{
	struct load l = {.b = b, .server = s, .op = op, .n_keys = n_keys};
	return run_for(&l, clients, ms, ret);
}

int bench_kv_run_beside(struct bench *b, const struct bench_kv_server *s, enum bench_kv_op op,
	size_t clients, uint64_t n_keys, unsigned ms, struct bench_kv_beside *beside,
	struct bench_kv_result *ret)
{
	struct load l = {.b = b, .server = s, .op = op, .n_keys = n_keys, .beside = beside};
	return run_for(&l, clients, ms, ret);
}
