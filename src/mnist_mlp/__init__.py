"""A five-layer network that reads handwritten digits, from the files to the figures.

Read the modules in this order, each uses only those before it: `checkpoint`, `download`, `images`,
`data`, `others`, `augment`, `model`, `evaluate`, `distill`, `muon`, `resume`, `train`, `corrupt`,
`run`, `sweep`, `plots`, `notebook`; on their own stand `samples`, `draw` and `export`.
"""
