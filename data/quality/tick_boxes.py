"""Tick boxes on the quality page, and the lines for `data/decisions.csv` that they make."""

import json
from collections.abc import Sequence
from html import escape

from data.quality.decisions import COLUMNS, DECISIONS_FILE, DROP, KEEP
from data.quality.findings import Evidence

COPIES = ("conflicting_labels", "leakage", "exact_duplicates")
"""Findings whose images have equal bytes: a decision says which file is meant."""
OFFERED = {"conflicting_labels": KEEP, "leakage": KEEP}
"""What a tick means at first; elsewhere the likely label, or drop."""

STYLE = """
.tick { display: flex; gap: 4px; align-items: center; margin-top: 4px; cursor: pointer }
.tick input { margin: 0 } figure select { width: 96px; font: inherit; margin-top: 2px }
#decisions { position: sticky; bottom: 0; background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  padding: 12px 16px; margin-top: 40px }
#decisions textarea { width: 100%; height: 96px; margin-top: 8px; font: 12px/1.4 ui-monospace, monospace }
#decisions button { font: inherit; padding: 4px 12px; margin-right: 12px }
"""

# In a frame, as in MLflow, downloads are blocked and nobody says so: the lines are shown to be copied.
SCRIPT = """
"use strict";
const panel = document.getElementById("decisions"), classes = JSON.parse(panel.dataset.classes);
const [button, text, status] = ["button", "textarea", "p"].map((name) => panel.querySelector(name));
const isFramed = window !== window.top;
const ticked = () => [...document.querySelectorAll(".tick input:checked")];
const quoted = (cell) => /[",\\r\\n]/.test(cell) ? '"' + cell.replaceAll('"', '""') + '"' : cell;
function row(box) {
  const decision = box.closest("figure").querySelector("select").value;
  // A label is for all files of equal bytes.
  const image = ["drop", "keep"].includes(decision) ? box.dataset.image : "";
  return [box.dataset.sha256, decision, ...(image ? [image] : [])].map(quoted).join(",");
}
function lines() { return [panel.dataset.columns, ...new Set(ticked().map(row))].join("\\n") + "\\n"; }
function show() {
  const number = ticked().length;
  panel.hidden = number === 0;
  status.textContent = `${number} ticked. Append the lines to ${panel.dataset.file}, commit, and run Convoy again.`;
  text.value = number ? lines() : "";
}
function choose(box) {
  const figure = box.closest("figure"), select = document.createElement("select");
  select.setAttribute("aria-label", "decision");
  for (const name of new Set([box.dataset.offered, "drop", "keep", ...classes]))
    select.add(new Option(name, name));
  select.addEventListener("change", show);
  figure.append(select);
}
document.addEventListener("change", (event) => {
  if (!event.target.matches(".tick input")) return;
  if (event.target.checked) choose(event.target);
  else event.target.closest("figure").querySelector("select").remove();
  show();
});
button.hidden = isFramed;
text.hidden = !isFramed;
button.addEventListener("click", () => {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([lines()], {type: "text/csv"}));
  link.download = "decisions.csv";
  link.click();
  URL.revokeObjectURL(link.href);
});
show();
"""


def tick(image: Evidence, kind: str) -> str:
    """Offer to decide about an image of a finding; nothing for a file that was never read."""
    if image.sha256 is None:
        return ""
    offered = image.likely or OFFERED.get(kind, DROP)
    file = image.origin if kind in COPIES else ""
    return (
        f'<label class="tick"><input type="checkbox" data-sha256="{image.sha256}" data-image="{escape(file)}" '
        f'data-offered="{escape(offered)}"> decide</label>'
    )


def panel(classes: Sequence[str]) -> str:
    """Show the lines for what was ticked, to download or to copy."""
    return (
        f'<div id="decisions" hidden data-classes="{escape(json.dumps(list(classes)))}" '
        f'data-columns="{",".join(COLUMNS)}" data-file="{DECISIONS_FILE}"><button>Download the lines</button>'
        '<p role="status"></p><textarea readonly aria-label="lines to copy"></textarea></div>'
        f"<script>{SCRIPT}</script>"
    )
