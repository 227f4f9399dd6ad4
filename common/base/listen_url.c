/* SPDX-License-Identifier: PostgreSQL */
/*
 * Taking a listener's URL apart; listen_url.h has the contract.
 *
 * Context: any. Invariant: what is given out is bounded; the port is a number from 1 to 65535.
 */
#include "config.h"

#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/listen_url.h"
#include "common/base/mem.h"

/* Ports that are registered with IANA for what we serve under these schemes. */
static const struct {
	const char *scheme, *port;
} default_ports[] = {
	{"mqtt", "1883"},
	{"mqtts", "8883"},
	{"http", "2379"},
};

static const char *default_port(const char *url, size_t scheme_len)
{
	for (size_t i = 0; i < ARRAY_LEN(default_ports); i++)
		if (strlen(default_ports[i].scheme) == scheme_len &&
			strncmp(url, default_ports[i].scheme, scheme_len) == 0)
			return default_ports[i].port;
	return NULL;
}

static const char *port_check(const char *port)
{
	size_t len = strspn(port, "0123456789");

	if (len == 0 || len > 5 || port[len] != '\0' || atoi(port) < 1 || atoi(port) > 65535)
		return "the port must be a number from 1 to 65535";
	return NULL;
}

const char *listen_url_parse(const char *url, char *ret_host, char *ret_port)
{
	const char *sep = strstr(url, "://"), *host, *end, *port;

	if (sep == NULL || sep == url)
		return "must look like mqtt://127.0.0.1:1883";
	host = sep + 3;
	if (*host == '[') {
		end = strchr(++host, ']');
		if (end == NULL)
			return "the bracket of the IPv6 address is not closed";
		port = end + 1;
	} else {
		end = host + strcspn(host, ":/");
		port = end;
	}
	if (end == host || end - host >= LISTEN_URL_HOST_MAX)
		return "the host is missing or too long";
	if (*port == ':')
		port++;
	else if (*port == '\0')
		port = default_port(url, (size_t)(sep - url));
	else
		return "nothing may follow the port";
	if (port == NULL)
		return "the port is missing";
	if (port_check(port) != NULL)
		return port_check(port);
	memcpy(ret_host, host, (size_t)(end - host));
	ret_host[end - host] = '\0';
	snprintf(ret_port, LISTEN_URL_PORT_MAX, "%s", port);
	return NULL;
}
