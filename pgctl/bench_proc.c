/* SPDX-License-Identifier: PostgreSQL */
/*
 * Programs that the benchmarks start, and what /proc says about a process. CPU time is that of
 * schedstat: nanoseconds, exact while the process sleeps, behind by up to a tick while it runs.
 *
 * Context: the bench process, and the keeper.
 */
#include "config.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "common/base/io.h"
#include "pgctl/bench.h"

#define PROC_PATH_MAX 64
#define PROC_TEXT_MAX 4096
#define POLL_US 5000

static uint64_t clock_us(clockid_t id)
{
	struct timespec t;
	clock_gettime(id, &t);
	return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

uint64_t bench_now_us(void)
{
	return clock_us(CLOCK_MONOTONIC);
}

uint64_t bench_realtime_us(void)
{
	return clock_us(CLOCK_REALTIME);
}

void bench_pause_us(uint64_t us)
{
	struct timespec t = {
		.tv_sec = (time_t)(us / 1000000), .tv_nsec = (long)(us % 1000000) * 1000};
	while (nanosleep(&t, &t) != 0 && errno == EINTR)
		;
}

/* ---- Starting and ending --------------------------------------------------------------------- */

static void become_program(const char *const *argv, const char *log, int death_signo)
{
	prctl(PR_SET_PDEATHSIG, death_signo);
	int in = open("/dev/null", O_RDONLY);
	int out = open(log != NULL ? log : "/dev/null", O_WRONLY | O_CREAT | O_APPEND, 0600);
	if (in < 0 || out < 0 || dup2(in, 0) < 0 || dup2(out, 1) < 0 || dup2(out, 2) < 0)
		_exit(127);
	execv(argv[0], (char *const *)(uintptr_t)argv);
	_exit(127);
}

pid_t bench_spawn(
	const char *const *argv, const char *log, int death_signo, _Atomic int32_t *pid_at)
{
	pid_t pid = fork();
	if (pid == 0) {
		if (pid_at != NULL)
			atomic_store(pid_at, getpid());
		become_program(argv, log, death_signo);
	}
	return pid;
}

int bench_exec(const char *const *argv, const char *log)
{
	int status;
	pid_t pid = bench_spawn(argv, log, SIGKILL, NULL);
	if (pid < 0)
		return -1;
	while (waitpid(pid, &status, 0) < 0) {
		if (errno != EINTR)
			return -1;
	}
	return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

void bench_end(pid_t pid, int signo, int timeout_ms, struct rusage *ret_used)
{
	struct rusage used = {0};
	int status;
	if (pid <= 0)
		return;
	uint64_t deadline = bench_now_us() + (uint64_t)timeout_ms * 1000;
	pid_t gone = wait4(pid, &status, WNOHANG, &used);
	if (gone == 0) /* ours, and alive: the number cannot be somebody else's */
		kill(pid, signo);
	while (gone == 0 && (gone = wait4(pid, &status, WNOHANG, &used)) == 0 &&
		bench_now_us() < deadline)
		bench_pause_us(POLL_US);
	if (gone == 0) {
		kill(pid, SIGKILL);
		while (wait4(pid, &status, 0, &used) < 0 && errno == EINTR)
			;
	}
	if (ret_used != NULL)
		*ret_used = used;
}

bool bench_has_ended(pid_t pid)
{
	int status;
	return waitpid(pid, &status, WNOHANG) == pid;
}

/* ---- What /proc says ------------------------------------------------------------------------- */

/* The file's text; false: there is none. */
static bool read_text(const char *path, char *out, size_t size)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return false;
	ssize_t n = read(fd, out, size - 1);
	close(fd);
	out[n > 0 ? n : 0] = '\0';
	return n > 0;
}

uint64_t bench_cpu_ns(pid_t pid)
{
	char path[PROC_PATH_MAX + NAME_MAX], text[128];
	uint64_t sum = 0;
	snprintf(path, sizeof(path), "/proc/%d/task", (int)pid);
	DIR *dir = opendir(path);
	if (dir == NULL)
		return 0;
	for (struct dirent *e; (e = readdir(dir)) != NULL;) {
		if (e->d_name[0] == '.')
			continue;
		snprintf(path, sizeof(path), "/proc/%d/task/%s/schedstat", (int)pid, e->d_name);
		if (read_text(path, text, sizeof(text)))
			sum += strtoull(text, NULL, 10);
	}
	closedir(dir);
	return sum;
}

bool bench_is_asleep(pid_t pid)
{
	char path[PROC_PATH_MAX], text[PROC_TEXT_MAX];
	snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
	if (!read_text(path, text, sizeof(text)))
		return true;
	const char *end = strrchr(text, ')'); /* of the name, which may hold anything */
	return end == NULL || end[1] == '\0' || end[2] != 'R';
}

void bench_reset_peak(pid_t pid)
{
	char path[PROC_PATH_MAX];
	snprintf(path, sizeof(path), "/proc/%d/clear_refs", (int)pid);
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd < 0)
		return;
	if (write(fd, "5", 1) != 1)
		errno = 0; /* not to be had: the peak is since its start */
	close(fd);
}

/* The number behind this name in its status. */
static uint64_t status_number(pid_t pid, const char *name)
{
	char path[PROC_PATH_MAX], text[PROC_TEXT_MAX];
	snprintf(path, sizeof(path), "/proc/%d/status", (int)pid);
	const char *line = read_text(path, text, sizeof(text)) ? strstr(text, name) : NULL;
	return line != NULL ? strtoull(line + strlen(name), NULL, 10) : 0;
}

uint64_t bench_peak_bytes(pid_t pid)
{
	return status_number(pid, "VmHWM:") * 1024;
}

uint64_t bench_sleeps(pid_t pid)
{
	return status_number(pid, "\nvoluntary_ctxt_switches:");
}

/* ---- Small things ---------------------------------------------------------------------------- */

int bench_free_port(void)
{
	struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t len = sizeof(a);
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	int port = 0;
	if (fd < 0)
		return 0;
	if (bind(fd, (struct sockaddr *)&a, sizeof(a)) == 0 &&
		getsockname(fd, (struct sockaddr *)&a, &len) == 0)
		port = ntohs(a.sin_port);
	close(fd);
	return port;
}

const char *bench_tail(const char *file, char *out, size_t size)
{
	out[0] = '\0';
	int fd = open(file, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return out;
	off_t end = lseek(fd, 0, SEEK_END);
	ssize_t n = pread(fd, out, size - 1, end > (off_t)size ? end - (off_t)(size - 1) : 0);
	close(fd);
	if (n < 0)
		n = 0;
	out[n] = '\0';
	for (char *c = out; *c != '\0'; c++) {
		if (*c == '\n')
			*c = ' ';
	}
	while (n > 0 && out[n - 1] == ' ')
		out[--n] = '\0';
	return out;
}

static int compare_doubles(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;
	return (x > y) - (x < y);
}

double bench_median(double *values, size_t n)
{
	if (n == 0)
		return -1;
	qsort(values, n, sizeof(*values), compare_doubles);
	return n % 2 == 1 ? values[n / 2] : (values[n / 2 - 1] + values[n / 2]) / 2;
}

json_t *bench_number(double value, int digits)
{
	char text[64];
	if (value < 0)
		return json_null();
	snprintf(text, sizeof(text), "%.*f", digits, value);
	return digits == 0 ? json_integer(strtoll(text, NULL, 10)) : json_real(strtod(text, NULL));
}
