"""A Slurm of its own for a test: munged, slurmctld and slurmd of Debian's packages `slurm-wlm` and `munge`, as root."""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue")
MINUTES = 10  # that jobs of tests may take; a requeued one has them again, whatever it was cut short to
_SECONDS = 30
_SETTLE = 3

CONFIG = """
ClusterName=merit
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={node}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=60
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=sched_min_interval=100000,batch_sched_delay=0,sched_interval=1,bf_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
KillWait=2
ReturnToService=2
MpiDefault=none
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 Boards=1 SocketsPerBoard=1 CoresPerSocket=2 ThreadsPerCore=1 State=UNKNOWN
PartitionName=low Nodes={host} Default=YES MaxTime=60 State=UP PriorityTier=1 PreemptMode=REQUEUE
PartitionName=high Nodes={host} MaxTime=60 State=UP PriorityTier=10 PreemptMode=OFF
"""


def why_not() -> str | None:
    """Why no Slurm can be started here; None if it can."""
    missing = [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]
    if missing:
        return f"no {', '.join(missing)} here; Debian's packages slurm-wlm and munge have them"
    if os.geteuid() != 0:
        return "Slurm's daemons of a test run as root"
    return None


class SlurmCluster:
    """One node with two CPUs, and two partitions: `low`, whose jobs are preempted by those of `high`."""

    def __init__(self) -> None:
        # Not pytest's folder, which its owner alone may enter: munged runs as another user.
        self.folder = Path(tempfile.mkdtemp(prefix="merit-slurm-"))
        self._daemons: list[subprocess.Popen[bytes]] = []
        self._waits: dict[str, float] = {}  # requeued job → since when

    def __enter__(self) -> SlurmCluster:
        host = socket.gethostname().split(".")[0]
        for name in ("state", "spool"):
            (self.folder / name).mkdir(parents=True)
        self.folder.chmod(0o755)
        config = self.folder / "slurm.conf"
        config.write_text(CONFIG.format(host=host, folder=self.folder, controller=free_port(), node=free_port()))
        self.env = {"SLURM_CONF": str(config), "PATH": _path()}
        try:
            self._start_munge()
            self._start("slurmctld", "-D")
            self._start("slurmd", "-D", "-N", host)
            self._wait(lambda: "idle" in self.call("sinfo", "--noheader", "--format=%T"))
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if (self.folder / "slurmctld.pid").exists():
            subprocess.run(["scancel", "--user=root"], env=os.environ | self.env, capture_output=True, check=False)
            time.sleep(0.5)
        for daemon in reversed(self._daemons):
            daemon.terminate()
        for daemon in self._daemons:
            try:
                daemon.wait(2)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def call(self, *command: str) -> str:
        """The output of one of Slurm's commands."""
        done = subprocess.run(
            command, env=os.environ | self.env, capture_output=True, text=True, check=False, timeout=60
        )
        return done.stdout if done.returncode == 0 else ""

    def hurry(self) -> bool:
        """Slurm lets a requeued job wait until its credentials have run out; a test has less time.

        Some seconds all the same: what the earlier start left on the node must have ended, and been noted.

        Returns:
            Whether a job was told to start.
        """
        told = False
        for line in self.call("squeue", "--noheader", "--array", "--states=PENDING", "--format=%i|%r").splitlines():
            name, _, reason = line.partition("|")
            if reason == "BeginTime" and time.monotonic() - self._waits.setdefault(name, time.monotonic()) > _SETTLE:
                self.call("scontrol", "update", f"JobId={name}", "StartTime=now", f"TimeLimit={MINUTES}")
                del self._waits[name]
                told = True
        return told

    def _start_munge(self) -> None:
        user = pwd.getpwnam("munge")
        folder = self.folder / "munge"
        folder.mkdir()
        key = folder / "key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o400)
        for path in (folder, key):
            os.chown(path, user.pw_uid, user.pw_gid)
        # The socket lies where everybody may reach it; munged wants to own its folder.
        socket_folder = self.folder
        os.chown(socket_folder, user.pw_uid, user.pw_gid)
        options = [f"--key-file={key}", f"--socket={self.folder}/munge.socket", f"--pid-file={folder}/pid"]
        options += [f"--log-file={folder}/log", f"--seed-file={folder}/seed", "--force", "--num-threads=2"]
        self._start("runuser", "-u", "munge", "--", "munged", "--foreground", *options)
        self._wait((self.folder / "munge.socket").exists)

    def _start(self, *command: str) -> None:
        log = (self.folder / f"{command[0]}.out").open("wb")
        self._daemons.append(
            subprocess.Popen(command, env=os.environ | self.env, stdout=log, stderr=log, start_new_session=True)
        )

    def _wait(self, condition) -> None:
        deadline = time.monotonic() + _SECONDS
        while not condition():
            if time.monotonic() > deadline or any(daemon.poll() is not None for daemon in self._daemons):
                logs = "\n".join(
                    path.read_text(errors="replace")[-2000:] for path in sorted(self.folder.glob("*.[lo][ou]*"))
                )
                raise RuntimeError(f"Slurm does not start:\n{logs}")
            time.sleep(0.1)


def free_port() -> int:
    """A TCP port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _path() -> str:
    return f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
