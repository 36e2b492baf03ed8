#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cmocka.h>

#include "hostagent/ssh.h"
#include "hostagent/ssh_key.h"
#include "lib/base/mem.h"
#include "lib/base/path.h"

static char dir[] = "/tmp/lima-ssh-test-XXXXXX";

static struct ssh_target target(void)
{
	struct ssh_target t = {
		.instance = xstrdup("my.vm"),
		.dir = xstrdup("/home/a b/.lima/my.vm"),
		.user = xstrdup("ada"),
		.host = xstrdup("127.0.0.1"),
		.port = 43022,
		.pinned = true,
		.aes = true,
	};

	strv_add(&t.identities, "/home/a b/.lima/_config/user");
	return t;
}

static void test_ssh_argv(void **state)
{
	static const char want[] =
		"-F /dev/null -o IdentityFile=\"/home/a b/.lima/_config/user\" -o IdentitiesOnly=yes "
		"-o StrictHostKeyChecking=yes "
		"-o UserKnownHostsFile=\"/home/a b/.lima/my.vm/ssh_known_hosts\" "
		"-o GlobalKnownHostsFile=/dev/null -o HostKeyAlias=lima-my-vm -o UpdateHostKeys=no "
		"-o PreferredAuthentications=publickey -o BatchMode=yes -o Compression=no "
		"-o ConnectTimeout=10 -o ServerAliveInterval=30 -o ServerAliveCountMax=3 "
		"-o Ciphers=^aes128-gcm@openssh.com,aes256-gcm@openssh.com -o User=ada "
		"-o ControlMaster=auto -o ControlPath=\"/home/a b/.lima/my.vm/ssh.sock\" "
		"-o ControlPersist=yes -p 43022 127.0.0.1";
	struct ssh_target t = target();
	scoped_strv struct strv argv = { 0 };

	ssh_add_options(&argv, &t, SSH_MUX);
	ssh_add_destination(&argv, &t);
	scoped_free char *got = strv_join(&argv, " ");
	assert_string_equal(got, want);
	ssh_target_done(&t);
}

static void test_ssh_argv_variants(void **state)
{
	struct ssh_target t = target();
	scoped_strv struct strv argv = { 0 }, control = { 0 };
	const char *more[] = { "-L", "/a:/b", NULL };

	t.pinned = t.aes = false;
	t.forward_agent = true;
	strv_add(&t.identities, "/k/100%\"x\\");
	ssh_add_options(&argv, &t, SSH_NO_MUX);
	assert_true(strv_contains(&argv, "StrictHostKeyChecking=accept-new"));
	assert_true(strv_contains(&argv, "Ciphers=^chacha20-poly1305@openssh.com"));
	assert_true(strv_contains(&argv, "ControlPath=none"));
	assert_true(strv_contains(&argv, "ForwardAgent=yes"));
	assert_true(strv_contains(&argv, "IdentityFile=\"/k/100%%\\\"x\\\\\""));
	assert_false(strv_contains(&argv, "ControlPersist=yes"));
	ssh_add_control(&control, &t, "forward", more);
	scoped_free char *got = strv_join(&control, " ");
	assert_string_equal(got, "-F /dev/null -T -o ControlPath=\"/home/a b/.lima/my.vm/ssh.sock\" "
				 "-O forward -L /a:/b -p 43022 127.0.0.1");
	ssh_target_done(&t);
}

static void test_ssh_config_text(void **state)
{
	struct ssh_target t = target();
	struct error err = ERROR_NONE;
	scoped_free char *text = NULL;
	char *none = NULL;

	assert_int_equal(ssh_config_text(&t, &text, &err), 0);
	assert_non_null(strstr(text, "\nHost lima-my-vm\n  IdentityFile \"/home/a b/"));
	assert_non_null(strstr(text, "\n  ControlPersist yes\n  Hostname 127.0.0.1\n  Port 43022\n"));
	free(t.user);
	t.user = xstrdup("ada\nProxyCommand evil");
	assert_int_equal(ssh_config_text(&t, &none, &err), -EINVAL);
	ssh_target_done(&t);
}

static void test_ssh_config_file_and_port(void **state)
{
	struct ssh_target t = target();
	struct error err = ERROR_NONE;
	scoped_free char *path = xasprintf("%s/ssh.config", dir);
	struct stat st;

	free(t.dir);
	t.dir = xstrdup(dir);
	assert_int_equal(ssh_config_port(dir), 0);
	assert_int_equal(ssh_config_write(&t, &err), 0);
	assert_int_equal(ssh_config_port(dir), 43022);
	assert_int_equal(stat(path, &st), 0);
	assert_int_equal(st.st_mode & 0777, 0600);
	ssh_target_done(&t);
}

