// Posts images to this endpoint and shows what comes back: classes as bars, and where in an image the evidence is.

import { TINY, element, offer, tile } from "./tiles.js";

const $ = (id) => document.getElementById(id);
const TOKEN = "convoy-token";
const percent = new Intl.NumberFormat("en", { style: "percent", maximumFractionDigits: 1 });

const LARGE = 320; // pixels that tiny images are drawn at, as near as a whole factor comes

let images = []; // those chosen last: file, url, answer or refusal, and the evidence that was asked for last
let shown = null; // the one of them that is on the page

class Refused extends Error {
  constructor(status, detail) {
    super(detail);
    this.status = status;
  }
}

async function ask(path, body) {
  const token = sessionStorage.getItem(TOKEN);
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  if (body) headers["Content-Type"] = "application/octet-stream";
  let response;
  try {
    response = await fetch(path, { method: body ? "POST" : "GET", headers, body });
  } catch {
    throw new Refused(0, "the endpoint cannot be reached");
  }
  // A gateway in between may answer with a page of its own.
  const answer = await response.json().catch(() => ({ detail: `the endpoint answered with status ${response.status}` }));
  if (!response.ok) throw new Refused(response.status, answer.detail);
  return answer;
}

function complain(error) {
  const text = error.status === 401 ? tokenWanted() : error.message;
  $("error").textContent = `${text.charAt(0).toUpperCase()}${text.slice(1)}.`;
  $("error").hidden = false;
  if (error.status === 401) {
    $("access").hidden = false;
    $("access").open = true;
    $("token").focus();
  }
}

function tokenWanted() {
  return sessionStorage.getItem(TOKEN) ? "this endpoint does not know that token" : "this endpoint asks for a token";
}

// -- the model

async function describeModel() {
  try {
    const model = await ask("model");
    $("model-name").textContent = model.name;
    const accuracy = model.metrics["test/accuracy"];
    const parts = [`Version ${model.version}`, model.network, `${model.classes.length} classes`];
    if (accuracy !== undefined) parts.push(`${percent.format(accuracy)} of its test images right`);
    $("model-line").textContent = parts.join(" · ");
    document.title = `${model.name} · Convoy`;
    const figures = Object.entries(model.metrics).map(([name, value]) => [name, Number(value.toPrecision(4))]);
    const facts = [["run", model.run_id], ["data version", model.data_version], ["code", model.git_commit ?? "unknown"]];
    $("facts").replaceChildren(
      ...[...figures, ...facts].flatMap(([name, value]) => [element("dt", name), element("dd", value)]),
    );
    $("about").hidden = false;
    offer((await ask("examples")).examples, take);
    return true;
  } catch (error) {
    complain(error);
    return false;
  }
}

// -- the answer

async function classifyAll(files) {
  for (const { url } of images) URL.revokeObjectURL(url);
  const chosen = files.map((file) => ({ file, url: URL.createObjectURL(file) }));
  images = chosen;
  $("gallery").replaceChildren(...(chosen.length > 1 ? chosen.map(thumbnail) : []));
  $("gallery").hidden = chosen.length < 2;
  show(chosen[0]);
  for (const image of chosen) {
    await classify(image);
    if (images !== chosen) return; // others were chosen meanwhile
  }
}

async function classify(image) {
  const started = performance.now();
  try {
    image.answer = await ask("classify", image.file);
    image.milliseconds = Math.round(performance.now() - started);
  } catch (error) {
    image.refusal = error;
  }
  if (image.caption) {
    image.caption.textContent = image.answer ? caption(image.answer) : "No answer";
  }
  if (image === shown) await present(image);
}

function caption({ predictions: [first], uncertain }) {
  return `${first.label}${uncertain ? "?" : ""}, ${percent.format(first.probability)}`;
}

async function present(image) {
  if (image.refusal) {
    $("status").textContent = "No answer.";
    complain(image.refusal);
    return;
  }
  const { predictions, uncertain, model } = image.answer;
  const [first] = predictions;
  const best = element("span", "", "best");
  best.append(element("strong", first.label), `, ${percent.format(first.probability)}`);
  const source = `in ${image.milliseconds} ms by ${model.name} version ${model.version}`;
  $("status").replaceChildren(
    best,
    " ",
    element("span", source, "source"),
    ...(uncertain ? [element("span", "Uncertain: it may be something else, or none of these classes.", "doubt")] : []),
  );
  $("bars").replaceChildren(...predictions.map(bar));
  $("bars-note").hidden = false;
  await explain(first.label);
}

function thumbnail(image) {
  const { item, button, caption } = tile(image.url, image.file.name, "…", () => show(image));
  Object.assign(image, { button, caption });
  return item;
}

function bar({ label, probability }) {
  const button = document.createElement("button");
  button.type = "button";
  button.dataset.label = label;
  button.setAttribute("aria-pressed", "false");
  const track = element("span", "", "track");
  const fill = element("span", "", "fill");
  fill.style.width = `${100 * probability}%`;
  track.append(fill);
  button.append(element("span", label, "label"), element("span", percent.format(probability), "share"), track);
  button.addEventListener("click", () => explain(label));
  const item = document.createElement("li");
  item.append(button);
  return item;
}

