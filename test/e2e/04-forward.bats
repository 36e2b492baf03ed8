# Forwards of every kind, on one machine. The table of what must appear where is
# forwards.py; here is when it is looked at.
load lib

setup_file() {
	new_home
	export INSTANCE=fwd
	local a b
	a=$(free_port) b=$(free_port)
	export BUSY=$a,$b
	python3 -m http.server --bind 127.0.0.1 "$a" >/dev/null 2>&1 3>&- &
	echo $! > "$LIMA_HOME/busy.pid"
	socat "TCP-LISTEN:$b,bind=127.0.0.1,fork" EXEC:cat 3>&- &
	echo $! >> "$LIMA_HOME/busy.pid"
	{
		cat <<-EOF
			base: template:debian-local
			cpus: 2
			memory: 1GiB
			disk: 8GiB
			portForwarding: {conflict: remap}
		EOF
		table rules "$LIMA_HOME" "$BUSY"
	} > "$LIMA_HOME/fwd.yaml"
	limactl start --tty=false --name "$INSTANCE" "$LIMA_HOME/fwd.yaml" 2>"$LIMA_HOME/start.err"
	in_guest sh -c 'cat > /tmp/forwards.py' < "$BATS_TEST_DIRNAME/forwards.py"
	"$BATS_TEST_DIRNAME/tools" | in_guest sh -c 'mkdir /var/tmp/tools && tar -xzC /var/tmp/tools'
}
teardown_file() {
	xargs kill < "$LIMA_HOME/busy.pid" || :
	drop_home
}

table() { python3 "$BATS_TEST_DIRNAME/forwards.py" "$@"; }

servers() {	# all listeners of the table, in the guest
	serve forwards python3 /tmp/forwards.py serve "$BUSY" > "$LIMA_HOME/servers.pid"
}

@test "every listener is where the rules say, and nowhere else" {
	servers
	table check "$LIMA_HOME" "$BUSY"
	# nc connected its socket to the first client: a server all the same
	limactl port list "$INSTANCE" | grep -q "^udp .*:20124 .* forwarding "
}

@test "when the servers end, their ports are refused on the host" {
	in_guest kill "$(cat "$LIMA_HOME/servers.pid")"
	table closed "$LIMA_HOME" "$BUSY"
	net udp-refused 127.0.0.1 21295		# static
}

@test "a socket of the host's is reached from the guest" {
	socat "UNIX-LISTEN:$LIMA_HOME/reverse.sock,fork" EXEC:cat 3>&- &
	echo $! >> "$LIMA_HOME/busy.pid"
	until_ok 20 reverse_answers
	until_ok 20 reverse_counts
}

reverse_counts() {	# a connection that ended, "hello" and a line's end both ways
	limactl port list --json "$INSTANCE" | python3 -c '
import json, sys
row = next(r for r in map(json.loads, sys.stdin) if r["reverse"])
sys.exit(not (row["connectionsTotal"] and row["bytesIn"] == row["bytesOut"] == 6 * row["connectionsTotal"]))'
}

reverse_answers() { [[ $(in_guest sh -c 'echo hello | nc -N -U /tmp/fwd-reverse.sock') == hello ]]; }

# --- streams.py: what a connection must keep, whatever carries it --------------
# Guest ports 20320, 20321, 20322 are forwarded by vsock, gRPC and ssh.

streams() { timeout 100 python3 "$BATS_TEST_DIRNAME/streams.py" "$@"; }

lab() {	# the lab server; its forwards answer when this returns
	# not to /tmp: a reboot clears it
	in_guest sh -c 'cat > ~/streams.py' < "$BATS_TEST_DIRNAME/streams.py"
	serve lab sh -c 'exec python3 ~/streams.py serve 20320 20321 20322'
	lab_answers
}

lab_answers() { streams ready 20320 20321 20322; }

lane_of() {	# GUEST PORT: what carried its last connection
	limactl port list --json "$INSTANCE" | python3 -c '
import json, sys
rows = [json.loads(line) for line in sys.stdin]
print(next(r["lane"] for r in rows if r["guestAddr"].endswith(":" + sys.argv[1]) and r["protocol"] == "tcp"))' "$1"
}

@test "each lane is the one that was asked for" {
	lab
	[[ $(lane_of 20320) == vsock ]]
	[[ $(lane_of 20321) == grpc ]]
	[[ $(lane_of 20322) == ssh ]]
}

