"""Quantizing a model while it is converted: what a user asks for, and how each matrix is rounded best.

`options` is what is asked, `policy` decides for each matrix, `samples` reads the calibration file. `layerwise` runs the
dense model one layer at a time and shows what goes into each matrix, `statistics` keeps what is needed of that.
`search` finds scales of inputs and clipping that `folding` moves into the parameters before, `skipping` keeps the worst
matrices wider. `rounding` is the arithmetic of one matrix, `pipeline` all of it in order, `report` what is said about
it, and `verify` compares the result with the original.
"""
