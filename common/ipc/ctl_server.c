/* SPDX-License-Identifier: PostgreSQL */
/*
 * The server side of the control protocol: in the supervisor it accepts clients, in a worker it
 * takes those over that the supervisor hands on.
 *
 * Context: event thread. Clients are not trusted: lines, clients, waiting output and time have
 * limits (ctl.h).
 *
 * State of a client:
 *   READING  --a whole line--> ASKED  --ctl_ok, ctl_fail--> READING (the next line waits its turn)
 *   READING  --line for another process--> FLUSHING --all output sent--> handed on, gone
 *   any      --EOF, error, stall, limit--> DOOMED (gone at the end of the pass; on_gone if held)
 *
 * Invariants:
 *   1. A client is destroyed by its deferred work only: handlers may be in the middle of using it.
 *   2. One request at a time: dispatch happens only in READING.
 *   3. on_gone runs at most once per hold, and never after the request's end.
 *   4. What is handed on is everything that was read and not answered.
 */
#include "config.h"

#include <errno.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/base/err.h"
#include "common/base/list.h"
#include "common/base/log.h"
#include "common/base/mem.h"
#include "common/base/proc.h"
#include "common/ipc/ctl.h"

#define CTL_SERVER_MAGIC 0x6c1d5e37U
#define CTL_CLIENT_MAGIC 0x6c1d5e38U
#define CTL_READ_BYTES 4096
#define CTL_ACCEPT_BUDGET 16       /* per pass */
#define CTL_ACCEPT_PAUSE_MS 1000   /* after an accept that failed for want of descriptors */
#define CTL_WRITE_BUDGET (1 << 20) /* bytes per pass and client */

MEM_TYPE(mem_ctl_server, "ctl server");
MEM_TYPE(mem_ctl_client, "ctl client");

enum client_state { CLIENT_READING, CLIENT_ASKED, CLIENT_FLUSHING, CLIENT_DOOMED };

struct ctl_client {
	uint32_t magic;
	struct ctl_server *server;
	struct list link;
	int fd;
	uid_t uid;
	enum client_state state;
	bool eof;               /* the client sends no more */
	bool last;              /* close once the output is sent */
	bool over;              /* output passed its mark: on_drained is owed */
	bool held;              /* on_drained, on_gone and hold_arg are valid */
	bool in_call;           /* inside the handler */
	uint32_t target;        /* in FLUSHING: whose the client will be */
	struct ctl_request req; /* in ASKED */
	void (*on_drained)(struct ctl_client *c, void *arg);
	void (*on_gone)(struct ctl_client *c, void *arg);
	void *hold_arg;
	struct buf in;
	struct buf out;
	struct ev_io io;
	struct ev_timer stall;
	struct ev_deferred deferred;
};

struct ctl_server {
	uint32_t magic;
	struct ev_loop *loop;
	uint32_t self_role;
	const struct ctl_handler *handlers;
	uid_t allowed_uid;
	const struct ctl_server_ops *ops;
	void *arg;
	int listen_fd;
	uint32_t stall_ms;
	struct ev_io listen_io;
	struct ev_timer accept_pause;
	struct list clients;
	size_t n_clients;
};

static void on_client_work(void *arg);

/* Everything about a client happens at the end of the pass, in on_client_work. */
static void client_wake(struct ctl_client *c)
{
	ev_defer(c->server->loop, &c->deferred, on_client_work, c);
}

static void client_doom(struct ctl_client *c)
{
	c->state = CLIENT_DOOMED;
	client_wake(c);
}

static void client_progress(struct ctl_client *c)
{
	ev_timer_start(&c->stall, c->server->stall_ms);
}

