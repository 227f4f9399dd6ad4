/* SPDX-License-Identifier: PostgreSQL */
/*
 * Names of roles and messages, and the bodies of the messages between supervisor and worker.
 *
 * Context: pure code, no state. The formats stand in worker_proto.h, beside each message's name.
 */
#include "config.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/buf.h"
#include "common/base/err.h"
#include "common/base/mem.h"
#include "common/ipc/worker_proto.h"

static const char *const role_names[ROLE_COUNT] = {
	[ROLE_POSTGRES] = "postgres",
	[ROLE_WALSTREAMD] = "walstreamd",
	[ROLE_BROKERD] = "brokerd",
	[ROLE_WATCHD] = "watchd",
};

const char *role_str(uint32_t role)
{
	if (role < ROLE_COUNT)
		return role_names[role];
	if (role == ROLE_SUPERVISOR)
		return "supervisor";
	return role == ROLE_LOCAL ? "pgctl" : "?";
}

int role_parse(const char *name, enum role *ret_role)
{
	for (uint32_t i = 0; i < ROLE_COUNT; i++) {
		if (strcmp(name, role_names[i]) == 0) {
			*ret_role = (enum role)i;
			return 0;
		}
	}
	return -EINVAL;
}

const char *worker_msg_str(uint32_t type)
{
	static const char *const names[] = {
		[WORKER_MSG_HELLO] = "HELLO",
		[WORKER_MSG_READY] = "READY",
		[WORKER_MSG_PONG] = "PONG",
		[WORKER_MSG_RELOADED] = "RELOADED",
		[WORKER_MSG_STATUS] = "STATUS",
		[WORKER_MSG_RELAY] = "RELAY",
		[WORKER_MSG_CONFIG] = "CONFIG",
		[WORKER_MSG_LISTENER] = "LISTENER",
		[WORKER_MSG_START] = "START",
		[WORKER_MSG_PING] = "PING",
		[WORKER_MSG_RELOAD] = "RELOAD",
		[WORKER_MSG_STOP] = "STOP",
		[WORKER_MSG_PEER] = "PEER",
		[WORKER_MSG_CONTROL] = "CONTROL",
		[WORKER_MSG_LOG_LEVEL] = "LOG_LEVEL",
	};
	return type < ARRAY_LEN(names) && names[type] != NULL ? names[type] : "?";
}

/* A flag is 0 or 1; anything else is a sender that counts its bytes differently. */
static bool get_flag(struct rd *r)
{
	uint8_t v = rd_u8(r);
	if (v > 1)
		r->failed = true;
	return v == 1;
}

void worker_put_hello(struct buf *b, const struct worker_hello *m)
{
	buf_put_be32(b, m->version);
	buf_put_string(b, m->build);
	buf_put_be32(b, m->role);
}

int worker_get_hello(struct rd *r, struct worker_hello *ret)
{
	struct worker_hello m = {.version = rd_be32(r)};
	m.build = rd_string(r);
	m.role = rd_be32(r);
	int err = rd_end(r);
	if (err != 0) {
		worker_free_hello(&m);
		return err;
	}
	*ret = m;
	return 0;
}

void worker_free_hello(struct worker_hello *m)
{
	free(m->build);
	*m = (struct worker_hello){0};
}

void worker_put_config(struct buf *b, const struct worker_config *m)
{
	buf_put_string(b, m->node);
	buf_put_string(b, m->instance);
	buf_put_string(b, m->state_dir);
	buf_put_string(b, m->run_dir);
	buf_put_string(b, m->user);
	buf_put_string(b, m->log_level);
	buf_put_be32(b, m->enabled_roles);
}

int worker_get_config(struct rd *r, struct worker_config *ret)
{
	struct worker_config m = {.node = rd_string(r)};
	m.instance = rd_string(r);
	m.state_dir = rd_string(r);
	m.run_dir = rd_string(r);
	m.user = rd_string(r);
	m.log_level = rd_string(r);
	m.enabled_roles = rd_be32(r);
	int err = rd_end(r);
	if (err != 0) {
		worker_free_config(&m);
		return err;
	}
	*ret = m;
	return 0;
}

void worker_free_config(struct worker_config *m)
{
	free(m->node);
	free(m->instance);
	free(m->state_dir);
	free(m->run_dir);
	free(m->user);
	free(m->log_level);
	*m = (struct worker_config){0};
}

void worker_put_reloaded(struct buf *b, const struct worker_reloaded *m)
{
	buf_put_u8(b, m->ok);
	buf_put_string(b, m->text);
}

int worker_get_reloaded(struct rd *r, struct worker_reloaded *ret)
{
	struct worker_reloaded m = {.ok = get_flag(r)};
	m.text = rd_string(r);
	int err = rd_end(r);
	if (err != 0) {
		worker_free_reloaded(&m);
		return err;
	}
	*ret = m;
	return 0;
}

void worker_free_reloaded(struct worker_reloaded *m)
{
	free(m->text);
	*m = (struct worker_reloaded){0};
}

void worker_put_peer(struct buf *b, const struct worker_peer *m)
{
	buf_put_be32(b, m->role);
	buf_put_u8(b, m->up);
	buf_put_be32(b, m->generation);
}

int worker_get_peer(struct rd *r, struct worker_peer *ret)
{
	struct worker_peer m = {.role = rd_be32(r)};
	m.up = get_flag(r);
	m.generation = rd_be32(r);
	int err = rd_end(r);
	if (err == 0)
		*ret = m;
	return err;
}

void worker_put_control(struct buf *b, const struct worker_control *m)
{
	buf_put_string(b, m->line);
	buf_put_be32(b, m->uid);
}

int worker_get_control(struct rd *r, struct worker_control *ret)
{
	struct worker_control m = {.line = rd_string(r)};
	m.uid = rd_be32(r);
	int err = rd_end(r);
	if (err != 0) {
		worker_free_control(&m);
		return err;
	}
	*ret = m;
	return 0;
}

void worker_free_control(struct worker_control *m)
{
	free(m->line);
	*m = (struct worker_control){0};
}

void worker_put_relay(struct buf *b, const struct worker_relay *m)
{
	buf_put_be32(b, m->role);
	buf_put_be32(b, m->kind);
}

int worker_get_relay(struct rd *r, struct worker_relay *ret)
{
	struct worker_relay m = {.role = rd_be32(r)};
	m.kind = rd_be32(r);
	if (r->failed)
		return -ERR_TRUNCATED;
	*ret = m;
	return 0;
}

void worker_put_text(struct buf *b, const char *text)
{
	buf_put_string(b, text);
}

int worker_get_text(struct rd *r, char **ret_text)
{
	char *text = rd_string(r);
	int err = rd_end(r);
	if (err != 0) {
		free(text);
		return err;
	}
	*ret_text = text;
	return 0;
}

int worker_get_nothing(struct rd *r)
{
	return rd_end(r);
}
