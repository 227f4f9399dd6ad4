/* SPDX-License-Identifier: PostgreSQL */
/*
 * See timeline.h. One line for each timeline that the server was on before, oldest first:
 *
 *   parent's number <blanks> LSN at which it was left <blanks> reason to end of line
 *
 * Empty lines and those that begin with # are comments. The bytes are a server's: judged line by
 * line, a line that does not fit says nothing.
 */
#include "config.h"

#include <stdio.h>
#include <string.h>

#include "libpgwalstream/pgwalstream.h"

#include "walstreamd/timeline.h"

#define LINE_BYTES 64 /* enough for both numbers; what follows is for people */

uint64_t timeline_left(const char *history, size_t len, uint32_t timeline)
{
	const char *end = history + len;
	while (history < end) {
		const char *eol = memchr(history, '\n', (size_t)(end - history));
		size_t line_len = (size_t)((eol != NULL ? eol : end) - history);
		char line[LINE_BYTES], lsn_text[18];
		unsigned number;
		uint64_t lsn;
		snprintf(line, sizeof(line), "%.*s",
			(int)(line_len < sizeof(line) ? line_len : sizeof(line) - 1), history);
		if (sscanf(line, "%10u %17s", &number, lsn_text) == 2 && number == timeline &&
			pgws_lsn_parse(lsn_text, &lsn) == 0)
			return lsn;
		history += line_len + (eol != NULL ? 1 : 0);
	}
	return 0;
}
