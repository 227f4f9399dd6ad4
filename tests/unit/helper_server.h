/* SPDX-License-Identifier: PostgreSQL */
/*
 * The server of tests/helpers/with-postgres stopped, started and moved about, as the user that owns
 * it.
 */
#ifndef TESTS_UNIT_HELPER_SERVER_H
#define TESTS_UNIT_HELPER_SERVER_H

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

/* A shell's command as the owner of the data folder, which is $D; $B has the server's programs. */
static inline bool as_owner(const char *command)
{
	char text[2000], as[100] = "";
	struct stat st;
	const char *data = getenv("HOWDAH_TEST_PGDATA");
	if (stat(data, &st) != 0)
		return false;
	if (geteuid() == 0)
		snprintf(as, sizeof(as), "setpriv --reuid %u --regid %u --clear-groups --",
			(unsigned)st.st_uid, (unsigned)st.st_gid);
	snprintf(text, sizeof(text),
		"cd / && D=%s B=%s P=%s %s sh -c '%s' >/dev/null 2>&1 </dev/null", data,
		getenv("HOWDAH_TEST_PGBIN"), getenv("PGPORT"), as, command);
	return system(text) == 0;
}

#define SERVER_CTL "$B/pg_ctl -D $D -s -w -t 120 -l $D/../server.log -o \"-p $P\" "

static inline bool server_crash(void)
{
	return as_owner(SERVER_CTL "-m immediate restart");
}

static inline bool server_start(void)
{
	return as_owner(SERVER_CTL "start");
}

static inline bool server_stop(void)
{
	return as_owner(SERVER_CTL "-m fast stop");
}

static inline bool server_kill(void)
{
	return as_owner(SERVER_CTL "-m immediate stop");
}

/* The stopped server comes back on a timeline of its own. */
static inline bool server_start_promoted(void)
{
	return as_owner("touch $D/standby.signal") && server_start() &&
	       as_owner(SERVER_CTL "promote");
}

#endif