static void client_destroy(struct ctl_client *c)
{
	struct ctl_server *s = c->server;
	if (c->held) {
		c->held = false;
		if (c->on_gone != NULL)
			c->on_gone(c, c->hold_arg);
	}
	ev_io_stop(&c->io);
	ev_timer_stop(&c->stall);
	ev_defer_cancel(s->loop, &c->deferred);
	if (c->fd >= 0)
		(void)close(c->fd); /* a socket: what could not be sent was counted out before */
	list_remove(&c->link);
	s->n_clients--;
	if (c->req.root != NULL)
		ctl_request_free(&c->req);
	buf_free(&c->in);
	buf_free(&c->out);
	c->magic = 0;
	mem_free(&mem_ctl_client, c);
}

/* ---- answers ---- */

static void client_put(struct ctl_client *c, const char *key, json_t *value)
{
	json_t *line = json_pack("{s:I, s:o}", "id", (json_int_t)c->req.id, key, value);
	if (c->state == CLIENT_DOOMED) {
		json_decref(line);
		return;
	}
	if (line == NULL)
		c->out.failed = true;
	else
		ctl_put_json(&c->out, line);
	json_decref(line);
	if (c->out.failed) {
		log_debug("ctl.overflow", "control client of uid %u: more than %d bytes waiting",
			(unsigned)c->uid, CTL_OUT_MAX);
		client_doom(c);
		return;
	}
	client_wake(c);
}

int ctl_row(struct ctl_client *c, json_t *row)
{
	OBJ_CHECK(c, CTL_CLIENT_MAGIC);
	client_put(c, "row", row);
	if (c->out.len_bytes < CTL_OUT_MARK || c->state == CLIENT_DOOMED)
		return 0;
	c->over = true;
	return -EAGAIN;
}

static void request_end(struct ctl_client *c)
{
	ctl_request_free(&c->req);
	c->held = false;
	c->over = false;
	if (c->state == CLIENT_ASKED)
		c->state = CLIENT_READING;
	client_progress(c);
}

void ctl_ok(struct ctl_client *c)
{
	OBJ_CHECK(c, CTL_CLIENT_MAGIC);
	ASSERT(c->req.root != NULL);
	client_put(c, "ok", json_true());
	request_end(c);
}

static json_t *error_object(const char *code, const char *hint, const char *message)
{
	json_t *error = json_pack("{s:s}", "code", code);
	json_t *text = json_string(message);
	/* A message may quote bytes that are no UTF-8; the code alone is still an answer. */
	if (text == NULL)
		text = json_string("(a message that is not UTF-8)");
	(void)json_object_set_new(error, "message", text); /* fails for want of memory only */
	if (hint != NULL)
		(void)json_object_set_new(error, "hint", json_string(hint)); /* the same */
	return error;
}

void ctl_fail(struct ctl_client *c, const char *code, const char *hint, const char *fmt, ...)
{
	OBJ_CHECK(c, CTL_CLIENT_MAGIC);
	ASSERT(c->req.root != NULL);
	char message[2048];
	va_list ap;
	va_start(ap, fmt);
	(void)vsnprintf(message, sizeof(message), fmt, ap); /* a cut message is a message */
	va_end(ap);
	client_put(c, "error", error_object(code, hint, message));
	request_end(c);
}

void ctl_hold(struct ctl_client *c, void (*on_drained)(struct ctl_client *c, void *arg),
	void (*on_gone)(struct ctl_client *c, void *arg), void *arg)
{
	OBJ_CHECK(c, CTL_CLIENT_MAGIC);
	ASSERT(c->req.root != NULL);
	c->held = true;
	c->on_drained = on_drained;
	c->on_gone = on_gone;
	c->hold_arg = arg;
}

void ctl_refuse(int fd, const char *code, const char *message, const char *hint)
{
	struct buf out;
	buf_init(&out, CTL_OUT_MARK);
	json_t *line = json_pack("{s:i, s:o}", "id", 0, "error", error_object(code, hint, message));
	if (line != NULL) {
		ctl_put_json(&out, line);
		/* Into an empty socket buffer; if it does not fit, the client sees the end only. */
		(void)send(fd, out.data, out.len_bytes, MSG_NOSIGNAL | MSG_DONTWAIT);
	}
	json_decref(line);
	buf_free(&out);
	(void)close(fd); /* nothing was promised */
}

