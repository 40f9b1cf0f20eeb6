# The scoring server on the official vLLM image. Build from the repository's root:
#
#   docker build -f docker/service.Dockerfile -t tokenpriority-service .
#   docker run --gpus all --ipc=host -p 8000:8000 -v /models:/models:ro -v tokenpriority:/var/lib/tokenpriority \
#       -v ./server.toml:/etc/tokenpriority/server.toml:ro tokenpriority-service
#   docker run --gpus all --ipc=host -p 127.0.0.1:8000:8000 -v /models:/models:ro tokenpriority-service \
#       serve --model /models/warmed --engine vllm --dtype bfloat16 --insecure
#
# Any other command of `tokenpriority` runs likewise: `docker run -v tokenpriority:/var/lib/tokenpriority
# tokenpriority-service keys create --team demo`. With PostgreSQL, Prometheus and Grafana around it: compose.yaml.
#
# The tests read this file but do not build it. A small image with the torch engine alone, for CPUs:
#   --build-arg BASE=python:3.12-slim --build-arg INDEX=https://download.pytorch.org/whl/cpu

ARG BASE=vllm/vllm-openai:v0.32.0

FROM python:3.12-slim AS wheel
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY client client
COPY service service
COPY trainer trainer
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheel .

FROM ${BASE}
ARG INDEX=https://pypi.org/simple
RUN useradd --create-home --uid 10001 tokenpriority \
    && install -d -o tokenpriority -g tokenpriority /var/lib/tokenpriority
# vLLM, torch and transformers stay as the image brings them: nothing below asks for vLLM, the others are held at their
# versions, and the build fails if that cannot be.
COPY --from=wheel /wheel /tmp/wheel
RUN python3 -m pip freeze | { grep -E '^(numpy|torch|transformers)==' || true; } > /tmp/held.txt \
    && python3 -m pip install --no-cache-dir --extra-index-url "$INDEX" --constraint /tmp/held.txt \
        "$(ls /tmp/wheel/tokenpriority-*.whl)[postgres,traces]" \
    && rm -r /tmp/wheel /tmp/held.txt
ENV PYTHONUNBUFFERED=1 HF_HOME=/home/tokenpriority/.cache/huggingface
# Beyond the container, where serve takes nobody without a key; a database in a volume, or another by -e.
ENV TOKENPRIORITY_SERVER__HOST=0.0.0.0 TOKENPRIORITY_SERVER__PORT=8000
ENV TOKENPRIORITY_DATABASE__URL=sqlite:////var/lib/tokenpriority/tokenpriority.db
WORKDIR /home/tokenpriority
USER tokenpriority
VOLUME /var/lib/tokenpriority
EXPOSE 8000
STOPSIGNAL SIGTERM
# Alive, not ready: a server that is loading its models must not be restarted for it. Ask /readyz before sending work.
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s \
    CMD ["python3", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/healthz', timeout=2)"]
ENTRYPOINT ["tokenpriority"]
CMD ["serve", "--config", "/etc/tokenpriority/server.toml"]
