"""Ray's part: trials on the workers of a cluster, and a study from its beginning to its end."""
