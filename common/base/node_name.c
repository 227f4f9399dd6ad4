/* SPDX-License-Identifier: PostgreSQL */
/*
 * See node_name.h. Context: any process, at its start.
 */
#include "config.h"

#include <ctype.h>
#include <string.h>
#include <unistd.h>

#include "common/base/mem.h"
#include "common/base/node_name.h"

void node_name_fold(const char *host, char *out)
{
	size_t n = 0;
	for (; *host != '\0' && *host != '.' && n < NODE_NAME_MAX; host++) {
		unsigned char c = (unsigned char)*host;
		out[n++] = isascii(c) && isalnum(c) ? (char)tolower(c) : '_';
	}
	out[n] = '\0';
	if (n == 0)
		memcpy(out, "node", sizeof("node"));
}

char *node_name_default(void)
{
	char host[256], node[NODE_NAME_MAX + 1];
	if (gethostname(host, sizeof(host)) != 0)
		host[0] = '\0';
	host[sizeof(host) - 1] = '\0';
	node_name_fold(host, node);
	return xstrdup(node);
}
