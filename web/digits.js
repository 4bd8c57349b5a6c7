// What `analyse` of `mnist_lab.handwriting.preprocess` does, in the browser: find the paper, the ink
// and the digits. paper.py, ink.py, lines.py and preprocess.py explain each function; here
// it has the same name. tests/test_page.py compares the two implementations: change both together.
//
// A grey image is { values, width, height }: its pixels row by row, from 0 to 1. A mask has 1 where
// a pixel belongs to it.

const MIN_CONTRAST = 0.06; // of the whole scale: a picture with less is empty
const SURFACE_SAMPLES = 64; // along the longer side: enough to fit the brightness of the paper
const TOLERANCE = 0.12; // of the picture's contrast: pixels this near a surface are explained by it
const MIN_GAIN = 0.1; // of the pixels and of the rim together: how much more a plane must explain
const MIN_FILLED = 0.15; // of the pixels: with more ink, paper and ink are told apart as two classes
const MIN_SEPARATION = 0.7; // of the variance lies between two classes
const MIN_BAR = 0.9; // of the rows show one run of ink where a 1 fills the picture

const MIN_INK = 0.15; // of the median ink: fainter pixels are paper
const MIN_COMPONENT = 0.05; // of the ink of the largest component: smaller ones are specks
const MIN_CONTACT = 0.7; // of its length lies along the picture's edge: this was not written
const MAX_SCRAP = 0.3; // of the ink of the largest component: beside a printed box, it is another's
const MAX_SLIVER_WIDTH = 0.08; // of its length: a digit is wider than the rest of a tilted line
const MAX_BITMAP_SIDE = 32; // pixels: the strokes of a digit that fills a bitmap lie along its edges
const MIN_INK_LENGTH = 0.03; // of the picture's longer side, and 5 pixels: shorter ink is no digit

const MIN_SIDE = 40; // pixels: in a smaller picture a line cannot be told from a stroke
const LINE_SAMPLES = 64; // places across the picture at which a line is looked for
const MAX_SLOPE = 0.06; // pixels up or down per pixel to the right
const MIN_COVERAGE = 0.7; // of a line from edge to edge is ink
const MIN_LINE_LENGTH = 0.4; // of the picture's side: a printed box is at least as long
const MAX_LINE_WIDTH = 0.06; // of the picture's shorter side
const MAX_SINGLE_LINE_WIDTH = 0.035; // the same for a line that has no other beside or across it
const MAX_RELATIVE_LINE_WIDTH = 2.5; // of the widest line from edge to edge: a wider run is a stroke
const NEAR = 0.04; // of the picture's longer side: how far lines that meet may miss each other

const MAX_HOLES = 3; // of two pixels or more: a digit has two, and a pen leaves another one
const MAX_CROSSED_ROWS = 2; // with four strokes or more side by side, as a W has
const MAX_CROSSED_COLUMNS = 1; // with five strokes or more above each other
const MAX_STROKES = 88; // crossed by all rows and columns together
const MAX_INK = 260; // pixels of the 28x28
const MAX_STROKE_WIDTH = 6.3; // pixels of the 28x28
const MIN_STROKE_WIDTH = 1.5; // pixels of the 20x20: MNIST's strokes are two to three wide
const MIN_SOLID = 0.84; // of the ink's span in the rows, and in the columns, where a 1 was stretched
const MIN_STRETCHED_WIDTH = 0.3; // of its height: no pen's 1 is as wide
const BAR_WIDTH = 0.15; // of its height: a 1 as MNIST has it
const MIN_OVERLAP = 0.4; // of the narrower box's width: boxes that overlap more are one digit
const MIN_FULL_SIZE = 0.5; // of the usual height and length: a smaller box is a part of a digit
const MIN_ROW_OVERLAP = 0.4; // of the lower box's height: boxes that overlap less are in two rows
const MIN_ROW_GAP = 0.2; // of a digit's height: parts with a larger gap between are two rows
const MAX_PART_DISTANCE = 0.4; // of a digit's length: a part further away is a mark
const USUAL_WIDTH = 0.75; // of the height, if the other digits do not tell
const MAX_WIDTH = 1.0; // of the height: wider ink beside other digits may be two digits
const MAX_SINGLE_WIDTH = 1.4; // of the height of ink that stands alone
const MAX_RELATIVE_WIDTH = 1.2; // of the usual width of a digit
const MIN_SPLIT_WIDTH = 1.25; // of the height: wider ink beside other digits is split

const MIN_HEIGHT = 10; // pixels: the strokes of lower digits run together
const MAX_COMPONENTS = 500; // a picture with more shows a pattern: to read it all would take minutes

// Round as Python does: a half goes to the even neighbour.
function roundHalfToEven(x) {
  const floor = Math.floor(x);
  if (x - floor !== 0.5) return Math.round(x);
  return floor % 2 === 0 ? floor : floor + 1;
}

function median(values) {
  const sorted = Float64Array.from(values).sort();
  const middle = Math.floor(sorted.length / 2);
  if (sorted.length % 2 === 1) return sorted[middle];
  return (sorted[middle - 1] + sorted[middle]) / 2;
}

// Return NumPy's quantile, which interpolates between the two neighbours.
function quantile(values, share) {
  const sorted = Float64Array.from(values).sort();
  const position = share * (sorted.length - 1);
  const below = Math.floor(position);
  const above = Math.min(below + 1, sorted.length - 1);
  return sorted[below] + (position - below) * (sorted[above] - sorted[below]);
}

// Return a mask of the indices for which `isIn(value, index)` is true.
function maskOf(values, isIn) {
  const mask = new Uint8Array(values.length);
  for (let i = 0; i < values.length; i++) {
    if (isIn(values[i], i)) mask[i] = 1;
  }
  return mask;
}

// Return the smallest index of the largest value.
function argmax(values) {
  let best = 0;
  for (let i = 1; i < values.length; i++) {
    if (values[i] > values[best]) best = i;
  }
  return best;
}

