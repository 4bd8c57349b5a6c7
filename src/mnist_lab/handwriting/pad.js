// A pad to draw digits on, and bars for the probabilities: for the notebook's widget (widget.js)
// and for the page (web/build.py).

// Pixels: the height of the pad, and the widths of the pen and of the eraser.
const HEIGHT = 280;
const PEN = 22;
const ERASER = 40;
const UNREADABLE = "This browser does not let the page read its own drawing: "
  + "allow this page to use canvas data, or open it in another browser.";
const MAX_PIXEL_NOISE = 40; // of 255: browsers that add noise change the lowest bits only

const STYLE = `
.pad { display: flex; flex-wrap: wrap; gap: 24px; align-items: flex-start; }
.pad canvas { background: white; touch-action: none; border-radius: 8px; cursor: crosshair; }
.pad .sheet { max-width: 100%; }
.pad .paper { display: block; max-width: 100%; box-shadow: 0 0 0 1px #8888; }
.pad .seen { width: 112px; height: 112px; image-rendering: pixelated; background: black; }
.pad .wrapper { position: relative; }
.pad .pen { position: absolute; width: 12px; height: 12px; margin: -8px; border-radius: 50%;
  border: 2px solid #0072b2; pointer-events: none; }
.pad .pen.down { background: #0072b2; }
.pad .tools { display: flex; flex-wrap: wrap; gap: 6px; margin-top: 10px; }
.pad button { font: inherit; font-size: 15px; padding: 6px 10px; border-radius: 6px;
  border: 1px solid #8888; background: transparent; color: inherit; cursor: pointer; }
.pad button[aria-pressed=true] { background: #0072b2; color: white; }
.pad .answer { flex: 0 1 310px; }
.pad .bars { display: grid; grid-template-columns: auto minmax(80px, 160px) 4em; gap: 3px 10px;
  justify-content: start; align-items: center; font-variant-numeric: tabular-nums; }
.pad .bar { height: 14px; border-radius: 3px; background: #8883; overflow: hidden; }
.pad .bar i { display: block; height: 100%; width: 0; background: #8888; }
.pad .best { font-weight: bold; }
.pad .best + .bar i { background: #0072b2; }
.pad figure { margin: 0; }
.pad figcaption { font-size: 85%; opacity: 0.75; margin: 6px 0 12px; max-width: 112px; }
`;

function make(tag, properties, parent) {
  const element = Object.assign(document.createElement(tag), properties);
  parent?.append(element);
  return element;
}

