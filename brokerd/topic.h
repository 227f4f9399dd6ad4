/* SPDX-License-Identifier: PostgreSQL */
/*
 * Topic names and filters (MQTT 5.0 section 4.7), and the tree of subscriptions.
 *
 * The tree is one keyed hash table of (parent node, level) -> node for all nodes together, so that
 * a lonely chain of levels costs its text and little more, and a flood of chosen names cannot build
 * long chains. Matching looks at most at two children per node ("+" and the level itself).
 *
 * Context: event thread.
 */
#ifndef BROKERD_TOPIC_H
#define BROKERD_TOPIC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/list.h"

struct topic_limits {
	uint32_t max_bytes;  /* brokerd.max_topic_bytes */
	uint32_t max_levels; /* brokerd.max_topic_levels */
};

/* NULL, or why it cannot be used (static text). UTF-8 is the codec's business. */
const char *topic_name_error(const char *name, size_t len_bytes, const struct topic_limits *limits);
const char *topic_filter_error(
	const char *filter, size_t len_bytes, const struct topic_limits *limits);
/* "$share/…" */
bool topic_filter_is_shared(const char *filter, size_t len_bytes);

struct topic_tree;
struct topic_node;

/* One subscription: owned by the tree, known to its owner by in_owner. */
struct topic_sub {
	struct list in_node;
	struct list in_owner;
	struct topic_node *node;
	const struct list *owner_subs; /* the owner's list of in_owner */
	void *owner;
	uint32_t id; /* subscription identifier, 0: none */
	uint8_t qos;
	bool no_local;
	struct topic_sub *match_next; /* scratch of whoever matches */
};

struct topic_tree *topic_tree_new(void);
/* Must be empty. Nulls *t. */
void topic_tree_free(struct topic_tree **t);
/* The owner's subscription to this valid filter, made if it is not there. owner_subs: the owner's
 * list of in_owner. *ret_new says which. */
struct topic_sub *topic_tree_add(struct topic_tree *t, const char *filter, size_t len_bytes,
	void *owner, struct list *owner_subs, bool *ret_new);
/* NULL if the owner has none. */
struct topic_sub *topic_tree_find(
	struct topic_tree *t, const char *filter, size_t len_bytes, struct list *owner_subs);
/* Takes it out of both lists and frees it, with the nodes that nobody needs any more. */
void topic_tree_remove(struct topic_tree *t, struct topic_sub *sub);
/* Calls fn for every subscription that matches the topic name. fn must not change the tree. */
void topic_tree_match(struct topic_tree *t, const char *name, size_t len_bytes,
	void (*fn)(struct topic_sub *sub, void *arg), void *arg);
/* Whether there is any. */
bool topic_tree_matches(struct topic_tree *t, const char *name, size_t len_bytes);
/* The filter of a subscription; caller frees. */
char *topic_sub_filter(const struct topic_sub *sub);

size_t topic_tree_nodes(const struct topic_tree *t);
size_t topic_tree_subs(const struct topic_tree *t);

/* Keyed hash of bytes (SipHash-1-3); the key is random per process. */
uint64_t topic_hash(const void *data, size_t len_bytes, uint64_t seed);

#endif
