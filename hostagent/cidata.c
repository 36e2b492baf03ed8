#include "hostagent/cidata.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#include "hostagent/cidata_impl.h"
#include "lib/base/mem.h"
#include "lib/base/path.h"
#include "lib/store/digest.h"
#include "lib/store/embed.h"
#include "lib/store/iso.h"
#include "lib/store/layout.h"

enum {
	INSTANCE_ID_BYTES = 16,		/* 32 hex digits behind "iid-" */
	FILES_MAX = 4096,		/* scripts, and one file for each `provision` entry */
};

extern const struct embed_file cidata_scripts[];
extern const size_t cidata_scripts_n;

/* --- instance id ----------------------------------------------------------- */

static void add_hex(struct buf *b, const uint8_t *bytes, size_t len)
{
	for (size_t i = 0; i < len; i++)
		buf_addf(b, "%02x", bytes[i]);
}

static bool is_instance_id(const char *s)
{
	return strncmp(s, "iid-", 4) == 0 && strlen(s + 4) >= 8 && strlen(s + 4) <= 64 &&
	       strspn(s + 4, "0123456789abcdef") == strlen(s + 4);
}

int cidata_instance_id(const char *dir, char **ret, struct error *err)
{
	scoped_free char *path = layout_instance_file(dir, FILE_INSTANCE_ID);
	scoped_buf struct buf b = { 0 };
	uint8_t random[INSTANCE_ID_BYTES];

	if (path_read_file(path, 256, &b, &(struct error){ 0 }) == 0 && b.len) {
		b.data[strcspn((char *)b.data, "\r\n")] = 0;
		if (is_instance_id((char *)b.data)) {
			*ret = xstrdup((char *)b.data);
			return 0;
		}
	}
	if (getrandom(random, sizeof(random), 0) != sizeof(random))
		return error_sys(err, -errno, "getrandom");
	buf_reset(&b);
	buf_add_str(&b, "iid-");
	add_hex(&b, random, sizeof(random));
	buf_add_str(&b, "\n");
	if (path_write_file(path, b.data, b.len, 0600, err) < 0)
		return err->code;
	*ret = xstrndup((char *)b.data, b.len - 1);
	return 0;
}

/* --- the list of files ------------------------------------------------------ */

struct seed {
	struct iso_file *files;
	size_t n, cap;
	struct strv names;	/* owns the paths made up here */
	struct strv texts;	/* owns contents made up here */
};

static void seed_done(struct seed *s)
{
	free(s->files);
	strv_done(&s->names);
	strv_done(&s->texts);
}

static void seed_add(struct seed *s, const char *path, const void *data, size_t len, mode_t mode)
{
	if (s->n == s->cap) {
		s->cap = s->cap ? s->cap * 2 : 64;
		s->files = xreallocarray(s->files, s->cap, sizeof(*s->files));
	}
	strv_add(&s->names, path);
	s->files[s->n++] = (struct iso_file){ .path = s->names.items[s->names.len - 1],
					      .data = data ? data : "", .len = len, .mode = mode };
}

static void seed_add_source(struct seed *s, const char *path, const char *source, mode_t mode)
{
	seed_add(s, path, NULL, 0, mode);
	s->files[s->n - 1].data = NULL;
	s->files[s->n - 1].source = source;
}

/* Takes the text out of @b. */
static void seed_add_text(struct seed *s, const char *path, struct buf *b, mode_t mode)
{
	size_t len = b->len;
	char *text = len ? buf_steal_str(b) : xstrdup("");

	strv_take(&s->texts, text);
	seed_add(s, path, text, len, mode);
}

static bool is_script(const char *name)
{
	size_t len = strlen(name);

	return len > 3 && streq(name + len - 3, ".sh");
}

static void add_scripts(struct seed *s)
{
	for (size_t i = 0; i < cidata_scripts_n; i++) {
		const struct embed_file *f = &cidata_scripts[i];

		seed_add(s, f->name, f->data, embed_len(f), is_script(f->name) ? 0755 : 0644);
	}
}

static const char *const provision_dirs[] = {
	[PROVISION_SYSTEM] = "provision.system",
	[PROVISION_USER] = "provision.user",
	[PROVISION_BOOT] = "provision.boot",
	[PROVISION_DEPENDENCY] = "provision.dependency",
	[PROVISION_DATA] = "provision.data",
};

static void add_provision(struct seed *s, const struct config *c)
{
	for (size_t i = 0; i < c->n_provision; i++) {
		const struct config_provision *p = &c->provision[i];
		const char *text = p->mode == PROVISION_DATA ? p->content : p->script;
		scoped_free char *path = xasprintf("%s/%08zu", provision_dirs[p->mode], i);

		seed_add(s, path, text, strlen(text), p->mode == PROVISION_DATA ? 0644 : 0755);
	}
}

static void add_keys(struct seed *s, const struct cidata_facts *f)
{
	scoped_free char *keys = strv_join(f->spec->ssh_public_keys, "\n");
	struct buf b = { 0 };

	buf_addf(&b, "%s\n", keys);
	seed_add_text(s, "authorized_keys", &b, 0600);
	seed_add(s, "ssh_host_ed25519_key", f->host_key.data, f->host_key.len, 0600);
	seed_add(s, "ssh_host_ed25519_key.pub", f->host_key_pub.data, f->host_key_pub.len, 0644);
}

/* --- what the guest remembers having applied ---------------------------------- */

