# One image for the web process and the workers. Weights are not in it: the volume holds what is fetched.
FROM python:3.12-slim

# Index of the PyTorch build (CPU or a CUDA version), as PyTorch's own page names it; the default one if empty.
ARG TORCH_INDEX_URL=""
ENV PIP_NO_CACHE_DIR=1 PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1

WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY src ./src
RUN pip install ${TORCH_INDEX_URL:+--index-url "$TORCH_INDEX_URL"} torch \
    && pip install ".[web,interpret]" \
    && useradd --uid 10001 --home-dir /data --shell /usr/sbin/nologin scdrugmap \
    && install -d -o 10001 -g 10001 /data

USER 10001:10001
WORKDIR /data
VOLUME /data
ENV SCDRUGMAP_WEB_DATA_DIR=/data/server SCDRUGMAP_CACHE_DIR=/data/cache HOME=/data MPLCONFIGDIR=/tmp
EXPOSE 8000
HEALTHCHECK --interval=15s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/healthz', timeout=4)"]
ENTRYPOINT ["scdrugmap", "serve"]
CMD ["--host", "0.0.0.0"]
