/* SPDX-License-Identifier: PostgreSQL */
/*
 * A line from whoever reaches the control socket. What is taken keeps its promises, and written
 * again it is taken again.
 */
#include "config.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/mem.h"
#include "common/ipc/ctl.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct ctl_request req, again;
	const char *why = NULL;
	if (ctl_request_parse((const char *)data, size, &req, &why) != 0) {
		ASSERT(why != NULL);
		return 0;
	}
	ASSERT(size <= CTL_LINE_MAX);
	ASSERT(req.cmd[0] != '\0' && strlen(req.cmd) <= 64 && json_is_object(req.args));
	(void)ctl_table_find(req.cmd); /* any name is good enough to be looked up */
	struct buf line;
	buf_init(&line, 0);
	ctl_put_json(&line, req.root);
	ASSERT(!line.failed &&
		memchr(line.data, '\n', line.len_bytes) == line.data + line.len_bytes - 1);
	/* Written compactly it may still be longer: numbers and "args" that was left out. */
	if (line.len_bytes - 1 <= CTL_LINE_MAX) {
		int err = ctl_request_parse(
			(const char *)line.data, line.len_bytes - 1, &again, &why);
		ASSERT(err == 0 && strcmp(again.cmd, req.cmd) == 0 && again.id == req.id);
		ctl_request_free(&again);
	}
	ctl_request_free(&req);
	buf_free(&line);
	return 0;
}