/* Over all files so far: those that come after change nothing a guest keeps. */
static int add_sum(const struct seed *s, const char *env, char out[DIGEST_TEXT_SIZE],
		   struct error *err)
{
	scoped_digest struct digest *d = NULL;

	if (digest_new("sha256", &d, err) < 0)
		return err->code;
	for (size_t i = 0; i < s->n; i++) {	/* with its 0 byte a name ends nowhere else */
		uint64_t len = s->files[i].len;

		digest_update(d, s->files[i].path, strlen(s->files[i].path) + 1);
		digest_update(d, &len, sizeof(len));
		digest_update(d, s->files[i].data, s->files[i].len);
	}
	digest_update(d, env, strlen(env));
	digest_final(d, out);
	return 0;
}

static int sum_agent(struct cidata_facts *f, struct error *err)
{
	scoped_digest struct digest *d = NULL;
	char text[DIGEST_TEXT_SIZE];

	if (!f->spec->guest_agent)
		return 0;
	if (digest_new("sha256", &d, err) < 0 ||
	    digest_update_file(d, f->spec->guest_agent, "checking the guest agent", NULL, err) < 0)
		return error_wrap(err, "guest agent");
	snprintf(f->agent_sum, sizeof(f->agent_sum), "%s", digest_final(d, text));
	return 0;
}

static int add_environment(struct seed *s, const struct cidata_facts *f, struct error *err)
{
	scoped_buf struct buf env = { 0 };
	struct buf b = { 0 };
	char sum[DIGEST_TEXT_SIZE];

	cidata_env_environment(f, &b);
	seed_add_text(s, "etc_environment", &b, 0644);
	cidata_env_hosts(f, &b);
	seed_add_text(s, "etc_hosts", &b, 0644);
	cidata_env_lima(f, &env);
	if (add_sum(s, buf_str(&env), sum, err) < 0)
		return err->code;
	buf_addf(&env, "LIMA_CIDATA_SEED_SUM=%s\n", sum);
	buf_add_str(&env, "LIMA_CIDATA_GA_SECRET=");
	if (f->spec->secret)
		add_hex(&env, f->spec->secret, CIDATA_SECRET_BYTES);
	buf_add_str(&env, "\n");
	seed_add_text(s, "lima.env", &env, 0600);
	cidata_env_param(f->spec->config, &b);
	seed_add_text(s, "param.env", &b, 0600);
	return 0;
}

/* --- cloud-init's files -------------------------------------------------------- */

static const char *mount_script(void)
{
	for (size_t i = 0; i < cidata_scripts_n; i++)
		if (streq(cidata_scripts[i].name, "mount-seed.sh"))
			return cidata_scripts[i].data;
	abort();	/* it is in the list of CMakeLists.txt */
}

static int write_readable_copy(const struct cidata_facts *f, struct error *err)
{
	scoped_free char *path = layout_instance_file(f->spec->dir, FILE_CLOUD_CONFIG);
	scoped_buf struct buf b = { 0 };

	cidata_cloud_user_data(f, mount_script(), false, &b);
	return path_write_file(path, b.data, b.len, 0444, err);
}

static void add_cloud_init(struct seed *s, const struct cidata_facts *f)
{
	struct buf b = { 0 };

	cidata_cloud_user_data(f, mount_script(), true, &b);
	seed_add_text(s, "user-data", &b, 0600);
	cidata_cloud_meta_data(f, &b);
	seed_add_text(s, "meta-data", &b, 0644);
	cidata_cloud_network(f, &b);
	seed_add_text(s, "network-config", &b, 0644);
}

/* --- all of it ------------------------------------------------------------------ */

static int write_image(const struct cidata_facts *f, struct error *err)
{
	scoped_free char *path = layout_instance_file(f->spec->dir, FILE_CIDATA);
	__attribute__((cleanup(seed_done))) struct seed s = { 0 };

	add_scripts(&s);
	add_keys(&s, f);
	if (add_environment(&s, f, err) < 0)
		return err->code;
	add_provision(&s, f->spec->config);
	add_cloud_init(&s, f);
	if (f->spec->guest_agent)
		seed_add_source(&s, "lima-guestagent", f->spec->guest_agent, 0755);
	return iso_write(path, "cidata", s.files, s.n, err);
}

static int write_all(struct cidata_facts *f, struct error *err)
{
	const struct cidata_spec *s = f->spec;

	if (s->config->n_provision > FILES_MAX)
		return error_set(err, -E2BIG, "provision: more than %d entries", FILES_MAX);
	if (cidata_env_check(s, err) < 0 ||
	    cidata_instance_id(s->dir, &f->instance_id, err) < 0 ||
	    cidata_key_ensure(s, &f->host_key, &f->host_key_pub, err) < 0 ||
	    sum_agent(f, err) < 0 || write_readable_copy(f, err) < 0)
		return err->code;
	return write_image(f, err);
}

int cidata_write(const struct cidata_spec *spec, struct error *err)
{
	struct cidata_facts f = {
		.spec = spec,
		.address = spec->slirp_address ? spec->slirp_address : "192.168.5.15",
		.gateway = spec->slirp_gateway ? spec->slirp_gateway : "192.168.5.2",
		.dns = spec->slirp_dns ? spec->slirp_dns : "192.168.5.3",
	};
	int rc = write_all(&f, err);

	free(f.instance_id);
	buf_done(&f.host_key);
	buf_done(&f.host_key_pub);
	return rc < 0 ? error_wrap(err, "seed of `%s`", spec->name) : 0;
}
