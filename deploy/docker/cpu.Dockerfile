# The server on a CPU. Build from the root of the repository:
#   docker build -f deploy/docker/cpu.Dockerfile -t jaxinfer:cpu .
#   docker run --rm -p 8000:8000 -p 50051:50051 -v /models:/models:ro jaxinfer:cpu /models/NAME
# Everything behind the image's name goes to `jaxinfer serve`; without a model it is the shipped demo.
FROM python:3.13-slim-bookworm AS build
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY jaxinfer jaxinfer
COPY pallas_kernels pallas_kernels
COPY checkpoints checkpoints
COPY serving serving
COPY protos protos
RUN python -m venv /opt/jaxinfer \
    && /opt/jaxinfer/bin/pip install --no-cache-dir --disable-pip-version-check --constraint constraints.txt ".[otel]"

FROM python:3.13-slim-bookworm
# A number, so that Kubernetes can see that it is not root's.
RUN groupadd --gid 10001 jaxinfer \
    && useradd --uid 10001 --gid 10001 --create-home --home-dir /home/jaxinfer --shell /usr/sbin/nologin jaxinfer \
    && install -d -o jaxinfer -g jaxinfer /home/jaxinfer/.cache
COPY --from=build /opt/jaxinfer /opt/jaxinfer
ENV PATH=/opt/jaxinfer/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 JAX_PLATFORMS=cpu
USER 10001:10001
WORKDIR /home/jaxinfer
# Compiled programs: with a volume here a restart is ready sooner.
VOLUME ["/home/jaxinfer/.cache"]
EXPOSE 8000 50051
STOPSIGNAL SIGTERM
# /health is 503 until the model is loaded and every step compiled, which takes minutes for a large one.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30m --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
# docker stop waits 10 s unless it is told more (-t 45): running answers have the 30 s of --grace-seconds.
ENTRYPOINT ["jaxinfer", "serve", "--host", "0.0.0.0"]
