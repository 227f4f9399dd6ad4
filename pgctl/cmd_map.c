/* SPDX-License-Identifier: PostgreSQL */
/*
 * pgctl mqtt map: which tables' changes become MQTT messages. The work is the SQL functions' of
 * sql/howdah_mqtt; whoever the connection is must own the table.
 */
#include "config.h"

#include <stdio.h>

#include "pgctl/pgctl.h"
#include "pgctl/place.h"

static const char *text_arg(json_t *args, const char *key)
{
	return json_string_value(json_object_get(args, key));
}

/* Opens, runs one statement, prints its rows. */
static int run(struct pgctl *p, const char *sql, int n_values, const char *const *values)
{
	struct db db;
	int status = db_open(p, &db);
	if (status != PGCTL_OK)
		return status;
	status = db_print(&db, sql, n_values, values);
	db_close(&db);
	return status;
}

int cmd_map_add(struct pgctl *p, json_t *args)
{
	char qos[24] = "1";
	const json_t *given = json_object_get(args, "qos");
	if (given != NULL)
		snprintf(qos, sizeof(qos), "%" JSON_INTEGER_FORMAT, json_integer_value(given));
	const char *const values[] = {text_arg(args, "relation"), text_arg(args, "topic"), qos,
		text_arg(args, "payload"), text_arg(args, "name")};
	return run(p,
		"WITH done AS MATERIALIZED (SELECT howdah_mqtt.publish_table($1::regclass, $2, "
		"$3::int,"
		" $4, coalesce($5, 'default')))"
		" SELECT $1::regclass::text AS relation, coalesce($5, 'default') AS name, $2 AS "
		"topic,"
		" $3::int AS qos FROM done",
		5, values);
}

int cmd_map_list(struct pgctl *p, json_t *args)
{
	(void)args; /* none */
	return run(p,
		"SELECT schema, \"table\", name, topic, qos, payload, published, relid::bigint AS "
		"relid"
		" FROM howdah_mqtt.mapping ORDER BY schema, \"table\", name",
		0, NULL);
}

int cmd_map_remove(struct pgctl *p, json_t *args)
{
	const char *const values[] = {text_arg(args, "relation"), text_arg(args, "name")};
	return run(p,
		"WITH done AS MATERIALIZED (SELECT howdah_mqtt.unpublish_table($1::regclass,"
		" coalesce($2, 'default')))"
		" SELECT $1 AS removed, coalesce($2, 'default') AS name FROM done",
		2, values);
}
