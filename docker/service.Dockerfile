# The scoring server on the official vLLM image. Build from the repository's root:
#
#   docker build -f docker/service.Dockerfile -t tokenpriority-service .
#   docker run --gpus all --ipc=host -p 8000:8000 -v /models:/models:ro \
#       -v ./server.toml:/etc/tokenpriority/server.toml:ro tokenpriority-service
#   docker run --gpus all --ipc=host --network host -v /models:/models:ro tokenpriority-service \
#       --model /models/warmed --engine vllm --dtype bfloat16 --insecure
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
RUN useradd --create-home --uid 10001 tokenpriority
# vLLM, torch and transformers stay as the image brings them: nothing below asks for vLLM, the others are held at their
# versions, and the build fails if that cannot be.
COPY --from=wheel /wheel /tmp/wheel
RUN python3 -m pip freeze | { grep -E '^(numpy|torch|transformers)==' || true; } > /tmp/held.txt \
    && python3 -m pip install --no-cache-dir --extra-index-url "$INDEX" --constraint /tmp/held.txt \
        "$(ls /tmp/wheel/tokenpriority-*.whl)[service]" \
    && rm -r /tmp/wheel /tmp/held.txt
ENV PYTHONUNBUFFERED=1 HF_HOME=/home/tokenpriority/.cache/huggingface
WORKDIR /home/tokenpriority
USER tokenpriority
EXPOSE 8000
STOPSIGNAL SIGTERM
# Alive, not ready: a server that is loading its models must not be restarted for it. Ask /readyz before sending work.
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s \
    CMD ["python3", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/healthz', timeout=2)"]
# The configuration needs [teams] to listen beyond the container; without them serve refuses 0.0.0.0.
ENTRYPOINT ["tokenpriority", "serve", "--host", "0.0.0.0", "--port", "8000"]
CMD ["--config", "/etc/tokenpriority/server.toml"]
