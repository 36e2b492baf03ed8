/* The whole host agent in a child process, with a machine that obeys one-letter
 * commands (test/mock/vm.h) and a fake ssh. The test sees what limactl sees:
 * event lines, ha.sock, the instance directory, the exit code. */
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>

#include "hostagent/agent.h"
#include "hostagent/events.h"
#include "hostagent/ssh.h"
#include "lib/base/buf.h"
#include "lib/base/clock.h"
#include "lib/base/log.h"
#include "lib/base/mem.h"
#include "lib/base/path.h"
#include "lib/store/pid.h"
#include "test/mock/vm.h"

enum { WAIT_MS = 20000 };

static char home[] = "/tmp/lima-agent-test-XXXXXX";
static char dir[64], ssh_dir[64], pid_file[80], sock_path[80];
static const char *yaml;
static struct mock_vm_plan plan;
static struct agent_waits waits;

static struct {
	pid_t pid;
	int events_fd, command_fd;
	struct buf pending, story;	/* bytes of a line, all lines so far */
} ha;

static void write_file(const char *path, const char *text)
{
	struct error err = ERROR_NONE;

	assert_int_equal(path_write_file(path, text, strlen(text), 0600, &err), 0);
}

static void fake_ssh(const char *name, bool there)
{
	scoped_free char *path = xasprintf("%s/%s", ssh_dir, name);

	if (there)
		write_file(path, "");
	else
		unlink(path);
}

static bool in_dir(const char *name)
{
	scoped_free char *path = xasprintf("%s/%s", dir, name);

	return path_exists(path);
}

/* --- the host agent's process -------------------------------------------- */

static void run_agent(int events_fd, int command_fd)
{
	struct agent_options o = { .name = "vm", .lima_home = home, .pid_file = pid_file,
				   .socket = sock_path, .driver_ops = &mock_vm_ops,
				   .waits = waits };
	struct error err = ERROR_NONE;
	int rc;

	dup2(events_fd, STDOUT_FILENO);
	close(events_fd);
	log_setup(getenv("TEST_VERBOSE") ? LOG_DEBUG : LOG_ERROR, LOG_FORMAT_PLAIN);
	mock_vm_plan = plan;
	mock_vm_plan.command_fd = command_fd;
	rc = agent_run(&o, &err);
	if (rc < 0 && getenv("TEST_VERBOSE"))
		log_error("%s", err.msg);
	buf_done(&ha.pending);
	buf_done(&ha.story);
	exit(rc == -EBUSY ? 2 : rc < 0);	/* so that the leak check runs */
}

static void write_yaml(void)
{
	scoped_free char *path = xasprintf("%s/lima.yaml", dir);

	write_file(path, yaml);
}

static void start_agent(void)
{
	int events[2], commands[2];

	assert_int_equal(pipe2(events, O_CLOEXEC), 0);
	assert_int_equal(pipe2(commands, O_CLOEXEC), 0);
	write_yaml();
	buf_reset(&ha.story);
	buf_reset(&ha.pending);
	ha.pid = fork();
	if (ha.pid == 0) {
		close(events[0]);
		close(commands[1]);
		run_agent(events[1], commands[0]);
	}
	close(events[1]);
	close(commands[0]);
	ha.events_fd = events[0];
	ha.command_fd = commands[1];
}

static void command(const char *letters)
{
	assert_int_equal(write(ha.command_fd, letters, strlen(letters)), (ssize_t)strlen(letters));
}

/* One more event line into the story; false at the end of all. */
static bool next_line(uint64_t until)
{
	for (;;) {
		const char *end = memchr(buf_str(&ha.pending), '\n', ha.pending.len);
		struct pollfd p = { .fd = ha.events_fd, .events = POLLIN };
		uint64_t now = clock_mono_ms();
		char data[4096];
		ssize_t n;

		if (end) {
			size_t len = (size_t)(end - buf_str(&ha.pending)) + 1;

			buf_add(&ha.story, ha.pending.data, len);
			buf_consume(&ha.pending, len);
			return true;
		}
		if (now >= until || poll(&p, 1, (int)(until - now)) != 1)
			return false;
		n = read(ha.events_fd, data, sizeof(data));
		if (n <= 0)
			return false;
		buf_add(&ha.pending, data, (size_t)n);
	}
}

