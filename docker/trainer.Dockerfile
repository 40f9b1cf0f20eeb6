# The trainer, on a CPU or on CUDA GPUs. Build from the repository's root:
#
#   docker build -f docker/trainer.Dockerfile -t tokenpriority-trainer .
#   docker run --gpus all --network host -v "$PWD":/work -w /work tokenpriority-trainer train config.toml
#   docker run --gpus all --network host --shm-size 8g -v "$PWD":/work -w /work --entrypoint accelerate \
#       tokenpriority-trainer launch --num_processes 8 -m tokenpriority_trainer config.toml
#
# The container writes as user 10001: the mounted folder must let it, or be run with --user "$(id -u):$(id -g)".
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
RUN /opt/venv/bin/pip install --no-cache-dir ".[trainer]"

FROM python:3.11-slim
RUN useradd --create-home --uid 10001 tokenpriority
COPY --from=build /opt/venv /opt/venv
# Caches go where any --user can write.
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 HF_HOME=/tmp/huggingface
USER tokenpriority
STOPSIGNAL SIGINT
ENTRYPOINT ["tokenpriority"]
CMD ["train", "--help"]
