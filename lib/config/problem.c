#include "lib/config/problem.h"

#include <stdarg.h>

#include "lib/base/log.h"
#include "lib/base/mem.h"

void config_problems_done(struct config_problems *p)
{
	strv_done(&p->errors);
	strv_done(&p->warnings);
}

/* The nearest node that was written somewhere: @n or what it is part of. */
static const struct node *written(const struct node *n)
{
	while (n && !n->file)
		n = n->parent;
	return n;
}

static char *problem_line(const struct problem_sink *s, const struct node *n, const char *key,
			  const char *what)
{
	const struct node *at = written(n);
	scoped_buf struct buf path = { 0 }, line = { 0 };

	node_path(n, &path);
	if (key)
		buf_addf(&path, "%s%s", path.len ? "." : "", key);
	buf_addf(&line, "%s:", at ? at->file->name : s->main_file);
	if (at && at->key_line)
		buf_addf(&line, "%u:%u:", at->key_line, at->key_col);
	else if (at && at->line)
		buf_addf(&line, "%u:%u:", at->line, at->col);
	buf_addf(&line, " %s%s%s", buf_str(&path), path.len ? ": " : "", what);
	return log_escape(buf_str(&line), 2000);	/* values come from a template's author */
}

const char *problem_value(struct node_pool *pool, const struct node *n)
{
	enum { SHOWN = 60 };
	size_t len = n->text_len;
	const char *cut = "";

	if (n->kind == NODE_LIST || n->kind == NODE_MAP || n->kind == NODE_NULL)
		return node_kind_name(n->kind);
	if (len > SHOWN) {
		for (len = SHOWN; ((unsigned char)n->text[len] & 0xc0) == 0x80;)
			len--;
		cut = "…";
	}
	if (n->kind == NODE_STRING)
		return node_pool_printf(pool, "\"%.*s%s\"", (int)len, n->text, cut);
	return node_pool_printf(pool, "%.*s%s", (int)len, n->text, cut);
}

static void add(struct strv *v, char *line)
{
	if (v->len < PROBLEMS_MAX && !strv_contains(v, line))
		strv_take(v, line);
	else
		free(line);
}

void problem_error(struct problem_sink *s, const struct node *n, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	scoped_free char *what = xvasprintf(fmt, ap);
	va_end(ap);
	s->n_errors++;
	add(&s->list->errors, problem_line(s, n, NULL, what));
}

void problem_warn(struct problem_sink *s, const struct node *n, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	scoped_free char *what = xvasprintf(fmt, ap);
	va_end(ap);
	add(&s->list->warnings, problem_line(s, n, NULL, what));
}

void problem_error_in(struct problem_sink *s, const struct node *map, const char *key,
		      const char *fmt, ...)
{
	const struct node *child = node_get(map, key);
	va_list ap;

	va_start(ap, fmt);
	scoped_free char *what = xvasprintf(fmt, ap);
	va_end(ap);
	s->n_errors++;
	add(&s->list->errors, child ? problem_line(s, child, NULL, what) :
				      problem_line(s, map, key, what));
}
