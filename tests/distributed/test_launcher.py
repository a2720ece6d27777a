"""The launcher with toy workers: codes, losses, restarts, signals, hosts. Each test can wait for long; none measures time."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from metadata_service import metadata_service

import stagewright
from stagewright.distributed.launcher import Launch, launch
from stagewright.errors import WorldError

HEAD = """
import os, signal, sys, time
from stagewright.distributed.verdict import leave_verdict
rank, restart, box = int(os.environ["RANK"]), int(os.environ["TORCHELASTIC_RESTART_COUNT"]), sys.argv[1]

def note(name):
    open(f"{box}/{name}", "a").write("x")

def await_note(name):
    while not os.path.exists(f"{box}/{name}"):
        time.sleep(0.02)

def on_signals(act):
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, act)

def end(code, text=""):
    note("ended")
    sys.exit(leave_verdict(code, text))

def stopped_by_signal(seconds=60):
    got = []
    on_signals(lambda number, frame: (got.append(number), note(f"signal-{rank}-{number}")))
    note(f"ready-{rank}")
    until = time.monotonic() + seconds
    while not got and time.monotonic() < until:
        time.sleep(0.02)
    time.sleep(0.3)  # for a signal that comes twice
    end(75 if got else 0)
"""
"""The head of each worker's program; its tail says what the worker does."""
LOST = "os.kill(os.getpid(), signal.SIGKILL)"


@pytest.fixture(autouse=True)
def own_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """The workers import the package that is tested."""
    monkeypatch.setenv("PYTHONPATH", str(Path(stagewright.__file__).parent.parent), prepend=os.pathsep)


def worker(tail: str, box: Path) -> list[str]:
    """The command of a worker whose notes are files in ``box``."""
    return [sys.executable, "-c", HEAD + tail, str(box)]


def launcher_command(command: Sequence[str], launching: str) -> list[str]:
    """The command of a launcher of ``command``; ``launching`` is the Launch."""
    code = "import sys\nfrom stagewright.distributed.launcher import Launch, launch\n"
    return [sys.executable, "-c", f"{code}sys.exit(launch(sys.argv[1:], {launching}))", *command]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def await_file(path: Path) -> None:
    until = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < until, f"{path.name} does not come"
        time.sleep(0.02)


Start = Callable[[Sequence[str], str], "subprocess.Popen[str]"]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a launcher in a process of its own: ``start(command, "Launch(2, grace=5)")``."""
    started: list[subprocess.Popen[str]] = []

    def begin(command: Sequence[str], launching: str) -> subprocess.Popen[str]:
        own = launcher_command(command, launching)
        started.append(subprocess.Popen(own, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        return started[-1]

    yield begin
    for one in started:
        one.kill()
        one.communicate()


@pytest.mark.parametrize(
    ("tails", "expected", "said"),
    [
        (["end(0)", "end(0)"], 0, ""),
        (["end(0)", "end(2, 'no such folder')"], 2, "no such folder"),
        (["end(2, 'bad')", "end(2, 'bad')"], 2, "bad"),
        (["end(69)", "end(2)"], 2, ""),
        (["end(75)", "end(0)"], 75, ""),
        (["end(1)", "end(0)"], 1, ""),
        (["end(0)", "leave_verdict(0); os.kill(os.getpid(), signal.SIGSEGV)"], 0, ""),
        (["end(0)", "sys.exit(2)"], 2, ""),
        (["end(0)", "pass"], 69, "ended with exit code 0 and without a verdict"),
        (["end(0)", "sys.exit(1)"], 69, "ended with exit code 1 and without a verdict"),
        (["end(0)", LOST], 69, "was ended by SIGKILL (often sent by the system when memory runs out)"),
        (["end(0)", "os.kill(os.getpid(), signal.SIGSEGV)"], 69, "was ended by SIGSEGV (a segmentation fault)"),
    ],
)
def test_the_ranks_verdicts_give_the_code(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], tails: list[str], expected: int, said: str
) -> None:
    """And what is said is one line, with rank, host and pid of a rank that was lost; torch says nothing."""
    tail = "\n".join(f"if rank == {rank}: {one}" for rank, one in enumerate(tails))
    assert launch(worker(tail, tmp_path), Launch(2)) == expected
    out, err = capfd.readouterr()
    lines = [line for line in err.splitlines() if line]
    assert out == "" and len(lines) == (1 if said else 0)
    if said:
        assert said in lines[0]
    if "was ended" in said or "without" in said:
        assert lines[0].startswith(f"rank 1 (host {socket.gethostname()}, pid ")


def test_only_rank_0_has_standard_output_and_each_its_place(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    names = "LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE MASTER_ADDR OMP_NUM_THREADS"
    tail = f"print(rank, *(os.environ[name] for name in '{names}'.split()), file=sys.stdout, flush=True)\n"
    tail += "print('also', rank, file=sys.stderr)\nint(os.environ['MASTER_PORT'])\nend(0)"
    assert launch(worker(tail, tmp_path), Launch(3, threads=2)) == 0
    out, err = capfd.readouterr()
    assert out == "0 0 3 3 127.0.0.1 7\n"
    assert sorted(err.splitlines()) == ["also 0", "also 1", "also 2"]


def test_threads_are_shared_out_unless_the_user_has_set_them(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS")
    command = worker("print(os.environ['OMP_NUM_THREADS'], flush=True); end(0)", tmp_path)
    assert launch(command, Launch(2, threads=3)) == launch(command, Launch(2)) == 0
    assert capfd.readouterr().out.split() == ["3", str(max(1, len(os.sched_getaffinity(0)) // 2))]


def test_when_a_rank_is_lost_the_others_notice_it_themselves(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """They get no signal, and time; what the lost rank has started ends with it."""
    tail = f"""
