# An image that trains, samples and serves on NVIDIA GPUs. From the repository's root:
#   docker build --file=launch/cuda.Dockerfile --tag=sora-jax:cuda .
#   docker run --rm --gpus=all --volume="$PWD:/data" sora-jax:cuda sora-jax sample --prompt="a red circle" --out=red.mp4
#   docker run --rm --gpus=all --volume="$PWD:/data" --net=host sora-jax:cuda sora-jax serve
ARG PYTHON=python:3.12-slim
FROM ${PYTHON}
# The home of any user, for `docker run --user`: caches lie there.
ENV HOME=/tmp NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
WORKDIR /sora_jax
COPY setup.cfg pyproject.toml constraints.txt README.md LICENSE ./
COPY sora_jax sora_jax
COPY configs configs
RUN pip install --no-cache-dir --constraint=constraints.txt ".[cuda,serve,gcs,s3]"
WORKDIR /data
EXPOSE 7860
CMD ["sora-jax", "--help"]
