// A pad to draw a digit on, and bars for what is made of it: for the notebook's widget (widget.js)
// and for the page (web/build.py).

const SIDE = 280, PEN = 22, ERASER = 40;

const STYLE = `
.pad { display: flex; flex-wrap: wrap; gap: 24px; align-items: flex-start; }
.pad canvas { background: white; touch-action: none; border-radius: 8px; cursor: crosshair; }
.pad .paper { width: 280px; max-width: 100%; aspect-ratio: 1; box-shadow: 0 0 0 1px #8888; }
.pad .seen { width: 112px; height: 112px; image-rendering: pixelated; background: black; }
.pad .place { position: relative; }
.pad .pen { position: absolute; width: 12px; height: 12px; margin: -8px; border-radius: 50%;
  border: 2px solid #0072b2; pointer-events: none; }
.pad .pen.down { background: #0072b2; }
.pad .tools { display: flex; flex-wrap: wrap; gap: 6px; margin-top: 10px; }
.pad button { font: inherit; font-size: 15px; padding: 6px 10px; border-radius: 6px; border: 1px solid #8888;
  background: transparent; color: inherit; cursor: pointer; }
.pad button[aria-pressed=true] { background: #0072b2; color: white; }
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

// Put a pad into `host`. `changed(canvas)` is called after each stroke and, at most once a frame,
// during it; `changed(null)` when the pad is empty. Black ink on white, 280x280.
export function drawingPad(host, changed) {
  make("style", { textContent: STYLE }, host);
  const pad = make("div", { className: "pad" }, host);
  const left = make("div", {}, pad), place = make("div", { className: "place" }, left);
  const canvas = make("canvas", { className: "paper", width: SIDE, height: SIDE, tabIndex: 0 }, place);
  canvas.setAttribute("role", "application");
  canvas.setAttribute("aria-label", "Drawing pad. The arrow keys move the pen, the space bar "
    + "lowers and lifts it, Control Z undoes, Escape clears.");
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.imageSmoothingQuality = "high"; // a photograph's thin strokes must not fall between pixels
  let marks = []; // strokes, pictures, and "clear": undo takes the last one back
  let erasing = false, waiting = false;

  function draw(mark) {
    if (mark === "clear") {
      context.fillStyle = "white";
      context.fillRect(0, 0, SIDE, SIDE);
    } else if (mark.picture) {
      draw("clear");
      const scale = SIDE / Math.max(mark.picture.width, mark.picture.height);
      const [w, h] = [mark.picture.width * scale, mark.picture.height * scale];
      context.drawImage(mark.picture, (SIDE - w) / 2, (SIDE - h) / 2, w, h);
    } else {
      context.strokeStyle = context.fillStyle = mark.erase ? "white" : "black";
      context.lineWidth = mark.erase ? ERASER : PEN;
      context.lineCap = context.lineJoin = "round";
      context.beginPath();
      if (mark.points.length === 1) { // a tap: browsers draw no line of no length
        context.arc(...mark.points[0], context.lineWidth / 2, 0, 2 * Math.PI);
        context.fill();
        return;
      }
      context.moveTo(...mark.points[0]);
      for (const point of mark.points) context.lineTo(...point);
      context.stroke();
    }
  }
  function tell() {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      changed(!marks.length || marks.at(-1) === "clear" ? null : canvas);
    });
  }
  function add(mark) {
    marks.push(mark);
    draw(mark);
    tell();
  }
  function redraw() {
    draw("clear");
    marks.forEach(draw);
    tell();
  }
  function clear() {
    if (marks.length && marks.at(-1) !== "clear") add("clear");
  }
  function undo() {
    marks.pop();
    redraw();
  }
  function lengthen(point) {
    const { points } = marks.at(-1);
    points.push(point);
    draw({ ...marks.at(-1), points: points.slice(-2) });
    tell();
  }

  const at = (event) => {
    const box = canvas.getBoundingClientRect();
    return [(event.clientX - box.left) * SIDE / box.width, (event.clientY - box.top) * SIDE / box.height];
  };
  let pointer = null; // one at a time: a palm beside the pen draws nothing
  canvas.addEventListener("pointerdown", (event) => {
    if (pointer !== null || event.button > 0 && event.button !== 5) return;
    pointer = event.pointerId;
    canvas.setPointerCapture(pointer);
    add({ points: [at(event)], erase: erasing || event.button === 5 }); // 5: a pen's eraser
  });
  canvas.addEventListener("pointermove", (event) => {
    if (event.pointerId !== pointer) return;
    for (const part of event.getCoalescedEvents?.() ?? []) lengthen(at(part));
    lengthen(at(event));
  });
  for (const end of ["pointerup", "pointercancel"])
    canvas.addEventListener(end, (event) => { if (event.pointerId === pointer) pointer = null; });

  const pen = make("div", { className: "pen", hidden: true }, place);
  let spot = [SIDE / 2, SIDE / 2], down = false;
  canvas.addEventListener("keydown", (event) => {
    const moves = { ArrowLeft: [-8, 0], ArrowRight: [8, 0], ArrowUp: [0, -8], ArrowDown: [0, 8] };
    const move = moves[event.key];
    if (move) {
      spot = spot.map((v, axis) => Math.min(SIDE, Math.max(0, v + move[axis])));
      if (down) lengthen(spot);
    } else if (event.key === " ") {
      down = !down;
      if (down) add({ points: [spot], erase: erasing });
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
    pen.style.left = `${100 * spot[0] / SIDE}%`;
    pen.style.top = `${100 * spot[1] / SIDE}%`;
  });
  canvas.addEventListener("blur", () => { pen.hidden = true; down = false; });

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

// Put bars, and the image that the network sees, into a pad. Returns `show(probabilities, image)`:
// the image as 784 bytes, both null for nothing.
export function answers(pad, classes) {
  const right = make("div", {}, pad);
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
  const context = seen.getContext("2d");

  return function show(probabilities, image) {
    const best = probabilities ? probabilities.indexOf(Math.max(...probabilities)) : -1;
    rows.forEach(({ label, fill, value }, i) => {
      const percent = probabilities ? 100 * probabilities[i] : 0;
      fill.style.width = `${percent}%`;
      value.textContent = probabilities ? `${percent.toFixed(1)}%` : "";
      label.className = i === best ? "first" : "";
    });
    const said = probabilities
      ? `This looks like ${classes[best]}: ${(100 * probabilities[best]).toFixed(0)}%.`
      : "Draw a digit from 0 to 9.";
    if (spoken.textContent !== said) spoken.textContent = said;
    const picture = context.createImageData(28, 28);
    for (let i = 0; i < 784; i++) {
      picture.data.fill(image ? image[i] : 0, 4 * i, 4 * i + 3);
      picture.data[4 * i + 3] = 255;
    }
    context.putImageData(picture, 0, 0);
  };
}
