/* SPDX-License-Identifier: PostgreSQL */
/*
 * The table of roles; roles.h says what the columns mean.
 *
 * Context: supervisor; constant data.
 */
#include "config.h"

#include <stdlib.h>

#include "common/base/mem.h"
#include "supervisor/roles.h"

#define S 1000
#define MIN (60 * S)

static const struct role_info roles[ROLE_COUNT] = {
	[ROLE_POSTGRES] =
		{
			.role = ROLE_POSTGRES,
			.name = "postgres",
		},
	[ROLE_WALSTREAMD] =
		{
			.role = ROLE_WALSTREAMD,
			.name = "walstreamd",
			.after = 1U << ROLE_POSTGRES,
		},
	[ROLE_BROKERD] =
		{
			.role = ROLE_BROKERD,
			.name = "brokerd",
			.after = 1U << ROLE_POSTGRES,
			.takes_listeners = true,
			.reads_ring = true,
		},
	[ROLE_WATCHD] =
		{
			.role = ROLE_WATCHD,
			.name = "watchd",
			.after = 1U << ROLE_POSTGRES,
			.takes_listeners = true,
			.reads_ring = true,
		},
};

/* Those that have clients drain while the others still serve them; the database goes last. */
const enum role roles_stop_order[ROLE_COUNT] = {
	ROLE_BROKERD, ROLE_WATCHD, ROLE_WALSTREAMD, ROLE_POSTGRES};

enum pace { PACE_NORMAL, PACE_RELAXED, PACE_BRISK, PACE_COUNT };
enum kind { KIND_DAEMON, KIND_DATABASE, KIND_COUNT };

/* clang-format off */
static const struct role_times times[PACE_COUNT][KIND_COUNT] = {
	/*    start    stop     hurry    kill     ping    misses  backoff   cap      throttle stable reload */
	[PACE_NORMAL] = {
		[KIND_DAEMON] =
		{30 * S,  20 * S,   2 * S,  10 * S,  5 * S,   2,     100,  30 * S,  1 * S,  500,  10 * S},
		/* initdb, crash recovery, a shutdown checkpoint: minutes are nothing unusual. */
		[KIND_DATABASE] =
		{5 * MIN, 90 * S,  15 * S,  10 * S,  5 * S,   2,     100,  30 * S,  1 * S,  500,  10 * S},
	},
	[PACE_RELAXED] = {
		[KIND_DAEMON] =
		{3 * MIN, 60 * S,  20 * S,  60 * S,  30 * S,  2,     100,  30 * S,  1 * S,  500,  60 * S},
		[KIND_DATABASE] =
		{9 * MIN, 3 * MIN, 60 * S,  60 * S,  30 * S,  2,     100,  30 * S,  1 * S,  500,  60 * S},
	},
	[PACE_BRISK] = {
		[KIND_DAEMON] =
		{3 * S,    2 * S,  500,      1 * S,  500,     2,      50,   1 * S,  200,    500,   3 * S},
		[KIND_DATABASE] =
		{30 * S,  20 * S,   5 * S,   1 * S,  500,     2,      50,   1 * S,  200,    500,   3 * S},
	},
};
/* clang-format on */

const struct role_info *role_info(uint32_t role)
{
	ASSERT(role < ROLE_COUNT);
	return &roles[role];
}

static enum pace pace(void)
{
	if (getenv("HOWDAH_BRISK") != NULL)
		return PACE_BRISK;
#ifdef HOWDAH_SANITIZER
	return PACE_RELAXED;
#else
	return getenv("HOWDAH_RELAXED") != NULL ? PACE_RELAXED : PACE_NORMAL;
#endif
}

const struct role_times *role_times(uint32_t role)
{
	ASSERT(role < ROLE_COUNT);
	return &times[pace()][role == ROLE_POSTGRES ? KIND_DATABASE : KIND_DAEMON];
}
