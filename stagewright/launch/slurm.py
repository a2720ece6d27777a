"""A batch script for SLURM: one launcher on each node; the job is queued again after 69 and 75 alone.

``--signal=B:TERM@120`` signals the batch shell alone, two minutes before the time limit. It is passed on to the launchers by
scancel, because srun that gets SIGTERM kills its tasks. A job that is cancelled is not queued again.
"""

from __future__ import annotations

from stagewright.launch.heading import heading
from stagewright.launch.job import NOTICE_SECONDS, RESTARTS, Job
from stagewright.launch.train_command import shell_text, train_words

_MEETING = '"$host:$port"'

_BODY = """\
set -u

host=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
port=$((20000 + SLURM_JOB_ID % 10000))

# The signal comes to this shell alone; srun itself would kill its tasks, so scancel passes it on to the launchers.
trap 'signalled=yes; scancel --signal=TERM "$SLURM_JOB_ID.0"' TERM USR1

# Without SLURM_PROCID each task is a launcher, not a rank.
srun --ntasks-per-node=1 --kill-on-bad-exit=0 env -u SLURM_PROCID \\
    @TRAIN@ &
step=$!
code=
while [ -z "$code" ]; do
    signalled=
    wait "$step"
    code=$?
    [ -z "$signalled" ] || code= # a signal ended the wait, perhaps not the step
done

# 69: a rank or a node was lost. 75: stopped on request, saved. Anything else would come again.
if [ "$code" = 69 ] || [ "$code" = 75 ]; then
    state=$(scontrol show job "$SLURM_JOB_ID" | grep -o 'JobState=[A-Z]*')
    if [ "$state" = JobState=RUNNING ] && [ "${SLURM_RESTART_COUNT:-0}" -lt @RESTARTS@ ]; then
        scontrol requeue "$SLURM_JOB_ID"
    fi
fi
exit "$code"
"""


def slurm_files(job: Job, folder: str) -> dict[str, str]:
    """Returns the script by its name; its output goes to ``folder``, relative to where it is submitted."""
    machines = job.machines
    asked = {
        "job-name": job.name,
        "nodes": machines.nodes,
        "ntasks-per-node": 1,
        "gpus-per-node": machines.gpus or None,
        "cpus-per-task": machines.cpus,
        "partition": machines.partition,
        "time": _time(machines.seconds),
        "signal": f"B:TERM@{NOTICE_SECONDS}",
        "requeue": "",
        "open-mode": "append",
        "output": f"{folder}/{job.name}-%j.log",
    }
    directives = "".join(
        f"#SBATCH --{name}{'' if value == '' else f'={value}'}\n" for name, value in asked.items() if value is not None
    )
    words = train_words(job, job.data, meeting=_MEETING)
    body = _BODY.replace("@TRAIN@", shell_text(words, [_MEETING])).replace("@RESTARTS@", str(RESTARTS))
    return {f"{job.name}.slurm": f"#!/bin/bash\n{heading(job.command)}{directives}\n{body}"}


def slurm_steps(job: Job, folder: str) -> list[str]:
    """Returns what to type next."""
    return [f"sbatch {folder}/{job.name}.slurm"]


def _time(seconds: int) -> str:
    """``1-02:03:04``: days, hours, minutes, seconds, as SLURM reads them."""
    minutes, second = divmod(seconds, 60)
    hours, minute = divmod(minutes, 60)
    day, hour = divmod(hours, 24)
    return f"{day}-{hour:02}:{minute:02}:{second:02}"
