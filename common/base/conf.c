/* SPDX-License-Identifier: PostgreSQL */
/*
 * Configuration text -> schema tables -> immutable snapshot.
 *
 * Context: the event thread of any program; parsing takes well under a millisecond for real files.
 * Steps:  scan (what libconfig would misread) -> libconfig -> rows (each row of the schema takes
 * its setting or its default, is judged and becomes a value) -> keys (each setting must be known).
 * Invariants:
 *  1. Findings are gathered over all steps and leave sorted by line; only broken syntax and
 *     includes end the pass early.
 *  2. A snapshot has a value for every row, and for every child row of every list element.
 *  3. The value of a secret is in no finding and never leaves conf_each.
 *  4. A default that its own row would refuse is a bug of the table: ASSERT.
 */
#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <libconfig.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/base/conf.h"
#include "common/base/conf_text.h"
#include "common/base/err.h"
#include "common/base/io.h"
#include "common/base/log.h"
#include "common/base/mem.h"

#define CONF_MAGIC 0x636f6e66U
#define CONF_TEXT_MAX_BYTES (1024 * 1024)
#define CONF_GROUPS_MAX 1000 /* for lists whose row sets no limit */
#define CONF_PATH_BYTES 256
#define CONF_DEPTH_MAX 16
#define FINDINGS_MAX 100
#define QUOTE_BYTES 96

MEM_TYPE(type_conf, "configuration");

#ifdef HOWDAH_SANITIZER
/* libconfig 1.5 loses the strings that its lexer made when the syntax breaks: not ours to free. */
const char *__lsan_default_suppressions(void);
const char *__lsan_default_suppressions(void)
{
	return "leak:strbuf_append\nleak:libconfig_yylex\n";
}
#endif

struct value {
	const struct conf_row *row;
	char *path;
	char *text; /* as it is written in the file, without quotes */
	int64_t number;
	int line; /* 0: default */
};

struct conf {
	uint32_t magic;
	struct value *values; /* in schema order, elements behind their list */
	size_t n_values, cap_values;
	size_t *by_path; /* indexes into values, sorted by path */
};

struct finding {
	int line;
	size_t order;
	char *text;
};

struct parse {
	const char *name;
	const struct conf_row *const *schemas;
	const char *const *foreign;
	struct conf *conf;
	struct finding findings[FINDINGS_MAX];
	size_t n_findings;            /* may exceed FINDINGS_MAX: the rest is counted only */
	int wide_lines[FINDINGS_MAX]; /* where an integer stands that libconfig cuts */
	size_t n_wide;
	bool stop; /* libconfig must not see this text */
};

/* ---- findings ---- */

static void add_finding(struct parse *ps, int line, const char *path, const char *fmt, ...)
	__attribute__((format(printf, 4, 5)));

static void add_finding(struct parse *ps, int line, const char *path, const char *fmt, ...)
{
	size_t at = ps->n_findings++;
	if (at >= FINDINGS_MAX)
		return;
	char text[1024];
	va_list ap;
	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	char where[16] = "";
	if (line > 0)
		snprintf(where, sizeof(where), ":%d", line);
	ps->findings[at] = (struct finding){
		.line = line,
		.order = at,
		.text = xasprintf(
			"%s%s: %s%s%s", ps->name, where, path, *path == '\0' ? "" : ": ", text),
	};
}

static int compare_findings(const void *a, const void *b)
{
	const struct finding *fa = a, *fb = b;
	if (fa->line != fb->line)
		return fa->line < fb->line ? -1 : 1;
	return fa->order < fb->order ? -1 : 1;
}

/* Invariant 1; frees them. */
static void put_findings(struct parse *ps, struct buf *errors)
{
	size_t n = ps->n_findings < FINDINGS_MAX ? ps->n_findings : FINDINGS_MAX;
	qsort(ps->findings, n, sizeof(ps->findings[0]), compare_findings);
	for (size_t i = 0; i < n; i++) {
		if (errors != NULL)
			buf_printf(errors, "%s\n", ps->findings[i].text);
		free(ps->findings[i].text);
	}
	if (errors != NULL && ps->n_findings > n)
		buf_printf(errors, "%s: %zu more findings; mend the first ones\n", ps->name,
			ps->n_findings - n);
}

