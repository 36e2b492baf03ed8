# What happens when something is wrong before a machine could run: one clear
# line with cause and remedy, exit code 1, and nothing left behind.
load lib

setup_file() { new_home; }
teardown_file() { drop_home; }

write() { cat > "$BATS_TEST_TMPDIR/$1"; }

create() { limactl create --tty=false --name t "$BATS_TEST_TMPDIR/t.yaml"; }

nothing_was_made() {
	[[ -z $(limactl list -q 2>/dev/null) ]]
	[[ -z $(find "$LIMA_HOME" -mindepth 1 -maxdepth 1 ! -name _config 2>/dev/null) ]]
	no_orphans
}

@test "malformed YAML is told with its place" {
	write t.yaml <<< $'images:\n- location: "x\n'
	run create
	fails_with 1 "t.yaml:"
	nothing_was_made
}

@test "wrong types are all told in one run" {
	write t.yaml <<-'EOF'
		images: [{location: "mmdebstrap:bookworm"}]
		cpus: many
		memory: [1]
	EOF
	run create
	fails_with 1 "t.yaml:2:1: cpus"
	fails_with 1 "t.yaml:3:1: memory"
	nothing_was_made
}

@test "an unknown key warns with its place and does no harm" {
	write t.yaml <<-'EOF'
		images: [{location: "mmdebstrap:bookworm"}]
		cpu: 2
	EOF
	run limactl validate "$BATS_TEST_TMPDIR/t.yaml"
	fails_with 0 "t.yaml:2:1"
}

@test "ports 0, 22 and 65536 are refused" {
	local port
	for port in 0 22 65536; do
		write t.yaml <<-EOF
			images: [{location: "mmdebstrap:bookworm"}]
			portForwards:
			- guestPort: 8080
			  hostPort: $port
		EOF
		run create
		fails_with 1 "t.yaml:4:3: portForwards[0].hostPort"
	done
	nothing_was_made
}

@test "an unknown template names itself" {
	run limactl start --tty=false template:no-such-thing
	fails_with 1 "no-such-thing"
	nothing_was_made
}

@test "a name with a slash is refused" {
	run limactl start --tty=false --name a/b template:debian-local
	fails_with 1 "a/b"
	nothing_was_made
}

@test "what is neither a file nor a name is told as both" {
	run limactl start --tty=false no/such
	fails_with 1 "no file \`no/such\`, and an instance's name has only letters"
	run limactl start --tty=false nothing.yaml
	fails_with 1 "no file \`nothing.yaml\`"
	[[ $output != *letters* ]]
	nothing_was_made
}

