/* SPDX-License-Identifier: PostgreSQL */
/*
 * Log lines to stderr, one write(2) each, and the panic slot.
 *
 * Context: the process's event thread; log_panic from any thread.
 * Invariants: a line has no control characters inside and ends with one newline, whatever its
 * arguments hold, so that nobody can forge a second line; a line that is too long is cut with "…"
 * and keeps its message id.
 * On crash: nothing is buffered here, what was logged is written.
 */
#include "config.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "common/base/buf.h"
#include "common/base/log.h"
#include "common/base/log_panic.h"
#include "common/base/mem.h"

#define LINE_BYTES 4096
#define LIMIT_WINDOW_MS 10000
#define ELLIPSIS "\xe2\x80\xa6"

/* What journald understands (sd-daemon(3)): the numbers are syslog's. */
static const struct {
	const char *name;
	const char *prefix;
} levels[] = {
	[LOG_LEVEL_ERROR] = {"error", "<3>"},
	[LOG_LEVEL_WARNING] = {"warning", "<4>"},
	[LOG_LEVEL_INFO] = {"info", "<6>"},
	[LOG_LEVEL_DEBUG] = {"debug", "<7>"},
};

static const char *log_component = "howdah";
static enum log_level log_threshold = LOG_LEVEL_INFO;
static char *panic_slot;
static size_t panic_slot_bytes;

void log_init(const char *component, enum log_level level)
{
	log_component = component;
	log_threshold = level;
}

void log_set_level(enum log_level level)
{
	log_threshold = level;
}

enum log_level log_get_level(void)
{
	return log_threshold;
}

int log_level_parse(const char *name, enum log_level *ret_level)
{
	for (size_t i = 0; i < ARRAY_LEN(levels); i++) {
		if (strcmp(name, levels[i].name) == 0) {
			*ret_level = (enum log_level)i;
			return 0;
		}
	}
	return -EINVAL;
}

const char *log_level_str(enum log_level level)
{
	return (size_t)level < ARRAY_LEN(levels) ? levels[level].name : "?";
}

void log_set_panic_slot(char *slot, size_t len_bytes)
{
	panic_slot = slot;
	panic_slot_bytes = len_bytes;
}

/* A line that cannot be written (closed or full stderr) has nowhere else to go. */
static void write_all(const char *data, size_t len_bytes)
{
	while (len_bytes > 0) {
		ssize_t n = write(STDERR_FILENO, data, len_bytes);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return;
		data += n;
		len_bytes -= (size_t)n;
	}
}

void log_panic(const char *text)
{
	if (panic_slot != NULL && panic_slot_bytes > 0) {
		size_t len = strnlen(text, panic_slot_bytes - 1);
		memcpy(panic_slot, text, len);
		panic_slot[len] = '\0';
	}
	char line[1024];
	int n = snprintf(line, sizeof(line), "%s%s: bug: %s; aborting [base.assert]\n",
		levels[LOG_LEVEL_ERROR].prefix, log_component, text);
	if (n > 0)
		write_all(line, (size_t)n < sizeof(line) ? (size_t)n : sizeof(line) - 1);
}

/* Where a text of len_bytes may be cut so that no UTF-8 character is cut in two. */
static size_t utf8_cut(const char *text, size_t len_bytes)
{
	size_t at = len_bytes;
	while (at > 0 && len_bytes - at < 4 && ((unsigned char)text[at] & 0xc0) == 0x80)
		at--;
	return at;
}

void log_line(enum log_level level, const char *id, const char *fmt, ...)
{
	if (level > log_threshold)
		return;
	int saved_errno = errno;
	/* Room is kept for "… [id]\n" behind the message. */
	char line[LINE_BYTES];
	size_t tail_max = strnlen(id, 128) + sizeof(ELLIPSIS " []\n");
	size_t room = sizeof(line) - tail_max;
	int n = snprintf(line, room, "%s%s: ", levels[level].prefix, log_component);
	size_t start = n < 0 ? 0 : (size_t)n < room ? (size_t)n : room - 1;

	va_list ap;
	va_start(ap, fmt);
	n = vsnprintf(line + start, room - start, fmt, ap);
	va_end(ap);
	size_t end = start + (n < 0 ? 0 : (size_t)n);
	const char *cut = "";
	if (end >= room) {
		end = utf8_cut(line, room - 2);
		cut = ELLIPSIS;
	}
	for (size_t i = start; i < end; i++) {
		if ((unsigned char)line[i] < 0x20 || line[i] == 0x7f)
			line[i] = ' ';
	}
	n = snprintf(line + end, sizeof(line) - end, "%s [%.128s]\n", cut, id);
	write_all(line, end + (n < 0 ? 0 : (size_t)n));
	errno = saved_errno;
}

static uint64_t now_ms(void)
{
	struct timespec ts;
	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

bool log_limit_pass(struct log_limit *limit, uint32_t burst, const char *id)
{
	uint64_t now = now_ms();
	if (limit->window_start_ms == 0 || now - limit->window_start_ms >= LIMIT_WINDOW_MS) {
		if (limit->suppressed > 0)
			log_line(LOG_LEVEL_WARNING, id, "%u similar lines suppressed",
				limit->suppressed);
		*limit = (struct log_limit){.window_start_ms = now};
	}
	if (limit->in_window >= burst) {
		limit->suppressed++;
		return false;
	}
	limit->in_window++;
	return true;
}

/* Bytes of the character at p if it may stand in a log line as it is, else 0. */
static size_t printable(const unsigned char *p, size_t left_bytes)
{
	uint32_t code;
	size_t n = utf8_char(p, left_bytes, &code);
	if (n == 0 || code < 0x20 || code == '"' || code == '\\')
		return 0;
	/* DEL and C1 controls, line and paragraph separators, what turns the writing direction. */
	if ((code >= 0x7f && code < 0xa0) || (code >= 0x2028 && code <= 0x202e) ||
		(code >= 0x2066 && code <= 0x2069))
		return 0;
	return n;
}

const char *log_escape(const void *text, size_t len_bytes, char *out, size_t out_size)
{
	static const char hex[] = "0123456789abcdef";
	const unsigned char *p = text;
	/* What must still fit behind each piece: the ellipsis, the quote and the zero. */
	const size_t tail = sizeof(ELLIPSIS "\"");
	ASSERT(out_size > tail + 1);

	size_t used = 0, i = 0;
	out[used++] = '"';
	while (i < len_bytes) {
		size_t n = printable(p + i, len_bytes - i);
		size_t need = n > 0 ? n : 4;
		if (used + need + tail > out_size)
			break;
		if (n > 0) {
			memcpy(out + used, p + i, n);
		} else {
			out[used] = '\\';
			out[used + 1] = 'x';
			out[used + 2] = hex[p[i] >> 4];
			out[used + 3] = hex[p[i] & 15];
			n = 1;
		}
		used += need;
		i += n;
	}
	memcpy(out + used, i < len_bytes ? ELLIPSIS "\"" : "\"", i < len_bytes ? tail : 2);
	return out;
}
