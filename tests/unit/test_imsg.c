/* SPDX-License-Identifier: PostgreSQL */
/* imsg: channels over real socket pairs, and the bodies of the workers' messages. */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/base/err.h"
#include "common/base/mem.h"
#include "common/ipc/imsg.h"
#include "common/ipc/worker_proto.h"

/* One end, with what came in. */
struct end {
	struct imsg_channel *ch;
	int n_messages;
	uint32_t type, id, generation;
	char text[64];
	size_t n_fds;
	int fd; /* taken from the last message */
	int answer;
	bool close_inside;
	int n_closed;
	int closed_err;
};

struct world {
	struct ev_loop *loop;
	struct end a, b;
};

static int on_message(struct imsg *msg, void *arg)
{
	struct end *e = arg;
	e->n_messages++;
	e->type = msg->type;
	e->id = msg->id;
	e->generation = msg->generation;
	e->n_fds = msg->n_fds;
	e->fd = imsg_take_fd(msg, 0);
	char *text = msg->body.left_bytes > 0 ? rd_string(&msg->body) : NULL;
	snprintf(e->text, sizeof(e->text), "%s", text != NULL ? text : "");
	free(text);
	if (e->close_inside)
		imsg_close(&e->ch);
	return e->answer;
}

static void on_closed(int err, void *arg)
{
	struct end *e = arg;
	e->n_closed++;
	e->closed_err = err;
}

static const struct imsg_ops ops = {.on_message = on_message, .on_closed = on_closed};

static void begin(struct world *w, uint32_t gen_a, uint32_t gen_b)
{
	int sv[2];
	memset(w, 0, sizeof(*w));
	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sv), 0);
	w->loop = ev_loop_new();
	w->a.ch = imsg_open(w->loop, sv[0], gen_a, &ops, &w->a);
	w->b.ch = imsg_open(w->loop, sv[1], gen_b, &ops, &w->b);
	w->a.fd = w->b.fd = -1;
}

static void finish(struct world *w)
{
	imsg_close(&w->a.ch);
	imsg_close(&w->b.ch);
	ev_loop_free(&w->loop);
	assert_int_equal(mem_report(NULL, NULL), 0);
}

static void turn(struct world *w, int n)
{
	for (int i = 0; i < n; i++)
		ev_loop_once(w->loop, false);
}

static void send_text(struct end *e, uint32_t type, const char *text)
{
	struct buf b;
	buf_init(&b, IMSG_BODY_MAX);
	worker_put_text(&b, text);
	assert_int_equal(imsg_send(e->ch, type, 9, &b, NULL, 0), 0);
	buf_free(&b);
}

static void test_there_and_back(void **state)
{
	struct world w;
	(void)state;
	begin(&w, 7, 7);
	send_text(&w.a, WORKER_MSG_STATUS, "good morning");
	turn(&w, 3);
	assert_int_equal(w.b.n_messages, 1);
	assert_int_equal(w.b.type, WORKER_MSG_STATUS);
	assert_int_equal(w.b.id, 9);
	assert_int_equal(w.b.generation, 7);
	assert_string_equal(w.b.text, "good morning");
	assert_int_equal(imsg_send(w.b.ch, WORKER_MSG_PING, 0, NULL, NULL, 0), 0);
	turn(&w, 3);
	assert_int_equal(w.a.type, WORKER_MSG_PING);
	finish(&w);
}

static void test_descriptors(void **state)
{
	struct world w;
	int p[2];
	(void)state;
	begin(&w, 1, 1);
	assert_int_equal(pipe(p), 0);
	const int fds[] = {p[1], p[1]};
	assert_int_equal(imsg_send(w.a.ch, 3, 0, NULL, fds, 2), 0);
	close(p[1]);
	turn(&w, 3);
	assert_int_equal(w.b.n_fds, 2);
	assert_true(w.b.fd >= 0);
	assert_true((fcntl(w.b.fd, F_GETFD) & FD_CLOEXEC) != 0);
	assert_int_equal(write(w.b.fd, "x", 1), 1);
	char c;
	assert_int_equal(read(p[0], &c, 1), 1);
	/* The first was taken, the second was left and is closed: after ours there is no writer. */
	close(w.b.fd);
	assert_int_equal(read(p[0], &c, 1), 0);
	close(p[0]);
	finish(&w);
}