/* ---- requests ---- */

static bool client_trusted(const struct ctl_client *c)
{
	return c->uid == 0 || c->uid == c->server->allowed_uid || c->uid == geteuid();
}

/* Whoever may not is told so, and that is all that is said to him. */
static bool client_may(struct ctl_client *c, enum ctl_perm perm)
{
	if (client_trusted(c))
		return true;
	ctl_fail(c, "permission", "run it as root or as the suite's user",
		"uid %u may not %s this suite", (unsigned)c->uid,
		perm == CTL_PERM_ADMIN ? "administer" : "look into");
	c->last = true;
	return false;
}

static const struct ctl_handler *handler_find(const struct ctl_server *s, const char *name)
{
	for (const struct ctl_handler *h = s->handlers; h != NULL && h->name != NULL; h++) {
		if (strcmp(h->name, name) == 0)
			return h;
	}
	return NULL;
}

static void client_call(struct ctl_client *c, const struct ctl_handler *h)
{
	c->in_call = true;
	h->fn(c, &c->req, c->server->arg);
	c->in_call = false;
	/* Neither answered nor held: the client would wait for ever. */
	ASSERT(c->req.root == NULL || c->held);
}

/* c->req is set, state is ASKED. True: the line is done with (answered, or held). */
static bool client_ask(struct ctl_client *c)
{
	struct ctl_server *s = c->server;
	const struct ctl_command *cmd = ctl_table_find(c->req.cmd);
	if (!client_may(c, cmd != NULL ? cmd->perm : CTL_PERM_ADMIN))
		return true;
	if (cmd == NULL) {
		ctl_fail(c, "unknown-command", "see pgctl help", "there is no such command");
		return true;
	}
	if (cmd->target == ROLE_LOCAL) {
		ctl_fail(c, "unavailable", "use pgctl", "%s is done by pgctl itself", cmd->name);
		return true;
	}
	if (cmd->target == s->self_role) {
		const struct ctl_handler *h = handler_find(s, cmd->name);
		if (h != NULL)
			client_call(c, h);
		else
			ctl_fail(c, "unavailable", NULL, "%s is not served by this build",
				cmd->name);
		return true;
	}
	if (s->ops == NULL || s->ops->route == NULL) {
		ctl_fail(c, "unavailable", "ask on a new connection",
			"this connection belongs to %s now, %s is answered by %s",
			role_str(s->self_role), cmd->name, role_str(cmd->target));
		return true;
	}
	c->target = cmd->target;
	return false;
}

/* Takes up the first line, len_bytes without its newline. */
static void client_dispatch(struct ctl_client *c, size_t len_bytes)
{
	const char *why = NULL;
	struct ctl_request req;
	int err = ctl_request_parse((const char *)c->in.data, len_bytes, &req, &why);
	c->state = CLIENT_ASKED;
	if (err != 0) {
		c->req = (struct ctl_request){.root = json_object()};
		if (err == -ERR_VERSION)
			ctl_fail(c, "version",
				"use the pgctl that was installed with the running suite",
				"%s (%d)", why, CTL_VERSION);
		else
			ctl_fail(c, "invalid", NULL, "%s", why);
		buf_consume(&c->in, len_bytes + 1);
		return;
	}
	c->req = req;
	if (client_ask(c)) {
		buf_consume(&c->in, len_bytes + 1);
		return;
	}
	/* The line stays in the buffer: the next process reads it again. */
	c->state = CLIENT_FLUSHING;
}

