# A guest whose root attacks its host. After each attack all is as it was: the same
# processes, no more descriptors and memory, a shell, and another port that answers.
load lib

setup_file() {
	new_home
	export INSTANCE=hostile DIR=$LIMA_HOME/hostile
	HONEST=$(free_port) FAST=$(free_port) SOAK=$(free_port) CLOSED=$(free_port) OTHER=$(free_port)
	export HONEST FAST SOAK CLOSED OTHER
	cat > "$LIMA_HOME/hostile.yaml" <<-EOF
		base: template:debian-local
		cpus: 2
		memory: 1GiB
		disk: 8GiB
		portForwards:
		- {guestPort: $HONEST, hostPort: $HONEST, lane: grpc}
		- {guestPort: $FAST, hostPort: $FAST, lane: vsock}
		- {guestPort: $SOAK, hostPort: $SOAK, lane: vsock}
		- {guestPort: $CLOSED, ignore: true}
	EOF
	limactl start --tty=false --name "$INSTANCE" "$LIMA_HOME/hostile.yaml" 2>"$LIMA_HOME/start.err"
	# a stopped instance, which wants its ssh port again
	mkdir "$LIMA_HOME/other"
	cp "$DIR/lima.yaml" "$LIMA_HOME/other"
	sed -E "s/^( *Port ).*/\1$OTHER/" "$DIR/ssh.config" > "$LIMA_HOME/other/ssh.config"
	local file
	for file in net.py hostile.py hostile_device.py hostile_agent.py; do
		in_guest sh -c "cat > /tmp/$file" < "$BATS_TEST_DIRNAME/$file"
	done
	serve honest python3 /tmp/net.py serve-tcp 127.0.0.1 "$HONEST" >/dev/null
	serve fast python3 /tmp/net.py serve-tcp 127.0.0.1 "$FAST" >/dev/null
	until_ok 60 answers "$HONEST"
	until_ok 60 answers "$FAST"
	host state "$DIR" > "$LIMA_HOME/before"
}
teardown_file() {
	sed 's/^/# /' "$LIMA_HOME/figures" >&3 || :
	drop_home
}

answers() { [[ $(net tcp 127.0.0.1 "$1" x 2>/dev/null) == "1 bytes: x" ]]; }

host() { python3 "$BATS_TEST_DIRNAME/hostile_host.py" "$@"; }

attack() {	# SECONDS FILE ARGUMENTS…: as the guest's root, ended after that time
	timeout -k 5 $(($1 + 30)) limactl shell --workdir /tmp "$INSTANCE" \
		sudo timeout "$1" python3 "/tmp/$2" "${@:3}" </dev/null
}

all_is_well() {
	until_ok 60 timeout 20 limactl shell --workdir /tmp "$INSTANCE" true
	status_is "$INSTANCE" Running
	until_ok 60 answers "$HONEST"
	until_ok 60 host same "$DIR" "$LIMA_HOME/before" 2>"$LIMA_HOME/same.err" || { tail -2 "$LIMA_HOME/same.err" >&2; return 1; }
	cat "$LIMA_HOME/same.err" >> "$LIMA_HOME/figures"
	host logs "$DIR"
}

vsock_is_back() { until_ok 60 answers "$FAST" && [[ $(lane_of "$FAST") == vsock ]]; }

lane_of() {	# GUEST PORT: what carried its last connection
	row "$1" 'r["lane"]'
}

row() {	# GUEST PORT EXPRESSION of its row r
	limactl port list --json "$INSTANCE" | python3 -c '
import json, sys
for r in map(json.loads, sys.stdin):
	if r["guestAddr"].endswith(":" + sys.argv[1]): print(eval(sys.argv[2]))' "$@"
}

has_row() { [[ -n $(row "$1" '"is there"') ]]; }

