/* SPDX-License-Identifier: PostgreSQL */
/* See engine_testing.h. */
#include "config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/mem.h"
#include "common/pg/schema.h"
#include "tests/unit/engine_testing.h"

static void on_loaded(void *arg)
{
	struct node *n = arg;

	n->n_loaded++;
	n->last_rev = store_visible_rev(engine_store(n->e));
}

static void on_visible(void *arg)
{
	struct node *n = arg;
	int64_t rev = store_visible_rev(engine_store(n->e));

	n->n_visible++;
	assert_true(n->n_loaded > 0);
	assert_true(rev >= n->last_rev);
	n->last_rev = rev;
}

static void on_row(const struct store_row *row, void *arg)
{
	struct node *n = arg;

	assert_true(row->kind != STORE_PUT && row->kind != STORE_DELETE);
	n->n_rows++;
}

static void on_reloaded(bool went_back, void *arg)
{
	struct node *n = arg;

	n->n_reloaded++;
	n->went_back |= went_back;
	n->last_rev = store_visible_rev(engine_store(n->e));
}

static void on_database(bool up, const char *why, void *arg)
{
	struct node *n = arg;

	n->n_up += up;
	n->n_down += !up;
	if (!up)
		snprintf(n->why, sizeof n->why, "%s", why);
}

static const struct engine_ops ops = {
	.on_loaded = on_loaded,
	.on_visible = on_visible,
	.on_row = on_row,
	.on_reloaded = on_reloaded,
	.on_database = on_database,
};

int engine_testing_set_up(void **state)
{
	struct fixture *f = xcalloc(1, sizeof *f);
	char *sql_dir = xasprintf("%s/sql", getenv("HOWDAH_SRCDIR"));
	struct buf why;
	size_t applied;

	f->loop = ev_loop_new();
	f->pg = PQconnectdb("options='-c client_min_messages=error'");
	pg_testing_on(f->pg, "DROP SCHEMA IF EXISTS howdah_watch, howdah_mqtt, howdah CASCADE");
	pg_testing_on(f->pg, "DROP PUBLICATION IF EXISTS howdah");
	buf_init(&why, 0);
	if (schema_upgrade(f->pg, sql_dir, &applied, &why) != 0)
		fail_msg("%s", buf_cstr(&why));
	buf_free(&why);
	free(sql_dir);
	*state = f;
	return 0;
}

int engine_testing_tear_down(void **state)
{
	struct fixture *f = *state;

	for (size_t i = 0; i < NODES_MAX; i++)
		if (f->nodes[i].e != NULL)
			close_node(f, &f->nodes[i]);
	ev_loop_once(f->loop, false);
	if (f->proxy != NULL)
		proxy_free(&f->proxy);
	ev_loop_once(f->loop, false);
	ev_loop_free(&f->loop);
	PQfinish(f->pg);
	free(f);
	return pg_testing_no_leaks(state);
}

struct node *open_node(struct fixture *f, const char *name, const char *conninfo,
	const struct engine_options *more)
{
	struct engine_options o = more != NULL ? *more : (struct engine_options){0};
	struct node *n = f->nodes;

	while (n->e != NULL)
		n++;
	assert_true(n < f->nodes + NODES_MAX);
	memset(n, 0, sizeof *n);
	n->f = f;
	snprintf(n->name, sizeof n->name, "%s", name);
	o.conninfo = conninfo;
	o.node = n->name;
	o.advertise_url = "http://127.0.0.1:2379";
	n->e = engine_new(f->loop, &o, &ops, n);
	return n;
}

void close_node(struct fixture *f, struct node *n)
{
	engine_free(&n->e);
	ev_loop_once(f->loop, false);
}

struct node *start_node(struct fixture *f, const char *name)
{
	struct node *n = open_node(f, name, "", NULL);

	wait_until(f->loop, engine_is_up(n->e));
	return n;
}

static struct store_bytes bytes(const char *s)
{
	return (struct store_bytes){.data = s, .len = strlen(s)};
}

static enum etcd_error eval(struct engine_op *op, struct store *s)
{
	struct put *p = list_entry(op, struct put, op);
	struct store_kv prev;

