#!/bin/sh
# boot.sh - provisions the guest, at each boot, when the system is up
#
# Guests with cloud-init come here from a per-boot script, others from
# lima-boot.service after init.sh.
. /mnt/lima-cidata/lib.sh
load $seed/lima.env
prepare_run
load $seed/param.env
load $seed/etc_environment
logs=/var/log/lima
mkdir -p -m 0755 $logs

# A disk larger than the image's: fill it (ext4 grows online). What it was grown
# to is remembered, so that other boots do not even ask.
grow_root() {
	[ -e /usr/lib/lima/lima-init ] || return 0	# cloud-init has growpart
	while read -r root_dev root_mnt root_rest; do
		case $root_mnt:$root_dev in /:/dev/*) break ;; esac
	done </proc/mounts
	read -r sectors <"/sys/class/block/${root_dev##*/}/size" || return 0
	grown=
	[ ! -e $state/root-sectors ] || read -r grown <$state/root-sectors
	[ "$grown" != "$sectors" ] || return 0
	step "growing the root file system"
	if resize2fs "$root_dev"; then
		put_text $state/root-sectors "$sectors"
	else
		failed "cannot grow the root file system on $root_dev"
	fi
}

upgrade_packages() {
	[ "$LIMA_CIDATA_UPGRADE_PACKAGES" = 1 ] && [ -e /usr/lib/lima/lima-init ] || return 0
	[ ! -e $state/upgraded ] || return 0
	step "upgrading packages"
	export DEBIAN_FRONTEND=noninteractive
	if apt-get update -q && apt-get upgrade -q -y; then
		: >$state/upgraded
	else
		failed "upgrading packages failed, see the journal of lima-boot"
	fi
}

# run_script MODE FILE COMMAND…: with a log of its own.
run_script() {
	mode=$1 name=${2##*/} log=$logs/provision.$1.${2##*/}.log
	shift 2
	number=${name#"${name%%[!0]*}"}
	step "provision[${number:-0}] ($mode)"
	"$@" </dev/null >"$log" 2>&1 && return 0
	code=$?
	tail -n 20 "$log" >&2
	failed "provision.$mode/$name: exit $code: $(tail -n 1 "$log")"
}

run_as_root() { # MODE
	for script in "$seed/provision.$1"/*; do
		[ ! -e "$script" ] || run_script "$1" "$script" "$script"
	done
}

place_data() {
	for content in $seed/provision.data/*; do
		[ -e "$content" ] || continue
		n=${content##*/}
		eval "path=\$LIMA_CIDATA_DATAFILE_${n}_PATH owner=\$LIMA_CIDATA_DATAFILE_${n}_OWNER" \
			"mode=\$LIMA_CIDATA_DATAFILE_${n}_PERMISSIONS" \
			"overwrite=\$LIMA_CIDATA_DATAFILE_${n}_OVERWRITE"
		[ "$overwrite" = true ] || [ ! -e "$path" ] || continue
		step "provision data $path"
		mkdir -p "${path%/*}/" && put "$path" "$mode" <"$content" && chown "$owner" "$path" ||
			failed "provision.data: cannot write $path"
	done
}

# User scripts may use `systemctl --user`: the user's manager must be there.
wait_user_manager() {
	[ -d /run/systemd/system ] || return 0
	loginctl enable-linger "$LIMA_CIDATA_USER" || return 0
	tries=0
	while [ ! -e "/run/user/$LIMA_CIDATA_UID/systemd/private" ] && [ $tries -lt 300 ]; do
		tries=$((tries + 1))
		sleep 0.2
	done
}

run_as_user() {
	waited=
	for script in $seed/provision.user/*; do
		[ -e "$script" ] || continue
		[ -n "$waited" ] || wait_user_manager
		waited=1
		# The seed is closed to the user, and so may /run be to programs.
		copy=$LIMA_CIDATA_HOME/.lima-provision-${script##*/}
		install -m 0700 -o "$LIMA_CIDATA_UID" -g "$(id -g "$LIMA_CIDATA_USER")" "$script" "$copy"
		run_script user "$script" sudo -iu "$LIMA_CIDATA_USER" --preserve-env="$user_env" \
			"XDG_RUNTIME_DIR=/run/user/$LIMA_CIDATA_UID" "$copy"
		rm -f "$copy"
	done
}

user_env() { # names for sudo: PARAM_x,PARAM_y and those of etc_environment
	sed -n 's/^\([A-Za-z_][A-Za-z0-9_]*\)=.*/\1/p' $seed/param.env $seed/etc_environment | tr '\n' ,
}

# `passwordlessSudo: false`: sudo asks, so there must be something to answer.
make_password() {
	[ "$LIMA_CIDATA_PASSWORDLESS_SUDO" != 1 ] || return 0
	file=$LIMA_CIDATA_HOME/password
	[ ! -e $state/password-set ] || return 0
	password=$(tr -dc a-zA-Z0-9 </dev/urandom | head -c 16)
	echo "$LIMA_CIDATA_USER:$password" | chpasswd &&
		(umask 077 && echo "$password" >"$file") &&
		chown "$LIMA_CIDATA_UID" "$file" && : >$state/password-set
}

grow_root
apply_seed
put_text $progress/ssh_ready "$LIMA_CIDATA_IID"
put_text /run/lima-ssh-ready "$LIMA_CIDATA_IID"
upgrade_packages
run_as_root dependency
place_data
run_as_root system
user_env=$(user_env)
run_as_user
make_password
if [ -e /run/lima-reboot-required ]; then
	step "restarting"
	exit 0
fi
step "done"
put_text /run/lima-boot-done "$LIMA_CIDATA_IID"
put_text $progress/boot_done "$LIMA_CIDATA_IID"
