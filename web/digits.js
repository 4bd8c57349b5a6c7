// What `mnist_mlp.images.to_mnist` and `EnhancedNet` do, in the browser. A test holds this file to
// those two: change both.

const WORK_SIDE = 640, FAINTEST = 0.06, THINNEST = 1.5;

// A half goes to the even neighbour, as in Python.
function roundEven(x) {
  const floor = Math.floor(x);
  return x - floor === 0.5 ? floor + (floor & 1) : Math.round(x);
}

function median(values) {
  const sorted = Float64Array.from(values).sort(), half = sorted.length >> 1;
  return sorted.length & 1 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
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
  return { values: sum.map((s, j) => Math.round(s / count[j]) / 255), w, h };
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

// The ink from 0 to 1, paper and specks taken away; null where there is none.
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
  const threshold = otsu(ink.filter((v) => v > 3 * noise));
  const above = ink.filter((v) => v > threshold), full = above.length ? median(above) : 0;
  if (full < Math.max(FAINTEST, 4.5 * noise)) return null;
  const least = Math.max(0.15 * full, 4 * noise);
  for (let i = 0; i < ink.length; i++) ink[i] = ink[i] < least ? 0 : Math.min(ink[i] / full, 1);
  return dropSpecks(ink, w, h);
}

// Set to 0 what belongs to a blob with less than a twentieth of the largest one's ink.
function dropSpecks(ink, w, h) {
  const blob = new Int32Array(w * h), mass = [0], stack = [];
  for (let start = 0; start < ink.length; start++) {
    if (!ink[start] || blob[start]) continue;
    const number = mass.length;
    mass.push(0);
    blob[start] = number;
    stack.push(start);
    while (stack.length) {
      const i = stack.pop(), x = i % w, y = (i - x) / w;
      mass[number] += ink[i];
      for (let v = Math.max(0, y - 1); v <= Math.min(h - 1, y + 1); v++)
        for (let u = Math.max(0, x - 1); u <= Math.min(w - 1, x + 1); u++) {
          const j = v * w + u;
          if (ink[j] && !blob[j]) { blob[j] = number; stack.push(j); }
        }
    }
  }
  const least = 0.05 * mass.reduce((a, b) => Math.max(a, b));
  for (let i = 0; i < ink.length; i++) if (mass[blob[i]] < least) ink[i] = 0;
  return { ink, w, h };
}

function boxOf({ ink, w, h }) {
  let top = h, bottom = -1, left = w, right = -1;
  for (let y = 0, i = 0; y < h; y++)
    for (let x = 0; x < w; x++, i++)
      if (ink[i] > 0) {
        top = Math.min(top, y); bottom = Math.max(bottom, y);
        left = Math.min(left, x); right = Math.max(right, x);
      }
  return { top, left, height: bottom - top + 1, width: right - left + 1 };
}

// A thin pen's strokes made as wide as MNIST's thinnest.
function thicken(digit, box) {
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
  const side = Math.max(box.width, box.height);
  const missing = roundEven((THINNEST * side / 20 - width) / 2);
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
function centre({ ink, w }, box) {
  const longest = Math.max(box.width, box.height);
  const size = [box.height, box.width].map((side) => Math.max(1, roundEven(20 * side / longest)));
  const across = resampling(box.width, size[1]), down = resampling(box.height, size[0]);
  const narrow = new Float64Array(box.height * size[1]), small = new Float64Array(size[0] * size[1]);
  for (let y = 0; y < box.height; y++)
    across.forEach(({ first, weights }, x) => {
      const start = (box.top + y) * w + box.left + first;
      for (let k = 0; k < weights.length; k++)
        narrow[y * size[1] + x] += weights[k] * ink[start + k];
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

// What the network sees of a picture (an ImageData): 784 bytes, or null where there is no ink.
function toMnist(picture) {
  for (const paper of [255, 0]) {
    const digit = inkOf(greyOf(picture, paper));
    if (!digit) continue;
    const thick = thicken(digit, boxOf(digit));
    return centre(thick, boxOf(thick));
  }
  return null;
}

// The layers' weights and biases from 16-bit integers in base64, in the order of the state_dict, each
// tensor with its scale.
function unpack(base64, sizes, scales) {
  const text = atob(base64), bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  const integers = new Int16Array(bytes.buffer);
  let start = 0, tensor = 0;
  const take = (n) => {
    const scale = scales[tensor++];
    return Float32Array.from(integers.subarray(start, start += n), (v) => v * scale);
  };
  return sizes.slice(1).map((n, i) => ({ weights: take(n * sizes[i]), biases: take(n) }));
}

// The ten probabilities of 784 bytes.
function predict(layers, image, mean, std) {
  let x = Float32Array.from(image, (v) => (v / 255 - mean) / std);
  layers.forEach(({ weights, biases }, number) => {
    const y = new Float32Array(biases.length), n = x.length;
    for (let i = 0; i < y.length; i++) {
      let a = 0, b = 0, c = 0, d = 0; // four sums, that need not wait for each other
      for (let j = 0, k = i * n; j < n; j += 4, k += 4) {
        a += weights[k] * x[j];
        b += weights[k + 1] * x[j + 1];
        c += weights[k + 2] * x[j + 2];
        d += weights[k + 3] * x[j + 3];
      }
      const sum = a + b + c + d + biases[i];
      y[i] = number < layers.length - 1 ? Math.max(0, sum) : sum;
    }
    x = y;
  });
  const top = x.reduce((a, b) => Math.max(a, b));
  const powers = x.map((v) => Math.exp(v - top)), total = powers.reduce((a, b) => a + b);
  return powers.map((v) => v / total);
}
