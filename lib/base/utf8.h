/* utf8.h - text that came from elsewhere, made safe to store and show */
#pragma once

#include <stdbool.h>
#include <stddef.h>

/* Length in bytes of the valid sequence at @s (RFC 3629), 0 if there is none. */
size_t utf8_seq_len(const char *s, size_t len);

bool utf8_valid(const char *s, size_t len);

/* Copy of @s with each byte outside valid UTF-8, and each C1 control
 * (U+0080..U+009F, which terminals obey), as \xNN; caller frees. */
char *utf8_clean(const char *s);
