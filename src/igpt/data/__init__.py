"""Pictures in: sources, decoding, augmentation, and a loader addressed by step."""
