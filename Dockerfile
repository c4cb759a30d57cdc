# Two images: `slim` (the default: passive metrics) and `full` (with torch, for the micro-probes).
#
#   docker build --build-arg REVISION="$(git rev-parse HEAD)" --tag flopwatch:slim .
#   docker build --build-arg REVISION="$(git rev-parse HEAD)" --target full --tag flopwatch:full .
#
# A release pins the base by its digest: `--build-arg PYTHON_IMAGE=python:3.11.14-slim-bookworm@sha256:…`,
# with the digest that `docker buildx imagetools inspect python:3.11.14-slim-bookworm` shows that day
# (docs/operations.md, "Release").
ARG PYTHON_IMAGE=python:3.11.14-slim-bookworm


# The wheel, by the locked build tools.
FROM ${PYTHON_IMAGE} AS build
WORKDIR /source
COPY deploy/requirements/build.txt deploy/requirements/
RUN pip install --no-cache-dir --require-hashes --no-deps --requirement deploy/requirements/build.txt
COPY pyproject.toml setup.py README.md LICENSE ./
COPY exporter exporter
COPY flopwatch flopwatch
COPY probes probes
RUN pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /wheels .


# The environments: only locked packages, without pip.
FROM ${PYTHON_IMAGE} AS environment-slim
WORKDIR /source
COPY deploy/requirements/slim.txt deploy/requirements/
RUN python -m venv --without-pip /opt/flopwatch \
    && pip --python /opt/flopwatch/bin/python install --no-cache-dir --require-hashes --no-deps --requirement deploy/requirements/slim.txt
COPY --from=build /wheels /wheels
RUN pip --python /opt/flopwatch/bin/python install --no-cache-dir --no-deps --no-index /wheels/*.whl

FROM ${PYTHON_IMAGE} AS environment-full
WORKDIR /source
COPY deploy/requirements/full.txt deploy/requirements/
RUN python -m venv --without-pip /opt/flopwatch \
    && pip --python /opt/flopwatch/bin/python install --no-cache-dir --require-hashes --no-deps --requirement deploy/requirements/full.txt
COPY --from=build /wheels /wheels
RUN pip --python /opt/flopwatch/bin/python install --no-cache-dir --no-deps --no-index /wheels/*.whl


# Common to both images. The root filesystem may be read-only: only the state folder is written to,
# which should be a volume. The NVIDIA container runtime brings the driver's library.
FROM ${PYTHON_IMAGE} AS runtime
ARG REVISION=unknown
ARG VERSION=0.1.0
LABEL org.opencontainers.image.title="flopwatch" \
      org.opencontainers.image.description="Prometheus exporter that says how many FLOPS each GPU delivers, and where the rest of the peak is lost." \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.source="https://github.com/flopwatch/flopwatch" \
      org.opencontainers.image.documentation="https://github.com/flopwatch/flopwatch/tree/main/docs" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
RUN groupadd --gid 65532 flopwatch \
    && useradd --uid 65532 --gid 65532 --home-dir /var/lib/flopwatch --no-create-home --shell /usr/sbin/nologin flopwatch \
    && install --directory --owner 65532 --group 65532 --mode 0750 /var/lib/flopwatch
COPY deploy/container/healthcheck.py /usr/local/lib/flopwatch/healthcheck.py
# One heap for all threads saves 5 MB after many scrapers at once.
ENV MALLOC_ARENA_MAX=1 \
    PATH=/opt/flopwatch/bin:${PATH} \
    HOME=/var/lib/flopwatch \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    FLOPWATCH_REVISION=${REVISION} \
    NVIDIA_VISIBLE_DEVICES=all
EXPOSE 9907
STOPSIGNAL SIGTERM
# Checks only the HTTP server: a hanging driver must not end the container.
HEALTHCHECK --interval=30s --timeout=5s --start-period=10s --retries=3 \
    CMD ["python", "/usr/local/lib/flopwatch/healthcheck.py"]
# Numeric, so that Kubernetes can verify that it is not root.
USER 65532:65532
WORKDIR /var/lib/flopwatch
ENTRYPOINT ["flopwatch"]
CMD ["serve"]


# NVML and GPM, and the kernels of the probes.
FROM runtime AS full
ENV NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    FLOPWATCH_IMAGE=full
COPY --from=environment-full /opt/flopwatch /opt/flopwatch


# NVML and GPM only. Last, so that `docker build .` builds it.
FROM runtime AS slim
ENV NVIDIA_DRIVER_CAPABILITIES=utility \
    FLOPWATCH_IMAGE=slim \
    FLOPWATCH_PROBES_ENABLED=false
COPY --from=environment-slim /opt/flopwatch /opt/flopwatch