static void test_generation(void **state)
{
	struct world w;
	int p[2];
	char c;
	(void)state;
	begin(&w, 7, 8);
	assert_int_equal(pipe(p), 0);
	assert_int_equal(imsg_send(w.a.ch, 3, 0, NULL, &p[1], 1), 0);
	close(p[1]);
	turn(&w, 3);
	assert_int_equal(w.b.n_messages, 0);
	assert_int_equal(w.b.n_closed, 0);
	assert_int_equal(read(p[0], &c, 1), 0); /* its descriptor was closed, not kept */
	close(p[0]);
	imsg_set_generation(w.a.ch, 8);
	send_text(&w.a, 3, "");
	turn(&w, 3);
	assert_int_equal(w.b.n_messages, 1);
	imsg_set_generation(w.b.ch, 0); /* takes any */
	imsg_set_generation(w.a.ch, 99);
	send_text(&w.a, 3, "");
	turn(&w, 3);
	assert_int_equal(w.b.n_messages, 2);
	finish(&w);
}

static void test_queue_limit(void **state)
{
	struct world w;
	(void)state;
	begin(&w, 1, 1);
	struct buf b;
	buf_init(&b, 0);
	memset(buf_reserve(&b, IMSG_BODY_MAX), 'x', IMSG_BODY_MAX);
	buf_commit(&b, IMSG_BODY_MAX);
	int err = 0, n = 0;
	for (; err == 0 && n < 2 * IMSG_QUEUE_MAX; n++)
		err = imsg_send(w.a.ch, 3, 0, &b, NULL, 0);
	assert_int_equal(err, -ERR_LIMIT);
	assert_true(n > IMSG_QUEUE_MAX);
	assert_int_equal(w.a.n_closed, 0); /* not from inside imsg_send */
	turn(&w, 2);
	assert_int_equal(w.a.n_closed, 1);
	assert_int_equal(w.a.closed_err, -ERR_LIMIT);
	turn(&w, 2);
	assert_int_equal(w.a.n_closed, 1);
	buf_put_u8(&b, 0);
	assert_int_equal(imsg_send(w.b.ch, 3, 0, &b, NULL, 0), -EMSGSIZE);
	buf_free(&b);
	finish(&w);
}

static void test_order_through_the_queue(void **state)
{
	struct world w;
	char text[32];
	(void)state;
	begin(&w, 1, 1);
	/* More than a socket holds, so that most wait; every one must arrive, in order. */
	for (int i = 0; i < IMSG_QUEUE_MAX; i++) {
		snprintf(text, sizeof(text), "%d", i);
		send_text(&w.a, (uint32_t)i, text);
	}
	for (int i = 0; w.b.n_messages < IMSG_QUEUE_MAX && i < 10000; i++) {
		int before = w.b.n_messages;
		ev_loop_once(w.loop, false);
		if (w.b.n_messages > before)
			assert_int_equal(w.b.type, w.b.n_messages - 1);
	}
	assert_int_equal(w.b.n_messages, IMSG_QUEUE_MAX);
	assert_string_equal(w.b.text, text);
	finish(&w);
}

static void garbled(const void *packet, size_t len_bytes, int err)
{
	struct world w;
	int sv[2];
	begin(&w, 1, 1);
	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sv), 0);
	imsg_close(&w.b.ch);
	w.b.ch = imsg_open(w.loop, sv[0], 1, &ops, &w.b);
	assert_int_equal(send(sv[1], packet, len_bytes, 0), len_bytes);
	turn(&w, 3);
	assert_int_equal(w.b.n_messages, 0);
	assert_int_equal(w.b.n_closed, 1);
	assert_int_equal(w.b.closed_err, err);
	close(sv[1]);
	finish(&w);
}