// Return an ImageData's brightness from 0 to 1. The pad is opaque, so alpha does not matter.
function readGrey({ data, width, height }) {
  const values = new Float64Array(width * height);
  for (let i = 0; i < values.length; i++) {
    const red = data[4 * i];
    const green = data[4 * i + 1];
    const blue = data[4 * i + 2];

    // Pillow's weights, as 16-bit integers.
    values[i] = ((red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16) / 255;
  }
  return { values, width, height };
}

// ------------------------------------------------------------------------------- the paper

// Solve `matrix` x = `vector` by Gaussian elimination. It needs no pivoting, because the matrix is
// symmetric and positive definite. Overwrites both arguments and returns x.
function solve(matrix, vector) {
  const size = vector.length;

  for (let pivot = 0; pivot < size; pivot++) {
    for (let row = pivot + 1; row < size; row++) {
      const factor = matrix[row][pivot] / matrix[pivot][pivot];
      for (let column = pivot; column < size; column++) {
        matrix[row][column] -= factor * matrix[pivot][column];
      }
      vector[row] -= factor * vector[pivot];
    }
  }

  for (let row = size - 1; row >= 0; row--) {
    for (let column = row + 1; column < size; column++) {
      vector[row] -= matrix[row][column] * vector[column];
    }
    vector[row] /= matrix[row][row];
  }
  return vector;
}

// Return n coordinates from -1 to 1, or a single 0.
function coordinates(n) {
  const zeros = new Float64Array(n);
  if (n === 1) return zeros;
  return zeros.map((_, i) => 2 * i / (n - 1) - 1);
}

// Points of the picture: their brightness, and six terms of the surface for each.
function makePoints({ values, width }, us, vs, pixels) {
  const sample = Float64Array.from(pixels, (pixel) => values[pixel]);
  const terms = new Float64Array(6 * pixels.length);
  pixels.forEach((pixel, i) => {
    const u = us[pixel % width];
    const v = vs[Math.floor(pixel / width)];
    terms.set([1, u, v, u * u, u * v, v * v], 6 * i);
  });
  return { sample, terms };
}

function choosePoints({ sample, terms }, isChosen) {
  return {
    sample: sample.filter((_, i) => isChosen[i]),
    terms: terms.filter((_, i) => isChosen[Math.floor(i / 6)]),
  };
}

// Return how far each point is from the surface.
function residualsOf({ sample, terms }, [a, b, c, d, e, f]) {
  return sample.map((value, s) => {
    const i = 6 * s;
    const linear = a * terms[i] + b * terms[i + 1] + c * terms[i + 2];
    return value - (linear + d * terms[i + 3] + e * terms[i + 4] + f * terms[i + 5]);
  });
}

// Fit a surface by least absolute deviations: a plane with 3 terms, or with all 6.
function fit(points, termCount) {
  const { sample, terms } = points;
  let surface = [median(sample), 0, 0, 0, 0, 0];

  // Iteratively reweighted least squares.
  for (let round = 0; round < 20; round++) {
    const normalMatrix = [];
    for (let i = 0; i < termCount; i++) {
      normalMatrix.push(new Array(termCount).fill(0));
      normalMatrix[i][i] = 1e-6;
    }
    const rightHandSide = new Array(termCount).fill(0);

    const residuals = residualsOf(points, surface);
    for (let s = 0; s < sample.length; s++) {
      const weight = 1 / Math.max(Math.abs(residuals[s]), 0.002);
      for (let i = 0; i < termCount; i++) {
        const weighted = weight * terms[6 * s + i];
        for (let j = i; j < termCount; j++) normalMatrix[i][j] += weighted * terms[6 * s + j];
        rightHandSide[i] += weighted * sample[s];
      }
    }
    for (let i = 0; i < termCount; i++) {
      for (let j = 0; j < i; j++) normalMatrix[i][j] = normalMatrix[j][i];
    }

    const previous = surface;
    surface = [...solve(normalMatrix, rightHandSide), 0, 0, 0, 0, 0].slice(0, 6);
    if (surface.every((value, i) => Math.abs(value - previous[i]) < 1e-5)) break;
  }
  return surface;
}

// Return the threshold that splits values in two with the least variance inside the parts.
// The values are not negative. The threshold is one of the 255 inner edges of 256 equal bins.
function otsu(values) {
  let largest = 0;
  for (const value of values) largest = Math.max(largest, value);
  if (largest === 0) return 0;

  const counts = new Float64Array(256);
  for (const value of values) counts[Math.min(255, Math.floor(value / largest * 256))]++;
  const middles = counts.map((_, bin) => (bin + 0.5) * largest / 256);
  let total = 0;
  for (let bin = 0; bin < 256; bin++) total += counts[bin] * middles[bin];

  let countBelow = 0;
  let sumBelow = 0;
  let largestVariance = -1;
  let threshold = 0;
  for (let bin = 0; bin < 255; bin++) {
    countBelow += counts[bin];
    sumBelow += counts[bin] * middles[bin];
    const countAbove = values.length - countBelow;
    const sumAbove = total - sumBelow;

    // The least variance inside the parts is the largest variance between them.
    const difference = sumBelow / Math.max(countBelow, 1) - sumAbove / Math.max(countAbove, 1);
    const variance = countBelow * countAbove * difference ** 2;
    if (variance > largestVariance) {
      largestVariance = variance;
      threshold = (bin + 1) * largest / 256;
    }
  }
  return threshold;
}

// Return Otsu's threshold, and the share of the variance that lies between the classes.
function twoClasses(values) {
  const threshold = otsu(values);
  const above = values.filter((value) => value > threshold);
  const below = values.filter((value) => value <= threshold);
  if (above.length === 0 || below.length === 0) return { threshold, separation: 0 };

  const mean = (numbers) => numbers.reduce((sum, value) => sum + value, 0) / numbers.length;
  const middle = mean(values);
  const variance = mean(values.map((value) => (value - middle) ** 2));
  const share = above.length / values.length;
  const between = share * (1 - share) * (mean(above) - mean(below)) ** 2;
  return { threshold, separation: between / variance };
}

// Return the paper of a tall picture that a 1 fills, or null if it shows something else.
function paperBesideABar({ values, width, height }) {
  if (height < 2 * width) return null;
  const low = values.reduce((least, value) => Math.min(least, value), Infinity);
  const { threshold, separation } = twoClasses(values.map((value) => value - low));
  if (separation <= MIN_SEPARATION) return null;

  const bright = maskOf(values, (value) => value - low > threshold);
  const dark = bright.map((value) => 1 - value);
  let brightBar = shareOfRowsWithOneRun(bright, width, height) >= MIN_BAR;
  const darkBar = shareOfRowsWithOneRun(dark, width, height) >= MIN_BAR;
  if (!brightBar && !darkBar) return null;
  if (brightBar && darkBar) {
    // The paper, too, is on one side of the ink in nearly each row: look at the corners.
    const brightCornerCount = corners({ values: bright, width, height }).filter(Boolean).length;
    if (brightCornerCount === 2) return null;
    brightBar = brightCornerCount < 2;
  }
  const paper = brightBar ? dark : bright;
  const level = median(values.filter((_, i) => paper[i]));
  const brightness = new Float64Array(values.length).fill(level);
  return { brightness, noise: 0, inkIsBrighter: brightBar };
}

// Return the values at the four corners of a picture.
function corners({ values, width, height }) {
  const last = width * (height - 1);
  return [values[0], values[width - 1], values[last], values[last + width - 1]];
}

function shareOfRowsWithOneRun(mask, width, height) {
  let rows = 0;
  for (let y = 0; y < height; y++) {
    let runs = 0;
    for (let x = 0; x < width; x++) {
      const begins = mask[y * width + x] && (x === 0 || !mask[y * width + x - 1]);
      if (begins) runs++;
    }
    if (runs === 1) rows++;
  }
  return rows / height;
}

// Return the paper: { brightness, noise, inkIsBrighter }.
function findPaper(grey, ignored) {
  const besideABar = paperBesideABar(grey);
  if (besideABar !== null) return besideABar;

  const { values, width, height } = grey;
  const us = coordinates(width);
  const vs = coordinates(height);
  const step = Math.ceil(Math.max(width, height) / SURFACE_SAMPLES);

  const grid = [];
  const rim = [];
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const isInColumn = x % step === 0;
      const isInRow = y % step === 0;
      if (isInColumn && isInRow) grid.push(y * width + x);
      const isAbove = isInColumn && (y === 0 || y === height - 1);
      const isBeside = isInRow && (x === 0 || x === width - 1);
      if ((isAbove || isBeside) && !ignored[y * width + x]) rim.push(y * width + x);
    }
  }
  const used = grid.filter((pixel) => !ignored[pixel]);
  const points = makePoints(grey, us, vs, used.length > 0 ? used : grid);
  const rimPoints = makePoints(grey, us, vs, rim);

  const contrast = quantile(points.sample, 0.98) - quantile(points.sample, 0.02);
  const tolerance = Math.max(0.02, TOLERANCE * contrast);
  const countNear = (some, surface) =>
    residualsOf(some, surface).filter((value) => Math.abs(value) < tolerance).length;
  const explained = (surface) => countNear(points, surface) / points.sample.length
    + countNear(rimPoints, surface) / Math.max(1, rim.length);

  const curved = fit(points, 6);
  let surface = curved;
  let most = explained(curved) + MIN_GAIN;
  const planes = [fit(points, 3)];
  if (rim.length > 0) planes.unshift(fit(rimPoints, 3));
  for (const plane of planes) {
    const share = explained(plane);
    if (share > most) {
      surface = plane;
      most = share;
    }
  }

  let residuals = residualsOf(points, surface);
  let isPaper = new Uint8Array(residuals.length).fill(1);
  let { threshold, separation } = twoClasses(residuals.map(Math.abs));
  const farCount = residuals.filter((value) => Math.abs(value) > threshold).length;
  const isFilled = farCount / residuals.length > MIN_FILLED && separation > MIN_SEPARATION
    && threshold > tolerance / 2;
  if (isFilled || surface !== curved) {
    for (let round = 0; round < 2; round++) {
      threshold = twoClasses(residuals.map(Math.abs)).threshold;
      isPaper = maskOf(residuals, (value) => Math.abs(value) <= threshold);
      const paperPoints = choosePoints(points, isPaper);
      surface = fit(paperPoints, paperPoints.sample.length > 0.5 * residuals.length ? 6 : 3);
      residuals = residualsOf(points, surface);
    }
  }

  // Ink is far from the paper, so the sum of the cubes has its sign.
  const cubes = residuals.reduce((sum, value) => sum + value * value * value, 0);
  let inkIsBrighter = cubes > 0;

  // In a bitmap the paper is exactly one of the two values.
  let low = 1;
  let high = 0;
  values.forEach((value, i) => {
    if (ignored[i]) return;
    low = Math.min(low, value);
    high = Math.max(high, value);
  });
  if (low < high && values.every((value) => value === low || value === high)) {
    const brightCornerCount = corners(grey).filter((value) => value === high).length;
    if (brightCornerCount !== 2) inkIsBrighter = brightCornerCount < 2;
    const brightness = new Float64Array(values.length).fill(inkIsBrighter ? low : high);
    return { brightness, noise: 0, inkIsBrighter };
  }
  const noise = 1.5 * median(residuals.filter((_, i) => isPaper[i]).map(Math.abs));
  return { brightness: evaluate(surface, us, vs), noise, inkIsBrighter };
}

