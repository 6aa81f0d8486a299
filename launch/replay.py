"""Makes a step again whose loss or gradient was not finite, on one CPU process, and says what began it.

    python launch/replay.py RUN --step 37

The run wrote all it needs to RUN/failures/step-37 when it stopped. Told are, for each micro-batch of each rank, the
losses that are not finite, or the first parameter whose gradient is not; and which stories do it alone.
Exit codes: 0 something was not finite again; 1 all was finite; 2 a mistake in the arguments, or no such failure.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from storydist.command import ArgumentParser, positive_int, run_command


def parse_arguments() -> argparse.Namespace:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of the run")
    parser.add_argument("--step", type=positive_int, required=True, help="as the error named it")
    parser.add_argument("--shards", help="where the shards lie now, if they were moved")
    return parser.parse_args()


def main() -> int:
    arguments = parse_arguments()
    # Imported here, so that --help and a mistyped option do not wait for torch.
    from storydist.config import load_config
    from storydist.data.index import ShardIndex
    from storydist.training.failure import SETTINGS, WEIGHTS, failure_path, read_parts
    from storydist.training.replay import Replay

    parts = read_parts(arguments.run, arguments.step)
    folder = failure_path(arguments.run, arguments.step)
    config = load_config(folder / SETTINGS)
    index = ShardIndex.open(arguments.shards or config.data.shards, config.data.cache)
    replay = Replay(config, index, folder / WEIGHTS, parts)
    facts = parts[0].facts
    print(
        f"step {arguments.step}: {facts['told']}\n{facts['world_size']} rank(s) on {facts['device']} in "
        f"{config.train.precision}; here one after the other on the CPU in {replay.precision}"
    )
    found = False
    for broken, line in replay.run():
        print(line)
        found = found or broken
    if not found:
        print("nothing was out of order here: it takes the device or the precision that the run had")
    return 0 if found else 1


if __name__ == "__main__":
    raise SystemExit(run_command(main))
