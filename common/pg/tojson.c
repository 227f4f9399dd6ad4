/* SPDX-License-Identifier: PostgreSQL */
/*
 * See tojson.h. One small function per kind of type, chosen by a table; arrays and composites call
 * the table again for their elements, which they unquote into a scratch buffer only if they have
 * to.
 *
 * Invariant: what was appended is one complete JSON value, whatever the text was (json and jsonb
 * excepted: the server has checked those, they are passed on).
 */
#include "config.h"

#include <stdbool.h>
#include <string.h>
#include <strings.h>

#include "common/base/err.h"
#include "common/base/mem.h"
#include "common/pg/tojson.h"

/* Arrays have at most 6 dimensions; composites nest as deep as somebody built them. */
#define DEPTH_MAX 64
/* The largest exponent of a double is 308; numeric prints none. */
#define EXPONENT_MAX 400

static bool put_value(
	struct buf *out, const struct type_info *t, const char *s, size_t len, int depth);

size_t tojson_utf8_len(const char *text, size_t left)
{
	const uint8_t *p = (const uint8_t *)text;
	uint8_t low = 0x80, high = 0xbf;
	size_t n;

	if (p[0] < 0x80)
		return 1;
	if (p[0] >= 0xc2 && p[0] <= 0xdf)
		n = 2;
	else if ((p[0] & 0xf0) == 0xe0)
		n = 3;
	else if (p[0] >= 0xf0 && p[0] <= 0xf4)
		n = 4;
	else
		return 0;
	if (left < n)
		return 0;
	/* Overlong forms, surrogates, beyond U+10FFFF: all decided by the second byte. */
	if (p[0] == 0xe0)
		low = 0xa0;
	else if (p[0] == 0xed)
		high = 0x9f;
	else if (p[0] == 0xf0)
		low = 0x90;
	else if (p[0] == 0xf4)
		high = 0x8f;
	if (p[1] < low || p[1] > high)
		return 0;
	for (size_t i = 2; i < n; i++) {
		if (p[i] < 0x80 || p[i] > 0xbf)
			return 0;
	}
	return n;
}

static void put_escape(struct buf *out, uint8_t c)
{
	static const char named[256] = {['\b'] = 'b',
		['\f'] = 'f',
		['\n'] = 'n',
		['\r'] = 'r',
		['\t'] = 't',
		['"'] = '"',
		['\\'] = '\\'};
	static const char hex[] = "0123456789abcdef";

	if (named[c] != 0) {
		buf_put(out, (char[]){'\\', named[c]}, 2);
	} else {
		buf_put_text(out, "\\u00");
		buf_put(out, (char[]){hex[c >> 4], hex[c & 15]}, 2);
	}
}

void tojson_string(struct buf *out, const char *s, size_t len)
{
	size_t from = 0, i = 0;

	buf_put_u8(out, '"');
	while (i < len) {
		uint8_t c = (uint8_t)s[i];

		if (c >= 0x20 && c < 0x80 && c != '"' && c != '\\') {
			i++;
			continue;
		}
		size_t n = c >= 0x80 ? tojson_utf8_len(s + i, len - i) : 0;
		if (n > 0) {
			i += n;
			continue;
		}
		buf_put(out, s + from, i - from);
		if (c < 0x80)
			put_escape(out, c);
		else
			buf_put_text(out, "\xef\xbf\xbd");
		from = ++i;
	}
	buf_put(out, s + from, len - from);
	buf_put_u8(out, '"');
}

static bool put_text(
	struct buf *out, const struct type_info *t, const char *s, size_t len, int depth)
{
	(void)t;
	(void)depth;
	tojson_string(out, s, len);
	return true;
}

static bool put_bool(
	struct buf *out, const struct type_info *t, const char *s, size_t len, int depth)
{
	(void)t;
	(void)depth;
	if (len != 1 || (s[0] != 't' && s[0] != 'f'))
		return false;
	buf_put_text(out, s[0] == 't' ? "true" : "false");
	return true;
}

/* [-]digits[.digits][e[+-]digits], taken apart. */
struct number {
	bool negative;
	const char *whole, *fraction;
	size_t n_whole, n_fraction;
	int exponent;
};

static size_t count_digits(const char *s, const char *end)
{
	const char *p = s;

	while (p < end && *p >= '0' && *p <= '9')
		p++;
	return (size_t)(p - s);
}