static bool finding_on_line(const struct parse *ps, int line)
{
	for (size_t i = 0; i < ps->n_findings && i < FINDINGS_MAX; i++) {
		if (ps->findings[i].line == line)
			return true;
	}
	return false;
}

static bool wide_on_line(const struct parse *ps, int line)
{
	for (size_t i = 0; i < ps->n_wide; i++) {
		if (ps->wide_lines[i] == line)
			return true;
	}
	return false;
}

static void on_scan(enum conf_scan_what what, int line, void *arg)
{
	struct parse *ps = arg;
	switch (what) {
	case CONF_SCAN_INCLUDE:
		add_finding(ps, line, "",
			"\"@include\" is not taken; put all settings into this one file");
		ps->stop = true;
		break;
	case CONF_SCAN_ZERO:
		add_finding(ps, line, "", "a string holds a zero byte; remove the \"\\x00\"");
		break;
	case CONF_SCAN_NUMBER:
		/* Judged with the row, which knows what should stand there. */
		if (ps->n_wide < ARRAY_LEN(ps->wide_lines))
			ps->wide_lines[ps->n_wide++] = line;
		else
			add_finding(ps, line, "", "the number is too large");
		break;
	}
}

/* ---- values ---- */

static struct value *add_value(struct conf *conf, const struct conf_row *row, const char *path)
{
	if (conf->n_values == conf->cap_values) {
		conf->cap_values = conf->cap_values == 0 ? 64 : conf->cap_values * 2;
		conf->values = xrealloc(conf->values, conf->cap_values * sizeof(struct value));
	}
	struct value *v = &conf->values[conf->n_values++];
	*v = (struct value){.row = row, .path = xstrdup(path)};
	return v;
}

/* What a setting is, for "expected … but this is …". */
static const char *type_name(const config_setting_t *s)
{
	switch (config_setting_type(s)) {
	case CONFIG_TYPE_GROUP:
		return "a group { … }";
	case CONFIG_TYPE_INT:
	case CONFIG_TYPE_INT64:
		return "a number";
	case CONFIG_TYPE_FLOAT:
		return "a number with a fraction";
	case CONFIG_TYPE_STRING:
		return "a string";
	case CONFIG_TYPE_BOOL:
		return "true or false";
	case CONFIG_TYPE_ARRAY:
		return "an array [ … ]";
	case CONFIG_TYPE_LIST:
		return "a list ( … )";
	default:
		return "nothing known";
	}
}

static bool is_integer(const config_setting_t *s)
{
	return config_setting_type(s) == CONFIG_TYPE_INT ||
	       config_setting_type(s) == CONFIG_TYPE_INT64;
}

/* How a value of this row is written. */
static void describe_row(const struct conf_row *row, char *out, size_t size)
{
	switch (row->type) {
	case CONF_BOOL:
		snprintf(out, size, "write true or false, without quotes");
		break;
	case CONF_INT:
		if (row->min == 0 && row->max == 0)
			snprintf(out, size, "write a number, without quotes");
		else
			snprintf(out, size,
				"write a number from %" PRId64 " to %" PRId64 ", without quotes",
				row->min, row->max);
		break;
	case CONF_SIZE:
		snprintf(out, size,
			"write a size with its unit in quotes, such as \"%s\" "
			"(B kB MB GB TB)",
			row->def != NULL && *row->def != '\0' ? row->def : "64MB");
		break;
	case CONF_DURATION:
		snprintf(out, size,
			"write a duration with its unit in quotes, such as \"%s\" "
			"(ms s min h d)",
			row->def != NULL && *row->def != '\0' ? row->def : "30s");
		break;
	case CONF_STRING:
		snprintf(out, size, "write it in quotes");
		break;
	case CONF_ENUM:
		snprintf(out, size, "write one of %s, in quotes", row->choices);
		break;
	case CONF_GROUPS:
		snprintf(out, size, "write a list of groups: ( { … }, { … } )");
		break;
	}
}

static bool type_fits(const struct conf_row *row, const config_setting_t *s)
{
	switch (row->type) {
	case CONF_BOOL:
		return config_setting_type(s) == CONFIG_TYPE_BOOL;
	case CONF_INT:
		return is_integer(s);
	case CONF_GROUPS:
		return config_setting_is_list(s);
	default:
		return config_setting_type(s) == CONFIG_TYPE_STRING;
	}
}

