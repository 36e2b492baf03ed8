/* ui.h - what a person sees while something takes time
 *
 * A list of named steps. On a terminal each is a line that lives (spinner,
 * detail, seconds) until it is done and then stays with its time; elsewhere each
 * is one plain log line when it is done. Everything goes to stderr.
 *
 * Only one step is live at a time: starting another takes its place, and the one
 * before gets its line when it is done all the same. Drawing happens on change and by ui_tick(), which whoever waits calls
 * about ten times a second; nothing here blocks or keeps time by itself.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "lib/base/progress.h"

struct ui;

/* @live false: plain lines even on a terminal. */
struct ui *ui_new(bool live);
void ui_free(struct ui *ui);	/* leaves no half-drawn line behind */
bool ui_is_live(const struct ui *ui);	/* on a terminal: tick me */

/* First line: what is about to happen, "default  template:default, 4 CPUs, …". */
void ui_title(struct ui *ui, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void ui_step_start(struct ui *ui, const char *name);
/* @detail: "apt: 12 of 31 packages"; @done, @total as in progress.h. */
void ui_step_detail(struct ui *ui, const char *detail, uint64_t done, uint64_t total);
void ui_step_done(struct ui *ui, const char *name, const char *detail, uint64_t ms);
void ui_step_failed(struct ui *ui, const char *name);
/* A line that stays, between steps. */
void ui_note(struct ui *ui, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void ui_tick(struct ui *ui);

/* For library work that reports by struct progress; valid as long as @ui. */
const struct progress *ui_progress(struct ui *ui);
/* "1.2 GiB", "832 MiB", "3 KiB" into @out. */
enum { UI_SIZE_LEN = 16 };
const char *ui_size(uint64_t bytes, char out[UI_SIZE_LEN]);
