/* SPDX-License-Identifier: PostgreSQL */
/*
 * What is remembered of each worker's deaths, over restarts of the supervisor too, in
 * state_dir/deaths.json:
 *
 *     {"brokerd": {"deaths": 3, "last_exit": "…", "last_assert": "…", "core": "…",
 *                  "at": 1700000000}, …}
 */
#ifndef SUPERVISOR_DEATHS_H
#define SUPERVISOR_DEATHS_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "common/ipc/worker_proto.h"

struct death {
	uint64_t count;    /* nobody asked for them */
	char *last_exit;   /* owned, may be NULL, as the next two */
	char *last_assert; /* line of the last failed ASSERT */
	char *core;        /* path of the last core, or where to look for it */
	int64_t at;        /* seconds since 1970, of the last one; 0: never */
};

struct deaths {
	struct death of[ROLE_COUNT];
};

/* Reads the file; one that is missing or damaged gives an empty record (0 or -ERR_*). */
int deaths_load(struct deaths *d, const char *state_dir);
/* Replaces the file in one step. */
int deaths_save(const struct deaths *d, const char *state_dir) __attribute__((warn_unused_result));
void deaths_free(struct deaths *d);
/* Replaces a text. Takes value over. */
void death_set(char **field, char *value);

/* "exit status 1", "signal 6 (Aborted), core dumped". Caller frees. */
char *death_describe(int wait_status);
/* Where the core of this process is, by the kernel's core_pattern: a path, or a hint when a program
 * collects cores; NULL if it cannot be found. Caller frees. */
char *death_find_core(const char *cwd, pid_t pid);
/* The same with the pattern given: for tests. uses_pid: kernel.core_uses_pid. */
char *death_find_core_by(const char *pattern, bool uses_pid, const char *cwd, pid_t pid);

#endif
