/* SPDX-License-Identifier: PostgreSQL */
/* The program libexecdir/howdah/walstreamd. */
#include "config.h"

#include "walstreamd/walstreamd.h"

int main(int argc, char **argv)
{
	return daemon_main(&walstreamd_info, argc, argv);
}