// -- the image and its evidence

function show(image) {
  shown = image;
  for (const { button } of images) button?.setAttribute("aria-pressed", String(button === image.button));
  $("image").src = image.url;
  $("invitation").hidden = true;
  $("stage").hidden = false;
  $("drop").classList.add("filled");
  $("overlay").hidden = $("tools").hidden = $("bars-note").hidden = $("error").hidden = true;
  $("evidence-note").textContent = "";
  $("bars").replaceChildren();
  $("status").textContent = "Looking …";
  $("status").classList.remove("quiet");
  image.explanation = null;
  if (image.answer || image.refusal) present(image);
}

async function explain(label) {
  const image = shown;
  for (const button of $("bars").querySelectorAll("button")) {
    button.setAttribute("aria-pressed", String(button.dataset.label === label));
  }
  image.wanted = label;
  $("evidence-note").textContent = "Weighing the evidence …";
  try {
    const explanation = await ask(`explain?label=${encodeURIComponent(label)}`, image.file);
    if (image !== shown || image.wanted !== label) return;
    image.explanation = explanation;
    $("tools").hidden = false;
    $("evidence-note").textContent = summary(explanation);
    draw();
  } catch (error) {
    if (image !== shown || image.wanted !== label) return;
    $("evidence-note").textContent = `No evidence to show: ${error.message}.`;
  }
}

// What the picture shows, for those who do not see it.
function summary({ label, evidence }) {
  const cells = evidence.flat();
  const best = cells.indexOf(Math.max(...cells));
  if (cells[best] <= 0) return `No single part of the image speaks for ${label}.`;
  const third = (position) => Math.min(2, Math.floor((3 * (position + 0.5)) / evidence.length));
  const row = ["upper", "middle", "lower"][third(Math.floor(best / evidence.length))];
  const column = ["left", "centre", "right"][third(best % evidence.length)];
  const where = row === "middle" && column === "centre" ? "in the centre" : `in the ${row} ${column}`;
  return `Most of what speaks for ${label} is ${where}.`;
}

function draw() {
  const image = $("image");
  const canvas = $("overlay");
  const longest = Math.max(image.naturalWidth, image.naturalHeight);
  const isTiny = longest > 0 && longest < TINY;
  image.classList.toggle("tiny", isTiny);
  image.style.width = isTiny ? `${image.naturalWidth * Math.floor(LARGE / longest)}px` : "";
  canvas.hidden = !(shown?.explanation && $("show").checked && image.naturalWidth);
  if (canvas.hidden) return;
  const { evidence, crop } = shown.explanation;
  // The network sees the centre of the image, a square of this share of the shorter side.
  const side = crop * Math.min(image.width, image.height);
  Object.assign(canvas.style, {
    width: `${side}px`,
    height: `${side}px`,
    left: `${image.offsetLeft + (image.width - side) / 2}px`,
    top: `${image.offsetTop + (image.height - side) / 2}px`,
  });
  const cells = new ImageData(evidence.length, evidence.length);
  const highest = Math.max(...evidence.flat().map(Math.abs), 1e-9);
  evidence.flat().forEach((value, index) => {
    const strength = Math.round(200 * Math.abs(value / highest) ** 0.8);
    cells.data.set(value > 0 ? [255, 120, 0, strength] : [40, 110, 255, strength], 4 * index);
  });
  const small = new OffscreenCanvas(evidence.length, evidence.length);
  small.getContext("2d").putImageData(cells, 0, 0);
  canvas.width = canvas.height = 256;
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(small, 0, 0, 256, 256);
}

// -- what a person does

function take(files) {
  const given = [...(files ?? [])];
  const pictures = given.filter((file) => file.type.startsWith("image/"));
  const chosen = pictures.length ? pictures : given.slice(0, 1);
  if (chosen.length) classifyAll(chosen);
}

for (const input of [$("file"), $("camera")]) {
  input.addEventListener("change", () => {
    take(input.files);
    input.value = ""; // choosing the same file again is a change too
  });
}
document.addEventListener("paste", (event) => take(event.clipboardData?.files));
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  $("drop").classList.add("over");
});
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) $("drop").classList.remove("over");
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  $("drop").classList.remove("over");
  take(event.dataTransfer?.files);
});
$("show").addEventListener("change", draw);
$("image").addEventListener("load", draw);
$("image").addEventListener("error", () => {
  // The endpoint reads kinds of images that browsers do not show.
  $("stage").hidden = true;
  $("invitation").hidden = false;
  $("drop").classList.remove("filled");
});
new ResizeObserver(draw).observe($("image"));

$("token-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  sessionStorage.setItem(TOKEN, $("token").value.trim());
  $("token").value = "";
  $("error").hidden = true;
  if (await describeModel()) {
    $("access").open = false;
    if (images.length) classifyAll(images.map(({ file }) => file));
  }
});

describeModel();
