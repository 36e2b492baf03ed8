#!/bin/sh
# assemble.sh WORK: turns WORK/rootfs.tar into the tree WORK/root and tunes it.
# Runs as root of a user namespace (or as root), so owners are right. No chroot
# and no device nodes are needed; devtmpfs fills /dev at boot.
#
# What is left out or masked below was found by measuring boots under TCG
# (test/bench/guest-boot); each entry says what it is.
set -eu
work=$1
root=$work/root
files=$work/files

mkdir "$root"
tar -C "$root" --numeric-owner -xf "$work/rootfs.tar" --exclude './dev/*'
rm -f "$work/rootfs.tar"

# What the build host or the build left behind. The package's host keys would be
# the same in every guest; the seed brings its own.
rm -f "$root"/etc/ssh/ssh_host_* "$root"/etc/resolv.conf "$root"/etc/hostname \
	"$root"/etc/apt/apt.conf.d/99mmdebstrap "$root"/etc/dpkg/dpkg.cfg.d/99mmdebstrap \
	"$root"/var/lib/systemd/random-seed "$root"/boot/initrd.img* "$root"/initrd.img*
: >"$root"/etc/machine-id
echo lima >"$root"/etc/hostname
printf '127.0.0.1 localhost\n127.0.1.1 lima\n::1 localhost ip6-localhost ip6-loopback\n' \
	>"$root"/etc/hosts
echo 'LANG=C.UTF-8' >"$root"/etc/default/locale
echo '# the root file system is mounted by the initrd' >"$root"/etc/fstab
touch "$root"/etc/.updated "$root"/var/.updated

# Ours.
install -d -m 0755 "$root"/usr/lib/lima "$root"/etc/ssh/sshd_config.d
install -d -m 0700 "$root"/mnt/lima-cidata
install -m 0755 "$files"/lima-init.sh "$root"/usr/lib/lima/lima-init
install -m 0644 "$files"/sshd.conf "$root"/etc/ssh/sshd_config.d/60-lima.conf
units=$root/etc/systemd/system
install -m 0644 "$files"/lima-init.service "$files"/lima-boot.service \
	"$files"/lima-guestagent.service "$root"/usr/lib/systemd/system/
rm -f "$units"/multi-user.target.wants/ssh.service "$units"/sshd.service
install -m 0644 "$files"/ssh.service "$units"/ssh.service

want() { # TARGET UNIT
	mkdir -p "$units/$1.wants"
	if [ -e "$units/$2" ]; then
		ln -sf "/etc/systemd/system/$2" "$units/$1.wants/$2"
	else
		ln -sf "/usr/lib/systemd/system/$2" "$units/$1.wants/$2"
	fi
}
ln -sf ssh.service "$units"/sshd.service
want sysinit.target lima-init.service
want sysinit.target lima-guestagent.service
want sysinit.target ssh.service
want multi-user.target lima-boot.service
# What systemd-ssh-generator would find out anew at each boot (see below).
if [ -e "$root"/usr/lib/systemd/system-generators/systemd-ssh-generator ]; then
	install -m 0644 "$files"/sshd-vsock.socket "$root"/usr/lib/systemd/system/
	install -m 0644 "$files"/sshd-vsock.service \
		"$root"/usr/lib/systemd/system/sshd-vsock@.service
	want sysinit.target sshd-vsock.socket
fi

