# Tally's one binary on a small Debian. Build: docker build -t tally:local .
FROM rust:1.95-bookworm AS build
# librdkafka and its OpenSSL are built from source.
RUN apt-get update && apt-get install -y --no-install-recommends build-essential perl && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
# The caches make a second build incremental; they aren't part of the image, so the binary is copied out.
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/src/target \
    cargo build --release --locked --bin tally && cp target/release/tally /usr/local/bin/tally

FROM debian:bookworm-slim
RUN apt-get update && apt-get install -y --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/* && useradd --create-home --uid 10001 tally
COPY --from=build /usr/local/bin/tally /usr/local/bin/tally
USER tally
WORKDIR /home/tally
# A volume that is mounted there belongs to the user too.
RUN mkdir tally-data
EXPOSE 8080
# Whether it is healthy depends on the command it runs: compose.yaml checks the ones that serve.
ENTRYPOINT ["tally"]
CMD ["run", "--listen", "0.0.0.0:8080"]