/* Until a line since @from holds @text; where it ends in the story. */
static size_t wait_text(size_t from, const char *text)
{
	uint64_t until = clock_mono_ms() + WAIT_MS;
	const char *at;

	while (from > ha.story.len || !(at = strstr(buf_str(&ha.story) + from, text)))
		if (!next_line(until))
			fail_msg("no `%s` after `%s`", text, buf_str(&ha.story) + from);
	return (size_t)(strchr(at, '\n') - buf_str(&ha.story)) + 1;
}

static bool story_has(const char *text)
{
	return strstr(buf_str(&ha.story), text) != NULL;
}

static int wait_exit(void)
{
	uint64_t until = clock_mono_ms() + WAIT_MS;
	int status = 0;

	while (next_line(until))
		;
	close(ha.events_fd);
	close(ha.command_fd);
	assert_true(clock_mono_ms() < until);
	assert_int_equal(waitpid(ha.pid, &status, 0), ha.pid);
	ha.pid = 0;
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

/* In order or not, nothing of it is left. */
static void assert_clean(void)
{
	assert_false(path_exists(pid_file));
	assert_false(path_exists(sock_path));
	assert_false(in_dir("ssh.sock"));
	assert_false(in_dir("ga-ssh.sock"));
}

static size_t start_to_running(void)
{
	start_agent();
	wait_text(0, "\"name\":\"guest up\",\"state\":\"done\"");
	command("sb");
	return wait_text(0, "\"running\":true");
}

static void stop_in_order(void)
{
	assert_int_equal(kill(ha.pid, SIGTERM), 0);
	assert_int_equal(wait_exit(), 0);
	assert_true(story_has("\"exiting\":true"));
	assert_clean();
}

/* The whole answer; caller frees. */
static char *ask_with(const char *method, const char *path, const char *body)
{
	struct sockaddr_un sa = { .sun_family = AF_UNIX };
	scoped_fd int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	scoped_free char *request = xasprintf("%s %s HTTP/1.1\r\nConnection: close\r\n"
					      "Content-Length: %zu\r\n\r\n%s", method, path, strlen(body),
					      body);
	struct buf b = { 0 };
	char data[4096];
	ssize_t n;

	strcpy(sa.sun_path, sock_path);
	assert_int_equal(connect(fd, (struct sockaddr *)&sa, sizeof(sa)), 0);
	assert_int_equal(write(fd, request, strlen(request)), (ssize_t)strlen(request));
	while ((n = read(fd, data, sizeof(data))) > 0)
		buf_add(&b, data, (size_t)n);
	return buf_steal_str(&b);
}

static char *ask(const char *path)
{
	return ask_with("GET", path, "");
}

/* --- tests --------------------------------------------------------------- */

/* Rules while it runs: all of a request or none, told as they are in lima.yaml. */
static void change_rules(void)
{
	static const struct {
		const char *method, *body, *want;
	} rows[] = {
		{ "POST", "{\"guestPort\":7001,\"hostPort\":70000}", "400 Bad Request" },
		{ "POST", "{\"guestPort\":7001,\"hostPort\":70000}", "hostPort: 70000 is not a port" },
		{ "POST", "[]", "400 Bad Request" },
		{ "POST", "7", "a rule is an object" },
		{ "POST", "{\"guestPrt\":7001}", "guestPrt" },
		{ "POST", "[{\"guestPort\":7001},{\"guestPort\":0}]", "400 Bad Request" },
		{ "GET", "", "\r\n\r\n[]" },
		{ "POST", "[{\"guestPort\":7001,\"hostPort\":7101},{\"guestPort\":7002,\"proto\":\"udp\"}]",
		  "201 Created" },
		{ "POST", "{\"guestPort\":7001,\"hostPort\":7101}", "409 Conflict" },
		{ "GET", "", "\"hostPortRange\":[7101,7101]" },
		{ "DELETE", "{\"id\":9999}", "404 Not Found" },
		{ "DELETE", "{\"id\":\"x\"}", "400 Bad Request" },
		{ "DELETE", "{\"guestPort\":7001}", "400 Bad Request" },
	};

	for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
		scoped_free char *got = ask_with(rows[i].method,
						 streq(rows[i].method, "GET") ? "/v1/rules" : "/v1/ports",
						 rows[i].body);

		if (!strstr(got, rows[i].want))
			fail_msg("%s %s: %s", rows[i].method, rows[i].body, got);
	}
}

