#!/bin/sh
# Starts the node of this pod. The first pods found the cluster, the others join it.
set -eu
number=${NEEDLE_NODE_ID##*-}
if [ "$number" -lt "$FOUNDERS" ]; then
    export NEEDLE_CLUSTER_NODES="$FOUNDING_NODES"
else
    export NEEDLE_SHARDING_JOIN="$NEEDLE_CLUSTER"
fi
if [ -s /run/needle/zone ]; then
    NEEDLE_PLACEMENT_ZONE=$(cat /run/needle/zone)
    export NEEDLE_PLACEMENT_ZONE
fi
# The pod before this one was put into maintenance when it ended, and noted that (stop.sh); this waits until the node has
# caught up. Maintenance that somebody began by hand goes on.
note=$NEEDLE_DATA_DIR/pod-maintenance.json
if [ -e "$note" ]; then
    (
        until needle maintenance exit "$NEEDLE_NODE_ID" --note "$note" --timeout 600 >/dev/null 2>&1; do
            sleep 5
        done
    ) &
fi
unset FOUNDERS FOUNDING_NODES
exec needle serve --config /etc/needle/node.json
