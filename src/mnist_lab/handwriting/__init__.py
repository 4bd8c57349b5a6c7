"""Your own digits: pictures to images like MNIST's, synthetic handwriting, a drawing pad, ONNX.

A *picture* is what a person supplies, of any size; an *image* is 28x28, as the network sees it.
"""