static void test_agent_start_run_stop(void **state)
{
	size_t at = start_to_running();
	uint16_t port = ssh_config_port(dir);
	scoped_free char *forwarded =
		xasprintf("\"type\":\"forwarding\",\"protocol\":\"tcp\",\"guestAddr\":\"127.0.0.1:%u\"",
			  plan.guest_port);

	assert_true(story_has("\"name\":\"seed\",\"state\":\"done\""));
	assert_true(story_has("\"notice\":\"using TCG (slow)\""));
	assert_true(story_has("\"detail\":\"tcg, mock, pid 4711\""));
	assert_true(story_has("\"detail\":\"agent 0.1.0, kernel 6.12.0\""));
	assert_true(story_has("\"name\":\"ssh\",\"state\":\"done\""));
	assert_true(story_has("system 1/1: 00000000"));
	assert_true(story_has(forwarded));
	assert_false(story_has("degraded"));
	assert_true(port > 0);
	assert_true(in_dir("ssh.sock") && in_dir("cidata.iso"));
	assert_int_equal(pid_file_read(pid_file, NULL), ha.pid);

	scoped_free char *info = ask("/v1/info");
	assert_non_null(strstr(info, "\"status\":\"Running\""));
	assert_non_null(strstr(info, "\"agentVersion\":\"0.1.0\""));
	assert_non_null(strstr(info, "\"bootId\":\"boot-1\""));
	scoped_free char *ports = ask("/v1/ports");
	assert_non_null(strstr(ports, "\"state\":\"forwarding\""));

	change_rules();
	command("p");
	wait_text(at, "\"portForward\"");
	stop_in_order();

	start_to_running();	/* again: the same ssh port */
	assert_int_equal(ssh_config_port(dir), port);
	stop_in_order();
}

static void test_agent_start_fails(void **state)
{
	plan.start_fails = true;
	start_agent();
	assert_int_equal(wait_exit(), 1);
	assert_true(story_has("\"name\":\"mock\",\"state\":\"failed\"") ||
		    story_has("\"name\":\"qemu\",\"state\":\"failed\""));
	assert_true(story_has("\"exiting\":true,\"errors\":[\"qemu: QEMU exited with code 1: no "
			      "such machine\"]"));
	assert_clean();
}

static void test_agent_seed_fails(void **state)
{
	setenv("MOCK_SEED_FAILS", "1", 1);
	start_agent();
	unsetenv("MOCK_SEED_FAILS");
	assert_int_equal(wait_exit(), 1);
	assert_true(story_has("no space left on device"));
	assert_false(story_has("\"name\":\"qemu\""));
	assert_clean();
}

static void test_agent_sigterm_at_each_step(void **state)
{
	static const char *const steps[] = { "seed", "qemu", "guest up", "ssh", "provision" };

	setenv("MOCK_SEED_SLOW", "1", 1);
	for (size_t i = 0; i < ARRAY_SIZE(steps); i++) {
		scoped_free char *text =
			xasprintf("\"name\":\"%s\",\"state\":\"started\"", steps[i]);

		plan.silent = streq(steps[i], "guest up");
		plan.no_sshd = plan.silent;
		start_agent();
		if (streq(steps[i], "provision")) {
			wait_text(0, "\"name\":\"ssh\",\"state\":\"started\"");
			command("s");
		}
		wait_text(0, text);
		stop_in_order();
		assert_false(story_has("\"running\":true"));
	}
	unsetenv("MOCK_SEED_SLOW");
}

