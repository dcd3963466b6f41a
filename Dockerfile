# The image of all roles: `fettler api`, `fettler scheduler`, `fettler worker`, and the command line itself.
#
#   docker build -t fettler .
#
# It runs as a user without rights on a root file system that may be read-only: only /var/lib/fettler (scratch files) is
# written to. docker-compose.yml shows how the roles belong together.

FROM rust:1.95-bookworm AS build
WORKDIR /source
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/source/target \
    cargo build --release --locked --package fettler-cli \
    && cp target/release/fettler /usr/local/bin/fettler

FROM debian:bookworm-slim
# A database is dumped by the client tools of its own major version or a later one, and its proof restores into a server of
# that version, which a worker starts itself: so the image holds those of all majors that PostgreSQL supports.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates postgresql-common tini \
    && sed -i 's/^#\?create_main_cluster.*/create_main_cluster = false/' /etc/postgresql-common/createcluster.conf \
    && /usr/share/postgresql-common/pgdg/apt.postgresql.org.sh -y \
    && apt-get install --yes --no-install-recommends \
        postgresql-14 postgresql-15 postgresql-16 postgresql-17 postgresql-18 redis-server \
    && rm -rf /var/lib/apt/lists/*
RUN useradd --system --uid 10001 --home-dir /var/lib/fettler --create-home --shell /usr/sbin/nologin fettler \
    && install --directory --owner=10001 --group=10001 --mode=0700 /etc/fettler/keys
COPY --from=build /usr/local/bin/fettler /usr/local/bin/fettler
COPY config/environments /etc/fettler/environments
USER 10001:10001
ENV FETTLER_FOLDER=/var/lib/fettler \
    FETTLER_LOG__FORMAT=json
VOLUME /var/lib/fettler
# Reaps what a worker's children leave behind, and passes SIGTERM on: a worker hands its jobs back.
ENTRYPOINT ["tini", "--", "fettler"]
CMD ["--help"]
