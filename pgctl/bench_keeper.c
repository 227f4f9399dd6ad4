/* SPDX-License-Identifier: PostgreSQL */
/*
 * The keeper of a benchmark: see bench.h. It makes the folder, starts the bench process as the
 * unprivileged user, waits for its end or for a signal, and then ends whatever is left: the suite
 * in order, the server at once (SIGQUIT, so that its shared memory goes), everything else by
 * SIGKILL. A keeper that is killed itself takes all processes with it (PR_SET_PDEATHSIG); only the
 * folder stays then.
 *
 * Context: pgctl.
 */
#include "config.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <glob.h>
#include <pwd.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/base/err.h"
#include "common/base/mem.h"
#include "common/base/proc.h"
#include "pgctl/bench.h"

#define DIR_CHARS "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._+-"
#define DIR_MAX 64 /* socket paths end at 107 bytes */
#define SUITE_END_MS 15000
#define SERVER_END_MS 15000
#define REST_END_US 10000000
#define FTW_FDS 16

extern char **environ;

void bench_progress(const struct bench *b, const char *fmt, ...)
{
	char text[512];
	va_list ap;
	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	if (b->p->json) {
		json_t *line = json_pack("{s:s}", "progress", text);
		if (line != NULL)
			(void)json_dumpf(line, b->p->err, JSON_COMPACT); /* nobody to tell */
		fputc('\n', b->p->err);
		json_decref(line);
	} else {
		fprintf(b->p->err, "%s: %s\n", b->command, text);
	}
	fflush(b->p->err);
}

int bench_take_number(
	struct pgctl *p, json_t *args, const char *key, json_int_t most, json_int_t *value)
{
	json_t *given = json_object_get(args, key);
	if (given == NULL)
		return PGCTL_OK;
	if (json_integer_value(given) < 1 || json_integer_value(given) > most)
		return pgctl_fail(p, PGCTL_USAGE, NULL, "--%s is a number from 1 to %lld", key,
			(long long)most);
	*value = json_integer_value(given);
	return PGCTL_OK;
}

static int take_word(struct pgctl *p, const char *key, const char *word, const char *const *names,
	size_t n_names, bool *chosen)
{
	char hint[200] = "there are";
	for (size_t i = 0; i < n_names; i++) {
		if (strcmp(word, names[i]) == 0) {
			chosen[i] = true;
			return PGCTL_OK;
		}
		size_t len = strlen(hint);
		snprintf(hint + len, sizeof(hint) - len, "%s %s", i == 0 ? "" : ",", names[i]);
	}
	return pgctl_fail(p, PGCTL_USAGE, hint, "--%s: there is no \"%s\"", key, word);
}

int bench_take_words(struct pgctl *p, json_t *args, const char *key, const char *const *names,
	size_t n_names, bool *chosen)
{
	const char *given = json_string_value(json_object_get(args, key));
	for (size_t i = 0; i < n_names; i++)
		chosen[i] = given == NULL;
	if (given == NULL)
		return PGCTL_OK;
	char *copy = xstrdup(given), *rest = copy, *word;
	int status = PGCTL_OK;
	while (status == PGCTL_OK && (word = strsep(&rest, ",")) != NULL)
		status = take_word(p, key, word, names, n_names, chosen);
	free(copy);
	return status;
}

/* ---- Before ---------------------------------------------------------------------------------- */

static bool has_programs(const char *bindir)
{
	static const char *const names[] = {"initdb", "postgres", "pg_recvlogical"};
	bool all = true;
	for (size_t i = 0; i < ARRAY_LEN(names); i++) {
		char *path = xasprintf("%s/%s", bindir, names[i]);
		all = all && access(path, X_OK) == 0;
		free(path);
	}
	return all;
}

