// What the model would see of a request, as a table.

export function renderPreview(preview) {
  const parts = [];
  const summary = document.createElement("p");
  summary.textContent = `${preview.prompt_tokens ?? "?"} prompt tokens: ${preview.text_tokens ?? "?"} of text, ${preview.image_tokens ?? "?"} of pictures.`;
  parts.push(summary);
  if (preview.media?.length) parts.push(table(preview.media));
  for (const refusal of preview.refusals ?? []) {
    const line = document.createElement("p");
    line.className = "error";
    line.textContent = `${refusal.param ?? "request"}: ${refusal.message}`;
    parts.push(line);
  }
  if (preview.prompt) {
    const text = document.createElement("pre");
    text.textContent = preview.prompt;
    text.tabIndex = 0;
    parts.push(text);
  }
  return parts;
}

function table(media) {
  const view = document.createElement("table");
  view.createTHead().append(row("th", ["picture", "file", "upright", "for the model", "tokens", "colours"]));
  const body = view.createTBody();
  media.forEach((medium, place) => {
    for (const image of medium.images) {
      body.append(
        row("td", [
          image.page ? `${place + 1}, page ${image.page}` : `${place + 1}`,
          image.format,
          `${image.source_width} × ${image.source_height}`,
          `${image.width} × ${image.height}`,
          `${image.tokens}`,
          image.notes.join(", ") || "as they are",
        ]),
      );
    }
  });
  return view;
}

function row(kind, texts) {
  const line = document.createElement("tr");
  for (const text of texts) {
    const cell = document.createElement(kind);
    cell.textContent = text;
    if (kind === "th") cell.scope = "col";
    line.append(cell);
  }
  return line;
}
