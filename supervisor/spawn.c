/* SPDX-License-Identifier: PostgreSQL */
/*
 * fork and exec of a worker; spawn.h says what it is born with.
 *
 * Context: event thread of the supervisor, which has no other thread, so that the child may do
 * between fork and exec what it likes.
 *
 *     parent: socketpair, fork ──► child: descriptors 3, 4, 5 ─► limits ─► group, gid, uid,
 *       │                                 capabilities, no_new_privs ─► parent-death signal ─► exec
 *       └─ read descriptor 5's other end: EOF = exec worked; a record = the step that failed
 *
 * On crash: a child whose parent dies before exec ends by the parent-death signal or its re-check.
 */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/base/err.h"
#include "common/base/mem.h"
#include "common/base/proc.h"
#include "common/ipc/worker_proto.h"
#include "supervisor/spawn.h"

#define SPAWN_REPORT_FD 5
#define SPAWN_ENV_MAX 64

extern char **environ;

/* Passed on from our environment. A trailing '*' takes every name that begins so. */
static const char *const spawn_env_kept[] = {
	"ASAN_OPTIONS",
	"CREDENTIALS_DIRECTORY",
	"HOWDAH_*",
	"LSAN_OPTIONS",
	"MSAN_OPTIONS",
	"PGPASSFILE",
	"PGSERVICEFILE",
	"TSAN_OPTIONS",
	"TZ",
	"UBSAN_OPTIONS",
};

/* What the child could not do. One write, well below PIPE_BUF. */
struct spawn_report {
	int err;
	char step[48];
};

static bool env_is_kept(const char *entry)
{
	size_t name_len = strcspn(entry, "=");

	if (strncmp(entry, WORKER_ENV_GENERATION "=", name_len + 1) == 0)
		return false; /* ours to set */
	for (size_t i = 0; i < ARRAY_LEN(spawn_env_kept); i++) {
		size_t len = strlen(spawn_env_kept[i]);

		if (spawn_env_kept[i][len - 1] == '*') {
			if (name_len >= len - 1 && strncmp(entry, spawn_env_kept[i], len - 1) == 0)
				return true;
		} else if (name_len == len && strncmp(entry, spawn_env_kept[i], len) == 0) {
			return true;
		}
	}
	return false;
}

char **spawn_environment(uint32_t generation)
{
	char **env = xcalloc(SPAWN_ENV_MAX + 1, sizeof(*env));
	size_t n = 0;

	env[n++] = xstrdup("PATH=/usr/local/bin:/usr/bin:/bin");
	env[n++] = xstrdup("LANG=C.UTF-8");
	env[n++] = xstrdup("LC_ALL=C.UTF-8");
	env[n++] = xasprintf("%s=%u", WORKER_ENV_GENERATION, (unsigned)generation);
	for (char **e = environ; *e != NULL && n < SPAWN_ENV_MAX; e++)
		if (env_is_kept(*e))
			env[n++] = xstrdup(*e);
	return env;
}

void spawn_environment_free(char **env)
{
	for (size_t i = 0; env[i] != NULL; i++)
		free(env[i]);
	free(env);
}

_Noreturn static void child_fail(int report_fd, const char *step, int err)
{
	struct spawn_report report = {.err = err};

	snprintf(report.step, sizeof(report.step), "%s", step);
	/* Nobody else is left to tell if this fails; the status says 127 anyway. */
	if (write(report_fd, &report, sizeof(report)) < 0)
		_exit(126);
	_exit(127);
}

/* The three descriptors go to their places by way of numbers that none of them has. */
static void child_descriptors(const struct spawn_request *req, int *report_fd)
{
	int imsg = fcntl(req->imsg_fd, F_DUPFD, 10);
	int page = fcntl(req->page_fd, F_DUPFD, 10);
	int report = fcntl(*report_fd, F_DUPFD, 10);
	int null;

	if (imsg < 0 || page < 0 || report < 0)
		child_fail(*report_fd, "descriptors", errno);
	if (dup2(imsg, WORKER_FD_IMSG) < 0 || dup2(page, WORKER_FD_PAGE) < 0 ||
		dup2(report, SPAWN_REPORT_FD) < 0)
		child_fail(report, "descriptors", errno);
	*report_fd = SPAWN_REPORT_FD;
	if (fcntl(SPAWN_REPORT_FD, F_SETFD, FD_CLOEXEC) != 0)
		child_fail(SPAWN_REPORT_FD, "descriptors", errno);
	proc_close_from(SPAWN_REPORT_FD + 1);
	null = open("/dev/null", O_RDWR);
	if (null < 0 || dup2(null, 0) < 0 || dup2(null, 1) < 0)
		child_fail(SPAWN_REPORT_FD, "/dev/null", errno);
	if (null > 2)
		close(null);
}

