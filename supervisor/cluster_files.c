/* SPDX-License-Identifier: PostgreSQL */
/*
 * What the worker `postgres` reads without asking the server: installed versions, PG_VERSION,
 * postmaster.pid, pg_control, /proc.
 *
 * Context: worker and its helpers; short reads of local files, nothing that waits.
 */
#include "config.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/base/err.h"
#include "common/base/mem.h"
#include "supervisor/cluster.h"

#define PIDFILE_MAX 4096
/* pg_control begins with uint64 system identifier, uint32 version, uint32 catalogue, int state; the
 * same from 9.x to 18. */
#define CONTROL_STATE_OFFSET 16
#define CONTROL_STATE_CRASH_RECOVERY 4

/* At most size - 1 bytes of a small file, zero-terminated; their number or -errno. */
static ssize_t read_small(const char *path, char *out, size_t size)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	ssize_t n = read(fd, out, size - 1);
	int err = errno;
	(void)close(fd); /* was only read */
	if (n < 0)
		return -err;
	out[n] = '\0';
	return n;
}

int cluster_data_version(const char *data, int *ret_major)
{
	char path[PATH_MAX], text[64];
	(void)snprintf(path, sizeof(path), "%s/PG_VERSION", data); /* too long: not found */
	ssize_t n = read_small(path, text, sizeof(text));
	if (n < 0)
		return (int)n;
	long major = strtol(text, NULL, 10);
	if (major <= 0 || major > 999)
		return -ERR_MALFORMED;
	*ret_major = (int)major;
	return 0;
}

static bool has_server(const char *bindir)
{
	char *path = xasprintf("%s/postgres", bindir);
	bool has = access(path, X_OK) == 0;
	free(path);
	return has;
}

/* Highest major version under lib_root with a server in it, 0 if there is none. */
static int newest_major(const char *lib_root)
{
	int newest = 0;
	DIR *dir = opendir(lib_root);
	if (dir == NULL)
		return 0;
	for (struct dirent *e; (e = readdir(dir)) != NULL;) {
		if (!isdigit((unsigned char)e->d_name[0]))
			continue;
		int major = (int)strtol(e->d_name, NULL, 10);
		char *path = xasprintf("%s/%s/bin", lib_root, e->d_name);
		if (major > newest && has_server(path))
			newest = major;
		free(path);
	}
	(void)closedir(dir); /* was only read */
	return newest;
}

int cluster_choose_bindir(
	const struct cluster_paths *p, const char *lib_root, char **ret_bindir, const char **why)
{
	if (p->bindir[0] != '\0') {
		if (!has_server(p->bindir)) {
			*why = "postgres.bindir holds no program \"postgres\"; name the folder "
			       "with "
			       "the server's programs, or leave it empty";
			return -ERR_CONFIG;
		}
		*ret_bindir = xstrdup(p->bindir);
		return 0;
	}
	int major = 0;
	if (cluster_data_version(p->data, &major) == 0) {
		char *own = xasprintf("%s/%d/bin", lib_root, major);
		if (has_server(own)) {
			*ret_bindir = own;
			return 0;
		}
		free(own);
	}
	major = newest_major(lib_root);
	if (major == 0) {
		*why = "no PostgreSQL server is installed under " CLUSTER_LIB_ROOT
		       "; install the package postgresql, set postgres.bindir, or use an external "
		       "server (postgres.mode = \"external\")";
		return -ERR_CONFIG;
	}
	*ret_bindir = xasprintf("%s/%d/bin", lib_root, major);
	return 0;
}

int cluster_read_pidfile(const char *data, struct postmaster_file *ret)
{
	/* Lines: pid, data directory, start time, port, socket folder, address, memory key, status.
	 */
	enum { LINE_PID, LINE_DATA, LINE_STATUS = 7, LINES };
	char path[PATH_MAX], text[PIDFILE_MAX];
	(void)snprintf(path, sizeof(path), "%s/postmaster.pid", data); /* too long: not there */
	ssize_t n = read_small(path, text, sizeof(text));
	if (n < 0)
		return (int)n;
	const char *line[LINES] = {0};
	char *rest = text;
	for (int i = 0; i < LINES && rest != NULL; i++)
		line[i] = strsep(&rest, "\n");
	if (line[LINE_DATA] == NULL || strcmp(line[LINE_DATA], data) != 0)
		return -ERR_MALFORMED;
	long pid = strtol(line[LINE_PID], NULL, 10);
	if (pid <= 1 || pid > INT_MAX)
		return -ERR_MALFORMED;
	ret->pid = (pid_t)pid;
	ret->ready = line[LINE_STATUS] != NULL && strncmp(line[LINE_STATUS], "ready", 5) == 0;
	return 0;
}

bool cluster_process_is_ours(pid_t pid, const char *data)
{
	char path[64];
	struct stat proc, cwd, dir;
	(void)snprintf(path, sizeof(path), "/proc/%d", (int)pid);
	if (stat(path, &proc) != 0 || proc.st_uid != geteuid())
		return false;
	(void)snprintf(path, sizeof(path), "/proc/%d/cwd", (int)pid);
	return stat(path, &cwd) == 0 && stat(data, &dir) == 0 && cwd.st_dev == dir.st_dev &&
	       cwd.st_ino == dir.st_ino;
}

bool cluster_process_is_zombie(pid_t pid)
{
	char path[64], text[512];
	(void)snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
	if (read_small(path, text, sizeof(text)) <= 0)
		return false;
	/* "pid (name) state …"; the name may hold anything, so the last parenthesis counts. */
	const char *end = strrchr(text, ')');
	return end != NULL && end[1] == ' ' && end[2] == 'Z';
}

size_t cluster_each_process(const char *data, void (*fn)(pid_t pid, void *arg), void *arg)
{
	size_t n = 0;
	DIR *dir = opendir("/proc");
	if (dir == NULL)
		return 0;
	for (struct dirent *e; (e = readdir(dir)) != NULL;) {
		pid_t pid = (pid_t)strtol(e->d_name, NULL, 10);
		if (pid <= 1 || pid == getpid() || !cluster_process_is_ours(pid, data))
			continue;
		n++;
		if (fn != NULL)
			fn(pid, arg);
	}
	(void)closedir(dir); /* was only read */
	return n;
}

bool cluster_in_recovery(const char *data)
{
	char path[PATH_MAX], head[CONTROL_STATE_OFFSET + sizeof(int) + 1];
	(void)snprintf(path, sizeof(path), "%s/global/pg_control", data); /* too long: not there */
	if (read_small(path, head, sizeof(head)) != (ssize_t)sizeof(head) - 1)
		return false;
	int state;
	memcpy(&state, head + CONTROL_STATE_OFFSET, sizeof(state));
	return state == CONTROL_STATE_CRASH_RECOVERY;
}
