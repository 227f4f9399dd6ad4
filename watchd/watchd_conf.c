/* SPDX-License-Identifier: PostgreSQL */
/*
 * The section "watchd" of the configuration, see watchd_conf.h. A listener's URL is
 * http://HOST[:PORT], see common/base/listen_url.h.
 */
#include "config.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/err.h"
#include "common/base/listen_url.h"
#include "common/base/mem.h"
#include "common/pg/pgconf.h"
#include "common/ring/ring_conf.h"
#include "watchd/watchd_conf.h"

#define URL_SCHEME "http://"
#define KB 1024
#define MB (1024 * KB)
#define GB (1024LL * MB)

static const char *url_error(const char *url)
{
	char host[LISTEN_URL_HOST_MAX], port[LISTEN_URL_PORT_MAX];

	if (strncmp(url, "https://", 8) == 0)
		return "this version listens for http:// only, not for TLS";
	if (strncmp(url, URL_SCHEME, strlen(URL_SCHEME)) != 0)
		return "must look like http://127.0.0.1:2379";
	return listen_url_parse(url, host, port);
}

static const char *advertise_error(const char *url)
{
	char host[LISTEN_URL_HOST_MAX], port[LISTEN_URL_PORT_MAX];

	if (url[0] == '\0')
		return NULL; /* the first listener's */
	if (strncmp(url, "http://", 7) != 0 && strncmp(url, "https://", 8) != 0)
		return "must look like http://db1.example:2379";
	return listen_url_parse(url, host, port);
}

/* A number of revisions, or -1. */
static int64_t revisions(const char *text)
{
	char *end;

	if (text[0] < '0' || text[0] > '9')
		return -1;
	errno = 0;
	long long n = strtoll(text, &end, 10);
	return errno == 0 && *end == '\0' ? n : -1;
}

static const char *retention_error(const char *text)
{
	int64_t ms;

	if (revisions(text) > 0 || (conf_parse_duration(text, &ms) == 0 && ms > 0))
		return NULL;
	return "write a duration such as \"1h\" (periodic), or a number of revisions such as "
	       "\"1000\"";
}

static const struct conf_row listener_rows[] = {
	{.path = "url",
		.type = CONF_STRING,
		.min = 1,
		.max = 512,
		.reload = CONF_WORKER,
		.validate = url_error,
		.help = "http://HOST:PORT to listen on"},
	{.path = NULL},
};

const struct conf_row watchd_conf_rows[] = {
	{.path = "watchd.enabled",
		.type = CONF_BOOL,
		.def = "true",
		.reload = CONF_LIVE,
		.help = "whether the etcd API is served"},
	{.path = "watchd.listeners",
		.type = CONF_GROUPS,
		.max = 32,
		.def = "( { url = \"http://127.0.0.1:2379\"; } )",
		.reload = CONF_WORKER,
		.child = listener_rows,
		.help = "where etcd clients connect"},
	{.path = "watchd.advertise_url",
		.type = CONF_STRING,
		.max = 512,
		.def = "",
		.reload = CONF_WORKER,
		.validate = advertise_error,
		.help = "what member lists say of this node; default: the first listener's url"},
	{.path = "watchd.quota",
		.type = CONF_SIZE,
		.min = 16 * MB,
		.max = 1024 * GB,
		.def = "2GB",
		.reload = CONF_WORKER,
		.help = "history and keys beyond this raise the NOSPACE alarm: then only what "
			"frees space is taken"},
	{.path = "watchd.auto_compaction.mode",
		.type = CONF_ENUM,
		.choices = "off|periodic|revision",
		.def = "off",
		.reload = CONF_LIVE,
		.help = "compact by age, by number of revisions, or only when somebody asks"},
	{.path = "watchd.auto_compaction.retention",
		.type = CONF_STRING,
		.max = 32,
		.def = "1h",
		.reload = CONF_LIVE,
		.validate = retention_error,
		.help = "history that auto compaction keeps: a duration (periodic) or a number of "
			"revisions"},
	{.path = "watchd.max_request_bytes",
		.type = CONF_SIZE,
		.min = 16 * KB,
		.max = 512 * MB,
		.def = "1536kB",
		.reload = CONF_LIVE,
		.help = "the longest request of a client"},
	{.path = "watchd.max_txn_ops",
		.type = CONF_INT,
		.min = 1,
		.max = 100000,
		.def = "128",
		.reload = CONF_LIVE,
		.help = "operations in one transaction"},
	{.path = "watchd.max_connections",
		.type = CONF_INT,
		.min = 1,
		.max = 10000000,
		.def = "20000",
		.reload = CONF_LIVE,
		.help = "connections at a time; more are closed at once, and counted"},
	{.path = "watchd.max_streams",
		.type = CONF_INT,
		.min = 1,
		.max = 1000000,
		.def = "10000",
		.reload = CONF_LIVE,
		.help = "calls at a time on one new connection"},
	{.path = "watchd.max_watches",
		.type = CONF_INT,
		.min = 1,
		.max = 10000000,
		.def = "100000",
		.reload = CONF_WORKER,
		.help = "watches on one stream"},
	{.path = "watchd.max_waiting_bytes",
		.type = CONF_SIZE,
		.min = 16 * MB,
		.max = 64 * GB,
		.def = "256MB",
		.reload = CONF_WORKER,
		.help = "changes that wait for their commit; with more \"too many requests\" is "
			"answered"},
	{.path = "watchd.request_timeout",
		.type = CONF_DURATION,
		.min = 100,
		.max = 3600000,
		.def = "7s",
		.reload = CONF_LIVE,
		.help = "changes and linearizable reads that the database has not answered after "
			"this fail with \"request timed out\""},
	{.path = "watchd.progress_interval",
		.type = CONF_DURATION,
		.min = 100,
		.max = 86400000,
		.def = "10min",
		.reload = CONF_WORKER,
		.help = "how often a quiet watch that asked for it hears of the revision it has "
			"reached"},
	{.path = "watchd.busy_poll_us",
		.type = CONF_INT,
		.min = 0,
		.max = 10000,
		.def = "500",
		.reload = CONF_LIVE,
		.help = "microseconds that it looks for an event that is expected soon before it "
			"sleeps, unless others want the CPU; 0: sleep at once"},
	{.path = NULL},
};

