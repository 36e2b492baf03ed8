#include "drivers/qemu/args.h"

#include <errno.h>

#include "lib/base/buf.h"
#include "lib/base/mem.h"

enum { MIB = 1 << 20 };

/* tcg_cpu: everything TCG can do, but for the promise that `rep movsb` is fast (erms,
 * fsrm; Intel SDM vol. 1, 7.3.9.3): the kernel and glibc copy with it then, which TCG
 * does byte by byte. Without, a Debian 12 guest reads a tmpfs at 1.2 GB/s and not 0.37,
 * clears pages at 3 and not 0.5, and boots a tenth sooner.
 *
 * Booting Debian 13 to sshd's banner, 2 vCPUs of 2 busy cores, median CPU seconds of
 * QEMU in 7 to 15 runs: qemu64 11.7, max 12.6 (with erms); Nehalem and Haswell 14.2
 * (an Intel name makes the kernel split its page tables against Meltdown). la57=off,
 * no smap, no avx: within the noise of 1 s. qemu64 is not worth its price: it lacks
 * SSE4 and AVX, without which x86-64-v2 and -v3 programs (RHEL 9 and 10 containers,
 * many wheels) do not even start. */
static const struct qemu_arch arches[ARCH_COUNT] = {
	[ARCH_X86_64] = {
		.suffix = "x86_64", .env = "QEMU_SYSTEM_X86_64", .package = "qemu-system-x86",
		/* vmport: VMware's backdoor port, nothing we boot talks to it */
		.machine = "q35,vmport=off", .tcg_cpu = "max,erms=off,fsrm=off",
		.has_legacy_bios = true,
	},
	[ARCH_AARCH64] = {
		.suffix = "aarch64", .env = "QEMU_SYSTEM_AARCH64", .package = "qemu-system-arm",
		/* `max` signs pointers with a cipher that costs half of TCG's time;
		 * impdef is a cheap one (QEMU docs/system/arm/cpu-features) */
		.machine = "virt,gic-version=max", .tcg_cpu = "max,pauth-impdef=on",
	},
};

const struct qemu_arch *qemu_arch_find(enum arch arch)
{
	return arches[arch].suffix ? &arches[arch] : NULL;
}

/* For a value inside a comma-separated option: commas doubled; caller frees. */
static char *escaped(const char *s)
{
	scoped_buf struct buf b = { 0 };

	buf_add(&b, "", 0);
	for (; *s; s++) {
		if (*s == ',')
			buf_add_u8(&b, ',');
		buf_add_u8(&b, (uint8_t)*s);
	}
	return buf_steal_str(&b);
}

static void add(struct strv *v, const char *option, const char *value)
{
	strv_add_all(v, option, value, NULL);
}

static void addf(struct strv *v, const char *option, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));
static void addf(struct strv *v, const char *option, const char *fmt, ...)
{
	va_list ap;

	strv_add(v, option);
	va_start(ap, fmt);
	strv_take(v, xvasprintf(fmt, ap));
	va_end(ap);
}

static void add_process(const struct qemu_args_input *in, struct strv *v)
{
	/* nothing but what is named here: no default NIC, CD, VGA, monitor, and
	 * no qemu.conf of the host's administrator in between */
	strv_add_all(v, "-no-user-config", "-nodefaults", NULL);
	/* process=: what ps and top show. It keeps "qemu-" in front because
	 * pid_file_read() tells a QEMU by that. debug-threads: vCPUs get names. */
	addf(v, "-name", "lima-%s,process=qemu-lima-%s,debug-threads=on", in->name, in->name);
	/* QEMU's own, one line; we rewrite it in our format once it is up. This
	 * one serves if we die in between. */
	add(v, "-pidfile", in->pid_file);	/* taken as it is */
	/* seccomp, design.md §5. A guest that owns QEMU cannot start programs,
	 * gain rights, or use system calls of the last century. */
	if (in->sandbox)
		add(v, "-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,"
				   "resourcecontrol=deny");
	add(v, "-display", "none");
}

static const char *cpu_model(const struct qemu_args_input *in, const struct qemu_arch *arch)
{
	if (in->config->qemu_cpu_type)
		return in->config->qemu_cpu_type;
	return in->accel == QEMU_KVM ? "host" : arch->tcg_cpu;
}

static void add_machine(const struct qemu_args_input *in, const struct qemu_arch *arch,
			struct strv *v)
{
	const struct config *c = in->config;
	/* dump-guest-core: the guest's memory is not part of our core dumps */
	scoped_free char *machine = xasprintf("%s,dump-guest-core=off%s", arch->machine,
					      in->vsock_socket ? ",memory-backend=mem" : "");

