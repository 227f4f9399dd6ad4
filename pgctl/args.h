/* SPDX-License-Identifier: PostgreSQL */
/*
 * The words of a command line, parsed by the command table: pure, no output.
 *
 * Grammar of a command's args column: WORD is a positional argument, [WORD] one that may be left
 * out, [--name WORD] an option with a value, [--name WORD]... one that may come again (its values
 * are an array, also if there is one), [--name] a switch. A value whose WORD is N is a number, one
 * whose WORD is a|b is one of these.
 */
#ifndef PGCTL_ARGS_H
#define PGCTL_ARGS_H

#include <jansson.h>
#include <stddef.h>

#include "common/base/buf.h"
#include "common/ipc/ctl.h"

/* 0, *ret_cmd and *ret_args (owned by the caller), or -EINVAL with one line in why. */
int args_parse(const char *const *words, size_t n_words, const struct ctl_command **ret_cmd,
	json_t **ret_args, struct buf *why) __attribute__((warn_unused_result));
/* "mqtt.map.add" -> "mqtt map add", for people; into b. */
void args_put_words(struct buf *b, const char *name);

#endif
