/* SPDX-License-Identifier: PostgreSQL */
/*
 * Log lines to stderr with "<N>" priority prefixes for journald. One line is
 *
 *     <4>walstreamd: slot howdah_alpha: cannot connect: …; retrying in 5s [wal.connect]
 *
 * i.e. component, object context, lower-case sentence, remedy after "; ", stable message id.
 * common/ never logs above debug; its callers do.
 *
 * Context: any process; single-threaded use per process (helper threads do not log).
 */
#ifndef COMMON_BASE_LOG_H
#define COMMON_BASE_LOG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum log_level { LOG_LEVEL_ERROR, LOG_LEVEL_WARNING, LOG_LEVEL_INFO, LOG_LEVEL_DEBUG };

/* component is borrowed for the life of the process. */
void log_init(const char *component, enum log_level level);
void log_set_level(enum log_level level);
enum log_level log_get_level(void);
/* Name ("info") to level; -EINVAL if there is no such level. */
int log_level_parse(const char *name, enum log_level *ret_level)
	__attribute__((warn_unused_result));
const char *log_level_str(enum log_level level);

/* Where ASSERT leaves its line for the supervisor: zero-terminated, at most len_bytes. */
void log_set_panic_slot(char *slot, size_t len_bytes);

/* id: "area.subject", stable over releases. Use the macros. */
void log_line(enum log_level level, const char *id, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));

#define log_error(id, ...) log_line(LOG_LEVEL_ERROR, id, __VA_ARGS__)
#define log_warning(id, ...) log_line(LOG_LEVEL_WARNING, id, __VA_ARGS__)
#define log_info(id, ...) log_line(LOG_LEVEL_INFO, id, __VA_ARGS__)
#define log_debug(id, ...)                                                                         \
	do {                                                                                       \
		if (log_get_level() >= LOG_LEVEL_DEBUG)                                            \
			log_line(LOG_LEVEL_DEBUG, id, __VA_ARGS__);                                \
	} while (0)

/*
 * For lines that a peer can trigger: at most burst lines per 10 s, then silence, then one line that
 * says how many were suppressed. Static per site.
 */
struct log_limit {
	uint64_t window_start_ms;
	uint32_t in_window;
	uint32_t suppressed;
};
bool log_limit_pass(struct log_limit *limit, uint32_t burst, const char *id);

#define log_limited(level, id, ...)                                                                \
	do {                                                                                       \
		static struct log_limit log_limit_site;                                            \
		if (log_limit_pass(&log_limit_site, 10, id))                                       \
			log_line(level, id, __VA_ARGS__);                                          \
	} while (0)

/*
 * text of len_bytes as a quoted, printable string for error lines: control characters, quotes and
 * invalid UTF-8 become \xNN, cut with "…" at the size of out. Returns out.
 */
const char *log_escape(const void *text, size_t len_bytes, char *out, size_t out_size);

#endif
