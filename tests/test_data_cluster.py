"""`prepare` on a Dask cluster: a real scheduler and real workers on loopback, some of which are killed."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from images import files_in, photos, write

from core.errors import UserError
from data.batches.shards import verify
from data.config import DataConfig
from data.ingest import stage as ingest
from data.preparing import cluster
from data.preparing.cluster import Task, code_digest, map_on_cluster
from data.preparing.shard import Plan
from data.preparing.stage import prepare
from data.preparing.workers import map_files

ROOT = Path(__file__).parents[1]
LATER = 30
"""Seconds after which what is waited for will not come."""


def until(condition):
    deadline = time.monotonic() + LATER
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


class Cluster:
    """A scheduler and its workers: processes of their own, without the nanny that would start a killed one again."""

    def __init__(self, folder, stack, before=""):
        folder.mkdir()
        self.folder, self.stack, self.workers = folder, stack, []
        self.file = folder / "scheduler.json"
        self.scheduler = self.start("scheduler", "--port", "0", "--scheduler-file", str(self.file), before=before)
        until(lambda: self.file.is_file() and self.file.read_text().endswith("}"))
        self.address = json.loads(self.file.read_text())["address"]

    def start(self, kind, *arguments, before=""):
        code = f"{before}\nfrom dask.__main__ import main; main()"
        command = [sys.executable, "-c", code, kind, "--host", "127.0.0.1", "--no-dashboard", *arguments]
        number = len(self.workers)
        with (self.folder / f"{kind}-{number}.log").open("wb") as log:
            process = subprocess.Popen(
                command,
                cwd=self.folder,
                stdout=log,
                stderr=log,
                env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"},
            )
        self.stack.callback(process.wait)
        self.stack.callback(process.kill)
        return process

    def add_worker(self, before=""):
        options = ("--no-nanny", "--nthreads", "1", "--local-directory", str(self.folder))
        self.workers.append(self.start("worker", self.address, *options, before=before))
        log = self.folder / f"worker-{len(self.workers) - 1}.log"
        until(lambda: b"Starting established connection" in log.read_bytes())


@pytest.fixture
def started(tmp_path):
    with ExitStack() as stack:
        yield Cluster(tmp_path / "cluster", stack)


class Workplace:
    """Images in many shards, and what is made of them."""

    def __init__(self, root, monkeypatch, num_images):
        monkeypatch.setattr(ingest, "MEAN_SHARD_IMAGES", 8)
        self.raw, self.prepared, self.parts = root / "raw", root / "prepared", root / "parts"
        source = write(root / "source", photos(num_images, width=96, height=80))
        self.config = DataConfig(source="folder", path=source, size=64)
        ingest.ingest(self.config, self.raw, root / "state.json")
        self.shards = sorted(self.raw.glob("*.parquet"))

    def prepare(self, prepared, parts):
        """Prepare on this machine."""
        return prepare(self.config, self.raw, prepared, parts)


# A worker that can be met at work on any machine: it says so, and takes its time.
SLOW = """
import os, time
from pathlib import Path
from data.preparing import shard
make_shard = shard.make_shard
def slowly(*arguments):
    busy = Path(f"busy-{os.getpid()}")
    busy.touch()
    time.sleep(0.1)
    busy.unlink()
    return make_shard(*arguments)
