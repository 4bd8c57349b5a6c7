// What `to_mnist` and `segment_digits` of `mnist_lab.handwriting.preprocess` do, in the browser. A
// test holds this file to those two: change both.

const WORK_SIDE = 640, MIN_CONTRAST = 0.06, MIN_STROKE_WIDTH = 1.5;

// A half goes to the even neighbour, as in Python.
function roundEven(x) {
  const floor = Math.floor(x);
  return x - floor === 0.5 ? floor + (floor & 1) : Math.round(x);
}

function median(values) {
  const sorted = Float64Array.from(values).sort(), half = sorted.length >> 1;
  return sorted.length & 1 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
}

// As `values.filter((v) => v > limit)`, which takes several times as long.
function above(values, limit) {
  const kept = new Float64Array(values.length);
  let n = 0;
  for (let i = 0; i < values.length; i++) if (values[i] > limit) kept[n++] = values[i];
  return kept.subarray(0, n);
}

// Brightness from 0 to 1, on a paper of the given brightness where the picture is transparent,
// each pixel the mean of a square of the picture's, so that none is larger than WORK_SIDE.
function greyOf({ data, width, height }, paper = 255) {
  const factor = Math.ceil(Math.max(width, height) / WORK_SIDE);
  const w = Math.ceil(width / factor), h = Math.ceil(height / factor);
  const sum = new Float64Array(w * h), count = new Float64Array(w * h);
  for (let y = 0, i = 0; y < height; y++)
    for (let x = 0; x < width; x++, i += 4) {
      const seen = (data[i] * 19595 + data[i + 1] * 38470 + data[i + 2] * 7471 + 0x8000) >> 16;
      const j = factor === 1 ? i >> 2 : Math.floor(y / factor) * w + Math.floor(x / factor);
      sum[j] += data[i + 3] === 255 ? seen : paper + (seen - paper) * data[i + 3] / 255;
      count[j]++;
    }
  for (let j = 0; j < sum.length; j++) sum[j] = Math.round(sum[j] / count[j]) / 255;
  return { values: sum, w, h };
}

// Solve a x = b for a small symmetric positive definite matrix, by elimination.
function solve(a, b) {
  const n = b.length;
  for (let i = 0; i < n; i++)
    for (let j = i + 1; j < n; j++) {
      const f = a[j][i] / a[i][i];
      for (let k = i; k < n; k++) a[j][k] -= f * a[i][k];
      b[j] -= f * b[i];
    }
  for (let i = n - 1; i >= 0; i--) {
    for (let k = i + 1; k < n; k++) b[i] -= a[i][k] * b[k];
    b[i] /= a[i][i];
  }
  return b;
}

function otsu(values) {
  let top = 0;
  for (const v of values) if (v > top) top = v;
  if (!top) return 0;
  const count = new Float64Array(256), middle = (i) => (i + 0.5) * top / 256;
  for (const v of values) count[Math.min(255, Math.floor(v / top * 256))]++;
  let all = 0, best = -1, threshold = 0, below = 0, sum = 0;
  for (let i = 0; i < 256; i++) all += count[i] * middle(i);
  for (let i = 0; i < 255; i++) {
    below += count[i];
    sum += count[i] * middle(i);
    const rest = values.length - below; // none where all values are alike
    const means = sum / Math.max(below, 1) - (all - sum) / Math.max(rest, 1);
    const between = below * rest * means ** 2;
    if (between > best) { best = between; threshold = (i + 1) * top / 256; }
  }
  return threshold;
}

