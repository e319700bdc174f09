#!/bin/sh
# Start PostgreSQL like its image, and create each server's user and database. This runs at every start, so that it also
# updates the volume of an older stack, and changed passwords.
set -eu
(
    PGPASSWORD=$(cat /run/secrets/postgres_password)
    export PGPASSWORD
    # TCP, because PostgreSQL listens only on a socket while the image initializes a new volume.
    for _ in $(seq 300); do
        psql -h 127.0.0.1 -U convoy -d postgres -qtAc 'SELECT 1' >/dev/null 2>&1 && break
        sleep 0.2
    done
    psql -h 127.0.0.1 -U convoy -d postgres -q -v ON_ERROR_STOP=1 -f /etc/convoy/databases.sql >/dev/null
) &
exec docker-entrypoint.sh "$@"
