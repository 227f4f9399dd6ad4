/* SPDX-License-Identifier: PostgreSQL */
/*
 * systemd's readiness protocol through libsystemd. All calls are no-ops without NOTIFY_SOCKET.
 * See sd_notify(3): READY, RELOADING (with MONOTONIC_USEC), STOPPING, STATUS, WATCHDOG,
 * EXTEND_TIMEOUT_USEC.
 */
#ifndef COMMON_BASE_SDNOTIFY_H
#define COMMON_BASE_SDNOTIFY_H

#include <stdint.h>

void sdnotify_ready(void);
void sdnotify_reloading(void);
void sdnotify_stopping(void);
void sdnotify_status(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
void sdnotify_watchdog(void);
void sdnotify_extend_timeout_ms(uint64_t ms);
/* Interval at which to call sdnotify_watchdog, 0 if systemd does not want it. */
uint64_t sdnotify_watchdog_interval_ms(void);

#endif
