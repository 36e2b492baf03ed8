/* progress.h - how long work tells whoever shows it
 *
 * Libraries never print. Work that takes more than a moment takes a `const
 * struct progress *` (NULL: nobody looks) and reports into it; limactl turns
 * reports into a live line or into plain lines (cmd/limactl/ui).
 */
#pragma once

#include <stdint.h>

struct progress {
	/* @what: short present-tense text, "downloading debian-13.qcow2".
	 * @done, @total in bytes or items; @total 0: unknown. Called often; the
	 * receiver thins out. */
	void (*update)(void *arg, const char *what, uint64_t done, uint64_t total);
	/* One line worth keeping, e.g. "debian-13 from cloud.debian.org failed:
	 * …, trying the next image". */
	void (*note)(void *arg, const char *text);
	void *arg;
};

void progress_update(const struct progress *p, const char *what, uint64_t done, uint64_t total);
void progress_note(const struct progress *p, const char *fmt, ...)
	__attribute__((format(printf, 2, 3)));
