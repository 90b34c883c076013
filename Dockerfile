# syntax=docker/dockerfile:1
# Coppice as a container: everything that `npx coppice` does, the inference service by default.
#
#   docker build -t coppice .
#   docker run --rm -p 127.0.0.1:8000:8000 -v "$PWD/models:/models:ro" coppice serve /models/student-Q4_K_M.gguf
#
# For a GPU give a runtime image that has the CUDA 13 libraries (and run with --gpus all):
#   docker build --build-arg RUNTIME=nvidia/cuda:13.0.1-runtime-ubuntu24.04 -t coppice:cuda .
ARG BUILD=node:20-bookworm
ARG RUNTIME=debian:bookworm-slim

FROM ${BUILD} AS build
WORKDIR /opt/coppice
# dependencies first: they change less often than the sources
COPY package.json package-lock.json ./
RUN npm install --ignore-scripts --no-audit --no-fund
COPY . .
RUN npm run build && npm prune --omit=dev --ignore-scripts --no-audit --no-fund
# CUDA's libraries are of no use where the runtime has no driver for them
ARG RUNTIME
RUN case "${RUNTIME}" in *cuda*) ;; *) rm -rf node_modules/@node-llama-cpp/*-cuda* ;; esac

FROM ${RUNTIME}
# an MPI, for jobs on several machines: --build-arg MPI=mpich
ARG MPI
RUN apt-get update && apt-get install -y --no-install-recommends ca-certificates libstdc++6 ${MPI} && rm -rf /var/lib/apt/lists/*
COPY --from=build /usr/local/bin/node /usr/local/bin/node
COPY --from=build /opt/coppice/package.json /opt/coppice/LICENSE /opt/coppice/README.md /opt/coppice/
COPY --from=build /opt/coppice/node_modules /opt/coppice/node_modules
COPY --from=build /opt/coppice/bin /opt/coppice/bin
COPY --from=build /opt/coppice/dist /opt/coppice/dist
COPY --from=build /opt/coppice/native /opt/coppice/native
COPY --from=build /opt/coppice/examples /opt/coppice/examples
# a number, so that Kubernetes can tell that it is not root
RUN ln -s /opt/coppice/bin/coppice.cjs /usr/local/bin/coppice && mkdir -p /var/lib/coppice && chown 10001:10001 /var/lib/coppice
ENV NODE_ENV=production \
    HOME=/var/lib/coppice \
    COPPICE_CACHE=/var/lib/coppice/cache \
    HF_HOME=/var/lib/coppice/huggingface \
    COPPICE_SERVE_HOST=0.0.0.0
WORKDIR /var/lib/coppice
USER 10001:10001
VOLUME /var/lib/coppice
EXPOSE 8000
# the process itself ends well on SIGTERM: requests under way are answered
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=120s \
  CMD ["node", "-e", "const { COPPICE_SERVE_PORT = 8000, COPPICE_SERVE_TLS_CERT: tls } = process.env; const { get } = require(tls ? 'https' : 'http'); get({ host: '127.0.0.1', port: COPPICE_SERVE_PORT, path: '/v1/health/ready', rejectUnauthorized: false }, (r) => process.exit(r.statusCode === 200 ? 0 : 1)).on('error', () => process.exit(1))"]
ENTRYPOINT ["coppice"]
CMD ["serve", "/opt/coppice/examples/tiny-teacher"]
