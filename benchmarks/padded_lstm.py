"""One training pass (forward and backward) of a text LSTM over padded texts against packed ones, on this machine.

    python benchmarks/padded_lstm.py [--rounds 7] [--threads 2]

The two take turns, so that a change of the machine's speed meets both. Lengths are drawn once: 30 to 90 wordpieces.
"""

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    os.environ.setdefault("GOMP_SPINCOUNT", "30000")  # as the commands have it
    import torch
    from torch.nn.utils.rnn import pack_padded_sequence

    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    lengths = torch.randint(30, 91, (105,))
    texts = torch.randn(105, int(lengths.max()), 64, requires_grad=True)
    lstm = torch.nn.LSTM(64, 128, batch_first=True)

    def padded() -> None:
        states, _ = lstm(texts)
        states[torch.arange(105), lengths - 1].sum().backward()

    def packed() -> None:
        _, (state, _) = lstm(pack_padded_sequence(texts, lengths, batch_first=True, enforce_sorted=False))
        state.sum().backward()

    ratios = []
    for _ in range(arguments.rounds + 1):
        ratios.append(seconds(packed) / seconds(padded))
    ratios = ratios[1:]  # the first round warms up
    print(f"{platform.machine()}, {arguments.threads} threads, torch {torch.__version__}")
    print(f"packed / padded: median {statistics.median(ratios):.2f}, {min(ratios):.2f} to {max(ratios):.2f}")


def seconds(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    for _ in range(3):
        work()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