mask() {
	for unit; do
		rm -f "$units"/*.wants/"$unit"
		ln -sf /dev/null "$units/$unit"
	done
}
# A virtual machine has no terminal 1 and no password to log in with on a serial
# line; no firmware that keeps crash dumps; nothing to be scrubbed by LVM.
rm -f "$units"/getty.target.wants/getty@tty1.service
mask systemd-pstore.service e2scrub_reap.service e2scrub_all.timer \
	systemd-pcrphase.service systemd-pcrphase-sysinit.service systemd-pcrmachine.service
# The host key comes with the seed.
mask sshd-keygen.service ssh.socket
# They would fetch and unpack package lists in the middle of the first minutes.
mask apt-daily.timer apt-daily-upgrade.timer
# Done by the initrd with a tenth of the work: mounts of kernel interfaces, device
# nodes that load a module when opened, the root file system writable.
mask dev-hugepages.mount dev-mqueue.mount sys-kernel-debug.mount sys-kernel-tracing.mount \
	sys-fs-fuse-connections.mount sys-kernel-config.mount \
	kmod-static-nodes.service systemd-tmpfiles-setup-dev.service \
	systemd-tmpfiles-setup-dev-early.service systemd-remount-fs.service
# /tmp is on the disk, which is large where memory is not.
mask tmp.mount run-lock.mount
# Nothing to do for them: the host gives entropy (virtio-rng), who and last have no
# terminal to tell of, nobody is kept from logging in while the system boots, and
# the journal stays in memory (drop the file 60-lima.conf to change that).
mask systemd-random-seed.service systemd-update-utmp.service \
	systemd-update-utmp-runlevel.service systemd-user-sessions.service \
	systemd-journal-flush.service systemd-udev-load-credentials.service
mkdir -p "$root"/etc/tmpfiles.d "$root"/etc/systemd/journald.conf.d
ln -sf /dev/null "$root"/etc/tmpfiles.d/systemd-nologin.conf
# Directories that are emptied at boot: lima-init has done that, before sshd.
sed 's/^D\([!]*\) /q\1 /' "$root"/usr/lib/tmpfiles.d/tmp.conf >"$root"/etc/tmpfiles.d/tmp.conf
printf '[Journal]\nStorage=volatile\n' >"$root"/etc/systemd/journald.conf.d/60-lima.conf
# Empty lists that would still start the program that reads them.
rm -f "$root"/etc/modules-load.d/modules.conf "$root"/usr/lib/binfmt.d/python3*.conf

# The first thing somebody waits for is sshd: what it does not need comes after.
for unit in systemd-udevd systemd-udev-trigger systemd-tmpfiles-setup systemd-sysctl; do
	mkdir -p "$units/$unit.service.d"
	printf '[Unit]\nAfter=ssh.service\n' >"$units/$unit.service.d/60-lima.conf"
done
# Modules somebody might want; they load when their device is opened.
mask modprobe@drm.service modprobe@loop.service modprobe@dm_mod.service \
	modprobe@configfs.service modprobe@fuse.service modprobe@efi_pstore.service

# Generators are programs run one by one at each boot and daemon-reload, for
# hardware and set-ups this image does not have. (The one for ssh loads every
# kind of vsock there is, just to see whether one works.)
mkdir -p "$root"/etc/systemd/system-generators
for generator in bless-boot cryptsetup debug getty gpt-auto hibernate-resume integritysetup \
	system-update veritysetup run rc-local ssh tpm2; do
	[ ! -e "$root/usr/lib/systemd/system-generators/systemd-$generator-generator" ] ||
		ln -sf /dev/null "$root/etc/systemd/system-generators/systemd-$generator-generator"
done

# A login by ssh runs no programs for a greeting that `ssh HOST COMMAND` never
# shows, and does not wait for logind to make a session: the user's manager runs
# from boot on (init.sh: linger), its address is in the environment.
session=$(grep -v 'pam_systemd\.so' "$root"/etc/pam.d/common-session)
awk -v session="$session" '/pam_motd\.so|pam_mail\.so/ { next }
	$1 == "@include" && $2 == "common-session" { print session; next } { print }' \
	"$root"/etc/pam.d/sshd >"$work/pam-sshd"
cat "$work/pam-sshd" >"$root"/etc/pam.d/sshd

# Every login shell asks who it is. bash knows; starting id for it would take half
# of what `limactl shell INSTANCE true` does.
sed -i 's/\$(id -u)/${EUID:-$(id -u)}/' "$root"/etc/profile

# The initrd makes the device nodes of modules that load when they are opened.
sed -n 's/^[^# ]* \([^ ]*\) \([bc]\)\([0-9]*\):\([0-9]*\)$/\1 \2 \3 \4/p' \
	"$root"/usr/lib/modules/*/modules.devname >"$work/nodes"

# For the caller: the kernel's version.
ls "$root"/usr/lib/modules >"$work/kernel-version"
