"use strict";
const panel = document.getElementById("decisions"), classes = JSON.parse(panel.dataset.classes);
const [button, text, status] = ["button", "textarea", "p"].map((name) => panel.querySelector(name));
// In a frame, as in MLflow, downloads are blocked and nobody says so: the lines are shown to be copied.
const isFramed = window !== window.top;
const ticked = () => [...document.querySelectorAll(".tick input:checked")];
const quoted = (cell) => /[",\r\n]/.test(cell) ? '"' + cell.replaceAll('"', '""') + '"' : cell;
function row(box) {
  const decision = box.closest("figure").querySelector("select").value;
  // A label is for all files of equal bytes.
  const image = ["drop", "keep"].includes(decision) ? box.dataset.image : "";
  return [box.dataset.sha256, decision, ...(image ? [image] : [])].map(quoted).join(",");
}
function lines() { return [panel.dataset.columns, ...new Set(ticked().map(row))].join("\n") + "\n"; }
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
