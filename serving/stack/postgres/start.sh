#!/bin/sh
# Start PostgreSQL as its image does, and give each server its user and database: at each start, so that a volume of an
# older stack, and a new password, are brought up to date.
set -eu
(
    PGPASSWORD=$(cat /run/secrets/postgres_password)
    export PGPASSWORD
    # Over TCP: while the image makes a new volume, PostgreSQL listens on a socket only.
    for _ in $(seq 300); do
        psql -h 127.0.0.1 -U convoy -d postgres -qtAc 'SELECT 1' >/dev/null 2>&1 && break
        sleep 0.2
    done
    psql -h 127.0.0.1 -U convoy -d postgres -q -v ON_ERROR_STOP=1 -f /etc/convoy/databases.sql >/dev/null
) &
exec docker-entrypoint.sh "$@"
