/* SPDX-License-Identifier: PostgreSQL */
/*
 * From the command line to a command: global options, the table, the exit status.
 *
 * Context: pgctl.
 */
#include "config.h"

#include <errno.h>
#include <getopt.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/buf.h"
#include "common/base/err.h"
#include "common/base/mem.h"
#include "pgctl/args.h"
#include "pgctl/output.h"
#include "pgctl/pgctl.h"
#include "pgctl/place.h"

static const struct pgctl_local locals[] = {
	{"bench.pipeline", cmd_bench_pipeline},
	{"bench.wal", cmd_bench_wal},
	{"bench.watch", cmd_bench_watch},
	{"config.check", cmd_config_check},
	{"db.init", cmd_db_init},
	{"db.upgrade", cmd_db_upgrade},
	{"db.status", cmd_db_status},
	{"node.list", cmd_node_list},
	{"node.remove", cmd_node_remove},
	{"mqtt.map.add", cmd_map_add},
	{"mqtt.map.list", cmd_map_list},
	{"mqtt.map.remove", cmd_map_remove},
	{"wal.slots", cmd_wal_slots},
	{"wal.tail", cmd_wal_tail},
	{"wal.slots.create", cmd_wal_slots_create},
	{"wal.slots.alter", cmd_wal_slots_alter},
	{"wal.slots.drop", cmd_wal_slots_drop},
	{"doctor", cmd_doctor},
	{"help", cmd_help},
};

/* What the table for people shows; JSON lines carry everything. */
static const struct {
	const char *name, *columns;
} shown[] = {
	{"status", "worker,state,pid,restarts,last_exit,uptime_s,text"},
	{"wal.slots", "name,type,plugin,database,active,temporary,two_phase,failover,wal_status,"
		      "retained_bytes,safe_wal_size,invalidation,lag_bytes"},
	{"stats", "worker,name,value,unit,help"},
	{"mqtt.sessions", "client_id,version,address,keep_alive_s,subscriptions,queued,inflight,"
			  "received,sent,dropped,paused,congested"},
};

/* One line to standard error; with -j {KIND: {…}}. status < 0: none. */
static void say(
	struct pgctl *p, const char *kind, int status, const char *message, const char *hint)
{
	if (!p->json) {
		fprintf(p->err, "pgctl: %s%s%s%s\n", status < 0 ? "warning: " : "", message,
			hint != NULL ? "; " : "", hint != NULL ? hint : "");
		return;
	}
	json_t *body = json_object();
	if (status >= 0)
		json_object_set_new(body, "status", json_integer(status));
	json_object_set_new(body, "message", json_string(message));
	json_object_set_new(body, "hint", hint != NULL ? json_string(hint) : json_null());
	json_t *line = json_pack("{s:o}", kind, body);
	if (line != NULL)
		(void)json_dumpf(line, p->err, JSON_COMPACT); /* nowhere else to complain */
	fputc('\n', p->err);
	json_decref(line);
}

int pgctl_fail(struct pgctl *p, int status, const char *hint, const char *fmt, ...)
{
	char text[4096];
	va_list ap;
	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	say(p, "error", status, text, hint);
	return status;
}

void pgctl_warn(struct pgctl *p, const char *hint, const char *fmt, ...)
{
	char text[4096];
	va_list ap;
	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	say(p, "warning", -1, text, hint);
}

const char *pgctl_socket(struct pgctl *p, int *ret_status)
{
	if (p->socket != NULL)
		return p->socket;
	if (p->socket_given != NULL) {
		p->socket = xstrdup(p->socket_given);
	} else if (p->conf_given != NULL) {
		struct place place;
		*ret_status = place_from_file(p, p->conf_given, &place);
		if (*ret_status != PGCTL_OK)
			return NULL;
		p->socket = xasprintf("%s/control.sock", place.run_dir);
		place_free(&place);
	} else {
		p->socket = xstrdup(PLACE_RUN_DIR "/control.sock");
	}
	return p->socket;
}

static int connect_failed(struct pgctl *p, const char *socket, int err)
{
	if (err == -EACCES || err == -EPERM)
		return pgctl_fail(p, PGCTL_DENIED, "run it as root or as the suite's user",
			"cannot connect to %s: %s", socket, err_str(err));
	return pgctl_fail(p, PGCTL_UNREACHABLE,
		"start it (howdahd, see howdahd(8)), or name its socket with -s or its "
		"configuration with -c",
		"the suite does not answer on %s: %s", socket, err_str(err));
}