/* Folders of the packages: the highest number in their path wins. */
static char *newest_bindir(void)
{
	static const char *const patterns[] = {"/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin"};
	char *found = NULL;
	long best = 0;
	for (size_t i = 0; i < ARRAY_LEN(patterns); i++) {
		glob_t g = {0};
		size_t prefix = strcspn(patterns[i], "*");
		if (glob(patterns[i], 0, NULL, &g) == 0) {
			for (size_t n = 0; n < g.gl_pathc; n++) {
				long version = strtol(g.gl_pathv[n] + prefix, NULL, 10);
				if (version <= best || !has_programs(g.gl_pathv[n]))
					continue;
				best = version;
				free(found);
				found = xstrdup(g.gl_pathv[n]);
			}
		}
		globfree(&g);
	}
	return found;
}

static char *bindir_in_path(void)
{
	const char *path = getenv("PATH");
	char *copy = xstrdup(path != NULL ? path : ""), *save = NULL, *found = NULL;
	for (char *dir = strtok_r(copy, ":", &save); dir != NULL && found == NULL;
		dir = strtok_r(NULL, ":", &save)) {
		if (dir[0] == '/' && has_programs(dir))
			found = xstrdup(dir);
	}
	free(copy);
	return found;
}

static int find_server(struct bench *b, const char *given)
{
	if (given != NULL && !has_programs(given))
		return pgctl_fail(b->p, PGCTL_FAILED,
			"name the folder of initdb, postgres and pg_recvlogical",
			"%s holds no complete PostgreSQL server", given);
	b->bindir = given != NULL ? xstrdup(given) : newest_bindir();
	if (b->bindir == NULL)
		b->bindir = bindir_in_path();
	if (b->bindir == NULL)
		return pgctl_fail(b->p, PGCTL_FAILED,
			"install the package postgresql, or name the folder of its programs with "
			"--bindir",
			"there is no initdb, postgres and pg_recvlogical to measure with");
	return PGCTL_OK;
}

/* postgres does not run as root. */
static int find_user(struct bench *b)
{
	static const char *const names[] = {"howdah", "postgres", "nobody"};
	b->uid = geteuid();
	b->gid = getegid();
	if (b->uid != 0)
		return PGCTL_OK;
	for (size_t i = 0; i < ARRAY_LEN(names); i++) {
		const struct passwd *pw = getpwnam(names[i]);
		if (pw == NULL || pw->pw_uid == 0)
			continue;
		b->uid = pw->pw_uid;
		b->gid = pw->pw_gid;
		return PGCTL_OK;
	}
	return pgctl_fail(b->p, PGCTL_FAILED,
		"run it as an ordinary user, or create the user howdah",
		"PostgreSQL does not run as root, and there is no user howdah, postgres or nobody");
}

static int check_room(struct bench *b, const char *parent, uint64_t need_bytes)
{
	struct statvfs fs;
	if (statvfs(parent, &fs) != 0)
		return pgctl_fail(b->p, PGCTL_FAILED, "set TMPDIR to a folder that is there",
			"cannot use %s: %s", parent, strerror(errno));
	uint64_t room = (uint64_t)fs.f_bavail * fs.f_frsize;
	if (room < need_bytes)
		return pgctl_fail(b->p, PGCTL_FAILED,
			"make room there, set TMPDIR to another folder, or ask for fewer --events",
			"%s has %llu MB free, the benchmark needs %llu MB", parent,
			(unsigned long long)(room >> 20), (unsigned long long)(need_bytes >> 20));
	return PGCTL_OK;
}

