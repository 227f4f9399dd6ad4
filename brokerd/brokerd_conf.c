/* SPDX-License-Identifier: PostgreSQL */
/*
 * The section "brokerd" of the configuration, see brokerd_conf.h. A URL is
 * mqtt://HOST[:PORT], see common/base/listen_url.h.
 */
#include "config.h"

#include <arpa/inet.h>
#include <stdlib.h>
#include <string.h>

#include "brokerd/brokerd_conf.h"
#include "common/base/err.h"
#include "common/base/listen_url.h"
#include "common/base/mem.h"
#include "common/pg/pgconf.h"

#define URL_SCHEME "mqtt://"

const char *brokerd_url_error(const char *url)
{
	char host[LISTEN_URL_HOST_MAX], port[LISTEN_URL_PORT_MAX];
	static const char *const later[] = {"mqtts://", "ws://", "wss://"};
	for (size_t i = 0; i < ARRAY_LEN(later); i++) {
		if (strncmp(url, later[i], strlen(later[i])) == 0)
			return "this version listens for mqtt:// only, not for TLS or WebSocket";
	}
	if (strncmp(url, URL_SCHEME, strlen(URL_SCHEME)) != 0)
		return "must look like mqtt://127.0.0.1:1883";
	return listen_url_parse(url, host, port);
}

bool brokerd_url_is_loopback(const char *url)
{
	char host[LISTEN_URL_HOST_MAX], port[LISTEN_URL_PORT_MAX];
	struct in_addr v4;
	struct in6_addr v6;
	if (brokerd_url_error(url) != NULL || listen_url_parse(url, host, port) != NULL)
		return false;
	if (inet_pton(AF_INET, host, &v4) == 1)
		return ntohl(v4.s_addr) >> 24 == 127;
	if (inet_pton(AF_INET6, host, &v6) == 1)
		return IN6_IS_ADDR_LOOPBACK(&v6);
	return strcmp(host, "localhost") == 0;
}

static const struct conf_row listener_rows[] = {
	{.path = "url",
		.type = CONF_STRING,
		.min = 1,
		.max = 512,
		.def = NULL,
		.reload = CONF_WORKER,
		.validate = brokerd_url_error,
		.help = "mqtt://HOST:PORT to listen on"},
	{.path = NULL},
};

const struct conf_row brokerd_conf_rows[] = {
	{.path = "brokerd.enabled",
		.type = CONF_BOOL,
		.def = "true",
		.reload = CONF_LIVE,
		.help = "whether the MQTT broker runs"},
	{.path = "brokerd.listeners",
		.type = CONF_GROUPS,
		.min = 0,
		.max = 32,
		.def = "( { url = \"mqtt://127.0.0.1:1883\"; } )",
		.reload = CONF_WORKER,
		.child = listener_rows,
		.help = "where MQTT clients connect"},
	{.path = "brokerd.allow_anonymous",
		.type = CONF_BOOL,
		.def = "true",
		.reload = CONF_LIVE,
		.help = "whether clients may connect without being known; unless it is set, only "
			"while "
			"every listener is on loopback"},
	{.path = "brokerd.ack_timeout",
		.type = CONF_DURATION,
		.min = 100,
		.max = 86400000,
		.def = "30s",
		.reload = CONF_LIVE,
		.help = "a client that has messages to acknowledge and acknowledges nothing for so "
			"long is "
			"disconnected, and counted"},
	{.path = "brokerd.connect_timeout",
		.type = CONF_DURATION,
		.min = 100,
		.max = 600000,
		.def = "10s",
		.reload = CONF_LIVE,
		.help = "a connection that sends no CONNECT for so long is closed"},
	{.path = "brokerd.max_packet",
		.type = CONF_SIZE,
		.min = 1024,
		.max = 268435455,
		.def = "1MB",
		.reload = CONF_LIVE,
		.help = "the longest packet that a client may send"},
	{.path = "brokerd.receive_maximum",
		.type = CONF_INT,
		.min = 1,
		.max = 65535,
		.def = "1000",
		.reload = CONF_LIVE,
		.help = "QoS 1 messages of one client that may wait for their commit, and of "
			"messages to it "
			"that may wait for its acknowledgement"},
	{.path = "brokerd.topic_alias_maximum",
		.type = CONF_INT,
		.min = 0,
		.max = 65535,
		.def = "64",
		.reload = CONF_LIVE,
		.help = "topic aliases that one MQTT 5 client may use"},
	{.path = "brokerd.max_connections",
		.type = CONF_INT,
		.min = 1,
		.max = 10000000,
		.def = "100000",
		.reload = CONF_LIVE,
		.help = "connections at a time; more are closed at once, and counted"},
	{.path = "brokerd.max_queued_messages",
		.type = CONF_INT,
		.min = 1,
		.max = 10000000,
		.def = "10000",
		.reload = CONF_LIVE,
		.help = "QoS 1 messages that wait for one client before the sources pause"},
	{.path = "brokerd.max_queued_bytes",
		.type = CONF_SIZE,
		.min = 65536,
		.max = 17179869184,
		.def = "16MB",
		.reload = CONF_LIVE,
		.help = "bytes that wait for one client before QoS 0 messages to it are dropped, "
			"and "
			"before sources of QoS 1 messages pause"},
	{.path = "brokerd.max_subscriptions",
		.type = CONF_INT,
		.min = 1,
		.max = 1000000,
		.def = "1000",
		.reload = CONF_LIVE,
		.help = "subscriptions of one client"},
	{.path = "brokerd.max_topic_levels",
		.type = CONF_INT,
		.min = 1,
		.max = 1000,
		.def = "128",
		.reload = CONF_LIVE,
		.help = "levels in a topic name or filter of a client"},
	{.path = "brokerd.max_topic_bytes",
		.type = CONF_INT,
		.min = 16,
		.max = 65535,
		.def = "4096",
		.reload = CONF_LIVE,
		.help = "length of a topic name or filter of a client"},
	{.path = NULL},
};