static bool number_exponent(const char *p, const char *end, int *ret_exponent)
{
	bool negative = p < end && *p == '-';
	int v = 0;

	if (p < end && (*p == '-' || *p == '+'))
		p++;
	if (p == end || count_digits(p, end) != (size_t)(end - p))
		return false;
	for (; p < end; p++) {
		v = v * 10 + (*p - '0');
		if (v > EXPONENT_MAX)
			return false;
	}
	*ret_exponent = negative ? -v : v;
	return true;
}

static bool number_parse(const char *s, size_t len, struct number *n)
{
	const char *p = s, *end = s + len;

	memset(n, 0, sizeof(*n));
	if (p < end && *p == '-') {
		n->negative = true;
		p++;
	}
	n->whole = p;
	n->n_whole = count_digits(p, end);
	p += n->n_whole;
	if (p < end && *p == '.') {
		n->fraction = ++p;
		n->n_fraction = count_digits(p, end);
		p += n->n_fraction;
		if (n->n_fraction == 0)
			return false;
	}
	if (n->n_whole == 0)
		return false;
	if (p == end)
		return true;
	return (*p == 'e' || *p == 'E') && number_exponent(p + 1, end, &n->exponent);
}

static bool only_zeros(const char *s, size_t n)
{
	while (n > 0 && s[n - 1] == '0')
		n--;
	return n == 0;
}

static void put_zeros(struct buf *out, size_t n)
{
	while (n-- > 0)
		buf_put_u8(out, '0');
}

/* As numeric prints the value: no exponent, no minus zero, no leading zeros. */
static void put_expanded(struct buf *out, const struct number *n)
{
	char digits[64];
	size_t n_digits = n->n_whole + n->n_fraction;
	long point = (long)n->n_whole + n->exponent;

	memcpy(digits, n->whole, n->n_whole);
	memcpy(digits + n->n_whole, n->fraction != NULL ? n->fraction : "", n->n_fraction);
	if (n->negative && !only_zeros(digits, n_digits))
		buf_put_u8(out, '-');
	size_t skip = 0;
	while (skip < n_digits && (long)skip < point - 1 && digits[skip] == '0')
		skip++;
	if (only_zeros(digits, n_digits) && point > 0) {
		skip = n_digits;
		buf_put_u8(out, '0');
		if (point < (long)n_digits) {
			buf_put_u8(out, '.');
			put_zeros(out, n_digits - (size_t)point);
		}
	} else if (point <= 0) {
		buf_put_text(out, "0.");
		put_zeros(out, (size_t)-point);
		buf_put(out, digits, n_digits);
	} else if ((size_t)point >= n_digits) {
		buf_put(out, digits + skip, n_digits - skip);
		put_zeros(out, (size_t)point - n_digits);
	} else {
		buf_put(out, digits + skip, (size_t)point - skip);
		buf_put_u8(out, '.');
		buf_put(out, digits + point, n_digits - (size_t)point);
	}
}

static bool put_number(
	struct buf *out, const struct type_info *t, const char *s, size_t len, int depth)
{
	struct number n;

	(void)t;
	(void)depth;
	/* NaN, Infinity, -Infinity: the rule of to_jsonb itself. */
	if (memchr(s, 'n', len) != NULL || memchr(s, 'N', len) != NULL) {
		tojson_string(out, s, len);
		return true;
	}
	if (!number_parse(s, len, &n))
		return false;
	bool plain = n.exponent == 0 && !(n.n_whole > 1 && n.whole[0] == '0');
	if (plain && !(n.negative && only_zeros(n.whole, n.n_whole) &&
			     only_zeros(n.fraction, n.n_fraction))) {
		buf_put(out, s, len);
		return true;
	}
	/* Only floats get here: 17 digits at most. */
	if (n.n_whole + n.n_fraction > 64)
		return false;
	put_expanded(out, &n);
	return true;
}

/* Drops the blanks between tokens; they may be line ends, which some subscribers read as the end.
 */
static bool put_json(
	struct buf *out, const struct type_info *t, const char *s, size_t len, int depth)
{
	bool quoted = false;
	size_t from = 0;

	(void)t;
	(void)depth;
	for (size_t i = 0; i < len; i++) {
		char c = s[i];

		if (quoted && c == '\\') {
			i++;
		} else if (c == '"') {
			quoted = !quoted;
		} else if (!quoted && (c == ' ' || c == '\t' || c == '\n' || c == '\r')) {
			buf_put(out, s + from, i - from);
			from = i + 1;
		}
	}
	buf_put(out, s + from, len - from);
	return len > 0;
}

static bool put_jsonb(
	struct buf *out, const struct type_info *t, const char *s, size_t len, int depth)
{
	(void)t;
	(void)depth;
	buf_put(out, s, len);
	return len > 0;
}

