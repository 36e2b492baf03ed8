# Processes killed and commands interrupted: no orphan, and the next command works.
load lib

setup_file() {
	new_home
	export INSTANCE=crash
	cat > "$LIMA_HOME/crash.yaml" <<-'EOF'
		base: template:debian-local
		cpus: 2
		memory: 1GiB
		disk: 8GiB
		ssh: {overVsock: true}
	EOF
}
teardown_file() { drop_home; }

# The machine's vsock as the host agent sees it, and what it is used for.
vsock_works() {
	python3 - "$LIMA_HOME/crash/ha.sock" <<-'EOF'
		import http.client, json, socket, sys
		c = http.client.HTTPConnection("x")
		c.sock = socket.socket(socket.AF_UNIX)
		c.sock.connect(sys.argv[1])
		c.request("GET", "/v1/info")
		v = json.load(c.getresponse()).get("vsock", {})
		sys.exit(not (v.get("up") and v.get("lane") and v.get("ssh")))
	EOF
}
lane_of() {	# GUEST PORT
	limactl port list --json "$INSTANCE" | python3 -c 'import json,sys
for line in sys.stdin:
	r = json.loads(line)
	if r["guestAddr"].endswith(":" + sys.argv[1]): print(r["lane"])' "$1"
}

# interrupt PATTERN COMMAND…: SIGINT for COMMAND once PATTERN is in its output
interrupt() {
	local log=$BATS_TEST_TMPDIR/interrupted pattern=$1 pid
	shift
	: > "$log"
	# a shell without job control starts background jobs with SIGINT ignored
	python3 -c 'import os,signal,sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execvp(sys.argv[1], sys.argv[1:])' \
		"$@" >"$log" 2>&1 3>&- &
	pid=$!
	until_ok 120 grep -Eq "$pattern" "$log"
	kill -INT "$pid"
	status=0
	wait "$pid" || status=$?
	output=$(cat "$log")
	echo "$output"
}

@test "Ctrl-C while the image is built leaves nothing" {
	local cache=$BATS_TEST_TMPDIR/cache
	XDG_CACHE_HOME=$cache interrupt 'mmdebstrap|image' limactl --debug create --tty=false --name "$INSTANCE" "$LIMA_HOME/crash.yaml"
	[[ $status -eq 130 ]]
	[[ -z $(limactl list -q 2>/dev/null) ]]
	[[ -z $(find "$cache" -name 'disk.qcow2' -o -name '*.tar' 2>/dev/null) ]]
	! pgrep -u "$(id -u)" mmdebstrap
	no_orphans
}

@test "Ctrl-C while the machine boots stops it" {
	limactl create --tty=false --name "$INSTANCE" "$LIMA_HOME/crash.yaml"
	interrupt 'qemu: |qemu.*pid' limactl start --tty=false "$INSTANCE"
	[[ $status -eq 130 ]]
	[[ $output == *interrupted* ]]
	status_is crash Stopped
	no_orphans
}

@test "the next start works" {
	limactl start --tty=false "$INSTANCE"
	status_is crash Running
}

@test "a host agent killed with SIGKILL is told; start adopts the machine" {
	local port qemu
	port=$(free_port)
	in_guest sh -c 'cat > /tmp/net.py' < "$BATS_TEST_DIRNAME/net.py"
	serve web python3 /tmp/net.py serve-tcp 127.0.0.1 "$port"
	until_ok 20 net tcp 127.0.0.1 "$port" x
	qemu=$(field crash driverPID)
	kill -9 "$(field crash hostAgentPID)"
	until_ok 10 status_is crash Broken
	run limactl list
	[[ $output == *"limactl start crash"* ]]
	limactl start --tty=false "$INSTANCE"
	[[ $(field crash driverPID) == "$qemu" ]]
	until_ok 60 vsock_works
	until_ok 20 net tcp 127.0.0.1 "$port" x
	[[ $(lane_of "$port") == *vsock* ]]
	# by the agent's relay to sshd on the loopback, or by sshd's own vsock port
	[[ $(ssh -F "$LIMA_HOME/crash/ssh.config" -o ControlMaster=no -o ControlPath=none lima-crash \
		'echo $SSH_CONNECTION') =~ ^(127.0.0.1|UNKNOWN) ]]
}

@test "stop works with a dead host agent and a lost pid file, too" {
	local qemu
	qemu=$(field crash driverPID)
	kill -9 "$(field crash hostAgentPID)"
	rm "$LIMA_HOME/crash/qemu.pid"
	until_ok 10 status_is crash Broken
	[[ $(field crash driverPID) == "$qemu" ]]
	until_ok 10 status_is crash Broken
	limactl stop "$INSTANCE"
	status_is crash Stopped
	no_orphans
}

@test "a QEMU killed with SIGKILL ends the host agent; the next start works" {
	limactl start --tty=false "$INSTANCE"
	kill -9 "$(field crash driverPID)"
	until_ok 30 status_is crash Stopped
	until_ok 10 no_orphans
	grep -q '"exiting":true' "$LIMA_HOME/crash/ha.stdout.log"
	limactl start --tty=false "$INSTANCE"
	status_is crash Running
}

agent_is_not() {
	local now
	now=$(in_guest pidof lima-guestagent) && [[ -n $now && $now != "$1" ]]
}

@test "the guest agent restarts by itself and forwards go on" {
	local port before
	port=$(free_port)
	before=$(in_guest pidof lima-guestagent)
	# ssh may come through the agent itself (ssh.overVsock), and end with it
	in_guest sudo pkill -9 lima-guestagent || :
	until_ok 30 agent_is_not "$before"
	in_guest sh -c 'cat > /tmp/net.py' < "$BATS_TEST_DIRNAME/net.py"
	serve again python3 /tmp/net.py serve-tcp 127.0.0.1 "$port"
	until_ok 30 net tcp 127.0.0.1 "$port" x
}

@test "stop -f kills at once" {
	limactl stop -f "$INSTANCE"
	status_is crash Stopped
	no_orphans
}

@test "stale pid files of another boot are ignored" {
	printf '1\n00000000-0000-0000-0000-000000000000\n1\n' > "$LIMA_HOME/crash/ha.pid"
	printf '1\n00000000-0000-0000-0000-000000000000\n1\n' > "$LIMA_HOME/crash/qemu.pid"
	status_is crash Stopped
	limactl delete "$INSTANCE"
	[[ ! -e $LIMA_HOME/crash ]]
}
