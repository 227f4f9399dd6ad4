/* SPDX-License-Identifier: PostgreSQL */
/*
 * Installs and upgrades the database schema from numbered files.
 *
 * Context: blocking; helper processes and pgctl, never an event loop.
 *
 * Invariants: the files of a part are numbered 1, 2, 3 … without a gap; howdah.schema_version has
 * one row per file that was applied; a file and its row are committed together, with everything
 * else that was missing, or not at all. Two that upgrade at once: the second waits for the first
 * and finds nothing left to do.
 *
 * On crash: the server rolls back.
 * See: tests/unit/test_schema.c.
 */
#include "config.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/base/err.h"
#include "common/base/mem.h"
#include "common/pg/pgconn.h"
#include "common/pg/schema.h"

#define FILES_MAX 9999
#define FILE_BYTES_MAX (1024 * 1024)
#define LOCK_KEY "8028911407713285"

static const char *const parts[] = {"howdah", "howdah_mqtt", "howdah_watch"};

_Static_assert(sizeof parts / sizeof parts[0] <= SCHEMA_PARTS_MAX, "room for every part");

static int failed(PGresult *res, struct buf *why, const char *what)
{
	char text[512];

	buf_printf(why, "%s: %s", what, pg_result_error(res, text, sizeof text));
	PQclear(res);
	return -EIO;
}

static int run(PGconn *pg, const char *sql, struct buf *why, const char *what)
{
	PGresult *res = PQexec(pg, sql);
	ExecStatusType status = PQresultStatus(res);

	if (status != PGRES_COMMAND_OK && status != PGRES_TUPLES_OK && status != PGRES_EMPTY_QUERY)
		return failed(res, why, what);
	PQclear(res);
	return 0;
}

/* NNNN of "NNNN-what.sql"; 0 if it is no such name. */
static int file_number(const char *name)
{
	size_t len = strlen(name);

	for (size_t i = 0; i < 4; i++)
		if (!isdigit((unsigned char)name[i]))
			return 0;
	if (name[4] != '-' || len < 10 || strcmp(name + len - 4, ".sql") != 0)
		return 0;
	return atoi(name);
}

/*
 * Names of a part's files, index = number - 1; ret_names[i] for the caller to free. A folder that
 * is not there is a part that this build does not bring.
 */
static int list_files(const char *sql_dir, const char *part, char *ret_names[FILES_MAX], int *ret_n,
	struct buf *why)
{
	char *path = xasprintf("%s/%s", sql_dir, part);
	DIR *dir = opendir(path);
	struct dirent *entry;
	int n = 0, err = 0;

	if (dir == NULL && errno != ENOENT) {
		buf_printf(why, "cannot read %s: %s", path, strerror(errno));
		err = -ERR_CONFIG;
	}
	while (dir != NULL && err == 0 && (entry = readdir(dir)) != NULL) {
		int number = file_number(entry->d_name);

		if (number == 0)
			continue;
		if (ret_names[number - 1] != NULL) {
			buf_printf(why, "%s: two files with number %04d", path, number);
			err = -ERR_CONFIG;
			break;
		}
		ret_names[number - 1] = xstrdup(entry->d_name);
		if (number > n)
			n = number;
	}
	if (dir != NULL)
		closedir(dir);
	for (int i = 0; i < n && err == 0; i++)
		if (ret_names[i] == NULL) {
			buf_printf(why, "%s: file %04d is missing; the installation is incomplete",
				path, i + 1);
			err = -ERR_CONFIG;
		}
	*ret_n = n;
	free(path);
	return err;
}

static void free_names(char **names)
{
	for (int i = 0; i < FILES_MAX; i++)
		free(names[i]);
	free(names);
}

/* Highest version installed of each part; all 0 when nothing is there yet. */
static int read_installed(PGconn *pg, int ret_installed[SCHEMA_PARTS_MAX], struct buf *why)
{
	PGresult *res = PQexec(pg, "SELECT to_regclass('howdah.schema_version') IS NOT NULL");
	bool there;

	memset(ret_installed, 0, SCHEMA_PARTS_MAX * sizeof *ret_installed);
	if (PQresultStatus(res) != PGRES_TUPLES_OK)
		return failed(res, why, "cannot read the schema's version");
	there = strcmp(PQgetvalue(res, 0, 0), "t") == 0;
	PQclear(res);
	if (!there)
		return 0;
	res = PQexec(pg, "SELECT part, max(version) FROM howdah.schema_version GROUP BY part");
	if (PQresultStatus(res) != PGRES_TUPLES_OK)
		return failed(res, why, "cannot read howdah.schema_version");
	for (int i = 0; i < PQntuples(res); i++)
		for (size_t p = 0; p < ARRAY_LEN(parts); p++)
			if (strcmp(parts[p], PQgetvalue(res, i, 0)) == 0)
				ret_installed[p] = atoi(PQgetvalue(res, i, 1));
	PQclear(res);
	return 0;
}

static int check_versions(const struct schema_status *status, size_t n, struct buf *why)
{
	for (size_t i = 0; i < n; i++)
		if (status[i].installed > status[i].available) {
			buf_printf(why,
				"the database's schema %s is at version %d, this build knows up to "
				"%d; install the newer build that upgraded it",
				status[i].part, status[i].installed, status[i].available);
			return -ERR_VERSION;
		}
	return 0;
}

static int read_status(PGconn *pg, const char *sql_dir,
	struct schema_status ret_status[SCHEMA_PARTS_MAX], size_t *ret_n, struct buf *why)
{
	int installed[SCHEMA_PARTS_MAX];
	struct stat st;
	int err;

