-- Create a user and a database for each server. Passwords come from files, because other processes can see arguments.
REVOKE CONNECT ON DATABASE postgres, template1 FROM PUBLIC;

\set server mlflow
\set password `cat /run/secrets/mlflow_database_password`
\ir server.sql

\set server prefect
\set password `cat /run/secrets/prefect_database_password`
\ir server.sql