static void test_agent_second_signal_forces(void **state)
{
	plan.ignores_powerdown = true;
	start_to_running();
	assert_int_equal(kill(ha.pid, SIGINT), 0);
	usleep(300 * 1000);	/* it waits for a guest that does not care */
	assert_int_equal(waitpid(ha.pid, NULL, WNOHANG), 0);
	assert_int_equal(kill(ha.pid, SIGINT), 0);
	assert_int_equal(wait_exit(), 0);
	assert_clean();
}

static void test_agent_vm_dies(void **state)
{
	start_to_running();
	command("k");
	assert_int_equal(wait_exit(), 1);
	assert_true(story_has("\"errors\":[\"QEMU died of signal 11"));
	assert_clean();
}

static void test_agent_vm_dies_while_starting(void **state)
{
	start_agent();
	wait_text(0, "\"name\":\"ssh\",\"state\":\"started\"");
	command("k");
	assert_int_equal(wait_exit(), 1);
	assert_true(story_has("QEMU died of signal 11"));
	assert_clean();
}

static void test_agent_guest_powers_off(void **state)
{
	start_to_running();
	command("P");
	assert_int_equal(wait_exit(), 0);
	assert_true(story_has("\"notice\":\"the guest powered off\""));
	assert_clean();
}

/* The listener stays through it, and what comes after is forwarded. */
static void test_agent_link_lost_and_back(void **state)
{
	size_t at = start_to_running();
	scoped_free char *ports = NULL;

	command("l");
	command("p");	/* reaches the snapshot of the next connection */
	wait_text(at, "\"type\":\"forwarding\"");
	assert_null(strstr(buf_str(&ha.story) + at, "stopping"));
	ports = ask("/v1/ports");
	assert_non_null(strstr(ports, "forwarding"));
	stop_in_order();
}

static void test_agent_guest_reboots(void **state)
{
	size_t at = start_to_running();
	uint64_t until = clock_mono_ms() + WAIT_MS;

	command("R");
	at = wait_text(at, "the guest reboots");
	at = wait_text(at, "\"type\":\"forwarding\"");	/* after its snapshot */
	for (;;) {
		scoped_free char *info = ask("/v1/info");

		if (strstr(info, "\"bootId\":\"boot-2\""))
			break;
		assert_true(clock_mono_ms() < until);
		usleep(20 * 1000);
	}
	stop_in_order();
}

static void test_agent_failed_script_is_told(void **state)
{
	start_agent();
	wait_text(0, "\"name\":\"guest up\",\"state\":\"done\"");
	command("f");
	wait_text(0, "\"running\":true");
	assert_true(story_has("provisioning: system/00000000 failed"));
	assert_true(story_has("1 script failed"));
	stop_in_order();
}

static void test_agent_no_login_is_degraded(void **state)
{
	fake_ssh("refuse", true);
	waits.ssh_ms = 1000;
	start_agent();
	wait_text(0, "\"name\":\"guest up\",\"state\":\"done\"");
	command("sb");
	wait_text(0, "\"degraded\":true");
	assert_true(story_has("Permission denied (publickey)"));
	assert_true(story_has("\"running\":true"));	/* the VM is left up */
	stop_in_order();
}

static void test_agent_guest_never_up_is_degraded(void **state)
{
	plan.silent = plan.no_sshd = true;
	waits.guest_up_ms = 500;
	scoped_free char *log = xasprintf("%s/serial.log", dir);
	write_file(log, "Booting\r\nKernel panic - not syncing: \x1b[31mVFS\r\n");
	start_agent();
	wait_text(0, "\"degraded\":true");
	assert_true(story_has("Kernel panic - not syncing"));
	assert_false(story_has("\"name\":\"ssh\""));
	stop_in_order();
}

