#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "lib/base/mem.h"
#include "lib/store/build_impl.h"

#define SCHEME "mmdebstrap:"
#define VERSION "2"	/* raise it when this code changes what an image is */

/* systemd ≥ 252 and a kernel with what guests need; older ones were not tried. */
static const char *const suites[] = { "bookworm", "trixie", "forky", "sid" };

static const struct {
	enum arch arch;
	const char *debian, *kernel, *console;
} arches[] = {	/* names of packages: packages.debian.org/linux-image */
	{ ARCH_X86_64, "amd64", "linux-image-cloud-amd64", "ttyS0" },
	{ ARCH_AARCH64, "arm64", "linux-image-cloud-arm64", "ttyAMA0" },
	{ ARCH_ARMV7L, "armhf", "linux-image-armmp", "ttyAMA0" },
	{ ARCH_PPC64LE, "ppc64el", "linux-image-powerpc64le", "hvc0" },
	{ ARCH_RISCV64, "riscv64", "linux-image-riscv64", "ttyS0" },
	{ ARCH_S390X, "s390x", "linux-image-s390x", "ttysclp0" },
};

/* What a developer wants to find, and what the seed's scripts use. busybox is
 * the initrd's; libpam-systemd and dbus-user-session give `systemctl --user`. */
static const char *const base_packages[] = {
	"bash-completion", "busybox-static", "ca-certificates", "curl", "dbus", "dbus-user-session",
	"e2fsprogs", "iproute2", "iputils-ping", "kmod", "less", "libpam-systemd", "netcat-openbsd",
	"nftables", "openssh-server", "procps", "python3", "rsync", "sudo", "systemd-sysv", "tzdata",
	"udev", "vim-tiny",
};

void build_spec_done(struct build_spec *s)
{
	free(s->suite);
	strv_done(&s->packages);
}

bool build_is_location(const char *location)
{
	return strncmp(location, SCHEME, strlen(SCHEME)) == 0;
}

const char *build_spec_mirror(void)
{
	const char *mirror = getenv("LIMA_DEBIAN_MIRROR");

	return mirror && *mirror ? mirror : NULL;
}

/* Debian policy 5.6.7 */
static bool is_package(const char *s)
{
	return strlen(s) >= 2 && *s >= '0' && *s <= 'z' && *s != '+' && *s != '-' &&
	       strspn(s, "abcdefghijklmnopqrstuvwxyz0123456789+.-") == strlen(s);
}

static int parse_suite(const char *location, const char *suite, struct error *err)
{
	for (size_t i = 0; i < ARRAY_SIZE(suites); i++)
		if (streq(suite, suites[i]))
			return 0;
	return error_set(err, -EINVAL,
			 "%s: `%s` is not a suite this can build; bookworm, trixie, forky and sid are",
			 location, suite);
}

static int parse_query(const char *location, const char *query, struct strv *packages,
		       struct error *err)
{
	scoped_strv struct strv parts = { 0 };
	const char *part;

	strv_split(&parts, query, "&");
	strv_foreach(part, &parts) {
		scoped_strv struct strv names = { 0 };
		const char *name;

		if (strncmp(part, "include=", 8) != 0)
			return error_set(err, -EINVAL, "%s: `%s`: only include=PACKAGE,… is known",
					 location, part);
		strv_split(&names, part + 8, ",");
		strv_foreach(name, &names) {
			if (!is_package(name))
				return error_set(err, -EINVAL, "%s: `%s` is no name of a package",
						 location, name);
			strv_add(packages, name);
		}
	}
	return 0;
}

static int by_name(const void *a, const void *b)
{
	return strcmp(*(char *const *)a, *(char *const *)b);
}

/* Order and repetition in a location must not make another image. */
static void sort_once(struct strv *v)
{
	struct strv once = { 0 };
	const char *s;

	qsort(v->items, v->len, sizeof(*v->items), by_name);
	strv_foreach(s, v)
		if (!once.len || !streq(once.items[once.len - 1], s))
			strv_add(&once, s);
	strv_done(v);
	*v = once;
}

static int set_arch(const char *location, enum arch arch, struct build_spec *s, struct error *err)
{
	if (arch != arch_host())
		return error_set(err, -ENOTSUP,
				 "%s: builds for this machine's architecture (%s) only, not %s",
				 location, arch_name(arch_host()), arch_name(arch));
	for (size_t i = 0; i < ARRAY_SIZE(arches); i++) {
		if (arches[i].arch != arch)
			continue;
		s->arch = arch;
		s->debian_arch = arches[i].debian;
		s->console = arches[i].console;
		strv_add(&s->packages, arches[i].kernel);
		return 0;
	}
	return error_set(err, -ENOTSUP, "%s: no Debian for %s", location, arch_name(arch));
}

int build_spec_parse(const char *location, enum arch arch, struct build_spec *ret,
		     struct error *err)
{
	struct build_spec s = { 0 };
	const char *rest = location + strlen(SCHEME);
	size_t len = strcspn(rest, "?");

	s.suite = xstrndup(rest, len);
	for (size_t i = 0; i < ARRAY_SIZE(base_packages); i++)
		strv_add(&s.packages, base_packages[i]);
	if (parse_suite(location, s.suite, err) < 0 || set_arch(location, arch, &s, err) < 0 ||
	    (rest[len] && parse_query(location, rest + len + 1, &s.packages, err) < 0)) {
		build_spec_done(&s);
		return err->code;
	}
	sort_once(&s.packages);
	*ret = s;
	return 0;
}

int build_spec_inputs(const struct build_spec *s, struct buf *ret, struct error *err)
{
	scoped_free char *packages = strv_join(&s->packages, " ");
	const char *mirror = build_spec_mirror();
	char digest[DIGEST_TEXT_SIZE];

	buf_addf(ret, "builder %s\nsuite %s\narch %s\nmirror %s\npackages %s\n", VERSION, s->suite,
		 s->debian_arch, mirror ? mirror : "default", packages);
	for (size_t i = 0; i < build_files_n; i++) {
		if (digest_text("sha256", build_files[i].data, embed_len(&build_files[i]), digest,
				err) < 0)
			return err->code;
		buf_addf(ret, "file %s %s\n", build_files[i].name, digest);
	}
	return 0;
}

int build_spec_key(const struct buf *inputs, char out[DIGEST_TEXT_SIZE], struct error *err)
{
	char text[DIGEST_TEXT_SIZE];

	if (digest_text("sha256", inputs->data, inputs->len, text, err) < 0)
		return err->code;
	strcpy(out, strchr(text, ':') + 1);
	return 0;
}
