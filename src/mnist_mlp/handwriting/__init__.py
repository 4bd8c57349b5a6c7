"""Your own digits: preprocessing of pictures, synthetic handwriting, drawing pad, export.

`datasets` uses `preprocess` and `pictures` for folders of pictures; nothing needs the rest.
"""
