/* SPDX-License-Identifier: PostgreSQL */
/*
 * pgctl db: the schema of the suite in its database.
 */
#include "config.h"

#include <stdlib.h>
#include <string.h>

#include "common/base/err.h"
#include "common/base/mem.h"
#include "common/pg/schema.h"
#include "pgctl/pgctl.h"
#include "pgctl/place.h"

struct schema {
	struct db db;
	char *sql_dir;
	struct schema_status parts[SCHEMA_PARTS_MAX];
	size_t n;
};

static int schema_said(struct schema *s, const char *what, int err, struct buf *why)
{
	const char *hint = "the server's log has more";
	if (err == -ERR_VERSION)
		hint = "install the version of howdah that this database was used with, or a newer "
		       "one";
	else if (err == -ERR_CONFIG)
		hint = "give this role what is missing, or name another one in postgres.conninfo";
	size_t len = strcspn(buf_cstr(why), "\n");
	return pgctl_fail(s->db.p, PGCTL_FAILED, hint, "cannot %s the schema: %.*s", what,
		len > 0 ? (int)len : (int)strlen(err_str(err)),
		len > 0 ? buf_cstr(why) : err_str(err));
}

static int schema_look(struct schema *s)
{
	struct buf why;
	buf_init(&why, 0);
	int err = schema_status(s->db.pg, s->sql_dir, s->parts, &s->n, &why);
	int status = err != 0 ? schema_said(s, "read", err, &why) : PGCTL_OK;
	buf_free(&why);
	return status;
}

static int schema_open(struct pgctl *p, struct schema *s)
{
	*s = (struct schema){.n = 0};
	int status = db_open(p, &s->db);
	if (status != PGCTL_OK)
		return status;
	s->sql_dir = xasprintf("%s/sql", s->db.place.datadir);
	return schema_look(s);
}

static void schema_close(struct schema *s)
{
	if (s->db.p != NULL)
		db_close(&s->db);
	free(s->sql_dir);
}

static void schema_print(struct schema *s)
{
	for (size_t i = 0; i < s->n; i++) {
		const struct schema_status *part = &s->parts[i];
		json_t *row = json_pack("{s:s,s:i,s:i,s:s}", "part", part->part, "installed",
			part->installed, "available", part->available, "state",
			part->installed == 0                ? "missing"
			: part->installed < part->available ? "old"
							    : "ok");
		if (row != NULL)
			output_row(&s->db.p->out, row);
		json_decref(row);
	}
}

static bool nothing_installed(const struct schema *s)
{
	for (size_t i = 0; i < s->n; i++) {
		if (s->parts[i].installed != 0)
			return false;
	}
	return true;
}

static int schema_install(struct schema *s)
{
	size_t applied;
	struct buf why;
	buf_init(&why, 0);
	int err = schema_upgrade(s->db.pg, s->sql_dir, &applied, &why);
	int status = err != 0 ? schema_said(s, "install", err, &why) : schema_look(s);
	buf_free(&why);
	if (status == PGCTL_OK)
		schema_print(s);
	return status;
}

int cmd_db_status(struct pgctl *p, json_t *args)
{
	struct schema s;
	(void)args; /* none */
	int status = schema_open(p, &s);
	if (status == PGCTL_OK)
		schema_print(&s);
	schema_close(&s);
	return status;
}

/* Also completes an older one: what is asked for is that the schema is there. */
int cmd_db_init(struct pgctl *p, json_t *args)
{
	struct schema s;
	(void)args; /* none */
	int status = schema_open(p, &s);
	if (status == PGCTL_OK)
		status = schema_install(&s);
	schema_close(&s);
	return status;
}

int cmd_db_upgrade(struct pgctl *p, json_t *args)
{
	struct schema s;
	(void)args; /* none */
	int status = schema_open(p, &s);
	if (status == PGCTL_OK && nothing_installed(&s))
		status = pgctl_fail(p, PGCTL_FAILED, "pgctl db init installs it",
			"there is no schema of howdah in this database");
	else if (status == PGCTL_OK)
		status = schema_install(&s);
	schema_close(&s);
	return status;
}
