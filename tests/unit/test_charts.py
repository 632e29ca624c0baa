import math
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import pytest
from matplotlib.figure import Figure

import sweepcp
from sweepcp.errors import InvalidInput
from sweepcp.report.chart import COLOURS, Axis, Chart, Panel, Series
from sweepcp.report.comparison import comparison_chart
from sweepcp.report.front_charts import front_chart, tolerance_chart
from sweepcp.report.matplotlib_figures import save_image
from sweepcp.report.page import render_page
from sweepcp.report.plotly_figures import plotly_figure
from sweepcp.report.progress_charts import hypervolume_chart, training_chart
from sweepcp.report.recipe_charts import parallel_chart, recipe_chart
from tests.make_run import write_run

KINDS = (
    "front",
    "plane",
    "tradeoff",
    "parallel",
    "importance",
    "hypervolume",
    "curves",
    "tolerance",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> sweepcp.RunView:
    folder = tmp_path_factory.mktemp("run")
    return sweepcp.load_run(
        write_run(folder, 24, t0003="diverged", t0009="failed", t0011="stopped")
    )


def points(chart: Chart) -> list[Series]:
    return [s for panel in chart.panels for s in panel.series if s.draw == "points"]


def trials_in(series: list[Series]) -> list[str]:
    """Ids at the beginning of hover texts."""
    return sorted(text[:4] for s in series for text in s.hover if text[:4].isdigit())


def test_front_has_every_done_trial_once_and_the_choice_twice(run: sweepcp.RunView):
    chart = front_chart(run, run.labels)
    done = [t for t in run.trials if t.status == "done"]
    assert run.chosen is not None
    assert trials_in(points(chart)) == sorted([t.id for t in done] + [run.chosen.id])
    assert "Not shown, because they have no score: 3 of 24 trials." in chart.notes
    base = next(s for s in points(chart) if s.name == "base")
    assert (base.x, base.y) == ([0.0], [0.0])
    where = {(x, y) for s in points(chart) for x, y in zip(s.x, s.y, strict=True)}
    assert {(t.general, t.domain) for t in done} < where


def test_error_bars_are_standard_errors(run: sweepcp.RunView):
    by_place = {
        x: error
        for s in points(front_chart(run, run.labels))
        if s.x_error
        for x, error in zip(s.x, s.x_error, strict=True)
    }
    for trial in (run.by_id[i] for i in run.front.ids):
        assert trial.scorecard is not None
        assert trial.general is not None
        assert by_place[trial.general] == trial.scorecard.select.general_se
    other = run.chosen.scorecard.report  # type: ignore[union-attr]
    assert by_place[other.general] == other.general_se


def test_hover_text_has_recipe_and_certainty(run: sweepcp.RunView):
    assert run.chosen is not None
    text = run.labels.hover[run.chosen.id]
    recipe = run.chosen.recipe
    assert f"LR fraction {recipe.lr_fraction:.3g}, {100 * recipe.domain_share:.3g} % domain" in text
    assert "python-code" in text
    assert "on the front in" in text
    assert "step 3 of 10: loss nan" in run.labels.hover["0003"]


def test_recipe_chart_has_every_trial(run: sweepcp.RunView):
    chart = recipe_chart(run, run.labels)
    assert trials_in(points(chart)) == [t.id for t in run.trials]
    assert {s.name for s in points(chart)} >= {"diverged", "failed", "stopped"}


def test_edge_of_the_front_is_monotonic(run: sweepcp.RunView):
    stairs = front_chart(run, run.labels).panels[0].series[0]
    assert stairs.draw == "steps"
    assert list(stairs.x) == sorted(stairs.x, reverse=True)
    assert list(stairs.y) == sorted(stairs.y)


def test_tolerance_is_the_choice_at_every_bound(run: sweepcp.RunView):
    line = tolerance_chart(run).panels[0].series[0]
    fraction = tolerance_chart(run).panels[1].series[0]
    for bound in np.linspace(0, line.x[-1], 50):
        choice = run.choose(max_regression=float(bound))
        at = int(np.searchsorted(line.x, bound, side="right")) - 1
        if choice.id is None:
            assert at < 0
        else:
            assert line.y[at] == choice.domain
            assert fraction.y[at] == run.by_id[choice.id].recipe.lr_fraction


def test_hypervolume_rises_to_that_of_the_front(run: sweepcp.RunView):
    line = hypervolume_chart(run).panels[0].series[0]
    assert list(line.x) == [t.number for t in run.trials if t.status == "done"]
    assert list(line.y) == sorted(line.y)
    assert line.y[-1] == pytest.approx(run.front.hypervolume, rel=1e-12)


def test_long_curves_are_means_of_whole_windows(tmp_path: Path):
    run = sweepcp.load_run(write_run(tmp_path, 1, documents=8, steps=700))
    chart = training_chart(run)
    loss = chart.panels[0].series[0]
    assert "Each point is the mean of up to 3 steps." in chart.notes
    assert len(loss.y) == 234
    assert loss.y[0] == pytest.approx((1.99 + 1.98 + 1.97) / 3)
    assert loss.x[0] == pytest.approx(3 * 1024 / 1e6)
    assert loss.x[-1] == pytest.approx(700 * 1024 / 1e6)


def test_non_finite_loss_is_a_gap(tmp_path: Path):
    folder = write_run(tmp_path, 1, documents=8)
    metrics = folder / "trials" / "0000" / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace('"loss": 1.95', '"loss": NaN'))
    loss = training_chart(sweepcp.load_run(folder)).panels[0].series[0]
    assert [n for n, y in enumerate(loss.y, 1) if math.isnan(y)] == [5]


