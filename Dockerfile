# Two static binaries in an otherwise empty image (before version 23 Docker wants DOCKER_BUILDKIT=1 to build it):
#   docker build -t sandglass .
#   KEY=$(docker run --rm -v sandglass:/var/lib/sandglass sandglass key create me)
#   docker run -d --stop-timeout 45 --cap-add SYS_ADMIN --security-opt seccomp=deploy/docker/seccomp.json \
#     -p 127.0.0.1:8080:8080 -v sandglass:/var/lib/sandglass sandglass
# It makes namespaces, mounts and cgroups, which CAP_SYS_ADMIN is for; it needs nothing else that containers
# don't have, least of all --privileged. Under Docker's own seccomp profile it works as well, with one wall
# weaker, which /info names. Where AppArmor is on, its profile for containers forbids mounts: add
# --security-opt apparmor=unconfined. The data must be on a volume, since an overlay can't lie on another.
# Inside the container it listens on every address, since the container's network is its own: without a key it
# refuses to start, because whoever reached it could run code.

FROM rust:1.95-bookworm AS build
WORKDIR /src
# What `sandglass_build_info` says was built: --build-arg COMMIT=$(git rev-parse HEAD)
ARG COMMIT=unknown
ENV SANDGLASS_COMMIT=$COMMIT
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/src/target \
    cargo build --release --locked --package sandglass --bins \
 && mkdir -p /out/usr/local/bin /out/var/lib/sandglass /out/tmp \
 && cp target/*-unknown-linux-gnu/release/sandglass target/*-unknown-linux-gnu/release/sandglass-launcher /out/usr/local/bin/

FROM scratch
COPY --from=build /out/ /
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
EXPOSE 8080
VOLUME /var/lib/sandglass
STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/local/bin/sandglass"]
CMD ["serve", "--listen=0.0.0.0:8080"]
