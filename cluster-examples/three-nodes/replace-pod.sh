#!/usr/bin/env bash
# On Kubernetes, a new node takes the place of one whose volume or machine is lost (kubernetes.yaml):
#
#   cluster-examples/three-nodes/replace-pod.sh OLD NEW
#
# for example 3 4: NEW is a number that no node has had. It can be run again when it was broken off: what is done is not done twice.
# The namespace is that of kubectl's context. QUORATE_FLAGS is what `quorate` needs in a pod to be let in as an admin, for example
# "--ca /tls/ca.crt --cert /tls/admin.crt --key /tls/admin.key". Where nodes differ by more than their number (a certificate for each),
# apply quorate-NEW yourself first, without QUORATE_BOOTSTRAP; then this goes on with it.
set -euo pipefail

# For a new image, a new volume and a new name in DNS.
patience_s=300

if [[ $# -ne 2 || ! $1 =~ ^[1-9][0-9]*$ || ! $2 =~ ^[1-9][0-9]*$ || $1 == "$2" ]]; then
    echo "usage: replace-pod.sh OLD NEW, two different numbers of nodes" >&2
    exit 2
fi
old=$1 new=$2

fail() {
    printf 'error: %s\n' "${@#error: }" >&2
    exit 1
}

# Its name, if it is there.
find_object() {
    kubectl get "$1" "$2" --ignore-not-found -o name
}

# A command in a pod.
quorate() {
    local pod=$1
    shift
    # shellcheck disable=SC2086 # they are several words
    kubectl exec "$pod" -- quorate "$@" --nodes "${pod#pod/}.quorate.$namespace.svc:7001" ${QUORATE_FLAGS:-}
}

found=$(find_object statefulset "quorate-$new")
if [[ -n $found ]]; then
    echo "1/3 quorate-$new is there"
else
    claim=$(find_object persistentvolumeclaim "data-quorate-$new-0")
    [[ -z $claim ]] || fail "a node $new was here before ($claim): give the new node a number that none has had"
    like=$(find_object statefulset "quorate-$old")
    [[ -n $like ]] || fail "this namespace has neither quorate-$old nor quorate-$new"
    echo "1/3 making quorate-$new: as $like, with its own number, and to be taken in"
    # What the server has added goes, too.
    kubectl get "$like" -o json | kubectl patch --local -f - -o json -p '{
        "metadata": {
            "name": "quorate-'"$new"'", "annotations": null, "creationTimestamp": null, "generation": null,
            "ownerReferences": null, "resourceVersion": null, "uid": null
        },
        "spec": {
            "selector": { "matchLabels": { "quorate-node": "'"$new"'" } },
            "template": {
                "metadata": { "labels": { "quorate-node": "'"$new"'" } },
                "spec": { "containers": [
                    { "name": "quorate", "env": [{ "name": "QUORATE_BOOTSTRAP", "$patch": "delete" }] }
                ] }
            }
        },
        "status": null
    }' | kubectl apply -f -
fi
namespace=$(kubectl get statefulset "quorate-$new" -o 'jsonpath={.metadata.namespace}')

member='' said="there is no other pod"
for pod in $(kubectl get pods -l app=quorate -o name); do
    [[ $pod != "pod/quorate-$old-0" && $pod != "pod/quorate-$new-0" ]] || continue
    # A node that was taken out before knows of the members, and reads nothing.
    if said=$(quorate "$pod" services 2>&1); then
        member=$pod
        break
    fi
done
[[ -n $member ]] || fail "no other node answers as a member: see docs/operations.md" "$said" "quorate-$old was left as it is"

echo "2/3 node $new takes the place of node $old (asking $member)"
address="quorate-$new-0.quorate.$namespace.svc:7101"
waits=
until said=$(quorate "$member" cluster replace "$old" "$new" "$address" 2>&1); do
    # Its pod may not be there yet, or not its name. What listens there and refuses would go on doing so.
    if [[ $said != *"node $new does not answer at "*"; start it first"* ]] || ((SECONDS > patience_s)); then
        fail "$said" "quorate-$old was left as it is; look into quorate-$new, and run this again"
    fi
    said=${said%%$'\n'*}
    [[ -n $waits ]] || printf '    %s\n' "waiting until node $new answers: ${said#error: }" \
        "if it takes long: kubectl describe pod quorate-$new-0, kubectl logs quorate-$new-0"
    waits=1
    sleep 2
done
echo "$said"

echo "3/3 deleting quorate-$old and its claim"
kubectl delete statefulset "quorate-$old" --ignore-not-found
# The claim goes with the pod. That of a machine that is gone stays until the machine is deleted.
kubectl delete persistentvolumeclaim "data-quorate-$old-0" --ignore-not-found --wait=false
echo "done. Where your manifest is kept: write $new for $old, and take QUORATE_BOOTSTRAP out, which no node needs any more."
echo "Clients: quorate-$new-0.quorate.$namespace.svc:7001 for quorate-$old-0.quorate.$namespace.svc:7001"
