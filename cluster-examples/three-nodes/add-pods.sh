#!/usr/bin/env bash
# On Kubernetes, a node that is in the cluster takes in others that have empty volumes (kubernetes.yaml): after a recovery, or to grow.
#
#   cluster-examples/three-nodes/add-pods.sh MEMBER NEW...
#
# for example 1 2 3: node 1 takes in node 2, then node 3. It waits for pods that are not there yet, and ends with the first refusal that would
# stay. It can be run again: who is in stays in. The namespace is that of kubectl's context. QUORATE_FLAGS is what `quorate` needs in a pod to
# be let in as an admin, for example "--ca /tls/ca.crt --cert /tls/admin.crt --key /tls/admin.key".
set -euo pipefail

# For a new image, a new volume and a new name in DNS.
patience_s=300

usage() {
    echo "usage: add-pods.sh MEMBER NEW..., numbers of nodes" >&2
    exit 2
}
(($# > 1)) || usage
for id in "$@"; do
    [[ $id =~ ^[1-9][0-9]*$ ]] || usage
done
member=$1 pod=quorate-$1-0
shift

# What was said, and what to do.
fail() {
    printf 'error: %s\n' "${1#error: }" >&2
    shift
    printf '  %s\n' "$@" >&2
    exit 1
}

# Node $new is not taken in, for what was said. One that was to found a cluster has that in its pod, which Kubernetes leaves as it is, and on its
# volume. It goes on so, or ends again and again, whatever is applied.
gives_up() {
    local next=("run this again when that is mended; kubectl describe pod quorate-$new-0 and kubectl logs quorate-$new-0 say more")
    case $said in
    *"waits to found a cluster"* | *"belongs to another cluster"* | *"; start it first"*)
        next+=(
            "a new node has an empty volume, and no QUORATE_BOOTSTRAP. Was node $new started with that? Take it out of the manifest, apply it,"
            "and, unless somebody wants what is on the volume, delete that and the pod, in this order:"
            "kubectl delete pvc data-quorate-$new-0 --wait=false"
            "kubectl delete pod quorate-$new-0"
        )
        ;;
    esac
    fail "$said" "${next[@]}"
}

# A command in the pod of the member.
quorate() {
    # shellcheck disable=SC2086 # they are several words
    kubectl exec "$pod" -- quorate "$@" --nodes "$pod.quorate.$namespace.svc:7001" ${QUORATE_FLAGS:-}
}

echo "waiting until $pod is ready"
until said=$(kubectl wait --for=condition=Ready "pod/$pod" --timeout=5m 2>&1); do
    # It may not be made yet.
    if [[ $said != *"not found"* ]] || ((SECONDS > patience_s)); then
        fail "$said" "kubectl logs $pod says why; run this again"
    fi
    sleep 1
done
namespace=$(kubectl get statefulset "quorate-$member" -o 'jsonpath={.metadata.namespace}')

for new in "$@"; do
    echo "node $member takes in node $new"
    SECONDS=0 waits=
    until said=$(quorate cluster add "$new" "quorate-$new-0.quorate.$namespace.svc:7101" 2>&1); do
        # Its pod may not be there yet, or not its name. What listens there and refuses would go on doing so.
        if [[ $said != *"node $new does not answer at "*"; start it first"* ]] || ((SECONDS > patience_s)); then
            gives_up
        fi
        said=${said%%$'\n'*}
        [[ -n $waits ]] || printf '    %s\n' "waiting until node $new answers: ${said#error: }" \
            "if it takes long: kubectl describe pod quorate-$new-0, kubectl logs quorate-$new-0"
        waits=1
        sleep 2
    done
    echo "$said"
done
quorate cluster status --wait --timeout 5m
