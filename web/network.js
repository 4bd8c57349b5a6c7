// What `EnhancedNet` and `mnist_lab.research.understanding.attributions` do, in the browser. Tests
// hold this file to PyTorch and to Captum.

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

const normalised = (image, mean, std) => Float32Array.from(image, (v) => (v / 255 - mean) / std);
const relu = (x) => x.map((v) => Math.max(0, v));

function linear({ weights, biases }, x) {
  const n = x.length;
  return biases.map((bias, i) => {
    let a = bias, b = 0, c = 0, d = 0; // four sums, that need not wait for each other
    for (let j = 0, k = i * n; j < n; j += 4, k += 4) {
      a += weights[k] * x[j];
      b += weights[k + 1] * x[j + 1];
      c += weights[k + 2] * x[j + 2];
      d += weights[k + 3] * x[j + 3];
    }
    return a + b + c + d;
  });
}

// The gradient with respect to a linear layer's input, from the one with respect to its output.
function backward({ weights, biases }, gradient) {
  const n = weights.length / biases.length, result = new Float32Array(n);
  gradient.forEach((g, i) => {
    if (g) for (let j = 0, k = i * n; j < n; j++, k++) result[j] += g * weights[k];
  });
  return result;
}

// The ten probabilities of 784 bytes.
function predict(layers, image, mean, std) {
  const [first, ...rest] = layers;
  const sums = linear(first, normalised(image, mean, std));
  const logits = rest.reduce((x, layer) => linear(layer, relu(x)), sums);
  const top = Math.max(...logits);
  const powers = logits.map((v) => Math.exp(v - top)), total = powers.reduce((a, b) => a + b);
  return powers.map((v) => v / total);
}

// By how much each of 784 bytes raises the logit of `answer`, compared with an empty image: integrated
// gradients, the mean gradient over `steps` images on the way from there, times the pixel. They sum to
// the logit's difference.
// Source: Sundararajan, Taly & Yan, "Axiomatic attribution for deep networks", 2017.
function attributions(layers, image, answer, mean, std, steps = 64) {
  const [first, ...rest] = layers;
  // The images lie on a line, so the first layer's outputs do: two products there, not one a step.
  const from = linear(first, normalised(new Uint8Array(784), mean, std));
  const to = linear(first, normalised(image, mean, std));
  const total = new Float32Array(from.length);
  for (let step = 0; step < steps; step++) {
    const part = (step + 0.5) / steps;
    const outputs = [from.map((v, i) => v + part * (to[i] - v))];
    for (const layer of rest) outputs.push(linear(layer, relu(outputs.at(-1))));
    let gradient = outputs.pop().map((_, i) => i === answer ? 1 : 0);
    for (const layer of [...rest].reverse()) {
      const output = outputs.pop();
      gradient = backward(layer, gradient).map((g, i) => output[i] > 0 ? g : 0);
    }
    gradient.forEach((g, i) => { total[i] += g / steps; });
  }
  return backward(first, total).map((g, i) => g * image[i] / 255 / std);
}
