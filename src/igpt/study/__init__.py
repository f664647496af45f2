"""Studies of what a model knows: probes of every layer, also with few labels, beside baselines.

All methods are given the same labelled pictures, and the same validation pictures to choose with.
The test pictures are used once, for what was chosen.
"""
