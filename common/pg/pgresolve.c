/* SPDX-License-Identifier: PostgreSQL */
/*
 * Rewrites a conninfo so that libpq has no name left to look up.
 *
 * Context: event thread. The lists host, hostaddr and port are split into entries; an entry with a
 * name and no address is looked up by evdns (/etc/hosts, then the servers of /etc/resolv.conf) and
 * becomes one entry per address. Everything else goes through as it is, what is not given at all is
 * left to libpq's environment and service file (only PGHOST and PGPORT are read here, since a name
 * in PGHOST would be looked up by libpq while the loop stands still).
 *
 * Invariants: every entry that is written out has the same index in all three lists; a name without
 * an address is left out if any other entry remains.
 *
 * A lookup cannot be taken back from evdns at once: after pgresolve_free the object lives on,
 * silent, until the last lookup has reported that it was cancelled.
 */
#include "config.h"

#include <arpa/inet.h>
#include <event2/dns.h>
#include <event2/util.h>
#include <libpq-fe.h>
#include <netdb.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/buf.h"
#include "common/base/err.h"
#include "common/base/log.h"
#include "common/base/mem.h"
#include "common/pg/pgresolve.h"

#define MAGIC 0x70677276 /* pgrv */
#define HOSTS_MAX 32     /* entries of a conninfo */
#define ADDRS_MAX 8      /* addresses taken of one name */
#define LOOKUP_TIMEOUT_MS 10000

MEM_TYPE(mem_resolve, "pgresolve");

struct entry {
	struct pgresolve *owner;
	char *host, *hostaddr, *port; /* NULL: not given */
	struct evdns_getaddrinfo_request *request;
	char *addrs[ADDRS_MAX];
	size_t n_addrs;
	bool pending;
	const char *problem; /* static text */
};

struct pgresolve {
	uint32_t magic;
	struct ev_loop *loop;
	struct evdns_base *dns;
	PQconninfoOption *options;
	char **extra; /* keyword, value, …, NULL; owned */
	pgresolve_fn cb;
	void *arg;
	struct entry entries[HOSTS_MAX];
	size_t n_entries;
	size_t n_pending;
	bool rewritten; /* the entries replace what options say */
	bool starting;
	bool done; /* reported, or given up by its owner */
	bool freed;
	char *error; /* found before anything was looked up */
	struct ev_timer timer;
	struct ev_deferred report, destroy;
};

static const char *option_value(const struct pgresolve *r, const char *keyword)
{
	for (PQconninfoOption *o = r->options; o->keyword != NULL; o++)
		if (strcmp(o->keyword, keyword) == 0)
			return o->val != NULL && *o->val != '\0' ? o->val : NULL;
	return NULL;
}

static const char *env_value(const char *name)
{
	const char *value = getenv(name);

	return value != NULL && *value != '\0' ? value : NULL;
}

/* Number of comma-separated items; 0 for NULL. */
static size_t count_items(const char *list)
{
	size_t n = 1;

	if (list == NULL)
		return 0;
	for (; *list != '\0'; list++)
		n += *list == ',';
	return n;
}

/* Item i of a list as a string of its own, NULL if it is empty or not there. */
static char *item(const char *list, size_t i)
{
	size_t len;

	if (list == NULL)
		return NULL;
	for (; i > 0; i--) {
		list = strchr(list, ',');
		if (list == NULL)
			return NULL;
		list++;
	}
	len = strcspn(list, ",");
	return len > 0 ? xstrndup(list, len) : NULL;
}

static bool needs_lookup(const struct entry *e)
{
	unsigned char addr[sizeof(struct in6_addr)];

	if (e->hostaddr != NULL || e->host == NULL || *e->host == '/' || *e->host == '@')
		return false;
	/* "fe80::1%eth0" is a literal too. */
	return inet_pton(AF_INET, e->host, addr) != 1 && strchr(e->host, ':') == NULL;
}

