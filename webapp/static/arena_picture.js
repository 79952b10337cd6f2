/** A round as a picture, to be saved: drawn here, so that nothing leaves the browser for it. */

const WIDTH = 1200;
const MARGIN = 40;
const GAP = 24;
const PAD = 20;
const LINE = 26;
const MOST = 60; // lines of one answer
const TALLEST = 16_000; // pixels; browsers draw nothing beyond their limit

/** Saves {turns: [{text, a, b}], names: [a, b], verdict}. */
export async function savePicture(round) {
  const blob = await draw(round);
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = "fleetchat-arena.png";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

/** The picture. */
export function draw({ turns, names, verdict }) {
  const pen = document.createElement("canvas").getContext("2d");
  const style = getComputedStyle(document.documentElement);
  const family = style.getPropertyValue("--sans");
  const code = `15px ${style.getPropertyValue("--mono")}`;
  const fonts = { text: `17px ${family}`, strong: `600 17px ${family}`, title: `650 26px ${family}` };
  const half = (WIDTH - 2 * MARGIN - GAP) / 2;
  const blocks = [];
  let y = MARGIN;
  const put = (block, height) => {
    blocks.push({ ...block, y, height });
    y += height;
  };
  put({ kind: "title", lines: [{ text: "FleetChat", font: fonts.title }] }, 56);
  for (const { text, a, b } of turns) {
    const asked = wrap(pen, text, WIDTH - 2 * MARGIN - 2 * PAD, { plain: fonts.text });
    put({ kind: "question", lines: asked }, asked.length * LINE + 2 * PAD);
    y += GAP / 2;
    const sides = [a, b].map((answer) => wrap(pen, answer, half - 2 * PAD, { plain: fonts.text, code }));
    put({ kind: "pair", sides }, (Math.max(...sides.map((lines) => lines.length)) + 1.5) * LINE + 2 * PAD);
    y += GAP;
  }
  const said = wrap(pen, verdict, WIDTH - 2 * MARGIN, { plain: fonts.strong });
  put({ kind: "verdict", lines: said }, said.length * LINE + GAP);
  return paint(pen, blocks, { names, fonts, half, height: Math.min(y + MARGIN, TALLEST), colour: colours() });
}

function paint(pen, blocks, { names, fonts, half, height, colour }) {
  pen.canvas.width = WIDTH;
  pen.canvas.height = height;
  const write = (lines, x, y, fill) => {
    pen.fillStyle = fill;
    lines.forEach(({ text, font }, i) => {
      pen.font = font;
      pen.fillText(text, x, y + i * LINE);
    });
  };
  const box = (x, y, width, tall, fill, stroke) => {
    pen.beginPath();
    pen.roundRect(x, y, width, tall, 16);
    pen.fillStyle = fill;
    pen.fill();
    pen.strokeStyle = stroke;
    pen.stroke();
  };
  pen.textBaseline = "top";
  pen.fillStyle = colour("--bg");
  pen.fillRect(0, 0, WIDTH, height);
  for (const { kind, y, height: tall, lines, sides } of blocks) {
    if (kind === "title") write(lines, MARGIN, y, colour("--accent"));
    if (kind === "question") {
      box(MARGIN, y, WIDTH - 2 * MARGIN, tall, colour("--accent-soft"), colour("--line"));
      write(lines, MARGIN + PAD, y + PAD, colour("--text"));
    }
    sides?.forEach((answer, i) => {
      const x = MARGIN + i * (half + GAP);
      box(x, y, half, tall, colour("--raised"), colour("--line"));
      write([{ text: names[i], font: fonts.strong }], x + PAD, y + PAD, colour("--accent"));
      write(answer, x + PAD, y + PAD + 1.5 * LINE, colour("--text"));
    });
    if (kind === "verdict") write(lines, MARGIN, y, colour("--text"));
  }
  return new Promise((resolve) => pen.canvas.toBlob(resolve, "image/png"));
}

/** Colours of the page as it looks now; `light-dark()` is worked out on an element. */
function colours() {
  const probe = document.body.appendChild(document.createElement("i"));
  const found = new Map();
  for (const name of ["--bg", "--accent", "--accent-soft", "--line", "--text", "--raised"]) {
    probe.style.color = `var(${name})`;
    found.set(name, getComputedStyle(probe).color);
  }
  probe.remove();
  return (name) => found.get(name);
}

/**
 * {text, font} of lines of at most so many pixels. With a font for code, fences and stars are left out, and what they
 * stood around is set in it. Where a word has no spaces, as in Chinese, it breaks at any character.
 */
function wrap(pen, text, width, { plain, code }) {
  const lines = [];
  let font = plain;
  for (const paragraph of text.trim().split("\n")) {
    if (code && /^\s*(```|~~~)/.test(paragraph)) {
      font = font === plain ? code : plain;
      continue;
    }
    pen.font = font;
    const words = code && font === plain ? paragraph.replace(/\*\*(.+?)\*\*/g, "$1") : paragraph;
    lines.push(...broken(pen, words, width).map((line) => ({ text: line, font })));
  }
  return lines.length > MOST ? [...lines.slice(0, MOST), { text: "…", font: plain }] : lines;
}

function broken(pen, text, width) {
  const lines = [];
  let line = "";
  for (const word of text.match(/\s*[^\s\u3000-\u9fff\uff00-\uffef]+|\s*[\u3000-\u9fff\uff00-\uffef]|\s+/gu) ?? []) {
    if (pen.measureText(line + word).width <= width) {
      line += word;
      continue;
    }
    if (line.trim()) lines.push(line);
    line = "";
    for (const letter of word.trimStart()) {
      if (pen.measureText(line + letter).width > width) {
        lines.push(line);
        line = "";
      }
      line += letter;
    }
  }
  return [...lines, line];
}
