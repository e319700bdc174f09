#!/bin/sh
# Health check: each server's user can log in to its database.
set -eu
for server in mlflow prefect; do
    PGPASSWORD=$(cat "/run/secrets/${server}_database_password") \
        psql -h 127.0.0.1 -U "$server" -d "$server" -qtAc 'SELECT 1' >/dev/null
done
