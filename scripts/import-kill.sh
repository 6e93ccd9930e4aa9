#!/usr/bin/env bash
# Imports a real tree with kill -9 at random moments. After each kill the store must check clean, and what was
# acknowledged must export byte-identical; in the end the whole tree must.
#
#   scripts/import-kill.sh [TREE]
#
# TREE: a folder with at least 50,000 files and 500 MB. By default the HTML documentation that comes with the Rust
# toolchain and the sources in the crate registry, put together from hard links.
# KILLS (10), SEED (random; printed), WORK (a new folder beside the links), VELLUM (built here if not given).
set -euo pipefail

kills=${KILLS:-10}
seed=${SEED:-$RANDOM}
least_files=${LEAST_FILES:-50000}
least_bytes=${LEAST_BYTES:-500000000}
RANDOM=$seed
work=${WORK:-$(mktemp -d "${TMPDIR:-/tmp}/vellum-import-kill.XXXXXX")}
mkdir -p "$work"
running=
cleanup() {
    [ -z "$running" ] || kill -9 "$running" 2>/dev/null || true
    [ -n "${KEEP:-}" ] || { chmod -R u+rwx "$work" 2>/dev/null || true; rm -rf "$work"; }
}
trap cleanup EXIT

fail() {
    echo "FAILED (seed $seed): $*" >&2
    exit 1
}

# Moments in time, in milliseconds.
now() { date +%s%3N; }

if [ -z "${VELLUM:-}" ]; then
    cargo build --quiet --release -p vellum-cli --manifest-path "$(dirname "$0")/../Cargo.toml"
    VELLUM=$(dirname "$0")/../target/release/vellum
fi

if [ $# -ge 1 ]; then
    tree=$1
else
    tree=$work/tree
    mkdir "$tree"
    for source in "$(rustc --print sysroot)/share/doc" "${CARGO_HOME:-$HOME/.cargo}/registry/src"; do
        [ -d "$source" ] || continue
        name=$tree/$(basename "$source")
        cp -al "$source" "$name" 2>/dev/null || { rm -rf "$name"; cp -a "$source" "$name"; }
    done
fi
files=$(find "$tree" -type f | wc -l)
bytes=$(find "$tree" -type f -printf '%s\n' | awk '{ sum += $1 } END { printf "%.0f", sum }')
[ "$files" -ge "$least_files" ] || fail "$tree has $files files, fewer than $least_files"
[ "$bytes" -ge "$least_bytes" ] || fail "$tree has $bytes bytes, fewer than $least_bytes"
echo "seed $seed: $files files, $bytes bytes in $tree"

# How long it takes without a kill, so that the moments can be chosen.
begin=$(now)
"$VELLUM" import "$work/measured" "$tree"
whole=$(($(now) - begin))
rm "$work/measured"
echo "one import without a kill: $whole ms"

store=$work/store
out=$work/out
acknowledged=$work/acknowledged
: >"$acknowledged"
killed=0
while [ "$killed" -lt "$kills" ]; do
    # The moments share one import among the kills. Should it end before them all, another begins.
    moment=$((2 * whole * (RANDOM % 1000 + 1) / 1000 / (kills + 1)))
    "$VELLUM" import -vv "$store" "$tree" >"$work/printed" 2>"$work/complaints" &
    running=$!
    sleep "$((moment / 1000)).$(printf '%03d' $((moment % 1000)))"
    kill -9 "$running" 2>/dev/null || true
    code=0
    wait "$running" 2>/dev/null || code=$?
    running=
    if [ "$code" -eq 0 ]; then
        echo "the import ended before $moment ms: once more from the start"
        rm -f "$store"
        : >"$acknowledged"
        continue
    fi
    [ "$code" -eq 137 ] || fail "the import failed with exit $code: $(cat "$work/complaints")"
    killed=$((killed + 1))
    # A line without an end was cut by the kill: nobody could have read it.
    [ ! -s "$work/printed" ] || sed -n '$!p' "$work/printed" | sed -n 's/^stored //p' >>"$acknowledged"
    if [ ! -e "$store" ]; then
        [ ! -s "$acknowledged" ] || fail "the store is gone"
        echo "kill $killed after $moment ms: before the store was there"
        continue
    fi
    code=0
    "$VELLUM" check --level full "$store" >"$work/checked" 2>&1 || code=$?
    if [ "$code" -eq 10 ] && [ ! -s "$acknowledged" ]; then
        echo "kill $killed after $moment ms: within the creation"
        continue
    fi
    [ "$code" -eq 0 ] || fail "check after kill $killed: exit $code: $(cat "$work/checked")"
    chmod -R u+rwx "$out" 2>/dev/null || true
    rm -rf "$out"
    "$VELLUM" export -q "$store" "$out" >/dev/null || fail "export after kill $killed"
    # Whatever is in the export is as in the tree; the tree may have more.
    diff -rq --no-dereference "$tree" "$out" >"$work/differences" || true
    ! grep -v "^Only in $tree" "$work/differences" || fail "the export after kill $killed differs"
    (cd "$out" && find . -mindepth 1 -printf '%P\n') | LC_ALL=C sort >"$work/exported"
    missing=$(LC_ALL=C sort -u "$acknowledged" | LC_ALL=C comm -23 - "$work/exported" | head -n 3)
    [ -z "$missing" ] || fail "acknowledged and lost after kill $killed: $missing"
    echo "kill $killed after $moment ms: check clean, $(wc -l <"$acknowledged") entries acknowledged," \
        "$(wc -l <"$work/exported") exported identical"
done

begin=$(now)
"$VELLUM" import "$store" "$tree"
echo "imported to the end in $(($(now) - begin)) ms; the store has $(stat -c %s "$store") bytes"
"$VELLUM" check --level full "$store"
chmod -R u+rwx "$out" 2>/dev/null || true
rm -rf "$out"
begin=$(now)
"$VELLUM" export "$store" "$out"
echo "exported in $(($(now) - begin)) ms"
diff -r --no-dereference "$tree" "$out" || fail "the tree and its export differ"
list() { (cd "$1" && find . -mindepth 1 -printf '%P %y %m %T@ %l\n') | LC_ALL=C sort; }
diff <(list "$tree") <(list "$out") || fail "permissions, times or links differ"
begin=$(now)
"$VELLUM" import "$store" "$tree"
echo "imported again, nothing changed, in $(($(now) - begin)) ms"
echo "PASSED: $kills kills, $files files, $bytes bytes, seed $seed"
