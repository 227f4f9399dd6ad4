/* SPDX-License-Identifier: PostgreSQL */
/*
 * What a process does to itself: identity, limits, descriptors.
 *
 * Context: between fork and exec of a single-threaded parent, or at the start of main.
 * On crash between two steps of proc_drop_privileges: the process is gone, it never ran anything.
 */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "common/base/proc.h"

static bool is_user(uid_t uid, gid_t gid)
{
	uid_t r, e, s;
	gid_t gr, ge, gs;
	return getresuid(&r, &e, &s) == 0 && r == uid && e == uid && s == uid &&
	       getresgid(&gr, &ge, &gs) == 0 && gr == gid && ge == gid && gs == gid;
}

static int become_user(const char *user, uid_t uid, gid_t gid)
{
	if ((user != NULL ? initgroups(user, gid) : setgroups(0, NULL)) != 0)
		return -errno;
	if (setresgid(gid, gid, gid) != 0 || setresuid(uid, uid, uid) != 0)
		return -errno;
	/* There must be no way back. */
	if (!is_user(uid, gid) || (uid != 0 && setuid(0) == 0))
		return -EPERM;
	return 0;
}

/* Empties all sets of this thread; the ambient set follows the inheritable one. */
static int drop_capabilities(void)
{
	struct __user_cap_header_struct head = {.version = _LINUX_CAPABILITY_VERSION_3, .pid = 0};
	struct __user_cap_data_struct none[_LINUX_CAPABILITY_U32S_3];
	memset(none, 0, sizeof(none));
	return syscall(SYS_capset, &head, none) == 0 ? 0 : -errno;
}

int proc_drop_privileges(const char *user, uid_t uid, gid_t gid)
{
	int rc = is_user(uid, gid) ? 0 : become_user(user, uid, gid);
	if (rc == 0 && uid != 0)
		rc = drop_capabilities();
	if (rc == 0 && prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0)
		rc = -errno;
	return rc;
}

int proc_die_with_parent(int signo, pid_t parent)
{
	if (prctl(PR_SET_PDEATHSIG, signo) != 0)
		return -errno;
	/* It may have died before the line above. */
	return getppid() == parent ? 0 : -ESRCH;
}

void proc_close_from(int first)
{
	if (syscall(SYS_close_range, (unsigned)first, ~0U, 0U) != 0) {
		/* A kernel before 5.9, or a seccomp filter that does not know the call. */
		long end = sysconf(_SC_OPEN_MAX);
		for (int fd = first; fd < (end > 0 ? end : 1024); fd++)
			close(fd);
	}
	proc_fill_std_fds();
}

void proc_fill_std_fds(void)
{
	for (int fd = 0; fd <= 2; fd++) {
		/* open takes the lowest free number, which is fd, since those below are filled. */
		if (fcntl(fd, F_GETFD) < 0 && errno == EBADF)
			(void)open("/dev/null", O_RDWR); /* no /dev/null: nothing better to do */
	}
}

size_t proc_raise_nofile(void)
{
	struct rlimit limit;
	if (getrlimit(RLIMIT_NOFILE, &limit) != 0)
		return 0;
	struct rlimit higher = {.rlim_cur = limit.rlim_max, .rlim_max = limit.rlim_max};
	if (limit.rlim_cur < limit.rlim_max && setrlimit(RLIMIT_NOFILE, &higher) == 0)
		limit = higher;
	return limit.rlim_cur > SIZE_MAX ? SIZE_MAX : (size_t)limit.rlim_cur;
}

void proc_allow_core(void)
{
	struct rlimit limit;
	/* Without a core the panic slot still tells; no reason to stop. */
	if (getrlimit(RLIMIT_CORE, &limit) == 0) {
		limit.rlim_cur = limit.rlim_max;
		(void)setrlimit(RLIMIT_CORE, &limit);
	}
	(void)prctl(PR_SET_DUMPABLE, 1, 0, 0, 0);
}

int proc_memfd(const char *name, size_t len_bytes, int *ret_fd)
{
	int fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (fd < 0)
		return -errno;
	int rc = fchmod(fd, 0600) == 0 ? 0 : -errno;
	if (rc == 0 && len_bytes > 0) {
		do {
			rc = -posix_fallocate(fd, 0, (off_t)len_bytes);
		} while (rc == -EINTR);
	}
	if (rc != 0) {
		close(fd);
		return rc;
	}
	*ret_fd = fd;
	return 0;
}

int proc_memfd_sealed(const char *name, const void *data, size_t len_bytes, int *ret_fd)
{
	int fd = -1;
	int rc = proc_memfd(name, len_bytes, &fd);
	if (rc != 0)
		return rc;
	size_t done = 0;
	while (rc == 0 && done < len_bytes) {
		ssize_t n = pwrite(fd, (const char *)data + done, len_bytes - done, (off_t)done);
		if (n > 0)
			done += (size_t)n;
		else if (n == 0)
			rc = -EIO;
		else if (errno != EINTR)
			rc = -errno;
	}
	const int seals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_SEAL;
	if (rc == 0 && fcntl(fd, F_ADD_SEALS, seals) != 0)
		rc = -errno;
	if (rc != 0) {
		close(fd);
		return rc;
	}
	*ret_fd = fd;
	return 0;
}

int proc_set_nonblock(int fd)
{
	int flags = fcntl(fd, F_GETFL);
	if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) != 0)
		return -errno;
	flags = fcntl(fd, F_GETFD);
	if (flags < 0 || fcntl(fd, F_SETFD, flags | FD_CLOEXEC) != 0)
		return -errno;
	return 0;
}
