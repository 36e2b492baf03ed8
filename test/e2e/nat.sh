#!/bin/sh
# nat.sh - ports that only address translation publishes; in the guest, as root
#
#   nat.sh pod           a namespace like a container's, in it servers: TCP 80, UDP 53
#   nat.sh cni           20350 as CNI's portmap plugin publishes it, by iptables-nft
#   nat.sh nft           20351, TCP and UDP, by nftables
#   nat.sh legacy        20352, by iptables-legacy
#   nat.sh kube          30350, a NodePort as kube-proxy publishes it
#   nat.sh flush         none of them any more
#
set -eu
here=$(dirname "$0")
pod=10.88.0.2

nft() { sh "$here/tool" nft "$@"; }
cni_table() { sh "$here/tool" xtables-nft-multi iptables -w -t nat "$@"; }
legacy_table() { sh "$here/tool" xtables-legacy-multi iptables -w -t nat "$@"; }

pod() {
	ip netns add pod
	ip link add pod0 type veth peer name eth0 netns pod
	ip addr add 10.88.0.1/24 dev pod0
	ip link set pod0 up
	ip -n pod addr add "$pod/24" dev eth0
	ip -n pod link set eth0 up
	ip -n pod route add default via 10.88.0.1
	ip netns exec pod python3 "$here/net.py" serve-tcp "$pod" 80 </dev/null >/dev/null 2>&1 &
	ip netns exec pod python3 "$here/net.py" serve-udp "$pod" 53 </dev/null >/dev/null 2>&1 &
}

cni() {
	cni_table -N CNI-HOSTPORT-DNAT
	cni_table -A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT
	cni_table -A OUTPUT -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT
	cni_table -N CNI-DN-pod
	cni_table -A CNI-HOSTPORT-DNAT -p tcp -m comment --comment 'dnat name: "pod"' \
		-m multiport --dports 20350 -j CNI-DN-pod
	cni_table -A CNI-DN-pod -p tcp --dport 20350 -j DNAT --to-destination "$pod:80"
}

nft_rules() {
	nft -f - <<-EOF
		table ip pods {
			chain in {
				type nat hook prerouting priority dstnat
				fib daddr type local tcp dport 20351 dnat to $pod:80
				fib daddr type local udp dport 20351 dnat to $pod:53
			}
		}
	EOF
}

legacy() {
	legacy_table -A PREROUTING -m addrtype --dst-type LOCAL -p tcp --dport 20352 \
		-j DNAT --to-destination "$pod:80"
}

kube() {
	for chain in KUBE-SERVICES KUBE-NODEPORTS KUBE-EXT-A KUBE-SVC-A KUBE-SEP-A; do
		cni_table -N "$chain"
	done
	cni_table -A PREROUTING -j KUBE-SERVICES
	cni_table -A OUTPUT -j KUBE-SERVICES
	cni_table -A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS
	cni_table -A KUBE-NODEPORTS -p tcp --dport 30350 -j KUBE-EXT-A
	cni_table -A KUBE-EXT-A -j KUBE-SVC-A
	cni_table -A KUBE-SVC-A -m statistic --mode random --probability 1 -j KUBE-SEP-A
	cni_table -A KUBE-SEP-A -p tcp -j DNAT --to-destination "$pod:80"
}

flush() {
	nft flush ruleset
	legacy_table -F
}

case $1 in
nft) nft_rules ;;
pod | cni | legacy | kube | flush) "$1" ;;
*) exit 2 ;;
esac
