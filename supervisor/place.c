/* SPDX-License-Identifier: PostgreSQL */
/*
 * Folders, identity and small files; place.h has the contract.
 *
 * Context: start of the supervisor; place_write_file also later, from the event thread.
 * On crash: a temporary file may stay; the next write of the same file replaces it. The lock ends
 * with the process, since no worker inherits its descriptor.
 */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <limits.h>
#include <pwd.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/base/err.h"
#include "common/base/io.h"
#include "common/base/mem.h"
#include "supervisor/place.h"

#define LOCK_FILE "howdahd.pid"
#define INSTANCE_FILE "instance"
#define INSTANCE_BYTES 16

int place_read_file(const char *dir, const char *name, size_t max_bytes, char **ret_text)
{
	char *path = xasprintf("%s/%s", dir, name);
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
	struct stat st;
	size_t len = 0;
	char *text;
	int err;

	free(path);
	if (fd < 0)
		return -errno;
	if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode)) {
		close(fd);
		return -EINVAL;
	}
	text = xmalloc(max_bytes + 1);
	/* One more than allowed shows that it is too much. */
	err = io_read_all(fd, text, max_bytes + 1, &len);
	close(fd);
	if (err == 0 && len > max_bytes)
		err = -EFBIG;
	if (err != 0) {
		free(text);
		return err;
	}
	text[len] = '\0'; /* len <= max_bytes */
	*ret_text = text;
	return 0;
}

int place_write_file(
	const char *dir, const char *name, const void *data, size_t len_bytes, bool on_disk)
{
	char *path = xasprintf("%s/%s", dir, name);
	char *tmp = xasprintf("%s.new", path);
	int err = 0, fd;

	(void)unlink(tmp); /* what a crash left; O_EXCL decides */
	fd = open(tmp, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0644);
	if (fd < 0)
		err = -errno;
	if (err == 0)
		err = io_write_all(fd, data, len_bytes);
	if (err == 0 && on_disk && fsync(fd) != 0)
		err = -errno;
	if (fd >= 0 && close(fd) != 0 && err == 0)
		err = -errno;
	if (err == 0 && rename(tmp, path) != 0)
		err = -errno;
	if (err != 0 && fd >= 0)
		(void)unlink(tmp); /* err says what matters */
	free(tmp);
	free(path);
	return err;
}

static int find_user(struct place *p, const char *user, char **ret_why)
{
	struct passwd *pw;

	if (geteuid() != 0) {
		pw = getpwuid(geteuid());
		p->user = pw != NULL ? xstrdup(pw->pw_name) : xasprintf("%u", (unsigned)geteuid());
		p->uid = geteuid();
		p->gid = getegid();
		return 0;
	}
	errno = 0;
	pw = getpwnam(user);
	if (pw == NULL) {
		*ret_why = xasprintf(
			"user: there is no user \"%s\"; create it by systemd-sysusers or by: "
			"useradd --system --home-dir /var/lib/howdah --shell "
			"/usr/sbin/nologin %s",
			user, user);
		return -ERR_CONFIG;
	}
	if (pw->pw_uid == 0) {
		*ret_why = xstrdup("user: the workers do not run as root; name an ordinary user");
		return -ERR_CONFIG;
	}
	p->user = xstrdup(user);
	p->uid = pw->pw_uid;
	p->gid = pw->pw_gid;
	return 0;
}

/* A folder that we made just now. By descriptor, since who owns the one above may have put
 * something else into its place; and whatever our umask has left of the mode. */
static int own_dir(const char *path, mode_t mode, uid_t uid, gid_t gid)
{
	int fd = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	struct stat st;
	int err = 0;

	if (fd < 0)
		return -errno;
	if (fstat(fd, &st) != 0)
		err = -errno;
	else if (st.st_uid != geteuid())
		err = -EPERM;
	else if (fchmod(fd, mode) != 0 || (geteuid() == 0 && fchown(fd, uid, gid) != 0))
		err = -errno;
	close(fd);
	return err;
}