struct default_search {
	const char *path;
	bool is_default;
};

static void on_conf_value(const char *path, const char *value, const char *def, int line,
	enum conf_reload reload, const char *help, void *arg)
{
	struct default_search *s = arg;
	(void)value;
	(void)def;
	(void)reload;
	(void)help;
	if (strcmp(path, s->path) == 0)
		s->is_default = line == 0;
}

static bool all_on_loopback(const struct conf *conf)
{
	size_t n = conf_count(conf, "brokerd.listeners");
	for (size_t i = 0; i < n; i++) {
		char *path = xasprintf("brokerd.listeners.[%zu].url", i);
		bool loopback = brokerd_url_is_loopback(conf_str(conf, path));
		free(path);
		if (!loopback)
			return false;
	}
	return true;
}

void brokerd_conf_get(const struct conf *conf, struct broker_conf *ret_bc)
{
	struct default_search anonymous = {.path = "brokerd.allow_anonymous", .is_default = true};
	conf_each(conf, on_conf_value, &anonymous);
	*ret_bc = (struct broker_conf){
		.allow_anonymous = anonymous.is_default
					   ? all_on_loopback(conf)
					   : conf_bool(conf, "brokerd.allow_anonymous"),
		.ack_timeout_ms = (uint32_t)conf_int(conf, "brokerd.ack_timeout"),
		.connect_timeout_ms = (uint32_t)conf_int(conf, "brokerd.connect_timeout"),
		.max_packet_bytes = (uint32_t)conf_int(conf, "brokerd.max_packet"),
		.receive_maximum = (uint16_t)conf_int(conf, "brokerd.receive_maximum"),
		.topic_alias_maximum = (uint16_t)conf_int(conf, "brokerd.topic_alias_maximum"),
		.max_connections = (uint32_t)conf_int(conf, "brokerd.max_connections"),
		.max_queued_messages = (uint32_t)conf_int(conf, "brokerd.max_queued_messages"),
		.max_queued_bytes = (uint64_t)conf_int(conf, "brokerd.max_queued_bytes"),
		.max_subscriptions = (uint32_t)conf_int(conf, "brokerd.max_subscriptions"),
		.topic = {.max_bytes = (uint32_t)conf_int(conf, "brokerd.max_topic_bytes"),
			.max_levels = (uint32_t)conf_int(conf, "brokerd.max_topic_levels")},
	};
}

int brokerd_conf_check(const struct conf *conf, struct buf *errors)
{
	struct broker_conf bc;
	brokerd_conf_get(conf, &bc);
	if (bc.max_queued_bytes < bc.max_packet_bytes) {
		buf_put_text(errors, "brokerd.max_queued_bytes: is smaller than "
				     "brokerd.max_packet; a client must be able "
				     "to queue one message\n");
		return -ERR_CONFIG;
	}
	return 0;
}
