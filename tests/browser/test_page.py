"""The report page in a browser; see `run` in this folder."""

import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

import sweepcp
from sweepcp.report.labels import format_recipe
from sweepcp.report.page import write_report
from tests.make_run import write_run

FOLDER = Path(os.environ["SWEEPCP_BROWSER"])
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
]
WIDTHS = (1440, 390)
Scheme = Literal["light", "dark"]
SCHEMES = ("light", "dark")
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)><b>bold</b>"


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=shutil.which("chromium"),
            args=[*FLAGS, "--disable-component-update", "--disable-sync"],
        )
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run of the quickstart, and made runs in other states."""
    folder = tmp_path_factory.mktemp("runs")
    folders = {"quickstart": FOLDER / "quickstart", "null": FOLDER / "quickstart"}
    folders["broken"] = write_run(
        folder / "broken", 12, t0003="diverged", t0009="failed", t0010="stopped"
    )
    (folders["broken"] / "trials" / "0011" / "trial.json").unlink()
    folders["one"] = write_run(folder / "one", 1)
    folders["empty"] = write_run(folder / "empty", 0)
    folders["hostile"] = write_run(folder / "hostile", 12, t0003="diverged")
    for path in folders["hostile"].glob("trials/*/*.json*"):
        text = path.read_text()
        for old in ("step 3 of 10: loss nan", "here, CPU", "held_out_docs_de"):
            text = text.replace(old, json.dumps(HOSTILE)[1:-1])
        path.write_text(text.replace("python-code", json.dumps(f"code{HOSTILE}")[1:-1]))
    return folders


class OpenPage:
    """A page that is open, with its errors and requests."""

    def __init__(
        self, browser: Browser, url: str, width: int = 1440, scheme: Scheme = "light"
    ) -> None:
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        self.page: Page = context.new_page()
        self.errors: list[str] = []
        self.requests: list[str] = []
        self.page.on(
            "console",
            lambda m: self.errors.append(m.text) if m.type in ("error", "warning") else None,
        )
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("dialog", lambda dialog: self.errors.append(f"dialog {dialog.message}"))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(url)
        for plot in self.page.locator(".plot").all():
            expect(plot.locator(".main-svg").first).to_be_attached()

    def hover_points(self, chart: str) -> list[str]:
        """Hover every point of a chart's first panel, and return the texts shown."""
        plot = self.page.locator(f'.plot[data-chart="{chart}"]').first
        plot.scroll_into_view_if_needed()
        texts = []
        for point in plot.locator(".scatterlayer .point").all():
            box = point.bounding_box()
            assert box is not None
            self.page.mouse.move(0, 0)
            self.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
            self.page.wait_for_timeout(60)
            texts.append(plot.locator(".hoverlayer .hovertext").first.text_content() or "")
        return texts


def report(folder: Path, out: Path, **rule: object) -> str:
    write_report(sweepcp.load_run(folder).with_rule(**rule), out)
    return out.as_uri()


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ["quickstart", "null", "broken", "one", "empty", "hostile"])
def test_report_has_no_errors_and_is_accessible(
    browser: Browser, runs: dict[str, Path], tmp_path: Path, name: str, width: int, scheme: Scheme
):
    rule = {"max_regression": 0.0} if name == "null" else {}
    url = report(runs[name], tmp_path / "report.html", **rule)
    opened = OpenPage(browser, url, width, scheme)
    shots = FOLDER / "shots"
    shots.mkdir(exist_ok=True)
    opened.page.screenshot(path=shots / f"{name}-{scheme}-{width}.png", full_page=True)
    assert opened.errors == []
    assert [r for r in opened.requests if r != url and not r.startswith("data:")] == []
    assert misplaced_texts(opened.page) == []
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= width
    opened.page.evaluate((FOLDER / "package" / "axe.min.js").read_text())
    audit = opened.page.evaluate("axe.run()")
    problems = []
    for violation in audit["violations"]:
        elements = [node["html"][:120] for node in violation["nodes"][:3]]
        problems.append((violation["id"], elements))
    assert problems == []
    assert len(audit["passes"]) > 20
    opened.page.context.close()


