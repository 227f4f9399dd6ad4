/* SPDX-License-Identifier: PostgreSQL */
/*
 * The name of this node where the configuration does not give one: the host's, folded to what names
 * of slots and publications may hold, [a-z0-9_]{1,32}.
 */
#ifndef COMMON_BASE_NODE_NAME_H
#define COMMON_BASE_NODE_NAME_H

#define NODE_NAME_MAX 32

/* host up to its first dot, folded, into out (NODE_NAME_MAX + 1 bytes); "node" if nothing is left.
 */
void node_name_fold(const char *host, char *out);
/* The folded name of this host. The caller frees it. */
char *node_name_default(void);

#endif
