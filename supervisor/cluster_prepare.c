/* SPDX-License-Identifier: PostgreSQL */
/*
 * Prepares the embedded database's data directory: version check, initdb on the first start, and at
 * each start the settings that are ours.
 *
 * Context: a helper process of the worker `postgres`; blocks as it likes.
 *
 * Files, in state_dir/postgres:
 *   postgresql.conf     initdb's, with a line that includes howdah.conf; the user's from then on
 *   howdah.conf         ours, rewritten at each start; what stands after the include line, or in
 *                       postgresql.auto.conf, wins over it
 *   pg_hba.conf         written once: peer with the map "howdah"; the user's from then on
 *   howdah_ident.conf   ours, rewritten at each start: who is the role howdah
 *
 * On crash: the directory is made under the name postgres.new.XXXXXX and renamed when it is
 * complete and on disk; what was left half-made is removed by the next start. Settings are replaced
 * by rename.
 */
#include "config.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <limits.h>
#include <locale.h>
#include <pwd.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/base/buf.h"
#include "common/base/err.h"
#include "common/base/io.h"
#include "common/base/log.h"
#include "common/base/mem.h"
#include "supervisor/cluster.h"

#define NEW_PREFIX "postgres.new."
#define INCLUDE_LINE "include 'howdah.conf'"
#define FILE_MAX_BYTES (1 << 20)
#define SHARED_BUFFERS_MIN_MB 32
#define SHARED_BUFFERS_MAX_MB 1024

/* ---- files ---- */

static int fsync_folder(const char *path)
{
	int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	int err = fsync(fd) != 0 ? -errno : 0;
	(void)close(fd); /* fsync has said what there is to say */
	return err;
}

/* The file has either its old content or all of the new one. */
static int replace_file(const char *folder, const char *name, const struct buf *content)
{
	char *path = xasprintf("%s/%s", folder, name);
	char *temp = xasprintf("%s/%s.new", folder, name);
	int err = content->failed ? -EFBIG : 0;
	int fd = err == 0 ? open(temp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600) : -1;
	if (err == 0 && fd < 0)
		err = -errno;
	if (fd >= 0) {
		err = io_write_all(fd, content->data, content->len_bytes);
		if (err == 0 && fsync(fd) != 0)
			err = -errno;
		if (close(fd) != 0 && err == 0)
			err = -errno;
	}
	if (err == 0 && rename(temp, path) != 0)
		err = -errno;
	if (err == 0)
		err = fsync_folder(folder);
	if (err != 0)
		log_error("pg.file", "cannot write %s: %s", path, err_str(err));
	free(temp);
	free(path);
	return err;
}

static int read_file(const char *folder, const char *name, struct buf *content)
{
	char *path = xasprintf("%s/%s", folder, name);
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	int err = fd < 0 ? -errno : 0;
	for (ssize_t n = 1; err == 0 && n > 0;) {
		uint8_t *room = buf_reserve(content, 8192);
		n = room != NULL ? read(fd, room, 8192) : -1;
		if (n >= 0)
			buf_commit(content, (size_t)n);
		else
			err = room == NULL ? -EFBIG : -errno;
	}
	if (fd >= 0)
		(void)close(fd); /* was only read */
	if (err != 0)
		log_error("pg.file", "cannot read %s: %s", path, err_str(err));
	free(path);
	return err;
}

static int on_remove(const char *path, const struct stat *st, int flag, struct FTW *ftw)
{
	(void)st, (void)flag, (void)ftw; /* whatever it is, it goes */
	return remove(path);
}

/* Half-made data directories of a start that was cut short. */
static void remove_leftovers(const char *state_dir)
{
	DIR *dir = opendir(state_dir);
	if (dir == NULL)
		return;
	for (struct dirent *e; (e = readdir(dir)) != NULL;) {
		if (strncmp(e->d_name, NEW_PREFIX, strlen(NEW_PREFIX)) != 0)
			continue;
		char *path = xasprintf("%s/%s", state_dir, e->d_name);
		log_info("pg.leftover", "removing the half-made %s", path);
		if (nftw(path, on_remove, 16, FTW_DEPTH | FTW_PHYS) != 0)
			log_warning("pg.leftover", "cannot remove %s: %s, ignoring", path,
				err_str(errno));
		free(path);
	}
	(void)closedir(dir); /* was only read */
}

