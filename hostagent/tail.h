/* tail.h - the end of a log file, made fit to show in one line */
#pragma once

#include "lib/store/layout.h"

/* The last line of @file that is not empty, escaped and bounded; "" when there
 * is none. Caller frees. */
char *tail_line(const char *instance_dir, enum instance_file file);
