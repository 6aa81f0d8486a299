"""Memory for the frames of a batch, used again once nobody holds it.

New memory costs a page fault every 4 KiB, more than reading the frames into it. So blocks are handed out again; whether
anybody still holds one is what CPython counts anyway: every tensor and every view that lies in it refers to it.
"""

import math
import sys
import threading

import numpy as np
import torch
from torch import Tensor

_ROUND_BYTES = 1 << 20
_OURS = 3  # references to a block that nobody holds: the list's, the loop's, getrefcount's argument


class FrameMemory:
    """Uninitialised uint8 tensors. Keeps at most `blocks` blocks; threads may share one.

    Tensors are writable and independent of each other, and stay so for as long as anything refers to them.
    """

    def __init__(self, blocks: int):
        self.most = blocks
        self._blocks: list[np.ndarray] = []
        self._lock = threading.Lock()

    def take(self, *shape: int) -> Tensor:
        """A tensor of this shape, in a block that is free or in a new one."""
        size = math.prod(shape)
        with self._lock:
            block = self._free(size)
            # The view keeps the block from being taken by another thread.
            return torch.from_numpy(block[:size]).view(shape)

    def _free(self, size: int) -> np.ndarray:
        for block in self._blocks:
            if block.size >= size and sys.getrefcount(block) == _OURS:
                return block
        block = np.empty(-(-size // _ROUND_BYTES) * _ROUND_BYTES, dtype=np.uint8)
        if len(self._blocks) == self.most:  # the oldest; who holds it keeps it alive
            self._blocks.pop(0)
        self._blocks.append(block)
        return block
