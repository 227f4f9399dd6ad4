/* SPDX-License-Identifier: PostgreSQL */
/*
 * A far-away server: a TCP proxy on 127.0.0.1 that holds every byte back for a given time, in each
 * direction. It delays, it does not narrow: any number of bytes may be on the way.
 *
 * Context: the bench process starts it as a child, which serves until it is ended.
 */
#ifndef PGCTL_BENCH_PROXY_H
#define PGCTL_BENCH_PROXY_H

#include "pgctl/bench.h"

/* In front of the throw-away server. *ret_port: where to connect; *ret_pid: for bench_end. */
int bench_proxy_start(struct bench *b, unsigned delay_ms, int *ret_port, pid_t *ret_pid);

#endif