static void test_garbled(void **state)
{
	static uint8_t packet[20000];
	(void)state;
	garbled(packet, 15, -ERR_TRUNCATED);
	memcpy(packet, "\0\0\0\1\0\0\0\5\0\0\0\0\0\0\0\1abcd", 20);
	garbled(packet, 20, -ERR_MALFORMED); /* says 5, has 4 */
	garbled(packet, sizeof(packet), -ERR_MALFORMED);
}

static void test_refusal_ends(void **state)
{
	struct world w;
	(void)state;
	begin(&w, 1, 1);
	w.b.answer = -EPROTO;
	send_text(&w.a, 3, "one");
	send_text(&w.a, 3, "two");
	turn(&w, 4);
	assert_int_equal(w.b.n_messages, 1);
	assert_int_equal(w.b.n_closed, 1);
	assert_int_equal(w.b.closed_err, -EPROTO);
	finish(&w);
}

static void test_close_inside(void **state)
{
	struct world w;
	(void)state;
	begin(&w, 1, 1);
	w.b.close_inside = true;
	send_text(&w.a, 3, "one");
	send_text(&w.a, 3, "two");
	turn(&w, 4);
	assert_int_equal(w.b.n_messages, 1);
	assert_int_equal(w.b.n_closed, 0);
	assert_int_equal(w.a.n_closed, 1);
	assert_int_equal(w.a.closed_err, 0);
	finish(&w);
}

/* A peer that dies with unread messages: its own last words still arrive, then the end. */
static void test_last_words(void **state)
{
	struct world w;
	(void)state;
	begin(&w, 1, 1);
	send_text(&w.a, 3, "unread");
	send_text(&w.b, 4, "farewell");
	imsg_flush(w.b.ch, 1000);
	imsg_close(&w.b.ch);
	turn(&w, 4);
	assert_int_equal(w.a.n_messages, 1);
	assert_string_equal(w.a.text, "farewell");
	assert_int_equal(w.a.n_closed, 1);
	assert_int_equal(w.a.closed_err, 0);
	assert_int_equal(imsg_send(w.a.ch, 3, 0, NULL, NULL, 0), 0);
	finish(&w);
}

/* A reader over the whole of a builder. */
static struct rd over(const struct buf *b)
{
	return rd_make(b->data, b->len_bytes);
}

static void test_hello_and_config(void **state)
{
	struct buf b;
	struct rd r;
	(void)state;
	buf_init(&b, 0);
	char build[] = "1.2";
	const struct worker_hello hello = {3, build, ROLE_BROKERD};
	struct worker_hello got;
	worker_put_hello(&b, &hello);
	r = over(&b);
	assert_int_equal(worker_get_hello(&r, &got), 0);
	assert_int_equal(got.version, 3);
	assert_string_equal(got.build, "1.2");
	assert_int_equal(got.role, ROLE_BROKERD);
	worker_free_hello(&got);
	/* One byte less, one byte more. */
	r = rd_make(b.data, b.len_bytes - 1);
	assert_int_equal(worker_get_hello(&r, &got), -ERR_TRUNCATED);
	buf_put_u8(&b, 0);
	r = over(&b);
	assert_int_equal(worker_get_hello(&r, &got), -ERR_MALFORMED);

	char s[6][8] = {"node", "inst", "state", "run", "user", "debug"};
	const struct worker_config config = {s[0], s[1], s[2], s[3], s[4], s[5], 6};
	struct worker_config c;
	buf_reset(&b);
	worker_put_config(&b, &config);
	r = over(&b);
	assert_int_equal(worker_get_config(&r, &c), 0);
	assert_string_equal(c.node, "node");
	assert_string_equal(c.instance, "inst");
	assert_string_equal(c.state_dir, "state");
	assert_string_equal(c.run_dir, "run");
	assert_string_equal(c.user, "user");
	assert_string_equal(c.log_level, "debug");
	assert_int_equal(c.enabled_roles, 6);
	worker_free_config(&c);
	buf_free(&b);
}

