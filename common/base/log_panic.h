/* SPDX-License-Identifier: PostgreSQL */
/*
 * The last line of a process: for mem.c only. Goes to the panic slot first, then to stderr, without
 * allocating. The caller aborts.
 */
#ifndef COMMON_BASE_LOG_PANIC_H
#define COMMON_BASE_LOG_PANIC_H

void log_panic(const char *text);

#endif
