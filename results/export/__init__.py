"""An exported network as a folder, with its model card."""
