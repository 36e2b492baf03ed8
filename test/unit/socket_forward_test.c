/* What is asked of ssh for sockets in the guest, and when. This program is also the
 * ssh that is asked: it writes down how it was called. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "hostagent/socket_forward.h"
#include "lib/base/log.h"
#include "lib/base/mem.h"
#include "lib/base/path.h"

enum { DEADLINE_MS = 20000, REQUEST_MS = 2000 };

static char dir[] = "/tmp/lima-sock-XXXXXX";

static const char *in_dir(const char *name)
{
	static char path[16][96];
	static unsigned n;
	char *p = path[n++ % 16];

	snprintf(p, sizeof(path[0]), "%s/%s", dir, name);
	return p;
}

/* --- the ssh ----------------------------------------------------------------- */

static void touch(const char *name)
{
	struct error err = ERROR_NONE;

	path_write_file(in_dir(name), "", 0, 0600, &err);
}

/* As OpenSSH does it: what the master has already is granted, and nothing is made
 * (mux.c, process_mux_open_fwd). The guest's socket is `made`. */
static int ask_for_reverse(void)
{
	if (!path_exists(in_dir("known")))
		touch("made");
	touch("known");
	if (path_exists(in_dir("slow")))
		pause();
	return 0;
}

static void end_known(void)
{
	unlink(in_dir("made"));
	unlink(in_dir("known"));
}

/* "forward -R A:B", "cancel -R A:B", or the command for the guest */
static int play_ssh(int argc, char **argv)
{
	const char *command = argv[argc - 1], *way = "", *pair = "";
	FILE *log;

	snprintf(dir, sizeof(dir), "%s", argv[2]);
	for (int i = 3; i + 1 < argc; i++) {
		if (strcmp(argv[i], "-O") == 0)
			command = argv[i + 1];
		if (strcmp(argv[i], "-R") == 0) {
			way = argv[i];
			pair = argv[i + 1];
		}
	}
	log = fopen(in_dir("log"), "ae");
	fprintf(log, "%s%s%s%s%s\n", command, *way ? " " : "", way, *pair ? " " : "", pair);
	fclose(log);
	if (path_exists(in_dir("hang")))
		pause();
	if (path_exists(in_dir("refuse")) && strcmp(command, "forward") == 0) {
		fprintf(stderr, "debug\nmux_client_forward: forwarding request failed\r\n");
		return 255;
	}
	if (strcmp(command, "forward") == 0)
		return ask_for_reverse();
	if (strcmp(command, "cancel") == 0)
		end_known();
	else
		unlink(in_dir("made"));	/* rm, in the guest */
	return 0;
}

/* --- the world --------------------------------------------------------------- */

struct world {
	struct loop loop;
	struct ssh_target target;
	struct socket_forwards *s;
	struct forward_sockets ops;
	struct strv events;
	bool closed;
};

static void on_event(void *arg, const struct forward_event *ev)
{
	static const char *const names[] = { "forwarding", "not-forwarding", "stopping", "failed" };
	struct world *w = arg;

	strv_addf(&w->events, "%s %s %s %s%s%s", names[ev->type], ev->protocol, ev->guest_addr,
		  ev->host_addr, *ev->error ? " " : "", ev->error);
}

static void start(struct world *w)
{
	struct socket_forwards_options o = { .loop = &w->loop, .target = &w->target,
					     .socket_prefix = in_dir("lane"),
					     .event = on_event, .arg = w,
					     .retry_min_ms = 20, .retry_max_ms = 100,
					     .request_max_ms = REQUEST_MS };
	struct error err = ERROR_NONE;

	*w = (struct world){ .target = { .instance = (char *)"t", .dir = dir, .port = 1,
					 .user = (char *)"u", .host = (char *)"127.0.0.1" } };
	unlink(in_dir("log"));
	assert_int_equal(loop_init(&w->loop, &err), 0);
	w->s = socket_forwards_new(&o);
	socket_forwards_ops(w->s, &w->ops);
}

static void on_tick(uv_timer_t *t)
{
}

/* Looks after each turn, and at least every 10 ms: a turn may run a timer first and
 * then sleep. */
