"""Print token stores."""

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from sweepcp.console.tables import Column, Row, print_table
from sweepcp.data.token_store import TokenStore

COLUMNS = (
    Column(name="source", is_text=True),
    Column(name="documents", drop=1),
    Column(name="MB of text", drop=3),
    Column(name="tokens"),
    Column(name="held out", drop=2),
)


def show_stores(console: Console, stores: Sequence[TokenStore]) -> None:
    """Print a table of the content of token stores, and their folders."""
    rows = []
    for store in stores:
        train, held_out = store.meta["train"], store.meta["held_out"]
        cells = (
            store.source,
            f"{train['documents']:,}",
            f"{train['bytes'] / 1e6:,.1f}",
            f"{train['tokens']:,}",
            f"{held_out['documents']:,}",
        )
        rows.append(Row(cells=cells))
    print_table(console, "Token stores", COLUMNS, rows)
    for store in stores:
        console.print(Text(f"{store.source}: {store.path}"), soft_wrap=True)
