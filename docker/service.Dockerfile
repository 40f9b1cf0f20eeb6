# The scoring server with the torch engine, on a CPU or a CUDA GPU. Build from the repository's root:
#
#   docker build -f docker/service.Dockerfile -t tokenpriority-service .
#   docker run --gpus all -p 8000:8000 -v /models:/models:ro -v ./server.toml:/etc/tokenpriority/server.toml:ro \
#       tokenpriority-service
#
# The tests do not build this image. PyPI's torch for Linux carries CUDA; for a CPU-only image a quarter of the size add
#   --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cpu

FROM python:3.11-slim AS build
ARG TORCH_INDEX=https://pypi.org/simple
WORKDIR /src
RUN python -m venv /opt/venv
# The heavy layer first: it changes only with torch.
RUN /opt/venv/bin/pip install --no-cache-dir --index-url "$TORCH_INDEX" --extra-index-url https://pypi.org/simple "torch>=2.6"
COPY pyproject.toml README.md LICENSE ./
COPY client client
COPY service service
COPY trainer trainer
RUN /opt/venv/bin/pip install --no-cache-dir ".[service]"

FROM python:3.11-slim
RUN useradd --create-home --uid 10001 tokenpriority
COPY --from=build /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 HF_HOME=/home/tokenpriority/.cache/huggingface
USER tokenpriority
EXPOSE 8000
STOPSIGNAL SIGTERM
# Alive, not ready: a server that is loading its models must not be restarted for it. Ask /readyz before sending work.
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/healthz', timeout=2)"]
# The configuration needs [teams] to listen beyond the container; without them serve refuses 0.0.0.0.
ENTRYPOINT ["tokenpriority", "serve", "--config", "/etc/tokenpriority/server.toml", "--host", "0.0.0.0", "--port", "8000"]
