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
# A lab's record is a directory of one-value files. It is made before the first namespace and
# removed after the last, so that whatever a crash leaves behind can be found and cleared.

set -Eeuo pipefail

prog=$(basename "$0")
lab_home=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
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

# The value of an option, or a complaint that it has none: `value --link "$@"`.
value() { [[ $# -ge 3 ]] || bad_usage "$1 needs a value"; printf '%s' "$3"; }

is_number() { [[ $1 =~ ^[0-9]+$ ]]; }
in_range() { is_number "$1" && (( 10#$1 >= $2 && 10#$1 <= $3 )); }

# ---- needs ---------------------------------------------------------------------------------------

need_root() { [[ $(id -u) -eq 0 ]] || die "needs root (network namespaces)"; }

need_tools() {
    local tool missing=()
    for tool in ip tc nft conntrack nsenter flock; do
        command -v "$tool" >/dev/null || missing+=("$tool")
    done
    [[ ${#missing[@]} -eq 0 ]] || die "missing: ${missing[*]}; run $lab_home/install-deps"
}

# ---- a lab's record ------------------------------------------------------------------------------

lab=lab
state=

# Ten characters: "<name>-gw1h" is the longest interface name made from it, and the kernel allows 15.
check_name() {
    [[ $1 =~ ^[a-z][a-z0-9-]{0,9}$ ]] ||
        bad_usage "--name: \"$1\" must be 1 to 10 of a-z, 0-9 and -, starting with a letter"
}

name_lab() { check_name "$1"; lab=$1; state=$lab_state_root/$lab; }
name_lab "${HOLDFAST_LAB:-lab}"

# One verb at a time per lab; the lock goes with the process that holds it. lab-down removes the
# file, so a lock counts only if it is still the file that the name leads to.
lock_lab() {
    local file=$lab_state_root/.locks/$lab
    install -d -m 0755 "$lab_state_root/.locks"
    while
        exec {lab_lock}>"$file"
        flock -w 30 "$lab_lock" || die "lab \"$lab\" has been busy for 30 s (another verb holds its lock)"
        [[ ! /proc/self/fd/$lab_lock -ef $file ]]
    do exec {lab_lock}>&-; done
}

# Opens an existing lab for a verb that changes it.
enter_lab() {
    need_root; need_tools
    [[ -e $state/nodes ]] || die "there is no lab \"$lab\"; make it with: $lab_home/lab-up --name $lab"
    lock_lab
    [[ -e $state/nodes ]] || die "lab \"$lab\" was taken down meanwhile"
    read_lab
}

keep()   { printf '%s\n' "$2" >"$state/.$1.new" && mv "$state/.$1.new" "$state/$1"; }
forget() { rm -f "$state/$1"; }
recall() { if [[ -e $state/$1 ]]; then cat "$state/$1"; else printf '%s' "${2-}"; fi; }

# shellcheck disable=SC2034  # for the verbs
read_lab() {
    nodes=$(recall nodes 1) gateways=$(recall gateways 1) uplinks=$(recall uplinks 1)
    double_nat=$(recall double_nat) offload=$(recall offload)
}

# ---- names ---------------------------------------------------------------------------------------

ns() { printf '%s-%s' "$lab" "$1"; }

# Every namespace of the lab by its short name, nodes first.
lab_roles() {
    local i
    for (( i = 1; i <= nodes; i++ )); do echo "n$i"; done
    echo nat
    [[ -z $double_nat ]] || echo cgn
    echo wan
    for (( i = 1; i <= gateways; i++ )); do echo "gw$i"; done
}

lab_links() {
    local i
    for (( i = 1; i <= nodes; i++ )); do echo "n$i"; done
    for (( i = 1; i <= uplinks; i++ )); do echo "uplink$i"; done
    [[ -z $double_nat ]] || echo cgn
    for (( i = 1; i <= gateways; i++ )); do echo "gw$i"; done
}

has_word() { grep -qxF -- "$1"; }

check_link() {
    lab_links | has_word "$1" ||
        bad_usage "--link: lab \"$lab\" has no link \"$1\"; it has: $(lab_links | xargs)"
}

check_node() {
    [[ $1 =~ ^n[0-9]+$ ]] && lab_roles | has_word "$1" && return
    bad_usage "lab \"$lab\" has no node \"$1\"; it has n1 to n$nodes"
}

# The NAT whose mappings a verb touches.
check_nat() {
    case $1 in
        nat) ;;
        cgn) [[ -n $double_nat ]] || bad_usage "--at cgn: lab \"$lab\" has one NAT (lab-up --double-nat makes two)" ;;
        *) bad_usage "--at: \"$1\" is neither nat nor cgn" ;;
    esac
}

# link_end LINK node|gateway -> "role interface"
link_end() {
    local link=$1 side=$2
    case $link:$side in
        n[0-9]*:node)      echo "$link eth0" ;;
        n[0-9]*:gateway)   echo "nat $link" ;;
        uplink*:node)      echo "nat up${link#uplink}" ;;
        uplink1:gateway)   if [[ -n $double_nat ]]; then echo "cgn down1"; else echo "wan nat1"; fi ;;
        uplink*:gateway)   echo "wan nat${link#uplink}" ;;
        cgn:node)          echo "cgn up1" ;;
        cgn:gateway)       echo "wan cgn1" ;;
        gw*:node)          echo "wan $link" ;;
        gw*:gateway)       echo "$link eth0" ;;
    esac
}

