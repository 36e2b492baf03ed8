#include "hostagent/ssh_key.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

#include "hostagent/ssh.h"
#include "lib/base/child.h"
#include "lib/base/log.h"
#include "lib/base/mem.h"
#include "lib/base/path.h"
#include "lib/base/utf8.h"
#include "lib/store/layout.h"

enum { PUBLIC_KEY_MAX_BYTES = 16 * 1024 };	/* an RSA 16384 key is 3 KiB */

/* The first line of @path if it looks like "TYPE BASE64 [COMMENT]" (sshd(8),
 * AUTHORIZED_KEYS FILE FORMAT, without options), else NULL; caller frees. */
static char *read_public_key(const char *path)
{
	static const char *const types[] = { "ssh-", "ecdsa-sha2-", "sk-ssh-", "sk-ecdsa-" };
	scoped_buf struct buf b = { 0 };
	bool known = false;
	char *line;

	if (path_read_file(path, PUBLIC_KEY_MAX_BYTES, &b, &(struct error){ 0 }) < 0 || !b.len)
		return NULL;
	line = (char *)b.data;
	line[strcspn(line, "\r\n")] = 0;
	for (size_t i = 0; i < ARRAY_SIZE(types); i++)
		known |= strncmp(line, types[i], strlen(types[i])) == 0;
	if (!known || !strchr(line, ' ') || !utf8_valid(line, strlen(line)))
		return NULL;
	return xstrdup(line);
}

static bool has_suffix(const char *s, const char *suffix)
{
	size_t len = strlen(s), n = strlen(suffix);

	return len > n && streq(s + len - n, suffix);
}

/* Names of ~/.ssh/…pub, sorted, so that every start offers keys in one order. */
static struct dirent **list_dot_ssh(const char *dir, int *ret_n)
{
	struct dirent **entries = NULL;

	*ret_n = scandir(dir, &entries, NULL, alphasort);
	return entries;
}

void ssh_key_add_dot_ssh(struct strv *identities, struct strv *lines)
{
	scoped_free char *dir = path_expand_home("~/.ssh");
	int n = 0;
	struct dirent **entries = list_dot_ssh(dir, &n);

	for (int i = 0; i < n; i++) {
		const char *name = entries[i]->d_name;

		if (has_suffix(name, ".pub")) {
			scoped_free char *path = xasprintf("%s/%s", dir, name);
			scoped_free char *line = read_public_key(path);

			path[strlen(path) - strlen(".pub")] = 0;
			if (line && lines && !strv_contains(lines, line))
				strv_add(lines, line);
			if (line && identities && access(path, R_OK) == 0)
				strv_add(identities, path);
		}
		free(entries[i]);
	}
	free(entries);
}

int ssh_key_make(const char *key, const char *comment, struct error *err)
{
	scoped_free char *tmp = xasprintf("%s.tmp.%d", key, (int)getpid());
	scoped_free char *tmp_pub = xasprintf("%s.pub", tmp);
	scoped_free char *pub = xasprintf("%s.pub", key);
	const char *argv[] = { "ssh-keygen", "-t", "ed25519", "-q", "-N", "",
			       "-C", comment, "-f", tmp, NULL };
	struct child_spec spec = { .argv = argv };
	scoped_child_result struct child_result r = { 0 };
	int rc;

	unlink(tmp);
	rc = child_run_ok(&spec, &r, err);
	if (rc == 0 && (rename(tmp_pub, pub) < 0 || rename(tmp, key) < 0))
		rc = error_sys(err, -errno, "rename %s", tmp);
	if (rc < 0) {
		unlink(tmp);
		unlink(tmp_pub);
		return error_wrap(err, "make the ssh key `%s`", key);
	}
	log_debug("ssh: made the key pair `%s`", key);
	return 0;
}

static bool have_key(const char *key)
{
	scoped_free char *pub = xasprintf("%s.pub", key);

	return path_exists(key) && path_exists(pub);
}

int ssh_ensure_user_key(const char *lima_home, struct error *err)
{
	scoped_free char *dir = layout_config_dir(lima_home);
	scoped_free char *key = layout_user_key(lima_home);
	scoped_fd int fd = -1;

	if (have_key(key))
		return 0;
	if (path_mkdir_all(dir, 0700, err) < 0)
		return err->code;
	fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0 || flock(fd, LOCK_EX) < 0)
		return error_sys(err, -errno, "lock %s", dir);
	if (have_key(key))	/* made by whoever held the lock */
		return 0;
	return ssh_key_make(key, "lima", err);
}

int ssh_public_keys(const char *lima_home, const struct config *config, struct strv *ret,
		    struct error *err)
{
	scoped_free char *key = layout_user_key(lima_home);
	scoped_free char *pub = xasprintf("%s.pub", key);
	scoped_free char *line = read_public_key(pub);

	if (!line)
		return error_set(err, -EINVAL,
				 "`%s` holds no ssh public key; remove it and `%s` to have new ones made",
				 pub, key);
	strv_add(ret, line);
	if (config->ssh.load_dot_ssh_pub_keys)
		ssh_key_add_dot_ssh(NULL, ret);
	return 0;
}
