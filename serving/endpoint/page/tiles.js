// Pictures to click: those that a person has chosen, and the test images that the endpoint's owner offers.

export const TINY = 128; // pixels: smaller images are drawn large

export function element(tag, text, className = "") {
  const made = document.createElement(tag);
  made.textContent = text;
  made.className = className;
  return made;
}

export function tile(url, name, text, choose) {
  const button = document.createElement("button");
  const picture = document.createElement("img");
  button.type = "button";
  picture.src = url;
  picture.alt = name;
  picture.addEventListener("load", () => picture.classList.toggle("tiny", picture.naturalWidth < TINY));
  const caption = element("span", text);
  button.append(picture, caption);
  button.addEventListener("click", choose);
  const item = document.createElement("li");
  item.append(button);
  return { item, button, caption };
}

export function offer(examples, take) {
  const items = examples.map(({ label, image }) => {
    const bytes = Uint8Array.from(atob(image), (letter) => letter.charCodeAt(0));
    const file = new File([bytes], `${label}.png`, { type: "image/png" });
    return tile(`data:image/png;base64,${image}`, "", label, () => take([file])).item;
  });
  document.getElementById("examples-list").replaceChildren(...items);
  document.getElementById("examples").hidden = !items.length;
}
