"""Several hosts on one machine: each with its own network, and its own file system for data."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from kbo_pipeline_tests.support import REPOSITORY
from kbo_pipeline_tests.support.pipeline import Pipeline
from kbo_pipeline_tests.support.processes import Started, wait_until

_NETWORK = "10.231.77"
_MIDDLE = "middle"  # has the bridge that the others hang on


def why_not() -> str | None:
    """Why there can be no such hosts here; None when there can."""
    if sys.platform != "linux":
        return "hosts made of network namespaces: Linux only"
    if os.geteuid() != 0:
        return "hosts made of network namespaces: root only"
    if missing := [name for name in ("ip", "mount", "setpriv") if shutil.which(name) is None]:
        return f"hosts made of network namespaces: there is no {', '.join(missing)}"
    tried = subprocess.run(
        ["unshare", "--net", "--mount", "true"], capture_output=True, check=False
    )
    return None if tried.returncode == 0 else "hosts: this kernel or container makes no namespaces"


@dataclass(frozen=True)
class Host:
    """One of them.

    Attributes:
        name: also what its network namespace is called, with a prefix.
        address: on the network between them.
        network: all of them see their own file system at this path, and nothing of the others'.
        prefix: of the names of the namespaces.
    """

    name: str
    address: str
    network: Path
    prefix: str

    @property
    def namespace(self) -> str:
        return f"{self.prefix}-{self.name}"

    @property
    def files(self) -> Path:
        """Where the test finds what the host sees at `network`."""
        return self.network / self.name

    @contextmanager
    def started(self, *arguments: str, settings: Mapping[str, str]) -> Iterator[Started]:
        """Runs `python -m ...` there; whatever is left of its session at the end is killed."""
        pipeline = Pipeline(self.network / "data", dict(settings))
        command = (
            f"mount --bind {self.files} {self.network} && "
            f"exec {sys.executable} -m {' '.join(arguments)}"
        )
        process = Started(
            *("ip", "netns", "exec", self.namespace, "sh", "-c", command),
            environment=pipeline.environment | {"TMPDIR": str(self.network / "tmp")},
            log=self.files / "output",
            cwd=REPOSITORY,
        )
        try:
            yield process
        finally:
            if process.popen.poll() is None:
                process.popen.kill()  # its children die with it
                process.popen.wait()


@contextmanager
def hosts(network: Path, names: Sequence[str]) -> Iterator[dict[str, Host]]:
    """Hosts on one network, which the test is on too; the test sees the files of all.

    Args:
        network: where their files are, a directory each.
        names: what they are called.
    """
    prefix = f"kbo{os.getpid()}"
    made = {
        name: Host(name, f"{_NETWORK}.{number}", network, prefix)
        for number, name in enumerate(names, 2)
    }
    run = partial(subprocess.run, check=True)
    middle = f"{prefix}-{_MIDDLE}"
    try:
        run(["ip", "netns", "add", middle])
        run(["ip", "-n", middle, "link", "add", "bridge", "type", "bridge"])
        run(["ip", "-n", middle, "link", "set", "bridge", "up"])
        for host in made.values():
            (host.files / "tmp").mkdir(parents=True)
            run(["ip", "netns", "add", host.namespace])
            _join(host.namespace, middle, host.name, f"{host.address}/24")
        _join(None, middle, prefix, f"{_NETWORK}.1/24")
        yield made
    finally:
        for namespace in (middle, *(host.namespace for host in made.values())):
            subprocess.run(["ip", "netns", "delete", namespace], capture_output=True, check=False)


def _join(namespace: str | None, middle: str, name: str, address: str) -> None:
    """Ties a host, or the machine itself, to the bridge."""
    there = [] if namespace is None else ["-n", namespace]
    ours = prefix_of(name)
    run = partial(subprocess.run, check=True)
    run(["ip", "-n", middle, "link", "add", f"to-{ours}", "type", "veth", "peer", "name", ours])
    target = "1" if namespace is None else namespace
    run(["ip", "-n", middle, "link", "set", ours, "netns", target])
    run(["ip", "-n", middle, "link", "set", f"to-{ours}", "master", "bridge", "up"])
    run(["ip", *there, "address", "add", address, "dev", ours])
    run(["ip", *there, "link", "set", ours, "up"])
    if namespace is not None:
        run(["ip", *there, "link", "set", "lo", "up"])


def prefix_of(name: str) -> str:
    """A name that the kernel takes for a network interface: 15 characters at most."""
    return name[:12]


def wait_for(process: Started, text: str) -> None:
    """Waits until a process has said something."""
    wait_until(lambda: process.says(text), text, process)