// Put a pad into `host`: black ink on white, `width` x 280 pixels.
//
// Calls `changed(canvas, area)` after each stroke and, at most once a frame, during it; calls
// `changed(null)` when the pad is empty. `area` is [x, y, width, height] of the part to read: the
// picture if it is the last thing put on the pad, else the whole pad.
//
// Returns the elements `pad` and `tools`, for more content, and `put(picture, paper)`, which replaces
// the drawing by a picture, on paper of that colour where the picture is transparent.
export function drawingPad(host, changed, width = HEIGHT) {
  make("style", { textContent: STYLE }, host);
  const pad = make("div", { className: "pad" }, host);
  const sheet = make("div", { className: "sheet" }, pad);
  const wrapper = make("div", { className: "wrapper" }, sheet); // the cursor is placed in it
  const size = { width, height: HEIGHT };
  const canvas = make("canvas", { className: "paper", ...size, tabIndex: 0 }, wrapper);
  canvas.setAttribute("role", "application");
  canvas.setAttribute("aria-label", "Drawing pad. The arrow keys move the pen, the space bar "
    + "lowers and lifts it, Control Z undoes, Escape clears.");
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.imageSmoothingQuality = "high"; // else thin strokes of a photo fall between pixels

  let marks = []; // strokes, pictures, and "clear"; undo takes the last one back
  let stroke = null; // the mark that is being drawn
  let erasing = false;
  let frameRequested = false;

  // A picture is scaled to fit, in the middle of the pad.
  function areaOf({ picture }) {
    if (!picture) return [0, 0, width, HEIGHT];
    const scale = Math.min(width / picture.width, HEIGHT / picture.height);
    const scaledWidth = Math.max(1, Math.round(picture.width * scale));
    const scaledHeight = Math.max(1, Math.round(picture.height * scale));
    const x = Math.floor((width - scaledWidth) / 2);
    const y = Math.floor((HEIGHT - scaledHeight) / 2);
    return [x, y, scaledWidth, scaledHeight];
  }

  function draw(mark) {
    if (mark === "clear") {
      context.fillStyle = "white";
      context.fillRect(0, 0, width, HEIGHT);
    } else if (mark.picture) {
      draw("clear");
      context.fillStyle = mark.paper;
      context.fillRect(...areaOf(mark));
      context.drawImage(mark.picture, ...areaOf(mark));
    } else {
      for (let i = 0; i <= mark.points.length; i++) drawPiece(mark, i);
    }
  }

  // Undo repaints strokes in the pieces in which they were drawn, so they get the same pixels.
  // Piece 0 is a dot. Piece i is a curve from the midpoint of points i-2 and i-1 to the midpoint of
  // points i-1 and i, with point i-1 as its control point. Piece 1 is a line that begins at point 0,
  // and the last piece is a line that ends at the last point.
  function drawPiece({ points, erase }, i) {
    context.strokeStyle = erase ? "white" : "black";
    context.fillStyle = context.strokeStyle;
    context.lineWidth = erase ? ERASER : PEN;
    context.lineCap = "round";
    context.lineJoin = "round";
    context.beginPath();

    if (i === 0) {
      context.arc(...points[0], context.lineWidth / 2, 0, 2 * Math.PI);
      context.fill();
    } else if (points.length > 1) {
      const start = i === 1 ? points[0] : middle(points[i - 2], points[i - 1]);
      context.moveTo(...start);
      if (i === points.length) {
        context.lineTo(...points[i - 1]);
      } else {
        const end = middle(points[i - 1], points[i]);
        if (i === 1) context.lineTo(...end);
        else context.quadraticCurveTo(...points[i - 1], ...end);
      }
      context.stroke();
    }
  }

  function notify() {
    if (frameRequested) return;
    frameRequested = true;
    requestAnimationFrame(() => {
      frameRequested = false;
      if (!marks.length || marks.at(-1) === "clear") changed(null);
      else changed(canvas, areaOf(marks.at(-1)));
    });
  }

  function add(mark) {
    endStroke();
    marks.push(mark);
    draw(mark);
    notify();
  }

  function clear() {
    if (marks.length && marks.at(-1) !== "clear") add("clear");
  }

  function undo() {
    stroke = null;
    marks.pop();
    draw("clear");
    marks.forEach(draw);
    notify();
  }

  function beginStroke(point, erase) {
    endStroke();
    stroke = { points: [point], erase };
    marks.push(stroke);
    drawPiece(stroke, 0);
    notify();
  }

  function extendStroke(point) {
    if (!stroke) return;
    const last = stroke.points.at(-1);
    if (Math.hypot(point[0] - last[0], point[1] - last[1]) < 2) return; // a hand that trembles
    stroke.points.push(point);
    drawPiece(stroke, stroke.points.length - 1);
    notify();
  }

  function endStroke() {
    if (!stroke) return;
    drawPiece(stroke, stroke.points.length);
    stroke = null;
    notify();
  }

  function pointOf(event) {
    const box = canvas.getBoundingClientRect();
    const x = (event.clientX - box.left) * width / box.width;
    const y = (event.clientY - box.top) * HEIGHT / box.height;
    return [x, y];
  }

  let pointer = null; // one at a time: a palm beside the pen draws nothing
  canvas.addEventListener("pointerdown", (event) => {
    const penEraser = event.button === 5;
    const mainButton = event.button <= 0; // of a mouse; also a finger and the tip of a pen
    if (pointer !== null || !(mainButton || penEraser)) return;
    pointer = event.pointerId;
    canvas.setPointerCapture(pointer);
    beginStroke(pointOf(event), erasing || penEraser);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (event.pointerId !== pointer) return;
    const missed = event.getCoalescedEvents?.() ?? []; // positions between two frames
    for (const earlier of missed) extendStroke(pointOf(earlier));
    extendStroke(pointOf(event));
  });
  for (const name of ["pointerup", "pointercancel"])
    canvas.addEventListener(name, (event) => {
      if (event.pointerId !== pointer) return;
      pointer = null;
      endStroke();
    });

  // With the keyboard, the arrow keys move a cursor and the space bar lowers it like a pen.
  const cursor = make("div", { className: "pen", hidden: true }, wrapper);
  const moves = { ArrowLeft: [-8, 0], ArrowRight: [8, 0], ArrowUp: [0, -8], ArrowDown: [0, 8] };
  let x = width / 2;
  let y = HEIGHT / 2;
  let penDown = false;
  canvas.addEventListener("keydown", (event) => {
    if (event.key in moves) {
      const [right, down] = moves[event.key];
      x = Math.min(width, Math.max(0, x + right));
      y = Math.min(HEIGHT, Math.max(0, y + down));
      if (penDown) extendStroke([x, y]);
    } else if (event.key === " ") {
      penDown = !penDown;
      if (penDown) beginStroke([x, y], erasing);
      else endStroke();
    } else if (event.key === "z" && (event.ctrlKey || event.metaKey)) {
      penDown = false;
      undo();
    } else if (event.key === "Escape") {
      penDown = false;
      clear();
    } else return;

    event.preventDefault();
    event.stopPropagation(); // a notebook has keys of its own
    cursor.hidden = false;
    cursor.classList.toggle("down", penDown);
    cursor.style.left = `${100 * x / width}%`;
    cursor.style.top = `${100 * y / HEIGHT}%`;
  });
  canvas.addEventListener("blur", () => {
    cursor.hidden = true;
    if (penDown) endStroke();
    penDown = false;
  });

  const tools = make("div", { className: "tools" }, sheet);
  make("button", { textContent: "Undo", type: "button", onclick: undo }, tools);
  const eraser = make("button", { textContent: "Eraser", type: "button" }, tools);
  eraser.setAttribute("aria-pressed", "false");
  eraser.onclick = () => {
    erasing = !erasing;
    eraser.setAttribute("aria-pressed", String(erasing));
  };
  make("button", { textContent: "Clear", type: "button", onclick: clear }, tools);

  draw("clear");
  return { pad, tools, put: (picture, paper = "white") => add({ picture, paper }) };
}