@test "connections are opened and left alone" {
	streams_idle 3>&- &
	echo $! > "$LIMA_HOME/idle.pid"
	until_ok 30 grep -q "^12 connections open" "$LIMA_HOME/idle.log"
}

streams_idle() {	# until it is sent SIGUSR1
	exec python3 "$BATS_TEST_DIRNAME/streams.py" idle 3600 20320 20321 20322 >"$LIMA_HOME/idle.log" 2>&1
}

@test "under emulation the relay runs where the vsock's interrupts are" {
	in_guest sudo sh -c '
		grep -q "QEMU TCG" /proc/cpuinfo || exit 0
		for task in /proc/[0-9]*/task/*; do
			[ "$(cat "$task/comm")" = relay ] || continue
			relay=$(sed -n "s/^Cpus_allowed_list:[[:space:]]*//p" "$task/status")
		done
		set -- $(ls /sys/bus/virtio/drivers/vmw_vsock_virtio_transport/virtio*/../msi_irqs | sort -n)
		vsock=$(cat "/proc/irq/$2/effective_affinity_list")
		[ "$relay" = "$vsock" ] || { echo "relay on $relay, vsock on $vsock" >&2; exit 1; }'
}

@test "vsock: half-closes, resets, slow readers, silence" {
	streams tcp 20320
	streams reset-after-server-end 20320
}
@test "gRPC: half-closes, resets, slow readers, silence" {
	streams tcp 20321
	streams reset-after-server-end 20321
}

@test "a refused connection is a reset, not an empty answer" {
	local port
	for port in 20330 20331 20332; do
		streams refused "$port"
	done
}

@test "a server stopped and started 100 times on one port" { streams reuse 20320 20340 100; }

@test "datagrams of every size, and 3,000 clients" { streams udp 20320; }

@test "10,000 connections at once on vsock, and right behind them 2,000 on gRPC" {
	streams many 20320 10000
	streams many 20321 2000
}

@test "600 connections end together, and their clients are back at once" {
	streams end-together 20320 600
	streams end-together 20321 600
}

@test "32 clients that come and go, some of them rudely" {
	streams busy-clients 20320 5
	streams busy-clients 20321 5
}

@test "what was left alone since still works" {
	kill -USR1 "$(cat "$LIMA_HOME/idle.pid")"
	until_ok 60 grep "work after" "$LIMA_HOME/idle.log"
	grep -q "^12 of 12 work" "$LIMA_HOME/idle.log" || { cat "$LIMA_HOME/idle.log" >&2; false; }
}

# --- ports without a socket: containers', Kubernetes' ------------------------------

nat() { in_guest sudo sh /var/tmp/tools/nat.sh "$1"; }

@test "ports that only CNI, nftables, iptables and Kubernetes publish" {
	local port
	nat pod
	for port in cni:20350 nft:20351 legacy:20352 kube:30350; do
		net refused 127.0.0.1 "${port#*:}"
		nat "${port%:*}"
		until_ok 20 says_hello 127.0.0.1 "${port#*:}"
	done
	until_ok 20 echoes_hello 127.0.0.1 20351
	nat flush
	for port in 20350 20351 20352 30350; do
		until_ok 20 net refused 127.0.0.1 "$port"
	done
}

echoes_hello() { [[ $(net udp "$1" "$2" hello 2>/dev/null) == "echo hello" ]]; }

# --- two instances, the second one plain -----------------------------------------

@test "a second instance: who has a port, an address of its own, static forwards over ssh" {
	local own port
	cat > "$LIMA_HOME/two.yaml" <<-EOF
		base: template:debian-local
		plain: true
		cpus: 1
		memory: 512MiB
		disk: 8GiB
		portForwarding: {conflict: loopback-per-instance}
		portForwards:
		- {guestPort: 20400, static: true}
		- {guestPort: 20401, hostIP: 0.0.0.0, hostPort: 20320, proto: tcp, static: true}
	EOF
	limactl start --tty=false --name two "$LIMA_HOME/two.yaml" 2>"$LIMA_HOME/two.err"
	grep -q "0.0.0.0:20320 yet: address already in use (instance .$INSTANCE." "$LIMA_HOME/two.err"
	limactl shell --workdir /tmp two sh -c 'cat > /tmp/net.py' < "$BATS_TEST_DIRNAME/net.py"
	for port in 20400 20401; do
		INSTANCE=two serve "$port" python3 /tmp/net.py serve-tcp 127.0.0.1 "$port"
	done
	own=$(cat "$LIMA_HOME/two/loopback")
	[[ $own == 127.0.0.* && $own != 127.0.0.1 ]]
	until_ok 20 says_hello "$own" 20400
	net refused 127.0.0.1 20400
	limactl port add --ignore "$INSTANCE" 20320
	until_ok 20 says_hello 127.0.0.1 20320
	limactl delete -f two
	limactl port remove "$INSTANCE" --all
	lab_answers
}

