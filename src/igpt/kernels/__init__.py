"""Faster code than PyTorch's own ("roads"), each tested against a plain twin in PyTorch or NumPy.

`IGPT_KERNELS=0` in the environment turns all of them off.
"""