// The ink from 0 to 1, without the paper, and its components; null where there is none.
function inkOf({ values, w, h }) {
  const step = Math.ceil(Math.max(w, h) / 64);
  const at = (i, n) => n > 1 ? 2 * i / (n - 1) - 1 : 0;
  const rows = [], seen = [];
  for (let y = 0; y < h; y += step)
    for (let x = 0; x < w; x += step) {
      const u = at(x, w), v = at(y, h);
      rows.push([1, u, v, u * u, u * v, v * v]);
      seen.push(values[y * w + x]);
    }
  let surface = [median(seen), 0, 0, 0, 0, 0];
  const paper = (r) => surface[0] * r[0] + surface[1] * r[1] + surface[2] * r[2]
    + surface[3] * r[3] + surface[4] * r[4] + surface[5] * r[5];
  for (let round = 0; round < 20; round++) {
    const a = surface.map((_, i) => surface.map((_, j) => i === j ? 1e-6 : 0));
    const b = surface.map(() => 0);
    for (let s = 0; s < rows.length; s++) {
      const r = rows[s], weight = 1 / Math.max(Math.abs(seen[s] - paper(r)), 0.002);
      for (let i = 0; i < 6; i++) {
        for (let j = i; j < 6; j++) a[i][j] += weight * r[i] * r[j];
        b[i] += weight * r[i] * seen[s];
      }
    }
    for (let i = 0; i < 6; i++) for (let j = 0; j < i; j++) a[i][j] = a[j][i];
    const before = surface;
    surface = solve(a, b);
    if (surface.every((v, i) => Math.abs(v - before[i]) < 1e-5)) break;
  }
  const noise = 1.5 * median(rows.map((r, s) => Math.abs(seen[s] - paper(r))));

  const ink = new Float64Array(w * h);
  let cubes = 0;
  for (let y = 0, i = 0; y < h; y++)
    for (let x = 0, v = at(y, h); x < w; x++, i++) {
      const u = at(x, w);
      ink[i] = values[i] - (surface[0] + surface[1] * u + surface[2] * v
        + surface[3] * u * u + surface[4] * u * v + surface[5] * v * v);
      cubes += ink[i] * ink[i] * ink[i];
    }
  for (let i = 0; i < ink.length; i++) ink[i] = Math.max(0, cubes > 0 ? ink[i] : -ink[i]);
  const most = above(ink, otsu(above(ink, 3 * noise))), full = most.length ? median(most) : 0;
  if (full < Math.max(MIN_CONTRAST, 4.5 * noise)) return null;
  const least = Math.max(0.15 * full, 4 * noise);
  for (let i = 0; i < ink.length; i++) ink[i] = ink[i] < least ? 0 : Math.min(ink[i] / full, 1);
  return { ink, w, ...componentsOf(ink, w, h) };
}

// The connected components of the ink: the number of each pixel's, and of each component its box, up
// to the last row and column. Without those of less than a twentieth of the largest one's ink.
function componentsOf(ink, w, h) {
  const numbers = new Int32Array(w * h), all = [], stack = [];
  for (let start = 0; start < ink.length; start++) {
    if (!ink[start] || numbers[start]) continue;
    const box = { top: h, bottom: -1, left: w, right: -1, mass: 0, numbers: [all.length + 1] };
    all.push(box);
    numbers[start] = all.length;
    stack.push(start);
    while (stack.length) {
      const i = stack.pop(), x = i % w, y = (i - x) / w;
      box.mass += ink[i];
      box.top = Math.min(box.top, y); box.bottom = Math.max(box.bottom, y);
      box.left = Math.min(box.left, x); box.right = Math.max(box.right, x);
      for (let v = Math.max(0, y - 1); v <= Math.min(h - 1, y + 1); v++)
        for (let u = Math.max(0, x - 1); u <= Math.min(w - 1, x + 1); u++) {
          const j = v * w + u;
          if (ink[j] && !numbers[j]) { numbers[j] = all.length; stack.push(j); }
        }
    }
  }
  const least = 0.05 * all.reduce((most, { mass }) => Math.max(most, mass), 0);
  return { numbers, components: all.filter(({ mass }) => mass >= least) };
}

const union = (a, b) => ({
  top: Math.min(a.top, b.top), bottom: Math.max(a.bottom, b.bottom),
  left: Math.min(a.left, b.left), right: Math.max(a.right, b.right),
  numbers: [...a.numbers, ...b.numbers],
});

// The components of each digit, from left to right: those above each other are one digit's.
function groupByDigit(components) {
  const groups = [], widthOf = ({ left, right }) => right - left + 1;
  for (const next of [...components].sort((a, b) => a.left - b.left)) {
    const last = groups.at(-1);
    if (last && last.right + 1 - next.left >= 0.4 * Math.min(widthOf(next), widthOf(last)))
      groups[groups.length - 1] = union(last, next);
    else groups.push(next);
  }
  return groups;
}

// The ink of a group of components, as large as its box.
function cut({ ink, w, numbers }, group) {
  const width = group.right - group.left + 1, height = group.bottom - group.top + 1;
  const digit = { ink: new Float64Array(width * height), w: width, h: height };
  const own = new Set(group.numbers);
  for (let y = 0, i = 0; y < height; y++)
    for (let x = 0; x < width; x++, i++) {
      const j = (group.top + y) * w + group.left + x;
      if (own.has(numbers[j])) digit.ink[i] = ink[j];
    }
  return digit;
}