/* Fills entries from the three lists by libpq's rules; a static text if they do not fit together.
 */
static const char *split_lists(struct pgresolve *r)
{
	const char *host = option_value(r, "host");
	const char *hostaddr = option_value(r, "hostaddr");
	const char *port = option_value(r, "port");
	size_t n, n_ports;

	if (host == NULL && hostaddr == NULL) {
		/* A service's host goes before the environment's: both are libpq's business. */
		if (option_value(r, "service") != NULL || env_value("PGSERVICE") != NULL ||
			env_value("PGHOSTADDR") != NULL || env_value("PGHOST") == NULL)
			return NULL;
		host = env_value("PGHOST");
	}
	if (port == NULL && option_value(r, "service") == NULL)
		port = env_value("PGPORT");
	n = hostaddr != NULL ? count_items(hostaddr) : count_items(host);
	n_ports = count_items(port);
	if (n > HOSTS_MAX)
		return "more than 32 hosts in conninfo; name fewer";
	if (host != NULL && count_items(host) != n)
		return "as many host as hostaddr entries are needed in conninfo";
	if (n_ports > 1 && n_ports != n)
		return "one port, or as many as there are hosts, are needed in conninfo";
	for (size_t i = 0; i < n; i++) {
		struct entry *e = &r->entries[i];

		e->owner = r;
		e->host = item(host, i);
		e->hostaddr = item(hostaddr, i);
		e->port = item(port, n_ports == 1 ? 0 : i);
		r->rewritten |= needs_lookup(e);
	}
	r->n_entries = n;
	return NULL;
}

static void put_option(struct buf *out, const char *keyword, const char *value)
{
	buf_printf(out, "%s%s='", out->len_bytes > 0 ? " " : "", keyword);
	for (; *value != '\0'; value++) {
		if (*value == '\'' || *value == '\\')
			buf_put_u8(out, '\\');
		buf_put_u8(out, (uint8_t)*value);
	}
	buf_put_u8(out, '\'');
}

static const char *extra_value(const struct pgresolve *r, const char *keyword)
{
	for (size_t i = 0; r->extra[i] != NULL; i += 2)
		if (strcmp(r->extra[i], keyword) == 0)
			return r->extra[i + 1];
	return NULL;
}

struct lists {
	struct buf host, hostaddr, port;
	size_t n;
	bool any_hostaddr, any_port;
};

static void add_to_lists(struct lists *l, const struct entry *e, const char *hostaddr)
{
	const char *comma = l->n > 0 ? "," : "";

	buf_printf(&l->host, "%s%s", comma, e->host != NULL ? e->host : "");
	buf_printf(&l->hostaddr, "%s%s", comma, hostaddr != NULL ? hostaddr : "");
	buf_printf(&l->port, "%s%s", comma, e->port != NULL ? e->port : "");
	l->any_hostaddr |= hostaddr != NULL;
	l->any_port |= e->port != NULL;
	l->n++;
}

static void put_lists(struct pgresolve *r, struct buf *out, struct lists *l)
{
	for (size_t i = 0; i < r->n_entries; i++) {
		const struct entry *e = &r->entries[i];

		if (!needs_lookup(e))
			add_to_lists(l, e, e->hostaddr);
		for (size_t k = 0; k < e->n_addrs; k++)
			add_to_lists(l, e, e->addrs[k]);
	}
	if (l->n == 0)
		return;
	put_option(out, "host", buf_cstr(&l->host));
	if (l->any_hostaddr)
		put_option(out, "hostaddr", buf_cstr(&l->hostaddr));
	if (l->any_port)
		put_option(out, "port", buf_cstr(&l->port));
}

