/* SPDX-License-Identifier: PostgreSQL */
/*
 * Where things are: the database, the node's name, the folders; from the running suite or from a
 * configuration file. And a blocking connection to that database, with its errors told.
 */
#ifndef PGCTL_PLACE_H
#define PGCTL_PLACE_H

#include <libpq-fe.h>
#include <stdbool.h>

#include "pgctl/pgctl.h"

#define PLACE_RUN_DIR "/run/howdah"

struct place {
	char *conf_file;
	char *run_dir;
	char *node;
	char *datadir;
	char *conninfo;
	bool embedded;
};

/* With -c from FILE, else from the running suite, else from the default file. An exit status; on
 * failure it has been said why. */
int place_find(struct pgctl *p, struct place *ret_place);
int place_from_file(struct pgctl *p, const char *file, struct place *ret_place);
void place_free(struct place *place);

/* What belongs to this pgctl: PREFIX/rel of the tree that it stands in (a moved or staged one),
 * else where it was installed. Owned by the caller. */
char *place_beside(const char *rel, const char *installed);

struct db {
	struct pgctl *p; /* borrowed */
	PGconn *pg;
	struct place place;
};

/* Finds and connects. An exit status; on failure it has been said why and db is empty. */
int db_open(struct pgctl *p, struct db *db);
void db_close(struct db *db);
/* One statement with text parameters; values may hold NULL. On failure NULL, said why, and
 * *ret_status is the exit status. */
PGresult *db_query(
	struct db *db, const char *sql, int n_values, const char *const *values, int *ret_status);
/* The statement's rows to the output; an exit status. */
int db_print(struct db *db, const char *sql, int n_values, const char *const *values);
/* Says why res failed; returns the exit status. */
int db_failed(struct db *db, const PGresult *res);

#endif
