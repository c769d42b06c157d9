#!/usr/bin/env bash
# Three nodes on this machine, from the three configuration files beside this script:
#
#   cargo build --release && cluster-examples/three-nodes/start.sh [DIRECTORY]
#
# Data and logs go to DIRECTORY (default: ./three-nodes-data); a later start there finds everything again. Ctrl-C stops
# the nodes. One of them may be killed: the others go on. QUORATE=/path/to/quorate chooses the binary.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
directory=${1:-three-nodes-data}
quorate=${QUORATE:-$here/../../target/release/quorate}
if [[ ! -x $quorate ]]; then
    quorate=$(command -v quorate) || {
        echo "error: no quorate binary; build it (cargo build --release) or set QUORATE=/path/to/quorate" >&2
        exit 1
    }
fi
quorate=$(realpath "$quorate")
# Another cluster there would answer in the place of this one.
while read -r address; do
    if (exec 3<>"/dev/tcp/${address%:*}/${address##*:}") 2>/dev/null; then
        echo "error: $address is in use: is another cluster running? (\`quorate dev\` has the same ports)" >&2
        exit 1
    fi
done < <(sed -n 's/^\(peer_\)\?listen = "\(.*\)"/\2/p' "$here"/node-[123].toml)

mkdir -p "$directory"
cd "$directory"

nodes=()
stop() {
    trap - EXIT
    trap '' INT TERM HUP
    # Some may have ended by themselves.
    kill -TERM "${nodes[@]}" 2>/dev/null || true
    wait
    echo "stopped; the data stays in $PWD"
}
trap stop EXIT
trap 'exit 0' INT TERM HUP

# Whether every node runs that this script has started.
all_run() {
    local pid
    for pid in "${nodes[@]}"; do kill -0 "$pid" 2>/dev/null || return 1; done
}

addresses=()
for id in 1 2 3; do
    "$quorate" serve --config "$here/node-$id.toml" >>"node-$id.log" 2>&1 &
    nodes+=($!)
    addresses+=("$(sed -n 's/^listen = "\(.*\)"/\1/p' "$here/node-$id.toml")")
    echo "node $id   ${addresses[-1]}   pid ${nodes[-1]}   log $PWD/node-$id.log"
done

all=$(IFS=,; echo "${addresses[*]}")
if ! "$quorate" cluster status --wait --nodes "$all" --timeout 20s >/dev/null || ! all_run; then
    echo "error: not all nodes came up; their last words:" >&2
    tail -n 3 node-*.log >&2
    exit 1
fi
echo "ready; try: quorate cluster status --nodes $all    (Ctrl-C stops the nodes)"

# One that ends by itself, or is killed to see what happens, is told of; the others go on.
for left in 2 1 0; do
    ended=''
    wait -n -p ended "${nodes[@]}" || true
    for at in "${!nodes[@]}"; do
        if [[ ${nodes[at]} == "$ended" ]]; then
            echo "node $((at + 1)) ended, $left go on; see $PWD/node-$((at + 1)).log; to start it again:" \
                "cd $PWD && $quorate serve --config $here/node-$((at + 1)).toml" >&2
            unset "nodes[at]"
        fi
    done
done
echo "error: no node is left" >&2
exit 1
