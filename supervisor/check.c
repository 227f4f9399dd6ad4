/* SPDX-License-Identifier: PostgreSQL */
/*
 * howdahd -t: one judgement of a configuration file, made of the supervisor's and every worker's.
 *
 * Context: a process of its own; nothing is started, bound or written. Lines that several of them
 * find are printed once.
 */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/base/buf.h"
#include "common/base/err.h"
#include "common/base/mem.h"
#include "supervisor/roles.h"
#include "supervisor/spawn.h"
#include "supervisor/supervisor.h"

#define CHECK_OUTPUT_MAX (256 * 1024)

static void read_output(int fd, struct buf *out)
{
	for (;;) {
		uint8_t *room = buf_reserve(out, 4096);
		ssize_t n = room != NULL ? read(fd, room, 4096) : 0;

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return;
		buf_commit(out, (size_t)n);
	}
}

/* Runs PROGRAM -t -c FILE with its stdout in out. Its exit status, or 1 if it did not run. */
static int ask_worker(const char *program, const char *file, struct buf *out)
{
	char *argv[] = {(char *)(uintptr_t)program, (char *)(uintptr_t) "-t",
		(char *)(uintptr_t) "-c", (char *)(uintptr_t)file, NULL};
	char **env = spawn_environment(0);
	posix_spawn_file_actions_t actions;
	int pipe_fd[2], status = 0, err;
	pid_t pid;

	if (pipe2(pipe_fd, O_CLOEXEC) != 0) {
		err = errno;
	} else {
		posix_spawn_file_actions_init(&actions);
		posix_spawn_file_actions_adddup2(&actions, pipe_fd[1], STDOUT_FILENO);
		err = posix_spawn(&pid, program, &actions, NULL, argv, env);
		posix_spawn_file_actions_destroy(&actions);
		close(pipe_fd[1]);
		if (err == 0)
			read_output(pipe_fd[0], out);
		close(pipe_fd[0]);
	}
	spawn_environment_free(env);
	if (err != 0) {
		buf_printf(out, "%s: cannot be run: %s; is the package installed whole?\n", program,
			err_str(err));
		return 1;
	}
	while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
		;
	if (!WIFEXITED(status)) {
		buf_printf(
			out, "%s: ended by signal %d while judging\n", program, WTERMSIG(status));
		return 1;
	}
	return WEXITSTATUS(status);
}

/* Prints the lines of from that are not yet in seen, and adds them. */
static void merge(struct buf *seen, struct buf *from)
{
	char *save = NULL, *text = xstrdup(buf_cstr(from));

	for (char *line = strtok_r(text, "\n", &save); line != NULL;
		line = strtok_r(NULL, "\n", &save)) {
		char *whole = xasprintf("\n%s\n", line);

		if (strstr(buf_cstr(seen), whole) == NULL) {
			printf("%s\n", line);
			buf_put_text(seen, whole + 1);
		}
		free(whole);
	}
	free(text);
}

int supervisor_check(const struct supervisor_options *options)
{
	struct settings *settings = NULL;
	struct buf seen, out;
	int result = 0;

	buf_init(&seen, 0);
	buf_put_u8(&seen, '\n');
	buf_init(&out, CHECK_OUTPUT_MAX);
	if (settings_load(options->conf_file, &settings, &out) != 0)
		result = EXIT_CONFIG;
	merge(&seen, &out);
	for (uint32_t role = 0; role < ROLE_COUNT; role++) {
		char *program = xasprintf("%s/%s", options->libexecdir, role_info(role)->name);

		buf_reset(&out);
		if (ask_worker(program, options->conf_file, &out) != 0)
			result = EXIT_CONFIG;
		merge(&seen, &out);
		free(program);
	}
	if (result == 0)
		printf("%s: good\n", options->conf_file);
	buf_free(&seen);
	buf_free(&out);
	settings_free(&settings);
	return result;
}
