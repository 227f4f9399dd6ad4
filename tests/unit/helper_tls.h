/* SPDX-License-Identifier: PostgreSQL */
/*
 * A certificate of its own for a test's server, by the openssl program. Include after cmocka.h.
 */
#ifndef TESTS_UNIT_HELPER_TLS_H
#define TESTS_UNIT_HELPER_TLS_H

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

/* dir/server.crt and dir/server.key, owned by dir's owner. False: there is no openssl. */
static inline bool make_certificate(const char *dir)
{
	char text[1000];
	struct stat st;
	if (stat(dir, &st) != 0)
		return false;
	snprintf(text, sizeof(text),
		"openssl req -new -x509 -days 30 -nodes -newkey rsa:2048 -subj /CN=localhost "
		"-out %s/server.crt -keyout %s/server.key >/dev/null 2>&1 && "
		"chmod 600 %s/server.key",
		dir, dir, dir);
	if (system(text) != 0)
		return false;
	const char *const names[] = {"server.crt", "server.key"};
	for (int i = 0; i < 2; i++) {
		snprintf(text, sizeof(text), "%s/%s", dir, names[i]);
		if (geteuid() == 0 && chown(text, st.st_uid, st.st_gid) != 0)
			return false;
	}
	return true;
}

#endif