# Where packets of a direction leave the link's one end, and where they arrive at the other.
sending_end()   { if [[ $2 == up ]]; then link_end "$1" node; else link_end "$1" gateway; fi; }
receiving_end() { if [[ $2 == up ]]; then link_end "$1" gateway; else link_end "$1" node; fi; }

check_dir() {
    case $1 in up | down | both) ;; *) bad_usage "--dir: \"$1\" is none of up, down, both" ;; esac
}
dirs_of() { if [[ $1 == both ]]; then echo up down; else echo "$1"; fi; }

# ---- addresses -----------------------------------------------------------------------------------

# Each renumberable address has two values, .2 and .3, and the record says which is in force.
node_address()    { echo "10.77.${1#n}.$(recall "$1.host" 2)"; }
uplink_address()  { echo "100.64.$1.$(recall "uplink$1.host" 2)"; }
cgn_address()     { echo "198.51.100.$(recall cgn.host 2)"; }
gateway_address() { echo "203.0.113.${1#gw}"; }
other_host()      { if [[ $1 == 2 ]]; then echo 3; else echo 2; fi; }

# The lines for `ip -batch` that give one namespace its addresses, routes and neighbours. All of
# them replace, so the same lines serve to build the lab and to restore it after a link was down.
ip_plan() {
    local role=$1 i k
    case $role in
        n[0-9]*)
            echo "addr replace $(node_address "$role")/24 dev eth0"
            echo "neigh replace 10.77.${role#n}.1 lladdr $mac_gateway_side nud permanent dev eth0"
            echo "route replace default via 10.77.${role#n}.1 dev eth0"
            ;;
        nat)
            for (( i = 1; i <= nodes; i++ )); do
                echo "addr replace 10.77.$i.1/24 dev n$i"
                for k in 2 3; do echo "neigh replace 10.77.$i.$k lladdr $mac_node_side nud permanent dev n$i"; done
            done
            for (( i = 1; i <= uplinks; i++ )); do
                echo "addr replace $(uplink_address "$i")/24 dev up$i"
                echo "neigh replace 100.64.$i.1 lladdr $mac_gateway_side nud permanent dev up$i"
            done
            i=$(recall uplink 1)
            echo "route replace default via 100.64.$i.1 dev up$i"
            ;;
        cgn)
            echo "addr replace 100.64.1.1/24 dev down1"
            for k in 2 3; do echo "neigh replace 100.64.1.$k lladdr $mac_node_side nud permanent dev down1"; done
            echo "addr replace $(cgn_address)/24 dev up1"
            echo "neigh replace 198.51.100.1 lladdr $mac_gateway_side nud permanent dev up1"
            echo "route replace default via 198.51.100.1 dev up1"
            ;;
        wan)
            for (( i = 1; i <= uplinks; i++ )); do
                [[ $i == 1 && -n $double_nat ]] && continue
                echo "addr replace 100.64.$i.1/24 dev nat$i"
                for k in 2 3; do echo "neigh replace 100.64.$i.$k lladdr $mac_node_side nud permanent dev nat$i"; done
            done
            if [[ -n $double_nat ]]; then
                echo "addr replace 198.51.100.1/24 dev cgn1"
                for k in 2 3; do echo "neigh replace 198.51.100.$k lladdr $mac_node_side nud permanent dev cgn1"; done
            fi
            for (( i = 1; i <= gateways; i++ )); do
                echo "addr replace 10.88.$i.1/32 dev gw$i"
                echo "neigh replace 203.0.113.$i lladdr $mac_gateway_side nud permanent dev gw$i"
                echo "route replace 203.0.113.$i/32 dev gw$i src 10.88.$i.1"
            done
            ;;
        gw*)
            i=${role#gw}
            echo "addr replace 203.0.113.$i/32 dev eth0"
            echo "neigh replace 10.88.$i.1 lladdr $mac_node_side nud permanent dev eth0"
            echo "route replace 10.88.$i.1/32 dev eth0 src 203.0.113.$i"
            echo "route replace default via 10.88.$i.1 dev eth0 src 203.0.113.$i"
            ;;
    esac
}