/* Makes path and what is missing above it; only path itself gets this owner and mode. */
static int make_dir(const char *path, mode_t mode, uid_t uid, gid_t gid)
{
	char *copy = xstrdup(path);
	struct stat st;
	int err = 0;

	for (char *slash = strchr(copy + 1, '/'); slash != NULL && err == 0;
		slash = strchr(slash + 1, '/')) {
		*slash = '\0';
		if (mkdir(copy, 0755) != 0 && errno != EEXIST && stat(copy, &st) != 0)
			err = -errno;
		*slash = '/';
	}
	free(copy);
	if (err != 0)
		return err;
	if (mkdir(path, mode) != 0)
		return errno != EEXIST        ? -errno
		       : stat(path, &st) != 0 ? -errno
		       : S_ISDIR(st.st_mode)  ? 0
					      : -ENOTDIR;
	return own_dir(path, mode, uid, gid);
}

/* Can the workers' user write there? Asked as that user with his groups, as the workers will be,
 * since only the kernel knows. */
static int check_access(const struct place *p, const char *dir)
{
	gid_t groups[NGROUPS_MAX];
	int err = 0, n_groups;

	if (geteuid() != 0)
		return access(dir, R_OK | W_OK | X_OK) == 0 ? 0 : -errno;
	n_groups = getgroups(NGROUPS_MAX, groups);
	if (n_groups < 0 || initgroups(p->user, p->gid) != 0)
		return -errno;
	if (setegid(p->gid) != 0 || seteuid(p->uid) != 0 ||
		faccessat(AT_FDCWD, dir, R_OK | W_OK | X_OK, AT_EACCESS) != 0)
		err = -errno;
	if (seteuid(0) != 0 || setegid(0) != 0 || setgroups((size_t)n_groups, groups) != 0)
		abort(); /* half a root is nothing to go on with */
	return err;
}

static int make_dirs(struct place *p, char **ret_why)
{
	char *pg = xasprintf("%s/postgres", p->run_dir);
	const struct {
		const char *path, *key;
		mode_t mode;
		bool users; /* belongs to the user, who must be able to write there */
	} dirs[] = {
		{p->state_dir, "state_dir", 0700, true},
		{p->run_dir, "run_dir", 0755, false},
		{pg, "run_dir", 0755, true},
	};
	int err = 0;

	for (size_t i = 0; i < ARRAY_LEN(dirs) && err == 0; i++) {
		err = make_dir(dirs[i].path, dirs[i].mode, dirs[i].users ? p->uid : 0,
			dirs[i].users ? p->gid : 0);
		if (err == 0 && dirs[i].users)
			err = check_access(p, dirs[i].path);
		if (err != 0)
			*ret_why = xasprintf(
				"%s: user %s cannot use %s: %s; set %s to a folder that %s can "
				"write, or as root: install -d -o %s %s",
				dirs[i].key, p->user, dirs[i].path, err_str(err), dirs[i].key,
				p->user, p->user, dirs[i].path);
	}
	free(pg);
	return err == 0 ? 0 : err == -ENOSPC ? err : -ERR_CONFIG;
}

/* The open file has this name and no other: it is no link to somebody else's file. */
static bool is_at(int fd, const char *path)
{
	struct stat open_st, path_st;

	return fstat(fd, &open_st) == 0 && lstat(path, &path_st) == 0 && S_ISREG(open_st.st_mode) &&
	       path_st.st_nlink == 1 && open_st.st_dev == path_st.st_dev &&
	       open_st.st_ino == path_st.st_ino;
}

