# The sidecar with its model and runtime library: `docker build -t refrain .`
#
# The pinned ONNX Runtime is for x86_64; on another machine, build with --platform=linux/amd64.

FROM rust:1.92-bookworm AS build
WORKDIR /src
# Dependencies first, against empty sources, so that an edit of the code does not compile them anew.
# The benches are named in Cargo.toml, and cargo refuses a manifest that names missing files.
COPY Cargo.toml Cargo.lock ./
COPY benches benches
RUN mkdir src \
    && echo 'fn main() {}' | tee src/main.rs > build.rs \
    && touch src/lib.rs \
    && cargo build --release --locked
COPY build.rs ./
COPY proto proto
COPY src src
# Copied files keep their times, and cargo would take those older than the empty ones for built.
RUN touch build.rs src/main.rs src/lib.rs && cargo build --release --locked

# Downloads are checked against pinned hashes, and the exported model against its weights.
FROM python:3.11-slim-bookworm AS assets
WORKDIR /src
COPY scripts scripts
RUN python3 scripts/assets.py --only runtime --only model --dest /assets

FROM debian:bookworm-slim
# Certificates for Redis over TLS and for models from a hub; ONNX Runtime is written in C++.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates libstdc++6 \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 10001 refrain \
    && useradd --uid 10001 --gid refrain --no-create-home --home-dir /var/lib/refrain \
        --shell /usr/sbin/nologin refrain \
    && install --directory --owner=refrain --group=refrain --mode=0700 /var/lib/refrain
COPY LICENSE /usr/share/doc/refrain/LICENSE
COPY --from=assets /assets/onnxruntime /usr/share/refrain/assets/onnxruntime
COPY --from=assets /assets/models /usr/share/refrain/assets/models
COPY --from=build /src/target/release/refrain /usr/local/bin/refrain

# The embedded engine's database goes to /var/lib/refrain/store; a settings file may be mounted at
# /etc/refrain/config.toml.
ENV XDG_DATA_HOME=/var/lib XDG_CONFIG_HOME=/etc
WORKDIR /var/lib/refrain
VOLUME ["/var/lib/refrain"]
# By number, since an orchestrator that wants to see that it is not root cannot look up a name.
USER 10001:10001

# gRPC, and HTTP for metrics and probes. Both listen on loopback until they are told otherwise,
# which is right beside an application that shares the container's network. To publish them, set
# REFRAIN_SERVER__LISTEN, REFRAIN_SERVER__OPS_LISTEN and what their manual says about remote
# callers; docker-compose.yml does so.
EXPOSE 7411 7412

# Asks /readyz through bash's own sockets: it costs no inference, and the image needs no curl.
# It looks up the port that the environment names; one set in a file must be 7412.
HEALTHCHECK --interval=5s --timeout=3s --start-period=60s --retries=3 \
    CMD ["bash", "-c", "at=${REFRAIN_SERVER__OPS_LISTEN:-:7412}; exec 3<>\"/dev/tcp/127.0.0.1/${at##*:}\" && printf 'GET /readyz HTTP/1.0\\r\\n\\r\\n' >&3 && read -r _ status _ <&3 && [[ $status == 200 ]]"]

ENTRYPOINT ["refrain"]
CMD ["serve"]
