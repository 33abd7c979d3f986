#!/bin/sh
# Sets aside the ids that runs get (0x70000000 and what follows), so that `useradd` gives them to nobody else, and gives
# the user `sandglass` sub-ids of their own for a start without root. Safe to be run again.
set -eu
for file in /etc/subuid /etc/subgid; do
    grep -qs '^sandglass-runs:' "$file" || echo 'sandglass-runs:1879048192:2147483648' >> "$file"
done
if ! grep -qs '^sandglass:' /etc/subuid; then
    usermod --add-subuids 100000-165535 --add-subgids 100000-165535 sandglass
fi
