/* SPDX-License-Identifier: PostgreSQL */
/*
 * pgctl config check: asks howdahd -t, which asks every worker.
 */
#include "config.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "pgctl/pgctl.h"
#include "pgctl/place.h"

static int wait_for(struct pgctl *p, pid_t pid)
{
	int status;
	while (waitpid(pid, &status, 0) < 0) {
		if (errno != EINTR)
			return pgctl_fail(p, PGCTL_FAILED, NULL, "cannot wait for howdahd: %s",
				strerror(errno));
	}
	if (!WIFEXITED(status))
		return pgctl_fail(p, PGCTL_FAILED, "its log has the reason",
			"howdahd was ended by signal %d", WTERMSIG(status));
	int code = WEXITSTATUS(status);
	if (code == 127)
		return pgctl_fail(p, PGCTL_FAILED, "install the package howdah completely",
			"howdahd cannot be run");
	return code == 0 ? PGCTL_OK : code == PGCTL_CONFIG ? PGCTL_CONFIG : PGCTL_FAILED;
}

int cmd_config_check(struct pgctl *p, json_t *args)
{
	const char *file = json_string_value(json_object_get(args, "file"));
	if (file == NULL)
		file = p->conf_given != NULL ? p->conf_given : HOWDAH_SYSCONFDIR "/howdah.conf";
	char *howdahd = place_beside("sbin/howdahd", HOWDAH_SBINDIR "/howdahd");
	fflush(p->out.f);
	pid_t pid = fork();
	if (pid == 0) {
		execl(howdahd, "howdahd", "-t", "-c", file, (char *)NULL);
		_exit(127);
	}
	int status = pid < 0 ? pgctl_fail(p, PGCTL_FAILED, "end other processes",
				       "cannot start howdahd: %s", strerror(errno))
			     : wait_for(p, pid);
	free(howdahd);
	if (status == PGCTL_OK || status == PGCTL_CONFIG) {
		json_t *row = json_pack("{s:s,s:s}", "file", file, "verdict",
			status == PGCTL_OK ? "ok" : "wrong: howdahd has said where");
		if (row != NULL)
			output_row(&p->out, row);
		json_decref(row);
	}
	return status;
}
