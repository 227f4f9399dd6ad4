/* SPDX-License-Identifier: PostgreSQL */
/*
 * Reading the configuration for the supervisor; settings.h has the contract.
 *
 * Context: start, `-t` and reload.
 */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/base/err.h"
#include "common/base/listen_url.h"
#include "common/base/mem.h"
#include "common/base/node_name.h"
#include "common/base/proc.h"
#include "common/ipc/worker_proto.h"
#include "supervisor/listeners.h"
#include "supervisor/place.h"
#include "supervisor/roles.h"
#include "supervisor/settings.h"

#define SETTINGS_BYTES_MAX (1024 * 1024)
/* A name may stand for two addresses; see DAEMON_LISTENERS_MAX. */
#define SETTINGS_LISTENERS_MAX 16
/* run_dir/postgres/.s.PGSQL.5432 must fit into a sockaddr_un. */
#define RUN_DIR_MAX 80

MEM_TYPE(mem_settings, "settings");

static const char *check_node(const char *text)
{
	if (text[strspn(text, "abcdefghijklmnopqrstuvwxyz0123456789_")] != '\0')
		return "only a-z, 0-9 and _ are possible";
	return NULL;
}

static const char *check_dir(const char *text)
{
	if (*text != '/')
		return "must be an absolute path";
	for (const char *p = text; p != NULL; p = strchr(p + 1, '/')) {
		size_t len = strcspn(p + 1, "/");

		if ((len == 1 || len == 2) && strspn(p + 1, ".") == len)
			return "must be without \".\" and \"..\"";
	}
	return NULL;
}

static const char *check_url(const char *text)
{
	char host[LISTEN_URL_HOST_MAX], port[LISTEN_URL_PORT_MAX];

	return listen_url_parse(text, host, port);
}

static const struct conf_row listener_rows[] = {
	{.path = "url",
		.type = CONF_STRING,
		.min = 1,
		.max = 512,
		.validate = check_url,
		.reload = CONF_WORKER,
		.help = "scheme://host:port to listen on"},
	{.path = NULL},
};

static const struct conf_row settings_rows[] = {
	{.path = "node",
		.type = CONF_STRING,
		.max = NODE_NAME_MAX,
		.def = "",
		.reload = CONF_RESTART,
		.validate = check_node,
		.help = "this node's name, [a-z0-9_]; default: the host name, folded"},
	{.path = "state_dir",
		.type = CONF_STRING,
		.min = 1,
		.max = 512,
		.def = "/var/lib/howdah",
		.reload = CONF_RESTART,
		.validate = check_dir,
		.help = "what lasts: the embedded database, spools, cores"},
	{.path = "run_dir",
		.type = CONF_STRING,
		.min = 1,
		.max = RUN_DIR_MAX,
		.def = "/run/howdah",
		.reload = CONF_RESTART,
		.validate = check_dir,
		.help = "sockets"},
	{.path = "user",
		.type = CONF_STRING,
		.min = 1,
		.max = 64,
		.def = "howdah",
		.reload = CONF_RESTART,
		.help = "whom the workers run as when the supervisor is started as root"},
	{.path = "log_level",
		.type = CONF_ENUM,
		.def = "info",
		.choices = "error|warning|info|debug",
		.reload = CONF_LIVE,
		.help = "what is logged"},
	{.path = "postgres.mode",
		.type = CONF_ENUM,
		.def = "embedded",
		.choices = "embedded|external",
		.reload = CONF_RESTART,
		.help = "run a database of our own, or use one that is there"},
	{.path = "walstreamd.enabled",
		.type = CONF_BOOL,
		.def = "true",
		.reload = CONF_LIVE,
		.help = "run walstreamd"},
	{.path = "brokerd.enabled",
		.type = CONF_BOOL,
		.def = "true",
		.reload = CONF_LIVE,
		.help = "run brokerd"},
	{.path = "brokerd.listeners",
		.type = CONF_GROUPS,
		.def = "( { url = \"mqtt://127.0.0.1:1883\"; } )",
		.max = SETTINGS_LISTENERS_MAX,
		.child = listener_rows,
		.reload = CONF_WORKER,
		.help = "where clients connect"},
	{.path = "watchd.enabled",
		.type = CONF_BOOL,
		.def = "true",
		.reload = CONF_LIVE,
		.help = "run watchd"},
	{.path = "watchd.listeners",
		.type = CONF_GROUPS,
		.def = "( { url = \"http://127.0.0.1:2379\"; } )",
		.max = SETTINGS_LISTENERS_MAX,
		.child = listener_rows,
		.reload = CONF_WORKER,
		.help = "where clients connect"},
	{.path = NULL},
};

