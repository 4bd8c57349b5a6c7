"""What goes beyond `mnist_mlp`: handwriting, and experiments with the network."""
