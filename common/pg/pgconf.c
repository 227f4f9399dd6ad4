/* SPDX-License-Identifier: PostgreSQL */
/*
 * The rows of the "postgres" section.
 *
 * Context: any process, at start and reload. A conninfo may hold a password: it is a secret row and
 * is in no message.
 */
#include "config.h"

#include <libpq-fe.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/err.h"
#include "common/base/mem.h"
#include "common/pg/pgconf.h"

#define CONNINFO_BYTES_MAX 4096

static const char *validate_conninfo(const char *text)
{
	PQconninfoOption *options;

	if (*text == '\0')
		return NULL;
	options = PQconninfoParse(text, NULL);
	if (options == NULL)
		return "not a libpq connection string; write \"host=… dbname=… user=…\" or "
		       "\"postgresql://…\"";
	PQconninfoFree(options);
	return NULL;
}

const struct conf_row pgconf_rows[] = {
	{
		.path = "postgres.mode",
		.type = CONF_ENUM,
		.def = "embedded",
		.choices = "embedded|external",
		.reload = CONF_RESTART,
		.help = "run a database of our own, or use one that is there",
	},
	{
		.path = "postgres.conninfo",
		.type = CONF_STRING,
		.min = 0,
		.max = CONNINFO_BYTES_MAX,
		.def = "",
		.reload = CONF_WORKER,
		.secret = true,
		.validate = validate_conninfo,
		.help = "external: libpq connection string; several hosts allowed",
	},
	{
		.path = "postgres.bindir",
		.type = CONF_STRING,
		.min = 0,
		.max = 1024,
		.def = "",
		.reload = CONF_RESTART,
		.help = "embedded: folder of initdb and postgres; empty: the newest installed",
	},
	{.path = NULL},
};

bool pgconf_is_embedded(const struct conf *conf)
{
	return strcmp(conf_str(conf, "postgres.mode"), "embedded") == 0;
}

/* A libpq value in quotes; caller frees. */
static char *quoted(const char *value)
{
	char *out = xmalloc(2 * strlen(value) + 3);
	char *p = out;

	*p++ = '\'';
	for (; *value != '\0'; value++) {
		if (*value == '\'' || *value == '\\')
			*p++ = '\\';
		*p++ = *value;
	}
	*p++ = '\'';
	*p = '\0';
	return out;
}

char *pgconf_conninfo(const struct conf *conf, const char *run_dir)
{
	char *dir, *value, *conninfo;

	if (!pgconf_is_embedded(conf))
		return xstrdup(conf_str(conf, "postgres.conninfo"));
	dir = xasprintf("%s/postgres", run_dir);
	value = quoted(dir);
	conninfo = xasprintf("host=%s dbname=howdah user=howdah", value);
	free(value);
	free(dir);
	return conninfo;
}

int pgconf_check(const struct conf *conf, struct buf *errors)
{
	if (pgconf_is_embedded(conf) || *conf_str(conf, "postgres.conninfo") != '\0')
		return 0;
	if (errors != NULL)
		buf_printf(errors, "postgres.conninfo: required with mode = \"external\"; write "
				   "how to reach the "
				   "server, e.g. \"host=db1,db2 dbname=howdah user=howdah "
				   "target_session_attrs=read-write\"\n");
	return -ERR_CONFIG;
}
