/* SPDX-License-Identifier: PostgreSQL */
/*
 * Database and schema of the embedded PostgreSQL.
 *
 * Context: a helper process of the worker `postgres`; blocks as it likes. Killed at any point it
 * leaves nothing half-done: CREATE DATABASE and the schema's upgrade are atomic.
 */
#include "config.h"

#include <libpq-fe.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/base/buf.h"
#include "common/base/err.h"
#include "common/base/log.h"
#include "common/base/mem.h"
#include "common/pg/pgconn.h"
#include "common/pg/schema.h"
#include "supervisor/cluster.h"

#define CONNECT_TRIES 300
#define CONNECT_PAUSE_MS 200
#define WHY_MAX 65536

/* A connection, or NULL after many tries: the server may still be starting up. */
static PGconn *connect_patiently(const struct cluster_paths *p, const char *dbname)
{
	const char *const keys[] = {
		"host", "port", "user", "dbname", "application_name", "connect_timeout", NULL};
	const char *const values[] = {
		p->sockets, "5432", "howdah", dbname, "howdah postgres", "10", NULL};
	for (int i = 0;; i++) {
		PGconn *pg = PQconnectdbParams(keys, values, 0);
		if (PQstatus(pg) == CONNECTION_OK)
			return pg;
		if (i == CONNECT_TRIES || i % 25 == 24) {
			char text[1024];
			const char *message = PQerrorMessage(pg);
			log_warning("pg.connect", "cannot connect to the embedded database: %s%s",
				log_escape(message, strlen(message), text, sizeof(text)),
				i == CONNECT_TRIES ? "" : ", retrying");
		}
		PQfinish(pg);
		if (i == CONNECT_TRIES)
			return NULL;
		const struct timespec pause = {.tv_nsec = CONNECT_PAUSE_MS * 1000000L};
		(void)nanosleep(&pause, NULL); /* a shorter pause does no harm */
	}
}

/* 1: the database is there; 0: it is not; negative: could not ask. */
static int have_database(PGconn *pg)
{
	PGresult *res = PQexec(pg, "SELECT FROM pg_catalog.pg_database WHERE datname = 'howdah'");
	int n = PQresultStatus(res) == PGRES_TUPLES_OK ? PQntuples(res) : -ERR_CLOSED;
	PQclear(res);
	return n;
}

static int create_database(const struct cluster_paths *p)
{
	PGconn *pg = connect_patiently(p, "postgres");
	if (pg == NULL)
		return -ERR_CLOSED;
	int have = have_database(pg);
	int err = have < 0 ? have : 0;
	if (have == 0) {
		PGresult *res = PQexec(pg, "CREATE DATABASE howdah");
		char text[1024];
		if (PQresultStatus(res) != PGRES_COMMAND_OK) {
			log_error("pg.database", "cannot create the database howdah: %s",
				pg_result_error(res, text, sizeof(text)));
			err = -ERR_CLOSED;
		}
		PQclear(res);
	}
	PQfinish(pg);
	return err;
}

int cluster_schema(const struct cluster_paths *p)
{
	if (create_database(p) != 0)
		return 1;
	PGconn *pg = connect_patiently(p, "howdah");
	if (pg == NULL)
		return 1;
	struct buf why;
	size_t applied = 0;
	buf_init(&why, WHY_MAX);
	int err = schema_upgrade(pg, p->sql_dir, &applied, &why);
	PQfinish(pg);
	if (err != 0)
		log_error(
			"pg.schema", "cannot bring the schema to this version: %s", buf_cstr(&why));
	else if (applied > 0)
		log_info("pg.schema", "schema installed or upgraded by %zu files", applied);
	buf_free(&why);
	if (err == -ERR_CONFIG || err == -ERR_VERSION)
		return EXIT_CONFIG;
	return err == 0 ? 0 : 1;
}
