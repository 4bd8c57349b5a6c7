"""What goes beyond `mnist_mlp`: handwriting, and experiments around the network."""