/* A limit in the largest unit that gives a whole number. */
static void format_limit(const struct conf_row *row, int64_t n, char *out, size_t size)
{
	static const struct {
		int64_t factor;
		const char *name;
	} sizes[] = {{INT64_C(1) << 40, "TB"}, {1 << 30, "GB"}, {1 << 20, "MB"}, {1 << 10, "kB"},
		{1, "B"}},
	  times[] = {{86400000, "d"}, {3600000, "h"}, {60000, "min"}, {1000, "s"}, {1, "ms"}};
	if (row->type == CONF_SIZE || row->type == CONF_DURATION) {
		for (size_t i = 0; i < ARRAY_LEN(sizes); i++) {
			int64_t factor = row->type == CONF_SIZE ? sizes[i].factor : times[i].factor;
			if (n % factor != 0 || (n == 0 && factor != 1))
				continue;
			snprintf(out, size, "%" PRId64 "%s", n / factor,
				row->type == CONF_SIZE ? sizes[i].name : times[i].name);
			return;
		}
	}
	snprintf(out, size, "%" PRId64, n);
}

/* Invariant 3. */
static const char *quote(const struct conf_row *row, const char *text, char *out, size_t size)
{
	if (row->secret)
		snprintf(out, size, "the value");
	else
		log_escape(text, strlen(text), out, size);
	return out;
}

static bool text_is_clean(const char *text)
{
	uint32_t code;
	for (size_t left = strlen(text), n; left > 0; left -= n, text += n) {
		n = utf8_char(text, left, &code);
		if (n == 0 || code < 0x20 || code == 0x7f)
			return false;
	}
	return true;
}

static const char *nearest_choice(const char *choices, const char *text, char *out, size_t size)
{
	size_t best = 3;
	const char *found = NULL;
	for (const char *p = choices; *p != '\0';) {
		size_t len = strcspn(p, "|");
		char one[64];
		snprintf(one, sizeof(one), "%.*s", (int)len, p);
		size_t d = conf_distance(one, text, best - 1);
		if (d < best && d < len) {
			best = d;
			snprintf(out, size, "%s", one);
			found = out;
		}
		p += len + (p[len] == '|');
	}
	return found;
}

static bool is_choice(const char *choices, const char *text)
{
	size_t want = strlen(text);
	for (const char *p = choices; *p != '\0';) {
		size_t len = strcspn(p, "|");
		if (len == want && strncmp(p, text, len) == 0)
			return true;
		p += len + (p[len] == '|');
	}
	return false;
}

/* The number of a value from its text; false: a finding was made. */
static bool judge_unit(struct parse *ps, struct value *v)
{
	const struct conf_row *row = v->row;
	char quoted[QUOTE_BYTES], right[160];
	int rc = row->type == CONF_SIZE ? conf_parse_size(v->text, &v->number)
					: conf_parse_duration(v->text, &v->number);
	if (rc == 0)
		return true;
	describe_row(row, right, sizeof(right));
	add_finding(ps, v->line, v->path, "%s is %s; %s",
		quote(row, v->text, quoted, sizeof(quoted)),
		rc == -ERANGE            ? "too large"
		: row->type == CONF_SIZE ? "not a size"
					 : "not a duration",
		right);
	return false;
}

static bool judge_enum(struct parse *ps, struct value *v)
{
	char quoted[QUOTE_BYTES], near[64], hint[96] = "";
	if (is_choice(v->row->choices, v->text))
		return true;
	if (nearest_choice(v->row->choices, v->text, near, sizeof(near)) != NULL)
		snprintf(hint, sizeof(hint), " (did you mean \"%s\"?)", near);
	add_finding(ps, v->line, v->path, "%s is not known here; write one of %s%s",
		quote(v->row, v->text, quoted, sizeof(quoted)), v->row->choices, hint);
	return false;
}

static bool judge_range(struct parse *ps, struct value *v, int64_t n)
{
	const struct conf_row *row = v->row;
	if ((row->min == 0 && row->max == 0) || (n >= row->min && n <= row->max))
		return true;
	char quoted[QUOTE_BYTES], low[32], high[32];
	format_limit(row, row->min, low, sizeof(low));
	format_limit(row, row->max, high, sizeof(high));
	const char *what = row->type == CONF_STRING   ? " bytes"
			   : row->type == CONF_GROUPS ? " groups"
						      : "";
	const char *shown = row->type == CONF_GROUPS || row->type == CONF_INT
				    ? v->text
				    : quote(row, v->text, quoted, sizeof(quoted));
	if (row->secret)
		shown = "the value";
	add_finding(ps, v->line, v->path, "%s is out of range; %s to %s%s %s", shown, low, high,
		what, *what == '\0' ? "is right" : "are right");
	return false;
}

