#!/bin/sh
# Sets aside the ids that runs get (0x70000000 and what follows), so that `useradd` gives them to nobody else, and gives
# the user `sandglass` sub-ids of their own for a start without root. Safe to be run again.
set -eu
for file in /etc/subuid /etc/subgid; do
    grep -qs '^sandglass-runs:' "$file" || echo 'sandglass-runs:1879048192:2147483648' >> "$file"
done
if ! grep -qs '^sandglass:' /etc/subuid; then
    # Behind those of everybody else: the first user of a machine mostly has 100000 and what follows.
    first=$(cat /etc/subuid /etc/subgid | {
        most=100000
        while IFS=: read -r who from count; do
            case "$from$count" in '' | *[!0-9]*) continue ;; esac
            [ "$who" = sandglass-runs ] || [ $((from + count)) -le "$most" ] || most=$((from + count))
        done
        echo "$most"
    })
    last=$((first + 65535))
    usermod --add-subuids "$first-$last" --add-subgids "$first-$last" sandglass
fi
