# Common part of the scripts here. Source it; do not run it.

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
die() { printf '%s\n' "$*" >&2; exit 1; }

# Runs a command as root: directly, or through sudo.
as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        die "this needs root (or sudo): $*"
    fi
}

# install_missing COMMAND:PACKAGE...: installs the Debian packages whose command is not there.
# A name with a slash is a file to look for.
install_missing() {
    local pair missing=()
    for pair in "$@"; do
        case $pair in
        /*) [ -e "${pair%%:*}" ] || missing+=("${pair#*:}") ;;
        *) PATH="$PATH:/usr/sbin:/sbin" command -v "${pair%%:*}" >/dev/null || missing+=("${pair#*:}") ;;
        esac
    done
    [ "${#missing[@]}" != 0 ] || return 0
    command -v apt-get >/dev/null || die "please install: ${missing[*]}"
    echo "Installing ${missing[*]} ..."
    as_root apt-get update -qq
    as_root env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

# Cargo as installed by rustup is not always on the search path yet.
find_cargo() {
    command -v cargo >/dev/null || PATH="$PATH:${CARGO_HOME:-$HOME/.cargo}/bin"
    command -v cargo >/dev/null || die "Rust is missing: see https://www.rust-lang.org/tools/install"
}

# The kernel's side of FUSE.
need_fuse() {
    [ -e /dev/fuse ] || as_root modprobe fuse 2>/dev/null || true
    [ -e /dev/fuse ] || die "this kernel offers no /dev/fuse"
}
