/* SPDX-License-Identifier: PostgreSQL */
/* The store's main: everything is in watchd.c. */
#include "config.h"

#include "watchd/watchd.h"

int main(int argc, char **argv)
{
	return daemon_main(&watchd_info, argc, argv);
}
