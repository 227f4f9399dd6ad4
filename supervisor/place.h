/* SPDX-License-Identifier: PostgreSQL */
/*
 * Where the suite lives and as whom: the user, state_dir and run_dir, the lock, the instance id,
 * and small files written whole.
 *
 * As root the folders and what the workers own in them belong to `user`, whom nobody trusts here:
 * files that root writes there are made with O_EXCL and O_NOFOLLOW (the lock: opened with
 * O_NOFOLLOW and no link to another file), and read only if they are plain files.
 */
#ifndef SUPERVISOR_PLACE_H
#define SUPERVISOR_PLACE_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

struct place {
	char *state_dir; /* owned, as the next three */
	char *run_dir;
	char *user;
	char *instance;
	uid_t uid; /* whom the workers run as */
	gid_t gid;
	int lock_fd;
};

/*
 * Finds the user, makes the folders, takes the lock and the instance id. 0; -ERR_CONFIG with a
 * sentence and its remedy in *ret_why (to be freed): trying again would not help; -ERR_STATE:
 * another supervisor has this state_dir; other codes: the system refused. p is in a state to be
 * closed in every case.
 */
int place_open(struct place *p, const char *state_dir, const char *run_dir, const char *user,
	char **ret_why) __attribute__((warn_unused_result));
void place_close(struct place *p);

/* Whole file as a string; owned by the caller. -EFBIG beyond max_bytes. */
int place_read_file(const char *dir, const char *name, size_t max_bytes, char **ret_text)
	__attribute__((warn_unused_result));
/* New content in one step (temporary file and rename); on_disk: fsync before it. */
int place_write_file(const char *dir, const char *name, const void *data, size_t len_bytes,
	bool on_disk) __attribute__((warn_unused_result));

#endif