/* Which exit status an error object of a daemon means. */
static int call_failed(struct pgctl *p, const char *cmd, int err, const json_t *error)
{
	static const struct {
		const char *cmd, *code;
		int status;
	} rows[] = {
		{NULL, "permission", PGCTL_DENIED},
		{NULL, "unavailable", PGCTL_UNREACHABLE},
		{"reload", "invalid", PGCTL_CONFIG},
		{NULL, NULL, PGCTL_FAILED},
	};
	if (error == NULL)
		return pgctl_fail(p, PGCTL_UNREACHABLE, "pgctl status shows whether it is back",
			"the suite broke off its answer: %s", err_str(err));
	const char *code = json_string_value(json_object_get(error, "code"));
	const char *message = json_string_value(json_object_get(error, "message"));
	const char *hint = json_string_value(json_object_get(error, "hint"));
	size_t i = 0;
	while (rows[i].code != NULL && ((rows[i].cmd != NULL && strcmp(rows[i].cmd, cmd) != 0) ||
					       code == NULL || strcmp(rows[i].code, code) != 0))
		i++;
	return pgctl_fail(p, rows[i].status, hint, "%s", message != NULL ? message : "it failed");
}

static void print_row(json_t *row, void *arg)
{
	struct pgctl *p = arg;
	output_row(&p->out, row);
}

int pgctl_call(struct pgctl *p, const char *cmd, json_t *args,
	void (*on_row)(json_t *row, void *arg), void *arg)
{
	struct ctl_conn *conn = NULL;
	json_t *error = NULL;
	int status = PGCTL_OK;
	const char *socket = pgctl_socket(p, &status);
	if (socket == NULL)
		return status;
	int err = ctl_connect(socket, &conn);
	if (err != 0)
		return connect_failed(p, socket, err);
	err = ctl_call(conn, cmd, json_incref(args), on_row != NULL ? on_row : print_row,
		on_row != NULL ? arg : p, &error);
	if (err != 0)
		status = call_failed(p, cmd, err, error);
	json_decref(error);
	ctl_disconnect(&conn);
	return status;
}

/* The figures and last words of the workers that have no column. */
static void print_status_notes(struct pgctl *p, json_t *rows)
{
	json_t *row, *value;
	size_t i;
	const char *key;
	json_array_foreach(rows, i, row)
	{
		const char *worker = json_string_value(json_object_get(row, "worker"));
		json_object_foreach(row, key, value)
		{
			static const char known[] = ",worker,state,pid,restarts,deaths,last_exit,"
						    "uptime_s,text,generation,";
			char needle[64];
			snprintf(needle, sizeof(needle), ",%s,", key);
			bool empty = json_is_null(value) ||
				     (json_is_string(value) && *json_string_value(value) == '\0');
			if (empty || worker == NULL || strstr(known, needle) != NULL)
				continue;
			json_t *note = json_pack(
				"{s:s,s:s,s:O}", "worker", worker, "figure", key, "value", value);
			if (note != NULL)
				output_row(&p->out, note);
			json_decref(note);
		}
	}
}

static void keep_row(json_t *row, void *arg)
{
	(void)json_array_append(arg, row); /* a handful: one for each worker */
}

static int run_status(struct pgctl *p, json_t *args)
{
	json_t *rows = json_array(), *row;
	size_t i;
	int status = pgctl_call(p, "status", args, keep_row, rows);
	json_array_foreach(rows, i, row) output_row(&p->out, row);
	if (!p->json && status == PGCTL_OK) {
		struct output table = p->out;
		status = output_end(&table) == 0 ? PGCTL_OK : PGCTL_FAILED;
		fputc('\n', table.f);
		output_init(&p->out, table.f, false);
		print_status_notes(p, rows);
	}
	json_decref(rows);
	return status;
}

/* Bytes of a row: as they are if they are text, else in hexadecimal. */
static void print_bytes(struct pgctl *p, const json_t *row, const char *name)
{
	char hex[40];
	snprintf(hex, sizeof(hex), "%s_hex", name);
	const json_t *text = json_object_get(row, name), *digits = json_object_get(row, hex);
	if (text == NULL && digits == NULL)
		return;
	fputs(digits != NULL ? " \\x" : " ", p->out.f);
	output_value(&p->out, digits != NULL ? digits : text);
}