/* ---- settings ---- */

static long shared_buffers_mb(void)
{
	long mb = sysconf(_SC_PHYS_PAGES) / 1024 * (sysconf(_SC_PAGESIZE) / 1024) / 8;
	if (mb < SHARED_BUFFERS_MIN_MB)
		return SHARED_BUFFERS_MIN_MB;
	return mb > SHARED_BUFFERS_MAX_MB ? SHARED_BUFFERS_MAX_MB : mb;
}

/* A value of postgresql.conf in quotes. */
static void put_quoted(struct buf *b, const char *value)
{
	buf_put_u8(b, '\'');
	for (const char *p = value; *p != '\0'; p++) {
		if (*p == '\'')
			buf_put_u8(b, '\'');
		else if (*p == '\\')
			buf_put_u8(b, '\\');
		buf_put_u8(b, (uint8_t)*p);
	}
	buf_put_u8(b, '\'');
}

static int write_settings(const struct cluster_paths *p, const char *folder)
{
	static const char fixed[] =
		"listen_addresses = ''\n"
		"port = 5432\n"
		"unix_socket_permissions = 0777          # peer authentication decides\n"
		"wal_level = logical\n"
		"max_wal_senders = 10\n"
		"max_replication_slots = 10\n"
		"max_connections = 100\n"
		"max_prepared_transactions = 10\n"
		"max_wal_size = '1GB'\n"
		"jit = off\n"
		"search_path = 'public'                  # not \"$user\": howdah is the suite's\n"
		"logging_collector = off                 # to the journal, with the suite's lines\n"
		"log_line_prefix = 'postgresql[%p] '\n";
	struct buf b;
	buf_init(&b, FILE_MAX_BYTES);
	buf_put_text(&b,
		"# Written by howdah at each start. Your own settings belong after the include\n"
		"# line in postgresql.conf, or come by ALTER SYSTEM; they win over these.\n");
	buf_put_text(&b, fixed);
	buf_printf(&b, "shared_buffers = '%ldMB'\n", shared_buffers_mb());
	/* The list is comma-separated: a folder with a comma or blank needs quotes of its own. */
	char *folders = xasprintf("\"%s\"", p->sockets);
	char *ident = xasprintf("%s/howdah_ident.conf", p->data);
	buf_put_text(&b, "unix_socket_directories = ");
	put_quoted(&b, folders);
	buf_put_text(&b, "\nident_file = ");
	put_quoted(&b, ident);
	buf_put_text(&b, "\n");
	int err = replace_file(folder, "howdah.conf", &b);
	free(ident);
	free(folders);
	buf_free(&b);
	return err;
}

static int write_ident(const struct cluster_paths *p, const char *folder)
{
	const struct passwd *self = getpwuid(geteuid());
	if (self == NULL) {
		log_error("pg.user",
			"uid %u has no name in the user database; create such a user, "
			"peer authentication needs it",
			(unsigned)geteuid());
		return -ERR_CONFIG;
	}
	const char *const names[] = {self->pw_name, p->user, "root"};
	struct buf b;
	buf_init(&b, FILE_MAX_BYTES);
	buf_put_text(&b,
		"# Written by howdah at each start: system users that may be the role howdah,\n"
		"# and every user as the role of the same name, if there is one.\n");
	for (size_t i = 0; i < ARRAY_LEN(names); i++) {
		if (names[i][0] == '\0' || (i > 0 && strcmp(names[i], names[i - 1]) == 0))
			continue;
		buf_printf(&b, "howdah \"%s\" howdah\n", names[i]);
	}
	buf_put_text(&b, "howdah /^(.*)$ \\1\n");
	int err = replace_file(folder, "howdah_ident.conf", &b);
	buf_free(&b);
	return err;
}

