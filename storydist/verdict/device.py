"""Where a run is judged."""

import torch


def choose_device(name: str | None) -> torch.device:
    """The named device, or CUDA if there is one, else the CPU. Raises ValueError for one that cannot be used."""
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"device {name!r} cannot be used: {str(error).splitlines()[0]}") from None
    return device
