#include "drivers/qemu/accel.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/ioctl.h>

#include "lib/base/error.h"
#include "lib/base/mem.h"

enum { KVM_API = 12 };	/* Linux Documentation/virt/kvm/api.rst, 4.1 */

static int ioctl_api_version(int fd)
{
	return ioctl(fd, KVM_GET_API_VERSION, 0);
}

static int ioctl_make_vm(int fd)
{
	scoped_fd int vm = ioctl(fd, KVM_CREATE_VM, 0);

	return vm < 0 ? -errno : 0;
}

static struct qemu_accel tcg(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
static struct qemu_accel tcg(const char *fmt, ...)
{
	struct qemu_accel a = { .kind = QEMU_TCG };
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(a.reason, sizeof(a.reason), fmt, ap);
	va_end(ap);
	return a;
}

/* Does the first "flags" line of cpuinfo name vmx (Intel) or svm (AMD)? */
static bool cpu_can_virtualize(const char *cpuinfo_path)
{
	scoped_file FILE *f = fopen(cpuinfo_path, "re");
	scoped_free char *line = NULL;
	size_t cap = 0;

	if (!f)
		return false;
	while (getline(&line, &cap, f) > 0) {
		char *save = NULL, *word;

		if (strncmp(line, "flags", 5) != 0)
			continue;
		for (word = strtok_r(line, " \t\n:", &save); word;
		     word = strtok_r(NULL, " \t\n:", &save))
			if (streq(word, "vmx") || streq(word, "svm"))
				return true;
		return false;
	}
	return false;
}

static struct qemu_accel cannot_open(const char *path, int code)
{
	switch (-code) {
	case ENOENT:
		return tcg("there is no %s (virtualization is off in the firmware, or this is a "
			   "VM without nested virtualization)", path);
	case EACCES:
	case EPERM:
		return tcg("no permission to open %s; join its group: sudo usermod -aG kvm $USER, "
			   "then log in again", path);
	default:
		return tcg("%s does not open: %s", path, error_text(code));
	}
}

struct qemu_accel qemu_accel_choose(enum arch guest, const struct qemu_accel_probe *probe)
{
	struct qemu_accel_probe real = { arch_host(), "/dev/kvm", ioctl_api_version, ioctl_make_vm,
					 "/proc/cpuinfo" };
	const struct qemu_accel_probe *p = probe ? probe : &real;
	scoped_fd int fd = -1;
	int rc;

	if (guest != p->host)
		return tcg("the guest is %s, this machine %s", arch_name(guest),
			   arch_name(p->host));
	/* before the permission: nobody should join a group for a device that hangs */
	if (p->host == ARCH_X86_64 && access(p->kvm_path, F_OK) == 0 &&
	    !cpu_can_virtualize(p->cpuinfo_path))
		return tcg("%s exists but this CPU shows neither vmx nor svm", p->kvm_path);
	fd = open(p->kvm_path, O_RDWR | O_CLOEXEC);
	if (fd < 0)
		return cannot_open(p->kvm_path, -errno);
	rc = p->kvm_api_version(fd);
	if (rc != KVM_API)
		return tcg("%s exists but answers API version %d, not %d", p->kvm_path, rc, KVM_API);
	rc = p->kvm_make_vm(fd);
	if (rc == -EBUSY)
		return tcg("%s is busy: another hypervisor (VirtualBox, VMware) uses the CPU's "
			   "extensions", p->kvm_path);
	if (rc < 0)
		return tcg("%s exists but makes no VM: %s", p->kvm_path, error_text(rc));
	return (struct qemu_accel){ .kind = QEMU_KVM };
}

const char *qemu_accel_name(enum qemu_accel_kind kind)
{
	return kind == QEMU_KVM ? "kvm" : "tcg";
}
