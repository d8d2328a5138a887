# `just` lists the recipes. What CI checks stands in .ci/run, which needs no `just`.

_default:
    @just --list

# What must hold before a change is merged, or some steps of it: `just ci lint doc`.
ci *steps:
    ./.ci/run {{ steps }}

# Every test, with RabbitMQ and Postgres found or started: `just test --test contracts`.
test *arguments:
    ./scripts/test {{ arguments }}

format:
    cargo fmt --all

lint:
    ./.ci/run format lint

doc:
    ./.ci/run doc

# The types of the feature `cuda`, without a toolkit or a GPU.
cuda-types:
    ./.ci/run cuda

# Licences, bans and sources of the dependencies, and whether each is used.
dependencies:
    ./.ci/run unused deny

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

# The main job on the example prompts.
run *arguments:
    cargo run --release -- run examples/prompts.jsonl {{ arguments }}

# The whole fleet by docker compose; needs .env (see .env.example).
up:
    docker compose up -d --build --wait

down:
    docker compose down
