/* SPDX-License-Identifier: PostgreSQL */
/*
 * The place and its database: see place.h. Of the configuration only the keys that say where things
 * are get judged here; `pgctl config check` judges the rest.
 *
 * Context: pgctl; everything blocks.
 */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <libconfig.h>
#include <libgen.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/base/conf.h"
#include "common/base/err.h"
#include "common/base/mem.h"
#include "common/base/node_name.h"
#include "common/pg/pgconf.h"
#include "pgctl/place.h"

#define FOREIGN_MAX 64
#define CONNECT_TIMEOUT_S "10"

static const struct conf_row place_rows[] = {
	{.path = "node",
		.type = CONF_STRING,
		.max = NODE_NAME_MAX,
		.def = "",
		.help = "the node's name"},
	{.path = "run_dir",
		.type = CONF_STRING,
		.min = 1,
		.max = 512,
		.def = PLACE_RUN_DIR,
		.help = "sockets"},
	{.path = NULL},
};
static const struct conf_row *const schemas[] = {place_rows, pgconf_rows, NULL};

void place_free(struct place *place)
{
	free(place->conf_file);
	free(place->run_dir);
	free(place->node);
	free(place->datadir);
	if (place->conninfo != NULL)
		explicit_bzero(place->conninfo, strlen(place->conninfo));
	free(place->conninfo);
	*place = (struct place){0};
}

char *place_beside(const char *rel, const char *installed)
{
	char exe[PATH_MAX];
	ssize_t n = readlink("/proc/self/exe", exe, sizeof(exe) - 1);
	if (n > 0) {
		exe[n] = '\0';
		char *path = xasprintf("%s/../%s", dirname(exe), rel);
		if (access(path, R_OK) == 0)
			return path;
		free(path);
	}
	return xstrdup(installed);
}

/* Top-level names that are none of our business; borrowed from cfg. */
static void foreign_names(const config_t *cfg, const char **names)
{
	size_t n = 0;
	config_setting_t *root = config_root_setting(cfg);
	for (int i = 0; i < config_setting_length(root) && n < FOREIGN_MAX; i++) {
		const char *name = config_setting_name(config_setting_get_elem(root, (unsigned)i));
		if (strcmp(name, "node") != 0 && strcmp(name, "run_dir") != 0 &&
			strcmp(name, "postgres") != 0)
			names[n++] = name;
	}
	names[n] = NULL;
}

static int parse_file(struct pgctl *p, int fd, const char *file, struct conf **ret_conf)
{
	const char *foreign[FOREIGN_MAX + 1] = {NULL};
	config_t cfg;
	struct buf errors;
	config_init(&cfg);
	buf_init(&errors, 0);
	FILE *f = fdopen(dup(fd), "r");
	/* What cannot be read is said by conf_parse_fd below. */
	if (f != NULL && config_read(&cfg, f) == CONFIG_TRUE)
		foreign_names(&cfg, foreign);
	if (f != NULL)
		fclose(f);
	int err = conf_parse_fd(fd, file, schemas, foreign, ret_conf, &errors);
	config_destroy(&cfg);
	int status = PGCTL_OK;
	if (err != 0) {
		char *first = xstrndup(buf_cstr(&errors), strcspn(buf_cstr(&errors), "\n"));
		status = pgctl_fail(p, PGCTL_CONFIG, "pgctl config check lists every finding", "%s",
			*first != '\0' ? first : err_str(err));
		free(first);
	}
	buf_free(&errors);
	return status;
}

int place_from_file(struct pgctl *p, const char *file, struct place *ret_place)
{
	struct conf *conf = NULL;
	*ret_place = (struct place){0};
	int fd = open(file, O_RDONLY | O_CLOEXEC);
	if (fd < 0) {
		int status = errno == EACCES ? PGCTL_DENIED : PGCTL_CONFIG;
		return pgctl_fail(p, status,
			status == PGCTL_DENIED ? "run it as root or as the suite's user"
					       : "name the configuration with -c",
			"cannot read %s: %s", file, strerror(errno));
	}
	int status = parse_file(p, fd, file, &conf);
	close(fd);
	if (status != PGCTL_OK)
		return status;
	const char *node = conf_str(conf, "node");
	*ret_place = (struct place){
		.conf_file = xstrdup(file),
		.run_dir = xstrdup(conf_str(conf, "run_dir")),
		.node = *node != '\0' ? xstrdup(node) : node_name_default(),
		.datadir = place_beside("share/howdah", HOWDAH_DATADIR),
		.conninfo = pgconf_conninfo(conf, conf_str(conf, "run_dir")),
		.embedded = pgconf_is_embedded(conf),
	};
	conf_free(&conf);
	return PGCTL_OK;
}

static void take_info(json_t *row, void *arg)
{
	json_t **info = arg;
	json_decref(*info);
	*info = json_incref(row);
}

static void take_string(char **field, const json_t *info, const char *key)
{
	const char *text = json_string_value(json_object_get(info, key));
	if (text == NULL || *text == '\0')
		return;
	free(*field);
	*field = xstrdup(text);
}

static bool suite_listens(struct pgctl *p)
{
	struct ctl_conn *conn = NULL;
	int status;
	const char *socket = pgctl_socket(p, &status);
	bool there = socket != NULL && ctl_connect(socket, &conn) != -ENOENT;
	ctl_disconnect(&conn);
	return there;
}

