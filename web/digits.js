// What `to_mnist` and `segment_digits` of `mnist_lab.handwriting.preprocess` do, in the browser.
// tests/test_page.py compares the two implementations: change both together.
//
// A grey image is { values, width, height }: its pixels row by row, from 0 to 1.

const MIN_CONTRAST = 0.06; // of the whole scale: a picture with less is empty
const MIN_STROKE_WIDTH = 1.5; // pixels of the 20x20: MNIST's strokes are two to three wide
const MIN_INK = 0.15; // of the median ink: fainter pixels are paper
const MIN_COMPONENT = 0.05; // of the ink of the largest component: smaller ones are specks
const MIN_OVERLAP = 0.4; // of the narrower stroke's width: strokes above each other are one digit
const SURFACE_SAMPLES = 64; // along the longer side: enough to fit the brightness of the paper

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

function dotProduct(surface, terms) {
  let sum = surface[0] * terms[0];
  for (let i = 1; i < 6; i++) sum += surface[i] * terms[i];
  return sum;
}

// Fit the paper's brightness, a + b u + c v + d u² + e u v + f v², to the sample by least absolute
// deviations: the ink, a minority, has no influence on it. Returns the six coefficients.
function fitPaper(sample, terms) {
  // Iteratively reweighted least squares.
  let surface = [median(sample), 0, 0, 0, 0, 0];
  for (let round = 0; round < 20; round++) {
    const normalMatrix = [];
    for (let i = 0; i < 6; i++) {
      normalMatrix.push([0, 0, 0, 0, 0, 0]);
      normalMatrix[i][i] = 1e-6;
    }
    const rightHandSide = [0, 0, 0, 0, 0, 0];

    for (let s = 0; s < sample.length; s++) {
      const row = terms[s];
      const weight = 1 / Math.max(Math.abs(sample[s] - dotProduct(surface, row)), 0.002);
      for (let i = 0; i < 6; i++) {
        for (let j = i; j < 6; j++) normalMatrix[i][j] += weight * row[i] * row[j];
        rightHandSide[i] += weight * row[i] * sample[s];
      }
    }
    for (let i = 0; i < 6; i++) {
      for (let j = 0; j < i; j++) normalMatrix[i][j] = normalMatrix[j][i];
    }

    const previous = surface;
    surface = solve(normalMatrix, rightHandSide);
    if (surface.every((value, i) => Math.abs(value - previous[i]) < 1e-5)) break;
  }
  return surface;
}

