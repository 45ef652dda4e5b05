# An image that trains, samples and serves on CPUs. From the repository's root:
#   docker build --file=launch/cpu.Dockerfile --tag=sora-jax:cpu .
#   docker run --rm --volume="$PWD:/data" sora-jax:cpu sora-jax sample --prompt="a red circle" --out=red.mp4
#   docker run --rm --volume="$PWD:/data" --net=host sora-jax:cpu sora-jax serve
ARG PYTHON=python:3.12-slim
FROM ${PYTHON}
# The home of any user, for `docker run --user`: caches lie there.
ENV HOME=/tmp GLIBC_TUNABLES=glibc.malloc.hugetlb=1
WORKDIR /sora_jax
COPY setup.cfg pyproject.toml constraints.txt README.md LICENSE ./
COPY sora_jax sora_jax
COPY configs configs
RUN pip install --no-cache-dir --constraint=constraints.txt ".[serve,gcs,s3]"
WORKDIR /data
EXPOSE 7860
CMD ["sora-jax", "--help"]
