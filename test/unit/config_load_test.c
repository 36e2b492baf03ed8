/* What arrives in struct config; the JSON side is in test/config. */
#include <arpa/inet.h>
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "lib/base/mem.h"
#include "lib/config/config.h"

#define HEAD "arch: x86_64\nimages: [{location: /a.img}]\n"

static const struct config_context ctx = { .instance = "t.x", .instance_dir = "/l/t",
					   .lima_home = "/nonexistent" };

static struct config *load(const char *text)
{
	struct config *c = NULL;
	struct error err = ERROR_NONE;

	if (config_load(&ctx, "t.yaml", text, strlen(text), NULL, &c, &err) < 0)
		fail_msg("%s", err.msg);
	return c;
}

static void assert_ip(const struct in6_addr *ip, const char *want)
{
	char text[INET6_ADDRSTRLEN];

	inet_ntop(AF_INET6, ip, text, sizeof(text));
	assert_string_equal(text, want);
}

static void test_config_load_defaults(void **state)
{
	scoped_config struct config *c = load(HEAD);

	assert_string_equal(c->vm_type, "qemu");
	assert_string_equal(c->os, "Linux");
	assert_null(c->minimum_lima_version);
	assert_int_equal(c->arch, ARCH_X86_64);
	assert_int_equal(c->n_images, 1);
	assert_string_equal(c->images[0].file.location, "/a.img");
	assert_null(c->images[0].file.digest);
	assert_null(c->images[0].kernel.location);
	assert_true(c->cpus >= 1 && c->cpus <= 4);
	assert_true(c->memory_bytes >= 16 << 20 && c->memory_bytes <= 4ULL << 30);
	assert_int_equal(c->disk_bytes, 100ULL << 30);
	assert_true(c->user.uid > 0);
	assert_true(c->user.passwordless_sudo);
	assert_string_equal(c->user.shell, "/bin/bash");
	assert_int_equal(c->user.home[0], '/');
	assert_non_null(strstr(c->user.home, c->user.name));
	assert_int_equal(c->ssh.local_port, 0);
	assert_true(c->host_resolver.enabled);
	assert_int_equal(c->dns.len, 0);
	assert_int_equal(c->n_port_forwards + c->n_mounts + c->n_provision + c->n_probes, 0);
	assert_string_equal(c->message, "");
	assert_string_equal(c->guest_install_prefix, "/usr/local");
	assert_true(c->propagate_proxy_env);
	assert_false(c->plain);
	assert_null(c->qemu_cpu_type);
	assert_null(c->qemu_minimum_version);
	assert_non_null(c->timezone);
}

static void test_config_load_port_forwards(void **state)
{
	scoped_config struct config *c = load(
		HEAD "portForwards:\n- guestPort: 80\n  hostPort: 8080\n  proto: udp\n"
		"- guestPortRange: [10, 19]\n  hostPortRange: [110, 119]\n  hostIP: \"::1\"\n"
		"- guestIP: 0.0.0.0\n  static: true\n  guestPort: 5\n"
		"- {guestIP: 10.0.0.1, ignore: true}\n"
		"- {guestSocket: \"/run/{{.Hostname}}.sock\", hostSocket: x.sock}\n"
		"- {guestPort: 7, hostSocket: /tmp/y.sock}\n");
	const struct config_port_forward *p = c->port_forwards;

	assert_int_equal(c->n_port_forwards, 6);
	assert_int_equal(p[0].guest_port[0], 80);
	assert_int_equal(p[0].guest_port[1], 80);
	assert_int_equal(p[0].host_port[0], 8080);
	assert_int_equal(p[0].proto, L4_UDP);
	assert_ip(&p[0].guest_ip, "::ffff:127.0.0.1");
	assert_ip(&p[0].host_ip, "::ffff:127.0.0.1");
	assert_false(p[0].guest_ip_must_be_zero);
	assert_null(p[0].guest_socket);
	assert_int_equal(p[1].host_port[1], 119);
	assert_int_equal(p[1].proto, L4_ANY);
	assert_ip(&p[1].host_ip, "::1");
	assert_true(p[2].guest_ip_must_be_zero);
	assert_true(p[2].is_static);
	assert_true(p[3].ignore);
	assert_int_equal(p[3].guest_port[0], 1);
	assert_int_equal(p[3].guest_port[1], 65535);
	assert_string_equal(p[4].guest_socket, "/run/lima-t-x.sock");
	assert_string_equal(p[4].host_socket, "/l/t/sock/x.sock");
	assert_int_equal(p[4].guest_port[0], 0);
	assert_int_equal(p[5].host_port[0], 0);
	assert_string_equal(p[5].host_socket, "/tmp/y.sock");
}