static void test_agent_probe_fails_is_degraded(void **state)
{
	yaml = "images:\n- location: /nowhere.img\n"
	       "probes:\n- description: docker\n  script: |\n    #!/bin/sh\n    exit 7\n"
	       "  hint: see the docs\n"
	       "- script: |\n    #!/bin/sh\n    exit 0\n";
	waits.probe_ms = 700;
	start_agent();
	wait_text(0, "\"name\":\"guest up\",\"state\":\"done\"");
	command("sb");
	wait_text(0, "\"degraded\":true");
	assert_true(story_has("1/2 docker"));
	assert_true(story_has("exit 7 (hint: see the docs)"));
	stop_in_order();
}

static void kill_agent(void)
{
	kill(ha.pid, SIGKILL);
	assert_int_equal(wait_exit(), 128 + SIGKILL);
}

static void write_marker(const char *name)
{
	scoped_free char *path = xasprintf("%s/%s", ssh_dir, name);

	write_file(path, "iid-mock\n");
}

/* No word on the serial port: markers over ssh, the agent's socket through it. */
static void test_agent_lima_agent_over_ssh(void **state)
{
	plan.silent = true;
	waits.no_agent_ms = 100;
	start_agent();
	wait_text(0, "sshd answers, no word from the guest agent yet");
	wait_text(0, "\"name\":\"ssh\",\"state\":\"started\"");
	command("u");
	assert_false(story_has("\"name\":\"ssh\",\"state\":\"done\""));
	write_marker("lima-ssh-ready");
	wait_text(0, "\"name\":\"ssh\",\"state\":\"done\"");
	write_marker("lima-boot-done");
	wait_text(0, "\"running\":true");
	assert_false(story_has("degraded"));
	wait_text(0, "\"type\":\"forwarding\"");
	scoped_free char *info = ask("/v1/info");
	assert_non_null(strstr(info, "\"link\":\"ssh\""));
	stop_in_order();
}

/* The master of the one that was killed has that forward already. */
static void test_agent_lima_agent_over_ssh_outlives_it(void **state)
{
	scoped_free char *qemu_pid = xasprintf("%s/qemu.pid", dir);
	scoped_free char *pid_text = xasprintf("%d\n", (int)getpid());

	plan.silent = true;
	waits.no_agent_ms = 100;
	start_agent();
	command("u");
	write_marker("lima-ssh-ready");
	write_marker("lima-boot-done");
	wait_text(0, "\"type\":\"forwarding\"");
	kill_agent();
	assert_true(in_dir("ssh.sock"));
	write_file(qemu_pid, pid_text);
	plan.runs_already = true;
	start_agent();
	command("u");
	wait_text(0, "\"type\":\"forwarding\"");
	stop_in_order();
}

static void test_agent_plain(void **state)
{
	yaml = "plain: true\nimages:\n- location: /nowhere.img\n";
	plan.silent = true;
	start_agent();
	wait_text(0, "\"running\":true");
	assert_true(story_has("\"name\":\"ssh\",\"state\":\"done\""));
	assert_false(story_has("provision") || story_has("forwards") || story_has("degraded"));
	stop_in_order();
}

static void test_agent_second_one_is_refused(void **state)
{
	int events_fd, command_fd, status;
	pid_t first;

	start_to_running();
	first = ha.pid;
	events_fd = ha.events_fd;
	command_fd = ha.command_fd;
	start_agent();
	assert_int_equal(wait_exit(), 2);
	assert_int_equal(ha.story.len, 0);	/* the log is the first one's */
	assert_int_equal(pid_file_read(pid_file, NULL), first);
	assert_true(path_exists(sock_path));
	kill(first, SIGTERM);
	assert_int_equal(waitpid(first, &status, 0), first);
	close(events_fd);
	close(command_fd);
}