shard.make_shard = slowly
"""

PREPARE = """
import json, sys
from pathlib import Path
from data.config import DataConfig
from data.preparing.stage import prepare
from data.stages import run_stage
raw, prepared, parts = map(Path, sys.argv[1:4])
run_stage(lambda: prepare(DataConfig.model_validate(json.loads(sys.argv[4])), raw, prepared, parts))
"""


def records(parts):
    return [path.stem for path in parts.glob("[!.]*.json")]


@pytest.fixture
def stage(tmp_path, monkeypatch, started):
    """Start to prepare many shards on three workers, and wait until the first shard is done."""
    workplace = Workplace(tmp_path, monkeypatch, num_images=300)
    assert len(workplace.shards) > 30
    for _ in range(3):
        started.add_worker(before=SLOW)
    config = workplace.config.model_copy(update={"scheduler": started.address})
    folders = [str(folder) for folder in (workplace.raw, workplace.prepared, workplace.parts)]
    with subprocess.Popen(
        [sys.executable, "-c", PREPARE, *folders, config.model_dump_json()],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        until(lambda: records(workplace.parts))
        yield workplace, process
        process.kill()


@pytest.mark.slow
def test_a_worker_that_is_killed_loses_and_doubles_nothing(tmp_path, started, stage):
    workplace, process = stage
    victim = started.workers[0]
    until((started.folder / f"busy-{victim.pid}").exists)
    victim.kill()
    victim.wait()
    assert 0 < len(records(workplace.parts)) < len(workplace.shards)
    assert process.wait(LATER) == 0, process.stderr.read()
    assert [worker.poll() for worker in started.workers] == [-signal.SIGKILL, None, None]
    assert (started.folder / f"busy-{victim.pid}").exists(), "it was killed at work"
    manifest = workplace.prepare(tmp_path / "here", tmp_path / "parts-here")
    assert files_in(workplace.prepared) == files_in(tmp_path / "here")
    assert files_in(workplace.parts) == files_in(tmp_path / "parts-here")
    verify(workplace.prepared, manifest)


@pytest.mark.slow
@pytest.mark.parametrize("event", ["Ctrl-C", "no scheduler"])
def test_what_was_finished_is_kept_when_a_run_is_cut_short(tmp_path, started, stage, event):
    workplace, process = stage
    process.send_signal(signal.SIGINT) if event == "Ctrl-C" else started.scheduler.kill()
    assert process.wait(LATER) == (130 if event == "Ctrl-C" else 1)
    told = process.stderr.read()
    assert "Traceback" not in told
    if event == "no scheduler":
        assert f"convoy: the Dask scheduler at {started.address} has gone: start it and run the same command" in told
    kept = {path.name: path.stat().st_mtime_ns for path in workplace.parts.glob("[!.]*.json")}
    assert 0 < len(kept) < len(workplace.shards)
    time.sleep(1)  # the workers are alive: what they had begun may end, what was pending does not begin
    assert len(records(workplace.parts)) <= len(kept) + len(started.workers)
    assert not (workplace.prepared / "manifest.json").exists()
    verify(workplace.prepared, workplace.prepare(workplace.prepared, workplace.parts))
    assert kept.items() <= {path.name: path.stat().st_mtime_ns for path in workplace.parts.glob("*.json")}.items()


def kill_worker(file):
    if file.name == "deadly":
        os.kill(os.getpid(), signal.SIGKILL)
    return file.name


@pytest.mark.slow
def test_what_ends_worker_after_worker_and_the_last_one(tmp_path, monkeypatch, started):
    monkeypatch.setattr(cluster, "PATIENCE_SECONDS", 1)
    files = [tmp_path / name for name in ("harmless", "deadly")]
    for file in files:
        file.touch()
    for _ in range(4):
        started.add_worker()
    with pytest.raises(UserError, match=r"^deadly has ended 4 workers one after another, most likely for lack of mem"):
        list(map_on_cluster(kill_worker, files, started.address, [tmp_path]))
    started.add_worker()
    with pytest.raises(UserError, match=r"^no worker is left at tcp://.*: start some and run the same command again"):
        list(map_on_cluster(kill_worker, files, started.address, [tmp_path]))
    monkeypatch.setattr(cluster, "CONNECT_SECONDS", 1)
    with pytest.raises(UserError, match=r"has no workers: start some with `dask worker tcp://127.0.0.1:\d+ --nthreads"):
        list(map_on_cluster(kill_worker, files, started.address, [tmp_path]))
    assert not list(tmp_path.glob(".*"))


UNFIT = {
    "no Convoy": (
        "import sys; sys.modules['data'] = None",
        r"cannot run Convoy \(.*No module named .*\): start it",
    ),
    "other code": (
        "from data.preparing import cluster; cluster.code_digest = lambda: 'older'",
        "runs another version of Convoy:",
    ),
    "other folders": (
        "from pathlib import Path; see = Path.exists; Path.exists = lambda path: path.name[0] != '.' and see(path)",
        "does not see .* as it is here: data/raw, data/prepared and outputs must be on a file system that all machines",
    ),
    "another Pillow": (
        "from distributed import versions; found = versions.get_package_info\n"
        "versions.get_package_info = lambda names: {**found(names), 'pillow': '1.0'}",
        r"runs pillow 1.0 there, \S+ here: start it from the same image or environment$",
    ),
}


@pytest.mark.slow
def test_workers_that_are_not_fit_are_named(tmp_path, started):
    (tmp_path / "file").touch()
    for before, words in UNFIT.values():
        started.add_worker(before)
        with pytest.raises(UserError, match=rf"^worker tcp://127.0.0.1:\d+ {words}") as error:
            list(map_on_cluster(os.path.getsize, [tmp_path / "file"], started.address, [tmp_path]))
        assert "\n" not in str(error.value)
        started.workers[-1].terminate()
        started.workers[-1].wait()
    started.add_worker()
    assert list(map_on_cluster(os.path.getsize, [tmp_path / "file"] * 3, started.address, [tmp_path])) == [0, 0, 0]


@pytest.mark.slow
def test_a_scheduler_that_is_not_fit_is_named(tmp_path):
    with ExitStack() as stack:
        started = Cluster(tmp_path / "cluster", stack, before=UNFIT["no Convoy"][0])
        with pytest.raises(
            UserError, match=r"^the scheduler at tcp://127.0.0.1:\d+ cannot run Convoy \(.*\): start it"
        ):
            list(map_on_cluster(os.path.getsize, [tmp_path], started.address, [tmp_path]))


@pytest.fixture
def silent():
    """A server that answers nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"tcp://127.0.0.1:{server.getsockname()[1]}"