	if (in->firmware && in->firmware->flash)
		addf(v, "-machine", "%s,pflash0=firmware", machine);
	else
		add(v, "-machine", machine);
	/* tb-size: MiB of translated code; the default is a quarter of the host's
	 * memory up to 1 GiB per VM. thread=multi: one host thread per vCPU. */
	add(v, "-accel", in->accel == QEMU_KVM ? "kvm" : "tcg,thread=multi,tb-size=512");
	add(v, "-cpu", cpu_model(in, arch));
	/* one socket: Windows and some licences count sockets, Linux does not care */
	addf(v, "-smp", "%u,sockets=1,cores=%u,threads=1", c->cpus, c->cpus);
	addf(v, "-m", "size=%juM", (uintmax_t)(c->memory_bytes / MIB));
	/* A vhost-user device works in the guest's memory, so that has to be a file
	 * which can be handed over: a memfd has no name, needs no room in /dev/shm
	 * and goes with its last user. It takes no more memory than an anonymous
	 * one, but has huge pages only where the host allows them for shmem
	 * (/sys/kernel/mm/transparent_hugepage/shmem_enabled). */
	if (in->vsock_socket)
		addf(v, "-object", "memory-backend-memfd,id=mem,size=%juM,share=on",
		     (uintmax_t)(c->memory_bytes / MIB));
	/* a guest that suspends to RAM or disk would sleep for ever: nobody is
	 * there to wake it */
	if (c->arch == ARCH_X86_64)
		strv_add_all(v, "-global", "ICH9-LPC.disable_s3=1", "-global",
			     "ICH9-LPC.disable_s4=1", NULL);
}

static void add_firmware(const struct qemu_args_input *in, struct strv *v)
{
	if (!in->firmware)
		return;
	if (!in->firmware->flash) {
		add(v, "-bios", in->firmware->path);
		return;
	}
	scoped_free char *path = escaped(in->firmware->path);
	addf(v, "-blockdev", "driver=file,node-name=firmware-file,filename=%s,read-only=on,"
	     "auto-read-only=off", path);
	add(v, "-blockdev", "driver=raw,node-name=firmware,file=firmware-file,read-only=on");
}

static void add_kernel(const struct qemu_args_input *in, struct strv *v)
{
	/* strict: only devices with a bootindex are tried, so no detour over
	 * network boot (lima#858: minutes) */
	add(v, "-boot", "strict=on");
	if (!in->kernel)
		return;
	add(v, "-kernel", in->kernel);	/* taken as it is, no commas to escape */
	if (in->initrd)
		add(v, "-initrd", in->initrd);
	if (in->cmdline)
		add(v, "-append", in->cmdline);
}

static void add_disk(const struct qemu_args_input *in, struct strv *v)
{
	scoped_free char *path = escaped(in->disk);

	/* discard=unmap: fstrim in the guest gives room back to the host.
	 * detect-zeroes=unmap: blocks of zeroes take no room; the scan is cheap
	 * next to the write. The format is never guessed, see media.h. */
	addf(v, "-blockdev", "driver=file,node-name=disk-file,filename=%s,discard=unmap", path);
	addf(v, "-blockdev", "driver=%s,node-name=" QEMU_DISK_NODE ",file=disk-file,discard=unmap,"
	     "detect-zeroes=unmap", in->disk_format);
	/* its own thread for requests: the main loop is then free for the NIC and
	 * the agent's port while the disk is busy. Boot time is the same with and
	 * without it. */
	add(v, "-object", "iothread,id=disk-io");
	addf(v, "-device", "virtio-blk-pci,drive=" QEMU_DISK_NODE ",iothread=disk-io,bootindex=%d",
	     in->iso ? 2 : 1);
}

static void add_cdrom(const char *path, const char *id, const char *device_options, struct strv *v)
{
	scoped_free char *file = escaped(path);

	addf(v, "-blockdev", "driver=file,node-name=%s-file,filename=%s,read-only=on", id, file);
	addf(v, "-blockdev", "driver=raw,node-name=%s,file=%s-file,read-only=on", id, id);
	addf(v, "-device", "scsi-cd,bus=scsi0.0,drive=%s%s", id, device_options);
}

static void add_cdroms(const struct qemu_args_input *in, struct strv *v)
{
	if (!in->iso && !in->cidata)
		return;
	add(v, "-device", "virtio-scsi-pci,id=scsi0");
	if (in->iso)
		add_cdrom(in->iso, "iso", ",bootindex=1", v);
	if (in->cidata)
		add_cdrom(in->cidata, "cidata", "", v);
}

