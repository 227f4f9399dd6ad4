/* SPDX-License-Identifier: PostgreSQL */
/*
 * What the tests of the engine share: nodes (engines) in one process on one database, puts and
 * reads with their outcomes, and what must be true of the log in the end.
 */
#ifndef TESTS_UNIT_ENGINE_TESTING_H
#define TESTS_UNIT_ENGINE_TESTING_H

#include "tests/unit/pg_testing.h"
#include "watchd/engine.h"

#define NODES_MAX 3

struct node {
	struct engine *e;
	struct fixture *f;
	char name[16];
	size_t n_loaded, n_visible, n_reloaded, n_rows, n_up, n_down;
	bool went_back;
	int64_t last_rev; /* of on_visible: never goes back without on_reloaded */
	char why[256];
};

struct fixture {
	struct ev_loop *loop;
	PGconn *pg;
	struct proxy *proxy;
	struct node nodes[NODES_MAX];
	size_t n_outstanding;
	size_t n_done[32]; /* by error */
};

/* A put, or what kind says. */
enum put_kind { PUT, PUT_IF_NEW, DELETE_IT, NOTHING, GRANT, COMPACT };

struct put {
	struct engine_op op;
	struct fixture *f;
	enum put_kind kind;
	char key[64];
	char value[512];
	size_t value_len;
	int64_t number; /* lease, revision */
	unsigned n_evals;
	bool done;
	enum etcd_error err;
	int64_t rev; /* of the store after it */
	bool found;  /* PUT_IF_NEW: it was there */
};

struct get {
	struct engine_read read;
	struct fixture *f;
	bool done;
	enum etcd_error err;
};

int engine_testing_set_up(void **state);
int engine_testing_tear_down(void **state);
/* A node with more options (may be NULL). conninfo "": the server's socket. Does not wait. */
struct node *open_node(struct fixture *f, const char *name, const char *conninfo,
	const struct engine_options *more);
void close_node(struct fixture *f, struct node *n);
/* Opens and waits until it is up. */
struct node *start_node(struct fixture *f, const char *name);

/* For the caller to free_put after done. */
struct put *new_put(struct fixture *f, enum put_kind kind, const char *key, const char *value);
struct put *submit(struct node *n, enum put_kind kind, const char *key, const char *value);
/* Submits and waits; the outcome. */
enum etcd_error run_put(struct node *n, enum put_kind kind, const char *key, const char *value);
enum etcd_error run_read(struct node *n);
/* Value of a key in a node's memory at its visible revision, "" if there is none. Static. */
const char *value_in(struct node *n, const char *key);
long log_count(struct fixture *f, const char *sql);
/* seq dense, sub dense with last at the end, rev as kinds say, no batch torn. */
void assert_log_exact(struct fixture *f);

#endif
