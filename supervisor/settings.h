/* SPDX-License-Identifier: PostgreSQL */
/*
 * The supervisor's share of the configuration: the top-level keys, and of each worker's section
 * `enabled` and `listeners`. The rest of a section is its worker's business. One struct settings is
 * one file as it was read once: immutable, handed to the workers as a sealed memfd.
 */
#ifndef SUPERVISOR_SETTINGS_H
#define SUPERVISOR_SETTINGS_H

#include <stdbool.h>
#include <stdint.h>

#include "common/base/buf.h"
#include "common/base/conf.h"

struct settings {
	struct conf *conf; /* owned, like node */
	char *node;
	int config_fd;   /* the text; owned */
	uint32_t roles;  /* mask of the workers that are to run */
	uint64_t serial; /* no two are the same */
};

/* 0; -ERR_CONFIG with one finding per line in errors; -errno if the file cannot be read (a finding
 * too). */
int settings_load(const char *file, struct settings **ret_settings, struct buf *errors)
	__attribute__((warn_unused_result));
/* Nulls *s. */
void settings_free(struct settings **s);

/* The same with the text in hand. */
int settings_parse(const char *text, const char *name, struct settings **ret_settings,
	struct buf *errors) __attribute__((warn_unused_result));

/* Keys that take effect only with a restart of the whole suite and differ: their names separated by
 * ", " are added to names. */
void settings_restart_keys(const struct settings *a, const struct settings *b, struct buf *names);

#endif
