"""Section `launch`: where branch jobs run."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from merit.config.section import Section


class RayPool(Section):
    """Machines of one kind in a Ray cluster. The longest branch goes to the fastest pool."""

    slots: int | None = Field(default=None, ge=1, description="Jobs at once in this pool. Default: as many as fit.")
    speed: float = Field(default=1.0, gt=0, description="How fast one of its slots is, relative to other pools.")
    cpus: float | None = Field(default=None, gt=0, description="CPU cores a job. Default: `launch.ray.cpus`.")
    gpus: float | None = Field(default=None, ge=0, description="GPUs a job. Default: `launch.ray.gpus`.")
    resources: dict[str, float] = Field(
        default_factory=dict, description="Custom resources a job, which only this pool's machines have."
    )
    accelerator: str | None = Field(default=None, description="Ray's accelerator type, e.g. A100.")


class RayConfig(Section):
    """A Ray cluster."""

    address: str | None = Field(
        default=None,
        description="`auto`, HOST:6379 or ray://HOST:10001. Default: RAY_ADDRESS, else Ray on this machine.",
    )
    cpus: float = Field(default=1, gt=0, description="CPU cores a job.")
    gpus: float | None = Field(default=None, ge=0, description="GPUs a job. Default: 1 where the cluster has any.")
    memory_gb: float | None = Field(default=None, gt=0, description="Memory that Ray sets aside for a job, in GB.")
    resources: dict[str, float] = Field(default_factory=dict, description="Custom resources a job.")
    accelerator: str | None = Field(default=None, description="Ray's accelerator type, e.g. A100.")
    pools: dict[str, RayPool] = Field(
        default_factory=dict, description="Kinds of machines, by name, where they differ in speed."
    )


class SlurmConfig(Section):
    """A Slurm cluster, through submitit. The run directory must be on a file system that all nodes share."""

    partition: str | None = Field(default=None, description="Partition. Default: Slurm's.")
    account: str | None = Field(default=None, description="Account that pays.")
    minutes: int = Field(
        default=240, ge=1, description="Time limit of a job. One that reaches it is requeued, and resumes."
    )
    cpus: int = Field(default=1, ge=1, description="CPU cores a job.")
    gpus: int | None = Field(default=None, ge=0, description="GPUs a job (`--gpus-per-node`).")
    memory_gb: float | None = Field(default=None, gt=0, description="Memory a job, in GB.")
    setup: list[str] = Field(default_factory=list, description="Shell lines before the job, e.g. `module load cuda`.")
    python: str | None = Field(default=None, description="Interpreter on the nodes. Default: the one merit runs in.")
    extra: dict[str, Any] = Field(
        default_factory=dict, description="Further sbatch options, e.g. {qos: low, constraint: a100}."
    )
    poll_seconds: float = Field(default=5, gt=0, description="How often the queue is asked.")


class LaunchConfig(Section):
    """The executor."""

    engine: Literal["local", "ray", "slurm"] = Field(
        default="local", description="This machine, a Ray cluster, or a Slurm cluster."
    )
    parallel: int | None = Field(
        default=None,
        ge=1,
        description="Jobs at once. Default: one a GPU, on CPU one with all cores; on a cluster, as many as fit.",
    )
    retries: int = Field(default=1, ge=0, le=100, description="How often a job that died is started again.")
    losses: int = Field(
        default=100, ge=0, le=10_000, description="How often a job that lost its machine (preemption) is started again."
    )
    env: dict[str, str] = Field(default_factory=dict, description="Environment variables of the jobs.")
    processes: int = Field(
        default=1, ge=1, le=64, description="Processes (devices) a branch, under `accelerate launch`."
    )
    accelerate: str | None = Field(
        default=None,
        description="An accelerate configuration (FSDP2, DeepSpeed, several nodes) to launch branches with.",
    )
    store: str | None = Field(
        default=None,
        description="An fsspec URL (s3://…, gs://…, sftp://…) for machines that do not see the run directory: data and "
        "θ0 go there, checkpoints come back.",
    )
    ray: RayConfig = Field(default_factory=RayConfig, description="With `engine: ray`.")
    slurm: SlurmConfig = Field(default_factory=SlurmConfig, description="With `engine: slurm`.")