static void add_network(const struct qemu_args_input *in, struct strv *v)
{
	/* network-dns-mounts.md §1: gateway .2 is the host's loopback, DNS .3 */
	scoped_free char *ssh = in->ssh_port ? xasprintf(",hostfwd=tcp:127.0.0.1:%u-:22",
							 in->ssh_port)
					     : xstrdup("");

	addf(v, "-netdev", "user,id=" QEMU_NETDEV ",net=192.168.5.0/24,dhcpstart=192.168.5.15%s",
	     ssh);
	/* romfile=: no PXE ROM; nobody boots from here and it costs start time */
	addf(v, "-device", "virtio-net-pci,netdev=" QEMU_NETDEV ",mac=%s,romfile=", in->mac);
}

static void add_channels(const struct qemu_args_input *in, struct strv *v)
{
	scoped_free char *log = escaped(in->serial_log);

	/* port 0 is kept for a console by the specification (virtio 1.2, 5.3),
	 * port 1 is the agent's: two are enough, the default of 31 costs queues */
	add(v, "-device", "virtio-serial-pci,id=serial-bus,max_ports=2");
	addf(v, "-chardev", "socket,id=" QEMU_AGENT_CHARDEV ",fd=%d,server=on,wait=off", QEMU_FD_AGENT);
	/* the id is what VSERPORT_CHANGE names; without one there is no event */
	add(v, "-device", "virtserialport,id=" QEMU_AGENT_PORT_ID ",bus=serial-bus.0,nr=1,"
			  "chardev=" QEMU_AGENT_CHARDEV ",name=" QEMU_AGENT_PORT);
	addf(v, "-chardev", "socket,id=serial,fd=%d,server=on,wait=off,logfile=%s,logappend=on",
	     QEMU_FD_SERIAL, log);
	add(v, "-serial", "chardev:serial");
	addf(v, "-chardev", "socket,id=qmp,fd=%d,server=on,wait=off", QEMU_FD_QMP);
	add(v, "-mon", "chardev=qmp,mode=control");
	/* entropy, so that sshd does not wait for it at first boot */
	add(v, "-device", "virtio-rng-pci");
}

/* Last of all devices: those before it keep the addresses they have without it. */
static void add_vsock(const struct qemu_args_input *in, struct strv *v)
{
	if (!in->vsock_socket)
		return;
	scoped_free char *path = escaped(in->vsock_socket);

	/* A new host agent has to be plugged in anew: QEMU does not speak to a
	 * device's process a second time (QEMU docs/interop/vhost-user has a
	 * reconnect, which needs the first connection to be there at realize and
	 * did not bring the device back). Nothing can be plugged into q35's or
	 * virt's pcie.0 while it runs, so the device gets a root port; that one
	 * needs no room for I/O ports, and chassis and slot only have to be
	 * different from other ports', of which there are none. */
	add(v, "-device", "pcie-root-port,id=" QEMU_VSOCK_PORT ",bus=pcie.0,chassis=1,slot=1,"
			  "io-reserve=0");
	/* no reconnect=: with it QEMU does not wait for the connection, finds none
	 * when it makes the device, and ends */
	addf(v, "-chardev", "socket,id=" QEMU_VSOCK_CHARDEV "0,path=%s", path);
	add(v, "-device", QEMU_VSOCK_DRIVER ",id=" QEMU_VSOCK_DEVICE ",bus=" QEMU_VSOCK_PORT
			  ",chardev=" QEMU_VSOCK_CHARDEV "0");
}

bool qemu_args_know_vsock(const struct qemu_version *version)
{
	static const struct qemu_version first = { 5, 1, 0 };	/* its ChangeLog */

	return qemu_version_compare(version, &first) >= 0;
}

int qemu_args_build(const struct qemu_args_input *in, struct strv *ret, struct error *err)
{
	const struct config *c = in->config;
	const struct qemu_arch *arch = qemu_arch_find(c->arch);
	const char *word;

	if (!arch)
		return error_set(err, -ENOTSUP, "arch: the qemu driver runs x86_64 and aarch64 "
				 "guests, not %s", arch_name(c->arch));
	if (c->memory_bytes < 64 * (uint64_t)MIB)
		return error_set(err, -EINVAL, "memory: %ju bytes are too few for any guest "
				 "(at least 64MiB)", (uintmax_t)c->memory_bytes);
	strv_foreach(word, in->program)
		strv_add(ret, word);
	add_process(in, ret);
	add_machine(in, arch, ret);
	add_firmware(in, ret);
	add_kernel(in, ret);
	add_disk(in, ret);
	add_cdroms(in, ret);
	add_network(in, ret);
	add_channels(in, ret);
	add_vsock(in, ret);
	return 0;
}