static void test_agent_killed_and_adopted(void **state)
{
	scoped_free char *qemu_pid = xasprintf("%s/qemu.pid", dir);
	scoped_free char *pid_text = xasprintf("%d\n", (int)getpid());
	uint16_t port;

	start_to_running();
	port = ssh_config_port(dir);
	kill(ha.pid, SIGKILL);
	assert_int_equal(wait_exit(), 128 + SIGKILL);
	write_file(qemu_pid, pid_text);	/* QEMU outlived it */
	plan.runs_already = true;
	start_agent();
	wait_text(0, "\"running\":true");
	assert_true(story_has("ran already"));
	assert_false(story_has("\"name\":\"seed\""));
	assert_int_equal(ssh_config_port(dir), port);
	assert_true(story_has("\"type\":\"forwarding\""));
	stop_in_order();
	/* a pid file that names no VM of ours */
	plan.runs_already = false;
	start_to_running();
	assert_true(story_has("\"name\":\"seed\",\"state\":\"done\""));
	stop_in_order();
}

static bool rules_say(const char *text)
{
	scoped_free char *rules = ask("/v1/rules");

	return strstr(rules, text);
}

/* Until it begins with @text. */
static void wait_file(const char *name, const char *text)
{
	scoped_free char *path = xasprintf("%s/%s", dir, name);
	uint64_t until = clock_mono_ms() + WAIT_MS;

	for (;; usleep(2000)) {
		scoped_buf struct buf b = { 0 };
		struct error err = ERROR_NONE;

		if (path_read_file(path, 65536, &b, &err) == 0 &&
		    strncmp(buf_str(&b), text, strlen(text)) == 0)
			return;
		if (clock_mono_ms() > until)
			fail_msg("%s never said `%s` but `%s`", name, text, buf_str(&b));
	}
}

/* Rules that were added belong to the machine that runs: they outlive a host agent,
 * but not the machine. */
static void test_agent_live_rules_outlive_it(void **state)
{
	static const char body[] = "[{\"guestPort\":7001,\"hostPort\":7101},"
				   "{\"guestPort\":7002,\"proto\":\"udp\"}]";
	scoped_free char *qemu_pid = xasprintf("%s/qemu.pid", dir);
	scoped_free char *pid_text = xasprintf("%d\n", (int)getpid());

	start_to_running();
	free(ask_with("POST", "/v1/ports", "{\"guestPort\":7000,\"ignore\":true}"));
	free(ask_with("POST", "/v1/ports", body));
	free(ask_with("DELETE", "/v1/ports", "{\"id\":1}"));
	wait_file("live-rules", "2 {\"guestPort\":7002,\"proto\":\"udp\"}\n"
				"3 {\"guestPort\":7001,\"hostPort\":7101}\n");
	kill_agent();
	write_file(qemu_pid, pid_text);	/* QEMU outlived it */
	plan.runs_already = true;
	start_agent();
	wait_text(0, "\"running\":true");
	assert_true(rules_say("\"id\":3,\"origin\":\"live\""));
	assert_true(rules_say("\"hostPortRange\":[7101,7101]"));
	assert_true(rules_say("\"id\":2,\"origin\":\"live\""));
	assert_false(rules_say("\"guestPortRange\":[7000,7000]"));
	stop_in_order();
	assert_false(in_dir("live-rules"));
	/* a host agent that was killed together with its machine */
	write_file(qemu_pid, "");
	plan.runs_already = false;
	start_to_running();
	free(ask_with("POST", "/v1/ports", body));
	wait_file("live-rules", "1 {\"guestPort\":7002");
	kill_agent();
	start_to_running();
	assert_false(in_dir("live-rules"));
	assert_false(rules_say("7101"));
	stop_in_order();
}

