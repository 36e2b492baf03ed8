#include <archive.h>
#include <archive_entry.h>
#include <jansson.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "hostagent/cidata.h"
#include "lib/base/child.h"
#include "lib/base/mem.h"
#include "lib/base/path.h"

/* What a seed holds, read back from the image. */
struct file {
	char *path, *text;
	size_t len;
	mode_t mode;
};

struct world {
	char dir[64];
	struct config config;
	struct config_kv env[4], param[2], hosts[4];
	struct config_provision provision[6];
	struct strv keys;
	struct cidata_spec spec;
	struct file *files;
	size_t n_files;
};

#define AWKWARD "a 'b' \"c\" $(d) `e` \\ ä: {x}\ttab # no comment"

static void fill_config(struct world *w)
{
	struct config *c = &w->config;

	c->vm_type = "qemu";
	c->user.name = "dev";
	c->user.comment = "Dev: \"Eloper\"\nroot";
	c->user.home = "/home/dev.guest";
	c->user.shell = "/bin/bash";
	c->user.uid = 1000;
	c->user.passwordless_sudo = true;
	c->timezone = "Europe/Berlin";
	c->guest_install_prefix = "/usr/local";
	w->env[0] = (struct config_kv){ "GREETING", AWKWARD };
	c->env = (struct config_map){ w->env, 1 };
	w->param[0] = (struct config_kv){ "version", AWKWARD };
	c->param = (struct config_map){ w->param, 1 };
	w->provision[0] = (struct config_provision){ .mode = PROVISION_SYSTEM,
						     .script = "#!/bin/sh\necho '" AWKWARD "'\n" };
	w->provision[1] = (struct config_provision){ .mode = PROVISION_DATA, .path = "/etc/x y",
						     .content = "a\nb", .owner = "root:root",
						     .permissions = "644", .overwrite = true };
	w->provision[2] = (struct config_provision){ .mode = PROVISION_BOOT, .script = "true" };
	c->provision = w->provision;
	c->n_provision = 3;
}

