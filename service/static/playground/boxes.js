// Boxes in an answer, drawn on the picture they are about.

const COLORS = ["#e6194b", "#3c82ff", "#2bb24c", "#ff8c00", "#b04be0", "#00a8a8", "#c9a400", "#ff5fa2"];
const SVG = "http://www.w3.org/2000/svg";

// Finds every {"bbox_2d": [x1, y1, x2, y2], "label": …} in a text, whatever stands around it.
export function findBoxes(text) {
  const boxes = [];
  for (const [object] of text.matchAll(/\{[^{}]*"bbox_2d"[^{}]*\}/g)) {
    try {
      const { bbox_2d: box, label } = JSON.parse(object);
      const isBox = Array.isArray(box) && box.length === 4 && box.every(Number.isFinite);
      if (isBox) boxes.push({ box, label: typeof label === "string" ? label : "" });
    } catch {
      // Not JSON after all: it stays text.
    }
  }
  return boxes;
}

// Draws boxes, whose coordinates are thousandths of the picture's sides, over a picture.
export function drawBoxes(file, boxes) {
  const figure = document.createElement("figure");
  figure.className = "found";
  const frame = document.createElement("div");
  frame.className = "boxed";
  const image = document.createElement("img");
  image.src = URL.createObjectURL(file);
  image.alt = `${file.name} with ${boxes.length} marked ${boxes.length === 1 ? "box" : "boxes"}`;
  const drawing = document.createElementNS(SVG, "svg");
  drawing.setAttribute("viewBox", "0 0 1000 1000");
  drawing.setAttribute("preserveAspectRatio", "none");
  drawing.setAttribute("aria-hidden", "true");
  const legend = document.createElement("ul");
  boxes.forEach(({ box, label }, place) => {
    const color = COLORS[place % COLORS.length];
    drawing.append(rectangle(box, color));
    const item = document.createElement("li");
    item.append(swatch(color), `${label || "box"}: ${box.join(", ")}`);
    legend.append(item);
  });
  frame.append(image, drawing);
  figure.append(frame, legend);
  return figure;
}

function rectangle([left, top, right, bottom], color) {
  const shape = document.createElementNS(SVG, "rect");
  const sides = { x: Math.min(left, right), y: Math.min(top, bottom), width: Math.abs(right - left), height: Math.abs(bottom - top) };
  for (const [name, value] of Object.entries(sides)) shape.setAttribute(name, value);
  shape.setAttribute("stroke", color);
  return shape;
}

function swatch(color) {
  // Drawn, because the page's policy admits no style in the markup.
  const mark = document.createElementNS(SVG, "svg");
  mark.setAttribute("viewBox", "0 0 10 10");
  mark.setAttribute("class", "swatch");
  mark.setAttribute("aria-hidden", "true");
  const fill = document.createElementNS(SVG, "rect");
  fill.setAttribute("width", 10);
  fill.setAttribute("height", 10);
  fill.setAttribute("fill", color);
  mark.append(fill);
  return mark;
}