int place_find(struct pgctl *p, struct place *ret_place)
{
	json_t *info = NULL;
	const char *def = HOWDAH_SYSCONFDIR "/howdah.conf";
	if (p->conf_given != NULL)
		return place_from_file(p, p->conf_given, ret_place);
	/* Not running and nothing said: the default file will do, if there is one. */
	if (p->socket_given == NULL && !suite_listens(p) && access(def, R_OK) == 0)
		return place_from_file(p, def, ret_place);
	int status = pgctl_call(p, "suite.info", NULL, take_info, &info);
	if (status != PGCTL_OK) {
		json_decref(info);
		return status;
	}
	const char *file = json_string_value(json_object_get(info, "conf_file"));
	status = place_from_file(p, file != NULL ? file : def, ret_place);
	if (status == PGCTL_OK) {
		take_string(&ret_place->node, info, "node");
		take_string(&ret_place->datadir, info, "datadir");
	}
	json_decref(info);
	return status;
}

/* ---- The database -------------------------------------------------------------------------- */

/* A warning is for the user; what is less than that is not: an error or a row says it. */
static void show_warning(void *arg, const PGresult *res)
{
	struct pgctl *p = arg;
	const char *severity = PQresultErrorField(res, PG_DIAG_SEVERITY_NONLOCALIZED);
	const char *message = PQresultErrorField(res, PG_DIAG_MESSAGE_PRIMARY);
	const char *hint = PQresultErrorField(res, PG_DIAG_MESSAGE_HINT);
	if (severity == NULL || strcmp(severity, "WARNING") != 0 || message == NULL)
		return;
	pgctl_warn(p, hint, "%s", message);
}

int db_open(struct pgctl *p, struct db *db)
{
	*db = (struct db){.p = p};
	int status = place_find(p, &db->place);
	if (status != PGCTL_OK)
		return status;
	const char *const keywords[] = {
		"connect_timeout", "client_encoding", "dbname", "application_name", NULL};
	const char *const values[] = {
		CONNECT_TIMEOUT_S, "UTF8", db->place.conninfo, "howdah pgctl", NULL};
	db->pg = PQconnectdbParams(keywords, values, 1);
	if (PQstatus(db->pg) == CONNECTION_OK) {
		PQsetNoticeReceiver(db->pg, show_warning, p);
		return PGCTL_OK;
	}
	char *why = xstrndup(PQerrorMessage(db->pg), strcspn(PQerrorMessage(db->pg), "\n"));
	status = pgctl_fail(p, PGCTL_FAILED,
		db->place.embedded ? "pgctl status shows whether the worker postgres is up"
				   : "mend postgres.conninfo, or start the server",
		"cannot connect to the database of %s: %s", db->place.conf_file, why);
	free(why);
	db_close(db);
	return status;
}

void db_close(struct db *db)
{
	PQfinish(db->pg);
	place_free(&db->place);
	*db = (struct db){0};
}

int db_failed(struct db *db, const PGresult *res)
{
	const char *state = PQresultErrorField(res, PG_DIAG_SQLSTATE);
	const char *message = PQresultErrorField(res, PG_DIAG_MESSAGE_PRIMARY);
	const char *hint = PQresultErrorField(res, PG_DIAG_MESSAGE_HINT);
	char *why = xstrndup(PQerrorMessage(db->pg), strcspn(PQerrorMessage(db->pg), "\n"));
	int status = PGCTL_FAILED;
	state = state != NULL ? state : "";
	if (strcmp(state, "42501") == 0) {
		status = PGCTL_DENIED;
		hint = hint != NULL
			       ? hint
			       : "connect as the owner of the schema howdah, see postgres.conninfo";
	} else if (hint == NULL && (strcmp(state, "3F000") == 0 || strcmp(state, "42883") == 0 ||
					   (strcmp(state, "42P01") == 0 && message != NULL &&
						   strstr(message, "howdah") != NULL))) {
		hint = "install the schema: pgctl db init";
	} else if (hint == NULL && strcmp(state, "42P01") == 0) {
		hint = "write it as schema.table; a dropped table is named by its relid, which "
		       "pgctl mqtt map list shows";
	}
	status = pgctl_fail(db->p, status, hint, "%s", message != NULL ? message : why);
	free(why);
	return status;
}

PGresult *db_query(
	struct db *db, const char *sql, int n_values, const char *const *values, int *ret_status)
{
	PGresult *res = PQexecParams(db->pg, sql, n_values, NULL, values, NULL, NULL, 0);
	if (PQresultStatus(res) == PGRES_TUPLES_OK || PQresultStatus(res) == PGRES_COMMAND_OK)
		return res;
	*ret_status = db_failed(db, res);
	PQclear(res);
	return NULL;
}

static json_t *cell(const PGresult *res, int row, int column)
{
	const char *text = PQgetvalue(res, row, column);
	if (PQgetisnull(res, row, column))
		return json_null();
	switch (PQftype(res, column)) {
	case 16: /* bool */
		return json_boolean(*text == 't');
	case 20: /* int8, int2, int4 */
	case 21:
	case 23:
		return json_integer(strtoll(text, NULL, 10));
	default: {
		json_t *value = json_string(text);
		return value != NULL ? value : json_null();
	}
	}
}

int db_print(struct db *db, const char *sql, int n_values, const char *const *values)
{
	int status = PGCTL_OK;
	PGresult *res = db_query(db, sql, n_values, values, &status);
	if (res == NULL)
		return status;
	for (int r = 0; r < PQntuples(res); r++) {
		json_t *row = json_object();
		for (int c = 0; c < PQnfields(res); c++)
			(void)json_object_set_new(row, PQfname(res, c), cell(res, r, c));
		output_row(&db->p->out, row);
		json_decref(row);
	}
	PQclear(res);
	return PGCTL_OK;
}