/* The whole conninfo into out; false if no host is left. */
static bool build(struct pgresolve *r, struct buf *out)
{
	bool ok = true;

	if (r->rewritten) {
		struct lists l = {.n = 0};

		buf_init(&l.host, 0);
		buf_init(&l.hostaddr, 0);
		buf_init(&l.port, 0);
		put_lists(r, out, &l);
		ok = l.n > 0;
		buf_free(&l.host);
		buf_free(&l.hostaddr);
		buf_free(&l.port);
	}
	for (PQconninfoOption *o = r->options; o->keyword != NULL; o++) {
		bool listed = strcmp(o->keyword, "host") == 0 ||
			      strcmp(o->keyword, "hostaddr") == 0 ||
			      strcmp(o->keyword, "port") == 0;

		if (o->val != NULL && *o->val != '\0' && !(r->rewritten && listed) &&
			extra_value(r, o->keyword) == NULL)
			put_option(out, o->keyword, o->val);
	}
	for (size_t i = 0; r->extra[i] != NULL; i += 2)
		put_option(out, r->extra[i], r->extra[i + 1]);
	return ok;
}

static void on_report(void *arg)
{
	struct pgresolve *r;
	struct buf out;

	OBJ_CAST(r, arg, MAGIC);
	ev_timer_stop(&r->timer);
	ASSERT(!r->done);
	r->done = true;
	if (r->error != NULL) {
		r->cb(-ERR_CONFIG, NULL, r->error, r->arg);
		return;
	}
	buf_init(&out, 0);
	if (build(r, &out)) {
		r->cb(0, buf_cstr(&out), NULL, r->arg);
	} else {
		buf_reset(&out);
		for (size_t i = 0; i < r->n_entries; i++)
			buf_printf(&out, "%scannot resolve host name \"%s\": %s", i > 0 ? ", " : "",
				r->entries[i].host, r->entries[i].problem);
		r->cb(-EHOSTUNREACH, NULL, buf_cstr(&out), r->arg);
	}
	buf_free(&out);
}

static void destroy(void *arg)
{
	struct pgresolve *r;

	OBJ_CAST(r, arg, MAGIC);
	ASSERT(r->n_pending == 0);
	for (size_t i = 0; i < r->n_entries; i++) {
		struct entry *e = &r->entries[i];

		free(e->host);
		free(e->hostaddr);
		free(e->port);
		for (size_t k = 0; k < e->n_addrs; k++)
			free(e->addrs[k]);
	}
	if (r->extra != NULL)
		for (size_t i = 0; r->extra[i] != NULL; i++)
			free(r->extra[i]);
	free(r->extra);
	free(r->error);
	if (r->dns != NULL)
		evdns_base_free(r->dns, 0);
	PQconninfoFree(r->options);
	r->magic = 0;
	mem_free(&mem_resolve, r);
}

static void take_addresses(struct entry *e, const struct evutil_addrinfo *list)
{
	for (; list != NULL && e->n_addrs < ADDRS_MAX; list = list->ai_next) {
		char text[INET6_ADDRSTRLEN + 32];

		if (getnameinfo(list->ai_addr, (socklen_t)list->ai_addrlen, text, sizeof text, NULL,
			    0, NI_NUMERICHOST) == 0)
			e->addrs[e->n_addrs++] = xstrdup(text);
	}
}

/* All lookups have an answer, or none is waited for any longer. */
static void settled(struct pgresolve *r)
{
	if (r->freed) {
		if (r->n_pending == 0 && !r->starting)
			ev_defer(r->loop, &r->destroy, destroy, r);
	} else if (!r->starting && !r->done) {
		ev_defer(r->loop, &r->report, on_report, r);
	}
}

static void on_addresses(int result, struct evutil_addrinfo *list, void *arg)
{
	struct entry *e = arg;
	struct pgresolve *r;

	OBJ_CAST(r, e->owner, MAGIC);
	e->request = NULL;
	e->pending = false;
	r->n_pending--;
	if (result == 0 && !r->done)
		take_addresses(e, list);
	if (result != 0)
		e->problem = evutil_gai_strerror(result);
	else if (e->n_addrs == 0)
		e->problem = "no address";
	if (list != NULL)
		evutil_freeaddrinfo(list);
	if (r->n_pending == 0)
		settled(r);
}

