/* SPDX-License-Identifier: PostgreSQL */
/*
 * Where a worker listens, as the configuration writes it: scheme://host[:port], the host a name, an
 * IPv4 address or an IPv6 address in brackets. The supervisor binds by it, the worker judges it.
 */
#ifndef COMMON_BASE_LISTEN_URL_H
#define COMMON_BASE_LISTEN_URL_H

#define LISTEN_URL_HOST_MAX 256
#define LISTEN_URL_PORT_MAX 6

/* Pure: "mqtt://[::1]:1883" -> "::1", "1883". NULL, or why not (static text). host has room for
 * LISTEN_URL_HOST_MAX bytes, port for LISTEN_URL_PORT_MAX. */
const char *listen_url_parse(const char *url, char *ret_host, char *ret_port);

#endif
