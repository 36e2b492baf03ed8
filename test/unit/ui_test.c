#include <fcntl.h>
#include <pty.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "cmd/limactl/ui.h"
#include "lib/base/log.h"
#include "lib/base/mem.h"

/* Runs @fn with stderr on a terminal 40 columns wide, or on a pipe, and gives
 * back what a person would have got. */
static void shown(bool terminal, void (*fn)(struct ui *ui), char *out, size_t size)
{
	struct winsize ws = { .ws_row = 24, .ws_col = 40 };
	int old = dup(STDERR_FILENO), p[2];
	struct ui *ui;
	size_t len = 0;
	ssize_t n;

	if (terminal)
		assert_int_equal(openpty(&p[0], &p[1], NULL, NULL, &ws), 0);
	else
		assert_int_equal(pipe(p), 0);
	dup2(p[1], STDERR_FILENO);
	close(p[1]);
	setenv("TERM", "xterm", 1);
	setenv("NO_COLOR", "1", 1);
	log_setup(LOG_INFO, LOG_FORMAT_PLAIN);
	ui = ui_new(true);
	assert_int_equal(ui_is_live(ui), terminal);
	fn(ui);
	ui_free(ui);
	fcntl(p[0], F_SETFL, O_NONBLOCK);
	while (len < size - 1 && (n = read(p[0], out + len, size - 1 - len)) > 0)
		len += (size_t)n;
	out[len] = 0;
	dup2(old, STDERR_FILENO);
	close(old);
	close(p[0]);
}

static void one_step(struct ui *ui)
{
	ui_title(ui, "web  %s", "template:default");
	ui_step_start(ui, "image");
	ui_step_detail(ui, "downloading a file with quite a long name.qcow2", 1 << 20, 4 << 20);
	log_warn("slow mirror");
	ui_step_done(ui, "image", "debian-13 (cached)", 1234);
	ui_note(ui, "READY");
}

static void test_ui_plain_is_one_line_a_step(void **state)
{
	char s[4096];

	shown(false, one_step, s, sizeof(s));
	assert_string_equal(s, "web  template:default\n"
			       "warning: slow mirror\n"
			       "image: debian-13 (cached), 1.2 s\n"
			       "READY\n");
}

/* What is left on the screen: each live line was cleared before anything else. */
static void test_ui_live_line_leaves_no_trace(void **state)
{
	char s[4096], screen[4096] = "";

	shown(true, one_step, s, sizeof(s));
	for (char *line = strtok(s, "\n"); line; line = strtok(NULL, "\n")) {
		char *last = line, *cleared;

		while ((cleared = strstr(last, "\r\033[K")))
			last = cleared + 4;
		snprintf(screen + strlen(screen), sizeof(screen) - strlen(screen), "%.*s|",
			 (int)strcspn(last, "\r"), last);
	}
	assert_string_equal(screen, "  web  template:default|"
				    "warning: slow mirror|"
				    "  ✔ image      debian-13 (cached)                                   1.2 s|"
				    "  READY|");
}

static void only_detail(struct ui *ui)
{
	ui_step_start(ui, "provision");
	ui_step_detail(ui, "\033[31määäääääääääääääääääääääääääääääääääääääääääääääää", 0, 0);
	ui_step_start(ui, "provision");
}

static void test_ui_live_line_fits_and_guest_text_is_disarmed(void **state)
{
	char s[4096];

	shown(true, only_detail, s, sizeof(s));
	assert_null(strstr(s, "\033[31m"));
	assert_null(strstr(s, "\n")); /* nothing wrapped, nothing stays */
}

static void test_ui_size_reads_well(void **state)
{
	char s[UI_SIZE_LEN];

	assert_string_equal(ui_size(0, s), "0 B");
	assert_string_equal(ui_size(1288490189, s), "1.2 GiB");
	assert_string_equal(ui_size(832ull << 20, s), "832 MiB");
	assert_string_equal(ui_size(UINT64_MAX, s), "16777216 TiB");
}

static void test_ui_stays_plain_when_asked_to(void **state)
{
	struct ui *ui = ui_new(false);

	assert_false(ui_is_live(ui));
	ui_free(ui);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_ui_plain_is_one_line_a_step),
		cmocka_unit_test(test_ui_live_line_leaves_no_trace),
		cmocka_unit_test(test_ui_live_line_fits_and_guest_text_is_disarmed),
		cmocka_unit_test(test_ui_size_reads_well),
		cmocka_unit_test(test_ui_stays_plain_when_asked_to),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
