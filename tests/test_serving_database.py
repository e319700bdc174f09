"""The stack's database by itself: what an older stack has left in its volume goes to the users of today."""

import subprocess
import uuid
from pathlib import Path

import pytest
from rollouts import stand_in, wait_for

pytestmark = [pytest.mark.docker, pytest.mark.usefixtures("engine")]

SCRIPTS = Path(__file__).parents[1] / "serving/stack/postgres"
SECRETS = {
    "postgres_password": "old-secret",
    "mlflow_database_password": "one",
    # Nothing that has a meaning for a shell or for SQL may trip over it.
    "prefect_database_password": "it's $two `three`",
}
# What Prefect makes: kinds of relations, an index of an extension, and types of its own.
OLD = """
CREATE EXTENSION IF NOT EXISTS pg_trgm;
CREATE TYPE state AS ENUM ('a');
CREATE TABLE run (id serial, state state, name text);
CREATE INDEX names ON run USING gin (name gin_trgm_ops);
CREATE TABLE step (id int GENERATED ALWAYS AS IDENTITY);
CREATE SEQUENCE alone;
CREATE VIEW runs AS SELECT * FROM run;
INSERT INTO run (state) VALUES ('a');
"""
# What its next version may do to them.
CHANGE = """
ALTER TABLE run ADD COLUMN more int;
ALTER TABLE step ADD COLUMN more int;
ALTER TYPE state ADD VALUE 'b';
ALTER SEQUENCE alone RESTART;
DROP VIEW runs;
DROP INDEX names;
SELECT count(*) FROM run;
"""


@pytest.fixture
def postgres(tmp_path):
    """A function that starts a container over one volume, in place of the one before."""
    name = f"database-test-{uuid.uuid4().hex[:8]}"
    for secret, value in SECRETS.items():
        (tmp_path / secret).write_text(f"{value}\n")
    tmp_path.chmod(0o755)
    environment = ["--env=POSTGRES_USER=convoy", "--env=LANG=C.UTF-8"]
    mounts = [f"--volume={name}:/var/lib/postgresql/data", f"--volume={tmp_path}:/run/secrets:ro"]

    def start(*arguments, command=()):
        docker("rm", "--force", name)
        image = stand_in("postgres")
        docker(
            "run", "--detach", f"--name={name}", "--network=none", *environment, *mounts, *arguments, image, *command
        )
        return name

    yield start
    docker("rm", "--force", name)
    docker("volume", "rm", name)


def docker(*arguments, text=None):
    return subprocess.run(["docker", *arguments], input=text, capture_output=True, text=True, check=True).stdout.strip()


def query(container, user, database, sql):
    password = SECRETS["postgres_password" if user == "convoy" else f"{user}_database_password"]
    psql = ["psql", "--host=127.0.0.1", f"--username={user}", f"--dbname={database}", "-qtA", "-v", "ON_ERROR_STOP=1"]
    return docker("exec", "--interactive", f"--env=PGPASSWORD={password}", container, *psql, text=sql)


def is_done(function, *arguments):
    try:
        function(*arguments)
    except subprocess.CalledProcessError:
        return False
    return True


def test_what_an_older_stack_has_made_goes_to_its_server(postgres):
    one = postgres("--env=POSTGRES_DB=mlflow", f"--env=POSTGRES_PASSWORD={SECRETS['postgres_password']}")
    wait_for(lambda: is_done(query, one, "convoy", "mlflow", "CREATE DATABASE prefect"), seconds=60)
    query(one, "convoy", "prefect", OLD)
    start = ["--env=POSTGRES_PASSWORD_FILE=/run/secrets/postgres_password", "--entrypoint=sh"]
    two = postgres(*start, f"--volume={SCRIPTS}:/etc/convoy:ro", command=["/etc/convoy/start.sh", "postgres"])
    wait_for(lambda: is_done(docker, "exec", two, "sh", "/etc/convoy/healthy.sh"), seconds=60)
    assert query(two, "prefect", "prefect", CHANGE) == "1"
    for database in ("mlflow", "postgres"):
        assert not is_done(query, two, "prefect", database, "SELECT 1"), database