/* v->text is set; finds the number and judges all. */
static void judge_value(struct parse *ps, struct value *v)
{
	const struct conf_row *row = v->row;
	int64_t measure = v->number;
	switch (row->type) {
	case CONF_SIZE:
	case CONF_DURATION:
		if (!judge_unit(ps, v))
			return;
		measure = v->number;
		break;
	case CONF_ENUM:
		if (!judge_enum(ps, v))
			return;
		break;
	case CONF_STRING:
		if (!text_is_clean(v->text)) {
			add_finding(ps, v->line, v->path,
				"holds control characters or is not "
				"UTF-8; write plain text");
			return;
		}
		measure = (int64_t)strlen(v->text);
		break;
	default:
		break;
	}
	if (row->type != CONF_BOOL && row->type != CONF_ENUM && !judge_range(ps, v, measure))
		return;
	const char *why = row->validate != NULL ? row->validate(v->text) : NULL;
	if (why != NULL && row->secret) {
		add_finding(ps, v->line, v->path, "%s", why);
	} else if (why != NULL) {
		char quoted[QUOTE_BYTES];
		add_finding(ps, v->line, v->path, "%s: %s",
			quote(row, v->text, quoted, sizeof(quoted)), why);
	}
}

/* Default of anything but groups; invariant 4. */
static void take_default(struct parse *ps, struct value *v)
{
	const struct conf_row *row = v->row;
	v->text = xstrdup(row->def);
	if (row->type == CONF_STRING && row->def[0] == '\0')
		return;
	if (row->type == CONF_BOOL) {
		v->number = strcmp(row->def, "true") == 0;
		ASSERT(v->number == 1 || strcmp(row->def, "false") == 0);
	} else if (row->type == CONF_INT) {
		char *end;
		v->number = strtoll(row->def, &end, 10);
		ASSERT(*row->def != '\0' && *end == '\0');
	}
	size_t findings_before = ps->n_findings;
	judge_value(ps, v);
	bool default_fits_its_row = ps->n_findings == findings_before;
	ASSERT(default_fits_its_row);
}

static void take_setting(struct parse *ps, struct value *v, const config_setting_t *s)
{
	switch (v->row->type) {
	case CONF_BOOL:
		v->number = config_setting_get_bool(s) != 0;
		v->text = xstrdup(v->number != 0 ? "true" : "false");
		break;
	case CONF_INT:
		v->number = config_setting_get_int64(s);
		v->text = xasprintf("%" PRId64, v->number);
		if (wide_on_line(ps, v->line)) {
			char right[160];
			describe_row(v->row, right, sizeof(right));
			add_finding(ps, v->line, v->path, "the number is too large; %s", right);
			return;
		}
		break;
	default:
		v->text = xstrdup(config_setting_get_string(s));
		break;
	}
	judge_value(ps, v);
}

/* ---- rows ---- */

static void take_rows(struct parse *ps, const config_setting_t *group, const struct conf_row *rows,
	const char *prefix, int line);

/* The setting at a dotted path below group, NULL if there is none. */
static const config_setting_t *find_setting(const config_setting_t *group, const char *path)
{
	while (group != NULL) {
		size_t len = strcspn(path, ".");
		char part[CONF_PATH_BYTES];
		ASSERT(len < sizeof(part));
		memcpy(part, path, len);
		part[len] = '\0';
		if (!config_setting_is_group(group))
			return NULL; /* check_keys says so */
		group = config_setting_get_member(group, part);
		if (path[len] == '\0')
			return group;
		path += len + 1;
	}
	return NULL;
}

