/* log.h - one line per event, to stderr
 *
 *	log_warn("qmp: no reply to `%s` in %u ms", cmd, ms);
 *
 * Module first, values last, names and paths in backticks. error needs a
 * person; warn goes on ("…, ignoring"); info is life cycle; debug is free.
 * Libraries stay at debug; only who stops an error logs it.
 *
 * Control characters in a message are written as \xNN: guest and template
 * texts reach a terminal only through here or through log_escape().
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum log_level { LOG_TRACE, LOG_DEBUG, LOG_INFO, LOG_WARN, LOG_ERROR, LOG_FATAL };

enum log_format {
	LOG_FORMAT_AUTO,	/* plain words on a terminal, logfmt otherwise */
	LOG_FORMAT_TEXT,	/* logfmt: time="…" level=info msg="…" */
	LOG_FORMAT_PLAIN,	/* "warning: …", coloured on a terminal */
	LOG_FORMAT_JSON,	/* {"level":"info","msg":"…","time":"…"} */
};

void log_setup(enum log_level level, enum log_format format);
enum log_level log_level_get(void);
enum log_format log_format_get(void);	/* resolved: never AUTO */
/* "trace" … "error" to a level; false when unknown. */
bool log_level_parse(const char *name, enum log_level *ret);

/* Something to run before a line is written: the progress display clears its
 * live line. NULL to remove. */
void log_set_before_line(void (*fn)(void *arg), void *arg);

void log_write(enum log_level level, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

#define log_trace(...) log_write(LOG_TRACE, __VA_ARGS__)
#define log_debug(...) log_write(LOG_DEBUG, __VA_ARGS__)
#define log_info(...)  log_write(LOG_INFO, __VA_ARGS__)
#define log_warn(...)  log_write(LOG_WARN, __VA_ARGS__)
#define log_error(...) log_write(LOG_ERROR, __VA_ARGS__)

/* For what a guest or peer can trigger at will: at most 5 lines per 10 s and
 * call site, then one that says how many were left out. */
struct log_limit {
	uint64_t window_start_ms;
	unsigned in_window;
	unsigned dropped;
};
bool log_limit_pass(struct log_limit *l);
#define log_warn_limited(...)                      \
	do {                                           \
		static struct log_limit log_limit_here;    \
		if (log_limit_pass(&log_limit_here))       \
			log_write(LOG_WARN, __VA_ARGS__);      \
	} while (0)

/* Printable copy of @s, control bytes and invalid UTF-8 as \xNN, at most
 * @max_bytes long (a cut is marked by "…"); caller frees. */
char *log_escape(const char *s, size_t max_bytes);