// Return the surface at each pixel.
function evaluate([a, b, c, d, e, f], us, vs) {
  const width = us.length;
  const brightness = new Float64Array(width * vs.length);
  for (let y = 0; y < vs.length; y++) {
    const v = vs[y];
    for (let x = 0; x < width; x++) {
      const u = us[x];
      brightness[y * width + x] = a + b * u + c * v + d * u * u + e * u * v + f * v * v;
    }
  }
  return brightness;
}

// --------------------------------------------------------------------------------- the ink

// Return the connected components of the ink, and a map with the label of each pixel's component,
// or 0. A component has the box of its pixels (right and bottom are the first ones behind it), and
// their sum as its mass.
function connectedComponents({ values, width, height }) {
  const labelMap = new Int32Array(values.length);
  const components = [];

  for (let start = 0; start < values.length; start++) {
    if (values[start] === 0 || labelMap[start] !== 0) continue;

    const label = components.length + 1;
    const component = { label, top: height, bottom: 0, left: width, right: 0, mass: 0 };
    components.push(component);

    labelMap[start] = label;
    const stack = [start];
    while (stack.length > 0) {
      const pixel = stack.pop();
      const x = pixel % width;
      const y = Math.floor(pixel / width);
      component.mass += values[pixel];
      component.top = Math.min(component.top, y);
      component.bottom = Math.max(component.bottom, y + 1);
      component.left = Math.min(component.left, x);
      component.right = Math.max(component.right, x + 1);

      for (let row = Math.max(0, y - 1); row <= Math.min(height - 1, y + 1); row++) {
        for (let column = Math.max(0, x - 1); column <= Math.min(width - 1, x + 1); column++) {
          const neighbour = row * width + column;
          if (values[neighbour] > 0 && labelMap[neighbour] === 0) {
            labelMap[neighbour] = label;
            stack.push(neighbour);
          }
        }
      }
    }
  }
  return { labelMap, components };
}

const lengthOf = ({ top, bottom, left, right }) => Math.max(bottom - top, right - left);
const heightOf = ({ top, bottom }) => bottom - top;
const widthOf = ({ left, right }) => right - left;

// Return the strength of the ink as a grey image, or null if nothing stands out.
function measure({ values, width, height }, paper, ignored) {
  const sign = paper.inkIsBrighter ? 1 : -1;
  const ink = new Float64Array(values.length);
  for (let i = 0; i < values.length; i++) {
    if (!ignored[i]) ink[i] = Math.max(0, sign * (values[i] - paper.brightness[i]));
  }

  // The ink must stand out: `noise` is about one standard deviation, and its largest values reach
  // four.
  const noisiest = 3 * paper.noise;
  const threshold = otsu(ink.filter((value) => value > noisiest));
  const strongInk = ink.filter((value) => value > threshold);
  const fullInk = strongInk.length > 0 ? median(strongInk) : 0;
  if (fullInk < Math.max(MIN_CONTRAST, 4.5 * paper.noise)) return null;

  const faintest = Math.max(MIN_INK * fullInk, 4 * paper.noise);
  const strength = ink.map((value) => value < faintest ? 0 : Math.min(value / fullInk, 1));
  return { values: strength, width, height };
}

// Return the longer side of the largest box around a connected component.
function longest(image) {
  return connectedComponents(image).components.reduce(
    (most, component) => Math.max(most, lengthOf(component)), 0);
}

// Return a mask that is larger by `reach` pixels on each side.
function dilate(mask, width, height, reach) {
  const wide = new Uint8Array(mask.length);
  const result = new Uint8Array(mask.length);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      if (!mask[y * width + x]) continue;
      const last = Math.min(width - 1, x + reach);
      wide.fill(1, y * width + Math.max(0, x - reach), y * width + last + 1);
    }
  }
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      if (!wide[y * width + x]) continue;
      const last = Math.min(height - 1, y + reach);
      for (let row = Math.max(0, y - reach); row <= last; row++) result[row * width + x] = 1;
    }
  }
  return result;
}

