#include "lib/base/log.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <time.h>
#include <unistd.h>

#include "lib/base/buf.h"
#include "lib/base/clock.h"
#include "lib/base/mem.h"
#include "lib/base/utf8.h"

static struct {
	enum log_level level;
	enum log_format format;
	bool color;
	void (*before)(void *arg);
	void *before_arg;
} state = { .level = LOG_INFO, .format = LOG_FORMAT_AUTO };

static const char *const level_names[] = { "trace", "debug", "info", "warning", "error", "fatal" };

void log_setup(enum log_level level, enum log_format format)
{
	bool tty = isatty(STDERR_FILENO);
	const char *no_color = getenv("NO_COLOR");

	if (format == LOG_FORMAT_AUTO)
		format = tty ? LOG_FORMAT_PLAIN : LOG_FORMAT_TEXT;
	state.level = level;
	state.format = format;
	state.color = tty && format == LOG_FORMAT_PLAIN && !(no_color && *no_color);
}

enum log_level log_level_get(void)
{
	return state.level;
}

enum log_format log_format_get(void)
{
	if (state.format == LOG_FORMAT_AUTO)
		log_setup(state.level, LOG_FORMAT_AUTO);
	return state.format;
}

bool log_level_parse(const char *name, enum log_level *ret)
{
	for (size_t i = 0; i < ARRAY_SIZE(level_names); i++) {
		if (strcasecmp(name, level_names[i]) == 0) {
			*ret = (enum log_level)i;
			return true;
		}
	}
	if (strcasecmp(name, "warn") == 0) {
		*ret = LOG_WARN;
		return true;
	}
	return false;
}

void log_set_before_line(void (*fn)(void *arg), void *arg)
{
	state.before = fn;
	state.before_arg = arg;
}

static void add_quoted(struct buf *b, const char *s)
{
	buf_add_u8(b, '"');
	for (; *s; s++) {
		if (*s == '"' || *s == '\\')
			buf_addf(b, "\\%c", *s);
		else if (*s == '\n')
			buf_add_str(b, "\\n");
		else if (*s == '\t')
			buf_add_str(b, "\\t");
		else if ((unsigned char)*s < 0x20 || *s == 0x7f)
			buf_addf(b, state.format == LOG_FORMAT_JSON ? "\\u%04x" : "\\x%02x",
				 (unsigned char)*s);
		else
			buf_add_u8(b, (uint8_t)*s);
	}
	buf_add_u8(b, '"');
}

/* Messages may hold line breaks of our own; every other control byte is shown. */
static void add_plain(struct buf *b, const char *s)
{
	for (; *s; s++) {
		if (((unsigned char)*s < 0x20 && *s != '\n' && *s != '\t') || *s == 0x7f)
			buf_addf(b, "\\x%02x", (unsigned char)*s);
		else
			buf_add_u8(b, (uint8_t)*s);
	}
}

static void add_prefix(struct buf *b, enum log_level level)
{
	static const char *const color[] = { "2", "2", "", "33", "31", "31" };
	const char *name = level == LOG_FATAL ? "error" : level_names[level];

	if (level == LOG_INFO)
		return;
	if (state.color)
		buf_addf(b, "\033[%sm%s:\033[0m ", color[level], name);
	else
		buf_addf(b, "%s: ", name);
}

void log_write(enum log_level level, const char *fmt, ...)
{
	scoped_buf struct buf b = { 0 };
	char when[CLOCK_RFC3339_SIZE];
	va_list ap;

	if (level < state.level)
		return;
	va_start(ap, fmt);
	scoped_free char *raw = xvasprintf(fmt, ap);
	va_end(ap);
	scoped_free char *msg = utf8_clean(raw);

	if (state.format == LOG_FORMAT_AUTO)
		log_setup(state.level, LOG_FORMAT_AUTO);
	switch (state.format) {
	case LOG_FORMAT_JSON:
		buf_addf(&b, "{\"level\":\"%s\",\"msg\":", level_names[level]);
		add_quoted(&b, msg);
		buf_addf(&b, ",\"time\":\"%s\"}\n", clock_rfc3339_now(when));
		break;
	case LOG_FORMAT_TEXT:
		buf_addf(&b, "time=\"%s\" level=%s msg=", clock_rfc3339_now(when),
			 level_names[level]);
		add_quoted(&b, msg);
		buf_add_u8(&b, '\n');
		break;
	case LOG_FORMAT_PLAIN:
	case LOG_FORMAT_AUTO:
		add_prefix(&b, level);
		add_plain(&b, msg);
		buf_add_u8(&b, '\n');
		break;
	}
	if (state.before)
		state.before(state.before_arg);
	/* one write, so that lines of several processes do not mix */
	for (size_t off = 0; off < b.len;) {
		ssize_t n = write(STDERR_FILENO, b.data + off, b.len - off);

		if (n < 0 && errno == EINTR)
			continue; /* Ctrl-C: the line is told in full all the same */
		if (n <= 0)
			break;
		off += (size_t)n;
	}
}

bool log_limit_pass(struct log_limit *l)
{
	enum { WINDOW_MS = 10 * 1000, PER_WINDOW = 5 };
	uint64_t now = clock_mono_ms();

	if (now - l->window_start_ms >= WINDOW_MS || l->window_start_ms == 0) {
		if (l->dropped)
			log_write(LOG_WARN, "log: left out %u lines like the next one", l->dropped);
		*l = (struct log_limit){ .window_start_ms = now ? now : 1 };
	}
	if (l->in_window < PER_WINDOW) {
		l->in_window++;
		return true;
	}
	l->dropped++;
	return false;
}

char *log_escape(const char *s, size_t max_bytes)
{
	scoped_free char *clean = utf8_clean(s);
	struct buf b = { 0 };

	for (const char *p = clean; *p; p++) {
		bool start = ((unsigned char)*p & 0xc0) != 0x80;

		if (b.len >= max_bytes && start) {
			buf_add_str(&b, "…");
			break;
		}
		if ((unsigned char)*p < 0x20 || *p == 0x7f)
			buf_addf(&b, "\\x%02x", (unsigned char)*p);
		else
			buf_add_u8(&b, (uint8_t)*p);
	}
	return buf_steal_str(&b);
}
