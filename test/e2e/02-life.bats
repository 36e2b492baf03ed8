# One machine from its creation to its end, as a user lives with it.
load lib

setup_file() {
	new_home
	export INSTANCE=life
	PORT_A=$(free_port) PORT_B=$(free_port) PORT_C=$(free_port)
	export PORT_A PORT_B PORT_C
	cat > "$LIMA_HOME/life.yaml" <<-EOF
		base: template:debian-local
		cpus: 2
		memory: 1GiB
		disk: 8GiB
		env:
		  FROM_YAML: "it's here"
		param:
		  greeting: hello world
		portForwards:
		- guestPort: $PORT_A
		  hostPort: $PORT_B
		- guestPort: 7001
		  ignore: true
		provision:
		- mode: system
		  script: |
		    #!/bin/sh
		    echo "system \$PARAM_greeting" > /etc/from-system
		    echo run >> /var/log/system-runs
		- mode: user
		  script: |
		    #!/bin/sh
		    id -un > ~/from-user
		- mode: data
		  path: /etc/from-data
		  content: "data {{.Param.greeting}}\n"
		  permissions: "600"
		probes:
		- description: the user script ran
		  script: |
		    #!/bin/sh
		    test -s ~/from-user
	EOF
	limactl start --tty=false --name "$INSTANCE" "$LIMA_HOME/life.yaml" 2>"$LIMA_HOME/start.err"
	in_guest sh -c 'cat > /tmp/net.py' < "$BATS_TEST_DIRNAME/net.py"
}
teardown_file() { drop_home; }

@test "start showed its steps and READY" {
	grep -q 'READY' "$LIMA_HOME/start.err"
	grep -Eq 'image.*mmdebstrap' "$LIMA_HOME/start.err"
	status_is life Running
}

@test "start says that it uses TCG and why, where there is no KVM" {
	grep -Eq 'TCG|kvm' "$LIMA_HOME/start.err"
}

@test "shell runs commands and passes exit codes, words and input" {
	[[ $(in_guest uname -s) == Linux ]]
	run in_guest sh -c 'exit 37'
	[[ $status -eq 37 ]]
	[[ $(in_guest printf '%s|' 'a b' "it's" '$HOME' '') == "a b|it's|\$HOME||" ]]
	[[ $(echo in | in_guest cat) == in ]]
	[[ $(limactl shell life X='1 2' sh -c 'echo $X') == "1 2" ]]
	[[ $(limactl shell --workdir /etc life -- pwd) == /etc ]]
	[[ $(LIMA_INSTANCE=life lima hostname) == lima-life ]]
	[[ $(in_guest sh -c 'echo "$FROM_YAML"') == "it's here" ]]
}

@test "the guest user is ours, with sudo" {
	local name
	name=$(in_guest id -un)
	[[ $(in_guest sudo id -u) == 0 ]]
	[[ $(in_guest sh -c 'echo ~') == /home/$name.guest ]]
}

@test "provisioning ran once, with parameters" {
	[[ $(in_guest cat /etc/from-system) == "system hello world" ]]
	[[ $(in_guest sudo cat /etc/from-data) == "data hello world" ]]
	[[ $(in_guest sh -c 'cat ~/from-user') == $(in_guest id -un) ]]
	[[ $(in_guest cat /var/log/system-runs) == run ]]
}

@test "a web server in the guest answers on localhost, then is refused" {
	local port pid
	port=$(free_port)
	pid=$(serve web python3 -m http.server --bind 127.0.0.1 "$port")
	until_ok 20 curl -sf -o /dev/null "http://127.0.0.1:$port/"
	curl -sf "http://127.0.0.1:$port/" | grep -q net.py
	curl -sf "http://[::1]:$port/" | grep -q net.py
	in_guest kill "$pid"
	until_ok 10 net refused 127.0.0.1 "$port"
}

@test "half-close is kept: the answer arrives after our FIN" {
	local port
	port=$(free_port)
	serve tcp python3 /tmp/net.py serve-tcp 0.0.0.0 "$port"
	until_ok 20 net tcp 127.0.0.1 "$port" hello
	[[ $(net tcp 127.0.0.1 "$port" hello) == "5 bytes: hello" ]]
}

@test "guest listeners on ::1 and :: are forwarded" {
	local port
	port=$(free_port)
	serve v6 python3 /tmp/net.py serve-tcp ::1 "$port"
	until_ok 20 net tcp 127.0.0.1 "$port" six
	port=$(free_port)
	serve any6 python3 /tmp/net.py serve-tcp :: "$port"
	until_ok 20 net tcp 127.0.0.1 "$port" six
}