static int setup(void **state)
{
	static const uint8_t secret[CIDATA_SECRET_BYTES] = { 0x00, 0x11, [15] = 0xff };
	struct world *w = xnew(struct world);

	strcpy(w->dir, "/tmp/cidata-test.XXXXXX");
	assert_non_null(mkdtemp(w->dir));
	fill_config(w);
	strv_add(&w->keys, "ssh-ed25519 AAAA one");
	strv_add(&w->keys, "ssh-ed25519 BBBB \"two\": #");
	w->spec = (struct cidata_spec){
		.name = "my.vm", .dir = w->dir, .hostname = "lima-my-vm", .config = &w->config,
		.ssh_public_keys = &w->keys, .mac = "52:55:55:01:02:03", .secret = secret,
	};
	for (const char *const *p = (const char *const[]){ "http_proxy", "https_proxy", "ftp_proxy",
		     "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "NO_PROXY", NULL }; *p; p++)
		unsetenv(*p);
	*state = w;
	return 0;
}

static void forget_files(struct world *w)
{
	for (size_t i = 0; i < w->n_files; i++) {
		free(w->files[i].path);
		free(w->files[i].text);
	}
	free(w->files);
	w->files = NULL;
	w->n_files = 0;
}

static int teardown(void **state)
{
	struct world *w = *state;
	struct error err = { 0 };

	forget_files(w);
	strv_done(&w->keys);
	path_remove_tree(w->dir, &err);
	free(w);
	return 0;
}

static void read_entry(struct world *w, struct archive *a, struct archive_entry *e)
{
	size_t len = (size_t)archive_entry_size(e);
	struct file f = { .path = xstrdup(archive_entry_pathname(e)), .text = xcalloc(1, len + 1),
			  .len = len, .mode = archive_entry_perm(e) };

	assert_int_equal(archive_read_data(a, f.text, len), (la_ssize_t)len);
	w->files = xreallocarray(w->files, w->n_files + 1, sizeof(f));
	w->files[w->n_files++] = f;
}

static void write_and_read(struct world *w)
{
	struct error err = { 0 };
	scoped_free char *path = xasprintf("%s/cidata.iso", w->dir);
	struct archive *a = archive_read_new();
	struct archive_entry *e;

	forget_files(w);
	if (cidata_write(&w->spec, &err) < 0)
		fail_msg("%s", err.msg);
	archive_read_support_format_iso9660(a);
	assert_int_equal(archive_read_open_filename(a, path, 65536), ARCHIVE_OK);
	while (archive_read_next_header(a, &e) == ARCHIVE_OK)
		if (archive_entry_filetype(e) == AE_IFREG)
			read_entry(w, a, e);
	archive_read_free(a);
}

static const struct file *find(const struct world *w, const char *path)
{
	for (size_t i = 0; i < w->n_files; i++)
		if (streq(w->files[i].path, path))
			return &w->files[i];
	return NULL;
}

static const char *text(const struct world *w, const char *path)
{
	const struct file *f = find(w, path);

	if (!f)
		fail_msg("no %s in the seed", path);
	return f->text;
}

/* The value of KEY=… in one of the env files; caller frees. */
static char *value(const struct world *w, const char *path, const char *key)
{
	scoped_strv struct strv lines = { 0 };
	size_t len = strlen(key);
	const char *line;

	strv_split(&lines, text(w, path), "\n");
	strv_foreach(line, &lines)
		if (strncmp(line, key, len) == 0 && line[len] == '=')
			return xstrdup(line + len + 1);
	return NULL;
}

static void assert_value(const struct world *w, const char *path, const char *key, const char *want)
{
	scoped_free char *got = value(w, path, key);

	if (!got)
		fail_msg("no %s in %s", key, path);
	assert_string_equal(got, want);
}

static void test_cidata_files(void **state)
{
	struct world *w = *state;

	write_and_read(w);
	for (const char *const *p = (const char *const[]){
		     "user-data", "meta-data", "network-config", "boot.sh", "init.sh", "lib.sh",
		     "provision.data/00000001", "provision.boot/00000002",
		     "boot.Linux/25-guestagent.sh", "boot.essential.Linux/06-etc-hosts.sh", NULL }; *p; p++)
		assert_non_null(find(w, *p));
	assert_string_equal(text(w, "provision.system/00000000"), w->provision[0].script);
	assert_int_equal(find(w, "provision.system/00000000")->mode & 0111, 0111);
	assert_string_equal(text(w, "provision.data/00000001"), "a\nb");
	assert_string_equal(text(w, "authorized_keys"),
			    "ssh-ed25519 AAAA one\nssh-ed25519 BBBB \"two\": #\n");
	assert_null(find(w, "lima-guestagent"));
	assert_int_equal(find(w, "lima.env")->mode, 0600);
	assert_int_equal(find(w, "user-data")->mode, 0600);
}

static void test_cidata_env_values_stay_in_their_line(void **state)
{
	struct world *w = *state;

	write_and_read(w);
	assert_value(w, "lima.env", "LIMA_CIDATA_COMMENT", "Dev  \"Eloper\" root");
	assert_value(w, "lima.env", "LIMA_CIDATA_HOSTNAME", "lima-my-vm");
	assert_value(w, "lima.env", "LIMA_CIDATA_DATAFILE_00000001_PATH", "/etc/x y");
	assert_value(w, "lima.env", "LIMA_CIDATA_GA_SECRET", "001100000000000000000000000000ff");
	assert_value(w, "lima.env", "LIMA_CIDATA_VIRTIO_PORT", "io.lima-vm.guest_agent.0");
	assert_value(w, "param.env", "PARAM_version", AWKWARD);
	assert_value(w, "etc_environment", "GREETING", AWKWARD);
}

/* Runs @script, which has lib.sh's path as $1 and @arg as $2, with each shell that may
 * do so in a guest; all have to print @want. */
static void in_guest_shells(struct world *w, const char *script, const char *arg, const char *want)
{
	static const char *const shells[][2] = { { "dash", NULL }, { "bash", NULL },
						 { "busybox", "sh" } };
	scoped_free char *lib = xasprintf("%s/lib.sh", w->dir);
	struct error err = { 0 };

	assert_int_equal(path_write_file(lib, text(w, "lib.sh"), strlen(text(w, "lib.sh")), 0600,
					 &err), 0);
	for (size_t i = 0; i < ARRAY_SIZE(shells); i++) {
		const char *argv[8];
		size_t n = 0;
		scoped_free char *program = path_find_program(shells[i][0]);
		scoped_child_result struct child_result r = { 0 };
		struct child_spec spec = { .argv = argv };

		if (!program)
			continue;
		argv[n++] = shells[i][0];
		if (shells[i][1])
			argv[n++] = shells[i][1];
		memcpy(&argv[n], ((const char *[]){ "-c", script, "x", lib, arg, NULL }),
		       6 * sizeof(*argv));
		if (child_run_ok(&spec, &r, &err) < 0)
			fail_msg("%s: %s", shells[i][0], err.msg);
		assert_string_equal(buf_str(&r.out), want);
	}
}

/* Loads param.env as the guest does. */
static void test_cidata_shell_reads_values_back(void **state)
{
	struct world *w = *state;
	struct error err = { 0 };
	scoped_free char *env = xasprintf("%s/param.env", w->dir);

	write_and_read(w);
	assert_int_equal(path_write_file(env, text(w, "param.env"), strlen(text(w, "param.env")),
					 0600, &err), 0);
	in_guest_shells(w, ". \"$1\"; load \"$2\"; printf %s \"$PARAM_version\"", env, AWKWARD);
}

/* /dev/full stands for the guest's full disk: what a file held stays, nothing half
 * written takes its place, and the caller is told. */
static void test_cidata_full_disk_keeps_files(void **state)
{
	static const char script[] =
		". \"$1\"; exec 2>/dev/null; cd \"$2\"\n"
		"try() { echo old >f; chmod 0604 f; ln -sf /dev/full f.lima-new; echo new | \"$@\"\n"
		"	echo \"$1 $? $(cat f) $(ls | wc -l)\"; }\n"
		"mkdir -p full && cd full\n"
		"try put f 0600; try put f; try put_text f new; try put_changed f 0644; try put_between f\n";
	struct world *w = *state;

	write_and_read(w);
	in_guest_shells(w, script, w->dir,
			"put 1 old 1\nput 1 old 1\nput_text 1 old 1\nput_changed 1 old 1\n"
			"put_between 1 old 1\n");
}

static void test_cidata_files_are_put_in_place(void **state)
{
	static const char script[] =
		". \"$1\"; cd \"$2\"; rm -rf put; mkdir put; cd put; umask 022\n"
		"echo a | put a 0640; echo b | put b; put_text c c; stat -c '%n %a %s' a b c\n"
		"echo a | put_changed a 0600; echo $?; echo aa | put_changed a 0600; echo $?\n"
		"printf 'mine\\n' >h; echo 1 | put_between h; echo 2 | put_between h\n"
		"tr '\\n' ' ' <h; ls | wc -l\n";
	struct world *w = *state;

	write_and_read(w);
	in_guest_shells(w, script, w->dir,
			"a 640 2\nb 644 2\nc 644 2\n1\n0\nmine #LIMA-START 2 #LIMA-END 4\n");
}

static void test_cidata_scripts_are_sh(void **state)
{
	struct world *w = *state;
	struct error err = { 0 };
	unsigned checked = 0;

	write_and_read(w);
	for (size_t i = 0; i < w->n_files; i++) {
		const struct file *f = &w->files[i];
		const char *argv[] = { "sh", "-n", NULL };
		struct child_spec spec = { .argv = argv, .input = f->text, .input_len = f->len };
		scoped_child_result struct child_result r = { 0 };

		if (f->len < 3 || !streq(f->path + strlen(f->path) - 3, ".sh"))
			continue;
		if (child_run_ok(&spec, &r, &err) < 0)
			fail_msg("%s: %s", f->path, err.msg);
		checked++;
	}
	assert_true(checked >= 12);
}

static void test_cidata_cloud_init_files(void **state)
{
	struct world *w = *state;
	const char *data;
	json_t *root, *user;

	w->config.user.comment = "x\"\nruncmd: [evil]";
	write_and_read(w);
	data = text(w, "user-data");
	assert_memory_equal(data, "#cloud-config\n", 14);
	root = json_loads(data + 14, 0, NULL);
	assert_non_null(root);
	user = json_array_get(json_object_get(root, "users"), 0);
	assert_string_equal(json_string_value(json_object_get(user, "gecos")),
			    "x\"\nruncmd: [evil]");
	assert_null(json_object_get(root, "runcmd"));
	assert_string_equal(json_string_value(json_array_get(
				    json_object_get(user, "ssh_authorized_keys"), 1)),
			    "ssh-ed25519 BBBB \"two\": #");
	assert_string_equal(json_string_value(json_object_get(json_object_get(root, "ssh_keys"),
							      "ed25519_private")),
			    text(w, "ssh_host_ed25519_key"));
	assert_non_null(json_object_get(root, "bootcmd"));
	json_decref(root);

	root = json_loads(text(w, "network-config"), 0, NULL);
	assert_non_null(root);
	assert_string_equal(json_string_value(json_object_get(json_object_get(json_object_get(
				    json_object_get(root, "ethernets"), "eth0"), "match"),
				    "macaddress")), "52:55:55:01:02:03");
	json_decref(root);
}

static void test_cidata_readable_copy_has_no_key(void **state)
{
	struct world *w = *state;
	scoped_free char *path = xasprintf("%s/cloud-config.yaml", w->dir);
	scoped_buf struct buf b = { 0 };
	struct error err = { 0 };

	write_and_read(w);
	assert_int_equal(path_read_file(path, 1 << 20, &b, &err), 0);
	assert_non_null(strstr(buf_str(&b), "ssh_authorized_keys"));
	assert_null(strstr(buf_str(&b), "PRIVATE KEY"));
}

static void test_cidata_same_input_same_sum_and_id(void **state)
{
	struct world *w = *state;
	scoped_free char *sum = NULL, *id = NULL, *meta = NULL, *other = NULL;

	write_and_read(w);
	sum = value(w, "lima.env", "LIMA_CIDATA_SEED_SUM");
	id = value(w, "lima.env", "LIMA_CIDATA_IID");
	meta = xstrdup(text(w, "meta-data"));
	assert_non_null(strstr(meta, id));

	/* Another secret and other scripts change nothing that is kept. */
	w->spec.secret = (const uint8_t[CIDATA_SECRET_BYTES]){ 9 };
	w->provision[0].script = "#!/bin/sh\nfalse\n";
	write_and_read(w);
	assert_value(w, "lima.env", "LIMA_CIDATA_SEED_SUM", sum);
	assert_value(w, "lima.env", "LIMA_CIDATA_IID", id);
	assert_string_equal(text(w, "meta-data"), meta);

	strv_add(&w->keys, "ssh-ed25519 CCCC");
	write_and_read(w);
	other = value(w, "lima.env", "LIMA_CIDATA_SEED_SUM");
	assert_string_not_equal(other, sum);
}

static void test_cidata_host_key_is_pinned(void **state)
{
	struct world *w = *state;
	scoped_free char *known = xasprintf("%s/ssh_known_hosts", w->dir);
	scoped_free char *key = xasprintf("%s/ssh_host_ed25519_key", w->dir);
	scoped_free char *want = NULL;
	scoped_buf struct buf b = { 0 };
	struct error err = { 0 };
	struct stat st;
	const char *pub;

	write_and_read(w);
	pub = text(w, "ssh_host_ed25519_key.pub");
	assert_memory_equal(pub, "ssh-ed25519 ", 12);
	assert_int_equal(path_read_file(known, 4096, &b, &err), 0);
	want = xasprintf("lima-my-vm %.*s\n", (int)strcspn(pub + 12, " \n") + 12, pub);
	assert_string_equal(buf_str(&b), want);
	assert_int_equal(stat(key, &st), 0);
	assert_int_equal(st.st_mode & 0777, 0600);
}

static void test_cidata_proxies(void **state)
{
	struct world *w = *state;

	w->config.propagate_proxy_env = true;
	w->env[1] = (struct config_kv){ "FTP_PROXY", "http://u:p@localhost:21/x" };
	w->config.env.len = 2;
	setenv("http_proxy", "http://127.0.0.1:3128", 1);
	setenv("HTTPS_PROXY", "http://[::1]:8080/", 1);
	setenv("no_proxy", "localhost,127.0.0.1", 1);
	write_and_read(w);
	assert_value(w, "etc_environment", "http_proxy", "http://192.168.5.2:3128");
	assert_value(w, "etc_environment", "HTTP_PROXY", "http://192.168.5.2:3128");
	assert_value(w, "etc_environment", "https_proxy", "http://192.168.5.2:8080/");
	assert_value(w, "etc_environment", "FTP_PROXY", "http://u:p@192.168.5.2:21/x");
	assert_value(w, "etc_environment", "no_proxy", "localhost,127.0.0.1");

	w->config.propagate_proxy_env = false;
	write_and_read(w);
	assert_null(value(w, "etc_environment", "http_proxy"));
}

static void test_cidata_hosts(void **state)
{
	struct world *w = *state;

	w->hosts[0] = (struct config_kv){ "db.example", "10.0.0.7" };
	w->hosts[1] = (struct config_kv){ "host.docker.internal", "host.lima.internal" };
	w->hosts[2] = (struct config_kv){ "loop", "loop" };
	w->hosts[3] = (struct config_kv){ "elsewhere", "example.com" };
	w->config.host_resolver.hosts = (struct config_map){ w->hosts, 4 };
	write_and_read(w);
	assert_string_equal(text(w, "etc_hosts"),
			    "127.0.1.1 lima-my-vm\n192.168.5.2 host.lima.internal\n"
			    "10.0.0.7 db.example\n192.168.5.2 host.docker.internal\n");
}

static void test_cidata_refuses_what_breaks_out(void **state)
{
	struct world *w = *state;
	struct error err = { 0 };

	w->env[0].value = "x\nLD_PRELOAD=/evil";
	assert_true(cidata_write(&w->spec, &err) < 0);
	assert_non_null(strstr(err.msg, "env.GREETING"));
	w->env[0].value = "x";
	w->config.user.name = "a ALL=(ALL) ALL";
	assert_true(cidata_write(&w->spec, &err) < 0);
	w->config.user.name = "dev";
	w->provision[1].path = "/x\ny";
	assert_true(cidata_write(&w->spec, &err) < 0);
	assert_non_null(strstr(err.msg, "provision[1]"));
}

static void test_cidata_guest_agent(void **state)
{
	struct world *w = *state;
	struct error err = { 0 };
	scoped_free char *agent = xasprintf("%s/agent", w->dir);

	assert_int_equal(path_write_file(agent, "ELF", 3, 0755, &err), 0);
	w->spec.guest_agent = agent;
	write_and_read(w);
	assert_string_equal(text(w, "lima-guestagent"), "ELF");
	assert_value(w, "lima.env", "LIMA_CIDATA_GUESTAGENT_SHA256",
		     "sha256:706abe3c90152075e656b661079730facf323f3ebccda7547ee1935c90845a09");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_cidata_files, setup, teardown),
		cmocka_unit_test_setup_teardown(test_cidata_env_values_stay_in_their_line, setup, teardown),
		cmocka_unit_test_setup_teardown(test_cidata_shell_reads_values_back, setup, teardown),
		cmocka_unit_test_setup_teardown(test_cidata_full_disk_keeps_files, setup, teardown),
		cmocka_unit_test_setup_teardown(test_cidata_files_are_put_in_place, setup, teardown),
		cmocka_unit_test_setup_teardown(test_cidata_scripts_are_sh, setup, teardown),
		cmocka_unit_test_setup_teardown(test_cidata_cloud_init_files, setup, teardown),
		cmocka_unit_test_setup_teardown(test_cidata_readable_copy_has_no_key, setup, teardown),
		cmocka_unit_test_setup_teardown(test_cidata_same_input_same_sum_and_id, setup, teardown),
		cmocka_unit_test_setup_teardown(test_cidata_host_key_is_pinned, setup, teardown),
		cmocka_unit_test_setup_teardown(test_cidata_proxies, setup, teardown),
		cmocka_unit_test_setup_teardown(test_cidata_hosts, setup, teardown),
		cmocka_unit_test_setup_teardown(test_cidata_refuses_what_breaks_out, setup, teardown),
		cmocka_unit_test_setup_teardown(test_cidata_guest_agent, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