static void test_small_bodies(void **state)
{
	struct buf b;
	struct rd r;
	char text[] = "words";
	(void)state;
	buf_init(&b, 0);
	const struct worker_peer peer = {ROLE_WALSTREAMD, true, 77};
	struct worker_peer p;
	worker_put_peer(&b, &peer);
	r = over(&b);
	assert_int_equal(worker_get_peer(&r, &p), 0);
	assert_true(p.role == ROLE_WALSTREAMD && p.up && p.generation == 77);
	b.data[4] = 2; /* a flag is 0 or 1 */
	r = over(&b);
	assert_true(worker_get_peer(&r, &p) != 0);

	const struct worker_reloaded verdict = {false, text};
	struct worker_reloaded v;
	buf_reset(&b);
	worker_put_reloaded(&b, &verdict);
	r = over(&b);
	assert_int_equal(worker_get_reloaded(&r, &v), 0);
	assert_true(!v.ok);
	assert_string_equal(v.text, "words");
	worker_free_reloaded(&v);

	const struct worker_control control = {text, 1000};
	struct worker_control k;
	buf_reset(&b);
	worker_put_control(&b, &control);
	r = over(&b);
	assert_int_equal(worker_get_control(&r, &k), 0);
	assert_int_equal(k.uid, 1000);
	assert_string_equal(k.line, "words");
	worker_free_control(&k);

	const struct worker_relay relay = {ROLE_BROKERD, RELAY_RING_GRANT};
	struct worker_relay y;
	buf_reset(&b);
	worker_put_relay(&b, &relay);
	buf_put_u8(&b, 42);
	r = over(&b);
	assert_int_equal(worker_get_relay(&r, &y), 0);
	assert_int_equal(y.role, ROLE_BROKERD);
	assert_int_equal(y.kind, RELAY_RING_GRANT);
	assert_int_equal(rd_u8(&r), 42);
	assert_int_equal(rd_end(&r), 0);
	buf_free(&b);
}

static void test_names(void **state)
{
	(void)state;
	for (uint32_t i = 0; i < ROLE_COUNT; i++) {
		enum role role;
		assert_int_equal(role_parse(role_str(i), &role), 0);
		assert_int_equal(role, i);
	}
	enum role untouched = ROLE_COUNT;
	assert_int_equal(role_parse("nobody", &untouched), -EINVAL);
	assert_int_equal(untouched, ROLE_COUNT);
	assert_string_equal(role_str(17), "?");
	assert_string_equal(role_str(ROLE_SUPERVISOR), "supervisor");
	for (uint32_t i = WORKER_MSG_HELLO; i <= WORKER_MSG_LOG_LEVEL; i++)
		assert_string_not_equal(worker_msg_str(i), "?");
	assert_string_equal(worker_msg_str(0), "?");
	assert_string_equal(worker_msg_str(WORKER_MSG_LOG_LEVEL + 1), "?");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_there_and_back),
		cmocka_unit_test(test_descriptors),
		cmocka_unit_test(test_generation),
		cmocka_unit_test(test_queue_limit),
		cmocka_unit_test(test_order_through_the_queue),
		cmocka_unit_test(test_garbled),
		cmocka_unit_test(test_refusal_ends),
		cmocka_unit_test(test_close_inside),
		cmocka_unit_test(test_last_words),
		cmocka_unit_test(test_hello_and_config),
		cmocka_unit_test(test_small_bodies),
		cmocka_unit_test(test_names),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
