/* SPDX-License-Identifier: PostgreSQL */
/*
 * For tests of ASSERT and of lines on stderr: runs fn in a child and gives back how it ended and
 * what it wrote. Include after the system headers of cmocka.
 */
#ifndef TESTS_UNIT_HELPER_ASSERT_H
#define TESTS_UNIT_HELPER_ASSERT_H

#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

/* The child's wait status; what it wrote to stderr goes to out, terminated. */
static inline int run_in_child(void (*fn)(void *arg), void *arg, char *out, size_t out_size)
{
	int fds[2];
	if (pipe(fds) != 0)
		return -1;
	pid_t pid = fork();
	if (pid == 0) {
		struct rlimit none = {0, 0};
		setrlimit(RLIMIT_CORE, &none);
		/* Not cmocka's or the sanitizer's handler: the signal itself is the result. */
		signal(SIGABRT, SIG_DFL);
		dup2(fds[1], STDERR_FILENO);
		close(fds[0]);
		close(fds[1]);
		fn(arg);
		_exit(0);
	}
	close(fds[1]);
	size_t len = 0;
	ssize_t n;
	char rest[4096];
	while ((n = len + 1 < out_size ? read(fds[0], out + len, out_size - 1 - len)
				       : read(fds[0], rest, sizeof(rest))) > 0) {
		if (len + 1 < out_size)
			len += (size_t)n;
	}
	out[len] = '\0';
	close(fds[0]);
	int status = -1;
	waitpid(pid, &status, 0);
	return status;
}

/* fn must end in an ASSERT whose text holds expr. */
#define assert_aborts(fn, arg, expr)                                                               \
	do {                                                                                       \
		char text_[8192];                                                                  \
		int status_ = run_in_child(fn, arg, text_, sizeof(text_));                         \
		assert_true(WIFSIGNALED(status_));                                                 \
		assert_int_equal(WTERMSIG(status_), SIGABRT);                                      \
		assert_non_null(strstr(text_, expr));                                              \
	} while (0)

#endif
