# promptyard's image. The same file builds for CPU (the default) and for CUDA: docker-compose.cuda.yml
# gives the CUDA base images and FEATURES=cuda.
ARG BUILD_IMAGE=rust:1.95.0-slim-bookworm
ARG RUNTIME_IMAGE=debian:12.13-slim

# Rust comes from here whatever the build image is: CUDA's has none.
FROM rust:1.95.0-slim-bookworm AS toolchain

FROM ${BUILD_IMAGE} AS build
ENV CARGO_HOME=/usr/local/cargo \
    RUSTUP_HOME=/usr/local/rustup \
    PATH=/usr/local/cargo/bin:$PATH \
    SQLX_OFFLINE=true
COPY --from=toolchain /usr/local/cargo /usr/local/cargo
COPY --from=toolchain /usr/local/rustup /usr/local/rustup
# A C and a C++ compiler: SQLite, ring and the tokenizers' regular expressions are built from source.
RUN apt-get update \
    && apt-get install -y --no-install-recommends build-essential ca-certificates pkg-config \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
ARG FEATURES=""
# Used with FEATURES=cuda only: a build machine has no GPU to ask. 80 is Ampere, 90 Hopper.
ARG CUDA_COMPUTE_CAP=80
# The registry and the compiled dependencies stay in caches of the builder, so that a change of our
# own code compiles our own code only. They are not part of the image, hence the copy.
RUN --mount=type=cache,target=/usr/local/cargo/registry,sharing=locked \
    --mount=type=cache,id=promptyard-target-${FEATURES},target=/src/target,sharing=locked \
    CUDA_COMPUTE_CAP=${CUDA_COMPUTE_CAP} \
    cargo build --profile dist --locked --bin promptyard --features "${FEATURES}" \
    && cp target/dist/promptyard /usr/local/bin/promptyard

FROM ${RUNTIME_IMAGE} AS runtime
# curl asks /healthz for the health checks; ca-certificates serve the model hub and TLS to broker and ledger.
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates curl \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 10001 promptyard \
    && useradd --uid 10001 --gid promptyard --create-home --home-dir /var/lib/promptyard --shell /usr/sbin/nologin promptyard
COPY --from=build /usr/local/bin/promptyard /usr/local/bin/promptyard
USER promptyard
WORKDIR /var/lib/promptyard
# Models fetched by name from the hub; mount a volume here to fetch them once.
ENV HF_HOME=/var/lib/promptyard/hub \
    PROMPTYARD_TELEMETRY_LISTEN=0.0.0.0:9464 \
    PROMPTYARD_API_LISTEN=0.0.0.0:8080
# 8080: HTTP interface of `serve` and `up`. 9464: /metrics, /healthz and /readyz of every role.
EXPOSE 8080 9464
STOPSIGNAL SIGTERM
ENTRYPOINT ["promptyard"]
CMD ["up"]
