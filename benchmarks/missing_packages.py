"""Prints the packages of setup.cfg that cannot be imported here, one line of names for pip."""

import configparser
import re
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path


def main() -> None:
    setup = configparser.ConfigParser()
    setup.read(Path(__file__).resolve().parents[1] / "setup.cfg")
    wanted = setup["options"]["install_requires"].split() + setup["options.extras_require"]["test"].split()
    names = [re.split(r"[<>=!~]", requirement)[0] for requirement in wanted]
    print(" ".join(name for name in names if not installed(name)))


def installed(name: str) -> bool:
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True


if __name__ == "__main__":
    main()
