/* SPDX-License-Identifier: PostgreSQL */
/*
 * What a process does to itself: identity, limits, descriptors. All functions return 0 or -errno.
 * Context: between fork and exec, or at the start of main.
 */
#ifndef COMMON_BASE_PROC_H
#define COMMON_BASE_PROC_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

/* Supplementary groups, gid, uid, empty capability sets, no_new_privs: in that order. When we
 * already are that user only the last two (a root that stays root keeps its capabilities). user may
 * be NULL: no supplementary groups. */
int proc_drop_privileges(const char *user, uid_t uid, gid_t gid)
	__attribute__((warn_unused_result));
/* PR_SET_PDEATHSIG and the re-check of getppid. -ESRCH: the parent is already gone. */
int proc_die_with_parent(int signo, pid_t parent) __attribute__((warn_unused_result));
/* Closes everything from first on; 0, 1, 2 that are closed become /dev/null. */
void proc_close_from(int first);
void proc_fill_std_fds(void);
/* Soft RLIMIT_NOFILE up to the hard limit; ret: what it is now. */
size_t proc_raise_nofile(void);
/* Core dumps on, up to the hard limit, also after a change of uid. */
void proc_allow_core(void);
/* Anonymous shared memory, len_bytes allocated now (-ENOMEM/-ENOSPC then, not SIGBUS later),
 * mode 0600, close-on-exec, sealable. */
int proc_memfd(const char *name, size_t len_bytes, int *ret_fd) __attribute__((warn_unused_result));
/* memfd holding a copy of data, sealed against every change: for handing text to a worker. */
int proc_memfd_sealed(const char *name, const void *data, size_t len_bytes, int *ret_fd)
	__attribute__((warn_unused_result));
/* Nonblocking, close-on-exec. */
int proc_set_nonblock(int fd) __attribute__((warn_unused_result));

#endif
