// A pad to draw digits on, and bars for what is made of one: for the notebook's widget (widget.js)
// and for the page (web/build.py).

const HEIGHT = 280, PEN = 22, ERASER = 40;

const STYLE = `
.pad { display: flex; flex-wrap: wrap; gap: 24px; align-items: flex-start; }
.pad canvas { background: white; touch-action: none; border-radius: 8px; cursor: crosshair; }
.pad .sheet { max-width: 100%; }
.pad .paper { display: block; max-width: 100%; box-shadow: 0 0 0 1px #8888; }
.pad .seen { width: 112px; height: 112px; image-rendering: pixelated; background: black; }
.pad .place { position: relative; }
.pad .pen { position: absolute; width: 12px; height: 12px; margin: -8px; border-radius: 50%;
  border: 2px solid #0072b2; pointer-events: none; }
.pad .pen.down { background: #0072b2; }
.pad .tools { display: flex; flex-wrap: wrap; gap: 6px; margin-top: 10px; }
.pad button { font: inherit; font-size: 15px; padding: 6px 10px; border-radius: 6px; border: 1px solid #8888;
  background: transparent; color: inherit; cursor: pointer; }
.pad button[aria-pressed=true] { background: #0072b2; color: white; }
.pad .answer { flex: 0 1 310px; }
.pad .bars { display: grid; grid-template-columns: auto minmax(80px, 160px) 4em; gap: 3px 10px;
  justify-content: start; align-items: center; font-variant-numeric: tabular-nums; }
.pad .bar { height: 14px; border-radius: 3px; background: #8883; overflow: hidden; }
.pad .bar i { display: block; height: 100%; width: 0; background: #8888; }
.pad .first { font-weight: bold; }
.pad .first + .bar i { background: #0072b2; }
.pad figure { margin: 0; }
.pad figcaption { font-size: 85%; opacity: 0.75; margin: 6px 0 12px; max-width: 112px; }
`;

function make(tag, properties, parent) {
  const element = Object.assign(document.createElement(tag), properties);
  parent?.append(element);
  return element;
}

// Put a pad into `host`. `changed(canvas, area)` is called after each stroke and, at most once a frame,
// during it; `changed(null)` when the pad is empty. Black ink on white, `width` x 280. `area`: x, y,
// width and height of what is to be read: of a picture that was just put there, or of the whole pad.
export function drawingPad(host, changed, width = HEIGHT) {
  make("style", { textContent: STYLE }, host);
  const pad = make("div", { className: "pad" }, host);
  const left = make("div", { className: "sheet" }, pad), place = make("div", { className: "place" }, left);
  const canvas = make("canvas", { className: "paper", width, height: HEIGHT, tabIndex: 0 }, place);
  canvas.setAttribute("role", "application");
  canvas.setAttribute("aria-label", "Drawing pad. The arrow keys move the pen, the space bar "
    + "lowers and lifts it, Control Z undoes, Escape clears.");
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.imageSmoothingQuality = "high"; // a photograph's thin strokes must not fall between pixels
  let marks = []; // strokes, pictures, and "clear": undo takes the last one back
  let stroke = null; // the mark that is being drawn
  let erasing = false, waiting = false;

  function areaOf({ picture }) {
    if (!picture) return [0, 0, width, HEIGHT];
    const scale = Math.min(width / picture.width, HEIGHT / picture.height);
    const [w, h] = [picture.width, picture.height].map((side) => Math.max(1, Math.round(side * scale)));
    return [Math.floor((width - w) / 2), Math.floor((HEIGHT - h) / 2), w, h];
  }
  function draw(mark) {
    if (mark === "clear") {
      context.fillStyle = "white";
      context.fillRect(0, 0, width, HEIGHT);
    } else if (mark.picture) {
      draw("clear");
      context.drawImage(mark.picture, ...areaOf(mark));
    } else {
      for (let i = 0; i <= mark.points.length; i++) drawPiece(mark, i);
    }
  }
  // A stroke is painted piece by piece, and again in the same pieces: so it gets the same pixels.
  // A dot; then, for each point, the curve between the middles before and behind the last point,
  // which is its control point; in the end a line to the last point.
  function drawPiece({ points, erase }, i) {
    const middle = (j) => points[j].map((v, axis) => (v + points[j - 1][axis]) / 2);
    context.strokeStyle = context.fillStyle = erase ? "white" : "black";
    context.lineWidth = erase ? ERASER : PEN;
    context.lineCap = context.lineJoin = "round";
    context.beginPath();
    if (i === 0) {
      context.arc(...points[0], context.lineWidth / 2, 0, 2 * Math.PI);
      context.fill();
    } else if (points.length > 1) {
      context.moveTo(...i === 1 ? points[0] : middle(i - 1));
      if (i === points.length) context.lineTo(...points[i - 1]);
      else if (i === 1) context.lineTo(...middle(1));
      else context.quadraticCurveTo(...points[i - 1], ...middle(i));
      context.stroke();
    }
  }
  function tell() {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      if (!marks.length || marks.at(-1) === "clear") changed(null);
      else changed(canvas, areaOf(marks.at(-1)));
    });
  }
  function add(mark) {
    end();
    marks.push(mark);
    draw(mark);
    tell();
  }
  function clear() {
    if (marks.length && marks.at(-1) !== "clear") add("clear");
  }
  function undo() {
    stroke = null;
    marks.pop();
    draw("clear");
    marks.forEach(draw);
    tell();
  }
  function begin(point, erase) {
    end();
    marks.push(stroke = { points: [point], erase });
    drawPiece(stroke, 0);
    tell();
  }
  function lengthen(point) {
    if (!stroke) return;
    const { points } = stroke, last = points.at(-1);
    if (Math.hypot(point[0] - last[0], point[1] - last[1]) < 2) return; // a hand that trembles
    points.push(point);
    drawPiece(stroke, points.length - 1);
    tell();
  }
  function end() {
    if (!stroke) return;
    drawPiece(stroke, stroke.points.length);
    stroke = null;
    tell();
  }

  const at = (event) => {
    const box = canvas.getBoundingClientRect();
    return [(event.clientX - box.left) * width / box.width, (event.clientY - box.top) * HEIGHT / box.height];
  };
  let pointer = null; // one at a time: a palm beside the pen draws nothing
  canvas.addEventListener("pointerdown", (event) => {
    if (pointer !== null || event.button > 0 && event.button !== 5) return;
    pointer = event.pointerId;
    canvas.setPointerCapture(pointer);
    begin(at(event), erasing || event.button === 5); // 5: a pen's eraser
  });
  canvas.addEventListener("pointermove", (event) => {
    if (event.pointerId !== pointer) return;
    for (const part of event.getCoalescedEvents?.() ?? []) lengthen(at(part));
    lengthen(at(event));
  });
  for (const name of ["pointerup", "pointercancel"])
    canvas.addEventListener(name, (event) => {
      if (event.pointerId !== pointer) return;
      pointer = null;
      end();
    });

  const pen = make("div", { className: "pen", hidden: true }, place);
  let spot = [width / 2, HEIGHT / 2], down = false;
  canvas.addEventListener("keydown", (event) => {
    const moves = { ArrowLeft: [-8, 0], ArrowRight: [8, 0], ArrowUp: [0, -8], ArrowDown: [0, 8] };
    const move = moves[event.key];
    if (move) {
      spot = spot.map((v, axis) => Math.min([width, HEIGHT][axis], Math.max(0, v + move[axis])));
      if (down) lengthen(spot);
    } else if (event.key === " ") {
      down = !down;
      if (down) begin(spot, erasing);
      else end();
    } else if (event.key === "z" && (event.ctrlKey || event.metaKey)) {
      down = false;
      undo();
    } else if (event.key === "Escape") {
      down = false;
      clear();
    } else return;
    event.preventDefault();
    event.stopPropagation(); // a notebook has keys of its own
    pen.hidden = false;
    pen.classList.toggle("down", down);
    pen.style.left = `${100 * spot[0] / width}%`;
    pen.style.top = `${100 * spot[1] / HEIGHT}%`;
  });
  canvas.addEventListener("blur", () => {
    pen.hidden = true;
    if (down) end();
    down = false;
  });

  const tools = make("div", { className: "tools" }, left);
  make("button", { textContent: "Undo", type: "button", onclick: undo }, tools);
  const eraser = make("button", { textContent: "Eraser", type: "button" }, tools);
  eraser.setAttribute("aria-pressed", "false");
  eraser.onclick = () => {
    erasing = !erasing;
    eraser.setAttribute("aria-pressed", String(erasing));
  };
  make("button", { textContent: "Clear", type: "button", onclick: clear }, tools);

  draw("clear");
  return { pad, left, tools, put: (picture) => add({ picture }) };
}

