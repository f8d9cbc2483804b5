"""Pictures of a layer's filters and of pruning rates."""
