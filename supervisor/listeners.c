/* SPDX-License-Identifier: PostgreSQL */
/*
 * Binding the workers' sockets; listeners.h has the contract.
 *
 * Invariants:
 *   1. Every fd in a set is open, listening, nonblocking and close-on-exec.
 *   2. A set that could not be opened whole is not given out.
 * On crash: the kernel closes the sockets; under socket activation systemd keeps its own.
 */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

#include "common/base/err.h"
#include "common/base/listen_url.h"
#include "common/base/log.h"
#include "common/base/mem.h"
#include "common/base/proc.h"
#include "common/ipc/daemon.h"
#include "supervisor/listeners.h"
#include "supervisor/roles.h"

MEM_TYPE(mem_listener_set, "listener_set");

static size_t count_of(const struct listener_set *set, uint32_t role)
{
	size_t n = 0;

	for (size_t i = 0; i < set->n; i++)
		n += set->items[i].role == role;
	return n;
}

/* Room for another socket of this role? A worker takes so many and no more. */
static bool has_room(const struct listener_set *set, uint32_t role)
{
	return set->n < LISTENERS_MAX && count_of(set, role) < DAEMON_LISTENERS_MAX;
}

static void set_add(struct listener_set *set, uint32_t role, const char *url, int fd)
{
	ASSERT(set->n < LISTENERS_MAX);
	set->items[set->n++] = (struct listener){.role = role, .url = xstrdup(url), .fd = fd};
}

/* A socket that systemd holds for us with this very address, as a descriptor of our own; or -1. */
static int from_systemd(const struct addrinfo *ai)
{
	int n = sd_listen_fds(0);

	for (int i = 0; i < n; i++) {
		struct sockaddr_storage ss;
		socklen_t len = sizeof(ss);
		int fd = SD_LISTEN_FDS_START + i;

		if (sd_is_socket(fd, ai->ai_family, SOCK_STREAM, 1) <= 0 ||
			getsockname(fd, (struct sockaddr *)&ss, &len) != 0)
			continue;
		if (len == ai->ai_addrlen && memcmp(&ss, ai->ai_addr, len) == 0) {
			int own = fcntl(fd, F_DUPFD_CLOEXEC, 3);

			if (own >= 0 && proc_set_nonblock(own) == 0)
				return own;
			if (own >= 0)
				close(own);
		}
	}
	return -1;
}

static int bind_one(const struct addrinfo *ai)
{
	int one = 1, err;
	int fd = from_systemd(ai);

	if (fd >= 0)
		return fd;
	fd = socket(ai->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return -errno;
	if (setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one)) != 0 ||
		(ai->ai_family == AF_INET6 &&
			setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &one, sizeof(one)) != 0) ||
		bind(fd, ai->ai_addr, ai->ai_addrlen) != 0 || listen(fd, SOMAXCONN) != 0) {
		err = -errno;
		close(fd);
		return err;
	}
	return fd;
}

static const char *bind_remedy(int err)
{
	switch (-err) {
	case EADDRINUSE:
		return "another program listens there: stop it (ss -ltnp shows which) or choose "
		       "another port";
	case EACCES:
		return "ports below 1024 are for root: choose a higher one";
	case EADDRNOTAVAIL:
		return "this machine does not have that address";
	default:
		return "choose another address";
	}
}

/* All addresses that the host stands for. One that a name has but this machine has not (::1 of
 * localhost without IPv6) is passed over as long as another works. */