/* The line for another process, and all behind it, goes there with the socket. */
static void client_hand_on(struct ctl_client *c)
{
	const char *why = "it is not running";
	size_t line_bytes =
		(size_t)((const uint8_t *)memchr(c->in.data, '\n', c->in.len_bytes) - c->in.data);
	ev_io_stop(&c->io);
	int err = c->server->ops->route(
		c->target, buf_cstr(&c->in), c->fd, c->uid, &why, c->server->arg);
	if (err == 0) {
		c->fd = -1;
		c->state = CLIENT_DOOMED;
		return;
	}
	c->state = CLIENT_ASKED;
	ctl_fail(c, "unavailable", "see pgctl status", "cannot ask %s: %s", role_str(c->target),
		why);
	buf_consume(&c->in, line_bytes + 1);
}

/* Dispatches what is there and may be. */
static void client_run_lines(struct ctl_client *c)
{
	while (c->state == CLIENT_READING && !c->last && c->in.len_bytes > 0) {
		const uint8_t *nl = memchr(c->in.data, '\n', c->in.len_bytes);
		if (nl != NULL) {
			client_dispatch(c, (size_t)(nl - c->in.data));
			continue;
		}
		if (c->in.len_bytes < CTL_LINE_MAX)
			break;
		c->req = (struct ctl_request){.root = json_object()};
		c->state = CLIENT_ASKED;
		ctl_fail(c, "invalid", NULL, "a request line has at most %d bytes", CTL_LINE_MAX);
		c->last = true;
	}
}

/* ---- input and output ---- */

static void client_read(struct ctl_client *c)
{
	while (c->in.len_bytes < CTL_LINE_MAX) {
		size_t want = CTL_LINE_MAX - c->in.len_bytes;
		if (want > CTL_READ_BYTES)
			want = CTL_READ_BYTES;
		uint8_t *room = buf_reserve(&c->in, want);
		ASSERT(room != NULL);
		ssize_t n = recv(c->fd, room, want, MSG_DONTWAIT);
		if (n < 0 && (errno == EAGAIN || errno == EINTR))
			return;
		if (n < 0) {
			client_doom(c);
			return;
		}
		if (n == 0) {
			c->eof = true;
			return;
		}
		buf_commit(&c->in, (size_t)n);
		if (c->state == CLIENT_READING)
			client_progress(c);
	}
}

/* The other end is closed altogether, not only its sending side. */
static bool client_hung_up(const struct ctl_client *c)
{
	struct pollfd p = {.fd = c->fd};
	return poll(&p, 1, 0) > 0 && (p.revents & (POLLHUP | POLLERR)) != 0;
}

static void client_write(struct ctl_client *c)
{
	size_t sent = 0;
	while (c->out.len_bytes > sent && sent < CTL_WRITE_BUDGET) {
		ssize_t n = send(c->fd, c->out.data + sent, c->out.len_bytes - sent,
			MSG_NOSIGNAL | MSG_DONTWAIT);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EAGAIN)
			break;
		if (n < 0) {
			client_doom(c);
			break;
		}
		sent += (size_t)n;
	}
	if (sent > 0) {
		buf_consume(&c->out, sent);
		client_progress(c);
	}
}

/* Nothing more will come of this client: all asked, all answered, all sent. */
static bool client_done(const struct ctl_client *c)
{
	if (c->state != CLIENT_READING || c->out.len_bytes > 0)
		return false;
	return c->last || (c->eof && memchr(c->in.data == NULL ? (void *)"" : c->in.data, '\n',
					     c->in.len_bytes) == NULL);
}

