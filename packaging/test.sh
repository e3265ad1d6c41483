#!/usr/bin/env bash
# Installs what is missing and passes all tests: the crate's own, then every ring in tests/rings.
# The rings mount file systems, so they run as root (through sudo if need be).
#
# usage: packaging/test.sh [RING...]      (default: all)
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/lib.sh"
cd "$(dirname "$here")"
repo=$PWD

say "What is needed"
install_missing fusermount3:fuse3 cc:gcc setfacl:acl getfattr:attr rsync:rsync restic:restic \
    sqlite3:sqlite3 git:git stress-ng:stress-ng mkfs.ext4:e2fsprogs mkfs.xfs:xfsprogs \
    python3:python3 make:make runuser:util-linux \
    script:bsdutils /usr/include/sys/acl.h:libacl1-dev || exit 1
find_cargo
need_fuse

passed=0 failed=0 failures=()
# step NAME COMMAND...: one line in the summary.
step() {
    local name=$1
    shift
    say "$name"
    if "$@"; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        failures+=("$name")
    fi
}

# The rings build test programs with cargo; under sudo it must be the cargo of whoever started this.
ring() {
    as_root env PATH="$PATH" HOME="$HOME" CARGO_HOME="${CARGO_HOME:-$HOME/.cargo}" \
        RUSTUP_HOME="${RUSTUP_HOME:-$HOME/.rustup}" KMSFS_BIN="$repo/target/release" bash "$1"
}

step "build" cargo build --release --locked --bins
if cargo fmt --version >/dev/null 2>&1; then
    step "formatting" cargo fmt --check
fi
if cargo clippy --version >/dev/null 2>&1; then
    step "lints" cargo clippy --locked --all-targets --quiet -- -D warnings
fi
step "cargo test" cargo test --locked --no-fail-fast
step "the simulator finds every mistake" \
    cargo test --locked --features mutations --test sim -- mutations --test-threads 1
step "cargo test, portable cipher" \
    cargo test --locked --no-default-features --lib -- crypto store

if [ "$#" = 0 ]; then
    set -- tests/rings/*.sh
fi
for script in "$@"; do
    # A library, not a ring.
    case $script in */lib.sh) continue ;; esac
    step "$(basename "$script" .sh)" ring "$script"
done

echo
for name in "${failures[@]:-}"; do
    [ -z "$name" ] || echo "FAILED: $name"
done
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