static int make_dir(struct bench *b, uint64_t need_bytes)
{
	const char *tmp = getenv("TMPDIR");
	if (tmp == NULL || tmp[0] != '/')
		tmp = "/tmp";
	int status = check_room(b, tmp, need_bytes);
	if (status != PGCTL_OK)
		return status;
	char *dir = xasprintf("%s/howdah-bench.XXXXXX", tmp);
	if (strspn(tmp, DIR_CHARS) != strlen(tmp))
		status = pgctl_fail(b->p, PGCTL_FAILED, "set TMPDIR to another folder",
			"the name of %s would need quoting in configurations", tmp);
	else if (strlen(dir) > DIR_MAX)
		status = pgctl_fail(b->p, PGCTL_FAILED, "set TMPDIR to a shorter one",
			"%s is too long for the paths of sockets", tmp);
	else if (mkdtemp(dir) == NULL)
		status = pgctl_fail(b->p, PGCTL_FAILED, "set TMPDIR to a folder that we may use",
			"cannot make a folder in %s: %s", tmp, strerror(errno));
	else if (geteuid() == 0 && chown(dir, b->uid, b->gid) != 0) {
		status = pgctl_fail(b->p, PGCTL_FAILED, "set TMPDIR to another folder",
			"cannot give %s away: %s", dir, strerror(errno));
		rmdir(dir);
	}
	if (status != PGCTL_OK) {
		free(dir);
		return status;
	}
	b->dir = dir;
	return PGCTL_OK;
}

/* ---- The bench process ----------------------------------------------------------------------- */

/* Nothing of our environment shall choose another server or another way to it. */
static void forget_environment(const struct bench *b)
{
	for (char **e = environ; *e != NULL;) {
		if (strncmp(*e, "PG", 2) != 0) {
			e++;
			continue;
		}
		char *name = xstrndup(*e, strcspn(*e, "="));
		e = unsetenv(name) == 0 ? environ : e + 1;
		free(name);
	}
	unsetenv("NOTIFY_SOCKET");
	(void)setenv("HOME", b->dir, 1); /* libpq looks there for certificates, and may not */
}

static _Noreturn void be_bench_process(
	struct bench *b, const struct bench_job *job, const sigset_t *mask, pid_t keeper)
{
	setpgid(0, 0); /* a Ctrl-C is for the keeper */
	sigprocmask(SIG_SETMASK, mask, NULL);
	int err = geteuid() == 0 ? proc_drop_privileges(NULL, b->uid, b->gid) : 0;
	int status = err != 0 ? pgctl_fail(b->p, PGCTL_FAILED, "run it as an ordinary user",
					"cannot give up the rights of root: %s", err_str(err))
			      : PGCTL_OK;
	if (status == PGCTL_OK && proc_die_with_parent(SIGKILL, keeper) == 0 &&
		chdir(b->dir) == 0) {
		forget_environment(b);
		status = job->fn(b, job->arg);
	}
	if (output_end(&b->p->out) != 0 && status == PGCTL_OK)
		status = pgctl_fail(
			b->p, PGCTL_FAILED, "look for room on its disk", "cannot write the answer");
	fflush(b->p->err);
	_exit(status);
}

/* ---- After ----------------------------------------------------------------------------------- */

static int remove_entry(const char *path, const struct stat *st, int type, struct FTW *where)
{
	(void)st;
	(void)type;
	(void)where;
	return remove(path);
}

static bool is_child(const char *pid)
{
	char path[64], text[512];
	snprintf(path, sizeof(path), "/proc/%.10s/stat", pid);
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return false;
	ssize_t n = read(fd, text, sizeof(text) - 1);
	close(fd);
	text[n > 0 ? n : 0] = '\0';
	const char *end = strrchr(text, ')');
	return end != NULL && strlen(end) > 4 && strtol(end + 4, NULL, 10) == getpid();
}

static void kill_children(void)
{
	DIR *dir = opendir("/proc");
	if (dir == NULL)
		return;
	for (struct dirent *e; (e = readdir(dir)) != NULL;) {
		if (e->d_name[0] >= '1' && e->d_name[0] <= '9' && is_child(e->d_name))
			kill((pid_t)strtol(e->d_name, NULL, 10), SIGKILL);
	}
	closedir(dir);
}

