#include "hostagent/ready.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "lib/base/buf.h"
#include "lib/base/child.h"
#include "lib/base/clock.h"
#include "lib/base/log.h"
#include "lib/base/mem.h"

enum {
	PROBE_FIRST_MS = 200,
	PROBE_MAX_MS = 3000,
};

/* --- pure ---------------------------------------------------------------- */

char *ready_interpreter(const char *script)
{
	size_t len;

	if (strncmp(script, "#!", 2) != 0)
		return NULL;
	script += 2;
	script += strspn(script, " \t");
	len = strcspn(script, "\r\n");
	while (len && strchr(" \t", script[len - 1]))
		len--;
	return len ? xstrndup(script, len) : NULL;
}

static bool is_bourne_shell(const char *interpreter)
{
	static const char *const shells[] = { "sh", "bash", "dash", "ash", "ksh", "zsh" };
	scoped_strv struct strv words = { 0 };
	const char *base;
	size_t at = 0;

	strv_split(&words, interpreter, " \t");
	if (words.len == 0)
		return false;
	base = strrchr(words.items[0], '/');
	if (words.len > 1 && streq(base ? base + 1 : words.items[0], "env"))
		at = 1;
	base = strrchr(words.items[at], '/');
	base = base ? base + 1 : words.items[at];
	for (size_t i = 0; i < ARRAY_SIZE(shells); i++)
		if (streq(base, shells[i]))
			return true;
	return false;
}

/* 'it'\''s' */
static void add_quoted(struct buf *b, const char *s)
{
	buf_add_u8(b, '\'');
	for (; *s; s++) {
		if (*s == '\'')
			buf_add_str(b, "'\\''");
		else
			buf_add_u8(b, (uint8_t)*s);
	}
	buf_add_u8(b, '\'');
}

char *ready_script_text(const char *script, const struct config_map *param)
{
	scoped_free char *interpreter = ready_interpreter(script);
	size_t first = strcspn(script, "\n");
	struct buf b = { 0 };

	if (!param || !param->len || !interpreter || !is_bourne_shell(interpreter))
		return xstrdup(script);
	buf_add(&b, script, first);
	buf_add_str(&b, "\n");
	for (size_t i = 0; i < param->len; i++) {
		buf_addf(&b, "export PARAM_%s=", param->items[i].key);
		add_quoted(&b, param->items[i].value);
		buf_add_str(&b, "\n");
	}
	buf_add_str(&b, script[first] ? script + first + 1 : "");
	return buf_steal_str(&b);
}

char *ready_marker_script(const char *marker, const char *instance_id)
{
	struct buf b = { 0 };

	/* sudo: the markers are root's, some images make them unreadable */
	buf_addf(&b, "#!/bin/sh\nm=\"$(cat %s 2>/dev/null || sudo -n cat %s)\" || exit 1\n"
		 "[ \"$m\" = ", marker, marker);
	add_quoted(&b, instance_id);
	buf_add_str(&b, " ]\n");
	return buf_steal_str(&b);
}

/* --- asking -------------------------------------------------------------- */

struct ready_probe {	/* freed when its timer is closed */
	struct loop *loop;
	const struct ssh_target *target;
	char *description, *hint, *text, *interpreter;
	enum ssh_mux mux;
	uint64_t deadline_ms;	/* on the monotonic clock */
	unsigned limit_s, backoff_ms, tries;
	uv_timer_t timer;	/* until the next try, or until the deadline of this one */
	struct child *child;
	bool closing;
	struct error last;
	ready_done_fn done;
	void *arg;
};

static void probe_try(struct ready_probe *p);

static void probe_drop_child(struct ready_probe *p)
{
	if (p->child)
		child_close(p->child);
	p->child = NULL;
}

static void on_probe_backoff(uv_timer_t *t)
{
	probe_try(t->data);
}

static void probe_give_up(struct ready_probe *p)
{
	struct error err = ERROR_NONE;

	uv_timer_stop(&p->timer);
	probe_drop_child(p);
	error_set(&err, -ETIMEDOUT, "%s: not within %u s, %u tries%s%s%s%s%s", p->description,
		  p->limit_s, p->tries, p->last.code ? ": " : "", p->last.msg,
		  *p->hint ? " (hint: " : "", p->hint, *p->hint ? ")" : "");
	p->done(p->arg, &err);
}

