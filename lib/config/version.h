/* version.h - versions as templates compare them (semver.org, precedence) */
#pragma once

#include <stdbool.h>

/* What we claim to match: `minimumLimaVersion` is compared with this, not with
 * our own version. */
#define LIMA_COMPAT_VERSION "2.2.0"

/* "1.2.3", "v1.2", "2.0.0-alpha.1+build". */
bool version_valid(const char *s);
/* < 0, 0, > 0; both should be valid. A pre-release comes before its release. */
int version_compare(const char *a, const char *b);
