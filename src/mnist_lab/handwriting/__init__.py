"""Your own digits: pictures made into images like MNIST's, synthetic handwriting, a pad, ONNX."""
