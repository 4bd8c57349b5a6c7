"""A five-layer network that reads handwritten digits, from the files to the figures.

Read the modules in this order, each uses only those before it: `images`, `data`, `augment`,
`model`, `evaluate`, `checkpoint`, `distill`, `muon`, `train`, `corrupt`, `run`, `sweep`, `plots`,
`notebook`.
"""