// Return a mask of the things that lie along the picture's edge, or along what was dropped there.
function findAtEdge(strength, edge) {
  const { width, height } = strength;
  const { labelMap, components } = connectedComponents(strength);
  const outside = dilate(edge, width, height, 1);
  outside.fill(1, 0, width);
  outside.fill(1, width * (height - 1));
  for (let y = 0; y < height; y++) outside[y * width] = outside[y * width + width - 1] = 1;
  const contact = new Int32Array(components.length + 1);
  for (let pixel = 0; pixel < outside.length; pixel++) {
    if (outside[pixel]) contact[labelMap[pixel]]++;
  }

  const isFound = [false, ...components.map(
    (component) => contact[component.label] >= MIN_CONTACT * lengthOf(component))];
  const rim = Math.max(1, roundHalfToEven(Math.max(width, height) / 200));
  const found = maskOf(labelMap, (label) => isFound[label]);
  return dilate(found, width, height, rim);
}

// Return the ink without the components of which `isDropped` is true.
function without(strength, isDropped) {
  const { labelMap, components } = connectedComponents(strength);
  const largest = components.reduce((most, { mass }) => Math.max(most, mass), 0);
  const dropped = [false, ...components.map((component) => isDropped(component, largest))];
  const values = strength.values.map((value, pixel) => dropped[labelMap[pixel]] ? 0 : value);
  return { ...strength, values };
}

// Return the ink without what stands beside printed lines at the picture's edge: ink in neighbouring
// boxes, and the slivers of tilted lines that leave the picture.
function dropScraps(strength) {
  const { width, height } = strength;
  const isAtEdge = ({ left, top, right, bottom }) =>
    left === 0 || top === 0 || right === width || bottom === height;
  const isSliver = (box) => isAtEdge(box)
    && Math.min(widthOf(box), heightOf(box)) <= MAX_SLIVER_WIDTH * lengthOf(box);

  const { components } = connectedComponents(strength);
  const others = components.filter((box) => !isSliver(box));
  const kept = others.length > 0 ? others : components;
  const largest = Math.max(...kept.map(({ mass }) => mass));
  const isScrap = (box) => isAtEdge(box) && box.mass < MAX_SCRAP * largest;
  return without(strength, (box) => isScrap(box) || (others.length > 0 && isSliver(box)));
}

// Return { strength, paper, lines, edge, small, warnings }, or null if nothing stands out from the
// paper. `lines`, `edge` and `small` are masks of what was dropped; `small` has specks, and beside
// printed lines the ink of neighbouring boxes.
function findInk(grey) {
  const { width, height } = grey;
  const side = Math.max(width, height);
  let lines = new Uint8Array(width * height);
  let edge = new Uint8Array(width * height);
  let paper = findPaper(grey, lines);
  let strength = measure(grey, paper, lines);
  if (strength === null) return null;

  const idle = new Set(); // steps that changed nothing since the last change
  if (side <= MAX_BITMAP_SIDE && new Set(grey.values).size === 2) idle.add("edge");
  for (const step of ["lines", "edge", "edge", "edge", "lines"]) {
    if (idle.has(step)) continue;
    idle.add(step);

    const old = step === "lines" ? lines : edge;
    const found = step === "lines" ? findLines(strength) : findAtEdge(strength, edge);
    const joined = maskOf(found, (value, i) => value || old[i]);
    if (joined.every((value, i) => value === old[i])) continue;

    const other = step === "lines" ? edge : lines;
    const ignored = maskOf(joined, (value, i) => value || other[i]);
    const newPaper = findPaper(grey, ignored);
    const rest = measure(grey, newPaper, ignored);
    if (rest !== null && longest(rest) >= Math.max(5, MIN_INK_LENGTH * side)) {
      if (step === "lines") lines = joined;
      else edge = joined;
      paper = newPaper;
      strength = rest;
      idle.clear();
    }
  }

  const { values: allInk } = strength;
  const warnings = [];
  if (lines.includes(1)) {
    warnings.push("printed lines were removed: check the digits that they crossed.");
    strength = dropScraps(strength);
  }
  if (longest({ values: edge, width, height }) >= MIN_INK_LENGTH * side) {
    warnings.push("something at the edge of the picture was left out.");
  }
  const isSpeck = ({ mass }, largest) => mass < MIN_COMPONENT * largest;
  strength = without(strength, isSpeck);
  const small = maskOf(allInk, (value, i) => value > 0 && strength.values[i] === 0);
  return { strength, paper, lines, edge, small, warnings };
}

// ----------------------------------------------------------------------------- printed lines

function transpose({ values, width, height }) {
  const turned = new values.constructor(values.length);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) turned[x * height + y] = values[y * width + x];
  }
  return { values: turned, width: height, height: width };
}

// Return a mask of the pixels that belong to printed lines.
function findLines(strength) {
  if (Math.min(strength.width, strength.height) < MIN_SIDE) {
    return new Uint8Array(strength.values.length);
  }
  const turned = transpose(strength);
  const horizontal = straightRuns(strength);
  const vertical = straightRuns(turned);
  const rows = printed(horizontal, vertical, strength);
  const columns = printed(vertical, horizontal, turned);
  if (rows.length + columns.length === 0) return new Uint8Array(strength.values.length);

  const withoutRows = erase(strength, rows);
  const rest = transpose(erase(transpose(withoutRows), columns));
  return maskOf(strength.values, (value, i) => value > 0 && rest.values[i] === 0);
}

function radiusFor(width, height) {
  return 1 + Math.floor(Math.max(width, height) / 320);
}

function offset(tilt, x, width) {
  return Math.floor(tilt * (2 * x / (width - 1) - 1) + 0.5);
}

function straightRuns(strength) {
  const { values, width, height } = strength;
  const radius = radiusFor(width, height);
  const runs = verticalRuns(strength);

  const columns = [];
  for (let i = 0; i < LINE_SAMPLES; i++) {
    const x = Math.floor(i * (width - 1) / (LINE_SAMPLES - 1));
    if (columns.at(-1) !== x) columns.push(x);
  }
  const nearInk = columns.map((x) => {
    const near = new Uint8Array(height);
    for (let y = 0; y < height; y++) {
      if (values[y * width + x] === 0) continue;
      near.fill(1, Math.max(0, y - radius), Math.min(height, y + radius + 1));
    }
    return near;
  });

  const largest = Math.ceil(MAX_SLOPE * width / 2);
  const triedTilts = [0];
  for (let tilt = radius; tilt <= largest; tilt += radius) triedTilts.push(tilt, -tilt);

  const most = new Int32Array(height);
  const tilts = new Int32Array(height);
  for (const tilt of triedTilts) {
    const offsets = columns.map((x) => offset(tilt, x, width));
    for (let y = 0; y < height; y++) {
      let count = 0;
      for (let i = 0; i < columns.length; i++) count += nearInk[i][y + offsets[i]] ?? 0;
      if (count > most[y]) {
        most[y] = count;
        tilts[y] = tilt;
      }
    }
  }

  const lines = [];
  for (;;) {
    const first = argmax(most);
    if (most[first] < MIN_LINE_LENGTH * columns.length) return lines;
    let last = first;
    while (last + 1 < height && most[last + 1] === most[first]) last++;
    const y = Math.floor((first + last) / 2);

    const path = Int32Array.from({ length: width }, (_, x) => y + offset(tilts[y], x, width));
    const line = follow(path, strength, runs);
    let reach = radius;
    if (line !== null) {
      lines.push(line);
      reach = roundHalfToEven(line.width / 2) + 2 * radius;
    }
    most.fill(0, Math.max(0, first - reach), last + reach + 1);
  }
}