says_hello() { [[ $(net tcp "$1" "$2" hello 2>/dev/null) == "5 bytes: hello" ]]; }

# --- what happens to a machine in its life --------------------------------------

@test "the guest agent dies: forwards come back by themselves" {
	in_guest sudo systemctl kill --signal=KILL lima-guestagent
	lab_answers
	streams tcp 20320
}

@test "a paused machine goes on where it stopped" {
	local qemu
	qemu=$(field "$INSTANCE" driverPID)
	streams pause "$qemu" 20320 20321
	lab_answers
}

@test "a snapshot of the running machine, and back to it" {
	local taker
	in_guest sh -c 'echo before > ~/state; sync'
	limactl snapshot create "$INSTANCE" --tag one 3>&- &
	taker=$!
	lab_answers	# some of it while the device is out, or the guest stands still
	wait "$taker"
	until_ok 20 on_vsock_again
	[[ $(limactl snapshot list -q "$INSTANCE") == one ]]
	run limactl snapshot create "$INSTANCE" --tag one
	fails_with 1 "already"

	in_guest sh -c 'echo after > ~/state; touch ~/new; sync'
	limactl snapshot apply "$INSTANCE" --tag one
	[[ $(in_guest sh -c 'cat ~/state; ls ~/new 2>&1') == "before"*"No such file"* ]]
	lab_answers
	until_ok 20 on_vsock_again
	until_ok 20 same_time

	limactl snapshot delete "$INSTANCE" --tag one
	[[ -z $(limactl snapshot list -q "$INSTANCE") ]]
	run limactl snapshot apply "$INSTANCE" --tag one
	fails_with 1 "there is no snapshot"
	lab_answers
	streams tcp 20320
}

on_vsock_again() { streams ready 20320 && [[ $(lane_of 20320) == vsock ]]; }

same_time() {	# to 2 s
	local apart=$(($(in_guest date +%s) - $(date +%s)))
	((apart >= -2 && apart <= 2))
}

restart_agent() {	# [VARIABLE=VALUE]: kill -9, and the next one with that in its environment
	kill -KILL "$(field "$INSTANCE" hostAgentPID)"
	env "$@" limactl start --tty=false "$INSTANCE"
}

@test "the environment chooses the lane where no rule does" {
	serve 20345 python3 /var/tmp/tools/net.py serve-tcp 127.0.0.1 20345
	restart_agent LIMA_SSH_PORT_FORWARDER=true
	until_ok 20 says_hello 127.0.0.1 20345
	[[ $(lane_of 20345) == ssh ]]
	# The guest has no address that the host can reach: a tunnel instead.
	restart_agent _LIMA_DIRECT_IP_PORT_FORWARDER=true
	until_ok 20 says_hello 127.0.0.1 20345
	[[ $(lane_of 20345) == vsock ]]
}

@test "the host agent dies: the next start adopts the machine, and its forwards" {
	local qemu
	serve says-hello sh -c 'while rm -f /tmp/fwd-guest.sock; do echo hello | nc -lNU /tmp/fwd-guest.sock; done'
	until_ok 20 guest_socket_answers
	qemu=$(field "$INSTANCE" driverPID)
	restart_agent
	[[ $(field "$INSTANCE" driverPID) == "$qemu" ]]
	lab_answers
	[[ $(lane_of 20320) == vsock ]]
	streams tcp 20320
	until_ok 20 reverse_answers	# by the ssh connection of before
	until_ok 20 guest_socket_answers
}

guest_socket_answers() { [[ $(socat -t 5 - "UNIX-CONNECT:$LIMA_HOME/guest.sock" </dev/null) == hello ]]; }

@test "a reboot in the guest: forwards come back with the servers" {
	local before
	before=$(in_guest cat /proc/sys/kernel/random/boot_id)
	in_guest sudo systemctl reboot || :
	until_ok 120 rebooted "$before"
	lab
	streams tcp 20320
}

rebooted() {
	local now
	now=$(in_guest cat /proc/sys/kernel/random/boot_id 2>/dev/null) && [[ -n $now && $now != "$1" ]]
}
