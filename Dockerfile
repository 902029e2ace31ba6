# One static binary, the authorities that TLS trusts, and a user without rights:
#
#     docker build --build-arg COMMIT="$(git log -1 --format='%h %cs')" -t runwatch .
#     docker run --read-only -e CREWSHIP_API_KEY -v runwatch:/var/lib/runwatch runwatch
#
# docs/containers.md, config/compose.yaml and config/kubernetes/ show how it is used.

# By digest, so that each build has the same compiler and C library. It is that of the index of all platforms; Dependabot
# renews it (.github/dependabot.yml).
FROM rust:1.95-bookworm@sha256:6258907abe69656e41cd992e0b705cdcfabcbbe3db374f92ed2d47121282d4a1 AS build
WORKDIR /src
COPY . .
# For `--version`: the sources come without their repository. Empty shows the version only.
ARG COMMIT=
ENV RUNWATCH_COMMIT=$COMMIT
RUN packaging/image /image

FROM scratch
# What only the builder knows; .github/workflows/release.yml gives all of them.
ARG VERSION=
ARG REVISION=
ARG CREATED=
ARG SOURCE=
LABEL org.opencontainers.image.title="runwatch" \
      org.opencontainers.image.description="Watches runs at services with a run API until each one ends, and notifies the people and programs that wait for it" \
      org.opencontainers.image.licenses="MIT OR Apache-2.0" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION" \
      org.opencontainers.image.created="$CREATED" \
      org.opencontainers.image.source="$SOURCE" \
      org.opencontainers.image.url="$SOURCE"
COPY --from=build /image/ /
# State belongs to the user; a fresh volume takes owner and mode from here.
COPY --from=build --chown=65532:65532 --chmod=700 /image/var/lib/runwatch /var/lib/runwatch
# The socket lies beside the state, so that one place has to be writable and no more.
ENV STATE_DIRECTORY=/var/lib/runwatch \
    RUNTIME_DIRECTORY=/var/lib/runwatch
USER 65532:65532
VOLUME /var/lib/runwatch
# Only where control.listen is set.
EXPOSE 9477
# Deliveries under way get 10 seconds; an engine that kills sooner or just then (Docker: 10 s) should wait 15.
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s CMD ["/usr/bin/runwatch", "healthcheck"]
ENTRYPOINT ["/usr/bin/runwatch"]
CMD ["daemon"]
