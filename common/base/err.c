/* SPDX-License-Identifier: PostgreSQL */
/* Texts of error codes. Context: any thread. */
#include "config.h"

#include <limits.h>
#include <stdio.h>
#include <string.h>

#include "common/base/err.h"
#include "common/base/mem.h"

static const char *const own_texts[] = {
	[ERR_TRUNCATED - ERR_FIRST] = "input ends too early",
	[ERR_MALFORMED - ERR_FIRST] = "malformed input",
	[ERR_VERSION - ERR_FIRST] = "versions do not match",
	[ERR_LIMIT - ERR_FIRST] = "limit reached",
	[ERR_STATE - ERR_FIRST] = "not possible in the present state",
	[ERR_CLOSED - ERR_FIRST] = "closed by the peer",
	[ERR_CONFIG - ERR_FIRST] = "wrong configuration",
	[ERR_RESYNC - ERR_FIRST] = "position no longer available",
};
_Static_assert(ARRAY_LEN(own_texts) == ERR_LAST - ERR_FIRST, "every own code has a text");

const char *err_str(int err)
{
	static _Thread_local char text[96];
	if (err < 0)
		err = err == INT_MIN ? INT_MAX : -err;
	if (err == 0)
		return "no error";
	if (err >= ERR_FIRST && err < ERR_LAST)
		return own_texts[err - ERR_FIRST];
	return strerror_r(err, text, sizeof(text));
}
