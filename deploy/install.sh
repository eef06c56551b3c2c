#!/bin/sh
# Installs the Debian or Ubuntu packages that Dovecote needs and that are missing, and says which.
# usage: install.sh [run] [test] [bench]
set -eu

run="python3 python3-venv ca-certificates crun runc nftables btrfs-progs mmdebstrap iproute2 gcc musl-tools xz-utils skopeo"
test="postgresql libc6-dev erofs-utils git gdb docker-registry"
bench="wrk libc6-dev"

wanted=""
for group in "${@:-run}"; do
  case "$group" in
    run) wanted="$wanted $run" ;;
    test) wanted="$wanted $test" ;;
    bench) wanted="$wanted $bench" ;;
    *) echo "install.sh: no group $group; there are run, test and bench" >&2; exit 2 ;;
  esac
done

missing=""
for package in $wanted; do
  [ "$(dpkg-query -W -f '${db:Status-Abbrev}' "$package" 2>/dev/null)" = "ii " ] || missing="$missing $package"
done
[ -n "$missing" ] || exit 0

if [ "$(id -u)" != 0 ]; then
  echo "These packages are missing, and only root can install them:$missing" >&2
  exit 1
fi
command -v apt-get >/dev/null || { echo "Install these packages with your package manager:$missing" >&2; exit 1; }
echo "Installing packages:$missing"
export DEBIAN_FRONTEND=noninteractive
log=$(mktemp)
apt-get update -q >"$log" 2>&1 || { cat "$log" >&2; exit 1; }
# Servers that come with a package stay off: Dovecote and its tests start their own.
# shellcheck disable=SC2086
apt-get install -y -q --no-install-recommends -o Dpkg::Options::=--force-confold $missing >"$log" 2>&1 || { cat "$log" >&2; exit 1; }
rm -f "$log"