def misplaced_texts(page: Page) -> list[str]:
    """Find texts outside the window or their plot, and overlapping labels of an axis."""
    texts: list[str] = page.evaluate("""() => {
        const bad = [];
        for (const element of document.querySelectorAll("main *:not(svg *)")) {
            if (element.closest(".scroll table, pre, svg") || !element.textContent.trim()) continue;
            const box = element.getBoundingClientRect();
            const inside = box.left >= -1 && box.right <= innerWidth + 1;
            if (!inside) bad.push("outside: " + element.textContent.slice(0, 60));
        }
        for (const plot of document.querySelectorAll(".plot")) {
            const frame = plot.getBoundingClientRect();
            for (const text of plot.querySelectorAll("text")) {
                const box = text.getBoundingClientRect();
                const cut = box.left < frame.left - 1 || box.right > frame.right + 1
                    || box.top < frame.top - 1 || box.bottom > frame.bottom + 1;
                if (box.width && cut) bad.push(plot.dataset.chart + " cut: " + text.textContent);
            }
            for (const ticks of [".xtick text", ".ytick text"]) {
                const labels = [...plot.querySelectorAll(ticks)];
                const boxes = labels.map((label) => label.getBoundingClientRect());
                boxes.forEach((a, i) => boxes.slice(i + 1).forEach((b) => {
                    const besides = a.left >= b.right - 1 || b.left >= a.right - 1;
                    const above = a.top >= b.bottom - 1 || b.top >= a.bottom - 1;
                    if (!besides && !above) bad.push(plot.dataset.chart + " labels overlap");
                }));
            }
        }
        return bad;
    }""")
    return texts


def test_every_trial_is_a_point_with_its_recipe(
    browser: Browser, runs: dict[str, Path], tmp_path: Path
):
    for name in ("quickstart", "broken"):
        run = sweepcp.load_run(runs[name])
        opened = OpenPage(browser, report(runs[name], tmp_path / f"{name}.html"))
        done = [t for t in run.trials if t.status == "done"]
        front, plane = (
            opened.page.locator(f'.plot[data-chart="{c}"] .scatterlayer .point')
            for c in ("front", "plane")
        )
        # The two others are the base, and the choice on the reporting half.
        assert front.count() == len(done) + 2
        assert plane.count() == len(run.trials)
        texts = opened.hover_points("plane")
        for trial in run.trials:
            recipe = format_recipe(trial.recipe)
            shown = [text for text in texts if text.startswith(trial.id) and recipe in text]
            assert shown, (trial.id, texts)
        assert any(text.startswith("the base") for text in opened.hover_points("front"))
        opened.page.context.close()


def test_text_of_a_run_is_escaped(browser: Browser, runs: dict[str, Path], tmp_path: Path):
    opened = OpenPage(browser, report(runs["hostile"], tmp_path / "report.html"))
    texts = opened.hover_points("plane")
    assert any("<img src=x onerror=alert(2)><b>bold</b>" in text for text in texts)
    assert opened.page.locator("img").count() == 0
    assert opened.errors == []
    opened.page.context.close()


def leading_number(text: str) -> float:
    """The number before "±" of a table cell."""
    return float(text.split(" ")[0].replace("−", "-").replace(",", ""))