static void child_signals(void)
{
	sigset_t none;

	for (int signo = 1; signo < NSIG; signo++)
		signal(signo, SIG_DFL); /* refused for KILL, STOP and libc's own: as it should be */
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
}

static void child_limits(const struct spawn_request *req)
{
	struct rlimit lim;

	umask(027);
	proc_allow_core();
	if (req->nofile == 0) {
		(void)proc_raise_nofile(); /* what the limit is shows when it is reached */
	} else if (getrlimit(RLIMIT_NOFILE, &lim) == 0) {
		lim.rlim_cur = req->nofile < lim.rlim_max ? req->nofile : lim.rlim_max;
		(void)setrlimit(RLIMIT_NOFILE, &lim); /* lowering the soft limit cannot fail */
	}
}

_Noreturn static void child_main(
	const struct spawn_request *req, char **env, int report_fd, pid_t parent)
{
	char *argv[] = {(char *)(uintptr_t)req->program, (char *)(uintptr_t) "-D",
		(char *)(uintptr_t)req->datadir, NULL};
	int err;

	child_descriptors(req, &report_fd);
	child_signals();
	(void)setpgid(0, 0); /* fails only for a session leader, which we are not */
	child_limits(req);
	err = proc_drop_privileges(req->user, req->uid, req->gid);
	if (err != 0)
		child_fail(report_fd, "becoming its user", -err);
	if (chdir(req->cwd) != 0)
		child_fail(report_fd, "entering state_dir", errno);
	err = proc_die_with_parent(SIGTERM, parent);
	if (err != 0)
		child_fail(report_fd, "parent-death signal", -err);
	execve(req->program, argv, env);
	child_fail(report_fd, "exec", errno);
}

/* Waits for exec or for the child's report of what failed. */
static int read_report(int fd, const struct spawn_request *req, char **ret_why)
{
	struct spawn_report report;
	ssize_t n;

	do
		n = read(fd, &report, sizeof(report));
	while (n < 0 && errno == EINTR);
	if (n == 0)
		return 0;
	if (n != (ssize_t)sizeof(report)) {
		*ret_why = xasprintf("%s: the new process said nothing", req->program);
		return -EIO;
	}
	report.step[sizeof(report.step) - 1] = '\0';
	*ret_why = xasprintf("%s: %s: %s%s", req->program, report.step, err_str(report.err),
		strcmp(report.step, "exec") == 0 ? "; is the suite installed whole?" : "");
	return report.err > 0 ? -report.err : -EIO;
}

int spawn_worker(const struct spawn_request *req, pid_t *ret_pid, char **ret_why)
{
	pid_t parent = getpid(), pid;
	sigset_t all, before;
	char **env;
	int report[2], err;

	if (pipe2(report, O_CLOEXEC) != 0) {
		err = -errno;
		*ret_why = xasprintf("pipe: %s", err_str(err));
		return err;
	}
	env = spawn_environment(req->generation);
	/* Until the child has handlers of its own (child_signals), ours would run in it and write a
	 * Ctrl-C into the event loop a second time, over the descriptors that both have. */
	sigfillset(&all);
	sigprocmask(SIG_SETMASK, &all, &before);
	pid = fork();
	if (pid == 0)
		child_main(req, env, report[1], parent);
	err = pid < 0 ? -errno : 0;
	sigprocmask(SIG_SETMASK, &before, NULL);
	spawn_environment_free(env);
	close(report[1]);
	if (pid < 0)
		*ret_why = xasprintf("fork: %s", err_str(err));
	else
		err = read_report(report[0], req, ret_why);
	close(report[0]);
	if (pid > 0 && err != 0)
		while (waitpid(pid, NULL, 0) < 0 && errno == EINTR)
			;
	if (err == 0)
		*ret_pid = pid;
	return err;
}