@test "a UDP server in the guest answers on localhost" {
	local port
	port=$((20000 + RANDOM % 8000))
	serve udp python3 /tmp/net.py serve-udp 127.0.0.1 "$port"
	until_ok 20 net udp 127.0.0.1 "$port" hi
	[[ $(net udp 127.0.0.1 "$port" hi) == "echo hi" ]]
}

@test "user rules: another host port, and ignore" {
	serve rule python3 /tmp/net.py serve-tcp 127.0.0.1 "$PORT_A"
	serve ignored python3 /tmp/net.py serve-tcp 127.0.0.1 7001
	until_ok 20 net tcp 127.0.0.1 "$PORT_B" x
	net refused 127.0.0.1 7001
}

@test "a busy host port is told and taken when it is free" {
	local holder
	python3 -m http.server --bind 127.0.0.1 "$PORT_C" >/dev/null 2>&1 3>&- &
	holder=$!
	until_ok 10 curl -sf -o /dev/null "http://127.0.0.1:$PORT_C/"
	serve busy python3 /tmp/net.py serve-tcp 127.0.0.1 "$PORT_C"
	until_ok 20 grep -q "\"failed\".*:$PORT_C\"" "$LIMA_HOME/life/ha.stdout.log"
	kill "$holder"
	wait "$holder" || :
	until_ok 20 net tcp 127.0.0.1 "$PORT_C" mine
}

@test "port list, add, remove and watch, while it runs" {
	local port host watcher
	port=$(free_port) host=$(free_port)
	serve live python3 /tmp/net.py serve-tcp 127.0.0.1 "$port"
	until_ok 20 net tcp 127.0.0.1 "$port" x
	limactl port list life | grep -Eq "^tcp +127.0.0.1:$port +127.0.0.1:$port +forwarding"

	limactl port list --watch life >"$LIMA_HOME/watch" 3>&- &
	watcher=$!
	until_ok 10 grep -q ":$port on 127.0.0.1:$port: forwarding" "$LIMA_HOME/watch"
	[[ $(limactl port add -q life "$host:$port") == 127.0.0.1:$host ]]
	[[ $(net tcp 127.0.0.1 "$host" hello) == "5 bytes: hello" ]]
	until_ok 10 net refused 127.0.0.1 "$port"
	until_ok 10 grep -q ":$port on 127.0.0.1:$host: forwarding" "$LIMA_HOME/watch"
	limactl port list --json life | grep ":$host\"" | grep -q '"origin":"live".*"connectionsTotal":[1-9]'

	run limactl port add life "$host:$port"
	fails_with 1 "such a rule"
	run limactl port add life 70000:80
	fails_with 1 "is not a port"
	run curl -s --unix-socket "$LIMA_HOME/life/ha.sock" -d '{"guestPort": 0}' http://lima/v1/ports
	[[ $output == '{"error":'* ]]
	run limactl port remove life "$PORT_B"
	fails_with 1 "limactl port add --ignore life $PORT_A"

	limactl port remove life "$host"
	until_ok 10 net tcp 127.0.0.1 "$port" back
	net refused 127.0.0.1 "$host"
	limactl port add life --ignore "$port"
	until_ok 10 net refused 127.0.0.1 "$port"
	limactl port remove life --all
	until_ok 10 net tcp 127.0.0.1 "$port" back

	kill -INT "$watcher"
	wait "$watcher"
}

