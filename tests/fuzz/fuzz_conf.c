/* SPDX-License-Identifier: PostgreSQL */
/*
 * Fuzz target: configuration text against a schema with every type, lists of groups inside of
 * lists, foreign sections and secrets. Checks that a verdict and its findings agree, that every
 * finding is one printable line, and that a snapshot answers for every row.
 */
#include "config.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/conf.h"
#include "common/base/err.h"
#include "common/base/mem.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const struct conf_row peer_rows[] = {
	{.path = "name", .type = CONF_STRING, .min = 1, .max = 8},
	{.path = NULL},
};

static const struct conf_row listener_rows[] = {
	{.path = "url", .type = CONF_STRING, .min = 1, .max = 64},
	{.path = "backlog", .type = CONF_INT, .min = 1, .max = 4096, .def = "128"},
	{.path = "tls.cert", .type = CONF_STRING, .def = ""},
	{.path = "peers", .type = CONF_GROUPS, .def = "", .child = peer_rows},
	{.path = NULL},
};

static const struct conf_row rows[] = {
	{.path = "node", .type = CONF_STRING, .min = 1, .max = 32, .def = ""},
	{.path = "log_level",
		.type = CONF_ENUM,
		.choices = "error|warning|info|debug",
		.def = "info"},
	{.path = "b.enabled", .type = CONF_BOOL, .def = "true"},
	{.path = "b.size", .type = CONF_SIZE, .min = 1024, .max = 256 << 20, .def = "1MB"},
	{.path = "b.time", .type = CONF_DURATION, .min = 1000, .max = 3600000, .def = "30s"},
	{.path = "b.number", .type = CONF_INT, .min = 1, .max = 65535, .def = "1000"},
	{.path = "b.secret", .type = CONF_STRING, .max = 10, .def = "", .secret = true},
	{.path = "b.listeners",
		.type = CONF_GROUPS,
		.min = 1,
		.max = 3,
		.def = "( { url = \"x\"; } )",
		.child = listener_rows},
	{.path = NULL},
};

static const struct conf_row *const schemas[] = {rows, NULL};
static const char *const foreign[] = {"w", NULL};

static void on_value(const char *path, const char *value, const char *def, int line,
	enum conf_reload reload, const char *help, void *arg)
{
	(void)def;
	(void)reload;
	(void)help;
	size_t *n = arg;
	(*n)++;
	ASSERT(line >= 0);
	ASSERT(strcmp(path, "b.secret") != 0 || *value == '\0' || strcmp(value, "***") == 0);
}

static void check_snapshot(struct conf *conf)
{
	size_t n = 0;
	conf_each(conf, on_value, &n);
	ASSERT(n >= 8);
	ASSERT(strlen(conf_str(conf, "node")) <= 32);
	ASSERT(conf_int(conf, "b.size") >= 1024 && conf_int(conf, "b.size") <= 256 << 20);
	ASSERT(conf_int(conf, "b.time") >= 1000 && conf_int(conf, "b.time") <= 3600000);
	ASSERT(conf_int(conf, "b.number") >= 1 && conf_int(conf, "b.number") <= 65535);
	ASSERT(conf_count(conf, "b.listeners") >= 1 && conf_count(conf, "b.listeners") <= 3);
	ASSERT(*conf_str(conf, "b.listeners.[0].url") != '\0');
	ASSERT(conf_int(conf, "b.listeners.[0].backlog") >= 1);
	(void)conf_bool(conf, "b.enabled");
}

static void check_findings(const char *text)
{
	ASSERT(*text != '\0');
	while (*text != '\0') {
		const char *end = strchr(text, '\n');
		ASSERT(strncmp(text, "f:", 2) == 0 && end != NULL);
		for (const char *p = text; p < end; p++)
			ASSERT((unsigned char)*p >= 0x20);
		text = end + 1;
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	char *text = xmalloc(size + 1);
	if (size > 0)
		memcpy(text, data, size);
	text[size] = '\0';
	struct conf *conf = NULL;
	struct buf errors;
	buf_init(&errors, 0);
	int rc = conf_parse(text, "f", schemas, foreign, &conf, &errors);
	if (rc == 0) {
		ASSERT(conf != NULL && errors.len_bytes == 0);
		check_snapshot(conf);
		conf_free(&conf);
	} else {
		ASSERT(rc == -ERR_CONFIG && conf == NULL);
		check_findings(buf_cstr(&errors));
	}
	buf_free(&errors);
	free(text);
	return 0;
}