/* Each event as it comes. The answers between them show people nothing. */
static void print_event(json_t *row, void *arg)
{
	struct pgctl *p = arg;
	const char *type = json_string_value(json_object_get(row, "type"));
	if (p->json) {
		(void)json_dumpf(row, p->out.f, JSON_COMPACT);
		fputc('\n', p->out.f);
	} else if (type != NULL && strcmp(type, "PROGRESS") != 0) {
		fprintf(p->out.f, "%lld %s",
			(long long)json_integer_value(json_object_get(row, "mod_revision")), type);
		print_bytes(p, row, "key");
		print_bytes(p, row, "value");
		fputc('\n', p->out.f);
	}
	(void)fflush(p->out.f); /* output_end tells of an error */
}

static int run_command(struct pgctl *p, const struct ctl_command *cmd, json_t *args)
{
	for (size_t i = 0; i < ARRAY_LEN(shown); i++) {
		if (strcmp(shown[i].name, cmd->name) == 0)
			p->out.columns = shown[i].columns;
	}
	if (strcmp(cmd->name, "status") == 0)
		return run_status(p, args);
	if (strcmp(cmd->name, "watch.watch") == 0)
		return pgctl_call(p, cmd->name, args, print_event, p);
	if (cmd->target != ROLE_LOCAL)
		return pgctl_call(p, cmd->name, args, NULL, NULL);
	for (size_t i = 0; i < ARRAY_LEN(locals); i++) {
		if (strcmp(locals[i].name, cmd->name) == 0)
			return locals[i].fn(p, args);
	}
	return pgctl_fail(p, PGCTL_USAGE, "pgctl help lists the commands",
		"this pgctl does not know %s", cmd->name);
}

static int run_words(struct pgctl *p, const char *const *words, size_t n_words)
{
	const struct ctl_command *cmd;
	json_t *args;
	struct buf why;
	buf_init(&why, 0);
	int status;
	if (args_parse(words, n_words, &cmd, &args, &why) != 0) {
		status = pgctl_fail(p, PGCTL_USAGE, NULL, "%s", buf_cstr(&why));
	} else {
		status = run_command(p, cmd, args);
		json_decref(args);
	}
	buf_free(&why);
	return status;
}

/* 0: go on with words; else the exit status plus 1. */
static int global_options(struct pgctl *p, int argc, char **argv)
{
	static const struct option longs[] = {{"help", no_argument, NULL, 'h'},
		{"version", no_argument, NULL, 'V'}, {NULL, 0, NULL, 0}};
	int c;
	optind = 0; /* from the start, also when a test calls again */
	opterr = 0;
	while ((c = getopt_long(argc, argv, "+:s:c:jhV", longs, NULL)) != -1) {
		switch (c) {
		case 's':
			p->socket_given = optarg;
			break;
		case 'c':
			p->conf_given = optarg;
			break;
		case 'j':
			p->json = true;
			break;
		case 'h':
			help_usage(p->out.f);
			return PGCTL_OK + 1;
		case 'V':
			fprintf(p->out.f, "pgctl (howdah) %s\n", HOWDAH_VERSION);
			return PGCTL_OK + 1;
		case ':':
			return pgctl_fail(p, PGCTL_USAGE, "pgctl -h shows how", "-%c needs a value",
				       optopt) +
			       1;
		default:
			return pgctl_fail(p, PGCTL_USAGE, "pgctl -h shows them",
				       "there is no option %s", argv[optind - 1]) +
			       1;
		}
	}
	return 0;
}

int pgctl_run(int argc, char **argv, FILE *out, FILE *err)
{
	struct pgctl p = {.err = err};
	output_init(&p.out, out, false);
	int status = global_options(&p, argc, argv);
	p.out.json = p.json;
	if (status != 0) {
		status--;
	} else if (optind == argc) {
		help_usage(err);
		status = PGCTL_USAGE;
	} else {
		status = run_words(&p, (const char *const *)argv + optind, (size_t)(argc - optind));
	}
	int wrote = output_end(&p.out);
	if (wrote == -EPIPE && status == PGCTL_OK)
		status = PGCTL_FAILED; /* the reader has seen enough: nobody to complain to */
	else if (wrote != 0 && status == PGCTL_OK)
		status = pgctl_fail(&p, PGCTL_FAILED, "look for room on its disk",
			"cannot write the answer: %s", err_str(wrote));
	free(p.socket);
	return status;
}
