#!/usr/bin/env bash
# Makes a set of volumes and packs it, to be frozen with a release of the format.
#
# usage: tests/volumes/pack.sh tests/volumes/vN
set -euo pipefail

out=${1:?usage: pack.sh FOLDER}
here=$(cd "$(dirname "$0")" && pwd)
[ ! -e "$out" ] || { echo "pack.sh: $out is there already: a frozen set is never made again" >&2; exit 1; }
set=$(mktemp -d)
trap 'rm -rf "$set"' EXIT
"$here/make.sh" "$set"
mkdir -p "$out"
for name in encrypted plain crashed; do
    tar --create --gzip --sparse --xattrs --xattrs-include='user.*' --numeric-owner --sort=name \
        --directory "$set" --file "$out/$name.tar.gz" "$name"
done
cp "$set"/MANIFEST* "$set"/*.key "$set"/passphrase "$set"/identity "$out"
