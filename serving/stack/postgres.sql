-- On the first start: MLflow's database is there, made from POSTGRES_DB; Prefect's is this one.
CREATE DATABASE prefect;
