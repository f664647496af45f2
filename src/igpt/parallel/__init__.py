"""One run on many processes: who they are, what they tell each other, how they share a model.

Every function here does nothing, or the obvious, for a process that is alone. Model, objectives
and data know nothing of it.
"""
