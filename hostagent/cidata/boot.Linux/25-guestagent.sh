#!/bin/sh
# Installs the guest agent and sees to it that it starts early at each boot.
. /mnt/lima-cidata/lib.sh
[ -e $seed/lima-guestagent ] || exit 0
prefix=$LIMA_CIDATA_GUEST_INSTALL_PREFIX
agent=$prefix/bin/lima-guestagent
changed=

# Its checksum comes with the seed: a guest need not compute one.
installed=
[ ! -e $state/agent-sum ] || read -r installed <$state/agent-sum
if [ "$installed" != "$LIMA_CIDATA_GUESTAGENT_SHA256" ] || [ ! -x "$agent" ]; then
	mkdir -p "$prefix/bin"
	put "$agent" 0755 <$seed/lima-guestagent || exit 1
	put_text $state/agent-sum "$LIMA_CIDATA_GUESTAGENT_SHA256"
	changed=1
fi

install_systemd() {
	unit=lima-guestagent.service
	if [ -e /usr/lib/lima/lima-init ]; then
		# Our image has the unit, which waits for init.sh, which is running us.
		[ "$prefix" = /usr/local ] || ln -sf "$agent" /usr/local/bin/lima-guestagent
		[ -z "$changed" ] || [ ! -e /run/lima-init-done ] || systemctl try-restart $unit
		return
	fi
	mkdir -p "$prefix/lib/lima"
	put "$prefix/lib/lima/agent-prepare.sh" 0755 <$seed/agent-prepare.sh
	put "$prefix/lib/lima/mount-seed.sh" 0755 <$seed/mount-seed.sh
	if sed "s|@PREFIX@|$prefix|g" $seed/lima-guestagent.service |
		put_changed /etc/systemd/system/$unit 0644; then
		systemctl daemon-reload
		systemctl enable $unit
		changed=1
	fi
	if [ -n "$changed" ]; then
		systemctl restart $unit
	else
		systemctl start $unit
	fi
}

install_openrc() {
	service=lima-guestagent
	mkdir -p "$prefix/lib/lima"
	put "$prefix/lib/lima/agent-prepare.sh" 0755 <$seed/agent-prepare.sh
	put "$prefix/lib/lima/mount-seed.sh" 0755 <$seed/mount-seed.sh
	if sed "s|@PREFIX@|$prefix|g" $seed/lima-guestagent.openrc |
		put_changed /etc/init.d/$service 0755; then
		rc-update add $service default
		changed=1
	fi
	if [ -n "$changed" ]; then
		rc-service --ifstarted $service restart
	fi
	rc-service --ifstopped $service start
}

if [ -d /run/systemd/system ]; then
	install_systemd
elif have rc-service; then
	install_openrc
else
	echo "lima: neither systemd nor OpenRC: the guest agent is not supervised" >&2
	[ -z "$changed" ] || pkill -x lima-guestagent
	. /run/lima-guestagent/args
	# shellcheck disable=SC2086
	setsid "$agent" daemon $LIMA_GUESTAGENT_ARGS </dev/null >/var/log/lima-guestagent.log 2>&1 &
fi