static void end_all(struct bench *b)
{
	bench_end(atomic_load(&b->shared->suite_pid), SIGTERM, SUITE_END_MS, NULL);
	bench_end(atomic_load(&b->shared->server_pid), SIGQUIT, SERVER_END_MS, NULL);
	uint64_t deadline = bench_now_us() + REST_END_US;
	while (bench_now_us() < deadline) {
		kill_children();
		pid_t gone = waitpid(-1, NULL, WNOHANG);
		if (gone < 0)
			break; /* none is left */
		if (gone == 0)
			bench_pause_us(2000);
	}
}

/* Until the bench process has ended. Returns the signal that was sent to us, or 0. */
static int wait_for(pid_t pid, const sigset_t *set, int *ret_status)
{
	int interrupted = 0;
	for (;;) {
		pid_t gone = waitpid(pid, ret_status, WNOHANG);
		if (gone == pid || (gone < 0 && errno != EINTR))
			return interrupted;
		int signo = sigwaitinfo(set, NULL);
		if (signo <= 0 || signo == SIGCHLD)
			continue;
		interrupted = signo;
		kill(pid, SIGKILL);
	}
}

static int judge_end(struct bench *b, int interrupted, int status)
{
	if (interrupted != 0)
		return pgctl_fail(b->p, PGCTL_FAILED, NULL,
			"%s: ended by signal %d; what it had made is gone", b->command,
			interrupted);
	if (!WIFEXITED(status))
		return pgctl_fail(b->p, PGCTL_FAILED,
			"this is a mistake in pgctl: please report it",
			"%s: its process was ended by signal %d", b->command, WTERMSIG(status));
	return WEXITSTATUS(status);
}

static int keep(struct bench *b, const struct bench_job *job)
{
	sigset_t set, before;
	int status = 0;
	sigemptyset(&set);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGHUP);
	sigaddset(&set, SIGQUIT);
	sigaddset(&set, SIGCHLD);
	signal(SIGCHLD, SIG_DFL); /* who started us may have ignored it */
	sigprocmask(SIG_BLOCK, &set, &before);
	prctl(PR_SET_CHILD_SUBREAPER, 1);
	fflush(b->p->out.f);
	fflush(b->p->err);
	pid_t keeper = getpid(), pid = fork();
	if (pid == 0)
		be_bench_process(b, job, &before, keeper);
	int interrupted = pid > 0 ? wait_for(pid, &set, &status) : 0;
	end_all(b);
	prctl(PR_SET_CHILD_SUBREAPER, 0);
	if (nftw(b->dir, remove_entry, FTW_FDS, FTW_DEPTH | FTW_PHYS) != 0)
		(void)pgctl_fail(b->p, PGCTL_FAILED, "remove it by hand", "cannot remove %s: %s",
			b->dir, strerror(errno));
	int result = pid < 0 ? pgctl_fail(b->p, PGCTL_FAILED, "end other processes",
				       "cannot start a process: %s", strerror(errno))
			     : judge_end(b, interrupted, status);
	sigprocmask(SIG_SETMASK, &before, NULL);
	return result;
}

int bench_run(struct pgctl *p, const struct bench_job *job)
{
	struct bench b = {.p = p, .command = job->command};
	int status = find_server(&b, job->bindir);
	if (status == PGCTL_OK)
		status = find_user(&b);
	if (status == PGCTL_OK && access("/proc/self/schedstat", R_OK) != 0)
		status = pgctl_fail(p, PGCTL_FAILED, "use a kernel with CONFIG_SCHED_INFO",
			"/proc/self/schedstat is not there: CPU time cannot be measured");
	if (status == PGCTL_OK)
		status = make_dir(&b, job->disk_bytes);
	if (status == PGCTL_OK) {
		b.shared = mmap(NULL, sizeof(*b.shared), PROT_READ | PROT_WRITE,
			MAP_SHARED | MAP_ANONYMOUS, -1, 0);
		ASSERT(b.shared != MAP_FAILED);
		status = keep(&b, job);
		munmap(b.shared, sizeof(*b.shared));
	}
	free(b.dir);
	free(b.bindir);
	return status;
}
