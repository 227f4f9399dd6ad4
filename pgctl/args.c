/* SPDX-License-Identifier: PostgreSQL */
/*
 * Command lines by the command table: see args.h.
 *
 * Context: pure; used by pgctl only.
 */
#include "config.h"

#include <ctype.h>
#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "common/base/mem.h"
#include "pgctl/args.h"

#define SPECS_MAX 8
#define KEY_MAX 32

/* One argument of a command, from its args column. */
struct spec {
	char key[KEY_MAX];
	bool option, flag, optional, number, repeated;
	const char *choices; /* "a|b", choices_len bytes; NULL: any */
	size_t choices_len;
};

/* One command line on its way into args. */
struct parse {
	struct spec specs[SPECS_MAX];
	size_t n_specs;
	const char *const *words;
	size_t n_words, at;
	json_t *args;    /* borrowed */
	struct buf *why; /* borrowed */
};

static void spec_key(struct spec *s, const char *text, size_t len)
{
	ASSERT(len > 0 && len < KEY_MAX);
	for (size_t i = 0; i < len; i++)
		s->key[i] = (char)tolower((unsigned char)text[i]);
	s->key[len] = '\0';
}

/* The next argument at *at. false: there is none. */
static bool spec_next(const char **at, struct spec *ret_spec)
{
	const char *p = *at;
	struct spec s = {.optional = false};
	while (*p == ' ')
		p++;
	if (*p == '\0')
		return false;
	if (*p == '[') {
		s.optional = true;
		p++;
	}
	if (strncmp(p, "--", 2) == 0) {
		s.option = true;
		p += 2;
	}
	size_t len = strcspn(p, " ]");
	spec_key(&s, p, len);
	const char *word = p; /* the value's */
	p += len;
	if (s.option) {
		s.flag = *p == ']';
		word = s.flag ? p : p + 1;
		p = word + strcspn(word, "]");
	}
	s.number = word[0] == 'N' && (word[1] == ']' || word[1] == ' ' || word[1] == '\0');
	if (memchr(word, '|', (size_t)(p - word)) != NULL) {
		s.choices = word;
		s.choices_len = (size_t)(p - word);
	}
	if (s.optional) {
		ASSERT(*p == ']');
		p++;
	}
	s.repeated = strncmp(p, "...", 3) == 0;
	p += s.repeated ? 3 : 0;
	*at = p;
	*ret_spec = s;
	return true;
}

static size_t spec_parse(const char *text, struct spec *specs)
{
	size_t n = 0;
	while (n < SPECS_MAX && spec_next(&text, &specs[n]))
		n++;
	ASSERT(*text == '\0');
	return n;
}

void args_put_words(struct buf *b, const char *name)
{
	for (; *name != '\0'; name++)
		buf_put_u8(b, *name == '.' ? ' ' : (uint8_t)*name);
}

/* The row with the most words that words begin with; *ret_used of them. */
static const struct ctl_command *find_command(
	const char *const *words, size_t n_words, size_t *ret_used)
{
	const struct ctl_command *found = NULL;
	struct buf name;
	buf_init(&name, 256);
	for (size_t i = 0; i < n_words && !name.failed; i++) {
		if (i > 0)
			buf_put_u8(&name, '.');
		buf_put_text(&name, words[i]);
		const struct ctl_command *row =
			strchr(words[i], '.') == NULL ? ctl_table_find(buf_cstr(&name)) : NULL;
		if (row != NULL) {
			found = row;
			*ret_used = i + 1;
		}
	}
	buf_free(&name);
	return found;
}

/* What begins with the same word. */
static void put_candidates(struct buf *why, const char *word)
{
	size_t len = strlen(word);
	bool any = false;
	for (const struct ctl_command *c = ctl_table; c->name != NULL; c++) {
		if (strncmp(c->name, word, len) != 0 || c->name[len] != '.')
			continue;
		buf_put_text(why, any ? ", " : "; there are: ");
		args_put_words(why, c->name);
		any = true;
	}
	if (!any)
		buf_put_text(why, "; pgctl help lists the commands");
}

static bool is_choice(const struct spec *s, const char *text)
{
	size_t len = strlen(text);
	for (const char *at = s->choices, *end = at + s->choices_len; at < end;) {
		size_t n = strcspn(at, "|] ");
		if (n == len && strncmp(at, text, n) == 0)
			return true;
		at += n + 1;
	}
	return false;
}

/* The value of an argument, or NULL and why not. */
static json_t *make_value(struct parse *p, const struct spec *s, const char *text)
{
	const char *dashes = s->option ? "--" : "";
	if (s->number) {
		char *end;
		errno = 0;
		long long n = strtoll(text, &end, 10);
		if (errno == 0 && end != text && *end == '\0')
			return json_integer(n);
		buf_printf(p->why, "%s%s is a number, not \"%s\"", dashes, s->key, text);
		return NULL;
	}
	if (s->choices != NULL && !is_choice(s, text)) {
		buf_printf(p->why, "%s%s is %.*s, not \"%s\"", dashes, s->key, (int)s->choices_len,
			s->choices, text);
		return NULL;
	}
	json_t *value = json_string(text);
	if (value == NULL)
		buf_printf(p->why, "%s is not valid UTF-8", s->key);
	return value;
}

