"""Other servers of object stores, as a second opinion: ministack (S3) in a network of its own, and azurite (Azure).

As a script, ``python second_servers.py check URL``, it is what both are asked: all that a mirror needs of a store, through the
code of mirrors itself. ``python second_servers.py isolated PORT FOLDER`` starts ministack in a new network namespace, and the
check there.
"""

from __future__ import annotations

import base64
import fcntl
import hashlib
import hmac
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

AZURITE = "3.37.0"
_ACCOUNT = "devstoreaccount1"
_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""The account and key that every azurite has, as Microsoft publishes them."""
SEEN = "all that a mirror needs was seen"


class Missing(Exception):
    """The server cannot be had here; the text says why."""


@contextmanager
def azurite(folder: Path, port: int) -> Iterator[dict[str, str]]:
    """Context manager of a running azurite with the container ``runs``; yields the variables by which a program finds it.
    Missing if npm cannot install it."""
    process = subprocess.Popen(
        [
            *(_azurite_program(), "--blobHost", "127.0.0.1", "--blobPort", str(port), "--location", str(folder)),
            *("--silent", "--skipApiVersionCheck"),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        _wait_for(port, process)
        _create_container(port, "runs")
        yield {
            "AZURE_STORAGE_USE_EMULATOR": "true",
            "AZURITE_BLOB_STORAGE_URL": f"http://127.0.0.1:{port}",
        }
    finally:
        process.kill()
        process.wait()


def _azurite_program() -> str:
    """Returns the program, which npm installs beside the tests at the first use."""
    place = Path(__file__).parent / ".servers" / "azurite"
    program = place / "node_modules" / ".bin" / "azurite-blob"
    if not program.exists():
        if shutil.which("npm") is None:
            raise Missing("azurite needs npm, which is not installed")
        place.mkdir(parents=True, exist_ok=True)
        command = ["npm", "install", "--no-fund", "--no-audit", "--silent", f"azurite@{AZURITE}"]
        done = subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=600)
        if done.returncode or not program.exists():
            raise Missing(f"npm cannot install azurite: {done.stderr[-300:]}")
    return str(program)


def _create_container(port: int, name: str) -> None:
    """Creates a container with a request that is signed by the published key (Azure's Shared Key)."""
    date = datetime.now(UTC).strftime("%a, %d %b %Y %H:%M:%S GMT")
    headers = f"x-ms-date:{date}\nx-ms-version:2021-08-06\n"
    resource = f"/{_ACCOUNT}/{_ACCOUNT}/{name}\nrestype:container"
    text = "PUT\n\n\n\n\n\n\n\n\n\n\n\n" + headers + resource
    signature = base64.b64encode(hmac.new(base64.b64decode(_KEY), text.encode(), hashlib.sha256).digest()).decode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/{_ACCOUNT}/{name}?restype=container",
        method="PUT",
        headers={"x-ms-date": date, "x-ms-version": "2021-08-06", "Authorization": f"SharedKey {_ACCOUNT}:{signature}"},
    )
    with urllib.request.urlopen(request, timeout=30):
        return


def ministack_check(folder: Path) -> str:
    """Returns what the check prints in a network namespace of its own, where ministack serves. Missing without namespaces."""
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-n", "true"], capture_output=True).returncode:
        raise Missing("no network namespace can be made here (unshare -n)")
    program = Path(sys.executable).parent / "ministack"
    if not program.exists():
        raise Missing("ministack is not installed")
    command = ["unshare", "-n", sys.executable, __file__, "isolated", "4566", str(folder), str(program)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    return done.stdout + done.stderr


def _isolated(port: int, folder: Path, program: str) -> None:
    """In a new namespace: brings up the loopback, starts ministack, makes a bucket, checks."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        flags = struct.pack("16sh14x", b"lo", 0x1 | 0x40)  # IFF_UP, IFF_RUNNING
        fcntl.ioctl(any_socket, 0x8914, flags)  # SIOCSIFFLAGS
    environment = {**os.environ, "GATEWAY_PORT": str(port), "HOME": str(folder), "TMPDIR": str(folder)}
    with (folder / "ministack.log").open("w") as log:
        process = subprocess.Popen([program], env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        _wait_for(port, process)
        request = urllib.request.Request(f"http://127.0.0.1:{port}/runs", method="PUT")
        with urllib.request.urlopen(request, timeout=30):
            pass
        os.environ.update(
            AWS_ENDPOINT_URL=f"http://127.0.0.1:{port}",
            AWS_ALLOW_HTTP="true",
            AWS_ACCESS_KEY_ID="test",
            AWS_SECRET_ACCESS_KEY="test",
            AWS_REGION="us-east-1",
        )
        check("s3://runs/one")
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if process.poll() is not None:
            raise Missing(f"the server ended with {process.returncode}")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=2):
                return
        except urllib.error.HTTPError:  # it answers
            return
        except OSError:
            time.sleep(0.1)
    raise Missing("the server does not answer within a minute")


def check(url: str) -> None:
    """Carries out with the store at ``url`` all that a mirror does; AssertionError or another error if it does it otherwise."""
    import obstore
    from mirror_runs import PLAN, owned, run_directory, saved

    from stagewright.mirror.names import complete_steps
    from stagewright.mirror.owner import Fenced
    from stagewright.mirror.remote import names_in, restore
    from stagewright.mirror.trial import try_rights
    from stagewright.mirror.uploads import Uploads
    from stagewright.storage.objects import explain, is_missing, open_store

    store = open_store(url)
    assert try_rights(store, url) is True, "it ignores conditions"
    with tempfile.TemporaryDirectory() as folder:
        run = run_directory(Path(folder) / "run")
        first = Uploads(run, owned(store, url), 2, print)
        for step in (1, 2, 3, 4):
            saved(run, step, size=5_000_000 if step == 4 else 100)  # the last one in parts
            first.saved(step)
            first.work(everything=True)
        assert complete_steps(names_in(store, url)) == [4, 3]
        second = Uploads(run, owned(store, url), 2, print)
        second.work(everything=True)
        try:
            first.work()
            raise AssertionError("two processes own the mirror")
        except Fenced as fenced:
            assert fenced.owner.number == 2
        fresh = run_directory(Path(folder) / "fresh")
        assert restore(store, url, fresh, PLAN).step == 4
        assert (fresh.checkpoints / "step_000004" / "state.pt").stat().st_size > 19_000_000
    try:
        obstore.get(store, "nothing")
    except FileNotFoundError as error:
        assert is_missing(error)
    missing = open_store(f"{url.rsplit('/', 2)[0]}/nosuchbucket/x")
    try:
        obstore.put(missing, "x", b"1")
        raise AssertionError("a bucket that does not exist takes objects")
    except AssertionError:
        raise
    except Exception as error:
        told = str(explain(error, "there", "writing"))
        assert "no such bucket" in told, told
    print(SEEN)


if __name__ == "__main__":
    if sys.argv[1] == "check":
        check(sys.argv[2])
    else:
        _isolated(int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])
