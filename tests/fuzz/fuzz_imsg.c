/* SPDX-License-Identifier: PostgreSQL */
/*
 * A packet of the supervisor's channel: the header, then the body by the decoder of its type. What
 * a decoder takes must come out the same when it is written again.
 */
#include "config.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/mem.h"
#include "common/ipc/imsg.h"
#include "common/ipc/worker_proto.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Written again it is what was read. Strings with a zero inside are cut there: shorter then. */
static void compare(const struct rd *body, struct buf *again)
{
	ASSERT(!again->failed && again->len_bytes <= body->left_bytes);
	if (again->len_bytes == body->left_bytes && again->len_bytes > 0)
		ASSERT(memcmp(again->data, body->p, again->len_bytes) == 0);
}

static void try_hello(struct rd r, struct buf *again)
{
	struct worker_hello m;
	if (worker_get_hello(&r, &m) != 0)
		return;
	worker_put_hello(again, &m);
	worker_free_hello(&m);
}

static void try_config(struct rd r, struct buf *again)
{
	struct worker_config m;
	if (worker_get_config(&r, &m) != 0)
		return;
	worker_put_config(again, &m);
	worker_free_config(&m);
}

static void try_reloaded(struct rd r, struct buf *again)
{
	struct worker_reloaded m;
	if (worker_get_reloaded(&r, &m) != 0)
		return;
	worker_put_reloaded(again, &m);
	worker_free_reloaded(&m);
}

static void try_peer(struct rd r, struct buf *again)
{
	struct worker_peer m;
	if (worker_get_peer(&r, &m) == 0)
		worker_put_peer(again, &m);
}

static void try_control(struct rd r, struct buf *again)
{
	struct worker_control m;
	if (worker_get_control(&r, &m) != 0)
		return;
	worker_put_control(again, &m);
	worker_free_control(&m);
}

static void try_relay(struct rd r, struct buf *again)
{
	struct worker_relay m;
	if (worker_get_relay(&r, &m) == 0)
		worker_put_relay(again, &m);
}

static void try_text(struct rd r, struct buf *again)
{
	char *text;
	if (worker_get_text(&r, &text) != 0)
		return;
	worker_put_text(again, text);
	free(text);
}

static void try_nothing(struct rd r, struct buf *again)
{
	if (worker_get_nothing(&r) == 0)
		ASSERT(r.left_bytes == 0 && again->len_bytes == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static void (*const by_type[])(struct rd r, struct buf * again) = {
		[WORKER_MSG_HELLO] = try_hello,
		[WORKER_MSG_RELOADED] = try_reloaded,
		[WORKER_MSG_STATUS] = try_text,
		[WORKER_MSG_RELAY] = try_relay,
		[WORKER_MSG_CONFIG] = try_config,
		[WORKER_MSG_LISTENER] = try_text,
		[WORKER_MSG_RELOAD] = try_text,
		[WORKER_MSG_PEER] = try_peer,
		[WORKER_MSG_CONTROL] = try_control,
		[WORKER_MSG_LOG_LEVEL] = try_text,
	};
	struct imsg msg;
	if (imsg_decode(data, size, &msg) != 0)
		return 0;
	ASSERT(msg.body.left_bytes + 16 == size && msg.n_fds == 0);
	ASSERT(imsg_take_fd(&msg, 0) == -1);
	struct buf again;
	buf_init(&again, 0);
	if (msg.type < ARRAY_LEN(by_type) && by_type[msg.type] != NULL)
		by_type[msg.type](msg.body, &again);
	else
		try_nothing(msg.body, &again);
	compare(&msg.body, &again);
	buf_free(&again);
	return 0;
}