static void take_groups(struct parse *ps, size_t at, const config_setting_t *list)
{
	/* values moves when it grows: never keep a pointer over take_rows. */
	struct value *v = &ps->conf->values[at];
	const struct conf_row *child = v->row->child;
	int n = config_setting_length(list);
	v->number = n;
	v->text = xasprintf("%d", n);
	judge_value(ps, v);
	if (n > CONF_GROUPS_MAX) {
		if (v->row->max == 0)
			add_finding(ps, v->line, v->path, "%d groups are too many; at most %d", n,
				CONF_GROUPS_MAX);
		n = 0;
	}
	v->number = n;
	for (int i = 0; i < n; i++) {
		const config_setting_t *elem = config_setting_get_elem(list, (unsigned)i);
		char path[CONF_PATH_BYTES];
		snprintf(path, sizeof(path), "%s.[%d]", ps->conf->values[at].path, i);
		/* Below a default nothing has a line: -1 goes down. */
		int line =
			ps->conf->values[at].line == 0 ? -1 : (int)config_setting_source_line(elem);
		if (!config_setting_is_group(elem))
			add_finding(
				ps, line, path, "this is %s; write a group { … }", type_name(elem));
		else
			take_rows(ps, elem, child, path, line);
	}
}

/* A default written as libconfig text is parsed by libconfig; invariant 4. */
static void take_default_groups(struct parse *ps, size_t at)
{
	const char *def = ps->conf->values[at].row->def;
	char *text = xasprintf("x = %s;", *def == '\0' ? "()" : def);
	config_t cfg;
	config_init(&cfg);
	int ok = config_read_string(&cfg, text);
	ASSERT(ok == CONFIG_TRUE);
	const config_setting_t *list = config_lookup(&cfg, "x");
	ASSERT(list != NULL && config_setting_is_list(list));
	size_t findings_before = ps->n_findings;
	take_groups(ps, at, list);
	bool default_fits_its_row = ps->n_findings == findings_before;
	ASSERT(default_fits_its_row);
	config_destroy(&cfg);
	free(text);
}

static void take_row(struct parse *ps, const config_setting_t *group, const struct conf_row *row,
	const char *path, int group_line)
{
	const config_setting_t *s = find_setting(group, row->path);
	struct value *v = add_value(ps->conf, row, path);
	size_t at = ps->conf->n_values - 1;
	if (s == NULL) {
		if (row->def == NULL) {
			char right[160];
			describe_row(row, right, sizeof(right));
			add_finding(ps, group_line, path, "must be set; %s", right);
			v->text = xstrdup("");
		} else if (row->type == CONF_GROUPS) {
			take_default_groups(ps, at);
		} else {
			take_default(ps, v);
		}
		return;
	}
	v->line = group_line < 0 ? 0 : config_setting_source_line(s);
	if (!type_fits(row, s)) {
		char right[160];
		describe_row(row, right, sizeof(right));
		add_finding(ps, v->line, path, "this is %s%s; %s", type_name(s),
			is_integer(s) && (row->type == CONF_SIZE || row->type == CONF_DURATION)
				? " without a unit"
				: "",
			right);
		v->text = xstrdup("");
	} else if (row->type == CONF_GROUPS) {
		take_groups(ps, at, s);
	} else {
		take_setting(ps, v, s);
	}
}

static void take_rows(struct parse *ps, const config_setting_t *group, const struct conf_row *rows,
	const char *prefix, int line)
{
	for (const struct conf_row *row = rows; row->path != NULL; row++) {
		char path[CONF_PATH_BYTES];
		int n = snprintf(path, sizeof(path), "%s%s%s", prefix, *prefix == '\0' ? "" : ".",
			row->path);
		ASSERT(n > 0 && (size_t)n < sizeof(path));
		take_row(ps, group, row, path, line);
	}
}

/* ---- keys ---- */

enum key_kind { KEY_UNKNOWN, KEY_SECTION, KEY_ROW };

/* What a relative path is to a NULL-terminated set of tables. */
static enum key_kind find_key(
	const struct conf_row *const *tables, const char *path, const struct conf_row **ret_row)
{
	size_t len = strlen(path);
	enum key_kind kind = KEY_UNKNOWN;
	for (; *tables != NULL; tables++) {
		for (const struct conf_row *row = *tables; row->path != NULL; row++) {
			if (strncmp(row->path, path, len) != 0)
				continue;
			if (row->path[len] == '\0') {
				*ret_row = row;
				return KEY_ROW;
			}
			if (row->path[len] == '.')
				kind = KEY_SECTION;
		}
	}
	return kind;
}

