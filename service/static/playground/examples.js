// Questions to click that the demo model answers; their pictures are drawn here.

const SIDE = 224;
const SHADES = { red: "#ff0000", green: "#00a000", blue: "#0000ff", yellow: "#ffe000", orange: "#ff8000", purple: "#8000a0" };

export const EXAMPLES = [
  { title: "A red circle", question: "What is in this image?", pictures: [["circle.png", shape("red", "circle")]] },
  { title: "Find it", question: "Locate the blue square.", pictures: [["square.png", shape("blue", "square", 76, 140)]] },
  { title: "A number", question: "What number is shown?", pictures: [["number.png", writing("42")]] },
  {
    title: "Two pictures",
    question: "Are the two images the same?",
    pictures: [["first.png", shape("green", "circle")], ["second.png", shape("purple", "square")]],
  },
  { title: "中文", question: "请描述这张图片", pictures: [["circle.png", shape("orange", "circle")]] },
];

export async function picturesOf(example) {
  return Promise.all(example.pictures.map(([name, draw]) => render(name, draw)));
}

function render(name, draw) {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = SIDE;
  const pen = canvas.getContext("2d");
  pen.fillStyle = "#ffffff";
  pen.fillRect(0, 0, SIDE, SIDE);
  draw(pen);
  return new Promise((resolve) => {
    canvas.toBlob((blob) => resolve(new File([blob], name, { type: "image/png" })), "image/png");
  });
}

function shape(color, kind, x = SIDE / 2, y = SIDE / 2) {
  return (pen) => fill(pen, color, kind, x, y, 60);
}

function writing(text) {
  return (pen) => {
    pen.fillStyle = "#000000";
    pen.font = "bold 104px sans-serif";
    pen.textAlign = "center";
    pen.textBaseline = "middle";
    pen.fillText(text, SIDE / 2, SIDE / 2);
  };
}

function fill(pen, color, kind, x, y, radius) {
  pen.fillStyle = SHADES[color];
  if (kind === "square") {
    pen.fillRect(x - radius, y - radius, 2 * radius, 2 * radius);
    return;
  }
  pen.beginPath();
  pen.arc(x, y, radius, 0, 2 * Math.PI);
  pen.fill();
}
