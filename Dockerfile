# Two stages: the second has no compiler, no pip cache and no source but the packages. Runs as a user without rights.
FROM python:3.13-slim AS build
WORKDIR /src
RUN python -m venv /opt/almoner
COPY requirements.lock ./
RUN /opt/almoner/bin/pip install --no-cache-dir --no-deps --require-hashes -r requirements.lock
COPY pyproject.toml README.md LICENSE ./
COPY config config
COPY connectors connectors
COPY handlers handlers
COPY worker worker
RUN /opt/almoner/bin/pip install --no-cache-dir --no-deps --no-build-isolation .

FROM python:3.13-slim
RUN useradd --system --uid 10001 --create-home --home-dir /var/lib/almoner almoner \
    && install -d -o almoner -g almoner -m 700 /var/lib/almoner/data
COPY --from=build /opt/almoner /opt/almoner
ENV PATH=/opt/almoner/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    ALMONER_ENVIRONMENT=production \
    ALMONER_HOST=0.0.0.0 \
    ALMONER_DATA_DIR=/var/lib/almoner/data \
    ALMONER_BENEFITS=/etc/almoner/benefits.toml \
    ALMONER_LOG_FORMAT=json
USER almoner
WORKDIR /var/lib/almoner
VOLUME /var/lib/almoner/data
EXPOSE 8787
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s CMD \
    ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8787/healthz', timeout=2)"]
ENTRYPOINT ["almoner"]
CMD ["up"]
