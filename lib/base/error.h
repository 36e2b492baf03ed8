/* error.h - a failure as a value its caller owns
 *
 * No heap, nothing to free, never NULL. A function that can fail returns 0 or a
 * negative code and takes `struct error *err` last; the text reads from the
 * outside in, "start dev: lock /x/lock: resource temporarily unavailable".
 * When a text outgrows the buffer its middle is cut: the outermost context and
 * the cause both survive.
 *
 * Codes are -errno, which are libuv's codes too on every platform we build for.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>

enum { ERROR_MSG_SIZE = 1024 };

struct error {
	int code; /* 0: none */
	char msg[ERROR_MSG_SIZE];
};

#define ERROR_NONE ((struct error){ 0 })

/* Each returns @code, so that `return error_set(err, -EINVAL, …)` reads well.
 * @code must be negative. */
int error_set(struct error *err, int code, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));

/* As error_set, followed by ": " and the text of @code. */
int error_sys(struct error *err, int code, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));

/* Puts context in front of what is there: "context: what was there". */
int error_wrap(struct error *err, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* Puts a remedy or a consequence behind what is there. */
int error_append(struct error *err, const char *text);

/* Is nobody there, or does no way lead there? What a connected socket says after an
 * ICMP "unreachable" (udp(7), icmp(7)), or at once. EMSGSIZE, an answer of theirs as
 * well, concerns one datagram. */
bool error_is_unreachable(int code);

/* Text of a negative code, lower case, never NULL, static. */
const char *error_text(int code);