static bool until(struct world *w, unsigned ms, bool (*done)(struct world *w, const void *arg),
		  const void *arg)
{
	uv_timer_t tick;
	uint64_t end;
	bool ok;

	uv_timer_init(&w->loop.uv, &tick);
	uv_update_time(&w->loop.uv);
	uv_timer_start(&tick, on_tick, 10, 10);
	end = uv_now(&w->loop.uv) + ms;
	while (!(ok = done && done(w, arg)) && uv_now(&w->loop.uv) < end)
		uv_run(&w->loop.uv, UV_RUN_ONCE);
	uv_close((uv_handle_t *)&tick, NULL);
	uv_run(&w->loop.uv, UV_RUN_NOWAIT);
	return ok;
}

static bool newest_is(struct world *w, const void *prefix)
{
	return w->events.len &&
	       strncmp(w->events.items[w->events.len - 1], prefix, strlen(prefix)) == 0;
}

static bool wait_event(struct world *w, const char *prefix)
{
	return until(w, DEADLINE_MS, newest_is, prefix);
}

static char *log_text(void)
{
	scoped_buf struct buf b = { 0 };
	struct error err = ERROR_NONE;

	path_read_file(in_dir("log"), 1 << 20, &b, &err);
	return xstrdup(buf_str(&b));
}

static bool log_has(struct world *w, const void *text)
{
	scoped_free char *log = log_text();

	return strstr(log, text);
}

static void on_closed(void *arg)
{
	((struct world *)arg)->closed = true;
}

static bool is_closed(struct world *w, const void *arg)
{
	return w->closed;
}

static void stop(struct world *w)
{
	socket_forwards_close(w->s, on_closed, w);
	assert_true(until(w, DEADLINE_MS, is_closed, NULL));
	loop_run(&w->loop); /* children that were ended */
	assert_int_equal(loop_done(&w->loop), 0);
	strv_done(&w->events);
}

static struct config_port_forward from_socket(const char *guest, const char *host)
{
	return (struct config_port_forward){ .guest_socket = (char *)guest,
					     .host_socket = (char *)host, .reverse = true };
}

static void add(struct world *w, unsigned id, const struct config_port_forward *rule)
{
	struct error err = ERROR_NONE;

	assert_int_equal(w->ops.add(w->ops.arg, id, rule, &err), 0);
}

static bool list_is_empty(struct world *w, const void *arg)
{
	return !socket_forwards_any(w->s);
}

/* --- tests ------------------------------------------------------------------- */

static void test_socket_forward_waits_for_the_master(void **state)
{
	struct config_port_forward rule = from_socket("/run/a.sock", in_dir("a.sock"));
	struct world w;

	start(&w);
	add(&w, 7, &rule);
	until(&w, 50, NULL, NULL);
	assert_int_equal(w.events.len, 0);
	assert_false(path_exists(in_dir("log")));
	socket_forwards_set_master(w.s, true);
	assert_true(wait_event(&w, "forwarding unix /run/a.sock"));
	assert_true(socket_forwards_settled(w.s));
	stop(&w);
	end_known();
}

static void test_socket_forward_again_after_a_lost_master(void **state)
{
	struct config_port_forward rule = from_socket("/run/a.sock", in_dir("a.sock"));
	struct world w;

	start(&w);
	socket_forwards_set_master(w.s, true);
	add(&w, 7, &rule);
	assert_true(wait_event(&w, "forwarding"));
	for (int i = 0; i < 3; i++) {
		socket_forwards_set_master(w.s, false);
		assert_true(newest_is(&w, "stopping unix /run/a.sock"));
		end_known();
		socket_forwards_set_master(w.s, true);
		assert_true(wait_event(&w, "forwarding"));
		assert_true(path_exists(in_dir("made")));
	}
	assert_int_equal(w.events.len, 7);
	stop(&w);
	end_known();
}

