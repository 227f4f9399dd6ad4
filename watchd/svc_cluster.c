/* SPDX-License-Identifier: PostgreSQL */
/*
 * Cluster: the nodes that have written their name and URL into howdah_watch.member. There are no
 * peers that talk to each other: the database is where they meet, so peerURLs are empty.
 */
#include "config.h"

#include <stdlib.h>

#include "common/base/mem.h"
#include "watchd/svc.h"

static void reply_members(struct grpc_call *c, const struct engine_member *m, size_t n)
{
	Etcdserverpb__MemberListResponse answer = ETCDSERVERPB__MEMBER_LIST_RESPONSE__INIT;
	Etcdserverpb__ResponseHeader header;
	Etcdserverpb__Member *members = xcalloc(n + 1, sizeof(*members));

	answer.members = xcalloc(n + 1, sizeof(*answer.members));
	for (size_t i = 0; i < n; i++) {
		etcdserverpb__member__init(&members[i]);
		members[i].id = m[i].id;
		members[i].name = m[i].node;
		members[i].n_clienturls = m[i].advertise_url[0] != '\0';
		members[i].clienturls = (char **)(uintptr_t)&m[i].advertise_url;
		answer.members[i] = &members[i];
	}
	answer.n_members = n;
	grpc_header(c->svc, &header);
	header.revision = 0; /* etcd's answer has none */
	answer.header = &header;
	grpc_reply_message(c, &answer.base);
	free(answer.members);
	free(members);
}

static void on_members(const struct engine_member *m, size_t n, enum etcd_error err, void *arg)
{
	struct grpc_call *c = grpc_ticket_take(arg);

	if (c == NULL)
		return;
	if (err != ETCD_OK)
		grpc_fail(c, err);
	else
		reply_members(c, m, n);
}

void svc_member_list(struct grpc_call *c)
{
	engine_members(c->svc->engine, on_members, grpc_ticket(c));
}
