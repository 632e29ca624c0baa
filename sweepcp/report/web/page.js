"use strict";

const POLL_INTERVAL = 2000; // milliseconds between requests for the status of a running search

const cssVariable = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function drawCharts() {
  const { texts, charts } = JSON.parse(document.getElementById("numbers").textContent);
  for (const plot of document.querySelectorAll(".plot")) {
    const { data, layout } = charts[plot.dataset.chart][plot.dataset.panel];
    for (const trace of data) {
      if (trace.customdata) trace.hovertext = trace.customdata.map((index) => texts[index]);
    }
    Plotly.newPlot(plot, data, { ...layout, ...themeLayout(layout) }, { displayModeBar: false, responsive: true });
  }
}

function themeLayout(layout) {
  const themeAxis = (axis) => ({ ...axis, gridcolor: cssVariable("--grid"), linecolor: cssVariable("--line") });
  return {
    xaxis: themeAxis(layout.xaxis),
    yaxis: themeAxis(layout.yaxis),
    height: undefined,
    font: { color: cssVariable("--text"), family: "system-ui, sans-serif", size: 13 },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    hoverlabel: {
      align: "left",
      bgcolor: cssVariable("--back"),
      bordercolor: cssVariable("--soft"),
      font: { color: cssVariable("--text") },
    },
  };
}

function cellValue(row, column, isNumber) {
  const text = row.cells[column].textContent;
  return isNumber ? parseFloat(text.replace("−", "-").replaceAll(",", "")) : text;
}

function sortTable(header, direction) {
  const table = header.closest("table");
  const isNumber = header.classList.contains("number");
  const rows = [...table.tBodies[0].rows].map((row) => [cellValue(row, header.cellIndex, isNumber), row]);
  const sign = direction === "ascending" ? 1 : -1;
  rows.sort(([a], [b]) => {
    // Empty cells stay at the end in both directions.
    if (isNumber) return (isNaN(a) - isNaN(b)) || sign * (a - b) || 0;
    return sign * a.localeCompare(b);
  });
  table.tBodies[0].append(...rows.map(([, row]) => row));
  for (const other of table.querySelectorAll("th")) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", direction);
}

document.addEventListener("click", (event) => {
  const header = event.target.closest(".sortable th");
  if (header) sortTable(header, header.ariaSort === "descending" ? "ascending" : "descending");
});

async function pollStatus(stamp) {
  try {
    const status = await (await fetch("now")).json();
    document.getElementById("progress").textContent = status.progress;
    if (status.stamp !== stamp) await replacePage();
    stamp = status.stamp;
  } catch {
    document.getElementById("progress").textContent =
      "sweepcp watch does not respond: it has ended, or the run cannot be read";
  }
  setTimeout(pollStatus, POLL_INTERVAL, stamp);
}

async function replacePage() {
  const page = new DOMParser().parseFromString(await (await fetch("/")).text(), "text/html");
  const sorted = document.querySelector(".sortable th[aria-sort]");
  const isOpen = document.querySelector("details").open;
  // Plotly keeps references to its plots; without this they would not be freed.
  for (const plot of document.querySelectorAll(".plot")) Plotly.purge(plot);
  for (const selector of ["main", "#numbers"]) {
    document.querySelector(selector).replaceWith(page.querySelector(selector));
  }
  if (sorted) sortTable(document.querySelector(".sortable thead tr").cells[sorted.cellIndex], sorted.ariaSort);
  document.querySelector("details").open = isOpen;
  drawCharts();
}

drawCharts();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawCharts);
if (document.body.dataset.stamp) pollStatus(document.body.dataset.stamp);