static int bind_url(struct listener_set *set, uint32_t role, const char *url, struct buf *why)
{
	struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE}, *list, *ai;
	char host[LISTEN_URL_HOST_MAX], port[LISTEN_URL_PORT_MAX];
	const char *bad = listen_url_parse(url, host, port);
	int err, bound = 0;

	if (bad != NULL) {
		buf_printf(why, "%s", bad);
		return -ERR_CONFIG;
	}
	err = getaddrinfo(host, port, &hints, &list);
	if (err != 0) {
		buf_printf(why, "cannot resolve %s: %s; use an address of this machine", host,
			gai_strerror(err));
		return -ERR_CONFIG;
	}
	err = -EADDRNOTAVAIL;
	for (ai = list; ai != NULL && has_room(set, role); ai = ai->ai_next) {
		int fd = bind_one(ai);

		if (fd >= 0) {
			set_add(set, role, url, fd);
			bound++;
		} else if (bound == 0 || (fd != -EADDRNOTAVAIL && fd != -EAFNOSUPPORT)) {
			err = fd;
			if (fd == -EADDRINUSE)
				break;
		}
	}
	freeaddrinfo(list);
	if (ai == NULL && bound > 0)
		return 0;
	if (!has_room(set, role))
		buf_printf(why,
			"more than %d sockets for one worker, or %d for all; use fewer "
			"listeners",
			DAEMON_LISTENERS_MAX, LISTENERS_MAX);
	else
		buf_printf(why, "cannot bind %s port %s: %s; %s", host, port, err_str(err),
			bind_remedy(err));
	return -ERR_CONFIG;
}

/* Shares what the old set has for this url: 1, 0 if it has nothing, or -errno. */
static int share_old(
	struct listener_set *set, const struct listener_set *old, uint32_t role, const char *url)
{
	int found = 0;

	for (size_t i = 0; old != NULL && i < old->n && has_room(set, role); i++) {
		if (strcmp(old->items[i].url, url) != 0)
			continue;
		int fd = fcntl(old->items[i].fd, F_DUPFD_CLOEXEC, 3);

		if (fd < 0)
			return -errno;
		set_add(set, role, url, fd);
		found = 1;
	}
	return found;
}

static bool has_url(const struct listener_set *set, const char *url)
{
	for (size_t i = 0; i < set->n; i++)
		if (strcmp(set->items[i].url, url) == 0)
			return true;
	return false;
}

static int open_one(struct listener_set *set, const struct listener_set *old, uint32_t role,
	const char *url, struct buf *why)
{
	int err;

	if (has_url(set, url)) {
		buf_printf(why, "appears twice; remove one");
		return -ERR_CONFIG;
	}
	err = share_old(set, old, role, url);
	if (err == 0)
		return bind_url(set, role, url, why);
	if (err < 0)
		buf_printf(why, "cannot be kept: %s", err_str(err));
	return err < 0 ? err : 0;
}

static int open_role(struct listener_set *set, const struct listener_set *old, uint32_t role,
	const struct conf *conf, struct buf *errors)
{
	char path[80];
	int result = 0;
	size_t n;

	snprintf(path, sizeof(path), "%s.listeners", role_info(role)->name);
	n = conf_count(conf, path);
	for (size_t i = 0; i < n; i++) {
		struct buf why;
		const char *url;

		snprintf(path, sizeof(path), "%s.listeners.[%zu].url", role_info(role)->name, i);
		url = conf_str(conf, path);
		buf_init(&why, 0);
		if (open_one(set, old, role, url, &why) != 0) {
			buf_printf(errors, "%s: \"%s\": %s\n", path, url, buf_cstr(&why));
			result = -ERR_CONFIG;
		}
		buf_free(&why);
	}
	return result;
}

int listeners_open(const struct conf *conf, uint32_t roles, const struct listener_set *old,
	struct listener_set **ret_set, struct buf *errors)
{
	struct listener_set *set = mem_new(&mem_listener_set, sizeof(*set));
	int result = 0;

	for (uint32_t role = 0; role < ROLE_COUNT; role++)
		if ((roles & 1U << role) != 0 && role_info(role)->takes_listeners &&
			open_role(set, old, role, conf, errors) != 0)
			result = -ERR_CONFIG;
	if (result != 0)
		listeners_free(&set);
	else
		*ret_set = set;
	return result;
}

void listeners_free(struct listener_set **set)
{
	if (*set == NULL)
		return;
	for (size_t i = 0; i < (*set)->n; i++) {
		free((*set)->items[i].url);
		close((*set)->items[i].fd);
	}
	mem_free(&mem_listener_set, *set);
	*set = NULL;
}

bool listeners_same(const struct listener_set *a, const struct listener_set *b, uint32_t role)
{
	if (count_of(a, role) != count_of(b, role))
		return false;
	for (size_t i = 0; i < a->n; i++)
		if (a->items[i].role == role && !has_url(b, a->items[i].url))
			return false;
	return true;
}