/* What could not be kept for the next host agent is told at once. */
static void test_agent_live_rule_of_any_length(void **state)
{
	scoped_free char *longest = xasprintf("{\"guestSocket\":\"/run/%05000d\","
					      "\"hostSocket\":\"%s/x.sock\"}", 0, dir);
	scoped_free char *answer = NULL;

	start_to_running();
	answer = ask_with("POST", "/v1/ports", longest);
	assert_non_null(strstr(answer, " 413 "));
	assert_non_null(strstr(answer, "4096 are possible"));
	assert_false(rules_say("x.sock"));
	stop_in_order();
}

/* Lima's switch counts for rules of a running instance as for those of the file. */
static void test_agent_live_rules_take_the_lane_asked_for(void **state)
{
	setenv("LIMA_SSH_PORT_FORWARDER", "true", 1);
	start_to_running();
	unsetenv("LIMA_SSH_PORT_FORWARDER");
	free(ask_with("POST", "/v1/ports", "{\"guestPort\":7001}"));
	assert_true(rules_say("\"lane\":\"ssh\""));
	free(ask_with("POST", "/v1/ports", "{\"guestPort\":7002,\"lane\":\"grpc\"}"));
	assert_true(rules_say("\"lane\":\"grpc\""));
	stop_in_order();
}

/* Until the master is gone and the agent, whose child it is, knows. */
static void lose_master(void)
{
	scoped_free char *path = xasprintf("%s/master.pid", ssh_dir);
	uint64_t until = clock_mono_ms() + WAIT_MS;
	pid_t pid = pid_file_read(path, NULL);

	assert_true(pid > 0);
	fake_ssh("drop", true);
	while (kill(pid, 0) == 0 && clock_mono_ms() < until)
		usleep(2000);
	assert_false(in_dir("ssh.sock"));
	free(ask("/v1/info"));
}

/* Only this rule wants ssh, whose connection was lost before. */
static void test_agent_live_rule_of_a_socket_asks_for_ssh(void **state)
{
	scoped_free char *body = xasprintf("{\"guestSocket\":\"/run/x.sock\",\"hostPort\":%u}",
					   plan.guest_port + 1);
	scoped_free char *want = xasprintf("\"forwarding\",\"protocol\":\"tcp\","
					   "\"guestAddr\":\"/run/x.sock\","
					   "\"hostAddr\":\"127.0.0.1:%u\"", plan.guest_port + 1);
	size_t at = start_to_running();

	lose_master();
	free(ask_with("POST", "/v1/ports", body));
	wait_text(at, want);
	assert_true(in_dir("ssh.sock"));
	stop_in_order();
}

/* The played machine has no vsock: nobody is let wait for it. */
static void test_agent_live_rule_for_a_lane_that_never_comes(void **state)
{
	scoped_free char *answer = NULL, *udp = NULL;

	start_to_running();
	answer = ask_with("POST", "/v1/ports", "{\"guestPort\":7001,\"lane\":\"vsock\"}");
	assert_non_null(strstr(answer, "422"));
	assert_non_null(strstr(answer, "without a vsock device"));
	assert_false(rules_say("7001"));
	udp = ask_with("POST", "/v1/ports", "{\"guestPort\":7001,\"lane\":\"vsock\",\"proto\":\"udp\"}");
	assert_non_null(strstr(udp, "201"));
	stop_in_order();
}

static void test_agent_broken_yaml(void **state)
{
	yaml = "images: 3\n";
	start_agent();
	assert_int_equal(wait_exit(), 1);
	assert_true(story_has("\"exiting\":true"));
	assert_true(story_has("lima.yaml"));
	assert_clean();
}

/* --- around each --------------------------------------------------------- */

/* Below the range from which other programs' connections get theirs
 * (ip_local_port_range), since it is taken a while after it was looked for. */