static void test_ssh_program(void **state)
{
	scoped_strv struct strv argv = { 0 };
	struct error err = ERROR_NONE;

	setenv("SSH", "env FOO=1", 1);
	assert_int_equal(ssh_add_program(&argv, &err), 0);
	assert_int_equal(argv.len, 2);
	setenv("SSH", "/no/such/ssh -v", 1);
	assert_int_equal(ssh_add_program(&argv, &err), -ENOENT);
	assert_non_null(strstr(err.msg, "apt install openssh-client"));
	unsetenv("SSH");
}

static int listen_like_qemu(uint16_t port)
{
	scoped_fd int fd = socket(AF_INET, SOCK_STREAM, 0);
	struct sockaddr_in sa = { .sin_family = AF_INET, .sin_port = htons(port),
				  .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	int on = 1;

	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	return bind(fd, (struct sockaddr *)&sa, sizeof(sa)) < 0 || listen(fd, 1) < 0
		       ? -errno : steal_fd(&fd);
}

static void test_ssh_held_port(void **state)
{
	struct error err = ERROR_NONE;
	uint16_t port = 0, again = 0, other = 0;
	int fd = -1, fd2 = -1, qemu;

	assert_int_equal(ssh_hold_port(0, false, &port, &fd, &err), 0);
	assert_true(port > 0);
	for (int i = 0; i < 50; i++) {	/* the kernel gives it to nobody */
		assert_int_equal(ssh_hold_port(0, false, &other, &fd2, &err), 0);
		assert_int_not_equal(other, port);
		close(fd2);
	}
	qemu = listen_like_qemu(port);	/* while we hold it */
	assert_true(qemu >= 0);
	close(fd);
	/* it is taken: a wish is not granted, a demand fails by name */
	assert_int_equal(ssh_hold_port(port, false, &again, &fd2, &err), 0);
	assert_int_not_equal(again, port);
	close(fd2);
	assert_int_equal(ssh_hold_port(port, true, &again, &fd2, &err), -EADDRINUSE);
	assert_non_null(strstr(err.msg, "ssh.localPort"));
	close(qemu);
	assert_int_equal(ssh_hold_port(port, false, &again, &fd2, &err), 0);
	assert_int_equal(again, port);	/* free again: the same one */
	close(fd2);
}

static void write_file(const char *name, const char *content)
{
	scoped_free char *path = xasprintf("%s/%s", dir, name);
	struct error err = ERROR_NONE;

	assert_int_equal(path_write_file(path, content, strlen(content), 0600, &err), 0);
}

static void test_ssh_keys(void **state)
{
	struct config config = { .ssh = { .load_dot_ssh_pub_keys = true } };
	struct error err = ERROR_NONE;
	scoped_strv struct strv lines = { 0 }, identities = { 0 };
	scoped_free char *dot_ssh = xasprintf("%s/.ssh", dir);
	scoped_free char *key = xasprintf("%s/_config/user", dir);
	struct stat st;

	setenv("HOME", dir, 1);
	assert_int_equal(path_mkdir_all(dot_ssh, 0700, &err), 0);
	write_file(".ssh/id_a", "private");
	write_file(".ssh/id_a.pub", "ssh-ed25519 AAAA ada\n");
	write_file(".ssh/id_b.pub", "ecdsa-sha2-nistp256 BBBB\n");
	write_file(".ssh/evil.pub", "command=\"rm -rf /\" ssh-rsa CCCC\n");
	write_file(".ssh/empty.pub", "");
	assert_int_equal(ssh_ensure_user_key(dir, &err), 0);
	assert_int_equal(stat(key, &st), 0);
	assert_int_equal(st.st_mode & 0777, 0600);
	assert_int_equal(ssh_public_keys(dir, &config, &lines, &err), 0);
	assert_int_equal(lines.len, 3);
	assert_true(strncmp(lines.items[0], "ssh-ed25519 ", 12) == 0);
	assert_non_null(strstr(lines.items[0], " lima"));
	assert_string_equal(lines.items[1], "ssh-ed25519 AAAA ada");
	assert_string_equal(lines.items[2], "ecdsa-sha2-nistp256 BBBB");
	ssh_key_add_dot_ssh(&identities, NULL);
	assert_int_equal(identities.len, 1);	/* id_b has no private half here */
	ino_t first = st.st_ino;
	assert_int_equal(ssh_ensure_user_key(dir, &err), 0);
	assert_int_equal(stat(key, &st), 0);
	assert_int_equal(st.st_ino, first);	/* not made anew */
}

static int make_dir(void **state)
{
	return mkdtemp(dir) ? 0 : -1;
}

static int remove_dir(void **state)
{
	return path_remove_tree(dir, &(struct error){ 0 });
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_ssh_argv),
		cmocka_unit_test(test_ssh_argv_variants),
		cmocka_unit_test(test_ssh_config_text),
		cmocka_unit_test(test_ssh_config_file_and_port),
		cmocka_unit_test(test_ssh_program),
		cmocka_unit_test(test_ssh_held_port),
		cmocka_unit_test(test_ssh_keys),
	};

	return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
