# Daily work. `.ci/run` is what must pass; it needs no `just`.

# What there is.
default:
    @just --list

# Everything that must pass.
ci:
    .ci/run

# All tests.
test *arguments:
    cargo test --workspace --all-features {{ arguments }}

# Many more crash states than the tests try; `VELLUM_SEED` replays a sampled one.
crash-long *arguments:
    VELLUM_CRASH=long cargo test --all-features --test crash --test mutations -- --nocapture {{ arguments }}

# A writer and eight readers, killed a thousand times; `VELLUM_SEED` chooses other moments.
readers-long kills="1000":
    VELLUM_KILLS={{ kills }} cargo test --test readers bank -- --nocapture

# Many threads against a sequential history, for so long each; `.ci/tsan` runs them under the race detector.
stress seconds="660":
    VELLUM_STRESS_SECONDS={{ seconds }} cargo test --test pager stress -- --nocapture

# Each fuzz target for a while (needs a nightly toolchain and cargo-fuzz).
fuzz seconds="60":
    for target in $(cargo +nightly fuzz list); do \
        cargo +nightly fuzz run "$target" -- -max_total_time={{ seconds }} || exit 1; \
    done

# Benchmarks; `just bench commit` for one of them.
bench *names:
    for name in {{ if names == "" { "commit group_commit open space memory buffer hit_rate readers compression" } else { names } }}; do cargo bench --bench "$name" || exit 1; done

# The reference, with what is private too.
docs:
    cargo doc --no-deps --workspace --all-features --document-private-items --open

# Licences, advisories, sources of what we depend on (needs cargo-deny).
deny:
    cargo deny check

# Bytes of FORMAT.md that are no longer what the library writes.
format:
    cargo test --test format --test stranger

# The buffer's lock-free core under the model checker, with more switches of threads than the tests try.
model preemptions="5":
    LOOM_MAX_PREEMPTIONS={{ preemptions }} cargo test --test buffer_model -- --nocapture
