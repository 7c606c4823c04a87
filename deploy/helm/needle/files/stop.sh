#!/bin/sh
# Before the process of this pod hears that it ends: leadership goes elsewhere. What is begun here is noted on the volume, so
# that the next pod ends it, and nothing that somebody began by hand. It shows the API key of the Secret, or without one the
# nodes' secret. --force: the pod ends in any case, also while others are down. If it fails, the node hands over by itself when it stops.
needle maintenance enter "$NEEDLE_NODE_ID" --force --note "$NEEDLE_DATA_DIR/pod-maintenance.json" --timeout 20 || true
