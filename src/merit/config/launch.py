"""Section `launch`: where branch jobs run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, ValidationError, model_validator

from merit.base import extensions
from merit.base.errors import InputError
from merit.config.sections import LocalPath, Location, Section, refused

if TYPE_CHECKING:
    EngineName = str
else:
    EngineName = Literal[extensions.names("engines")]


class RayPool(Section):
    """Machines of one kind in a Ray cluster. The longest branch goes to the fastest pool."""

    slots: int | None = Field(default=None, ge=1, description="Jobs at once in this pool. Default: as many as fit.")
    speed: float = Field(default=1.0, gt=0, description="Speed of one job here, relative to other pools.")
    cpus: float | None = Field(default=None, gt=0, description="CPU cores per job. Default: `launch.ray.cpus`.")
    gpus: float | None = Field(default=None, ge=0, description="GPUs per job. Default: `launch.ray.gpus`.")
    resources: dict[str, float] = Field(
        default_factory=dict, description="Custom resources per job that only this pool's machines have."
    )
    accelerator: str | None = Field(default=None, description="Ray's accelerator type, e.g. A100.")


class RayConfig(Section):
    """A Ray cluster."""

    address: str | None = Field(
        default=None,
        description="`auto`, HOST:6379 or ray://HOST:10001. Default: RAY_ADDRESS, else Ray on this machine.",
    )
    cpus: float = Field(default=1, gt=0, description="CPU cores per job.")
    gpus: float | None = Field(default=None, ge=0, description="GPUs per job. Default: 1 if the cluster has any.")
    memory_gb: float | None = Field(default=None, gt=0, description="Memory that Ray reserves for a job, in GB.")
    resources: dict[str, float] = Field(default_factory=dict, description="Custom resources per job.")
    accelerator: str | None = Field(default=None, description="Ray's accelerator type, e.g. A100.")
    pools: dict[str, RayPool] = Field(
        default_factory=dict, description="Kinds of machines by name, if they differ in speed."
    )


class SlurmConfig(Section):
    """A Slurm cluster, through submitit. The run directory must be on a file system that all nodes share."""

    partition: str | None = Field(default=None, description="Partition. Default: Slurm's.")
    account: str | None = Field(default=None, description="Account to charge.")
    minutes: int = Field(
        default=240, ge=1, description="Time limit of a job. A job that reaches it is requeued and resumes."
    )
    cpus: int = Field(default=1, ge=1, description="CPU cores per job.")
    gpus: int | None = Field(default=None, ge=0, description="GPUs per job (`--gpus-per-node`).")
    memory_gb: float | None = Field(default=None, gt=0, description="Memory per job, in GB.")
    setup: list[str] = Field(
        default_factory=list, description="Shell lines to run before the job, e.g. `module load cuda`."
    )
    python: str | None = Field(default=None, description="Python interpreter on the nodes. Default: this one.")
    extra: dict[str, Any] = Field(
        default_factory=dict, description="Further sbatch options, e.g. {qos: low, constraint: a100}."
    )
    poll_seconds: float = Field(default=5, gt=0, description="Seconds between two looks at the queue.")


class LaunchConfig(Section):
    """Where jobs run."""

    engine: EngineName = Field(default="local", description="What runs the jobs; `local` is this machine.")
    parallel: int | None = Field(
        default=None,
        ge=1,
        description="Jobs at once. Default: one per GPU; on a CPU, one with all cores; on a cluster, as many as fit.",
    )
    retries: int = Field(default=1, ge=0, le=100, description="How many failures a job survives.")
    preemption_retries: int = Field(
        default=100, ge=0, le=10_000, description="How many preemptions (lost machines) a job survives."
    )
    env: dict[str, str] = Field(default_factory=dict, description="Environment variables of the jobs.")
    processes: int = Field(
        default=1, ge=1, le=64, description="Processes (devices) per branch, under `accelerate launch`."
    )
    accelerate: LocalPath | None = Field(
        default=None,
        description="An accelerate configuration file (FSDP2, DeepSpeed, several nodes).",
    )
    store: LocalPath | None = Field(
        default=None,
        description="A folder, or an fsspec URL (s3://…, gs://…, sftp://…), for machines that do not see the run "
        "directory: merit sends data and θ0 there and fetches checkpoints.",
    )
    ray: RayConfig = Field(default_factory=RayConfig, description="With `engine: ray`.")
    slurm: SlurmConfig = Field(default_factory=SlurmConfig, description="With `engine: slurm`.")
    settings: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="Settings of other engines (`merit_ext/engines/NAME.py`), by name."
    )

    @model_validator(mode="after")
    def _settings_fit(self) -> LaunchConfig:
        problems: list[tuple[Location, str]] = []
        for name, values in self.settings.items():
            at: Location = ("settings", name)
            try:
                model = extensions.load("engines", name).settings
                if model is None:
                    problems.append((at, "this engine takes no settings here"))
                else:
                    model.model_validate(values)
            except InputError as error:
                problems.append((at, str(error)))
            except ValidationError as error:
                problems += [((*at, *item["loc"]), item["msg"]) for item in error.errors(include_url=False)]
        if problems:
            raise refused(problems)
        return self
