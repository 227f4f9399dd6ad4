/* SPDX-License-Identifier: PostgreSQL */
/*
 * howdahd: options and the choice between foreground and background. Under a service manager
 * (NOTIFY_SOCKET) and with -f it stays where it is; else its parent returns once the sockets are
 * there.
 */
#include "config.h"

#include <fcntl.h>
#include <getopt.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/base/log.h"
#include "common/base/proc.h"
#include "supervisor/supervisor.h"

static const char usage[] =
	"usage: howdahd [-c FILE] [-f] [-L LIBEXECDIR] [-D DATADIR]   run the suite\n"
	"       howdahd [-c FILE] -t      judge the configuration, findings to stdout\n"
	"       howdahd -V | -h           version, this text\n"
	"-f stays in the foreground. See howdahd(8) and howdah.conf(5).\n";

static const struct option long_options[] = {
	{"help", no_argument, NULL, 'h'}, {"version", no_argument, NULL, 'V'}, {0}};

/* In the parent: its exit status, once the child has started or failed. In the child: -1. */
static int go_background(struct supervisor_options *options)
{
	int fds[2], status = 1, null;
	char byte;
	pid_t pid;

	if (pipe2(fds, O_CLOEXEC) != 0 || (pid = fork()) < 0) {
		perror("howdahd: cannot go into the background");
		return 1;
	}
	if (pid > 0) {
		close(fds[1]);
		if (read(fds[0], &byte, 1) == 1)
			return 0;
		return waitpid(pid, &status, 0) == pid && WIFEXITED(status) ? WEXITSTATUS(status)
									    : 1;
	}
	close(fds[0]);
	options->started_fd = fds[1];
	setsid();
	null = open("/dev/null", O_RDWR | O_CLOEXEC);
	if (null >= 0 && (dup2(null, 0) < 0 || dup2(null, 1) < 0))
		return 1;
	return -1;
}

int main(int argc, char **argv)
{
	struct supervisor_options options = {.conf_file = HOWDAH_SYSCONFDIR "/howdah.conf",
		.libexecdir = HOWDAH_LIBEXECDIR,
		.datadir = HOWDAH_DATADIR,
		.started_fd = -1};
	bool test = false, foreground = getenv("NOTIFY_SOCKET") != NULL;
	int status = -1;

	for (int opt; (opt = getopt_long(argc, argv, "c:D:fhL:tV", long_options, NULL)) != -1;) {
		if (opt == 'c')
			options.conf_file = optarg;
		else if (opt == 'D')
			options.datadir = optarg;
		else if (opt == 'L')
			options.libexecdir = optarg;
		else if (opt == 'f')
			foreground = true;
		else if (opt == 't')
			test = true;
		else
			return fputs(opt == 'V' ? "howdahd (howdah) " HOWDAH_VERSION "\n" : usage,
				       opt == '?' ? stderr : stdout) < 0 ||
			       opt == '?';
	}
	if (optind != argc)
		return fputs(usage, stderr), 1;
	umask(022);
	proc_fill_std_fds();
	log_init("howdahd", LOG_LEVEL_INFO);
	if (test)
		return supervisor_check(&options);
	if (!foreground)
		status = go_background(&options);
	return status >= 0 ? status : supervisor_run(&options);
}