const struct conf_row *const watchd_conf_schemas[] = {
	watchd_conf_rows, pgconf_rows, ring_conf_rows, NULL};

static uint64_t retention_of(enum compaction_mode mode, const char *text)
{
	int64_t ms;

	if (mode == COMPACTION_REVISION)
		return revisions(text) > 0 ? (uint64_t)revisions(text) : 0;
	return conf_parse_duration(text, &ms) == 0 ? (uint64_t)ms : 0;
}

static enum compaction_mode mode_of(const char *text)
{
	if (strcmp(text, "periodic") == 0)
		return COMPACTION_PERIODIC;
	return strcmp(text, "revision") == 0 ? COMPACTION_REVISION : COMPACTION_OFF;
}

static const char *advertised(const struct conf *conf)
{
	const char *url = conf_str(conf, "watchd.advertise_url");

	if (url[0] != '\0' || conf_count(conf, "watchd.listeners") == 0)
		return url;
	return conf_str(conf, "watchd.listeners.[0].url");
}

void watchd_conf_get(const struct conf *conf, struct watchd_conf *ret_wc)
{
	enum compaction_mode mode = mode_of(conf_str(conf, "watchd.auto_compaction.mode"));

	*ret_wc = (struct watchd_conf){
		.advertise_url = xstrdup(advertised(conf)),
		.quota_bytes = (uint64_t)conf_int(conf, "watchd.quota"),
		.compaction = mode,
		.retention = retention_of(mode, conf_str(conf, "watchd.auto_compaction.retention")),
		.max_request_bytes = (uint32_t)conf_int(conf, "watchd.max_request_bytes"),
		.max_txn_ops = (uint32_t)conf_int(conf, "watchd.max_txn_ops"),
		.max_connections = (uint32_t)conf_int(conf, "watchd.max_connections"),
		.max_streams = (uint32_t)conf_int(conf, "watchd.max_streams"),
		.max_watches = (uint32_t)conf_int(conf, "watchd.max_watches"),
		.max_waiting_bytes = (uint64_t)conf_int(conf, "watchd.max_waiting_bytes"),
		.request_timeout_ms = (uint32_t)conf_int(conf, "watchd.request_timeout"),
		.progress_interval_ms = (uint32_t)conf_int(conf, "watchd.progress_interval"),
		.busy_poll_us = (uint32_t)conf_int(conf, "watchd.busy_poll_us"),
	};
}

void watchd_conf_free(struct watchd_conf *wc)
{
	free(wc->advertise_url);
	wc->advertise_url = NULL;
}

int watchd_conf_check(const struct conf *conf, struct buf *errors)
{
	struct watchd_conf wc;

	watchd_conf_get(conf, &wc);
	bool bad = wc.compaction != COMPACTION_OFF && wc.retention == 0;
	if (bad)
		buf_printf(errors, "watchd.auto_compaction.retention: %s\n",
			wc.compaction == COMPACTION_REVISION
				? "mode \"revision\" needs a number of revisions, such as \"1000\""
				: "mode \"periodic\" needs a duration, such as \"1h\"");
	watchd_conf_free(&wc);
	return bad ? -ERR_CONFIG : 0;
}
