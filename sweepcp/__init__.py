"""Search the LR fraction and the replay share of a continued-pretraining run on small proxies."""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["BadInput", "Run", "load_run"]

if TYPE_CHECKING:
    from sweepcp.errors import BadInput
    from sweepcp.report.look import Run, load_run


def __getattr__(name: str) -> Any:
    """`load_run`, `Run` and `BadInput`, imported on first use so that the command line starts fast."""
    from importlib import import_module

    if name in __all__:
        return getattr(import_module("sweepcp.errors" if name == "BadInput" else "sweepcp.report.look"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
