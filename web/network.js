// What `EnhancedNet` and `mnist_lab.research.understanding.attributions` do, in the browser.
// tests/test_page.py compares this file with PyTorch and with Captum.

// Return each layer's weights (outputs x inputs, row by row) and biases.
//
// base64: 16-bit integers, little-endian, in the order of the state_dict.
// sizes: the number of inputs, and of each layer's outputs.
// scales: what the integers of each tensor are multiplied by.
function unpack(base64, sizes, scales) {
  const text = atob(base64);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  const integers = new Int16Array(bytes.buffer);

  const layers = [];
  let start = 0;
  for (let i = 0; i < sizes.length - 1; i++) {
    const inputs = sizes[i];
    const outputs = sizes[i + 1];
    const weightScale = scales[2 * i];
    const biasScale = scales[2 * i + 1];

    const biasStart = start + outputs * inputs;
    const end = biasStart + outputs;
    const weightIntegers = integers.subarray(start, biasStart);
    const biasIntegers = integers.subarray(biasStart, end);
    layers.push({
      weights: Float32Array.from(weightIntegers, (integer) => integer * weightScale),
      biases: Float32Array.from(biasIntegers, (integer) => integer * biasScale),
    });
    start = end;
  }
  return layers;
}

function normalise(image, mean, std) {
  return Float32Array.from(image, (value) => (value / 255 - mean) / std);
}

function relu(inputs) {
  return inputs.map((value) => Math.max(0, value));
}

function linear({ weights, biases }, inputs) {
  return biases.map((bias, output) => {
    const rowStart = output * inputs.length;

    // Four sums are faster than one, because an addition to one need not wait for the others. All
    // layers have a multiple of four inputs.
    let sum0 = bias;
    let sum1 = 0;
    let sum2 = 0;
    let sum3 = 0;
    for (let i = 0; i < inputs.length; i += 4) {
      sum0 += weights[rowStart + i] * inputs[i];
      sum1 += weights[rowStart + i + 1] * inputs[i + 1];
      sum2 += weights[rowStart + i + 2] * inputs[i + 2];
      sum3 += weights[rowStart + i + 3] * inputs[i + 3];
    }
    return sum0 + sum1 + sum2 + sum3;
  });
}

// Return the gradient with respect to a linear layer's inputs, given the gradient with respect to
// its outputs.
function backward({ weights, biases }, outputGradient) {
  const inputGradient = new Float32Array(weights.length / biases.length);
  outputGradient.forEach((gradient, output) => {
    if (gradient === 0) return; // as behind every unit that the ReLU has switched off
    const rowStart = output * inputGradient.length;
    for (let i = 0; i < inputGradient.length; i++) {
      inputGradient[i] += gradient * weights[rowStart + i];
    }
  });
  return inputGradient;
}

// Return the ten probabilities of an image of 784 bytes.
function predict(layers, image, mean, std) {
  let logits = linear(layers[0], normalise(image, mean, std));
  for (const layer of layers.slice(1)) logits = linear(layer, relu(logits));

  // Softmax. The largest logit is subtracted so that no power overflows.
  const largest = Math.max(...logits);
  const powers = logits.map((logit) => Math.exp(logit - largest));
  const total = powers.reduce((sum, power) => sum + power);
  return powers.map((power) => power / total);
}

// Return by how much each of an image's 784 bytes raises the logit of the digit `answer`.
//
// Integrated gradients: the mean gradient over `steps` images on the way from an empty image to
// this one, times the pixel. The 784 values sum to the difference between the two images' logits.
// Source: Sundararajan, Taly & Yan, "Axiomatic attribution for deep networks", 2017.
function attributions(layers, image, answer, mean, std, steps = 64) {
  const laterLayers = layers.slice(1);

  // The images lie on a line, so the first layer's outputs do, too: it needs to be computed only
  // for the two ends, and its gradient only once.
  const emptyOutput = linear(layers[0], normalise(new Uint8Array(784), mean, std));
  const imageOutput = linear(layers[0], normalise(image, mean, std));
  const meanGradient = new Float32Array(emptyOutput.length);

  for (let step = 0; step < steps; step++) {
    const fraction = (step + 0.5) / steps;
    const firstOutput = emptyOutput.map(
      (value, i) => value + fraction * (imageOutput[i] - value),
    );
    const outputs = [firstOutput];
    for (const layer of laterLayers) outputs.push(linear(layer, relu(outputs.at(-1))));

    let gradient = new Float32Array(outputs.at(-1).length);
    gradient[answer] = 1;
    for (let i = laterLayers.length - 1; i >= 0; i--) {
      // The ReLU before this layer passes the gradient on where its input is positive.
      const reluInput = outputs[i];
      const reluGradient = backward(laterLayers[i], gradient);
      gradient = reluGradient.map((value, unit) => reluInput[unit] > 0 ? value : 0);
    }
    for (let unit = 0; unit < gradient.length; unit++) meanGradient[unit] += gradient[unit] / steps;
  }

  const inputGradient = backward(layers[0], meanGradient);
  return inputGradient.map((gradient, i) => gradient * image[i] / 255 / std);
}
