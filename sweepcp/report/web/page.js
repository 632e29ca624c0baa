"use strict";

const POLL = 2000; // milliseconds between looks at a search that goes on

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function draw() {
  const { texts, charts } = JSON.parse(document.getElementById("numbers").textContent);
  for (const place of document.querySelectorAll(".plot")) {
    const { data, layout } = charts[place.dataset.chart][place.dataset.panel];
    for (const trace of data) {
      if (trace.customdata) trace.hovertext = trace.customdata.map((index) => texts[index]);
    }
    Plotly.newPlot(place, data, { ...layout, ...dress(layout) }, { displayModeBar: false, responsive: true });
  }
}

function dress(layout) {
  const axis = (own) => ({ ...own, gridcolor: colour("--grid"), linecolor: colour("--line") });
  return {
    xaxis: axis(layout.xaxis),
    yaxis: axis(layout.yaxis),
    height: undefined,
    font: { color: colour("--text"), family: "system-ui, sans-serif", size: 13 },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    hoverlabel: { align: "left", bgcolor: colour("--back"), bordercolor: colour("--soft"), font: { color: colour("--text") } },
  };
}

function value(row, column, number) {
  const text = row.cells[column].textContent;
  return number ? parseFloat(text.replace("−", "-").replaceAll(",", "")) : text;
}

function sort(head, direction) {
  const table = head.closest("table");
  const number = head.classList.contains("number");
  const rows = [...table.tBodies[0].rows].map((row) => [value(row, head.cellIndex, number), row]);
  const sign = direction === "ascending" ? 1 : -1;
  rows.sort(([a], [b]) => {
    if (number) return (isNaN(a) - isNaN(b)) || sign * (a - b) || 0; // what has no number stays below
    return sign * a.localeCompare(b);
  });
  table.tBodies[0].append(...rows.map(([, row]) => row));
  for (const other of table.querySelectorAll("th")) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", direction);
}

document.addEventListener("click", (event) => {
  const head = event.target.closest(".sortable th");
  if (head) sort(head, head.ariaSort === "descending" ? "ascending" : "descending");
});

async function look(stamp) {
  try {
    const now = await (await fetch("now")).json();
    document.getElementById("progress").textContent = now.progress;
    if (now.stamp !== stamp) await renew();
    stamp = now.stamp;
  } catch {
    document.getElementById("progress").textContent = "no answer from sweepcp watch: it has ended, or the run cannot be read";
  }
  setTimeout(look, POLL, stamp);
}

async function renew() {
  const next = new DOMParser().parseFromString(await (await fetch("/")).text(), "text/html");
  const sorted = document.querySelector(".sortable th[aria-sort]");
  const open = document.querySelector("details").open;
  for (const place of document.querySelectorAll(".plot")) Plotly.purge(place);
  for (const part of ["main", "#numbers"]) document.querySelector(part).replaceWith(next.querySelector(part));
  if (sorted) sort(document.querySelector(".sortable thead tr").cells[sorted.cellIndex], sorted.ariaSort);
  document.querySelector("details").open = open;
  draw();
}

draw();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
if (document.body.dataset.stamp) look(document.body.dataset.stamp);
