#include <errno.h>
#include <string.h>

#include "hostagent/cidata_impl.h"
#include "hostagent/ssh_key.h"
#include "lib/base/mem.h"
#include "lib/base/path.h"
#include "lib/store/layout.h"

enum { KEY_MAX_BYTES = 16 * 1024 };

/* One line "NAME TYPE BASE64" (sshd(8), SSH_KNOWN_HOSTS FILE FORMAT). */
static int write_known_hosts(const struct cidata_spec *spec, const char *pub, struct error *err)
{
	scoped_free char *path = layout_instance_file(spec->dir, FILE_SSH_KNOWN_HOSTS);
	size_t type = strcspn(pub, " "), key = pub[type] ? strcspn(pub + type + 1, " \r\n") : 0;
	scoped_free char *line = xasprintf("%s %.*s\n", spec->hostname, (int)(type + 1 + key), pub);
	scoped_buf struct buf old = { 0 };

	if (!key)
		return error_set(err, -EINVAL, "%s/%s.pub is no public key", spec->dir,
				 layout_file_name(FILE_SSH_HOST_KEY));
	if (path_read_file(path, KEY_MAX_BYTES, &old, &(struct error){ 0 }) == 0 &&
	    streq(buf_str(&old), line))
		return 0;
	return path_write_file(path, line, strlen(line), 0600, err);
}

int cidata_key_ensure(const struct cidata_spec *spec, struct buf *ret_key, struct buf *ret_pub,
		      struct error *err)
{
	scoped_free char *key = layout_instance_file(spec->dir, FILE_SSH_HOST_KEY);
	scoped_free char *pub = xasprintf("%s.pub", key);

	if ((!path_exists(key) || !path_exists(pub)) && ssh_key_make(key, "", err) < 0)
		return err->code;
	if (path_read_file(key, KEY_MAX_BYTES, ret_key, err) < 0 ||
	    path_read_file(pub, KEY_MAX_BYTES, ret_pub, err) < 0)
		return err->code;
	return write_known_hosts(spec, buf_str(ret_pub), err);
}
