/* SPDX-License-Identifier: PostgreSQL */
/*
 * pgctl: main. Everything is in libpgctl, so that tests link it.
 */
#include "config.h"

#include <signal.h>
#include <stdio.h>

#include "common/base/log.h"
#include "pgctl/pgctl.h"

int main(int argc, char **argv)
{
	/* A pager that was left is an error of writing, not a signal. */
	signal(SIGPIPE, SIG_IGN);
	log_init("pgctl", LOG_LEVEL_WARNING);
	return pgctl_run(argc, argv, stdout, stderr);
}
