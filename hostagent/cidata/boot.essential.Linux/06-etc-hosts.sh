#!/bin/sh
# host.lima.internal, our own name, and the fixed entries of hostResolver.hosts
. /mnt/lima-cidata/lib.sh
put_between /etc/hosts <$seed/etc_hosts