	p->n_evals++;
	p->found = store_get(s, bytes(p->key), STORE_HEAD, &prev);
	switch (p->kind) {
	case PUT_IF_NEW:
		if (p->found)
			break;
		/* fall through */
	case PUT:
		(void)store_put(s, bytes(p->key),
			(struct store_bytes){.data = p->value, .len = p->value_len}, p->number,
			&prev);
		break;
	case DELETE_IT:
		if (p->found)
			store_delete(s, bytes(p->key));
		break;
	case GRANT:
		if (store_lease_find(s, p->number, true) != NULL)
			return ETCD_LEASE_EXISTS;
		store_grant(s, p->number, 60);
		break;
	case COMPACT:
		if (p->number <= store_head_compact_rev(s))
			return ETCD_COMPACTED;
		if (p->number > store_head_rev(s))
			return ETCD_FUTURE_REV;
		store_compact(s, p->number);
		break;
	case NOTHING:
		break;
	}
	p->rev = store_head_rev(s);
	return ETCD_OK;
}

static void on_done(struct engine_op *op, enum etcd_error err)
{
	struct put *p = list_entry(op, struct put, op);

	assert_false(p->done);
	p->done = true;
	p->err = err;
	p->f->n_outstanding--;
	p->f->n_done[err]++;
}

struct put *new_put(struct fixture *f, enum put_kind kind, const char *key, const char *value)
{
	struct put *p = xcalloc(1, sizeof *p);

	p->f = f;
	p->kind = kind;
	snprintf(p->key, sizeof p->key, "%s", key);
	snprintf(p->value, sizeof p->value, "%s", value);
	p->value_len = strlen(p->value);
	p->op.eval = eval;
	p->op.done = on_done;
	p->op.cost_bytes = strlen(p->key) + p->value_len;
	return p;
}

struct put *submit(struct node *n, enum put_kind kind, const char *key, const char *value)
{
	struct put *p = new_put(n->f, kind, key, value);

	if (kind == GRANT || kind == COMPACT)
		p->number = strtoll(value, NULL, 10);
	n->f->n_outstanding++;
	engine_submit(n->e, &p->op);
	assert_false(p->done);
	return p;
}

enum etcd_error run_put(struct node *n, enum put_kind kind, const char *key, const char *value)
{
	struct put *p = submit(n, kind, key, value);
	enum etcd_error err;

	wait_until(n->f->loop, p->done);
	err = p->err;
	free(p);
	return err;
}

static void on_read(struct engine_read *r, enum etcd_error err)
{
	struct get *g = list_entry(r, struct get, read);

	g->done = true;
	g->err = err;
}

enum etcd_error run_read(struct node *n)
{
	struct get g = {.read.done = on_read};

	engine_read(n->e, &g.read);
	assert_false(g.done);
	wait_until(n->f->loop, g.done);
	return g.err;
}

const char *value_in(struct node *n, const char *key)
{
	static char value[1024];
	struct store *s = engine_store(n->e);
	struct store_kv kv;

	if (!store_get(s, bytes(key), store_visible_rev(s), &kv))
		return "";
	snprintf(value, sizeof value, "%.*s", (int)kv.value.len, (const char *)kv.value.data);
	return value;
}

long log_count(struct fixture *f, const char *sql)
{
	return strtol(pg_testing_on(f->pg, sql), NULL, 10);
}

void assert_log_exact(struct fixture *f)
{
	/* Entries dense; each has its subs 0 … n and its last; one batch per entry. */
	assert_int_equal(log_count(f, "SELECT max(seq) - min(seq) + 1 - count(DISTINCT seq) "
				      "FROM howdah_watch.log"),
		0);
	assert_int_equal(
		log_count(f, "SELECT count(*) FROM (SELECT seq FROM howdah_watch.log GROUP BY seq "
			     "HAVING min(sub) <> 0 OR max(sub) + 1 <> count(*) "
			     "OR count(*) FILTER (WHERE last) <> 1 OR count(DISTINCT batch) <> 1 "
			     "OR count(DISTINCT rev) <> 1) x"),
		0);
	/* A batch is without a gap, and of one node. */
	assert_int_equal(
		log_count(f,
			"SELECT count(*) FROM (SELECT batch FROM howdah_watch.log GROUP BY batch "
			"HAVING max(seq) - min(seq) + 1 <> count(DISTINCT seq) "
			"OR count(DISTINCT node) <> 1 OR count(DISTINCT at) <> 1) x"),
		0);
	/* rev rises by one with each entry that changes keys. */
	assert_int_equal(
		log_count(f,
			"SELECT count(*) FROM (SELECT rev - lag(rev) OVER (ORDER BY seq) AS d, kv "
			"FROM (SELECT seq, min(rev) AS rev, bool_or(kind IN (1, 2)) AS kv "
			"FROM howdah_watch.log GROUP BY seq) e) x WHERE d <> kv::int"),
		0);
}