/* The end of every pass in which something happened to the client. */
static void on_client_work(void *arg)
{
	struct ctl_client *c;
	OBJ_CAST(c, arg, CTL_CLIENT_MAGIC);
	if (c->state != CLIENT_DOOMED)
		client_run_lines(c);
	if (c->state != CLIENT_DOOMED)
		client_write(c);
	if (c->state == CLIENT_FLUSHING && c->out.len_bytes == 0)
		client_hand_on(c);
	if (c->state == CLIENT_ASKED && c->eof && client_hung_up(c))
		c->state = CLIENT_DOOMED;
	if (c->state == CLIENT_DOOMED || client_done(c)) {
		client_destroy(c);
		return;
	}
	bool read = !c->eof && c->in.len_bytes < CTL_LINE_MAX;
	ev_io_set(&c->io, c->fd,
		(short)((read ? EV_READ : 0) | (c->out.len_bytes > 0 ? EV_WRITE : 0)));
	if (c->over && c->held && c->out.len_bytes < CTL_OUT_MARK / 4) {
		c->over = false;
		if (c->on_drained != NULL)
			c->on_drained(c, c->hold_arg);
	}
}

static void on_client_io(int fd, short what, void *arg)
{
	struct ctl_client *c;
	OBJ_CAST(c, arg, CTL_CLIENT_MAGIC);
	(void)fd; /* the same as c->fd */
	if ((what & EV_READ) != 0 && c->state != CLIENT_DOOMED)
		client_read(c);
	client_wake(c);
}

/* While a handler works it is not the client's turn; else it has slept too long. */
static void on_client_stall(void *arg)
{
	struct ctl_client *c;
	OBJ_CAST(c, arg, CTL_CLIENT_MAGIC);
	if (c->state == CLIENT_ASKED && c->out.len_bytes == 0) {
		client_progress(c);
		/* Looks whether a client that ended its sending side is still there. */
		client_wake(c);
		return;
	}
	log_debug(
		"ctl.stalled", "control client of uid %u: no progress, closing", (unsigned)c->uid);
	client_doom(c);
}

static struct ctl_client *client_new(struct ctl_server *s, int fd, uid_t uid)
{
	struct ctl_client *c = mem_new(&mem_ctl_client, sizeof(*c));
	c->magic = CTL_CLIENT_MAGIC;
	c->server = s;
	c->fd = fd;
	c->uid = uid;
	buf_init(&c->in, CTL_LINE_MAX + 1); /* a handed-over line may get its newline back */
	buf_init(&c->out, CTL_OUT_MAX);
	ev_io_init(&c->io, s->loop, "control client", on_client_io, c);
	ev_timer_init(&c->stall, s->loop, "control client stall", on_client_stall, c);
	list_push_back(&s->clients, &c->link);
	s->n_clients++;
	client_progress(c);
	client_wake(c);
	return c;
}

/* ---- the server ---- */

static const char *server_full_for(const struct ctl_server *s, uid_t uid)
{
	size_t same_uid = 0;
	list_for_each (it, &s->clients) {
		same_uid += list_entry(it, struct ctl_client, link)->uid == uid;
	}
	bool privileged = uid == 0 || uid == geteuid();
	size_t max = privileged ? CTL_CLIENTS_MAX : CTL_CLIENTS_MAX - CTL_CLIENTS_RESERVE;
	if (s->n_clients >= max)
		return "too many clients on the control socket";
	return same_uid >= CTL_CLIENTS_PER_UID_MAX
		       ? "too many clients of this user on the control socket"
		       : NULL;
}

/* Refuses by closing, with the reason said to the client. */
static void server_take(struct ctl_server *s, int fd, uid_t uid)
{
	const char *why = server_full_for(s, uid);
	int err = why == NULL ? proc_set_nonblock(fd) : 0;
	if (err != 0)
		why = err_str(err);
	if (why != NULL) {
		log_debug("ctl.refused", "control client of uid %u: %s", (unsigned)uid, why);
		ctl_refuse(fd, "busy", why, "close other clients, or try again in a moment");
		return;
	}
	(void)client_new(s, fd, uid); /* lives in s->clients */
}