static int take_lock(struct place *p, char **ret_why)
{
	char *path = xasprintf("%s/%s", p->state_dir, LOCK_FILE);
	char pid[32];
	int err = 0, len;

	p->lock_fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0644);
	if (p->lock_fd < 0)
		err = -errno;
	else if (flock(p->lock_fd, LOCK_EX | LOCK_NB) != 0)
		err = errno == EWOULDBLOCK ? -ERR_STATE : -errno;
	else if (!is_at(p->lock_fd, path))
		err = -EMLINK;
	len = snprintf(pid, sizeof(pid), "%ld\n", (long)getpid());
	if (err == 0 &&
		(ftruncate(p->lock_fd, 0) != 0 || pwrite(p->lock_fd, pid, (size_t)len, 0) != len))
		err = errno != 0 ? -errno : -EIO;
	if (err == -ERR_STATE)
		*ret_why = xasprintf(
			"state_dir: another howdahd uses %s (its pid is in %s); stop it, or "
			"give this one folders of its own",
			p->state_dir, path);
	else if (err != 0)
		*ret_why = xasprintf(
			err == -EMLINK
				? "state_dir: %s is no plain file of its own (%s); remove it"
				: "state_dir: cannot write %s: %s; mend its owner or free some "
				  "space",
			path, err_str(err));
	free(path);
	return err;
}

static bool instance_is_good(const char *text)
{
	return strspn(text, "0123456789abcdef") == 2 * INSTANCE_BYTES &&
	       (text[2 * INSTANCE_BYTES] == '\0' || text[2 * INSTANCE_BYTES] == '\n');
}

static int make_instance(struct place *p)
{
	uint8_t bytes[INSTANCE_BYTES];
	char text[2 * INSTANCE_BYTES + 2];

	if (getrandom(bytes, sizeof(bytes), 0) != (ssize_t)sizeof(bytes))
		return -EIO;
	for (size_t i = 0; i < sizeof(bytes); i++)
		snprintf(text + 2 * i, 3, "%02x", bytes[i]);
	p->instance = xstrdup(text);
	text[2 * INSTANCE_BYTES] = '\n';
	return place_write_file(p->state_dir, INSTANCE_FILE, text, 2 * INSTANCE_BYTES + 1, true);
}

static int find_instance(struct place *p, char **ret_why)
{
	char *text = NULL;
	int err = place_read_file(p->state_dir, INSTANCE_FILE, 64, &text);

	if (err == 0 && instance_is_good(text)) {
		text[2 * INSTANCE_BYTES] = '\0';
		p->instance = text;
		return 0;
	}
	free(text);
	if (err == 0) {
		*ret_why =
			xasprintf("state_dir: %s/%s is damaged; restore it, or remove it together "
				  "with this node's registration (pgctl node remove)",
				p->state_dir, INSTANCE_FILE);
		return -ERR_CONFIG;
	}
	if (err == -ENOENT)
		err = make_instance(p);
	if (err != 0)
		*ret_why =
			xasprintf("state_dir: cannot write %s/%s: %s; mend its owner or free some "
				  "space",
				p->state_dir, INSTANCE_FILE, err_str(err));
	return err;
}

/* Without doubled slashes and one at the end: PostgreSQL writes its folder's name like that. */
static char *plain_path(const char *path)
{
	char *copy = xstrdup(path), *to = copy;

	for (const char *from = path; *from != '\0'; from++)
		if (*from != '/' || (from[1] != '/' && (from[1] != '\0' || to == copy)))
			*to++ = *from;
	*to = '\0';
	return copy;
}

int place_open(struct place *p, const char *state_dir, const char *run_dir, const char *user,
	char **ret_why)
{
	int err;

	*p = (struct place){.lock_fd = -1};
	p->state_dir = plain_path(state_dir);
	p->run_dir = plain_path(run_dir);
	err = find_user(p, user, ret_why);
	if (err == 0)
		err = make_dirs(p, ret_why);
	if (err == 0)
		err = take_lock(p, ret_why);
	if (err == 0)
		err = find_instance(p, ret_why);
	return err;
}

void place_close(struct place *p)
{
	free(p->state_dir);
	free(p->run_dir);
	free(p->user);
	free(p->instance);
	if (p->lock_fd >= 0)
		close(p->lock_fd);
	*p = (struct place){.lock_fd = -1};
}
