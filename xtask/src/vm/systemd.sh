#!/bin/bash
# What an operator does with the Debian package, in a machine that systemd has booted. Each step ends with a line
# `VM-RESULT NAME CODE`, which whoever booted the machine reads from its console.
exec > /dev/ttyS0 2>&1 < /dev/null
# Nothing of the kernel's in the middle of a line.
echo 1 > /proc/sys/kernel/printk
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root DEBIAN_FRONTEND=noninteractive
url=http://127.0.0.1:8080

# Runs a step, which fails with the first command of it that fails.
step() {
    ( set -eu; "$1" )
    code=$?
    [ $code = 0 ] || journalctl --no-pager --lines=20 --unit='sandglass*'
    echo "VM-RESULT $1 $code"
}

# `! command` would fail no step.
not() { if "$@"; then return 1; fi; }

post() { curl -sS --max-time 120 -H "Authorization: Bearer $(cat /root/key)" $url/runs -d "$1"; }

# As long as /run/asking is there: each call on a connection of its own, and what it was answered.
ask_on() {
    while [ -e /run/asking ]; do
        curl -s -o /dev/null -w '%{http_code}\n' --max-time 120 -H "Authorization: Bearer $(cat /root/key)" $url/runs \
            -d '{"image":"host","cmd":"true"}' || true
    done
}

# Does something while three clients ask on; every one of them must have been answered by a run.
under_load() {
    touch /run/asking
    for client in 1 2 3; do ask_on > /run/answers.$client & done
    sleep 5
    "$@"
    sleep 5
    rm /run/asking
    wait
    echo "answers: $(cat /run/answers.* | sort | uniq -c | tr -s ' ' | tr '\n' ';')"
    [ "$(cat /run/answers.* | sort -u)" = 200 ]
    [ "$(cat /run/answers.* | wc -l)" -gt 10 ]
}

main_pid() { systemctl show --property=MainPID --value sandglass.service; }

is_installed_and_not_started() {
    dpkg --install /sandglass.deb
    getent passwd sandglass
    grep '^sandglass-runs:1879048192:2147483648$' /etc/subuid /etc/subgid
    not systemctl is-active --quiet sandglass.service
    not systemctl is-enabled --quiet sandglass.socket
}

is_started_as_the_guide_says() {
    sandglass key create me > /root/key
    echo 'allow_host_image = true' >> /etc/sandglass/config.toml
    systemctl enable --now sandglass.socket sandglass.service
    post '{"image":"host","cmd":"echo","args":["hello"]}' | grep '"stdout":"hello\\n"'
    [ "$(curl -s -o /dev/null -w '%{http_code}' $url/runs -d '{"image":"host","cmd":"true"}')" = 401 ]
}

has_no_privilege_and_every_wall() {
    [ "$(stat -c %U /proc/$(main_pid))" = sandglass ]
    grep -E '^Cap(Inh|Prm|Eff|Bnd|Amb):' /proc/$(main_pid)/status
    not grep -E '^Cap(Prm|Eff|Amb):.*[1-9a-f]' /proc/$(main_pid)/status
    watcher=$(sandglass key create watcher --scope metrics)
    # A running server sees it within a second.
    curl -s --fail --retry 10 --retry-all-errors -H "Authorization: Bearer $watcher" $url/info > /run/info
    grep -q '"state":"up"' /run/info
    not grep -E '"state":"(weaker|down)"' /run/info
}

has_runs_in_control_groups_below_its_own() {
    group=/sys/fs/cgroup$(systemctl show --property=ControlGroup --value sandglass.service)
    [ "$group" = /sys/fs/cgroup/sandglass.slice/sandglass.service ]
    post '{"image":"host","cmd":"sleep","args":["8"],"limits":{"memory_bytes":50331648}}' > /run/slept &
    for second in $(seq 60); do
        not grep -rlx 50331648 $group --include=memory.max || break
        sleep 0.1
    done
    bounded=$(grep -rlx 50331648 $group --include=memory.max)
    find "$(dirname "$bounded")" -name cgroup.procs -exec cat {} + | xargs -I PID cat /proc/PID/comm | grep -x sleep
    wait
    grep '"outcome":"exited"' /run/slept
    post '{"image":"host","cmd":"tail","args":["/dev/zero"],"limits":{"memory_bytes":33554432}}' | grep '"outcome":"memory_limit"'
}

refuses_nobody_while_it_is_restarted() {
    before=$(main_pid)
    under_load systemctl restart sandglass.service
    [ "$(main_pid)" != "$before" ]
}

refuses_nobody_while_the_package_is_upgraded() {
    before=$(main_pid)
    under_load dpkg --install /sandglass.deb
    [ "$(main_pid)" != "$before" ]
    grep allow_host_image /etc/sandglass/config.toml
}

is_started_again_when_it_is_killed() {
    before=$(main_pid)
    kill -KILL "$before"
    post '{"image":"host","cmd":"echo","args":["again"]}' | grep '"stdout":"again\\n"'
    [ "$(main_pid)" != "$before" ]
}

reads_its_configuration_again() {
    before=$(main_pid)
    printf '[limits]\nwall_time_ms = 7654\n' >> /etc/sandglass/config.toml
    systemctl reload sandglass.service
    for second in $(seq 60); do
        ! post '{"image":"host","cmd":"true"}' | grep -o '"wall_time_ms":7654' || break
        sleep 1
    done
    post '{"image":"host","cmd":"true"}' | grep -q '"wall_time_ms":7654'
    [ "$(main_pid)" = "$before" ]
}

is_removed_but_for_its_data() {
    dpkg --remove sandglass
    not systemctl is-active --quiet sandglass.service
    not systemctl is-active --quiet sandglass.socket
    not curl -s --max-time 5 $url/healthz
    [ ! -e /usr/bin/sandglass ]
    [ ! -e /usr/lib/systemd/system/sandglass.service ]
    [ -e /var/lib/sandglass/keys/keys.json ]
    [ -e /etc/sandglass/config.toml ]
    [ -z "$(find /sys/fs/cgroup/sandglass.slice -mindepth 1 -type d 2> /dev/null)" ]
}

is_purged_with_its_data() {
    dpkg --purge sandglass
    [ ! -e /var/lib/sandglass ]
    [ ! -e /etc/sandglass ]
    [ -z "$(find / -xdev -name '*sandglass*' -not -path /sandglass.deb -not -path '/tmp/*' -print)" ]
}

for name in $STEPS; do step $name; done
sync
sleep 1
echo o > /proc/sysrq-trigger
