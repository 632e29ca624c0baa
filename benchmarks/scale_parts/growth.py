"""How a cost grows with a size: a table of both, and the exponent of the power law between them."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from measuring import markdown_table, show_number


@dataclass(frozen=True)
class Growth:
    """A cost at several sizes."""

    size: str
    """What grows."""
    cost: str
    unit: str
    sizes: tuple[int, ...]
    costs: tuple[float, ...]

    @property
    def exponent(self) -> float:
        """Of the power law through all points, by least squares: 0 is flat, 1 is linear."""
        pairs = [
            (math.log(size), math.log(cost))
            for size, cost in zip(self.sizes, self.costs, strict=True)
            if cost > 0
        ]
        if len(pairs) < 2:
            return math.nan
        return statistics.linear_regression(*zip(*pairs, strict=True)).slope


def growth_table(rows: Sequence[Growth]) -> str:
    """Return one table: every cost at every size, and how it grows."""
    lines = []
    for row in rows:
        points = [
            f"{size:,}: {show_number(cost)}"
            for size, cost in zip(row.sizes, row.costs, strict=True)
        ]
        lines.append([row.size, row.cost, row.unit, "; ".join(points), f"{row.exponent:.2f}"])
    return markdown_table(["size", "cost", "unit", "at each size", "exponent"], lines)
