"""One run on many processes: who they are, what they tell each other, how they share a model.

In a process that runs alone, every function here does nothing or the obvious. The model, the
objectives and the data know nothing of this package.
"""
