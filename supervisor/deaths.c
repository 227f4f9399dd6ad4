/* SPDX-License-Identifier: PostgreSQL */
/*
 * The record of deaths; deaths.h has its form.
 *
 * Context: event thread. The file is written without fsync: after a crash of the machine the record
 * may be lost, and nothing but `pgctl status` reads it. On crash: rename(2) leaves the old or the
 * new file.
 */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <jansson.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/base/buf.h"
#include "common/base/err.h"
#include "common/base/mem.h"
#include "supervisor/deaths.h"
#include "supervisor/place.h"

#define DEATHS_FILE "deaths.json"
#define DEATHS_BYTES_MAX 65536

void death_set(char **field, char *value)
{
	free(*field);
	*field = value;
}

static char *text_of(json_t *obj, const char *key)
{
	const char *s = json_string_value(json_object_get(obj, key));

	return s != NULL && *s != '\0' ? xstrdup(s) : NULL;
}

int deaths_load(struct deaths *d, const char *state_dir)
{
	char *text = NULL;
	json_t *root;
	int err;

	memset(d, 0, sizeof(*d));
	err = place_read_file(state_dir, DEATHS_FILE, DEATHS_BYTES_MAX, &text);
	if (err != 0)
		return err == -ENOENT ? 0 : err;
	root = json_loads(text, JSON_REJECT_DUPLICATES, NULL);
	free(text);
	if (!json_is_object(root)) {
		json_decref(root);
		return -ERR_MALFORMED;
	}
	for (uint32_t i = 0; i < ROLE_COUNT; i++) {
		json_t *o = json_object_get(root, role_str(i));

		d->of[i].count = (uint64_t)json_integer_value(json_object_get(o, "deaths"));
		d->of[i].at = json_integer_value(json_object_get(o, "at"));
		d->of[i].last_exit = text_of(o, "last_exit");
		d->of[i].last_assert = text_of(o, "last_assert");
		d->of[i].core = text_of(o, "core");
	}
	json_decref(root);
	return 0;
}

static const char *or_empty(const char *s)
{
	return s != NULL ? s : "";
}

int deaths_save(const struct deaths *d, const char *state_dir)
{
	json_t *root = json_object();
	char *text;
	int err;

	for (uint32_t i = 0; i < ROLE_COUNT; i++) {
		const struct death *x = &d->of[i];

		/* A failed insertion (memory) leaves that worker out; json_dumps then says so. */
		(void)json_object_set_new(root, role_str(i),
			json_pack("{s:I,s:s,s:s,s:s,s:I}", "deaths", (json_int_t)x->count,
				"last_exit", or_empty(x->last_exit), "last_assert",
				or_empty(x->last_assert), "core", or_empty(x->core), "at",
				(json_int_t)x->at));
	}
	text = json_dumps(root, JSON_INDENT(1) | JSON_SORT_KEYS);
	json_decref(root);
	if (text == NULL)
		return -ENOMEM;
	err = place_write_file(state_dir, DEATHS_FILE, text, strlen(text), false);
	free(text);
	return err;
}

void deaths_free(struct deaths *d)
{
	for (uint32_t i = 0; i < ROLE_COUNT; i++) {
		death_set(&d->of[i].last_exit, NULL);
		death_set(&d->of[i].last_assert, NULL);
		death_set(&d->of[i].core, NULL);
	}
}

char *death_describe(int wait_status)
{
	if (WIFEXITED(wait_status))
		return xasprintf("exit status %d%s", WEXITSTATUS(wait_status),
			WEXITSTATUS(wait_status) == EXIT_CONFIG ? " (wrong configuration)" : "");
	return xasprintf("signal %d (%s)%s", WTERMSIG(wait_status),
		strsignal(WTERMSIG(wait_status)), WCOREDUMP(wait_status) ? ", core dumped" : "");
}

/* The pattern as a glob: what we know is filled in, the rest matches anything. */
static void pattern_to_glob(const char *pattern, bool uses_pid, pid_t pid, struct buf *out)
{
	bool has_pid = false;

	for (const char *p = pattern; *p != '\0'; p++) {
		if (*p != '%') {
			if (strchr("*?[]\\", *p) != NULL)
				buf_put_u8(out, '\\');
			buf_put_u8(out, (uint8_t)*p);
			continue;
		}
		if (*++p == '\0')
			break;
		if (*p == '%') {
			buf_put_u8(out, '%');
		} else if (*p == 'p' || *p == 'P') {
			buf_printf(out, "%ld", (long)pid);
			has_pid = true;
		} else {
			buf_put_u8(out, '*');
		}
	}
	if (uses_pid && !has_pid)
		buf_printf(out, ".%ld", (long)pid);
}

static char *newest_of(const glob_t *found)
{
	const char *best = NULL;
	time_t best_at = 0;

	for (size_t i = 0; i < found->gl_pathc; i++) {
		struct stat st;

		if (lstat(found->gl_pathv[i], &st) == 0 && S_ISREG(st.st_mode) &&
			(best == NULL || st.st_mtime > best_at)) {
			best = found->gl_pathv[i];
			best_at = st.st_mtime;
		}
	}
	return best != NULL ? xstrdup(best) : NULL;
}

char *death_find_core_by(const char *pattern, bool uses_pid, const char *cwd, pid_t pid)
{
	struct buf path;
	glob_t found;
	char *core = NULL;

	if (*pattern == '\0')
		return NULL;
	if (*pattern == '|')
		return xasprintf(
			"collected by %s: try coredumpctl info %ld", pattern + 1, (long)pid);
	buf_init(&path, 0);
	if (*pattern != '/') {
		pattern_to_glob(cwd, false, pid, &path);
		buf_put_u8(&path, '/');
	}
	pattern_to_glob(pattern, uses_pid, pid, &path);
	if (glob(buf_cstr(&path), GLOB_NOSORT, NULL, &found) == 0) {
		core = newest_of(&found);
		globfree(&found);
	}
	buf_free(&path);
	return core;
}

char *death_find_core(const char *cwd, pid_t pid)
{
	char *pattern = NULL, *uses = NULL, *core = NULL;

	if (place_read_file("/proc/sys/kernel", "core_pattern", 256, &pattern) == 0) {
		pattern[strcspn(pattern, "\n")] = '\0';
		if (place_read_file("/proc/sys/kernel", "core_uses_pid", 16, &uses) != 0)
			uses = NULL;
		core = death_find_core_by(pattern, uses != NULL && uses[0] != '0', cwd, pid);
	}
	free(pattern);
	free(uses);
	return core;
}
