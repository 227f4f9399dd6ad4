/* SPDX-License-Identifier: PostgreSQL */
/*
 * The peer: a single etcd with its defaults, its data on the disk that the throw-away PostgreSQL
 * uses.
 *
 * Context: the bench process.
 */
#include "config.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/base/mem.h"
#include "pgctl/bench_kv.h"

#define START_US 20000000
#define POLL_US 50000
#define QUOTA_BYTES "8589934592" /* the most that etcd advises */

/* The first `etcd` of the PATH. NULL: none. */
static char *find_etcd(void)
{
	char *copy = xstrdup(getenv("PATH") != NULL ? getenv("PATH") : "/usr/bin"), *save = NULL;
	char *found = NULL;
	for (char *dir = strtok_r(copy, ":", &save); dir != NULL && found == NULL;
		dir = strtok_r(NULL, ":", &save)) {
		found = xasprintf("%s/etcd", dir);
		if (access(found, X_OK) != 0) {
			free(found);
			found = NULL;
		}
	}
	free(copy);
	return found;
}

static bool listens(int port)
{
	const struct sockaddr_in a = {.sin_family = AF_INET,
		.sin_addr.s_addr = htonl(INADDR_LOOPBACK),
		.sin_port = htons((uint16_t)port)};
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	bool yes = fd >= 0 && connect(fd, (const struct sockaddr *)&a, sizeof(a)) == 0;
	if (fd >= 0)
		close(fd);
	return yes;
}

static pid_t spawn(const char *program, const char *dir, int port, const char *log)
{
	char client[40], peer[40];
	snprintf(client, sizeof(client), "http://127.0.0.1:%d", port);
	snprintf(peer, sizeof(peer), "http://127.0.0.1:%d", bench_free_port());
	char *cluster = xasprintf("default=%s", peer);
	const char *const argv[] = {program, "--data-dir", dir, "--listen-client-urls", client,
		"--advertise-client-urls", client, "--listen-peer-urls", peer,
		"--initial-advertise-peer-urls", peer, "--initial-cluster", cluster,
		"--quota-backend-bytes", QUOTA_BYTES, "--log-level", "error", NULL};
	pid_t pid = bench_spawn(argv, log, SIGTERM, NULL);
	free(cluster);
	return pid;
}

int bench_etcd_start(struct bench *b, struct bench_kv_server *ret)
{
	char *program = find_etcd(), *dir = xasprintf("%s/etcd", b->dir);
	char *log = xasprintf("%s/etcd.log", b->dir);
	uint64_t deadline = bench_now_us() + START_US;
	int status = PGCTL_OK;
	*ret = (struct bench_kv_server){.name = "etcd", .port = bench_free_port()};
	if (program == NULL)
		status = pgctl_fail(b->p, PGCTL_FAILED, "install it: apt-get install etcd-server",
			"there is no etcd in the PATH to measure beside");
	else
		ret->pid = spawn(program, dir, ret->port, log);
	while (status == PGCTL_OK && !listens(ret->port)) {
		char why[400];
		if (ret->pid <= 0 || bench_has_ended(ret->pid) || bench_now_us() > deadline)
			status = pgctl_fail(b->p, PGCTL_FAILED, "mend what it says",
				"%s did not start: %s", program, bench_tail(log, why, sizeof(why)));
		bench_pause_us(POLL_US);
	}
	free(program);
	free(dir);
	free(log);
	return status;
}
