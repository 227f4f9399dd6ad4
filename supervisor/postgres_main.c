/* SPDX-License-Identifier: PostgreSQL */
/*
 * The worker `postgres`: runs the embedded database. See cluster.h.
 */
#include "config.h"

#include "common/ipc/daemon.h"
#include "common/pg/pgconf.h"
#include "supervisor/cluster.h"

static const struct conf_row *const schemas[] = {pgconf_rows, NULL};

static const struct daemon_info postgres_info = {
	.name = "postgres",
	.role = ROLE_POSTGRES,
	.schemas = schemas,
	.init = cluster_init,
	.reload = cluster_reload,
	.drain = cluster_drain,
	.fini = cluster_fini,
};

int main(int argc, char **argv)
{
	return daemon_main(&postgres_info, argc, argv);
}
