# lib.sh - what the scripts of the seed share; sourced, POSIX sh (dash, busybox ash)
#
# Programs are started sparingly: under emulation each costs tens of
# milliseconds, and a boot waits for init.sh.

seed=/mnt/lima-cidata
state=/var/lib/lima			# survives reboots
progress=/run/lima-boot-progress	# read by the guest agent, told to the host
tab=$(printf '\t')

# load FILE: exports its KEY=value lines. Nothing in a value is evaluated.
load() {
	[ -e "$1" ] || return 0
	while IFS= read -r line || [ -n "$line" ]; do
		case $line in
		'' | '#'*) ;;
		*=*) export "${line?}" ;;
		esac
	done <"$1"
}

# put_failed FILE: what went wrong is said already; FILE is as it was before.
put_failed() {
	rm -f "$1.lima-new"
	echo "lima: warning: $1 was not written" >&2
	return 1
}

# put FILE [MODE]: standard input becomes FILE, at once and whole, or not at all (the
# disk is full). With MODE nobody may read it before it has that.
put() {
	if [ $# -lt 2 ]; then
		cat >"$1.lima-new"
	else
		(umask 077 && exec cat >"$1.lima-new") && chmod "$2" "$1.lima-new"
	fi && mv -f "$1.lima-new" "$1" || put_failed "$1"
}

# put_text FILE TEXT: as put, for one line.
put_text() {
	printf '%s\n' "$2" >"$1.lima-new" && mv -f "$1.lima-new" "$1" || put_failed "$1"
}

# put_changed FILE MODE: as put, but leaves FILE alone when it says so already.
# Tells by its status whether something changed.
put_changed() {
	cat >"$1.lima-new" || put_failed "$1" || return
	if cmp -s "$1.lima-new" "$1"; then
		rm -f "$1.lima-new"
		return 1
	fi
	chmod "$2" "$1.lima-new" && mv -f "$1.lima-new" "$1" || put_failed "$1"
}

# put_between FILE: standard input becomes the part of FILE between our marks.
put_between() {
	[ -e "$1" ] || : >"$1"
	{
		sed '/^#LIMA-START$/,/^#LIMA-END$/d' "$1" && echo '#LIMA-START' && cat && echo '#LIMA-END'
	} >"$1.lima-new" && chmod 0644 "$1.lima-new" && mv -f "$1.lima-new" "$1" || put_failed "$1"
}

step() {
	echo "lima: $*"
	put_text $progress/step "$*"
}

# failed TEXT: something went wrong, the boot goes on, the host is told.
failed() {
	echo "lima: warning: $*" >&2
	{
		[ ! -e $progress/failed ] || cat $progress/failed
		printf '%s\n' "$*"
	} | put $progress/failed
}

have() {
	command -v "$1" >/dev/null 2>&1
}

# The seed changes nothing on the disk of a guest that has applied this one.
seed_applied() {
	applied=
	[ ! -e $state/seed-sum ] || read -r applied <$state/seed-sum
	[ "$applied" = "$LIMA_CIDATA_SEED_SUM" ]
}

# apply_seed: every script that makes the guest's disk what the seed says.
apply_seed() {
	! seed_applied || return 0
	bad=
	for script in $seed/boot.essential.Linux/* $seed/boot.Linux/*; do
		[ -e "$script" ] || continue
		case $LIMA_CIDATA_PLAIN:$script in 1:*/boot.Linux/*) continue ;; esac
		echo "lima: ${script##*/}"
		sh "$script" </dev/null || { bad=1 && failed "${script##*/} failed"; }
	done
	[ -n "$bad" ] || put_text $state/seed-sum "$LIMA_CIDATA_SEED_SUM"
}

# What is gone after a reboot: where the host looks for progress, and what the
# agent is started with.
prepare_run() {
	mkdir -p $progress /run/lima-guestagent $state
	put_text $progress/instance_id "$LIMA_CIDATA_IID"
	[ "$LIMA_CIDATA_PLAIN" = 1 ] || prepare_agent
	unset LIMA_CIDATA_GA_SECRET
}

prepare_agent() {
	args="--socket /run/lima-guestagent.sock --socket-owner $LIMA_CIDATA_UID"
	args="$args --runtime-dir /run/lima-guestagent"
	if [ -n "$LIMA_CIDATA_VIRTIO_PORT" ]; then
		args="--virtio-port $LIMA_CIDATA_VIRTIO_PORT $args"
		link_virtio_port
	fi
	if [ -n "$LIMA_CIDATA_GA_SECRET" ]; then
		(umask 077 && echo "$LIMA_CIDATA_GA_SECRET" >/run/lima-guestagent/secret)
		args="--secret-file /run/lima-guestagent/secret $args"
	fi
	echo "LIMA_GUESTAGENT_ARGS=\"$args\"" >/run/lima-guestagent/args
}

# The agent starts before udev has made /dev/virtio-ports/NAME.
link_virtio_port() {
	link=/dev/virtio-ports/$LIMA_CIDATA_VIRTIO_PORT
	[ ! -e "$link" ] || return 0
	for name in /sys/class/virtio-ports/*/name; do
		[ -e "$name" ] && read -r port <"$name" || continue
		[ "$port" = "$LIMA_CIDATA_VIRTIO_PORT" ] || continue
		mkdir -p /dev/virtio-ports
		device=${name%/name}
		ln -sf "../${device##*/}" "$link"
	done
}
