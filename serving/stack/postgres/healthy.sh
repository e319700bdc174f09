#!/bin/sh
# Whether each server gets into its database with its password.
set -eu
for server in mlflow prefect; do
    PGPASSWORD=$(cat "/run/secrets/${server}_database_password") \
        psql -h 127.0.0.1 -U "$server" -d "$server" -qtAc 'SELECT 1' >/dev/null
done