/* The name most like an unknown one: of its siblings by spelling, else the same name elsewhere. */
static bool suggest(const struct conf_row *const *tables, const char *prefix, const char *name,
	char *out, size_t size)
{
	size_t best = 3, prefix_len = strlen(prefix);
	bool found = false;
	for (const struct conf_row *const *t = tables; *t != NULL; t++) {
		for (const struct conf_row *row = *t; row->path != NULL; row++) {
			const char *last = strrchr(row->path, '.');
			if (best == 3 && !found &&
				strcmp(last != NULL ? last + 1 : row->path, name) == 0) {
				snprintf(out, size, "%s", row->path);
				found = true;
			}
			if (strncmp(row->path, prefix, prefix_len) != 0)
				continue;
			char sibling[CONF_PATH_BYTES];
			size_t len = strcspn(row->path + prefix_len, ".");
			snprintf(
				sibling, sizeof(sibling), "%.*s", (int)len, row->path + prefix_len);
			size_t d = conf_distance(sibling, name, best - 1);
			if (d < best && d < len) {
				best = d;
				found = true;
				snprintf(out, size, "%s%s", prefix, sibling);
			}
		}
	}
	return found;
}

struct key_walk {
	const struct conf_row *const *tables;
	const char *shown_prefix; /* path of the list element, with its dot, or "" */
	bool foreign;             /* unknown keys are somebody else's */
};

static void check_keys(struct parse *ps, const config_setting_t *group, const struct key_walk *walk,
	const char *prefix, int depth);

static void check_elements(struct parse *ps, const config_setting_t *list,
	const struct conf_row *row, const char *shown, const struct key_walk *walk, int depth)
{
	const struct conf_row *const tables[] = {row->child, NULL};
	int n = config_setting_length(list);
	for (int i = 0; i < n && i < CONF_GROUPS_MAX; i++) {
		const config_setting_t *elem = config_setting_get_elem(list, (unsigned)i);
		char path[CONF_PATH_BYTES + 16];
		snprintf(path, sizeof(path), "%s.[%d].", shown, i);
		struct key_walk inner = {
			.tables = tables, .shown_prefix = path, .foreign = walk->foreign};
		if (config_setting_is_group(elem))
			check_keys(ps, elem, &inner, "", depth + 1);
	}
}

static void report_unknown(struct parse *ps, const config_setting_t *s, const struct key_walk *walk,
	const char *prefix, const char *shown)
{
	char near[CONF_PATH_BYTES];
	const char *name = config_setting_name(s);
	int line = (int)config_setting_source_line(s);
	if (suggest(walk->tables, prefix, name, near, sizeof(near)))
		add_finding(ps, line, shown, "unknown key; did you mean \"%s%s\"?",
			walk->shown_prefix, near);
	else
		add_finding(ps, line, shown, "unknown key; remove it or see howdah.conf(5)");
}

static bool is_foreign(const struct parse *ps, const char *name)
{
	for (const char *const *f = ps->foreign; f != NULL && *f != NULL; f++) {
		if (strcmp(*f, name) == 0)
			return true;
	}
	return false;
}

static void check_key(struct parse *ps, const config_setting_t *s, const struct key_walk *outer,
	const char *prefix, int depth)
{
	struct key_walk walk = *outer;
	char path[CONF_PATH_BYTES], shown[CONF_PATH_BYTES];
	const char *name = config_setting_name(s);
	int line = (int)config_setting_source_line(s);
	if (depth == 0 && is_foreign(ps, name))
		walk.foreign = true;
	int n = snprintf(path, sizeof(path), "%s%s", prefix, name);
	int m = snprintf(shown, sizeof(shown), "%s%s", walk.shown_prefix, path);
	if ((size_t)n >= sizeof(path) || (size_t)m >= sizeof(shown)) {
		if (!walk.foreign)
			add_finding(ps, line, "", "unknown key, its name is too long; remove it");
		return;
	}
	const struct conf_row *row = NULL;
	switch (find_key(walk.tables, path, &row)) {
	case KEY_UNKNOWN:
		if (!walk.foreign)
			report_unknown(ps, s, &walk, prefix, shown);
		break;
	case KEY_SECTION:
		if (!config_setting_is_group(s)) {
			add_finding(
				ps, line, shown, "this is %s; write a group { … }", type_name(s));
			break;
		}
		if (depth < CONF_DEPTH_MAX) {
			snprintf(path + n, sizeof(path) - (size_t)n, ".");
			check_keys(ps, s, &walk, path, depth + 1);
		}
		break;
	case KEY_ROW:
		/* Its value has been judged with the row. */
		if (row->type == CONF_GROUPS && config_setting_is_list(s))
			check_elements(ps, s, row, shown, &walk, depth);
		break;
	}
}

