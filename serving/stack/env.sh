#!/bin/sh
# Write the settings of docker-compose.yml into file $1, and the secrets into the folder .secrets beside it.
# Existing settings and secrets stay. Secrets that an older version wrote into the settings move into the folder.
set -eu
file=$1
folder=$(dirname "$file")/.secrets
umask 077

# 256 random bits.
random() { od -An -N32 -tx1 /dev/urandom | tr -d ' \n'; }
sha256() { if command -v sha256sum >/dev/null; then sha256sum; else shasum -a 256; fi | cut -d ' ' -f 1; }
# The value of a variable in the settings. As for compose, the last line counts.
setting() { if [ -e "$file" ]; then sed -n "s/^$1=//p" "$file" | tail -n 1 | sed "s/^\\(['\"]\\)\\(.*\\)\\1\$/\\2/"; fi; }

# keep NAME VALUE: write a secret unless it exists. All users of the containers may read the file. On this machine, only
# the owner may open the folder.
made=
keep() {
    if [ ! -e "$folder/$1" ]; then
        printf '%s\n' "$2" >"$folder/$1.tmp"
        chmod 644 "$folder/$1.tmp"
        mv "$folder/$1.tmp" "$folder/$1"
        made=yes
    fi
}
# keep_or_make NAME VARIABLE: write the secret from older settings, or a random secret.
keep_or_make() {
    old=$(setting "$2")
    keep "$1" "${old:-$(random)}"
}

mkdir -p "$folder/classifiers"
chmod 755 "$folder/classifiers"
keep_or_make postgres_password POSTGRES_PASSWORD
keep_or_make mlflow_database_password -
keep_or_make prefect_database_password -
keep_or_make mlflow_admin_password MLFLOW_AUTH_ADMIN_PASSWORD
keep_or_make mlflow_worker_password -
keep_or_make mlflow_session_key MLFLOW_FLASK_SERVER_SECRET_KEY
keep_or_make prefect_password PREFECT_PASSWORD
old=$(setting PREFECT_SERVER_API_AUTH_STRING)
keep prefect_auth "${old:-convoy:$(cat "$folder/prefect_password")}"
# The token for clients, and the hashes of all tokens. The containers get only the hashes.
keep_or_make token CONVOY_TOKEN
old=$(setting CONVOY_TOKENS | tr ',' '\n')
keep classifiers/tokens "${old:-$(printf %s "$(cat "$folder/token")" | sha256)}"

if [ -e "$file" ]; then
    # A different MLflow user in the settings stays.
    moved='POSTGRES_PASSWORD|MLFLOW_AUTH_ADMIN_PASSWORD|MLFLOW_FLASK_SERVER_SECRET_KEY|PREFECT_SERVER_API_AUTH_STRING'
    moved="$moved|PREFECT_PASSWORD|CONVOY_TOKEN|CONVOY_TOKENS"
    if [ "$(setting MLFLOW_TRACKING_PASSWORD)" = "$(cat "$folder/mlflow_admin_password")" ]; then
        moved="$moved|MLFLOW_TRACKING_USERNAME|MLFLOW_TRACKING_PASSWORD"
    fi
    if [ -n "$(setting CONVOY_SECRETS)" ]; then
        echo "$file is there and stays as it is${made:+; $folder has the secrets that were missing}"
        exit
    fi
    {
        grep -Ev "^($moved)=" "$file"
        printf '\n# The folder of the secrets.\nCONVOY_SECRETS=.secrets\n'
        if [ "$(setting CONVOY_ALLOW_ANONYMOUS)" = true ] && [ -z "$old" ]; then echo CONVOY_STACK_TOKENS_FILE=; fi
    } >"$file.tmp"
    mv "$file.tmp" "$file"
    echo "$file stays, and its secrets are in $folder now: docker compose up --build --wait"
    exit
fi

# The project is named after the folder, so that two stacks on one machine do not share containers and volumes.
name=$(cd "$(dirname "$file")" && basename "$PWD" | tr '[:upper:]' '[:lower:]' | tr -cd 'a-z0-9_-' | sed 's/^[_-]*//')

# The rename makes sure that the file is complete.
cat >"$file.tmp" <<X
# Settings of docker-compose.yml, made by \`make env\`.

# The folder of the secrets. Whoever reads it has the whole stack.
CONVOY_SECRETS=.secrets

# The name of containers and volumes; another stack on this machine has another name, and other ports below.
COMPOSE_PROJECT_NAME=${name:-convoy}

# The address that is listened on: 127.0.0.1 is this machine only, 0.0.0.0 is everybody who reaches it.
CONVOY_BIND=127.0.0.1
GATEWAY_PORT=8080
MLFLOW_PORT=5000
PREFECT_PORT=4200
PROMETHEUS_PORT=9090
# What browsers on other machines call this one, with ports, for MLflow: convoy.example:5000
MLFLOW_MORE_HOSTS=

# What the training may use.
WORKER_CPUS=$(getconf _NPROCESSORS_ONLN)
WORKER_MEMORY=8g

# The images behind the gateway, written by \`convoy deploy\`.
CONVOY_CPU_IMAGE=
CONVOY_GPU_IMAGE=
CONVOY_EDGE_IMAGE=
X
mv "$file.tmp" "$file"
echo "$file and $folder are new: docker compose up --build --wait"