def test_a_scheduler_that_does_not_answer(tmp_path, monkeypatch, silent):
    monkeypatch.setattr(cluster, "CONNECT_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:
        closed = f"tcp://127.0.0.1:{server.getsockname()[1]}"
    for address in (silent, closed):
        with pytest.raises(UserError, match=f"^data.scheduler: no Dask scheduler answers at {address}: start one"):
            list(map_files(os.path.getsize, [tmp_path], scheduler=address, shared=[tmp_path]))


def test_certificates_come_from_the_configuration_of_dask(tmp_path):
    with pytest.raises(UserError, match=r"tls://127.0.0.1:9 needs certificates, which Dask's configuration names"):
        list(map_files(os.path.getsize, [tmp_path], scheduler="tls://127.0.0.1:9", shared=[tmp_path]))


def test_a_worker_that_joins_later_and_unfit_is_told(tmp_path):
    file, mark = tmp_path / "file", tmp_path / "mark"
    task = Task(os.path.getsize, (mark,), code_digest())
    file.touch()
    with pytest.raises(UserError, match=rf"^a worker on \S+ does not see {tmp_path} as it is here"):
        task(file)
    mark.touch()
    assert task(file) == 0
    with pytest.raises(UserError, match="runs another version of Convoy"):
        Task(os.path.getsize, (mark,), "of another version")(file)


@pytest.mark.parametrize("address", ["tcp://10.0.0.1:8786", "tls://dask.example:1", "tcp://[::1]:8786"])
def test_addresses_of_schedulers(address):
    assert DataConfig(scheduler=address).scheduler == address
    assert DataConfig(scheduler="").scheduler is None


@pytest.mark.parametrize(
    "address", ["10.0.0.1:8786", "http://h:1", "tcp://h", "tcp://h:0", "tcp://h:65536", "tcp://h:1/x", "tcp:// h:1"]
)
def test_what_is_no_address_is_told(address):
    with pytest.raises(ValueError, match="expected tcp://HOST:PORT or tls://HOST:PORT, the address that `dask sch"):
        DataConfig(scheduler=address)


def test_a_part_does_not_depend_on_where_it_is_made():
    plans = [Plan(config=DataConfig(scheduler=address), missing=frozenset()) for address in (None, "tcp://h:1")]
    assert plans[0].key == plans[1].key
