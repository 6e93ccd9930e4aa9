#!/usr/bin/env bash
# Builds the command line, imports this repository's own tree into a store, lists it, checks it, and exports it again.
# The store goes to the folder given, or to a new one under /tmp, and stays there.
set -euo pipefail
cd "$(dirname "$0")/.."

folder=${1:-$(mktemp -d /tmp/vellum-demo.XXXXXX)}
mkdir -p "$folder"
store=$folder/repository.vellum

cargo build --release -p vellum-cli
vellum=${CARGO_TARGET_DIR:-target}/release/vellum

# What git knows of, without build artefacts; in a tree without git, the sources.
mkdir -p "$folder/tree"
if git rev-parse --git-dir >/dev/null 2>&1; then
    git ls-files -z | tar --create --null --files-from=- | tar --extract --directory="$folder/tree"
else
    tar --create --exclude=./target --exclude=./fuzz/target . | tar --extract --directory="$folder/tree"
fi

run() {
    printf '\n$ vellum %s\n' "$*"
    "$vellum" "$@"
}
run import "$store" "$folder/tree"
run ls "$store"
run info "$store"
run check "$store" --level full
run export "$store" "$folder/exported"
diff --recursive "$folder/tree" "$folder/exported"
printf '\nThe export is identical. The store is %s\n' "$store"
