"""What the tests of the whole stack share: a clone of the repository, whose stack is up, and who asks its servers."""

import base64
import json
import shutil
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from pipelines.prefect_server import HOST, free_port

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Stack:
    """A clone of the repository whose stack is up."""

    folder: Path
    project: str
    env: dict[str, str]

    def compose(self, *arguments, **options):
        """Run `docker compose` as a user does in the clone, under a name of the tests' own."""
        command = ["docker", "compose", "--project-name", self.project, *arguments]
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, check=False, **options)
        assert done.returncode == 0, f"{arguments}: {done.stdout[-2000:]} {done.stderr[-4000:]}"
        return done.stdout

    def convoy(self, *arguments):
        """Run `convoy` in the worker."""
        command = ["docker", "compose", "--project-name", self.project, "exec", "-T", "worker", "convoy", *arguments]
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, check=False, timeout=400)
        assert done.returncode == 0, done.stderr[-4000:]
        return done.stdout + done.stderr

    def mlflow(self, path, **query):
        """Ask MLflow as its administrator."""
        url = f"http://{HOST}:{self.env['MLFLOW_PORT']}/api/2.0/mlflow/{path}?{urllib.parse.urlencode(query)}"
        return ask(url, self.admin)

    def secret(self, name):
        """Read a secret as its owner does."""
        return (self.folder / ".secrets" / name).read_text().strip()

    @property
    def admin(self):
        return f"admin:{self.secret('mlflow_admin_password')}"

    def python(self, service, code):
        """Run Python in a container."""
        return self.compose("exec", "-T", service, "python", "-c", code).strip()

    def prefect(self, path, body=None):
        """Ask Prefect, or post to it, as its page does."""
        url = f"http://{HOST}:{self.env['PREFECT_PORT']}/api/{path}"
        return ask(url, self.secret("prefect_auth"), body)

    def champion(self):
        """Give the version of the champion and the run that it comes from, as the server tells."""
        found = self.mlflow("registered-models/alias", name="classifier", alias="champion")["model_version"]
        return found["version"], self.mlflow("runs/get", run_id=found["run_id"])["run"]

    def inspect(self, service):
        """Tell the engine's description of a container."""
        (found,) = json.loads(subprocess.check_output(["docker", "inspect", f"{self.project}-{service}-1"]))
        return found


def ask(url, secret=None, body=None):
    request = urllib.request.Request(url, data=None if body is None else json.dumps(body).encode())
    request.add_header("Content-Type", "application/json")
    if secret:
        request.add_header("Authorization", f"Basic {base64.b64encode(secret.encode()).decode()}")
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def status(url, secret=None, host=None):
    request = urllib.request.Request(url, headers={"Host": host} if host else {})
    if secret:
        request.add_header("Authorization", f"Basic {base64.b64encode(secret.encode()).decode()}")
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def options(values):
    return [part for name, value in values.items() for part in ("--set", f"{name}={value}")]


def wait_until(condition, seconds, what):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"after {seconds} s: {what}"
        time.sleep(1)
    return found


def clone(folder):
    """Clone the repository, and lay over it what has been changed since the last commit."""
    subprocess.run(["git", "clone", "--quiet", ROOT, folder], check=True)
    names = subprocess.check_output(["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT)
    for name in names.decode().splitlines():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_file():
            shutil.copy(ROOT / name, folder / name)
    # The image of the worker takes what git tracks.
    subprocess.run(["git", "add", "--all"], cwd=folder, check=True)


def make_env(folder):
    """Say `make env`, and take ports that are free here."""
    subprocess.run(["make", "--silent", "env"], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    path = folder / ".env"
    lines = [line for line in path.read_text().splitlines() if "=" in line and not line.startswith("#")]
    env = dict(line.split("=", 1) for line in lines)
    env |= {name: str(free_port()) for name in env if name.endswith("_PORT")}
    path.write_text("".join(f"{name}={value}\n" for name, value in env.items()))
    return env
