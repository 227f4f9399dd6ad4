/* SPDX-License-Identifier: PostgreSQL */
/* The MQTT broker's main: everything is in brokerd.c. */
#include "config.h"

#include "brokerd/brokerd_int.h"

int main(int argc, char **argv)
{
	return daemon_main(&brokerd_info, argc, argv);
}
