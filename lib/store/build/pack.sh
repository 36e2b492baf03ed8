#!/bin/sh
# pack.sh WORK MKE2FS: makes the file system image WORK/disk.raw out of WORK/root
# and removes the tree. Runs with the same rights as assemble.sh.
set -eu
work=$1
used_mib=$(du -sm "$work/root" | cut -f1)

# Small, because `disk:` may not be smaller than the image; the guest grows it at
# its first boot (mke2fs reserves descriptors for 1024 times the size). Inode
# tables and journal are left to be zeroed by the guest when they are used.
truncate -s $((used_mib * 3 / 2 + 1024))M "$work/disk.raw"
"$2" -q -F -t ext4 -L lima-root -m 1 -J size=64 \
	-E lazy_itable_init=1,lazy_journal_init=1,nodiscard -d "$work/root" "$work/disk.raw"
rm -rf "$work/root"
