"""Many sources through one network: one output recording each, here or on a Ray cluster.

The unit is a source, because the temporal state forbids to split one. An output appears under its name only when it is
whole, so whatever ends a run, the next with ``--resume`` goes on where it ended. A job has the same number of threads
wherever it runs, as sums depend on that in their last bits: any number of workers leaves the same bytes.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from tqdm import tqdm

from gdfusion_ros.cli.inputs import is_world, rig_names
from gdfusion_ros.cli.offline import run_source, threads
from gdfusion_ros.errors import UserError
from gdfusion_ros.frame import Occupancy

RETRIES = 3
"""How often Ray runs a job again whose worker died."""
FILES = ("topics", "calibration", "model", "weights")
"""Options that may name a file."""


@dataclass(frozen=True)
class Job:
    """One source and where its output recording goes."""

    source: str
    out: Path


def jobs_of(sources: list[str], out: Path) -> list[Job]:
    """A job a source, in the order of their outputs. Raises UserError when two would have the same output."""
    jobs: dict[str, Job] = {}
    for source in sources:
        name = source.replace(":", "-") if is_world(source) else _name(source)
        if name in jobs:
            raise UserError(f"{jobs[name].source} and {source} would both be written to {out / name}")
        jobs[name] = Job(source, out / name)
    return [jobs[name] for name in sorted(jobs)]


def _name(source: str) -> str:
    """A recording's own name: a link's, not that of what it leads to; a folder's where `.` or `..` stands for it."""
    path = Path(source)
    return path.name if path.name not in ("", "..") else path.resolve().name


def shard(jobs: list[Job], text: str) -> list[Job]:
    """Every n-th job, from the i-th on, of ``i/n`` (i from 0, as SLURM_ARRAY_TASK_ID). Raises UserError."""
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or int(match[1]) >= int(match[2]):
        raise UserError(f"--shard {text}: it is i/n with i from 0 to n - 1, as 0/4")
    return jobs[int(match[1]) :: int(match[2])]


def run_jobs(jobs: list[Job], args: argparse.Namespace) -> dict[str, Any]:
    """Run the jobs that have no output yet; what happened to each, ready for JSON.

    A job that fails is reported and does not hold up the others. Raises UserError when outputs exist and ``--resume``
    was not given.
    """
    done = [job for job in jobs if job.out.exists()]
    if done and not args.resume:
        raise UserError(
            f"{done[0].out} exists already; --resume skips what is there, or choose another --out"
        )
    todo = [job for job in jobs if not job.out.exists()]
    made: dict[str, Any] = {}
    failed: dict[str, str] = {}
    results = _on_ray(todo, args) if args.ray else ((job, run_job(job, args)) for job in todo)
    for job, result in tqdm(results, total=len(todo), unit="recording", disable=None):
        if "error" in result:
            failed[job.source] = result["error"]
            tqdm.write(f"{job.source}: {result['error']}")
        else:
            made[job.source] = result | {"out": str(job.out)}
    return {"recordings": made, "failed": failed, "skipped": [job.source for job in done]}


def run_job(job: Job, args: argparse.Namespace) -> dict[str, Any]:
    """Run one job; its result, or its ``error`` in one line."""
    try:
        with threads(args.threads or 1):
            return _recorded(job, args)
    except UserError as error:
        return {"error": str(error)}
    except Exception as error:  # one poisoned recording must not end the others' run
        return {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}


def _recorded(job: Job, args: argparse.Namespace) -> dict[str, Any]:
    from gdfusion_ros.sinks.output import OccupancyRecorder
    from gdfusion_ros.sinks.recording import Recording

    # Beside the output, so that the last step is a rename within one file system. rosbag2 names the file inside a
    # recording after its folder, which therefore has its final name already.
    prefix = f".partial-{job.out.name}-{socket.gethostname()}-"
    for left in job.out.parent.glob(f"{prefix}*"):
        process = int(left.name.rpartition("-")[2])
        # In a container this process may have the number of the one that was killed there before.
        if process == os.getpid() or not _alive(process):
            shutil.rmtree(left)
    scratch = job.out.parent / f"{prefix}{os.getpid()}"
    scratch.mkdir(parents=True)
    try:
        with Recording(scratch / job.out.name) as recording:
            recorder = OccupancyRecorder(recording)

            def write(_: int, occupancy: Occupancy) -> None:
                recorder.write(occupancy)

            result = run_source(job.source, args, lambda source: _model(args, source), write, progress=False)
        (scratch / job.out.name).rename(job.out)
    finally:
        shutil.rmtree(scratch)
    return result


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _model(args: argparse.Namespace, source: object) -> Any:
    return _loaded(str(args.model), str(args.weights), args.device, rig_names(source))


@lru_cache(maxsize=2)
def _loaded(model: str, weights: str, device: str, rig: tuple[str, ...]) -> Any:
    """A worker runs many recordings with one network."""
    from gdfusion_ros.cli.arguments import load

    return load(argparse.Namespace(model=model, weights=weights, device=device), rig)


def _on_ray(jobs: list[Job], args: argparse.Namespace) -> Iterator[tuple[Job, dict[str, Any]]]:
    """The jobs' results as they come, from a cluster's workers."""
    try:
        import ray
    except ImportError:
        raise UserError("--ray needs Ray: pip install 'gdfusion_ros[ray]'") from None
    local = args.ray == "local"
    _check_reachable(args.ray)
    try:
        ray.init(
            # `local` is Ray's own word too: a new one, even where traces of another cluster lie about.
            address=args.ray,
            num_cpus=args.workers if local else None,
            include_dashboard=False if local else None,
            log_to_driver=False,
            configure_logging=False,
        )
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise UserError(
            f"no Ray cluster at {args.ray}: {reason}; one that asks for a token needs RAY_AUTH_MODE=token"
        ) from error
    try:
        remote = ray.remote(num_cpus=args.threads or 1, max_retries=RETRIES)(run_job)
        files = {name: _whole(getattr(args, name)) for name in FILES}
        elsewhere = argparse.Namespace(**(vars(args) | files))
        waiting = {remote.remote(_with_whole_paths(job), elsewhere): job for job in jobs}
        while waiting:
            ready, _ = ray.wait(list(waiting))
            job = waiting.pop(ready[0])
            yield job, _fetched(ray.get, ready[0])
    finally:
        ray.shutdown()


def _check_reachable(address: str) -> None:
    """Ray itself waits minutes for a cluster that is not there."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=5.0).close()
    except OSError as error:
        raise UserError(f"no Ray cluster at {address}: {error.strerror or error}") from error


def _fetched(get: Callable[[Any], Any], reference: Any) -> dict[str, Any]:
    from ray.exceptions import RayError

    try:
        result: dict[str, Any] = get(reference)
        return result
    except RayError as error:
        return {"error": f"its worker died {RETRIES + 1} times ({type(error).__name__})"}


def _with_whole_paths(job: Job) -> Job:
    """The job for a worker that was started in another folder."""
    source = job.source if is_world(job.source) else str(Path(job.source).absolute())
    return Job(source, job.out.absolute())


def _whole(name: Any) -> Any:
    """The path of a file from the root; what names no file stays as it is."""
    return type(name)(Path(name).absolute()) if name and Path(name).is_file() else name
