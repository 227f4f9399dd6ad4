/* SPDX-License-Identifier: PostgreSQL */
/*
 * Configuration: libconfig text -> schema tables -> an immutable snapshot. libconfig only
 * tokenises; types, units, ranges, defaults and unknown keys are ours. Every error is reported in
 * one pass, as "FILE:LINE: key: what is wrong; what would be right".
 *
 * A program names the schema tables that it knows and the sections that belong to others: keys in
 * those are not its business (their owner's -t judges them).
 */
#ifndef COMMON_BASE_CONF_H
#define COMMON_BASE_CONF_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/base/buf.h"

enum conf_type {
	CONF_BOOL,
	CONF_INT,
	CONF_SIZE,     /* "64MB": kB MB GB TB (powers of 1024), bytes with B; snapshot in bytes */
	CONF_DURATION, /* "30s": ms s min h d; snapshot in milliseconds */
	CONF_STRING,
	CONF_ENUM,   /* one of choices, "a|b|c" */
	CONF_GROUPS, /* a list of groups, each checked against child rows */
};

/* When a changed value takes effect. */
enum conf_reload { CONF_LIVE, CONF_WORKER, CONF_RESTART };

struct conf_row {
	const char *path; /* "brokerd.ack_timeout"; in child rows relative: "url" */
	enum conf_type type;
	/* Both ends inclusive, both 0: no limit. Numbers: bytes, ms; strings: length in bytes;
	 * groups: how many. */
	int64_t min, max;
	/* Written as in the file without quotes: "30s", "true"; groups: "( { url = \"…\"; } )" or
	 * ""; NULL: required. "" is right for every string: "not set". */
	const char *def;
	enum conf_reload reload;
	bool secret;
	const char *choices;
	const struct conf_row *child; /* CONF_GROUPS, ends with path == NULL */
	/* Further judgement on the text of a value; returns NULL or why not (static text). */
	const char *(*validate)(const char *text); /* not asked for "" by default */
	const char *help;
};

struct conf;

/*
 * Parses text (name is for messages). schemas: NULL-terminated array of tables that end with path
 * == NULL; the rows must outlive the snapshot. foreign: NULL-terminated array (or NULL) of
 * top-level names that belong to others: of a foreign section only the rows that the schemas name
 * are read, the rest is passed over. On success *ret_conf is owned by the caller. On failure
 * -ERR_CONFIG; errors (if not NULL) gets one finding per line, in the order of the file.
 */
int conf_parse(const char *text, const char *name, const struct conf_row *const *schemas,
	const char *const *foreign, struct conf **ret_conf, struct buf *errors)
	__attribute__((warn_unused_result));
/* Reads a descriptor from its start (a file or memfd, at most 1 MB) and parses it. */
int conf_parse_fd(int fd, const char *name, const struct conf_row *const *schemas,
	const char *const *foreign, struct conf **ret_conf, struct buf *errors)
	__attribute__((warn_unused_result));
void conf_free(struct conf **conf);

/*
 * Typed access; the path must be in the schema with that type (a bug otherwise: ASSERT). List
 * elements: "brokerd.listeners.[0].url". Strings live as long as the snapshot.
 */
bool conf_bool(const struct conf *conf, const char *path);
int64_t conf_int(const struct conf *conf, const char *path); /* INT, SIZE (bytes), DURATION (ms) */
const char *conf_str(const struct conf *conf, const char *path); /* STRING, ENUM */
size_t conf_count(const struct conf *conf, const char *path);    /* GROUPS */

/* Calls fn for each value, in schema order: path, value and default as text ("***" if secret), line
 * in the file (0: default), reload class, help. For `pgctl config show`, sample file and manual. */
void conf_each(const struct conf *conf,
	void (*fn)(const char *path, const char *value, const char *def, int line,
		enum conf_reload reload, const char *help, void *arg),
	void *arg);

/* Calls fn for each path whose value differs between two snapshots of the same schemas, with its
 * reload class; what differs inside a list is its list's difference, told once. */
void conf_changes(const struct conf *old, const struct conf *next,
	void (*fn)(const char *path, enum conf_reload reload, void *arg), void *arg);

/* "64MB" -> bytes, "30s" -> milliseconds; -EINVAL or -ERANGE. */
int conf_parse_size(const char *text, int64_t *ret_bytes) __attribute__((warn_unused_result));
int conf_parse_duration(const char *text, int64_t *ret_ms) __attribute__((warn_unused_result));

#endif