# ---- touching a namespace ------------------------------------------------------------------------

# nsenter and not `ip netns exec`: no mount namespace is needed, and it works inside a chroot.
inside() { local role=$1; shift; nsenter --net="/run/netns/$(ns "$role")" -- "$@"; }

ip_batch() { ip -n "$(ns "$1")" -batch -; }

# shellcheck disable=SC2016  # the inner shell expands it
put_sysctl() { inside "$1" sh -c 'printf %s "$2" >"/proc/sys/net/$1"' sh "$2" "$3"; }
get_sysctl() { inside "$1" cat "/proc/sys/net/$2"; }

rewire() { ip_plan "$1" | ip_batch "$1"; }

# A kernel has sch_netem or has not: the only honest test is to try, once, when the lab is made.
try_netem() {
    inside wan tc qdisc replace dev lo root netem delay 1us 2>/dev/null || return 1
    inside wan tc qdisc del dev lo root
}
has_netem() { [[ -n $(recall netem) ]]; }

# ---- dropping on arrival -------------------------------------------------------------------------

# Packets are dropped where they arrive (netdev ingress), never where they leave: a drop in a
# sender's own output path comes back to it as EPERM, which no real network does. ARP is left alone,
# so a cut is silent; `partition --down` is the one that the kernel notices.

# drop_on_arrival KIND ROLE INTERFACE MATCH...
drop_on_arrival() {
    local kind=$1 role=$2 dev=$3; shift 3
    inside "$role" nft -f - <<NFT
add table netdev lab
add chain netdev lab ${kind}_$dev { type filter hook ingress device "$dev" priority 0; policy accept; }
flush chain netdev lab ${kind}_$dev
add rule netdev lab ${kind}_$dev $* counter drop
NFT
}

stop_dropping() {
    local kind=$1 role=$2 dev=$3
    inside "$role" nft -f - 2>/dev/null <<NFT || true
flush chain netdev lab ${kind}_$dev
delete chain netdev lab ${kind}_$dev
NFT
}

# How many packets a drop has eaten so far; nothing when there is no such drop.
dropped() {
    inside "$2" nft list chain netdev lab "${1}_$3" 2>/dev/null |
        sed -n 's/.*counter packets \([0-9]*\).*/\1/p'
}

# ---- NAT -----------------------------------------------------------------------------------------

# The outward interfaces of a NAT.
nat_outward() { if [[ $1 == cgn ]]; then echo up1; else for (( i = 1; i <= uplinks; i++ )); do echo "up$i"; done; fi; }

# Writes the source-NAT rules of a NAT, with a port range when a rebind has asked for one.
masquerade() {
    local role=$1 range dev
    range=$(recall "$role.ports")
    {
        echo "add table ip nat"
        echo "add chain ip nat postrouting { type nat hook postrouting priority 100; policy accept; }"
        echo "flush chain ip nat postrouting"
        for dev in $(nat_outward "$role"); do
            [[ -z $range ]] ||
                echo "add rule ip nat postrouting oifname \"$dev\" meta l4proto { tcp, udp } masquerade to :$range random"
            echo "add rule ip nat postrouting oifname \"$dev\" masquerade"
        done
    } | inside "$role" nft -f -
}

# Deletes conntrack entries and prints how many. conntrack exits 1 when nothing matched, which is
# not an error here: the count says it.
delete_entries() {
    local role=$1 out; shift
    if ! out=$(inside "$role" conntrack -D "$@" 2>&1 >/dev/null); then
        [[ $out == *" 0 flow entries"* ]] || die "conntrack -D $* in $(ns "$role"): $out"
    fi
    sed -n 's/.* \([0-9]*\) flow entries have been deleted.*/\1/p' <<<"$out" | tail -1
}

entry_count() { get_sysctl "$1" netfilter/nf_conntrack_count; }