static void on_probe_deadline(uv_timer_t *t)
{
	probe_give_up(t->data);
}

static void probe_try_later(struct ready_probe *p)
{
	uint64_t now = clock_mono_ms();

	log_debug("ready: `%s`: try %u: %s", p->description, p->tries, p->last.msg);
	if (now + p->backoff_ms >= p->deadline_ms) {
		uv_timer_start(&p->timer, on_probe_deadline, 0, 0);
		return;
	}
	uv_timer_start(&p->timer, on_probe_backoff, p->backoff_ms, 0);
	p->backoff_ms = MIN(p->backoff_ms * 2, (unsigned)PROBE_MAX_MS);
}

/* The last line of what a try said: often the whole reason. */
static void probe_note_failure(struct ready_probe *p, const struct child_result *r)
{
	const char *text = buf_str(r->err.len ? &r->err : &r->out);
	size_t len = strlen(text), start;

	while (len && strchr("\r\n \t", text[len - 1]))
		len--;
	for (start = len; start && text[start - 1] != '\n'; start--)
		;
	error_set(&p->last, -EIO, "exit %d%s%.*s", r->exit_code, len > start ? ": " : "",
		  (int)MIN(len - start, (size_t)300), text + start);
}

static void on_probe_exit(void *arg, const struct child_result *r)
{
	struct ready_probe *p = arg;

	probe_drop_child(p);
	uv_timer_stop(&p->timer);
	if (r->exit_code == 0) {
		p->done(p->arg, &ERROR_NONE);
		return;
	}
	probe_note_failure(p, r);
	probe_try_later(p);
}

static int probe_spawn(struct ready_probe *p)
{
	scoped_strv struct strv argv = { 0 };
	struct child_spec spec = {
		.own_group = true,
		.input = p->text,
		.input_len = strlen(p->text),
		.max_output_bytes = 4096,
	};

	if (ssh_add_program(&argv, &p->last) < 0)
		return p->last.code;
	ssh_add_options(&argv, p->target, p->mux);
	strv_add(&argv, "-T");
	ssh_add_destination(&argv, p->target);
	strv_add_all(&argv, "--", p->interpreter, NULL);
	spec.argv = (const char *const *)argv.items;
	return child_start(p->loop, &spec, on_probe_exit, p, &p->child, &p->last);
}

static void probe_try(struct ready_probe *p)
{
	uint64_t now = clock_mono_ms();

	p->tries++;
	if (probe_spawn(p) < 0) {
		p->child = NULL;
		probe_try_later(p);
		return;
	}
	uv_timer_start(&p->timer, on_probe_deadline,
		       p->deadline_ms > now ? p->deadline_ms - now : 0, 0);
}

struct ready_probe *ready_probe_start(struct loop *loop, const struct ssh_target *t,
				      const struct ready_script *s, ready_done_fn done, void *arg)
{
	struct ready_probe *p = xnew(struct ready_probe);

	p->loop = loop;
	p->target = t;
	p->description = xstrdup(s->description);
	p->hint = xstrdup(s->hint);
	p->text = ready_script_text(s->script, s->param);
	p->interpreter = ready_interpreter(s->script);
	if (!p->interpreter)
		p->interpreter = xstrdup("/bin/sh");
	p->mux = s->mux;
	p->limit_s = s->deadline_ms / 1000;
	p->deadline_ms = clock_mono_ms() + s->deadline_ms;
	p->backoff_ms = PROBE_FIRST_MS;
	p->done = done;
	p->arg = arg;
	uv_timer_init(&loop->uv, &p->timer);
	p->timer.data = p;
	uv_timer_start(&p->timer, on_probe_backoff, 0, 0);
	return p;
}

static void on_probe_timer_closed(uv_handle_t *h)
{
	struct ready_probe *p = h->data;

	free(p->description);
	free(p->hint);
	free(p->text);
	free(p->interpreter);
	free(p);
}

void ready_probe_close(struct ready_probe *p)
{
	if (p->closing)
		return;
	p->closing = true;
	probe_drop_child(p);
	uv_close((uv_handle_t *)&p->timer, on_probe_timer_closed);
}
