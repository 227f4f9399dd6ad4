/* SPDX-License-Identifier: PostgreSQL */
/* systemd's readiness protocol. Context: the supervisor. A lost notification has no remedy here. */
#include "config.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <systemd/sd-daemon.h>
#include <time.h>

#include "common/base/sdnotify.h"

void sdnotify_ready(void)
{
	(void)sd_notify(0, "READY=1");
}

void sdnotify_reloading(void)
{
	struct timespec ts;
	clock_gettime(CLOCK_MONOTONIC, &ts);
	(void)sd_notifyf(0, "RELOADING=1\nMONOTONIC_USEC=%" PRIu64,
		(uint64_t)ts.tv_sec * 1000000 + (uint64_t)ts.tv_nsec / 1000);
}

void sdnotify_stopping(void)
{
	(void)sd_notify(0, "STOPPING=1");
}

void sdnotify_status(const char *fmt, ...)
{
	char text[512];
	va_list ap;
	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	/* A newline would begin another assignment. */
	for (char *p = text; *p != '\0'; p++) {
		if (*p == '\n')
			*p = ' ';
	}
	(void)sd_notifyf(0, "STATUS=%s", text);
}

void sdnotify_watchdog(void)
{
	(void)sd_notify(0, "WATCHDOG=1");
}

void sdnotify_extend_timeout_ms(uint64_t ms)
{
	(void)sd_notifyf(0, "EXTEND_TIMEOUT_USEC=%" PRIu64, ms * 1000);
}

uint64_t sdnotify_watchdog_interval_ms(void)
{
	uint64_t limit_us = 0;
	if (sd_watchdog_enabled(0, &limit_us) <= 0)
		return 0;
	/* Half the limit, as sd_watchdog_enabled(3) advises; never 0, which would mean "not
	 * wanted". */
	return limit_us < 4000 ? 1 : limit_us / 2000;
}
