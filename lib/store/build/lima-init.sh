#!/bin/sh
# Mounts the seed and hands over to it: the only thing the image itself knows.
# All else comes with the seed, so that an old image serves a new limactl.
seed=/mnt/lima-cidata

# Before anybody can log in. systemd-tmpfiles would do it once sshd is up, and take from
# /tmp what the first logins have just put there.
find /tmp -xdev -mindepth 1 -delete

find_seed() {
	for dev in /dev/sr0 /dev/disk/by-label/cidata; do
		[ -b $dev ] && mount -t iso9660 -o ro,mode=0700,nosuid,nodev $dev $seed 2>/dev/null &&
			return 0
	done
	dev=$(blkid -L cidata 2>/dev/null) && mount -o ro,nosuid,nodev "$dev" $seed
}

if [ ! -e $seed/init.sh ]; then
	[ -d $seed ] || mkdir -p -m 0700 $seed
	tries=0
	until find_seed; do
		tries=$((tries + 1))
		[ $tries -gt 100 ] && echo "lima-init: no disk labelled cidata, nothing to set up" && exit 0
		sleep 0.1
	done
fi
exec /bin/sh $seed/init.sh
