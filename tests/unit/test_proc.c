/* SPDX-License-Identifier: PostgreSQL */
/* Identity, limits, descriptors. What needs root is tried in a child when we are root. */
#include "config.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>

#include <cmocka.h>

#include "common/base/mem.h"
#include "common/base/proc.h"
#include "tests/unit/helper_assert.h"

static bool no_capabilities(void)
{
	char line[256];
	int n_empty = 0;
	FILE *f = fopen("/proc/self/status", "r");
	while (f != NULL && fgets(line, sizeof(line), f) != NULL) {
		if (strncmp(line, "CapInh:", 7) == 0 || strncmp(line, "CapPrm:", 7) == 0 ||
			strncmp(line, "CapEff:", 7) == 0 || strncmp(line, "CapAmb:", 7) == 0)
			n_empty += strtoull(line + 7, NULL, 16) == 0;
	}
	if (f != NULL)
		fclose(f);
	return n_empty == 4;
}

static void drop_to_nobody(void *arg)
{
	(void)arg;
	ASSERT(proc_drop_privileges(NULL, 65534, 65534) == 0);
	uid_t r, e, s;
	gid_t groups[4];
	ASSERT(getresuid(&r, &e, &s) == 0 && r == 65534 && e == 65534 && s == 65534);
	ASSERT(getegid() == 65534 && getgroups(4, groups) == 0);
	ASSERT(setuid(0) != 0 && setgid(0) != 0);
	ASSERT(no_capabilities());
	ASSERT(prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 1);
	/* The second time, as that user: nothing left to do, and another user is out of reach. */
	ASSERT(proc_drop_privileges("nobody", 65534, 65534) == 0);
	ASSERT(proc_drop_privileges(NULL, 1, 1) == -EPERM);
}

static void stay_same(void *arg)
{
	(void)arg;
	ASSERT(proc_drop_privileges(NULL, getuid(), getgid()) == 0);
	ASSERT(prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 1);
}

static void test_privileges(void **state)
{
	(void)state;
	char out[1024];
	run_in_child(stay_same, NULL, out, sizeof(out));
	assert_string_equal(out, "");
	if (geteuid() == 0) {
		assert_int_equal(run_in_child(drop_to_nobody, NULL, out, sizeof(out)), 0);
		assert_string_equal(out, "");
	}
}

static void check_parent(void *arg)
{
	ASSERT(proc_die_with_parent(SIGKILL, *(pid_t *)arg) == 0);
	int signo = 0;
	ASSERT(prctl(PR_GET_PDEATHSIG, &signo) == 0 && signo == SIGKILL);
	ASSERT(proc_die_with_parent(SIGKILL, 999999) == -ESRCH);
}

static void test_parent(void **state)
{
	(void)state;
	char out[1024];
	pid_t self = getpid();
	assert_int_equal(run_in_child(check_parent, &self, out, sizeof(out)), 0);
	assert_string_equal(out, "");
}

static void close_all(void *arg)
{
	(void)arg;
	int high = fcntl(1, F_DUPFD, 200);
	ASSERT(high >= 200);
	close(0);
	proc_close_from(3);
	ASSERT(fcntl(high, F_GETFD) < 0 && errno == EBADF);
	char c;
	ASSERT(read(0, &c, 1) == 0); /* /dev/null */
	ASSERT(fcntl(2, F_GETFD) == 0);
}

static void test_close_from(void **state)
{
	(void)state;
	char out[1024];
	assert_int_equal(run_in_child(close_all, NULL, out, sizeof(out)), 0);
	assert_string_equal(out, "");
}

/* The limit makes it fail: without one the kernel would really look for that much memory. */
static void memfd_too_large(void *arg)
{
	(void)arg;
	struct rlimit limit = {4096, 4096};
	int fd = -1;
	signal(SIGXFSZ, SIG_IGN);
	ASSERT(setrlimit(RLIMIT_FSIZE, &limit) == 0);
	ASSERT(proc_memfd("much", 8192, &fd) == -EFBIG && fd == -1);
}

static void test_memfd(void **state)
{
	(void)state;
	int fd = -1;
	struct stat st;
	assert_int_equal(proc_memfd("page", 8192, &fd), 0);
	assert_int_equal(fstat(fd, &st), 0);
	assert_int_equal(st.st_size, 8192);
	assert_int_equal(st.st_mode & 0777, 0600);
	assert_true(st.st_blocks * 512 >= 8192); /* allocated, not only sized */
	assert_int_equal(fcntl(fd, F_GETFD), FD_CLOEXEC);
	assert_int_equal(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK), 0);
	close(fd);
	char out[1024];
	assert_int_equal(run_in_child(memfd_too_large, NULL, out, sizeof(out)), 0);
	assert_string_equal(out, "");

	assert_int_equal(proc_memfd_sealed("text", "hello", 5, &fd), 0);
	char text[16] = "";
	assert_int_equal(read(fd, text, sizeof(text)), 5); /* from its start */
	assert_string_equal(text, "hello");
	assert_int_equal(pwrite(fd, "x", 1, 0), -1);
	assert_int_equal(ftruncate(fd, 1), -1);
	assert_int_equal(ftruncate(fd, 100), -1);
	assert_ptr_equal(mmap(NULL, 5, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0), MAP_FAILED);
	close(fd);
	assert_int_equal(proc_memfd_sealed("none", NULL, 0, &fd), 0);
	close(fd);
}

static void test_small(void **state)
{
	(void)state;
	int fds[2];
	assert_int_equal(pipe(fds), 0);
	assert_int_equal(proc_set_nonblock(fds[0]), 0);
	char c;
	assert_int_equal(read(fds[0], &c, 1), -1);
	assert_int_equal(errno, EAGAIN);
	assert_int_equal(fcntl(fds[0], F_GETFD), FD_CLOEXEC);
	close(fds[0]);
	close(fds[1]);
	assert_int_equal(proc_set_nonblock(fds[0]), -EBADF);
	struct rlimit limit;
	size_t n = proc_raise_nofile();
	assert_int_equal(getrlimit(RLIMIT_NOFILE, &limit), 0);
	assert_int_equal(limit.rlim_cur, n);
	assert_int_equal(limit.rlim_cur, limit.rlim_max);
	proc_allow_core();
	assert_int_equal(getrlimit(RLIMIT_CORE, &limit), 0);
	assert_int_equal(limit.rlim_cur, limit.rlim_max);
	assert_int_equal(prctl(PR_GET_DUMPABLE, 0, 0, 0, 0), 1);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_privileges),
		cmocka_unit_test(test_parent),
		cmocka_unit_test(test_close_from),
		cmocka_unit_test(test_memfd),
		cmocka_unit_test(test_small),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