static int write_hba(const char *folder)
{
	struct buf b;
	buf_init(&b, FILE_MAX_BYTES);
	buf_put_text(&b, "# Written once by howdah; yours from now on. Its workers need the first "
			 "two lines;\n"
			 "# the map is in howdah_ident.conf.\n"
			 "local all all peer map=howdah\n"
			 "local replication all peer map=howdah\n");
	int err = replace_file(folder, "pg_hba.conf", &b);
	buf_free(&b);
	return err;
}

/* The include line stands in postgresql.conf; a user who removed it gets it back, at the end. */
static int include_settings(const char *folder)
{
	struct buf b;
	buf_init(&b, FILE_MAX_BYTES);
	int err = read_file(folder, "postgresql.conf", &b);
	const char *at = err == 0 ? strstr(buf_cstr(&b), INCLUDE_LINE) : NULL;
	while (at != NULL && at != (const char *)b.data && at[-1] != '\n')
		at = strstr(at + 1, INCLUDE_LINE); /* in a comment it does not count */
	if (err == 0 && at == NULL) {
		buf_put_text(&b, "\n# Howdah's settings; what you write below this line wins over "
				 "them.\n" INCLUDE_LINE "\n");
		err = replace_file(folder, "postgresql.conf", &b);
	}
	buf_free(&b);
	return err;
}

static int write_all_settings(const struct cluster_paths *p, const char *folder)
{
	int err = write_ident(p, folder);
	if (err == 0)
		err = write_settings(p, folder);
	if (err == 0)
		err = include_settings(folder);
	return err;
}

/* ---- initdb ---- */

/* Runs a program to its end; stdout to stderr, or into out if that is not NULL. */
static int run_program(char *const argv[], struct buf *out)
{
	int pipe_fd[2] = {-1, -1};
	if (out != NULL && pipe2(pipe_fd, O_CLOEXEC) != 0)
		return -errno;
	pid_t pid = fork();
	if (pid == 0) {
		(void)prctl(PR_SET_PDEATHSIG, SIGKILL); /* nobody waits for it when we are gone */
		if (dup2(out != NULL ? pipe_fd[1] : STDERR_FILENO, STDOUT_FILENO) >= 0)
			execv(argv[0], argv);
		_exit(127);
	}
	int err = pid < 0 ? -errno : 0;
	if (out != NULL) {
		(void)close(pipe_fd[1]); /* the child has it */
		for (ssize_t n = 1; err == 0 && n > 0;) {
			uint8_t *room = buf_reserve(out, 512);
			n = room != NULL ? read(pipe_fd[0], room, 512) : 0;
			if (n > 0)
				buf_commit(out, (size_t)n);
		}
		(void)close(pipe_fd[0]); /* was only read */
	}
	int status = 0;
	if (err == 0 && waitpid(pid, &status, 0) != pid)
		err = -errno;
	return err == 0 && status != 0 ? -EIO : err;
}

/* What `postgres -V` says: "postgres (PostgreSQL) 15.6 (Debian …)". */
static int program_version(const char *bindir, int *ret_major)
{
	char *program = xasprintf("%s/postgres", bindir);
	char version[] = "-V";
	char *const argv[] = {program, version, NULL};
	struct buf out;
	buf_init(&out, 4096);
	int err = run_program(argv, &out);
	const char *at = err == 0 ? strstr(buf_cstr(&out), ") ") : NULL;
	if (at != NULL)
		*ret_major = (int)strtol(at + 2, NULL, 10);
	else
		log_error("pg.version", "cannot run %s -V", program);
	buf_free(&out);
	free(program);
	return at != NULL && *ret_major > 0 ? 0 : -EIO;
}

