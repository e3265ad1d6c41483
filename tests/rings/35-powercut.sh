#!/bin/bash
# Power cuts and kill -9: no fsynced byte is ever lost. The harness and what it judges: ../powercut.
#
# The long form (LONG=1) goes on for $ROUNDS rounds (default 500) over ext4 and xfs.
. "$(dirname "$0")/lib.sh"
ring_start 35-powercut
need unshare:util-linux
case $FS in kmsfs | raw) ;; *) die "the power cuts run kmsfs or raw; see ../powercut for others" ;; esac
[ -z "${LONG:-}" ] || need mkfs.xfs:xfsprogs

# Its package makes and starts a server of its own unless told.
need_postgres() {
    local conf=/etc/postgresql-common/createcluster.conf
    ls /usr/lib/postgresql/*/bin/pg_amcheck >/dev/null 2>&1 && return
    if ! [ -e "$conf" ]; then
        mkdir -p "${conf%/*}"
        echo "create_main_cluster = false" >"$conf"
    fi
    echo "installing: postgresql"
    { apt-get update -q && DEBIAN_FRONTEND=noninteractive \
        apt-get install -q -y --no-install-recommends postgresql; } >"$WORK/log/apt" 2>&1
    ls /usr/lib/postgresql/*/bin/pg_amcheck >/dev/null 2>&1
}

powercut() { python3 "$REPO/tests/powercut/powercut.py" "$@" --systems "$FS" --bin "$WORK/bin"; }

rounds() {
    local name=$1
    shift
    CHECK_LINES=${CHECK_LINES:-60} check "$name" powercut "$@"
}

seed=${SEED:-1}
rounds "power cuts, every workload twice" run --seed "$seed" --times 2
rounds "kill -9 under load" kill --seed "$seed" --rounds 5
if need_postgres; then
    rounds "PostgreSQL" run --seed "$seed" --workloads postgres,postgres_killed
else
    skip "PostgreSQL cannot be installed"
fi
if [ -n "${LONG:-}" ]; then
    rounds "power cuts, long" run --seed "$seed" --first 2 --rounds "${ROUNDS:-500}" \
        --fs ext4,xfs --wait
    rounds "kill -9 under load, long" kill --seed "$seed" --first 5 --rounds 50 --load-seconds 8
    rounds "PostgreSQL, long" run --seed "$seed" --first 1 --times 5 --fs ext4,xfs \
        --workloads postgres,postgres_killed
fi
ring_end
