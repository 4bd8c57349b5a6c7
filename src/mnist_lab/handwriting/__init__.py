"""Your own digits: pictures to images like MNIST's, synthetic handwriting, a drawing pad, ONNX."""
