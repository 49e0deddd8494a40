// The files a question is about: chosen, dropped, pasted or drawn as an example.

export class Attachments {
  #files = [];
  #list;
  #changed;

  // list: the element that shows them. changed: called after every change.
  constructor(list, changed) {
    this.#list = list;
    this.#changed = changed;
  }

  get files() {
    return [...this.#files];
  }

  add(files) {
    this.#files.push(...files);
    this.#show();
  }

  replace(files) {
    this.#files = [...files];
    this.#show();
  }

  #remove(file) {
    this.#files = this.#files.filter((each) => each !== file);
    this.#show();
  }

  #show() {
    for (const image of this.#list.querySelectorAll("img")) URL.revokeObjectURL(image.src);
    this.#list.replaceChildren(...this.#files.map((file) => this.#item(file)));
    this.#changed();
  }

  #item(file) {
    const item = document.createElement("li");
    item.append(thumbnail(file));
    const name = document.createElement("span");
    name.className = "name";
    name.textContent = name.title = file.name;
    const remove = document.createElement("button");
    remove.type = "button";
    remove.textContent = "×";
    remove.setAttribute("aria-label", `Remove ${file.name}`);
    remove.addEventListener("click", () => this.#remove(file));
    item.append(name, remove);
    return item;
  }
}

function thumbnail(file) {
  const label = () => {
    const box = document.createElement("span");
    box.className = "kind";
    box.textContent = (file.type.split("/")[1] || "file").toUpperCase().slice(0, 5);
    return box;
  };
  if (!file.type.startsWith("image/")) return label();
  const image = document.createElement("img");
  image.alt = file.name;
  image.src = URL.createObjectURL(file);
  // Formats that only the server reads, such as TIFF.
  image.addEventListener("error", () => image.replaceWith(label()), { once: true });
  return image;
}

// Takes files from anywhere on the page: a drop on `area`, or a paste.
export function takeDropsAndPastes(area, take) {
  const hasFiles = (event) => event.dataTransfer?.types.includes("Files");
  document.addEventListener("dragover", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    area.classList.add("over");
  });
  document.addEventListener("dragleave", (event) => {
    if (event.relatedTarget === null) area.classList.remove("over");
  });
  document.addEventListener("drop", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    area.classList.remove("over");
    take([...event.dataTransfer.files]);
  });
  document.addEventListener("paste", (event) => {
    const files = [...(event.clipboardData?.files ?? [])];
    if (files.length === 0) return;
    event.preventDefault();
    take(files);
  });
}