static int run_initdb(const struct cluster_paths *p, const char *bindir, const char *folder)
{
	/* C.UTF-8 sorts by code point like C, but knows letters beyond ASCII. */
	const char *locale = setlocale(LC_ALL, "C.UTF-8") != NULL ? "C.UTF-8" : "C";
	char *program = xasprintf("%s/initdb", bindir);
	char *locale_arg = xasprintf("--locale=%s", locale);
	char *data_arg = xasprintf("--pgdata=%s", folder);
	char args[][24] = {"--username=howdah", "--encoding=UTF8", "--auth-local=peer",
		"--auth-host=reject", "--data-checksums", "--lc-messages=C", "--no-instructions"};
	char *const argv[] = {program, data_arg, locale_arg, args[0], args[1], args[2], args[3],
		args[4], args[5], args[6], NULL};
	log_info("pg.initdb", "creating the embedded database in %s by %s", p->data, program);
	int err = run_program(argv, NULL);
	if (err != 0)
		log_error("pg.initdb", "%s has failed; its own lines above say why", program);
	free(data_arg);
	free(locale_arg);
	free(program);
	return err;
}

/* Makes the whole directory beside its place, then moves it there. */
static int create_data(const struct cluster_paths *p, const char *bindir)
{
	remove_leftovers(p->state_dir);
	char *folder = xasprintf("%s/" NEW_PREFIX "XXXXXX", p->state_dir);
	int err = mkdtemp(folder) == NULL ? -errno : 0;
	if (err != 0)
		log_error("pg.initdb", "cannot create %s: %s", folder, err_str(err));
	if (err == 0)
		err = run_initdb(p, bindir, folder);
	if (err == 0)
		err = write_hba(folder);
	if (err == 0)
		err = write_all_settings(p, folder);
	if (err == 0 && (rename(folder, p->data) != 0 || fsync_folder(p->state_dir) != 0)) {
		err = -errno;
		log_error("pg.initdb", "cannot move %s to %s: %s", folder, p->data, err_str(err));
	}
	free(folder);
	return err;
}

/* ---- checks ---- */

/* 0: there is a data directory of the program's version; -ENOENT: there is none yet. */
static int check_data(const struct cluster_paths *p, int program_major)
{
	int major = 0;
	int err = cluster_data_version(p->data, &major);
	if (err == 0 && major != program_major) {
		log_error("pg.version",
			"%s was made by PostgreSQL %d, but the server to be run is PostgreSQL %d; "
			"set "
			"postgres.bindir to a PostgreSQL %d, or bring the data over with "
			"pg_upgrade or with "
			"pg_dump and psql",
			p->data, major, program_major, major);
		return -ERR_CONFIG;
	}
	if (err == 0)
		return 0;
	/* rmdir succeeds exactly if nothing is lost by it. */
	if (rmdir(p->data) == 0 || errno == ENOENT)
		return -ENOENT;
	log_error("pg.data",
		"%s is there, but is no data directory of PostgreSQL (PG_VERSION: %s); move "
		"it away, or name another state_dir",
		p->data, err_str(err));
	return -ERR_CONFIG;
}

static int make_socket_folder(const struct cluster_paths *p)
{
	struct sockaddr_un addr;
	if (strlen(p->sockets) + strlen("/.s.PGSQL.5432.lock") >= sizeof(addr.sun_path)) {
		log_error("pg.sockets",
			"%s is too long for the path of a Unix socket; name a shorter "
			"run_dir",
			p->sockets);
		return -ERR_CONFIG;
	}
	/* The server itself says who may; the folder must let the suite's user and root through. */
	if ((mkdir(p->sockets, 0755) != 0 && errno != EEXIST) || chmod(p->sockets, 0755) != 0) {
		int err = -errno;
		log_error("pg.sockets", "cannot create %s: %s", p->sockets, err_str(err));
		return err;
	}
	return 0;
}

int cluster_prepare(const struct cluster_paths *p)
{
	char *bindir = NULL;
	const char *why = NULL;
	int major = 0;
	int err = cluster_choose_bindir(p, CLUSTER_LIB_ROOT, &bindir, &why);
	if (err != 0)
		log_error("pg.bindir", "%s", why);
	if (err == 0)
		err = program_version(bindir, &major);
	if (err == 0)
		err = make_socket_folder(p);
	if (err == 0) {
		err = check_data(p, major);
		if (err == -ENOENT)
			err = create_data(p, bindir);
		else if (err == 0)
			err = write_all_settings(p, p->data);
	}
	free(bindir);
	if (err == -ERR_CONFIG)
		return EXIT_CONFIG;
	return err == 0 ? 0 : 1;
}
