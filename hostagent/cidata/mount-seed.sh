#!/bin/sh
# Mounts the seed at /mnt/lima-cidata, for root's eyes only: it holds the guest's
# host key and the secret of the agent's link. Safe to run again.
set -eu
mnt=/mnt/lima-cidata
[ ! -e $mnt/lib.sh ] || exit 0
mkdir -p $mnt
chmod 0700 $mnt
find_seed() {
	[ -b /dev/disk/by-label/cidata ] && echo /dev/disk/by-label/cidata && return
	found=$(blkid 2>/dev/null | sed -n 's/^\([^:]*\):.*LABEL="cidata".*/\1/p' | head -n 1)
	[ -n "$found" ] && echo "$found" && return
	[ -b /dev/sr0 ] && echo /dev/sr0
}
tries=0
until dev=$(find_seed) &&
	mount -t iso9660 -o ro,nosuid,nodev,overriderockperm,uid=0,gid=0,mode=0500,dmode=0700 \
		"$dev" $mnt; do
	tries=$((tries + 1))
	[ $tries -lt 30 ] || { echo "lima: no disk labelled cidata" >&2; exit 1; }
	sleep 1
done