import subprocess
on_signals(lambda number, frame: note("signalled"))
if rank == 1:
    child = subprocess.Popen(["sleep", "60"])
    open(box + "/child", "w").write(str(child.pid))
    {LOST}
await_note("child")
time.sleep(1)
end(69, "rank 1 is silent")
"""
    assert launch(worker(tail, tmp_path), Launch(2)) == 69
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 2 and "SIGKILL" in lines[0] and "the others get 110 s to end" in lines[0]
    assert lines[1] == "rank 1 is silent"
    assert not (tmp_path / "signalled").exists()
    assert not _runs(int((tmp_path / "child").read_text()))


def _runs(pid: int) -> bool:
    """Whether the process runs; a killed one may still wait for its parent."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_after_the_grace_the_others_are_killed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    tail = f"if rank == 1: {LOST}\nopen(box + '/pid', 'w').write(str(os.getpid()))\ntime.sleep(60)"
    assert launch(worker(tail, tmp_path), Launch(2, grace=1.0)) == 69
    lines = capfd.readouterr().err.splitlines()
    pid = (tmp_path / "pid").read_text()
    place = f"rank 0 (host {socket.gethostname()}, pid {pid})"
    assert lines[1:] == [f"{place}: not ended 1 s after a rank failed, so killed; --grace gives more time"]
    assert not _runs(int(pid))


@pytest.mark.parametrize(("code", "starts", "expected"), [(69, 3, 69), (2, 1, 2), (75, 1, 75), (1, 1, 1), (0, 1, 0)])
def test_only_a_loss_starts_all_ranks_again(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], code: int, starts: int, expected: int
) -> None:
    assert launch(worker(f"note(f'start-{{rank}}'); end({code})", tmp_path), Launch(2, max_restarts=2)) == expected
    assert [len((tmp_path / f"start-{rank}").read_text()) for rank in range(2)] == [starts, starts]
    assert capfd.readouterr().err.count("a rank was lost: all are started again") == starts - 1


