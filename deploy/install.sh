#!/bin/sh
# Installs the Debian or Ubuntu packages that Dovecote needs and that are missing, and says which.
# usage: install.sh [run] [gvisor] [buckets] [test] [bench]
set -eu

run="python3 python3-venv ca-certificates crun runc nftables btrfs-progs mmdebstrap iproute2 gcc musl-tools xz-utils skopeo"
test="curl postgresql redis-server nats-server libc6-dev erofs-utils git gdb docker-registry busybox-static"
buckets="rclone fuse3"
bench="wrk libc6-dev restic zstd"

mirror_of() {
  apt-get indextargets --format '$(REPO_URI)' "Codename: $1" "Component: main" 2>/dev/null | head -n 1
}

# runsc, new enough for what its flags are asked here. Debian has it in the backports of its release; where neither
# that suite nor the release itself has one, this says so and goes on: nothing else needs it.
gvisor() {
  least="0.0~20240101"
  if command -v runsc >/dev/null; then return 0; fi
  command -v apt-get >/dev/null || { echo "Install runsc (gVisor) yourself: there is no apt-get here" >&2; return 0; }
  [ "$(id -u)" = 0 ] || { echo "runsc is missing, and only root can install it" >&2; return 0; }
  export DEBIAN_FRONTEND=noninteractive
  log=$(mktemp)
  candidate=$(apt-cache policy runsc | sed -n 's/^ *Candidate: //p')
  if [ -n "$candidate" ] && dpkg --compare-versions "$candidate" ge "$least"; then
    echo "Installing packages: runsc"
    apt-get install -y -q --no-install-recommends runsc >"$log" 2>&1 || cat "$log" >&2
    rm -f "$log"; return 0
  fi
  release=$(. /etc/os-release && [ "$ID" = debian ] && echo "${VERSION_CODENAME:-}") || release=""
  mirror=$(mirror_of "$release")
  if [ -n "$release" ] && [ -z "$mirror" ]; then  # nothing was ever fetched
    apt-get update -q >"$log" 2>&1 || cat "$log" >&2
    mirror=$(mirror_of "$release")
  fi
  if [ -z "$release" ] || [ -z "$mirror" ]; then
    rm -f "$log"; echo "No runsc here: only Debian's backports are known to have one; install gVisor yourself" >&2; return 0
  fi
  source="/etc/apt/sources.list.d/dovecote-backports.list"
  keys="/usr/share/keyrings/debian-archive-keyring.gpg"
  echo "Installing packages: runsc, from $release-backports"
  echo "deb [signed-by=$keys] $mirror $release-backports main" >"$source"
  if ! { apt-get update -q -o "Dir::Etc::sourcelist=$source" -o Dir::Etc::sourceparts=- -o APT::Get::List-Cleanup=0 &&
         apt-get install -y -q --no-install-recommends -t "$release-backports" runsc; } >"$log" 2>&1; then
    rm -f "$source"
    cat "$log" >&2
    echo "No runsc: $release-backports has none that can be installed; install gVisor yourself" >&2
  fi
  rm -f "$log"
}

# For tests of pages, which are skipped where the system has no package of it: Ubuntu has none.
chromium() {
  if command -v chromium >/dev/null || command -v chromium-browser >/dev/null; then return 0; fi
  command -v apt-get >/dev/null || { echo "No chromium here: tests of pages are skipped" >&2; return 0; }
  candidate=$(apt-cache policy chromium | sed -n 's/^ *Candidate: //p')
  if [ -z "$candidate" ] && [ "$(id -u)" = 0 ]; then  # nothing was ever fetched
    apt-get update -q >/dev/null 2>&1 || true
    candidate=$(apt-cache policy chromium | sed -n 's/^ *Candidate: //p')
  fi
  if [ -z "$candidate" ] || [ "$candidate" = "(none)" ]; then
    echo "No chromium here: tests of pages are skipped" >&2; return 0
  fi
  [ "$(id -u)" = 0 ] || { echo "chromium is missing, and only root can install it" >&2; return 0; }
  echo "Installing packages: chromium"
  log=$(mktemp)
  DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends chromium >"$log" 2>&1 || cat "$log" >&2
  rm -f "$log"
}

wanted=""
runsc=""
pages=""
for group in "${@:-run}"; do
  case "$group" in
    run) wanted="$wanted $run" ;;
    gvisor) runsc=yes ;;
    buckets) wanted="$wanted $buckets" ;;
    test) wanted="$wanted $test $buckets"; runsc=yes; pages=yes ;;
    bench) wanted="$wanted $bench"; runsc=yes ;;
    *) echo "install.sh: no group $group; there are run, gvisor, buckets, test and bench" >&2; exit 2 ;;
  esac
done

missing=""
for package in $wanted; do
  [ "$(dpkg-query -W -f '${db:Status-Abbrev}' "$package" 2>/dev/null)" = "ii " ] || missing="$missing $package"
done
extras() {
  [ -z "$runsc" ] || gvisor
  [ -z "$pages" ] || chromium
}

if [ -z "$missing" ]; then
  extras
  exit 0
fi

if [ "$(id -u)" != 0 ]; then
  echo "These packages are missing, and only root can install them:$missing" >&2
  exit 1
fi
command -v apt-get >/dev/null || { echo "Install these packages with your package manager:$missing" >&2; exit 1; }
echo "Installing packages:$missing"
export DEBIAN_FRONTEND=noninteractive
log=$(mktemp)
apt-get update -q >"$log" 2>&1 || { cat "$log" >&2; exit 1; }
# Servers that come with a package may start with it, where there is systemd: the tests start their own beside them.
# shellcheck disable=SC2086
apt-get install -y -q --no-install-recommends -o Dpkg::Options::=--force-confold $missing >"$log" 2>&1 || { cat "$log" >&2; exit 1; }
rm -f "$log"
extras