// Return whether the page can read what it paints on a canvas of this size. Browsers that protect
// against fingerprinting return white or random pixels, or throw; a little noise does no harm.
export function canReadCanvas(width, height) {
  const context = make("canvas", { width, height }).getContext("2d", { willReadFrequently: true });
  const half = Math.floor(width / 2);
  context.fillStyle = "white";
  context.fillRect(0, 0, width, height);
  context.fillStyle = "black";
  context.fillRect(0, 0, half, height);

  try {
    const { data } = context.getImageData(0, Math.floor(height / 2), width, 1);
    for (let x = 0; x < width; x++) {
      for (const value of data.subarray(4 * x, 4 * x + 3)) {
        if (Math.abs(value - (x < half ? 0 : 255)) > MAX_PIXEL_NOISE) return false;
      }
    }
    return true;
  } catch {
    return false;
  }
}

function middle(from, to) {
  return [(from[0] + to[0]) / 2, (from[1] + to[1]) / 2];
}

// Put bars for the probabilities, and the image that the network sees, into a pad.
//
// Returns `show(probabilities, image, message)`. The image is 784 bytes; both are null if there is
// nothing to show. Without a `message`, the sentence is made from the probabilities.
export function addAnswer(pad, classes) {
  const right = make("div", { className: "answer" }, pad);
  const sentence = make("div", { className: "sentence" }, right);
  sentence.setAttribute("role", "status"); // read aloud when it changes
  const bars = make("div", { className: "bars" }, right);
  bars.setAttribute("aria-hidden", "true"); // the sentence says what the bars show
  const rows = classes.map((name) => {
    const label = make("span", { textContent: name }, bars);
    const bar = make("div", { className: "bar" }, bars);
    const fill = make("i", {}, bar);
    const value = make("span", {}, bars);
    return { label, fill, value };
  });

  const figure = make("figure", {}, pad);
  const seen = make("canvas", { className: "seen", width: 28, height: 28 }, figure);
  seen.setAttribute("role", "img");
  seen.setAttribute("aria-label", "What the network sees, 28 by 28 pixels");
  make("figcaption", { textContent: "What the network sees: 28 × 28 pixels" }, figure);

  return function show(probabilities, image, message = null) {
    const best = probabilities ? probabilities.indexOf(Math.max(...probabilities)) : -1;
    rows.forEach(({ label, fill, value }, i) => {
      const percent = probabilities ? 100 * probabilities[i] : 0;
      fill.style.width = `${percent}%`;
      value.textContent = probabilities ? `${percent.toFixed(1)}%` : "";
      label.className = i === best ? "best" : "";
    });

    let text = "Draw a digit from 0 to 9.";
    if (message !== null) text = message;
    else if (probabilities)
      text = `This looks like ${classes[best]}: ${(100 * probabilities[best]).toFixed(0)}%.`;
    if (sentence.textContent !== text) sentence.textContent = text;

    paint(seen, image ?? new Uint8Array(784));
  };
}

// Paint 784 bytes, white on black, on a canvas of 28x28.
function paint(canvas, image) {
  const context = canvas.getContext("2d");
  const picture = context.createImageData(28, 28);
  image.forEach((value, i) => picture.data.set([value, value, value, 255], 4 * i));
  context.putImageData(picture, 0, 0);
}
