# shellcheck shell=bash
#
# What the lab's verbs share: the words (nodes, links, directions), where a lab's record is kept,
# and the few functions that touch a network namespace.
#
# A lab lives in network namespaces only. Nothing is made in the root namespace (except the veth of
# `lab-up --host-link`), so two labs cannot collide whatever their addresses: each sees its own.
#
#   n1 ─ nat ─ [cgn] ─ wan ─ gw1        link names: n1, uplink1, uplink2, cgn, gw1
#   nN ┘   └ uplink2 ──┘   └ gwM        direction "up" = from a node towards a gateway
#
# A lab's record is a directory of one-line files. It is made before the first namespace and removed
# after the last, so that whatever a crash leaves behind can be found and cleared.
#
# Functions answer in REPLY and not on standard output: in the test host's emulated guest a fork
# costs tens of milliseconds, and these scripts would be made of them.

set -Eeuo pipefail
shopt -s nullglob

prog=${0##*/}
lab_home=$(cd "${BASH_SOURCE[0]%/*}/.." && pwd)
lab_state_root=${HOLDFAST_LAB_DIR:-/run/holdfast-lab}

# Both ends of every link have a fixed MAC: each link is its own wire, so nothing can clash, and
# neighbours can be entered for good. ARP then never takes part in a fault.
mac_node_side=02:00:00:00:00:01
mac_gateway_side=02:00:00:00:00:02

# shellcheck disable=SC2034  # for service and status
service_address=203.0.113.100

# ---- speaking ------------------------------------------------------------------------------------

quiet=
say()  { [[ -n $quiet ]] || printf '%s\n' "$*"; }
warn() { printf '%s: %s\n' "$prog" "$*" >&2; }
die()  { warn "$*"; exit 1; }
# 2: the caller's mistake, as in every other command here.
bad_usage() { warn "$*"; printf 'Try %s --help\n' "$prog" >&2; exit 2; }
# 3: asked for something that this kernel cannot do.
unsupported() { warn "$*"; exit 3; }

trap 'warn "failed at ${BASH_SOURCE[0]##*/}:$LINENO: $BASH_COMMAND"' ERR

# need_value "$@" where $1 is the option: complains when nothing follows it.
need_value() { [[ $# -ge 2 ]] || bad_usage "$1 needs a value"; }

in_range() { [[ $1 =~ ^[0-9]{1,9}$ ]] && (( 10#$1 >= $2 && 10#$1 <= $3 )); }
is_ipv4() { [[ $1 =~ ^([0-9]{1,3}\.){3}[0-9]{1,3}$ ]]; }
is_one_of() { local word=$1; shift; [[ " $* " == *" $word "* ]]; }

# ---- needs ---------------------------------------------------------------------------------------

need_root() { [[ $EUID -eq 0 ]] || die "needs root (network namespaces)"; }

need_tools() {
    local tool missing=()
    for tool in ip tc nft conntrack nsenter flock; do
        command -v "$tool" >/dev/null || missing+=("$tool")
    done
    [[ ${#missing[@]} -eq 0 ]] || die "missing: ${missing[*]}; run $lab_home/install-deps"
}

# ---- a lab's record ------------------------------------------------------------------------------

lab='' state=''

# Ten characters: "<name>-gw1h" is the longest interface name made from it, and the kernel allows 15.
name_lab() {
    [[ $1 =~ ^[a-z][a-z0-9-]{0,9}$ ]] ||
        bad_usage "lab name \"$1\": must be 1 to 10 of a-z, 0-9 and -, starting with a letter"
    lab=$1 state=$lab_state_root/$1
}
name_lab "${HOLDFAST_LAB:-lab}"

# One verb at a time per lab; the lock goes with the process that holds it. lab-down removes the
# file, so a lock counts only if it is still the file that the name leads to.
lock_lab() {
    local file=$lab_state_root/.locks/$lab
    [[ -d $lab_state_root/.locks ]] || mkdir -p "$lab_state_root/.locks"
    while
        exec {lab_lock}>"$file"
        flock -w 30 "$lab_lock" || die "lab \"$lab\" has been busy for 30 s (another verb holds its lock)"
        [[ ! /proc/self/fd/$lab_lock -ef $file ]]
    do exec {lab_lock}>&-; done
}
unlock_lab() { exec {lab_lock}>&-; }

# What is on record, by key; read once, written through.
declare -A record=()
keep()   { printf '%s\n' "$2" >"$state/.new" && mv "$state/.new" "$state/$1"; record[$1]=$2; }
forget() { [[ -z ${record[$1]+set} ]] || rm -f "$state/$1"; unset "record[$1]"; }

read_lab() {
    local file line
    record=()
    for file in "$state"/*; do
        IFS= read -r line <"$file" || true
        record[${file##*/}]=$line
    done
    nodes=${record[nodes]-1} gateways=${record[gateways]-1} uplinks=${record[uplinks]-1}
    double_nat=${record[double_nat]-}
    list_parts
}

# Opens an existing lab for a verb that changes it.
enter_lab() {
    need_root; need_tools
    [[ -e $state/nodes ]] || die "there is no lab \"$lab\"; make it with: $lab_home/lab-up --name $lab"
    lock_lab
    [[ -e $state/nodes ]] || die "lab \"$lab\" was taken down meanwhile"
    read_lab
}

# ---- names ---------------------------------------------------------------------------------------

# roles: every namespace by its short name; nats: those of them that translate; links: every link.
roles=() nats=() links=()
list_parts() {
    local i
    roles=() nats=(nat) links=()
    [[ -z $double_nat ]] || nats+=(cgn)
    for (( i = 1; i <= nodes; i++ )); do roles+=("n$i"); links+=("n$i"); done
    roles+=("${nats[@]}" wan)
    for (( i = 1; i <= uplinks; i++ )); do links+=("uplink$i"); done
    [[ -z $double_nat ]] || links+=(cgn)
    for (( i = 1; i <= gateways; i++ )); do roles+=("gw$i"); links+=("gw$i"); done
}

check_link() {
    is_one_of "$1" "${links[@]}" || bad_usage "--link: lab \"$lab\" has no link \"$1\"; it has: ${links[*]}"
}

check_node() {
    [[ $1 =~ ^n[0-9]+$ ]] && is_one_of "$1" "${roles[@]}" && return
    bad_usage "lab \"$lab\" has no node \"$1\"; it has n1 to n$nodes"
}

# The NAT whose mappings a verb touches.
check_nat() {
    is_one_of "$1" nat cgn || bad_usage "--at: \"$1\" is neither nat nor cgn"
    is_one_of "$1" "${nats[@]}" || bad_usage "--at cgn: lab \"$lab\" has one NAT (lab-up --double-nat makes two)"
}

check_dir() {
    is_one_of "$1" up down both || bad_usage "--dir: \"$1\" is none of up, down, both"
}
# The directions behind a --dir, in the array dirs.
# shellcheck disable=SC2034  # for the verbs
expand_dir() { if [[ $1 == both ]]; then dirs=(up down); else dirs=("$1"); fi; }

# find_end LINK node|gateway: the namespace and the interface at that end, in role and dev.
# shellcheck disable=SC2034  # for the verbs
find_end() {
    case $1:$2 in
        n[0-9]*:node)      role=$1 dev=eth0 ;;
        n[0-9]*:gateway)   role=nat dev=$1 ;;
        uplink*:node)      role=nat dev=up${1#uplink} ;;
        uplink1:gateway)   if [[ -n $double_nat ]]; then role=cgn dev=down1; else role=wan dev=nat1; fi ;;
        uplink*:gateway)   role=wan dev=nat${1#uplink} ;;
        cgn:node)          role=cgn dev=up1 ;;
        cgn:gateway)       role=wan dev=cgn1 ;;
        gw*:node)          role=wan dev=$1 ;;
        gw*:gateway)       role=$1 dev=eth0 ;;
    esac
}

# Where packets of a direction leave a link's one end, and where they arrive at the other.
find_sender()   { if [[ $2 == up ]]; then find_end "$1" node; else find_end "$1" gateway; fi; }
find_receiver() { if [[ $2 == up ]]; then find_end "$1" gateway; else find_end "$1" node; fi; }

# ---- addresses -----------------------------------------------------------------------------------

# Each renumberable address has two values, .2 and .3, and the record says which is in force.
node_address()    { REPLY=10.77.${1#n}.${record[$1.host]-2}; }
uplink_address()  { REPLY=100.64.$1.${record[uplink$1.host]-2}; }
cgn_address()     { REPLY=198.51.100.${record[cgn.host]-2}; }
gateway_address() { REPLY=203.0.113.${1#gw}; }
# The address under which the world sees a NAT now.
outer_address() { if [[ $1 == cgn ]]; then cgn_address; else uplink_address "${record[uplink]-1}"; fi; }

# The lines for `ip -batch` that give one namespace its addresses, routes and neighbours. All of
# them replace, so the same lines serve to build the lab and to restore it after a link was down.
ip_plan() {
    local i k
    neighbour() { echo "neigh replace $1 lladdr $2 nud permanent dev $3"; }
    case $1 in
        n[0-9]*)
            i=${1#n}
            node_address "$1"
            echo "addr replace $REPLY/24 dev eth0"
            neighbour "10.77.$i.1" $mac_gateway_side eth0
            echo "route replace default via 10.77.$i.1 dev eth0"
            ;;
        nat)
            for (( i = 1; i <= nodes; i++ )); do
                echo "addr replace 10.77.$i.1/24 dev n$i"
                for k in 2 3; do neighbour "10.77.$i.$k" $mac_node_side "n$i"; done
            done
            for (( i = 1; i <= uplinks; i++ )); do
                uplink_address $i
                echo "addr replace $REPLY/24 dev up$i"
                neighbour "100.64.$i.1" $mac_gateway_side "up$i"
            done
            i=${record[uplink]-1}
            echo "route replace default via 100.64.$i.1 dev up$i"
            ;;
        cgn)
            echo "addr replace 100.64.1.1/24 dev down1"
            for k in 2 3; do neighbour "100.64.1.$k" $mac_node_side down1; done
            cgn_address
            echo "addr replace $REPLY/24 dev up1"
            neighbour 198.51.100.1 $mac_gateway_side up1
            echo "route replace default via 198.51.100.1 dev up1"
            ;;
        wan)
            for (( i = 1; i <= uplinks; i++ )); do
                [[ $i != 1 || -z $double_nat ]] || continue
                echo "addr replace 100.64.$i.1/24 dev nat$i"
                for k in 2 3; do neighbour "100.64.$i.$k" $mac_node_side "nat$i"; done
            done
            if [[ -n $double_nat ]]; then
                echo "addr replace 198.51.100.1/24 dev cgn1"
                for k in 2 3; do neighbour "198.51.100.$k" $mac_node_side cgn1; done
            fi
            for (( i = 1; i <= gateways; i++ )); do
                echo "addr replace 10.88.$i.1/32 dev gw$i"
                neighbour "203.0.113.$i" $mac_gateway_side "gw$i"
                echo "route replace 203.0.113.$i/32 dev gw$i src 10.88.$i.1"
            done
            ;;
        gw*)
            i=${1#gw}
            echo "addr replace 203.0.113.$i/32 dev eth0"
            neighbour "10.88.$i.1" $mac_node_side eth0
            echo "route replace 10.88.$i.1/32 dev eth0 src 203.0.113.$i"
            echo "route replace default via 10.88.$i.1 dev eth0 src 203.0.113.$i"
            ;;
    esac
}

# ---- touching a namespace ------------------------------------------------------------------------

# nsenter and not `ip netns exec`: no mount namespace is needed, and it works inside a chroot.
inside() { local where=$1; shift; nsenter --net="/run/netns/$lab-$where" -- "$@"; }

ip_batch() { ip -n "$lab-$1" -batch -; }
rewire() { ip_plan "$1" | ip_batch "$1"; }

# Under /proc/sys/net, of a namespace: put_sysctl ROLE KEY VALUE; get_sysctls ROLE KEY... into the array
# sysctls.
# shellcheck disable=SC2016  # the inner shell expands it
put_sysctl() { inside "$1" sh -c 'echo "$2" >"/proc/sys/net/$1"' sh "$2" "$3"; }
# shellcheck disable=SC2034  # for the verbs
get_sysctls() { local where=$1; shift; mapfile -t sysctls < <(inside "$where" cat "${@/#//proc/sys/net/}"); }

# ---- dropping on arrival -------------------------------------------------------------------------

# Packets are dropped where they arrive (netdev ingress), never where they leave: a drop in a
# sender's own output path comes back to it as EPERM, which no real network does. ARP is left alone,
# so a cut is silent; `partition --down` is the one that the kernel notices.

# drop_on_arrival KIND ROLE INTERFACE MATCH...
drop_on_arrival() {
    local chain=${1}_$3 where=$2 interface=$3; shift 3
    inside "$where" nft -f - <<NFT
add table netdev lab
add chain netdev lab $chain { type filter hook ingress device "$interface" priority 0; policy accept; }
flush chain netdev lab $chain
add rule netdev lab $chain $* counter drop
NFT
}

# add before delete: so it is no error when there was nothing to end.
stop_dropping() {
    inside "$2" nft -f - <<NFT
add table netdev lab
add chain netdev lab ${1}_$3 { type filter hook ingress device "$3" priority 0; policy accept; }
flush chain netdev lab ${1}_$3
delete chain netdev lab ${1}_$3
NFT
}

# How many packets a drop has eaten so far.
dropped() {
    local text
    text=$(inside "$2" nft list chain netdev lab "${1}_$3")
    REPLY=0
    [[ ! $text =~ counter\ packets\ ([0-9]+) ]] || REPLY=${BASH_REMATCH[1]}
}

# ---- NAT -----------------------------------------------------------------------------------------

# The source-NAT rules of a NAT, for nft: with a port range when a rebind has asked for one.
masquerade_rules() {
    local i last=1 range=${record[$1.ports]-}
    [[ $1 == cgn ]] || last=$uplinks
    echo "add table ip nat"
    echo "add chain ip nat postrouting { type nat hook postrouting priority 100; policy accept; }"
    echo "flush chain ip nat postrouting"
    for (( i = 1; i <= last; i++ )); do
        [[ -z $range ]] ||
            echo "add rule ip nat postrouting oifname \"up$i\" meta l4proto { tcp, udp } masquerade to :$range random"
        echo "add rule ip nat postrouting oifname \"up$i\" masquerade"
    done
}

# Deletes the conntrack entries that match and answers how many. conntrack exits 1 when none did,
# which is not an error here. It dumps the table, then deletes one entry after the other, saying each,
# and ends at the first that has gone by itself in between (it timed out, or masquerading dropped it
# because its route moved): then another look finds what is left. Each look meets fewer entries, so a
# few are enough; the bound is against a conntrack that never ends.
delete_entries() {
    local where=$1 look lines said; shift
    REPLY=0
    for look in {1..20}; do
        lines=$(inside "$where" conntrack -D "$@" 2>&1) || true
        said=$(grep '^conntrack v' <<<"$lines") || true
        REPLY=$(( REPLY + $(grep -vc -e '^conntrack v' -e '^$' <<<"$lines" || true) ))
        [[ $said != *"flow entries have been deleted"* ]] || return 0
        [[ $said == *"such conntrack doesn't exist"* ]] || break
    done
    die "conntrack -D $* in $lab-$where, look $look: $lines"
}
