"""What a model is compared with: counts for likelihood; neighbours and a CNN for classes."""
