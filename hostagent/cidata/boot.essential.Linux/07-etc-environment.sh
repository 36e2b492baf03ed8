#!/bin/sh
# `env:` and the host's proxy settings, for every login (pam_env(8)). Where there
# is no PAM (Alpine), the login shell reads them from a profile script.
. /mnt/lima-cidata/lib.sh
put_between /etc/environment <$seed/etc_environment || exit 1
[ -e /etc/alpine-release ] || exit 0
sed -n "/^[A-Za-z_][A-Za-z0-9_]*=/{s/'/'\\\\''/g;s/=\\(.*\\)/='\\1'/;s/^/export /;p}" \
	$seed/etc_environment | put /etc/profile.d/00-lima-environment.sh 0644
