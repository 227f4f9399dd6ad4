/* SPDX-License-Identifier: PostgreSQL */
/*
 * The client side of the control protocol: pgctl's connection to the suite. It blocks; never use it
 * in a daemon.
 *
 * State:  connected to the supervisor --call of a worker's command--> connected to that worker
 *         --call for another process, or the daemon closed it--> connected to the supervisor anew
 *
 * The daemons are trusted less than necessary: lines have a limit, and a reply to another request
 * or without meaning ends the call with -ERR_MALFORMED.
 */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include "common/base/buf.h"
#include "common/base/err.h"
#include "common/base/mem.h"
#include "common/ipc/ctl.h"

/* Between two bytes of an answer: a reload waits for every worker. */
#define CTL_CLIENT_TIMEOUT_S 120
#define CTL_READ_BYTES 65536

MEM_TYPE(mem_ctl_conn, "ctl connection");

struct ctl_conn {
	char *path;
	int fd;
	uint32_t owner; /* enum role of the process at the other end */
	int64_t last_id;
	struct buf in;
};

/* A connected socket in *ret_fd, or -errno. */
static int dial(const char *path, int *ret_fd)
{
	struct sockaddr_un addr = {.sun_family = AF_UNIX};
	if (strlen(path) >= sizeof(addr.sun_path))
		return -ENAMETOOLONG;
	memcpy(addr.sun_path, path, strlen(path) + 1);
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return -errno;
	const struct timeval timeout = {.tv_sec = CTL_CLIENT_TIMEOUT_S};
	if (setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof(timeout)) != 0 ||
		setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &timeout, sizeof(timeout)) != 0 ||
		connect(fd, (const struct sockaddr *)&addr, sizeof(addr)) != 0) {
		int err = -errno;
		(void)close(fd); /* nothing was written */
		return err;
	}
	*ret_fd = fd;
	return 0;
}

int ctl_connect(const char *socket_path, struct ctl_conn **ret_conn)
{
	int fd;
	int err = dial(socket_path, &fd);
	if (err != 0)
		return err;
	struct ctl_conn *conn = mem_new(&mem_ctl_conn, sizeof(*conn));
	conn->path = xstrdup(socket_path);
	conn->fd = fd;
	conn->owner = ROLE_SUPERVISOR;
	buf_init(&conn->in, CTL_REPLY_MAX);
	*ret_conn = conn;
	return 0;
}

void ctl_disconnect(struct ctl_conn **connp)
{
	struct ctl_conn *conn = *connp;
	if (conn == NULL)
		return;
	*connp = NULL;
	(void)close(conn->fd); /* every answer was read or is not wanted */
	buf_free(&conn->in);
	free(conn->path);
	mem_free(&mem_ctl_conn, conn);
}

/* The socket speaks to somebody who can answer this command. */
static int ready_for(struct ctl_conn *conn, const char *cmd)
{
	const struct ctl_command *row = ctl_table_find(cmd);
	uint32_t target = row != NULL ? row->target : ROLE_SUPERVISOR;
	/* Between two calls nothing comes but the end of the connection. */
	struct pollfd p = {.fd = conn->fd, .events = POLLIN};
	bool ended = poll(&p, 1, 0) > 0;
	if (!ended && (conn->owner == ROLE_SUPERVISOR || conn->owner == target)) {
		conn->owner = target;
		return 0;
	}
	int fd;
	int err = dial(conn->path, &fd);
	if (err != 0)
		return err;
	(void)close(conn->fd); /* its last answer has been read */
	conn->fd = fd;
	conn->owner = target;
	buf_reset(&conn->in);
	return 0;
}

static int send_all(int fd, const struct buf *out)
{
	for (size_t at = 0; at < out->len_bytes;) {
		ssize_t n = send(fd, out->data + at, out->len_bytes - at, MSG_NOSIGNAL);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EPIPE)
			return 0; /* refused before it was read: the reason is there to read */
		if (n < 0)
			return errno == EAGAIN ? -ETIMEDOUT : -errno;
		at += (size_t)n;
	}
	return 0;
}

/* The next line as a JSON object, owned by the caller. */
static int read_reply(struct ctl_conn *conn, json_t **ret_reply)
{
	const uint8_t *nl;
	size_t searched = 0;
	while ((nl = conn->in.len_bytes == searched
			       ? NULL
			       : memchr(conn->in.data + searched, '\n',
					 conn->in.len_bytes - searched)) == NULL) {
		searched = conn->in.len_bytes;
		uint8_t *room = buf_reserve(&conn->in, CTL_READ_BYTES);
		if (room == NULL)
			return -ERR_LIMIT;
		ssize_t n = recv(conn->fd, room, CTL_READ_BYTES, 0);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EAGAIN)
			return -ETIMEDOUT;
		if (n <= 0)
			return n == 0 || errno == ECONNRESET ? -ERR_CLOSED : -errno;
		buf_commit(&conn->in, (size_t)n);
	}
	size_t len_bytes = (size_t)(nl - conn->in.data);
	json_t *reply = json_loadb((const char *)conn->in.data, len_bytes, 0, NULL);
	buf_consume(&conn->in, len_bytes + 1);
	if (!json_is_object(reply)) {
		json_decref(reply);
		return -ERR_MALFORMED;
	}
	*ret_reply = reply;
	return 0;
}

/* 1: more to come; 0: done; negative: failed. */
static int take_reply(struct ctl_conn *conn, json_t *reply, void (*on_row)(json_t *row, void *arg),
	void *arg, json_t **ret_error)
{
	json_int_t id = json_integer_value(json_object_get(reply, "id"));
	json_t *row = json_object_get(reply, "row");
	json_t *error = json_object_get(reply, "error");
	/* A request that could not be parsed is refused under no id. */
	if (id != conn->last_id && !(id == 0 && json_is_object(error)))
		return -ERR_MALFORMED;
	if (json_is_object(error)) {
		*ret_error = json_incref(error);
		return -ERR_STATE;
	}
	if (json_is_object(row)) {
		if (on_row != NULL)
			on_row(row, arg);
		return 1;
	}
	return json_is_true(json_object_get(reply, "ok")) ? 0 : -ERR_MALFORMED;
}

int ctl_call(struct ctl_conn *conn, const char *cmd, json_t *args,
	void (*on_row)(json_t *row, void *arg), void *arg, json_t **ret_error)
{
	*ret_error = NULL;
	json_t *request = json_pack("{s:s, s:o, s:I, s:i}", "cmd", cmd, "args",
		args != NULL ? args : json_object(), "id", (json_int_t)++conn->last_id, "v",
		CTL_VERSION);
	if (request == NULL)
		return -EINVAL;
	struct buf out;
	buf_init(&out, CTL_LINE_MAX + 1);
	ctl_put_json(&out, request);
	json_decref(request);
	int err = out.failed ? -ERR_LIMIT : ready_for(conn, cmd);
	if (err == 0)
		err = send_all(conn->fd, &out);
	buf_free(&out);
	int more = err == 0;
	while (more > 0) {
		json_t *reply = NULL;
		more = read_reply(conn, &reply);
		if (more == 0)
			more = take_reply(conn, reply, on_row, arg, ret_error);
		json_decref(reply);
		err = more < 0 ? more : 0;
	}
	/* After half an answer the rest would be taken for the next call's. */
	if (err != 0 && err != -ERR_STATE)
		(void)shutdown(conn->fd, SHUT_RDWR); /* the next call sees the end and connects */
	return err;
}
