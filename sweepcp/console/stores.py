"""Print token stores."""

from collections.abc import Sequence

from rich import box
from rich.table import Table

from sweepcp.data.token_store import TokenStore

LEFT_COLUMNS = ("source", "store")


def store_table(stores: Sequence[TokenStore]) -> Table:
    """Return a table of the content and the folder of token stores."""
    table = Table(title="Token stores", header_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("source", "documents", "MB of text", "tokens", "held out", "store"):
        table.add_column(name, justify="left" if name in LEFT_COLUMNS else "right", overflow="fold")
    for store in stores:
        train, held_out = store.meta["train"], store.meta["held_out"]
        table.add_row(
            store.source,
            f"{train['documents']:,}",
            f"{train['bytes'] / 1e6:,.1f}",
            f"{train['tokens']:,}",
            f"{held_out['documents']:,}",
            str(store.path),
        )
    return table
