# docker build -t joulegate . && docker run --rm -p 127.0.0.1:8080:8080 -v ./joulegate.yaml:/etc/joulegate/joulegate.yaml:ro joulegate
# Counters: see compose.yaml for what a container needs to read a GPU, RAPL or a zeusd.

FROM python:3.11-slim AS build
WORKDIR /src
RUN python -m venv /opt/joulegate
COPY requirements.lock pyproject.toml README.md LICENSE ./
COPY joulegate joulegate
COPY proxy proxy
COPY policies policies
COPY emulator emulator
COPY loadgen loadgen
# The lock pins versions as constraints, so that what it names for development alone stays out of the image.
RUN /opt/joulegate/bin/pip install --no-cache-dir --constraint requirements.lock .

FROM python:3.11-slim
# The embedded engine is C++ with OpenMP.
RUN apt-get update \
 && apt-get install --yes --no-install-recommends libgomp1 libstdc++6 \
 && rm -rf /var/lib/apt/lists/*
RUN useradd --uid 10001 --home-dir /var/lib/joulegate --create-home --shell /usr/sbin/nologin joulegate
COPY --from=build /opt/joulegate /opt/joulegate
COPY --chown=joulegate joulegate.example.yaml /etc/joulegate/joulegate.yaml
# State (ledger, what to restore on the GPUs) goes to $XDG_STATE_HOME/joulegate: the volume.
# A container's loopback can be reached by nobody, so it listens on all of its own addresses, also without keys; what is
# published decides.
ENV PATH=/opt/joulegate/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    XDG_STATE_HOME=/var/lib \
    JOULEGATE_MODEL_DIR=/var/lib/joulegate/models \
    JOULEGATE_LISTEN__HOST=0.0.0.0 \
    JOULEGATE_LISTEN__OPEN=true \
    JOULEGATE_LISTEN__PORT=8080
USER joulegate
WORKDIR /var/lib/joulegate
VOLUME /var/lib/joulegate
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s \
  CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8080/healthz', timeout=2)"]
# The gateway is process 1 and ends on SIGTERM by itself, after it has set back what it changed on the hardware.
ENTRYPOINT ["joulegate"]
CMD ["serve", "-c", "/etc/joulegate/joulegate.yaml"]