static void test_config_load_port_forwarding(void **state)
{
	scoped_config struct config *d = load(HEAD "portForwards: [{guestPort: 80}]\n");
	scoped_config struct config *c = load(
		HEAD "portForwarding: {lane: ssh, conflict: remap, privilegedPorts: true}\n"
		"portForwards:\n- {guestPortRange: [80, 89], hostPort: auto}\n"
		"- {guestPort: 5, lane: direct}\n- {guestPort: 6, lane: auto}\n");
	const struct config_port_forward *p = c->port_forwards;

	assert_int_equal(d->port_forwarding.lane, CONFIG_LANE_AUTO);
	assert_int_equal(d->port_forwarding.conflict, CONFLICT_FIRST);
	assert_false(d->port_forwarding.privileged_ports);
	assert_int_equal(d->port_forwards[0].lane, CONFIG_LANE_AUTO);
	assert_false(d->port_forwards[0].host_port_auto);
	assert_int_equal(c->port_forwarding.lane, CONFIG_LANE_SSH);
	assert_int_equal(c->port_forwarding.conflict, CONFLICT_REMAP);
	assert_true(c->port_forwarding.privileged_ports);
	assert_true(p[0].host_port_auto);
	assert_int_equal(p[0].host_port[0], 80);
	assert_int_equal(p[0].host_port[1], 89);
	assert_int_equal(p[0].lane, CONFIG_LANE_SSH);
	assert_int_equal(p[1].lane, CONFIG_LANE_DIRECT);
	assert_int_equal(p[2].lane, CONFIG_LANE_AUTO);
}

static char *rule_error(const struct config *c, const char *text)
{
	struct config_port_forward *rule = NULL;
	struct error err = ERROR_NONE;

	if (config_rule_parse(&ctx, c, text, strlen(text), &rule, &err) == 0) {
		config_rule_free(rule);
		return xstrdup("");
	}
	assert_null(rule);
	return xstrdup(err.msg);
}

static void test_config_rule_as_in_the_file(void **state)
{
	scoped_config struct config *c = load(
		HEAD "portForwarding: {lane: grpc}\nuser: {name: ada}\nparam: {p: q}\n"
		"message: \"{{.Param.p}} {{.Dir}}\"\nportForwards: [{guestPort: 80}]\n");
	const char *text = "{\"guestPort\": 81, \"hostPort\": 8081, \"proto\": \"tcp\"}";
	struct config_port_forward *rule;
	struct error err = ERROR_NONE;

	assert_int_equal(config_rule_parse(&ctx, c, text, strlen(text), &rule, &err), 0);
	assert_int_equal(rule->guest_port[0], 81);
	assert_int_equal(rule->host_port[1], 8081);
	assert_ip(&rule->host_ip, "::ffff:127.0.0.1");
	assert_int_equal(rule->proto, L4_TCP);
	assert_int_equal(rule->lane, CONFIG_LANE_GRPC);
	config_rule_free(rule);
	text = "guestSocket: /run/{{.User}}.sock\nhostSocket: a.sock\n";
	assert_int_equal(config_rule_parse(&ctx, c, text, strlen(text), &rule, &err), 0);
	assert_string_equal(rule->guest_socket, "/run/ada.sock");
	assert_string_equal(rule->host_socket, "/l/t/sock/a.sock");
	config_rule_free(rule);
	config_rule_free(NULL);
}

static void test_config_rule_refused(void **state)
{
	static const struct {
		const char *text, *want;
	} rows[] = {
		{ "{guestPort: 70000}", "guestPort: 70000 is not a port (1–65535)" },
		{ "{guestPort: 22}", "guestPort: 22 is the port of ssh and cannot be forwarded" },
		{ "{guestPort: 80, hostprt: 81}", "hostprt: unknown key, ignored; did you mean hostPort?" },
		{ "{guestPort: 80, hostPortRange: [1, 2]}",
		  "hostPortRange: 2 host ports for 1 guest ports" },
		{ "80", "a rule is a map of keys and values, such as {guestPort: 80, hostPort: 8080}" },
		{ "", "a rule is a map of keys and values, such as {guestPort: 80, hostPort: 8080}" },
	};
	scoped_config struct config *c = load(HEAD);
	scoped_config struct config *plain = load(HEAD "plain: true\n");

	for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
		scoped_free char *got = rule_error(c, rows[i].text);

		assert_string_equal(got, rows[i].want);
	}
	scoped_free char *syntax = rule_error(c, "{guestPort: 80");
	scoped_free char *dynamic = rule_error(plain, "{guestPort: 80}");
	scoped_free char *fixed = rule_error(plain, "{guestPort: 80, static: true}");
	assert_non_null(strstr(syntax, "rule:"));
	assert_non_null(strstr(dynamic, "static: plain mode has no agent"));
	assert_string_equal(fixed, "");
}

