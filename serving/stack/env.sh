#!/bin/sh
# Write the secrets and addresses of docker-compose.yml into the file named, unless it is there.
set -eu
file=$1
if [ -e "$file" ]; then
    echo "$file is there and stays as it is"
    exit
fi

# 256 random bits.
secret() { od -An -N32 -tx1 /dev/urandom | tr -d ' \n'; }
sha256() { if command -v sha256sum >/dev/null; then sha256sum; else shasum -a 256; fi | cut -d ' ' -f 1; }

mlflow=$(secret) prefect=$(secret) token=$(secret)
cores=$(getconf _NPROCESSORS_ONLN)
umask 077
# Under its own name it is there whole or not at all.
cat >"$file.tmp" <<X
# Secrets and addresses of docker-compose.yml, made by \`make env\`. Whoever reads this file has the whole stack.

# The address that is listened on: 127.0.0.1 is this machine only, 0.0.0.0 is everybody who reaches it.
CONVOY_BIND=127.0.0.1
GATEWAY_PORT=8080
MLFLOW_PORT=5000
PREFECT_PORT=4200
PROMETHEUS_PORT=9090
# What browsers on other machines call this one, with ports, for MLflow: convoy.example:5000
MLFLOW_MORE_HOSTS=

# What the training may use.
WORKER_CPUS=$cores
WORKER_MEMORY=8g

POSTGRES_PASSWORD=$(secret)

# MLflow: user and password of its page, set at the first start. Changed there later, they must be changed here, twice.
MLFLOW_TRACKING_USERNAME=admin
MLFLOW_TRACKING_PASSWORD=$mlflow
MLFLOW_AUTH_ADMIN_PASSWORD=$mlflow
MLFLOW_FLASK_SERVER_SECRET_KEY=$(secret)

# Prefect: its page asks for the first one, which is user:password.
PREFECT_SERVER_API_AUTH_STRING=convoy:$prefect
PREFECT_PASSWORD=$prefect

# The endpoints: the token that clients send, and its SHA-256, which is all that the containers get.
CONVOY_TOKEN=$token
CONVOY_TOKENS=$(printf %s "$token" | sha256)

# The images behind the gateway, written by \`convoy deploy\`.
CONVOY_CPU_IMAGE=
CONVOY_GPU_IMAGE=
CONVOY_EDGE_IMAGE=
X
mv "$file.tmp" "$file"
echo "$file has new secrets: docker compose up --build --wait"