static void check_keys(struct parse *ps, const config_setting_t *group, const struct key_walk *walk,
	const char *prefix, int depth)
{
	int n = config_setting_length(group);
	for (int i = 0; i < n; i++)
		check_key(ps, config_setting_get_elem(group, (unsigned)i), walk, prefix, depth);
}

/* ---- the snapshot ---- */

static int compare_paths(const void *a, const void *b, void *arg)
{
	const struct conf *conf = arg;
	return strcmp(conf->values[*(const size_t *)a].path, conf->values[*(const size_t *)b].path);
}

static void index_paths(struct conf *conf)
{
	conf->by_path = xmalloc(conf->n_values * sizeof(size_t));
	for (size_t i = 0; i < conf->n_values; i++)
		conf->by_path[i] = i;
	qsort_r(conf->by_path, conf->n_values, sizeof(size_t), compare_paths, conf);
	for (size_t i = 1; i < conf->n_values; i++)
		ASSERT(compare_paths(&conf->by_path[i - 1], &conf->by_path[i], conf) < 0);
}

static void parse_text(struct parse *ps, const char *text)
{
	conf_scan(text, on_scan, ps);
	if (ps->stop)
		return;
	config_t cfg;
	config_init(&cfg);
	/* Second line of defence: nothing exists below a file. */
	config_set_include_dir(&cfg, "/dev/null");
	if (config_read_string(&cfg, text) != CONFIG_TRUE) {
		const char *why = config_error_text(&cfg);
		add_finding(ps, config_error_line(&cfg), "",
			"%s; look for a quote, a brace or a \";\" missing here or just before",
			why != NULL ? why : "syntax error");
	} else {
		const config_setting_t *root = config_root_setting(&cfg);
		const struct key_walk walk = {.tables = ps->schemas, .shown_prefix = ""};
		for (const struct conf_row *const *t = ps->schemas; *t != NULL; t++)
			take_rows(ps, root, *t, "", 0);
		check_keys(ps, root, &walk, "", 0);
		for (size_t i = 0; i < ps->n_wide; i++) {
			if (!finding_on_line(ps, ps->wide_lines[i]))
				add_finding(ps, ps->wide_lines[i], "", "the number is too large");
		}
	}
	config_destroy(&cfg);
}

int conf_parse(const char *text, const char *name, const struct conf_row *const *schemas,
	const char *const *foreign, struct conf **ret_conf, struct buf *errors)
{
	struct parse *ps = xcalloc(1, sizeof(*ps));
	ps->name = name;
	ps->schemas = schemas;
	ps->foreign = foreign;
	ps->conf = mem_new(&type_conf, sizeof(*ps->conf));
	ps->conf->magic = CONF_MAGIC;
	if (strnlen(text, CONF_TEXT_MAX_BYTES + 1) > CONF_TEXT_MAX_BYTES)
		add_finding(ps, 0, "", "the file is larger than 1 MB; make it smaller");
	else
		parse_text(ps, text);

	bool ok = ps->n_findings == 0;
	put_findings(ps, errors);
	if (ok) {
		index_paths(ps->conf);
		*ret_conf = ps->conf;
	} else {
		conf_free(&ps->conf);
	}
	free(ps);
	return ok ? 0 : -ERR_CONFIG;
}

int conf_parse_fd(int fd, const char *name, const struct conf_row *const *schemas,
	const char *const *foreign, struct conf **ret_conf, struct buf *errors)
{
	/* One more than allowed, so that conf_parse sees that it is too much. */
	const size_t max_bytes = CONF_TEXT_MAX_BYTES + 1;
	char *text = xmalloc(max_bytes + 1);
	size_t len = 0;
	int rc = io_read_all(fd, text, max_bytes, &len);
	text[len] = '\0';
	if (rc != 0) {
		if (errors != NULL)
			buf_printf(errors, "%s: cannot read it: %s; it must be a plain file\n",
				name, err_str(rc));
		rc = -ERR_CONFIG;
	} else if (memchr(text, 0, len) != NULL) {
		if (errors != NULL)
			buf_printf(errors,
				"%s: the file holds a zero byte; it must be plain text\n", name);
		rc = -ERR_CONFIG;
	} else {
		rc = conf_parse(text, name, schemas, foreign, ret_conf, errors);
	}
	free(text);
	return rc;
}