def test_columns_sort_in_both_directions_by_keyboard(
    browser: Browser, runs: dict[str, Path], tmp_path: Path
):
    opened = OpenPage(browser, report(runs["broken"], tmp_path / "report.html"))
    table = opened.page.locator("table.sortable")
    for index, head in enumerate(table.locator("th").all()):
        number = "number" in (head.get_attribute("class") or "")
        for direction in ("descending", "ascending"):
            head.locator("button").focus()
            opened.page.keyboard.press("Enter")
            assert head.get_attribute("aria-sort") == direction
            cells = table.locator(f"tbody td:nth-child({index + 1})").all_text_contents()
            filled = [cell for cell in cells if cell]
            keys: list[float] | list[str] = filled
            if number:
                # Empty cells stay at the end in both directions.
                assert cells == filled + [""] * (len(cells) - len(filled))
                keys = [leading_number(cell) for cell in filled]
            assert keys == sorted(keys, reverse=direction == "descending")
    assert table.locator("th[aria-sort]").count() == 1
    assert table.locator("tbody tr").count() == 11
    opened.page.context.close()


def test_five_thousand_trials_are_drawn_and_respond(browser: Browser, tmp_path: Path):
    folder = FOLDER / "large"
    if not (folder / "trials" / "4999" / "trial.json").exists():
        shutil.rmtree(folder, ignore_errors=True)
        write_run(folder, 5000, documents=160, steps=100, t0003="diverged", t0700="failed")
    opened = OpenPage(browser, report(folder, tmp_path / "report.html"))
    plot = opened.page.locator('.plot[data-chart="front"]').first
    assert plot.locator(".scatterlayer .point").count() == 4998 + 2
    box = plot.bounding_box()
    assert box is not None
    opened.page.evaluate("""() => {
        window.gaps = [];
        let last = performance.now();
        const tick = (now) => {
            window.gaps.push(now - last);
            last = now;
            requestAnimationFrame(tick);
        };
        requestAnimationFrame(tick);
    }""")
    texts: set[str] = set()
    for k in range(150):
        opened.page.mouse.move(
            box["x"] + 70 + (box["width"] - 120) * k / 150, box["y"] + 60 + (k * 37) % 200
        )
        texts.update(
            plot.locator(".hoverlayer .hovertext").all_text_contents() if k % 10 == 9 else ()
        )
    gaps = opened.page.evaluate("window.gaps")
    late = statistics.quantiles(gaps, n=20)[-1]
    print(
        f"\n5,000 trials: frames while hovering {statistics.median(gaps):.0f} ms, "
        f"95 % of them under {late:.0f} ms"
    )
    assert len(texts) > 5
    assert opened.errors == []
    opened.page.context.close()


def test_served_page_refreshes_and_keeps_its_state(browser: Browser, tmp_path: Path):
    folder = write_run(tmp_path / "run", 5)
    last = folder / "trials" / "0004" / "trial.json"
    last.rename(tmp_path / "later.json")
    command = [sys.executable, "-m", "sweepcp", "watch", str(folder), "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    try:
        opened = OpenPage(browser, server.stdout.readline().split()[0])
        assert "4 of 5 trials have ended" in opened.page.locator("#progress").inner_text()
        head = opened.page.locator("table.sortable th").nth(3)
        head.locator("button").click()
        opened.page.locator("summary").click()
        (tmp_path / "later.json").rename(last)
        expect(opened.page.locator(".sortable tbody tr")).to_have_count(5, timeout=20_000)
        assert "finished: 5 of 5" in opened.page.locator("#progress").inner_text()
        assert (
            opened.page.locator("table.sortable th").nth(3).get_attribute("aria-sort")
            == "descending"
        )
        assert opened.page.locator("details").get_attribute("open") is not None
        assert opened.page.locator('.plot[data-chart="plane"] .scatterlayer .point').count() == 5
        hosts = {
            request.split("/")[2] for request in opened.requests if not request.startswith("data:")
        }
        assert len(hosts) == 1
        assert hosts.pop().startswith("127.0.0.1:")
        assert opened.errors == []
        server.terminate()
        server.wait()
        expect(opened.page.locator("#progress")).to_contain_text(
            "sweepcp watch does not respond", timeout=20_000
        )
    finally:
        server.kill()