	if (stat(sql_dir, &st) != 0) {
		buf_printf(why, "cannot read %s: %s; the installation is incomplete", sql_dir,
			strerror(errno));
		return -ERR_CONFIG;
	}
	err = read_installed(pg, installed, why);
	for (size_t p = 0; p < ARRAY_LEN(parts) && err == 0; p++) {
		char **names = xcalloc(FILES_MAX, sizeof *names);
		int n = 0;

		err = list_files(sql_dir, parts[p], names, &n, why);
		ret_status[p] = (struct schema_status){
			.part = parts[p], .installed = installed[p], .available = n};
		free_names(names);
	}
	if (err == 0)
		*ret_n = ARRAY_LEN(parts);
	return err;
}

int schema_status(PGconn *pg, const char *sql_dir,
	struct schema_status ret_status[SCHEMA_PARTS_MAX], size_t *ret_n, struct buf *why)
{
	int err = read_status(pg, sql_dir, ret_status, ret_n, why);

	return err != 0 ? err : check_versions(ret_status, *ret_n, why);
}

/* The text of a file, zero-terminated, for the caller to free; NULL with why. */
static char *read_file(const char *path, struct buf *why)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	char *text = NULL;
	struct stat st;
	ssize_t n = 0;

	if (fd < 0 || fstat(fd, &st) != 0) {
		buf_printf(why, "cannot read %s: %s", path, strerror(errno));
	} else if (st.st_size > FILE_BYTES_MAX) {
		buf_printf(why, "%s is larger than 1 MB", path);
	} else {
		size_t have = 0;

		text = xmalloc((size_t)st.st_size + 1);
		while (have < (size_t)st.st_size &&
			(n = read(fd, text + have, (size_t)st.st_size - have)) > 0)
			have += (size_t)n;
		text[have] = '\0';
		if (have != (size_t)st.st_size || strlen(text) != have) {
			buf_printf(why, "cannot read %s as text", path);
			free(text);
			text = NULL;
		}
	}
	if (fd >= 0)
		close(fd);
	return text;
}

static int remember(PGconn *pg, const char *part, int version, struct buf *why)
{
	char number[16];
	const char *values[] = {part, number};
	PGresult *res;

	snprintf(number, sizeof number, "%d", version);
	res = PQexecParams(pg,
		"INSERT INTO howdah.schema_version (part, version) VALUES ($1, $2::int)", 2, NULL,
		values, NULL, NULL, 0);
	if (PQresultStatus(res) != PGRES_COMMAND_OK)
		return failed(res, why, "cannot write howdah.schema_version");
	PQclear(res);
	return 0;
}

static int apply_file(PGconn *pg, const char *path, const char *part, int version, struct buf *why)
{
	char *text = read_file(path, why);
	int err;

	if (text == NULL)
		return -ERR_CONFIG;
	err = run(pg, text, why, path);
	free(text);
	if (err == 0 && PQtransactionStatus(pg) != PQTRANS_INTRANS) {
		buf_printf(why, "%s: ends the transaction that it is applied in", path);
		err = -ERR_CONFIG;
	}
	return err != 0 ? err : remember(pg, part, version, why);
}

static int apply_part(PGconn *pg, const char *sql_dir, const struct schema_status *status,
	size_t *applied, struct buf *why)
{
	char **names = xcalloc(FILES_MAX, sizeof *names);
	int n = 0;
	int err = list_files(sql_dir, status->part, names, &n, why);

	for (int i = status->installed; i < n && err == 0; i++) {
		char *path = xasprintf("%s/%s/%s", sql_dir, status->part, names[i]);

		err = apply_file(pg, path, status->part, i + 1, why);
		free(path);
		if (err == 0)
			(*applied)++;
	}
	free_names(names);
	return err;
}

static const char create_version_table[] =
	"CREATE SCHEMA IF NOT EXISTS howdah;"
	"CREATE TABLE IF NOT EXISTS howdah.schema_version ("
	" part text NOT NULL, version int NOT NULL, applied_at timestamptz NOT NULL DEFAULT now(),"
	" PRIMARY KEY (part, version))";

/* Inside the transaction: everything that is missing. */
static int upgrade_locked(PGconn *pg, const char *sql_dir, size_t *applied, struct buf *why)
{
	struct schema_status status[SCHEMA_PARTS_MAX];
	size_t n = 0;
	bool missing = false;
	int err = read_status(pg, sql_dir, status, &n, why);

	if (err == 0)
		err = check_versions(status, n, why);
	for (size_t i = 0; i < n; i++)
		missing |= status[i].installed < status[i].available;
	/* Asked for only when needed: a role without CREATE may still check a finished schema. */
	if (err == 0 && missing)
		err = run(pg, create_version_table, why, "cannot create howdah.schema_version");
	for (size_t i = 0; i < n && err == 0; i++)
		err = apply_part(pg, sql_dir, &status[i], applied, why);
	return err;
}

int schema_upgrade(PGconn *pg, const char *sql_dir, size_t *ret_applied, struct buf *why)
{
	static const char begin[] =
		"BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL client_min_messages = warning;"
		"SET LOCAL client_encoding = 'UTF8'; SELECT pg_advisory_xact_lock(" LOCK_KEY ")";
	size_t applied = 0;
	int err = run(pg, begin, why, "cannot begin the upgrade");

	if (err == 0)
		err = upgrade_locked(pg, sql_dir, &applied, why);
	if (err == 0)
		err = run(pg, "COMMIT", why, "cannot commit the upgrade");
	if (err == 0)
		*ret_applied = applied;
	else if (PQtransactionStatus(pg) != PQTRANS_IDLE)
		PQclear(PQexec(pg, "ROLLBACK"));
	return err;
}