// Put bars, and the image that the network sees, into a pad. Returns `show(probabilities, image,
// said)`: the image as 784 bytes, both null for nothing; a sentence, if it is not of this one image.
export function answers(pad, classes) {
  const right = make("div", { className: "answer" }, pad);
  const spoken = make("div", { className: "spoken" }, right);
  spoken.setAttribute("role", "status"); // read aloud when it changes
  const bars = make("div", { className: "bars" }, right);
  bars.setAttribute("aria-hidden", "true"); // the spoken sentence says what the bars show
  const rows = classes.map((name) => {
    const label = make("span", { textContent: name }, bars);
    const bar = make("div", { className: "bar" }, bars);
    return { label, fill: make("i", {}, bar), value: make("span", {}, bars) };
  });
  const figure = make("figure", {}, pad);
  const seen = make("canvas", { className: "seen", width: 28, height: 28 }, figure);
  seen.setAttribute("role", "img");
  seen.setAttribute("aria-label", "What the network sees, 28 by 28 pixels");
  make("figcaption", { textContent: "What the network sees: 28 × 28 pixels" }, figure);

  return function show(probabilities, image, said = null) {
    const best = probabilities ? probabilities.indexOf(Math.max(...probabilities)) : -1;
    rows.forEach(({ label, fill, value }, i) => {
      const percent = probabilities ? 100 * probabilities[i] : 0;
      fill.style.width = `${percent}%`;
      value.textContent = probabilities ? `${percent.toFixed(1)}%` : "";
      label.className = i === best ? "first" : "";
    });
    said ??= probabilities
      ? `This looks like ${classes[best]}: ${(100 * probabilities[best]).toFixed(0)}%.`
      : "Draw a digit from 0 to 9.";
    if (spoken.textContent !== said) spoken.textContent = said;
    paint(seen, image ?? new Uint8Array(784));
  };
}

// White on black: 784 bytes on a canvas of 28x28.
function paint(canvas, image) {
  const context = canvas.getContext("2d"), picture = context.createImageData(28, 28);
  image.forEach((v, i) => picture.data.set([v, v, v, 255], 4 * i));
  context.putImageData(picture, 0, 0);
}
