#!/usr/bin/env bash
# Three nodes on this machine, from the three configuration files beside this script:
#
#   cargo build --release && cluster-examples/three-nodes/start.sh [DIRECTORY]
#
# Data and logs go to DIRECTORY (default: ./three-nodes-data); a later start there finds everything again. Ctrl-C stops
# the nodes. QUORATE=/path/to/quorate chooses the binary.
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
mkdir -p "$directory"
cd "$directory"

nodes=()
stop() {
    trap - EXIT
    trap '' INT TERM
    # Some may have ended by themselves.
    kill -TERM "${nodes[@]}" 2>/dev/null || true
    wait
    echo "stopped; the data stays in $PWD"
}
trap stop EXIT
trap 'exit 0' INT TERM

addresses=()
for id in 1 2 3; do
    "$quorate" serve --config "$here/node-$id.toml" >>"node-$id.log" 2>&1 &
    nodes+=($!)
    addresses+=("$(sed -n 's/^listen = "\(.*\)"/\1/p' "$here/node-$id.toml")")
    echo "node $id   ${addresses[-1]}   pid ${nodes[-1]}   log $PWD/node-$id.log"
done

all=$(IFS=,; echo "${addresses[*]}")
if ! "$quorate" cluster status --wait --nodes "$all" --timeout 20s >/dev/null || ! kill -0 "${nodes[@]}" 2>/dev/null; then
    echo "error: not all nodes came up; their last words:" >&2
    tail -n 3 node-*.log >&2
    exit 1
fi
echo "ready; try: quorate cluster status --nodes $all    (Ctrl-C stops the nodes)"

# No node should end by itself; if one does, so does the rest.
wait -n "${nodes[@]}" || true
echo "error: a node ended by itself; see $PWD/node-*.log" >&2
exit 1
