/* SPDX-License-Identifier: PostgreSQL */
/* See http.h. */
#include "config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/base/mem.h"
#include "watchd/http.h"
#include "watchd/watchd_stats.h"

#define HTTP_MAGIC 0x77687474u
#define PROBE_MAGIC 0x77687072u
#define PLAIN "text/plain; charset=utf-8"
#define JSON "application/json"

MEM_TYPE(mem_http, "http");
MEM_TYPE(mem_probe, "health probe");

struct http {
	uint32_t magic;
	struct services *svc;
	struct list probes;
};

/* A /health that waits for its read. */
struct probe {
	uint32_t magic;
	struct list link;
	struct http *http;
	struct h2_http *h;
	struct engine_read read;
};

static void answer_text(struct h2_http *h, int status, const char *type, const char *text)
{
	h2_http_answer(h, status, type, text, strlen(text));
}

/* ---- /version ---- */

static void on_version(struct http *http, struct h2_http *h, const struct http1_request *rq)
{
	(void)http;
	(void)rq;
	answer_text(h, 200, JSON,
		"{\"etcdserver\":\"" ETCD_API_VERSION "\",\"etcdcluster\":\"" ETCD_CLUSTER_VERSION
		"\"}");
}

/* ---- /health ---- */

static void answer_health(struct h2_http *h, bool healthy)
{
	if (healthy)
		answer_text(h, 200, PLAIN, "{\"health\":\"true\"}");
	else
		answer_text(h, 503, PLAIN, "{\"health\":\"false\"}\n");
}

static void probe_free(struct probe *p)
{
	list_remove(&p->link);
	p->magic = 0;
	mem_free(&mem_probe, p);
}

static void on_probed(struct engine_read *r, enum etcd_error err)
{
	struct probe *p = list_entry(r, struct probe, read);

	OBJ_CHECK(p, PROBE_MAGIC);
	answer_health(p->h, err == ETCD_OK);
	probe_free(p);
}

struct alarm_look {
	struct http1_text excluded;
	bool found;
};

static void look_at_alarm(const char *node, int64_t type, void *arg)
{
	struct alarm_look *look = arg;
	bool nospace = type == ETCDSERVERPB__ALARM_TYPE__NOSPACE;

	(void)node;
	if (!http1_text_is(look->excluded, nospace ? "NOSPACE" : "CORRUPT"))
		look->found = true;
}

static void on_health(struct http *http, struct h2_http *h, const struct http1_request *rq)
{
	struct services *svc = http->svc;
	struct alarm_look look = {.found = false};
	struct http1_text serializable = {.len = 0};

	(void)http1_query_get(rq, "exclude", &look.excluded);
	(void)http1_query_get(rq, "serializable", &serializable);
	store_alarm_each(svc->store, look_at_alarm, &look);
	if (look.found || !engine_is_up(svc->engine)) {
		answer_health(h, false);
		return;
	}
	if (http1_text_is(serializable, "true")) {
		answer_health(h, true);
		return;
	}
	struct probe *p = mem_new(&mem_probe, sizeof(*p));
	p->magic = PROBE_MAGIC;
	p->http = http;
	p->h = h;
	p->read.done = on_probed;
	p->read.deadline_ms = services_deadline(svc);
	list_push_back(&http->probes, &p->link);
	engine_read(svc->engine, &p->read);
}

/* ---- /metrics ---- */

static void put_metric(struct buf *b, const char *name, const char *type, const char *help,
	unsigned long long value)
{
	buf_printf(b, "# HELP %s %s\n# TYPE %s %s\n%s %llu\n", name, help, name, type, name, value);
}

/* Our own counters; a position in the WAL is no number. */
static void put_counters(struct buf *b, const struct stats *stats)
{
	char name[80];

	for (size_t i = 0; i < STAT_COUNT; i++) {
		const struct stats_row *row = &watchd_stats_rows[i];

		if (row->kind == STATS_LSN)
			continue;
		snprintf(name, sizeof(name), "howdah_%s%s", row->name,
			row->kind == STATS_COUNTER ? "_total" : "");
		put_metric(b, name, row->kind == STATS_COUNTER ? "counter" : "gauge", row->help,
			stats_get(stats, i));
	}
}

