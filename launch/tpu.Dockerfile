# An image that trains, samples and serves on TPUs. From the repository's root:
#   docker build --file=launch/tpu.Dockerfile --tag=sora-jax:tpu .
#   docker run --rm --privileged --volume="$PWD:/data" sora-jax:tpu sora-jax sample --prompt="a red circle" --out=red.mp4
#   docker run --rm --privileged --volume="$PWD:/data" --net=host sora-jax:tpu sora-jax serve
ARG PYTHON=python:3.12-slim
FROM ${PYTHON}
# The home of any user, for `docker run --user`: caches lie there.
ENV HOME=/tmp
WORKDIR /sora_jax
COPY setup.cfg pyproject.toml constraints.txt README.md LICENSE ./
COPY sora_jax sora_jax
COPY configs configs
RUN pip install --no-cache-dir --constraint=constraints.txt ".[tpu,serve,gcs,s3]"
WORKDIR /data
EXPOSE 7860
CMD ["sora-jax", "--help"]
