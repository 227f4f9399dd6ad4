/* SPDX-License-Identifier: PostgreSQL */
/*
 * pgctl help: the command table for people.
 */
#include "config.h"

#include <string.h>

#include "common/base/buf.h"
#include "pgctl/args.h"
#include "pgctl/pgctl.h"

void help_usage(FILE *f)
{
	fputs("usage: pgctl [-s SOCKET] [-c FILE] [-j] COMMAND …\n"
	      "  -s SOCKET  control socket of the suite (default: run_dir of FILE, or\n"
	      "             /run/howdah, and there control.sock)\n"
	      "  -c FILE    configuration of the suite\n"
	      "  -j         JSON lines\n"
	      "  -h, -V     this text, the version\n"
	      "exit status: 0 done, 1 failed, 2 usage, 3 the suite does not answer, 4 not "
	      "permitted,\n"
	      "78 the configuration is wrong\n"
	      "pgctl help lists the commands.\n",
		f);
}

static void put_command(struct pgctl *p, const struct ctl_command *c)
{
	struct buf words;
	buf_init(&words, 0);
	args_put_words(&words, c->name);
	if (c->args[0] != '\0')
		buf_printf(&words, " %s", c->args);
	json_t *row = json_pack("{s:s,s:s,s:s}", "command", buf_cstr(&words), "who",
		c->perm == CTL_PERM_ADMIN ? "admin" : "reader", "what", c->help);
	if (row != NULL)
		output_row(&p->out, row);
	json_decref(row);
	buf_free(&words);
}

int cmd_help(struct pgctl *p, json_t *args)
{
	const char *only = json_string_value(json_object_get(args, "command"));
	size_t len = only != NULL ? strlen(only) : 0;
	bool any = false;
	for (const struct ctl_command *c = ctl_table; c->name != NULL; c++) {
		/* "mqtt" shows all that begin with it. */
		if (only != NULL && (strncmp(c->name, only, len) != 0 ||
					    (c->name[len] != '\0' && c->name[len] != '.')))
			continue;
		put_command(p, c);
		any = true;
	}
	if (!any)
		return pgctl_fail(p, PGCTL_USAGE, "pgctl help lists the commands",
			"there is no command \"%s\"", only);
	return PGCTL_OK;
}
