#!/bin/sh
# Alpine's sshd has no PAM and refuses an account whose password is locked, and
# its cloud-init gives the user no group of that name.
. /mnt/lima-cidata/lib.sh
[ -e /etc/alpine-release ] || exit 0
user=$LIMA_CIDATA_USER
grep -q "^$user:" /etc/group || addgroup "$user"
addgroup "$user" "$user" 2>/dev/null
if grep -q "^$user:!" /etc/shadow; then
	sed -i "s/^$user:!*/$user:*/" /etc/shadow
fi
if [ "$LIMA_CIDATA_PASSWORDLESS_SUDO" = 1 ] && ! have sudo && have doas; then
	mkdir -p /etc/doas.d
	echo "permit nopass $user" | put /etc/doas.d/90-lima.conf 0440
fi
[ "$LIMA_CIDATA_SHELL" != /bin/bash ] || have bash || apk add --quiet bash || {
	# Better a smaller shell than no login at all.
	sed -i "s|^\($user:.*\):/bin/bash\$|\1:/bin/ash|" /etc/passwd
}
