/* SPDX-License-Identifier: PostgreSQL */
/* Request heads, see http1_proto.h. */
#include "config.h"

#include <string.h>
#include <strings.h>

#include "common/base/err.h"
#include "common/base/mem.h"
#include "watchd/http1_proto.h"

/* RFC 9110, section 5.6.2. */
static bool is_token_char(uint8_t c)
{
	if ((c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9'))
		return true;
	return c != '\0' && strchr("!#$%&'*+-.^_`|~", c) != NULL;
}

/* Length of the token at the start. */
static size_t token_len(const uint8_t *p, size_t len)
{
	size_t n = 0;
	while (n < len && is_token_char(p[n]))
		n++;
	return n;
}

/* The line at *at, without its end, and steps over it; a bare LF ends a line too (RFC 9112,
 * section 2.2). False: it does not end in data. */
static bool next_line(const uint8_t *data, size_t len, size_t *at, struct http1_text *ret)
{
	const uint8_t *lf = memchr(data + *at, '\n', len - *at);
	if (lf == NULL)
		return false;
	size_t n = (size_t)(lf - (data + *at));
	*ret = (struct http1_text){(const char *)data + *at, n};
	if (n > 0 && ret->p[n - 1] == '\r')
		ret->len--;
	*at += n + 1;
	return true;
}

bool http1_text_is(struct http1_text text, const char *s)
{
	return text.len == strlen(s) && memcmp(text.p, s, text.len) == 0;
}

static bool is_word(struct http1_text text, const char *s)
{
	return text.len == strlen(s) && strncasecmp(text.p, s, text.len) == 0;
}

static int parse_version(struct http1_text v, struct http1_request *rq)
{
	if (v.len != 8 || memcmp(v.p, "HTTP/", 5) != 0 || v.p[6] != '.')
		return -ERR_MALFORMED;
	if (v.p[5] != '1' || v.p[7] < '0' || v.p[7] > '1')
		return -ERR_VERSION;
	rq->minor = (uint8_t)(v.p[7] - '0');
	rq->keep_alive = rq->minor >= 1;
	return 0;
}

/* "GET /path?query HTTP/1.1" */
static int parse_request_line(struct http1_text line, struct http1_request *rq)
{
	size_t n = token_len((const uint8_t *)line.p, line.len);
	if (n == 0 || n >= line.len || line.p[n] != ' ')
		return -ERR_MALFORMED;
	struct http1_text method = {line.p, n};
	rq->method = http1_text_is(method, "GET")    ? HTTP1_GET
		     : http1_text_is(method, "HEAD") ? HTTP1_HEAD
						     : HTTP1_OTHER;
	size_t at = ++n;
	while (at < line.len && (uint8_t)line.p[at] > ' ' && (uint8_t)line.p[at] < 0x7F)
		at++;
	if (at == n || at >= line.len || line.p[n] != '/' || line.p[at] != ' ')
		return -ERR_MALFORMED;
	const char *mark = memchr(line.p + n, '?', at - n);
	rq->path = (struct http1_text){line.p + n, at - n};
	rq->query = (struct http1_text){line.p + at, 0};
	if (mark != NULL) {
		rq->path.len = (size_t)(mark - rq->path.p);
		rq->query = (struct http1_text){mark + 1, (size_t)(line.p + at - mark) - 1};
	}
	return parse_version((struct http1_text){line.p + at + 1, line.len - at - 1}, rq);
}

/* The options of a Connection header, separated by commas. */
static void parse_connection(struct http1_text v, struct http1_request *rq)
{
	while (v.len > 0) {
		size_t n = token_len((const uint8_t *)v.p, v.len);
		struct http1_text option = {v.p, n};
		if (is_word(option, "close"))
			rq->keep_alive = false;
		else if (is_word(option, "keep-alive"))
			rq->keep_alive = true;
		n = n == 0 ? 1 : n; /* a separator */
		v.p += n;
		v.len -= n;
	}
}

static bool is_zero(struct http1_text v)
{
	for (size_t i = 0; i < v.len; i++) {
		if (v.p[i] != '0')
			return false;
	}
	return v.len > 0;
}

static int parse_header(struct http1_text line, struct http1_request *rq)
{
	size_t n = token_len((const uint8_t *)line.p, line.len);
	if (n == 0 || n >= line.len || line.p[n] != ':')
		return -ERR_MALFORMED;
	struct http1_text name = {line.p, n};
	struct http1_text v = {line.p + n + 1, line.len - n - 1};
	if (memchr(v.p, '\0', v.len) != NULL || memchr(v.p, '\r', v.len) != NULL)
		return -ERR_MALFORMED;
	for (; v.len > 0 && (v.p[0] == ' ' || v.p[0] == '\t'); v.p++)
		v.len--;
	while (v.len > 0 && (v.p[v.len - 1] == ' ' || v.p[v.len - 1] == '\t'))
		v.len--;
	if (is_word(name, "connection"))
		parse_connection(v, rq);
	else if (is_word(name, "transfer-encoding") ||
		 (is_word(name, "content-length") && !is_zero(v)))
		rq->has_body = true;
	return 0;
}

int http1_parse(const uint8_t *data, size_t len, struct http1_request *rq)
{
	struct http1_request r = {.method = HTTP1_OTHER};
	struct http1_text line;
	size_t at = 0;
	do { /* empty lines in front are skipped (RFC 9112, section 2.2) */
		if (!next_line(data, len, &at, &line))
			return -ERR_TRUNCATED;
	} while (line.len == 0 && at <= 8);
	int err = parse_request_line(line, &r);
	for (int n = 0; err == 0; n++) {
		if (!next_line(data, len, &at, &line))
			return -ERR_TRUNCATED;
		if (line.len == 0)
			break;
		err = n < HTTP1_HEADERS_MAX ? parse_header(line, &r) : -ERR_LIMIT;
	}
	if (err != 0)
		return err;
	r.head_bytes = at;
	*rq = r;
	return 0;
}

const char *http1_reason(int status)
{
	static const struct {
		int status;
		const char *reason;
	} rows[] = {{200, "OK"}, {400, "Bad Request"}, {404, "Not Found"},
		{405, "Method Not Allowed"}, {413, "Content Too Large"},
		{431, "Request Header Fields Too Large"}, {500, "Internal Server Error"},
		{503, "Service Unavailable"}, {505, "HTTP Version Not Supported"}};
	for (size_t i = 0; i < ARRAY_LEN(rows); i++) {
		if (rows[i].status == status)
			return rows[i].reason;
	}
	return "";
}

void http1_put_head(
	struct buf *b, int status, const char *content_type, size_t len, bool keep_alive)
{
	buf_printf(
		b, "HTTP/1.1 %d %s\r\nContent-Length: %zu\r\n", status, http1_reason(status), len);
	if (content_type != NULL)
		buf_printf(b, "Content-Type: %s\r\n", content_type);
	if (status == 405)
		buf_put_text(b, "Allow: GET, HEAD\r\n");
	buf_printf(b, "Connection: %s\r\n\r\n", keep_alive ? "keep-alive" : "close");
}

bool http1_query_get(const struct http1_request *rq, const char *name, struct http1_text *ret_value)
{
	struct http1_text q = rq->query;
	while (q.len > 0) {
		const char *amp = memchr(q.p, '&', q.len);
		size_t n = amp != NULL ? (size_t)(amp - q.p) : q.len;
		const char *eq = memchr(q.p, '=', n);
		struct http1_text key = {q.p, eq != NULL ? (size_t)(eq - q.p) : n};
		if (http1_text_is(key, name)) {
			*ret_value = (struct http1_text){
				eq != NULL ? eq + 1 : q.p + n, eq != NULL ? n - key.len - 1 : 0};
			return true;
		}
		n += amp != NULL ? 1 : 0;
		q.p += n;
		q.len -= n;
	}
	return false;
}
