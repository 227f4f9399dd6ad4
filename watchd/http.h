/* SPDX-License-Identifier: PostgreSQL */
/*
 * What is served by HTTP/1.1 beside gRPC: /version, /health, /metrics, as etcd has them.
 *
 * /health answers after a linearizable read ("serializable=true" in the query: without one), and
 * says "false" (503) if that fails, an alarm is on ("exclude=NOSPACE" takes one out), or this node
 * has lost its place. Its reason stands in the answer only where etcd's does: nowhere.
 *
 * Context: event thread.
 */
#ifndef WATCHD_HTTP_H
#define WATCHD_HTTP_H

#include "watchd/h2.h"
#include "watchd/services.h"

struct http;

struct http *http_new(struct services *svc);
/* Requests must be gone (h2_server_free). Nulls *h. */
void http_free(struct http **h);
/* For h2_server_ops. */
void http_on_request(struct http *http, struct h2_http *h, const struct http1_request *rq);
void http_on_gone(struct http *http, struct h2_http *h);

#endif