/* 0 where the kernel does not say. */
static unsigned long long resident_bytes(void)
{
	unsigned long long total, resident = 0;
	FILE *f = fopen("/proc/self/statm", "re");

	if (f == NULL)
		return 0;
	if (fscanf(f, "%llu %llu", &total, &resident) != 2)
		resident = 0;
	fclose(f);
	return resident * (unsigned long long)sysconf(_SC_PAGESIZE);
}

/* Those by which etcd's own tools and dashboards look, under their names there. */
static void put_etcd_metrics(struct buf *b, const struct services *svc)
{
	struct engine_counts engine;
	struct store_counts store;

	engine_get_counts(svc->engine, &engine);
	store_get_counts(svc->store, &store);
	put_metric(b, "process_resident_memory_bytes", "gauge", "Resident memory size in bytes.",
		resident_bytes());
	put_metric(b, "etcd_server_has_leader", "gauge",
		"Whether or not a leader exists. 1 is existence, 0 is not.", engine.up);
	put_metric(b, "etcd_mvcc_db_total_size_in_bytes", "gauge",
		"Total size of the underlying database physically allocated in bytes.",
		engine.db_bytes);
	put_metric(b, "etcd_mvcc_db_total_size_in_use_in_bytes", "gauge",
		"Total size of the underlying database logically in use in bytes.",
		store.log_bytes);
	put_metric(
		b, "etcd_debugging_mvcc_keys_total", "gauge", "Total number of keys.", store.keys);
	put_metric(b, "etcd_server_quota_backend_bytes", "gauge",
		"Current backend storage quota size in bytes.", svc->conf->quota_bytes);
}

static void on_metrics(struct http *http, struct h2_http *h, const struct http1_request *rq)
{
	struct buf b;

	(void)rq;
	buf_init(&b, 0);
	put_etcd_metrics(&b, http->svc);
	put_counters(&b, http->svc->stats);
	h2_http_answer(h, 200, "text/plain; version=0.0.4; charset=utf-8", b.data, b.len_bytes);
	buf_free(&b);
}

/* ---- Requests ---- */

static const struct {
	const char *path;
	void (*fn)(struct http *http, struct h2_http *h, const struct http1_request *rq);
} pages[] = {
	{"/version", on_version},
	{"/health", on_health},
	{"/metrics", on_metrics},
};

void http_on_request(struct http *http, struct h2_http *h, const struct http1_request *rq)
{
	OBJ_CHECK(http, HTTP_MAGIC);
	for (size_t i = 0; i < ARRAY_LEN(pages); i++) {
		if (!http1_text_is(rq->path, pages[i].path))
			continue;
		if (rq->method == HTTP1_OTHER)
			answer_text(h, 405, PLAIN, "Method Not Allowed\n");
		else
			pages[i].fn(http, h, rq);
		return;
	}
	answer_text(h, 404, PLAIN, "404 page not found\n");
}

void http_on_gone(struct http *http, struct h2_http *h)
{
	OBJ_CHECK(http, HTTP_MAGIC);
	list_for_each_safe (it, &http->probes) {
		struct probe *p = list_entry(it, struct probe, link);

		if (p->h != h)
			continue;
		engine_read_cancel(http->svc->engine, &p->read);
		probe_free(p);
	}
}

struct http *http_new(struct services *svc)
{
	struct http *http = mem_new(&mem_http, sizeof(*http));

	http->magic = HTTP_MAGIC;
	http->svc = svc;
	list_init(&http->probes);
	return http;
}

void http_free(struct http **hp)
{
	struct http *http = *hp;

	if (http == NULL)
		return;
	OBJ_CHECK(http, HTTP_MAGIC);
	ASSERT(list_empty(&http->probes));
	http->magic = 0;
	mem_free(&mem_http, http);
	*hp = NULL;
}
