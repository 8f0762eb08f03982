# The server. The base images are arguments, so that a mirror can serve them.
ARG BUILD_IMAGE=rust:1.95-slim-bookworm
ARG RUNTIME_IMAGE=gcr.io/distroless/cc-debian12:nonroot

FROM ${BUILD_IMAGE} AS build
WORKDIR /src
# The dependencies, in a layer of their own: it is built again only when a manifest or the lock file changes. Cargo wants each target
# that the manifest names to have a file; these are empty.
COPY Cargo.toml Cargo.lock ./
COPY server/core/Cargo.toml server/core/
RUN sed -n 's/^path = "\(.*\.rs\)"$/\1/p' Cargo.toml | while read -r file; do \
        mkdir -p "$(dirname "$file")" && echo 'fn main() {}' >"$file" || exit 1; \
    done \
    && mkdir -p server/core/src && touch server/core/src/lib.rs server/src/lib.rs \
    && echo 'fn main() {}' >build.rs \
    && cargo build --release --locked --bin ackstream
# The server itself. Files from outside may be older than the empty ones, and Cargo looks at their times.
COPY build.rs README.md ./
COPY proto proto
COPY server server
ARG GIT_REVISION
RUN find build.rs proto server -exec touch {} + && cargo build --release --locked --bin ackstream

FROM ${RUNTIME_IMAGE}
ARG GIT_REVISION
ARG VERSION=0.1.0
LABEL org.opencontainers.image.title="ackstream" \
      org.opencontainers.image.description="Messages over gRPC bidirectional streams, at least once, and a way to watch it happen" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${GIT_REVISION}"
COPY --from=build /src/target/release/ackstream /usr/local/bin/ackstream
ENV ACKSTREAM_LISTEN=:50051 ACKSTREAM_METRICS_LISTEN=:9464
EXPOSE 50051 9464
HEALTHCHECK --interval=5s --timeout=3s --start-period=5s --retries=3 CMD ["/usr/local/bin/ackstream", "health"]
ENTRYPOINT ["/usr/local/bin/ackstream"]
CMD ["serve"]
