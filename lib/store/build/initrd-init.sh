#!/bin/busybox sh
# /init of our initrd: load the few modules the virtual hardware needs, mount
# the root file system, hand over. Everything else waits for the real system.
#
# Kernel command line: root=LABEL=x | root=/dev/x, rootflags=, init=.
PATH=/bin
export PATH

give_up() {
	echo "lima-initrd: $*; this shell can look around" >/dev/console
	exec setsid cttyhack sh
}

mount -t devtmpfs -o mode=0755 dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
while read -r ko; do
	insmod "/modules/$ko"
done </modules/order

root= flags= init=/sbin/init
for word in $(cat /proc/cmdline); do
	case $word in
	root=*) root=${word#root=} ;;
	rootflags=*) flags=,${word#rootflags=} ;;
	init=*) init=${word#init=} ;;
	esac
done

find_root() {
	case $root in
	/dev/*) [ -b "$root" ] && dev=$root ;;
	*) dev=$(findfs "$root" 2>/dev/null) ;;
	esac
}
tries=0
until find_root; do
	tries=$((tries + 1))
	[ $tries -gt 1500 ] && give_up "no root file system \`$root\` after 30 s"
	usleep 20000
done
mount -t ext4 -o "rw$flags" "$dev" /new || give_up "cannot mount \`$dev\`"

# The seed's disk has been looked for meanwhile; if it is there, good, if not,
# lima-init waits for it.
mkdir -p /new/mnt/lima-cidata
mount -t iso9660 -o ro,nosuid,nodev,overriderockperm,mode=0500,dmode=0700 /dev/sr0 \
	/new/mnt/lima-cidata 2>/dev/null

# Without one systemd would make up an id in /run and write it back later by a
# service of its own (machine-id(5), "Initialization").
[ -s /new/etc/machine-id ] ||
	tr -d - </proc/sys/kernel/random/uuid >/new/etc/machine-id

# Interfaces of the kernel that systemd would mount by a process each.
while read -r name type major minor; do
	case $name in */*) mkdir -p "/dev/${name%/*}" ;; esac
	mknod -m 0600 "/dev/$name" "$type" "$major" "$minor"
done </modules/nodes
chmod 0666 /dev/fuse /dev/net/tun
mkdir -p /dev/mqueue /dev/hugepages
mount -t mqueue mqueue /dev/mqueue
mount -t hugetlbfs hugetlbfs /dev/hugepages
mount -t debugfs debugfs /sys/kernel/debug
mount -t tracefs tracefs /sys/kernel/tracing

mount -o move /dev /new/dev
mount -o move /proc /new/proc
mount -o move /sys /new/sys
exec switch_root /new "$init"