/* "2024-02-29 13:00:00.5+00 BC" -> "2024-02-29T13:00:00.5+00:00 BC"; infinity stays. */
static bool put_timestamp(
	struct buf *out, const struct type_info *t, const char *s, size_t len, int depth)
{
	const char *blank = memchr(s, ' ', len);
	size_t time_len;

	(void)depth;
	if (blank == NULL) {
		tojson_string(out, s, len);
		return true;
	}
	const char *time = blank + 1, *end = s + len;
	const char *era = memchr(time, ' ', (size_t)(end - time));
	if (era == NULL)
		era = end;
	time_len = (size_t)(era - time);
	for (size_t i = 0; i < len; i++) {
		if (memchr("0123456789-+:. BC", s[i], 17) == NULL)
			return false;
	}
	buf_put_u8(out, '"');
	buf_put(out, s, (size_t)(blank - s));
	buf_put_u8(out, 'T');
	buf_put(out, time, time_len);
	/* The walsender's zone is UTC: the offset has two digits. */
	if (t->kind == TYPE_TIMESTAMPTZ && time_len > 3 && (era[-3] == '+' || era[-3] == '-'))
		buf_put_text(out, ":00");
	buf_put(out, era, (size_t)(end - era));
	buf_put_u8(out, '"');
	return true;
}

static bool is_null_word(const char *s, size_t len)
{
	return len == 4 && strncasecmp(s, "null", 4) == 0;
}

/* Position in the text of an array or a composite. */
struct cursor {
	const char *p, *end;
};

/* One element's raw text: up to an unquoted stop character. */
struct element {
	const char *text; /* in place if nothing had to be unquoted, else in scratch */
	size_t len;
	bool quoted;
	bool raw_empty; /* not one character, not even quotes */
};

static bool is_stop(char c, char delim, char close)
{
	return c == delim || c == close;
}

/* Takes quotes and backslashes off. doubled: "" inside quotes is one quote (composites). */
static bool element_unquote(struct cursor *c, char delim, char close, bool doubled,
	struct buf *scratch, struct element *ret)
{
	bool in_quotes = false;

	buf_reset(scratch);
	for (;; c->p++) {
		if (c->p == c->end)
			return false;
		char ch = *c->p;

		if (!in_quotes && is_stop(ch, delim, close))
			break;
		if (ch == '\\') {
			if (++c->p == c->end)
				return false;
			buf_put_u8(scratch, (uint8_t)*c->p);
		} else if (ch != '"') {
			buf_put_u8(scratch, (uint8_t)ch);
		} else if (doubled && in_quotes && c->p + 1 < c->end && c->p[1] == '"') {
			buf_put_u8(scratch, '"');
			c->p++;
		} else {
			in_quotes = !in_quotes;
		}
	}
	*ret = (struct element){.text = scratch->len_bytes > 0 ? (const char *)scratch->data : "",
		.len = scratch->len_bytes,
		.quoted = true};
	return true;
}

static bool element_take(struct cursor *c, char delim, char close, bool doubled,
	struct buf *scratch, struct element *ret)
{
	const char *start = c->p, *p = c->p;

	while (p < c->end && !is_stop(*p, delim, close) && *p != '"' && *p != '\\')
		p++;
	if (p == c->end)
		return false;
	if (is_stop(*p, delim, close)) {
		*ret = (struct element){
			.text = start, .len = (size_t)(p - start), .raw_empty = p == start};
		c->p = p;
		return true;
	}
	/* Quoted as a whole and plain inside: the usual case. */
	if (p == start && *p == '"') {
		const char *q = p + 1;
		while (q < c->end && *q != '"' && *q != '\\')
			q++;
		if (q + 1 < c->end && *q == '"' && is_stop(q[1], delim, close)) {
			*ret = (struct element){
				.text = start + 1, .len = (size_t)(q - start - 1), .quoted = true};
			c->p = q + 1;
			return true;
		}
	}
	return element_unquote(c, delim, close, doubled, scratch, ret);
}

static bool put_array_level(struct buf *out, const struct type_info *t, struct cursor *c,
	struct buf *scratch, int depth);

static bool put_array_item(struct buf *out, const struct type_info *t, struct cursor *c,
	struct buf *scratch, int depth)
{
	struct element e;

	if (c->p < c->end && *c->p == '{')
		return put_array_level(out, t, c, scratch, depth + 1);
	if (!element_take(c, t->delim, '}', false, scratch, &e))
		return false;
	if (!e.quoted && is_null_word(e.text, e.len)) {
		buf_put_text(out, "null");
		return true;
	}
	return put_value(out, t->elem, e.text, e.len, depth + 1);
}