static void test_socket_forward_reverse_removes_first(void **state)
{
	struct config_port_forward rule = from_socket("/tmp/it's.sock", in_dir("r.sock"));
	struct world w;

	start(&w);
	socket_forwards_set_master(w.s, true);
	add(&w, 1, &rule);
	assert_true(wait_event(&w, "forwarding unix /tmp/it's.sock"));
	const char *ours = in_dir("lane-r1.sock");
	scoped_free char *want = xasprintf("cancel -R /tmp/it's.sock:%s\n"
					   "rm -f -- '/tmp/it'\\''s.sock'\n"
					   "forward -R /tmp/it's.sock:%s\n", ours, ours);
	scoped_free char *log = log_text();
	assert_string_equal(log, want);
	stop(&w);
	end_known();
}

/* The master of a host agent that was killed has it already: asked again, it would
 * make nothing where the old socket was removed. */
static void test_socket_forward_reverse_is_made_though_it_was_left(void **state)
{
	struct config_port_forward rule = from_socket("/tmp/r.sock", in_dir("r.sock"));
	struct world w;

	touch("known");
	touch("made");
	start(&w);
	socket_forwards_set_master(w.s, true);
	add(&w, 1, &rule);
	assert_true(wait_event(&w, "forwarding unix /tmp/r.sock"));
	assert_true(path_exists(in_dir("made")));
	stop(&w);
	end_known();
}

/* The master was asked for a socket, and has not answered. */
static void start_asking_slowly(struct world *w)
{
	struct config_port_forward rule = from_socket("/tmp/r.sock", in_dir("r.sock"));

	touch("slow");
	start(w);
	socket_forwards_set_master(w->s, true);
	add(w, 1, &rule);
	assert_true(until(w, DEADLINE_MS, log_has, "forward -R"));
}

/* The master did what it was asked for, after we had stopped waiting. */
static void test_socket_forward_reverse_is_made_though_it_came_late(void **state)
{
	struct world w;

	start_asking_slowly(&w);
	assert_true(wait_event(&w, "failed unix /tmp/r.sock"));
	unlink(in_dir("slow"));
	assert_true(wait_event(&w, "forwarding unix /tmp/r.sock"));
	assert_true(path_exists(in_dir("made")));
	stop(&w);
	end_known();
}

/* … and after its rule was removed. */
static void test_socket_forward_removed_while_it_comes_late(void **state)
{
	struct world w;

	start_asking_slowly(&w);
	w.ops.remove(w.ops.arg, 1);
	assert_true(until(&w, DEADLINE_MS, list_is_empty, NULL));
	unlink(in_dir("slow"));
	assert_false(path_exists(in_dir("known")));
	assert_int_equal(w.events.len, 0);
	stop(&w);
	end_known();
}

static bool is_not_known(struct world *w, const void *arg)
{
	return !path_exists(in_dir("known"));
}

/* … between two tries of it. */
static void test_socket_forward_removed_before_it_comes_late(void **state)
{
	struct world w;

	start_asking_slowly(&w);
	assert_true(wait_event(&w, "failed unix /tmp/r.sock"));
	w.ops.remove(w.ops.arg, 1);
	unlink(in_dir("slow"));
	assert_true(until(&w, DEADLINE_MS, is_not_known, NULL));
	stop(&w);
	end_known();
}

static void test_socket_forward_refused_is_tried_again(void **state)
{
	struct config_port_forward rule = from_socket("/run/a.sock", in_dir("a.sock"));
	struct error err = ERROR_NONE;
	struct world w;

	assert_int_equal(path_write_file(in_dir("refuse"), "", 0, 0600, &err), 0);
	start(&w);
	socket_forwards_set_master(w.s, true);
	add(&w, 1, &rule);
	assert_true(wait_event(&w, "failed unix /run/a.sock"));
	assert_non_null(strstr(w.events.items[0],
			       "ssh refuses the forward: mux_client_forward: forwarding request failed"));
	assert_true(socket_forwards_settled(w.s));
	unlink(in_dir("refuse"));
	assert_true(wait_event(&w, "forwarding"));
	assert_int_equal(w.events.len, 2);
	stop(&w);
	end_known();
}

struct seen {
	unsigned n;
	char text[200];
};