// A thin pen's strokes made as wide as MNIST's thinnest.
function thicken(digit) {
  const { ink, w, h } = digit;
  let area = 0, edge = 0;
  for (let y = 0, i = 0; y < h; y++)
    for (let x = 0; x < w; x++, i++) {
      if (ink[i] <= 0.5) continue;
      area++;
      // Its four sides, where there is no solid ink beyond.
      edge += (x === 0 || ink[i - 1] <= 0.5) + (x === w - 1 || ink[i + 1] <= 0.5)
        + (y === 0 || ink[i - w] <= 0.5) + (y === h - 1 || ink[i + w] <= 0.5);
    }
  const width = 2 * area / Math.max(1, edge);
  const missing = roundEven((MIN_STROKE_WIDTH * Math.max(w, h) / 20 - width) / 2);
  if (missing <= 0) return digit;
  const big = { w: w + 2 * missing, h: h + 2 * missing };
  big.ink = new Float64Array(big.w * big.h);
  for (let y = 0; y < h; y++)
    for (let x = 0; x < w; x++) {
      const value = ink[y * w + x];
      if (!value) continue;
      for (let v = y; v <= y + 2 * missing; v++)
        for (let u = x; u <= x + 2 * missing; u++)
          if (big.ink[v * big.w + u] < value) big.ink[v * big.w + u] = value;
    }
  return big;
}

// The anti-aliased triangle filter of Pillow and PyTorch: which inputs each output is a mean of.
function resampling(from, to) {
  const scale = from / to, support = Math.max(1, scale);
  return Array.from({ length: to }, (_, i) => {
    const middle = scale * (i + 0.5);
    const first = Math.max(0, Math.trunc(middle - support + 0.5));
    const end = Math.min(from, Math.trunc(middle + support + 0.5));
    const weights = [];
    for (let j = first; j < end; j++)
      weights.push(Math.max(0, 1 - Math.abs((j - middle + 0.5) / support)));
    const total = weights.reduce((a, b) => a + b);
    return { first, weights: weights.map((v) => v / total) };
  });
}

// Scaled to fit 20x20, its centre of mass in the middle of 28x28: bytes, 0 to 255.
function centre({ ink, w, h }) {
  const longest = Math.max(w, h), size = [h, w].map((side) => Math.max(1, roundEven(20 * side / longest)));
  const across = resampling(w, size[1]), down = resampling(h, size[0]);
  const narrow = new Float64Array(h * size[1]), small = new Float64Array(size[0] * size[1]);
  for (let y = 0; y < h; y++)
    across.forEach(({ first, weights }, x) => {
      for (let k = 0; k < weights.length; k++)
        narrow[y * size[1] + x] += weights[k] * ink[y * w + first + k];
    });
  let mass = 0, massY = 0, massX = 0;
  down.forEach(({ first, weights }, y) => {
    for (let x = 0; x < size[1]; x++) {
      const i = y * size[1] + x;
      for (let k = 0; k < weights.length; k++) small[i] += weights[k] * narrow[(first + k) * size[1] + x];
      mass += small[i]; massY += small[i] * y; massX += small[i] * x;
    }
  });
  const corner = [massY, massX].map((m, axis) =>
    Math.min(Math.max(roundEven(13.5 - m / mass), 0), 28 - size[axis]));
  const image = new Uint8Array(784);
  for (let y = 0; y < size[0]; y++)
    for (let x = 0; x < size[1]; x++)
      image[(corner[0] + y) * 28 + corner[1] + x] = roundEven(small[y * size[1] + x] * 255);
  const fullest = image.reduce((a, b) => Math.max(a, b));
  return image.map((v) => roundEven(v * 255 / fullest));
}

// What the network sees of a picture (an ImageData): 784 bytes for each digit, from left to right. One
// digit unless there are several of at least half the height of the highest: as in `to_mnist`.
function digitsIn(picture) {
  for (const paper of [255, 0]) {
    const found = inkOf(greyOf(picture, paper));
    if (!found) continue;
    const groups = groupByDigit(found.components);
    const heights = groups.map(({ top, bottom }) => bottom - top);
    const tall = Math.max(...heights) / 2, several = heights.filter((v) => v > tall).length > 1;
    const digits = several ? groups : [groups.reduce(union)];
    return digits.map((group) => centre(thicken(cut(found, group))));
  }
  return [];
}