// Return the first and the last y of the vertical run of ink at each pixel of the ink.
function verticalRuns({ values, width, height }) {
  const tops = new Int32Array(values.length);
  const bottoms = new Int32Array(values.length);
  for (let x = 0; x < width; x++) {
    for (let y = 0; y < height; y++) {
      const pixel = y * width + x;
      if (values[pixel] === 0) continue;
      tops[pixel] = y > 0 && values[pixel - width] > 0 ? tops[pixel - width] : y;
    }
    for (let y = height - 1; y >= 0; y--) {
      const pixel = y * width + x;
      if (values[pixel] === 0) continue;
      const continues = y + 1 < height && values[pixel + width] > 0;
      bottoms[pixel] = continues ? bottoms[pixel + width] : y;
    }
  }
  return { tops, bottoms };
}

function inkOnPath({ values, width, height }, path) {
  const radius = radiusFor(width, height);
  return path.map((centre, x) => {
    for (let distance = 0; distance <= radius; distance++) {
      for (const y of [centre + distance, centre - distance]) {
        if (y >= 0 && y < height && values[y * width + x] > 0) return y;
      }
    }
    return -1;
  });
}

function follow(path, strength, runs) {
  const { width, height } = strength;
  const nearest = inkOnPath(strength, path);
  const hits = [];
  nearest.forEach((y, x) => { if (y >= 0) hits.push(x); });

  const edge = Math.max(2, roundHalfToEven(0.02 * width));
  const reachesBothEdges = hits.some((x) => x < edge) && hits.some((x) => x >= width - edge);
  const isThrough = reachesBothEdges && hits.length / width >= MIN_COVERAGE;
  let isBroken = false;
  let start = 0;
  let end = width - 1;
  if (!isThrough) {
    [start, end] = longestRun(hits, Math.max(2, roundHalfToEven(0.03 * width)));
    isBroken = end - start < MIN_LINE_LENGTH * width;
  }
  if (isBroken) {
    if (hits.length / width < MIN_LINE_LENGTH) return null;
    start = hits[0];
    end = hits.at(-1);
  }

  const places = [];
  for (const x of hits) {
    if (x < start || x > end) continue;
    const pixel = nearest[x] * width + x;
    places.push({ x, top: runs.tops[pixel], bottom: runs.bottoms[pixel] });
  }
  const lineWidth = quantile(places.map(({ top, bottom }) => bottom - top + 1), 0.3);
  if (lineWidth > Math.max(2, MAX_LINE_WIDTH * Math.min(height, width))) return null;

  const thinPlaces = places.filter((place) => isThin(place, lineWidth));
  const darkness = median(thinPlaces.map((place) => darkest(strength, place, lineWidth)));
  return { path, start, end, width: lineWidth, strength: darkness, isThrough, isBroken };
}

function isThin({ top, bottom }, lineWidth) {
  return bottom - top < Math.floor(1.5 * lineWidth + 1);
}

// Return the darkest ink of a vertical run; of a wide one, only of its upper part.
function darkest({ values, width }, { x, top, bottom }, lineWidth) {
  const last = Math.min(bottom, top + Math.floor(1.5 * lineWidth + 1) - 1);
  let value = 0;
  for (let y = top; y <= last; y++) value = Math.max(value, values[y * width + x]);
  return value;
}

function longestRun(hits, maxGap) {
  if (hits.length === 0) return [0, 0];
  let best = [hits[0], hits[0]];
  let start = hits[0];
  hits.forEach((x, i) => {
    if (i > 0 && x - hits[i - 1] > maxGap + 1) start = x;
    if (x - start > best[1] - best[0]) best = [start, x];
  });
  return best;
}

function maxStrength(strength) {
  return 1.3 * strength + 0.1;
}

function printed(lines, across, strength) {
  let through = lines.filter(({ isThrough }) => isThrough);
  const isSingle = through.length === 1 && !across.some(({ isThrough }) => isThrough);
  if (isSingle && !isNoStroke(through[0], strength)) through = [];

  let limit = Infinity;
  let maxWidth = Infinity;
  if (through.length > 0) {
    limit = maxStrength(median(through.map((line) => line.strength)));
    maxWidth = MAX_RELATIVE_LINE_WIDTH * Math.max(...through.map((line) => line.width));
  }

  const isRuled = through.length >= 2;
  const sides = lines.filter((line) => {
    if (line.isThrough || line.strength > limit || line.width > maxWidth) return false;
    if (isRuled && limit < 1) return true; // as faint as the others, so it is no stroke
    if (line.isBroken) return false;
    return meets(line, line.start, across, strength, isRuled)
      && meets(line, line.end, across, strength, isRuled);
  });
  return through.length + sides.length >= 2 ? [...through, ...sides] : through;
}

function meets(line, x, across, { width, height }, isRuled) {
  const near = Math.max(3, NEAR * Math.max(height, width));
  const y = Math.min(Math.max(line.path[x], 0), height - 1);
  if (isRuled && Math.min(x, width - 1 - x, y, height - 1 - y) <= near) return true;
  return across.some(({ path, start, end }) =>
    Math.abs(path[y] - x) <= near && start - near <= y && y <= end + near);
}

function isNoStroke(line, strength) {
  const { width, height } = strength;
  if (line.width > Math.max(2, MAX_SINGLE_LINE_WIDTH * Math.min(height, width))) return false;

  const { labelMap, components } = connectedComponents(erase(strength, [line]));
  if (components.length === 0) return false;
  const main = components[argmax(components.map(({ mass }) => mass))];
  const reach = line.width + 2;
  let count = 0;
  let above = 0;
  let below = 0;
  labelMap.forEach((label, pixel) => {
    if (label !== main.label) return;
    const distance = Math.floor(pixel / width) - line.path[pixel % width];
    count++;
    if (distance > reach) below++;
    if (distance < -reach) above++;
  });
  if (above + below === count) return true;

  const isLonger = main.left > 0.03 * width && main.right - 1 < 0.97 * width;
  return isLonger && Math.min(above, below) > 0.1 * count;
}

// Return the ink without lines; where a stroke crosses a line, it stays.
function erase(strength, lines) {
  const { width } = strength;
  const values = strength.values.slice();
  const { tops, bottoms } = verticalRuns(strength);
  for (const line of lines) {
    const nearest = inkOnPath(strength, line.path);
    for (let x = line.start; x <= line.end; x++) {
      if (nearest[x] < 0) continue;
      const pixel = nearest[x] * width + x;
      const place = { x, top: tops[pixel], bottom: bottoms[pixel] };
      if (!isThin(place, line.width)) continue;
      if (darkest(strength, place, line.width) > maxStrength(line.strength)) continue;
      for (let y = place.top; y <= place.bottom; y++) values[y * width + x] = 0;
    }
  }
  return { ...strength, values };
}

// ------------------------------------------------------------------------------- the digits