// Return how far each pixel is from the paper's brightness, and the noise of the paper.
function subtractPaper({ values, width, height }) {
  const us = coordinates(width);
  const vs = coordinates(height);

  const step = Math.ceil(Math.max(width, height) / SURFACE_SAMPLES);
  const sample = [];
  const terms = [];
  for (let y = 0; y < height; y += step) {
    for (let x = 0; x < width; x += step) {
      const u = us[x];
      const v = vs[y];
      sample.push(values[y * width + x]);
      terms.push([1, u, v, u * u, u * v, v * v]);
    }
  }
  const surface = fitPaper(sample, terms);
  const deviations = sample.map((value, s) => Math.abs(value - dotProduct(surface, terms[s])));
  const noise = 1.5 * median(deviations);

  const [a, b, c, d, e, f] = surface;
  const difference = new Float64Array(width * height);
  for (let y = 0; y < height; y++) {
    const v = vs[y];
    for (let x = 0; x < width; x++) {
      const u = us[x];
      const paper = a + b * u + c * v + d * u * u + e * u * v + f * v * v;
      difference[y * width + x] = values[y * width + x] - paper;
    }
  }
  return { difference, noise };
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

// Return the ink from 0 to 1 as a grey image, or null if there is none.
function findInk(grey) {
  const { difference, noise } = subtractPaper(grey);

  // Cubes give the sign of the skew: the ink is the minority far from the paper.
  let cubes = 0;
  for (const value of difference) cubes += value * value * value;
  const sign = cubes > 0 ? 1 : -1; // the ink is brighter or darker than the paper
  const ink = difference.map((value) => Math.max(0, sign * value));

  // The ink must stand out: `noise` is about one standard deviation, and its largest values reach
  // four.
  const threshold = otsu(ink.filter((value) => value > 3 * noise));
  const strongInk = ink.filter((value) => value > threshold);
  const fullInk = strongInk.length > 0 ? median(strongInk) : 0;
  if (fullInk < Math.max(MIN_CONTRAST, 4.5 * noise)) return null;

  const faintest = Math.max(MIN_INK * fullInk, 4 * noise);
  const values = ink.map((value) => value < faintest ? 0 : Math.min(value / fullInk, 1));
  return { values, width: grey.width, height: grey.height };
}

// Return the connected components of the ink, and a map with the label of each pixel's component,
// or 0. A component has the box of its pixels, their sum as its mass, and `labels`, at first only
// its own.
function connectedComponents({ values, width, height }) {
  const labelMap = new Int32Array(values.length);
  const components = [];

  for (let start = 0; start < values.length; start++) {
    if (values[start] === 0 || labelMap[start] !== 0) continue;

    const label = components.length + 1;
    const component = {
      top: height, bottom: -1, left: width, right: -1, mass: 0, labels: [label],
    };
    components.push(component);

    labelMap[start] = label;
    const stack = [start];
    while (stack.length > 0) {
      const pixel = stack.pop();
      const x = pixel % width;
      const y = Math.floor(pixel / width);
      component.mass += values[pixel];
      component.top = Math.min(component.top, y);
      component.bottom = Math.max(component.bottom, y);
      component.left = Math.min(component.left, x);
      component.right = Math.max(component.right, x);

      // Diagonal neighbours are connected, too.
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

function withoutSpecks(components) {
  const largest = components.reduce((most, { mass }) => Math.max(most, mass), 0);
  return components.filter(({ mass }) => mass >= MIN_COMPONENT * largest);
}

// Join two components. The result needs no mass: the specks are gone by then.
function union(first, second) {
  return {
    top: Math.min(first.top, second.top),
    bottom: Math.max(first.bottom, second.bottom),
    left: Math.min(first.left, second.left),
    right: Math.max(first.right, second.right),
    labels: [...first.labels, ...second.labels],
  };
}

// Join the components of each digit. Returns one component per digit, from left to right.
function groupByDigit(components) {
  const widthOf = ({ left, right }) => right - left + 1;
  const boxes = [...components].sort((first, second) => first.left - second.left);

  const digits = [boxes[0]];
  for (const box of boxes.slice(1)) {
    const digit = digits.at(-1);
    const narrower = Math.min(widthOf(box), widthOf(digit));
    const overlap = digit.right + 1 - box.left;
    if (overlap >= MIN_OVERLAP * narrower) {
      digits[digits.length - 1] = union(digit, box);
    } else {
      digits.push(box);
    }
  }
  return digits;
}

// Cut a component out of the ink, along its box and without the ink of others.
function cutOut(ink, labelMap, component) {
  const width = component.right - component.left + 1;
  const height = component.bottom - component.top + 1;
  const labels = new Set(component.labels);

  const values = new Float64Array(width * height);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const source = (component.top + y) * ink.width + component.left + x;
      if (labels.has(labelMap[source])) values[y * width + x] = ink.values[source];
    }
  }
  return { values, width, height };
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

// Return what the network sees of an ImageData: 784 bytes per digit, from left to right.
function digitsIn(picture) {
  const ink = findInk(readGrey(picture));
  if (ink === null) return [];

  const { labelMap, components } = connectedComponents(ink);
  const groups = groupByDigit(withoutSpecks(components));

  // As in `to_mnist`, the picture holds several digits if several groups are more than half as high
  // as the highest. Otherwise the small groups are parts of one digit.
  const heights = groups.map(({ top, bottom }) => bottom - top);
  const minHeight = Math.max(...heights) / 2;
  const hasSeveralDigits = heights.filter((height) => height > minHeight).length > 1;
  const digits = hasSeveralDigits ? groups : [groups.reduce(union)];

  return digits.map((digit) => centre(thicken(cutOut(ink, labelMap, digit))));
}
