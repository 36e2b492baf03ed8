#include "cmd/limactl/ui.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "lib/base/buf.h"
#include "lib/base/clock.h"
#include "lib/base/log.h"
#include "lib/base/mem.h"
#include "lib/base/utf8.h"

enum { REDRAW_MS = 100, DETAIL_COLUMN = 52 };

struct ui {
	bool live, color;
	bool drawn;		/* a live line is on the screen */
	uint64_t drawn_ms;	/* when */
	unsigned frame;
	char name[32];		/* of the running step, "" none */
	char detail[256];
	uint64_t done, total, started_ms;
	uint64_t rate_from_ms, rate_from;	/* for bytes per second */
	struct progress progress;
};

const char *ui_size(uint64_t bytes, char out[UI_SIZE_LEN])
{
	static const char *const unit[] = { "B", "KiB", "MiB", "GiB", "TiB" };
	double v = (double)bytes;
	size_t u = 0;

	while (v >= 1024 && u + 1 < ARRAY_SIZE(unit))
		v /= 1024, u++;
	snprintf(out, UI_SIZE_LEN, v < 10 && u ? "%.1f %s" : "%.0f %s", v, unit[u]);
	return out;
}

/* Columns that @s takes, counting every character as one wide. */
static int width(const char *s)
{
	int n = 0;

	for (; *s; s++)
		n += ((unsigned char)*s & 0xc0) != 0x80;
	return n;
}

static int terminal_columns(void)
{
	struct winsize ws;

	return ioctl(STDERR_FILENO, TIOCGWINSZ, &ws) == 0 && ws.ws_col > 20 ? ws.ws_col : 80;
}

static void clear_live(void *arg)
{
	struct ui *ui = arg;

	if (!ui->drawn)
		return;
	fputs("\r\033[K", stderr);
	fflush(stderr);
	ui->drawn = false;
}

/* Cuts @s to @max columns. */
static void cut(char *s, int max)
{
	int n = 0;

	for (char *p = s; *p; p++) {
		if (((unsigned char)*p & 0xc0) == 0x80)
			continue;
		if (++n > max) {
			*p = 0;
			return;
		}
	}
}

static void draw(struct ui *ui)
{
	static const char *const spin[] = { "⠋", "⠙", "⠹", "⠸", "⠼", "⠴", "⠦", "⠧", "⠇", "⠏" };
	uint64_t now = clock_mono_ms();
	scoped_buf struct buf b = { 0 };
	int columns = terminal_columns();

	if (!ui->live || !ui->name[0])
		return;
	buf_addf(&b, "  %s %-10s %s", spin[ui->frame++ % ARRAY_SIZE(spin)], ui->name, ui->detail);
	if (ui->total) {
		char have[UI_SIZE_LEN], all[UI_SIZE_LEN];

		if (ui->total > 4096)
			buf_addf(&b, "  %u%%  %s of %s", (unsigned)(ui->done * 100 / ui->total),
				 ui_size(ui->done, have), ui_size(ui->total, all));
		else
			buf_addf(&b, "  %u%%", (unsigned)(ui->done * 100 / ui->total));
	}
	if (ui->total > 4096 && now > ui->rate_from_ms + 500 && ui->done > ui->rate_from) {
		char rate[UI_SIZE_LEN];

		buf_addf(&b, "  %s/s", ui_size((ui->done - ui->rate_from) * 1000 /
					       (now - ui->rate_from_ms), rate));
	}
	if (now - ui->started_ms >= 1000)
		buf_addf(&b, "  %.0f s", (double)(now - ui->started_ms) / 1000);
	cut((char *)b.data, columns - 1);
	fprintf(stderr, "\r\033[K%s", buf_str(&b));
	fflush(stderr);
	ui->drawn = true;
	ui->drawn_ms = now;
}

void ui_tick(struct ui *ui)
{
	if (ui->live && ui->name[0] && clock_mono_ms() - ui->drawn_ms >= REDRAW_MS)
		draw(ui);
}

static void on_progress(void *arg, const char *what, uint64_t done, uint64_t total)
{
	ui_step_detail(arg, what, done, total);
}

static void on_note(void *arg, const char *text)
{
	ui_note(arg, "%s", text);
}

struct ui *ui_new(bool live)
{
	struct ui *ui = xnew(struct ui);
	const char *no_color = getenv("NO_COLOR"), *term = getenv("TERM");

	ui->live = live && isatty(STDERR_FILENO) && term && !streq(term, "dumb") &&
		   log_format_get() == LOG_FORMAT_PLAIN;
	ui->color = ui->live && !(no_color && *no_color);
	ui->progress = (struct progress){ on_progress, on_note, ui };
	if (ui->live)
		log_set_before_line(clear_live, ui);
	return ui;
}

void ui_free(struct ui *ui)
{
	if (!ui)
		return;
	clear_live(ui);
	log_set_before_line(NULL, NULL);
	free(ui);
}

bool ui_is_live(const struct ui *ui)
{
	return ui->live;
}

const struct progress *ui_progress(struct ui *ui)
{
	return &ui->progress;
}

void ui_title(struct ui *ui, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	scoped_free char *text = xvasprintf(fmt, ap);
	va_end(ap);
	clear_live(ui);
	if (ui->live)
		fprintf(stderr, "  %s\n", text);
	else
		log_info("%s", text);
}

void ui_note(struct ui *ui, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	scoped_free char *text = xvasprintf(fmt, ap);
	va_end(ap);
	log_info(ui->live ? "  %s" : "%s", text);
	draw(ui);
}

void ui_step_start(struct ui *ui, const char *name)
{
	clear_live(ui);
	snprintf(ui->name, sizeof(ui->name), "%s", name);
	ui->detail[0] = 0;
	ui->done = ui->total = ui->rate_from = 0;
	ui->started_ms = ui->rate_from_ms = clock_mono_ms();
	draw(ui);
}

void ui_step_detail(struct ui *ui, const char *detail, uint64_t done, uint64_t total)
{
	scoped_free char *clean = log_escape(detail, sizeof(ui->detail) - 8);

	if (!streq(clean, ui->detail)) {
		ui->rate_from_ms = clock_mono_ms();
		ui->rate_from = done;
		if (!ui->live)
			log_debug("%s: %s", ui->name, clean);
	}
	snprintf(ui->detail, sizeof(ui->detail), "%s", clean);
	ui->done = done;
	ui->total = total;
	ui_tick(ui);
}

static void stay(struct ui *ui, const char *mark, const char *color, const char *name,
		 const char *detail, uint64_t ms)
{
	int pad = DETAIL_COLUMN - width(detail);

	clear_live(ui);
	if (ui->live)
		fprintf(stderr, "  %s%s%s %-10s %s%*s %.1f s\n", ui->color ? color : "", mark,
			ui->color ? "\033[0m" : "", name, detail, pad > 0 ? pad : 0, "",
			(double)ms / 1000);
	else
		log_info("%s%s%s, %.1f s", name, *detail ? ": " : "", detail, (double)ms / 1000);
}

void ui_step_done(struct ui *ui, const char *name, const char *detail, uint64_t ms)
{
	scoped_free char *clean = log_escape(detail, 200);

	stay(ui, "✔", "\033[32m", name, clean, ms);
	if (streq(ui->name, name))
		ui->name[0] = 0;
}

void ui_step_failed(struct ui *ui, const char *name)
{
	uint64_t ms = streq(ui->name, name) ? clock_mono_ms() - ui->started_ms : 0;

	if (ui->live)
		stay(ui, "✗", "\033[31m", name, "", ms);
	ui->name[0] = 0;
}