function isAboveOrBelow(first, second) {
  const overlap = Math.min(first.right, second.right) - Math.max(first.left, second.left);
  return overlap >= MIN_OVERLAP * Math.min(widthOf(first), widthOf(second));
}

function isBeside(first, second) {
  const overlap = Math.min(first.bottom, second.bottom) - Math.max(first.top, second.top);
  return overlap >= MIN_ROW_OVERLAP * Math.min(heightOf(first), heightOf(second));
}

function distanceBetween(first, second) {
  const across = Math.max(second.left - first.right, first.left - second.right, 0);
  const down = Math.max(second.top - first.bottom, first.top - second.bottom, 0);
  return Math.max(across, down);
}

// Return { rows, marks, warnings }: rows from the top, each with its digits from left to right, and
// a mask of the small marks that belong to no digit. A digit is a grey image, and has the place of
// its box in the picture: `left` and `top`. With too many components there are no rows.
function findDigits(strength) {
  let { labelMap, components } = connectedComponents(strength);
  if (components.length > MAX_COMPONENTS) {
    return { rows: [], marks: new Uint8Array(labelMap.length), warnings: [] };
  }
  if (Math.max(strength.width, strength.height) < 2 * MIN_HEIGHT) {
    // Too small for two digits: all ink is of one.
    labelMap = labelMap.map((label) => Math.min(label, 1));
    components = [joined(components)];
  }

  const { full, parts } = fullAndParts(components);
  const groupedRows = findRows(full).map(groupByDigit);
  const markLabels = addParts(parts, groupedRows.flat());
  const isMark = new Uint8Array(components.length + 1);
  for (const label of markLabels) isMark[label] = 1;
  const marks = maskOf(labelMap, (label) => isMark[label]);

  const warnings = [];
  if (markLabels.length > 0) {
    warnings.push(`${markLabels.length} small marks beside the digits were left out.`);
  }
  let touchingCount = 0;
  const rows = groupedRows.map((groups) => {
    const row = groups.map((group) => cutOut(strength, labelMap, group));
    const { digits, touching } = splitTouching(row);
    touchingCount += touching;
    return digits;
  });
  if (touchingCount > 0) {
    warnings.push("some digits seem to touch: check them, or write them further apart.");
  }
  return { rows, marks, warnings };
}

// Return several components as one.
function joined(components) {
  return {
    label: 1,
    top: Math.min(...components.map(({ top }) => top)),
    bottom: Math.max(...components.map(({ bottom }) => bottom)),
    left: Math.min(...components.map(({ left }) => left)),
    right: Math.max(...components.map(({ right }) => right)),
    mass: components.reduce((sum, { mass }) => sum + mass, 0),
  };
}

function fullAndParts(boxes) {
  const height = usual(boxes.map(heightOf), boxes);
  const length = usual(boxes.map(lengthOf), boxes);
  const isFull = (box) =>
    heightOf(box) >= MIN_FULL_SIZE * height && lengthOf(box) >= MIN_FULL_SIZE * length;
  const full = boxes.filter(isFull);
  if (full.length === 0) return { full: boxes, parts: [] };
  return { full, parts: boxes.filter((box) => !isFull(box)) };
}

// Return the median of the sizes, each box with its mass.
function usual(sizes, boxes) {
  const order = sizes.map((_, i) => i).sort((i, j) => sizes[i] - sizes[j]);
  const half = boxes.reduce((sum, { mass }) => sum + mass, 0) / 2;
  let sum = 0;
  for (const i of order) {
    sum += boxes[i].mass;
    if (sum >= half) return sizes[i];
  }
  return sizes[order.at(-1)];
}

function findRows(unsorted) {
  const boxes = [...unsorted].sort((first, second) => first.left - second.left);
  const rowOf = boxes.map((_, i) => i);
  const join = (first, second) => {
    const old = rowOf[second];
    rowOf.forEach((row, i) => { if (row === old) rowOf[i] = rowOf[first]; });
  };

  // A box is in a row with the next one to the right that is beside it.
  boxes.forEach((box, i) => {
    const next = boxes.findIndex((other, j) => j > i && isBeside(box, other));
    if (next >= 0) join(i, next);
  });

  // Two boxes alone in their rows may be the upper and the lower half of one digit.
  const isAlone = (row) => rowOf.filter((other) => other === row).length === 1;
  const alone = rowOf.map((_, i) => i).filter((i) => isAlone(rowOf[i]));
  alone.forEach((i, position) => {
    for (const j of alone.slice(position + 1)) {
      const [box, other] = [boxes[i], boxes[j]];
      const gap = Math.max(box.top, other.top) - Math.min(box.bottom, other.bottom);
      const isNear = gap < MIN_ROW_GAP * (heightOf(box) + heightOf(other)) / 2;
      if (isAboveOrBelow(box, other) && isNear) join(i, j);
    }
  });

  const numbers = [...new Set(rowOf)].sort((first, second) => first - second);
  const rows = numbers.map((number) => boxes.filter((_, i) => rowOf[i] === number));
  const middle = (row) => row.reduce((sum, { top, bottom }) => sum + (top + bottom) / 2, 0)
    / row.length;
  return rows.sort((first, second) => middle(first) - middle(second));
}

function groupByDigit(row) {
  const digits = [];
  let digitLeft = 0;
  let digitRight = 0;
  for (const box of row) {
    const narrower = Math.min(widthOf(box), digitRight - digitLeft);
    if (digits.length > 0 && digitRight - box.left >= MIN_OVERLAP * narrower) {
      digits.at(-1).push(box);
      digitRight = Math.max(digitRight, box.right);
    } else {
      digits.push([box]);
      digitLeft = box.left;
      digitRight = box.right;
    }
  }
  return digits;
}

// Add each part to the digit above, below or next to it. Return the labels of the marks left.
function addParts(parts, digits) {
  const owners = digits.map((digit) => [...digit]); // a part does not lead to another part
  const markLabels = [];
  for (const part of parts) {
    let nearest = 0;
    let leastAside = true;
    let leastDistance = Infinity;
    owners.forEach((owner, i) => {
      const isAside = !owner.some((box) => isAboveOrBelow(part, box));
      const distance = Math.min(...owner.map((box) => distanceBetween(part, box)));
      const isLess = isAside === leastAside ? distance < leastDistance : leastAside;
      if (!isLess) return;
      nearest = i;
      leastAside = isAside;
      leastDistance = distance;
    });

    const length = Math.max(...owners[nearest].map(lengthOf));
    if (leastDistance <= MAX_PART_DISTANCE * length) digits[nearest].push(part);
    else markLabels.push(part.label);
  }
  return markLabels;
}

// Cut a group of components out of the ink, along its box and without the ink of others.
function cutOut(ink, labelMap, group) {
  const left = Math.min(...group.map((box) => box.left));
  const top = Math.min(...group.map((box) => box.top));
  const width = Math.max(...group.map((box) => box.right)) - left;
  const height = Math.max(...group.map((box) => box.bottom)) - top;
  const labels = new Set(group.map(({ label }) => label));

  const values = new Float64Array(width * height);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const source = (top + y) * ink.width + left + x;
      if (labels.has(labelMap[source])) values[y * width + x] = ink.values[source];
    }
  }
  return { values, width, height, left, top };
}

