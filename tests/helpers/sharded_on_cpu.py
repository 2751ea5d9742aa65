"""`python sharded_on_cpu.py ARGS`: `posttrain ARGS` as one of several CPU processes that share the weights.

FSDP2 and DeepSpeed run on CPUs, but accelerate starts them for GPUs only; so it is told that the processes have some.
The rest is as `accelerate launch` does it, whose environment `environment` gives.
"""

import os
import sys
from typing import Any

ENGINES = {
    "fsdp2": {
        **{"ACCELERATE_USE_CPU": "true", "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"},
        **{"FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP", "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT"},
        **{"FSDP_RESHARD_AFTER_FORWARD": "true", "FSDP_CPU_RAM_EFFICIENT_LOADING": "true"},
    },
    "zero3": {
        **{"DS_ACCELERATOR": "cpu", "DS_IGNORE_CUDA_DETECTION": "1", "ACCELERATE_USE_DEEPSPEED": "true"},
        **{"ACCELERATE_DEEPSPEED_ZERO_STAGE": "3", "ACCELERATE_DEEPSPEED_ZERO3_INIT": "true"},
        "ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL": "true",
    },
}


def environment(engine: str, rank: int, processes: int, port: int) -> dict[str, str]:
    """What `accelerate launch --config_file accelerate/ENGINE.yaml` sets for the process `rank`, without bfloat16."""
    return {
        **{
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(processes),
            "LOCAL_WORLD_SIZE": str(processes),
        },
        **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_MIXED_PRECISION": "no"},
        **ENGINES[engine],
    }


def main() -> int:
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DistributedType

    partial, whole = PartialState.__init__, AcceleratorState.__init__

    def on_gpus(self: Any, *args: Any, **kwargs: Any) -> None:
        partial(self, *args, **kwargs)
        if self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = DistributedType.MULTI_GPU

    def not_on_cpu(self: Any, mixed_precision: Any = None, cpu: bool = False, *args: Any, **kwargs: Any) -> None:
        whole(self, mixed_precision, False, *args, **kwargs)

    if "ACCELERATE_USE_FSDP" in os.environ:
        PartialState.__init__ = on_gpus
    else:
        AcceleratorState.__init__ = not_on_cpu
    from posttrain.__main__ import main

    return main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