static int add_value(struct parse *p, const struct spec *s, const char *text)
{
	json_t *value = make_value(p, s, text);
	if (value == NULL)
		return -EINVAL;
	if (!s->repeated)
		return json_object_set_new(p->args, s->key, value);
	json_t *list = json_object_get(p->args, s->key);
	if (list == NULL) {
		list = json_array();
		if (json_object_set_new(p->args, s->key, list) != 0)
			list = NULL; /* and json_array_append_new takes value with it */
	}
	return json_array_append_new(list, value);
}

static const struct spec *find_option(const struct parse *p, const char *name, size_t len)
{
	for (size_t i = 0; i < p->n_specs; i++) {
		const struct spec *s = &p->specs[i];
		if (s->option && strlen(s->key) == len && strncmp(s->key, name, len) == 0)
			return s;
	}
	return NULL;
}

/* The present word is an option. */
static int take_option(struct parse *p)
{
	const char *name = p->words[p->at] + 2, *value = strchr(name, '=');
	size_t len = value != NULL ? (size_t)(value - name) : strlen(name);
	const struct spec *s = find_option(p, name, len);
	if (s == NULL) {
		buf_printf(p->why, "there is no option --%.*s", (int)len, name);
		return -EINVAL;
	}
	if (!s->repeated && json_object_get(p->args, s->key) != NULL) {
		buf_printf(p->why, "--%s stands there twice", s->key);
		return -EINVAL;
	}
	if (s->flag && value == NULL)
		return json_object_set_new(p->args, s->key, json_true());
	if (s->flag) {
		buf_printf(p->why, "--%s takes no value", s->key);
		return -EINVAL;
	}
	if (value == NULL && p->at + 1 >= p->n_words) {
		buf_printf(p->why, "--%s needs a value", s->key);
		return -EINVAL;
	}
	return add_value(p, s, value != NULL ? value + 1 : p->words[++p->at]);
}

static int take_positional(struct parse *p)
{
	const char *word = p->words[p->at];
	for (size_t i = 0; i < p->n_specs; i++) {
		const struct spec *s = &p->specs[i];
		if (!s->option && json_object_get(p->args, s->key) == NULL)
			return add_value(p, s, word);
	}
	buf_printf(p->why, "\"%s\" is one argument too many", word);
	return -EINVAL;
}

static int take_words(struct parse *p)
{
	bool options = true;
	for (; p->at < p->n_words; p->at++) {
		const char *word = p->words[p->at];
		if (options && strcmp(word, "--") == 0) {
			options = false;
			continue;
		}
		int err = options && strncmp(word, "--", 2) == 0 ? take_option(p)
								 : take_positional(p);
		if (err != 0)
			return err;
	}
	for (size_t i = 0; i < p->n_specs; i++) {
		if (p->specs[i].optional || json_object_get(p->args, p->specs[i].key) != NULL)
			continue;
		buf_printf(p->why, "the argument %s is missing", p->specs[i].key);
		return -EINVAL;
	}
	return 0;
}

/* "help mqtt map add": its one argument is all the words. */
static void take_help(const char *const *words, size_t n_words, json_t *args)
{
	struct buf name;
	buf_init(&name, 256);
	for (size_t i = 0; i < n_words; i++)
		buf_printf(&name, "%s%s", i > 0 ? "." : "", words[i]);
	json_t *value = name.failed ? NULL : json_string(buf_cstr(&name));
	if (n_words > 0 && value != NULL)
		(void)json_object_set(args, "command", value); /* else the whole list */
	json_decref(value);
	buf_free(&name);
}

int args_parse(const char *const *words, size_t n_words, const struct ctl_command **ret_cmd,
	json_t **ret_args, struct buf *why)
{
	size_t used = 0;
	if (n_words == 0) {
		buf_put_text(why, "a command is missing; pgctl help lists them");
		return -EINVAL;
	}
	const struct ctl_command *cmd = find_command(words, n_words, &used);
	if (cmd == NULL) {
		buf_printf(why, "there is no command \"%s%s%s\"", words[0], n_words > 1 ? " " : "",
			n_words > 1 ? words[1] : "");
		put_candidates(why, words[0]);
		return -EINVAL;
	}
	json_t *args = json_object();
	int err = 0;
	if (strcmp(cmd->name, "help") == 0) {
		take_help(words + used, n_words - used, args);
	} else {
		struct parse p = {
			.words = words, .n_words = n_words, .at = used, .args = args, .why = why};
		p.n_specs = spec_parse(cmd->args, p.specs);
		err = take_words(&p);
	}
	if (err != 0) {
		json_decref(args);
		buf_put_text(why, "; usage: pgctl ");
		args_put_words(why, cmd->name);
		buf_printf(why, "%s%s", cmd->args[0] != '\0' ? " " : "", cmd->args);
		return err;
	}
	*ret_cmd = cmd;
	*ret_args = args;
	return 0;
}