static void see_row(void *arg, const struct forward_row *row)
{
	struct seen *s = arg;

	s->n++;
	snprintf(s->text, sizeof(s->text), "%u %s %s %s %s%s", row->rule_id, row->protocol,
		 row->guest_addr, row->state, row->error, row->reverse ? "reverse" : "");
}

static void test_socket_forward_removed(void **state)
{
	struct config_port_forward rule = from_socket("/run/a.sock", in_dir("a.sock"));
	struct seen seen = { 0 };
	struct world w;

	start(&w);
	add(&w, 3, &rule);
	w.ops.list(w.ops.arg, see_row, &seen);
	assert_string_equal(seen.text, "3 unix /run/a.sock waiting no ssh connection to the guest yetreverse");
	w.ops.remove(w.ops.arg, 3); /* before there was anything */
	assert_true(until(&w, DEADLINE_MS, list_is_empty, NULL));
	assert_int_equal(w.events.len, 0);
	socket_forwards_set_master(w.s, true);
	add(&w, 4, &rule);
	w.ops.remove(w.ops.arg, 4); /* in the same turn */
	add(&w, 5, &rule);
	assert_true(wait_event(&w, "forwarding"));
	w.ops.remove(w.ops.arg, 5);
	assert_true(newest_is(&w, "stopping"));
	seen.n = 0;
	w.ops.list(w.ops.arg, see_row, &seen);
	assert_int_equal(seen.n, 0);
	assert_true(until(&w, DEADLINE_MS, list_is_empty, NULL));
	assert_false(path_exists(in_dir("made")));
	w.ops.remove(w.ops.arg, 5);
	stop(&w);
}

static void test_socket_forward_closes_in_the_middle_of_a_request(void **state)
{
	struct config_port_forward rule = from_socket("/run/a.sock", in_dir("a.sock"));
	struct config_port_forward odd = from_socket("/run/a:b.sock", in_dir("b.sock"));
	struct error err = ERROR_NONE;
	struct world w;

	assert_int_equal(path_write_file(in_dir("hang"), "", 0, 0600, &err), 0);
	start(&w);
	assert_int_equal(w.ops.add(w.ops.arg, 1, &odd, &err), -EINVAL);
	socket_forwards_set_master(w.s, true);
	add(&w, 1, &rule);
	assert_true(until(&w, DEADLINE_MS, log_has, "cancel -R"));
	w.ops.remove(w.ops.arg, 1);
	socket_forwards_set_master(w.s, false);
	socket_forwards_set_master(w.s, true);
	add(&w, 2, &rule);
	until(&w, 50, NULL, NULL);
	stop(&w);
	unlink(in_dir("hang"));
}

static int clean_up(void **state)
{
	unlink(in_dir("log"));
	end_known();
	return rmdir(dir);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_socket_forward_waits_for_the_master),
		cmocka_unit_test(test_socket_forward_again_after_a_lost_master),
		cmocka_unit_test(test_socket_forward_reverse_removes_first),
		cmocka_unit_test(test_socket_forward_reverse_is_made_though_it_was_left),
		cmocka_unit_test(test_socket_forward_reverse_is_made_though_it_came_late),
		cmocka_unit_test(test_socket_forward_removed_while_it_comes_late),
		cmocka_unit_test(test_socket_forward_removed_before_it_comes_late),
		cmocka_unit_test(test_socket_forward_refused_is_tried_again),
		cmocka_unit_test(test_socket_forward_removed),
		cmocka_unit_test(test_socket_forward_closes_in_the_middle_of_a_request),
	};
	char self[4096];
	ssize_t n = readlink("/proc/self/exe", self, sizeof(self) - 1);

	if (argc > 2 && strcmp(argv[1], "play-ssh") == 0)
		return play_ssh(argc, argv);
	if (n < 0 || !mkdtemp(dir))
		return 1;
	self[n] = 0;
	scoped_free char *ssh = xasprintf("%s play-ssh %s", self, dir);
	setenv("SSH", ssh, 1);
	log_setup(LOG_ERROR, LOG_FORMAT_PLAIN);
	return cmocka_run_group_tests(tests, NULL, clean_up);
}
