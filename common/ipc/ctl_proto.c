/* SPDX-License-Identifier: PostgreSQL */
/*
 * Lines of the control protocol: the parser of requests and the writer of JSON lines.
 *
 * Context: pure code, no state; the input comes from whoever reaches the socket.
 * Format: see ctl.h. Unknown keys are refused, so that a typing error is not taken for consent.
 */
#include "config.h"

#include <errno.h>
#include <string.h>

#include "common/base/err.h"
#include "common/ipc/ctl.h"

#define CTL_CMD_MAX 64

/* Judges the parsed root; fills all of *req but root. NULL, or why not. */
static const char *request_take(json_t *root, struct ctl_request *req)
{
	const char *key;
	json_t *value;
	json_object_foreach(root, key, value)
	{
		if (strcmp(key, "cmd") == 0 && json_is_string(value))
			req->cmd = json_string_value(value);
		else if (strcmp(key, "args") == 0 && json_is_object(value))
			req->args = value;
		else if (strcmp(key, "id") == 0 && json_is_integer(value))
			req->id = json_integer_value(value);
		else if (strcmp(key, "v") != 0 || !json_is_integer(value))
			return "a request has the keys cmd (string), args (object), id and v "
			       "(integers)";
	}
	if (req->cmd == NULL || req->cmd[0] == '\0')
		return "the request names no command";
	if (strlen(req->cmd) > CTL_CMD_MAX)
		return "the command's name is too long";
	return NULL;
}

int ctl_request_parse(
	const char *line, size_t len_bytes, struct ctl_request *ret_req, const char **ret_why)
{
	if (len_bytes > CTL_LINE_MAX) {
		*ret_why = "the request line is too long";
		return -ERR_LIMIT;
	}
	json_t *root = json_loadb(line, len_bytes, JSON_REJECT_DUPLICATES, NULL);
	if (!json_is_object(root)) {
		json_decref(root);
		*ret_why = "the request is not a JSON object";
		return -ERR_MALFORMED;
	}
	/* The version comes first: another one may have other keys. */
	json_t *v = json_object_get(root, "v");
	if (!json_is_integer(v) || json_integer_value(v) != CTL_VERSION) {
		json_decref(root);
		*ret_why = "the request is of another version of the control protocol than this "
			   "daemon speaks";
		return -ERR_VERSION;
	}
	struct ctl_request req = {.root = root};
	const char *why = request_take(root, &req);
	if (why == NULL && req.args == NULL) {
		req.args = json_object();
		if (json_object_set_new(root, "args", req.args) != 0)
			why = "out of memory";
	}
	if (why != NULL) {
		json_decref(root);
		*ret_why = why;
		return -ERR_MALFORMED;
	}
	*ret_req = req;
	return 0;
}

void ctl_request_free(struct ctl_request *req)
{
	json_decref(req->root);
	*req = (struct ctl_request){0};
}

static int on_dump(const char *text, size_t len_bytes, void *arg)
{
	buf_put(arg, text, len_bytes);
	return 0;
}

void ctl_put_json(struct buf *out, const json_t *object)
{
	if (json_dump_callback(object, on_dump, out, JSON_COMPACT) != 0)
		out->failed = true;
	buf_put_u8(out, '\n');
}
