/* SPDX-License-Identifier: PostgreSQL */
/*
 * The answer to typecache_sql, into the cache: see typecache.h. A file of its own, so that the
 * cache and tojson stay free of libpq.
 */
#include "config.h"

#include <stdlib.h>

#include <libpq-fe.h>

#include "common/base/mem.h"
#include "common/pg/typecache.h"

static uint32_t oid_at(const PGresult *res, int row, int col)
{
	return (uint32_t)strtoul(PQgetvalue(res, row, col), NULL, 10);
}

void typecache_learn_result(
	struct typecache *tc, const struct pg_result *res, const uint32_t *asked, size_t n_asked)
{
	int n = PQntuples(res);
	struct type_row *rows = xcalloc((size_t)n + 1, sizeof(*rows));

	for (int i = 0; i < n; i++) {
		rows[i] = (struct type_row){
			.oid = oid_at(res, i, 0),
			.typtype = PQgetvalue(res, i, 1)[0],
			.base = oid_at(res, i, 2),
			.elem = oid_at(res, i, 3),
			.delim = PQgetvalue(res, i, 4)[0],
			.attr = PQgetisnull(res, i, 5) ? NULL : PQgetvalue(res, i, 5),
			.attr_type = oid_at(res, i, 6),
		};
	}
	typecache_learn(tc, rows, (size_t)n, asked, n_asked);
	free(rows);
}