static uint16_t two_free_ports(void)
{
	enum { FIRST = 20000, PORTS = 12000, STEP = 7 };
	static unsigned at;
	struct error err = ERROR_NONE;
	uint16_t port;

	if (!at)
		at = (unsigned)getpid();
	for (int tries = 0; tries < PORTS; tries++) {
		scoped_fd int fd = -1, next = -1;
		uint16_t wanted = (uint16_t)(FIRST + (at += STEP) % PORTS);

		if (ssh_hold_port(wanted, true, &port, &fd, &err) == 0 &&
		    ssh_hold_port((uint16_t)(wanted + 1), true, &port, &next, &err) == 0)
			return wanted;
	}
	fail_msg("no two ports are free");
	return 0;
}

static int setup(void **state)
{
	struct error err = ERROR_NONE;

	yaml = "images:\n- location: /nowhere.img\n";
	plan = (struct mock_vm_plan){ .guest_port = two_free_ports() };
	waits = (struct agent_waits){ .guest_up_ms = WAIT_MS, .ssh_ms = WAIT_MS,
				      .ports_ms = WAIT_MS, .no_agent_ms = WAIT_MS };
	if (path_remove_tree(dir, &err) < 0 || path_remove_tree(ssh_dir, &err) < 0 ||
	    path_mkdir_all(dir, 0700, &err) < 0 || path_mkdir_all(ssh_dir, 0700, &err) < 0)
		return -1;
	return 0;
}

static int teardown(void **state)
{
	if (ha.pid > 0) {
		kill(ha.pid, SIGKILL);
		waitpid(ha.pid, NULL, 0);
		ha.pid = 0;
	}
	return 0;
}

static int make_home(void **state)
{
	if (!mkdtemp(home))
		return -1;
	snprintf(dir, sizeof(dir), "%s/vm", home);
	snprintf(ssh_dir, sizeof(ssh_dir), "%s/ssh", home);
	snprintf(pid_file, sizeof(pid_file), "%s/ha.pid", dir);
	snprintf(sock_path, sizeof(sock_path), "%s/ha.sock", dir);
	setenv("SSH", MOCK_SSH, 1);
	setenv("FAKE_SSH_DIR", ssh_dir, 1);
	setenv("HOME", home, 1);
	return 0;
}

static int remove_home(void **state)
{
	buf_done(&ha.pending);
	buf_done(&ha.story);
	return path_remove_tree(home, &(struct error){ 0 });
}

#define AGENT_TEST(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		AGENT_TEST(test_agent_start_run_stop),
		AGENT_TEST(test_agent_start_fails),
		AGENT_TEST(test_agent_seed_fails),
		AGENT_TEST(test_agent_sigterm_at_each_step),
		AGENT_TEST(test_agent_second_signal_forces),
		AGENT_TEST(test_agent_vm_dies),
		AGENT_TEST(test_agent_vm_dies_while_starting),
		AGENT_TEST(test_agent_guest_powers_off),
		AGENT_TEST(test_agent_link_lost_and_back),
		AGENT_TEST(test_agent_guest_reboots),
		AGENT_TEST(test_agent_failed_script_is_told),
		AGENT_TEST(test_agent_no_login_is_degraded),
		AGENT_TEST(test_agent_guest_never_up_is_degraded),
		AGENT_TEST(test_agent_probe_fails_is_degraded),
		AGENT_TEST(test_agent_lima_agent_over_ssh),
		AGENT_TEST(test_agent_lima_agent_over_ssh_outlives_it),
		AGENT_TEST(test_agent_plain),
		AGENT_TEST(test_agent_second_one_is_refused),
		AGENT_TEST(test_agent_killed_and_adopted),
		AGENT_TEST(test_agent_live_rules_outlive_it),
		AGENT_TEST(test_agent_live_rule_of_any_length),
		AGENT_TEST(test_agent_live_rules_take_the_lane_asked_for),
		AGENT_TEST(test_agent_live_rule_of_a_socket_asks_for_ssh),
		AGENT_TEST(test_agent_live_rule_for_a_lane_that_never_comes),
		AGENT_TEST(test_agent_broken_yaml),
	};

	return cmocka_run_group_tests(tests, make_home, remove_home);
}