static const struct conf_row *const settings_schemas[] = {settings_rows, NULL};
/* Sections of which we read our rows only. */
static const char *const settings_foreign[] = {"postgres", "walstreamd", "brokerd", "watchd", NULL};

static char *node_name(const struct conf *conf)
{
	const char *node = conf_str(conf, "node");
	return *node != '\0' ? xstrdup(node) : node_name_default();
}

static uint32_t enabled_roles(const struct conf *conf)
{
	uint32_t mask = 0;

	if (strcmp(conf_str(conf, "postgres.mode"), "embedded") == 0)
		mask |= 1U << ROLE_POSTGRES;
	if (conf_bool(conf, "walstreamd.enabled"))
		mask |= 1U << ROLE_WALSTREAMD;
	if (conf_bool(conf, "brokerd.enabled"))
		mask |= 1U << ROLE_BROKERD;
	if (conf_bool(conf, "watchd.enabled"))
		mask |= 1U << ROLE_WATCHD;
	return mask;
}

int settings_parse(
	const char *text, const char *name, struct settings **ret_settings, struct buf *errors)
{
	static uint64_t last_serial;
	struct settings *s;
	struct conf *conf = NULL;
	int fd = -1;
	int err = conf_parse(text, name, settings_schemas, settings_foreign, &conf, errors);

	if (err != 0)
		return err;
	err = proc_memfd_sealed("howdah-config", text, strlen(text), &fd);
	if (err != 0) {
		buf_printf(errors, "%s: cannot be kept in memory: %s\n", name, err_str(err));
		conf_free(&conf);
		return err;
	}
	s = mem_new(&mem_settings, sizeof(*s));
	s->conf = conf;
	s->node = node_name(conf);
	s->config_fd = fd;
	s->roles = enabled_roles(conf);
	s->serial = ++last_serial;
	*ret_settings = s;
	return 0;
}

int settings_load(const char *file, struct settings **ret_settings, struct buf *errors)
{
	struct buf text;
	int fd = open(file, O_RDONLY | O_CLOEXEC);
	int err = fd < 0 ? -errno : 0;

	buf_init(&text, SETTINGS_BYTES_MAX);
	while (err == 0) {
		uint8_t *room = buf_reserve(&text, 4096);
		ssize_t n = room != NULL ? read(fd, room, 4096) : -1;

		if (room == NULL)
			err = -EFBIG;
		else if (n < 0 && errno != EINTR)
			err = -errno;
		else if (n == 0)
			break;
		else if (n > 0)
			buf_commit(&text, (size_t)n);
	}
	if (fd >= 0)
		close(fd);
	if (err == 0 && memchr(text.data != NULL ? text.data : (const uint8_t *)"", 0,
				text.len_bytes) != NULL)
		err = -EILSEQ;
	if (err != 0)
		buf_printf(errors,
			"%s: cannot be read: %s; name another with -c; an empty file is a "
			"working configuration\n",
			file, err_str(err));
	else
		err = settings_parse(buf_cstr(&text), file, ret_settings, errors);
	buf_free(&text);
	return err;
}

void settings_free(struct settings **s)
{
	if (*s == NULL)
		return;
	conf_free(&(*s)->conf);
	free((*s)->node);
	close((*s)->config_fd);
	mem_free(&mem_settings, *s);
	*s = NULL;
}

void settings_restart_keys(const struct settings *a, const struct settings *b, struct buf *names)
{
	for (const struct conf_row *row = settings_rows; row->path != NULL; row++) {
		if (row->reload != CONF_RESTART)
			continue;
		if (strcmp(conf_str(a->conf, row->path), conf_str(b->conf, row->path)) != 0)
			buf_printf(names, "%s%s", names->len_bytes > 0 ? ", " : "", row->path);
	}
}