@test "the host agent answers on ha.sock" {
	local info
	info=$(curl -sf --unix-socket "$LIMA_HOME/life/ha.sock" http://lima/v1/info)
	[[ $info == *"\"sshLocalPort\":"* ]]
	curl -sf --unix-socket "$LIMA_HOME/life/ha.sock" http://lima/v1/ports | grep -q "$PORT_B"
}

@test "ssh.config works with plain ssh, host key checked" {
	[[ $(ssh -F "$LIMA_HOME/life/ssh.config" lima-life hostname) == lima-life ]]
	grep -q 'StrictHostKeyChecking yes' "$LIMA_HOME/life/ssh.config"
}

@test "copy, there and back, by scp and by rsync" {
	local from=$BATS_TEST_TMPDIR/from backend
	mkdir -p "$from/sub"
	echo one > "$from/a b"
	echo two > "$from/sub/two"
	for backend in scp rsync; do
		limactl copy --backend $backend "$from/a b" "life:/tmp/$backend file"
		[[ $(in_guest cat "/tmp/$backend file") == one ]]
		limactl copy --backend $backend -r "$from" "life:/tmp/$backend-new"
		[[ $(in_guest cat "/tmp/$backend-new/sub/two") == two ]]
		limactl copy --backend $backend -r "$from/" "life:/tmp/$backend-new"
		[[ $(in_guest cat "/tmp/$backend-new/from/sub/two") == two ]]
		limactl copy --backend $backend -r "life:/tmp/$backend-new" "$BATS_TEST_TMPDIR/$backend"
		[[ $(cat "$BATS_TEST_TMPDIR/$backend/a b") == one ]]
		run limactl copy --backend $backend life:/no/such "$BATS_TEST_TMPDIR/x"
		[[ $status -ne 0 ]]
	done
	limactl copy "$from/a b" life:
	[[ $(in_guest sh -c 'cat ~/"a b"') == one ]]
	limactl copy life:/tmp/scp-new/sub/two life:/tmp/again
	[[ $(in_guest cat /tmp/again) == two ]]
	run limactl copy "$from" life:/tmp
	[[ $status -ne 0 ]]
}

@test "copy from one instance to another" {
	# the same machine under a second name
	local twin=$LIMA_HOME/twin file
	mkdir -m 700 "$twin"
	for file in lima.yaml ha.pid qemu.pid; do
		cp "$LIMA_HOME/life/$file" "$twin"
	done
	sed 's/^Host .*/Host lima-twin/' "$LIMA_HOME/life/ssh.config" > "$twin/ssh.config"
	in_guest sh -c 'echo three > /tmp/three'
	limactl copy life:/tmp/three twin:/tmp/four
	[[ $(in_guest cat /tmp/four) == three ]]
	run limactl copy --backend rsync life:/tmp/three twin:/tmp/five
	fails_with 1 "--backend scp"
	rm -r "$twin"
}

@test "show-ssh says how to reach it, in every form" {
	[[ $(eval "$(limactl show-ssh life) hostname") == lima-life ]]
	[[ $(eval "ssh $(limactl show-ssh --format args life) anything hostname") == lima-life ]]
	limactl show-ssh --format options life | grep -Eq '^Port=[0-9]+$'
	limactl show-ssh --format config life > "$BATS_TEST_TMPDIR/config"
	[[ $(ssh -F "$BATS_TEST_TMPDIR/config" lima-life hostname) == lima-life ]]
}

@test "list, in every form" {
	run --separate-stderr limactl list
	[[ ${lines[0]} == NAME*STATUS*SSH*VMTYPE*ARCH*CPUS*MEMORY*DISK*DIR ]]
	[[ ${lines[1]} == life*Running*127.0.0.1:*qemu*1GiB*8GiB* ]]
	[[ $(limactl list -q) == life ]]
	[[ $(field life cpus) == 2 ]]
}

@test "a second start of a running instance is fine, deleting it is not" {
	run limactl start life
	fails_with 0 "running"
	run limactl delete life
	fails_with 1 "running"
	status_is life Running
}

@test "files and sockets are private" {
	[[ $(stat -c %a "$LIMA_HOME/life") == 700 ]]
	[[ $(stat -c %a "$LIMA_HOME/life/ha.sock") == 600 ]]
	[[ $(stat -c %a "$LIMA_HOME/life/ga.secret") == 600 ]]
}

@test "stop ends everything and keeps the disk" {
	in_guest sh -c 'echo kept > ~/kept; sync'
	run limactl stop life
	[[ $status -eq 0 ]]
	status_is life Stopped
	no_orphans
	net refused 127.0.0.1 "$PORT_B"
	run limactl stop life
	fails_with 1 "not running"
	run limactl shell life true
	fails_with 1 "limactl start life"
	run limactl port list life
	fails_with 1 "limactl start life"
}

@test "snapshots of a stopped instance" {
	limactl snapshot save life --tag "off, 1"
	limactl snapshot ls life | grep -Eq '^off, 1 .* disk only$'
	limactl snapshot list --json life | grep -q '"tag":"off, 1".*"memoryBytes":0'
	run limactl snapshot create life --tag "off, 1"
	fails_with 1 "already"
	limactl snapshot load life --tag "off, 1"
	limactl snapshot del life --tag "off, 1"
	[[ -z $(limactl snapshot ls -q life) ]]
	run limactl snapshot apply life --tag gone
	fails_with 1 "there is none"
	run limactl snapshot create life --tag 7
	fails_with 1 "put a letter into it"
	run limactl snapshot create life
	fails_with 1 "expected tag"
}

@test "start again goes on where we were, without a first boot" {
	limactl start --tty=false life
	[[ $(in_guest sh -c 'cat ~/kept') == kept ]]
	[[ $(in_guest cat /var/log/system-runs | wc -l) -eq 2 ]]
}

@test "delete -f leaves nothing" {
	limactl delete -f life
	[[ ! -e $LIMA_HOME/life ]]
	no_orphans
}
