# `just` lists the recipes. .ci/run runs the same commands where just is not installed.

_default:
    @just --list

# Everything that must hold before a change is merged.
ci:
    ./.ci/run

# Every test, with RabbitMQ and Postgres found or started: `just test --test contracts`.
test *arguments:
    ./scripts/test {{ arguments }}

format:
    cargo fmt --all

lint:
    cargo fmt --all --check
    cargo clippy --release --workspace --all-targets -- -D warnings

doc:
    RUSTDOCFLAGS="-D warnings" cargo doc --release --workspace --no-deps

# The types of the feature `cuda`, without a toolkit or a GPU.
cuda-types:
    ./scripts/cuda-build types --release --lib

# The kernels' tests under AddressSanitizer.
sanitize:
    ./scripts/sanitize

# Every fuzz target, for so many inputs each; needs cargo-fuzz.
fuzz runs="100000":
    ./scripts/fuzz {{ runs }}

# The engine beside llama.cpp and transformers; installs them in a folder of its own.
peers *arguments:
    cargo build --release
    benches/peers/run {{ arguments }}

# Licences, advisories and sources of the dependencies; needs cargo-deny.
deny:
    cargo deny check

# The main job on the example prompts.
run *arguments:
    cargo run --release -- run examples/prompts.jsonl {{ arguments }}

# The whole fleet by docker compose; needs .env (see .env.example).
up:
    docker compose up -d --build --wait

down:
    docker compose down
