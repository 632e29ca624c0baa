"""Search the LR fraction and the replay share of a continued-pretraining run on proxy models."""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["InvalidInput", "RunView", "load_run"]

if TYPE_CHECKING:
    from sweepcp.errors import InvalidInput
    from sweepcp.report.views import RunView, load_run


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that the command line starts fast."""
    from importlib import import_module

    if name in __all__:
        module = "sweepcp.errors" if name == "InvalidInput" else "sweepcp.report.views"
        return getattr(import_module(module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
