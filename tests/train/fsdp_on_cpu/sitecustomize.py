"""Lets accelerate shard on CPU, and kills a rank on request. On the Python path of the ranks of test_fsdp2.py alone.

accelerate takes an FSDP configuration for accelerators only: `AcceleratorState` leaves a CPU's processes at plain data
parallelism. All that it does for the others is what follows here; sharding itself is PyTorch's, over gloo.
"""

import os

if os.environ.get("ACCELERATE_USE_FSDP") == "true" and "RANK" in os.environ:
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DistributedType

    plain = AcceleratorState.__init__

    def __init__(self, *args, fsdp_plugin=None, **kwargs):  # noqa: N807 — it replaces a method of that name
        plain(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, fsdp_plugin
            PartialState._shared_state["distributed_type"] = self.distributed_type

    AcceleratorState.__init__ = __init__

    if "KILL_AFTER_CHECKPOINT" in os.environ:
        import signal

        from merit.train import callbacks

        mark_whole = callbacks.mark_whole

        def mark_and_die(branch, step, counters):
            mark_whole(branch, step, counters)
            if step == int(os.environ["KILL_AFTER_CHECKPOINT"]):
                os.kill(os.getpid(), signal.SIGKILL)

        callbacks.mark_whole = mark_and_die
