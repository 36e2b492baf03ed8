# lib.bash - what the end-to-end tests share
#
# Every test waits for what it needs with a deadline (`until_ok`), never for a
# fixed time. Processes are ended by pid; at the end of a file nothing of its
# instances may be left.
bats_require_minimum_version 1.5.0

# A home of our own with a short path: sockets below it must fit sun_path.
new_home() {
	LIMA_HOME=$(mktemp -d /tmp/lh.XXXXXX)
	export LIMA_HOME
	export NO_COLOR=1
}

drop_home() {
	local name
	for name in $(limactl list -q 2>/dev/null); do
		limactl delete -f "$name" || :
	done
	rm -rf -- "$LIMA_HOME"
}

# until_ok SECONDS COMMAND…: runs COMMAND until it succeeds
until_ok() {
	local end=$((SECONDS + $1))
	shift
	until "$@"; do
		if ((SECONDS >= end)); then
			echo "not in time: $*" >&2
			return 1
		fi
		read -rt 0.05 <> <(:) || :
	done
}

status_is() { [[ $(limactl list --json "$1" 2>/dev/null | python3 -c 'import json,sys; print(json.load(sys.stdin)["status"])') == "$2" ]]; }

field() {	# INSTANCE KEY of list --json
	limactl list --json "$1" 2>/dev/null | python3 -c 'import json,sys; print(json.load(sys.stdin).get(sys.argv[1], ""))' "$2"
}

# No process may have the instance's directory on its command line.
no_orphans() {
	! pgrep -f -- "$LIMA_HOME/" >/dev/null
}

# net ARGUMENTS…: the little TCP and UDP client of net.py
net() { python3 "$BATS_TEST_DIRNAME/net.py" "$@"; }

# A free port on the host, which the guest will not have in use either.
free_port() { net free; }

# in_guest COMMAND…: left running in the guest, its output in /tmp/NAME.log
in_guest() { limactl shell --workdir /tmp "$INSTANCE" "$@"; }

# serve NAME COMMAND…: starts a server in the guest, prints its pid
serve() {
	local name=$1
	shift
	in_guest sh -c 'log=/tmp/$1.log; shift; "$@" </dev/null >"$log" 2>&1 & echo $!' sh "$name" "$@"
}

fails_with() {	# STATUS TEXT: of the last `run`
	[[ $status -eq $1 ]] || { echo "exit $status instead of $1: $output" >&2; return 1; }
	[[ $output == *"$2"* ]] || { echo "\`$2\` is not in: $output" >&2; return 1; }
}