static void test_config_load_lists_and_maps(void **state)
{
	scoped_config struct config *c = load(
		HEAD "provision:\n- {mode: yq, path: /x, expression: .a = 1}\n- script: s\n"
		"- {mode: data, path: /d, content: \"{{.Param.p}}\"}\n"
		"- {mode: dependency, script: d, skipDefaultDependencyResolution: true}\n"
		"probes: [{script: \"#!x\"}]\nenv: {A: 1}\nparam: {p: v}\n"
		"mounts: [{location: /srv, mountPoint: /mnt/srv, writable: true}]\n"
		"hostResolver: {enabled: false, hosts: {h: 10.0.0.1}}\ndns: [1.1.1.1, '::1']\n"
		"vmOpts: {qemu: {cpuType: {x86_64: Haswell, aarch64: max}, minimumVersion: 7.0.0}}\n"
		"memory: 2GiB\n");

	assert_int_equal(c->n_provision, 3);	/* yq has no place there, yet */
	assert_int_equal(c->provision[0].mode, PROVISION_SYSTEM);
	assert_int_equal(c->provision[1].mode, PROVISION_DATA);
	assert_string_equal(c->provision[1].content, "v");
	assert_string_equal(c->provision[1].permissions, "644");
	assert_true(c->provision[1].overwrite);
	assert_int_equal(c->provision[2].mode, PROVISION_DEPENDENCY);
	assert_true(c->provision[2].skip_default_dependency_resolution);
	assert_string_equal(c->probes[0].description, "user probe 1/1");
	assert_string_equal(config_map_get(&c->env, "A"), "1");
	assert_null(config_map_get(&c->env, "B"));
	assert_string_equal(config_map_get(&c->param, "p"), "v");
	assert_string_equal(c->mounts[0].mount_point, "/mnt/srv");
	assert_true(c->mounts[0].writable);
	assert_string_equal(config_map_get(&c->host_resolver.hosts, "h"), "10.0.0.1");
	assert_int_equal(c->dns.len, 2);
	assert_string_equal(c->dns.items[1], "::1");
	assert_string_equal(c->qemu_cpu_type, "Haswell");
	assert_string_equal(c->qemu_minimum_version, "7.0.0");
	assert_int_equal(c->memory_bytes, 2ULL << 30);
}

static void test_config_load_error_counts(void **state)
{
	static const char text[] = HEAD "cpus: x\nmemory: y\ndisk: z\n";
	struct config_problems problems = { 0 };
	struct config *c = NULL;
	struct error err = ERROR_NONE;

	assert_int_equal(config_load(&ctx, "t.yaml", text, strlen(text), &problems, &c, &err),
			 -EINVAL);
	assert_null(c);
	assert_string_equal(err.msg, "t.yaml:3:1: cpus: \"x\" is not a whole number (and 2 more)");
	assert_int_equal(problems.errors.len, 3);
	config_problems_done(&problems);
}

/* Control characters of a template never reach the terminal. */
static void test_config_load_escapes_what_it_shows(void **state)
{
	static const char text[] = HEAD "cpus: \"\\e[31mred\\n\"\n";
	struct config *c = NULL;
	struct error err = ERROR_NONE;

	assert_int_equal(config_load(&ctx, "t.yaml", text, strlen(text), NULL, &c, &err), -EINVAL);
	assert_null(strchr(err.msg, '\x1b'));
	assert_null(strchr(err.msg, '\n'));
}

static void test_config_load_hostile_texts(void **state)
{
	static const char *const texts[] = {
		"\xff\xfe", "a: \x01", "\xef\xbb\xbf" HEAD "cpus: q", "%YAML 9.9\n---\na: 1", "? [a]\n: b",
		"a: *nope", "<<: 5", "<<: [[1]]", "{", "]", "- - - -", "!!binary x", "--- |\n x",
		"env: {\"a\\0b\": 1}", "a: \"x\\0y\"", "provision: [{script: !!binary AAAA}]",
		"provision: [{script: !!binary '***'}]", "images: {a: {b: {c: []}}}",
	};

	for (size_t i = 0; i < ARRAY_SIZE(texts); i++) {
		struct config *c = NULL;
		struct error err = ERROR_NONE;

		assert_true(config_load(&ctx, "t.yaml", texts[i], strlen(texts[i]), NULL, &c, &err) < 0);
		assert_null(c);
		assert_true(err.msg[0]);
	}
}

static void test_config_load_too_large(void **state)
{
	size_t len = (4 << 20) + 1;
	scoped_free char *text = xmalloc(len + 1);
	struct config *c = NULL;
	struct error err = ERROR_NONE;

	memset(text, '#', len);
	text[len] = 0;
	assert_true(config_load(&ctx, "t.yaml", text, len, NULL, &c, &err) < 0);
	assert_string_equal(err.msg, "t.yaml: larger than 4 MiB");
}

static void test_arch_names_round_trip(void **state)
{
	enum arch got;

	for (int i = 0; i < ARCH_COUNT; i++) {
		assert_true(arch_parse(arch_name((enum arch)i), &got));
		assert_int_equal(got, i);
	}
	assert_false(arch_parse("amd64", &got));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_config_load_defaults),
		cmocka_unit_test(test_config_load_port_forwards),
		cmocka_unit_test(test_config_load_port_forwarding),
		cmocka_unit_test(test_config_rule_as_in_the_file),
		cmocka_unit_test(test_config_rule_refused),
		cmocka_unit_test(test_config_load_lists_and_maps),
		cmocka_unit_test(test_config_load_error_counts),
		cmocka_unit_test(test_config_load_escapes_what_it_shows),
		cmocka_unit_test(test_config_load_hostile_texts),
		cmocka_unit_test(test_config_load_too_large),
		cmocka_unit_test(test_arch_names_round_trip),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