/* *c->p is the opening brace. */
static bool put_array_level(struct buf *out, const struct type_info *t, struct cursor *c,
	struct buf *scratch, int depth)
{
	if (depth > DEPTH_MAX)
		return false;
	c->p++;
	buf_put_u8(out, '[');
	if (c->p < c->end && *c->p == '}') {
		c->p++;
		buf_put_u8(out, ']');
		return true;
	}
	for (;;) {
		if (!put_array_item(out, t, c, scratch, depth) || c->p == c->end)
			return false;
		char stop = *c->p++;
		if (stop == '}')
			break;
		if (stop != t->delim)
			return false;
		buf_put_u8(out, ',');
	}
	buf_put_u8(out, ']');
	return true;
}

static bool put_array(
	struct buf *out, const struct type_info *t, const char *s, size_t len, int depth)
{
	struct cursor c = {s, s + len};
	struct buf scratch;

	/* Bounds other than 1: [0:2][-1:1]={{…}} */
	if (len > 0 && *s == '[') {
		const char *eq = memchr(s, '=', len);
		if (eq == NULL)
			return false;
		c.p = eq + 1;
	}
	if (c.p == c.end || *c.p != '{')
		return false;
	buf_init(&scratch, 0);
	bool ok = put_array_level(out, t, &c, &scratch, depth) && c.p == c.end;
	buf_free(&scratch);
	return ok;
}

static bool put_vector(
	struct buf *out, const struct type_info *t, const char *s, size_t len, int depth)
{
	const char *p = s, *end = s + len;

	buf_put_u8(out, '[');
	while (p < end) {
		const char *blank = memchr(p, ' ', (size_t)(end - p));
		const char *stop = blank != NULL ? blank : end;

		if (p != s)
			buf_put_u8(out, ',');
		if (!put_value(out, t->elem, p, (size_t)(stop - p), depth + 1))
			return false;
		p = blank != NULL ? blank + 1 : end;
	}
	buf_put_u8(out, ']');
	return true;
}

static bool put_field(struct buf *out, const struct type_attr *attr, struct cursor *c,
	struct buf *scratch, int depth)
{
	struct element e;

	if (!element_take(c, ',', ')', true, scratch, &e))
		return false;
	buf_put(out, attr->key, attr->key_len);
	if (e.raw_empty) {
		buf_put_text(out, "null");
		return true;
	}
	return put_value(out, attr->type, e.text, e.len, depth + 1);
}

static bool put_composite(
	struct buf *out, const struct type_info *t, const char *s, size_t len, int depth)
{
	struct cursor c = {s + 1, s + len};
	struct buf scratch;
	bool ok = true;

	if (len < 2 || s[0] != '(' || s[len - 1] != ')')
		return false;
	buf_init(&scratch, 0);
	buf_put_u8(out, '{');
	for (size_t i = 0; i < t->n_attrs && ok; i++) {
		if (i > 0)
			buf_put_u8(out, ',');
		ok = put_field(out, &t->attrs[i], &c, &scratch, depth);
		/* Each field but the last ends at a comma, the last at the parenthesis. */
		ok = ok && *c.p == (i + 1 < t->n_attrs ? ',' : ')');
		if (ok && i + 1 < t->n_attrs)
			c.p++;
	}
	buf_put_u8(out, '}');
	buf_free(&scratch);
	return ok && c.p + 1 == c.end;
}

static bool put_value(
	struct buf *out, const struct type_info *t, const char *s, size_t len, int depth)
{
	static bool (*const put[])(
		struct buf *, const struct type_info *, const char *, size_t, int) = {
		[TYPE_TEXT] = put_text,
		[TYPE_BOOL] = put_bool,
		[TYPE_NUMBER] = put_number,
		[TYPE_JSON] = put_json,
		[TYPE_JSONB] = put_jsonb,
		[TYPE_TIMESTAMP] = put_timestamp,
		[TYPE_TIMESTAMPTZ] = put_timestamp,
		[TYPE_ARRAY] = put_array,
		[TYPE_VECTOR] = put_vector,
		[TYPE_COMPOSITE] = put_composite,
	};

	if (depth > DEPTH_MAX)
		return false;
	return put[t->kind](out, t, s, len, depth);
}

int tojson(struct buf *out, const struct type_info *type, const char *text, size_t len_bytes)
{
	size_t mark = out->len_bytes;

	if (put_value(out, type, text, len_bytes, 0))
		return 0;
	out->len_bytes = mark;
	tojson_string(out, text, len_bytes);
	return -ERR_MALFORMED;
}
