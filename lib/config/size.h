/* size.h - "4GiB": amounts of memory and disk
 *
 * The way Lima reads them: 4GiB = 4G = 4g = 4gb, base 1024, fractions allowed.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Whole bytes; false when it is none, or not below 2^63. */
bool size_parse(const char *s, uint64_t *ret);

enum { SIZE_TEXT_SIZE = 32 };
/* "4GiB", "1.938GiB": at most four significant digits. Returns @out. */
const char *size_format(uint64_t bytes, char out[SIZE_TEXT_SIZE]);
