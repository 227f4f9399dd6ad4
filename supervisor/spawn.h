/* SPDX-License-Identifier: PostgreSQL */
/*
 * The birth of a worker: fork, become its user, exec. What the program finds:
 *
 *     0, 1    /dev/null          2  the supervisor's stderr (journald)
 *     3       its end of the channel, SOCK_SEQPACKET       4  its page, STATS_PAGE_BYTES
 *     nothing else open; working directory state_dir, so that cores land there; a process group of
 *     its own, so that Ctrl-C at a terminal reaches the supervisor alone
 *
 * Its environment is made anew: PATH, LANG and LC_ALL (C.UTF-8), HOWDAH_GENERATION, and from
 * ours only TZ, the options of sanitizers, CREDENTIALS_DIRECTORY, what begins with HOWDAH_, and
 * PGPASSFILE and PGSERVICEFILE. Other PG* variables are dropped: which database the suite uses must
 * be read from its configuration, not from the shell that started it.
 */
#ifndef SUPERVISOR_SPAWN_H
#define SUPERVISOR_SPAWN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

struct spawn_request {
	const char *program; /* path */
	const char *datadir; /* its -D */
	const char *cwd;
	uint32_t generation;
	uint32_t nofile; /* RLIMIT_NOFILE; 0: as high as allowed */
	int imsg_fd;     /* borrowed, like page_fd */
	int page_fd;
	const char *user;
	uid_t uid;
	gid_t gid;
};

/* 0 and the pid once the program runs. Negative: there is no process; *ret_why (to be freed, never
 * NULL then) says which step failed. Blocks for as long as fork and exec take. */
int spawn_worker(const struct spawn_request *req, pid_t *ret_pid, char **ret_why)
	__attribute__((warn_unused_result));

/* The environment described above as a NULL-terminated array of owned strings, to be freed with it.
 */
char **spawn_environment(uint32_t generation);
void spawn_environment_free(char **env);

#endif
