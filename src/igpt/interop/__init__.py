"""Foreign formats, one file each: names, configuration, clusters, and what is refused."""
