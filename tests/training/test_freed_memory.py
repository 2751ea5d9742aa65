"""Memory that a step frees is there for the next one."""

import subprocess
import sys

CODE = """
import resource
import numpy as np
from posttrain.training import memory

def faults():
    begun = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        blocks = [np.ones(megabytes << 17) for megabytes in (8, 16, 24)]
        del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - begun

memory.keep_freed_memory()
faults()
print(faults())
"""


def test_freed_memory_does_not_come_from_the_kernel_again():
    """Of the pages of 48 MB that are taken and freed four times, the kernel gives out hardly any anew."""
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True, timeout=60)
    assert int(done.stdout) < 4 * (48 << 20) / 4096 / 100