void conf_free(struct conf **conf_ptr)
{
	struct conf *conf = *conf_ptr;
	*conf_ptr = NULL;
	if (conf == NULL)
		return;
	OBJ_CHECK(conf, CONF_MAGIC);
	for (size_t i = 0; i < conf->n_values; i++) {
		free(conf->values[i].path);
		free(conf->values[i].text);
	}
	free(conf->values);
	free(conf->by_path);
	conf->magic = 0;
	mem_free(&type_conf, conf);
}

/* NULL: there is none. */
static const struct value *find_value(const struct conf *conf, const char *path)
{
	OBJ_CHECK(conf, CONF_MAGIC);
	size_t low = 0, high = conf->n_values;
	while (low < high) {
		size_t mid = low + (high - low) / 2;
		const struct value *v = &conf->values[conf->by_path[mid]];
		int order = strcmp(v->path, path);
		if (order == 0)
			return v;
		if (order < 0)
			low = mid + 1;
		else
			high = mid;
	}
	return NULL;
}

/* The schema has it: that is the caller's promise. */
static const struct value *get_value(const struct conf *conf, const char *path)
{
	const struct value *found = find_value(conf, path);
	ASSERT(found != NULL);
	return found;
}

bool conf_bool(const struct conf *conf, const char *path)
{
	const struct value *v = get_value(conf, path);
	ASSERT(v->row->type == CONF_BOOL);
	return v->number != 0;
}

int64_t conf_int(const struct conf *conf, const char *path)
{
	const struct value *v = get_value(conf, path);
	ASSERT(v->row->type == CONF_INT || v->row->type == CONF_SIZE ||
		v->row->type == CONF_DURATION);
	return v->number;
}

const char *conf_str(const struct conf *conf, const char *path)
{
	const struct value *v = get_value(conf, path);
	ASSERT(v->row->type == CONF_STRING || v->row->type == CONF_ENUM);
	return v->text;
}

size_t conf_count(const struct conf *conf, const char *path)
{
	const struct value *v = get_value(conf, path);
	ASSERT(v->row->type == CONF_GROUPS);
	return (size_t)v->number;
}

void conf_each(const struct conf *conf,
	void (*fn)(const char *path, const char *value, const char *def, int line,
		enum conf_reload reload, const char *help, void *arg),
	void *arg)
{
	OBJ_CHECK(conf, CONF_MAGIC);
	for (size_t i = 0; i < conf->n_values; i++) {
		const struct value *v = &conf->values[i];
		const char *def = v->row->def == NULL ? "" : v->row->def;
		bool hide = v->row->secret;
		fn(v->path, hide && *v->text != '\0' ? "***" : v->text,
			hide && *def != '\0' ? "***" : def, v->line, v->row->reload,
			v->row->help == NULL ? "" : v->row->help, arg);
	}
}

/* Elements stand behind their list: is this one below it? */
static bool is_below(const struct value *list, const struct value *v)
{
	size_t len = strlen(list->path);
	return strncmp(v->path, list->path, len) == 0 && v->path[len] == '.';
}

void conf_changes(const struct conf *old, const struct conf *next,
	void (*fn)(const char *path, enum conf_reload reload, void *arg), void *arg)
{
	const struct value *list = NULL;
	bool told = false; /* list's difference */
	OBJ_CHECK(next, CONF_MAGIC);
	for (size_t i = 0; i < next->n_values; i++) {
		const struct value *v = &next->values[i];
		bool inside = list != NULL && is_below(list, v);
		const struct value *was = find_value(old, v->path);
		if (!inside) {
			list = v->row->type == CONF_GROUPS ? v : NULL;
			told = false;
		}
		if ((was != NULL && strcmp(was->text, v->text) == 0) || told)
			continue;
		const struct value *top = inside ? list : v;
		told = list != NULL;
		fn(top->path, top->row->reload, arg);
	}
}