def test_a_restart_that_works_ends_with_its_own_code(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    tail = f"print(restart, flush=True)\nif rank == 1 and restart == 0: {LOST}\nend(0)"
    assert launch(worker(tail, tmp_path), Launch(2, max_restarts=3)) == 0
    out, err = capfd.readouterr()
    assert out.split() == ["0", "1"] and "(restart 1 of 3)" in err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_stops_all_ranks_once(tmp_path: Path, start: Start, number: signal.Signals) -> None:
    """Also one that comes again; and a launch that was stopped never starts again."""
    launcher = start(worker("stopped_by_signal()", tmp_path), "Launch(2, max_restarts=3)")
    for rank in range(2):
        await_file(tmp_path / f"ready-{rank}")
    for _ in range(2):
        launcher.send_signal(number)
        time.sleep(0.1)
    assert launcher.communicate(timeout=60)[1] == "" and launcher.returncode == 75
    assert [(tmp_path / f"signal-{rank}-{number:d}").read_text() for rank in range(2)] == ["x", "x"]


def test_a_notice_stops_all_ranks(tmp_path: Path, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a signal does; those that go on are killed when the machine is taken away, though the grace is longer."""
    for name, tail, code in (("saves", "stopped_by_signal()", 75), ("goes on", _GOES_ON, 69)):
        box = tmp_path / name
        box.mkdir()
        with metadata_service("AWS", (box / "ready-1").exists, seconds=4) as host:
            monkeypatch.delenv("STAGEWRIGHT_NOTICES")
            monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", f"http://{host}")
            launcher = start(worker(tail, box), "Launch(2, grace=600)")
            said = launcher.communicate(timeout=60)[1]
            monkeypatch.setenv("STAGEWRIGHT_NOTICES", "off")
        assert launcher.returncode == code, said
        assert "AWS takes this machine away in " in said and "(terminate): all ranks stop and save" in said
        assert ("not ended when the machine is taken away, so killed" in said) == (code == 69)
        assert (box / "signal-1-15").read_text() == "x"


_GOES_ON = """
on_signals(lambda number, frame: note(f"signal-{rank}-{number}"))
note(f"ready-{rank}")
time.sleep(600)
"""


def test_ranks_that_go_on_after_a_signal_are_killed(tmp_path: Path, start: Start) -> None:
    tail = "if rank == 0: stopped_by_signal()\non_signals(signal.SIG_IGN); note('ready-1'); time.sleep(60)"
    launcher = start(worker(tail, tmp_path), "Launch(2, grace=1.0, max_restarts=3)")
    for rank in range(2):
        await_file(tmp_path / f"ready-{rank}")
    launcher.send_signal(signal.SIGTERM)
    lines = launcher.communicate(timeout=60)[1].splitlines()
    assert launcher.returncode == 69 and len(lines) == 1
    assert lines[0].startswith("rank 1 (") and "not ended 1 s after SIGTERM, so killed" in lines[0]


def test_a_signal_before_the_workers_can_save(tmp_path: Path, start: Start) -> None:
    """Workers that the signal ends have lost nothing; a launcher without workers ends at once."""
    launcher = start(worker("note(f'ready-{rank}'); time.sleep(60)", tmp_path), "Launch(2, max_restarts=3)")
    port = free_port()
    alone = start(worker("end(0)", tmp_path), f"Launch(1, nnodes='2', rdzv='127.0.0.1:{port}')")
    for rank in range(2):
        await_file(tmp_path / f"ready-{rank}")
    launcher.send_signal(signal.SIGTERM)
    assert alone.stderr is not None and "waiting at" in alone.stderr.readline()
    alone.send_signal(signal.SIGTERM)
    assert launcher.communicate(timeout=60)[1] == "" and launcher.returncode == 143
    assert alone.communicate(timeout=60)[1] == "stopped by SIGTERM while no workers ran; nothing was lost\n"
    assert alone.returncode == 143


ON_TERMINAL = "import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))"
"""Runs a command with a terminal of its own, and hands on what is typed."""


def test_ctrl_c_on_a_terminal(tmp_path: Path) -> None:
    """The first reaches each rank once, the second kills. Ctrl-Z does not stop the launcher, and rank 0 sees the terminal."""
    tail = "print('terminal', sys.stdout.isatty(), flush=True)\n"
    tail += "on_signals(lambda number, frame: note(f'signal-{rank}')); note(f'ready-{rank}'); time.sleep(60)"
    command = [sys.executable, "-c", ON_TERMINAL, *launcher_command(worker(tail, tmp_path), "Launch(2)")]
    terminal = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
    assert terminal.stdin is not None
    try:
        for rank in range(2):
            await_file(tmp_path / f"ready-{rank}")
        terminal.stdin.write(b"\x1a")
        terminal.stdin.write(b"\x03")
        for rank in range(2):
            await_file(tmp_path / f"signal-{rank}")
        time.sleep(0.5)  # for a signal that comes twice
        assert [(tmp_path / f"signal-{rank}").read_text() for rank in range(2)] == ["x", "x"]
        terminal.stdin.write(b"\x03")
        time.sleep(0.1)  # the end of standard input would end the terminal before it has passed this on
        shown = terminal.communicate(timeout=60)[0].decode()
    finally:
        terminal.kill()
        terminal.communicate()
    assert terminal.returncode == 130
    assert "terminal True" in shown and "cannot be paused by Ctrl-Z" in shown.replace("\r\n", " ")


def test_two_hosts_meet_and_start_again_together(tmp_path: Path, start: Start) -> None:
    """Rank 0 is on the host that leads, whichever comes first; a rank lost on the other host starts both again."""
    tail = f"print(rank, os.environ['WORLD_SIZE'], os.environ['LOCAL_RANK'], flush=True)\nif restart == 0 and rank == 2: {LOST}\n"
    tail += "end(0 if restart else 69)"
    command, launching = worker(tail, tmp_path), f"Launch(N, '2', '127.0.0.1:{free_port()}', max_restarts=1)"
    pair = [start(command, launching.replace("N", "2")), start(command, launching.replace("N", "1"))]
    ends = [one.communicate(timeout=60) for one in pair]
    assert [one.returncode for one in pair] == [0, 0]
    assert sorted(out for out, _ in ends) == ["", "0 3 0\n0 3 0\n"]
    assert sum("was ended by SIGKILL" in err for _, err in ends) == 1
    assert all("(restart 1 of 1)" in err for _, err in ends)
    assert all("Traceback" not in err and "c10d" not in err for _, err in ends)


def test_the_workers_can_sum(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    tail = """
import torch, torch.distributed as dist
dist.init_process_group("gloo")
value = torch.tensor([10.0 ** rank])
dist.all_reduce(value)
print(value.item(), flush=True)
dist.destroy_process_group()
end(0)
"""
    assert launch(worker(tail, tmp_path), Launch(2)) == 0
    assert capfd.readouterr().out == "11.0\n"


@pytest.mark.parametrize(
    ("bad", "given"),
    [
        (Launch(0), "--nproc 0"),
        (Launch(1, nnodes="0"), "--nnodes 0"),
        (Launch(1, nnodes="3:2", rdzv="a:1"), "--nnodes 3:2"),
        (Launch(1, nnodes="two"), "--nnodes two"),
        (Launch(1, nnodes="2"), "--nnodes 2 without --rdzv"),
        (Launch(1, nnodes="1:2"), "--nnodes 1:2 without --rdzv"),
        (Launch(1, rdzv="node0"), "--rdzv node0"),
        (Launch(1, rdzv="node0:0"), "--rdzv node0:0"),
        (Launch(1, rdzv="node0:65536"), "--rdzv node0:65536"),
        (Launch(1, rdzv="http://node0:80"), "--rdzv http://node0:80"),
        (Launch(1, rdzv="::1:80"), "--rdzv ::1:80"),
        (Launch(1, threads=0), "0 threads"),
        (Launch(1, max_restarts=-1), "--max-restarts -1"),
        (Launch(1, grace=float("nan")), "grace nan"),
        (Launch(2, nnodes="2", rdzv="no-such-host.invalid:29400", reach=0.5), "its name is unknown here"),
        (Launch(2, nnodes="2", rdzv="127.0.0.1:PORT", gather=0.5), "too few hosts have come to 127.0.0.1:"),
    ],
)
def test_bad_input_is_refused(tmp_path: Path, bad: Launch, given: str) -> None:
    """Before a worker is started, with what is allowed and what to do."""
    if bad.rdzv is not None and "PORT" in bad.rdzv:
        bad = replace(bad, rdzv=bad.rdzv.replace("PORT", str(free_port())))
    with pytest.raises(WorldError) as caught:
        launch(worker("note('started')", tmp_path), bad)
    assert given in caught.value.given and caught.value.allowed and caught.value.remedy
    assert not (tmp_path / "started").exists()


def test_a_port_that_another_program_has_is_refused(tmp_path: Path) -> None:
    """One that says something else, and one that says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = Launch(1, rdzv=f"127.0.0.1:{other.getsockname()[1]}")
        with pytest.raises(WorldError, match="is taken by another program"):
            launch(worker("end(0)", tmp_path), taken)


def test_a_command_that_cannot_be_started_is_refused() -> None:
    with pytest.raises(WorldError, match="cannot be started: No such file"):
        launch(["/no/such/program"], Launch(2))


def test_importing_the_launcher_is_fast() -> None:
    """It imports torch only when it starts workers."""
    code = "import sys, stagewright.distributed.launcher; assert not {'torch', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