function splitTouching(row) {
  const rowHeight = median(row.map(({ height }) => height));
  let touching = 0;
  const digits = row.flatMap((digit, i) => {
    const otherWidths = row.filter((_, j) => j !== i).map(({ width }) => width);
    const isAlone = otherWidths.length === 0;
    const height = Math.min(digit.height, rowHeight);
    let usualWidth = USUAL_WIDTH * height;
    if (otherWidths.length >= 2) usualWidth = Math.max(usualWidth, median(otherWidths));

    let pieces = [digit];
    const maxWidth = (isAlone ? MAX_SINGLE_WIDTH : MAX_WIDTH) * height;
    if (digit.width > Math.max(maxWidth, MAX_RELATIVE_WIDTH * usualWidth)) {
      pieces = split(digit, Math.max(2, roundHalfToEven(digit.width / usualWidth)), height / 2);
    }
    if (pieces.length === 1) return pieces;
    touching++;
    return isAlone || digit.width <= MIN_SPLIT_WIDTH * height ? [digit] : pieces;
  });
  return { digits, touching };
}

// Split a digit where one path from top to bottom crosses one stroke. Returns the digit alone if it
// has no such places or if a piece would be lower than `minHeight`.
function split(digit, pieceCount, minHeight) {
  const { values, width, height } = digit;
  if (width < 3 * pieceCount) return [digit];
  const pieceOf = new Int32Array(values.length);
  for (let i = 1; i < pieceCount; i++) {
    const pieceWidth = width / pieceCount;
    const first = Math.max(1, Math.trunc((i - 0.3) * pieceWidth));
    const last = Math.min(width - 1, Math.trunc((i + 0.3) * pieceWidth) + 1);
    const seam = leastInkSeam(digit, first, last);

    let strokes = 0;
    let wasStroke = false;
    for (let y = 0; y < height; y++) {
      const isStroke = values[y * width + seam[y]] > 0.3;
      if (isStroke && !wasStroke) strokes++;
      wasStroke = isStroke;
      for (let x = seam[y]; x < width; x++) pieceOf[y * width + x]++;
    }
    if (strokes > 1) return [digit];
  }

  const pieces = [];
  for (let i = 0; i < pieceCount; i++) {
    const piece = values.map((value, pixel) => pieceOf[pixel] === i ? value : 0);
    const box = { left: width, top: height, right: 0, bottom: 0 };
    piece.forEach((value, pixel) => {
      if (value === 0) return;
      const x = pixel % width;
      const y = Math.floor(pixel / width);
      box.left = Math.min(box.left, x);
      box.top = Math.min(box.top, y);
      box.right = Math.max(box.right, x + 1);
      box.bottom = Math.max(box.bottom, y + 1);
    });
    if (heightOf(box) <= 0 || heightOf(box) < minHeight) return [digit];
    const labels = new Int32Array(values.length).fill(1);
    const cut = cutOut({ ...digit, values: piece }, labels, [{ ...box, label: 1 }]);
    pieces.push({ ...cut, left: digit.left + cut.left, top: digit.top + cut.top });
  }
  return pieces;
}

// Return for each row the column of the path from top to bottom that crosses the least ink.
function leastInkSeam({ values, width, height }, first, last) {
  const stepAside = 0.001; // so that the path is straight where it can be
  const size = last - first;
  const ink = (x, y) => values[y * width + first + x];
  let cost = Array.from({ length: size }, (_, x) => ink(x, 0));
  const steps = [new Int8Array(size)]; // to the column in the row above
  for (let y = 1; y < height; y++) {
    const step = new Int8Array(size);
    cost = cost.map((stay, x) => {
      let least = stay;
      for (const aside of [-1, 1]) {
        const other = (cost[x + aside] ?? Infinity) + stepAside;
        if (other < least) {
          least = other;
          step[x] = aside;
        }
      }
      return least + ink(x, y);
    });
    steps.push(step);
  }

  const seam = new Int32Array(height);
  let x = cost.indexOf(Math.min(...cost));
  for (let y = height - 1; y >= 0; y--) {
    seam[y] = first + x;
    x += steps[y][x];
  }
  return seam;
}

// Return the mean width of a digit's strokes, in pixels.
function strokeWidth({ values, width, height }) {
  const isSolid = (x, y) => {
    const isInside = x >= 0 && x < width && y >= 0 && y < height;
    return isInside && values[y * width + x] > 0.5;
  };

  let area = 0;
  let perimeter = 0;
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      if (!isSolid(x, y)) continue;
      area++;
      if (!isSolid(x - 1, y)) perimeter++;
      if (!isSolid(x + 1, y)) perimeter++;
      if (!isSolid(x, y - 1)) perimeter++;
      if (!isSolid(x, y + 1)) perimeter++;
    }
  }

  // A stroke of length L and width W has area L·W and perimeter about 2·L.
  return 2 * area / Math.max(1, perimeter);
}

// Return a 1 that was stretched to fill a square bitmap as slender as it was; other digits unchanged.
function heightenStretchedBar(digit) {
  const { width, height } = digit;
  if (Math.max(width, height) > MAX_BITMAP_SIDE) return digit;

  const solid = { values: maskOf(digit.values, (value) => value > 0.5), width, height };
  const runs = [];
  for (let y = 0; y < height; y++) {
    const row = solid.values.subarray(y * width, (y + 1) * width);
    runs.push(row.reduce((sum, value) => sum + value, 0));
  }
  const barWidth = median(runs);
  if (barWidth < MIN_STRETCHED_WIDTH * height) return digit;
  if (shareOfRowsWithOneRun(solid.values, width, height) < MIN_BAR) return digit;
  if (Math.min(shareOfSpans(solid), shareOfSpans(transpose(solid))) < MIN_SOLID) return digit;

  const times = roundHalfToEven(barWidth / (BAR_WIDTH * height));
  const values = new Float64Array(times * width * height);
  for (let y = 0; y < times * height; y++) {
    const source = Math.floor(y / times) * width;
    values.set(digit.values.subarray(source, source + width), y * width);
  }
  return { ...digit, values, height: times * height };
}

// Return how much of the rows' spans, from their first to their last pixel, a mask fills.
function shareOfSpans({ values, width, height }) {
  let area = 0;
  let spans = 0;
  for (let y = 0; y < height; y++) {
    const row = values.subarray(y * width, (y + 1) * width);
    area += row.reduce((sum, value) => sum + value, 0);
    if (row.includes(1)) spans += row.lastIndexOf(1) - row.indexOf(1) + 1;
  }
  return area / Math.max(1, spans);
}

// Make a thin pen's strokes as wide as MNIST's thinnest.
function thicken(digit) {
  const longerSide = Math.max(digit.width, digit.height);
  const minWidth = MIN_STROKE_WIDTH * longerSide / 20;

  // Add half of the missing width on either side.
  const missing = roundHalfToEven((minWidth - strokeWidth(digit)) / 2);
  if (missing <= 0) return digit;

  const width = digit.width + 2 * missing;
  const height = digit.height + 2 * missing;
  const values = new Float64Array(width * height);
  for (let y = 0; y < digit.height; y++) {
    for (let x = 0; x < digit.width; x++) {
      const value = digit.values[y * digit.width + x];
      if (value === 0) continue;

      // Each pixel becomes a square. Where squares overlap, the darkest ink wins.
      for (let row = y; row <= y + 2 * missing; row++) {
        for (let column = x; column <= x + 2 * missing; column++) {
          const target = row * width + column;
          values[target] = Math.max(values[target], value);
        }
      }
    }
  }
  return { values, width, height };
}

