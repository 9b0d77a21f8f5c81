# The image of `romancy operator`, and what one's own workflows are built on:
#
#     FROM romancy:0.1.0
#     COPY workflows /app/workflows
#     ENV ROMANCY_WORKFLOWS=workflows.shop
#
# Builds with docker and with buildah (`make image`). PYTHON is a build argument so that a mirror or a base of one's own can be
# named; it must be Debian's Python image or something like it.
ARG PYTHON=python:3.13-slim-trixie

FROM ${PYTHON} AS build
RUN apt-get update -qq && apt-get install -qq -y --no-install-recommends binutils > /dev/null
WORKDIR /build
COPY requirements-run.txt requirements-build.txt ./
# The environment has no pip of its own: nothing can be installed into a running pod.
RUN python3 -m venv /opt/build && /opt/build/bin/pip install -q --no-cache-dir --require-hashes -r requirements-build.txt \
 && python3 -m venv --without-pip /opt/romancy \
 && pip --python /opt/romancy/bin/python install -q --no-cache-dir --no-compile --require-hashes -r requirements-run.txt
COPY pyproject.toml README.md LICENSE ./
COPY crds crds
COPY operator operator
RUN /opt/build/bin/python -m build -q --wheel --no-isolation \
 && pip --python /opt/romancy/bin/python install -q --no-cache-dir --no-compile --no-deps dist/*.whl
# Byte code of what is really imported, and of no more: the root file system is read-only when it runs, and the official
# client alone has 70 MB of modules that nothing here ever imports.
RUN /opt/romancy/bin/python -c "import romancy.cli.main, romancy.cli.serve, romancy.control.control, romancy.gateway.server" \
 && find /opt/romancy -name "*.so" -exec strip --strip-unneeded {} +

FROM ${PYTHON}
LABEL org.opencontainers.image.title="Romancy" \
      org.opencontainers.image.description="Durable workflows in ordinary Python on Kubernetes and PostgreSQL" \
      org.opencontainers.image.licenses="Apache-2.0"
# kopf asks the passwd file who it is, and Kubernetes tells only by number that a user is not root.
RUN useradd --uid 10001 --no-log-init --home-dir /nonexistent --shell /usr/sbin/nologin romancy
COPY --from=build /opt/romancy /opt/romancy
COPY workflows /app/workflows
WORKDIR /app
# PYTHONHASHSEED: sets of strings replay in the same order; given here, the operator need not start itself anew.
ENV PATH=/opt/romancy/bin:$PATH PYTHONPATH=/app PYTHONHASHSEED=0 PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER 10001:10001
EXPOSE 8080
# Python takes SIGTERM itself, and the engine leaves no child behind: no init is needed.
ENTRYPOINT ["romancy"]
CMD ["operator"]