def test_non_finite_values_are_left_out(tmp_path: Path):
    folder = write_run(tmp_path, 2, documents=8, t0001="diverged")
    metrics = folder / "trials" / "0001" / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace('"grad_norm": 1.0', '"grad_norm": Infinity'))
    run = sweepcp.load_run(folder)
    assert "Infinity" not in render_page(run)
    assert run.plot.curves().to_json()


def test_parallel_lines_are_at_the_positions_of_the_values(run: sweepcp.RunView):
    chart = parallel_chart(run, run.labels)
    labels = [label.split("\n")[0] for _, label in chart.panels[0].x.ticks]
    assert labels == ["lr_fraction", "general_share", "domain, %", "general, %"]
    heights = np.array([y for s in chart.panels[0].series for y in s.y]).reshape(-1, 5)[:, :4]
    assert len(heights) == 21
    assert heights.min() == 0  # the lowest score
    assert heights.max() == 1
    first = next(s for s in chart.panels[0].series if any(h.startswith("0000") for h in s.hover))
    at = [h[:4] for h in first.hover].index("0000")
    assert first.y[at : at + 2] == pytest.approx(
        [0.5, math.sqrt(0.5)]
    )  # 0.1 on a log scale, 0.5 on a root's


def test_axes_with_choices_are_shown(tmp_path: Path):
    axes = "lr_fraction: {low: 0.01, high: 1.0, scale: log}, general_share: {low: 0.0, high: 1.0}"
    space = f"{{{axes}, warmup: {{low: 0.0, high: 0.2}}, schedule: {{choices: [cosine, wsd]}}}}"
    run = sweepcp.load_run(write_run(tmp_path, 40, documents=8, space=space))
    chart = parallel_chart(run, run.labels)
    labels = [label.split("\n")[0] for _, label in chart.panels[0].x.ticks]
    assert labels == [*run.experiment.space.axes, "domain, %", "general, %"]
    at = labels.index("schedule")
    heights = {
        series.y[k + at]
        for series in chart.panels[0].series
        for k in range(0, len(series.y), len(labels) + 1)
    }
    assert heights == {0.0, 1.0}
    assert "schedule wsd" in "".join(run.labels.hover.values())
    trend = run.trend
    assert trend is not None
    assert "schedule" not in trend.axes
    assert set(run.plot.importance().data[0].x) == set(range(len(run.experiment.space.axes)))
    assert run.draw.tradeoff()
    assert render_page(run).count(">wsd</td>") == 20


def test_comparison_matches_recipes(tmp_path: Path):
    one, two = (
        sweepcp.load_run(write_run(tmp_path / name, n, documents=8))
        for name, n in (("a", 5), ("b", 7))
    )
    chart = comparison_chart(one, two)
    assert "The experiments differ in budget.trials: 5 → 7." in chart.notes
    assert (
        "5 recipes were tried in both; Spearman's rank correlation: domain 1.00, general 1.00."
        in chart.notes
    )
    matched = chart.panels[1].series[1]
    assert list(matched.x) == list(matched.y) == [t.domain for t in one.trials]
    assert f"a {one.front.hypervolume:.1f} %²" in chart.notes[0]
    empty = sweepcp.load_run(write_run(tmp_path / "c", 0))
    assert (
        "No recipe was tried in both, so only the fronts can be compared."
        in comparison_chart(one, empty).notes
    )


def test_comparison_names_the_differences_of_the_experiments(tmp_path: Path):
    one, two = (
        sweepcp.load_run(write_run(tmp_path / name, n, documents=8))
        for name, n in (("a", 2), ("b", 3))
    )
    title = one.plot.compare(two).layout.title
    assert "budget.trials: 2 → 3" in title.subtitle.text


@pytest.mark.parametrize("name", KINDS)
def test_every_chart_is_drawn_by_both_libraries(run: sweepcp.RunView, name: str):
    drawn = getattr(run.plot, name)()
    assert isinstance(drawn, go.Figure)
    drawn.to_json()
    assert isinstance(getattr(run.draw, name)(), Figure)


def test_plotly_figure_has_the_numbers_of_the_chart():
    series = Series(
        "a<b", [1.0, 2.0, 3.0], [0.1, math.nan, 0.3], draw="line", hover=["<b>x</b>\ny", "", ""]
    )
    drawn = plotly_figure(Chart("t", [Panel(Axis("x", log=True), Axis("y"), [series])]))
    trace = drawn.data[0]
    assert list(trace.x) == [1.0, 2.0, 3.0]
    assert list(trace.y) == [0.1, None, 0.3]
    assert trace.hovertext[0] == "&lt;b&gt;x&lt;/b&gt;<br>y"
    assert trace.name == "a&lt;b"
    assert drawn.layout.xaxis.type == "log"


def test_image_is_deterministic_and_its_format_is_checked(run: sweepcp.RunView, tmp_path: Path):
    chart = front_chart(run, run.labels)
    for name in ("a.svg", "b.svg", "c.png"):
        save_image(chart, tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(InvalidInput, match=r"one of \.png, \.svg, \.pdf"):
        save_image(chart, tmp_path / "front.gif")
    save_image(chart, tmp_path / "missing" / "front.png")
    assert (tmp_path / "missing" / "front.png").is_file()
    with pytest.raises(InvalidInput, match="a file that can be written"):
        save_image(chart, tmp_path / "a.svg" / "front.png")


@pytest.mark.parametrize("background", ["#ffffff", "#14181d"])
@pytest.mark.parametrize("name", sorted(COLOURS))
def test_colours_contrast_with_both_backgrounds(name: str, background: str):
    """Check for a contrast of at least 3:1, which WCAG 2.2 requires of graphics (1.4.11)."""

    def luminance(colour: str) -> float:
        parts = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(COLOURS[name]), luminance(background)))
    assert (high + 0.05) / (low + 0.05) >= 3