// Return for each output its inputs and their weights: the index of its first input, and the
// weights from there on. This is the anti-aliased triangle filter of Pillow and PyTorch.
function triangleFilter(inputSize, outputSize) {
  const scale = inputSize / outputSize;
  const support = Math.max(1, scale);

  const filter = [];
  for (let output = 0; output < outputSize; output++) {
    const middle = scale * (output + 0.5);
    const first = Math.max(0, Math.trunc(middle - support + 0.5));
    const end = Math.min(inputSize, Math.trunc(middle + support + 0.5));

    const unscaled = [];
    let total = 0;
    for (let input = first; input < end; input++) {
      const weight = Math.max(0, 1 - Math.abs((input - middle + 0.5) / support));
      unscaled.push(weight);
      total += weight;
    }
    filter.push({ first, weights: unscaled.map((weight) => weight / total) });
  }
  return filter;
}

// Resize a grey image, first its rows, then its columns.
function resize(image, width, height) {
  const narrow = new Float64Array(width * image.height);
  triangleFilter(image.width, width).forEach(({ first, weights }, x) => {
    for (let y = 0; y < image.height; y++) {
      for (let i = 0; i < weights.length; i++) {
        narrow[y * width + x] += weights[i] * image.values[y * image.width + first + i];
      }
    }
  });

  const values = new Float64Array(width * height);
  triangleFilter(image.height, height).forEach(({ first, weights }, y) => {
    for (let x = 0; x < width; x++) {
      for (let i = 0; i < weights.length; i++) {
        values[y * width + x] += weights[i] * narrow[(first + i) * width + x];
      }
    }
  });
  return { values, width, height };
}

// Scale a digit to fit into 20x20 and put its centre of mass into the middle of 28x28. Returns 784
// bytes, the darkest ink being 255.
function centre(digit) {
  const longerSide = Math.max(digit.width, digit.height);
  const width = Math.max(1, roundHalfToEven(20 * digit.width / longerSide));
  const height = Math.max(1, roundHalfToEven(20 * digit.height / longerSide));
  const { values } = resize(digit, width, height);

  let mass = 0;
  let momentX = 0;
  let momentY = 0;
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const value = values[y * width + x];
      mass += value;
      momentX += value * x;
      momentY += value * y;
    }
  }
  const left = Math.min(Math.max(roundHalfToEven(13.5 - momentX / mass), 0), 28 - width);
  const top = Math.min(Math.max(roundHalfToEven(13.5 - momentY / mass), 0), 28 - height);

  // Both steps round to bytes, as they do in Python.
  const image = new Uint8Array(784);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      image[(top + y) * 28 + left + x] = roundHalfToEven(values[y * width + x] * 255);
    }
  }
  const darkest = Math.max(...image);
  return image.map((value) => roundHalfToEven(value * 255 / darkest));
}

// Return a digit as the network sees it, 784 bytes.
function thickenAndCentre(digit) {
  return centre(thicken(heightenStretchedBar(digit)));
}

// Tell whether an image of 28x28 bytes has more strokes, holes or ink than a digit.
function isUnlikeADigit(image) {
  const side = 30; // with a rim of paper
  const isInk = new Uint8Array(side * side);
  image.forEach((value, i) => {
    if (value > 127) isInk[(Math.floor(i / 28) + 1) * side + i % 28 + 1] = 1;
  });

  let inkCount = 0;
  let edgeCount = 0;
  let crossedRows = 0;
  let crossedColumns = 0;
  for (let i = 0; i < side; i++) {
    let edgesInRow = 0;
    let edgesInColumn = 0;
    for (let j = 0; j < side; j++) {
      inkCount += isInk[i * side + j];
      if (j === 0) continue;
      if (isInk[i * side + j] !== isInk[i * side + j - 1]) edgesInRow++;
      if (isInk[j * side + i] !== isInk[(j - 1) * side + i]) edgesInColumn++;
    }
    edgeCount += edgesInRow + edgesInColumn;
    if (edgesInRow >= 8) crossedRows++;
    if (edgesInColumn >= 10) crossedColumns++;
  }
  return countHoles(isInk, side) > MAX_HOLES
    || crossedRows > MAX_CROSSED_ROWS
    || crossedColumns > MAX_CROSSED_COLUMNS
    || edgeCount > 2 * MAX_STROKES
    || inkCount > MAX_INK
    || 2 * inkCount > MAX_STROKE_WIDTH * edgeCount;
}

// Return the number of holes of two pixels or more in a square mask with a rim of paper. Paper is
// connected along the sides of its pixels only.
function countHoles(isInk, side) {
  const isSeen = isInk.slice();
  let count = -1; // the paper around the digit is no hole
  for (let start = 0; start < isSeen.length; start++) {
    if (isSeen[start]) continue;
    isSeen[start] = 1;
    const stack = [start];
    let size = 0;
    while (stack.length > 0) {
      const pixel = stack.pop();
      const x = pixel % side;
      size++;
      const neighbours = [pixel - side, pixel + side];
      if (x > 0) neighbours.push(pixel - 1);
      if (x < side - 1) neighbours.push(pixel + 1);
      for (const neighbour of neighbours) {
        if (isSeen[neighbour] !== 0) continue; // `undefined` is outside the mask
        isSeen[neighbour] = 1;
        stack.push(neighbour);
      }
    }
    if (size >= 2) count++;
  }
  return count;
}

// Return { grey, ink, rows, marks, images, warnings }: a picture, what the three steps found in it,
// and what the network sees of the digits, in reading order.
// Without ink, `ink` and `marks` are null and there are no rows. There are none either if the
// picture shows a pattern.
//
// enlargement: how many pixels of `picture` lie along a side of one pixel of the file.
function analyse(picture, enlargement = 1) {
  const grey = readGrey(picture);
  const ink = findInk(grey);
  if (ink === null) return { grey, ink, rows: [], marks: null, images: [], warnings: [] };

  const { rows, marks, warnings } = findDigits(ink.strength);
  if (rows.length === 0) return { grey, ink, rows, marks, images: [], warnings: [] };

  const messages = [...ink.warnings, ...warnings];
  const images = rows.flat().map(thickenAndCentre);
  const unlikeCount = images.filter(isUnlikeADigit).length;
  if (unlikeCount > 0 && images.length === 1) {
    messages.push("this may be no digit: it has too many strokes or too much ink.");
  } else if (unlikeCount > 0) {
    messages.push(`${unlikeCount} of the ${images.length} marks may be no digits: `
      + "they have too many strokes or too much ink.");
  }

  const highest = Math.max(...rows.flat().map((digit) => digit.height));
  const height = Math.max(1, roundHalfToEven(highest / enlargement));
  if (height < MIN_HEIGHT) {
    messages.push(`the digits are only ${height} pixels high: take the picture from nearer.`);
  }
  return { grey, ink, rows, marks, images, warnings: messages };
}
