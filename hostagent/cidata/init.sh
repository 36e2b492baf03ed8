#!/bin/sh
# init.sh - sets up a guest that has no cloud-init, from the seed cloud-init
# would read. Runs at each boot before sshd and the guest agent, both of which
# wait for it: a second boot does only what is gone after a reboot.
. /mnt/lima-cidata/lib.sh
load $seed/lima.env
prepare_run
load $seed/param.env

find_nic() {
	for address in /sys/class/net/*/address; do
		read -r mac <"$address"
		[ "$mac" = "$LIMA_CIDATA_MAC" ] || continue
		nic=${address%/address}
		nic=${nic##*/}
		return
	done
	return 1
}

# The user network is the same at each boot and known beforehand: no DHCP, no
# daemon. IPv6, if any, comes by router advertisement, which the kernel handles.
network_up() {
	find_nic || { modprobe virtio_net && find_nic; } || {
		failed "no network card with the address $LIMA_CIDATA_MAC"
		return
	}
	ip -force -batch - <<-END
		link set lo up
		link set $nic up
		address replace $LIMA_CIDATA_SLIRP_IP_ADDRESS/24 dev $nic
		route replace default via $LIMA_CIDATA_SLIRP_GATEWAY dev $nic metric 200
	END
}

set_hostname() {
	echo "$LIMA_CIDATA_HOSTNAME" >/proc/sys/kernel/hostname
	echo "$LIMA_CIDATA_HOSTNAME" >/etc/hostname
}

set_resolver() {
	[ ! -L /etc/resolv.conf ] || return 0	# somebody installed a resolver
	for server in $LIMA_CIDATA_DNS; do
		echo "nameserver $server"
	done | put /etc/resolv.conf 0644
}

set_host_key() {
	for key in ssh_host_ed25519_key ssh_host_ed25519_key.pub; do
		[ -e $seed/$key ] || continue
		(umask 077 && put /etc/ssh/$key <$seed/$key)
	done
	[ ! -e /etc/ssh/ssh_host_ed25519_key.pub ] || chmod 0644 /etc/ssh/ssh_host_ed25519_key.pub
	[ -e /etc/ssh/ssh_host_ed25519_key ] || ssh-keygen -A
}

set_user() {
	mkdir -p "${LIMA_CIDATA_HOME%/*}/"
	if getent passwd "$LIMA_CIDATA_USER" >/dev/null; then
		usermod -o -u "$LIMA_CIDATA_UID" -c "$LIMA_CIDATA_COMMENT" \
			-s "$LIMA_CIDATA_SHELL" -d "$LIMA_CIDATA_HOME" "$LIMA_CIDATA_USER"
	else
		useradd -o -u "$LIMA_CIDATA_UID" -c "$LIMA_CIDATA_COMMENT" \
			-s "$LIMA_CIDATA_SHELL" -d "$LIMA_CIDATA_HOME" -m -U -G adm,systemd-journal "$LIMA_CIDATA_USER"
	fi || failed "cannot make the user $LIMA_CIDATA_USER"
	group=$(id -g "$LIMA_CIDATA_USER")
	install -d -m 0755 -o "$LIMA_CIDATA_UID" -g "$group" "$LIMA_CIDATA_HOME"
}

# Logins of this image make no logind session (lib/store/build/assemble.sh), so
# the user's own systemd is started at boot and found by these variables.
set_user_manager() {
	[ -e /usr/lib/lima/lima-init ] || return 0
	mkdir -p /var/lib/systemd/linger
	: >"/var/lib/systemd/linger/$LIMA_CIDATA_USER"
	put /etc/ssh/sshd_config.d/61-lima-user.conf 0644 <<-END
		Match User $LIMA_CIDATA_USER
		SetEnv XDG_RUNTIME_DIR=/run/user/$LIMA_CIDATA_UID DBUS_SESSION_BUS_ADDRESS=unix:path=/run/user/$LIMA_CIDATA_UID/bus
	END
}

set_sudo() {
	if [ "$LIMA_CIDATA_PASSWORDLESS_SUDO" = 1 ]; then
		echo "$LIMA_CIDATA_USER ALL=(ALL:ALL) NOPASSWD:ALL"
	else
		echo "$LIMA_CIDATA_USER ALL=(ALL:ALL) ALL"
	fi | put /etc/sudoers.d/90-lima 0440
}

set_timezone() {
	[ -n "$LIMA_CIDATA_TIMEZONE" ] && [ -e "/usr/share/zoneinfo/$LIMA_CIDATA_TIMEZONE" ] || return 0
	ln -sf "/usr/share/zoneinfo/$LIMA_CIDATA_TIMEZONE" /etc/localtime
	echo "$LIMA_CIDATA_TIMEZONE" >/etc/timezone
}

network_up
if ! seed_applied; then
	step "first boot: user, keys, guest agent"
	set_hostname
	set_resolver
	set_host_key
	set_user
	set_user_manager
	set_sudo
	set_timezone
	apply_seed
fi
. $seed/provision-boot.sh
put_text /run/lima-ssh-ready "$LIMA_CIDATA_IID"
: >/run/lima-init-done