static void on_timeout(void *arg)
{
	struct pgresolve *r;

	OBJ_CAST(r, arg, MAGIC);
	for (size_t i = 0; i < r->n_entries; i++)
		if (r->entries[i].pending)
			r->entries[i].problem = "no answer from the name server";
	settled(r);
}

static void look_up(struct pgresolve *r)
{
	struct evutil_addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM};

	r->dns = evdns_base_new(ev_loop_base(r->loop), EVDNS_BASE_DISABLE_WHEN_INACTIVE);
	if (r->dns == NULL) {
		for (size_t i = 0; i < r->n_entries; i++)
			r->entries[i].problem = "no resolver";
		return;
	}
	/* A machine without resolv.conf gets the default server and its hosts file: not an error.
	 */
	(void)evdns_base_resolv_conf_parse(r->dns, DNS_OPTIONS_ALL, "/etc/resolv.conf");
	r->starting = true;
	for (size_t i = 0; i < r->n_entries; i++) {
		struct entry *e = &r->entries[i];
		struct evdns_getaddrinfo_request *request;

		if (!needs_lookup(e))
			continue;
		e->pending = true;
		r->n_pending++;
		/* May answer at once; then there is no request. */
		request = evdns_getaddrinfo(r->dns, e->host, NULL, &hints, on_addresses, e);
		if (e->pending)
			e->request = request;
	}
	r->starting = false;
}

static char **copy_extra(const char *const *extra)
{
	size_t n = 0;
	char **copy;

	while (extra != NULL && extra[n] != NULL)
		n++;
	ASSERT(n % 2 == 0);
	copy = xcalloc(n + 1, sizeof *copy);
	for (size_t i = 0; i < n; i++)
		copy[i] = xstrdup(extra[i]);
	return copy;
}

struct pgresolve *pgresolve_start(struct ev_loop *loop, const char *conninfo,
	const char *const *extra, pgresolve_fn cb, void *arg)
{
	struct pgresolve *r = mem_new(&mem_resolve, sizeof *r);
	char *parse_error = NULL;
	const char *problem = NULL;

	r->magic = MAGIC;
	r->loop = loop;
	r->cb = cb;
	r->arg = arg;
	r->extra = copy_extra(extra);
	ev_timer_init(&r->timer, loop, "pgresolve", on_timeout, r);
	r->options = PQconninfoParse(conninfo, &parse_error);
	if (r->options == NULL) {
		r->error = xasprintf("%s", parse_error != NULL ? parse_error : "bad conninfo");
		r->error[strcspn(r->error, "\n")] = '\0';
	} else {
		problem = split_lists(r);
		if (problem != NULL)
			r->error = xstrdup(problem);
	}
	if (parse_error != NULL)
		PQfreemem(parse_error);
	if (r->error == NULL && r->rewritten)
		look_up(r);
	if (r->n_pending == 0)
		ev_defer(loop, &r->report, on_report, r);
	else
		ev_timer_start(&r->timer, LOOKUP_TIMEOUT_MS);
	return r;
}

void pgresolve_free(struct pgresolve **rp)
{
	struct pgresolve *r = *rp;

	if (r == NULL)
		return;
	OBJ_CHECK(r, MAGIC);
	*rp = NULL;
	r->freed = true;
	r->done = true;
	ev_timer_stop(&r->timer);
	ev_defer_cancel(r->loop, &r->report);
	for (size_t i = 0; i < r->n_entries; i++)
		if (r->entries[i].request != NULL)
			evdns_getaddrinfo_cancel(r->entries[i].request);
	if (r->n_pending == 0)
		ev_defer(r->loop, &r->destroy, destroy, r);
}