@test "no ssh port, of this instance or another, no ignored and no privileged one" {
	local mine
	mine=$(field "$INSTANCE" sshLocalPort)
	serve thief python3 /tmp/net.py serve-tcp 127.0.0.1 "$mine" > "$LIMA_HOME/thief.pid"
	serve thief2 python3 /tmp/net.py serve-tcp 0.0.0.0 "$OTHER" >> "$LIMA_HOME/thief.pid"
	serve thief3 python3 /tmp/net.py serve-tcp 127.0.0.1 "$CLOSED" >> "$LIMA_HOME/thief.pid"
	in_guest sudo sh -c 'python3 /tmp/net.py serve-tcp 127.0.0.1 443 </dev/null >/dev/null 2>&1 & echo $!' >> "$LIMA_HOME/thief.pid"
	until_ok 30 has_row 443
	until_ok 30 has_row "$OTHER"
	[[ $(row "$OTHER" 'r["state"], r["error"]') == *not-forwarded*"ssh port of instance \`other\`"* ]]
	[[ $(row "$CLOSED" 'r["state"]') == *not-forwarded* ]]
	((443 >= $(cat /proc/sys/net/ipv4/ip_unprivileged_port_start))) ||
		[[ $(row 443 'r["state"]') == *not-forwarded* ]]
	host taken "$OTHER" "$CLOSED"
	[[ $(row "$mine" 'r["state"]') == *not-forwarded* ]]
	[[ $(head -c 4 < "/dev/tcp/127.0.0.1/$mine") == SSH- ]]
	in_guest sudo kill $(cat "$LIMA_HOME/thief.pid")
	all_is_well
}

@test "6,000 listeners: 4,096 at most, all gone afterwards" {
	rm -f "$LIMA_HOME/held"
	(sleep 600 & echo $! > "$LIMA_HOME/hold.pid"; wait) 3>&- |
		timeout 120 limactl shell --workdir /tmp "$INSTANCE" sudo python3 /tmp/hostile.py listeners 6000 \
			> "$LIMA_HOME/held" 3>&- &
	until_ok 60 grep -q '6000 open' "$LIMA_HOME/held"
	until_ok 60 listed 5900
	(($(forwarding) <= 4096))
	(($(host state "$DIR" | python3 -c 'import json,sys; print(json.load(sys.stdin)["fds"])') < 2 * 4096 + 300))
	answers "$HONEST"
	kill "$(cat "$LIMA_HOME/hold.pid")"
	until_ok 60 few_left
	all_is_well
}

rows() { limactl port list --json "$INSTANCE"; }
listed() { (($(rows | wc -l) > $1)); }
few_left() { (($(rows | wc -l) < 10)); }
forwarding() { rows | grep -c '"state": *"forwarding"'; }

@test "one port that comes and goes 5,000 times" {
	attack 60 hostile.py flap 5000
	all_is_well
}

@test "garbage in place of the guest agent" {
	in_guest sudo systemctl stop lima-guestagent
	attack 60 hostile.py serial
	in_guest sudo systemctl start lima-guestagent
	all_is_well
}

@test "a guest agent that lies about ports, addresses and texts" {
	in_guest sudo systemctl stop lima-guestagent
	attack 60 hostile_agent.py 1 10 "$(field "$INSTANCE" sshLocalPort)" "$OTHER" "$CLOSED" 22 > "$LIMA_HOME/lies" 3>&- &
	local liar=$!
	until_ok 30 has_row "$OTHER"
	[[ $(row "$OTHER" 'r["state"]') != *forwarding* ]]
	[[ $(row "$CLOSED" 'r["state"]') != *forwarding* ]]
	host taken "$OTHER" "$CLOSED"
	wait "$liar"
	cat "$LIMA_HOME/lies" >> "$LIMA_HOME/figures"
	(($(sed -n 's/ lies$//p' "$LIMA_HOME/lies") > 2))
	in_guest sudo systemctl start lima-guestagent
	all_is_well
}

@test "connections to the host's side of the vsock" {
	attack 60 hostile.py dial
	vsock_is_back
	all_is_well
}

@test "rings, descriptors and headers of the vsock device that make no sense" {
	attack 60 hostile_device.py rings 1 60
	all_is_well
	vsock_is_back
}

@test "a vsock driver that breaks every rule about connections" {
	host clients "$FAST" 6 3>&- &
	attack 60 hostile_device.py talk 1 6
	wait $!
	all_is_well
	vsock_is_back
}

@test "rings where no memory is" {
	attack 60 hostile_device.py nowhere 1
	all_is_well
	vsock_is_back
}

# The long one is made by hand.
@test "1,500 connections one after the other leave nothing behind" {
	"$BATS_TEST_DIRNAME/../soak/forward" 1500 --instance "$INSTANCE" --port "$SOAK" \
		--limactl "$(command -v limactl)" --json "$LIMA_HOME/soak.json"
}

@test "the machine stops as any other" {
	limactl stop "$INSTANCE"
	status_is "$INSTANCE" Stopped
	host logs "$DIR"
	no_orphans
}
