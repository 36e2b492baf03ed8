#!/bin/sh
# A developer's server may take port 80 without root.
. /mnt/lima-cidata/lib.sh
echo 0 >/proc/sys/net/ipv4/ip_unprivileged_port_start 2>/dev/null
mkdir -p /etc/sysctl.d
echo 'net.ipv4.ip_unprivileged_port_start = 0' | put /etc/sysctl.d/99-lima.conf 0644