@test "a home that cannot be used is told in one line" {
	local home=$BATS_TEST_TMPDIR/file
	touch "$home"
	LIMA_HOME=$home run limactl create --tty=false template:debian-local
	fails_with 1 "set LIMA_HOME"
	[[ ${#lines[@]} -eq 1 ]]
	((EUID == 0)) && return
	mkdir -m 0 "$BATS_TEST_TMPDIR/closed"
	LIMA_HOME=$BATS_TEST_TMPDIR/closed run limactl create --tty=false template:debian-local
	fails_with 1 "permission denied"
	[[ ${#lines[@]} -eq 1 ]]
}

@test "a missing image file is told, nothing is made" {
	write t.yaml <<< 'images: [{location: /no/such/image.qcow2}]'
	run create
	fails_with 1 "/no/such/image.qcow2"
	nothing_was_made
}

@test "a digest that does not match is told, nothing is made" {
	qemu-img create -q -f qcow2 "$BATS_TEST_TMPDIR/i.qcow2" 1M
	write t.yaml <<-EOF
		images:
		- location: $BATS_TEST_TMPDIR/i.qcow2
		  digest: sha256:$(printf '0%.0s' {1..64})
	EOF
	run create
	fails_with 1 "digest"
	nothing_was_made
}

@test "an image that points to another file is refused" {
	qemu-img create -q -f raw "$BATS_TEST_TMPDIR/secret.raw" 1M
	qemu-img create -q -f qcow2 -b "$BATS_TEST_TMPDIR/secret.raw" -F raw "$BATS_TEST_TMPDIR/i.qcow2"
	write t.yaml <<< "images: [{location: $BATS_TEST_TMPDIR/i.qcow2}]"
	run create
	fails_with 1 "names another file"
	nothing_was_made
}

@test "a full disk is told, nothing is made" {
	head -c 4M /dev/urandom > "$BATS_TEST_TMPDIR/i.raw"
	write t.yaml <<< "images: [{location: $BATS_TEST_TMPDIR/i.raw}]"
	run bash -c "ulimit -f 1024; trap '' XFSZ; limactl create --tty=false --name t $BATS_TEST_TMPDIR/t.yaml"
	[[ $status -eq 1 ]]
	nothing_was_made
}

@test "a missing QEMU is told with the package to install" {
	write t.yaml <<< 'images: [{location: "mmdebstrap:bookworm"}]'
	mkdir "$BATS_TEST_TMPDIR/bin"
	ln -s "$(command -v limactl)" "$BATS_TEST_TMPDIR/bin/limactl"
	PATH=$BATS_TEST_TMPDIR/bin run limactl start --tty=false --name t "$BATS_TEST_TMPDIR/t.yaml"
	fails_with 1 "qemu-system-x86"
	QEMU_SYSTEM_X86_64=/no/such/qemu run limactl start --tty=false --name t "$BATS_TEST_TMPDIR/t.yaml"
	fails_with 1 "/no/such/qemu"
	nothing_was_made
}

@test "a QEMU that is too old is told" {
	printf '#!/bin/sh\necho "QEMU emulator version 3.1.0"\n' > "$BATS_TEST_TMPDIR/qemu"
	chmod +x "$BATS_TEST_TMPDIR/qemu"
	write t.yaml <<< 'images: [{location: "mmdebstrap:bookworm"}]'
	QEMU_SYSTEM_X86_64=$BATS_TEST_TMPDIR/qemu run limactl start --tty=false --name t "$BATS_TEST_TMPDIR/t.yaml"
	fails_with 1 "3.1.0"
	nothing_was_made
}

@test "directories without or with a broken lima.yaml hurt nobody" {
	mkdir -p "$LIMA_HOME/empty" "$LIMA_HOME/broken" "$LIMA_HOME/good"
	echo 'cpus: [' > "$LIMA_HOME/broken/lima.yaml"
	echo 'images: [{location: "mmdebstrap:bookworm"}]' > "$LIMA_HOME/good/lima.yaml"
	run --separate-stderr limactl list
	[[ $status -eq 0 ]]
	[[ $output == *"good"*"Stopped"* ]]
	grep -Eq '^broken +Broken' <<< "$output"
	grep -Eq '^empty +Broken' <<< "$output"
	run limactl delete empty broken good
	[[ $status -eq 0 ]]
	nothing_was_made
}

@test "unknown instances, verbs and flags say what to do" {
	run limactl shell nobody
	fails_with 1 "limactl start nobody"
	run limactl stop nobody
	fails_with 1 "nobody"
	run limactl strat
	fails_with 1 "start"
	run limactl list --no-such-flag
	fails_with 1 "--no-such-flag"
	run limactl delete nobody
	fails_with 0 "nobody"
}

@test "a protected instance is neither deleted nor reset" {
	mkdir -p "$LIMA_HOME/safe"
	echo 'images: [{location: "mmdebstrap:bookworm"}]' > "$LIMA_HOME/safe/lima.yaml"
	touch "$LIMA_HOME/safe/disk"
	run limactl protect safe
	fails_with 0 "limactl unprotect safe"
	run limactl protect safe
	fails_with 0 "already"
	run limactl delete -f safe
	fails_with 1 "limactl unprotect safe"
	run limactl factory-reset safe
	fails_with 1 "limactl unprotect safe"
	[[ -e $LIMA_HOME/safe/disk ]]
	limactl unprotect safe
	limactl factory-reset safe
	[[ ! -e $LIMA_HOME/safe/disk && -e $LIMA_HOME/safe/lima.yaml ]]
	limactl delete safe
	run limactl factory-reset safe
	fails_with 0 "does not exist"
	nothing_was_made
}

@test "edit, by flags and in an editor, refuses what would break it" {
	mkdir -p "$LIMA_HOME/text"
	local yaml=$LIMA_HOME/text/lima.yaml
	printf '# mine\nimages: [{location: "mmdebstrap:bookworm"}]\ndisk: 20GiB\n' > "$yaml"
	limactl edit text --cpus 3 --set '.env.A = "b"'
	grep -q '^# mine' "$yaml" && grep -q '^cpus: 3' "$yaml"
	run limactl edit text --disk 10
	fails_with 1 "cannot shrink"
	run limactl edit text --tty=false
	fails_with 1 "--set"
	run limactl edit text --cpus 3
	fails_with 0 "nothing was changed"

	cd "$BATS_TEST_TMPDIR"
	in_editor() { EDITOR=$1 script -qec "limactl edit text" /dev/null </dev/null; }
	run in_editor "sed -i s/^cpus.*/cpus:\ 5/"
	fails_with 0 "was changed"
	grep -q '^cpus: 5' "$yaml" && [[ $(head -n1 "$yaml") == "# mine" ]]
	run in_editor "sed -i s/^cpus.*/cpus:\ lots/"
	fails_with 1 "lima.REJECTED.yaml"
	grep -q '^cpus: lots' lima.REJECTED.yaml && grep -q '^cpus: 5' "$yaml"
	run in_editor "truncate -s 0"
	fails_with 1 "nothing was changed"
	run in_editor false
	fails_with 1 "nothing was changed"

	limactl edit ./lima.REJECTED.yaml --cpus 1
	grep -q '^cpus: 1' lima.REJECTED.yaml
	limactl delete text
	nothing_was_made
}

@test "clone and rename keep the disk, and take no name that is taken" {
	mkdir -p "$LIMA_HOME/one"
	printf 'images: [{location: "mmdebstrap:bookworm"}]\ncpus: 1\n' > "$LIMA_HOME/one/lima.yaml"
	echo content > "$LIMA_HOME/one/disk"
	touch "$LIMA_HOME/one/instance-id" "$LIMA_HOME/one/protected"
	limactl clone one two --cpus 2
	[[ $(cat "$LIMA_HOME/two/disk") == content && $(field two cpus) == 2 && $(field one cpus) == 1 ]]
	[[ ! -e $LIMA_HOME/two/instance-id && ! -e $LIMA_HOME/two/protected ]]
	[[ $(limactl list -q --filter '.config.cpus == 2 and .name != "o*"') == two ]]
	run limactl list --filter '.cpus | length'
	fails_with 1 "column 7"
	run limactl clone one two
	fails_with 1 "already exists"
	run limactl clone one three --disk 1
	fails_with 1 "cannot shrink"
	run limactl clone one a/b
	fails_with 1 "a/b"
	run limactl rename two one
	fails_with 1 "already exists"
	limactl rename two three
	[[ $(cat "$LIMA_HOME/three/disk") == content && ! -e $LIMA_HOME/two ]]
	limactl unprotect one
	limactl delete one three
	nothing_was_made
}

@test "what validate fills in is a configuration itself" {
	limactl validate --fill template:debian-local 2>/dev/null > "$BATS_TEST_TMPDIR/filled.yaml"
	grep -q '^disk: 100GiB' "$BATS_TEST_TMPDIR/filled.yaml"
	run limactl validate "$BATS_TEST_TMPDIR/filled.yaml"
	fails_with 0 "OK"
	limactl validate --fill "$BATS_TEST_TMPDIR/filled.yaml" 2>/dev/null | diff "$BATS_TEST_TMPDIR/filled.yaml" -
}

@test "list writes JSON, YAML and templates of the same" {
	mkdir -p "$LIMA_HOME/view"
	echo 'images: [{location: "mmdebstrap:bookworm"}]' > "$LIMA_HOME/view/lima.yaml"
	[[ $(limactl list --format json) == "$(limactl list --json)" ]]
	[[ $(limactl list --format yaml) == ---*"name: view"*"status: Stopped"* ]]
	[[ $(limactl list --format '{{.Name}} {{.Status}}{{if .Protected}} p{{end}}') == "view Stopped" ]]
	run limactl list --format '{{.Nonsense}}'
	fails_with 1 "limactl list --list-fields"
	run limactl list --format xml
	fails_with 1 "none of table, json, yaml"
	[[ $(limactl create --list-templates) == *debian-local* ]]
	limactl delete view
}

@test "copy and show-ssh say what is missing" {
	mkdir -p "$LIMA_HOME/off"
	echo 'images: [{location: "mmdebstrap:bookworm"}]' > "$LIMA_HOME/off/lima.yaml"
	run limactl copy /etc/hosts /tmp/x
	fails_with 1 "INSTANCE:PATH"
	run limactl copy /etc/hosts nobody:
	fails_with 1 "limactl start nobody"
	run limactl copy off:/etc/hosts "$BATS_TEST_TMPDIR/hosts"
	fails_with 1 "limactl start off"
	run limactl show-ssh off
	fails_with 1 "limactl start off"
	limactl delete off
}

@test "every shipped template is valid" {
	local t
	for t in default debian-12 debian-13 ubuntu-24.04 ubuntu-26.04 fedora alpine archlinux debian-local; do
		run limactl validate "template:$t"
		fails_with 0 "OK"
	done
}