static void on_listen(int fd, short what, void *arg)
{
	struct ctl_server *s;
	OBJ_CAST(s, arg, CTL_SERVER_MAGIC);
	(void)what; /* only EV_READ is asked for */
	for (int i = 0; i < CTL_ACCEPT_BUDGET; i++) {
		int client = accept4(fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
		if (client < 0 && (errno == EINTR || errno == ECONNABORTED))
			continue;
		if (client < 0 && errno == EAGAIN)
			return;
		if (client < 0) {
			log_debug("ctl.accept", "cannot accept: %s, pausing", err_str(errno));
			ev_io_stop(&s->listen_io);
			ev_timer_start(&s->accept_pause, CTL_ACCEPT_PAUSE_MS);
			return;
		}
		struct ucred cred;
		socklen_t len = sizeof(cred);
		if (getsockopt(client, SOL_SOCKET, SO_PEERCRED, &cred, &len) != 0)
			(void)close(client); /* nobody knows who it is */
		else
			server_take(s, client, cred.uid);
	}
}

static void on_accept_pause(void *arg)
{
	struct ctl_server *s;
	OBJ_CAST(s, arg, CTL_SERVER_MAGIC);
	ev_io_set(&s->listen_io, s->listen_fd, EV_READ);
}

struct ctl_server *ctl_server_new(struct ev_loop *loop, uint32_t self_role,
	const struct ctl_handler *handlers, uid_t allowed_uid, const struct ctl_server_ops *ops,
	void *arg)
{
	struct ctl_server *s = mem_new(&mem_ctl_server, sizeof(*s));
	s->magic = CTL_SERVER_MAGIC;
	s->loop = loop;
	s->self_role = self_role;
	s->handlers = handlers;
	s->allowed_uid = allowed_uid;
	s->ops = ops;
	s->arg = arg;
	s->listen_fd = -1;
	s->stall_ms = CTL_STALL_MS;
	list_init(&s->clients);
	ev_io_init(&s->listen_io, loop, "control socket", on_listen, s);
	ev_timer_init(&s->accept_pause, loop, "control socket pause", on_accept_pause, s);
	return s;
}

void ctl_server_free(struct ctl_server **sp)
{
	struct ctl_server *s = *sp;
	if (s == NULL)
		return;
	OBJ_CHECK(s, CTL_SERVER_MAGIC);
	*sp = NULL;
	while (!list_empty(&s->clients)) {
		struct ctl_client *c = list_first(&s->clients, struct ctl_client, link);
		ASSERT(!c->in_call);
		client_write(c); /* the last answers, as far as they go without waiting */
		client_destroy(c);
	}
	ev_io_stop(&s->listen_io);
	ev_timer_stop(&s->accept_pause);
	if (s->listen_fd >= 0)
		(void)close(s->listen_fd); /* a listener has nothing to lose */
	s->magic = 0;
	mem_free(&mem_ctl_server, s);
}

int ctl_server_listen(struct ctl_server *s, int listen_fd)
{
	OBJ_CHECK(s, CTL_SERVER_MAGIC);
	ASSERT(s->listen_fd < 0);
	s->listen_fd = listen_fd;
	int err = proc_set_nonblock(listen_fd);
	if (err == 0)
		ev_io_set(&s->listen_io, listen_fd, EV_READ);
	return err;
}

void ctl_server_adopt(struct ctl_server *s, int fd, uid_t uid, const char *line)
{
	OBJ_CHECK(s, CTL_SERVER_MAGIC);
	size_t before = s->n_clients;
	server_take(s, fd, uid);
	if (s->n_clients == before)
		return;
	struct ctl_client *c = list_last(&s->clients, struct ctl_client, link);
	buf_put_text(&c->in, line);
	if (strchr(line, '\n') == NULL)
		buf_put_u8(&c->in, '\n');
	if (c->in.failed)
		client_doom(c);
}

size_t ctl_server_count(const struct ctl_server *s)
{
	return s->n_clients;
}

void ctl_server_set_stall_ms(struct ctl_server *s, uint32_t stall_ms)
{
	s->stall_ms = stall_ms;
}
